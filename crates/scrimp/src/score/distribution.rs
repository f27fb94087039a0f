//! How the values of a tensor are spread.

use rayon::prelude::*;

/// Elements whose sums are taken together; blocks are added in their order, so that threads change no sum.
const BLOCK: usize = 1024;

/// Elements that one task works on: whole blocks.
const BAND: usize = 64 * BLOCK;

/// Bars of a histogram.
pub const BINS: usize = 64;

/// How far a histogram reaches, in standard deviations on both sides of the mean.
const REACH: f64 = 5.0;

/// The outer limit of [`Distribution::within_outer`], in standard deviations.
pub const OUTER: f64 = 2.5;

/// Moments and histogram of the finite values of a tensor.
///
/// SmaQ stores most values in few bits because the tensors of training are close to normal: 68.3 % of a normal
/// distribution lie within one standard deviation of its mean and 98.8 % within 2.5.
///
/// # Source
/// Shoghi et al. 2021, SmaQ: Smart Quantization for DNN Training by Exploiting Value Clustering, IEEE Computer
/// Architecture Letters 20(2).
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Finite values.
    pub values: u64,
    /// Values that are NaN or infinite.
    pub nonfinite: u64,
    /// Values that are zero.
    pub zeros: u64,
    /// The smallest finite value; 0 without any, as all that follows.
    pub min: f64,
    /// The largest finite value.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation, unbiased.
    pub std: f64,
    /// Values no further than one standard deviation from the mean.
    pub within_one: u64,
    /// Values no further than [`OUTER`] standard deviations from the mean.
    pub within_outer: u64,
    /// Where the first bar begins and the last ends.
    pub span: (f64, f64),
    /// How many values each of the bars counts; values beyond the span are in none.
    pub bins: [u64; BINS],
}

impl Distribution {
    /// The distribution of `x`.
    pub fn of(x: &[f32]) -> Self {
        let first = sum_bands(x, Extent::of, Extent::join);
        let count = first.values as f64;
        let mean = if first.values > 0 { first.sum / count } else { 0.0 };
        let squares = sum_bands(x, |x| squares(x, mean), |left, right| left + right);
        let std = if first.values > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 };
        let (min, max) = if first.values > 0 {
            (f64::from(first.min), f64::from(first.max))
        } else {
            (0.0, 0.0)
        };
        let span = (min.max(mean - REACH * std), max.min(mean + REACH * std));
        let counts = sum_bands(x, |x| Counts::of(x, mean, std, span), Counts::join);
        Self {
            values: first.values,
            nonfinite: x.len() as u64 - first.values,
            zeros: first.zeros,
            min,
            max,
            mean,
            std,
            within_one: counts.within_one,
            within_outer: counts.within_outer,
            span,
            bins: counts.bins,
        }
    }

    /// The part of the finite values that `count` is; `None` without values.
    pub fn share(&self, count: u64) -> Option<f64> {
        (self.values > 0).then(|| count as f64 / self.values as f64)
    }
}

/// Maps the blocks of `x` and joins what comes of them in their order.
fn sum_bands<T: Send + Default>(
    x: &[f32],
    of: impl Fn(&[f32]) -> T + Sync,
    join: impl Fn(T, T) -> T + Sync,
) -> T {
    let band = |band: &[f32]| band.chunks(BLOCK).map(&of).fold(T::default(), &join);
    let bands: Vec<T> = x.par_chunks(BAND).map(band).collect();
    bands.into_iter().fold(T::default(), join)
}

/// What one look at the values tells.
#[derive(Default)]
struct Extent {
    values: u64,
    zeros: u64,
    sum: f64,
    min: f32,
    max: f32,
}

impl Extent {
    fn of(x: &[f32]) -> Self {
        let sum = sum_lanes(x, |v| v);
        // A sum in f64 of what is finite in f32 is finite.
        if !sum.is_finite() {
            return Self::of(&finite(x));
        }
        let mut low = [f32::INFINITY; LANES];
        let mut high = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks.iter().map(<[f32; LANES]>::as_slice).chain([rest]) {
            for ((v, low), high) in chunk.iter().zip(&mut low).zip(&mut high) {
                *low = if v < low { *v } else { *low };
                *high = if v > high { *v } else { *high };
            }
        }
        Self {
            values: x.len() as u64,
            zeros: x.iter().map(|v| u64::from(*v == 0.0)).sum(),
            sum,
            min: low.into_iter().fold(f32::INFINITY, f32::min),
            max: high.into_iter().fold(f32::NEG_INFINITY, f32::max),
        }
    }

    fn join(self, other: Self) -> Self {
        match (self.values, other.values) {
            (0, _) => other,
            (_, 0) => self,
            _ => Self {
                values: self.values + other.values,
                zeros: self.zeros + other.zeros,
                sum: self.sum + other.sum,
                min: self.min.min(other.min),
                max: self.max.max(other.max),
            },
        }
    }
}

/// Sum of the squared distances from the mean.
fn squares(x: &[f32], mean: f64) -> f64 {
    let sum = sum_lanes(x, |v| (v - mean) * (v - mean));
    if sum.is_finite() { sum } else { squares(&finite(x), mean) }
}

/// What is finite of a block.
fn finite(x: &[f32]) -> Vec<f32> {
    x.iter().copied().filter(|v| v.is_finite()).collect()
}

/// Elements whose sums run beside each other, so that an addition need not wait for the one before.
const LANES: usize = 8;

/// The sum over a block of what `of` makes of its values.
fn sum_lanes(x: &[f32], of: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += of(f64::from(*v));
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += of(f64::from(*v));
    }
    lanes.iter().sum()
}

/// What a look at the values tells once mean and standard deviation are known.
#[derive(Clone, Copy)]
struct Counts {
    within_one: u64,
    within_outer: u64,
    bins: [u64; BINS],
}

impl Default for Counts {
    fn default() -> Self {
        Self { within_one: 0, within_outer: 0, bins: [0; BINS] }
    }
}

impl Counts {
    fn of(x: &[f32], mean: f64, std: f64, (low, high): (f64, f64)) -> Self {
        let mut counts = Self::default();
        // A constant tensor has one bar, in the middle.
        let (scale, offset) =
            if high > low { (BINS as f64 / (high - low), 0.0) } else { (0.0, BINS as f64 / 2.0) };
        // What is not finite is within no distance.
        let within = |limit: f64| -> u64 {
            x.iter().map(|&v| u64::from((f64::from(v) - mean).abs() <= limit)).sum()
        };
        (counts.within_one, counts.within_outer) = (within(std), within(OUTER * std));
        for v in x.iter().map(|&v| f64::from(v)).filter(|v| (low..=high).contains(v)) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and the number of bins"
            )]
            let bin = ((v - low) * scale + offset) as usize;
            counts.bins[bin.min(BINS - 1)] += 1;
        }
        counts
    }

    fn join(mut self, other: Self) -> Self {
        self.within_one += other.within_one;
        self.within_outer += other.within_outer;
        for (bin, more) in self.bins.iter_mut().zip(other.bins) {
            *bin += more;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_by_hand() {
        let x = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        let d = Distribution::of(&x);
        assert_eq!((d.mean, d.min, d.max, d.zeros), (5.0, 2.0, 9.0, 0));
        assert_eq!(d.std, (32.0f64 / 7.0).sqrt());
        assert_eq!((d.within_one, d.within_outer), (6, 8));
        assert_eq!(d.span, (2.0, 9.0));
        assert_eq!(d.bins.iter().sum::<u64>(), 8);
        assert_eq!((d.bins[0], d.bins[BINS - 1]), (1, 1));
    }

    #[test]
    fn far_values_are_in_no_bar_and_what_is_not_finite_nowhere() {
        let mut x = vec![0.5; 200];
        x.extend([-0.5; 200]);
        x.extend([1000.0, f32::NAN, f32::NEG_INFINITY]);
        let d = Distribution::of(&x);
        assert_eq!((d.values, d.nonfinite, d.max), (401, 2, 1000.0));
        assert_eq!(d.bins.iter().sum::<u64>(), 400);
        assert!(d.span.1 < 1000.0);
    }

    #[test]
    fn constant_and_empty_tensors_have_a_distribution() {
        let constant = Distribution::of(&[3.0; 5]);
        assert_eq!((constant.mean, constant.std, constant.within_one), (3.0, 0.0, 5));
        assert_eq!(constant.bins[BINS / 2], 5);
        let empty = Distribution::of(&[]);
        assert_eq!((empty.values, empty.mean, empty.share(0)), (0, 0.0, None));
        assert_eq!(Distribution::of(&[f32::NAN]).nonfinite, 1);
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let step = |i: usize| u16::try_from(i * 7919 % 4093).unwrap_or_default();
        let x: Vec<f32> = (0..3 * BAND + 5).map(|i| f32::from(step(i)) / 7.0).collect();
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Distribution::of(&x))
        };
        assert_eq!(with(1), with(3));
    }
}
