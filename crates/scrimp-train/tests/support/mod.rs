//! Training that stops when a test wants.

use std::sync::atomic::{AtomicU64, Ordering};

use scrimp_train::compute::Compute;
use scrimp_train::data::{Augment, Splits};
use scrimp_train::models;
use scrimp_train::optimizers::{OptimizerConfig, Schedule};
use scrimp_train::plan::{PlanRequest, Saved};
use scrimp_train::rules::Rule;
use scrimp_train::trainer::{Observer, Outcome, StepReport, TrainError, TrainJob};

/// Asks the trainer to stop after so many steps.
pub struct StopAfter {
    steps: u64,
    seen: AtomicU64,
}

impl StopAfter {
    pub fn steps(steps: u64) -> Self {
        Self { steps, seen: AtomicU64::new(0) }
    }
}

impl Observer for StopAfter {
    fn step(&mut self, _: &StepReport) {
        self.seen.fetch_add(1, Ordering::Relaxed);
    }

    fn stop_requested(&self) -> bool {
        self.seen.load(Ordering::Relaxed) >= self.steps
    }
}

/// Trains an `mlp` for so many steps at most.
pub fn train(job: &TrainJob, steps: u64) -> Result<Outcome, TrainError> {
    let mlp = models::find("mlp").expect("it is a model");
    (mlp.train)(job, &mut StopAfter::steps(steps))
}

/// One epoch on these images, with everything at its default but the rules.
pub fn job(splits: &Splits, batch: usize, rules: Vec<Rule>) -> TrainJob<'_> {
    let images = &splits.train;
    TrainJob {
        plan: PlanRequest {
            image: [images.channels, images.height, images.width],
            classes: splits.classes,
            batch,
            rules,
            device: "flex".into(),
            compute: Compute::Auto,
            optimizer: OptimizerConfig::default(),
            exchange: None,
            saved: Saved::default(),
        },
        splits,
        seed: 1,
        epochs: 1,
        schedule: Schedule::Constant,
        clip_norm: None,
        loss_scale: None,
        label_smoothing: 0.0,
        augment: Augment::default(),
        weights: None,
        checkpoint: None,
        telemetry_steps: None,
        identity: serde_json::Value::Null,
    }
}
