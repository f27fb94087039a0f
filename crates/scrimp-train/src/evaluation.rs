//! A trained network with the tensors that its plan rounds, run on images: what it answers, and in which ranges its
//! activations lie.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use scrimp_codec::{Scheme, SchemeError};

use crate::engine;
use crate::models::{Blueprint, Network};
use crate::params::{self, LoadReport, NamedTensor};
use crate::plan::{self, Plan, PlanRequest};
use crate::role::Role;
use crate::tap::{Problem, Scope, Session};
use crate::telemetry::TensorReport;
use crate::trainer::TrainError;

/// Which network is run, and how.
#[derive(Clone, Debug)]
pub struct EvaluationJob {
    /// The network's input and the rules, of which those count that hold at the end.
    pub plan: PlanRequest,
    /// The file of the parameters, for errors.
    pub path: PathBuf,
    /// All parameters and buffers; `None`: the first values of the seed.
    pub tensors: Option<Vec<NamedTensor>>,
    /// The run's seed.
    pub seed: u32,
    /// The last training step, whose random numbers round.
    pub step: u64,
    /// What is held in another way than in training.
    pub held: Held,
}

/// Activations that are held in another way than the rules say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// Those whose scale is that of a range which is known before; all others have one of their own in each batch.
    pub fixed: Vec<FixedRange>,
    /// Those that are not rounded.
    pub floats: Vec<(String, Role)>,
}

/// The range that the scale of an activation goes by.
#[derive(Clone, Debug, PartialEq)]
pub struct FixedRange {
    /// Path of the layer.
    pub layer: String,
    /// `x` or `y`.
    pub role: Role,
    /// The least value.
    pub min: f32,
    /// The greatest value.
    pub max: f32,
}

/// A network that answers.
pub trait Evaluator {
    /// Its parameters and buffers, as they are before they are rounded.
    fn tensors(&self) -> Vec<NamedTensor>;

    /// Logits `[batch, classes]` of normalized images `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// Names the first tensor that its scheme cannot hold.
    fn logits(&mut self, images: &[f32]) -> Result<Vec<f32>, Problem>;

    /// The same, and what each tensor was that the plan speaks of.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    fn observe(&mut self, images: &[f32]) -> Result<(Vec<f32>, Vec<TensorReport>), Problem>;
}

/// A network that answers, for its [`ModelEntry`](crate::models::ModelEntry).
pub(crate) fn evaluator<N: Network>(
    blueprint: &Blueprint<N>,
    job: EvaluationJob,
) -> Result<Box<dyn Evaluator>, TrainError> {
    let EvaluationJob { plan: request, path, tensors, seed, step, held } = job;
    let scope = Scope::root(seed);
    let (net, device) = plan::build(blueprint, &request, &scope)?;
    let mut plan = plan::last(plan::requested(&scope, &request)?);
    change(&mut plan, &held);
    let fixed = held.fixed;
    let path = path.display().to_string();
    let net = match tensors {
        None => net,
        Some(tensors) => {
            let (net, report) = params::load(net, tensors)
                .map_err(|mismatch| TrainError::Shape { path: path.clone(), mismatch })?;
            let LoadReport { missing, unexpected, .. } = report;
            if !(missing.is_empty() && unexpected.is_empty()) {
                return Err(TrainError::Keys { path, missing, unexpected });
            }
            net
        }
    };
    let session = Session::new(seed);
    plan.apply(&scope.sites(), &session);
    session.set_step(step);
    // A scheme goes by what it remembers only where the network learns.
    session.set_evaluates(fixed.is_empty());
    let fixed = fixed.iter().map(remembered).collect();
    Ok(Box::new(Evaluation { net, device, session, image: request.image, fixed }))
}

/// Gives every activation whose range is known a scheme that goes by it, and those that are not rounded none.
fn change(plan: &mut Plan, Held { fixed, floats }: &Held) {
    for tensor in &mut plan.tensors {
        let is_it = |layer: &str, role: Role| tensor.layer == layer && tensor.role == role;
        if floats.iter().any(|(layer, role)| is_it(layer, *role)) {
            tensor.scheme = Scheme::float32();
        } else if fixed.iter().any(|range| is_it(&range.layer, range.role))
            && let Ok(scheme) = delayed(&tensor.scheme)
        {
            tensor.scheme = scheme;
        }
    }
}

/// The scheme whose scale goes by the tensor before.
fn delayed(scheme: &Scheme) -> Result<Scheme, SchemeError> {
    let text = scheme.to_string();
    let plain = text.split("/delayed:").next().unwrap_or_default();
    format!("{plain}/delayed:1").parse()
}

fn remembered(FixedRange { layer, role, min, max }: &FixedRange) -> NamedTensor {
    NamedTensor { name: format!("{layer}.{role}"), shape: vec![2], values: vec![*min, *max] }
}

struct Evaluation<N> {
    net: N,
    device: Device,
    session: Arc<Session>,
    image: [usize; 3],
    /// What schemes remember before each batch.
    fixed: Vec<NamedTensor>,
}

impl<N: Network> Evaluator for Evaluation<N> {
    fn tensors(&self) -> Vec<NamedTensor> {
        params::tensors(&self.net)
    }

    fn logits(&mut self, images: &[f32]) -> Result<Vec<f32>, Problem> {
        let [channels, height, width] = self.image;
        let shape = [images.len() / self.image.iter().product::<usize>(), channels, height, width];
        if !self.fixed.is_empty() {
            self.session.restore_memories(self.fixed.clone());
        }
        let x = Tensor::from_data(TensorData::new(images.to_vec(), shape), &self.device);
        let logits = self.net.forward(x);
        match self.session.take_problem() {
            Some(problem) => Err(problem),
            None => Ok(engine::values_of(logits)),
        }
    }

    fn observe(&mut self, images: &[f32]) -> Result<(Vec<f32>, Vec<TensorReport>), Problem> {
        self.session.telemetry().start();
        let logits = self.logits(images);
        let reports = self.session.telemetry().finish();
        Ok((logits?, reports))
    }
}
