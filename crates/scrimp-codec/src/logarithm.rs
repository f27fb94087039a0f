//! Powers and logarithms to base 2 with the same bits on every machine: those of the standard library are the
//! platform's.
//!
//! Only additions, multiplications, a division, and integer operations on bit patterns, which IEEE 754 rounds in one
//! way; nothing is fused. Both are plain enough to be turned into vector code.

use std::f64::consts::LN_2;

/// `log2(x)` for finite positive `x`; the error is below 5e-15 times the larger of 1 and the result. Exact for powers
/// of two.
///
/// `x` is `2^e m` with `m` in `[sqrt(1/2), sqrt(2))`, and `ln m = 2 artanh(s)`, `s = (m - 1) / (m + 1)`. The series in
/// `s` is cut after `s^17`, what is left out is below `2 s^19 / (19 ln 2) < 5e-16`. A subnormal `f64` is out of reach.
#[inline(always)]
pub(crate) fn log2(x: f64) -> f64 {
    // What is at least sqrt(1/2) counts to the next exponent.
    const ROOT: u64 = 0x3FE6_A09E_667F_3BCD;
    // 2^52, whose last bit is worth 1: an integer below it becomes a float by standing there.
    const WHOLE: u64 = 0x4330_0000_0000_0000;
    const BIAS: u64 = 2048;
    // 2 / (k ln 2)
    const C: [f64; 9] = {
        let mut c = [0.0; 9];
        let mut i = 0;
        while i < 9 {
            c[i] = 2.0 / (LN_2 * (2 * i + 1) as f64);
            i += 1;
        }
        c
    };
    let above = x.to_bits().wrapping_sub(ROOT);
    let m = f64::from_bits((above & 0x000F_FFFF_FFFF_FFFF).wrapping_add(ROOT));
    let biased = above.wrapping_add(BIAS << 52) >> 52;
    let exponent = f64::from_bits(WHOLE | biased) - f64::from_bits(WHOLE | BIAS);
    let s = (m - 1.0) / (m + 1.0);
    let t = s * s;
    let [c0, c1, c2, c3, c4, c5, c6, c7, c8] = C;
    let sum =
        (((((((c8 * t + c7) * t + c6) * t + c5) * t + c4) * t + c3) * t + c2) * t + c1) * t + c0;
    exponent + s * sum
}

/// `2^x`; the relative error is below 5e-15. Exact for integers; `x` is clamped to
/// `-1000..=1000`.
///
/// `x` is `n + f` with `abs(f) <= 1/2`, and the series of `exp(f ln 2)` is cut after the 12th power, what is left out
/// is below `0.3466^13 / 13! < 2e-16`.
#[inline(always)]
pub(crate) fn exp2(x: f64) -> f64 {
    // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    const C: [f64; 13] = {
        let mut c = [1.0; 13];
        let mut i = 1;
        while i < 13 {
            c[i] = c[i - 1] * LN_2 / i as f64;
            i += 1;
        }
        c
    };
    let x = if x < -1000.0 { -1000.0 } else { x };
    let x = if x > 1000.0 { 1000.0 } else { x };
    let shifted = x + MAGIC;
    let f = x - (shifted - MAGIC);
    let [c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12] = C;
    let high = (((((c12 * f + c11) * f + c10) * f + c9) * f + c8) * f + c7) * f + c6;
    let sum = (((((high * f + c5) * f + c4) * f + c3) * f + c2) * f + c1) * f + c0;
    // The sum lies in [sqrt(1/2), sqrt(2)], so that adding to its exponent stays within `f64`.
    f64::from_bits(sum.to_bits().wrapping_add(shifted.to_bits() << 52))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stream;

    #[test]
    fn integers_and_powers_of_two_are_exact() {
        for e in -1000i32..=1000 {
            let x = f64::from(e);
            let power = f64::from_bits(u64::from((e + 1023).cast_unsigned()) << 52);
            assert_eq!((exp2(x), log2(power)), (power, x));
        }
        assert_eq!((exp2(-1e9), exp2(1e9)), (exp2(-1000.0), exp2(1000.0)));
    }

    #[test]
    fn both_are_as_near_as_they_say() {
        let stream = Stream::new(1, 2);
        let (mut worst_log, mut worst_exp) = (0f64, 0f64);
        for i in 0..1 << 18 {
            let [a, b, ..] = stream.words(i);
            let x = f64::from(f32::from_bits(a % 0x7F80_0000));
            if x > 0.0 {
                worst_log = worst_log.max((log2(x) - x.log2()).abs() / x.log2().abs().max(1.0));
            }
            let t = (f64::from(b) / f64::from(u32::MAX) - 0.5) * 600.0;
            worst_exp = worst_exp.max((exp2(t) / t.exp2() - 1.0).abs());
        }
        assert!(worst_log < 5e-15 && worst_exp < 5e-15, "{worst_log:e} {worst_exp:e}");
    }

    #[test]
    fn order_is_kept_between_neighbours() {
        let stream = Stream::new(3, 4);
        for i in 0..1 << 16 {
            let bits = stream.words(i)[0] % 0x7F7F_FFFF;
            let at = |bits: u32| log2(f64::from(f32::from_bits(bits + 1)));
            assert!(at(bits) < at(bits + 1), "{bits:x}");
        }
    }
}
