//! Loops over many elements, compiled once for each instruction set and chosen at run time.
//!
//! The bodies are plain Rust that the compiler turns into vector code; only the `#[target_feature]` wrappers differ. Each
//! body computes the same bits as the definition in [`Format`](crate::Format), which the tests compare it with.
#![expect(clippy::cast_possible_truncation, reason = "codes and exponents fit their types")]
#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "a wrapper compiled for an instruction set is called after that set was detected"
    )
)]

use std::sync::OnceLock;

use crate::formats::{Codes, CodesMut, Groups, Params};
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
    (
        $(#[$doc:meta])*
        fn $name:ident $(<$($type:ident: $bound:path),+>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?
        $body:block
    ) => {
        $(#[$doc])*
        pub(crate) fn $name $(<$($type: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$($type: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
            fn avx512 $(<$($type: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2 $(<$($type: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            match $crate::simd::level() {
                // SAFETY: `level` gives this only after it has detected the features.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                $crate::simd::Level::Portable => body($($arg),*),
            }
        }
    };
}

mod block32;
pub(crate) mod elements;
pub(crate) mod levels;
mod loss;
pub(crate) mod s2fp8;
pub(crate) mod select;
pub(crate) mod smaq;
mod tables;

pub(crate) use block32::{Block32, block32_decode, block32_emulate, block32_encode};
pub(crate) use elements::{
    Integers, are_ordinary, block_decode_groups, fit_blocks, float_decode_groups,
    float_encode_groups, float_groups, int_decode, int_encode, int_groups, join_ranges,
};
pub(crate) use loss::loss_sums;
pub(crate) use tables::{
    Sixteen, Wide, sixteen_blocks, sixteen_decode, sixteen_encode, sixteen_encode_drawn,
    sixteen_run, sixteen_run_drawn, wide_encode, wide_encode_drawn, wide_run, wide_run_drawn,
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
        block_min_max(x)
    }
}

#[inline(always)]
fn block_min_max(x: &[f32]) -> (f32, f32) {
    // Integers, because the compiler must not reorder comparisons of floats.
    let (mut low, mut high) = (i32::MAX, i32::MIN);
    for v in x {
        let key = ordered(v.to_bits().cast_signed());
        (low, high) = (low.min(key), high.max(key));
    }
    let float = |key| f32::from_bits(ordered(key).cast_unsigned());
    (float(low), float(high))
}

#[inline(always)]
fn clamp(v: f32, low: f32, high: f32) -> f32 {
    let v = if v < low { low } else { v };
    if v > high { high } else { v }
}

/// A float grid as the vector loops see it, in bit patterns of `f32`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloatGrid {
    /// How many mantissa bits of `f32` are dropped.
    pub shift: u32,
    /// 1 where the parity of a code is the opposite of that of its `f32` exponent (no mantissa bits, odd difference of biases).
    pub odd: u32,
    /// The smallest normal value; zero where `f32` becomes subnormal at the same place, so that all values are alike.
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
    /// The subnormal step.
    pub step: f32,
    /// How many of them there are in one.
    pub per_step: f32,
}

impl FloatGrid {
    /// A value over its scale. Where infinity is kept and overflow is not, a finite value must not become infinite.
    #[inline(always)]
    fn quotient(self, x: f32, scale: f32) -> f32 {
        let v = x / scale;
        let keeps = self.infinity != self.over;
        if keeps && x.to_bits() & !SIGN < INFINITY { FloatGrid::finite(v) } else { v }
    }

    #[inline(always)]
    fn nearest(self, v: f32) -> f32 {
        self.round::<elements::Nearest>(v, 0)
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

/// The codes of values over `scale`, to nearest.
pub(crate) fn float_encode(
    grid: &FloatGrid,
    codes: FloatCodes,
    x: &[f32],
    scale: f32,
    out: &mut [u32],
) {
    let params = Params { scale, ..Params::UNIT };
    let groups = Groups::one(&params, x.len());
    float_encode_groups(grid, codes, groups, x, Rounding::NearestEven, &[], CodesMut::Words(out));
}

/// The values of codes times `scale`.
pub(crate) fn float_decode(
    grid: &FloatGrid,
    codes: FloatCodes,
    x: &[u32],
    scale: f32,
    out: &mut [f32],
) {
    let params = Params { scale, ..Params::UNIT };
    let groups = Groups::one(&params, x.len());
    float_decode_groups(grid, codes, groups, Codes::Words(x), out);
}

/// Rounds values to a float grid times `scale`.
pub(crate) fn float_run(
    grid: &FloatGrid,
    x: &mut [f32],
    scale: f32,
    rounding: Rounding,
    draws: &[u32],
) {
    let params = Params { scale, ..Params::UNIT };
    let groups = Groups::one(&params, x.len());
    float_groups(grid, groups, x, rounding, draws);
}

/// Multiplies by the scale; what was finite stays finite.
#[inline(always)]
fn rescale(r: f32, scale: f32) -> f32 {
    let v = r * scale;
    if r.to_bits() & !SIGN < INFINITY { FloatGrid::finite(v) } else { r }
}

/// What is done with a block of values; `false` if it cannot be.
///
/// A type can tell that its method is to become part of the loop, which a closure cannot.
trait Block: Copy {
    fn work(self, block: &mut [f32]) -> bool;
}

impl<F: Fn(&mut [f32]) -> bool + Copy> Block for F {
    #[inline(always)]
    fn work(self, block: &mut [f32]) -> bool {
        self(block)
    }
}

/// Works on whole blocks of `len` values until `one` refuses one; a loop of its own for the usual lengths lets the
/// compiler unroll them.
#[inline(always)]
fn blocks(x: &mut [f32], len: usize, one: impl Block) -> usize {
    #[inline(always)]
    fn fixed<const N: usize>(x: &mut [f32], one: impl Block) -> usize {
        let mut done = 0;
        for block in x.as_chunks_mut::<N>().0 {
            if !one.work(block) {
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
                if !one.work(block) {
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
    let mut amax = 0;
    for v in b {
        amax = amax.max(v.to_bits() & !SIGN);
    }
    amax
}

/// Rounds one block to symmetric integers; refuses one that is not finite or comes near the top of `f32`.
#[derive(Clone, Copy)]
struct IntBlock {
    store: ScaleFormat,
    codes: [f32; 3],
}

impl Block for IntBlock {
    #[inline(always)]
    fn work(self, b: &mut [f32]) -> bool {
        let [low, high, divisor] = self.codes;
        let amax = block_amax(b);
        if amax > 0x7D00_0000 {
            return false;
        }
        let scale = if amax == 0 { 1.0 } else { self.store.store(f32::from_bits(amax) / divisor) };
        for v in b {
            *v = clamp((*v / scale).round_ties_even(), low, high) * scale + 0.0;
        }
        true
    }
}

/// Rounds one block to a float grid; refuses one that is not finite or comes near the top of `f32`.
#[derive(Clone, Copy)]
struct FloatBlock {
    store: ScaleFormat,
    grid: FloatGrid,
}

impl Block for FloatBlock {
    #[inline(always)]
    fn work(self, b: &mut [f32]) -> bool {
        let amax = block_amax(b);
        if amax > 0x7D00_0000 {
            return false;
        }
        let max = f32::from_bits(self.grid.max);
        let scale = if amax == 0 { 1.0 } else { self.store.store(f32::from_bits(amax) / max) };
        for v in b {
            *v = self.grid.nearest(self.grid.quotient(*v, scale)) * scale;
        }
        true
    }
}

versions! {
    /// Rounds blocks of `len` values to symmetric integers, each by its own range; `codes` is the smallest code, the largest,
    /// and what the range is divided by. Returns how many values are done: up to a block that is not finite or that comes
    /// near the top of `f32`.
    fn int_blocks(x: &mut [f32], len: usize, store: ScaleFormat, codes: [f32; 3]) -> usize {
        match store {
            // The usual storage apart, so that its loop holds no conversion.
            ScaleFormat::F32 => blocks(x, len, IntBlock { store: ScaleFormat::F32, codes }),
            _ => blocks(x, len, IntBlock { store, codes }),
        }
    }
}

versions! {
    /// Rounds blocks of `len` values to a float grid, each scaled so that its largest magnitude is the grid's. Returns
    /// as [`int_blocks`].
    fn float_blocks(grid: &FloatGrid, x: &mut [f32], len: usize, store: ScaleFormat) -> usize {
        let grid = *grid;
        match store {
            ScaleFormat::F32 => blocks(x, len, FloatBlock { store: ScaleFormat::F32, grid }),
            _ => blocks(x, len, FloatBlock { store, grid }),
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
        blocks(x, len, |b: &mut [f32]| grid.round_block(b))
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
    use crate::formats::quantize_by_definition;
    use crate::{Range, Scheme};

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

    /// Codes, and room for them, as wide as a format needs them.
    struct Room {
        bits: u32,
        bytes: Vec<u8>,
        pairs: Vec<[u8; 2]>,
        words: Vec<u32>,
    }

    impl Room {
        fn new(bits: u32, codes: &[u32]) -> Self {
            let two = |c: &u32| [c.to_le_bytes()[0], c.to_le_bytes()[1]];
            Self {
                bits,
                bytes: codes.iter().map(|c| c.to_le_bytes()[0]).collect(),
                pairs: codes.iter().map(two).collect(),
                words: codes.to_vec(),
            }
        }

        fn codes(&self) -> Codes<'_> {
            match self.bits {
                ..=8 => Codes::Bytes(&self.bytes),
                9..=16 => Codes::Pairs(&self.pairs),
                _ => Codes::Words(&self.words),
            }
        }

        fn codes_mut(&mut self) -> CodesMut<'_> {
            match self.bits {
                ..=8 => CodesMut::Bytes(&mut self.bytes),
                9..=16 => CodesMut::Pairs(&mut self.pairs),
                _ => CodesMut::Words(&mut self.words),
            }
        }

        fn to_vec(&self) -> Vec<u32> {
            match self.bits {
                ..=8 => self.bytes.iter().map(|c| (*c).into()).collect(),
                9..=16 => self.pairs.iter().map(|c| u16::from_le_bytes(*c).into()).collect(),
                _ => self.words.clone(),
            }
        }
    }

    #[test]
    fn every_level_encodes_and_decodes_as_the_definition() {
        let x = values(700);
        let mut draws = vec![0; x.len()];
        Stream::new(1, 1).fill(0, &mut draws);
        for scheme in formats() {
            let format = scheme.format().unwrap();
            for range in [Range { min: -3.0, max: 2.0 }, Range { min: 1e-3, max: 3e38 }] {
                let params = format.fit(range, ScaleFormat::F32);
                // All codes where these are few, else a sample of all bit patterns.
                let step = (1usize << format.bits() >> 12) | 1;
                let all: Vec<u32> =
                    (0..1u64 << format.bits()).step_by(step).map(|c| c as u32).collect();
                let values: Vec<f32> = all.iter().map(|c| format.decode(*c, &params)).collect();
                at_every_level(|level| {
                    let mut out = vec![0.0; all.len()];
                    format.decode_run(&all, &params, &mut out);
                    assert_eq!(bits(&out), bits(&values), "{format:?} {params:?} {level:?}");
                });
                for (_, rounding) in Rounding::WORDS {
                    let encode = |(x, d): (&f32, &u32)| format.encode(*x, &params, rounding, *d);
                    let expected: Vec<u32> = x.iter().zip(&draws).map(encode).collect();
                    at_every_level(|level| {
                        for start in [0, 1] {
                            for len in (0..40).chain([x.len() - start]) {
                                let mut codes = vec![0; len];
                                let at = start..start + len;
                                let (part, draws) = (&x[at.clone()], &draws[at.clone()]);
                                format.encode_run(part, &params, rounding, draws, &mut codes);
                                assert_eq!(
                                    codes, expected[at],
                                    "{format:?} {params:?} {rounding:?} {level:?}"
                                );
                            }
                        }
                    });
                }
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
    fn every_level_works_on_groups_as_the_definition() {
        let x = values(421);
        let mut draws = vec![0; x.len()];
        Stream::new(1, 1).fill(0, &mut draws);
        for scheme in formats() {
            let format = scheme.format().unwrap();
            for len in [1, 2, 15, 16, 32, 49, 421, 1000] {
                let ranges: Vec<Range> = x.chunks(len).map(Range::of_finite).collect();
                let mut params = vec![Params::UNIT; ranges.len()];
                format.fit_groups(&ranges, ScaleFormat::Bf16, &mut params);
                for (range, params) in ranges.iter().zip(&params) {
                    assert_eq!(*params, format.fit(range.or_zero(), ScaleFormat::Bf16));
                }
                let groups = Groups { params: &params, len };
                for (_, rounding) in Rounding::WORDS {
                    let params = |i: usize| &params[i / len];
                    let codes: Vec<u32> = (0..x.len())
                        .map(|i| format.encode(x[i], params(i), rounding, draws[i]))
                        .collect();
                    let values: Vec<f32> = codes
                        .iter()
                        .enumerate()
                        .map(|(i, c)| format.decode(*c, params(i)))
                        .collect();
                    at_every_level(|level| {
                        let told = format!("{format:?} {len} {rounding:?} {level:?}");
                        let mut rounded = x.clone();
                        format.quantize_groups(&mut rounded, groups, rounding, &draws);
                        assert_eq!(bits(&rounded), bits(&values), "{told}");
                        let mut room = Room::new(format.bits(), &vec![u32::MAX; x.len()]);
                        format.encode_groups(&x, groups, rounding, &draws, room.codes_mut());
                        assert_eq!(room.to_vec(), codes, "{told}");
                        let mut decoded = vec![0.0; x.len()];
                        format.decode_groups(room.codes(), groups, &mut decoded);
                        assert_eq!(bits(&decoded), bits(&values), "{told}");
                    });
                }
            }
        }
    }

    #[test]
    fn ranges_of_groups_are_those_of_their_values() {
        let x: Vec<f32> = values(300).into_iter().filter(|v| v.is_finite()).collect();
        for len in [1, 2, 16, 17, 50, 1000] {
            let expected: Vec<Range> = x.chunks(len).map(Range::of_finite).collect();
            at_every_level(|_| {
                for only_amax in [false, true] {
                    let mut ranges = vec![Range::EMPTY; expected.len()];
                    // In two lines, the second of which can only widen what the first has found.
                    let half = expected.len() / 2;
                    join_ranges(&x[..(half * len).min(x.len())], len, only_amax, &mut ranges);
                    join_ranges(&x, len, only_amax, &mut ranges);
                    for (range, expected) in ranges.iter().zip(&expected) {
                        let amax = expected.amax();
                        let whole = Range { min: -amax, max: amax };
                        assert_eq!(*range, if only_amax { whole } else { *expected });
                    }
                    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let mut x = x.clone();
                        let at = x.len() / 2;
                        x[at] = bad;
                        let mut ranges = vec![Range::EMPTY; expected.len()];
                        join_ranges(&x, len, only_amax, &mut ranges);
                        for (i, range) in ranges.iter().enumerate() {
                            let finite = range.min.is_finite() && range.max.is_finite();
                            assert_eq!(finite, i != at / len, "{bad}");
                        }
                    }
                }
            });
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
    fn stochastic_rounding_is_exact_where_it_is_closest() {
        // Fractions at and around those at which the draw decides, of both signs and many sizes.
        let mut x = vec![0.0f32, -0.0, f32::MIN_POSITIVE, -1e-45, 1e-45, 0.5, -0.5, 1.0, -1.0];
        for whole in [0.0, 1.0, 2.0, 3.0, 100.0] {
            for fraction in [1.0, 2.0, 3.0, 8_388_607.0, 8_388_608.0, 16_777_214.0, 16_777_215.0] {
                let v: f32 = whole + fraction / 16_777_216.0;
                x.extend([v, v.next_up(), v.next_down()]);
            }
        }
        x.extend(x.clone().iter().map(|v| -v));
        let draws = [0, 1, 2, 3, (1 << 23) - 1, 1 << 23, (1 << 24) - 2, (1 << 24) - 1];
        for scheme in formats() {
            let format = scheme.format().unwrap();
            let params = Params::UNIT;
            for draw in draws {
                let mut expected = x.clone();
                let all = vec![draw; x.len()];
                quantize_by_definition(format, &mut expected, &params, Rounding::Stochastic, &all);
                at_every_level(|level| {
                    let mut fast = x.clone();
                    format.quantize_run(&mut fast, &params, Rounding::Stochastic, &all);
                    assert_eq!(bits(&fast), bits(&expected), "{format:?} {draw} {level:?}");
                });
            }
        }
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
