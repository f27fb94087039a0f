//! The least squared error.

use scrimp_codec::Range;

use super::{Calibration, Stats, squared_error};
use crate::element::Element;

/// How many parts of the way from zero to the extreme are tried.
const STEPS: usize = 100;

/// The range whose rounding and saturation together have the least squared error on the histogram: each end is searched
/// on a grid of 100 shares of the extreme and then by golden section, until neither moves.
#[derive(Debug)]
pub struct Mse;

impl Calibration for Mse {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn about(&self) -> &'static str {
        "least squared error of rounding and saturation together"
    }

    fn range(&self, stats: &Stats, element: &Element, symmetric: bool) -> Range {
        let full = stats.range;
        let error = |range: Range| squared_error(&stats.histogram, element, range, symmetric);
        if symmetric {
            let amax = full.amax();
            let share = least(|share| error(Range { min: -amax * share, max: amax * share }));
            return Range { min: -amax * share, max: amax * share };
        }
        let mut range = Range { min: full.min.min(0.0), max: full.max.max(0.0) };
        let ends = range;
        for _ in 0..4 {
            let before = range;
            if ends.max > 0.0 {
                range.max =
                    ends.max * least(|share| error(Range { max: ends.max * share, ..range }));
            }
            if ends.min < 0.0 {
                range.min =
                    ends.min * least(|share| error(Range { min: ends.min * share, ..range }));
            }
            if before == range {
                break;
            }
        }
        range
    }
}

/// The share in (0, 1] with the least error.
fn least(error: impl Fn(f32) -> f64) -> f32 {
    let grid = |at: usize| at as f32 / STEPS as f32;
    let best = (1..=STEPS)
        .map(|at| (at, error(grid(at))))
        .min_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
        .map_or(STEPS, |(at, _)| at);
    // Golden section between the neighbours of the best point.
    let golden = (5f32.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (grid(best - 1).max(1e-3), grid((best + 1).min(STEPS)));
    let mut answer = (grid(best), error(grid(best)));
    for _ in 0..12 {
        let (a, b) = (high - golden * (high - low), low + golden * (high - low));
        let (error_a, error_b) = (error(a), error(b));
        let better = if error_a < error_b { (a, error_a) } else { (b, error_b) };
        if better.1 < answer.1 {
            answer = better;
        }
        if error_a < error_b {
            high = b;
        } else {
            low = a;
        }
    }
    answer.0
}
