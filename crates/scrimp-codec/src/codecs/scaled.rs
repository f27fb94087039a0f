//! Scaled elements: groups of a tensor share a scale, and each element is a code of a format.
//!
//! Bytes of one tensor, in this order, each part only where the format has it:
//!
//! | part | bytes |
//! |---|---|
//! | scales, one for each group | 4, 2 or 1 each |
//! | offsets, one `f32` for each group | 4 each |
//! | zero points, packed at the width of a code | `ceil(groups * bits / 8)` |
//! | codes in the order of the elements, packed | `ceil(elements * bits / 8)` |
//!
//! All little-endian. Groups are numbered in storage order of their first elements (tiles: row-major).

use std::sync::Arc;

use super::bands::{Draws, Packer, Refusal, WINDOW, each_band, split};
use super::blocks::Blocks;
use super::{Codec, DecodeError, Defaults, EncodeError, Job, Size, Staged, Tally, Terms};
use crate::formats::{Card, Format, HeadError, Header, Params, Scaling};
use crate::granularity::{Band, Layout};
use crate::stages::{self, Alphabet};
use crate::{
    Granularity, Memory, NonFinite, Range, Rounding, ScaleFormat, ShapeError, Stream, pack, simd,
};

/// A format whose elements have a scale for each group, or none at all.
#[derive(Clone, Debug)]
pub(crate) struct Scaled {
    format: Arc<dyn Format>,
    /// Whether a word of the format was applied: it takes one.
    worded: bool,
}

impl Scaled {
    /// The codec of a format.
    pub fn of(format: impl Format + 'static) -> Arc<dyn Codec> {
        Arc::new(Self { format: Arc::new(format), worded: false })
    }

    /// As [`Codec::with_word`], for the words of the format.
    pub fn with_format_word(&self, word: &str) -> Option<Result<Self, HeadError>> {
        let format = self.format.with_word(word)?;
        // To propagate is a common word, which a format is only asked about.
        let own = !word.starts_with("nonfinite:");
        Some(if own && self.worded && !self.format.words_combine() {
            Err(HeadError {
                message: format!("`{word}` contradicts an earlier word of `{}`", self.name()),
                help: "keep one of the two".into(),
            })
        } else {
            Ok(Self { format, worded: self.worded || own })
        })
    }

    /// What the codes are.
    pub fn alphabet(&self) -> Alphabet {
        Alphabet { bits: self.format.bits(), integers: self.format.integers() }
    }

    /// How many bytes come before the codes, and the codes take.
    pub fn front_and_codes(
        &self,
        terms: &Terms,
        shape: &[usize],
    ) -> Result<(usize, usize), ShapeError> {
        let parts = self.bound(terms).parts(shape)?;
        Ok((parts.scales + parts.offsets + parts.zeros, parts.codes))
    }

    /// The zero points in the bytes before the codes, with the layout of their groups; `None` where there are none.
    pub fn zeros(
        &self,
        terms: &Terms,
        shape: &[usize],
        front: &[u8],
    ) -> Result<Option<(Layout, Vec<u32>)>, ShapeError> {
        let bound = self.bound(terms);
        let (parts, bits) = (bound.parts(shape)?, bound.header().zero_bits);
        if bits == 0 {
            return Ok(None);
        }
        let mut zeros = vec![0; parts.groups];
        pack::unpack(&front[parts.scales + parts.offsets..], bits, 0, &mut zeros);
        Ok(Some((parts.layout, zeros)))
    }

    fn bound<'a>(&'a self, terms: &'a Terms) -> Bound<'a> {
        Bound { format: &*self.format, terms }
    }
}

impl Codec for Scaled {
    fn name(&self) -> String {
        self.format.name()
    }

    fn suffix(&self) -> String {
        self.format.suffix()
    }

    fn card(&self) -> Card {
        self.format.card()
    }

    fn defaults(&self) -> Defaults {
        let scaling = self.format.header().scaling;
        Defaults {
            scaling,
            granularity: self.format.default_granularity(),
            scales: if scaling == Scaling::Never { &[] } else { self.format.scales() },
            rounding: (scaling != Scaling::Never).then(|| self.format.default_rounding()),
        }
    }

    fn words(&self) -> &'static [&'static str] {
        self.format.words()
    }

    fn with_word(&self, word: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        if let Some(changed) = self.with_format_word(word) {
            return Some(changed.map(|codec| Arc::new(codec) as Arc<dyn Codec>));
        }
        if !self.takes_stages() {
            return None;
        }
        let stage = stages::parse(word)?;
        Some(stage.map(|stage| Staged::of(self.clone(), stage)))
    }

    fn takes_stages(&self) -> bool {
        self.format.header().scaling != Scaling::Never
    }

    fn codes(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
    ) -> Result<Option<Vec<u32>>, DecodeError> {
        let parts = self.bound(terms).parts(shape)?;
        let mut codes = vec![0; parts.layout.elems()];
        let front = parts.scales + parts.offsets + parts.zeros;
        pack::unpack(&bytes[front..], self.format.bits(), 0, &mut codes);
        Ok(Some(codes))
    }

    fn complaint(&self) -> Option<HeadError> {
        self.format.complaint()
    }

    fn holds_nan(&self) -> bool {
        self.format.holds_nan()
    }

    fn holds_infinity(&self) -> bool {
        self.format.holds_infinity()
    }

    fn format(&self) -> Option<&dyn Format> {
        Some(&*self.format)
    }

    fn memory(&self, terms: &Terms, shape: &[usize]) -> Result<Option<Memory>, ShapeError> {
        if !self.format.remembers_scales() {
            return Ok(None);
        }
        let groups = self.bound(terms).parts(shape)?.groups;
        Ok(Some(Memory::Scales { scales: vec![None; groups] }))
    }

    fn size(&self, terms: &Terms, shape: &[usize]) -> Result<Size, ShapeError> {
        let parts = self.bound(terms).parts(shape)?;
        let too_large = || ShapeError::TooLarge { shape: shape.to_vec() };
        parts.total().map(Size::fixed).ok_or_else(too_large)
    }

    fn emulate(&self, job: Job, x: &mut [f32]) -> Result<Tally, EncodeError> {
        self.bound(job.terms).emulate(job, x)
    }

    fn encode(&self, job: Job, x: &[f32], out: &mut Vec<u8>) -> Result<Tally, EncodeError> {
        self.bound(job.terms).encode(job, x, out)
    }

    fn decode(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        self.bound(terms).decode(bytes, shape, out)
    }

    fn saturated(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        x: &[f32],
    ) -> Result<Option<u64>, DecodeError> {
        self.bound(terms).saturated(bytes, shape, x)
    }
}

/// A format under the terms of a scheme.
struct Bound<'a> {
    format: &'a dyn Format,
    terms: &'a Terms,
}

/// What was found out about a tensor before its first element is rounded.
#[derive(Default)]
struct Fitted {
    params: Vec<Params>,
    /// The bytes of scales that are stored under others; empty for all others.
    nested: Vec<u8>,
    tally: Tally,
}

/// Where the parts of an encoded tensor lie.
struct Parts {
    layout: Layout,
    groups: usize,
    scales: usize,
    offsets: usize,
    zeros: usize,
    codes: usize,
}

impl Parts {
    fn total(&self) -> Option<usize> {
        self.scales.checked_add(self.offsets)?.checked_add(self.zeros)?.checked_add(self.codes)
    }
}

impl Bound<'_> {
    fn header(&self) -> Header {
        self.format.header()
    }

    fn parts(&self, shape: &[usize]) -> Result<Parts, ShapeError> {
        // A tensor without a scale has groups of nothing: its shape does not matter.
        let layout = if self.terms.scale.is_some() {
            self.terms.layout(shape)?
        } else {
            Granularity::Tensor.layout(shape)?
        };
        let groups = layout.groups();
        let too_large = || ShapeError::TooLarge { shape: shape.to_vec() };
        let header = self.header();
        let scales = self.terms.scale.map_or(Some(0), |store| store.bytes(groups));
        let parts = Parts {
            layout,
            groups,
            scales: scales.ok_or_else(too_large)?,
            offsets: groups.checked_mul(if header.offset { 4 } else { 0 }).ok_or_else(too_large)?,
            zeros: pack::packed_len(groups, header.zero_bits).ok_or_else(too_large)?,
            codes: pack::packed_len(layout.elems(), self.format.bits()).ok_or_else(too_large)?,
        };
        parts.total().ok_or_else(too_large)?;
        Ok(parts)
    }

    /// Whether values can be rounded without having been looked at.
    fn takes_anything(&self) -> bool {
        self.terms.scale.is_none() && self.format.holds_nan() && self.format.holds_infinity()
    }

    /// The range of consecutive elements of a group, with a count of what is not finite.
    fn scan(&self, x: &[f32], first: usize) -> Result<(Range, Tally), Refusal> {
        let only_amax = self.terms.scale.is_none() || self.format.wants_only_amax();
        let range = if x.is_empty() {
            Range::EMPTY
        } else if only_amax {
            let amax = f32::from_bits(simd::amax_bits(x));
            Range { min: -amax, max: amax }
        } else {
            let (min, max) = simd::min_max(x);
            Range { min, max }
        };
        if x.is_empty() || (range.min.is_finite() && range.max.is_finite()) {
            return Ok((range, Tally::default()));
        }
        let mut tally = Tally::default();
        if self.format.spoils_groups() {
            return Ok((Range { min: f32::NEG_INFINITY, max: f32::INFINITY }, tally));
        }
        for (i, &value) in x.iter().enumerate() {
            let held = match value {
                _ if value.is_finite() => continue,
                _ if value.is_nan() => self.format.holds_nan(),
                _ => self.format.holds_infinity(),
            };
            match (held, self.terms.nonfinite) {
                (true, _) => {}
                (false, NonFinite::Saturate) if value.is_nan() => tally.nans += 1,
                (false, NonFinite::Saturate) => tally.infinities += 1,
                (false, _) => return Err(Refusal { index: first + i, value }),
            }
        }
        Ok((Range::of_finite(x), tally))
    }

    fn fit(&self, range: Range) -> Params {
        match self.terms.scale {
            Some(store) => self.format.fit(range.or_zero(), store),
            None => Params::UNIT,
        }
    }

    /// The parameters of every group, and what scales that are stored under others take as bytes.
    fn fit_all(
        &self,
        x: &[f32],
        layout: Layout,
        bands: &[Band],
        memory: Option<&mut Memory>,
    ) -> Result<Fitted, Refusal> {
        let (ranges, tally) = self.ranges(x, layout, bands)?;
        let mut params: Vec<Params> = match memory {
            Some(Memory::Scales { scales }) if self.terms.scale.is_some() => {
                scales.resize(ranges.len(), None);
                let fit = |(range, old): (Range, &mut Option<f32>)| {
                    let params = self.format.fit_again(range.or_zero(), *old);
                    *old = Some(params.scale);
                    params
                };
                ranges.iter().copied().zip(scales).map(fit).collect()
            }
            _ => ranges.iter().map(|r| self.fit(*r)).collect(),
        };
        let nested = match self.terms.scale {
            Some(store) if store.is_nested() => {
                let mut amax = 0f32;
                for (p, range) in params.iter_mut().zip(&ranges) {
                    let of_group = range.or_zero().amax();
                    if of_group == 0.0 && store == ScaleFormat::E4m3fn {
                        p.scale = 0.0;
                    }
                    amax = amax.max(of_group);
                }
                store.nest(amax, self.format.top(), &mut params)
            }
            _ => Vec::new(),
        };
        Ok(Fitted { params, nested, tally })
    }

    /// The range of every group.
    fn ranges(
        &self,
        x: &[f32],
        layout: Layout,
        bands: &[Band],
    ) -> Result<(Vec<Range>, Tally), Refusal> {
        if self.takes_anything() {
            return Ok((vec![Range::EMPTY; layout.groups()], Tally::default()));
        }
        let mut tally = Tally::default();
        let mut ranges = vec![Range::EMPTY; layout.groups()];
        if layout.spans_bands() {
            let parts = each_band(vec![(); bands.len()], bands, |(), band| {
                let mut ranges = vec![Range::EMPTY; band.groups.len()];
                self.scan_band(&x[band.elems.clone()], band, layout, 0, &mut ranges)
                    .map(|tally| (ranges, tally))
            });
            // In the order of the bands, so that the first refusal is the one that is told.
            for (part, band) in parts.into_iter().zip(bands) {
                let (part, seen) = part?;
                tally = tally.join(seen);
                for (range, other) in ranges[band.groups.clone()].iter_mut().zip(part) {
                    *range = range.join(other);
                }
            }
        } else {
            let slots = split(&mut ranges, bands, |band| band.groups.len());
            for seen in each_band(slots, bands, |ranges, band| {
                self.scan_band(&x[band.elems.clone()], band, layout, 0, ranges)
            }) {
                tally = tally.join(seen?);
            }
        }
        Ok((ranges, tally))
    }

    /// Joins the ranges of the elements of a band, from element `from` on, to those of its groups.
    fn scan_band(
        &self,
        x: &[f32],
        band: &Band,
        layout: Layout,
        from: usize,
        ranges: &mut [Range],
    ) -> Result<Tally, Refusal> {
        let mut result = Ok(Tally::default());
        layout.runs(band, |run| {
            let Ok(tally) = result else { return };
            if run.start < from {
                return;
            }
            let part = &x[run.start..run.start + run.len];
            result = self.scan(part, band.elems.start + run.start).map(|(range, seen)| {
                let slot = &mut ranges[run.group - band.groups.start];
                *slot = slot.join(range);
                tally.join(seen)
            });
        });
        result
    }

    /// Rounds the elements of a band, given the parameters of its groups.
    fn round_band(
        &self,
        x: &mut [f32],
        band: &Band,
        layout: Layout,
        from: usize,
        params: impl Fn(usize) -> Params,
        stream: &Stream,
    ) {
        let mut draws = Draws::new(self.terms.rounding, stream);
        layout.runs(band, |run| {
            if run.start < from {
                return;
            }
            let mut params = params(run.group);
            if params.scale == 0.0 {
                // Nothing can be divided by it: the elements are zeros, under any scale.
                x[run.start..run.start + run.len].iter_mut().for_each(|v| *v = 0f32.copysign(*v));
                params = Params::UNIT;
            }
            draws.pieces(band.elems.start, run.start, run.len, |at, draws| {
                let x = &mut x[at];
                self.format.quantize_run(x, &params, self.terms.rounding, draws);
            });
        });
    }

    fn emulate(&self, job: Job, x: &mut [f32]) -> Result<Tally, EncodeError> {
        let Job { shape, stream, memory, scheme, .. } = job;
        if self.header().scaling == Scaling::Never {
            return Ok(Tally::default());
        }
        let layout = self.parts(shape)?.layout;
        let bands = layout.bands();
        let refused = |r: Refusal| r.by(scheme);
        if memory.is_none()
            && let Some(blocks) = Blocks::of(self.format, self.terms, layout)
            && blocks.emulate(x, &bands)
        {
            return Ok(Tally::default());
        }
        // Groups inside a band are rounded while they are still in the cache.
        let fused = self.terms.scale.is_some_and(|store| !store.is_nested())
            && !layout.spans_bands()
            && memory.is_none();
        let Fitted { params, tally, .. } = if fused {
            Fitted::default()
        } else {
            self.fit_all(x, layout, &bands, memory).map_err(refused)?
        };
        let slices = split(x, &bands, |band| band.elems.len());
        let tallies = each_band(slices, &bands, |x, band| {
            if fused {
                return self.emulate_band(x, band, layout, stream);
            }
            self.round_band(x, band, layout, 0, |group| params[group], stream);
            Ok(Tally::default())
        });
        tallies.into_iter().try_fold(tally, |sum, seen| Ok(sum.join(seen.map_err(refused)?)))
    }

    /// Fits and rounds a band of whole groups.
    fn emulate_band(
        &self,
        x: &mut [f32],
        band: &Band,
        layout: Layout,
        stream: &Stream,
    ) -> Result<Tally, Refusal> {
        let mut done = 0;
        if let (Layout::Rows { row, block, .. }, Some(store)) = (layout, self.terms.scale)
            && row % block == 0
        {
            done = self.format.quantize_blocks(x, block, store, self.terms.rounding);
            if done == x.len() {
                return Ok(Tally::default());
            }
        }
        let mut ranges = vec![Range::EMPTY; band.groups.len()];
        let tally = self.scan_band(x, band, layout, done, &mut ranges)?;
        let params: Vec<Params> = ranges.into_iter().map(|r| self.fit(r)).collect();
        self.round_band(x, band, layout, done, |group| params[group - band.groups.start], stream);
        Ok(tally)
    }

    fn encode(&self, job: Job, x: &[f32], out: &mut Vec<u8>) -> Result<Tally, EncodeError> {
        let Job { shape, stream, memory, scheme, .. } = job;
        let parts = self.parts(shape)?;
        let layout = parts.layout;
        let bands = layout.bands();
        if memory.is_none()
            && let Some(blocks) = Blocks::of(self.format, self.terms, layout)
            && blocks.encode(x, &bands, parts.scales, parts.codes, out)
        {
            return Ok(Tally::default());
        }
        let Fitted { params, nested, tally } =
            self.fit_all(x, layout, &bands, memory).map_err(|r| r.by(scheme))?;

        let start = out.len();
        out.resize(start + parts.scales + parts.offsets + parts.zeros + parts.codes, 0);
        let (scales, rest) = out[start..].split_at_mut(parts.scales);
        let (offsets, rest) = rest.split_at_mut(parts.offsets);
        let (zeros, packed) = rest.split_at_mut(parts.zeros);
        match self.terms.scale {
            Some(store) if store.is_nested() => scales.copy_from_slice(&nested),
            Some(store) => store.write_all(&params, scales),
            None => {}
        }
        for (bytes, p) in offsets.as_chunks_mut::<4>().0.iter_mut().zip(&params) {
            *bytes = p.offset.to_le_bytes();
        }
        let header = self.header();
        if header.zero_bits > 0 {
            let codes: Vec<u32> = params.iter().map(|p| p.zero.cast_unsigned()).collect();
            pack::pack(&codes, header.zero_bits, zeros);
        }

        // Eight codes end on a byte, whatever their width; bands that start elsewhere are packed one after another.
        let bits = self.format.bits();
        if bands.iter().all(|band| band.elems.start % 8 == 0) {
            let bytes = |band: &Band| pack::packed_len(band.elems.len(), bits).unwrap_or(0);
            each_band(split(packed, &bands, bytes), &bands, |packed, band| {
                let mut packer = Packer::new(bits, packed);
                self.encode_band(x, band, layout, &params, stream, &mut packer);
                packer.flush();
            });
        } else {
            let mut packer = Packer::new(bits, packed);
            for band in &bands {
                self.encode_band(x, band, layout, &params, stream, &mut packer);
            }
            packer.flush();
        }
        Ok(tally)
    }

    fn encode_band(
        &self,
        x: &[f32],
        band: &Band,
        layout: Layout,
        params: &[Params],
        stream: &Stream,
        packer: &mut Packer,
    ) {
        let x = &x[band.elems.clone()];
        let mut draws = Draws::new(self.terms.rounding, stream);
        layout.runs(band, |run| {
            let params = &params[run.group];
            if params.scale == 0.0 {
                return packer.push(run.len, |done, codes| {
                    for (v, code) in x[run.start + done..].iter().zip(codes) {
                        let zero = 0f32.copysign(*v);
                        *code = self.format.encode(zero, &Params::UNIT, self.terms.rounding, 0);
                    }
                });
            }
            draws.pieces(band.elems.start, run.start, run.len, |at, draws| {
                packer.push(at.len(), |done, codes| {
                    let from = at.start + done..at.start + done + codes.len();
                    let draws = draws.get(done..done + codes.len()).unwrap_or(&[]);
                    self.format.encode_run(&x[from], params, self.terms.rounding, draws, codes);
                });
            });
        });
    }

    /// The parameters of every group, and the packed codes.
    fn read_params<'a>(
        &self,
        parts: &Parts,
        bytes: &'a [u8],
    ) -> Result<(Vec<Params>, &'a [u8]), DecodeError> {
        let (scales, rest) = bytes.split_at(parts.scales);
        let (offsets, rest) = rest.split_at(parts.offsets);
        let (zeros, packed) = rest.split_at(parts.zeros);
        let mut params = vec![Params::UNIT; parts.groups];
        if let Some(store) = self.terms.scale {
            store.read_all(scales, &mut params).map_err(|group| DecodeError::Scale { group })?;
        }
        for (group, (p, bytes)) in params.iter_mut().zip(offsets.as_chunks::<4>().0).enumerate() {
            p.offset = f32::from_le_bytes(*bytes);
            if !p.offset.is_finite() {
                return Err(DecodeError::Offset { group });
            }
        }
        let header = self.header();
        if header.zero_bits > 0 {
            let mut codes = vec![0; parts.groups];
            pack::unpack(zeros, header.zero_bits, 0, &mut codes);
            for (p, zero) in params.iter_mut().zip(codes) {
                p.zero = zero.cast_signed();
            }
        }
        Ok((params, packed))
    }

    fn decode(&self, bytes: &[u8], shape: &[usize], out: &mut [f32]) -> Result<(), DecodeError> {
        let parts = self.parts(shape)?;
        let layout = parts.layout;
        let (scales, rest) = bytes.split_at(parts.scales);
        if let Some(blocks) = Blocks::of(self.format, self.terms, layout)
            && blocks.decode(scales, rest, &layout.bands(), out)
        {
            return Ok(());
        }
        let (params, packed) = self.read_params(&parts, bytes)?;
        let bands = layout.bands();
        let bits = self.format.bits();
        each_band(split(out, &bands, |band| band.elems.len()), &bands, |out, band| {
            // Codes are unpacked a window at a time, whatever the lengths of runs.
            let mut codes = [0; WINDOW];
            let mut window = 0..0;
            layout.runs(band, |run| {
                let params = &params[run.group];
                let (mut at, end) = (run.start, run.start + run.len);
                while at < end {
                    if !window.contains(&at) {
                        window = at..(at + WINDOW).min(out.len());
                        let codes = &mut codes[..window.len()];
                        pack::unpack(packed, bits, band.elems.start + at, codes);
                    }
                    let next = end.min(window.end);
                    let codes = &codes[at - window.start..next - window.start];
                    self.format.decode_run(codes, params, &mut out[at..next]);
                    at = next;
                }
            });
        });
        Ok(())
    }

    fn saturated(
        &self,
        bytes: &[u8],
        shape: &[usize],
        x: &[f32],
    ) -> Result<Option<u64>, DecodeError> {
        let Some(ends) = Ends::of(self.format) else { return Ok(None) };
        // Half a step is lost to rounding where it goes to nearest, and up to a whole one elsewhere.
        let slack = match self.terms.rounding {
            Rounding::NearestEven | Rounding::HalfAway => 0.5,
            _ => 1.0,
        };
        let parts = self.parts(shape)?;
        let (params, _) = self.read_params(&parts, bytes)?;
        let bands = parts.layout.bands();
        let counts = each_band(vec![(); bands.len()], &bands, |(), band| {
            let x = &x[band.elems.clone()];
            let mut count = 0u64;
            parts.layout.runs(band, |run| {
                let limit = |[outer, inner]: [u32; 2]| {
                    let params = &params[run.group];
                    let outer = self.format.decode(outer, params);
                    outer + slack * (outer - self.format.decode(inner, params))
                };
                let (low, high) = (limit(ends.low), limit(ends.high));
                let x = &x[run.start..run.start + run.len];
                count += x.iter().map(|&v| u64::from(v < low || v > high)).sum::<u64>();
            });
            count
        });
        Ok(Some(counts.into_iter().sum()))
    }
}

/// The codes at both ends of a format's values, each before its neighbour.
struct Ends {
    low: [u32; 2],
    high: [u32; 2],
}

impl Ends {
    /// The ends of what is ever written, or `None` where there are too many codes to look at, or too few.
    fn of(format: &dyn Format) -> Option<Self> {
        const MAX_BITS: u32 = 20;
        if format.bits() > MAX_BITS {
            return None;
        }
        let card = format.card();
        let values = || {
            let value = |code| (format.decode(code, &Params::UNIT), code);
            (0..1 << format.bits()).map(value).filter(|(v, _)| (card.min..=card.max).contains(v))
        };
        let low = values().min_by(|(left, _), (right, _)| left.total_cmp(right))?;
        let high = values().max_by(|(left, _), (right, _)| left.total_cmp(right))?;
        let next_low = values().filter(|(v, _)| *v > low.0).min_by(|l, r| l.0.total_cmp(&r.0))?;
        let next_high = values().filter(|(v, _)| *v < high.0).max_by(|l, r| l.0.total_cmp(&r.0))?;
        Some(Self { low: [low.1, next_low.1], high: [high.1, next_high.1] })
    }
}
