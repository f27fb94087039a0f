//! Loops for tables of levels. Up to sixteen, fifteen comparisons cost less than a search.

use super::{INFINITY, block_amax, blocks};
use crate::ScaleFormat;

/// A table of sixteen levels in ascending order; of fewer, the last stands for the missing ones.
#[derive(Debug)]
pub(crate) struct Sixteen {
    values: [f32; 16],
    codes: [u32; 16],
    by_code: [f32; 16],
    /// A value above so many of them takes the level at that place.
    thresholds: [f32; 15],
    /// The largest magnitude of a level.
    top: f32,
}

impl Sixteen {
    /// `None` for tables of other lengths.
    pub fn new(values: &[f32], thresholds: &[f32], codes: &[u32], by_code: &[f32]) -> Option<Self> {
        let by_code = by_code.try_into().ok()?;
        let mut table = Self {
            values: [*values.last()?; 16],
            codes: [*codes.last()?; 16],
            by_code,
            thresholds: [f32::INFINITY; 15],
            top: values.iter().fold(0.0, |top, v| v.abs().max(top)),
        };
        table.values[..values.len()].copy_from_slice(values);
        table.codes[..codes.len()].copy_from_slice(codes);
        table.thresholds[..thresholds.len()].copy_from_slice(thresholds);
        Some(table)
    }

    /// The values of levels under a scale.
    #[inline(always)]
    fn scaled(levels: &[f32; 16], scale: f32) -> [f32; 16] {
        levels.map(|l| super::FloatGrid::finite(l * scale))
    }

    /// What stands in `choices` at the place of the level that `v` takes; NaN takes that of zero.
    #[inline(always)]
    fn choose<T: Copy>(&self, v: f32, choices: &[T; 16]) -> T {
        let v = if v.is_nan() { 0.0 } else { v };
        let mut chosen = choices[0];
        for (threshold, choice) in self.thresholds.iter().zip(&choices[1..]) {
            chosen = if v > *threshold { *choice } else { chosen };
        }
        chosen
    }
}

versions! {
    /// Rounds values to the levels times `scale`.
    fn sixteen_run(table: &Sixteen, x: &mut [f32], scale: f32) {
        let values = Sixteen::scaled(&table.values, scale);
        for v in x { *v = table.choose(*v / scale, &values); }
    }
}

versions! {
    /// The codes of values over `scale`.
    fn sixteen_encode(table: &Sixteen, x: &[f32], scale: f32, out: &mut [u32]) {
        for (v, code) in x.iter().zip(out) { *code = table.choose(*v / scale, &table.codes); }
    }
}

versions! {
    /// The levels of codes times `scale`.
    fn sixteen_decode(table: &Sixteen, codes: &[u32], scale: f32, out: &mut [f32]) {
        let values = Sixteen::scaled(&table.by_code, scale);
        for (code, v) in codes.iter().zip(out) { *v = values[(code & 15) as usize]; }
    }
}

/// Rounds one block to the levels under its largest magnitude; `false` if a value is not finite.
#[inline(always)]
fn sixteen_block(b: &mut [f32], store: ScaleFormat, table: &Sixteen) -> bool {
    let amax = block_amax(b);
    if amax >= INFINITY {
        return false;
    }
    let scale = if amax == 0 { 1.0 } else { store.store(f32::from_bits(amax) / table.top) };
    let values = Sixteen::scaled(&table.values, scale);
    for v in b {
        *v = table.choose(*v / scale, &values);
    }
    true
}

versions! {
    /// Rounds blocks of `len` values to the levels, each under its own largest magnitude. Returns as
    /// [`int_blocks`](super::int_blocks).
    fn sixteen_blocks(table: &Sixteen, x: &mut [f32], len: usize, store: ScaleFormat) -> usize {
        match store {
            ScaleFormat::F32 => blocks(x, len, |b: &mut [f32]| sixteen_block(b, ScaleFormat::F32, table)),
            _ => blocks(x, len, |b: &mut [f32]| sixteen_block(b, store, table)),
        }
    }
}

/// A table of up to 256 levels in ascending order, for a search of eight steps without a branch.
#[derive(Debug)]
pub(crate) struct Wide {
    values: [f32; 256],
    codes: [u32; 256],
    /// Beyond the last threshold none is exceeded.
    thresholds: [f32; 256],
}

impl Wide {
    /// `None` for tables of more levels.
    pub fn new(values: &[f32], thresholds: &[f32], codes: &[u32]) -> Option<Self> {
        let mut table = Self {
            values: [*values.last()?; 256],
            codes: [*codes.last()?; 256],
            thresholds: [f32::INFINITY; 256],
        };
        table.values.get_mut(..values.len())?.copy_from_slice(values);
        table.codes[..codes.len()].copy_from_slice(codes);
        table.thresholds[..thresholds.len()].copy_from_slice(thresholds);
        Some(table)
    }

    /// The place of the level that `v` takes; NaN takes that of zero.
    #[inline(always)]
    fn place(&self, v: f32) -> usize {
        let v = if v.is_nan() { 0.0 } else { v };
        let mut at = 0u32;
        for step in [128, 64, 32, 16, 8, 4, 2, 1] {
            let threshold = self.thresholds[(at + step - 1) as usize & 255];
            at += if v > threshold { step } else { 0 };
        }
        at as usize & 255
    }
}

versions! {
    /// Rounds values to the levels times `scale`.
    fn wide_run(table: &Wide, x: &mut [f32], scale: f32) {
        for v in x { *v = super::FloatGrid::finite(table.values[table.place(*v / scale)] * scale); }
    }
}

versions! {
    /// The codes of values over `scale`.
    fn wide_encode(table: &Wide, x: &[f32], scale: f32, out: &mut [u32]) {
        for (v, code) in x.iter().zip(out) { *code = table.codes[table.place(*v / scale)]; }
    }
}
