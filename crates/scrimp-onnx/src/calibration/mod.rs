//! From values seen to a range for the codes.

mod aciq;
mod entropy;
mod histogram;
mod l2;
mod minmax;
mod moving;
mod mse;
mod percentile;

use std::fmt::Debug;

pub use histogram::Histogram;
use scrimp_codec::Range;

use crate::element::Element;

/// What was seen of one tensor. Stats of parts of the data can be merged; except for the moving average, the order does
/// not matter.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Finite values.
    pub count: u64,
    /// Values that are NaN.
    pub nans: u64,
    /// Values that are infinite.
    pub infinities: u64,
    /// The range of the finite values.
    pub range: Range,
    /// How the finite values are spread.
    pub histogram: Histogram,
    /// The moving average of the ranges of the batches, and how many batches there were.
    pub moving: Range,
    /// Batches.
    pub batches: u64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            count: 0,
            nans: 0,
            infinities: 0,
            range: Range::EMPTY,
            histogram: Histogram::default(),
            moving: Range::EMPTY,
            batches: 0,
        }
    }
}

/// The weight of a new batch in the moving average, that of PyTorch's observer.
const MOVING_RATE: f32 = 0.01;

impl Stats {
    /// Adds the values of one batch.
    pub fn add(&mut self, values: &[f32]) {
        let mut range = Range::EMPTY;
        let (mut nans, mut infinities) = (0, 0);
        // Without a branch, so that many values are looked at at once; what is not finite is hardly ever there.
        let mut finite = true;
        for &v in values {
            finite &= v.is_finite();
            range.min = if v < range.min { v } else { range.min };
            range.max = if v > range.max { v } else { range.max };
        }
        if !finite {
            range = Range::EMPTY;
            for &v in values {
                if v.is_finite() {
                    range.min = range.min.min(v);
                    range.max = range.max.max(v);
                } else if v.is_nan() {
                    nans += 1;
                } else {
                    infinities += 1;
                }
            }
        }
        self.nans += nans;
        self.infinities += infinities;
        let finite = values.len() as u64 - nans - infinities;
        if finite == 0 {
            return;
        }
        self.count += finite;
        self.histogram.cover(range.amax());
        self.histogram.add(values);
        self.moving = if self.batches == 0 {
            range
        } else {
            Range {
                min: self.moving.min + MOVING_RATE * (range.min - self.moving.min),
                max: self.moving.max + MOVING_RATE * (range.max - self.moving.max),
            }
        };
        self.batches += 1;
        self.range = self.range.join(range);
    }

    /// Adds what was seen elsewhere.
    pub fn merge(&mut self, other: &Self) {
        if other.count > 0 {
            self.histogram.merge(&other.histogram);
            let total = (self.batches + other.batches) as f32;
            let mean =
                |a: f32, b: f32| (a * self.batches as f32 + b * other.batches as f32) / total;
            self.moving = if self.batches == 0 {
                other.moving
            } else {
                Range {
                    min: mean(self.moving.min, other.moving.min),
                    max: mean(self.moving.max, other.moving.max),
                }
            };
            self.range = self.range.join(other.range);
        }
        self.count += other.count;
        self.nans += other.nans;
        self.infinities += other.infinities;
        self.batches += other.batches;
    }
}

/// A way to choose the range of values that get codes of their own; what lies beyond it saturates.
pub trait Calibration: Debug + Sync {
    /// The name in configurations.
    fn name(&self) -> &'static str;
    /// One sentence.
    fn about(&self) -> &'static str;
    /// The range, for stats of at least one value.
    fn range(&self, stats: &Stats, element: &Element, symmetric: bool) -> Range;
}

/// Every method; the first is the default.
pub static CALIBRATIONS: &[&dyn Calibration] = &[
    &l2::HistogramL2,
    &mse::Mse,
    &minmax::MinMax,
    &moving::MovingAverage,
    &percentile::Percentile { percent: 99.999 },
    &entropy::Entropy,
    &aciq::Aciq,
];

/// The method with this name: a row of [`CALIBRATIONS`], or `percentile:P` for another share of the values.
///
/// # Errors
/// A sentence that names what would be valid.
pub fn find(name: &str) -> Result<Box<dyn Calibration>, String> {
    if let Some(percent) = name.strip_prefix("percentile:") {
        return match percent.parse::<f64>() {
            Ok(percent) if percent > 50.0 && percent <= 100.0 => {
                Ok(Box::new(percentile::Percentile { percent }))
            }
            _ => Err(format!("`{name}`: a percentile lies above 50 and is at most 100")),
        };
    }
    if let Some(&row) = CALIBRATIONS.iter().find(|row| row.name() == name) {
        return Ok(Box::new(row));
    }
    let names: Vec<&str> = CALIBRATIONS.iter().map(Calibration::name).collect();
    let near = scrimp_codec::nearest(name, names.iter().copied())
        .map(|near| format!(" (did you mean `{near}`?)"));
    Err(format!(
        "unknown calibration `{name}`{}; known are {}",
        near.unwrap_or_default(),
        names.join(", ")
    ))
}

impl Calibration for &'static dyn Calibration {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn about(&self) -> &'static str {
        (**self).about()
    }

    fn range(&self, stats: &Stats, element: &Element, symmetric: bool) -> Range {
        (**self).range(stats, element, symmetric)
    }
}

/// The mean squared error of rounding the values of a histogram to the codes of this range, times their number.
fn squared_error(histogram: &Histogram, element: &Element, range: Range, symmetric: bool) -> f64 {
    let (scale, zero) = element.fit(range.min, range.max, symmetric);
    histogram
        .bins()
        .map(|(value, count)| {
            let rounded = element.decode(element.encode(value, scale, zero), scale, zero);
            count * f64::from(value - rounded).powi(2)
        })
        .sum()
}
