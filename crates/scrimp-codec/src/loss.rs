//! What rounding took from the values of a tensor.

use rayon::prelude::*;

use crate::simd::{amax_bits, loss_sums};

/// Elements whose sums are taken together; blocks are added in their order, so that threads change no sum.
const BLOCK: usize = 1024;

/// Elements that one task works on: whole blocks.
const BAND: usize = 64 * BLOCK;

/// What distinguishes values from what they became.
///
/// Values that are not finite to begin with are counted and otherwise left out. The sums are exact enough for any
/// ratio: they are `f64` over blocks of 1024, added in one order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Values that were compared.
    pub values: u64,
    /// Values that were NaN or infinite, and were not.
    pub nonfinite: u64,
    /// Sum of the squares of the values.
    pub signal: f64,
    /// Sum of the squares of what they became.
    pub decoded: f64,
    /// Sum of the products of the two.
    pub product: f64,
    /// Sum of the squares of the differences.
    pub noise: f64,
    /// Largest magnitude of a value.
    pub amax: f64,
    /// Largest magnitude of a difference; infinite where a value became NaN.
    pub max_error: f64,
    /// Values that are zero now and were not.
    pub zeroed: u64,
}

impl Loss {
    /// The loss from `x` to `y`.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn between(x: &[f32], y: &[f32]) -> Self {
        assert_eq!(x.len(), y.len(), "values and what they became");
        let bands: Vec<Self> = x
            .par_chunks(BAND)
            .zip(y.par_chunks(BAND))
            .map(|(x, y)| {
                let blocks = x.chunks(BLOCK).zip(y.chunks(BLOCK));
                blocks.map(|(x, y)| Self::of_block(x, y)).fold(Self::default(), Self::join)
            })
            .collect();
        bands.into_iter().fold(Self::default(), Self::join)
    }

    /// Both losses together.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self {
            values: self.values + other.values,
            nonfinite: self.nonfinite + other.nonfinite,
            signal: self.signal + other.signal,
            decoded: self.decoded + other.decoded,
            product: self.product + other.product,
            noise: self.noise + other.noise,
            amax: self.amax.max(other.amax),
            max_error: self.max_error.max(other.max_error),
            zeroed: self.zeroed + other.zeroed,
        }
    }

    fn of_block(x: &[f32], y: &[f32]) -> Self {
        let loss = Self::of_finite(x, y);
        // The square of a finite f32 is finite in f64, and so is the sum of a block of them.
        if loss.signal.is_finite() {
            return loss;
        }
        let (finite, became): (Vec<f32>, Vec<f32>) =
            x.iter().zip(y).filter(|(x, _)| x.is_finite()).unzip();
        Self { nonfinite: (x.len() - finite.len()) as u64, ..Self::of_finite(&finite, &became) }
    }

    fn of_finite(x: &[f32], y: &[f32]) -> Self {
        let sums = loss_sums(x, y);
        Self {
            values: x.len() as u64,
            nonfinite: 0,
            signal: sums.signal,
            decoded: sums.decoded,
            product: sums.product,
            noise: sums.noise,
            amax: f64::from(f32::from_bits(amax_bits(x))),
            // A maximum passes over NaN.
            max_error: if sums.noise.is_finite() { sums.max_error } else { f64::INFINITY },
            zeroed: sums.zeroed.into(),
        }
    }

    /// Signal to quantization noise in dB, `10 log10(sum x^2 / sum (x - y)^2)`.
    ///
    /// Infinite where nothing was lost, minus infinity where a value became NaN or infinite or where zeros became
    /// something; `None` without values.
    pub fn sqnr_db(&self) -> Option<f64> {
        match self {
            Self { values: 0, .. } => None,
            Self { noise: 0.0, .. } => Some(f64::INFINITY),
            Self { noise, .. } if !noise.is_finite() => Some(f64::NEG_INFINITY),
            _ => Some(10.0 * (self.signal / self.noise).log10()),
        }
    }

    /// Whether every value stayed what it was (a zero may have changed its sign).
    pub fn is_exact(&self) -> bool {
        self.noise == 0.0
    }

    /// The cosine of the angle between the values and what they became; `None` where one of the two is all zero, or
    /// not finite.
    pub fn cosine(&self) -> Option<f64> {
        let cosine = self.product / (self.signal.sqrt() * self.decoded.sqrt());
        // Sums are rounded, so that a tensor may seem to be closer than equal to itself.
        cosine.is_finite().then(|| cosine.clamp(-1.0, 1.0))
    }

    /// The largest error as a part of the largest magnitude; `None` where all values are zero.
    pub fn max_error_to_amax(&self) -> Option<f64> {
        (self.amax > 0.0).then(|| self.max_error / self.amax)
    }

    /// The part of the values that became zero and were not; `None` without values.
    pub fn zeroed_share(&self) -> Option<f64> {
        (self.values > 0).then(|| self.zeroed as f64 / self.values as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        let step = |i: usize| u16::try_from(i * 7919 % 4093).unwrap_or_default();
        (0..count).map(|i| (f32::from(step(i)) - 2046.0) / 700.0).collect()
    }

    #[test]
    fn small_tensors_by_hand() {
        let loss = Loss::between(&[3.0, 4.0, 0.25, 0.0], &[3.0, 3.0, 0.0, 0.0]);
        assert_eq!((loss.values, loss.zeroed, loss.amax, loss.max_error), (4, 1, 4.0, 1.0));
        assert_eq!((loss.signal, loss.noise), (25.0625, 1.0625));
        assert_eq!(loss.sqnr_db(), Some(10.0 * (25.0625f64 / 1.0625).log10()));
        assert_eq!(loss.cosine(), Some(21.0 / (25.0625f64.sqrt() * 18f64.sqrt())));
        assert_eq!(loss.max_error_to_amax(), Some(0.25));
        assert_eq!(loss.zeroed_share(), Some(0.25));
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let x = values(3 * BAND + 2 * BLOCK + 13);
        let y: Vec<f32> = x.iter().map(|v| (v * 8.0).round() / 8.0).collect();
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Loss::between(&x, &y))
        };
        assert_eq!(with(1), with(3));
        assert_eq!(with(1).values, x.len() as u64);
    }

    #[test]
    fn what_was_not_finite_is_counted_and_left_out() {
        let x = [1.0, f32::NAN, -2.0, f32::INFINITY];
        let loss = Loss::between(&x, &[1.0, 0.0, -1.0, 9.0]);
        assert_eq!((loss.values, loss.nonfinite, loss.signal, loss.noise), (2, 2, 5.0, 1.0));
        assert_eq!(loss.amax, 2.0);
    }

    #[test]
    fn what_becomes_nan_or_infinite_is_the_worst_there_is() {
        for broken in [f32::NAN, f32::INFINITY] {
            let loss = Loss::between(&[1.0, 2.0], &[1.0, broken]);
            assert_eq!(loss.sqnr_db(), Some(f64::NEG_INFINITY));
            assert_eq!((loss.max_error, loss.cosine()), (f64::INFINITY, None));
        }
    }

    #[test]
    fn nothing_zeros_and_equals_have_answers() {
        let none = Loss::between(&[], &[]);
        assert_eq!((none.sqnr_db(), none.cosine(), none.zeroed_share()), (None, None, None));
        let zeros = Loss::between(&[0.0; 3], &[0.0; 3]);
        assert_eq!((zeros.sqnr_db(), zeros.cosine()), (Some(f64::INFINITY), None));
        assert_eq!(zeros.max_error_to_amax(), None);
        let woken = Loss::between(&[0.0; 3], &[0.5; 3]);
        assert_eq!(woken.sqnr_db(), Some(f64::NEG_INFINITY));
        let x = values(3000);
        let same = Loss::between(&x, &x);
        assert!(same.is_exact() && same.cosine().unwrap() > 1.0 - 1e-15);
        let huge = Loss::between(&[f32::MAX; 9], &[f32::MIN; 9]);
        assert!(huge.sqnr_db().unwrap() < -6.0 && huge.noise.is_finite());
    }
}
