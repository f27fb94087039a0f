//! Rules that hold for a part of a run, and the parts of a run in which no rule starts or ends.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::{Plan, PlanError};
use crate::rules::Rule;

/// A moment of a run, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// When so many epochs are done.
    Epochs(u64),
    /// When so many steps are done.
    Steps(u64),
}

impl When {
    fn count(self) -> u64 {
        match self {
            Self::Epochs(n) | Self::Steps(n) => n,
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Epochs(_) => "epochs",
            Self::Steps(_) => "steps",
        }
    }
}

/// Prints `2 epochs`, or `1 step`.
impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = self.unit();
        write!(
            f,
            "{} {}",
            self.count(),
            if self.count() == 1 { &unit[..unit.len() - 1] } else { unit }
        )
    }
}

/// A part of a run in which the same rules hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// When it starts; `None` for the first.
    pub start: Option<When>,
    /// What every tensor is held in.
    pub plan: Plan,
}

impl Phase {
    /// Whether it has started once so many epochs and steps are done.
    pub(crate) fn has_started(&self, epochs: u64, steps: u64) -> bool {
        match self.start {
            None => true,
            Some(When::Epochs(n)) => epochs >= n,
            Some(When::Steps(n)) => steps >= n,
        }
    }
}

/// Whether a rule holds in the phase that starts then.
pub(crate) fn holds(rule: &Rule, start: Option<When>) -> bool {
    let now = start.map_or(0, When::count);
    rule.after.is_none_or(|w| w.count() <= now) && rule.until.is_none_or(|w| now < w.count())
}

/// When phases start, the first of them with the run.
///
/// # Errors
/// If a rule never holds, if it speaks of what cannot change during a run, or if epochs and steps are both counted, whose
/// order only the data would tell.
pub(crate) fn starts(rules: &[Rule]) -> Result<Vec<Option<When>>, PlanError> {
    let mut starts: Vec<When> = Vec::new();
    for (r, rule) in rules.iter().enumerate() {
        let ends = [("after", rule.after), ("until", rule.until)];
        for (key, when) in ends.into_iter().filter_map(|(key, when)| Some((key, when?))) {
            if let Some(other) = starts.first().filter(|other| other.unit() != when.unit()) {
                let other = other.unit();
                return Err(PlanError::Units { rule: r + 1, key, other });
            }
            starts.push(when);
        }
        let from = rule.after.map_or(0, When::count);
        if let Some(until) = rule.until.filter(|until| until.count() <= from) {
            return Err(PlanError::NeverHolds { rule: r + 1, until });
        }
        if rule.after.is_some() || rule.until.is_some() {
            let fixed = ["a", "aw", "ab", "m", "v", "mb", "vb"];
            let key = fixed.into_iter().find(|key| rule.get(key).is_some());
            if let Some(key) = key.or(rule.master.and(Some("master"))) {
                return Err(PlanError::Timed { rule: r + 1, key });
            }
        }
    }
    starts.sort_by_key(|when| when.count());
    starts.dedup();
    Ok(std::iter::once(None)
        .chain(starts.into_iter().filter(|w| w.count() > 0).map(Some))
        .collect())
}

/// Fails if a rule starts or ends when the run is over: after so many epochs, and so many steps where that is known.
///
/// # Errors
/// The first such rule.
pub fn check_end(rules: &[Rule], epochs: u64, steps: Option<u64>) -> Result<(), PlanError> {
    for (r, rule) in rules.iter().enumerate() {
        for (key, when) in [("after", rule.after), ("until", rule.until)] {
            let end = match when {
                Some(When::Epochs(n)) if n >= epochs => When::Epochs(epochs),
                Some(When::Steps(n)) => match steps {
                    Some(steps) if n >= steps => When::Steps(steps),
                    _ => continue,
                },
                _ => continue,
            };
            return Err(PlanError::Late { rule: r + 1, key, end });
        }
    }
    Ok(())
}
