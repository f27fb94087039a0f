//! From a float ONNX model to a quantized one: calibrate, quantize, run both, and keep what a limit allows.

mod page;
mod rfc;

use std::path::Path;
use std::time::{Duration, Instant};

use scrimp_onnx::verify::{self, Comparison, Latency};
use scrimp_onnx::{
    Config, Data, Engine, Model, NodeRule, OnnxError, Progress, QuantizeError, Quantized, State,
    sensitivity,
};

use crate::feed::FeedError;
pub use crate::page::PageError;
pub use page::render;
pub use rfc::mode_of;

/// Why there is no quantized model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model could not be read or written.
    #[error("{}", in_file(path, reason))]
    Model {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        reason: OnnxError,
    },
    /// The data could not be read.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// Quantization failed.
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    /// No choice of layers keeps the limit.
    #[error(
        "even with every layer but one float, the drop is above {limit}; the model cannot be quantized so"
    )]
    Limit {
        /// The limit, as it was given.
        limit: f64,
    },
}

/// What is wrong with a model, after the name of its file, which errors of files say themselves.
fn in_file(path: &Path, reason: &OnnxError) -> String {
    match reason {
        OnnxError::File(error) => error.to_string(),
        other => format!("{}: {other}", path.display()),
    }
}

/// What is to be done.
#[derive(Debug)]
pub struct Job<'a> {
    /// The configuration.
    pub config: Config,
    /// Data to calibrate with.
    pub calibration: &'a dyn Data,
    /// Data to judge with.
    pub evaluation: Option<&'a dyn Data>,
    /// The engine.
    pub engine: &'a dyn Engine,
    /// The largest drop of accuracy that is allowed, as a share: of right classes with labels, of same classes without.
    /// Layers go back to float, the worst first, until it is kept.
    pub max_drop: Option<f64>,
    /// Threads of the runs whose time is taken.
    pub threads: usize,
}

/// What came out.
#[derive(Debug)]
pub struct Outcome {
    /// The model, and what was done to it.
    pub quantized: Quantized,
    /// How it differs from the float model, with data to judge with.
    pub comparison: Option<Comparison>,
    /// Whether the engine ran it; it has loaded it in any case.
    pub ran: bool,
    /// How long both take, where they could be run.
    pub latency: Vec<Latency>,
    /// Layers that went back to float for the limit.
    pub fallback: Vec<String>,
    /// Each layer's error alone, the worst first; empty unless it was needed or asked for.
    pub layers: Vec<sensitivity::LayerError>,
    /// How far each tensor is from the float model, in the order of the graph; empty unless it was asked for.
    pub tensors: Vec<sensitivity::TensorError>,
    /// How long quantization took, judging left out.
    pub time: Duration,
}

/// Told what is going on: the stage, done, total. Answers whether to go on.
pub type Watch<'a> = &'a mut dyn FnMut(&'static str, usize, usize) -> bool;

/// Samples that tell the error of single layers.
const SENSITIVITY_SAMPLES: usize = 64;

/// Reads a model file.
///
/// # Errors
/// [`Error::Model`], naming the file.
pub fn open(path: &Path) -> Result<Model, Error> {
    Model::open(path).map_err(|reason| Error::Model { path: path.to_owned(), reason })
}

/// Writes a model file, and gives its bytes.
///
/// # Errors
/// [`Error::Model`], naming the file.
pub fn save(model: &Model, path: &Path) -> Result<u64, Error> {
    model.save(path).map_err(|reason| Error::Model { path: path.to_owned(), reason })
}

/// Does the job.
///
/// # Errors
/// See [`Error`].
pub fn run(
    model: &Model,
    job: &Job<'_>,
    analyse: bool,
    watch: Watch<'_>,
) -> Result<Outcome, Error> {
    let start = Instant::now();
    let quantized = quantize(model, &job.config, job, watch)?;
    let time = start.elapsed();
    let ran = verify::loads(job.engine, &quantized.model, job.calibration)?;
    let mut outcome = Outcome {
        comparison: compare(&quantized, job, watch)?,
        ran: ran || job.evaluation.is_some(),
        quantized,
        latency: Vec::new(),
        fallback: Vec::new(),
        layers: Vec::new(),
        tensors: Vec::new(),
        time,
    };
    if analyse || job.max_drop.is_some() {
        outcome.layers = layers(&outcome.quantized, job, watch)?;
    }
    if let Some(limit) = job.max_drop {
        keep(model, job, limit, &mut outcome, watch)?;
        outcome.time = start.elapsed();
    }
    if analyse {
        let first = First { data: job.calibration, count: SENSITIVITY_SAMPLES };
        outcome.tensors = sensitivity::tensors(&outcome.quantized, &first, job.engine)?;
    }
    if let Some(data) = job.evaluation {
        for batch in [1, 32] {
            let models = [model, &outcome.quantized.model];
            let latency = verify::latency(job.engine, models, data, batch, job.threads)?;
            if !outcome.latency.iter().any(|known| known.batch == latency.batch) {
                outcome.latency.push(latency);
            }
        }
    }
    Ok(outcome)
}

fn quantize(
    model: &Model,
    config: &Config,
    job: &Job<'_>,
    watch: Watch<'_>,
) -> Result<Quantized, QuantizeError> {
    scrimp_onnx::quantize(
        model,
        config,
        job.calibration,
        job.engine,
        &mut |progress| match progress {
            Progress::Calibration { done, total } => watch("calibrate", done, total),
            Progress::Weights { done, total } => watch("weights", done, total),
        },
    )
}

fn compare(
    quantized: &Quantized,
    job: &Job<'_>,
    watch: Watch<'_>,
) -> Result<Option<Comparison>, QuantizeError> {
    let Some(data) = job.evaluation else { return Ok(None) };
    let models = [&quantized.float, &quantized.model];
    verify::compare(job.engine, models, data, &mut |done, total| watch("verify", done, total))
        .map(Some)
}

/// The first samples of other data.
#[derive(Debug)]
struct First<'a> {
    data: &'a dyn Data,
    count: usize,
}

impl Data for First<'_> {
    fn len(&self) -> usize {
        self.count.min(self.data.len())
    }

    fn batch(&self, start: usize, end: usize) -> Result<Vec<(String, scrimp_onnx::Value)>, String> {
        self.data.batch(start, end)
    }
}

fn layers(
    quantized: &Quantized,
    job: &Job<'_>,
    watch: Watch<'_>,
) -> Result<Vec<sensitivity::LayerError>, QuantizeError> {
    let first = First { data: job.calibration, count: SENSITIVITY_SAMPLES };
    let pairs = job.config.profile.pair_per_reader;
    sensitivity::layers(quantized, &first, job.engine, pairs, &mut |done, total| {
        watch("layers", done, total)
    })
}

/// The drop of accuracy: of right classes with labels, else of same classes.
fn drop_of(comparison: Option<&Comparison>) -> Option<f64> {
    let classes = comparison?.classes?;
    match (classes.float, classes.quantized) {
        (Some(float), Some(quantized)) => Some(float - quantized),
        _ => Some(1.0 - classes.same),
    }
}

/// Takes the worst layers back to float, as few as keep the limit.
fn keep(
    model: &Model,
    job: &Job<'_>,
    limit: f64,
    outcome: &mut Outcome,
    watch: Watch<'_>,
) -> Result<(), Error> {
    let drop = drop_of(outcome.comparison.as_ref()).ok_or_else(|| {
        QuantizeError::Config(
            "a limit needs data to judge with, and a model whose first output is one value for each class".into(),
        )
    })?;
    if drop <= limit {
        return Ok(());
    }
    let order: Vec<String> = outcome.layers.iter().map(|layer| layer.node.clone()).collect();
    // Between `low` layers, which are too few, and `high`, which are enough.
    let (mut low, mut high) = (0, order.len());
    let mut best = None;
    while high - low > 1 {
        let middle = low.midpoint(high);
        let mut config = job.config.clone();
        config.rules.extend(order[..middle].iter().map(|name| NodeRule::float(name)));
        let quantized = quantize(model, &config, job, watch)?;
        let comparison = compare(&quantized, job, watch)?;
        if drop_of(comparison.as_ref()).is_some_and(|drop| drop <= limit) {
            high = middle;
            best = Some((quantized, comparison));
        } else {
            low = middle;
        }
    }
    let Some((quantized, comparison)) = best else { return Err(Error::Limit { limit }) };
    outcome.quantized = quantized;
    outcome.comparison = comparison;
    outcome.fallback = order[..high].to_vec();
    Ok(())
}

/// How many nodes of each operator have codes, only weights as codes, or neither, in the order of the graph.
pub fn census(quantized: &Quantized) -> Vec<Count> {
    let mut counts: Vec<Count> = Vec::new();
    for node in &quantized.plan.nodes {
        let at = counts.iter().position(|count| count.op == node.op).unwrap_or_else(|| {
            counts.push(Count { op: node.op.clone(), ..Count::default() });
            counts.len() - 1
        });
        let count = &mut counts[at];
        match node.state {
            State::Quantized => count.quantized += 1,
            State::Weights => count.weights += 1,
            State::Passing | State::Cut => count.passing += 1,
            State::Float(_) => count.float += 1,
        }
    }
    counts
}

/// Nodes of one operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// The operator.
    pub op: String,
    /// Nodes that read and give codes.
    pub quantized: usize,
    /// Nodes with weights as codes alone.
    pub weights: usize,
    /// Nodes that pass codes on or disappear into them.
    pub passing: usize,
    /// Nodes that stay float.
    pub float: usize,
}
