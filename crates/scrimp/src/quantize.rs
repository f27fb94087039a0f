//! From a float ONNX model to a quantized one: calibrate, quantize, run both, and keep what a limit allows.

mod bytes;
mod page;
mod rfc;
mod trials;

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
pub use trials::Trials;

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
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] scrimp_files::FileError),
    /// The file that keeps trials is none, or of something else.
    #[error("{} does not fit: {reason}", path.display())]
    Trials {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        reason: String,
    },
    /// No choice of schemes is small enough.
    #[error(
        "the limit is {limit} bytes, and with the fewest bits everywhere the model has about {least}"
    )]
    Bytes {
        /// The limit.
        limit: u64,
        /// What is left with the fewest bits.
        least: u64,
    },
    /// No choice of layers keeps the limit.
    #[error(
        "even with every layer but one float, the drop is above {limit}; the model cannot be quantized so"
    )]
    Limit {
        /// The limit, as it was given.
        limit: f64,
    },
}

impl Error {
    /// A choice that does not fit the model.
    fn config(reason: impl Into<String>) -> Self {
        Self::Quantize(QuantizeError::Config(reason.into()))
    }
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
    /// What the model has to keep, if anything.
    pub limit: Option<Limit>,
    /// Threads of the runs whose time is taken.
    pub threads: usize,
}

/// What a model has to keep, by a search for the choice of schemes that does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// The largest drop of accuracy, as a share: of right classes with labels, of same classes without. Layers go back to
    /// float, the worst first, until it is kept.
    Drop(f64),
    /// The most bytes of the file. Layers get fewer bits, those that lose least first, until it has no more.
    Bytes(u64),
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
    /// Layers that got fewer bits for the limit, and their schemes.
    pub fewer: Vec<(String, String)>,
    /// Each layer's error alone, the worst first; empty unless it was needed or asked for.
    pub layers: Vec<sensitivity::LayerError>,
    /// How far each tensor is from the float model, in the order of the graph; empty unless it was asked for.
    pub tensors: Vec<sensitivity::TensorError>,
    /// How long quantization took, judging left out.
    pub time: Duration,
}

/// What is going on.
#[derive(Clone, Copy, Debug)]
pub enum News {
    /// A stage, and how much of it is done.
    Stage {
        /// Its name.
        stage: &'static str,
        /// Units done.
        done: usize,
        /// Units in all.
        total: usize,
    },
    /// A search for a limit begins.
    Search(Search),
}

/// Told what is going on; answers whether to go on.
pub type Watch<'a> = &'a mut dyn FnMut(News) -> bool;

/// How long a search for a limit will take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Search {
    /// Layers that are still to be measured alone.
    pub layers: usize,
    /// How long one took.
    pub layer_time: Duration,
    /// Models that are made at most.
    pub trials: usize,
    /// How long the first took, with judging.
    pub trial_time: Duration,
    /// Measurements that were kept from before.
    pub kept: usize,
    said: bool,
}

impl Search {
    /// The time in all, at most.
    pub fn time(&self) -> Duration {
        let times = |time: Duration, count: usize| time.as_secs_f64() * count as f64;
        let all = times(self.layer_time, self.layers) + times(self.trial_time, self.trials);
        Duration::try_from_secs_f64(all).unwrap_or(Duration::MAX)
    }

    /// Measures a layer; after the first it is known how long the search takes.
    fn timed<T>(&mut self, watch: Watch<'_>, measure: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let found = measure();
        if !self.said {
            self.layer_time = start.elapsed();
            self.say(watch);
        }
        found
    }

    /// Says how long it takes, once.
    fn say(&mut self, watch: Watch<'_>) {
        if !self.said {
            self.said = true;
            watch(News::Search(*self));
        }
    }
}

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

/// Does the job. What a search for a limit measures is kept in `trials`.
///
/// # Errors
/// See [`Error`].
pub fn run(
    model: &Model,
    job: &Job<'_>,
    trials: &mut Trials,
    analyse: bool,
    watch: Watch<'_>,
) -> Result<Outcome, Error> {
    let rules = job.config.rules.iter().filter_map(|rule| rule.weights.as_ref());
    let mut schemes = std::iter::once(&job.config.weights).chain(rules);
    if let Some(spec) = schemes.find(|spec| !job.engine.runs_weights(spec.name)) {
        return Err(Error::config(format!(
            "{} runs no weights in {}, so the model could not be checked; rten, which computes them back to floats, runs all",
            job.engine.version(),
            spec.name
        )));
    }
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
        fewer: Vec::new(),
        layers: Vec::new(),
        tensors: Vec::new(),
        time,
    };
    let mut search = Search {
        trial_time: start.elapsed(),
        kept: trials.len(),
        // Where no limit is searched for, there is nothing to say.
        said: job.limit.is_none(),
        ..Search::default()
    };
    if let Some(Limit::Bytes(limit)) = job.limit {
        bytes::keep(limit, &mut outcome, (job, &mut search), model, trials, watch)?;
        outcome.time = start.elapsed();
    }
    let too_far = match job.limit {
        Some(Limit::Drop(limit)) if drop_for(&outcome)? > limit => Some(limit),
        _ => None,
    };
    if too_far.is_some() {
        outcome.layers = layers(&outcome.quantized, job, &mut search, trials, watch)?;
    } else if analyse {
        // The layers of a model that a search has found are no part of the search.
        let mut apart = Trials::forgotten();
        search.said = true;
        outcome.layers = layers(&outcome.quantized, job, &mut search, &mut apart, watch)?;
    }
    if let Some(limit) = too_far {
        keep(model, job, limit, &mut outcome, trials, watch)?;
        outcome.time = start.elapsed();
    }
    if analyse {
        outcome.tensors =
            sensitivity::tensors(&outcome.quantized, &first_samples(job), job.engine)?;
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
            Progress::Calibration { done, total } => {
                watch(News::Stage { stage: "calibrate", done, total })
            }
            Progress::Weights { done, total } => {
                watch(News::Stage { stage: "weights", done, total })
            }
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
    verify::compare(job.engine, models, data, &mut |done, total| {
        watch(News::Stage { stage: "verify", done, total })
    })
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

/// The samples that tell the error of single layers.
fn first_samples<'a>(job: &'a Job<'_>) -> First<'a> {
    First { data: job.calibration, count: SENSITIVITY_SAMPLES }
}

/// The error of each layer alone, the worst first.
fn layers(
    quantized: &Quantized,
    job: &Job<'_>,
    search: &mut Search,
    trials: &mut Trials,
    watch: Watch<'_>,
) -> Result<Vec<sensitivity::LayerError>, Error> {
    let first = first_samples(job);
    let pairs = job.config.profile.pair_per_reader;
    let alone = sensitivity::Alone::new(quantized, &first, job.engine, pairs)?;
    let nodes = sensitivity::measurable(quantized);
    let name = |at: usize| format!("{} {}", job.config.weights.text, quantized.plan.nodes[at].name);
    search.layers = nodes.iter().filter(|&&at| trials.get(&name(at)).is_none()).count();
    // The number of layers is halved until one is left.
    search.trials = nodes.len().next_power_of_two().ilog2() as usize;
    let mut errors = Vec::with_capacity(nodes.len());
    for (done, &at) in nodes.iter().enumerate() {
        if !watch(News::Stage { stage: "layers", done, total: nodes.len() }) {
            return Err(QuantizeError::Stopped.into());
        }
        let error = if let Some(sqnr_db) = trials.get(&name(at)) {
            let node = &quantized.plan.nodes[at];
            sensitivity::LayerError { node: node.name.clone(), op: node.op.clone(), sqnr_db }
        } else {
            let error = search.timed(watch, || alone.error(at))?;
            trials.keep(name(at), error.sqnr_db)?;
            error
        };
        errors.push(error);
    }
    search.say(watch);
    errors.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    Ok(errors)
}

/// The drop of accuracy: of right classes with labels, else of same classes.
fn drop_of(comparison: Option<&Comparison>) -> Option<f64> {
    let classes = comparison?.classes?;
    match (classes.float, classes.quantized) {
        (Some(float), Some(quantized)) => Some(float - quantized),
        _ => Some(1.0 - classes.same),
    }
}

/// The drop of accuracy, where a limit asks for it.
fn drop_for(outcome: &Outcome) -> Result<f64, Error> {
    drop_of(outcome.comparison.as_ref()).ok_or_else(|| {
        Error::config(
            "a limit needs data to judge with, and a model whose first output is one value for each class",
        )
    })
}

/// Takes the worst layers back to float, as few as keep the limit.
fn keep(
    model: &Model,
    job: &Job<'_>,
    limit: f64,
    outcome: &mut Outcome,
    trials: &mut Trials,
    watch: Watch<'_>,
) -> Result<(), Error> {
    let order: Vec<String> = outcome.layers.iter().map(|layer| layer.node.clone()).collect();
    // Between `low` layers, which are too few, and `high`, which are enough.
    let (mut low, mut high) = (0, order.len());
    let mut best = None;
    let mut without = |count: usize| -> Result<_, QuantizeError> {
        let mut config = job.config.clone();
        config.rules.extend(order[..count].iter().map(|name| NodeRule::float(name)));
        let quantized = quantize(model, &config, job, watch)?;
        let comparison = compare(&quantized, job, watch)?;
        Ok((quantized, comparison))
    };
    while high - low > 1 {
        let middle = low.midpoint(high);
        let name = format!("float {middle}");
        let (drop, made) = if let Some(drop) = trials.get(&name) {
            (drop, None)
        } else {
            let made = without(middle)?;
            let drop = drop_of(made.1.as_ref()).unwrap_or(f64::INFINITY);
            trials.keep(name, drop)?;
            (drop, Some(made))
        };
        if drop <= limit {
            high = middle;
            best = made;
        } else {
            low = middle;
        }
    }
    if high == order.len() {
        return Err(Error::Limit { limit });
    }
    // A drop that was kept from before has no model.
    let (quantized, comparison) = match best {
        Some(best) => best,
        None => without(high)?,
    };
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
