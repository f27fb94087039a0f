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
    pub(crate) const OPEN: u8 = 0;
    pub(crate) const OUTPUT: u8 = 1;
    pub(crate) const BITS: u8 = 2;

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

    /// The words of `len` values from `at` on, which begins a word; none where they are not read.
    pub(crate) fn words(&self, at: usize, len: usize) -> &'a [u32] {
        if let Self::Bits(words) = self {
            &words[at / LANES..(at + len).div_ceil(LANES)]
        } else {
            &[]
        }
    }
}

/// One lane of a gradient behind the gate.
#[inline(always)]
pub(crate) fn pass<const GATE: u8>(grad: f32, output: f32, word: u32, lane: usize) -> f32 {
    match GATE {
        // A select between two floats that are there, because the compiler turns no branch into a mask.
        Gate::OUTPUT => f32::from_bits(grad.to_bits() & if output <= 0.0 { 0 } else { u32::MAX }),
        Gate::BITS => f32::from_bits(grad.to_bits() & 0u32.wrapping_sub((word >> lane) & 1)),
        _ => grad,
    }
}

/// `max(x, 0)`, with NaN for NaN.
#[inline(always)]
pub(crate) fn relu(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}

/// The bits of a group of outputs.
#[inline(always)]
pub(crate) fn bits(out: &[f32; LANES]) -> u32 {
    let mut halves = [0u32; LANES];
    for (lane, (half, v)) in halves.iter_mut().zip(out).enumerate() {
        *half = if *v <= 0.0 { 0 } else { 1 << lane };
    }
    halves.iter().fold(0, |word, half| word | half)
}
