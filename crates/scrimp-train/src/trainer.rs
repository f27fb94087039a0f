//! The training loop: epochs, checkpoints, resume, and the search for what went wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use scrimp_codec::Tally;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, Checkpoint, CheckpointError, Progress};
use crate::data::{Augment, DataError, Images, Loader, Splits, epoch_order};
use crate::engine;
use crate::gradients::{self, GradientTaps};
use crate::loss::{correct, cross_entropy};
use crate::loss_scale::{LossScale, ScaleState};
use crate::models::{Blueprint, Network};
use crate::ops;
use crate::optimizers::{Optimizer, Schedule};
use crate::params::{self, LoadReport, NamedTensor, ShapeMismatch};
use crate::phases::{self, Phase};
use crate::plan::{self, Plan, PlanError, PlanRequest, Saved};
use crate::role::Role;
use crate::tap::{Problem, Scope, Session, Site};
use crate::telemetry::TensorReport;
use crate::weights::{FirstValues, WeightsError, WeightsReport};

/// One training run.
#[derive(Clone, Debug)]
pub struct TrainJob<'a> {
    /// The network's input, the rules and the optimizer.
    pub plan: PlanRequest,
    /// The data.
    pub splits: &'a Splits,
    /// Seed of first values, order, augmentation and stochastic rounding.
    pub seed: u32,
    /// Epochs; with 0 the network is only evaluated.
    pub epochs: u64,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// The largest 2-norm of all gradients together.
    pub clip_norm: Option<f64>,
    /// What the loss is multiplied by on the way back.
    pub loss_scale: Option<LossScale>,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f32,
    /// Random changes to training images.
    pub augment: Augment,
    /// First values of parameters and buffers, instead of random ones.
    pub weights: Option<FirstValues>,
    /// Where and when to save.
    pub checkpoint: Option<CheckpointJob>,
    /// Compare all tensors with what they are rounded to in the first step and every so many after it.
    pub telemetry_steps: Option<u64>,
    /// What the run depends on, saved in checkpoints and compared on resume.
    pub identity: serde_json::Value,
}

/// Where and when to save.
#[derive(Clone, Debug)]
pub struct CheckpointJob {
    /// The file.
    pub path: PathBuf,
    /// Save after so many steps, besides the end of every epoch.
    pub every_steps: Option<u64>,
    /// Whether to go on from the file if it is there.
    pub resume: bool,
}

/// Who watches a run.
pub trait Observer {
    /// The run starts, at this step of so many.
    fn started(&mut self, step: u64, steps: u64) {
        let _ = (step, steps);
    }
    /// A step is done.
    fn step(&mut self, report: &StepReport) {
        let _ = report;
    }
    /// What rounding did in the step of that number, from 0, which is done and was looked at.
    fn telemetry(&mut self, step: u64, tensors: &[TensorReport]) {
        let _ = (step, tensors);
    }
    /// An epoch is done.
    fn epoch(&mut self, report: &EpochReport) {
        let _ = report;
    }
    /// Whether the run should save and stop.
    fn stop_requested(&self) -> bool {
        false
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Steps done in all.
    pub step: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// Loss of the batch.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Seconds that the step took.
    pub seconds: f64,
}

/// Sums over the steps of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Sum of the losses of all images.
    pub loss: f64,
    /// Images whose class was right.
    pub correct: u64,
    /// Images.
    pub images: u64,
}

/// What an epoch gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// The epoch, from 1.
    pub epoch: u64,
    /// Mean training loss over the epoch.
    pub loss: f64,
    /// Share of training images that were right, over the epoch.
    pub accuracy: f64,
    /// Score on the validation images, where there are some.
    pub validation: Option<Score>,
}

/// How a network does on a set of images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Mean loss.
    pub loss: f64,
    /// Share of images that are right.
    pub accuracy: f64,
    /// Images.
    pub images: u64,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whether all epochs were done; if not, the run was asked to stop and has saved.
    pub finished: bool,
    /// Every epoch.
    pub history: Vec<EpochReport>,
    /// Score on the test images after the last epoch; `None` if the run was stopped.
    pub test: Option<Score>,
    /// What every tensor was held in.
    pub plan: Plan,
    /// Bytes that the optimizer held of the weights and biases of the plan after the last step, by role.
    pub state_bytes: BTreeMap<Role, usize>,
    /// The parameters and buffers.
    pub model: Vec<NamedTensor>,
    /// What became of the file of first values.
    pub loaded: Option<WeightsReport>,
    /// Median time of a step in seconds, over the steps of this process.
    pub step_seconds: Option<f64>,
    /// Steps done in all.
    pub steps: u64,
    /// Values that were not finite and were replaced, where schemes allow that.
    pub tally: Tally,
    /// What the loss was multiplied by in the end, where it was.
    pub loss_scale: Option<ScaleState>,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The rules do not fit.
    #[error(transparent)]
    Plan(Box<PlanError>),
    /// The data do not fit the job.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint cannot be read, written or used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The file of first values does not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A tensor of a checkpoint has the wrong shape.
    #[error("{path}: {mismatch}")]
    Shape {
        /// The file.
        path: String,
        /// The tensor.
        mismatch: ShapeMismatch,
    },
    /// Tensors that a checkpoint lacks or has too many.
    #[error(
        "{path} does not fit the network: missing {}; unexpected {}",
        list(missing),
        list(unexpected)
    )]
    Keys {
        /// The file.
        path: String,
        /// Tensors of the network that the file lacks.
        missing: Vec<String>,
        /// Keys of the file that the network lacks.
        unexpected: Vec<String>,
    },
    /// The loss or a tensor is not finite, or a scheme cannot hold a value.
    #[error("training went wrong at step {step} (loss {loss}): {what}")]
    Diverged {
        /// The step, from 0.
        step: u64,
        /// The loss of the step.
        loss: f64,
        /// The first tensor that went wrong.
        what: String,
    },
}

impl From<PlanError> for TrainError {
    fn from(e: PlanError) -> Self {
        Self::Plan(Box::new(e))
    }
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        _ if names.len() <= 5 => names.join(", "),
        _ => format!("{}, ... ({} in all)", names[..5].join(", "), names.len()),
    }
}

/// Trains a network, or only evaluates it where the job has no epochs.
pub(crate) fn train<N: Network>(
    blueprint: &Blueprint<N>,
    job: &TrainJob,
    observer: &mut dyn Observer,
) -> Result<Outcome, TrainError> {
    job.augment.check(job.plan.image)?;
    // A first build on the plain device learns the shapes: a pass in training mode would change running statistics.
    let shapes = Scope::root(job.seed);
    let (net, device) = plan::build(blueprint, &job.plan, &shapes)?;
    let mut all = plan::requested(&shapes, &job.plan)?;
    let untapped = plan::untapped(net.num_params(), &shapes);
    for phase in &mut all {
        phase.plan.untapped_parameters = untapped;
    }
    drop(net);
    let steps = job.splits.train.len().div_ceil(job.plan.batch) as u64 * job.epochs;
    phases::check_end(&job.plan.rules, job.epochs, Some(steps))?;

    let device = device.autodiff();
    let scope = Scope::root(job.seed);
    let mut net = N::build(&blueprint.options, job.plan.image, job.plan.classes, &scope, &device);
    let session = Session::new(job.seed);
    let sites = scope.sites();
    let first = &all[0].plan;
    first.apply(&sites, &session);
    let mut loaded = None;
    if let Some(weights) = &job.weights {
        let (report, tensors) = weights.taken(&params::shapes(&net), N::LEFT_OUT)?;
        let shape =
            |mismatch| TrainError::Shape { path: weights.path.display().to_string(), mismatch };
        net = params::load(net, tensors).map_err(shape)?.0;
        loaded = Some(report);
    }
    let optimizer = Optimizer::planned(job.plan.optimizer.clone(), first, &session);
    let mut progress = Progress::new(job.identity.clone());
    progress.loss_scale = job.loss_scale.as_ref().map(ScaleState::new);
    let mut run = Run {
        job,
        gradients: GradientTaps::new(&sites, &session),
        phase: 0,
        phases: all,
        sites,
        session,
        optimizer,
        progress,
        seconds: Vec::new(),
        device,
    };
    if let Some(save) = job.checkpoint.as_ref().filter(|c| c.resume && c.path.exists()) {
        let saved = Checkpoint::load(&save.path, &job.identity)?;
        let path = save.path.display().to_string();
        let (with, report) = params::load(net, saved.model)
            .map_err(|mismatch| TrainError::Shape { path: path.clone(), mismatch })?;
        let LoadReport { missing, unexpected, .. } = report;
        if !(missing.is_empty() && unexpected.is_empty()) {
            return Err(TrainError::Keys { path, missing, unexpected });
        }
        net = with;
        run.optimizer
            .restore(saved.progress.step, &net, saved.optimizer)
            .map_err(|e| checkpoint::foreign(&save.path, e))?;
        // What is remembered belongs to the phase of the step before.
        run.progress = saved.progress;
        run.enter_phase(1);
        run.session.restore_memories(saved.memory);
    }
    let (net, finished) = run.epochs(net, observer)?;
    let test = if finished { Some(run.evaluate(&net, &job.splits.test)?) } else { None };
    Ok(Outcome {
        finished,
        test,
        state_bytes: run.state_bytes(&run.phases[run.phase].plan),
        plan: plan::last(std::mem::take(&mut run.phases)),
        model: params::tensors(&net),
        loaded,
        step_seconds: median(&mut run.seconds),
        steps: run.progress.step,
        tally: run.tally(),
        loss_scale: run.progress.loss_scale,
        history: run.progress.history,
    })
}

fn median(seconds: &mut [f64]) -> Option<f64> {
    // The first steps warm caches and allocator up.
    let skip = (seconds.len() / 2).min(5);
    let rest = &mut seconds[skip..];
    rest.sort_by(f64::total_cmp);
    rest.get(rest.len() / 2).copied()
}

struct Run<'a> {
    job: &'a TrainJob<'a>,
    session: Arc<Session>,
    optimizer: Optimizer,
    progress: Progress,
    seconds: Vec<f64>,
    gradients: GradientTaps,
    /// In the order in which they start.
    phases: Vec<Phase>,
    /// The current one.
    phase: usize,
    sites: Vec<Arc<Site>>,
    device: Device,
}

impl Run<'_> {
    fn steps_per_epoch(&self) -> u64 {
        self.job.splits.train.len().div_ceil(self.job.plan.batch) as u64
    }

    /// What was replaced, by this process and by those before.
    fn tally(&self) -> Tally {
        let Progress { replaced_nans: nans, replaced_infinities: infinities, .. } = self.progress;
        self.session.tally().join(Tally { nans, infinities })
    }

    fn state_bytes(&self, plan: &Plan) -> BTreeMap<Role, usize> {
        let mut all = BTreeMap::new();
        for t in &plan.tensors {
            let (Some(moment), Some(field)) = (t.role.moment(), t.role.parameter()) else {
                continue;
            };
            let held = self.optimizer.parameter_bytes(&format!("{}.{field}", t.layer));
            if let Some(bytes) = held.get(moment) {
                *all.entry(t.role).or_default() += bytes;
            }
        }
        all
    }

    /// Lets the rules hold of the phase to which the next step belongs, or one that is `back` steps before it.
    fn enter_phase(&mut self, back: u64) {
        let Progress { epoch, step, step_in_epoch, .. } = self.progress;
        let epochs = epoch - u64::from(back > step_in_epoch && epoch > 0);
        let steps = step.saturating_sub(back);
        let started = |phase: &Phase| phase.has_started(epochs, steps);
        let current = self.phases.iter().rposition(started).unwrap_or(0);
        if current != self.phase {
            self.phase = current;
            let plan = &self.phases[current].plan;
            plan.apply(&self.sites, &self.session);
            self.optimizer.follow(plan, &self.session);
            self.gradients = GradientTaps::new(&self.sites, &self.session);
        }
    }

    /// Runs the epochs that are left. `false` if the observer asked to stop.
    fn epochs<N: Network>(
        &mut self,
        mut net: N,
        observer: &mut dyn Observer,
    ) -> Result<(N, bool), TrainError> {
        let job = self.job;
        let Splits { train, mean, std, .. } = job.splits;
        let loader = Loader::new(train, mean, std).augmented(job.augment, job.seed);
        let per_epoch = self.steps_per_epoch();
        let total = per_epoch * job.epochs;
        observer.started(self.progress.step, total);
        while self.progress.epoch < job.epochs {
            let order = epoch_order(train.len(), job.seed, self.progress.epoch);
            let done = usize::try_from(self.progress.step_in_epoch).unwrap_or(usize::MAX);
            for indices in order.chunks(job.plan.batch).skip(done) {
                let start = Instant::now();
                self.enter_phase(0);
                let factor = job.schedule.factor(self.progress.step, per_epoch, total);
                let lr = job.plan.optimizer.learning_rate() * factor;
                let number = self.progress.step;
                let is_sampled = job.telemetry_steps.is_some_and(|n| number.is_multiple_of(n));
                if is_sampled {
                    self.session.telemetry().start();
                }
                let (next, loss) = self.step(net, &loader, indices, lr)?;
                net = next;
                let seconds = start.elapsed().as_secs_f64();
                self.seconds.push(seconds);
                let (step, epoch) = (self.progress.step, self.progress.epoch);
                observer.step(&StepReport { step, epoch, loss, lr, seconds });
                if is_sampled {
                    observer.telemetry(number, &self.session.telemetry().finish());
                }
                if self.progress.step_in_epoch < per_epoch {
                    let due = job
                        .checkpoint
                        .as_ref()
                        .and_then(|c| c.every_steps)
                        .is_some_and(|n| step.is_multiple_of(n.max(1)));
                    let stop = observer.stop_requested();
                    if due || stop {
                        self.save(&net)?;
                    }
                    if stop {
                        return Ok((net, false));
                    }
                }
            }
            let validation = match job.splits.validation.len() {
                0 => None,
                _ => Some(self.evaluate(&net, &job.splits.validation)?),
            };
            let sums = std::mem::take(&mut self.progress.sums);
            let images = sums.images.max(1) as f64;
            self.progress.epoch += 1;
            self.progress.step_in_epoch = 0;
            let report = EpochReport {
                epoch: self.progress.epoch,
                loss: sums.loss / images,
                accuracy: sums.correct as f64 / images,
                validation,
            };
            observer.epoch(&report);
            self.progress.history.push(report);
            self.save(&net)?;
            if observer.stop_requested() && self.progress.epoch < job.epochs {
                return Ok((net, false));
            }
        }
        Ok((net, true))
    }

    fn save<N: Network>(&self, net: &N) -> Result<(), CheckpointError> {
        let Some(CheckpointJob { path, .. }) = &self.job.checkpoint else { return Ok(()) };
        let mut progress = self.progress.clone();
        let Tally { nans, infinities } = self.tally();
        (progress.replaced_nans, progress.replaced_infinities) = (nans, infinities);
        let checkpoint = Checkpoint {
            progress,
            model: params::tensors(net),
            optimizer: self.optimizer.state(),
            memory: self.session.memories(),
        };
        checkpoint.save(path)
    }

    /// One step: forward, backward, rounding of `dw` and `db`, clipping, update of parameters and moments.
    fn step<N: Network>(
        &mut self,
        net: N,
        loader: &Loader,
        indices: &[u32],
        lr: f64,
    ) -> Result<(N, f64), TrainError> {
        let job = self.job;
        self.session.set_step(self.progress.step);
        ops::save_memory(job.plan.saved == Saved::Packed);
        let labels: Vec<u8> = loader.labels(indices).collect();
        let x = batch(loader, indices, self.progress.epoch, &self.device);
        let logits = net.forward(x.clone());
        let loss = cross_entropy(logits.clone(), &labels, job.label_smoothing);
        let value = f64::from(loss.clone().into_scalar::<f32>());
        let right = engine::with_values(logits.without_autodiff(), |l| correct(l, &labels));
        if !value.is_finite() || self.session.problem().is_some() {
            return Err(self.diagnose(&net, &x, &labels, value));
        }
        let scale = self.progress.loss_scale.map_or(1.0, |state| state.scale);
        let mut grads = GradientsParams::from_grads(scaled(loss, scale).backward(), &net);
        let norm = self.gradients.round(&net, &mut grads);
        let net = if self.session.problem().is_none() {
            gradients::scale(&net, &mut grads, norm, scale, job.clip_norm);
            let net = self.optimizer.step(lr, net, &mut grads);
            if let Some(Problem { tensor, what, .. }) = self.session.take_problem() {
                let (step, what) = (self.progress.step, format!("{tensor}: {what}"));
                return Err(TrainError::Diverged { step, loss: value, what });
            }
            self.with_loss_scale(ScaleState::succeed);
            net
        } else if self.with_loss_scale(ScaleState::fail).unwrap_or(false) {
            // The network stays as it is, and the next step has a smaller scale.
            self.session.take_problem();
            net
        } else {
            return Err(self.diagnose(&net, &x, &labels, value));
        };
        self.progress.step += 1;
        self.progress.step_in_epoch += 1;
        let sums = &mut self.progress.sums;
        sums.loss += value * indices.len() as f64;
        sums.correct += right as u64;
        sums.images += indices.len() as u64;
        Ok((net, value))
    }

    /// Lets the loss scale, where there is one, learn how a step went.
    fn with_loss_scale<R>(
        &mut self,
        learn: impl FnOnce(&mut ScaleState, &LossScale) -> R,
    ) -> Option<R> {
        let state = self.progress.loss_scale.as_mut()?;
        Some(learn(state, self.job.loss_scale.as_ref()?))
    }

    /// Repeats a step with every tap on the watch, to name the first tensor that goes wrong.
    fn diagnose<N: Network>(&self, net: &N, x: &Tensor<4>, labels: &[u8], loss: f64) -> TrainError {
        let known = self.session.take_problem();
        // A parameter is there before anything that is computed from it. Running statistics are not looked at: this step
        // changed them.
        if let Some((name, index, value)) = params::not_finite(net, true) {
            let what = format!("{name}: element {index} is {value}");
            return TrainError::Diverged { step: self.progress.step, loss, what };
        }
        self.session.set_audit(true);
        let logits = net.forward(x.clone());
        let smoothing = self.job.label_smoothing;
        let again = cross_entropy(logits, labels, smoothing);
        if self.session.problem().is_none() {
            let scale = self.progress.loss_scale.map_or(1.0, |state| state.scale);
            let mut grads = GradientsParams::from_grads(scaled(again, scale).backward(), net);
            self.gradients.round(net, &mut grads);
        }
        self.session.set_audit(false);
        let first = self.session.take_problem().or(known);
        let what = match first {
            Some(Problem { tensor, what, .. }) => format!("{tensor}: {what}"),
            None => "the loss itself; every tapped tensor before it is finite".into(),
        };
        TrainError::Diverged { step: self.progress.step, loss, what }
    }

    /// The first tensor that went wrong in an evaluation, and how.
    fn diagnose_evaluation<N: Network>(&self, net: &N, x: Tensor<4>) -> String {
        let known = self.session.take_problem();
        if let Some((name, index, value)) = params::not_finite(net, false) {
            return format!("{name}: element {index} is {value} (in evaluation)");
        }
        self.session.set_audit(true);
        net.forward(x);
        self.session.set_audit(false);
        match self.session.take_problem().or(known) {
            Some(Problem { tensor, what, .. }) => format!("{tensor}: {what} (in evaluation)"),
            None => "the loss in evaluation; every tapped tensor before it is finite".into(),
        }
    }

    /// The score on images, in the training batch size, without augmentation.
    fn evaluate<N: Network>(&self, net: &N, images: &Images) -> Result<Score, TrainError> {
        let Splits { mean, std, .. } = self.job.splits;
        let loader = Loader::new(images, mean, std);
        let net = net.valid();
        let device = self.device.clone().inner();
        let all: Vec<u32> = (0..u32::try_from(images.len()).unwrap_or(u32::MAX)).collect();
        let mut sums = Sums::default();
        self.session.set_evaluates(true);
        // The random numbers are those of the last step, also in a run that resumes after it.
        self.session.set_step(self.progress.step.saturating_sub(1));
        for indices in all.chunks(self.job.plan.batch) {
            let labels: Vec<u8> = loader.labels(indices).collect();
            let x = batch(&loader, indices, 0, &device);
            let logits = net.forward(x.clone());
            let loss = cross_entropy(logits.clone(), &labels, 0.0).into_scalar::<f32>();
            sums.loss += f64::from(loss) * indices.len() as f64;
            sums.correct += engine::with_values(logits, |l| correct(l, &labels)) as u64;
            sums.images += indices.len() as u64;
            if !loss.is_finite() || self.session.problem().is_some() {
                let (step, loss) = (self.progress.step, f64::from(loss));
                let what = self.diagnose_evaluation(&net, x);
                return Err(TrainError::Diverged { step, loss, what });
            }
        }
        self.session.set_evaluates(false);
        let count = sums.images.max(1) as f64;
        Ok(Score {
            loss: sums.loss / count,
            accuracy: sums.correct as f64 / count,
            images: sums.images,
        })
    }
}

/// The loss as the way back starts from it.
fn scaled(loss: Tensor<1>, scale: f32) -> Tensor<1> {
    // One is what most runs have, and the gradient is then taken as it comes.
    if scale.to_bits() == 1.0_f32.to_bits() { loss } else { loss.mul_scalar(scale) }
}

/// Images as a tensor `[batch, channels, height, width]`.
fn batch(loader: &Loader, indices: &[u32], epoch: u64, device: &Device) -> Tensor<4> {
    let images = loader.images();
    let mut values = vec![0.0; indices.len() * images.image_len()];
    loader.fill(indices, epoch, &mut values);
    let shape = [indices.len(), images.channels, images.height, images.width];
    Tensor::from_data(TensorData::new(values, shape), device)
}
