//! Layers without a product: what rules say of their tensors is what a layer without rules does between tensors that
//! were rounded by hand.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use scrimp_codec::{Scheme, Stream};
use scrimp_train::burn;
use scrimp_train::compute::Compute;
use scrimp_train::layers::{
    AveragePool, Gelu, GlobalAverage, LayerNorm, MaxPool, Pool, Relu, SelfAttention,
};
use scrimp_train::optimizers::OptimizerConfig;
use scrimp_train::plan::{Saved, resolve};
use scrimp_train::rules::Rule;
use scrimp_train::tap::{Arithmetic, Scope, Session};

const INPUT: [usize; 4] = [3, 6, 4, 8];

fn noise(count: usize, id: u32) -> Vec<f32> {
    let stream = Stream::new(5, id);
    (0..count as u64).map(|i| 2.0 * stream.uniform(i) - 1.0).collect()
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.without_autodiff().into_data().try_to_vec::<f32>().unwrap()
}

/// As the tensor called `name` is rounded in a session with seed 0.
fn rounded(scheme: &str, mut x: Vec<f32>, shape: &[usize], name: &str) -> Vec<f32> {
    let scheme = scheme.parse::<Scheme>().unwrap();
    scheme.emulate(&mut x, shape, &Stream::named(0, name)).unwrap();
    x
}

type Build = fn(&Scope, &Device) -> Box<dyn Fn(Tensor<4>) -> Tensor<4>>;

struct Case {
    kind: &'static str,
    build: Build,
    output: [usize; 4],
    /// Whether the engine's own arithmetic has it too.
    engine: bool,
}

const WINDOW: Pool = Pool { kernel: [3, 2], stride: [2, 1], padding: [1, 0] };

fn cases() -> Vec<Case> {
    let case = |kind, output, engine, build: Build| Case { kind, build, output, engine };
    vec![
        case("activation", INPUT, true, |scope, _| {
            let f = Relu::new(&scope.at("f"));
            Box::new(move |x| f.forward(x))
        }),
        case("activation", INPUT, false, |scope, _| {
            let f = Gelu::new(&scope.at("f"));
            Box::new(move |x| f.forward(x))
        }),
        case("pooling", [3, 3, 3, 8], true, |scope, _| {
            let f = MaxPool::new(&scope.at("f"), WINDOW);
            Box::new(move |x| f.forward(x))
        }),
        case("pooling", [3, 3, 3, 8], true, |scope, _| {
            let f = MaxPool::of_relu(&scope.at("f"), WINDOW);
            Box::new(move |x| f.forward(x))
        }),
        case("pooling", [3, 3, 3, 8], true, |scope, _| {
            let f = AveragePool::new(&scope.at("f"), WINDOW);
            Box::new(move |x| f.forward(x))
        }),
        case("pooling", [3, 1, 1, 8], true, |scope, _| {
            let f = GlobalAverage::new(&scope.at("f"));
            Box::new(move |x| f.forward(x).reshape([3, 1, 1, 8]))
        }),
        case("layer_norm", INPUT, false, |scope, device| {
            let f = LayerNorm::new(&scope.at("f"), 8, device);
            Box::new(move |x| f.forward(x))
        }),
    ]
}

/// The shape of a tensor as the site has it, without axes that the case added.
fn site_shape(case: &Case, shape: [usize; 4]) -> Vec<usize> {
    if shape == [3, 1, 1, 8] && case.kind == "pooling" { vec![3, 8] } else { shape.to_vec() }
}

/// Output and gradient of a layer, of which a rule may speak.
fn results(
    case: &Case,
    arithmetic: Arithmetic,
    keys: Option<serde_json::Value>,
    saved: Saved,
    [x, dy]: [&[f32]; 2],
) -> [Vec<f32>; 2] {
    let device = Device::flex().autodiff();
    let scope = Scope::root(0).with(arithmetic);
    let layer = (case.build)(&scope, &device);
    let last = |t: Tensor<4>| match arithmetic {
        Arithmetic::Kernels => t,
        _ => t.permute([0, 3, 1, 2]),
    };
    let back = |t: Tensor<4>| match arithmetic {
        Arithmetic::Kernels => t,
        _ => t.permute([0, 2, 3, 1]),
    };
    let tensor = |values: &[f32], shape: [usize; 4]| {
        last(Tensor::from_data(TensorData::new(values.to_vec(), shape), &device))
    };
    if let Some(keys) = keys {
        layer(tensor(x, INPUT));
        let session = Session::new(0);
        let rule: Rule = serde_json::from_value(keys).unwrap();
        let sites = scope.sites();
        let plan =
            resolve(&sites, &[rule], INPUT[0], Compute::Auto, &OptimizerConfig::default(), None);
        let mut plan = plan.unwrap();
        plan.saved = saved;
        plan.apply(&sites, &session);
    }
    let x = tensor(x, INPUT).require_grad();
    let y = layer(x.clone());
    let loss = match (arithmetic, site_shape(case, case.output).len()) {
        // The mean gives [3, 8] with any arithmetic; the case's reshape put the channels last.
        (Arithmetic::Engine, 2) => {
            y.clone() * Tensor::from_data(TensorData::new(dy.to_vec(), case.output), &device)
        }
        _ => y.clone() * tensor(dy, case.output),
    };
    let gradients = loss.sum().backward();
    let y = if site_shape(case, case.output).len() == 2 { y } else { back(y) };
    let dx = back(x.grad(&gradients).unwrap());
    [values(y), values(dx)]
}

#[test]
fn functions_and_norms_work_on_rounded_tensors_and_round_what_they_give() {
    let (x, upstream) = (noise(INPUT.iter().product(), 1), noise(INPUT.iter().product(), 2));
    for (at, case) in cases().into_iter().enumerate() {
        for scheme in ["int4", "int4/channel", "bf16", "smaq:6,8", "int6/stochastic"] {
            let count: usize = case.output.iter().product();
            let dy = &upstream[..count];
            let output = site_shape(&case, case.output);
            let is_channel = scheme.ends_with("channel");
            let as_channels = |shape: &[usize]| {
                if is_channel {
                    format!("int4/axis:{}", shape.len() - 1)
                } else {
                    scheme.to_owned()
                }
            };
            let [sx, sy] = [as_channels(&INPUT), as_channels(&output)];
            let hand_x = rounded(&sx, x.clone(), &INPUT, "f.x");
            let hand_dy = rounded(&sy, dy.to_vec(), &output, "f.dy");
            let [y, dx] =
                results(&case, Arithmetic::Kernels, None, Saved::Fast, [&hand_x, &hand_dy]);
            let expected = [rounded(&sy, y, &output, "f.y"), rounded(&sx, dx, &INPUT, "f.dx")];
            let keys = serde_json::json!({
                "layers": "f", "kinds": case.kind,
                "x": scheme, "y": scheme, "dy": scheme, "dx": scheme,
            });
            for saved in [Saved::Fast, Saved::Packed] {
                let ours = results(&case, Arithmetic::Kernels, Some(keys.clone()), saved, [&x, dy]);
                assert!(ours == expected, "case {at}, {} {scheme} {saved:?}", case.kind);
            }
            // There, channels stand elsewhere, and random numbers are drawn in another order.
            if case.engine && scheme == "int4" {
                let engine = results(&case, Arithmetic::Engine, Some(keys), Saved::Fast, [&x, dy]);
                for (one, other) in engine.concat().iter().zip(expected.concat()) {
                    assert!((one - other).abs() < 1e-5, "case {at}, {}: {one} {other}", case.kind);
                }
            }
        }
    }
}

#[test]
fn what_attention_gives_is_rounded_before_it_is_multiplied() {
    let device = Device::flex().autodiff();
    let x = noise(2 * 5 * 8, 3);
    let run = |rules: &[serde_json::Value]| {
        let scope = Scope::root(0);
        let net = SelfAttention::new(&scope.at("a"), 8, 2, &device);
        let input = || {
            Tensor::<3>::from_data(TensorData::new(x.clone(), [2, 5, 8]), &device).require_grad()
        };
        let padding: Arc<[bool]> = vec![false; 10].into();
        net.forward(input(), Some(Arc::clone(&padding)));
        let rules: Vec<Rule> =
            rules.iter().map(|r| serde_json::from_value(r.clone()).unwrap()).collect();
        let sites = scope.sites();
        let session = Session::new(0);
        resolve(&sites, &rules, 2, Compute::Auto, &OptimizerConfig::default(), None)
            .unwrap()
            .apply(&sites, &session);
        let x = input();
        let y = net.forward(x.clone(), Some(padding));
        let gradients = (y.clone() * y.clone()).sum().backward();
        [values(y), values(x.grad(&gradients).unwrap())]
    };
    // The output of the heads is the input of `out`: rounding either gives the same network, and so do both.
    let heads =
        serde_json::json!({"layers": "a", "kinds": "attention", "y": "e4m3fn", "dy": "e5m2"});
    let out = serde_json::json!({"layers": "a.out", "x": "e4m3fn", "dx": "e5m2"});
    let plain = run(&[]);
    let at_heads = run(std::slice::from_ref(&heads));
    assert_eq!(at_heads, run(&[heads, out.clone()]));
    assert_eq!(at_heads, run(&[out]));
    assert_ne!(at_heads, plain);
}
