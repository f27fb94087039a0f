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
        let v = number(v);
        let mut chosen = choices[0];
        for (threshold, choice) in self.thresholds.iter().zip(&choices[1..]) {
            chosen = if v > *threshold { *choice } else { chosen };
        }
        chosen
    }

    /// What stands in `choices` at the places of the levels around `v`: the highest that is not above it, or the lowest of
    /// all, and the next one, if there is any.
    #[inline(always)]
    fn around<T: Copy>(&self, v: f32, choices: &[T; 16]) -> (T, T) {
        let (mut low, mut high) = (choices[0], choices[1]);
        for i in 1..16 {
            let reached = v >= self.values[i];
            low = if reached { choices[i] } else { low };
            high = if reached { choices[(i + 1).min(15)] } else { high };
        }
        (low, high)
    }
}

/// A NaN takes the level of zero.
#[inline(always)]
fn number(v: f32) -> f32 {
    if v.is_nan() { 0.0 } else { v }
}

/// Whether a value that lies between two levels is drawn to the upper one, in the arithmetic of the definition. Beyond the
/// last level both are the same.
#[inline(always)]
fn goes_up(v: f32, low: f32, high: f32, draw: u32) -> bool {
    let part = (f64::from(v) - f64::from(low)) / (f64::from(high) - f64::from(low));
    part + f64::from(draw.cast_signed()) * (1.0 / 16_777_216.0) >= 1.0
}

versions! {
    /// Rounds values to the levels times `scale`, at random.
    fn sixteen_run_drawn(table: &Sixteen, x: &mut [f32], scale: f32, draws: &[u32]) {
        for (x, draw) in x.iter_mut().zip(draws) {
            let v = number(*x / scale);
            let (low, high) = table.around(v, &table.values);
            let level = if goes_up(v, low, high, *draw) { high } else { low };
            *x = super::FloatGrid::finite(level * scale);
        }
    }
}

versions! {
    /// The codes of values over `scale`, at random.
    fn sixteen_encode_drawn(table: &Sixteen, x: &[f32], scale: f32, draws: &[u32], out: &mut [u32]) {
        for ((x, draw), code) in x.iter().zip(draws).zip(out) {
            let v = number(*x / scale);
            let (low, high) = table.around(v, &table.values);
            let (lower, upper) = table.around(v, &table.codes);
            *code = if goes_up(v, low, high, *draw) { upper } else { lower };
        }
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
        let v = number(v);
        let mut at = 0u32;
        for step in [128, 64, 32, 16, 8, 4, 2, 1] {
            let threshold = self.thresholds[(at + step - 1) as usize & 255];
            at += if v > threshold { step } else { 0 };
        }
        at as usize & 255
    }

    /// The place of the highest level that is not above `v`, or of the lowest of all.
    #[inline(always)]
    fn below(&self, v: f32) -> usize {
        let mut at = 0u32;
        for step in [128, 64, 32, 16, 8, 4, 2, 1] {
            let level = self.values[(at + step) as usize & 255];
            at += if v >= level { step } else { 0 };
        }
        at as usize & 255
    }

    /// The place of the level that a value is drawn to.
    #[inline(always)]
    fn drawn(&self, v: f32, draw: u32) -> usize {
        let v = number(v);
        let low = self.below(v);
        let high = (low + 1).min(255);
        if goes_up(v, self.values[low], self.values[high], draw) { high } else { low }
    }
}

versions! {
    /// Rounds values to the levels times `scale`, at random.
    fn wide_run_drawn(table: &Wide, x: &mut [f32], scale: f32, draws: &[u32]) {
        for (x, draw) in x.iter_mut().zip(draws) {
            *x = super::FloatGrid::finite(table.values[table.drawn(*x / scale, *draw)] * scale);
        }
    }
}

versions! {
    /// The codes of values over `scale`, at random.
    fn wide_encode_drawn(table: &Wide, x: &[f32], scale: f32, draws: &[u32], out: &mut [u32]) {
        for ((x, draw), code) in x.iter().zip(draws).zip(out) {
            *code = table.codes[table.drawn(*x / scale, *draw)];
        }
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
