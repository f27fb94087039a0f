//! What an optimizer keeps between steps as the bytes of a scheme, weights without an f32 master, and rules for norms.

#![expect(clippy::result_large_err, reason = "an error of a plan is made once")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use scrimp_codec::{FAMILIES, Scheme, Stream};
use scrimp_train::compute::Compute;
use scrimp_train::data::{self, DataRequest, Splits};
use scrimp_train::gradients::GradientTaps;
use scrimp_train::layers::{BatchNorm, LayerNorm, Linear};
use scrimp_train::optimizers::{Content, Optimizer, OptimizerConfig, SavedMoment};
use scrimp_train::params;
use scrimp_train::plan::{Plan, PlanError, PlanRequest, Saved, Status, resolve};
use scrimp_train::rules::Rule;
use scrimp_train::tap::{Scope, Session};
use scrimp_train::trainer::{CheckpointJob, TrainJob};
use scrimp_train::{Role, burn, models};
use serde_json::json;
use support::train;

fn rule(keys: serde_json::Value) -> Rule {
    serde_json::from_value(keys).unwrap()
}

fn optimizer(keys: serde_json::Value) -> OptimizerConfig {
    serde_json::from_value(keys).unwrap()
}

/// One of each kind, with all that changes what is kept.
fn optimizers() -> Vec<OptimizerConfig> {
    [
        json!({"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        json!({"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": true}),
        json!({"name": "adam", "lr": 0.01, "weight_decay": 0.1}),
        json!({"name": "adamw", "lr": 0.01, "weight_decay": 0.1}),
        json!({"name": "adam", "lr": 0.01, "amsgrad": true}),
        json!({"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "amsgrad": true}),
    ]
    .map(optimizer)
    .into()
}

/// Those that a second moment is hard for, and one without a scale, one that is exact, and one per tensor.
const SCHEMES: [&str; 9] = [
    "int8",
    "int8/stochastic",
    "int4/group:8/stochastic",
    "e4m3fn",
    "smaq:6,8",
    "mxfp4",
    "nf4",
    "bf16",
    "uint8/row",
];

#[derive(Module, Debug)]
struct Net {
    fc: Linear,
}

/// A layer with a plan of its own.
struct Bench {
    net: Net,
    plan: Plan,
    session: Arc<Session>,
}

impl Bench {
    fn new([inputs, outputs]: [usize; 2], rule: Rule, config: &OptimizerConfig) -> Self {
        let device = Device::flex().autodiff();
        let scope = Scope::root(3);
        let net = Net { fc: Linear::new(&scope.at("fc"), inputs, outputs, &device) };
        net.fc.forward(Tensor::<2>::zeros([1, inputs], &device));
        let plan = resolve(&scope.sites(), &[rule], 1, Compute::Auto, config, None).unwrap();
        let session = Session::new(3);
        plan.apply(&scope.sites(), &session);
        Self { net, plan, session }
    }

    fn optimizer(&self, config: &OptimizerConfig) -> Optimizer {
        Optimizer::planned(config.clone(), &self.plan, &self.session)
    }

    /// Gradients over many orders of magnitude, in which some values are zero in every step and some in most.
    fn gradients(&self, step: u64) -> GradientsParams {
        let mut grads = GradientsParams::new();
        let plain = Device::flex();
        let values = |count: usize, id: u32| -> Vec<f32> {
            let stream = Stream::new(17, id).at_step(step);
            let value = |i: u64| match i % 11 {
                3 => 0.0,
                5 if !step.is_multiple_of(4) => 0.0,
                _ => {
                    (2.0 * stream.uniform(i) - 1.0) * 10f32.powi(i32::try_from(i % 9).unwrap() - 7)
                }
            };
            (0..count as u64).map(value).collect()
        };
        let shape = self.net.fc.weight.val().dims();
        let weight = TensorData::new(values(shape[0] * shape[1], 1), shape);
        grads.register(self.net.fc.weight.id, Tensor::<2>::from_data(weight, &plain));
        let bias = self.net.fc.bias.as_ref().unwrap();
        let data = TensorData::new(values(shape[0], 2), [shape[0]]);
        grads.register(bias.id, Tensor::<1>::from_data(data, &plain));
        grads
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Rounds the moments of a parameter as bytes would hold them, from the definition.
fn emulate(
    plan: &Plan,
    field: &str,
    step: u64,
    moments: &mut [Vec<f32>],
    planned: &mut BTreeMap<Role, usize>,
) {
    let roles = if field == "weight" { Role::WEIGHT_STATE } else { Role::BIAS_STATE };
    for (i, role) in roles.into_iter().take(moments.len()).enumerate() {
        let t = plan.get("fc", role).unwrap();
        assert_eq!(t.status, Status::Packed, "{role}");
        *planned.entry(role).or_default() += t.bytes;
        let stream = Stream::named(3, &format!("fc.{role}")).at_step(step);
        let round = |x: &mut Vec<f32>| {
            t.scheme.emulate(x, &t.shape, &stream).unwrap();
        };
        let wanted = moments[i].clone();
        round(&mut moments[i]);
        if i == 0 {
            continue;
        }
        let mut bytes = Vec::new();
        t.scheme.encode(&wanted, &t.shape, &stream, &mut bytes).unwrap();
        let mut least = vec![0.0; wanted.len()];
        t.scheme.smallest(&bytes, &t.shape, &mut least).unwrap();
        let lost = |j: usize, v: f32, m: f32| v <= 0.0 && (wanted[j] > 0.0 || m != 0.0);
        let mut raised = wanted.clone();
        for j in 0..raised.len() {
            if lost(j, moments[i][j], moments[0][j]) {
                raised[j] = raised[j].max(least[j]);
            }
        }
        round(&mut raised);
        moments[i] = raised;
    }
    for i in 1..moments.len() {
        for j in 0..moments[i].len() {
            let m = moments[0][j];
            if moments[i][j] <= 0.0 {
                moments[i][j] = if m == 0.0 { 0.0 } else { (m * m).max(f32::MIN_POSITIVE) };
            }
        }
    }
}

#[test]
fn packed_moments_are_emulated_ones_bit_for_bit() {
    for config in optimizers() {
        for scheme in SCHEMES {
            // A bias has no rows or groups.
            let own = if ["int4", "mxfp4", "uint8"].iter().any(|s| scheme.starts_with(s)) {
                "uint4/stochastic"
            } else {
                scheme
            };
            let keys = json!({"layers": "*", "m": scheme, "mb": own});
            let bench = Bench::new([24, 40], rule(keys), &config);
            let mut packed = bench.optimizer(&config);
            let mut float = Optimizer::new(config.clone());
            let (mut one, mut other) = (bench.net.clone(), bench.net.clone());
            for step in 0..20 {
                bench.session.set_step(step);
                one = packed.step(0.01, one, &mut bench.gradients(step));
                assert_eq!(bench.session.problem(), None, "{scheme}");
                other = float.step(0.01, other, &mut bench.gradients(step));
                let mut saved = Vec::new();
                for field in ["weight", "bias"] {
                    let name = format!("fc.{field}");
                    let mut moments = float.moments(&name);
                    emulate(&bench.plan, field, step, &mut moments, &mut BTreeMap::new());
                    let held = packed.moments(&name);
                    for (i, (held, values)) in held.iter().zip(&moments).enumerate() {
                        assert_eq!(bits(held), bits(values), "{scheme} {config:?} {name} {i}");
                    }
                    saved.extend(moments.into_iter().zip(["m", "v", "v_max"]).map(|(v, key)| {
                        SavedMoment { name: format!("{name}.{key}"), content: Content::Values(v) }
                    }));
                }
                float.restore(step + 1, &other, saved).unwrap();
            }
            for (a, b) in params::tensors(&one).iter().zip(params::tensors(&other)) {
                assert_eq!(bits(&a.values), bits(&b.values), "{scheme} {config:?} {}", a.name);
            }
        }
    }
}

#[test]
fn no_second_moment_is_lost_where_the_first_is_not_in_any_codec() {
    let config = optimizer(json!({"name": "adam", "lr": 0.01, "amsgrad": true}));
    let members = FAMILIES.iter().flat_map(|family| family.members());
    for scheme in members.chain(SCHEMES.map(String::from)) {
        let keys = json!({"layers": "*", "m": scheme, "mb": "int8"});
        let bench = Bench::new([32, 40], rule(keys), &config);
        if bench.plan.get("fc", Role::Moment1).unwrap().status != Status::Packed {
            continue;
        }
        let mut optimizer = bench.optimizer(&config);
        let mut net = bench.net.clone();
        for step in 0..12 {
            bench.session.set_step(step);
            net = optimizer.step(0.01, net, &mut bench.gradients(step));
            assert_eq!(bench.session.problem(), None, "{scheme}");
            let [m, v, v_max] = &optimizer.moments("fc.weight")[..] else { panic!("{scheme}") };
            for (i, m) in m.iter().enumerate() {
                for v in [v[i], v_max[i]] {
                    assert!(v >= 0.0 && (v > 0.0 || *m == 0.0), "{scheme}: v {v} for m {m}");
                }
            }
            let moved = params::tensors(&net)[0].values.iter().all(|w| w.abs() < 2.0);
            assert!(moved, "{scheme}: a weight left its place at step {step}");
        }
    }
}

#[test]
fn the_bytes_of_scaled_codes_alone_keep_every_second_moment_above_zero() {
    let config = optimizer(json!({"name": "adamw", "lr": 0.01}));
    for scheme in
        ["int8", "int4", "int8/stochastic", "e4m3fn", "e4m3fn/row", "mxfp4", "nf4", "bf16"]
    {
        let keys = json!({"layers": "*", "m": scheme, "mb": "f32"});
        let bench = Bench::new([32, 40], rule(keys), &config);
        let mut optimizer = bench.optimizer(&config);
        let mut net = bench.net.clone();
        for step in 0..6 {
            bench.session.set_step(step);
            net = optimizer.step(0.01, net, &mut bench.gradients(step));
        }
        let state = optimizer.state();
        let decode = |name: &str| {
            let saved = state.iter().find(|s| s.name == name).unwrap();
            let Content::Bytes { scheme, bytes } = &saved.content else { panic!("{name} is f32") };
            let mut values = vec![0.0; 32 * 40];
            scheme.parse::<Scheme>().unwrap().decode(bytes, &[40, 32], &mut values).unwrap();
            values
        };
        let (m, v) = (decode("fc.weight.m"), decode("fc.weight.v"));
        for (m, v) in m.iter().zip(v) {
            assert!(v >= 0.0 && (v > 0.0 || *m == 0.0), "{scheme}: v {v} for m {m}");
        }
        let bias = state.iter().find(|s| s.name == "fc.bias.v").unwrap();
        assert!(matches!(bias.content, Content::Values(_)));
    }
}

#[test]
fn long_parameters_are_packed_in_parts_with_the_same_bytes_on_any_number_of_threads() {
    // 750,000 values: three parts where rows are whole, one where the tensor has one scale.
    let shape = [250, 3000];
    let config = optimizer(json!({"name": "adam", "lr": 0.01}));
    for (m, v) in [
        ("int8/row/stochastic", "int4/group:50/stochastic"),
        ("bf16", "e4m3fn/row"),
        ("int8", "int8/row"),
        ("nf4", "bf16/stochastic"),
    ] {
        let keys = json!({"layers": "*", "m": m, "v": v, "mb": "f32"});
        let bench = Bench::new(shape, rule(keys), &config);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut optimizer = bench.optimizer(&config);
                let mut net = bench.net.clone();
                for step in 0..3 {
                    bench.session.set_step(step);
                    net = optimizer.step(0.01, net, &mut bench.gradients(step));
                }
                assert_eq!(bench.session.problem(), None);
                (optimizer.state(), params::tensors(&net), optimizer.parameter_bytes("fc.weight"))
            })
        };
        let one = run(1);
        assert!(one == run(2), "{m} {v} depend on the number of threads");
        let (state, _, bytes) = one;
        let planned =
            [Role::Moment1, Role::Moment2].map(|r| bench.plan.get("fc", r).unwrap().bytes);
        assert_eq!(bytes, planned, "{m} {v}");
        // What was saved is taken up again, and gives the same update.
        let mut resumed = bench.optimizer(&config);
        resumed.restore(3, &bench.net, state).unwrap();
        assert_eq!(resumed.parameter_bytes("fc.weight"), planned);
    }
}

#[test]
fn a_part_of_a_long_parameter_is_rounded_as_the_whole_is() {
    let config = optimizer(json!({"name": "sgd", "lr": 0.01, "momentum": 0.9}));
    // A bias has no rows.
    let keys = json!({"layers": "*", "m": "int8/row", "mb": "int8"});
    let bench = Bench::new([250, 3000], rule(keys), &config);
    let mut optimizer = bench.optimizer(&config);
    let mut float = Optimizer::new(config);
    optimizer.step(0.01, bench.net.clone(), &mut bench.gradients(0));
    float.step(0.01, bench.net.clone(), &mut bench.gradients(0));
    let mut whole = float.moments("fc.weight").remove(0);
    let t = bench.plan.get("fc", Role::Moment1).unwrap();
    t.scheme.emulate(&mut whole, &t.shape, &Stream::new(0, 0)).unwrap();
    assert_eq!(bits(&optimizer.moments("fc.weight")[0]), bits(&whole));
}

#[test]
fn a_moment_that_its_scheme_cannot_hold_is_reported_by_name() {
    let config = optimizer(json!({"name": "adam", "lr": 0.01}));
    let bench = Bench::new([4, 3], rule(json!({"layers": "*", "v": "int8"})), &config);
    let mut grads = GradientsParams::new();
    let mut values = vec![0.5; 12];
    values[7] = 1e30;
    let data = TensorData::new(values, [3, 4]);
    grads.register(bench.net.fc.weight.id, Tensor::<2>::from_data(data, &Device::flex()));
    bench.optimizer(&config).step(0.01, bench.net.clone(), &mut grads);
    let problem = bench.session.problem().unwrap();
    assert_eq!(problem.tensor, "fc.v");
    assert!(problem.what.contains("element 7 is inf"), "{}", problem.what);
}

#[test]
fn saved_moments_of_another_scheme_are_refused() {
    let config = optimizer(json!({"name": "adam", "lr": 0.01}));
    let bench = |scheme| Bench::new([4, 8], rule(json!({"layers": "*", "m": scheme})), &config);
    let before = bench("int8");
    let mut optimizer = before.optimizer(&config);
    optimizer.step(0.01, before.net.clone(), &mut before.gradients(0));
    let refuse = |optimizer: &mut Optimizer, state: Vec<SavedMoment>| {
        optimizer.restore(1, &before.net, state).unwrap_err().to_string()
    };
    let saved = optimizer.state();
    let other = bench("bf16");
    let error = refuse(&mut other.optimizer(&config), saved.clone());
    assert!(error.contains("packed as `int8`, and the plan says `bf16`"), "{error}");
    let error = refuse(&mut Optimizer::new(config.clone()), saved.clone());
    assert!(error.contains("packed as `int8`, and the plan says f32"), "{error}");
    let mut short = saved.clone();
    let Content::Bytes { bytes, .. } = &mut short[0].content else { panic!("it is packed") };
    bytes.pop();
    assert!(refuse(&mut before.optimizer(&config), short).contains("fc.bias.m"));
    let mut float = saved.clone();
    float[0].content = Content::Values(vec![0.0; 8]);
    let error = refuse(&mut before.optimizer(&config), float);
    assert!(error.contains("it is f32, and the plan says `int8`"), "{error}");
    before.optimizer(&config).restore(1, &before.net, saved).unwrap();
}

#[test]
fn a_weight_without_a_master_stays_on_the_grid_of_its_scheme() {
    const RATE: f64 = 1e-3;
    let config = optimizer(json!({"name": "sgd", "lr": RATE}));
    // How far the mean of the weights goes in four steps down a slope of 1.
    let run = |scheme: &str| {
        let keys = json!({"layers": "*", "w": scheme, "master": false});
        let bench = Bench::new([24, 40], rule(keys), &config);
        assert_eq!(bench.plan.get("fc", Role::Weight).unwrap().master, Some(false));
        assert_eq!(bench.plan.get("fc", Role::Bias).unwrap().master, None);
        let mut optimizer = bench.optimizer(&config);
        let mut net = bench.net.clone();
        let mut means = Vec::new();
        for step in 0..5 {
            bench.session.set_step(step);
            let mut grads = GradientsParams::new();
            grads.register(bench.net.fc.weight.id, Tensor::<2>::ones([40, 24], &Device::flex()));
            net = optimizer.step(RATE, net, &mut grads);
            let weight = params::tensors(&net).remove(0);
            let mut held = weight.values.clone();
            let nearest: Scheme = scheme.replace("/stochastic", "").parse().unwrap();
            nearest.emulate(&mut held, &weight.shape, &Stream::new(0, 0)).unwrap();
            assert_eq!(bits(&held), bits(&weight.values), "{scheme} at step {step}");
            let sum: f64 = weight.values.iter().map(|w| f64::from(*w)).sum();
            means.push(sum / weight.values.len() as f64);
        }
        means[4] - means[0]
    };
    // Nearly every update is below half a step: to nearest it is lost, stochastically it is made on average.
    let (nearest, stochastic) = (run("fp:e5m2"), run("fp:e5m2/stochastic"));
    assert!(nearest > -RATE, "{nearest}");
    assert!((stochastic + 4.0 * RATE).abs() < 1.5 * RATE, "{stochastic}");
    run("bf16/stochastic");
}

// ----- Norms.

#[derive(Module, Debug)]
struct Norms {
    batch: BatchNorm,
    layer: LayerNorm,
}

#[test]
fn parameters_of_norms_are_rounded_in_the_forward_pass_and_so_are_their_gradients() {
    let device = Device::flex().autodiff();
    let scope = Scope::root(1);
    let mut net = Norms {
        batch: BatchNorm::new(&scope.at("batch"), 3, &device),
        layer: LayerNorm::new(&scope.at("layer"), 3, &device),
    };
    let values = [0.26f32, -0.74, 1.3];
    net.batch.weight = Param::from_tensor(Tensor::from_floats(values, &device));
    net.layer.bias = Param::from_tensor(Tensor::from_floats(values, &device));
    let keys = json!({"layers": "*", "kinds": ["batch_norm", "layer_norm"], "w": "fp:e2m1", "b": "fp:e2m1", "d": "fp:e5m2"});
    let config = OptimizerConfig::default();
    let plan = resolve(&scope.sites(), &[rule(keys)], 2, Compute::Auto, &config, None).unwrap();
    let session = Session::new(1);
    plan.apply(&scope.sites(), &session);
    let taps = GradientTaps::new(&scope.sites(), &session);

    let x: Vec<f32> = (0..24u16).map(|i| f32::from(i * 7 % 13) - 5.0).collect();
    let x = Tensor::<4>::from_data(TensorData::new(x, [2, 2, 2, 3]), &device);
    let forward = |net: &Norms| net.layer.forward(net.batch.forward(x.clone()));
    let y = forward(&net);
    let grads = (y.clone() * x.clone()).sum().backward();
    let mut grads = GradientsParams::from_grads(grads, &net);
    taps.round(&net, &mut grads);
    let gradient = grads.get::<1>(net.batch.weight.id).unwrap();
    let gradient = gradient.into_data().try_to_vec::<f32>().unwrap();
    let mut rounded = gradient.clone();
    let e5m2: Scheme = "fp:e5m2".parse().unwrap();
    e5m2.emulate(&mut rounded, &[3], &Stream::new(0, 0)).unwrap();
    assert_eq!(bits(&rounded), bits(&gradient));

    // The same with rounded parameters and no rule.
    let scope = Scope::root(1);
    let mut plain = Norms {
        batch: BatchNorm::new(&scope.at("batch"), 3, &device),
        layer: LayerNorm::new(&scope.at("layer"), 3, &device),
    };
    let mut grid = values;
    "fp:e2m1".parse::<Scheme>().unwrap().emulate(&mut grid, &[3], &Stream::new(0, 0)).unwrap();
    assert_ne!(grid, values);
    plain.batch.weight = Param::from_tensor(Tensor::from_floats(grid, &device));
    plain.layer.bias = Param::from_tensor(Tensor::from_floats(grid, &device));
    let [one, other] =
        [y, forward(&plain)].map(|y| y.without_autodiff().into_data().try_to_vec::<f32>().unwrap());
    assert_eq!(bits(&one), bits(&other));
}

fn plan(
    model: &str,
    image: [usize; 3],
    keys: serde_json::Value,
    name: &str,
) -> Result<Plan, PlanError> {
    let momentum = if name == "sgd" { json!(0.9) } else { json!(null) };
    let mut config = json!({"name": name, "lr": 0.1});
    if !momentum.is_null() {
        config["momentum"] = momentum;
    }
    let request = PlanRequest {
        image,
        classes: 10,
        batch: 4,
        rules: vec![rule(keys)],
        device: "flex".into(),
        compute: Compute::Auto,
        optimizer: optimizer(config),
        exchange: None,
        saved: Saved::default(),
    };
    (models::find(model).unwrap().plan)(&request)
}

#[test]
fn kinds_say_which_layers_a_rule_speaks_of() {
    let resnet = |keys, name| plan("resnet20", [3, 32, 32], keys, name);
    let count = |plan: &Plan, role, status| {
        plan.tensors.iter().filter(|t| t.role == role && t.status == status).count()
    };
    let usual = resnet(json!({"layers": "*", "w": "int8"}), "sgd").unwrap();
    assert_eq!(count(&usual, Role::Weight, Status::Emulated), 20);
    assert_eq!(count(&usual, Role::Weight, Status::Float), 19);
    let all =
        resnet(json!({"layers": "*", "kinds": "all", "w": "bf16", "m": "bf16"}), "sgd").unwrap();
    assert_eq!(count(&all, Role::Weight, Status::Emulated), 39);
    assert_eq!(count(&all, Role::Moment1, Status::Packed), 39);
    assert_eq!(count(&all, Role::BiasMoment1, Status::Packed), 20);
    assert_eq!(count(&all, Role::Moment2, Status::Float), 0);
    // Running averages are all that is left.
    assert_eq!(all.untapped_parameters, 2 * (7 * 16 + 6 * 32 + 6 * 64));
    let norms =
        resnet(json!({"layers": "*", "kinds": "batch_norm", "default": "bf16"}), "sgd").unwrap();
    assert_eq!(count(&norms, Role::WeightGrad, Status::Emulated), 19);

    let error = |keys, name| resnet(keys, name).unwrap_err();
    let unknown =
        error(json!({"layers": "*", "kinds": ["conv2d", "bathc_norm"], "w": "int8"}), "sgd");
    assert_eq!(unknown.to_string(), "rule 1: no layer here is a `bathc_norm`");
    assert!(unknown.help().unwrap().contains("did you mean `batch_norm`?"));
    assert_eq!(unknown.place(), Some((1, "kinds")));
    let absent = error(json!({"layers": "*", "kinds": "layer_norm", "w": "int8"}), "sgd");
    assert!(
        absent
            .help()
            .unwrap()
            .starts_with("kinds here are batch_norm, conv2d, linear, pooling, all")
    );
    assert!(matches!(
        error(json!({"layers": "*", "kinds": [], "w": "int8"}), "sgd"),
        PlanError::NoKind { .. }
    ));
    let hidden = error(json!({"layers": "bn1", "w": "int8"}), "sgd");
    assert!(hidden.help().unwrap().contains("say kinds = \"batch_norm\""), "{:?}", hidden.help());
    let maps = resnet(json!({"layers": "*", "kinds": "batch_norm", "x": "int8"}), "sgd").unwrap();
    assert_eq!(count(&maps, Role::Input, Status::Emulated), 19);
}

#[test]
fn keys_for_what_an_optimizer_does_not_keep_are_errors() {
    let mlp = |keys, name| plan("mlp", [1, 4, 4], keys, name);
    let scheme = |plan: &Plan, role| plan.get("fc1", role).unwrap().scheme.to_string();
    let adam = mlp(json!({"layers": "*", "default": "int4", "m": "smaq:6,8"}), "adam").unwrap();
    for role in [Role::Moment1, Role::BiasMoment1, Role::Moment2, Role::BiasMoment2] {
        assert_eq!(scheme(&adam, role), "smaq:6,8");
    }
    assert!(adam.get("fc1", Role::LargestMoment2).is_none());
    let keys =
        json!({"layers": "*", "default": "int4", "m": "int8", "v": "uint8/row", "mb": "f32"});
    let adam = mlp(keys, "adam").unwrap();
    let all = [Role::Moment1, Role::Moment2, Role::BiasMoment1, Role::BiasMoment2];
    assert_eq!(all.map(|role| scheme(&adam, role)), ["int8", "uint8/row", "f32", "f32"]);
    // `default` does not speak of what is kept.
    let plain = mlp(json!({"layers": "*", "default": "int4"}), "adam").unwrap();
    assert_eq!(plain.get("fc1", Role::Moment2).unwrap().status, Status::Float);

    let rows = mlp(json!({"layers": "*", "m": "int8/row"}), "adam").unwrap_err();
    assert!(rows.help().unwrap().contains("mb = \"int8\""), "{:?}", rows.help());
    let error = mlp(json!({"layers": "*", "w": "int8", "v": "int8"}), "sgd").unwrap_err();
    assert_eq!(
        error.to_string(),
        "rule 1: the key `v` has no effect: sgd keeps a momentum `m` and no second moment"
    );
    assert_eq!(error.place(), Some((1, "v")));
    let no_master = mlp(json!({"layers": "*", "x": "int8", "master": false}), "sgd").unwrap_err();
    assert_eq!(no_master, PlanError::NoMaster { rule: 1 });
}

// ----- The trainer.

fn digits(train: usize) -> Splits {
    let request =
        DataRequest { validation: 0.0, seed: 1, limit: Some(train), ..DataRequest::default() };
    data::find("digits").unwrap().load(&request).unwrap()
}

fn job(splits: &Splits, rules: Vec<Rule>, optimizer: OptimizerConfig) -> TrainJob<'_> {
    let mut job = support::job(splits, 32, rules);
    job.plan.optimizer = optimizer;
    job
}

#[test]
fn a_run_with_packed_moments_resumes_within_an_epoch_bit_for_bit() {
    let splits = digits(160);
    for config in optimizers() {
        for scheme in ["int8/stochastic", "smaq:6,8", "int4/group:32"] {
            let rules = [
                rule(json!({"layers": "*", "m": scheme, "mb": scheme.replace("/group:32", "")})),
                rule(json!({"layers": "fc1", "w": "int8/stochastic", "master": false})),
            ];
            let job = job(&splits, rules.to_vec(), config.clone());
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str, resume| {
                let path = folder.path().join(name);
                TrainJob {
                    checkpoint: Some(CheckpointJob { path, every_steps: None, resume }),
                    ..job.clone()
                }
            };
            let whole = train(&at("whole", false), u64::MAX).unwrap();
            let cut = train(&at("cut", false), 2).unwrap();
            assert!(!cut.finished && cut.steps == 2);
            let rest = train(&at("cut", true), u64::MAX).unwrap();
            assert_eq!((rest.steps, rest.test), (5, whole.test));
            // The last checkpoints hold parameters and moments, and are the same file.
            let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
            assert!(bytes("whole") == bytes("cut"), "{scheme} {config:?}");
            assert_eq!(rest.state_bytes, whole.state_bytes);
            let held = scrimp_files::open(Path::new(&folder.path().join("cut"))).unwrap();
            let m = held.entries().iter().find(|e| e.name == "optimizer.fc1.weight.m").unwrap();
            assert_eq!(m.dtype, scrimp_files::Dtype::U8);
        }
    }
}

#[test]
fn f32_as_a_scheme_changes_nothing() {
    let splits = digits(96);
    let config = optimizer(json!({"name": "adam", "lr": 0.01, "amsgrad": true}));
    let plain = train(&job(&splits, Vec::new(), config.clone()), u64::MAX).unwrap();
    let rules = vec![rule(json!({"layers": "*", "m": "f32"}))];
    let named = train(&job(&splits, rules, config), u64::MAX).unwrap();
    for (one, other) in plain.model.iter().zip(&named.model) {
        assert_eq!(bits(&one.values), bits(&other.values), "{}", one.name);
    }
    assert_eq!(plain.state_bytes, named.state_bytes);
}

#[test]
fn as_many_bytes_are_held_as_the_plan_says() {
    let splits = digits(64);
    for config in optimizers() {
        let keys = json!({"layers": "*", "m": "int4/group:32/scale:f16", "mb": "int8"});
        let rules = vec![rule(keys), rule(json!({"layers": "fc2", "m": "f32"}))];
        let outcome = train(&job(&splits, rules, config), u64::MAX).unwrap();
        for role in [Role::WEIGHT_STATE, Role::BIAS_STATE].into_iter().flatten() {
            let planned = outcome.plan.total(role);
            let held = outcome.state_bytes.get(&role).copied().unwrap_or(0);
            assert_eq!(held, planned.bytes, "{role}");
        }
    }
}

#[test]
fn adam_with_moments_in_eight_bits_learns_nearly_as_well() {
    let splits = digits(1500);
    let config = optimizer(json!({"name": "adam", "lr": 0.003}));
    let accuracy = |rules| {
        let job = TrainJob { epochs: 3, ..job(&splits, rules, config.clone()) };
        train(&job, u64::MAX).unwrap().test.unwrap().accuracy
    };
    let float = accuracy(Vec::new());
    for (m, v) in
        [("int8", "int8"), ("int8/stochastic", "int8/stochastic"), ("smaq:6,8", "smaq:6,8")]
    {
        let packed = accuracy(vec![rule(json!({"layers": "*", "m": m, "v": v}))]);
        println!("{m}: {packed} beside {float}");
        assert!(packed > float - 0.05, "{m}: {packed} beside {float}");
    }
}
