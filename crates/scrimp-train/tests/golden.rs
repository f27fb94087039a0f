//! What PyTorch gives: taps at all eight points, optimizers, schedules, losses, clipping, and a network. The scripts in
//! `tools/` wrote the files in `golden/`, whose headers name the versions.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use scrimp_codec::Scheme;
use scrimp_train::burn;
use scrimp_train::compute::Compute;
use scrimp_train::gradients::{self, GradientTaps};
use scrimp_train::layers::{Conv2d, Conv2dOptions, Linear, channels_last};
use scrimp_train::loss::cross_entropy;
use scrimp_train::models::{InceptionV3, Network};
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
                        _ => y,
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

/// Numbers in [0, 1) that belong to a name; the header of `inception_v3.csv` says which.
fn uniform(name: &str, count: usize) -> impl Iterator<Item = f64> + use<> {
    let hash = |h: u64, byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    let key = name.bytes().fold(0xCBF2_9CE4_8422_2325, hash);
    (1..=count as u64).map(move |i| {
        let z = i.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(key);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
    })
}

/// A tensor of the golden network, by the rule in the same header.
#[expect(clippy::cast_possible_truncation, reason = "the rule rounds to f32")]
fn first_value(name: &str, shape: Vec<usize>) -> NamedTensor {
    let count = shape.iter().product();
    let deviation = (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt();
    let is_scale = name.ends_with("bn.weight") || name.ends_with("running_var");
    let value = |u: f64| match (shape.len(), is_scale) {
        (2.., _) => (2.0 * u - 1.0) * deviation,
        (_, true) => u + 0.5,
        (_, false) => (2.0 * u - 1.0) / 10.0,
    };
    let values = uniform(name, count).map(|u| value(u) as f32).collect();
    NamedTensor { name: name.to_owned(), shape, values }
}

/// The 2-norm of a tensor, and its product with a direction that belongs to its name.
fn summary(name: &str, values: &[f32]) -> [f64; 2] {
    let direction = uniform(&format!("{name}.direction"), values.len()).map(|u| 2.0 * u - 1.0);
    let [squares, product] = values.iter().zip(direction).fold([0.0, 0.0], |[s, p], (v, d)| {
        let v = f64::from(*v);
        [s + v * v, p + v * d]
    });
    [squares.sqrt(), product]
}

/// Gradients by the names of their parameters.
struct Gradients<'a> {
    path: Vec<String>,
    all: &'a mut GradientsParams,
    found: Vec<(String, [f64; 2])>,
}

impl ModuleVisitor for Gradients<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.all.remove::<D>(param.id) else { return };
        let (name, values) = (self.path.join("."), gradient.into_data());
        let values = summary(&name, &values.try_to_vec::<f32>().unwrap());
        self.found.push((name, values));
    }
}

#[test]
#[expect(clippy::cast_possible_truncation, reason = "the rule of the images rounds to f32")]
fn inception_v3_is_that_of_torchvision() {
    // ReLUs near zero open or close with the order of sums, after which a gradient is another one; PyTorch's own in f32
    // is up to 4 % apart. A branch in the wrong place changes the whole of it.
    const GRADIENTS: f64 = 0.1;
    const SIDE: usize = 139;
    let device = Device::flex().autodiff();
    let net = InceptionV3::build(&(), [3, SIDE, SIDE], 10, &Scope::root(0), &device);
    let values = params::shapes(&net).into_iter().map(|(name, shape)| first_value(&name, shape));
    let (net, report) = params::load(net, values).unwrap();
    assert_eq!((report.missing.len(), report.unexpected.len()), (0, 0));
    let images: Vec<f32> =
        uniform("images", 2 * 3 * SIDE * SIDE).map(|u| (4.0 * u - 2.0) as f32).collect();
    let images = |device: &Device| {
        Tensor::<4>::from_data(TensorData::new(images.clone(), [2, 3, SIDE, SIDE]), device)
    };
    let numbers = |logits: Tensor<2>| -> Vec<f64> {
        logits.into_data().try_to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
    };

    let evaluated = numbers(net.valid().forward(images(&device.clone().inner())));
    let logits = net.forward(images(&device));
    let trained = numbers(logits.clone().without_autodiff());
    let loss = cross_entropy(logits, &[3, 7], 0.0);
    let value = f64::from(loss.clone().into_scalar::<f32>());
    let mut all = GradientsParams::from_grads(loss.backward(), &net);
    let mut gradients = Gradients { path: Vec::new(), all: &mut all, found: Vec::new() };
    net.visit(&mut gradients);
    let gradients: BTreeMap<String, [f64; 2]> = gradients.found.into_iter().collect();
    let tensors = params::tensors(&net);
    let averages: BTreeMap<&str, [f64; 2]> =
        tensors.iter().map(|t| (t.name.as_str(), summary(&t.name, &t.values))).collect();

    let text = include_str!("golden/inception_v3.csv");
    let mut worst = BTreeMap::new();
    let mut parameters = 0;
    for row in rows(text) {
        let [what, name, expected, _] = row[..] else { panic!("{row:?}") };
        let expected = doubles(expected);
        let (got, within) = match what {
            "evaluated" => (evaluated.clone(), 1e-5),
            "trained" => (trained.clone(), 1e-3),
            "loss" => (vec![value], 1e-4),
            "gradient" => (gradients[name].to_vec(), GRADIENTS),
            _ => (averages[name].to_vec(), 1e-4),
        };
        parameters += usize::from(what == "gradient");
        let unit = match name {
            "" => expected.iter().fold(0.0, |most: f64, v| most.max(v.abs())),
            _ => expected[0],
        };
        assert_eq!(got.len(), expected.len());
        let apart = got.iter().zip(&expected).map(|(a, b)| (a - b).abs() / unit);
        let apart = apart.fold(0.0, f64::max);
        assert!(apart <= within, "{what} {name}: {got:?} and not {expected:?}, {apart} apart");
        let most: &mut f64 = worst.entry(what).or_default();
        *most = most.max(apart);
    }
    println!("apart by at most {worst:?}");
    assert_eq!(parameters, gradients.len());
}
