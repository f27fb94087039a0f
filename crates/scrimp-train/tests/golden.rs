//! What PyTorch gives: taps at all eight points, optimizers, schedules, losses and clipping. The scripts in `tools/` wrote
//! the files in `golden/`, whose headers name the versions.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use scrimp_codec::Scheme;
use scrimp_train::burn;
use scrimp_train::compute::Compute;
use scrimp_train::gradients::{self, GradientTaps};
use scrimp_train::layers::{Conv2d, Conv2dOptions, Linear, channels_last};
use scrimp_train::loss::cross_entropy;
use scrimp_train::optimizers::{Optimizer, OptimizerConfig, Schedule};
use scrimp_train::params::{self, NamedTensor};
use scrimp_train::plan::resolve;
use scrimp_train::rules::Rule;
use scrimp_train::tap::{Arithmetic, Scope, Session};

fn rows(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    text.lines().filter(|l| !l.starts_with('#')).skip(1).map(|l| l.split(',').collect())
}

fn floats(text: &str) -> Vec<f32> {
    text.split_whitespace().map(|w| f32::from_bits(u32::from_str_radix(w, 16).unwrap())).collect()
}

fn doubles(text: &str) -> Vec<f64> {
    text.split_whitespace().map(|w| f64::from_bits(u64::from_str_radix(w, 16).unwrap())).collect()
}

fn shape(text: &str) -> Vec<usize> {
    text.split('x').map(|d| d.parse().unwrap()).collect()
}

/// `key=value` pairs.
fn options(text: &str) -> BTreeMap<&str, &str> {
    text.split_whitespace().filter_map(|o| o.split_once('=')).collect()
}

#[derive(Module, Debug)]
struct One {
    linear: Option<Linear>,
    conv: Option<Conv2d>,
}

/// Positive and negative zero are one value here.
fn plus_zero(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|v| v + 0.0).collect()
}

/// The rule of `key=scheme` pairs, for every layer.
fn rule_of(schemes: &str) -> Rule {
    let mut rule = Rule::new("*");
    for (key, scheme) in options(schemes) {
        let scheme: Scheme = scheme.parse().unwrap();
        let slot = match key {
            "x" => &mut rule.x,
            "w" => &mut rule.w,
            "b" => &mut rule.b,
            "y" => &mut rule.y,
            "dx" => &mut rule.dx,
            "dy" => &mut rule.dy,
            "dw" => &mut rule.dw,
            "db" => &mut rule.db,
            _ => panic!("{key}"),
        };
        *slot = Some(scheme);
    }
    rule
}

#[test]
fn the_eight_points_of_a_layer_round_as_an_autograd_function_of_pytorch_does() {
    for arithmetic in [Arithmetic::Kernels, Arithmetic::Engine] {
        for compute in [Compute::Emulate, Compute::Auto] {
            eight_points(arithmetic, compute);
        }
    }
}

fn eight_points(arithmetic: Arithmetic, compute: Compute) {
    /// Shape and values of a tensor.
    type Values = (Vec<usize>, Vec<f32>);
    let mut cases: BTreeMap<(&str, &str), BTreeMap<&str, Values>> = BTreeMap::new();
    for row in rows(include_str!("golden/eight_points.csv")) {
        let [case, schemes, tensor, dims, values] = row[..] else { panic!("{row:?}") };
        cases.entry((case, schemes)).or_default().insert(tensor, (shape(dims), floats(values)));
    }
    assert!(cases.len() >= 6);
    let device = Device::flex().autodiff();
    for ((case, schemes), tensors) in cases {
        let case = format!("{case} {arithmetic:?} {compute:?}");
        let scope = Scope::root(0).with(arithmetic);
        let values = |name: &str| tensors[name].1.clone();
        let dims = |name: &str| tensors[name].0.clone();
        let w = dims("w");
        let is_linear = w.len() == 2;
        let net = One {
            linear: is_linear.then(|| Linear::new(&scope.at("linear"), w[1], w[0], &device)),
            conv: (!is_linear).then(|| {
                let dilation = if case.contains("dilation_2") { 2 } else { 1 };
                let options = Conv2dOptions {
                    stride: [2; 2],
                    padding: [1; 2],
                    dilation: [dilation; 2],
                    groups: 2,
                    ..Conv2dOptions::new(3)
                };
                Conv2d::new(&scope.at("conv"), 2, w[0], options, &device)
            }),
        };
        let field = if is_linear { "linear" } else { "conv" };
        let load = [("weight", "w"), ("bias", "b")].map(|(name, from)| NamedTensor {
            name: format!("{field}.{name}"),
            shape: dims(from),
            values: values(from),
        });
        let (net, report) = params::load(net, load).unwrap();
        assert_eq!((report.missing.len(), report.unexpected.len()), (0, 0));

        // The layer learns its shapes from a pass without rounding; then the rules apply.
        let forward = |x: Vec<f32>| -> (Tensor<1>, Tensor<1>) {
            let d = dims("x");
            let x =
                Tensor::<1>::from_data(TensorData::new(x, [d.iter().product::<usize>()]), &device)
                    .require_grad();
            let y = match (&net.linear, &net.conv) {
                (Some(l), _) => l.forward(x.clone().reshape([d[0], d[1]])).flatten(0, 1),
                (_, Some(c)) => {
                    let x = channels_last(x.clone().reshape([d[0], d[1], d[2], d[3]]), arithmetic);
                    let y = c.forward(x);
                    let y = match arithmetic {
                        Arithmetic::Kernels => y.permute([0, 3, 1, 2]),
                        Arithmetic::Engine => y,
                    };
                    y.flatten(0, 3)
                }
                _ => unreachable!(),
            };
            (x, y)
        };
        forward(values("x"));
        let rule = rule_of(schemes);
        let session = Session::new(0);
        let sites = scope.sites();
        resolve(&sites, &[rule], dims("x")[0], compute, &OptimizerConfig::default(), None)
            .unwrap()
            .apply(&sites, &session);

        let (x, y) = forward(values("x"));
        let upstream = values("upstream");
        let n = upstream.len();
        let upstream = Tensor::<1>::from_data(TensorData::new(upstream, [n]), &device);
        let got = |t: Tensor<1>| plus_zero(t.into_data().try_to_vec::<f32>().unwrap());
        assert_eq!(got(y.clone()), plus_zero(values("y")), "{case}: y");
        let mut all = (y * upstream).sum().backward();
        let dx = x.grad(&all).unwrap();
        assert_eq!(got(dx), plus_zero(values("dx")), "{case}: dx");
        let mut grads = GradientsParams::from_module(&mut all, &net);
        GradientTaps::new(&sites, &session).round(&net, &mut grads);
        let (dw, db) = match (&net.linear, &net.conv) {
            (Some(l), _) => (
                grads.remove::<2>(l.weight.id).unwrap().flatten(0, 1),
                grads.remove::<1>(l.bias.as_ref().unwrap().id).unwrap(),
            ),
            (_, Some(c)) => (
                grads.remove::<4>(c.weight.id).unwrap().flatten(0, 3),
                grads.remove::<1>(c.bias.as_ref().unwrap().id).unwrap(),
            ),
            _ => unreachable!(),
        };
        assert_eq!(got(dw), plus_zero(values("dw")), "{case}: dw");
        assert_eq!(got(db), plus_zero(values("db")), "{case}: db");
        assert_eq!(session.problem(), None);
    }
}

/// One parameter of eight values.
#[derive(Module, Debug)]
struct Vector {
    p: Param<Tensor<1>>,
}

fn vector(values: &[f32], device: &Device) -> Vector {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Vector { p: Param::from_tensor(Tensor::from_data(data, device)) }
}

fn config(name: &str, options: &BTreeMap<&str, &str>) -> Option<OptimizerConfig> {
    let mut json = serde_json::Map::new();
    let kind = name.split('_').next().unwrap();
    json.insert("name".into(), kind.into());
    for (key, value) in options {
        if let Some((first, second)) = value.split_once(';') {
            for (key, value) in [("beta1", first), ("beta2", second)] {
                json.insert(key.into(), value.parse::<f64>().unwrap().into());
            }
            continue;
        }
        let key = match *key {
            "eps" => "epsilon",
            // Torch's options that are not offered.
            "dampening" | "maximize" => return None,
            other => other,
        };
        let parsed = match *value {
            "True" => true.into(),
            "False" => false.into(),
            number => number.parse::<f64>().ok()?.into(),
        };
        json.insert(key.into(), parsed);
    }
    Some(serde_json::from_value(json.into()).unwrap_or_else(|e| panic!("{name}: {e}")))
}

#[test]
fn optimizers_follow_pytorch() {
    let device = Device::flex().autodiff();
    let mut start = Vec::new();
    let mut run: Option<(String, Vector, Optimizer, f64)> = None;
    let mut checked = 0;
    for row in rows(include_str!("golden/optimizers.csv")) {
        let [name, text, step, gradient, expected, exact] = row[..] else { panic!("{row:?}") };
        if name == "start" {
            start = floats(expected);
            continue;
        }
        if step == "1" {
            run = config(name, &options(text)).map(|c| {
                let lr = c.learning_rate();
                (name.to_owned(), vector(&start, &device), Optimizer::new(c), lr)
            });
        }
        let Some((current, net, mut optimizer, lr)) = run.take() else { continue };
        assert_eq!(current, name);
        let mut grads = GradientsParams::new();
        let g = floats(gradient);
        let n = g.len();
        let plain = device.clone().inner();
        grads.register(net.p.id, Tensor::<1>::from_data(TensorData::new(g, [n]), &plain));
        let net = optimizer.step(lr, net, &mut grads);
        let got = net.p.val().without_autodiff().into_data().try_to_vec::<f32>().unwrap();
        for ((got, torch), exact) in got.iter().zip(floats(expected)).zip(doubles(exact)) {
            // Torch's own f32 result differs from its f64 one by up to 8e-6 here.
            let error = (f64::from(*got) - exact).abs();
            let slack = 1e-5f64.max(4.0 * (f64::from(torch) - exact).abs());
            assert!(error <= slack, "{name} step {step}: {got} and {torch}, exactly {exact}");
            checked += 1;
        }
        run = Some((current, net, optimizer, lr));
    }
    // All but the one with dampening.
    assert_eq!(checked, 13 * 80);
}

#[test]
fn schedules_follow_pytorch() {
    let mut checked = 0;
    for row in rows(include_str!("golden/schedules.csv")) {
        let o = options(row[1]);
        let step: u64 = row[2].parse().unwrap();
        let number = |key: &str| o[key].parse::<f64>().unwrap();
        // One step per epoch, so that torch's milestones in steps are ours in epochs.
        let (schedule, total) = match row[0] {
            "multi_step" => {
                let milestones = o["milestones"].split(';').map(|m| m.parse().unwrap()).collect();
                (Schedule::MultiStep { milestones, gamma: number("gamma") }, 0)
            }
            "cosine" => (
                Schedule::Cosine { floor: number("eta_min") / number("lr") },
                o["t_max"].parse().unwrap(),
            ),
            "linear_warmup" => (
                Schedule::Linear { warmup: o["warmup"].parse().unwrap() },
                o["total"].parse().unwrap(),
            ),
            other => panic!("{other}"),
        };
        let lr = number("lr") * schedule.factor(step, 1, total);
        let expected: f64 = row[4].parse().unwrap();
        assert!((lr - expected).abs() <= 1e-15, "{row:?}: {lr}");
        checked += 1;
    }
    assert!(checked > 40);
}

#[test]
fn cross_entropy_and_its_gradient_follow_pytorch() {
    let device = Device::flex().autodiff();
    for row in rows(include_str!("golden/losses.csv")) {
        let [case, smoothing, dims, logits, targets, _, _, loss, gradient] = row[..] else {
            panic!("{row:?}")
        };
        let d = shape(dims);
        let labels: Vec<u8> = targets.split_whitespace().map(|t| t.parse().unwrap()).collect();
        let logits = Tensor::<2>::from_data(TensorData::new(floats(logits), [d[0], d[1]]), &device)
            .require_grad();
        let value = cross_entropy(logits.clone(), &labels, smoothing.parse().unwrap());
        let grads = value.backward();
        let got = logits.grad(&grads).unwrap().into_data().try_to_vec::<f32>().unwrap();
        let value = f64::from(value.into_scalar::<f32>());
        let loss = doubles(loss)[0];
        assert!(
            (value - loss).abs() <= 1e-6 * loss.abs().max(1.0),
            "{case}: {value}, exactly {loss}"
        );
        for (g, e) in got.iter().zip(doubles(gradient)) {
            assert!((f64::from(*g) - e).abs() <= 1e-6, "{case}: {g}, exactly {e}");
        }
    }
}

#[derive(Module, Debug)]
struct Vectors {
    all: Vec<Vector>,
}

#[test]
fn clipping_follows_pytorch() {
    let device = Device::flex().autodiff();
    for row in rows(include_str!("golden/clip.csv")) {
        let [case, limit, gradients, _, _, norm, clipped] = row[..] else { panic!("{row:?}") };
        let parts: Vec<Vec<f32>> = gradients.split(';').map(floats).collect();
        let net = Vectors { all: parts.iter().map(|p| vector(p, &device)).collect() };
        let mut grads = GradientsParams::new();
        let plain = device.clone().inner();
        for (v, g) in net.all.iter().zip(&parts) {
            grads.register(
                v.p.id,
                Tensor::<1>::from_data(TensorData::new(g.clone(), [g.len()]), &plain),
            );
        }
        let taps = GradientTaps::new(&[], &Session::new(0));
        let got = taps.round(&net, &mut grads);
        let norm = doubles(norm)[0];
        assert!((got - norm).abs() <= 1e-6 * norm.max(1.0), "{case}: {got}, exactly {norm}");
        gradients::scale(&net, &mut grads, got, 1.0, Some(limit.parse().unwrap()));
        for (v, expected) in net.all.iter().zip(clipped.split(';')) {
            let got = grads.remove::<1>(v.p.id).unwrap().into_data().try_to_vec::<f32>().unwrap();
            for (g, e) in got.iter().zip(doubles(expected)) {
                assert!((f64::from(*g) - e).abs() <= 1e-6, "{case}: {g}, exactly {e}");
            }
        }
    }
}
