//! A mean of the ranges of batches.

use scrimp_codec::Range;

use super::{Calibration, Stats};
use crate::element::Element;

/// The moving average of the smallest and largest values of the batches.
///
/// # Source
/// PyTorch, `MovingAverageMinMaxObserver`: a batch counts 0.01.
#[derive(Debug)]
pub struct MovingAverage;

impl Calibration for MovingAverage {
    fn name(&self) -> &'static str {
        "moving-average"
    }

    fn about(&self) -> &'static str {
        "the smallest and largest values of each batch, averaged with a weight of 0.01 for a new one"
    }

    fn range(&self, stats: &Stats, _element: &Element, _symmetric: bool) -> Range {
        stats.moving
    }
}
