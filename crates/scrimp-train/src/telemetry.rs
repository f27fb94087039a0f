//! Telemetry: what rounding did to the tensors of a step that is looked at.
//!
//! Every tensor that passes a tap, and every moment that is packed, is then compared with what its bytes hold. They are
//! the values that training goes on with, so that a step that is looked at is the step that it would have been.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use scrimp_codec::Loss;
use serde::{Deserialize, Serialize};

use crate::role::Role;

/// What rounding did to a tensor in one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Path of the layer.
    pub layer: String,
    /// The tensor's role.
    pub role: Role,
    /// Values that are finite; all other fields are about them.
    pub values: u64,
    /// Values that are NaN or infinite.
    pub nonfinite: u64,
    /// Signal to quantization noise, in dB; `None` where it is no finite number, as where nothing was lost.
    pub sqnr_db: Option<f64>,
    /// Share of the values that lie beyond the outermost codes of their group; `None` where that means nothing to the
    /// scheme.
    pub clipped: Option<f64>,
    /// Share of the values that became zero and were not.
    pub zeroed: f64,
    /// The least value before rounding; `None` where there is none.
    pub min: Option<f32>,
    /// The greatest value before rounding.
    pub max: Option<f32>,
    /// The largest magnitude before rounding.
    pub amax: Option<f32>,
}

/// What was found of a tensor so far.
#[derive(Clone, Copy, Debug)]
struct Found {
    loss: Loss,
    clipped: Option<u64>,
    min: f32,
    max: f32,
}

impl Found {
    fn between(x: &[f32], y: &[f32], clipped: Option<u64>) -> Self {
        let finite = || x.iter().copied().filter(|v| v.is_finite());
        Self {
            loss: Loss::between(x, y),
            clipped,
            min: finite().fold(f32::INFINITY, f32::min),
            max: finite().fold(f32::NEG_INFINITY, f32::max),
        }
    }

    fn join(self, other: Self) -> Self {
        Self {
            loss: self.loss.join(other.loss),
            clipped: self.clipped.zip(other.clipped).map(|(a, b)| a + b),
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }

    /// The report of the tensor with this name; `None` if it is none of a layer and a role.
    fn report(&self, name: &str) -> Option<TensorReport> {
        let (layer, key) = name.rsplit_once('.')?;
        let Self { loss, clipped, min, max } = *self;
        let some = |value: f32| (loss.values > 0).then_some(value);
        let share = |count: u64| count as f64 / loss.values.max(1) as f64;
        Some(TensorReport {
            layer: layer.to_owned(),
            role: Role::ALL.into_iter().find(|role| role.key() == key)?,
            values: loss.values,
            nonfinite: loss.nonfinite,
            sqnr_db: loss.sqnr_db().filter(|db| db.is_finite()),
            clipped: clipped.map(share),
            zeroed: share(loss.zeroed),
            min: some(min),
            max: some(max),
            amax: some(max.max(-min)),
        })
    }
}

/// Collects what happens to tensors, while it is on.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    is_on: AtomicBool,
    found: Mutex<BTreeMap<String, Found>>,
}

impl Telemetry {
    /// Whether somebody wants to know.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Collects from now on.
    pub fn start(&self) {
        self.is_on.store(true, Ordering::Relaxed);
    }

    /// Stops, and gives what was collected of each tensor, by name.
    pub fn finish(&self) -> Vec<TensorReport> {
        self.is_on.store(false, Ordering::Relaxed);
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *found).iter().filter_map(|(name, f)| f.report(name)).collect()
    }

    /// Notes that `x`, of which so many values were clipped, became `y`. What comes under one name is one tensor: one that
    /// passes twice in a step, and the parts of a moment, whose names end in `+` and a number.
    pub fn note(&self, name: &str, x: &[f32], y: &[f32], clipped: Option<u64>) {
        let name = name.rsplit_once('+').map_or(name, |(whole, _)| whole);
        let new = Found::between(x, y, clipped);
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = found.get(name).map_or(new, |known| known.join(new));
        found.insert(name.to_owned(), joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, x: &[f32], y: &[f32], clipped: Option<u64>) -> TensorReport {
        let telemetry = Telemetry::default();
        telemetry.note(name, x, y, clipped);
        telemetry.finish().remove(0)
    }

    #[test]
    fn a_tensor_is_reported_by_hand() {
        let report = one("fc.a.dy", &[3.0, -4.0, 0.25, 0.0], &[3.0, -3.0, 0.0, 0.0], Some(1));
        assert_eq!((report.layer.as_str(), report.role), ("fc.a", Role::OutputGrad));
        assert_eq!((report.values, report.nonfinite), (4, 0));
        assert_eq!(report.sqnr_db, Some(10.0 * (25.0625f64 / 1.0625).log10()));
        assert_eq!((report.clipped, report.zeroed), (Some(0.25), 0.25));
        assert_eq!((report.min, report.max, report.amax), (Some(-4.0), Some(3.0), Some(4.0)));
    }

    #[test]
    fn what_is_exact_or_empty_or_not_finite_has_no_number() {
        let exact = one("fc.w", &[-1.0, -2.0], &[-1.0, -2.0], None);
        assert_eq!((exact.sqnr_db, exact.clipped, exact.zeroed), (None, None, 0.0));
        assert_eq!((exact.min, exact.max, exact.amax), (Some(-2.0), Some(-1.0), Some(2.0)));
        let empty = one("fc.w", &[], &[], Some(0));
        assert_eq!((empty.values, empty.min, empty.amax), (0, None, None));
        assert_eq!((empty.clipped, empty.zeroed), (Some(0.0), 0.0));
        let nan = one("fc.w", &[f32::NAN, f32::INFINITY], &[0.0, 1.0], Some(1));
        assert_eq!((nan.values, nan.nonfinite, nan.max), (0, 2, None));
        let text = serde_json::to_string(&nan).unwrap();
        assert_eq!(serde_json::from_str::<TensorReport>(&text).unwrap(), nan);
    }

    #[test]
    fn parts_are_one_tensor_and_nothing_is_left_for_the_next_step() {
        let telemetry = Telemetry::default();
        telemetry.start();
        telemetry.note("fc.m", &[1.0, 2.0], &[1.0, 1.0], Some(1));
        telemetry.note("fc.m+2", &[-8.0, 4.0], &[-8.0, 0.0], Some(0));
        telemetry.note("fc.db", &[1.0], &[1.0], None);
        assert!(telemetry.is_on());
        let [db, m] = <[_; 2]>::try_from(telemetry.finish()).unwrap();
        assert_eq!((db.role, m.role, m.values), (Role::BiasGrad, Role::Moment1, 4));
        assert_eq!((m.clipped, m.zeroed, m.min, m.max), (Some(0.25), 0.25, Some(-8.0), Some(4.0)));
        assert_eq!(m.sqnr_db, Some(10.0 * (85.0f64 / 17.0).log10()));
        assert!(!telemetry.is_on() && telemetry.finish().is_empty());
    }
}
