//! Loops over many elements, compiled once for each instruction set and chosen at run time.
//!
//! The bodies are plain Rust that the compiler turns into vector code; only the `#[target_feature]` wrappers differ. Each
//! body computes the same bits as the definition in [`Format`](crate::Format), which the tests compare it with.
#![expect(
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a wrapper compiled for an instruction set is called after that set was detected; codes and exponents fit their types"
)]

use std::sync::OnceLock;

use crate::philox::Stream;
use crate::scale::{nested_e4m3fn, power_of_code};
use crate::{Rounding, ScaleFormat};

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The best instruction set of this machine.
fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    #[cfg(test)]
    if let Some(level) = tests::FORCED.get() {
        return level;
    }
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
            {
                return Level::Avx512;
            }
            if is_x86_feature_detected!("avx2") {
                return Level::Avx2;
            }
        }
        Level::Portable
    })
}

/// Defines a function whose body is compiled for every level.
macro_rules! versions {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            match level() {
                // SAFETY: `level` gives this only after it has detected the features.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2($($arg),*) },
                Level::Portable => body($($arg),*),
            }
        }
    };
}

mod block32;
pub(crate) mod levels;
pub(crate) mod s2fp8;
pub(crate) mod select;
pub(crate) mod smaq;
mod tables;

pub(crate) use block32::{Block32, block32_decode, block32_emulate, block32_encode};
pub(crate) use tables::{
    Sixteen, Wide, sixteen_blocks, sixteen_decode, sixteen_encode, sixteen_run, wide_encode,
    wide_run,
};

const SIGN: u32 = 0x8000_0000;
const INFINITY: u32 = 0x7F80_0000;
const NAN: u32 = 0x7FC0_0000;

versions! {
    /// The draws of consecutive Philox blocks, from `block` on.
    fn philox_blocks(stream: &Stream, block: u64, out: &mut [[u32; 4]]) {
        stream.blocks(block, out);
    }
}

versions! {
    /// The bits of the largest magnitude; above those of `f32::MAX` if any value is infinite or NaN.
    fn amax_bits(x: &[f32]) -> u32 {
        block_amax(x)
    }
}

/// Bits whose order as integers is that of the floats; NaNs lie beyond the infinities. Its own inverse.
#[inline(always)]
fn ordered(bits: i32) -> i32 {
    bits ^ ((bits >> 31) & i32::MAX)
}

versions! {
    /// The smallest and the largest value; one of them is not finite if any value is not.
    fn min_max(x: &[f32]) -> (f32, f32) {
        // Integers, because the compiler must not reorder comparisons of floats.
        let (low, high) = x.iter().fold((i32::MAX, i32::MIN), |(low, high), v| {
            let key = ordered(v.to_bits().cast_signed());
            (low.min(key), high.max(key))
        });
        let float = |key| f32::from_bits(ordered(key).cast_unsigned());
        (float(low), float(high))
    }
}

/// An integer grid as the vector loops see it: `clamp(round((x - offset) / scale), low, high) * scale + offset`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IntGrid {
    /// The smallest code less the zero point.
    pub low: f32,
    /// The largest code less the zero point.
    pub high: f32,
    pub scale: f32,
    pub offset: f32,
}

#[inline(always)]
fn clamp(v: f32, low: f32, high: f32) -> f32 {
    let v = if v < low { low } else { v };
    if v > high { high } else { v }
}

impl IntGrid {
    /// How far a value is above the offset; a NaN, which has no code, counts as zero.
    #[inline(always)]
    fn above(self, x: f32) -> f32 {
        (if x.is_nan() { 0.0 } else { x }) - self.offset
    }

    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        let q = (self.above(x) / self.scale).round_ties_even();
        clamp(q, self.low, self.high) * self.scale + self.offset
    }

    /// As [`nearest`](Self::nearest) for any rounding that is done in `f64`.
    #[inline(always)]
    fn by(self, x: f32, round: impl Fn(f64) -> f64) -> f32 {
        let q = round(f64::from(self.above(x) / self.scale));
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let q = if q < low { low } else { q };
        let q = if q > high { high } else { q };
        (q as f32) * self.scale + self.offset
    }
}

/// How an integer grid's codes are written: two's complement or unsigned, in so many bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IntCodes {
    /// The zero point.
    pub zero: i32,
    pub bits: u32,
    pub signed: bool,
}

versions! {
    /// The codes of values, to nearest.
    fn int_encode(grid: &IntGrid, codes: IntCodes, x: &[f32], out: &mut [u32]) {
        let grid = *grid;
        let (mask, zero) = (u32::MAX >> (32 - codes.bits), codes.zero.cast_unsigned());
        for (v, code) in x.iter().zip(out) {
            let q = (grid.above(*v) / grid.scale).round_ties_even();
            // Adding 1.5 * 2^23 leaves an integer of so few bits in the mantissa; a saturating cast costs more.
            let q = clamp(q, grid.low, grid.high) + 12_582_912.0;
            *code = q.to_bits().wrapping_sub(0x4B40_0000).wrapping_add(zero) & mask;
        }
    }
}

versions! {
    /// The values of codes.
    fn int_decode(grid: &IntGrid, codes: IntCodes, x: &[u32], out: &mut [f32]) {
        let grid = *grid;
        let unused = 32 - codes.bits;
        if codes.signed {
            for (code, v) in x.iter().zip(out) {
                let q = (code << unused).cast_signed() >> unused;
                *v = q as f32 * grid.scale + grid.offset;
            }
        } else {
            for (code, v) in x.iter().zip(out) {
                let q = (code << unused >> unused).cast_signed() - codes.zero;
                *v = q as f32 * grid.scale + grid.offset;
            }
        }
    }
}

/// Rounds values to an integer grid.
pub(crate) fn int_run(grid: &IntGrid, x: &mut [f32], rounding: Rounding, draws: &[u32]) {
    match rounding {
        Rounding::NearestEven => int_nearest(grid, x),
        Rounding::HalfAway => int_half_away(grid, x),
        Rounding::TowardZero => int_toward_zero(grid, x),
        Rounding::Floor => int_floor(grid, x),
        Rounding::Stochastic => int_stochastic(grid, x, draws),
    }
}

versions! {
    fn int_nearest(grid: &IntGrid, x: &mut [f32]) {
        let grid = *grid;
        for v in x { *v = grid.nearest(*v); }
    }
}
versions! {
    fn int_half_away(grid: &IntGrid, x: &mut [f32]) {
        let grid = *grid;
        for v in x { *v = grid.by(*v, f64::round); }
    }
}
versions! {
    fn int_toward_zero(grid: &IntGrid, x: &mut [f32]) {
        let grid = *grid;
        for v in x { *v = grid.by(*v, f64::trunc); }
    }
}
versions! {
    fn int_floor(grid: &IntGrid, x: &mut [f32]) {
        let grid = *grid;
        for v in x { *v = grid.by(*v, f64::floor); }
    }
}
versions! {
    fn int_stochastic(grid: &IntGrid, x: &mut [f32], draws: &[u32]) {
        let grid = *grid;
        for (v, d) in x.iter_mut().zip(draws) {
            *v = grid.by(*v, |q| Rounding::Stochastic.round(q, *d));
        }
    }
}

/// A float grid as the vector loops see it, in bit patterns of `f32`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloatGrid {
    /// How many mantissa bits of `f32` are dropped.
    pub shift: u32,
    /// 1 where the parity of a code is the opposite of that of its `f32` exponent (no mantissa bits, odd difference of biases).
    pub odd: u32,
    /// The smallest normal value.
    pub min_normal: u32,
    /// The number whose last mantissa bit is worth the subnormal step: adding and subtracting it rounds to that step.
    pub magic: f32,
    /// The largest finite value.
    pub max: u32,
    /// What an overflow becomes.
    pub over: u32,
    /// What infinity becomes.
    pub infinity: u32,
    /// What NaN becomes: NaN, or zero where it has no code.
    pub nan: u32,
    /// The exponent of the smallest normal value.
    pub step_exponent: i32,
    pub mantissa_bits: i32,
}

impl FloatGrid {
    #[inline(always)]
    fn nearest(self, v: f32) -> f32 {
        let bits = v.to_bits();
        let a = bits & !SIGN;
        let even = (a >> self.shift & 1) ^ self.odd;
        let below_half = (1 << (self.shift - 1)) - 1;
        let normal = (a + below_half + even) & !((1 << self.shift) - 1);
        let subnormal = ((f32::from_bits(a) + self.magic) - self.magic).to_bits();
        let r = if a < self.min_normal { subnormal } else { normal };
        self.specials(a, r, self.over, bits & SIGN)
    }

    /// Puts overflow, infinity, NaN and the sign in place.
    #[inline(always)]
    fn specials(self, a: u32, rounded: u32, over: u32, sign: u32) -> f32 {
        let r = if rounded > self.max { over } else { rounded };
        let r = if a == INFINITY { self.infinity } else { r };
        let r = if a > INFINITY { self.nan } else { r };
        // The zero that stands for a NaN has no sign.
        let sign = if a > INFINITY && self.nan == 0 { 0 } else { sign };
        f32::from_bits(r | sign)
    }

    /// As [`nearest`](Self::nearest) for a rounding that is done in `f64` on the signed number of steps.
    #[inline(always)]
    fn by(self, v: f32, stays_finite: fn(bool) -> bool, round: impl Fn(f64) -> f64) -> f32 {
        let bits = v.to_bits();
        let a = bits & !SIGN;
        let magnitude = f64::from(f32::from_bits(a));
        let exponent = (magnitude.to_bits() >> 52) as i32 - 1023;
        let e = exponent.max(self.step_exponent).min(128) - self.mantissa_bits;
        let power = |e: i32| f64::from_bits(((e + 1023) as u64) << 52);
        let steps = magnitude * power(-e);
        let signed = if bits & SIGN != 0 { -steps } else { steps };
        let value = round(signed).abs() * power(e);
        // A rounded value of 2^128 becomes the bits of infinity, which are above every maximum.
        let r = (value as f32).to_bits();
        let over = if stays_finite(bits & SIGN != 0) { self.max } else { self.over };
        self.specials(a, r, over, bits & SIGN)
    }

    #[inline(always)]
    fn finite(v: f32) -> f32 {
        clamp(v, -f32::MAX, f32::MAX)
    }
}

/// How a float grid's codes are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloatCodes {
    /// How far the exponent field of `f32` is above that of the code, at the place of the code's exponent field.
    pub rebias: u32,
    /// How far left of the code's sign bit that of `f32` is.
    pub sign_shift: u32,
    /// The largest finite magnitude.
    pub max: u32,
    /// The code of infinity, or of what stands for it.
    pub infinity: u32,
    /// The code of NaN, or zero where there is none.
    pub nan: u32,
    /// Whether `infinity` means infinity.
    pub has_infinity: bool,
}

versions! {
    /// The codes of values over `scale`, to nearest.
    fn float_encode(grid: &FloatGrid, codes: FloatCodes, x: &[f32], scale: f32, out: &mut [u32]) {
        let grid = *grid;
        for (v, code) in x.iter().zip(out) {
            let bits = grid.nearest(*v / scale).to_bits();
            let a = bits & !SIGN;
            let subnormal = (f32::from_bits(a) + grid.magic).to_bits().wrapping_sub(grid.magic.to_bits());
            let normal = (a >> grid.shift).wrapping_sub(codes.rebias);
            let c = if a < grid.min_normal { subnormal } else { normal };
            let c = if a == INFINITY { codes.infinity } else { c };
            let c = if a > INFINITY { codes.nan } else { c };
            *code = c | (bits & SIGN) >> codes.sign_shift;
        }
    }
}

versions! {
    /// The values of codes times `scale`.
    fn float_decode(grid: &FloatGrid, codes: FloatCodes, x: &[u32], scale: f32, out: &mut [f32]) {
        let grid = *grid;
        let first_normal = 1 << (23 - grid.shift);
        let sign_bit = SIGN >> codes.sign_shift;
        for (code, v) in x.iter().zip(out) {
            let a = code & (sign_bit - 1);
            let normal = a.wrapping_add(codes.rebias) << grid.shift;
            let subnormal = (f32::from_bits(grid.magic.to_bits().wrapping_add(a)) - grid.magic).to_bits();
            let r = if a < first_normal { subnormal } else { normal };
            let r = if a > codes.max { NAN } else { r };
            let r = if a > codes.max && codes.has_infinity && a == codes.infinity { INFINITY } else { r };
            let sign = (code & sign_bit) << codes.sign_shift;
            *v = rescale(f32::from_bits(r | sign), scale);
        }
    }
}

/// Rounds values to a float grid times `scale`.
pub(crate) fn float_run(
    grid: &FloatGrid,
    x: &mut [f32],
    scale: f32,
    rounding: Rounding,
    draws: &[u32],
) {
    match rounding {
        // Dividing and multiplying by one changes nothing, so the most frequent case can do without; a clamp would
        // make an infinity finite, and a scaled value can only be infinite if it was before.
        Rounding::NearestEven if scale == 1.0 => float_nearest_unscaled(grid, x),
        Rounding::NearestEven => float_nearest(grid, x, scale),
        Rounding::HalfAway => float_half_away(grid, x, scale),
        Rounding::TowardZero => float_toward_zero(grid, x, scale),
        Rounding::Floor => float_floor(grid, x, scale),
        Rounding::Stochastic => float_stochastic(grid, x, scale, draws),
    }
}

/// Multiplies by the scale; what was finite stays finite.
#[inline(always)]
fn rescale(r: f32, scale: f32) -> f32 {
    let v = r * scale;
    if r.to_bits() & !SIGN < INFINITY { FloatGrid::finite(v) } else { r }
}

versions! {
    fn float_nearest_unscaled(grid: &FloatGrid, x: &mut [f32]) {
        let grid = *grid;
        for v in x { *v = grid.nearest(*v); }
    }
}
versions! {
    fn float_nearest(grid: &FloatGrid, x: &mut [f32], scale: f32) {
        let grid = *grid;
        for v in x { *v = rescale(grid.nearest(*v / scale), scale); }
    }
}
versions! {
    fn float_half_away(grid: &FloatGrid, x: &mut [f32], scale: f32) {
        let grid = *grid;
        for v in x { *v = rescale(grid.by(*v / scale, |_| false, f64::round), scale); }
    }
}
versions! {
    fn float_toward_zero(grid: &FloatGrid, x: &mut [f32], scale: f32) {
        let grid = *grid;
        for v in x { *v = rescale(grid.by(*v / scale, |_| true, f64::trunc), scale); }
    }
}
versions! {
    fn float_floor(grid: &FloatGrid, x: &mut [f32], scale: f32) {
        let grid = *grid;
        for v in x { *v = rescale(grid.by(*v / scale, |negative| !negative, f64::floor), scale); }
    }
}
versions! {
    fn float_stochastic(grid: &FloatGrid, x: &mut [f32], scale: f32, draws: &[u32]) {
        let grid = *grid;
        for (v, d) in x.iter_mut().zip(draws) {
            *v = rescale(grid.by(*v / scale, |_| false, |q| Rounding::Stochastic.round(q, *d)), scale);
        }
    }
}

/// Works on whole blocks of `len` values until `one` refuses one; a loop of its own for the usual lengths lets the
/// compiler unroll them.
#[inline(always)]
fn blocks(x: &mut [f32], len: usize, one: impl Fn(&mut [f32]) -> bool + Copy) -> usize {
    #[inline(always)]
    fn fixed<const N: usize>(x: &mut [f32], one: impl Fn(&mut [f32]) -> bool) -> usize {
        let mut done = 0;
        for block in x.as_chunks_mut::<N>().0 {
            if !one(block) {
                break;
            }
            done += N;
        }
        done
    }
    match len {
        16 => fixed::<16>(x, one),
        32 => fixed::<32>(x, one),
        64 => fixed::<64>(x, one),
        128 => fixed::<128>(x, one),
        _ => {
            let mut done = 0;
            for block in x.chunks_exact_mut(len) {
                if !one(block) {
                    break;
                }
                done += len;
            }
            done
        }
    }
}

#[inline(always)]
fn block_amax(b: &[f32]) -> u32 {
    b.iter().fold(0, |m, v| m.max(v.to_bits() & !SIGN))
}

/// Rounds one block to symmetric integers; `false` if a value is not finite or comes near the top of `f32`.
#[inline(always)]
fn int_block(b: &mut [f32], store: ScaleFormat, [low, high, divisor]: [f32; 3]) -> bool {
    let amax = block_amax(b);
    if amax > 0x7D00_0000 {
        return false;
    }
    let scale = if amax == 0 { 1.0 } else { store.store(f32::from_bits(amax) / divisor) };
    for v in b {
        *v = clamp((*v / scale).round_ties_even(), low, high) * scale + 0.0;
    }
    true
}

/// Rounds one block to a float grid; `false` if a value is not finite.
#[inline(always)]
fn float_block(b: &mut [f32], store: ScaleFormat, grid: FloatGrid) -> bool {
    let amax = block_amax(b);
    if amax >= INFINITY {
        return false;
    }
    let max = f32::from_bits(grid.max);
    let scale = if amax == 0 { 1.0 } else { store.store(f32::from_bits(amax) / max) };
    for v in b {
        *v = rescale(grid.nearest(*v / scale), scale);
    }
    true
}

versions! {
    /// Rounds blocks of `len` values to symmetric integers, each by its own range; `codes` is the smallest code, the largest,
    /// and what the range is divided by. Returns how many values are done: up to a block that is not finite or that comes
    /// near the top of `f32`.
    fn int_blocks(x: &mut [f32], len: usize, store: ScaleFormat, codes: [f32; 3]) -> usize {
        match store {
            // The usual storage apart, so that its loop holds no conversion.
            ScaleFormat::F32 => blocks(x, len, |b| int_block(b, ScaleFormat::F32, codes)),
            _ => blocks(x, len, |b| int_block(b, store, codes)),
        }
    }
}

versions! {
    /// Rounds blocks of `len` values to a float grid, each scaled so that its largest magnitude is the grid's. Returns
    /// as [`int_blocks`].
    fn float_blocks(grid: &FloatGrid, x: &mut [f32], len: usize, store: ScaleFormat) -> usize {
        let grid = *grid;
        match store {
            ScaleFormat::F32 => blocks(x, len, |b| float_block(b, ScaleFormat::F32, grid)),
            _ => blocks(x, len, |b| float_block(b, store, grid)),
        }
    }
}

/// A float grid under a scale for each block, as the vector loops see it. No element is infinite, and quotients come to at
/// most a few times the largest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockGrid {
    /// What is added to the bits of a block's largest magnitude before its exponent is taken
    /// ([`ExponentRule::carry`](crate::ExponentRule)).
    pub carry: u32,
    /// The exponent of the largest element.
    pub emax: u32,
    /// The bits of the smallest normal element.
    pub min_normal: u32,
    /// How many mantissa bits of `f32` are dropped.
    pub shift: u32,
    /// The largest element.
    pub max: f32,
    /// Its code.
    pub max_code: u32,
    /// The code of infinity, which is never written; beyond all codes where there is none.
    pub infinity: u32,
    /// The sign of a code.
    pub sign_bit: u32,
    /// Whether a negative code is the complement of the positive one, in eight bits. Zero then has no sign.
    pub twos_complement: bool,
}

impl BlockGrid {
    /// The exponent of a block plus 127.
    #[inline(always)]
    fn exponent_code(self, amax: u32) -> u8 {
        // Elements whose largest exponent is 0 reach one power of two into the subnormal numbers.
        let tiny = u32::from(amax < f32::MIN_POSITIVE.to_bits());
        let field = ((amax << tiny) + self.carry) >> 23;
        field.saturating_sub(self.emax + tiny).min(254) as u8
    }

    /// The magnitude of a value as a sum whose last mantissa bit is a step of the grid, and the number that was added.
    #[inline(always)]
    fn sum(self, v: f32) -> (f32, f32) {
        let a = v.to_bits() & !SIGN;
        let exponent = (a & INFINITY).max(self.min_normal);
        let magic = f32::from_bits(exponent + (self.shift << 23));
        (f32::from_bits(a) + magic, magic)
    }

    #[inline(always)]
    fn round(self, v: f32, scale: f32) -> f32 {
        let (sum, magic) = self.sum(v);
        let q = sum - magic;
        let q = if q > self.max { self.max } else { q };
        let y = q * scale;
        let y = if y > f32::MAX { f32::MAX } else { y };
        f32::from_bits(y.to_bits() | v.to_bits() & SIGN)
    }

    #[inline(always)]
    fn code(self, v: f32) -> u32 {
        let (sum, magic) = self.sum(v);
        // Codes count steps: within an exponent by one, and across exponents without a gap.
        let base = (magic.to_bits() - (self.shift << 23) - self.min_normal) >> self.shift;
        let code = base + (sum.to_bits() - magic.to_bits());
        let code = if code > self.max_code { self.max_code } else { code };
        let negative = v.to_bits() >> 31;
        if self.twos_complement {
            (code ^ negative.wrapping_neg()).wrapping_add(negative) & 0xFF
        } else {
            code + negative * self.sign_bit
        }
    }

    #[inline(always)]
    fn value(self, code: u32, scale: f32) -> f32 {
        if self.twos_complement {
            let step = f32::from_bits(self.min_normal - ((23 - self.shift) << 23));
            let steps = (code << 24).cast_signed() >> 24;
            return FloatGrid::finite(steps as f32 * step * scale);
        }
        let a = code & (self.sign_bit - 1);
        let magic = self.min_normal + (self.shift << 23);
        let subnormal = f32::from_bits(magic + a) - f32::from_bits(magic);
        let normal = f32::from_bits((a << self.shift) + (self.min_normal - (1 << 23)));
        let q = if a < 1 << (23 - self.shift) { subnormal } else { normal };
        let y = q * scale;
        let y = if y > f32::MAX { f32::MAX } else { y };
        let special = if a == self.infinity { INFINITY } else { NAN };
        let bits = if a > self.max_code { special } else { y.to_bits() };
        f32::from_bits(bits | u32::from(code & self.sign_bit != 0) << 31)
    }

    /// Rounds one block; `false` if a value is not finite.
    #[inline(always)]
    fn round_block(self, b: &mut [f32]) -> bool {
        let amax = block_amax(b);
        if amax >= INFINITY {
            return false;
        }
        let exponent = self.exponent_code(amax);
        // A power of two has an exact inverse: its product is the quotient, bit for bit.
        let (scale, inverse) = (power_of_code(exponent), power_of_code(254 - exponent));
        // The sum with a negative zero is what it was, that with zero has no negative zero.
        let zero = if self.twos_complement { 0.0 } else { -0.0 };
        for v in b {
            *v = self.round(*v * inverse, scale) + zero;
        }
        true
    }

    /// Encodes one block; `false` if a value is not finite.
    #[inline(always)]
    fn encode_block(self, b: &[f32], scale: &mut u8, codes: &mut [u32]) -> bool {
        let amax = block_amax(b);
        if amax >= INFINITY {
            return false;
        }
        *scale = self.exponent_code(amax);
        let inverse = power_of_code(254 - *scale);
        for (v, code) in b.iter().zip(codes) {
            *code = self.code(*v * inverse);
        }
        true
    }

    #[inline(always)]
    fn decode_block(self, scale: f32, codes: &[u32], out: &mut [f32]) {
        if scale.is_nan() {
            return out.fill(f32::NAN);
        }
        for (code, v) in codes.iter().zip(out) {
            *v = self.value(*code, scale);
        }
    }
}

versions! {
    /// Rounds blocks of `len` values to a float grid under a power of two; returns how many values are done, up to a block
    /// that is not finite.
    fn power_blocks(grid: &BlockGrid, x: &mut [f32], len: usize) -> usize {
        let grid = *grid;
        blocks(x, len, |b| grid.round_block(b))
    }
}

// Loops and no iterator adapters: what these call is compiled without the instruction set unless it is inlined.
versions! {
    /// The exponents plus 127 of blocks of `len` values, and the codes of the values; `false` if a value is not finite.
    fn power_encode(grid: &BlockGrid, x: &[f32], len: usize, scales: &mut [u8], codes: &mut [u32]) -> bool {
        #[inline(always)]
        fn fixed<const N: usize>(grid: BlockGrid, x: &[f32], scales: &mut [u8], codes: &mut [u32]) -> bool {
            let blocks = x.as_chunks::<N>().0.iter().zip(codes.as_chunks_mut::<N>().0);
            for ((b, codes), scale) in blocks.zip(scales) {
                if !grid.encode_block(b, scale, codes) {
                    return false;
                }
            }
            true
        }
        let grid = *grid;
        match len {
            16 => fixed::<16>(grid, x, scales, codes),
            32 => fixed::<32>(grid, x, scales, codes),
            64 => fixed::<64>(grid, x, scales, codes),
            _ => {
                let blocks = x.chunks_exact(len).zip(codes.chunks_exact_mut(len));
                for ((b, codes), scale) in blocks.zip(scales) {
                    if !grid.encode_block(b, scale, codes) {
                        return false;
                    }
                }
                true
            }
        }
    }
}

versions! {
    /// The values of the codes of blocks of `len` values under these scales.
    fn scaled_decode(grid: &BlockGrid, scales: &[f32], codes: &[u32], len: usize, out: &mut [f32]) {
        #[inline(always)]
        fn fixed<const N: usize>(grid: BlockGrid, scales: &[f32], codes: &[u32], out: &mut [f32]) {
            let blocks = codes.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<N>().0);
            for ((codes, out), scale) in blocks.zip(scales) {
                grid.decode_block(*scale, codes, out);
            }
        }
        let grid = *grid;
        match len {
            16 => fixed::<16>(grid, scales, codes, out),
            32 => fixed::<32>(grid, scales, codes, out),
            64 => fixed::<64>(grid, scales, codes, out),
            _ => {
                let blocks = codes.chunks_exact(len).zip(out.chunks_exact_mut(len));
                for ((codes, out), scale) in blocks.zip(scales) {
                    grid.decode_block(*scale, codes, out);
                }
            }
        }
    }
}

versions! {
    /// Rounds blocks of `len` values to a float grid under these scales, by division; where the scale is 0, to zeros.
    fn scaled_blocks(grid: &BlockGrid, scales: &[f32], x: &mut [f32], len: usize) {
        #[inline(always)]
        fn one(grid: BlockGrid, scale: f32, b: &mut [f32]) {
            let divisor = if scale == 0.0 { f32::MAX } else { scale };
            for v in b {
                *v = grid.round(*v / divisor, scale);
            }
        }
        let grid = *grid;
        if len == 16 {
            for (b, scale) in x.as_chunks_mut::<16>().0.iter_mut().zip(scales) {
                one(grid, *scale, b);
            }
        } else {
            for (b, scale) in x.chunks_exact_mut(len).zip(scales) {
                one(grid, *scale, b);
            }
        }
    }
}

versions! {
    /// The codes of blocks of `len` values under these scales, by division; where the scale is 0, those of zeros.
    fn scaled_encode(grid: &BlockGrid, scales: &[f32], x: &[f32], len: usize, codes: &mut [u32]) {
        #[inline(always)]
        fn one(grid: BlockGrid, scale: f32, b: &[f32], codes: &mut [u32]) {
            // What has a scale of 0 is too small to become anything but zero when it is divided by the largest number.
            let divisor = if scale == 0.0 { f32::MAX } else { scale };
            for (v, code) in b.iter().zip(codes) {
                *code = grid.code(*v / divisor);
            }
        }
        let grid = *grid;
        if len == 16 {
            let blocks = x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
            for ((b, codes), scale) in blocks.zip(scales) {
                one(grid, *scale, b, codes);
            }
        } else {
            let blocks = x.chunks_exact(len).zip(codes.chunks_exact_mut(len));
            for ((b, codes), scale) in blocks.zip(scales) {
                one(grid, *scale, b, codes);
            }
        }
    }
}

versions! {
    /// The largest magnitude of each block of `len` values, as bits; `false` if a value is not finite.
    fn block_ranges(x: &[f32], len: usize, amax: &mut [u32]) -> bool {
        let mut all = 0;
        if len == 16 {
            for (b, amax) in x.as_chunks::<16>().0.iter().zip(amax) {
                // What is hidden from the compiler keeps it from gathering element by element across blocks.
                *amax = std::hint::black_box(block_amax(b));
                all = all.max(*amax);
            }
        } else {
            for (b, amax) in x.chunks_exact(len).zip(amax) {
                *amax = block_amax(b);
                all = all.max(*amax);
            }
        }
        all < INFINITY
    }
}

versions! {
    /// The codes and the scales of blocks with these largest magnitudes, for scales in e4m3fn under a global one.
    fn nest_e4m3fn(amax: &[u32], top: f32, global: f32, codes: &mut [u32], scales: &mut [f32]) {
        for ((amax, code), scale) in amax.iter().zip(codes).zip(scales) {
            let c = nested_e4m3fn::code(f32::from_bits(*amax) / top, global);
            *code = c;
            *scale = nested_e4m3fn::scale(c, global);
        }
    }
}

versions! {
    /// Codes of at most eight bits, as bytes.
    fn narrow(codes: &[u32], out: &mut [u8]) {
        for (b, code) in out.iter_mut().zip(codes) { *b = *code as u8; }
    }
}

versions! {
    /// Bytes as codes.
    fn widen(bytes: &[u8], codes: &mut [u32]) {
        for (code, b) in codes.iter_mut().zip(bytes) { *code = u32::from(*b); }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::Range;
    use crate::Scheme;
    use crate::formats::quantize_by_definition;

    thread_local! {
        /// The level that a test asks for on its thread.
        pub(crate) static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
    }

    /// Runs a test at every level that this machine has.
    pub(crate) fn at_every_level(mut test: impl FnMut(Level)) {
        let best = level();
        let levels = [
            Level::Portable,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512,
        ];
        for l in levels.into_iter().filter(|l| *l <= best) {
            FORCED.set(Some(l));
            test(l);
            FORCED.set(None);
        }
    }

    /// Values of every size, with ties, zeros of both signs, subnormals and infinities.
    pub(super) fn values(n: usize) -> Vec<f32> {
        let stream = Stream::named(5, "simd");
        (0..n)
            .map(|i| {
                let bits = stream.words(i as u64)[0];
                match i % 8 {
                    0 => f32::from_bits(bits & 0x807F_FFFF),
                    1 => f32::from_bits(bits & SIGN),
                    2 => (bits % 512) as f32 / 4.0 - 64.0,
                    3 if i % 16 == 3 => f32::from_bits(bits & SIGN | NAN),
                    3 => f32::from_bits(bits & SIGN | INFINITY),
                    4 | 5 => f32::from_bits(bits & 0x83FF_FFFF | 0x3C00_0000),
                    _ if bits & INFINITY == INFINITY => 1.0,
                    _ => f32::from_bits(bits),
                }
            })
            .collect()
    }

    /// The schemes of all formats, and the words that change what a format's loops do.
    fn formats() -> Vec<Scheme> {
        let all = crate::FAMILIES
            .iter()
            .flat_map(|f| f.members())
            .chain(["e4m3fn/ieee", "f16/sat"].map(String::from));
        all.map(|text| text.parse::<Scheme>().unwrap()).filter(|s| s.format().is_some()).collect()
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn every_level_rounds_runs_as_the_definition_at_every_length_and_offset() {
        let x = values(2000);
        let mut draws = vec![0; x.len()];
        Stream::new(1, 1).fill(0, &mut draws);
        for scheme in formats() {
            let format = scheme.format().unwrap();
            for range in [Range { min: -3.0, max: 2.0 }, Range { min: 1e-3, max: 3e38 }] {
                let params = format.fit(range, ScaleFormat::F32);
                for (_, rounding) in Rounding::WORDS {
                    let mut expected = x.clone();
                    quantize_by_definition(format, &mut expected, &params, rounding, &draws);
                    at_every_level(|level| {
                        let mut whole = x.clone();
                        format.quantize_run(&mut whole, &params, rounding, &draws);
                        for (i, (got, want)) in whole.iter().zip(&expected).enumerate() {
                            assert_eq!(
                                got.to_bits(),
                                want.to_bits(),
                                "{format:?} {params:?} {rounding:?} {level:?}: {:e} -> {got:e}, not {want:e}",
                                x[i]
                            );
                        }
                        for start in [0, 1, 3] {
                            for len in 0..70 {
                                let mut part = x[start..start + len].to_vec();
                                format.quantize_run(
                                    &mut part,
                                    &params,
                                    rounding,
                                    &draws[start..start + len],
                                );
                                assert_eq!(bits(&part), bits(&expected[start..start + len]));
                            }
                        }
                    });
                }
            }
        }
    }

    #[test]
    fn every_level_encodes_and_decodes_as_the_definition() {
        let x = values(700);
        for scheme in formats() {
            let format = scheme.format().unwrap();
            for range in [Range { min: -3.0, max: 2.0 }, Range { min: 1e-3, max: 3e38 }] {
                let params = format.fit(range, ScaleFormat::F32);
                let encode = |x: f32| format.encode(x, &params, Rounding::NearestEven, 0);
                let expected: Vec<u32> = x.iter().map(|x| encode(*x)).collect();
                // All codes where these are few, else a sample of all bit patterns.
                let step = (1usize << format.bits() >> 12) | 1;
                let all: Vec<u32> =
                    (0..1u64 << format.bits()).step_by(step).map(|c| c as u32).collect();
                let values: Vec<f32> = all.iter().map(|c| format.decode(*c, &params)).collect();
                at_every_level(|level| {
                    for start in [0, 1] {
                        for len in (0..40).chain([x.len() - start]) {
                            let mut codes = vec![0; len];
                            let part = &x[start..start + len];
                            format.encode_run(
                                part,
                                &params,
                                Rounding::NearestEven,
                                &[],
                                &mut codes,
                            );
                            assert_eq!(
                                codes,
                                expected[start..start + len],
                                "{format:?} {params:?} {level:?}"
                            );
                        }
                    }
                    let mut out = vec![0.0; all.len()];
                    format.decode_run(&all, &params, &mut out);
                    assert_eq!(bits(&out), bits(&values), "{format:?} {params:?} {level:?}");
                });
            }
        }
    }

    #[test]
    fn every_rounding_of_a_run_has_the_codes_of_the_definition() {
        let x = values(3000);
        let mut draws = vec![0; x.len()];
        Stream::new(1, 2).fill(0, &mut draws);
        for scheme in formats() {
            let format = scheme.format().unwrap();
            let top = Range { min: 1e-3, max: f32::MAX };
            for range in [Range { min: -3.0, max: 2.0 }, Range { min: 0.0, max: 1e-40 }, top] {
                for &store in format.scales() {
                    let params = format.fit(range, store);
                    for (_, rounding) in Rounding::WORDS {
                        let encode = |i: usize| format.encode(x[i], &params, rounding, draws[i]);
                        let expected: Vec<u32> = (0..x.len()).map(encode).collect();
                        let mut codes = vec![0; x.len()];
                        format.encode_run(&x, &params, rounding, &draws, &mut codes);
                        assert_eq!(codes, expected, "{scheme} {params:?} {rounding:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_level_rounds_blocks_as_the_definition() {
        let x: Vec<f32> = values(4000).into_iter().filter(|v| v.abs() < 1e36).collect();
        for scheme in formats() {
            let format = scheme.format().unwrap();
            for &store in format.scales() {
                for len in [1, 5, 16, 32, 64, 128] {
                    let whole = x.len() / len * len;
                    let mut expected = x[..whole].to_vec();
                    for block in expected.chunks_mut(len) {
                        let range = Range::of_finite(block);
                        let params =
                            format.fit(Range { min: -range.amax(), max: range.amax() }, store);
                        quantize_by_definition(format, block, &params, Rounding::NearestEven, &[]);
                    }
                    at_every_level(|level| {
                        let mut fast = x.clone();
                        let done =
                            format.quantize_blocks(&mut fast, len, store, Rounding::NearestEven);
                        assert!(done == 0 || done == whole, "{format:?} {done}");
                        assert_eq!(
                            bits(&fast[..done]),
                            bits(&expected[..done]),
                            "{format:?} {store:?} {len} {level:?}"
                        );
                        assert_eq!(bits(&fast[done..]), bits(&x[done..]));
                    });
                }
            }
        }
    }

    #[test]
    fn every_level_encodes_and_decodes_blocks_as_the_definition() {
        use crate::pack::{pack, packed_len, unpack};
        let mut x: Vec<f32> = values(4800).into_iter().filter(|v| v.abs() < 1e36).collect();
        // Blocks of zeros, of subnormal numbers and near the top of f32.
        x[64..128].fill(-0.0);
        x[128..192].iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits() & 0x807F_FFFF));
        x[192..256].iter_mut().for_each(|v| *v = f32::MAX.copysign(*v));
        let mut fast = 0;
        for scheme in formats() {
            let format = scheme.format().unwrap();
            for &store in format.scales().iter().filter(|store| !store.is_nested()) {
                for len in [8, 16, 24, 32, 64, 1024, 1032] {
                    let x = &x[..x.len() / len * len];
                    let (mut params, mut codes) = (vec![], vec![]);
                    for block in x.chunks(len) {
                        let amax = Range::of_finite(block).amax();
                        let p = format.fit(Range { min: -amax, max: amax }, store);
                        let encode = |v: &f32| format.encode(*v, &p, Rounding::NearestEven, 0);
                        codes.extend(block.iter().map(encode));
                        params.push(p);
                    }
                    let mut scales = vec![0; store.bytes(params.len()).unwrap()];
                    store.write_all(&params, &mut scales);
                    let mut packed = vec![0; packed_len(x.len(), format.bits()).unwrap()];
                    pack(&codes, format.bits(), &mut packed);
                    at_every_level(|level| {
                        let (mut s, mut p) = (vec![0; scales.len()], vec![0; packed.len()]);
                        if format.encode_blocks(x, len, store, &mut s, &mut p) {
                            assert!(
                                s == scales && p == packed,
                                "{scheme} {store:?} {len} {level:?}"
                            );
                            fast += 1;
                        }
                    });
                    // Bytes that are never written too.
                    scales.iter_mut().zip((0..=255).rev()).for_each(|(s, byte)| *s = byte);
                    packed.iter_mut().zip((0..=255).cycle()).for_each(|(p, byte)| *p = byte);
                    if store.read_all(&scales, &mut params).is_err() {
                        continue;
                    }
                    unpack(&packed, format.bits(), 0, &mut codes);
                    let decode = |i: usize| format.decode(codes[i], &params[i / len]).to_bits();
                    let expected: Vec<u32> = (0..x.len()).map(decode).collect();
                    at_every_level(|level| {
                        let mut out = vec![1.0; x.len()];
                        if format.decode_blocks(&scales, &packed, len, store, &mut out) {
                            assert_eq!(bits(&out), expected, "{scheme} {store:?} {len} {level:?}");
                            fast += 1;
                        }
                    });
                }
            }
        }
        assert!(fast > 500, "{fast}");
    }

    #[test]
    fn ranges_and_random_numbers_are_the_same_at_every_level() {
        let x = values(300);
        let stream = Stream::new(3, 4);
        let mut expected = vec![0; 300];
        for (i, d) in expected.iter_mut().enumerate() {
            *d = stream.draw(i as u64);
        }
        at_every_level(|_| {
            for len in 0..x.len() {
                let x: Vec<f32> = x.iter().map(|v| if v.is_nan() { 0.0 } else { *v }).collect();
                let largest = x[..len].iter().map(|v| v.abs().to_bits()).max().unwrap_or(0);
                assert_eq!(amax_bits(&x[..len]), largest);
                if len > 0 {
                    let (low, high) = min_max(&x[..len]);
                    assert_eq!(low, x[..len].iter().copied().fold(f32::INFINITY, f32::min));
                    assert_eq!(high, x[..len].iter().copied().fold(f32::NEG_INFINITY, f32::max));
                }
            }
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let (low, high) = min_max(&[1.0, bad, -1.0]);
                assert!(!(low.is_finite() && high.is_finite()), "{bad}");
            }
            let mut draws = vec![0; 300];
            stream.fill(0, &mut draws);
            assert_eq!(draws, expected);
        });
    }
}
