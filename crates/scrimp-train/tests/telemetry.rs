//! What is noted of tensors in steps that are looked at, and that looking changes nothing.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/stripes.rs"]
mod stripes;
#[expect(dead_code, reason = "other tests stop in between")]
mod support;

use scrimp_train::Role;
use scrimp_train::data::Splits;
use scrimp_train::models;
use scrimp_train::params::NamedTensor;
use scrimp_train::plan::Saved;
use scrimp_train::rules::Rule;
use scrimp_train::telemetry::TensorReport;
use scrimp_train::trainer::{Observer, Outcome, TrainJob};
use serde_json::json;

fn job<'a>(splits: &'a Splits, rules: &[serde_json::Value], optimizer: &str) -> TrainJob<'a> {
    let rules = rules.iter().map(|r| serde_json::from_value::<Rule>(r.clone()).unwrap());
    let mut job = support::job(splits, 8, rules.collect());
    let config = json!({"name": optimizer, "lr": 0.01});
    job.plan.optimizer = serde_json::from_value(config).unwrap();
    job
}

#[derive(Default)]
struct Seen(Vec<(u64, Vec<TensorReport>)>);

impl Observer for Seen {
    fn telemetry(&mut self, step: u64, tensors: &[TensorReport]) {
        self.0.push((step, tensors.to_vec()));
    }
}

impl Seen {
    fn get(&self, step: u64, layer: &str, role: Role) -> &TensorReport {
        let (_, tensors) = self.0.iter().find(|(s, _)| *s == step).unwrap();
        tensors.iter().find(|t| t.layer == layer && t.role == role).unwrap()
    }
}

fn train(job: &TrainJob) -> (Outcome, Seen) {
    let mut seen = Seen::default();
    let outcome = (models::find("mlp").unwrap().train)(job, &mut seen).unwrap();
    (outcome, seen)
}

fn bits(model: &[NamedTensor]) -> Vec<(&str, Vec<u32>)> {
    let of = |t: &NamedTensor| t.values.iter().map(|v| v.to_bits()).collect();
    model.iter().map(|t| (t.name.as_str(), of(t))).collect()
}

#[test]
fn looking_at_steps_changes_no_bit() {
    let splits = stripes::splits(20);
    let members = scrimp_codec::FAMILIES.iter().flat_map(|family| family.members());
    let on_all =
        members.map(|s| json!({"layers": "*", "w": s, "x": s, "y": s, "dy": s, "dx": s, "dw": s}));
    let moments = ["int8/stochastic", "int4/group:32", "smaq:6,8", "e4m3fn"].map(
        |s| json!({"layers": "*", "m": s, "mb": s.replace("/group:32", ""), "default": "int8"}),
    );
    for rule in on_all.chain(moments) {
        for saved in [Saved::Fast, Saved::Packed] {
            let mut job = job(&splits, std::slice::from_ref(&rule), "adam");
            job.plan.saved = saved;
            let (plain, nothing) = train(&job);
            let (looked, seen) = train(&TrainJob { telemetry_steps: Some(1), ..job.clone() });
            assert!(bits(&plain.model) == bits(&looked.model), "{rule}");
            assert_eq!((plain.test, plain.tally), (looked.test, looked.tally), "{rule}");
            assert!(nothing.0.is_empty());
            assert_eq!(seen.0.len(), 7);
        }
    }
}

#[test]
fn every_tensor_of_the_plan_is_reported_once() {
    let splits = stripes::splits(20);
    let rule = json!({"layers": "fc1", "default": "int8", "m": "int8", "v": "int4/group:32", "vb": "int8"});
    let job = TrainJob { telemetry_steps: Some(3), ..job(&splits, &[rule], "adam") };
    let (outcome, seen) = train(&job);
    // The last batch has two images.
    assert_eq!(seen.0.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 3, 6]);
    for (step, tensors) in &seen.0 {
        let images = if *step == 6 { 2 } else { 8 };
        for planned in &outcome.plan.tensors {
            let of = |t: &&TensorReport| t.layer == planned.layer && t.role == planned.role;
            let found: Vec<&TensorReport> = tensors.iter().filter(of).collect();
            // Moments in f32 pass no tap, and the first layer has no `dx`.
            let is_float = planned.role.moment().is_some() && planned.scheme.is_float32();
            let is_computed = planned.status != scrimp_train::plan::Status::NotComputed;
            assert_eq!(found.len(), usize::from(is_computed && !is_float), "{planned:?}");
            let Some(report) = found.first() else { continue };
            let per_image: usize = planned.shape.iter().skip(1).product();
            let values = if planned.role.has_batch() {
                images * per_image
            } else {
                planned.shape.iter().product()
            };
            assert_eq!(report.values, values as u64, "{planned:?}");
            let is_rounded = report.sqnr_db.is_some() || report.clipped.is_some();
            assert_eq!(is_rounded, !planned.scheme.is_float32(), "{planned:?}");
        }
    }
}

#[test]
fn reports_are_those_of_loops_over_the_values() {
    let splits = stripes::splits(20);
    let rules = [
        json!({"layers": "fc1", "w": "int4", "x": "fp:e2m1:3:none"}),
        json!({"layers": "fc2", "w": "e2m1fn"}),
    ];
    let mut job = job(&splits, &rules, "sgd");
    // All images in one batch, so that their order does not matter.
    job.plan.batch = 50;
    let (before, _) = train(&TrainJob { epochs: 0, ..job.clone() });
    let weights = |name: &str| {
        let tensor = before.model.iter().find(|t| t.name == name).unwrap();
        tensor.values.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>()
    };
    let (_, seen) = train(&TrainJob { telemetry_steps: Some(100), ..job });
    let check = |layer: &str, role: Role, x: &[f64], y: &[f64], clipped: usize| {
        let report = seen.get(0, layer, role);
        let sum =
            |of: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(x, y)| of(*x, *y)).sum::<f64>();
        let db = 10.0 * (sum(&|x, _| x * x) / sum(&|x, y| (x - y) * (x - y))).log10();
        let zeroed = x.iter().zip(y).filter(|(x, y)| **x != 0.0 && **y == 0.0).count();
        let share = |count: usize| count as f64 / x.len() as f64;
        assert!((report.sqnr_db.unwrap() - db).abs() < 1e-3, "{report:?} {db}");
        assert_eq!((report.zeroed, report.clipped), (share(zeroed), Some(share(clipped))));
        assert!(zeroed > 0 || role == Role::Input);
        let fold = |of: fn(f64, f64) -> f64| x.iter().copied().reduce(of).unwrap();
        assert!((f64::from(report.min.unwrap()) - fold(f64::min)).abs() < 1e-6, "{report:?}");
        assert!((f64::from(report.max.unwrap()) - fold(f64::max)).abs() < 1e-6, "{report:?}");
        assert_eq!(report.amax.unwrap(), report.max.unwrap().max(-report.min.unwrap()));
    };
    // int4: codes from -7 to 7 times the largest magnitude over 7.
    let x = weights("fc1.weight");
    let scale = x.iter().fold(0.0, |m: f64, v| m.max(v.abs())) / 7.0;
    let y: Vec<f64> = x.iter().map(|v| (v / scale).round_ties_even() * scale).collect();
    check("fc1", Role::Weight, &x, &y, 0);
    // e2m1fn: eight magnitudes, to the nearest; 6 is far beyond weights of a new network.
    let nearest = |v: f64, unit: f64| {
        let grid = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0].map(|g| g * unit);
        let near = |a: &f64, b: &f64| (a - v.abs()).abs().total_cmp(&(b - v.abs()).abs());
        grid.into_iter().min_by(near).unwrap().copysign(v)
    };
    let x = weights("fc2.weight");
    let y: Vec<f64> = x.iter().map(|v| nearest(*v, 1.0)).collect();
    check("fc2", Role::Weight, &x, &y, 0);
    // A quarter of these: the largest is 1.5 and the one before it 1, so that what is beyond 1.75 is clipped.
    let pixels = splits.train.pixels.iter().map(|p| (f64::from(*p) / 255.0 - 0.4) / 0.3);
    let x: Vec<f64> = pixels.collect();
    let y: Vec<f64> = x.iter().map(|v| nearest(*v, 0.25)).collect();
    let clipped = x.iter().filter(|v| v.abs() > 1.75).count();
    assert!(clipped > 10);
    check("fc1", Role::Input, &x, &y, clipped);
    // Biases begin at 0 or near it, and are f32.
    let bias = seen.get(0, "fc1", Role::Bias);
    assert_eq!((bias.sqnr_db, bias.clipped, bias.zeroed), (None, None, 0.0));
}
