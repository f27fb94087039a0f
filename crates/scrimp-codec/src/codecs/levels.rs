//! Codecs below two bits: every code names one of two or three levels, which are made of the sums of a group.
//!
//! What differs among them is a [`Rule`]: what is summed, which levels follow, and which value gets which level. The
//! rest is here.
//!
//! # Bytes
//!
//! | part | bytes |
//! |---|---|
//! | the numbers of each group, group after group | as the codec says |
//! | codes in the order of the elements | `ceil(elements / 8)`, `/ 4`, or `/ 5` |
//!
//! Codes of two levels take a bit each, from the least significant of each byte on. Codes of three levels take two bits
//! each in the same order, and 3 is no code. Under the word `dense` five of them share a byte, which is
//! `c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4`, and a byte above 242 is none. What fills the last byte is 0.
//!
//! # Sums
//! Sums are in `f64`, over blocks of 1024 consecutive elements of a group, in the order of the elements.

use std::fmt::Debug;
use std::sync::Arc;

use rayon::prelude::*;

use super::bands::{Draws, Refusal, each_band, split};
use super::{Codec, DecodeError, Defaults, EncodeError, Job, Size, Tally, Terms};
use crate::formats::{Card, HeadError, finite};
use crate::granularity::{Band, Layout, elems};
use crate::simd::{amax_bits, levels as kernels};
use crate::{Memory, NonFinite, Rounding, ScaleFormat, ShapeError, Stream};

/// Elements that are summed at a time.
const BLOCK: usize = 1024;

/// Runs below this length are coded element by element: to set up a loop takes longer.
const SHORT: usize = 16;

/// Codes that are held at a time: whole bytes of every packing.
const WINDOW: usize = 1280;

/// How codes lie in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// Codes 0 and 1, eight to a byte.
    Bits,
    /// Codes 0 to 2, four to a byte.
    Pairs,
    /// Codes 0 to 2, five to a byte.
    Trits,
}

/// The digits of every byte, least first, in the base 3.
static DIGITS: [[u8; 5]; 256] = {
    let mut table = [[0; 5]; 256];
    let mut byte = 0;
    while byte < 243u8 {
        let (mut rest, mut i) = (byte, 0);
        while i < 5 {
            table[byte as usize][i] = rest % 3;
            rest /= 3;
            i += 1;
        }
        byte += 1;
    }
    table
};

impl Packing {
    fn per_byte(self) -> usize {
        match self {
            Self::Bits => 8,
            Self::Pairs => 4,
            Self::Trits => 5,
        }
    }

    fn bytes(self, codes: usize) -> usize {
        codes.div_ceil(self.per_byte())
    }

    /// Packs whole bytes of codes.
    fn pack(self, codes: &[u8], out: &mut [u8]) {
        match self {
            Self::Bits => {
                for (codes, byte) in codes.as_chunks::<8>().0.iter().zip(out) {
                    // The multiplication moves the last bit of byte i to bit i of the highest byte.
                    let bits = u64::from_le_bytes(*codes).wrapping_mul(0x0102_0408_1020_4080);
                    *byte = bits.to_be_bytes()[0];
                }
            }
            Self::Pairs => {
                for (codes, byte) in codes.as_chunks::<4>().0.iter().zip(out) {
                    let [a, b, c, d] = *codes;
                    *byte = a | b << 2 | c << 4 | d << 6;
                }
            }
            Self::Trits => {
                for (codes, byte) in codes.as_chunks::<5>().0.iter().zip(out) {
                    let [a, b, c, d, e] = *codes;
                    *byte = a + 3 * (b + 3 * (c + 3 * (d + 3 * e)));
                }
            }
        }
    }

    /// Unpacks whole bytes.
    fn unpack(self, bytes: &[u8], codes: &mut [u8]) {
        match self {
            Self::Bits => {
                for (codes, byte) in codes.as_chunks_mut::<8>().0.iter_mut().zip(bytes) {
                    // Each byte keeps one bit of its own, which is then carried down to its lowest.
                    let copies = u64::from(*byte) * 0x0101_0101_0101_0101;
                    let spread = copies & 0x8040_2010_0804_0201;
                    let high = spread + 0x7F7F_7F7F_7F7F_7F7F;
                    *codes = (high >> 7 & 0x0101_0101_0101_0101).to_le_bytes();
                }
            }
            Self::Pairs => {
                for (codes, byte) in codes.as_chunks_mut::<4>().0.iter_mut().zip(bytes) {
                    *codes = [byte & 3, byte >> 2 & 3, byte >> 4 & 3, byte >> 6];
                }
            }
            Self::Trits => {
                for (codes, byte) in codes.as_chunks_mut::<5>().0.iter_mut().zip(bytes) {
                    *codes = DIGITS[usize::from(*byte)];
                }
            }
        }
    }

    /// Whether a byte holds codes and nothing else.
    fn holds(self, byte: u8) -> bool {
        match self {
            Self::Bits => true,
            Self::Pairs => byte & byte >> 1 & 0x55 == 0,
            Self::Trits => byte < 243,
        }
    }
}

/// Which value gets which code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coder {
    /// 0 below zero, else 1; NaN counts as zero.
    Side,
    /// 0 up to the cut, else 1 above zero and 2 below; NaN counts as zero.
    Magnitude,
    /// The value, clamped to the limit and divided by the scale, is rounded: 0, 1, and 2 for -1.
    Share,
}

/// What is known of a group: first what has been found, in the end what its codes mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Fit {
    /// The values of the codes.
    pub levels: [f32; 3],
    /// For [`Coder::Magnitude`].
    pub cut: f32,
    /// For [`Coder::Share`]: the largest magnitude that is not clipped.
    pub limit: f32,
    /// For [`Coder::Share`]: positive.
    pub scale: f32,
}

impl Fit {
    /// The code of a value. The readable truth.
    #[inline]
    fn code(&self, coder: Coder, x: f32, rounding: Rounding, draw: u32) -> u8 {
        match coder {
            Coder::Side => u8::from(x.is_nan() || x >= 0.0),
            Coder::Magnitude if x > self.cut => 1,
            Coder::Magnitude if x < -self.cut => 2,
            Coder::Magnitude => 0,
            Coder::Share => {
                let share = (x.clamp(-self.limit, self.limit) / self.scale).clamp(-1.0, 1.0);
                match rounding.round(f64::from(share), draw) {
                    q if q >= 1.0 => 1,
                    q if q <= -1.0 => 2,
                    _ => 0,
                }
            }
        }
    }

    fn codes(&self, coder: Coder, x: &[f32], rounding: Rounding, draws: &[u32], codes: &mut [u8]) {
        if x.len() < SHORT {
            for (i, (v, code)) in x.iter().zip(codes).enumerate() {
                let draw = draws.get(i).copied().unwrap_or(0);
                *code = self.code(coder, *v, rounding, draw);
            }
            return;
        }
        match coder {
            Coder::Side => kernels::side_codes(x, codes),
            Coder::Magnitude => kernels::magnitude_codes(x, self.cut, codes),
            Coder::Share if rounding == Rounding::Stochastic => {
                kernels::drawn_codes(x, draws, self.limit, self.scale, codes);
            }
            Coder::Share => {
                for (v, code) in x.iter().zip(codes) {
                    *code = self.code(coder, *v, rounding, 0);
                }
            }
        }
    }

    fn quantize(&self, coder: Coder, x: &mut [f32], rounding: Rounding, draws: &[u32]) {
        let levels = self.levels;
        if x.len() < SHORT {
            for (i, v) in x.iter_mut().enumerate() {
                let draw = draws.get(i).copied().unwrap_or(0);
                *v = levels[usize::from(self.code(coder, *v, rounding, draw))];
            }
            return;
        }
        match coder {
            Coder::Side => kernels::side_values(x, levels[0], levels[1]),
            Coder::Magnitude => kernels::magnitude_values(x, self.cut, levels),
            Coder::Share if rounding == Rounding::Stochastic => {
                kernels::drawn_values(x, draws, self.limit, self.scale, levels);
            }
            Coder::Share => {
                for v in x {
                    *v = levels[usize::from(self.code(coder, *v, rounding, 0))];
                }
            }
        }
    }
}

/// Sums over some values of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sums {
    /// How many values there are, or how many on each of two sides.
    pub count: [f64; 2],
    /// What their magnitudes add up to, or the values of each side.
    pub sum: [f64; 2],
    /// Their mean.
    pub mean: f64,
    /// The sum of the squares of their distances from the mean.
    pub square: f64,
    /// Their largest magnitude.
    pub largest: f32,
}

impl Sums {
    /// The sums of both. Means and squares join as Chan, Golub and LeVeque 1983 have it, so that equal values have
    /// squares of exactly zero.
    pub fn join(self, other: Self) -> Self {
        let add = |a: [f64; 2], b: [f64; 2]| [a[0] + b[0], a[1] + b[1]];
        if self.count == [0.0; 2] {
            return other;
        }
        let apart = other.mean - self.mean;
        // Most sums have no mean, or that of equal values.
        let (mut mean, mut square) = (self.mean, self.square + other.square);
        if apart != 0.0 {
            let weight = other.count[0] / (self.count[0] + other.count[0]);
            mean += apart * weight;
            square += apart * apart * self.count[0] * weight;
        }
        Self {
            count: add(self.count, other.count),
            sum: add(self.sum, other.sum),
            mean,
            square,
            largest: self.largest.max(other.largest),
        }
    }
}

/// What distinguishes a codec of levels from the others.
pub(super) trait Rule: Clone + Debug + Send + Sync + 'static {
    /// The head of a scheme string.
    fn name(&self) -> &'static str;
    /// The words in force that are not the default.
    fn suffix(&self) -> String {
        String::new()
    }
    /// The card.
    fn card(&self) -> Card;
    /// Which of the common words it takes.
    fn defaults(&self) -> Defaults;
    /// Words of its own.
    fn words(&self) -> &'static [&'static str] {
        &[]
    }
    /// The rule with such a word applied.
    fn with_word(&self, word: &str) -> Option<Result<Self, HeadError>> {
        let _ = word;
        None
    }
    /// How a tensor falls into groups.
    fn layout(&self, terms: &Terms, shape: &[usize]) -> Result<Layout, ShapeError> {
        terms.layout(shape)
    }
    /// Which value gets which code.
    fn coder(&self) -> Coder;
    /// How codes are packed.
    fn packing(&self) -> Packing;
    /// How many times the values are summed, each time with what was found before.
    fn passes(&self) -> usize {
        1
    }
    /// Sums of at most [`BLOCK`] finite values.
    fn sum(&self, pass: usize, x: &[f32], fit: &Fit) -> Sums;
    /// Adds one finite value: what [`sum`](Self::sum) gives for it is joined, for groups of scattered elements.
    fn add_one(&self, pass: usize, x: f32, fit: &Fit, total: &mut Sums);
    /// What follows from the sums of a pass.
    fn fit(&self, pass: usize, sums: &Sums, store: Option<ScaleFormat>, fit: &mut Fit);
    /// Bytes that are stored with each group.
    fn width(&self, store: Option<ScaleFormat>) -> usize {
        store.map_or(0, ScaleFormat::width)
    }
    /// Writes what is stored with a group, into [`width`](Self::width) bytes.
    fn write(&self, fit: &Fit, store: Option<ScaleFormat>, bytes: &mut [u8]) {
        if let Some(store) = store {
            write_magnitude(fit.levels[1], store, bytes);
        }
    }
    /// The levels of a group, read back; `None` where the bytes hold none.
    fn read(&self, store: Option<ScaleFormat>, bytes: &[u8]) -> Option<[f32; 3]>;
    /// Whether what is lost is added to the next tensor.
    fn remembers(&self) -> bool {
        false
    }
    /// The fit under a scale that several workers agreed on, where the codec allows that.
    fn with_scale(&self, fit: &Fit, scale: f32) -> Option<Fit> {
        let _ = (fit, scale);
        None
    }
}

/// A mean of magnitudes as it will be stored: zero if it is zero, else as scales are.
pub(super) fn stored_magnitude(mean: f64, store: Option<ScaleFormat>) -> f32 {
    if mean > 0.0 { store.unwrap_or_default().store(rounded(mean)) } else { 0.0 }
}

/// Rounds to `f32`; the mean of finite values is finite.
#[expect(clippy::cast_possible_truncation, reason = "the rounding is what is asked for")]
pub(super) fn rounded(x: f64) -> f32 {
    finite(x as f32)
}

/// Writes a magnitude. All bytes 0 is the magnitude 0.
fn write_magnitude(magnitude: f32, store: ScaleFormat, bytes: &mut [u8]) {
    if magnitude > 0.0 {
        store.write(magnitude, bytes);
    } else {
        bytes.fill(0);
    }
}

/// Reads a magnitude.
pub(super) fn read_magnitude(store: Option<ScaleFormat>, bytes: &[u8]) -> Option<f32> {
    if bytes.iter().all(|b| *b == 0) { Some(0.0) } else { store?.read(bytes) }
}

/// Sets a word that may be said once.
pub(super) fn once<T>(slot: &mut Option<T>, value: T, what: &str) -> Result<(), HeadError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(HeadError {
            message: format!("{what} is said twice"),
            help: "keep one of the two".into(),
        }),
    }
}

/// A codec whose codes name levels.
#[derive(Clone, Debug)]
pub(super) struct Levels<R> {
    rule: R,
}

impl<R: Rule> Levels<R> {
    /// The codec of a rule.
    pub fn of(rule: R) -> Arc<dyn Codec> {
        Arc::new(Self { rule })
    }

    fn bound<'a>(&'a self, terms: &'a Terms, shape: &[usize]) -> Result<Bound<'a, R>, ShapeError> {
        let layout = self.rule.layout(terms, shape)?;
        Ok(Bound { rule: &self.rule, terms, layout, bands: layout.bands() })
    }
}

impl<R: Rule> Codec for Levels<R> {
    fn name(&self) -> String {
        self.rule.name().into()
    }

    fn suffix(&self) -> String {
        self.rule.suffix()
    }

    fn card(&self) -> Card {
        self.rule.card()
    }

    fn defaults(&self) -> Defaults {
        self.rule.defaults()
    }

    fn words(&self) -> &'static [&'static str] {
        self.rule.words()
    }

    fn with_word(&self, word: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        Some(self.rule.with_word(word)?.map(Self::of))
    }

    fn groups(&self, terms: &Terms, shape: &[usize]) -> Result<usize, ShapeError> {
        Ok(self.rule.layout(terms, shape)?.groups())
    }

    fn memory(&self, terms: &Terms, shape: &[usize]) -> Result<Option<Memory>, ShapeError> {
        self.rule.layout(terms, shape)?;
        let residual = || Ok(Memory::Residual { residual: vec![0.0; elems(shape)?] });
        self.rule.remembers().then(residual).transpose()
    }

    fn size(&self, terms: &Terms, shape: &[usize]) -> Result<Size, ShapeError> {
        let layout = self.rule.layout(terms, shape)?;
        let too_large = || ShapeError::TooLarge { shape: shape.to_vec() };
        let header = layout.groups().checked_mul(self.rule.width(terms.scale));
        let codes = self.rule.packing().bytes(layout.elems());
        header.and_then(|h| h.checked_add(codes)).map(Size::fixed).ok_or_else(too_large)
    }

    fn scales(&self, job: Job, x: &[f32]) -> Result<Vec<f32>, EncodeError> {
        let bound = self.bound(job.terms, job.shape)?;
        let (fits, _) = bound.fit_all(x, &[]).map_err(|r| r.by(job.scheme))?;
        let shared = |fit: &Fit| self.rule.with_scale(fit, fit.levels[1]).map(|f| f.levels[1]);
        Ok(fits.iter().filter_map(shared).collect())
    }

    fn emulate(&self, job: Job, x: &mut [f32]) -> Result<Tally, EncodeError> {
        let Job { terms, shape, stream, memory, scheme } = job;
        let bound = self.bound(terms, shape)?;
        let memory = bound.recall(memory, x.len(), scheme)?;
        let refused = |r: Refusal| r.by(scheme);
        // Groups inside a band are rounded while they are still in the cache.
        if !bound.layout.spans_bands() && matches!(memory, Recalled::Nothing) {
            let slices = split(x, &bound.bands, |band| band.elems.len());
            let tallies = each_band(slices, &bound.bands, |x, band| {
                let (fits, tally) = bound.fit_band(x, band)?;
                bound.round_band(x, band, |group| fits[group - band.groups.start], stream);
                Ok(tally)
            });
            return tallies.into_iter().try_fold(Tally::default(), |sum, t: Result<_, _>| {
                Ok(sum.join(t.map_err(refused)?))
            });
        }
        let mut given: &[f32] = &[];
        let mut residual = None;
        match memory {
            Recalled::Nothing => {}
            Recalled::Scales(scales) => given = scales,
            Recalled::Residual(r) => {
                let tally = bound.add(x, r).map_err(refused)?;
                x.copy_from_slice(r);
                residual = Some((r, tally));
            }
        }
        let (fits, tally) = bound.fit_all(x, given).map_err(refused)?;
        let slices = split(x, &bound.bands, |band| band.elems.len());
        each_band(slices, &bound.bands, |x, band| {
            bound.round_band(x, band, |group| fits[group], stream);
        });
        let Some((residual, tally)) = residual else { return Ok(tally) };
        for (r, v) in residual.iter_mut().zip(x) {
            *r = finite(*r - *v);
        }
        Ok(tally)
    }

    fn encode(&self, job: Job, x: &[f32], out: &mut Vec<u8>) -> Result<Tally, EncodeError> {
        let Job { terms, shape, stream, memory, scheme } = job;
        let bound = self.bound(terms, shape)?;
        let refused = |r: Refusal| r.by(scheme);
        match bound.recall(memory, x.len(), scheme)? {
            Recalled::Nothing => {
                let (fits, tally) = bound.fit_all(x, &[]).map_err(refused)?;
                bound.write(x, &fits, stream, out);
                Ok(tally)
            }
            Recalled::Scales(scales) => {
                let (fits, tally) = bound.fit_all(x, scales).map_err(refused)?;
                bound.write(x, &fits, stream, out);
                Ok(tally)
            }
            Recalled::Residual(residual) => {
                let tally = bound.add(x, residual).map_err(refused)?;
                let (fits, _) = bound.fit_all(residual, &[]).map_err(refused)?;
                bound.write(residual, &fits, stream, out);
                let slices = split(residual, &bound.bands, |band| band.elems.len());
                each_band(slices, &bound.bands, |residual, band| {
                    bound.subtract_band(residual, band, &fits, stream);
                });
                Ok(tally)
            }
        }
    }

    fn decode(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        self.bound(terms, shape)?.decode(bytes, out)
    }
}

/// A rule under the terms of a scheme, on a tensor of a shape.
struct Bound<'a, R> {
    rule: &'a R,
    terms: &'a Terms,
    layout: Layout,
    bands: Vec<Band>,
}

/// One of the times that values are summed.
#[derive(Clone, Copy, Debug)]
struct Pass {
    number: usize,
    /// Whether all values are known to be finite.
    finite: bool,
}

/// What a memory means to a rule.
enum Recalled<'a> {
    Nothing,
    Scales(&'a [f32]),
    Residual(&'a mut [f32]),
}

impl<R: Rule> Bound<'_, R> {
    fn recall<'m>(
        &self,
        memory: Option<&'m mut Memory>,
        elems: usize,
        scheme: &str,
    ) -> Result<Recalled<'m>, EncodeError> {
        let groups = self.layout.groups();
        let Some(memory) = memory else { return Ok(Recalled::Nothing) };
        let shares = self.rule.with_scale(&Fit::default(), 1.0).is_some();
        match memory {
            Memory::Residual { residual } if self.rule.remembers() && residual.len() == elems => {
                return Ok(Recalled::Residual(residual));
            }
            Memory::Shared { scales }
                if shares
                    && scales.len() == groups
                    && scales.iter().all(|s| s.is_finite() && *s >= 0.0) =>
            {
                return Ok(Recalled::Scales(scales));
            }
            _ => {}
        }
        let expected = match (self.rule.remembers(), shares) {
            (true, _) => format!("a residual of {elems} values"),
            (_, true) => format!("{groups} shared scales, finite and not negative"),
            _ => "none".into(),
        };
        Err(EncodeError::Memory { scheme: scheme.to_owned(), expected })
    }

    /// Adds a tensor to the residual. Under `nonfinite:saturate` NaN counts as zero and an infinity as the largest number
    /// with its sign.
    fn add(&self, x: &[f32], residual: &mut [f32]) -> Result<Tally, Refusal> {
        let slices = split(residual, &self.bands, |band| band.elems.len());
        let tallies = each_band(slices, &self.bands, |residual, band| {
            let x = &x[band.elems.clone()];
            let mut tally = Tally::default();
            if !is_finite(x) {
                tally = self.check(x, band.elems.start)?;
            }
            for (r, v) in residual.iter_mut().zip(x) {
                *r = finite(if v.is_nan() { *r } else { *r + *v });
            }
            Ok(tally)
        });
        tallies.into_iter().try_fold(Tally::default(), |sum, t: Result<_, _>| Ok(sum.join(t?)))
    }

    /// Counts what is not finite, or refuses the first of it.
    fn check(&self, x: &[f32], first: usize) -> Result<Tally, Refusal> {
        let mut tally = Tally::default();
        for (i, &value) in x.iter().enumerate().filter(|(_, v)| !v.is_finite()) {
            if self.terms.nonfinite != NonFinite::Saturate {
                return Err(Refusal { index: first + i, value });
            }
            if value.is_nan() {
                tally.nans += 1;
            } else {
                tally.infinities += 1;
            }
        }
        Ok(tally)
    }

    /// Sums consecutive elements of a group into `total`. What was found finite in the first pass is not looked at again.
    fn sum(
        &self,
        pass: Pass,
        x: &[f32],
        first: usize,
        fit: &Fit,
        total: &mut Sums,
    ) -> Result<Tally, Refusal> {
        let mut tally = Tally::default();
        let Pass { number, finite } = pass;
        if let [x] = x
            && x.is_finite()
        {
            self.rule.add_one(number, *x, fit, total);
            return Ok(tally);
        }
        for (i, block) in x.chunks(BLOCK).enumerate() {
            if finite || is_finite(block) {
                *total = total.join(self.rule.sum(number, block, fit));
                continue;
            }
            tally = tally.join(self.check(block, first + i * BLOCK)?);
            let mut kept = [0.0; BLOCK];
            let mut len = 0;
            for v in block.iter().filter(|v| v.is_finite()) {
                kept[len] = *v;
                len += 1;
            }
            if len > 0 {
                *total = total.join(self.rule.sum(number, &kept[..len], fit));
            }
        }
        Ok(tally)
    }

    /// The fits of a band of whole groups.
    fn fit_band(&self, x: &[f32], band: &Band) -> Result<(Vec<Fit>, Tally), Refusal> {
        let mut fits = vec![Fit::default(); band.groups.len()];
        let mut sums = vec![Sums::default(); band.groups.len()];
        let mut tally = Tally::default();
        for number in 0..self.rule.passes() {
            sums.fill(Sums::default());
            let pass = Pass { number, finite: number > 0 && tally == Tally::default() };
            let mut result = Ok(Tally::default());
            self.layout.runs(band, |run| {
                let Ok(seen) = result else { return };
                let at = run.group - band.groups.start;
                let part = &x[run.start..run.start + run.len];
                let first = band.elems.start + run.start;
                result = self
                    .sum(pass, part, first, &fits[at], &mut sums[at])
                    .map(|more| seen.join(more));
            });
            tally = result?;
            for (fit, sums) in fits.iter_mut().zip(&sums) {
                self.rule.fit(number, sums, self.terms.scale, fit);
            }
        }
        Ok((fits, tally))
    }

    /// The fits of all groups; under given scales where there are any.
    fn fit_all(&self, x: &[f32], given: &[f32]) -> Result<(Vec<Fit>, Tally), Refusal> {
        let (mut fits, tally) = if self.layout.spans_bands() {
            self.fit_spanning(x)?
        } else {
            let parts = each_band(vec![(); self.bands.len()], &self.bands, |(), band| {
                self.fit_band(&x[band.elems.clone()], band)
            });
            let mut all = Vec::with_capacity(self.layout.groups());
            let mut tally = Tally::default();
            for part in parts {
                let (fits, seen) = part?;
                all.extend(fits);
                tally = tally.join(seen);
            }
            (all, tally)
        };
        for (fit, scale) in fits.iter_mut().zip(given) {
            *fit = self.rule.with_scale(fit, *scale).unwrap_or(*fit);
        }
        Ok((fits, tally))
    }

    /// The fits of groups whose elements lie in several bands.
    fn fit_spanning(&self, x: &[f32]) -> Result<(Vec<Fit>, Tally), Refusal> {
        let mut fits = vec![Fit::default(); self.layout.groups()];
        let mut tally = Tally::default();
        if x.is_empty() {
            return Ok((fits, tally));
        }
        for number in 0..self.rule.passes() {
            let pass = Pass { number, finite: number > 0 && tally == Tally::default() };
            let mut totals = vec![Sums::default(); fits.len()];
            tally = match self.layout {
                Layout::Axis { groups, run, .. } => {
                    self.sum_axis(pass, x, [groups, run], &fits, &mut totals)
                }
                _ => self.sum_bands(pass, x, &fits, &mut totals),
            }?;
            for (fit, sums) in fits.iter_mut().zip(&totals) {
                self.rule.fit(number, sums, self.terms.scale, fit);
            }
        }
        Ok((fits, tally))
    }

    /// The sums of groups that are longer than bands: each band lies in one of them.
    fn sum_bands(
        &self,
        pass: Pass,
        x: &[f32],
        fits: &[Fit],
        totals: &mut [Sums],
    ) -> Result<Tally, Refusal> {
        let parts = each_band(vec![(); self.bands.len()], &self.bands, |(), band| {
            let mut sums = Sums::default();
            let (part, first) = (&x[band.elems.clone()], band.elems.start);
            self.sum(pass, part, first, &fits[band.groups.start], &mut sums).map(|t| (sums, t))
        });
        let mut tally = Tally::default();
        // In the order of the bands, so that sums and the first refusal are the same for any number of threads.
        for (part, band) in parts.into_iter().zip(&self.bands) {
            let (sums, seen) = part?;
            tally = tally.join(seen);
            let total = &mut totals[band.groups.start];
            *total = total.join(sums);
        }
        Ok(tally)
    }

    /// The sums of groups whose runs take turns: each task has groups of its own and meets their runs in order.
    fn sum_axis(
        &self,
        pass: Pass,
        x: &[f32],
        [groups, run]: [usize; 2],
        fits: &[Fit],
        totals: &mut [Sums],
    ) -> Result<Tally, Refusal> {
        /// Elements of a task in each turn, where there are as many, so that what is loaded is used.
        const NEIGHBOURS: usize = 1024;
        // Runs of a tensor without elements are empty.
        let per_task = NEIGHBOURS.div_ceil(run.max(1));
        let results: Vec<_> = totals
            .par_chunks_mut(per_task)
            .enumerate()
            .map(|(task, totals)| {
                let own = task * per_task;
                let mut tally = Tally::default();
                for turn in (0..x.len()).step_by(groups * run) {
                    let part = &x[turn + own * run..turn + (own + totals.len()) * run];
                    if run == 1 && (pass.finite || is_finite(part)) {
                        for ((x, fit), total) in part.iter().zip(&fits[own..]).zip(&mut *totals) {
                            self.rule.add_one(pass.number, *x, fit, total);
                        }
                        continue;
                    }
                    for (i, total) in totals.iter_mut().enumerate() {
                        let first = turn + (own + i) * run;
                        let part = &x[first..first + run];
                        tally = tally.join(self.sum(pass, part, first, &fits[own + i], total)?);
                    }
                }
                Ok(tally)
            })
            .collect();
        let refusal = |result: &Result<_, Refusal>| result.as_ref().err().map(|r| r.index);
        let mut tally = Tally::default();
        // The refusal that is told is the first of the tensor, whichever task met it.
        let first = results.iter().filter_map(refusal).min();
        for result in results {
            match result {
                Err(r) if Some(r.index) == first => return Err(r),
                Err(_) => {}
                Ok(seen) => tally = tally.join(seen),
            }
        }
        Ok(tally)
    }

    /// The number of groups, where each element is of another group than the next.
    fn columns(&self) -> Option<usize> {
        match self.layout {
            Layout::Axis { groups, run: 1, .. } => Some(groups),
            _ => None,
        }
    }

    /// Rounds the elements of a band.
    fn round_band(&self, x: &mut [f32], band: &Band, fit: impl Fn(usize) -> Fit, stream: &Stream) {
        let mut draws = self.draws(stream);
        let (coder, rounding) = (self.rule.coder(), self.terms.rounding);
        if let Some(groups) = self.columns().filter(|_| coder != Coder::Share) {
            for (v, group) in x.iter_mut().zip(turns(band, groups)) {
                let fit = fit(group);
                *v = fit.levels[usize::from(fit.code(coder, *v, rounding, 0))];
            }
            return;
        }
        self.layout.runs(band, |run| {
            let fit = fit(run.group);
            draws.pieces(band.elems.start, run.start, run.len, |at, draws| {
                fit.quantize(coder, &mut x[at], rounding, draws);
            });
        });
    }

    /// Takes what the bytes will hold away from the elements of a band.
    fn subtract_band(&self, x: &mut [f32], band: &Band, fits: &[Fit], stream: &Stream) {
        let mut draws = self.draws(stream);
        let (coder, rounding) = (self.rule.coder(), self.terms.rounding);
        let mut window = [0.0; WINDOW];
        self.layout.runs(band, |run| {
            let fit = fits[run.group];
            draws.pieces(band.elems.start, run.start, run.len, |at, draws| {
                for (i, part) in x[at].chunks_mut(WINDOW).enumerate() {
                    let values = &mut window[..part.len()];
                    values.copy_from_slice(part);
                    let from = i * WINDOW;
                    let draws = draws.get(from..from + part.len()).unwrap_or(&[]);
                    fit.quantize(coder, values, rounding, draws);
                    for (v, q) in part.iter_mut().zip(values) {
                        *v = finite(*v - *q);
                    }
                }
            });
        });
    }

    fn draws<'s>(&self, stream: &'s Stream) -> Draws<'s> {
        let drawn = self.rule.coder() == Coder::Share;
        Draws::new(if drawn { self.terms.rounding } else { Rounding::NearestEven }, stream)
    }

    /// Appends the bytes of a tensor.
    fn write(&self, x: &[f32], fits: &[Fit], stream: &Stream, out: &mut Vec<u8>) {
        let (packing, store) = (self.rule.packing(), self.terms.scale);
        let width = self.rule.width(store);
        let start = out.len();
        out.resize(start + fits.len() * width + packing.bytes(x.len()), 0);
        let (header, packed) = out[start..].split_at_mut(fits.len() * width);
        if width > 0 {
            for (bytes, fit) in header.chunks_exact_mut(width).zip(fits) {
                self.rule.write(fit, store, bytes);
            }
        }

        let per_byte = packing.per_byte();
        // A band writes the bytes that are its own; of those that it shares with others it gives its part of the sum.
        let mut parts = Vec::with_capacity(self.bands.len());
        let (mut rest, mut at) = (&mut *packed, 0);
        for band in &self.bands {
            let first = band.elems.start.div_ceil(per_byte);
            let end = (band.elems.end / per_byte).max(first);
            let (_, from_first) = rest.split_at_mut(first - at);
            let (own, others) = from_first.split_at_mut(end - first);
            parts.push(own);
            (rest, at) = (others, end);
        }
        let shared: Vec<Ends> = each_band(parts, &self.bands, |own: &mut [u8], band| {
            let mut packer = Packer::new(packing, band.elems.start % per_byte, own);
            self.encode_band(&x[band.elems.clone()], band, fits, stream, &mut packer);
            packer.finish()
        });
        for (band, ends) in self.bands.iter().zip(shared) {
            for (at, part) in [(band.elems.start, ends.head), (band.elems.end, ends.tail)] {
                if let Some(part) = part {
                    packed[at / per_byte] += part;
                }
            }
        }
    }

    fn encode_band(
        &self,
        x: &[f32],
        band: &Band,
        fits: &[Fit],
        stream: &Stream,
        packer: &mut Packer,
    ) {
        let mut draws = self.draws(stream);
        let (coder, rounding) = (self.rule.coder(), self.terms.rounding);
        if coder == Coder::Side {
            // The side of a value is the same in any group.
            let fit = Fit::default();
            packer.push(x.len(), |done, codes| {
                fit.codes(coder, &x[done..done + codes.len()], rounding, &[], codes);
            });
            return;
        }
        self.layout.runs(band, |run| {
            let fit = &fits[run.group];
            draws.pieces(band.elems.start, run.start, run.len, |at, draws| {
                packer.push(at.len(), |done, codes| {
                    let from = at.start + done..at.start + done + codes.len();
                    let draws = draws.get(done..done + codes.len()).unwrap_or(&[]);
                    fit.codes(coder, &x[from], rounding, draws, codes);
                });
            });
        });
    }

    fn decode(&self, bytes: &[u8], out: &mut [f32]) -> Result<(), DecodeError> {
        let (packing, store) = (self.rule.packing(), self.terms.scale);
        let (width, groups) = (self.rule.width(store), self.layout.groups());
        let (header, packed) = bytes.split_at(groups * width);
        let corrupt =
            |reason: String| DecodeError::Corrupt { scheme: self.rule.name().into(), reason };
        let mut levels = Vec::with_capacity(groups);
        for group in 0..groups {
            let stored = &header[group * width..(group + 1) * width];
            let read = self.rule.read(store, stored);
            levels.push(
                read.ok_or_else(|| corrupt(format!("the numbers of group {group} are none")))?,
            );
        }
        if let Some(at) = packed.iter().position(|b| !packing.holds(*b)) {
            return Err(corrupt(format!("byte {at} of the codes holds one that does not exist")));
        }

        let per_byte = packing.per_byte();
        let slices = split(out, &self.bands, |band| band.elems.len());
        each_band(slices, &self.bands, |out, band| {
            let mut codes = [0; WINDOW];
            if let Some(groups) = self.columns() {
                let mut group = turns(band, groups);
                let skip = band.elems.start % per_byte;
                let parts = packed[band.elems.start / per_byte..].chunks(WINDOW / per_byte);
                let mut left = out;
                for (i, part) in parts.enumerate() {
                    packing.unpack(part, &mut codes);
                    let codes = &codes[if i == 0 { skip } else { 0 }..part.len() * per_byte];
                    let (now, later) = left.split_at_mut(codes.len().min(left.len()));
                    for ((v, code), group) in now.iter_mut().zip(codes).zip(&mut group) {
                        *v = levels[group][usize::from(*code)];
                    }
                    left = later;
                    if left.is_empty() {
                        break;
                    }
                }
                return;
            }
            // The elements of the band, counted from its start, whose codes are in the window from `skip` on.
            let (mut window, mut skip) = (0..0, 0);
            self.layout.runs(band, |run| {
                let (mut at, end) = (run.start, run.start + run.len);
                while at < end {
                    if !window.contains(&at) {
                        let first = band.elems.start + at;
                        skip = first % per_byte;
                        window = at..(at + WINDOW - skip).min(out.len());
                        let bytes =
                            first / per_byte..(band.elems.start + window.end).div_ceil(per_byte);
                        let codes = &mut codes[..bytes.len() * per_byte];
                        packing.unpack(&packed[bytes], codes);
                    }
                    let next = end.min(window.end);
                    let codes = &codes[skip + at - window.start..skip + next - window.start];
                    let levels = levels[run.group];
                    if codes.len() < SHORT {
                        for (v, code) in out[at..next].iter_mut().zip(codes) {
                            *v = levels[usize::from(*code)];
                        }
                    } else {
                        kernels::values(codes, levels, &mut out[at..next]);
                    }
                    at = next;
                }
            });
        });
        Ok(())
    }
}

/// The groups of the elements of a band, where they take turns.
fn turns(band: &Band, groups: usize) -> impl Iterator<Item = usize> {
    let mut next = band.elems.start % groups;
    std::iter::repeat_with(move || {
        let group = next;
        next += 1;
        if next == groups {
            next = 0;
        }
        group
    })
}

fn is_finite(x: &[f32]) -> bool {
    x.is_empty() || amax_bits(x) < f32::INFINITY.to_bits()
}

/// What a band adds to the bytes that it shares with its neighbours.
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    head: Option<u8>,
    tail: Option<u8>,
}

/// Gathers the codes of a band and packs them a window at a time.
///
/// The first and the last byte may hold codes of other bands as well. Those of this one are handed back, with 0 for the
/// others: as a byte is a sum of its codes, each times a power, the parts of all bands add up to it.
struct Packer<'a> {
    packing: Packing,
    out: &'a mut [u8],
    codes: [u8; WINDOW],
    len: usize,
    /// Whether the first byte is shared, and has not been reached.
    shares_head: bool,
    ends: Ends,
}

impl<'a> Packer<'a> {
    /// `skip` is how many codes of the first byte belong to others.
    fn new(packing: Packing, skip: usize, out: &'a mut [u8]) -> Self {
        let ends = Ends::default();
        Self { packing, out, codes: [0; WINDOW], len: skip, shares_head: skip > 0, ends }
    }

    /// Takes `count` codes, which `fill` writes in pieces: it is given how many were written before, and room.
    fn push(&mut self, count: usize, mut fill: impl FnMut(usize, &mut [u8])) {
        let mut done = 0;
        while done < count {
            let take = (count - done).min(WINDOW - self.len);
            fill(done, &mut self.codes[self.len..self.len + take]);
            (done, self.len) = (done + take, self.len + take);
            if self.len == WINDOW {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let per_byte = self.packing.per_byte();
        let bytes = self.packing.bytes(self.len);
        self.codes[self.len..bytes * per_byte].fill(0);
        let mut packed = [0; WINDOW / 4];
        self.packing.pack(&self.codes[..bytes * per_byte], &mut packed[..bytes]);
        let mut own = &packed[..bytes];
        if self.shares_head
            && let [head, rest @ ..] = own
        {
            (self.ends.head, own) = (Some(*head), rest);
            self.shares_head = false;
        }
        if !self.len.is_multiple_of(per_byte)
            && let [rest @ .., tail] = own
        {
            (self.ends.tail, own) = (Some(*tail), rest);
        }
        let (part, rest) = std::mem::take(&mut self.out).split_at_mut(own.len());
        part.copy_from_slice(own);
        (self.out, self.len) = (rest, 0);
    }

    fn finish(mut self) -> Ends {
        self.flush();
        self.ends
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::simd::tests::at_every_level;

    /// Values of every size and kind, NaN and infinities among them.
    fn values(n: usize) -> Vec<f32> {
        let stream = Stream::named(8, "levels");
        (0..n)
            .map(|i| match (stream.words(i as u64)[0], i % 9) {
                (bits, 0) => f32::from_bits(bits & 0x8000_0000),
                (bits, 1) => f32::from_bits(bits & 0x807F_FFFF),
                (bits, 2) => f32::from_bits(bits),
                (bits, 3) if bits % 4 == 0 => [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 3],
                (bits, _) => ((bits % 4096) as f32 - 2048.0) / 1024.0,
            })
            .collect()
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn every_level_codes_and_rounds_as_the_definition_at_every_length_and_offset() {
        let x = values(1500);
        let mut draws = vec![0; x.len()];
        Stream::new(1, 1).fill(0, &mut draws);
        draws[..4].copy_from_slice(&[0, 1, (1 << 24) - 1, 1 << 23]);
        let fits =
            [(0.5, 1.0, 1.0), (0.0, 1.5, 2.0), (0.0, 0.0, 1.0), (1e-40, 1e-40, f32::MIN_POSITIVE)];
        for (cut, limit, scale) in fits {
            let fit = Fit { levels: [-0.25, 0.75, -0.0], cut, limit, scale };
            for coder in [Coder::Side, Coder::Magnitude, Coder::Share] {
                for (_, rounding) in Rounding::WORDS {
                    let expected: Vec<u8> = x
                        .iter()
                        .zip(&draws)
                        .map(|(v, d)| fit.code(coder, *v, rounding, *d))
                        .collect();
                    let rounded: Vec<f32> =
                        expected.iter().map(|c| fit.levels[usize::from(*c)]).collect();
                    at_every_level(|level| {
                        let ranges = [0, 1, 3]
                            .into_iter()
                            .flat_map(|start| (0..70).map(move |len| start..start + len));
                        for at in ranges.chain(std::iter::once(0..x.len())) {
                            let (part, draws) = (&x[at.clone()], &draws[at.clone()]);
                            let mut codes = vec![9; at.len()];
                            fit.codes(coder, part, rounding, draws, &mut codes);
                            assert_eq!(codes, expected[at.clone()], "{coder:?} {fit:?} {level:?}");
                            let mut got = part.to_vec();
                            fit.quantize(coder, &mut got, rounding, draws);
                            assert_eq!(
                                bits(&got),
                                bits(&rounded[at.clone()]),
                                "{coder:?} {level:?}"
                            );
                            kernels::values(&codes, fit.levels, &mut got);
                            assert_eq!(bits(&got), bits(&rounded[at]), "{coder:?} {level:?}");
                        }
                    });
                }
            }
        }
    }

    #[test]
    fn sums_are_the_same_at_every_level_and_near_those_in_order() {
        let x: Vec<f32> = values(1200).into_iter().filter(|v| v.abs() < 1e6).collect();
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs().max(1.0);
        for len in (0..70).chain([BLOCK]) {
            let x = &x[1..=len];
            let wide = || x.iter().map(|v| f64::from(*v));
            let first = std::cell::Cell::new(None);
            at_every_level(|_| {
                let moments = kernels::moments(if len == 0 { &[1.0] } else { x });
                let sums = (
                    kernels::magnitudes(x),
                    kernels::magnitudes_above(x, 0.5),
                    kernels::sides(x),
                    moments,
                );
                assert_eq!(first.replace(Some(sums)).unwrap_or(sums), sums);
                assert!(near(sums.0, wide().map(f64::abs).sum()));
                let above: Vec<f64> = wide().map(f64::abs).filter(|v| *v > 0.5).collect();
                assert!(near(sums.1.0, above.iter().sum()));
                assert_eq!(sums.1.1 as usize, above.len());
                assert!(near(sums.2.0, wide().filter(|v| *v >= 0.0).sum()));
                assert!(near(sums.2.1, wide().filter(|v| *v < 0.0).sum()));
                assert_eq!(sums.2.2 as usize, wide().filter(|v| *v < 0.0).count());
                if len > 0 {
                    let mean = wide().sum::<f64>() / len as f64;
                    assert!(near(moments.0, mean));
                    assert!(near(moments.1, wide().map(|v| (v - mean).powi(2)).sum()));
                }
            });
        }
    }

    /// Asserts that one value is summed as a block of one is.
    pub(in crate::codecs) fn assert_one_is_a_block(rule: &impl Rule) {
        for pass in 0..rule.passes() {
            for x in [0.0, -0.0, 1.5, -0.3, 0.5, 1e-45, f32::MAX, f32::MIN] {
                let fit = Fit { cut: 0.5, ..Fit::default() };
                for others in [&[][..], &[0.75, -0.6, -2.0], &[x, x]] {
                    let before = match others {
                        [] => Sums::default(),
                        _ => rule.sum(pass, others, &fit),
                    };
                    let mut one = before;
                    rule.add_one(pass, x, &fit, &mut one);
                    let block = before.join(rule.sum(pass, &[x], &fit));
                    assert_eq!(format!("{one:?}"), format!("{block:?}"), "{rule:?} {x} {others:?}");
                }
            }
        }
    }

    #[test]
    fn sums_of_parts_join_to_those_of_the_whole() {
        let sums = |x: &[f64]| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let square = x.iter().map(|v| (v - mean).powi(2)).sum();
            Sums { count: [x.len() as f64, 0.0], mean, square, ..Sums::default() }
        };
        let x: Vec<f64> = (0..100).map(|i| f64::from(i * i % 37)).collect();
        let joined = sums(&x[..30]).join(sums(&x[30..31])).join(sums(&x[31..]));
        let whole = sums(&x);
        assert!((joined.mean - whole.mean).abs() < 1e-12);
        assert!((joined.square - whole.square).abs() < 1e-9);
    }

    #[test]
    fn every_packing_holds_every_code_at_any_cut() {
        for packing in [Packing::Bits, Packing::Pairs, Packing::Trits] {
            let base = if packing == Packing::Bits { 2 } else { 3 };
            let codes: Vec<u8> =
                (0..4000u32).map(|i| i.wrapping_mul(0x9E37_79B9).to_be_bytes()[1] % base).collect();
            let whole = packing.bytes(codes.len());
            let mut padded = codes.clone();
            padded.resize(whole * packing.per_byte(), 0);
            let mut expected = vec![0; whole];
            packing.pack(&padded, &mut expected);
            assert!(expected.iter().all(|b| packing.holds(*b)));
            let mut back = vec![0; padded.len()];
            packing.unpack(&expected, &mut back);
            assert_eq!(back, padded);
            // Bands of any length, one after the other, give the same bytes.
            for step in [1, 2, 3, 7, 8, 39, 1279, 1281, 3999] {
                let mut bytes = vec![0; whole];
                for start in (0..codes.len()).step_by(step) {
                    let end = (start + step).min(codes.len());
                    let per_byte = packing.per_byte();
                    let first = start.div_ceil(per_byte);
                    let own = first..(end / per_byte).max(first);
                    let mut packer = Packer::new(packing, start % per_byte, &mut bytes[own]);
                    packer.push(end - start, |done, out| {
                        out.copy_from_slice(&codes[start + done..start + done + out.len()]);
                    });
                    let ends = packer.finish();
                    for (at, part) in [(start, ends.head), (end, ends.tail)] {
                        if let Some(part) = part {
                            bytes[at / per_byte] += part;
                        }
                    }
                }
                assert!(bytes == expected, "{packing:?} in steps of {step}");
            }
        }
    }
}
