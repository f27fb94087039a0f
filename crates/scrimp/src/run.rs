//! Carrying out a recipe: one run for each variant and seed, in a run folder that tells everything.
//!
//! ```text
//! runs/quickstart-1/
//!   recipe.toml                 the recipe with every default written out
//!   result.json                 one row for each variant
//!   metrics.jsonl               every epoch of every run, in the order in which they came
//!   int8/seed-7/
//!     plan.json                 what every tensor was held in, and which rule said so
//!     checkpoint.safetensors    from which the run resumes
//!     model.safetensors         parameters and buffers in f32
//!     model.packed.safetensors  the weights and biases as the bytes of their schemes
//!     ledger.json               bytes by role, counted
//!     result.json               accuracy, loss, time; written last
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use scrimp_codec::Stream;
use scrimp_files::{Dtype, Entry, FileError, Storage};
use scrimp_train::Role;
use scrimp_train::checkpoint::CheckpointError;
use scrimp_train::data::{self, DataError, DataRequest, Splits};
use scrimp_train::models;
use scrimp_train::params::NamedTensor;
use scrimp_train::plan::{Plan, Status, Total};
use scrimp_train::trainer::{
    CheckpointJob, EpochReport, Observer, Outcome, Score, StepReport, TrainError, TrainJob,
};
use serde::{Deserialize, Serialize};

use crate::recipe::{Recipe, RecipeError, Source, Variant};

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
    /// Whether to save and stop.
    fn stop_requested(&self) -> bool {
        false
    }
}

/// What is known before the first run.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Where the data come from.
    pub data_note: String,
    /// Images to train on, to validate on, to test on.
    pub images: [usize; 3],
    /// Values in the network's parameters and buffers.
    pub parameters: usize,
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
    pub roles: BTreeMap<Role, RoleSize>,
    /// Bytes of the network's weights and biases, as stored in the packed model file (counted there).
    pub packed_bytes: u64,
    /// Bytes of the packed model file.
    pub packed_file_bytes: u64,
    /// Bytes of the f32 model file.
    pub file_bytes: u64,
    /// Values that were NaN or infinite and replaced, where schemes allow that.
    pub replaced_values: u64,
}

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
    pub roles: BTreeMap<Role, RoleSize>,
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
    let RunRequest { source, folder, .. } = request;
    let recipe = &source.recipe;
    let variants = recipe.variants(request.baseline);
    // All that can be found wrong is found before the first step.
    for variant in &variants {
        source.plan(variant, &request.device)?;
    }
    let weights = match &recipe.weights {
        Some(path) => Some(read_weights(path, request.data_dir.as_deref())?),
        None => None,
    };
    let data = DataRequest {
        dir: request.data_dir.clone(),
        validation: recipe.validation,
        seed: recipe.seed,
        limit: recipe.limit,
    };
    let splits = data::find(&recipe.data)?.load(&data)?;
    let seeds: Vec<u32> = (0..request.seeds.max(1)).map(|i| recipe.seed.wrapping_add(i)).collect();
    prepare(request)?;
    claim(request, &variants, &seeds)?;
    let of = variants.len() * seeds.len();
    let parameters = |plan: &Plan| {
        plan.total(Role::Weight).values + plan.total(Role::Bias).values + plan.untapped_parameters
    };
    watch.begin(&Facts {
        data_note: splits.note.clone(),
        images: [splits.train.len(), splits.validation.len(), splits.test.len()],
        parameters: parameters(&source.plan(&variants[0], &request.device)?),
        runs: of,
    });

    let mut rows = Vec::new();
    for (v, variant) in variants.iter().enumerate() {
        let mut results = Vec::new();
        for (s, seed) in seeds.iter().enumerate() {
            let id = RunId {
                number: v * seeds.len() + s + 1,
                of,
                variant: variant.name.clone(),
                seed: *seed,
                epochs: recipe.epochs,
            };
            let one = OneRun {
                request,
                variant,
                seed: *seed,
                splits: &splits,
                weights: weights.as_ref(),
            };
            results.push(one.run(&id, watch)?);
        }
        rows.push(row(variant, &results));
    }
    let report = Report { model: recipe.model.clone(), data: recipe.data.clone(), rows };
    write_json(&folder.join("result.json"), &report)?;
    Ok(report)
}

fn row(variant: &Variant, results: &[RunResult]) -> Row {
    let accuracies: Vec<f64> = results.iter().map(|r| r.test.accuracy).collect();
    let mut times: Vec<f64> = results.iter().filter_map(|r| r.step_ms).collect();
    times.sort_by(f64::total_cmp);
    let first = &results[0];
    Row {
        variant: variant.name.clone(),
        accuracy: Spread::of(&accuracies),
        step_ms: times.get(times.len() / 2).copied(),
        seeds: results.iter().map(|r| r.seed).collect(),
        sizes: Sizes {
            roles: first.roles.clone(),
            packed_bytes: first.packed_bytes,
            packed_file_bytes: first.packed_file_bytes,
            file_bytes: first.file_bytes,
        },
    }
}

/// Makes the folder, or checks that it holds the beginning of this run.
fn prepare(request: &RunRequest) -> Result<(), RunError> {
    let RunRequest { source, folder, resume, .. } = request;
    let path = folder.join("recipe.toml");
    let text = source.recipe.to_toml()?;
    let wrong = |reason: String| RunError::Folder { folder: folder.clone(), reason };
    if *resume {
        let before = Source::read(&path, &[])
            .map_err(|e| wrong(format!("it holds no run to resume: {}", e.message)))?;
        if let Some((key, before, now)) = difference(&before.recipe, &source.recipe) {
            return Err(wrong(format!(
                "the recipe changed since this run: `{key}` was {before} and is {now}"
            )));
        }
        return Ok(());
    }
    if path.exists() {
        return Err(wrong("it holds a run already; `--resume` goes on with it".into()));
    }
    std::fs::create_dir_all(folder).map_err(|e| FileError::io("make", folder, e))?;
    Ok(write(&path, text.as_bytes())?)
}

/// Makes the folders of all runs, so that a resume which would leave one of them out is found.
fn claim(request: &RunRequest, variants: &[Variant], seeds: &[u32]) -> Result<(), RunError> {
    let root = &request.folder;
    if request.resume {
        for variant in folders(root)? {
            for run in folders(&root.join(&variant))? {
                let Some(seed) = run.strip_prefix("seed-").and_then(|n| n.parse::<u32>().ok())
                else {
                    continue;
                };
                let known = variants.iter().any(|v| v.name == variant);
                if !(known && seeds.contains(&seed)) {
                    let reason = format!(
                        "it was begun with run `{variant}`, seed {seed}, which would be left out now\n  \
                         help: give --baseline and --seeds as before"
                    );
                    return Err(RunError::Folder { folder: root.clone(), reason });
                }
            }
        }
    }
    for variant in variants {
        for seed in seeds {
            let folder = run_folder(root, variant, *seed);
            std::fs::create_dir_all(&folder).map_err(|e| FileError::io("make", &folder, e))?;
        }
    }
    Ok(())
}

/// Where a run's files lie.
fn run_folder(root: &Path, variant: &Variant, seed: u32) -> PathBuf {
    root.join(&variant.name).join(format!("seed-{seed}"))
}

/// The names of the folders in a folder.
fn folders(folder: &Path) -> Result<Vec<String>, FileError> {
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

/// The first key that differs. What is only about saving may differ.
fn difference(before: &Recipe, now: &Recipe) -> Option<(String, String, String)> {
    let table = |r: &Recipe| {
        let r = Recipe { checkpoint_steps: None, ..r.clone() };
        serde_json::to_value(r).unwrap_or_default()
    };
    scrimp_train::checkpoint::first_difference(&table(before), &table(now))
}

fn read_weights(
    path: &Path,
    data_dir: Option<&Path>,
) -> Result<(PathBuf, Vec<NamedTensor>), RunError> {
    let from_environment = std::env::var_os(data::FOLDER_VARIABLE).map(PathBuf::from);
    let folder = data_dir.map(Path::to_owned).or(from_environment);
    let inside = folder.map(|f| f.join(path)).filter(|p| p.exists());
    let path = inside.unwrap_or_else(|| path.to_owned());
    let mut reader = scrimp_files::open(&path)?;
    let prefix = reader.common_prefix().to_owned();
    if !prefix.is_empty() {
        reader.strip_prefix(&prefix)?;
    }
    let floats = reader.entries().iter().enumerate().filter(|(_, e)| e.dtype.is_float());
    let tensors = floats
        .map(|(place, e)| {
            let values = reader.read_f32(place)?;
            Ok(NamedTensor { name: e.name.clone(), shape: e.shape.clone(), values })
        })
        .collect::<Result<_, FileError>>()?;
    Ok((path, tensors))
}

struct OneRun<'a> {
    request: &'a RunRequest,
    variant: &'a Variant,
    seed: u32,
    splits: &'a Splits,
    weights: Option<&'a (PathBuf, Vec<NamedTensor>)>,
}

impl OneRun<'_> {
    fn run(&self, id: &RunId, watch: &mut dyn Watch) -> Result<RunResult, RunError> {
        let RunRequest { source, device, resume, .. } = self.request;
        let recipe = &source.recipe;
        let folder = run_folder(&self.request.folder, self.variant, self.seed);
        let done = folder.join("result.json");
        if *resume && done.exists() {
            let result = read_json(&done)?;
            watch.finished(id, &result, true);
            return Ok(result);
        }
        let identity = serde_json::json!({
            "recipe": Recipe { compute: self.variant.compute, checkpoint_steps: None, variant: Vec::new(), quantize: Vec::new(), ..recipe.clone() },
            "rules": self.variant.rules,
            "seed": self.seed,
        });
        let job = TrainJob {
            plan: self.variant.request(recipe, device),
            splits: self.splits,
            seed: self.seed,
            epochs: recipe.epochs,
            schedule: recipe.schedule.clone(),
            clip_norm: recipe.clip_norm,
            label_smoothing: recipe.label_smoothing,
            augment: recipe.augment(),
            weights: self.weights.cloned(),
            checkpoint: Some(CheckpointJob {
                path: folder.join("checkpoint.safetensors"),
                every_steps: recipe.checkpoint_steps,
                resume: *resume,
            }),
            identity,
        };
        let train = models::find(&recipe.model).expect("the model was checked").train;
        let metrics = self.request.folder.join("metrics.jsonl");
        let written = if *resume { written_metrics(&metrics)? } else { BTreeSet::new() };
        let mut observer = Relay { id, watch, metrics, written, error: None };
        let outcome = train(&job, &mut observer).map_err(|problem| self.failed(problem))?;
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

    fn failed(&self, problem: TrainError) -> RunError {
        match problem {
            TrainError::Checkpoint(CheckpointError::File(e)) => RunError::File(e),
            problem => RunError::Train {
                variant: self.variant.name.clone(),
                seed: self.seed,
                problem: Box::new(problem),
            },
        }
    }

    /// Writes all files of a run that is done, the result last.
    fn save(&self, folder: &Path, outcome: &Outcome, test: Score) -> Result<RunResult, RunError> {
        write_json(&folder.join("plan.json"), &outcome.plan)?;
        let model = folder.join("model.safetensors");
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
        let roles: BTreeMap<Role, RoleSize> = Role::ALL
            .into_iter()
            .filter_map(|role| {
                let Total { values, bytes } = outcome.plan.total(role);
                let counted = stored.get(&role).or_else(|| outcome.state_bytes.get(&role));
                let total = Total { values, bytes: counted.copied().unwrap_or(bytes) };
                let size = RoleSize {
                    values,
                    bits: total.bits(),
                    bytes: total.bytes,
                    f32_bytes: 4 * values,
                };
                (values > 0).then_some((role, size))
            })
            .collect();
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
            roles,
        };
        write_json(&folder.join("result.json"), &result)?;
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

/// Passes a run's events on, and writes the metrics.
struct Relay<'a> {
    id: &'a RunId,
    watch: &'a mut dyn Watch,
    metrics: PathBuf,
    /// The lines that an earlier part of the run wrote. A run that was killed before it saved an epoch does it again, and
    /// comes to the same line.
    written: BTreeSet<String>,
    error: Option<FileError>,
}

impl Observer for Relay<'_> {
    fn started(&mut self, step: u64, steps: u64) {
        self.watch.run(self.id, step, steps);
    }

    fn step(&mut self, report: &StepReport) {
        self.watch.step(report);
    }

    fn epoch(&mut self, report: &EpochReport) {
        let line =
            serde_json::json!({"variant": self.id.variant, "seed": self.id.seed, "epoch": report})
                .to_string();
        let append = || {
            let mut file =
                std::fs::OpenOptions::new().create(true).append(true).open(&self.metrics)?;
            file.write_all(format!("{line}\n").as_bytes())
        };
        if !self.written.contains(&line)
            && let Err(e) = append()
        {
            self.error.get_or_insert(FileError::io("write", &self.metrics, e));
        }
        self.watch.epoch(self.id, report);
    }

    fn stop_requested(&self) -> bool {
        self.error.is_some() || self.watch.stop_requested()
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    scrimp_files::write_atomic(path, |w| {
        w.write_all(bytes).map_err(|e| FileError::io("write", path, e))
    })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), RunError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| RunError::Folder { folder: path.to_owned(), reason: e.to_string() })?;
    Ok(write(path, (text + "\n").as_bytes())?)
}

fn read_json(path: &Path) -> Result<RunResult, RunError> {
    let text = std::fs::read_to_string(path).map_err(|e| FileError::io("read", path, e))?;
    serde_json::from_str(&text).map_err(|e| RunError::Folder {
        folder: path.to_owned(),
        reason: format!("it is no result of a run: {e}"),
    })
}
