//! What helps formats with few values through training: loss scaling, delayed scales, rules for a part of a run.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use scrimp_train::data::{self, DataRequest, Splits};
use scrimp_train::loss_scale::LossScale;
use scrimp_train::params::NamedTensor;
use scrimp_train::rules::Rule;
use scrimp_train::trainer::{CheckpointJob, Outcome, TrainError, TrainJob};
use serde_json::json;

use support::{job, train};

fn digits(train: usize) -> Splits {
    let request =
        DataRequest { dir: None, validation: 0.0, seed: 1, limit: Some(train), images: None };
    data::find("digits").unwrap().load(&request).unwrap()
}

fn rule(keys: serde_json::Value) -> Rule {
    serde_json::from_value(keys).unwrap()
}

fn scale(json: serde_json::Value) -> LossScale {
    serde_json::from_value(json).unwrap()
}

fn bits(model: &[NamedTensor]) -> Vec<u32> {
    model.iter().flat_map(|t| t.values.iter().map(|v| v.to_bits())).collect()
}

/// A power of two only moves exponents.
#[test]
fn a_loss_scale_that_is_a_power_of_two_changes_no_bit_in_f32() {
    let splits = digits(200);
    for clip_norm in [None, Some(0.5)] {
        let plain = TrainJob { clip_norm, ..job(&splits, 32, Vec::new()) };
        let expected = train(&plain, u64::MAX).unwrap();
        assert_eq!(expected.loss_scale, None);
        for loss_scale in [json!(1024), json!({"initial": 0.125, "every": 2})] {
            let loss_scale = Some(scale(loss_scale));
            let outcome = train(&TrainJob { loss_scale, ..plain.clone() }, u64::MAX).unwrap();
            assert!(bits(&outcome.model) == bits(&expected.model), "{loss_scale:?}");
            assert_eq!(outcome.loss_scale.unwrap().skipped, 0);
        }
    }
}

#[test]
fn gradients_that_a_format_flushes_to_zero_live_under_a_loss_scale() {
    let splits = digits(1000);
    // The smallest value of this format is 2^-4, and the gradient of a mean over 50 images at most 1/50.
    let rules = vec![rule(json!({"layers": "*", "dy": "e3m2fn", "dx": "e3m2fn"}))];
    let plain = TrainJob { epochs: 3, ..job(&splits, 50, rules) };
    let accuracy = |loss_scale| {
        let outcome = train(&TrainJob { loss_scale, ..plain.clone() }, u64::MAX).unwrap();
        outcome.test.unwrap().accuracy
    };
    let (without, with) = (accuracy(None), accuracy(Some(scale(json!(256)))));
    let mut float = plain.clone();
    float.plan.rules.clear();
    let float = train(&float, u64::MAX).unwrap().test.unwrap().accuracy;
    assert!(with > float - 0.03 && without < 0.2, "{without} {with} {float}");
}

#[test]
fn a_dynamic_loss_scale_skips_what_overflows_and_a_fixed_one_fails() {
    let splits = digits(400);
    let rules = vec![rule(json!({"layers": "*", "d": "f16"}))];
    let plain = job(&splits, 20, rules);
    let high = 2f64.powi(30);
    let fixed = TrainJob { loss_scale: Some(scale(json!(high))), ..plain.clone() };
    let Err(TrainError::Diverged { step: 0, what, .. }) = train(&fixed, u64::MAX) else {
        panic!("the gradients of a loss of 2^30 fit no f16");
    };
    assert!(what.contains("fc"), "{what}");

    let follows = Some(scale(json!({"initial": high, "every": 6})));
    let dynamic = TrainJob { loss_scale: follows, ..plain.clone() };
    let outcome = train(&dynamic, u64::MAX).unwrap();
    let state = outcome.loss_scale.unwrap();
    assert!(state.skipped >= 8 && f64::from(state.scale) < high, "{state:?}");
    assert!(outcome.model.iter().flat_map(|t| &t.values).all(|v| v.is_finite()));

    // A run that stops while the scale still falls goes on with the same bits.
    for stop in [3, 14] {
        let rest = resumed(&dynamic, stop);
        assert!(bits(&rest.model) == bits(&outcome.model));
        assert_eq!(rest.loss_scale, Some(state));
    }
}

/// What a run gives that stops after so many steps and goes on.
fn resumed(job: &TrainJob, stop: u64) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let save = |resume| CheckpointJob {
        path: folder.path().join("c.safetensors"),
        every_steps: None,
        resume,
    };
    train(&TrainJob { checkpoint: Some(save(false)), ..job.clone() }, stop).unwrap();
    train(&TrainJob { checkpoint: Some(save(true)), ..job.clone() }, u64::MAX).unwrap()
}

#[test]
fn delayed_scales_learn_as_current_ones_do_and_survive_a_resume() {
    let splits = digits(1000);
    let fp8 = |x: &str, d: &str| {
        let rules = vec![rule(json!({"layers": "*", "w": x, "x": x, "dy": d}))];
        TrainJob { epochs: 3, ..job(&splits, 32, rules) }
    };
    let current = fp8("e4m3fn/tensor", "e5m2/tensor");
    let delayed = fp8("e4m3fn/delayed:16", "e5m2/delayed:16");
    let mean = |job: &TrainJob| {
        let run = |seed| train(&TrainJob { seed, ..job.clone() }, u64::MAX).unwrap().test.unwrap();
        (1..=4).map(|seed| run(seed).accuracy).sum::<f64>() / 4.0
    };
    // Runs of one seed and another differ by 3 points.
    let means = [mean(&current), mean(&delayed)];
    assert!(means.iter().all(|m| *m > 0.72) && (means[0] - means[1]).abs() < 0.05, "{means:?}");
    let outcome = train(&delayed, u64::MAX).unwrap();
    assert!(bits(&train(&current, u64::MAX).unwrap().model) != bits(&outcome.model));
    // Within an epoch, and after one, when the validation images have passed.
    for stop in [7, 32, 40] {
        assert!(bits(&resumed(&delayed, stop).model) == bits(&outcome.model), "{stop}");
    }
}

#[test]
fn a_rule_in_two_parts_is_the_rule() {
    let splits = digits(160);
    let keys = json!({"layers": "*", "w": "int4", "x": "uint6", "d": "int8/stochastic"});
    let part = |part: serde_json::Value| {
        let mut keys = keys.clone();
        keys.as_object_mut().unwrap().append(part.clone().as_object_mut().unwrap());
        rule(keys)
    };
    let run = |rules| {
        let job = TrainJob { epochs: 3, ..job(&splits, 32, rules) };
        train(&job, u64::MAX).unwrap()
    };
    let whole = run(vec![rule(keys.clone())]);
    for [first, second] in [
        [json!({"until": {"epochs": 2}}), json!({"after": {"epochs": 2}})],
        [json!({"until": {"steps": 7}}), json!({"after": {"steps": 7}})],
    ] {
        let both = run(vec![part(first.clone()), part(second.clone())]);
        assert!(bits(&both.model) == bits(&whole.model));
        assert_eq!(both.plan.phase.map(|p| p.earlier), Some(1));
        // Before and after, each alone is the rule or none.
        let later = run(vec![part(second)]);
        let float = run(Vec::new());
        assert_eq!(later.history[0], float.history[0]);
        assert_ne!(later.history[2], float.history[2]);
        let earlier = run(vec![part(first)]);
        assert_eq!(earlier.history[0], whole.history[0]);
        assert_ne!(earlier.history[2], whole.history[2]);
        assert!(earlier.plan.tensors.iter().all(|t| t.rule.is_none()));
    }
}

/// Four bits fewer in each epoch, with schemes that remember, and weights without a master.
#[test]
fn a_run_resumes_on_either_side_of_a_change_bit_for_bit() {
    let splits = digits(160);
    let rules = vec![
        rule(
            json!({"layers": "*", "w": "int8", "dw": "onebit", "db": "f32", "dy": "int8/delayed:4"}),
        ),
        rule(json!({"layers": "fc1", "master": false})),
        rule(json!({"layers": "*", "after": {"epochs": 1}, "w": "int6", "dy": "int6/delayed:2"})),
        rule(
            json!({"layers": "*", "after": {"epochs": 2}, "w": "int4", "dw": "top_k:20%/feedback"}),
        ),
    ];
    let job = TrainJob { epochs: 3, ..job(&splits, 32, rules) };
    let whole = train(&job, u64::MAX).unwrap();
    for stop in [4, 5, 6, 10, 12] {
        assert!(bits(&resumed(&job, stop).model) == bits(&whole.model), "{stop}");
    }
    // What is packed in the end is what the last rule says.
    let fc1 = whole.model.iter().find(|t| t.name == "fc1.weight").unwrap();
    let mut values: Vec<f32> = fc1.values.iter().map(|v| v.abs()).collect();
    values.sort_by(f32::total_cmp);
    values.dedup();
    assert!(values.len() <= 8, "int4 has 8 magnitudes: {}", values.len());
}

#[test]
fn parts_of_a_run_that_make_no_sense_are_errors() {
    let splits = digits(160);
    let error = |rules: &[serde_json::Value]| {
        let rules = rules.iter().cloned().map(rule).collect();
        let job = TrainJob { epochs: 3, ..job(&splits, 32, rules) };
        let TrainError::Plan(e) = train(&job, u64::MAX).unwrap_err() else { panic!() };
        assert!(e.help().is_some());
        (e.to_string(), e.place().unwrap())
    };
    let w = |part: serde_json::Value| {
        let mut keys = json!({"layers": "*", "w": "int8"});
        keys.as_object_mut().unwrap().append(part.clone().as_object_mut().unwrap());
        keys
    };
    let epochs = |n: u64| json!({"epochs": n});
    for (rules, place, part) in [
        (vec![w(json!({"after": epochs(3)}))], (1, "after"), "the run is over after 3 epochs"),
        (vec![w(json!({"until": {"steps": 15}}))], (1, "until"), "the run is over after 15 steps"),
        (vec![w(json!({"after": epochs(2), "until": epochs(2)}))], (1, "until"), "never holds"),
        (
            vec![w(json!({"until": epochs(2)})), w(json!({"after": {"steps": 9}}))],
            (2, "after"),
            "they count epochs",
        ),
        (vec![w(json!({"after": epochs(1), "m": "int8"}))], (1, "m"), "stays as it is"),
        (vec![w(json!({"after": epochs(1), "master": false}))], (1, "master"), "stays as it is"),
        // A later rule that starts with it leaves nothing of it.
        (
            vec![w(json!({"after": epochs(1)})), w(json!({"after": epochs(1)}))],
            (1, "layers"),
            "at odds",
        ),
    ] {
        let (said, at) = error(&rules);
        assert!(said.contains(part) && at == place, "{said} {at:?}");
    }
}
