//! The least Kullback-Leibler divergence.

use scrimp_codec::Range;

use super::{Calibration, Stats};
use crate::element::Element;

/// Bins of the distribution that is compared, over the whole range.
const BINS: usize = 2048;
/// What an empty bin gets when distributions are smoothed.
const SMOOTHING: f64 = 1e-4;

/// The range whose codes keep most of the shape of the distribution.
///
/// Candidates are windows around zero that hold more and more bins. `P` is the distribution with what lies beyond the window
/// added to its outermost bins; `Q` is the window merged into as many runs as there are codes, each spread evenly over those
/// of its bins that are not empty. The window with the least `sum P ln(P / Q)` wins, both smoothed.
///
/// # Source
/// NVIDIA's calibration, as Intel Neural Compressor has it. Differs: counts are not cut to integers, only bins that hold
/// something get a share, exact zeros are left out, the last run takes what is left over, and there are 2048 bins (with as many bins as runs there
/// is one candidate only, and the method is min-max).
#[derive(Debug)]
pub struct Entropy;

impl Calibration for Entropy {
    fn name(&self) -> &'static str {
        "entropy"
    }

    fn about(&self) -> &'static str {
        "least Kullback-Leibler divergence between the values and their codes, 2048 bins"
    }

    fn range(&self, stats: &Stats, element: &Element, symmetric: bool) -> Range {
        let levels = element.levels().min(256);
        let full = Range { min: stats.range.min.min(0.0), max: stats.range.max.max(0.0) };
        let amax = full.amax();
        if amax == 0.0 {
            return full;
        }
        let two_sided = symmetric || full.min < 0.0;
        let low = if two_sided { -f64::from(amax) } else { 0.0 };
        // Every code has an exact zero, so that zeros, of which rectified tensors have as many as of all else, lose nothing.
        let counts = stats.histogram.rebinned(low, f64::from(amax), BINS, false);
        let reach = if two_sided { BINS / 2 } else { BINS };
        let zero = BINS - reach;
        let first = (if two_sided { levels / 2 } else { levels }).min(reach);
        let best = (first..=reach)
            .map(|half| {
                let start = if two_sided { zero - half } else { 0 };
                (half, divergence(&counts, start, zero + half, levels))
            })
            .min_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
            .map_or(reach, |(half, _)| half);
        let threshold = amax * best as f32 / reach as f32;
        Range { min: full.min.max(-threshold), max: full.max.min(threshold) }
    }
}

/// `sum P ln(P / Q)` for the window `start..end`.
fn divergence(counts: &[f64], start: usize, end: usize, levels: usize) -> f64 {
    let window = &counts[start..end];
    let mut p = window.to_vec();
    p[0] += counts[..start].iter().sum::<f64>();
    *p.last_mut().expect("a window is not empty") += counts[end..].iter().sum::<f64>();

    let run = (window.len() / levels).max(1);
    let mut q = vec![0.0; window.len()];
    for level in 0..levels.min(window.len()) {
        let from = level * run;
        let to = if level + 1 == levels { window.len() } else { (from + run).min(window.len()) };
        let total: f64 = window[from..to].iter().sum();
        // A bin counts where P has something, so that Q has a share wherever P does.
        let filled = p[from..to].iter().filter(|&&v| v > 0.0).count();
        for at in from..to {
            if p[at] > 0.0 {
                q[at] = total / filled as f64;
            }
        }
    }
    let (p, q) = (smoothed(p), smoothed(q));
    let (sum_p, sum_q): (f64, f64) = (p.iter().sum(), q.iter().sum());
    p.iter().zip(&q).map(|(p, q)| p / sum_p * ((p / sum_p) / (q / sum_q)).ln()).sum()
}

/// Gives empty bins a little, taken evenly from the others.
fn smoothed(mut counts: Vec<f64>) -> Vec<f64> {
    let empty = counts.iter().filter(|&&v| v == 0.0).count();
    let filled = counts.len() - empty;
    if filled == 0 {
        return vec![SMOOTHING; counts.len()];
    }
    let taken = SMOOTHING * empty as f64 / filled as f64;
    for v in &mut counts {
        *v = if *v == 0.0 { SMOOTHING } else { (*v - taken).max(SMOOTHING) };
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_histogram_gives_the_divergences_worked_out_by_hand() {
        let counts = [1.0, 0.0, 0.0, 2.0, 10.0, 40.0, 50.0, 38.0, 12.0, 3.0, 0.0, 0.0, 1.0];
        let expected = [0.0320, 0.1947, 0.1095, 0.2705, 0.2366];
        for (half, expected) in (2..=6).zip(expected) {
            let found = divergence(&counts, 6 - half, 6 + half + 1, 4);
            assert!((found - expected).abs() < 6e-5, "{half}: {found}, {expected}");
        }
    }

    #[test]
    fn what_lies_beyond_the_window_costs() {
        let mut counts = vec![8.0; 64];
        let inner = divergence(&counts, 16, 48, 8);
        counts[0] = 800.0;
        assert!(divergence(&counts, 16, 48, 8) > inner);
        assert_eq!(divergence(&[0.0; 8], 0, 8, 4), 0.0);
    }
}
