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

use rayon::prelude::*;

use crate::formats::{Format, Header, Params, Scaling};
use crate::granularity::{Band, Layout, elems};
use crate::{Granularity, NonFinite, Range, Rounding, ScaleFormat, ShapeError, Stream, pack, simd};

/// What was not ordinary about the values of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Values that were NaN and became zero.
    pub nans: u64,
    /// Values that were infinite and became the largest code.
    pub infinities: u64,
}

impl Tally {
    /// Both counts together.
    #[must_use]
    pub fn join(self, other: Tally) -> Tally {
        Tally { nans: self.nans + other.nans, infinities: self.infinities + other.infinities }
    }
}

/// A tensor that a scheme cannot take.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The scheme does not fit the shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The slice has another length than the shape.
    #[error("shape {shape:?} has {expected} elements, and {actual} values were given")]
    Length {
        /// The shape.
        shape: Vec<usize>,
        /// Elements of the shape.
        expected: usize,
        /// Elements of the slice.
        actual: usize,
    },
    /// NaN or infinity, which the scheme cannot hold.
    #[error(
        "element {index} is {value}, which `{scheme}` cannot hold; `{scheme}/nonfinite:saturate` would make NaN zero and infinity the largest code"
    )]
    NonFinite {
        /// The scheme.
        scheme: String,
        /// Where, in storage order.
        index: usize,
        /// The value.
        value: f32,
    },
}

/// Bytes that are not what a scheme writes for a shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The scheme does not fit the shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Wrong number of bytes.
    #[error("`{scheme}` stores shape {shape:?} in {expected} bytes, and there are {actual}")]
    Length {
        /// The scheme.
        scheme: String,
        /// The shape.
        shape: Vec<usize>,
        /// Bytes that the scheme writes.
        expected: usize,
        /// Bytes that are there.
        actual: usize,
    },
    /// A stored scale is zero, negative, subnormal or not finite.
    #[error("the scale of group {group} is not a positive number")]
    Scale {
        /// The group.
        group: usize,
    },
    /// A stored offset is not finite.
    #[error("the offset of group {group} is not a finite number")]
    Offset {
        /// The group.
        group: usize,
    },
    /// The output slice has another length than the shape.
    #[error("shape {shape:?} has {expected} elements, and there is room for {actual}")]
    Output {
        /// The shape.
        shape: Vec<usize>,
        /// Elements of the shape.
        expected: usize,
        /// Elements of the slice.
        actual: usize,
    },
}

/// A format with a scale for each group.
#[derive(Clone, Debug)]
pub(crate) struct Scaled {
    pub format: Arc<dyn Format>,
    pub granularity: Granularity,
    /// Whether all axes but the first are taken as one.
    pub matrix: bool,
    /// `None`: values are codes of the format as it is.
    pub scale: Option<ScaleFormat>,
    pub rounding: Rounding,
    pub nonfinite: NonFinite,
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

impl Scaled {
    fn header(&self) -> Header {
        self.format.header()
    }

    fn parts(&self, shape: &[usize]) -> Result<Parts, ShapeError> {
        // A tensor without a scale has groups of nothing: its shape does not matter.
        let granularity = if self.scale.is_some() { self.granularity } else { Granularity::Tensor };
        let layout = match (self.matrix, shape) {
            // The elements are counted first: a product of parts may overflow where the whole is empty.
            (true, [rows, rest @ ..]) if rest.len() > 1 && elems(shape)? > 0 => {
                granularity.layout(&[*rows, rest.iter().product()])?
            }
            _ => granularity.layout(shape)?,
        };
        let groups = layout.groups();
        let too_large = || ShapeError::TooLarge { shape: shape.to_vec() };
        let each = |bytes: usize| groups.checked_mul(bytes).ok_or_else(too_large);
        let header = self.header();
        let parts = Parts {
            layout,
            groups,
            scales: each(self.scale.map_or(0, ScaleFormat::bytes))?,
            offsets: each(if header.offset { 4 } else { 0 })?,
            zeros: pack::packed_len(groups, header.zero_bits).ok_or_else(too_large)?,
            codes: pack::packed_len(layout.elems(), self.format.bits()).ok_or_else(too_large)?,
        };
        parts.total().ok_or_else(too_large)?;
        Ok(parts)
    }

    pub fn packed_bytes(&self, shape: &[usize]) -> Result<usize, ShapeError> {
        let parts = self.parts(shape)?;
        parts.total().ok_or_else(|| ShapeError::TooLarge { shape: shape.to_vec() })
    }

    pub fn groups(&self, shape: &[usize]) -> Result<usize, ShapeError> {
        Ok(if self.scale.is_some() { self.parts(shape)?.groups } else { 0 })
    }

    fn parts_for(&self, x: &[f32], shape: &[usize]) -> Result<Parts, EncodeError> {
        let parts = self.parts(shape)?;
        let expected = parts.layout.elems();
        if x.len() == expected {
            Ok(parts)
        } else {
            Err(EncodeError::Length { shape: shape.to_vec(), expected, actual: x.len() })
        }
    }

    /// Whether values can be rounded without having been looked at.
    fn takes_anything(&self) -> bool {
        self.scale.is_none() && self.format.holds_nan() && self.format.holds_infinity()
    }

    /// The range of consecutive elements of a group, with a count of what is not finite.
    fn scan(&self, x: &[f32], first: usize) -> Result<(Range, Tally), Refusal> {
        let only_amax = self.scale.is_none() || self.format.wants_only_amax();
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
        for (i, &value) in x.iter().enumerate() {
            let held = match value {
                _ if value.is_finite() => continue,
                _ if value.is_nan() => self.format.holds_nan(),
                _ => self.format.holds_infinity(),
            };
            match (held, self.nonfinite) {
                (true, _) => {}
                (false, NonFinite::Saturate) if value.is_nan() => tally.nans += 1,
                (false, NonFinite::Saturate) => tally.infinities += 1,
                (false, _) => return Err(Refusal { index: first + i, value }),
            }
        }
        Ok((Range::of_finite(x), tally))
    }

    fn fit(&self, range: Range) -> Params {
        match self.scale {
            Some(store) => self.format.fit(range.or_zero(), store),
            None => Params::UNIT,
        }
    }

    /// The parameters of every group.
    fn fit_all(
        &self,
        x: &[f32],
        layout: Layout,
        bands: &[Band],
    ) -> Result<(Vec<Params>, Tally), Refusal> {
        if self.takes_anything() {
            return Ok((vec![Params::UNIT; layout.groups()], Tally::default()));
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
        Ok((ranges.into_iter().map(|r| self.fit(r)).collect(), tally))
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
        let mut draws = Draws::new(self.rounding, stream);
        layout.runs(band, |run| {
            if run.start < from {
                return;
            }
            let params = params(run.group);
            draws.pieces(band.elems.start, run.start, run.len, |at, draws| {
                let x = &mut x[at];
                self.format.quantize_run(x, &params, self.rounding, draws);
            });
        });
    }

    pub fn emulate(
        &self,
        x: &mut [f32],
        shape: &[usize],
        stream: &Stream,
        name: impl Fn() -> String,
    ) -> Result<Tally, EncodeError> {
        let parts = self.parts_for(x, shape)?;
        if self.header().scaling == Scaling::Never {
            return Ok(Tally::default());
        }
        let layout = parts.layout;
        let bands = layout.bands();
        let refused = |r: Refusal| r.by(name());
        // Groups inside a band are rounded while they are still in the cache.
        let fused = self.scale.is_some() && !layout.spans_bands();
        let (params, tally) = if fused {
            (Vec::new(), Tally::default())
        } else {
            self.fit_all(x, layout, &bands).map_err(refused)?
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
        if let (Layout::Rows { row, block, .. }, Some(store)) = (layout, self.scale)
            && row % block == 0
        {
            done = self.format.quantize_blocks(x, block, store, self.rounding);
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

    pub fn encode(
        &self,
        x: &[f32],
        shape: &[usize],
        stream: &Stream,
        out: &mut Vec<u8>,
        name: impl Fn() -> String,
    ) -> Result<Tally, EncodeError> {
        let parts = self.parts_for(x, shape)?;
        let layout = parts.layout;
        let bands = layout.bands();
        let (params, tally) = self.fit_all(x, layout, &bands).map_err(|r| r.by(name()))?;

        let start = out.len();
        out.resize(start + parts.scales + parts.offsets + parts.zeros + parts.codes, 0);
        let (scales, rest) = out[start..].split_at_mut(parts.scales);
        let (offsets, rest) = rest.split_at_mut(parts.offsets);
        let (zeros, packed) = rest.split_at_mut(parts.zeros);
        if let Some(store) = self.scale {
            for (bytes, p) in scales.chunks_exact_mut(store.bytes()).zip(&params) {
                store.write(p.scale, bytes);
            }
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
        let mut draws = Draws::new(self.rounding, stream);
        layout.runs(band, |run| {
            let params = &params[run.group];
            draws.pieces(band.elems.start, run.start, run.len, |at, draws| {
                packer.push(at.len(), |done, codes| {
                    let from = at.start + done..at.start + done + codes.len();
                    let draws = draws.get(done..done + codes.len()).unwrap_or(&[]);
                    self.format.encode_run(&x[from], params, self.rounding, draws, codes);
                });
            });
        });
    }

    pub fn decode(
        &self,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
        name: impl Fn() -> String,
    ) -> Result<(), DecodeError> {
        let parts = self.parts(shape)?;
        let layout = parts.layout;
        let expected = self.packed_bytes(shape)?;
        if bytes.len() != expected {
            let shape = shape.to_vec();
            return Err(DecodeError::Length {
                scheme: name(),
                shape,
                expected,
                actual: bytes.len(),
            });
        }
        if out.len() != layout.elems() {
            let shape = shape.to_vec();
            return Err(DecodeError::Output { shape, expected: layout.elems(), actual: out.len() });
        }
        let (scales, rest) = bytes.split_at(parts.scales);
        let (offsets, rest) = rest.split_at(parts.offsets);
        let (zeros, packed) = rest.split_at(parts.zeros);
        let mut params = vec![Params::UNIT; parts.groups];
        if let Some(store) = self.scale {
            for (group, (p, bytes)) in
                params.iter_mut().zip(scales.chunks_exact(store.bytes())).enumerate()
            {
                p.scale = store.read(bytes).ok_or(DecodeError::Scale { group })?;
            }
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
}

/// Elements for which random numbers, or codes, are held at a time.
const WINDOW: usize = 1024;

/// A value that the scheme does not take.
struct Refusal {
    index: usize,
    value: f32,
}

impl Refusal {
    fn by(self, scheme: String) -> EncodeError {
        EncodeError::NonFinite { scheme, index: self.index, value: self.value }
    }
}

/// Runs `work` on every band, on all cores where there is enough of it, and gives the results in the order of the bands.
fn each_band<T: Send, R: Send>(
    parts: Vec<T>,
    bands: &[Band],
    work: impl Fn(T, &Band) -> R + Sync,
) -> Vec<R> {
    // Waking a second thread takes longer than two bands do.
    const ALONE: usize = 2;
    if bands.len() <= ALONE {
        return parts.into_iter().zip(bands).map(|(part, band)| work(part, band)).collect();
    }
    parts.into_par_iter().zip(bands).map(|(part, band)| work(part, band)).collect()
}

/// Cuts a slice into consecutive parts, one for each band.
fn split<'a, T>(
    mut rest: &'a mut [T],
    bands: &[Band],
    len: impl Fn(&Band) -> usize,
) -> Vec<&'a mut [T]> {
    bands
        .iter()
        .map(|band| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(len(band));
            rest = tail;
            part
        })
        .collect()
}

/// Gathers codes, whatever the lengths of runs, and packs them a window at a time.
struct Packer<'a> {
    bits: u32,
    out: &'a mut [u8],
    codes: [u32; WINDOW],
    len: usize,
}

impl<'a> Packer<'a> {
    fn new(bits: u32, out: &'a mut [u8]) -> Self {
        Self { bits, out, codes: [0; WINDOW], len: 0 }
    }

    /// Takes `count` codes, which `fill` writes in pieces: it is given how many were written before, and room.
    fn push(&mut self, count: usize, mut fill: impl FnMut(usize, &mut [u32])) {
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
        let bytes = pack::packed_len(self.len, self.bits).unwrap_or(0);
        let (part, rest) = std::mem::take(&mut self.out).split_at_mut(bytes);
        pack::pack(&self.codes[..self.len], self.bits, part);
        (self.out, self.len) = (rest, 0);
    }
}

/// The random numbers of a band, a window at a time.
struct Draws<'a> {
    stream: Option<&'a Stream>,
    /// The index of the first element of the window; the window is empty at first.
    start: u64,
    window: [u32; WINDOW],
    len: usize,
}

impl<'a> Draws<'a> {
    fn new(rounding: Rounding, stream: &'a Stream) -> Self {
        let stream = (rounding == Rounding::Stochastic).then_some(stream);
        Self { stream, start: 0, window: [0; WINDOW], len: 0 }
    }

    /// Calls `visit` for pieces of a run with the draws of their elements; a single piece without draws where
    /// rounding is not stochastic. Runs come in ascending order.
    fn pieces(
        &mut self,
        band: usize,
        run: usize,
        len: usize,
        mut visit: impl FnMut(std::ops::Range<usize>, &[u32]),
    ) {
        let Some(stream) = self.stream else {
            return visit(run..run + len, &[]);
        };
        let mut at = run;
        while at < run + len {
            let index = (band + at) as u64;
            let mut offset = usize::try_from(index - self.start).unwrap_or(usize::MAX);
            if offset >= self.len {
                stream.fill(index, &mut self.window);
                (self.start, self.len, offset) = (index, WINDOW, 0);
            }
            let take = (run + len - at).min(self.len - offset);
            visit(at..at + take, &self.window[offset..offset + take]);
            at += take;
        }
    }
}
