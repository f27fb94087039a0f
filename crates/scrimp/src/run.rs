//! Carrying out a recipe: one run for each variant and seed, in a run folder that tells everything.
//!
//! ```text
//! runs/quickstart-1/
//!   recipe.toml                 the recipe with every default written out
//!   result.json                 one row for each variant
//!   metrics.jsonl               every epoch of every run, and every tensor of steps that were looked at, as they came
//!   int8/seed-7/
//!     plan.json                 what every tensor was held in, and which rule said so
//!     checkpoint.safetensors    from which the run resumes
//!     model.safetensors         parameters and buffers in f32
//!     model.packed.safetensors  the weights and biases as the bytes of their schemes
//!     ledger.json               bytes by role, counted
//!     result.json               accuracy, loss, time; written last
//!     failure.json              instead of a result: why the training went wrong
//!     events.out.tfevents.scrimp  scalars by step for TensorBoard, where the recipe asks for them
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use scrimp_codec::Stream;
use scrimp_files::{Dtype, Entry, FileError, Storage};
use scrimp_train::Role;
use scrimp_train::checkpoint::CheckpointError;
use scrimp_train::data::{self, DataError, DataRequest, Splits};
use scrimp_train::loss_scale::ScaleState;
use scrimp_train::models;
use scrimp_train::params::NamedTensor;
use scrimp_train::plan::{Plan, Saved, Status, Total};
use scrimp_train::telemetry::TensorReport;
use scrimp_train::trainer::{
    CheckpointJob, EpochReport, Observer, Outcome, Score, StepReport, TrainError, TrainJob,
};
use scrimp_train::weights::{FirstValues, WeightsReport};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::events::{self, EventFile};
use crate::page::PageError;
use crate::recipe::{Recipe, RecipeError, Source, TelemetryConfig, Variant, WeightsConfig};

mod trained;

pub use trained::TrainedRun;

/// What to carry out, and where.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// The recipe.
    pub source: Source,
    /// The run folder.
    pub folder: PathBuf,
    /// Whether the folder holds an earlier part of this run.
    pub resume: bool,
    /// Where data sets lie; `None`: where `SCRIMP_DATA` says.
    pub data_dir: Option<PathBuf>,
    /// The device.
    pub device: String,
    /// Whether to add a run without any rule.
    pub baseline: bool,
    /// How many seeds, counted up from the recipe's.
    pub seeds: u32,
}

/// Who watches.
pub trait Watch {
    /// The data are there and the runs are known.
    fn begin(&mut self, facts: &Facts) {
        let _ = facts;
    }
    /// A run begins; `steps` is its length, `done` how much of it an earlier part did.
    fn run(&mut self, run: &RunId, done: u64, steps: u64) {
        let _ = (run, done, steps);
    }
    /// A step is done.
    fn step(&mut self, report: &StepReport) {
        let _ = report;
    }
    /// An epoch is done.
    fn epoch(&mut self, run: &RunId, report: &EpochReport) {
        let _ = (run, report);
    }
    /// A run is done; `resumed` if it was already.
    fn finished(&mut self, run: &RunId, result: &RunResult, resumed: bool) {
        let _ = (run, result, resumed);
    }
    /// A run of a sweep went wrong, and the next one comes.
    fn failed(&mut self, run: &RunId, reason: &str) {
        let _ = (run, reason);
    }
    /// So many runs of a sweep are left, the one that begins now included, with so many steps.
    fn left(&mut self, runs: usize, steps: u64) {
        let _ = (runs, steps);
    }
    /// Whether to save and stop.
    fn stop_requested(&self) -> bool {
        false
    }
}

/// What is known before the first run.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The data set.
    pub data: String,
    /// The model.
    pub model: String,
    /// The first seed.
    pub seed: u32,
    /// Where the data come from.
    pub data_note: String,
    /// Images to train on, to validate on, to test on.
    pub images: [usize; 3],
    /// Values in the network's parameters and buffers.
    pub parameters: usize,
    /// What became of the file of first values.
    pub weights: Option<WeightsReport>,
    /// How many runs there are.
    pub runs: usize,
}

/// Which run of how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunId {
    /// From 1.
    pub number: usize,
    /// How many there are.
    pub of: usize,
    /// What tables and lines call it: the variant, or in a sweep the point, or both.
    pub label: String,
    /// The point of a sweep that it belongs to.
    pub point: Option<String>,
    /// The variant.
    pub variant: String,
    /// The seed.
    pub seed: u32,
    /// Epochs.
    pub epochs: u64,
}

/// The sizes of a role's tensors together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleSize {
    /// Values; for activations and their gradients those of one step.
    pub values: usize,
    /// Bits per value, scales included.
    pub bits: f64,
    /// Bytes, scales included.
    pub bytes: usize,
    /// Bytes in f32.
    pub f32_bytes: usize,
}

/// The gradients of a layer's tensors.
pub const GRADIENTS: [Role; 4] =
    [Role::OutputGrad, Role::InputGrad, Role::WeightGrad, Role::BiasGrad];

/// The sizes of tensors by role.
pub type RoleSizes = BTreeMap<Role, RoleSize>;

/// Bytes of the tensors of some roles together.
pub fn bytes(sizes: &RoleSizes, of: &[Role]) -> usize {
    of.iter().filter_map(|role| sizes.get(role)).map(|size| size.bytes).sum()
}

/// Bits per value of the tensors of some roles together; `None` where there is no value.
pub fn bits(sizes: &RoleSizes, of: &[Role]) -> Option<f64> {
    let values: usize = of.iter().filter_map(|role| sizes.get(role)).map(|s| s.values).sum();
    (values > 0).then(|| bytes(sizes, of) as f64 * 8.0 / values as f64)
}

/// Whether every tensor is held in f32.
pub fn is_float(sizes: &RoleSizes) -> bool {
    sizes.values().all(|size| size.bytes == size.f32_bytes)
}

/// The sizes that a plan announces, but for roles whose bytes were counted.
pub(crate) fn role_sizes(plan: &Plan, counted: &BTreeMap<Role, usize>) -> RoleSizes {
    let size = |role: Role| {
        let Total { values, bytes } = plan.total(role);
        let total = Total { values, bytes: counted.get(&role).copied().unwrap_or(bytes) };
        let size =
            RoleSize { values, bits: total.bits(), bytes: total.bytes, f32_bytes: 4 * values };
        (values > 0).then_some((role, size))
    };
    Role::ALL.into_iter().filter_map(size).collect()
}

/// What one run gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The variant.
    pub variant: String,
    /// The seed.
    pub seed: u32,
    /// Score on the test images after the last epoch.
    pub test: Score,
    /// Score on the validation images after the last epoch.
    pub validation: Option<Score>,
    /// Epochs.
    pub epochs: u64,
    /// Steps.
    pub steps: u64,
    /// Median milliseconds of a step, over the last part of the run.
    pub step_ms: Option<f64>,
    /// Sizes by role.
    pub roles: RoleSizes,
    /// Bytes of the network's weights and biases, as stored in the packed model file (counted there).
    pub packed_bytes: u64,
    /// Bytes of the packed model file.
    pub packed_file_bytes: u64,
    /// Bytes of the f32 model file.
    pub file_bytes: u64,
    /// Values that were NaN or infinite and replaced, where schemes allow that.
    pub replaced_values: u64,
    /// What the loss was multiplied by in the end, and how many steps that skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<ScaleState>,
    /// What became of the file of first values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightsReport>,
}

/// Why a run has no result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFailure {
    /// The variant.
    pub variant: String,
    /// The seed.
    pub seed: u32,
    /// What went wrong in training.
    pub reason: String,
}

/// The file that tells a run folder from others.
pub(crate) const RECIPE: &str = "recipe.toml";

/// The file of every epoch of every run.
pub(crate) const METRICS: &str = "metrics.jsonl";

/// The file of a run's [`RunResult`].
pub(crate) const RESULT: &str = "result.json";

/// The file from which a run resumes.
const CHECKPOINT: &str = "checkpoint.safetensors";

/// The file of a run's parameters and buffers.
const MODEL: &str = "model.safetensors";

/// The file of a run's [`RunFailure`].
pub(crate) const FAILURE: &str = "failure.json";

/// Mean and standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the sample; 0 for one value.
    pub sd: f64,
}

impl Spread {
    /// Of some values.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n.max(1.0);
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Self { mean, sd: if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 } }
    }
}

/// A row of the final table: one variant over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The variant.
    pub variant: String,
    /// Test accuracy after the last epoch, a share of 1.
    pub accuracy: Spread,
    /// Median milliseconds of a step: the median over the seeds.
    pub step_ms: Option<f64>,
    /// Seeds.
    pub seeds: Vec<u32>,
    /// Sizes by role, and of files, which do not depend on the seed.
    #[serde(flatten)]
    pub sizes: Sizes,
}

/// Sizes of a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// By role.
    pub roles: RoleSizes,
    /// Bytes of weights and biases in the packed model file.
    pub packed_bytes: u64,
    /// Bytes of the packed model file.
    pub packed_file_bytes: u64,
    /// Bytes of the f32 model file.
    pub file_bytes: u64,
}

/// What a recipe gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// The data set.
    pub data: String,
    /// What became of the file of first values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightsReport>,
    /// One row for each variant.
    pub rows: Vec<Row>,
}

/// Why a recipe could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A run.
    #[error("run `{variant}`, seed {seed}: {problem}")]
    Train {
        /// The variant.
        variant: String,
        /// The seed.
        seed: u32,
        /// What went wrong.
        problem: Box<TrainError>,
    },
    /// The folder to resume is none, or belongs to another recipe.
    #[error("{folder}: {reason}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The page of a sweep.
    #[error(transparent)]
    Page(#[from] PageError),
    /// A point of a sweep.
    #[error("point `{point}`: {problem}")]
    Point {
        /// Its name.
        point: String,
        /// What went wrong.
        problem: Box<RunError>,
    },
    /// The run was asked to stop and has saved.
    #[error("stopped; everything is saved in {folder}")]
    Stopped {
        /// The run folder.
        folder: PathBuf,
    },
}

/// A run folder that does not exist yet: `runs/NAME-1`, or the first number that is free.
pub fn new_folder(runs: &Path, recipe: &Path) -> PathBuf {
    let name = recipe.file_stem().unwrap_or_default().to_string_lossy();
    (1..u32::MAX)
        .map(|n| runs.join(format!("{name}-{n}")))
        .find(|p| !p.exists())
        .unwrap_or_default()
}

/// Carries out a recipe.
///
/// # Errors
/// If the recipe does not fit, data or folder cannot be had, training goes wrong, or the watcher asks to stop.
pub fn run(request: &RunRequest, watch: &mut dyn Watch) -> Result<Report, RunError> {
    let work = Work::new(request.clone(), &mut Inputs::default())?;
    work.begin()?;
    watch.begin(&work.facts());
    let mut results = Vec::new();
    for id in work.runs() {
        results.push(work.carry_out(&id, watch)?);
    }
    work.finish(&results)
}

/// Data sets and first values that were read already, so that recipes which agree on them share them.
#[derive(Debug, Default)]
pub struct Inputs {
    splits: Vec<(String, DataRequest, Arc<Splits>)>,
    weights: Vec<(WeightsConfig, Arc<FirstValues>)>,
}

impl Inputs {
    fn splits(&mut self, recipe: &Recipe, dir: Option<&Path>) -> Result<Arc<Splits>, RunError> {
        let request = DataRequest {
            dir: dir.map(Path::to_owned),
            validation: recipe.validation,
            seed: recipe.seed,
            limit: recipe.limit,
            images: recipe.images.clone(),
        };
        let is_it = |(name, known, _): &&(String, DataRequest, Arc<Splits>)| {
            *name == recipe.data && *known == request
        };
        if let Some((_, _, splits)) = self.splits.iter().find(is_it) {
            return Ok(splits.clone());
        }
        let splits = Arc::new(data::find(&recipe.data)?.load(&request)?);
        self.splits.push((recipe.data.clone(), request, splits.clone()));
        Ok(splits)
    }

    fn weights(
        &mut self,
        config: &WeightsConfig,
        dir: Option<&Path>,
    ) -> Result<Arc<FirstValues>, RunError> {
        if let Some((_, weights)) = self.weights.iter().find(|(known, _)| known == config) {
            return Ok(weights.clone());
        }
        let weights = Arc::new(read_weights(config, dir)?);
        self.weights.push((config.clone(), weights.clone()));
        Ok(weights)
    }
}

/// A recipe that was checked, with all that its runs need; each can be carried out by itself.
#[derive(Debug)]
pub struct Work {
    request: RunRequest,
    variants: Vec<Variant>,
    seeds: Vec<u32>,
    splits: Arc<Splits>,
    weights: Option<Arc<FirstValues>>,
    /// What became of every key of that file.
    loaded: Option<WeightsReport>,
    parameters: usize,
}

impl Work {
    /// Checks a recipe and its folder, and reads what it needs. Nothing is written before all is well.
    ///
    /// # Errors
    /// If the recipe does not fit, data cannot be had, or the folder belongs to another recipe.
    pub fn new(request: RunRequest, inputs: &mut Inputs) -> Result<Self, RunError> {
        let RunRequest { source, .. } = &request;
        let recipe = &source.recipe;
        let variants = recipe.variants(request.baseline);
        let mut parameters = 0;
        for variant in &variants {
            let plan = source.plan(variant, &request.device)?;
            let tapped = plan.total(Role::Weight).values + plan.total(Role::Bias).values;
            parameters = tapped + plan.untapped_parameters;
        }
        let dir = request.data_dir.as_deref();
        let weights = recipe.weights.as_ref().map(|w| inputs.weights(w, dir)).transpose()?;
        let loaded = weights.as_ref().map(|w| fit(&request, &variants[0], w)).transpose()?;
        let splits = inputs.splits(recipe, dir)?;
        let seeds = seeds(recipe, request.seeds);
        check_folder(&request, &variants, &seeds)?;
        Ok(Self { request, variants, seeds, splits, weights, loaded, parameters })
    }

    /// Makes the run folder, and the folders of all runs, so that a resume which would leave one of them out is found.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn begin(&self) -> Result<(), RunError> {
        let RunRequest { source, folder, resume, .. } = &self.request;
        let make =
            |path: &Path| std::fs::create_dir_all(path).map_err(|e| FileError::io("make", path, e));
        if !resume {
            make(folder)?;
            write(&folder.join(RECIPE), source.recipe.to_toml()?.as_bytes())?;
        }
        for run in self.runs() {
            make(&run_folder(folder, &run.variant, run.seed))?;
        }
        Ok(())
    }

    /// What is known before the first run.
    pub fn facts(&self) -> Facts {
        let recipe = &self.request.source.recipe;
        let Splits { train, validation, test, note, .. } = &*self.splits;
        Facts {
            data: recipe.data.clone(),
            model: recipe.model.clone(),
            seed: recipe.seed,
            data_note: note.clone(),
            images: [train.len(), validation.len(), test.len()],
            parameters: self.parameters,
            weights: self.loaded.clone(),
            runs: self.variants.len() * self.seeds.len(),
        }
    }

    /// The steps of each run.
    pub fn steps(&self) -> u64 {
        let Recipe { batch, epochs, .. } = &self.request.source.recipe;
        self.splits.train.len().div_ceil(*batch) as u64 * epochs
    }

    /// All runs: each variant with every seed.
    pub fn runs(&self) -> Vec<RunId> {
        let of = self.variants.len() * self.seeds.len();
        let pairs = self.variants.iter().flat_map(|v| self.seeds.iter().map(move |seed| (v, seed)));
        let id = |(i, (variant, seed)): (usize, (&Variant, &u32))| RunId {
            number: i + 1,
            of,
            label: variant.name.clone(),
            point: None,
            variant: variant.name.clone(),
            seed: *seed,
            epochs: self.request.source.recipe.epochs,
        };
        pairs.enumerate().map(id).collect()
    }

    /// Carries out a run, or the rest of it, or reads the result that it had.
    ///
    /// # Errors
    /// If training goes wrong, a file cannot be had, or the watcher asks to stop.
    ///
    /// # Panics
    /// If the run is none of [`runs`](Self::runs).
    pub fn carry_out(&self, id: &RunId, watch: &mut dyn Watch) -> Result<RunResult, RunError> {
        let variant = self.variants.iter().find(|v| v.name == id.variant);
        let one = OneRun {
            request: &self.request,
            variant: variant.expect("a run is of one of the variants"),
            seed: id.seed,
            splits: &self.splits,
            weights: self.weights.as_deref(),
        };
        one.run(id, watch)
    }

    /// Writes the result of all runs, given in their order.
    ///
    /// # Errors
    /// If it cannot be written.
    ///
    /// # Panics
    /// If there are not as many results as runs.
    pub fn finish(&self, results: &[RunResult]) -> Result<Report, RunError> {
        assert_eq!(results.len(), self.variants.len() * self.seeds.len());
        let recipe = &self.request.source.recipe;
        let rows = self.variants.iter().zip(results.chunks(self.seeds.len()));
        let rows = rows.map(|(variant, results)| row(variant, results)).collect();
        let (model, data) = (recipe.model.clone(), recipe.data.clone());
        let report = Report { model, data, weights: self.loaded.clone(), rows };
        write_json(&self.request.folder.join(RESULT), &report)?;
        Ok(report)
    }
}

/// The median over runs of their median milliseconds of a step.
pub(crate) fn median_step<'a>(results: impl IntoIterator<Item = &'a RunResult>) -> Option<f64> {
    let mut times: Vec<f64> = results.into_iter().filter_map(|r| r.step_ms).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

fn row(variant: &Variant, results: &[RunResult]) -> Row {
    let accuracies: Vec<f64> = results.iter().map(|r| r.test.accuracy).collect();
    let first = &results[0];
    Row {
        variant: variant.name.clone(),
        accuracy: Spread::of(&accuracies),
        step_ms: median_step(results),
        seeds: results.iter().map(|r| r.seed).collect(),
        sizes: Sizes {
            roles: first.roles.clone(),
            packed_bytes: first.packed_bytes,
            packed_file_bytes: first.packed_file_bytes,
            file_bytes: first.file_bytes,
        },
    }
}

/// Checks that the run folder can take this work: that it holds no run, or the beginning of this one.
fn check_folder(request: &RunRequest, variants: &[Variant], seeds: &[u32]) -> Result<(), RunError> {
    let RunRequest { source, folder, resume, .. } = request;
    let wrong = |reason: String| RunError::Folder { folder: folder.clone(), reason };
    if !resume {
        if folder.join(RECIPE).exists() {
            return Err(wrong("it holds a run already; `--resume` goes on with it".into()));
        }
        return Ok(());
    }
    check_recipe(source, folder)?;
    for variant in folders(folder)? {
        for run in folders(&folder.join(&variant))? {
            let Some(seed) = run.strip_prefix("seed-").and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            let known = variants.iter().any(|v| v.name == variant);
            if !(known && seeds.contains(&seed)) {
                return Err(wrong(format!(
                    "it was begun with run `{variant}`, seed {seed}, which would be left out now\n  \
                     help: give --baseline and --seeds as before"
                )));
            }
        }
    }
    Ok(())
}

/// Checks that a run folder was begun with this recipe.
pub(crate) fn check_recipe(source: &Source, folder: &Path) -> Result<(), RunError> {
    let wrong = |reason: String| RunError::Folder { folder: folder.to_owned(), reason };
    let before = Source::read(&folder.join(RECIPE), &[])
        .map_err(|e| wrong(format!("it holds no run to resume: {}", e.message)))?;
    match difference(&before.recipe, &source.recipe) {
        None => Ok(()),
        Some((key, before, now)) => Err(wrong(format!(
            "the recipe changed since this run: `{key}` was {before} and is {now}"
        ))),
    }
}

/// Where a run's files lie.
pub(crate) fn run_folder(root: &Path, variant: &str, seed: u32) -> PathBuf {
    root.join(variant).join(format!("seed-{seed}"))
}

/// The names of the folders in a folder.
pub(crate) fn folders(folder: &Path) -> Result<Vec<String>, FileError> {
    let failed = |e| FileError::io("read", folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The seeds of a recipe, counted up from its own.
pub(crate) fn seeds(recipe: &Recipe, count: u32) -> Vec<u32> {
    (0..count.max(1)).map(|i| recipe.seed.wrapping_add(i)).collect()
}

/// The first key that differs. What is only about saving may differ.
fn difference(before: &Recipe, now: &Recipe) -> Option<(String, String, String)> {
    let table = |r: &Recipe| {
        let r = Recipe {
            checkpoint_steps: None,
            saved: Saved::default(),
            telemetry: None,
            ..r.clone()
        };
        serde_json::to_value(r).unwrap_or_default()
    };
    scrimp_train::checkpoint::first_difference(&table(before), &table(now))
}

/// Which tensors of the network come from the file of first values; the same for every variant.
fn fit(
    RunRequest { source, device, .. }: &RunRequest,
    variant: &Variant,
    weights: &FirstValues,
) -> Result<WeightsReport, RunError> {
    let recipe = &source.recipe;
    let model = models::find(&recipe.model).expect("the model was checked");
    (model.fit)(&variant.request(recipe, device), weights).map_err(|e| {
        let file = recipe.weights.as_ref().map_or(weights.path.as_path(), WeightsConfig::file);
        let help = match &e {
            TrainError::Weights(e) => e.help(file),
            _ => None,
        };
        RecipeError { help, ..source.error(&["weights"], e.to_string()) }.into()
    })
}

fn read_weights(config: &WeightsConfig, data_dir: Option<&Path>) -> Result<FirstValues, RunError> {
    let from_environment = std::env::var_os(data::FOLDER_VARIABLE).map(PathBuf::from);
    let folder = data_dir.map(Path::to_owned).or(from_environment);
    let inside = folder.map(|f| f.join(config.file())).filter(|p| p.exists());
    let path = inside.unwrap_or_else(|| config.file().to_owned());
    let reader = scrimp_files::open(&path)?;
    let mut weights = FirstValues::new(&path, Vec::new());
    weights.fresh = config.fresh().cloned();
    for (place, Entry { name, shape, dtype, .. }) in reader.entries().iter().enumerate() {
        if dtype.is_float() {
            let (name, shape, values) = (name.clone(), shape.clone(), reader.read_f32(place)?);
            weights.tensors.push(NamedTensor { name, shape, values });
        } else {
            weights.others.push(name.clone());
        }
    }
    Ok(weights)
}

/// What a run depends on, and what tells its checkpoint from others.
fn identity(recipe: &Recipe, variant: &Variant, seed: u32) -> serde_json::Value {
    let recipe = Recipe {
        compute: variant.compute,
        saved: Saved::default(),
        checkpoint_steps: None,
        telemetry: None,
        variant: Vec::new(),
        quantize: Vec::new(),
        preset: None,
        ..recipe.clone()
    };
    serde_json::json!({"recipe": recipe, "rules": variant.rules, "seed": seed})
}

struct OneRun<'a> {
    request: &'a RunRequest,
    variant: &'a Variant,
    seed: u32,
    splits: &'a Splits,
    weights: Option<&'a FirstValues>,
}

impl OneRun<'_> {
    fn run(&self, id: &RunId, watch: &mut dyn Watch) -> Result<RunResult, RunError> {
        let RunRequest { source, device, resume, .. } = self.request;
        let recipe = &source.recipe;
        let folder = run_folder(&self.request.folder, &self.variant.name, self.seed);
        if *resume && let Some(result) = read_json(&folder.join(RESULT))? {
            watch.finished(id, &result, true);
            return Ok(result);
        }
        let failure = folder.join(FAILURE);
        match std::fs::remove_file(&failure) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(FileError::io("remove", &failure, e).into());
            }
            _ => {}
        }
        let job = TrainJob {
            plan: self.variant.request(recipe, device),
            splits: self.splits,
            seed: self.seed,
            epochs: recipe.epochs,
            schedule: recipe.schedule.clone(),
            clip_norm: recipe.clip_norm,
            loss_scale: recipe.loss_scale,
            label_smoothing: recipe.label_smoothing,
            augment: recipe.augment(),
            weights: self.weights.cloned(),
            checkpoint: Some(CheckpointJob {
                path: folder.join(CHECKPOINT),
                every_steps: recipe.checkpoint_steps,
                resume: *resume,
            }),
            telemetry_steps: recipe.telemetry.and_then(|t| t.every),
            identity: identity(recipe, self.variant, self.seed),
        };
        let train = models::find(&recipe.model).expect("the model was checked").train;
        let metrics = self.request.folder.join(METRICS);
        let written = if *resume { written_metrics(&metrics)? } else { BTreeSet::new() };
        let has_events =
            matches!(recipe.telemetry, Some(TelemetryConfig { tensorboard: true, .. }));
        let mut observer = Relay {
            id,
            watch,
            metrics,
            written,
            events_folder: has_events.then(|| folder.clone()),
            events: None,
            last_step: 0,
            error: None,
        };
        let outcome = match train(&job, &mut observer) {
            Ok(outcome) => outcome,
            Err(problem) => return Err(self.failed(problem, &folder)?),
        };
        if let Some(e) = observer.error {
            return Err(e.into());
        }
        let Some(test) = outcome.test else {
            return Err(RunError::Stopped { folder: self.request.folder.clone() });
        };
        let result = self.save(&folder, &outcome, test)?;
        watch.finished(id, &result, false);
        Ok(result)
    }

    /// The error of a run. That training went wrong is a finding, and is written down.
    fn failed(&self, problem: TrainError, folder: &Path) -> Result<RunError, RunError> {
        let (variant, seed) = (self.variant.name.clone(), self.seed);
        if matches!(problem, TrainError::Diverged { .. }) {
            let reason = problem.to_string();
            let failure = RunFailure { variant: variant.clone(), seed, reason };
            write_json(&folder.join(FAILURE), &failure)?;
        }
        Ok(match problem {
            TrainError::Checkpoint(CheckpointError::File(e)) => RunError::File(e),
            problem => RunError::Train { variant, seed, problem: Box::new(problem) },
        })
    }

    /// Writes all files of a run that is done, the result last.
    fn save(&self, folder: &Path, outcome: &Outcome, test: Score) -> Result<RunResult, RunError> {
        write_json(&folder.join("plan.json"), &outcome.plan)?;
        let model = folder.join(MODEL);
        let tensors = outcome
            .model
            .iter()
            .map(|t| {
                scrimp_files::Tensor::from_f32(
                    t.name.clone(),
                    t.shape.clone(),
                    Dtype::F32,
                    &t.values,
                )
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| RunError::Folder { folder: folder.to_owned(), reason: e.to_string() })?;
        scrimp_files::save(&model, &tensors, &BTreeMap::new())?;
        let packed = folder.join("model.packed.safetensors");
        pack(&packed, outcome, self.seed)?;
        let ledger = scrimp_files::ledger(&packed)?;

        // The bytes of weights and biases are those in the file, and those of moments what the optimizer held, not those
        // of a formula.
        let mut stored: BTreeMap<Role, usize> = BTreeMap::new();
        for row in &ledger.rows {
            if let Some(role) = role_of(&outcome.plan, &row.name) {
                *stored.entry(role).or_default() +=
                    usize::try_from(row.bytes).unwrap_or(usize::MAX);
            }
        }
        let mut counted = outcome.state_bytes.clone();
        counted.extend(&stored);
        let roles = role_sizes(&outcome.plan, &counted);
        let status = |role: Role| {
            let is =
                |status| outcome.plan.tensors.iter().any(|t| t.role == role && t.status == status);
            if is(Status::Packed) || (is(Status::Emulated) && stored.contains_key(&role)) {
                "packed"
            } else if is(Status::Emulated) {
                "emulated"
            } else {
                "f32"
            }
        };
        let by_role: Vec<serde_json::Value> = roles
            .iter()
            .map(|(role, size)| serde_json::json!({"role": role, "status": status(*role), "size": size}))
            .collect();
        write_json(
            &folder.join("ledger.json"),
            &serde_json::json!({"roles": by_role, "model": ledger}),
        )?;
        let replaced = outcome.tally.nans + outcome.tally.infinities;
        let result = RunResult {
            variant: self.variant.name.clone(),
            seed: self.seed,
            test,
            validation: outcome.history.last().and_then(|e| e.validation),
            epochs: outcome.history.len() as u64,
            steps: outcome.steps,
            step_ms: outcome.step_seconds.map(|s| s * 1e3),
            packed_bytes: stored.values().sum::<usize>() as u64,
            packed_file_bytes: ledger.file_bytes,
            file_bytes: std::fs::metadata(&model)
                .map_err(|e| FileError::io("read", &model, e))?
                .len(),
            replaced_values: replaced,
            loss_scale: outcome.loss_scale,
            weights: outcome.loaded.clone(),
            roles,
        };
        write_json(&folder.join(RESULT), &result)?;
        Ok(result)
    }
}

/// The role of a parameter by its name, if a layer of the plan has it.
fn role_of(plan: &Plan, name: &str) -> Option<Role> {
    let (layer, field) = name.rsplit_once('.')?;
    let role = match field {
        "weight" => Role::Weight,
        "bias" => Role::Bias,
        _ => return None,
    };
    plan.get(layer, role).map(|_| role)
}

/// Writes the model with weights and biases as the bytes of their schemes.
fn pack(path: &Path, outcome: &Outcome, seed: u32) -> Result<(), FileError> {
    let planned = |name: &str| {
        let layer = name.rsplit_once('.')?.0;
        outcome.plan.get(layer, role_of(&outcome.plan, name)?)
    };
    let entries: Vec<Entry> = outcome
        .model
        .iter()
        .map(|t| Entry {
            name: t.name.clone(),
            shape: t.shape.clone(),
            dtype: Dtype::F32,
            storage: match planned(&t.name) {
                Some(p) if p.status == Status::Emulated => {
                    Storage::Packed { scheme: p.scheme.clone() }
                }
                Some(p) if p.rule.is_some() => Storage::Kept { reason: "the rule says f32".into() },
                Some(_) => Storage::Kept { reason: "no rule".into() },
                None => Storage::Kept { reason: "not tapped".into() },
            },
        })
        .collect();
    let problem =
        |problem| FileError::Container { path: path.to_owned(), problem: Box::new(problem) };
    let plan = scrimp_files::Plan::new(entries, &BTreeMap::new()).map_err(problem)?;
    plan.write(path, |place, bytes| {
        let tensor = &outcome.model[place];
        match (&plan.entries()[place].storage, planned(&tensor.name)) {
            (Storage::Packed { scheme }, Some(p)) => {
                // The random numbers of the tap in the last step, so that stochastic rounding stores the weights that
                // were evaluated.
                let name = format!("{}.{}", p.layer, p.role);
                let stream = Stream::named(seed, &name).at_step(outcome.steps.saturating_sub(1));
                scheme.encode(&tensor.values, &tensor.shape, &stream, bytes).map_err(
                    |problem| FileError::Encode {
                        path: path.to_owned(),
                        name: tensor.name.clone(),
                        problem: Box::new(problem),
                    },
                )?;
            }
            _ => bytes.extend(tensor.values.iter().flat_map(|v| v.to_le_bytes())),
        }
        Ok(())
    })
}

/// The lines of a metrics file. What a run wrote of a line when it was killed is cut off.
fn written_metrics(path: &Path) -> Result<BTreeSet<String>, FileError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(e) => return Err(FileError::io("read", path, e)),
    };
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    if whole < text.len() {
        write(path, &text.as_bytes()[..whole])?;
    }
    Ok(text[..whole].lines().map(str::to_owned).collect())
}

/// A line of the metrics: what a run has to say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Metric {
    pub variant: String,
    pub seed: u32,
    #[serde(flatten)]
    pub news: News,
}

/// What a run writes down while it goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum News {
    /// An epoch is done.
    Epoch { epoch: EpochReport },
    /// What rounding did to a tensor in the step of that number, from 0.
    Tensor {
        step: u64,
        #[serde(flatten)]
        tensor: TensorReport,
    },
}

/// All that the runs of a folder have written down. A line that is not at its end is left out.
pub(crate) fn read_metrics(folder: &Path) -> Result<Vec<Metric>, RunError> {
    let path = folder.join(METRICS);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(FileError::io("read", &path, e).into()),
    };
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let metric = |line: &str| {
        serde_json::from_str(line).map_err(|e| RunError::Folder {
            folder: path.clone(),
            reason: format!("it holds a line that no run wrote: {e}"),
        })
    };
    whole.lines().map(metric).collect()
}

/// Passes a run's events on, and writes the metrics.
struct Relay<'a> {
    id: &'a RunId,
    watch: &'a mut dyn Watch,
    metrics: PathBuf,
    /// The lines that an earlier part of the run wrote. A run that was killed before it saved an epoch does it again, and
    /// comes to the same line.
    written: BTreeSet<String>,
    /// The folder of the event file, where one is asked for.
    events_folder: Option<PathBuf>,
    events: Option<EventFile>,
    /// The last step that was done, from 0.
    last_step: u64,
    error: Option<FileError>,
}

impl Relay<'_> {
    /// Appends lines to the metrics.
    fn append(&mut self, news: impl Iterator<Item = News>) {
        let (variant, seed) = (&self.id.variant, self.id.seed);
        let lines: String = news
            .map(|news| Metric { variant: variant.clone(), seed, news })
            // It has no map whose keys are no strings, which is all that could fail.
            .map(|metric| serde_json::to_string(&metric).unwrap_or_default())
            .filter(|line| !self.written.contains(line))
            .map(|line| line + "\n")
            .collect();
        let append = || {
            let mut file =
                std::fs::OpenOptions::new().create(true).append(true).open(&self.metrics)?;
            file.write_all(lines.as_bytes())
        };
        if !lines.is_empty()
            && let Err(e) = append()
        {
            self.error.get_or_insert(FileError::io("write", &self.metrics, e));
        }
    }

    /// Writes scalars of a step to the event file, if there is one.
    fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) {
        if let Some(file) = &mut self.events
            && let Err(e) = file.write(events::now(), step, scalars)
        {
            self.error.get_or_insert(e);
        }
    }
}

impl Observer for Relay<'_> {
    fn started(&mut self, step: u64, steps: u64) {
        if let Some(folder) = &self.events_folder {
            match EventFile::open(folder, step, events::now()) {
                Ok(file) => self.events = Some(file),
                Err(e) => self.error = Some(e),
            }
        }
        self.watch.run(self.id, step, steps);
    }

    fn step(&mut self, report: &StepReport) {
        self.last_step = report.step - 1;
        let scalars = [("train/loss", report.loss), ("train/learning_rate", report.lr)];
        self.scalars(self.last_step, &scalars.map(|(tag, value)| (tag.to_owned(), value)));
        self.watch.step(report);
    }

    fn telemetry(&mut self, step: u64, tensors: &[TensorReport]) {
        self.append(tensors.iter().map(|tensor| News::Tensor { step, tensor: tensor.clone() }));
        if self.events.is_some() {
            self.scalars(step, &tensors.iter().flat_map(events::of_tensor).collect::<Vec<_>>());
        }
    }

    fn epoch(&mut self, report: &EpochReport) {
        self.append(std::iter::once(News::Epoch { epoch: report.clone() }));
        let mut scalars = vec![("train/accuracy".to_owned(), report.accuracy)];
        if let Some(Score { loss, accuracy, .. }) = report.validation {
            scalars.push(("validation/loss".to_owned(), loss));
            scalars.push(("validation/accuracy".to_owned(), accuracy));
        }
        self.scalars(self.last_step, &scalars);
        self.watch.epoch(self.id, report);
    }

    fn stop_requested(&self) -> bool {
        self.error.is_some() || self.watch.stop_requested()
    }
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    scrimp_files::write_atomic(path, |w| {
        w.write_all(bytes).map_err(|e| FileError::io("write", path, e))
    })
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), RunError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| RunError::Folder { folder: path.to_owned(), reason: e.to_string() })?;
    Ok(write(path, (text + "\n").as_bytes())?)
}

/// What a file of a run holds, if it is there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RunError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::io("read", path, e).into()),
    };
    serde_json::from_str(&text).map(Some).map_err(|e| RunError::Folder {
        folder: path.to_owned(),
        reason: format!("it is not what a run writes: {e}"),
    })
}
