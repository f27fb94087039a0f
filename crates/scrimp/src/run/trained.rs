//! A run in its folder, as far as it was trained.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use scrimp_files::FileError;
use scrimp_train::checkpoint::{Checkpoint, CheckpointError};
use scrimp_train::data::Splits;
use scrimp_train::params::NamedTensor;
use sha2::{Digest, Sha256};

use super::{
    CHECKPOINT, Inputs, MODEL, RECIPE, RESULT, RunError, RunResult, folders, identity, read_json,
    run_folder,
};
use crate::recipe::{BASELINE, Source, Variant};
use crate::sweep::SWEEP;

/// A run in its folder, as far as it was trained.
#[derive(Clone, Debug)]
pub struct TrainedRun {
    /// The recipe, as the folder has it.
    pub source: Source,
    /// The SHA-256 of that file, in hexadecimal digits.
    pub recipe_sha256: String,
    /// The variant.
    pub variant: Variant,
    /// The seed.
    pub seed: u32,
    /// The file that the tensors are from: the model of a run that is done, else its last checkpoint.
    pub file: PathBuf,
    /// Parameters and buffers.
    pub tensors: Vec<NamedTensor>,
    /// What schemes remember of tensors; empty where no checkpoint is left.
    pub memory: Vec<NamedTensor>,
    /// Epochs that are done.
    pub epochs: u64,
    /// Steps that are done.
    pub steps: u64,
    /// Whether that is all of them.
    pub is_finished: bool,
}

/// A folder that may be that of a run, and which run in it was asked for.
struct Choice<'a> {
    root: &'a Path,
    variant: Option<String>,
    seed: Option<u32>,
}

impl TrainedRun {
    /// Reads a run. The folder is the one that `scrimp train` made, or, in that, the folder of one run.
    ///
    /// # Errors
    /// If the folder holds no such run, or several; or if nothing was saved of it.
    pub fn open(folder: &Path, variant: Option<&str>, seed: Option<u32>) -> Result<Self, RunError> {
        let choice = choice(folder, variant, seed)?;
        let wrong = |reason: String| RunError::Folder { folder: choice.root.to_owned(), reason };
        let path = choice.root.join(RECIPE);
        let source = Source::read(&path, &[])?;
        let (variant, seed) = the_one(&choice)?;
        let known = source.recipe.variants(variant == BASELINE);
        let variant = known.into_iter().find(|v| v.name == variant);
        let Some(variant) = variant else {
            return Err(wrong("a folder in it is that of no variant of its recipe".into()));
        };
        let text = std::fs::read(&path).map_err(|e| FileError::io("read", &path, e))?;
        let recipe_sha256 = Sha256::digest(text).iter().fold(String::new(), |mut digits, byte| {
            // Writing to a string cannot fail.
            write!(digits, "{byte:02x}").ok();
            digits
        });
        let folder = run_folder(choice.root, &variant.name, seed);
        let saved = folder.join(CHECKPOINT);
        let checkpoint = if saved.exists() {
            let identity = identity(&source.recipe, &variant, seed);
            Some(Checkpoint::load(&saved, &identity).map_err(|e| match e {
                CheckpointError::File(e) => RunError::File(e),
                e => RunError::Folder { folder: folder.clone(), reason: e.to_string() },
            })?)
        } else {
            None
        };
        let result: Option<RunResult> = read_json(&folder.join(RESULT))?;
        let memory = checkpoint.as_ref().map_or_else(Vec::new, |c| c.memory.clone());
        let run = |file, tensors, epochs, steps, is_finished| Self {
            source,
            recipe_sha256,
            variant,
            seed,
            file,
            tensors,
            memory,
            epochs,
            steps,
            is_finished,
        };
        Ok(match (result, checkpoint) {
            (Some(RunResult { epochs, steps, .. }), _) => {
                let file = folder.join(MODEL);
                let tensors = read_tensors(&file)?;
                run(file, tensors, epochs, steps, true)
            }
            (None, Some(Checkpoint { progress, model, .. })) => {
                run(saved, model, progress.epoch, progress.step, false)
            }
            (None, None) => {
                let reason =
                    "nothing was saved of this run yet: it has neither a result nor a checkpoint";
                return Err(RunError::Folder { folder, reason: reason.into() });
            }
        })
    }

    /// The last training step, from 0, whose random numbers round the weights that are evaluated.
    pub fn last_step(&self) -> u64 {
        self.steps.saturating_sub(1)
    }

    /// The data that the run was trained on.
    ///
    /// # Errors
    /// If they cannot be had.
    pub fn splits(&self, data_dir: Option<&Path>) -> Result<Arc<Splits>, RunError> {
        Inputs::default().splits(&self.source.recipe, data_dir)
    }
}

/// Which folder holds the recipe, and which run below it is meant.
fn choice<'a>(
    folder: &'a Path,
    variant: Option<&str>,
    seed: Option<u32>,
) -> Result<Choice<'a>, RunError> {
    let wrong = |reason: String| Err(RunError::Folder { folder: folder.to_owned(), reason });
    let has_recipe = |path: &&Path| path.join(RECIPE).is_file();
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let asked = Choice { root: folder, variant: variant.map(str::to_owned), seed };
    if has_recipe(&folder) {
        return Ok(asked);
    }
    if let Some(root) = folder.parent().filter(has_recipe) {
        return Ok(Choice { root, variant: name(folder), ..asked });
    }
    if let Some(root) = folder.parent().and_then(Path::parent).filter(has_recipe) {
        let own = name(folder).and_then(|name| seed_of(&name));
        let variant = folder.parent().and_then(name);
        return Ok(Choice { root, variant, seed: own });
    }
    if folder.join(SWEEP).is_file() {
        let points = folders(folder)?.join(", ");
        return wrong(format!(
            "it is the folder of a sweep\n  help: give that of a point: {points}"
        ));
    }
    if !folder.is_dir() {
        return wrong("there is no such folder".into());
    }
    wrong(format!("it is not the folder of a run: it holds no {RECIPE}"))
}

fn seed_of(folder: &str) -> Option<u32> {
    folder.strip_prefix("seed-")?.parse().ok()
}

/// The only run that is meant.
fn the_one(Choice { root, variant, seed }: &Choice) -> Result<(String, u32), RunError> {
    let mut all = Vec::new();
    for name in folders(root)? {
        let seeds = folders(&root.join(&name))?;
        all.extend(seeds.iter().filter_map(|seed| Some((name.clone(), seed_of(seed)?))));
    }
    let list = |runs: &[(String, u32)]| {
        let runs: Vec<String> = runs.iter().map(|(v, s)| format!("{v} of seed {s}")).collect();
        runs.join(", ")
    };
    let is_meant = |run: &&(String, u32)| {
        variant.as_ref().is_none_or(|v| *v == run.0) && seed.is_none_or(|s| s == run.1)
    };
    let meant: Vec<(String, u32)> = all.iter().filter(is_meant).cloned().collect();
    let reason = match &meant[..] {
        [one] => return Ok(one.clone()),
        [] if all.is_empty() => "it holds no run yet".to_owned(),
        [] => format!("it holds no such run\n  help: there are {}", list(&all)),
        several => format!(
            "it holds {} runs: {}\n  help: --variant NAME and --seed N choose one",
            several.len(),
            list(several)
        ),
    };
    Err(RunError::Folder { folder: root.to_path_buf(), reason })
}

fn read_tensors(path: &Path) -> Result<Vec<NamedTensor>, RunError> {
    let reader = scrimp_files::open(path)?;
    let tensor = |(place, entry): (usize, &scrimp_files::Entry)| {
        let (name, shape) = (entry.name.clone(), entry.shape.clone());
        Ok(NamedTensor { name, shape, values: reader.read_f32(place)? })
    };
    reader.entries().iter().enumerate().map(tensor).collect()
}
