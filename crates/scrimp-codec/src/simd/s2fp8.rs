//! The loops of S2FP8: sums of logarithms, and the power law there and back.

use crate::logarithm::{exp2, log2};

use super::{INFINITY, Level, SIGN, clamp, level};

/// The power law of a group, `log2 Y = alpha log2 |x| + beta`, as stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PowerLaw {
    pub alpha: f32,
    pub beta: f32,
}

impl PowerLaw {
    /// `sign(x) 2^beta |x|^alpha`. Zeros, infinities and NaN stay what they are.
    #[inline(always)]
    pub fn forward(self, x: f32) -> f32 {
        let (a, sign) = (x.to_bits() & !SIGN, x.to_bits() & SIGN);
        let usual = a > 0 && a < INFINITY;
        let log = log2(f64::from(f32::from_bits(if usual { a } else { 0x3F80_0000 })));
        let y = exp2(f64::from(self.alpha) * log + f64::from(self.beta)) as f32;
        f32::from_bits(if usual { y.to_bits() } else { a } | sign)
    }

    /// `sign(y) (2^-beta |y|)^(1 / alpha)`, kept finite. Zeros, infinities and NaN stay what they are.
    #[inline(always)]
    pub fn back(self, y: f32) -> f32 {
        let (a, sign) = (y.to_bits() & !SIGN, y.to_bits() & SIGN);
        let usual = a > 0 && a < INFINITY;
        let log = log2(f64::from(f32::from_bits(if usual { a } else { 0x3F80_0000 })));
        let x = exp2((log - f64::from(self.beta)) / f64::from(self.alpha)) as f32;
        let x = clamp(x, 0.0, f32::MAX).to_bits();
        f32::from_bits(if usual { x } else { a } | sign)
    }
}

versions! {
    /// [`PowerLaw::forward`] of many values.
    fn s2fp8_forward(law: PowerLaw, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) { *y = law.forward(*x); }
    }
}

versions! {
    /// [`PowerLaw::back`] of many values, in place.
    fn s2fp8_back(law: PowerLaw, x: &mut [f32]) {
        for v in x { *v = law.back(*v); }
    }
}

/// What the power law of a group is made from: of values that are neither zero nor infinite nor NaN, the number, the
/// sum of logarithms, and the bits of the least and of the largest magnitude; and the number of zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Logs {
    pub count: u64,
    pub sum: f64,
    pub least: u32,
    pub most: u32,
    pub zeros: u64,
}

impl Logs {
    pub const NOTHING: Logs = Logs { count: 0, sum: 0.0, least: u32::MAX, most: 0, zeros: 0 };

    /// Those of two stretches together.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            least: self.least.min(other.least),
            most: self.most.max(other.most),
            zeros: self.zeros + other.zeros,
        }
    }
}

/// Sums run in so many lanes, which are added up from the first to the last.
const SUM_LANES: usize = 16;

versions! {
    /// The logarithms of a block.
    fn s2fp8_logs(x: &[f32]) -> Logs {
        let mut lanes = [0.0f64; SUM_LANES];
        let (mut count, mut zeros, mut least, mut most) = (0u32, 0u32, u32::MAX, 0u32);
        let mut take = |lane: &mut f64, v: f32| {
            let a = v.to_bits() & !SIGN;
            let usual = a > 0 && a < INFINITY;
            count += u32::from(usual);
            zeros += u32::from(a == 0);
            least = least.min(if usual { a } else { u32::MAX });
            most = most.max(if usual { a } else { 0 });
            // The logarithm of 1 is 0.
            *lane += log2(f64::from(f32::from_bits(if usual { a } else { 0x3F80_0000 })));
        };
        let (chunks, rest) = x.as_chunks::<SUM_LANES>();
        for chunk in chunks {
            for (lane, v) in lanes.iter_mut().zip(chunk) { take(lane, *v); }
        }
        for (lane, v) in lanes.iter_mut().zip(rest) { take(lane, *v); }
        Logs { count: u64::from(count), sum: lanes.iter().sum(), least, most, zeros: u64::from(zeros) }
    }
}
