//! The clipping point of a Laplace distribution.

use scrimp_codec::Range;

use super::{Calibration, Stats};
use crate::element::Element;

/// Clips at a multiple of the mean absolute deviation that depends on the width alone.
///
/// # Source
/// Banner et al. 2019, arXiv:1810.05723, for Laplace: 2.83, 3.89, 5.03, 6.2 and 9.89 for 2, 3, 4, 5 and 8 bits; the widths
/// between them lie on the line through their neighbours, and 16 bits are not clipped.
#[derive(Debug)]
pub struct Aciq;

/// Width and multiple.
const MULTIPLES: [(f64, f64); 5] = [(2.0, 2.83), (3.0, 3.89), (4.0, 5.03), (5.0, 6.2), (8.0, 9.89)];

impl Calibration for Aciq {
    fn name(&self) -> &'static str {
        "aciq"
    }

    fn about(&self) -> &'static str {
        "clips where a Laplace distribution of the same spread should be clipped"
    }

    fn range(&self, stats: &Stats, element: &Element, _symmetric: bool) -> Range {
        let bits = (element.levels() as f64).log2();
        if bits > 8.0 {
            return stats.range;
        }
        let total: f64 = stats.histogram.bins().map(|(_, n)| n).sum();
        let mean = stats.histogram.bins().map(|(v, n)| f64::from(v) * n).sum::<f64>() / total;
        let deviation =
            stats.histogram.bins().map(|(v, n)| (f64::from(v) - mean).abs() * n).sum::<f64>()
                / total;
        let at = MULTIPLES.iter().position(|row| row.0 >= bits).unwrap_or(MULTIPLES.len() - 1);
        let multiple = if at == 0 {
            MULTIPLES[0].1
        } else {
            let (a, b) = (MULTIPLES[at - 1], MULTIPLES[at]);
            a.1 + (b.1 - a.1) * (bits - a.0) / (b.0 - a.0)
        };
        #[expect(clippy::cast_possible_truncation, reason = "a range of f32 values")]
        let (low, high) =
            ((mean - multiple * deviation) as f32, (mean + multiple * deviation) as f32);
        // The mean is that of the middles of bins, and may lie beyond values that are all the same.
        let within = |v: f32| v.clamp(stats.range.min, stats.range.max);
        Range { min: within(low), max: within(high) }
    }
}
