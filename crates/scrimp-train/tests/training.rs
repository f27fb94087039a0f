//! Training through the library: gradients of layers, weights of other people's modules, own networks and loops.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/stripes.rs"]
mod stripes;
mod support;

use burn::module::{Module, Param};
use burn::nn;
use burn::optim::GradientsParams;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData};
use scrimp_codec::{Scheme, Stream, Tally};
use scrimp_train::burn;
use scrimp_train::compute::{Compute, Products};
use scrimp_train::data::Splits;
use scrimp_train::exchange::{ExchangeConfig, LevelConfig};
use scrimp_train::gradients::{self, GradientTaps};
use scrimp_train::layers::{Conv2d, Conv2dOptions, Linear, channels_last};
use scrimp_train::loss::cross_entropy;
use scrimp_train::models;
use scrimp_train::optimizers::{Optimizer, OptimizerConfig};
use scrimp_train::params::{self, NamedTensor};
use scrimp_train::plan::{Plan, PlanError, Saved, resolve};
use scrimp_train::reparameterize::round_weights;
use scrimp_train::rules::{Kinds, Rule};
use scrimp_train::tap::{Arithmetic, Scope, Session};
use scrimp_train::trainer::{CheckpointJob, TrainError, TrainJob};
use scrimp_train::weights::FirstValues;

use support::{StopAfter, train};

/// Values in [-1, 1), the same everywhere.
fn noise(count: usize, id: u32) -> Vec<f32> {
    let stream = Stream::new(5, id);
    (0..count as u64).map(|i| 2.0 * stream.uniform(i) - 1.0).collect()
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.without_autodiff().into_data().try_to_vec::<f32>().unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn rule(layers: &str, keys: &[(&str, &str)]) -> Rule {
    let pairs = keys.iter().copied().chain([("layers", layers)]);
    let fields = pairs.map(|(k, v)| (k.to_owned(), serde_json::Value::from(v)));
    serde_json::from_value(serde_json::Value::Object(fields.collect())).unwrap()
}

// ----- Gradients of layers.

#[derive(Module, Debug)]
struct Layer {
    linear: Option<Linear>,
    conv: Option<Conv2d>,
    #[module(skip)]
    arithmetic: Arithmetic,
}

/// A layer, with the shape of its input.
struct Case {
    name: &'static str,
    channels: [usize; 2],
    options: Option<Conv2dOptions>,
    input: [usize; 4],
}

fn cases() -> Vec<Case> {
    let case = |name, channels, options, input| Case { name, channels, options, input };
    let conv = Conv2dOptions::new(3);
    vec![
        case("linear", [5, 4], None, [3, 5, 1, 1]),
        case("conv", [2, 3], Some(conv), [2, 2, 5, 6]),
        case("stride", [2, 3], Some(Conv2dOptions { stride: [2, 1], ..conv }), [2, 2, 6, 5]),
        case("padding", [1, 2], Some(Conv2dOptions { padding: [1, 2], ..conv }), [2, 1, 4, 4]),
        case("dilation", [2, 2], Some(Conv2dOptions { dilation: [2, 1], ..conv }), [1, 2, 7, 6]),
        case("groups", [4, 6], Some(Conv2dOptions { groups: 2, ..conv }), [1, 4, 4, 5]),
        case("depthwise", [4, 4], Some(Conv2dOptions { groups: 4, ..conv }), [2, 4, 4, 4]),
        case("no bias", [2, 3], Some(Conv2dOptions { bias: false, ..conv }), [1, 2, 4, 4]),
        case(
            "everything",
            [4, 6],
            Some(Conv2dOptions {
                kernel: [3, 2],
                stride: [2, 1],
                padding: [1, 2],
                dilation: [1, 2],
                groups: 2,
                ..conv
            }),
            [2, 4, 6, 5],
        ),
    ]
}

impl Case {
    fn build(&self, scope: &Scope, device: &Device) -> Layer {
        let [inputs, outputs] = self.channels;
        let linear = || Linear::new(&scope.at("linear"), inputs, outputs, device);
        let conv = |options| Conv2d::new(&scope.at("conv"), inputs, outputs, options, device);
        Layer {
            linear: self.options.is_none().then(linear),
            conv: self.options.map(conv),
            arithmetic: scope.arithmetic(),
        }
    }
}

impl Layer {
    /// The output, flat.
    fn forward(&self, x: Tensor<4>) -> Tensor<1> {
        match (&self.linear, &self.conv) {
            (Some(linear), _) => linear.forward(x.flatten::<2>(1, 3)).flatten(0, 1),
            (_, Some(conv)) => match self.arithmetic {
                Arithmetic::Kernels => {
                    let y = conv.forward(channels_last(x, self.arithmetic));
                    y.permute([0, 3, 1, 2]).flatten(0, 3)
                }
                _ => conv.forward(x).flatten(0, 3),
            },
            _ => unreachable!("one of them is there"),
        }
    }

    /// The gradients of weight and bias.
    fn gradients(&self, grads: &mut GradientsParams) -> (Vec<f32>, Option<Vec<f32>>) {
        let (weight, bias) = match (&self.linear, &self.conv) {
            (Some(l), _) => (grads.remove::<2>(l.weight.id).map(values), &l.bias),
            (_, Some(c)) => (grads.remove::<4>(c.weight.id).map(values), &c.bias),
            _ => unreachable!("one of them is there"),
        };
        let bias = bias.as_ref().map(|b| values(grads.remove::<1>(b.id).unwrap()));
        (weight.unwrap(), bias)
    }
}

/// Half the sum of `r y^2`, in f64.
fn objective(y: &[f32]) -> f64 {
    let r = noise(y.len(), 9);
    y.iter().zip(r).map(|(y, r)| 0.5 * f64::from(r) * f64::from(*y).powi(2)).sum()
}

#[test]
fn gradients_of_layers_are_those_of_finite_differences() {
    // The objective is quadratic in each operand, so central differences are exact but for the rounding of the output.
    const STEP: f32 = 0.125;
    let plain = Device::flex();
    let device = plain.clone().autodiff();
    for case in cases() {
        let x = noise(case.input.iter().product(), 1);
        let net = case.build(&Scope::root(3), &device);
        let xt = tensor(x.clone(), case.input, &device).require_grad();
        let y = net.forward(xt.clone());
        let n = y.dims()[0];
        let r = tensor(noise(n, 9), [n], &device);
        let mut all = ((y.clone() * y) * r * 0.5).sum().backward();
        let dx = values(xt.grad(&all).unwrap());
        let (dw, db) = net.gradients(&mut GradientsParams::from_module(&mut all, &net));

        // The same values on the plain device.
        let stored = params::tensors(&net);
        let at = |x: &[f32], stored: &[NamedTensor]| {
            let net = case.build(&Scope::root(0), &plain);
            let (net, report) = params::load(net, stored.to_vec()).unwrap();
            assert!(report.missing.is_empty() && report.unexpected.is_empty());
            objective(&values(net.forward(tensor(x.to_vec(), case.input, &plain))))
        };
        let check = |what: &str, gradient: &[f32], moved: &dyn Fn(usize, f32) -> f64| {
            let scale = gradient.iter().fold(1.0f32, |m, g| m.max(g.abs()));
            for (i, g) in gradient.iter().enumerate() {
                let difference = (moved(i, STEP) - moved(i, -STEP)) / (2.0 * f64::from(STEP));
                let error = (difference - f64::from(*g)).abs();
                assert!(
                    error <= f64::from(2e-5 * scale),
                    "{}: {what}[{i}]: {g}, {difference}",
                    case.name
                );
            }
        };
        check("dx", &dx, &|i, step| {
            let mut x = x.clone();
            x[i] += step;
            at(&x, &stored)
        });
        for (name, gradient) in [("weight", Some(dw)), ("bias", db)] {
            let place = stored.iter().position(|t| t.name.ends_with(name));
            assert_eq!(place.is_some(), gradient.is_some());
            let (Some(place), Some(gradient)) = (place, gradient) else { continue };
            check(name, &gradient, &|i, step| {
                let mut stored = stored.clone();
                stored[place].values[i] += step;
                at(&x, &stored)
            });
        }
    }
}

fn rounded(scheme: &str, mut x: Vec<f32>, shape: &[usize], name: &str) -> Vec<f32> {
    let scheme: Scheme = scheme.parse().unwrap();
    scheme.emulate(&mut x, shape, &Stream::named(0, name)).unwrap();
    x
}

/// Output and gradients of a layer whose operands are rounded.
fn layer_results(
    case: &Case,
    arithmetic: Arithmetic,
    compute: Compute,
    [x, w, dy]: [&str; 3],
) -> [Vec<f32>; 4] {
    let device = Device::flex().autodiff();
    let scope = Scope::root(0).with(arithmetic);
    let net = case.build(&scope, &device);
    let input = noise(case.input.iter().product(), 1);
    net.forward(tensor(input.clone(), case.input, &device));
    let session = Session::new(0);
    let rule = rule("*", &[("x", x), ("w", w), ("dy", dy)]);
    let sites = scope.sites();
    resolve(&sites, &[rule], case.input[0], compute, &OptimizerConfig::default(), None)
        .unwrap()
        .apply(&sites, &session);
    let xt = tensor(input, case.input, &device).require_grad();
    let y = net.forward(xt.clone());
    let n = y.dims()[0];
    let mut all = (y.clone() * tensor(noise(n, 2), [n], &device)).sum().backward();
    let dx = values(xt.grad(&all).unwrap());
    let (dw, db) = net.gradients(&mut GradientsParams::from_module(&mut all, &net));
    assert_eq!(session.problem(), None);
    [values(y), dx, dw, db.unwrap_or_default()]
}

#[test]
fn products_in_int8_and_bf16_are_those_of_the_rounded_values_in_f32() {
    let kinds = |compute, axes, [x, w, dy]: [&str; 3]| {
        let [x, w, dy] = [x, w, dy].map(|s| s.parse::<Scheme>().unwrap());
        let (x, dy) = (x.for_activation(axes - 1), dy.for_activation(axes - 1));
        let short = Products { forward: 9, input_gradient: 9, weight_gradient: 9 };
        let of = Products::of(compute, [&x, &w, &dy], axes, short);
        [of.forward, of.input_gradient, of.weight_gradient].map(|choice| choice.kind.name())
    };
    let exact = [
        (["int8/scale:pow2", "int8/scale:pow2", "int8/scale:pow2"], ["int8", "int8", "int8"]),
        (
            ["int4/scale:pow2", "int8/channel/scale:pow2", "uint7/scale:pow2"],
            ["int8", "bf16", "int8"],
        ),
    ];
    let near = [
        (["int8", "int8", "int8"], ["int8", "int8", "int8"]),
        (["int8", "int8", "int8/channel"], ["int8", "f32", "int8"]),
        (["int8", "int4/channel", "e4m3fn"], ["int8", "f32", "bf16"]),
        (["uint8", "int8", "int8"], ["bf16", "int8", "bf16"]),
        (["e4m3fn", "e3m2fn", "e5m2"], ["bf16", "bf16", "bf16"]),
        (["bf16", "mxfp4/group:2", "e5m2"], ["bf16", "bf16", "bf16"]),
        (["int8", "int8/group:2", "int8"], ["f32", "f32", "int8"]),
        (["f16", "int8", "e5m2"], ["f32", "bf16", "f32"]),
    ];
    for case in cases() {
        for (at, (schemes, expected)) in exact.into_iter().chain(near).enumerate() {
            let axes = if case.options.is_some() { 4 } else { 2 };
            assert_eq!(kinds(Compute::Auto, axes, schemes), expected, "{schemes:?}");
            assert_eq!(kinds(Compute::Emulate, axes, schemes), ["f32"; 3]);
            // A scale along an axis of positions is no scale of a channel.
            let across = ["int8", "int8", "int8/axis:1"];
            let dw = if axes == 2 { "int8" } else { "f32" };
            assert_eq!(kinds(Compute::Auto, axes, across), ["int8", "f32", dw]);
            let engine = layer_results(&case, Arithmetic::Engine, Compute::Emulate, schemes);
            let emulated = layer_results(&case, Arithmetic::Kernels, Compute::Emulate, schemes);
            let computed = layer_results(&case, Arithmetic::Kernels, Compute::Auto, schemes);
            // Scales that are powers of two leave sums of integers exact, in f32 as in i32.
            if at < exact.len() {
                assert_eq!(computed, emulated, "{} {schemes:?}", case.name);
            }
            for (what, i) in [("y", 0), ("dx", 1), ("dw", 2), ("db", 3)] {
                let scale = engine[i].iter().fold(1e-3f32, |m, v| m.max(v.abs()));
                for values in [&emulated[i], &computed[i]] {
                    assert_eq!(values.len(), engine[i].len());
                    for (v, e) in values.iter().zip(&engine[i]) {
                        let error = (v - e).abs();
                        assert!(
                            error <= 1e-5 * scale,
                            "{} {schemes:?} {what}: {v}, {e}",
                            case.name
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_gradient_goes_straight_through_to_the_rounded_operands() {
    let device = Device::flex().autodiff();
    let (x, w, b, y) = ("uint4", "int3/channel", "e5m2", "int4/stochastic");
    let (dy, dx, dw, db) = ("e4m3/stochastic", "int5", "bf16", "int6");
    for case in cases().into_iter().filter(|case| case.options.is_none_or(|o| o.bias)) {
        // In this layout the elements of a tensor draw their numbers in the order of the reference below.
        let scope = Scope::root(0).with(Arithmetic::Engine);
        let net = case.build(&scope, &device);
        let input = noise(case.input.iter().product(), 1);
        net.forward(tensor(input.clone(), case.input, &device));
        let session = Session::new(0);
        let rule = rule(
            "*",
            &[
                ("x", x),
                ("w", w),
                ("b", b),
                ("y", y),
                ("dy", dy),
                ("dx", dx),
                ("dw", dw),
                ("db", db),
            ],
        );
        let sites = scope.sites();
        resolve(
            &sites,
            &[rule],
            case.input[0],
            Compute::Emulate,
            &OptimizerConfig::default(),
            None,
        )
        .unwrap()
        .apply(&sites, &session);
        let xt = tensor(input.clone(), case.input, &device).require_grad();
        let out = net.forward(xt.clone());
        let n = out.dims()[0];
        let upstream = noise(n, 2);
        let mut all = (out.clone() * tensor(upstream.clone(), [n], &device)).sum().backward();
        let got_dx = values(xt.grad(&all).unwrap());
        let mut grads = GradientsParams::from_module(&mut all, &net);
        GradientTaps::new(&sites, &session).round(&net, &mut grads);
        let (got_dw, got_db) = net.gradients(&mut grads);

        // The same with the engine's own ops, on operands that were rounded before.
        let path = &sites[0].path;
        let name = |role: &str| format!("{path}.{role}");
        let stored = params::tensors(&net);
        let (w_shape, b_shape) = (stored[0].shape.clone(), stored[1].shape.clone());
        let x_shape = if case.options.is_some() { &case.input[..] } else { &case.input[..2] };
        let xr = rounded(x, input, x_shape, &name("x"));
        let wr = rounded(w, stored[0].values.clone(), &w_shape, &name("w"));
        let br = rounded(b, stored[1].values.clone(), &b_shape, &name("b"));
        let xr = tensor(xr, case.input, &device).require_grad();
        let br = tensor(br, [b_shape[0]], &device).require_grad();
        let (wr, op, out_shape): (Tensor<1>, Tensor<1>, Vec<usize>) = match case.options {
            None => {
                let flat = tensor(wr, [w_shape.iter().product()], &device).require_grad();
                let wt = flat.clone().reshape([w_shape[0], w_shape[1]]).transpose();
                let y: Tensor<2> =
                    xr.clone().flatten::<2>(1, 3).matmul(wt) + br.clone().unsqueeze();
                (flat, y.clone().flatten(0, 1), y.dims().to_vec())
            }
            Some(o) => {
                let flat = tensor(wr, [w_shape.iter().product()], &device).require_grad();
                let wt = flat.clone().reshape([w_shape[0], w_shape[1], w_shape[2], w_shape[3]]);
                let options = ConvOptions::new(o.stride, o.padding, o.dilation, o.groups);
                let y = conv2d(xr.clone(), wt, Some(br.clone()), options);
                (flat, y.clone().flatten(0, 3), y.dims().to_vec())
            }
        };
        let expected = rounded(y, values(op.clone()), &out_shape, &name("y"));
        assert_eq!(bits(&values(out)), bits(&expected), "{}: y", case.name);
        let upstream = rounded(dy, upstream, &out_shape, &name("dy"));
        let grads = (op * tensor(upstream, [n], &device)).sum().backward();
        let expected_dx = rounded(dx, values(xr.grad(&grads).unwrap()), x_shape, &name("dx"));
        assert_eq!(bits(&got_dx), bits(&expected_dx), "{}: dx", case.name);
        let expected_dw = rounded(dw, values(wr.grad(&grads).unwrap()), &w_shape, &name("dw"));
        assert_eq!(bits(&got_dw), bits(&expected_dw), "{}: dw", case.name);
        let expected_db = rounded(db, values(br.grad(&grads).unwrap()), &b_shape, &name("db"));
        assert_eq!(bits(&got_db.unwrap()), bits(&expected_db), "{}: db", case.name);
        assert_eq!(session.problem(), None);
    }
}

// ----- Modules that know nothing of taps.

/// Layers of the engine's own.
#[derive(Module, Debug)]
struct Foreign {
    conv: nn::conv::Conv1d,
    lstm: nn::Lstm,
    norm: nn::LayerNorm,
    head: nn::Linear,
}

impl Foreign {
    fn new(device: &Device) -> Self {
        Self {
            conv: nn::conv::Conv1dConfig::new(2, 3, 3).init(device),
            lstm: nn::LstmConfig::new(3, 4, true).init(device),
            norm: nn::LayerNormConfig::new(4).init(device),
            head: nn::LinearConfig::new(4, 2).init(device),
        }
    }

    /// The outputs for `[batch, 2, time]`, flat.
    fn forward(&self, x: Tensor<3>) -> Tensor<1> {
        let x = self.conv.forward(x).swap_dims(1, 2); // [batch, time, 3]
        let (x, _) = self.lstm.forward(x, None); // [batch, time, 4]
        self.head.forward(self.norm.forward(x)).flatten(0, 2)
    }
}

/// The gradient of every parameter, by name, as the module's own visitors see them.
fn all_gradients<M: Module>(net: &M, loss: &Tensor<1>) -> Vec<(String, Vec<f32>)> {
    struct Collect<'a> {
        grads: &'a mut GradientsParams,
        path: Vec<String>,
        found: Vec<(String, Vec<f32>)>,
    }
    impl burn::module::ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let grad = self.grads.remove::<D>(param.id).expect("every parameter has a gradient");
            self.found.push((self.path.join("."), values(grad)));
        }
    }
    let mut grads = GradientsParams::from_grads(loss.backward(), net);
    let mut collect = Collect { grads: &mut grads, path: Vec::new(), found: Vec::new() };
    net.visit(&mut collect);
    collect.found
}

#[test]
fn the_weights_of_any_module_are_rounded_and_their_gradients_arrive_at_what_is_stored() {
    let device = Device::flex().autodiff();
    device.seed(1);
    let net = Foreign::new(&device);
    let stored = params::tensors(&net);
    let session = Session::new(0);
    let rules = [
        rule("*", &[("w", "int4/channel")]),
        rule("lstm.*", &[("default", "e4m3fn/row")]),
        rule("head.weight", &[("w", "int3/group:2")]),
    ];
    let (net, claimed) = round_weights(net, &rules, &session).unwrap();
    // One convolution, four gates of two matrices, one head; vectors are left alone.
    assert_eq!(claimed.len(), 10, "{claimed:?}");
    let scheme = |name: &str| claimed.iter().find(|(n, _)| n == name).map(|(_, s)| s.to_string());
    assert_eq!(scheme("conv.weight").unwrap(), "int4/channel");
    assert_eq!(scheme("lstm.input_gate.input_transform.weight").unwrap(), "e4m3fn/row");
    assert_eq!(scheme("head.weight").unwrap(), "int3/group:2");
    assert_eq!(scheme("conv.bias"), None);
    // What is stored stays as it was.
    assert_eq!(params::tensors(&net), stored);

    // A module without rounding, whose weights were rounded before.
    let before = stored.iter().map(|t| {
        let mut t = t.clone();
        if let Some((_, scheme)) = claimed.iter().find(|(name, _)| *name == t.name) {
            scheme.emulate(&mut t.values, &t.shape, &Stream::named(0, &t.name)).unwrap();
        }
        t
    });
    let (twin, report) = params::load(Foreign::new(&device), before).unwrap();
    assert!(report.missing.is_empty() && report.unexpected.is_empty());
    let x = tensor(noise(2 * 2 * 7, 1), [2, 2, 7], &device);
    let (y, expected) = (net.forward(x.clone()), twin.forward(x.clone()));
    assert_eq!(bits(&values(y.clone())), bits(&values(expected.clone())));
    assert_ne!(
        values(y.clone()),
        values(params::load(Foreign::new(&device), stored.clone()).unwrap().0.forward(x.clone()))
    );
    let r = tensor(noise(y.dims()[0], 2), y.dims(), &device);
    let got = all_gradients(&net, &(y * r.clone()).sum());
    let of_twin = all_gradients(&twin, &(expected * r).sum());
    assert_eq!(got.len(), stored.len());
    for ((name, got), (_, expected)) in got.iter().zip(&of_twin) {
        // A recurrent weight is used at every time step, and its gradients are summed in another order.
        let largest = expected.iter().fold(0.0f32, |m, g| m.max(g.abs()));
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() <= 1e-6 * largest, "{name}: {g}, expected {e}");
        }
        assert!(got.iter().any(|g| *g != 0.0), "{name} gets no gradient");
    }

    // A step of the optimizer moves what is stored, by the gradient, and the module still rounds.
    let config: OptimizerConfig =
        serde_json::from_value(serde_json::json!({"name": "sgd", "lr": 0.25})).unwrap();
    let loss = |net: &Foreign| net.forward(x.clone()).powi_scalar(2).sum();
    let gradients = all_gradients(&net, &loss(&net));
    let mut grads = GradientsParams::from_grads(loss(&net).backward(), &net);
    let net = Optimizer::new(config).step(0.25, net, &mut grads);
    for ((old, new), (name, g)) in stored.iter().zip(params::tensors(&net)).zip(&gradients) {
        let moved: Vec<f32> = old.values.iter().zip(g).map(|(w, g)| w - 0.25 * g).collect();
        assert_eq!(bits(&new.values), bits(&moved), "{name}");
    }
    let again = round_values(&net, &claimed);
    let twin = params::load(Foreign::new(&device), again).unwrap().0;
    assert_eq!(bits(&values(net.forward(x.clone()))), bits(&values(twin.forward(x))));
}

fn round_values<M: Module>(net: &M, claimed: &[(String, Scheme)]) -> Vec<NamedTensor> {
    let mut all = params::tensors(net);
    for t in &mut all {
        if let Some((_, scheme)) = claimed.iter().find(|(name, _)| *name == t.name) {
            scheme.emulate(&mut t.values, &t.shape, &Stream::named(0, &t.name)).unwrap();
        }
    }
    all
}

#[test]
fn rules_that_do_not_fit_a_module_are_errors() {
    let device = Device::flex();
    let error = |rules: &[Rule]| {
        round_weights(Foreign::new(&device), rules, &Session::new(0)).map(|_| ()).unwrap_err()
    };
    let idle = error(&[rule("*", &[("w", "int8")]), rule("haed.*", &[("w", "int8")])]);
    assert!(matches!(&idle, PlanError::NoLayer { rule: 2, pattern, .. } if pattern == "haed.*"));
    assert!(idle.help().unwrap().contains("head.weight"), "{idle:?}");
    // A bias has one axis, so nothing is left to round.
    let vectors = error(&[rule("head.bias", &[("w", "int8")])]);
    assert!(matches!(vectors, PlanError::NoLayer { rule: 1, .. }));
    assert_eq!(error(&[rule("*", &[])]), PlanError::Empty { rule: 1 });
    // Only weights are rounded, so no other key may look as if it did something.
    let input = error(&[rule("*", &[("w", "int8"), ("x", "int8")])]);
    assert_eq!(input, PlanError::NoTensor { rule: 1, key: "x" });
    let odds = error(&[rule("head.*", &[("w", "int8")]), rule("*", &[("w", "int4")])]);
    assert_eq!(odds, PlanError::Overridden { rule: 1, by: 2 });
    let axis = error(&[rule("*", &[("w", "int8/axis:2")])]);
    assert!(
        matches!(&axis, PlanError::Shape { rule: 1, key: "w", layer, .. }
        if layer.starts_with("lstm.") || layer == "head.weight"),
        "{axis:?}"
    );
    assert!(matches!(error(&[rule("he[", &[("w", "int8")])]), PlanError::Pattern { rule: 1, .. }));
}

#[test]
fn a_weight_that_a_scheme_cannot_hold_is_reported_to_the_session() {
    let device = Device::flex();
    let net = Foreign::new(&device);
    let mut stored = params::tensors(&net);
    let place = stored.iter().position(|t| t.name == "head.weight").unwrap();
    stored[place].values[3] = f32::NAN;
    let net = params::load(net, stored).unwrap().0;
    let session = Session::new(0);
    let (net, _) = round_weights(net, &[rule("*", &[("w", "int8")])], &session).unwrap();
    net.forward(tensor(noise(2 * 7, 1), [1, 2, 7], &device));
    let problem = session.problem().unwrap();
    assert_eq!(problem.tensor, "head.weight");
    assert_eq!(problem.what, "element 3 is NaN, which `int8` cannot hold");
}

// ----- An own network with an own loop.

#[derive(Module, Debug)]
struct Xor {
    hidden: Linear,
    output: Linear,
}

impl Xor {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.output.forward(self.hidden.forward(x).tanh())
    }
}

#[test]
fn an_own_network_in_an_own_loop_learns_the_exclusive_or() {
    let device = Device::flex().autodiff();
    let scope = Scope::root(2);
    let mut net = Xor {
        hidden: Linear::new(&scope.at("hidden"), 2, 16, &device),
        output: Linear::new(&scope.at("output"), 16, 2, &device),
    };
    let x = tensor(vec![-1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0], [4, 2], &device);
    let labels = [0, 1, 1, 0];
    // A first pass tells the layers the shapes of what passes.
    net.forward(x.clone());
    let rules = [
        rule("*", &[("default", "int8"), ("d", "int8/stochastic")]),
        rule("hidden", &[("w", "int4/row")]),
    ];
    let sites = scope.sites();
    let plan: Plan =
        resolve(&sites, &rules, 4, Compute::Auto, &OptimizerConfig::default(), None).unwrap();
    let session = Session::new(2);
    plan.apply(&sites, &session);
    let taps = GradientTaps::new(&sites, &session);
    let config = serde_json::from_value(serde_json::json!({"name": "adam", "lr": 0.05})).unwrap();
    let mut optimizer = Optimizer::new(config);
    let mut first = None;
    let mut last = 0.0;
    for step in 0..200 {
        session.set_step(step);
        let loss = cross_entropy(net.forward(x.clone()), &labels, 0.0);
        last = loss.clone().into_scalar::<f32>();
        first.get_or_insert(last);
        let mut grads = GradientsParams::from_grads(loss.backward(), &net);
        let norm = taps.round(&net, &mut grads);
        gradients::scale(&net, &mut grads, norm, 1.0, Some(1.0));
        net = optimizer.step(0.05, net, &mut grads);
    }
    assert_eq!(session.problem(), None);
    let logits = values(net.forward(x));
    let right = logits.chunks(2).zip(labels).all(|(l, label)| (l[1] > l[0]) == (label == 1));
    assert!(right && last < 0.05 && first > Some(0.3), "{first:?} {last} {logits:?}");
    // The weights that it runs on are those of the scheme: at most 15 values per row.
    let weight = &params::tensors(&net)[0];
    let scheme = &plan.get("hidden", scrimp_train::Role::Weight).unwrap().scheme;
    let mut held = weight.values.clone();
    scheme.emulate(&mut held, &weight.shape, &Stream::new(0, 0)).unwrap();
    assert_ne!(held, weight.values);
}

// ----- The trainer.

fn job(splits: &Splits, rules: Vec<Rule>) -> TrainJob<'_> {
    TrainJob { epochs: 2, ..support::job(splits, 8, rules) }
}

#[test]
fn values_that_were_replaced_are_counted_through_stop_and_resume() {
    let splits = stripes::splits(0);
    let mut job = job(&splits, vec![rule("fc1", &[("w", "int8/nonfinite:saturate")])]);
    // Two weights are NaN; they are stored as they are and never reach a sum.
    let mut weights = train(&TrainJob { epochs: 0, ..job.clone() }, u64::MAX).unwrap().model;
    weights[0].values[3..5].fill(f32::NAN);
    job.weights = Some(FirstValues::new("weights.safetensors", weights));
    let whole = train(&job, u64::MAX).unwrap();
    // 2 epochs of 7 steps, and 4 batches of test images.
    assert_eq!(whole.steps, 14);
    assert_eq!(whole.tally, Tally { nans: 36, infinities: 0 });

    let folder = tempfile::tempdir().unwrap();
    let save = |resume| CheckpointJob {
        path: folder.path().join("c.safetensors"),
        every_steps: None,
        resume,
    };
    let cut = train(&TrainJob { checkpoint: Some(save(false)), ..job.clone() }, 5).unwrap();
    assert!(!cut.finished && cut.test.is_none());
    assert_eq!((cut.steps, cut.tally), (5, Tally { nans: 10, infinities: 0 }));
    let rest = train(&TrainJob { checkpoint: Some(save(true)), ..job.clone() }, u64::MAX).unwrap();
    assert_eq!((rest.steps, rest.tally), (14, whole.tally));
    assert_eq!((rest.history, rest.test), (whole.history, whole.test));
    for (one, other) in rest.model.iter().zip(&whole.model) {
        assert_eq!(bits(&one.values), bits(&other.values), "{}", one.name);
    }
}

#[test]
fn every_member_of_the_registry_trains_on_every_role() {
    let splits = stripes::splits(0);
    for member in scrimp_codec::FAMILIES.iter().flat_map(|family| family.members()) {
        let keys = ["w", "x", "y", "dy", "dx", "dw"].map(|role| (role, member.as_str()));
        let job = TrainJob { epochs: 1, ..job(&splits, vec![rule("fc*", &keys)]) };
        let outcome = train(&job, 3).unwrap_or_else(|e| panic!("{member}: {e}"));
        let values = outcome.model.iter().flat_map(|t| &t.values);
        assert!(values.into_iter().all(|v| v.is_finite()), "{member}");
    }
}

/// Checks that a run which was stopped after five steps and resumed ends in the same bits as one that was not, and gives
/// that network.
fn resumed(job: &TrainJob, case: &str) -> Vec<NamedTensor> {
    let whole = train(job, u64::MAX).unwrap().model;
    let folder = tempfile::tempdir().unwrap();
    let save = |resume| CheckpointJob {
        path: folder.path().join("c.safetensors"),
        every_steps: None,
        resume,
    };
    train(&TrainJob { checkpoint: Some(save(false)), ..job.clone() }, 5).unwrap();
    let rest = train(&TrainJob { checkpoint: Some(save(true)), ..job.clone() }, u64::MAX);
    for (one, other) in rest.unwrap().model.iter().zip(&whole) {
        assert_eq!(bits(&one.values), bits(&other.values), "{case} {}", one.name);
    }
    whole
}

#[test]
fn what_schemes_remember_of_gradients_survives_a_resume() {
    let splits = stripes::splits(0);
    for (dw, dy) in [("onebit", "flex16+5"), ("top_k:10%/feedback", "cfloat8_1_5_2")] {
        let job = job(&splits, vec![rule("fc*", &[("dw", dw), ("dy", dy)])]);
        resumed(&job, &format!("{dw} {dy}"));
    }
}

/// What is kept for the way back is the bytes of the values that were computed with, for every layer that keeps some.
#[test]
fn packed_activations_train_the_same_network() {
    let splits = stripes::splits(0);
    for scheme in
        ["smaq:6,8", "int8", "int4/channel", "mxfp4", "e4m3fn", "bf16", "s2fp8", "int8/rans"]
    {
        for compute in [Compute::Auto, Compute::Emulate] {
            let mut all = rule("*", &[("default", scheme), ("d", "e5m2/stochastic")]);
            let bias = rule("linear", &[("b", "f32")]);
            all.kinds = Some(Kinds::Kind("all".into()));
            let one_dimensional =
                |keys| Rule { kinds: Some(Kinds::Kind("batch_norm".into())), ..rule("*", keys) };
            let norms = one_dimensional(&[("w", "f32"), ("b", "f32")]);
            let mut job = job(&splits, vec![all, bias, norms]);
            job.plan.compute = compute;
            let train = models::find("resnet8").unwrap().train;
            let [fast, packed] = [Saved::Fast, Saved::Packed].map(|saved| {
                job.plan.saved = saved;
                train(&job, &mut StopAfter::steps(u64::MAX)).unwrap().model
            });
            for (one, other) in fast.iter().zip(&packed) {
                assert_eq!(
                    bits(&one.values),
                    bits(&other.values),
                    "{scheme} {compute:?} {}",
                    one.name
                );
            }
        }
    }
}

fn exchange(json: serde_json::Value) -> ExchangeConfig {
    serde_json::from_value(json).unwrap()
}

#[test]
fn what_workers_remember_survives_a_resume() {
    let splits = stripes::splits(0);
    for config in [
        serde_json::json!({"workers": 4, "up": "int2", "down": "int4", "error_feedback": true}),
        serde_json::json!({"workers": 3, "preset": "onebit-sgd"}),
        serde_json::json!({"workers": 3, "preset": "terngrad"}),
        serde_json::json!({"levels": [{"count": 2}, {"count": 2, "scheme": "int8"}, {"count": 3, "scheme": "int3/stochastic"}]}),
    ] {
        let mut job = job(&splits, Vec::new());
        job.plan.exchange = Some(exchange(config.clone()));
        let whole = resumed(&job, &config.to_string());
        job.plan.exchange = None;
        assert_ne!(train(&job, u64::MAX).unwrap().model, whole, "{config} changes something");
    }
}

/// Each worker's gradient is that of a layer which sees nothing but the worker's samples.
#[test]
fn workers_send_the_rounded_gradients_of_their_samples() {
    let device = Device::flex().autodiff();
    for case in cases() {
        let (batch, per_worker) = (3 * case.input[0] + 1, 3);
        let config = ExchangeConfig {
            levels: vec![
                LevelConfig { count: per_worker, scheme: None },
                LevelConfig { count: batch, scheme: Some("int4".parse().unwrap()) },
            ],
            ..ExchangeConfig::default()
        };
        let len: usize = case.input[1..].iter().product();
        let x = noise(batch * len, 1);
        let gradients = |first: usize, samples: usize, exchange: Option<&ExchangeConfig>| {
            let scope = Scope::root(5);
            let layer = case.build(&scope, &device);
            let part = x[first * len..(first + samples) * len].to_vec();
            let [_, rest @ ..] = case.input;
            let part = tensor(part, [samples, rest[0], rest[1], rest[2]], &device);
            layer.forward(part.clone());
            let sites = scope.sites();
            let optimizer = OptimizerConfig::default();
            let plan = resolve(&sites, &[], samples, Compute::Auto, &optimizer, exchange).unwrap();
            let session = Session::new(5);
            plan.apply(&sites, &session);
            let loss = layer.forward(part);
            let mut grads = GradientsParams::from_grads(loss.backward(), &layer);
            assert_eq!(session.problem(), None);
            layer.gradients(&mut grads)
        };
        let (dw, db) = gradients(0, batch, Some(&config));
        let (mut sums_w, mut sums_b) =
            (vec![0.0; dw.len()], vec![0.0; db.as_ref().map_or(0, Vec::len)]);
        let scheme: Scheme = "int4".parse().unwrap();
        for first in (0..batch).step_by(per_worker) {
            let (w, b) = gradients(first, per_worker.min(batch - first), None);
            for (mut sent, sums) in [(w, &mut sums_w), (b.unwrap_or_default(), &mut sums_b)] {
                let shape = [sent.len()];
                scheme.emulate(&mut sent, &shape, &Stream::new(0, 0)).unwrap();
                sums.iter_mut().zip(sent).for_each(|(sum, sent)| *sum += f64::from(sent));
            }
        }
        let same = |actual: &[f32], sums: &[f64]| {
            let top = sums.iter().fold(0.0_f64, |top, v| top.max(v.abs()));
            actual.iter().zip(sums).all(|(a, s)| (f64::from(*a) - s).abs() <= 1e-4 * top)
        };
        assert!(same(&dw, &sums_w), "{} dw {dw:?} {sums_w:?}", case.name);
        assert!(same(&db.unwrap_or_default(), &sums_b), "{} db", case.name);
    }
}

#[test]
fn an_exchange_that_does_not_fit_is_an_error() {
    let splits = stripes::splits(0);
    let refused = |config: serde_json::Value, rules: Vec<Rule>| {
        let mut job = job(&splits, rules);
        job.plan.exchange = (!config.is_null()).then(|| exchange(config));
        train(&job, u64::MAX).unwrap_err().to_string()
    };
    let none = refused(serde_json::Value::Null, vec![rule("fc1", &[("aw", "int8")])]);
    assert!(none.contains("the key `aw` has no effect") && none.contains("[exchange]"), "{none}");
    let left = refused(serde_json::json!({"levels": [{"count": 2}]}), Vec::new());
    assert!(left.contains("exchange of aw of layer `fc1`"), "{left}");
    let shared = serde_json::json!({"workers": 2, "up": "int8/row", "share_scales": true});
    assert!(refused(shared, vec![rule("*", &[("ab", "int8")])]).contains("share"));
    let unused = serde_json::json!({"workers": 2});
    assert!(refused(unused, vec![rule("fc1", &[("a", "int8/axis:7")])]).contains("int8/axis:7"));
}

#[test]
fn the_first_tensor_that_is_not_finite_is_named() {
    let splits = stripes::splits(0);
    let mut job = job(&splits, vec![rule("fc2", &[("x", "int8"), ("dy", "int8")])]);
    let healthy = train(&TrainJob { epochs: 0, ..job.clone() }, u64::MAX).unwrap().model;
    for (name, value) in [("fc1.weight", f32::NAN), ("fc3.bias", f32::INFINITY)] {
        let mut weights = healthy.clone();
        let tensor = weights.iter_mut().find(|t| t.name == name).unwrap();
        tensor.values[1] = value;
        job.weights = Some(FirstValues::new("weights.safetensors", weights));
        let error = train(&job, u64::MAX).unwrap_err();
        let TrainError::Diverged { step: 0, what, .. } = &error else { panic!("{error}") };
        assert_eq!(*what, format!("{name}: element 1 is {value}"));
    }
    // A large weight overflows in the output of its layer.
    let mut weights = healthy;
    weights[0].values.fill(f32::MAX);
    job.weights = Some(FirstValues::new("weights.safetensors", weights));
    let error = train(&job, u64::MAX).unwrap_err();
    let TrainError::Diverged { step: 0, what, .. } = &error else { panic!("{error}") };
    assert!(what.starts_with("fc1.y: element "), "{what}");
}

#[test]
fn weights_of_another_network_are_refused_by_name_and_shape() {
    let splits = stripes::splits(0);
    let mut job = job(&splits, Vec::new());
    let fitting = train(&TrainJob { epochs: 0, ..job.clone() }, u64::MAX).unwrap().model;
    let mut refused = |change: &dyn Fn(&mut Vec<NamedTensor>)| {
        let mut weights = fitting.clone();
        change(&mut weights);
        job.weights = Some(FirstValues::new("weights.safetensors", weights));
        train(&job, u64::MAX).unwrap_err().to_string()
    };
    let lacking = refused(&|w| drop(w.remove(1)));
    assert!(
        lacking.contains("weights.safetensors")
            && lacking.contains("missing in the file: fc1.bias")
    );
    let unknown = refused(&|w| w[2].name = "fc9.weight".into());
    let both = "missing in the file: fc2.weight\n  unexpected in the file: fc9.weight";
    assert!(unknown.contains(both), "{unknown}");
    let shape = refused(&|w| w[1].shape = vec![128, 2]);
    assert!(shape.contains("fc1.bias is [128, 2] in the file and [256] here"), "{shape}");
}
