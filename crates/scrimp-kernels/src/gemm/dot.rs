//! What one step of the innermost loop does: products of groups, added to sums in lanes.
#![expect(unsafe_code, reason = "vectors are read from and written to addresses")]

use half::bf16;

/// Sums in lanes, for one kind and instruction set.
///
/// # Safety
/// Every method needs the instruction set, and memory for as many words as it names.
pub(super) trait Dot: Copy {
    type Sum: Copy;
    /// A group of the left operand, in all lanes.
    type Left: Copy;
    /// A group of each of the lanes' columns.
    type Right: Copy;

    const LANES: usize;

    unsafe fn zero() -> Self::Sum;
    /// Reads `LANES` words.
    unsafe fn load(from: *const u32) -> Self::Sum;
    /// Writes `LANES` words.
    unsafe fn store(to: *mut u32, sum: Self::Sum);
    /// Reads one word, at any address.
    unsafe fn left(from: *const u8) -> Self::Left;
    /// Reads `LANES` words.
    unsafe fn right(from: *const u32) -> Self::Right;
    unsafe fn dot(sum: Self::Sum, left: Self::Left, right: Self::Right) -> Self::Sum;
    /// The value of a stored word.
    fn value(word: u32) -> f32;

    /// Writes the first `lanes` values: the sums times the columns' scales, plus the bias.
    #[inline(always)]
    unsafe fn finish(
        sum: Self::Sum,
        scale: *const f32,
        bias: Option<*const f32>,
        out: *mut f32,
        lanes: usize,
    ) {
        let mut words = [0; 16];
        // SAFETY: the array has at least `LANES` words, and scale, bias and output have `lanes` elements.
        unsafe {
            Self::store(words.as_mut_ptr(), sum);
            finish_lanes(&words.map(Self::value)[..lanes], scale, bias, out);
        }
    }
}

/// Writes sums times their scales, plus the bias.
///
/// # Safety
/// Scale, bias and output have as many elements as there are sums.
#[inline(always)]
unsafe fn finish_lanes(sums: &[f32], scale: *const f32, bias: Option<*const f32>, out: *mut f32) {
    for (l, sum) in sums.iter().enumerate() {
        // SAFETY: the caller promises the elements.
        unsafe {
            let mut value = sum * *scale.add(l);
            if let Some(bias) = bias {
                value += *bias.add(l);
            }
            *out.add(l) = value;
        }
    }
}

const SCALAR_LANES: usize = 8;

/// A product added to a sum, in one rounding where the machine has that in its base instruction set.
#[inline(always)]
fn multiply_add(sum: f32, a: f32, b: f32) -> f32 {
    if cfg!(target_arch = "aarch64") { a.mul_add(b, sum) } else { a * b + sum }
}

/// Both elements of a word.
#[inline(always)]
fn pair(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xFFFF_0000)]
}

#[inline(always)]
unsafe fn scalar_words(from: *const u32) -> [u32; SCALAR_LANES] {
    // SAFETY: the caller has as many words there.
    unsafe { from.cast::<[u32; SCALAR_LANES]>().read_unaligned() }
}

macro_rules! scalar_dot {
    ($name:ident, $sum:ty, $to:expr, $from:expr, $value:expr, $step:expr) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl Dot for $name {
            type Sum = [$sum; SCALAR_LANES];
            type Left = u32;
            type Right = [u32; SCALAR_LANES];

            const LANES: usize = SCALAR_LANES;

            #[inline(always)]
            unsafe fn zero() -> Self::Sum {
                [<$sum>::default(); SCALAR_LANES]
            }

            #[inline(always)]
            unsafe fn load(from: *const u32) -> Self::Sum {
                // SAFETY: the caller has `LANES` words there.
                unsafe { scalar_words(from) }.map($from)
            }

            #[inline(always)]
            unsafe fn store(to: *mut u32, sum: Self::Sum) {
                // SAFETY: the caller has a place for `LANES` words there.
                unsafe { to.cast::<[u32; SCALAR_LANES]>().write_unaligned(sum.map($to)) }
            }

            #[inline(always)]
            unsafe fn left(from: *const u8) -> u32 {
                // SAFETY: the caller has a word there.
                unsafe { from.cast::<u32>().read_unaligned() }
            }

            #[inline(always)]
            unsafe fn right(from: *const u32) -> Self::Right {
                // SAFETY: the caller has `LANES` words there.
                unsafe { scalar_words(from) }
            }

            #[inline(always)]
            unsafe fn dot(mut sum: Self::Sum, left: u32, right: Self::Right) -> Self::Sum {
                for (sum, right) in sum.iter_mut().zip(right) {
                    *sum = $step(*sum, left, right);
                }
                sum
            }

            #[inline(always)]
            fn value(word: u32) -> f32 {
                $value(word)
            }
        }
    };
}

scalar_dot!(
    ScalarF32,
    f32,
    f32::to_bits,
    f32::from_bits,
    f32::from_bits,
    |sum, l, r| multiply_add(sum, f32::from_bits(l), f32::from_bits(r))
);
scalar_dot!(ScalarBf16, f32, f32::to_bits, f32::from_bits, f32::from_bits, |sum, l, r| {
    let ([l0, l1], [r0, r1]) = (pair(l), pair(r));
    multiply_add(multiply_add(sum, l0, r0), l1, r1)
});
scalar_dot!(
    ScalarInt8,
    i32,
    i32::cast_unsigned,
    u32::cast_signed,
    |word: u32| word.cast_signed() as f32,
    |sum: i32, l: u32, r: u32| {
        l.to_le_bytes()
            .iter()
            .zip(r.to_le_bytes())
            .fold(sum, |sum, (l, r)| sum.wrapping_add(i32::from(*l) * i32::from(r.cast_signed())))
    }
);

const _: () = assert!(size_of::<bf16>() == 2, "two elements make a word");

#[cfg(target_arch = "aarch64")]
pub(super) mod neon;

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::{
        __m256, __m256i, __m512, __m512bh, __m512i, _mm256_add_epi32, _mm256_and_si256,
        _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
        _mm256_madd_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
        _mm256_setzero_si256, _mm256_slli_epi16, _mm256_slli_epi32, _mm256_srai_epi16,
        _mm256_srli_epi16, _mm256_storeu_ps, _mm256_storeu_si256, _mm512_add_ps, _mm512_and_si512,
        _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_dpbf16_ps, _mm512_dpbusd_epi32,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps,
        _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_setzero_si512, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512,
    };

    use super::Dot;

    /// The mask of the first lanes.
    #[inline(always)]
    fn first(lanes: usize) -> u16 {
        if lanes >= 16 { u16::MAX } else { (1 << lanes) - 1 }
    }

    #[inline(always)]
    unsafe fn finish512(
        sum: __m512,
        scale: *const f32,
        bias: Option<*const f32>,
        out: *mut f32,
        lanes: usize,
    ) {
        // SAFETY: the caller has AVX-512, and scale, bias and output have `lanes` elements; the mask leaves out the rest.
        unsafe {
            let mask = first(lanes);
            let mut value = _mm512_mul_ps(sum, _mm512_maskz_loadu_ps(mask, scale));
            if let Some(bias) = bias {
                value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, bias));
            }
            if lanes >= 16 {
                _mm512_storeu_ps(out, value);
            } else {
                _mm512_mask_storeu_ps(out, mask, value);
            }
        }
    }

    #[inline(always)]
    unsafe fn word(from: *const u8) -> i32 {
        // SAFETY: the caller has a word there.
        unsafe { from.cast::<i32>().read_unaligned() }
    }

    /// What the versions for one width and type of sum have in common.
    macro_rules! sums {
        (f32 x 16) => {
            type Sum = __m512;
            const LANES: usize = 16;
            #[inline(always)]
            unsafe fn zero() -> __m512 {
                // SAFETY: the caller has AVX-512.
                unsafe { _mm512_setzero_ps() }
            }
            #[inline(always)]
            unsafe fn load(from: *const u32) -> __m512 {
                // SAFETY: the caller has AVX-512 and 16 words there.
                unsafe { _mm512_loadu_ps(from.cast()) }
            }
            #[inline(always)]
            unsafe fn store(to: *mut u32, sum: __m512) {
                // SAFETY: the caller has AVX-512 and a place for 16 words there.
                unsafe { _mm512_storeu_ps(to.cast(), sum) }
            }
            #[inline(always)]
            fn value(word: u32) -> f32 {
                f32::from_bits(word)
            }
            #[inline(always)]
            unsafe fn finish(
                sum: __m512,
                scale: *const f32,
                bias: Option<*const f32>,
                out: *mut f32,
                lanes: usize,
            ) {
                // SAFETY: what the method asks of its caller is what the function does.
                unsafe { finish512(sum, scale, bias, out, lanes) }
            }
        };
        (f32 x 8) => {
            type Sum = __m256;
            const LANES: usize = 8;
            #[inline(always)]
            unsafe fn zero() -> __m256 {
                // SAFETY: the caller has AVX2.
                unsafe { _mm256_setzero_ps() }
            }
            #[inline(always)]
            unsafe fn load(from: *const u32) -> __m256 {
                // SAFETY: the caller has AVX2 and 8 words there.
                unsafe { _mm256_loadu_ps(from.cast()) }
            }
            #[inline(always)]
            unsafe fn store(to: *mut u32, sum: __m256) {
                // SAFETY: the caller has AVX2 and a place for 8 words there.
                unsafe { _mm256_storeu_ps(to.cast(), sum) }
            }
            #[inline(always)]
            fn value(word: u32) -> f32 {
                f32::from_bits(word)
            }
        };
    }

    /// f32 by fused multiply and add.
    #[derive(Clone, Copy)]
    pub struct F32;

    impl Dot for F32 {
        type Left = __m512;
        type Right = __m512;
        sums!(f32 x 16);

        #[inline(always)]
        unsafe fn left(from: *const u8) -> __m512 {
            // SAFETY: the caller has AVX-512 and a word there.
            unsafe { _mm512_set1_ps(from.cast::<f32>().read_unaligned()) }
        }
        #[inline(always)]
        unsafe fn right(from: *const u32) -> __m512 {
            // SAFETY: the caller has AVX-512 and 16 words there.
            unsafe { _mm512_loadu_ps(from.cast()) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m512, left: __m512, right: __m512) -> __m512 {
            // SAFETY: the caller has AVX-512.
            unsafe { _mm512_fmadd_ps(left, right, sum) }
        }
    }

    /// Pairs of bf16 by the instruction for them.
    #[derive(Clone, Copy)]
    pub struct Bf16;

    #[inline(always)]
    fn pairs(v: __m512i) -> __m512bh {
        // SAFETY: both types are 512 bits of plain data.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(v) }
    }

    impl Dot for Bf16 {
        type Left = __m512i;
        type Right = __m512i;
        sums!(f32 x 16);

        #[inline(always)]
        unsafe fn left(from: *const u8) -> __m512i {
            // SAFETY: the caller has AVX-512 and a word there.
            unsafe { _mm512_set1_epi32(word(from)) }
        }
        #[inline(always)]
        unsafe fn right(from: *const u32) -> __m512i {
            // SAFETY: the caller has AVX-512 and 16 words there.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m512, left: __m512i, right: __m512i) -> __m512 {
            // SAFETY: the caller has AVX-512 BF16.
            unsafe { _mm512_dpbf16_ps(sum, pairs(left), pairs(right)) }
        }
    }

    /// Pairs of bf16 widened to f32, where there is no instruction for them.
    #[derive(Clone, Copy)]
    pub struct Widened;

    #[inline(always)]
    unsafe fn widen512(v: __m512i) -> [__m512; 2] {
        // SAFETY: the caller has AVX-512.
        unsafe {
            let high = _mm512_and_si512(v, _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed()));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(v)), _mm512_castsi512_ps(high)]
        }
    }

    impl Dot for Widened {
        type Left = [__m512; 2];
        type Right = [__m512; 2];
        sums!(f32 x 16);

        #[inline(always)]
        unsafe fn left(from: *const u8) -> [__m512; 2] {
            // SAFETY: the caller has AVX-512 and a word there.
            unsafe { widen512(_mm512_set1_epi32(word(from))) }
        }
        #[inline(always)]
        unsafe fn right(from: *const u32) -> [__m512; 2] {
            // SAFETY: the caller has AVX-512 and 16 words there.
            unsafe { widen512(_mm512_loadu_si512(from.cast())) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m512, left: [__m512; 2], right: [__m512; 2]) -> __m512 {
            // SAFETY: the caller has AVX-512.
            unsafe { _mm512_fmadd_ps(left[1], right[1], _mm512_fmadd_ps(left[0], right[0], sum)) }
        }
    }

    /// Fours of int8, the left one as code + 128.
    #[derive(Clone, Copy)]
    pub struct Int8;

    impl Dot for Int8 {
        type Sum = __m512i;
        type Left = __m512i;
        type Right = __m512i;
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> __m512i {
            // SAFETY: the caller has AVX-512.
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        unsafe fn load(from: *const u32) -> __m512i {
            // SAFETY: the caller has AVX-512 and 16 words there.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut u32, sum: __m512i) {
            // SAFETY: the caller has AVX-512 and a place for 16 words there.
            unsafe { _mm512_storeu_si512(to.cast(), sum) }
        }
        #[inline(always)]
        unsafe fn left(from: *const u8) -> __m512i {
            // SAFETY: the caller has AVX-512 and a word there.
            unsafe { _mm512_set1_epi32(word(from)) }
        }
        #[inline(always)]
        unsafe fn right(from: *const u32) -> __m512i {
            // SAFETY: the caller has AVX-512 and 16 words there.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m512i, left: __m512i, right: __m512i) -> __m512i {
            // SAFETY: the caller has AVX-512 VNNI. This instruction wraps and does not saturate.
            unsafe { _mm512_dpbusd_epi32(sum, left, right) }
        }
        #[inline(always)]
        fn value(word: u32) -> f32 {
            word.cast_signed() as f32
        }
        #[inline(always)]
        unsafe fn finish(
            sum: __m512i,
            scale: *const f32,
            bias: Option<*const f32>,
            out: *mut f32,
            lanes: usize,
        ) {
            // SAFETY: what the method asks of its caller is what the function does.
            unsafe { finish512(_mm512_cvtepi32_ps(sum), scale, bias, out, lanes) }
        }
    }

    /// f32 by fused multiply and add.
    #[derive(Clone, Copy)]
    pub struct Avx2F32;

    impl Dot for Avx2F32 {
        type Left = __m256;
        type Right = __m256;
        sums!(f32 x 8);

        #[inline(always)]
        unsafe fn left(from: *const u8) -> __m256 {
            // SAFETY: the caller has AVX2 and a word there.
            unsafe { _mm256_set1_ps(from.cast::<f32>().read_unaligned()) }
        }
        #[inline(always)]
        unsafe fn right(from: *const u32) -> __m256 {
            // SAFETY: the caller has AVX2 and 8 words there.
            unsafe { _mm256_loadu_ps(from.cast()) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m256, left: __m256, right: __m256) -> __m256 {
            // SAFETY: the caller has AVX2 and FMA.
            unsafe { _mm256_fmadd_ps(left, right, sum) }
        }
    }

    /// Pairs of bf16 widened to f32.
    #[derive(Clone, Copy)]
    pub struct Avx2Bf16;

    #[inline(always)]
    unsafe fn widen256(v: __m256i) -> [__m256; 2] {
        // SAFETY: the caller has AVX2.
        unsafe {
            let high = _mm256_and_si256(v, _mm256_set1_epi32(0xFFFF_0000_u32.cast_signed()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(v)), _mm256_castsi256_ps(high)]
        }
    }

    impl Dot for Avx2Bf16 {
        type Left = [__m256; 2];
        type Right = [__m256; 2];
        sums!(f32 x 8);

        #[inline(always)]
        unsafe fn left(from: *const u8) -> [__m256; 2] {
            // SAFETY: the caller has AVX2 and a word there.
            unsafe { widen256(_mm256_set1_epi32(word(from))) }
        }
        #[inline(always)]
        unsafe fn right(from: *const u32) -> [__m256; 2] {
            // SAFETY: the caller has AVX2 and 8 words there.
            unsafe { widen256(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m256, left: [__m256; 2], right: [__m256; 2]) -> __m256 {
            // SAFETY: the caller has AVX2 and FMA.
            unsafe { _mm256_fmadd_ps(left[1], right[1], _mm256_fmadd_ps(left[0], right[0], sum)) }
        }
    }

    /// Fours of int8, the left one as code + 128, widened to 16 bits: sums of two such products fit 32 bits, where the
    /// instruction for bytes would saturate 16.
    #[derive(Clone, Copy)]
    pub struct Avx2Int8;

    impl Dot for Avx2Int8 {
        type Sum = __m256i;
        /// Elements 0 and 2 of the group, then 1 and 3.
        type Left = [__m256i; 2];
        type Right = [__m256i; 2];
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> __m256i {
            // SAFETY: the caller has AVX2.
            unsafe { _mm256_setzero_si256() }
        }
        #[inline(always)]
        unsafe fn load(from: *const u32) -> __m256i {
            // SAFETY: the caller has AVX2 and 8 words there.
            unsafe { _mm256_loadu_si256(from.cast()) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut u32, sum: __m256i) {
            // SAFETY: the caller has AVX2 and a place for 8 words there.
            unsafe { _mm256_storeu_si256(to.cast(), sum) }
        }
        #[inline(always)]
        unsafe fn left(from: *const u8) -> [__m256i; 2] {
            // SAFETY: the caller has AVX2 and a word there.
            unsafe {
                let v = _mm256_set1_epi32(word(from));
                [_mm256_and_si256(v, _mm256_set1_epi32(0x00FF_00FF)), _mm256_srli_epi16::<8>(v)]
            }
        }
        #[inline(always)]
        unsafe fn right(from: *const u32) -> [__m256i; 2] {
            // SAFETY: the caller has AVX2 and 8 words there.
            unsafe {
                let v = _mm256_loadu_si256(from.cast());
                [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(v)), _mm256_srai_epi16::<8>(v)]
            }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m256i, left: [__m256i; 2], right: [__m256i; 2]) -> __m256i {
            // SAFETY: the caller has AVX2.
            unsafe {
                let even = _mm256_add_epi32(sum, _mm256_madd_epi16(left[0], right[0]));
                _mm256_add_epi32(even, _mm256_madd_epi16(left[1], right[1]))
            }
        }
        #[inline(always)]
        fn value(word: u32) -> f32 {
            word.cast_signed() as f32
        }
    }
}
