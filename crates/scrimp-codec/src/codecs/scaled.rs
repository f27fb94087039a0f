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

use std::borrow::Cow;
use std::ops;
use std::sync::Arc;

use super::bands::{
    Draws, Even, Join, Packer, Refusal, Scratch, Seen, Unit, WINDOW, each_band, each_piece,
    is_long, split,
};
use super::blocks::Blocks;
use super::{
    Codec, DecodeError, Defaults, EncodeError, Factors, IntegerCodes, Integers, Job, Size, Staged,
    Tally, Terms, Width,
};
use crate::blank::{self, Blank};
use crate::formats::{Card, CodesMut, Format, Groups, HeadError, Header, Params, Scaling};
use crate::granularity::{BAND_ELEMS, Layout, Piece};
use crate::memory::History;
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

    /// As [`Codec::under_scale`].
    pub fn with_scale(&self) -> Option<Self> {
        let format = self.format.under_scale(self.worded)?;
        Some(Self { format, worded: self.worded })
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

    fn factors(&self, terms: &Terms) -> Factors {
        self.bound(terms).factors()
    }

    fn integers<'a>(
        &self,
        terms: &Terms,
        bytes: &'a [u8],
        shape: &[usize],
    ) -> Result<Option<Integers<'a>>, DecodeError> {
        self.bound(terms).integers(bytes, shape)
    }

    fn complaint(&self) -> Option<HeadError> {
        self.format.complaint()
    }

    fn under_scale(&self) -> Option<Arc<dyn Codec>> {
        Some(Arc::new(self.with_scale()?))
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

    fn takes_history(&self) -> bool {
        self.format.header().scaling != Scaling::Never
            && !self.format.remembers_scales()
            && !self.format.scales().is_empty()
    }

    fn memory(&self, terms: &Terms, shape: &[usize]) -> Result<Option<Memory>, ShapeError> {
        if !self.format.remembers_scales() && terms.delayed.is_none() {
            return Ok(None);
        }
        let groups = self.bound(terms).parts(shape)?.groups;
        Ok(Some(match terms.delayed {
            Some(length) => Memory::Delayed(History::new(groups, length)),
            None => Memory::Scales { scales: vec![None; groups] },
        }))
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

    fn smallest(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        self.bound(terms).smallest(bytes, shape, out)
    }
}

/// A format under the terms of a scheme.
struct Bound<'a> {
    format: &'a dyn Format,
    terms: &'a Terms,
}

/// What was found out about a tensor before its first element is rounded.
struct Fitted {
    /// The parameters of every group.
    groups: Scratch,
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
    zero_bits: usize,
    codes: usize,
}

impl Parts {
    /// The room for scales, offsets and zero points, with what each group takes of them in bits, and that for codes.
    fn cut<'a>(&self, blank: Blank<'a>) -> ([(Blank<'a>, usize); 3], Blank<'a>) {
        let (scales, rest) = blank.split_at(self.scales);
        let (offsets, rest) = rest.split_at(self.offsets);
        let (zeros, codes) = rest.split_at(self.zeros);
        let each = |bytes: usize| 8 * bytes / self.groups.max(1);
        let header =
            [(scales, each(self.scales)), (offsets, each(self.offsets)), (zeros, self.zero_bits)];
        (header, codes)
    }

    /// What groups have stored, and the packed codes.
    fn stored<'a>(&self, bytes: &'a [u8]) -> (Stored<'a>, &'a [u8]) {
        let (scales, rest) = bytes.split_at(self.scales);
        let (offsets, rest) = rest.split_at(self.offsets);
        let (zeros, packed) = rest.split_at(self.zeros);
        (Stored { scales, offsets, zeros }, packed)
    }

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
            zero_bits: header.zero_bits as usize,
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

    fn only_amax(&self) -> bool {
        self.terms.scale.is_none() || self.format.wants_only_amax()
    }

    /// What groups store beside a scale, in bits.
    fn group_bits(&self) -> u32 {
        self.header().zero_bits
    }

    /// The pieces that can be worked on by themselves, and `None` where groups have to be known first.
    fn pieces(&self, layout: Layout, memory: Option<&Memory>) -> Option<Piece> {
        match self.terms.scale {
            None => Some(Piece { elems: BAND_ELEMS, groups: 0 }),
            Some(store) if store.is_nested() || memory.is_some() => None,
            Some(_) => layout.pieces(self.format.bits(), self.group_bits()),
        }
    }

    /// Joins the ranges of elements, which come in spans, to those of their groups, of which the first is given.
    fn look(
        &self,
        x: Stretch,
        layout: Layout,
        spans: impl Iterator<Item = ops::Range<usize>> + Clone,
        first: usize,
        ranges: &mut [Range],
    ) -> Seen {
        let only_amax = self.only_amax();
        for span in spans.clone() {
            layout.batches(span, |b| {
                let x = x.part(b.start, b.len);
                simd::join_ranges(x, b.run, only_amax, &mut ranges[b.group - first..]);
            });
        }
        let mut finite = true;
        for range in &*ranges {
            finite &= range.min.is_finite();
            finite &= range.max.is_finite();
        }
        if finite {
            return Seen::default();
        }
        ranges.fill(Range::EMPTY);
        let mut seen = Seen::default();
        for span in spans {
            layout.batches(span, |b| {
                let x = x.part(b.start, b.len);
                let runs = x.chunks(b.run).zip(&mut ranges[b.group - first..]);
                for (i, (x, range)) in runs.enumerate() {
                    match self.scan(x, b.start + i * b.run) {
                        Ok((own, tally)) => {
                            *range = range.join(own);
                            seen.tally = seen.tally.join(tally);
                        }
                        // The first is told, and within a span elements are in order.
                        Err(refusal) => {
                            let refusal = Some(refusal);
                            seen =
                                std::mem::take(&mut seen).join(Seen { refusal, ..Seen::default() });
                        }
                    }
                }
            });
        }
        seen
    }

    /// The parameters of every group, where they have to be known before an element is rounded.
    fn fit_all(
        &self,
        x: &[f32],
        layout: Layout,
        memory: Option<&mut Memory>,
    ) -> Result<Fitted, Refusal> {
        let mut groups = Scratch::new(layout.groups());
        let x = Stretch { values: x, start: 0 };
        let tally = self.ranges(x, layout, &mut groups.ranges).result()?;
        let Scratch { ranges, params } = &mut groups;
        match (memory, self.terms.scale) {
            (Some(Memory::Scales { scales }), Some(_)) => {
                scales.resize(ranges.len(), None);
                for ((range, old), params) in ranges.iter().zip(scales).zip(&mut *params) {
                    *params = self.format.fit_again(range.or_zero(), *old);
                    *old = Some(params.scale);
                }
            }
            (memory, Some(store)) => {
                if let Some(Memory::Delayed(history)) = memory {
                    history.next(ranges);
                }
                self.format.fit_groups(ranges, store, params);
            }
            (_, None) => {}
        }
        let nested = match self.terms.scale {
            Some(store) if store.is_nested() => {
                let mut amax = 0f32;
                for (p, range) in params.iter_mut().zip(&*ranges) {
                    let of_group = range.or_zero().amax();
                    if of_group == 0.0 && store == ScaleFormat::E4m3fn {
                        p.scale = 0.0;
                    }
                    amax = amax.max(of_group);
                }
                store.nest(amax, self.format.top(), params)
            }
            _ => Vec::new(),
        };
        Ok(Fitted { groups, nested, tally })
    }

    /// The range of every group.
    fn ranges(&self, x: Stretch, layout: Layout, ranges: &mut [Range]) -> Seen {
        let elems = layout.elems();
        if elems == 0 || self.takes_anything() {
            return Seen::default();
        }
        let long = is_long(elems);
        let one = |span: ops::Range<usize>| std::iter::once(span);
        match layout {
            Layout::Rows { row, block, .. } if block > BAND_ELEMS => {
                let per_row = row.div_ceil(block);
                let all = Even { of: ranges, per: 1 };
                each_piece(0..layout.groups(), all, long, &|group, slot| {
                    let start = group / per_row * row + group % per_row * block;
                    let end = (start + block).min((group / per_row + 1) * row);
                    let bands = (end - start).div_ceil(BAND_ELEMS);
                    let found: Found = each_piece(0..bands, (), long, &|band, ()| {
                        let start = start + band * BAND_ELEMS;
                        let mut range = [Range::EMPTY];
                        let span = one(start..end.min(start + BAND_ELEMS));
                        let seen = self.look(x, layout, span, group, &mut range);
                        Found { range: range[0], seen }
                    });
                    slot.of[0] = found.range;
                    found.seen
                })
            }
            Layout::Axis { groups, run, .. } => {
                let (width, lines) = (groups * run, elems / (groups * run));
                if width > BAND_ELEMS {
                    // Long lines: each piece is a stretch of all of them.
                    let per = (BAND_ELEMS / run).max(1);
                    let all = Even { of: ranges, per };
                    return each_piece(0..groups.div_ceil(per), all, long, &|i, slots| {
                        let first = i * per;
                        let (start, end) = (first * run, (first + slots.of.len()) * run);
                        let spans = (0..lines).map(|line| line * width + start..line * width + end);
                        self.look(x, layout, spans, first, slots.of)
                    });
                }
                // Short lines: each piece is some of them, with ranges of its own, far fewer than elements.
                let count = (lines / 8).clamp(1, 32);
                let per = lines.div_ceil(count);
                let mut own = Scratch::new(count * groups);
                let all = Even { of: &mut own.ranges[..], per: groups };
                let seen = each_piece(0..count, all, long, &|i, slots| {
                    let span = i * per * width..((i + 1) * per).min(lines) * width;
                    self.look(x, layout, one(span.start.min(span.end)..span.end), 0, slots.of)
                });
                for own in own.ranges.chunks_exact(groups) {
                    ranges.iter_mut().zip(own).for_each(|(range, own)| *range = range.join(*own));
                }
                seen
            }
            _ => {
                let bands = layout.bands();
                let slots = split(ranges, &bands, |band| band.groups.len());
                let seen = each_band(slots, &bands, |slots, band| {
                    self.look(x, layout, one(band.elems.clone()), band.groups.start, slots)
                });
                seen.into_iter().fold(Seen::default(), Seen::join)
            }
        }
    }

    /// The parameters of the groups of a piece: so many from the first on.
    fn fit_piece(&self, x: Stretch, layout: Layout, groups: ops::Range<usize>) -> (Scratch, Seen) {
        let Some(store) = self.terms.scale else {
            let mut seen = Seen::default();
            let finite = |x: &[f32]| simd::amax_bits(x) < f32::INFINITY.to_bits();
            if !self.takes_anything() && !finite(x.values) {
                match self.scan(x.values, x.start) {
                    Ok((_, tally)) => seen.tally = tally,
                    Err(refusal) => seen.refusal = Some(refusal),
                }
            }
            return (Scratch::new(0), seen);
        };
        let mut fitted = Scratch::new(groups.len());
        let span = std::iter::once(x.start..x.start + x.values.len());
        let seen = self.look(x, layout, span, groups.start, &mut fitted.ranges);
        if seen.refusal.is_none() {
            self.format.fit_groups(&fitted.ranges, store, &mut fitted.params);
        }
        (fitted, seen)
    }

    /// Calls `work` for windows of elements with their groups. `params` are those of the groups from `first` on. A window
    /// has up to `limit` elements.
    fn windows(
        &self,
        layout: Layout,
        at: ops::Range<usize>,
        params: &[Params],
        first: usize,
        limit: usize,
        mut work: impl FnMut(ops::Range<usize>, Groups),
    ) {
        /// Lines that are shorter are not worth a call each.
        const SHORT: usize = 256;
        let (width, run) = layout.line();
        if self.terms.scale.is_none() {
            let mut start = at.start;
            while start < at.end {
                let end = at.end.min(start.saturating_add(limit));
                work(start..end, Groups::one(&Params::UNIT, end - start));
                start = end;
            }
        } else if width < SHORT && width < at.len() {
            let mut own = [Params::UNIT; WINDOW];
            for start in at.clone().step_by(WINDOW) {
                let end = at.end.min(start + WINDOW);
                layout.batches(start..end, |b| {
                    let own = &mut own[b.start - start..b.start - start + b.len];
                    for (own, params) in own.chunks_mut(b.run).zip(&params[b.group - first..]) {
                        own.fill(*params);
                    }
                });
                work(start..end, Groups { params: &own[..end - start], len: 1 });
            }
        } else {
            layout.batches(at, |b| {
                let whole = if run < limit { limit / run * run } else { limit };
                let mut done = 0;
                while done < b.len {
                    // A window has whole groups, or a part of one.
                    let left = if run < limit { b.len } else { run - done % run };
                    let len = whole.min(left).min(b.len - done);
                    let group = b.group + done / run - first;
                    let params = &params[group..group + len.div_ceil(run)];
                    let start = b.start + done;
                    work(start..start + len, Groups { params, len: run });
                    done += len;
                }
            });
        }
    }

    /// How many elements a window has where it needs no packing.
    fn limit(&self) -> usize {
        let held = self.terms.rounding == Rounding::Stochastic || self.scales_may_be_zero();
        if held { WINDOW } else { usize::MAX }
    }

    /// Whether a scale may be so much smaller than the largest that it is stored as 0.
    fn scales_may_be_zero(&self) -> bool {
        self.terms.scale == Some(ScaleFormat::E4m3fn)
    }

    /// The groups of a window, with 1 for each scale of 0: nothing can be divided by that one, and its elements, for
    /// which `zero` is called, are zeros under any.
    fn divisible<'b>(
        &self,
        groups: Groups<'b>,
        elems: usize,
        own: &'b mut [Params; WINDOW],
        mut zero: impl FnMut(ops::Range<usize>),
    ) -> Groups<'b> {
        if !self.scales_may_be_zero() || groups.params.iter().all(|p| p.scale != 0.0) {
            return groups;
        }
        let own = &mut own[..groups.params.len()];
        own.copy_from_slice(groups.params);
        for (i, params) in own.iter_mut().enumerate().filter(|(_, p)| p.scale == 0.0) {
            *params = Params::UNIT;
            zero(i * groups.len..((i + 1) * groups.len).min(elems));
        }
        Groups { params: own, ..groups }
    }

    /// [`Format::encode_groups`], where scales may be 0 too.
    fn encode_window(&self, x: &[f32], groups: Groups, draws: &[u32], codes: CodesMut) {
        let rounding = self.terms.rounding;
        if !self.scales_may_be_zero() {
            return self.format.encode_groups(x, groups, rounding, draws, codes);
        }
        let (mut own, mut values) = ([Params::UNIT; WINDOW], [0.0; WINDOW]);
        let values = &mut values[..x.len()];
        values.copy_from_slice(x);
        let groups =
            self.divisible(groups, x.len(), &mut own, |zeros| to_zeros(&mut values[zeros]));
        self.format.encode_groups(values, groups, rounding, draws, codes);
    }

    /// Rounds elements whose groups are known.
    fn round(
        &self,
        x: &mut [f32],
        layout: Layout,
        at: ops::Range<usize>,
        params: &[Params],
        first: usize,
        stream: &Stream,
    ) {
        let rounding = self.terms.rounding;
        let mut draws = Draws::new(rounding, stream);
        let mut own = [Params::UNIT; WINDOW];
        self.windows(layout, at.clone(), params, first, self.limit(), |window, groups| {
            let draws = draws.window(window.start, window.len());
            let x = &mut x[window.start - at.start..window.end - at.start];
            let groups = self.divisible(groups, x.len(), &mut own, |zeros| to_zeros(&mut x[zeros]));
            self.format.quantize_groups(x, groups, rounding, draws);
        });
    }

    fn emulate(&self, job: Job, x: &mut [f32]) -> Result<Tally, EncodeError> {
        let Job { shape, stream, memory, scheme, .. } = job;
        if self.header().scaling == Scaling::Never {
            return Ok(Tally::default());
        }
        let layout = self.parts(shape)?.layout;
        let elems = layout.elems();
        if memory.is_none()
            && let Some(blocks) = Blocks::of(self.format, self.terms, layout)
            && blocks.emulate(x, &layout.bands())
        {
            return Ok(Tally::default());
        }
        // Groups inside a piece are rounded while they are still in the cache.
        if let Some(piece) = self.pieces(layout, memory.as_deref()) {
            let (count, all) = (elems.div_ceil(piece.elems), Even { of: x, per: piece.elems });
            let seen = each_piece(0..count, all, is_long(elems), &|i, x| {
                self.emulate_piece(x.of, layout, i, piece, stream)
            });
            return seen.result().map_err(|r| r.by(scheme));
        }
        let fitted = self.fit_all(x, layout, memory).map_err(|r| r.by(scheme))?;
        let params = &fitted.groups.params[..];
        let all = Even { of: x, per: BAND_ELEMS };
        let Seen { .. } =
            each_piece(0..elems.div_ceil(BAND_ELEMS), all, is_long(elems), &|i, x| {
                let at = i * BAND_ELEMS..i * BAND_ELEMS + x.of.len();
                self.round(x.of, layout, at, params, 0, stream);
                Seen::default()
            });
        Ok(fitted.tally)
    }

    /// Fits and rounds a piece.
    fn emulate_piece(
        &self,
        x: &mut [f32],
        layout: Layout,
        index: usize,
        piece: Piece,
        stream: &Stream,
    ) -> Seen {
        let mut start = index * piece.elems;
        let mut groups = piece.groups_of(index, layout);
        let mut done = 0;
        if let (Some(len), Some(store)) = (layout.flat(), self.terms.scale) {
            done = self.format.quantize_blocks(x, len, store, self.terms.rounding);
            if done == x.len() {
                return Seen::default();
            }
            groups.start += done / len;
        }
        start += done;
        let x = &mut x[done..];
        let (fitted, seen) = self.fit_piece(Stretch { values: x, start }, layout, groups.clone());
        if seen.refusal.is_none() {
            let at = start..start + x.len();
            self.round(x, layout, at, &fitted.params, groups.start, stream);
        }
        seen
    }

    fn encode(&self, job: Job, x: &[f32], out: &mut Vec<u8>) -> Result<Tally, EncodeError> {
        let Job { shape, stream, memory, scheme, .. } = job;
        let parts = self.parts(shape)?;
        let (layout, bits) = (parts.layout, self.format.bits());
        let elems = layout.elems();
        let total = parts.total().unwrap_or(0);
        if memory.is_none()
            && let Some(blocks) = Blocks::of(self.format, self.terms, layout)
            && blocks.encode(x, &layout.bands(), parts.scales, parts.codes, out)
        {
            return Ok(Tally::default());
        }
        if let Some(piece) = self.pieces(layout, memory.as_deref()) {
            let seen = blank::append(out, total, |blank| {
                let (header, packed) = parts.cut(blank);
                let header = header.map(|(of, bits)| Even { of, per: piece.groups * bits / 8 });
                let [scales, offsets, zeros] = header;
                let packed = Even { of: packed, per: piece.elems * bits as usize / 8 };
                let x = Even { of: x, per: piece.elems };
                let all = ((x, packed), (scales, (offsets, zeros)));
                let count = elems.div_ceil(piece.elems);
                each_piece(0..count, all, is_long(elems), &|i, ((x, packed), header)| {
                    let (scales, (offsets, zeros)) = header;
                    let header = [scales, offsets, zeros].map(|part| part.of.zeroed());
                    self.encode_piece(x.of, layout, i, piece, stream, header, packed.of.zeroed())
                })
                .result()
            });
            return seen.map_err(|r| r.by(scheme));
        }
        let Fitted { groups, nested, tally } =
            self.fit_all(x, layout, memory).map_err(|r| r.by(scheme))?;
        let params = &groups.params[..];
        blank::append(out, total, |blank| {
            let (header, packed) = parts.cut(blank);
            let header = header.map(|(part, _)| part.zeroed());
            if self.terms.scale.is_some_and(ScaleFormat::is_nested) {
                header[0].copy_from_slice(&nested);
            }
            self.write_header(params, header);
            // Eight codes end on a byte, whatever their width.
            let packed = Even { of: packed, per: BAND_ELEMS / 8 * bits as usize };
            let all = (Even { of: x, per: BAND_ELEMS }, packed);
            let count = elems.div_ceil(BAND_ELEMS);
            let Seen { .. } = each_piece(0..count, all, is_long(elems), &|i, (x, packed)| {
                let x = Stretch { values: x.of, start: i * BAND_ELEMS };
                self.encode_codes(x, layout, params, 0, stream, packed.of.zeroed());
                Seen::default()
            });
            Ok(tally)
        })
    }

    /// Fits and encodes a piece; the header is the bytes of its scales, offsets and zero points.
    #[expect(
        clippy::too_many_arguments,
        reason = "a piece has its place, its values and its bytes"
    )]
    fn encode_piece(
        &self,
        x: &[f32],
        layout: Layout,
        index: usize,
        piece: Piece,
        stream: &Stream,
        header: [&mut [u8]; 3],
        packed: &mut [u8],
    ) -> Seen {
        let start = index * piece.elems;
        let groups = piece.groups_of(index, layout);
        if let (Some(len), Some(store)) = (layout.flat(), self.terms.scale)
            && self.terms.rounding == Rounding::NearestEven
            && x.len().is_multiple_of(len)
            && self.format.encode_blocks(x, len, store, &mut *header[0], packed)
        {
            return Seen::default();
        }
        let x = Stretch { values: x, start };
        let (fitted, seen) = self.fit_piece(x, layout, groups.clone());
        if seen.refusal.is_none() {
            self.write_header(&fitted.params, header);
            self.encode_codes(x, layout, &fitted.params, groups.start, stream, packed);
        }
        seen
    }

    /// Writes what groups store beside their codes, but for scales that are stored under others.
    fn write_header(&self, params: &[Params], [scales, offsets, zeros]: [&mut [u8]; 3]) {
        if let Some(store) = self.terms.scale.filter(|store| !store.is_nested()) {
            store.write_all(params, scales);
        }
        for (bytes, p) in offsets.as_chunks_mut::<4>().0.iter_mut().zip(params) {
            *bytes = p.offset.to_le_bytes();
        }
        let bits = self.group_bits();
        if bits > 0 {
            let mut packer = Packer::<u32>::new(bits, zeros);
            for params in params.chunks(WINDOW) {
                packer.push(params.len(), |codes| {
                    for (code, p) in codes.iter_mut().zip(params) {
                        *code = p.zero.cast_unsigned();
                    }
                });
            }
            packer.finish();
        }
    }

    /// The codes of elements whose groups are known.
    fn encode_codes(
        &self,
        x: Stretch,
        layout: Layout,
        params: &[Params],
        first: usize,
        stream: &Stream,
        packed: &mut [u8],
    ) {
        match self.format.bits() {
            0..=8 => self.encode_units::<u8>(x, layout, params, first, stream, packed),
            9..=16 => self.encode_units::<[u8; 2]>(x, layout, params, first, stream, packed),
            _ => self.encode_units::<u32>(x, layout, params, first, stream, packed),
        }
    }

    fn encode_units<U: Unit>(
        &self,
        x: Stretch,
        layout: Layout,
        params: &[Params],
        first: usize,
        stream: &Stream,
        packed: &mut [u8],
    ) {
        let (bits, rounding) = (self.format.bits(), self.terms.rounding);
        let at = x.start..x.start + x.values.len();
        if self.header().scaling == Scaling::Never {
            for (v, bytes) in x.values.iter().zip(packed.as_chunks_mut().0) {
                *bytes = v.to_le_bytes();
            }
            return;
        }
        let mut draws = Draws::new(rounding, stream);
        let whole = (bits == U::BITS).then(|| U::of_bytes_mut(packed)).flatten();
        if let Some(codes) = whole {
            self.windows(layout, at, params, first, self.limit(), |window, groups| {
                let draws = draws.window(window.start, window.len());
                let codes = &mut codes[window.start - x.start..window.end - x.start];
                let x = x.part(window.start, window.len());
                self.encode_window(x, groups, draws, U::codes_mut(codes));
            });
            return;
        }
        let mut packer = Packer::<U>::new(bits, packed);
        self.windows(layout, at, params, first, WINDOW, |window, groups| {
            let draws = draws.window(window.start, window.len());
            let x = x.part(window.start, window.len());
            packer.push(x.len(), |codes| {
                self.encode_window(x, groups, draws, U::codes_mut(codes));
            });
        });
        packer.finish();
    }

    fn decode(&self, bytes: &[u8], shape: &[usize], out: &mut [f32]) -> Result<(), DecodeError> {
        let parts = self.parts(shape)?;
        let layout = parts.layout;
        let elems = layout.elems();
        let (header, packed) = parts.stored(bytes);
        if let Some(blocks) = Blocks::of(self.format, self.terms, layout)
            && blocks.decode(header.scales, packed, &layout.bands(), out)
        {
            return Ok(());
        }
        // Only where the elements of a piece have few groups are these read with it.
        let near = matches!(layout, Layout::Rows { .. })
            && !self.terms.scale.is_some_and(ScaleFormat::is_nested);
        let mut all = Scratch::new(if near { 0 } else { parts.groups });
        if !near {
            self.read_groups(&header, 0..parts.groups, &mut all.params).result()?;
        }
        let all = &all.params[..];
        let pieces = self.pieces(layout, None).filter(|_| near);
        let piece = pieces.unwrap_or(Piece { elems: BAND_ELEMS, groups: 0 });
        let (count, out) = (elems.div_ceil(piece.elems), Even { of: out, per: piece.elems });
        let wrong: Wrong = each_piece(0..count, out, is_long(elems), &|i, out| {
            let at = i * piece.elems..i * piece.elems + out.of.len();
            if !near || self.terms.scale.is_none() {
                self.decode_codes(packed, layout, at, all, 0, out.of);
                return Wrong::default();
            }
            let groups = layout.groups_of(at.clone());
            if let (Some(len), Some(store), Some(_)) = (layout.flat(), self.terms.scale, pieces) {
                let bits = self.format.bits() as usize;
                let packed = &packed[at.start * bits / 8..];
                let packed = &packed[..(out.of.len() * bits).div_ceil(8)];
                let scales = header.scales_of(groups.clone(), parts.groups);
                if out.of.len().is_multiple_of(len)
                    && self.format.decode_blocks(scales, packed, len, store, out.of)
                {
                    return Wrong::default();
                }
            }
            let mut own = Scratch::new(groups.len());
            let wrong = self.read_groups(&header, groups.clone(), &mut own.params);
            if wrong.0.is_none() {
                self.decode_codes(packed, layout, at, &own.params, groups.start, out.of);
            }
            wrong
        });
        wrong.result()
    }

    /// What some groups have stored; all of them where scales are stored under others.
    fn read_groups(
        &self,
        header: &Stored,
        groups: ops::Range<usize>,
        params: &mut [Params],
    ) -> Wrong {
        let mut wrong = Wrong::default();
        let Some(store) = self.terms.scale else { return wrong };
        let scales = if store.is_nested() {
            header.scales
        } else {
            let width = store.bytes(1).unwrap_or(0);
            &header.scales[groups.start * width..groups.end * width]
        };
        if let Err(group) = store.read_all(scales, params) {
            wrong = wrong.join(Wrong(Some((groups.start + group, Fault::Scale))));
        }
        if !self.format.holds_nan()
            && let Some(group) = params.iter().position(|p| p.scale.is_nan())
        {
            wrong = wrong.join(Wrong(Some((groups.start + group, Fault::Scale))));
        }
        let format = self.header();
        if format.offset {
            let offsets = &header.offsets.as_chunks::<4>().0[groups.clone()];
            for (i, (p, bytes)) in params.iter_mut().zip(offsets).enumerate() {
                p.offset = f32::from_le_bytes(*bytes);
                if !p.offset.is_finite() {
                    wrong = wrong.join(Wrong(Some((groups.start + i, Fault::Offset))));
                }
            }
        }
        if format.zero_bits > 0 {
            let mut codes = [0; WINDOW];
            for (i, params) in params.chunks_mut(WINDOW).enumerate() {
                let codes = &mut codes[..params.len()];
                pack::unpack(header.zeros, format.zero_bits, groups.start + i * WINDOW, codes);
                for (p, zero) in params.iter_mut().zip(codes) {
                    p.zero = zero.cast_signed();
                }
            }
        }
        wrong
    }

    /// The values of elements whose groups are known.
    fn decode_codes(
        &self,
        packed: &[u8],
        layout: Layout,
        at: ops::Range<usize>,
        params: &[Params],
        first: usize,
        out: &mut [f32],
    ) {
        match self.format.bits() {
            0..=8 => self.decode_units::<u8>(packed, layout, at, params, first, out),
            9..=16 => self.decode_units::<[u8; 2]>(packed, layout, at, params, first, out),
            _ => self.decode_units::<u32>(packed, layout, at, params, first, out),
        }
    }

    fn decode_units<U: Unit>(
        &self,
        packed: &[u8],
        layout: Layout,
        at: ops::Range<usize>,
        params: &[Params],
        first: usize,
        out: &mut [f32],
    ) {
        let (bits, begin) = (self.format.bits(), at.start);
        if self.header().scaling == Scaling::Never {
            for (v, bytes) in out.iter_mut().zip(&packed.as_chunks().0[at]) {
                *v = f32::from_le_bytes(*bytes);
            }
            return;
        }
        if let Some(codes) = (bits == U::BITS).then(|| U::of_bytes(packed)).flatten() {
            self.windows(layout, at, params, first, usize::MAX, |window, groups| {
                let out = &mut out[window.start - begin..window.end - begin];
                self.format.decode_groups(U::codes(&codes[window]), groups, out);
            });
            return;
        }
        let mut codes = [U::default(); WINDOW + 8];
        self.windows(layout, at, params, first, WINDOW, |window, groups| {
            // Eight codes begin at a byte, whatever their width.
            let before = window.start % 8;
            let bytes = &packed[window.start / 8 * bits as usize..];
            let codes = &mut codes[..before + window.len()];
            U::unpack(bytes, bits, codes);
            let out = &mut out[window.start - begin..window.end - begin];
            self.format.decode_groups(U::codes(&codes[before..]), groups, out);
        });
    }

    fn factors(&self) -> Factors {
        const LAST: u32 = 16;
        let powers = match self.terms.scale {
            None => self.header().scaling != Scaling::Never,
            Some(
                ScaleFormat::Pow2
                | ScaleFormat::Log2
                | ScaleFormat::Exponent(_)
                | ScaleFormat::Bias,
            ) => true,
            Some(_) => false,
        };
        let bf16 = |v: f32| v.to_bits().trailing_zeros() >= 16 || !v.is_finite();
        let bits = self.format.bits();
        let short = powers
            && bits <= LAST
            && !self.header().offset
            && (0..1 << bits).all(|code| bf16(self.format.decode(code, &Params::UNIT)));
        Factors { integers: self.width(), short }
    }

    /// How wide integers less their zero point are.
    fn width(&self) -> Option<Width> {
        let header = self.header();
        let codes = self.format.integers().filter(|_| !header.offset && self.format.bits() <= 8)?;
        let (low, high) = (*codes.start(), *codes.end());
        let reach = if header.zero_bits > 0 { high - low } else { high };
        Some(if reach <= 127 { Width::Narrow } else { Width::Wide })
    }

    fn integers<'a>(
        &self,
        bytes: &'a [u8],
        shape: &[usize],
    ) -> Result<Option<Integers<'a>>, DecodeError> {
        let Some(width) = self.width() else { return Ok(None) };
        let parts = self.parts(shape)?;
        let (header, packed) = parts.stored(bytes);
        let mut all = Scratch::new(parts.groups);
        self.read_groups(&header, 0..parts.groups, &mut all.params).result()?;
        let (params, elems) = (&all.params[..], parts.layout.elems());
        let scales = params.iter().map(|p| p.scale).collect();
        let signed = self.format.integers().is_some_and(|codes| *codes.start() < 0);
        if self.format.bits() == 8 && signed {
            let codes = IntegerCodes::Narrow(Cow::Borrowed(bytemuck::cast_slice(packed)));
            return Ok(Some(Integers { scales, codes }));
        }
        let mut codes = vec![0u8; elems];
        pack::unpack_bytes(packed, self.format.bits(), &mut codes);
        let codes = if signed {
            // Codes are in two's complement of their own width.
            let unused = 8 - self.format.bits();
            IntegerCodes::Narrow(
                codes.iter().map(|c| (c << unused).cast_signed() >> unused).collect(),
            )
        } else {
            let mut wide: Vec<i16> = codes.into_iter().map(i16::from).collect();
            self.windows(parts.layout, 0..elems, params, 0, usize::MAX, |window, groups| {
                for (codes, params) in wide[window].chunks_mut(groups.len).zip(groups.params) {
                    let [zero, ..] = params.zero.to_le_bytes();
                    for c in codes {
                        *c -= i16::from(zero);
                    }
                }
            });
            match width {
                Width::Narrow => {
                    let narrow = |c: &i16| c.to_le_bytes()[0].cast_signed();
                    IntegerCodes::Narrow(wide.iter().map(narrow).collect())
                }
                Width::Wide => IntegerCodes::Wide(wide),
            }
        };
        Ok(Some(Integers { scales, codes }))
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
        let mut all = Scratch::new(parts.groups);
        let params = &mut all.params[..];
        self.read_groups(&parts.stored(bytes).0, 0..parts.groups, params).result()?;
        let params = &*params;
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
    fn smallest(&self, bytes: &[u8], shape: &[usize], out: &mut [f32]) -> Result<(), DecodeError> {
        let parts = self.parts(shape)?;
        let mut all = Scratch::new(parts.groups);
        let params = &mut all.params[..];
        self.read_groups(&parts.stored(bytes).0, 0..parts.groups, params).result()?;
        let params = &*params;
        // Below an offset or a zero point another code is the first positive one in every group.
        let header = self.header();
        let shared = header.zero_bits == 0 && !header.offset;
        let code = if shared { least_positive(self.format, &Params::UNIT) } else { None };
        let bands = parts.layout.bands();
        let pieces = split(out, &bands, |band| band.elems.len());
        each_band(pieces, &bands, |out, band| {
            parts.layout.runs(band, |run| {
                let params = &params[run.group];
                let code = if shared { code } else { least_positive(self.format, params) };
                let value = code.map_or(0.0, |code| self.format.decode(code, params));
                out[run.start..run.start + run.len].fill(value.max(0.0));
            });
        });
        Ok(())
    }
}

/// The code of the smallest positive value, or `None` where there are too many codes to look at, or no such value.
fn least_positive(format: &dyn Format, params: &Params) -> Option<u32> {
    /// Beyond this a card knows the smallest value of a float.
    const FEW_BITS: u32 = 8;
    const MAX_BITS: u32 = 20;
    if format.bits() > FEW_BITS && *params == Params::UNIT {
        let card = format.card();
        let known = card.min_subnormal.or(card.min_normal);
        let code = known.map(|v| format.encode(v, params, Rounding::NearestEven, 0));
        if let Some(code) = code.filter(|code| format.decode(*code, params) > 0.0) {
            return Some(code);
        }
    }
    if format.bits() > MAX_BITS {
        return None;
    }
    let value = |code| (format.decode(code, params), code);
    let positive = (0..1 << format.bits()).map(value).filter(|(v, _)| *v > 0.0);
    positive.min_by(|(left, _), (right, _)| left.total_cmp(right)).map(|(_, code)| code)
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

/// Makes each value the zero that has its sign.
fn to_zeros(x: &mut [f32]) {
    for v in x {
        *v = 0f32.copysign(*v);
    }
}

/// The bytes that groups have stored.
struct Stored<'a> {
    scales: &'a [u8],
    offsets: &'a [u8],
    zeros: &'a [u8],
}

impl Stored<'_> {
    /// The scales of some of so many groups, each of which has as many bytes.
    fn scales_of(&self, groups: ops::Range<usize>, count: usize) -> &[u8] {
        let width = self.scales.len() / count.max(1);
        &self.scales[groups.start * width..groups.end * width]
    }
}

/// Consecutive values and the index of the first of them.
#[derive(Clone, Copy)]
struct Stretch<'a> {
    values: &'a [f32],
    start: usize,
}

impl<'a> Stretch<'a> {
    /// So many values from index `start` on.
    fn part(self, start: usize, len: usize) -> &'a [f32] {
        &self.values[start - self.start..start - self.start + len]
    }
}

/// The range of a part of a group.
struct Found {
    range: Range,
    seen: Seen,
}

impl Default for Found {
    fn default() -> Self {
        Self { range: Range::EMPTY, seen: Seen::default() }
    }
}

impl Join for Found {
    fn join(self, other: Self) -> Self {
        Self { range: self.range.join(other.range), seen: self.seen.join(other.seen) }
    }
}

/// What a group has stored and cannot have.
#[derive(Clone, Copy)]
enum Fault {
    Scale,
    Offset,
}

/// The first group whose parameters are wrong.
#[derive(Default)]
struct Wrong(Option<(usize, Fault)>);

impl Wrong {
    fn result(self) -> Result<(), DecodeError> {
        match self.0 {
            None => Ok(()),
            Some((group, Fault::Scale)) => Err(DecodeError::Scale { group }),
            Some((group, Fault::Offset)) => Err(DecodeError::Offset { group }),
        }
    }
}

impl Join for Wrong {
    fn join(self, other: Self) -> Self {
        Self([self.0, other.0].into_iter().flatten().min_by_key(|(group, _)| *group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rounding, Scheme};

    /// A tensor's bytes and values, element by element and group by group.
    fn by_definition(
        scheme: &Scheme,
        x: &[f32],
        shape: &[usize],
        stream: &Stream,
    ) -> (Vec<u8>, Vec<f32>) {
        let (format, terms) = (scheme.format().unwrap(), scheme.terms());
        let layout = match terms.scale {
            Some(_) => terms.layout(shape).unwrap(),
            None => Granularity::Tensor.layout(shape).unwrap(),
        };
        let mut group_of = vec![0; x.len()];
        for band in layout.bands() {
            layout.runs(&band, |run| {
                let start = band.elems.start + run.start;
                group_of[start..start + run.len].fill(run.group);
            });
        }
        let mut ranges = vec![Range::EMPTY; layout.groups()];
        for (v, group) in x.iter().zip(&group_of) {
            ranges[*group] = ranges[*group].join(Range { min: *v, max: *v });
        }
        let params: Vec<Params> = match terms.scale {
            Some(store) => ranges.iter().map(|r| format.fit(r.or_zero(), store)).collect(),
            None => vec![Params::UNIT; ranges.len()],
        };
        let mut bytes = Vec::new();
        if let Some(store) = terms.scale {
            bytes = vec![0; store.bytes(params.len()).unwrap()];
            store.write_all(&params, &mut bytes);
        }
        let header = format.header();
        if header.offset {
            bytes.extend(params.iter().flat_map(|p| p.offset.to_le_bytes()));
        }
        let mut append = |codes: &[u32], bits: u32| {
            let mut packed = vec![0; pack::packed_len(codes.len(), bits).unwrap()];
            pack::pack(codes, bits, &mut packed);
            bytes.extend(packed);
        };
        if header.zero_bits > 0 {
            let zeros: Vec<u32> = params.iter().map(|p| p.zero.cast_unsigned()).collect();
            append(&zeros, header.zero_bits);
        }
        let code = |(i, v): (usize, &f32)| {
            format.encode(*v, &params[group_of[i]], terms.rounding, stream.draw(i as u64))
        };
        let codes: Vec<u32> = x.iter().enumerate().map(code).collect();
        append(&codes, format.bits());
        let value = |(i, c): (usize, &u32)| format.decode(*c, &params[group_of[i]]);
        (bytes, codes.iter().enumerate().map(value).collect())
    }

    fn cases() -> Vec<(Scheme, Vec<usize>)> {
        let shapes: [&[usize]; 8] = [
            &[3, 70_000],
            &[70_000, 3],
            &[257, 129],
            &[5, 7, 300, 3],
            &[1, 100_000],
            &[64, 2048],
            &[40, 1, 2000],
            &[9, 0, 5],
        ];
        let words = [
            "",
            "/tensor",
            "/channel",
            "/axis:1",
            "/row",
            "/group:1",
            "/group:32",
            "/group:50",
            "/group:1000000",
            "/flat:64",
            "/flat:7",
            "/flat:50000",
            "/tile:2x3",
            "/tile:16x64",
        ];
        let formats = [
            "int8",
            "uint4",
            "int3",
            "e4m3fn",
            "uint5/qml",
            "e2m1fn",
            "int12",
            "bf16",
            "tf32",
            "uint11",
        ];
        let mut cases = Vec::new();
        for (i, shape) in shapes.iter().enumerate() {
            for (j, word) in words.iter().enumerate() {
                for k in [0, 1, 2] {
                    let format = formats[(3 * i + 5 * j + 3 * k) % formats.len()];
                    let (_, rounding) = Rounding::WORDS[(i + j + k) % 5];
                    let text = format!("{format}{word}/{}", rounding.word());
                    let scheme: Scheme = text.parse().unwrap_or_else(|e| panic!("{e}"));
                    cases.push((scheme, shape.to_vec()));
                }
            }
        }
        cases
    }

    fn values(shape: &[usize]) -> Vec<f32> {
        let stream = Stream::named(3, "values");
        let value = |i: usize| (stream.uniform(i as u64) - 0.4) * (1.0 + (i / 1000 % 7) as f32);
        (0..shape.iter().product()).map(value).collect()
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn tensors_of_many_pieces_are_encoded_as_the_definition_says() {
        let stream = Stream::named(1, "w").at_step(5);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for (scheme, shape) in cases() {
            let x = values(&shape);
            let (expected, rounded) = by_definition(&scheme, &x, &shape, &stream);
            pool.install(|| {
                let mut bytes = vec![9];
                scheme.encode(&x, &shape, &stream, &mut bytes).unwrap();
                assert!(bytes[1..] == expected, "{scheme} {shape:?}");
                let mut back = vec![7.0; x.len()];
                scheme.decode(&expected, &shape, &mut back).unwrap();
                assert!(bits(&back) == bits(&rounded), "{scheme} {shape:?}");
                let mut emulated = x.clone();
                scheme.emulate(&mut emulated, &shape, &stream).unwrap();
                assert!(bits(&emulated) == bits(&rounded), "{scheme} {shape:?}");
            });
        }
    }

    #[test]
    fn what_is_not_finite_is_told_or_counted_in_every_piece() {
        let stream = Stream::new(0, 0);
        for (scheme, shape) in cases() {
            let mut x = values(&shape);
            if x.is_empty() {
                continue;
            }
            let places = [x.len() / 3, x.len() / 2, x.len() - 1];
            for place in places {
                x[place] = f32::NAN;
            }
            x[0] = f32::INFINITY;
            let holds = [scheme.codec().holds_infinity(), scheme.codec().holds_nan()];
            let first =
                holds.iter().zip([0, places[0]]).find(|(held, _)| !**held).map(|(_, at)| at);
            let mut bytes = vec![9];
            let result = scheme.encode(&x, &shape, &stream, &mut bytes);
            match (result, first) {
                (Err(EncodeError::NonFinite { index, .. }), Some(at)) => {
                    assert_eq!((index, &bytes[..]), (at, &[9][..]), "{scheme} {shape:?}");
                }
                (result, at) => assert!(result.is_ok() && at.is_none(), "{scheme} {shape:?}"),
            }
            assert_eq!(scheme.emulate(&mut x.clone(), &shape, &stream).is_err(), first.is_some());
            let counting: Scheme = format!("{scheme}/nonfinite:saturate").parse().unwrap();
            let count = |held: bool, count: u64| if held { 0 } else { count };
            let expected = Tally { nans: count(holds[1], 3), infinities: count(holds[0], 1) };
            bytes.truncate(1);
            let tally = counting.encode(&x, &shape, &stream, &mut bytes).unwrap();
            assert_eq!(tally, expected, "{scheme} {shape:?}");
            let mut back = x.clone();
            counting.decode(&bytes[1..], &shape, &mut back).unwrap();
            let tally = counting.emulate(&mut x, &shape, &stream).unwrap();
            assert_eq!((tally, bits(&x)), (expected, bits(&back)), "{scheme} {shape:?}");
        }
    }
}
