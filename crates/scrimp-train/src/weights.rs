//! Tensors of a file that a network begins with, in place of random ones: which of them fit, and what became of every key.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::params::{NamedTensor, ShapeMismatch};
use crate::rules::{Layers, Matcher};

/// What a network begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct FirstValues {
    /// The file.
    pub path: PathBuf,
    /// Its tensors of floats.
    pub tensors: Vec<NamedTensor>,
    /// Keys of its other tensors.
    pub others: Vec<String>,
    /// Tensors of the network that keep their random values, and keys of the file that are not looked at.
    pub fresh: Option<Layers>,
}

/// What became of every key of a file and of every tensor of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightsReport {
    /// The file.
    pub file: PathBuf,
    /// What keys of the file begin with and those of the network do not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub dropped_prefix: String,
    /// How many tensors of the network come from the file.
    pub used: usize,
    /// Tensors of the network that the file lacks.
    pub missing: Vec<String>,
    /// Tensors of the network that have another shape in the file.
    pub reshaped: Vec<ShapeMismatch>,
    /// Tensors of the network that the file has, and that were to keep their random values.
    pub declined: Vec<String>,
    /// Keys of the file that the network lacks.
    pub unexpected: Vec<String>,
    /// Keys of the file that stand for nothing which a network computes here, by pattern: how many.
    pub ignored: BTreeMap<String, usize>,
}

impl WeightsReport {
    /// How many tensors the network has.
    pub fn tensors(&self) -> usize {
        self.used + self.fresh().count()
    }

    /// The tensors of the network that keep their random values.
    pub fn fresh(&self) -> impl Iterator<Item = &str> {
        let names = self.missing.iter().chain(&self.declined).map(String::as_str);
        names.chain(self.reshaped.iter().map(|r| r.name.as_str()))
    }
}

/// Why a file cannot be what a network begins with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// Keys that are missing, too many, or of another shape.
    #[error("{} does not fit the network{}", .report.file.display(), Misfit(.report))]
    Misfit {
        /// What became of every key.
        report: Box<WeightsReport>,
        /// Patterns of all that does not fit, if they are few.
        fresh: Vec<String>,
    },
    /// A pattern that cannot be read.
    #[error("`{pattern}` is no pattern: {reason}")]
    Pattern {
        /// The text.
        pattern: String,
        /// Why.
        reason: String,
    },
    /// A pattern without effect.
    #[error("`{pattern}` matches no tensor of the network and no key of {}", .path.display())]
    Idle {
        /// The pattern.
        pattern: String,
        /// The file.
        path: PathBuf,
    },
    /// Patterns of which nothing is left to load.
    #[error("no tensor is left to take from {}: every one is to keep its random values", .path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
    },
}

impl WeightsError {
    /// What would be valid; `file` is what the recipe calls the file.
    pub fn help(&self, file: &Path) -> Option<String> {
        let Self::Misfit { report, fresh } = self else { return None };
        if fresh.is_empty() {
            let (used, of) = (report.used, report.tensors());
            return Some(format!("{used} of {of} tensors fit; give a file of the same network"));
        }
        let patterns: Vec<String> = fresh.iter().map(|p| format!("\"{p}\"")).collect();
        let (file, patterns) = (file.display(), patterns.join(", "));
        Some(format!(
            "to begin without them, say weights = {{ file = \"{file}\", fresh = [{patterns}] }}"
        ))
    }
}

/// The counter that `PyTorch` keeps beside every batch norm. It has no part in the computation.
const COUNTER: &str = "num_batches_tracked";

/// Tensors by their names in the network.
type Taken<'a> = Vec<(&'a str, &'a NamedTensor)>;

impl FirstValues {
    /// All tensors of a file.
    pub fn new(path: impl Into<PathBuf>, tensors: Vec<NamedTensor>) -> Self {
        Self { path: path.into(), tensors, others: Vec::new(), fresh: None }
    }

    /// Which tensors of a network come from the file. `left_out` names parts of usual checkpoints that the network does
    /// without, by the beginning of their keys.
    ///
    /// # Errors
    /// [`WeightsError`] where a key does not fit and no pattern says that this is meant.
    pub fn fit(
        &self,
        network: &[(String, Vec<usize>)],
        left_out: &[&str],
    ) -> Result<WeightsReport, WeightsError> {
        self.sorted(network, left_out).map(|(report, _)| report)
    }

    /// [`fit`](Self::fit), and the tensors by their names in the network.
    pub(crate) fn taken(
        &self,
        network: &[(String, Vec<usize>)],
        left_out: &[&str],
    ) -> Result<(WeightsReport, Vec<NamedTensor>), WeightsError> {
        let (report, taken) = self.sorted(network, left_out)?;
        let tensors = taken
            .into_iter()
            .map(|(name, tensor)| NamedTensor { name: name.to_owned(), ..tensor.clone() });
        Ok((report, tensors.collect()))
    }

    fn sorted<'a>(
        &'a self,
        network: &'a [(String, Vec<usize>)],
        left_out: &[&str],
    ) -> Result<(WeightsReport, Taken<'a>), WeightsError> {
        let wrong = |(pattern, reason)| WeightsError::Pattern { pattern, reason };
        let matcher = self.fresh.as_ref().map(Matcher::new).transpose().map_err(wrong)?;
        let is_fresh = |name: &str| matcher.as_ref().is_some_and(|m| m.matches(name));
        let known: BTreeSet<&str> = network.iter().map(|(name, _)| name.as_str()).collect();
        let prefix = self.prefix(&known, is_fresh);
        // Keys without the prefix are something else, such as the state of an optimizer.
        let short = |key: &'a str| key.strip_prefix(prefix);
        let named = self.tensors.iter().filter_map(|t| Some((short(&t.name)?, t)));
        let mut tensors: HashMap<&str, &NamedTensor> = named.collect();

        let mut report = WeightsReport {
            file: self.path.clone(),
            dropped_prefix: prefix.to_owned(),
            ..WeightsReport::default()
        };
        let mut taken = Vec::new();
        for (name, shape) in network {
            match tensors.remove(name.as_str()) {
                None => report.missing.push(name.clone()),
                Some(tensor) if tensor.shape != *shape => {
                    let (expected, actual) = (shape.clone(), tensor.shape.clone());
                    report.reshaped.push(ShapeMismatch { name: name.clone(), expected, actual });
                }
                Some(_) if is_fresh(name) => report.declined.push(name.clone()),
                Some(tensor) => taken.push((name.as_str(), tensor)),
            }
        }
        report.used = taken.len();
        // What the network has is dealt with, but for tensors of integers under the name of one of floats.
        let floats = self.tensors.iter().map(|t| t.name.as_str());
        let strange = floats.filter(|key| short(key).is_none_or(|name| !known.contains(name)));
        for key in strange.chain(self.others.iter().map(String::as_str)) {
            let key = short(key).unwrap_or(key);
            let part = left_out.iter().find(|part| key.starts_with(**part));
            let pattern = match part {
                Some(part) => format!("{part}*"),
                None if key.rsplit('.').next() == Some(COUNTER) => format!("*.{COUNTER}"),
                None => {
                    report.unexpected.push(key.to_owned());
                    continue;
                }
            };
            *report.ignored.entry(pattern).or_default() += 1;
        }

        let fits = report.fresh().chain(report.unexpected.iter().map(String::as_str)).all(is_fresh);
        if !fits {
            let fresh = patterns(&report, &known);
            return Err(WeightsError::Misfit { report: Box::new(report), fresh });
        }
        let unexpected = report.unexpected.iter().map(String::as_str);
        let all: Vec<&str> = known.into_iter().chain(unexpected).collect();
        if let Some(pattern) = matcher.as_ref().and_then(|m| m.idle(&all)) {
            let (pattern, path) = (pattern.to_owned(), self.path.clone());
            return Err(WeightsError::Idle { pattern, path });
        }
        if taken.is_empty() {
            return Err(WeightsError::Nothing { path: self.path.clone() });
        }
        Ok((report, taken))
    }

    /// What to drop of keys, so that as many as possible are names of the network; of several the shortest. Keys that
    /// are not looked at do not count.
    fn prefix(&self, known: &BTreeSet<&str>, is_fresh: impl Fn(&str) -> bool) -> &str {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for NamedTensor { name, .. } in self.tensors.iter().filter(|t| !is_fresh(&t.name)) {
            let ends = name.match_indices('.').map(|(dot, _)| dot + 1);
            for end in std::iter::once(0).chain(ends).filter(|end| known.contains(&name[*end..])) {
                *counts.entry(&name[..end]).or_default() += 1;
            }
        }
        let best = counts.into_iter().max_by_key(|(prefix, count)| (*count, Reverse(prefix.len())));
        best.map_or("", |(prefix, _)| prefix)
    }
}

/// Patterns of all tensors and keys that do not fit; none where they are too many for that to be an answer.
fn patterns(report: &WeightsReport, known: &BTreeSet<&str>) -> Vec<String> {
    const MOST: usize = 8;
    let layers = report.fresh().chain(report.unexpected.iter().map(String::as_str)).map(|name| {
        let part = format!("{}.", name.split('.').next().unwrap_or_default());
        let is_foreign = !known.iter().any(|known| known.starts_with(&part));
        match name.rsplit_once('.') {
            None => name.to_owned(),
            Some(_) if is_foreign => format!("{part}*"),
            Some((layer, _)) => format!("{layer}.*"),
        }
    });
    let patterns: BTreeSet<String> = layers.collect();
    let is_answer = report.used > 0 && patterns.len() <= MOST;
    if is_answer { patterns.into_iter().collect() } else { Vec::new() }
}

/// What does not fit, in lines.
struct Misfit<'a>(&'a WeightsReport);

/// Names in a message, and how many are left out of it.
fn list(names: &[impl AsRef<str>]) -> String {
    const MOST: usize = 20;
    let shown: Vec<&str> = names.iter().take(MOST).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(MOST) {
        0 => shown.join(", "),
        more => format!("{}, and {more} more", shown.join(", ")),
    }
}

impl fmt::Display for Misfit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WeightsReport { missing, reshaped, unexpected, .. } = self.0;
        if !reshaped.is_empty() {
            let shapes: Vec<String> = reshaped
                .iter()
                .map(|r| {
                    format!("{} is {:?} in the file and {:?} here", r.name, r.actual, r.expected)
                })
                .collect();
            write!(f, "\n  other shape: {}", list(&shapes))?;
        }
        if !missing.is_empty() {
            write!(f, "\n  missing in the file: {}", list(missing))?;
        }
        if !unexpected.is_empty() {
            write!(f, "\n  unexpected in the file: {}", list(unexpected))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensors: &[(&str, &[usize])]) -> FirstValues {
        let tensor = |(name, shape): &(&str, &[usize])| NamedTensor {
            name: (*name).to_owned(),
            shape: shape.to_vec(),
            values: vec![0.5; shape.iter().product()],
        };
        FirstValues::new("a.pth", tensors.iter().map(tensor).collect())
    }

    fn network() -> Vec<(String, Vec<usize>)> {
        let shapes: [(&str, &[usize]); 4] = [
            ("features.0.weight", &[4, 3]),
            ("features.1.running_mean", &[4]),
            ("fc.weight", &[10, 4]),
            ("fc.bias", &[10]),
        ];
        shapes.map(|(name, shape)| (name.to_owned(), shape.to_vec())).to_vec()
    }

    const FITTING: [(&str, &[usize]); 4] = [
        ("features.0.weight", &[4, 3]),
        ("features.1.running_mean", &[4]),
        ("fc.weight", &[10, 4]),
        ("fc.bias", &[10]),
    ];

    fn globs(patterns: &[&str]) -> Layers {
        Layers::Globs(patterns.iter().map(|&p| p.to_owned()).collect())
    }

    fn refused(file: &FirstValues) -> String {
        let error = file.fit(&network(), &[]).unwrap_err();
        match error.help(Path::new("recipe/a.pth")) {
            Some(help) => format!("{error}\n  help: {help}"),
            None => error.to_string(),
        }
    }

    #[test]
    fn counters_and_parts_left_out_are_counted_and_the_rest_is_used() {
        let mut file = values(&FITTING);
        file.others = vec!["features.1.num_batches_tracked".into()];
        file.tensors.extend(values(&[("Aux.fc.weight", &[2]), ("Aux.fc.bias", &[2])]).tensors);
        let report = file.fit(&network(), &["Aux."]).unwrap();
        assert_eq!((report.used, report.tensors(), report.fresh().count()), (4, 4, 0));
        let ignored = [("*.num_batches_tracked".to_owned(), 1), ("Aux.*".to_owned(), 2)];
        assert_eq!(report.ignored, BTreeMap::from(ignored));
        assert!(report.unexpected.is_empty() && report.dropped_prefix.is_empty());
        let error = file.fit(&network(), &[]).unwrap_err();
        let WeightsError::Misfit { report, .. } = error else { panic!("{error}") };
        assert_eq!(report.unexpected, ["Aux.fc.weight", "Aux.fc.bias"]);
    }

    #[test]
    fn a_classifier_of_another_size_is_an_error_that_says_what_to_do() {
        let mut file = values(&FITTING);
        file.tensors[2].shape = vec![1000, 4];
        file.tensors[3].shape = vec![1000];
        assert_eq!(
            refused(&file),
            "a.pth does not fit the network\n  \
             other shape: fc.weight is [1000, 4] in the file and [10, 4] here, \
             fc.bias is [1000] in the file and [10] here\n  \
             help: to begin without them, say weights = { file = \"recipe/a.pth\", fresh = [\"fc.*\"] }"
        );
        file.fresh = Some(globs(&["fc.*"]));
        let (report, taken) = file.taken(&network(), &[]).unwrap();
        assert_eq!((report.used, report.tensors()), (2, 4));
        assert_eq!(report.fresh().collect::<Vec<_>>(), ["fc.weight", "fc.bias"]);
        assert_eq!(report.reshaped[0].actual, [1000, 4]);
        let names: Vec<&str> = taken.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["features.0.weight", "features.1.running_mean"]);
    }

    #[test]
    fn missing_and_unexpected_keys_are_named() {
        let file = values(&[FITTING[0], FITTING[1], ("head.weight", &[10, 4]), ("scale", &[1])]);
        assert_eq!(
            refused(&file),
            "a.pth does not fit the network\n  \
             missing in the file: fc.weight, fc.bias\n  \
             unexpected in the file: head.weight, scale\n  \
             help: to begin without them, say \
             weights = { file = \"recipe/a.pth\", fresh = [\"fc.*\", \"head.*\", \"scale\"] }"
        );
        let part = FirstValues { fresh: Some(globs(&["fc.*", "head.*", "scale"])), ..file.clone() };
        let report = part.fit(&network(), &[]).unwrap();
        assert_eq!(report.missing, ["fc.weight", "fc.bias"]);
        assert_eq!(report.unexpected, ["head.weight", "scale"]);
        // A pattern covers what it says and no more.
        let part = FirstValues { fresh: Some(globs(&["fc.*", "head.*"])), ..file };
        assert!(refused(&part).contains("scale"));
    }

    #[test]
    fn what_fits_can_be_declined() {
        let file = FirstValues { fresh: Some(globs(&["fc.bias"])), ..values(&FITTING) };
        let report = file.fit(&network(), &[]).unwrap();
        assert_eq!((report.used, report.declined), (3, vec!["fc.bias".to_owned()]));
    }

    #[test]
    fn what_lies_beside_the_network_in_a_checkpoint_is_unexpected() {
        let mut file = values(&FITTING);
        file.tensors.iter_mut().for_each(|t| t.name = format!("state_dict.{}", t.name));
        file.tensors.extend(values(&[("optimizer.0.m", &[2]), ("optimizer.1.m", &[2])]).tensors);
        let error = refused(&file);
        assert_eq!(
            error,
            "a.pth does not fit the network\n  \
             unexpected in the file: optimizer.0.m, optimizer.1.m\n  \
             help: to begin without them, say \
             weights = { file = \"recipe/a.pth\", fresh = [\"optimizer.*\"] }"
        );
        file.fresh = Some(globs(&["optimizer.*"]));
        let report = file.fit(&network(), &[]).unwrap();
        assert_eq!((report.used, report.dropped_prefix.as_str()), (4, "state_dict."));
        // An average of the weights beside them is not mixed with them.
        let mut average = file.tensors[..4].to_vec();
        for tensor in &mut average {
            tensor.name = tensor.name.replace("state_dict", "average");
            tensor.values.fill(9.0);
        }
        file.tensors.splice(..0, average);
        file.fresh = Some(globs(&["optimizer.*", "average.*"]));
        let (report, taken) = file.taken(&network(), &[]).unwrap();
        assert_eq!((report.used, report.unexpected.len()), (4, 6));
        assert_eq!(report.dropped_prefix, "state_dict.");
        assert_eq!(taken[0].values[0], 0.5);
    }

    #[test]
    fn a_prefix_of_all_keys_is_dropped_where_the_network_has_none() {
        let with = |prefix: &str| {
            let mut file = values(&FITTING);
            file.others = vec!["features.1.num_batches_tracked".into()];
            file.tensors.iter_mut().for_each(|t| t.name = format!("{prefix}{}", t.name));
            file.others.iter_mut().for_each(|name| *name = format!("{prefix}{name}"));
            file
        };
        for prefix in ["", "module.", "model.module."] {
            let (report, taken) = with(prefix).taken(&network(), &[]).unwrap();
            assert_eq!((report.used, report.dropped_prefix.as_str()), (4, prefix));
            assert_eq!(taken[2].name, "fc.weight");
            assert_eq!(report.ignored["*.num_batches_tracked"], 1);
        }
        // Keys of one part alone have a prefix in common that the network has too.
        for prefix in ["", "module."] {
            let mut file = FirstValues { fresh: Some(globs(&["fc.*"])), ..with(prefix) };
            file.tensors.truncate(2);
            let report = file.fit(&network(), &[]).unwrap();
            assert_eq!((report.used, report.dropped_prefix.as_str()), (2, prefix));
        }
    }

    #[test]
    fn patterns_without_effect_and_without_sense_are_refused() {
        let message = |patterns: &[&str]| {
            let file = FirstValues { fresh: Some(globs(patterns)), ..values(&FITTING) };
            refused(&file)
        };
        let idle = "`head.*` matches no tensor of the network and no key of a.pth";
        assert_eq!(message(&["fc.*", "head.*"]), idle);
        assert!(message(&["["]).starts_with("`[` is no pattern: "));
        assert!(message(&["*"]).starts_with("no tensor is left to take from a.pth"));
        let foreign = refused(&values(&[("a", &[1]), ("b", &[2])]));
        assert!(foreign.ends_with("0 of 4 tensors fit; give a file of the same network"));
        let none = refused(&values(&[]));
        assert!(none.contains("missing in the file: features.0.weight"), "{none}");
    }
}
