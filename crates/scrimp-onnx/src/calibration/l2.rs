//! The search of PyTorch's histogram observer.

use scrimp_codec::Range;

use super::{Calibration, Stats};
use crate::element::Element;

/// How much of the distribution one move leaves out.
const STRIDE: f64 = 1e-5;
/// Bins of the distribution that is searched.
const BINS: usize = 2048;

/// Narrows the range from the side whose bins are sparser, in moves of 1e-5 of the values, until the squared error grows.
///
/// # Source
/// PyTorch, `HistogramObserver`: the error supposes that values are spread evenly within each bin. Differs: the levels are
/// those of the element, not always 256.
#[derive(Debug)]
pub struct HistogramL2;

impl Calibration for HistogramL2 {
    fn name(&self) -> &'static str {
        "l2"
    }

    fn about(&self) -> &'static str {
        "the search of PyTorch's histogram observer: narrows the range until the squared error grows"
    }

    fn range(&self, stats: &Stats, element: &Element, _symmetric: bool) -> Range {
        let (low, high) = (f64::from(stats.range.min), f64::from(stats.range.max));
        if low >= high {
            return stats.range;
        }
        let counts = stats.histogram.rebinned(low, high, BINS, true);
        let total: f64 = counts.iter().sum();
        let sums: Vec<f64> = counts
            .iter()
            .scan(0.0, |sum, count| {
                *sum += count;
                Some(*sum)
            })
            .collect();
        let levels = element.levels();
        let (mut alpha, mut beta) = (0.0, 1.0);
        let (mut start, mut end) = (0, BINS - 1);
        let mut least = f64::INFINITY;
        while alpha < beta {
            let (next_alpha, next_beta) = (alpha + STRIDE, beta - STRIDE);
            let mut left = start;
            while left < end && sums[left] < next_alpha * total {
                left += 1;
            }
            let mut right = end;
            while right > start && sums[right] > next_beta * total {
                right -= 1;
            }
            let (mut next_start, mut next_end) = (start, end);
            if left - start > end - right {
                next_start = left;
                alpha = next_alpha;
            } else {
                next_end = right;
                beta = next_beta;
            }
            if (next_start, next_end) == (start, end) {
                continue;
            }
            let error = error_of(&counts, next_start, next_end, levels);
            if error > least {
                break;
            }
            least = error;
            (start, end) = (next_start, next_end);
        }
        let width = (high - low) / BINS as f64;
        #[expect(clippy::cast_possible_truncation, reason = "edges of bins of f32 values")]
        let edge = |bin: usize| (low + bin as f64 * width) as f32;
        Range { min: edge(start), max: edge(end + 1) }
    }
}

/// The squared error, in units of a bin's width, of codes spread evenly over the bins `start..=end`.
fn error_of(counts: &[f64], start: usize, end: usize, levels: usize) -> f64 {
    let step = (end - start + 1) as f64 / levels as f64;
    if step == 0.0 {
        return 0.0;
    }
    // The integral of (x - center)^2 over a part of one code's interval, by its distances from the center.
    let cubic = |from: f64, to: f64| (to.powi(3) - from.powi(3)) / 3.0;
    counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0.0)
        .map(|(bin, count)| {
            let (from, to) = (bin as f64 - start as f64, bin as f64 - start as f64 + 1.0);
            let code = |x: f64| (x / step).floor().clamp(0.0, levels as f64 - 1.0);
            let (first, last) = (code(from), code(to));
            let center = |code: f64| (code + 0.5) * step;
            let error = if first >= last {
                cubic(from - center(first), to - center(first))
            } else {
                let whole = (last - first - 1.0) * cubic(-step / 2.0, step / 2.0);
                cubic(from - center(first), step / 2.0)
                    + whole
                    + cubic(-step / 2.0, to - center(last))
            };
            count * error
        })
        .sum()
}
