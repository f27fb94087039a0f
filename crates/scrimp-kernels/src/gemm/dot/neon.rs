//! NEON, which every 64-bit ARM has.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int16x8_t, int32x4_t, uint32x4_t, vaddq_f32, vaddq_s32, vandq_u32,
    vcvtq_f32_s32, vdup_n_u32, vdupq_n_f32, vdupq_n_s32, vdupq_n_u32, vfmaq_f32, vget_high_s8,
    vget_low_s8, vget_low_s16, vld1q_f32, vld1q_s8, vld1q_s32, vld1q_u32, vmovl_s8, vmovl_u8,
    vmull_high_s16, vmull_s16, vmulq_f32, vpaddq_s32, vreinterpret_u8_u32, vreinterpretq_f32_u32,
    vreinterpretq_s16_u16, vshlq_n_u32, vst1q_f32, vst1q_s32,
};

use super::{Dot, finish_lanes};

/// What the versions for f32 sums have in common.
macro_rules! f32_sums {
    () => {
        type Sum = float32x4_t;
        const LANES: usize = 4;

        #[inline(always)]
        unsafe fn zero() -> float32x4_t {
            // SAFETY: every 64-bit ARM has NEON.
            unsafe { vdupq_n_f32(0.0) }
        }
        #[inline(always)]
        unsafe fn load(from: *const u32) -> float32x4_t {
            // SAFETY: the caller has 4 words there.
            unsafe { vld1q_f32(from.cast()) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut u32, sum: float32x4_t) {
            // SAFETY: the caller has a place for 4 words there.
            unsafe { vst1q_f32(to.cast(), sum) }
        }
        #[inline(always)]
        fn value(word: u32) -> f32 {
            f32::from_bits(word)
        }
        #[inline(always)]
        unsafe fn finish(
            sum: float32x4_t,
            scale: *const f32,
            bias: Option<*const f32>,
            out: *mut f32,
            lanes: usize,
        ) {
            // SAFETY: what the method asks of its caller is what the function does.
            unsafe { finish(sum, scale, bias, out, lanes) }
        }
    };
}

#[inline(always)]
unsafe fn finish(
    sum: float32x4_t,
    scale: *const f32,
    bias: Option<*const f32>,
    out: *mut f32,
    lanes: usize,
) {
    let mut sums = [0.0; 4];
    // SAFETY: scale, bias and output have `lanes` elements.
    unsafe {
        if lanes < 4 {
            vst1q_f32(sums.as_mut_ptr(), sum);
            finish_lanes(&sums[..lanes], scale, bias, out);
            return;
        }
        let mut value = vmulq_f32(sum, vld1q_f32(scale));
        if let Some(bias) = bias {
            value = vaddq_f32(value, vld1q_f32(bias));
        }
        vst1q_f32(out, value);
    }
}

#[inline(always)]
unsafe fn word(from: *const u8) -> u32 {
    // SAFETY: the caller has a word there.
    unsafe { from.cast::<u32>().read_unaligned() }
}

/// f32 by fused multiply and add.
#[derive(Clone, Copy)]
pub struct F32;

impl Dot for F32 {
    type Left = float32x4_t;
    type Right = float32x4_t;
    f32_sums!();

    #[inline(always)]
    unsafe fn left(from: *const u8) -> float32x4_t {
        // SAFETY: the caller has a word there.
        unsafe { vdupq_n_f32(f32::from_bits(word(from))) }
    }
    #[inline(always)]
    unsafe fn right(from: *const u32) -> float32x4_t {
        // SAFETY: the caller has 4 words there.
        unsafe { vld1q_f32(from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot(sum: float32x4_t, left: float32x4_t, right: float32x4_t) -> float32x4_t {
        // SAFETY: every 64-bit ARM has NEON.
        unsafe { vfmaq_f32(sum, left, right) }
    }
}

/// Pairs of bf16 widened to f32: the first of each pair, then the second.
#[derive(Clone, Copy)]
pub struct Widened;

#[inline(always)]
unsafe fn widen(words: uint32x4_t) -> [float32x4_t; 2] {
    // SAFETY: every 64-bit ARM has NEON.
    unsafe {
        let high = vandq_u32(words, vdupq_n_u32(0xFFFF_0000));
        [vreinterpretq_f32_u32(vshlq_n_u32::<16>(words)), vreinterpretq_f32_u32(high)]
    }
}

impl Dot for Widened {
    type Left = [float32x4_t; 2];
    type Right = [float32x4_t; 2];
    f32_sums!();

    #[inline(always)]
    unsafe fn left(from: *const u8) -> [float32x4_t; 2] {
        // SAFETY: the caller has a word there.
        unsafe { widen(vdupq_n_u32(word(from))) }
    }
    #[inline(always)]
    unsafe fn right(from: *const u32) -> [float32x4_t; 2] {
        // SAFETY: the caller has 4 words there.
        unsafe { widen(vld1q_u32(from)) }
    }
    #[inline(always)]
    unsafe fn dot(
        sum: float32x4_t,
        left: [float32x4_t; 2],
        right: [float32x4_t; 2],
    ) -> float32x4_t {
        // SAFETY: every 64-bit ARM has NEON.
        unsafe { vfmaq_f32(vfmaq_f32(sum, left[0], right[0]), left[1], right[1]) }
    }
}

/// Fours of int8, the left one as code + 128, widened to 16 bits.
#[derive(Clone, Copy)]
pub struct Int8;

impl Dot for Int8 {
    type Sum = int32x4_t;
    /// The group twice.
    type Left = int16x8_t;
    type Right = int8x16_t;
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> int32x4_t {
        // SAFETY: every 64-bit ARM has NEON.
        unsafe { vdupq_n_s32(0) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> int32x4_t {
        // SAFETY: the caller has 4 words there.
        unsafe { vld1q_s32(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut u32, sum: int32x4_t) {
        // SAFETY: the caller has a place for 4 words there.
        unsafe { vst1q_s32(to.cast(), sum) }
    }
    #[inline(always)]
    unsafe fn left(from: *const u8) -> int16x8_t {
        // SAFETY: the caller has a word there.
        unsafe { vreinterpretq_s16_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(word(from))))) }
    }
    #[inline(always)]
    unsafe fn right(from: *const u32) -> int8x16_t {
        // SAFETY: the caller has 4 words there.
        unsafe { vld1q_s8(from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot(sum: int32x4_t, left: int16x8_t, right: int8x16_t) -> int32x4_t {
        // SAFETY: every 64-bit ARM has NEON.
        unsafe {
            let (low, high) = (vmovl_s8(vget_low_s8(right)), vmovl_s8(vget_high_s8(right)));
            // The four products of a column, which two rounds of sums of neighbours add up.
            let column0 = vmull_s16(vget_low_s16(left), vget_low_s16(low));
            let column1 = vmull_high_s16(left, low);
            let column2 = vmull_s16(vget_low_s16(left), vget_low_s16(high));
            let column3 = vmull_high_s16(left, high);
            let columns = vpaddq_s32(vpaddq_s32(column0, column1), vpaddq_s32(column2, column3));
            vaddq_s32(sum, columns)
        }
    }
    #[inline(always)]
    fn value(word: u32) -> f32 {
        word.cast_signed() as f32
    }
    #[inline(always)]
    unsafe fn finish(
        sum: int32x4_t,
        scale: *const f32,
        bias: Option<*const f32>,
        out: *mut f32,
        lanes: usize,
    ) {
        // SAFETY: what the method asks of its caller is what the function does.
        unsafe { finish(vcvtq_f32_s32(sum), scale, bias, out, lanes) }
    }
}
