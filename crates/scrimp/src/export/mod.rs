//! A trained network as an ONNX model.
//!
//! The graph is the one that the network's own forward pass gives ([`scrimp_train::trace`]), so every model of the registry
//! can be exported. In float the weights are those of the run, and nothing is rounded. Quantized, weights are the codes of
//! their schemes, and activations pass pairs of `QuantizeLinear` and `DequantizeLinear` with scales that do not change: the
//! range is the one that the scheme remembers (`delayed:N`), or else the one that calibration finds. What ONNX has no operators for stays
//! float, with the reason.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use scrimp_onnx::proto::StringStringEntryProto;
use scrimp_onnx::{EngineError, Model, OnnxError};
use scrimp_train::data::{Loader, Splits};
use scrimp_train::evaluation::{EvaluationJob, Evaluator, Held};
use scrimp_train::models::{self, ModelEntry};
use scrimp_train::params::NamedTensor;
use scrimp_train::plan::{PlanError, PlanRequest};
use scrimp_train::tap::Problem;
use scrimp_train::trace::Trace;
use scrimp_train::trainer::TrainError;

use crate::run::{RunError, TrainedRun};

mod check;
mod graph;
mod rounded;

pub use check::{Check, Reference};
pub use rounded::{As, RangeSource, RoundedTensor};

/// The version of the standard operators that a float model needs.
const OPSET: i64 = 17;
/// The version of the file format that goes with it.
const IR_VERSION: i64 = 8;
/// The input's name.
pub const INPUT: &str = "input";
/// The output's name.
pub const OUTPUT: &str = "logits";

/// How to export a run.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// Whether tensors are rounded as the run's rules say.
    pub quantized: bool,
    /// Training images that ranges are found on, where no scheme remembers them.
    pub samples: usize,
    /// Where data sets lie; `None`: where `SCRIMP_DATA` says.
    pub data_dir: Option<PathBuf>,
    /// The device.
    pub device: String,
}

/// A model that was made from a run.
#[derive(Debug)]
pub struct Exported {
    /// The model.
    pub model: Model,
    /// What became of each tensor that the run rounds: all of them in a quantized model, none of them in a float one.
    pub tensors: Vec<RoundedTensor>,
    /// Values of weights, biases and statistics.
    pub parameters: usize,
    /// How many training images ranges were found on; 0 where none had to be found.
    pub samples: usize,
    /// What of the network's activations is another in the model.
    held: Held,
    splits: Arc<Splits>,
}

/// Why a run could not be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The run, its recipe or its data.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The network.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The model.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The engine that the model is checked in.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A tensor that a scheme cannot hold.
    #[error("{0}")]
    Problem(Problem),
    /// Nothing of a quantized model would be rounded.
    #[error("`{variant}` rounds no weight and no activation, so there is nothing to quantize")]
    Float {
        /// The variant.
        variant: String,
    },
    /// No image to find ranges on.
    #[error("ranges are found on training images, and 0 of them tell nothing")]
    NoSamples,
    /// The model does not compute what the network does.
    #[error(
        "the model computes something else than the network: logits differ by {difference:e} of the largest; this is a defect of scrimp"
    )]
    Differs {
        /// As a share of the largest logit.
        difference: f64,
    },
}

impl From<PlanError> for ExportError {
    fn from(error: PlanError) -> Self {
        Self::Train(error.into())
    }
}

/// Makes an ONNX model of a trained network.
///
/// # Errors
/// If the data cannot be had, or a scheme cannot hold a value on the way.
///
/// # Panics
/// If the recipe's model does not exist, which reading it has checked.
pub fn export(run: &TrainedRun, request: &ExportRequest) -> Result<Exported, ExportError> {
    let recipe = &run.source.recipe;
    let entry = models::find(&recipe.model).expect("the model was checked");
    let plan_request = run.variant.request(recipe, &request.device);
    let trace = (entry.trace)(&plan_request)?;
    let splits = run.splits(request.data_dir.as_deref())?;
    let values = by_name(&run.tensors);
    let mut exported = Exported {
        model: float_model(&trace, &run.tensors, &recipe.model),
        tensors: Vec::new(),
        parameters: run.tensors.iter().map(|t| t.values.len()).sum(),
        samples: 0,
        held: Held::default(),
        splits,
    };
    if request.quantized {
        let plan = (entry.plan)(&plan_request)?;
        let wanted = rounded::wanted(&plan);
        if wanted.is_empty() {
            return Err(ExportError::Float { variant: run.variant.name.clone() });
        }
        let known = rounded::remembered(&wanted, &run.memory);
        let ranges = if rounded::all_known(&wanted, &known) {
            known
        } else {
            if request.samples == 0 {
                return Err(ExportError::NoSamples);
            }
            let evaluator = evaluator(entry, run, plan_request.clone(), Held::default())?;
            let Splits { train, mean, std, .. } = &*exported.splits;
            let loader = Loader::new(train, mean, std);
            exported.samples = request.samples.min(train.len());
            rounded::calibrated(
                evaluator,
                &loader,
                known,
                run.seed,
                exported.samples,
                recipe.batch,
            )?
        };
        let rounding =
            rounded::Rounding::new(&wanted, &values, &ranges, run.seed, run.last_step())?;
        exported.held = rounding.held();
        *exported.model.graph_mut() = graph::graph(&trace, &values, &rounding, &recipe.model);
        exported.model.set_opset(rounding.opset);
        exported.tensors = rounding.tensors;
    }
    exported.model.proto.metadata_props = metadata(run, &exported.splits);
    Ok(exported)
}

/// The float model of a network with these parameters and buffers.
///
/// # Panics
/// If one is missing that the network has.
pub fn float_model(trace: &Trace, tensors: &[NamedTensor], name: &str) -> Model {
    let values = by_name(tensors);
    let graph = graph::graph(trace, &values, &rounded::Rounding::default(), name);
    Model::new(graph, OPSET, IR_VERSION)
}

fn by_name(tensors: &[NamedTensor]) -> BTreeMap<&str, &NamedTensor> {
    tensors.iter().map(|t| (t.name.as_str(), t)).collect()
}

/// The network, with what is held in another way than in training.
fn evaluator(
    entry: &ModelEntry,
    run: &TrainedRun,
    plan: PlanRequest,
    held: Held,
) -> Result<Box<dyn Evaluator>, TrainError> {
    (entry.evaluator)(EvaluationJob {
        plan,
        path: run.file.clone(),
        tensors: Some(run.tensors.clone()),
        seed: run.seed,
        step: run.last_step(),
        held,
    })
}

/// What a reader of the model needs to know of the run.
fn metadata(run: &TrainedRun, splits: &Splits) -> Vec<StringStringEntryProto> {
    let recipe = &run.source.recipe;
    let list = |numbers: &[f32]| numbers.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
    let mut entries = vec![
        ("mean", list(&splits.mean)),
        ("std", list(&splits.std)),
        ("scrimp.model", recipe.model.clone()),
        ("scrimp.data", recipe.data.clone()),
        ("scrimp.variant", run.variant.name.clone()),
        ("scrimp.seed", run.seed.to_string()),
        ("scrimp.steps", run.steps.to_string()),
        ("scrimp.recipe.sha256", run.recipe_sha256.clone()),
    ];
    if !splits.class_names.is_empty() {
        // A name may hold a comma, so the list is JSON.
        let labels = serde_json::to_string(&splits.class_names).unwrap_or_default();
        entries.insert(2, ("labels", labels));
    }
    let entry = |(key, value): (&str, String)| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    };
    entries.into_iter().map(entry).collect()
}
