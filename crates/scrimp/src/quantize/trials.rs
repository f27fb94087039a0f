//! What a search for a limit has measured, kept in a file so that it goes on where it was stopped.
//!
//! The file is JSON: the version, a hash of everything that a measurement depends on, and a number for each trial by its
//! name (`null` for an infinite one). It is written after each trial, whole or not at all.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};

use scrimp_files::{FileError, write_atomic};
use scrimp_onnx::{Data, Elements, Model};
use serde::{Deserialize, Serialize};

use super::{Error, Job};

/// The version of the file.
const VERSION: u32 = 1;
/// What is longer is no file of trials; each of them takes less than a line.
const LONGEST_BYTES: u64 = 64 << 20;

/// The trials of one search.
#[derive(Debug, Default)]
pub struct Trials {
    path: Option<PathBuf>,
    file: Record,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    inputs: String,
    trials: BTreeMap<String, Option<f64>>,
}

impl Trials {
    /// Trials that no file keeps.
    pub fn forgotten() -> Self {
        Self::default()
    }

    /// Those in a file, which need not be there yet. With `replace`, trials of other inputs are forgotten.
    ///
    /// # Errors
    /// [`Error::Trials`] where the file is none of trials, or its trials are of other inputs.
    pub fn open(path: &Path, model: &Model, job: &Job<'_>, replace: bool) -> Result<Self, Error> {
        let inputs = inputs_of(model, job).map_err(|reason| trouble(path, reason))?;
        let new = Record { version: VERSION, inputs, trials: BTreeMap::new() };
        let file = match read(path) {
            Ok(None) => new,
            Ok(Some(found)) if (found.version, &found.inputs) == (VERSION, &new.inputs) => found,
            _ if replace => new,
            Ok(Some(_)) => {
                return Err(trouble(path, "it is of another model, other data or another choice"));
            }
            Err(reason) => return Err(trouble(path, reason)),
        };
        Ok(Self { path: Some(path.to_owned()), file })
    }

    /// The file; `None` where nothing is kept.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.file.trials.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.file.trials.is_empty()
    }

    /// What a trial found.
    pub(super) fn get(&self, name: &str) -> Option<f64> {
        self.file.trials.get(name).map(|found| found.unwrap_or(f64::INFINITY))
    }

    /// Keeps what a trial found.
    pub(super) fn keep(&mut self, name: String, found: f64) -> Result<(), Error> {
        self.file.trials.insert(name, found.is_finite().then_some(found));
        let Some(path) = &self.path else { return Ok(()) };
        let text = serde_json::to_string(&self.file).map_err(|e| trouble(path, e))?;
        let written = write_atomic(path, |out| {
            out.write_all(text.as_bytes()).map_err(|source| FileError::io("write", path, source))
        });
        written.map_err(Error::File)
    }

    /// Removes the file: the search is over and its result is there.
    ///
    /// # Errors
    /// If the file is there and cannot be removed.
    pub fn remove(self) -> Result<(), Error> {
        let Some(path) = self.path else { return Ok(()) };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::File(FileError::io("remove", &path, error)))
            }
            _ => Ok(()),
        }
    }
}

fn trouble(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::Trials { path: path.to_owned(), reason: reason.to_string() }
}

/// What lies in the file; `None` where there is none.
fn read(path: &Path) -> Result<Option<Record>, String> {
    let long = match std::fs::metadata(path) {
        Ok(found) => found.len() > LONGEST_BYTES,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if long {
        return Err("it is too long for a file of trials".into());
    }
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map(Some).map_err(|error| error.to_string())
}

/// A hash of what measurements depend on: the model, the choice, the engine, the data. Another build of the program may
/// hash otherwise, and then measures anew.
fn inputs_of(model: &Model, job: &Job<'_>) -> Result<String, String> {
    let mut hash = DefaultHasher::new();
    hash.write(env!("CARGO_PKG_VERSION").as_bytes());
    hash.write(&model.to_bytes());
    hash.write(format!("{:?}", job.config).as_bytes());
    hash.write(job.engine.version().as_bytes());
    for data in [Some(job.calibration), job.evaluation] {
        hash.write_u8(u8::from(data.is_some()));
        if let Some(data) = data {
            add(&mut hash, data)?;
        }
    }
    Ok(format!("{:016x}", hash.finish()))
}

fn add(hash: &mut DefaultHasher, data: &dyn Data) -> Result<(), String> {
    const PART: usize = 64;
    hash.write_usize(data.len());
    for start in (0..data.len()).step_by(PART) {
        let end = (start + PART).min(data.len());
        for (name, value) in data.batch(start, end)? {
            hash.write(name.as_bytes());
            value.shape.iter().for_each(|&size| hash.write_usize(size));
            match &value.data {
                Elements::F32(values) => values.iter().for_each(|v| hash.write_u32(v.to_bits())),
                Elements::F64(values) => values.iter().for_each(|v| hash.write_u64(v.to_bits())),
                Elements::I64(values) => values.iter().for_each(|&v| hash.write_i64(v)),
                Elements::I32(values) => values.iter().for_each(|&v| hash.write_i32(v)),
                Elements::I8(values) => values.iter().for_each(|&v| hash.write_i8(v)),
                Elements::U8(values) => hash.write(values),
                Elements::Bool(values) => values.iter().for_each(|&v| hash.write_u8(v.into())),
            }
        }
        data.labels(start, end).iter().flatten().for_each(|&label| hash.write_u32(label));
    }
    Ok(())
}
