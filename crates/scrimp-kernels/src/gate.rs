//! Where a gradient passes a `ReLU`.

use crate::KernelError;
use crate::blocks::{LANES, check_len};

/// What tells where a gradient passes.
///
/// As in PyTorch, it is stopped where the output is zero or less, and passes where the output is NaN.
#[derive(Clone, Copy, Debug)]
pub enum Gate<'a> {
    /// Everywhere: there was no `ReLU`.
    Open,
    /// Where the output of the `ReLU` is above zero.
    Output(&'a [f32]),
    /// Where bit `i % 32` of word `i / 32` is set, as forward passes write them.
    Bits(&'a [u32]),
}

impl<'a> Gate<'a> {
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }

    /// Complains about a slice that does not fit to `len` values.
    pub(crate) fn check(&self, len: usize) -> Result<(), KernelError> {
        match self {
            Self::Open => Ok(()),
            Self::Output(out) => check_len("output of the relu", &[len], out.len()),
            Self::Bits(words) => check_len("bits of the relu", &[len.div_ceil(LANES)], words.len()),
        }
    }

    /// The output, or what stands for it where it is not read.
    pub(crate) fn output(&self, instead: &'a [f32]) -> &'a [f32] {
        if let Self::Output(out) = self { out } else { instead }
    }

    /// The words of `len` values from `at` on, which begins a word; none where there are no bits.
    pub(crate) fn words(&self, at: usize, len: usize) -> &'a [u32] {
        if let Self::Bits(words) = self {
            &words[at / LANES..(at + len).div_ceil(LANES)]
        } else {
            &[]
        }
    }
}

/// A gradient behind the gate.
#[inline(always)]
pub(crate) fn pass<const GATED: bool>(grad: f32, output: f32) -> f32 {
    if GATED {
        // A mask, because the compiler makes no vectors of a branch.
        f32::from_bits(grad.to_bits() & if output <= 0.0 { 0 } else { u32::MAX })
    } else {
        grad
    }
}

/// `max(x, 0)`, with NaN for NaN.
#[inline(always)]
pub(crate) fn relu(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}

/// The bits of outputs, 32 in a word.
#[inline(always)]
pub(crate) fn bits(out: &[f32], words: &mut [u32]) {
    for (word, out) in words.iter_mut().zip(out.chunks(LANES)) {
        *word = 0;
        for (lane, v) in (0u32..).zip(out) {
            *word |= if *v <= 0.0 { 0 } else { 1 << lane };
        }
    }
}

/// 1 where a bit is set, 0 elsewhere: an output that gates as the bits do.
#[inline(always)]
pub(crate) fn spread<'a>(words: &[u32], out: &'a mut [f32]) -> &'a [f32] {
    const ONE: u32 = 1f32.to_bits();
    for (word, out) in words.iter().zip(out.chunks_mut(LANES)) {
        for (lane, v) in (0u32..).zip(out) {
            *v = f32::from_bits((word >> lane & 1) * ONE);
        }
    }
    out
}
