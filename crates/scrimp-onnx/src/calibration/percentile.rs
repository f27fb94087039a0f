//! All but a small share of the values.

use scrimp_codec::Range;

use super::{Calibration, Stats};
use crate::element::Element;

/// The range that leaves out half of `100 - percent` per cent of the values on either side, and at least one value.
///
/// # Source
/// Intel Neural Compressor, `percentile`. Differs: a share of less than one value still cuts one, so that a single outlier
/// among few values goes; zeros of a rectified tensor count as values.
#[derive(Debug)]
pub struct Percentile {
    /// The share that stays, in per cent.
    pub percent: f64,
}

impl Calibration for Percentile {
    fn name(&self) -> &'static str {
        "percentile"
    }

    fn about(&self) -> &'static str {
        "leaves out the outermost values, 0.0005 % on either side; `percentile:99.9` names another share"
    }

    fn range(&self, stats: &Stats, _element: &Element, _symmetric: bool) -> Range {
        if self.percent >= 100.0 {
            return stats.range;
        }
        let cut = (stats.count as f64 * (100.0 - self.percent) / 200.0).max(1.0);
        #[expect(clippy::cast_possible_truncation, reason = "the edge of a bin")]
        let half = (stats.histogram.width() / 2.0) as f32;
        let bins: Vec<(f32, f64)> = stats.histogram.bins().collect();
        let edge = |bins: &mut dyn Iterator<Item = &(f32, f64)>| {
            let mut left = cut;
            for &(value, count) in bins {
                if count > left {
                    return Some(value);
                }
                left -= count;
            }
            None
        };
        let low = edge(&mut bins.iter()).map_or(stats.range.min, |v| v - half);
        let high = edge(&mut bins.iter().rev()).map_or(stats.range.max, |v| v + half);
        let (low, high) = (low.max(stats.range.min), high.min(stats.range.max));
        // Of two values each would be cut off by the other's side.
        if low <= high { Range { min: low, max: high } } else { stats.range }
    }
}
