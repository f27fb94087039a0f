//! Elements in groups: what one 32-bit lane multiplies at once.

use half::bf16;

use crate::{KernelError, Kind};

/// How many lanes a block of packing has.
pub(crate) const BLOCK: usize = 16;

/// An element of an operand.
///
/// A *word* holds [`Self::GROUP`] elements that follow each other along the reduction, the first in the low bits. Left
/// operands are stored with [`Self::FLIP`] applied, right operands are not.
pub(crate) trait Element: Copy + Send + Sync + Default + 'static {
    const KIND: Kind;
    /// Elements of a word.
    const GROUP: usize;
    /// What words of left operands are combined with by exclusive or: for int8 it turns codes into codes + 128.
    const FLIP: u32;

    /// What products are added to.
    type Sum: Copy + Default + Send + Sync;

    /// The elements as the words of a left operand, where they lie so in memory: whole words, with nothing to flip.
    fn left_words(elements: &[Self]) -> Option<&[u32]>;

    /// Its bits, in the low end.
    fn bits(self) -> u32;

    /// A sum and a product.
    fn multiply_add(sum: Self::Sum, a: Self, b: Self) -> Self::Sum;

    /// A finished sum.
    fn finish(sum: Self::Sum) -> f32;

    /// The sum of sums, of which each fits its type.
    fn finish_all(sums: impl Iterator<Item = Self::Sum>) -> f32;

    /// Its value, for definitions.
    fn value(self) -> f64;
}

impl Element for f32 {
    const KIND: Kind = Kind::F32;
    const GROUP: usize = 1;
    const FLIP: u32 = 0;

    type Sum = f32;

    #[inline(always)]
    fn multiply_add(sum: f32, a: Self, b: Self) -> f32 {
        sum + a * b
    }

    #[inline(always)]
    fn finish(sum: f32) -> f32 {
        sum
    }

    fn finish_all(sums: impl Iterator<Item = f32>) -> f32 {
        sums.fold(0.0, |all, sum| all + sum)
    }

    fn left_words(elements: &[Self]) -> Option<&[u32]> {
        aligned_words(elements)
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits()
    }

    fn value(self) -> f64 {
        f64::from(self)
    }
}

impl Element for bf16 {
    const KIND: Kind = Kind::Bf16;
    const GROUP: usize = 2;
    const FLIP: u32 = 0;

    type Sum = f32;

    #[inline(always)]
    fn multiply_add(sum: f32, a: Self, b: Self) -> f32 {
        sum + f32::from_bits(a.bits() << 16) * f32::from_bits(b.bits() << 16)
    }

    #[inline(always)]
    fn finish(sum: f32) -> f32 {
        sum
    }

    fn finish_all(sums: impl Iterator<Item = f32>) -> f32 {
        sums.fold(0.0, |all, sum| all + sum)
    }

    fn left_words(elements: &[Self]) -> Option<&[u32]> {
        // The first of a pair lies in the low bits.
        if cfg!(target_endian = "little") { aligned_words(elements) } else { None }
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        u32::from(self.to_bits())
    }

    fn value(self) -> f64 {
        f64::from(self)
    }
}

impl Element for i8 {
    const KIND: Kind = Kind::Int8;
    const GROUP: usize = 4;
    const FLIP: u32 = 0x8080_8080;

    type Sum = i32;

    #[inline(always)]
    fn multiply_add(sum: i32, a: Self, b: Self) -> i32 {
        sum.wrapping_add(i32::from(a) * i32::from(b))
    }

    #[inline(always)]
    fn finish(sum: i32) -> f32 {
        sum as f32
    }

    fn finish_all(sums: impl Iterator<Item = i32>) -> f32 {
        sums.map(i64::from).sum::<i64>() as f32
    }

    fn left_words(_: &[Self]) -> Option<&[u32]> {
        None
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        u32::from(self.cast_unsigned())
    }

    fn value(self) -> f64 {
        f64::from(self)
    }
}

/// Elements without padding as words, if they fill whole ones.
#[expect(unsafe_code, reason = "elements are viewed as words")]
fn aligned_words<T: Element>(elements: &[T]) -> Option<&[u32]> {
    // SAFETY: every bit of a word is that of one of `GROUP` floats, and any bits make a word.
    let (before, words, after) = unsafe { elements.align_to::<u32>() };
    (before.is_empty() && after.is_empty()).then_some(words)
}

/// The word of up to `GROUP` elements; those that are missing are zero.
#[inline(always)]
pub(crate) fn word<T: Element>(group: &[T]) -> u32 {
    let bits = 32 / T::GROUP;
    let mut word = 0;
    for (q, v) in group.iter().enumerate() {
        word |= v.bits() << (q * bits);
    }
    word
}

/// Writes runs of `run` elements as words, each run from a new word on, combined with `flip`.
#[inline(always)]
pub(crate) fn copy_runs<T: Element>(from: &[T], run: usize, flip: u32, to: &mut [u32]) {
    if run.is_multiple_of(T::GROUP) {
        for (to, group) in to.iter_mut().zip(from.chunks_exact(T::GROUP)) {
            *to = word(group) ^ flip;
        }
    } else {
        for (to, run) in to.chunks_exact_mut(run.div_ceil(T::GROUP)).zip(from.chunks_exact(run)) {
            for (to, group) in to.iter_mut().zip(run.chunks(T::GROUP)) {
                *to = word(group) ^ flip;
            }
        }
    }
}

/// Writes the words of lanes that follow each other: row `q` of up to `GROUP` holds element `q` of every lane. Lanes
/// beyond the rows' and rows that are missing are zero.
#[inline(always)]
pub(crate) fn interleave<T: Element>(rows: &[&[T]], flip: u32, to: &mut [u32]) {
    let lanes = rows.first().map_or(0, |row| row.len()).min(to.len());
    let (to, beyond) = to.split_at_mut(lanes);
    beyond.fill(flip);
    let bits = 32 / T::GROUP;
    if rows.len() == T::GROUP {
        // Every row is cut to the lanes' number first, so that the loop needs no checks.
        let a = &rows[0][..lanes];
        let b = &rows[1 % T::GROUP][..lanes];
        let c = &rows[2 % T::GROUP][..lanes];
        let d = &rows[3 % T::GROUP][..lanes];
        // Loops and not closures, which would not become part of the version for an instruction set.
        match T::GROUP {
            1 => {
                for l in 0..lanes {
                    to[l] = a[l].bits() ^ flip;
                }
            }
            2 => {
                for l in 0..lanes {
                    to[l] = (a[l].bits() | (b[l].bits() << bits)) ^ flip;
                }
            }
            _ => {
                for l in 0..lanes {
                    let low = a[l].bits() | (b[l].bits() << bits);
                    let high = c[l].bits() | (d[l].bits() << bits);
                    to[l] = (low | (high << (2 * bits))) ^ flip;
                }
            }
        }
    } else {
        to.fill(0);
        for (q, row) in rows.iter().enumerate() {
            for (to, v) in to.iter_mut().zip(*row) {
                *to |= v.bits() << (q * bits);
            }
        }
        for to in to {
            *to ^= flip;
        }
    }
}

/// The longest reduction of int8 whose sums surely fit 32 bits.
pub const LONGEST_INT8: usize = (i32::MAX / (127 * 127)) as usize;

/// Whether sums of so many products fit.
pub(crate) fn check_reduction<T: Element>(len: usize) -> Result<(), KernelError> {
    if T::KIND == Kind::Int8 && len > LONGEST_INT8 {
        return Err(KernelError::Shape {
            what: "int8 product",
            problem: format!(
                "a sum of {len} products may not fit 32 bits; up to {LONGEST_INT8} do"
            ),
        });
    }
    Ok(())
}
