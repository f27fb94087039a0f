//! Checkpoints: everything that the rest of a training run depends on, in one safetensors file.
//!
//! Tensors are called `model.NAME`, `optimizer.NAME.m` and `memory.LAYER.ROLE`; the metadata key `scrimp.checkpoint` holds the rest as JSON.
//! A moment that is packed lies in the file as its bytes, and `packed` in that JSON names its scheme.
//! The file is written whole or not at all, so a run that is killed resumes from the last one and gives the same bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use scrimp_files::{Dtype, FileError, Tensor};
use serde::{Deserialize, Serialize};

use crate::loss_scale::ScaleState;
use crate::optimizers::{Content, SavedMoment};
use crate::params::NamedTensor;
use crate::trainer::{EpochReport, Sums};

const KEY: &str = "scrimp.checkpoint";
const VERSION: u32 = 1;

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    version: u32,
    /// What the run depends on; a resumed run must be given the same.
    pub identity: serde_json::Value,
    /// The epoch, from 0.
    pub epoch: u64,
    /// Steps of that epoch that are done.
    pub step_in_epoch: u64,
    /// Steps that are done in all.
    pub step: u64,
    /// Sums over the steps of the epoch.
    pub sums: Sums,
    /// The epochs that are done.
    pub history: Vec<EpochReport>,
    /// Values so far that were NaN and replaced.
    #[serde(default)]
    pub replaced_nans: u64,
    /// Values so far that were infinite and replaced.
    #[serde(default)]
    pub replaced_infinities: u64,
    /// What the loss is multiplied by, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<ScaleState>,
}

impl Progress {
    /// The start of a run.
    pub fn new(identity: serde_json::Value) -> Self {
        Self {
            version: VERSION,
            identity,
            epoch: 0,
            step_in_epoch: 0,
            step: 0,
            sums: Sums::default(),
            history: Vec::new(),
            replaced_nans: 0,
            replaced_infinities: 0,
            loss_scale: None,
        }
    }
}

/// The JSON of a checkpoint.
#[derive(Serialize, Deserialize)]
struct Header<'a> {
    #[serde(flatten)]
    progress: Cow<'a, Progress>,
    /// The schemes of packed moments, by the tensor's name without its group.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    packed: BTreeMap<String, String>,
}

/// A saved state.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Where the run stands.
    pub progress: Progress,
    /// Parameters and buffers.
    pub model: Vec<NamedTensor>,
    /// Moments.
    pub optimizer: Vec<SavedMoment>,
    /// What schemes remember of gradients.
    pub memory: Vec<NamedTensor>,
}

/// A checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A tensor that cannot be written.
    #[error(transparent)]
    Tensor(#[from] scrimp_files::TensorError),
    /// It is a tensor file, but no checkpoint.
    #[error("{path} is no checkpoint of this run: {reason}")]
    Foreign {
        /// The file.
        path: String,
        /// What is missing or wrong.
        reason: String,
    },
    /// The recipe is not the one of the checkpoint.
    #[error("the recipe changed since the checkpoint {path}: `{key}` was {before} and is {now}")]
    Changed {
        /// The file.
        path: String,
        /// The first key that differs.
        key: String,
        /// Its value in the checkpoint.
        before: String,
        /// Its value now.
        now: String,
    },
}

impl Checkpoint {
    /// Writes the checkpoint, replacing the file as a whole.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), CheckpointError> {
        let mut packed = BTreeMap::new();
        let mut tensors = Vec::new();
        for (group, list) in [("model", &self.model), ("memory", &self.memory)] {
            for t in list {
                tensors.push(to_tensor(group, &t.name, t.shape.clone(), &t.values)?);
            }
        }
        for SavedMoment { name, content } in &self.optimizer {
            tensors.push(match content {
                Content::Values(v) => to_tensor("optimizer", name, vec![v.len()], v)?,
                Content::Bytes { scheme, bytes } => {
                    packed.insert(name.clone(), scheme.clone());
                    let shape = vec![bytes.len()];
                    Tensor::new(format!("optimizer.{name}"), shape, Dtype::U8, bytes.clone())?
                }
            });
        }
        let header = Header { progress: Cow::Borrowed(&self.progress), packed };
        let progress = serde_json::to_string(&header).map_err(|e| foreign(path, e))?;
        let metadata = BTreeMap::from([(KEY.to_owned(), progress)]);
        Ok(scrimp_files::save(path, &tensors, &metadata)?)
    }

    /// Reads a checkpoint and checks that it belongs to a run with this identity.
    ///
    /// # Errors
    /// If the file cannot be read, is no checkpoint, or belongs to another recipe.
    pub fn load(path: &Path, identity: &serde_json::Value) -> Result<Self, CheckpointError> {
        let reader = scrimp_files::open(path)?;
        let json = reader
            .metadata()
            .get(KEY)
            .ok_or_else(|| foreign(path, format!("it lacks the key `{KEY}`")))?;
        let header: Header = serde_json::from_str(json).map_err(|e| foreign(path, e))?;
        let Header { progress, mut packed } = header;
        let progress = progress.into_owned();
        if progress.version != VERSION {
            let version = progress.version;
            return Err(foreign(
                path,
                format!("it has version {version}, and this program writes {VERSION}"),
            ));
        }
        if let Some((key, before, now)) = first_difference(&progress.identity, identity) {
            let path = path.display().to_string();
            return Err(CheckpointError::Changed { path, key, before, now });
        }
        let (model, optimizer, memory) = (Vec::new(), Vec::new(), Vec::new());
        let mut checkpoint = Self { progress, model, optimizer, memory };
        for (place, entry) in reader.entries().iter().enumerate() {
            let (group, name) = entry
                .name
                .split_once('.')
                .ok_or_else(|| foreign(path, format!("tensor `{}` has no group", entry.name)))?;
            let scheme = packed.remove(name).filter(|_| group == "optimizer");
            if let Some(scheme) = scheme.filter(|_| entry.dtype == Dtype::U8) {
                let content = Content::Bytes { scheme, bytes: reader.read_stored(place)? };
                checkpoint.optimizer.push(SavedMoment { name: name.to_owned(), content });
                continue;
            }
            let (shape, values) = (entry.shape.clone(), reader.read_f32(place)?);
            let name = name.to_owned();
            match group {
                "model" => checkpoint.model.push(NamedTensor { name, shape, values }),
                "optimizer" => {
                    let content = Content::Values(values);
                    checkpoint.optimizer.push(SavedMoment { name, content });
                }
                "memory" => checkpoint.memory.push(NamedTensor { name, shape, values }),
                _ => return Err(foreign(path, format!("`{group}` is no group of tensors"))),
            }
        }
        Ok(checkpoint)
    }
}

fn to_tensor(
    group: &str,
    name: &str,
    shape: Vec<usize>,
    values: &[f32],
) -> Result<Tensor, scrimp_files::TensorError> {
    Tensor::from_f32(format!("{group}.{name}"), shape, Dtype::F32, values)
}

pub(crate) fn foreign(path: &Path, reason: impl std::fmt::Display) -> CheckpointError {
    CheckpointError::Foreign { path: path.display().to_string(), reason: reason.to_string() }
}

/// The first key at which two values differ (dots lead inward), with both values.
pub fn first_difference(
    before: &serde_json::Value,
    now: &serde_json::Value,
) -> Option<(String, String, String)> {
    difference("", before, now)
}

fn difference(
    key: &str,
    before: &serde_json::Value,
    now: &serde_json::Value,
) -> Option<(String, String, String)> {
    use serde_json::Value::{Array, Null, Object};
    let join = |part: &str| if key.is_empty() { part.to_owned() } else { format!("{key}.{part}") };
    match (before, now) {
        (Object(a), Object(b)) => {
            a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))).find_map(|k| {
                difference(&join(k), a.get(k).unwrap_or(&Null), b.get(k).unwrap_or(&Null))
            })
        }
        (Array(a), Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(i, (a, b))| difference(&join(&i.to_string()), a, b)),
        (a, b) if a == b => None,
        (a, b) => Some((key.to_owned(), a.to_string(), b.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let tensor = |name: &str| NamedTensor {
            name: name.into(),
            shape: vec![2, 1],
            values: vec![-0.0, f32::from_bits(1)],
        };
        let identity =
            serde_json::json!({"seed": 7, "optimizer": {"lr": 0.1}, "rules": ["a", "b"]});
        Checkpoint {
            progress: Progress { epoch: 1, step: 12, ..Progress::new(identity) },
            model: vec![tensor("bn.weight"), tensor("conv.weight")],
            optimizer: vec![
                SavedMoment {
                    name: "conv.weight.m".into(),
                    content: Content::Values(vec![-0.0, f32::from_bits(1)]),
                },
                SavedMoment {
                    name: "conv.weight.v".into(),
                    content: Content::Bytes { scheme: "int8".into(), bytes: vec![0, 0, 1] },
                },
            ],
            memory: vec![tensor("conv.dw")],
        }
    }

    #[test]
    fn it_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.safetensors");
        let saved = checkpoint();
        saved.save(&path).unwrap();
        let loaded = Checkpoint::load(&path, &saved.progress.identity).unwrap();
        assert_eq!(loaded, saved);
        assert!(loaded.model[0].values[0].is_sign_negative());
    }

    #[test]
    fn another_recipe_is_refused_with_the_key_that_differs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.safetensors");
        checkpoint().save(&path).unwrap();
        let now = serde_json::json!({"seed": 7, "optimizer": {"lr": 0.2}, "rules": ["a", "b"]});
        let error = Checkpoint::load(&path, &now).unwrap_err().to_string();
        assert!(error.ends_with("`optimizer.lr` was 0.1 and is 0.2"), "{error}");
        let shorter = serde_json::json!({"seed": 7, "optimizer": {"lr": 0.1}, "rules": ["a"]});
        assert!(Checkpoint::load(&path, &shorter).unwrap_err().to_string().contains("`rules`"));
    }

    #[test]
    fn a_file_of_tensors_is_not_a_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        scrimp_files::save(&path, &[], &BTreeMap::new()).unwrap();
        let error = Checkpoint::load(&path, &serde_json::Value::Null).unwrap_err();
        assert!(matches!(error, CheckpointError::Foreign { .. }), "{error}");
    }
}
