//! Everything that was seen.

use scrimp_codec::Range;

use super::{Calibration, Stats};
use crate::element::Element;

/// From the smallest to the largest value.
#[derive(Debug)]
pub struct MinMax;

impl Calibration for MinMax {
    fn name(&self) -> &'static str {
        "min-max"
    }

    fn about(&self) -> &'static str {
        "from the smallest to the largest value; nothing saturates, one outlier costs all others"
    }

    fn range(&self, stats: &Stats, _element: &Element, _symmetric: bool) -> Range {
        stats.range
    }
}
