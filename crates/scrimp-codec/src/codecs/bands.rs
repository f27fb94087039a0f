//! What codecs share: a tensor is worked on in bands or pieces, its random numbers and its codes in windows.

use std::cell::Cell;
use std::ops;

use rayon::prelude::*;

use super::{EncodeError, Tally};
use crate::blank::Blank;
use crate::formats::{Codes, CodesMut};
use crate::granularity::{BAND_ELEMS, Band};
use crate::{NonFinite, Params, Range, Rounding, Stream, pack, simd};

/// Elements for which random numbers, or codes, are held at a time.
pub(crate) const WINDOW: usize = 1024;

/// A value that the scheme does not take.
pub(crate) struct Refusal {
    pub index: usize,
    pub value: f32,
}

impl Refusal {
    pub fn by(self, scheme: &str) -> EncodeError {
        let scheme = scheme.to_owned();
        EncodeError::NonFinite { scheme, index: self.index, value: self.value }
    }
}

/// What the parts of a tensor give, in any order.
pub(crate) trait Join: Default + Send {
    fn join(self, other: Self) -> Self;
}

/// What was seen of a tensor's values.
#[derive(Default)]
pub(crate) struct Seen {
    pub tally: Tally,
    /// The first value that is refused.
    pub refusal: Option<Refusal>,
}

impl Seen {
    pub fn result(self) -> Result<Tally, Refusal> {
        self.refusal.map_or(Ok(self.tally), Err)
    }
}

impl Join for Seen {
    fn join(self, other: Self) -> Self {
        let refusals = [self.refusal, other.refusal].into_iter().flatten();
        Self { tally: self.tally.join(other.tally), refusal: refusals.min_by_key(|r| r.index) }
    }
}

/// Something that can be cut where the pieces of a tensor are.
pub(crate) trait Parts: Send {
    /// What belongs to the first pieces, and the rest.
    fn cut(self, pieces: usize) -> (Self, Self)
    where
        Self: Sized;
}

/// Something of which each piece has `per`; the last has what is left.
pub(crate) struct Even<T> {
    pub of: T,
    pub per: usize,
}

impl<T: Sync> Parts for Even<&[T]> {
    fn cut(self, pieces: usize) -> (Self, Self) {
        let (left, right) = self.of.split_at((pieces * self.per).min(self.of.len()));
        (Self { of: left, ..self }, Self { of: right, ..self })
    }
}

impl<T: Send> Parts for Even<&mut [T]> {
    fn cut(self, pieces: usize) -> (Self, Self) {
        let (left, right) = self.of.split_at_mut((pieces * self.per).min(self.of.len()));
        (Self { of: left, per: self.per }, Self { of: right, per: self.per })
    }
}

impl Parts for Even<Blank<'_>> {
    fn cut(self, pieces: usize) -> (Self, Self) {
        let at = (pieces * self.per).min(self.of.len());
        let (left, right) = self.of.split_at(at);
        (Self { of: left, per: self.per }, Self { of: right, per: self.per })
    }
}

impl Parts for () {
    fn cut(self, _: usize) -> (Self, Self) {
        ((), ())
    }
}

impl<A: Parts, B: Parts> Parts for (A, B) {
    fn cut(self, pieces: usize) -> (Self, Self) {
        let ((a, c), (b, d)) = (self.0.cut(pieces), self.1.cut(pieces));
        ((a, b), (c, d))
    }
}

/// Runs `work` on every piece, on all cores if `parallel`, and joins the results. Nothing is allocated.
pub(crate) fn each_piece<P: Parts, R: Join>(
    pieces: ops::Range<usize>,
    parts: P,
    parallel: bool,
    work: &(impl Fn(usize, P) -> R + Sync),
) -> R {
    match pieces.len() {
        0 => R::default(),
        1 => work(pieces.start, parts),
        count => {
            let (left, right) = parts.cut(count / 2);
            let middle = pieces.start + count / 2;
            let first = || each_piece(pieces.start..middle, left, parallel, work);
            let second = || each_piece(middle..pieces.end, right, parallel, work);
            let (first, second) =
                if parallel { rayon::join(first, second) } else { (first(), second()) };
            first.join(second)
        }
    }
}

/// Whether so many elements are worth a second thread: waking it takes longer than two bands do.
pub(crate) fn is_long(elems: usize) -> bool {
    elems > 2 * BAND_ELEMS
}

/// Runs `work` on every band, on all cores where there is enough of it, and gives the results in the order of the bands.
pub(crate) fn each_band<T: Send, R: Send>(
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
pub(crate) fn split<'a, T>(
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

/// Ranges and parameters of groups, in memory that a thread keeps from one call to the next.
pub(crate) struct Scratch {
    pub ranges: Vec<Range>,
    pub params: Vec<Params>,
}

thread_local! {
    /// Empty while it is in use: what needs another one meanwhile allocates it.
    static SPARE: Cell<(Vec<Range>, Vec<Params>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

impl Scratch {
    /// Room for so many groups, all of them empty.
    pub fn new(groups: usize) -> Self {
        let (mut ranges, mut params) = SPARE.take();
        ranges.clear();
        ranges.resize(groups, Range::EMPTY);
        params.clear();
        params.resize(groups, Params::UNIT);
        Self { ranges, params }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        /// Beyond this it is better to give the memory back: allocating it is little beside the work on so many groups.
        const KEPT: usize = 1 << 16;
        if self.params.capacity() <= KEPT {
            let spare = (std::mem::take(&mut self.ranges), std::mem::take(&mut self.params));
            // A thread that ends may have dropped its spare already.
            let _ = SPARE.try_with(|cell| cell.set(spare));
        }
    }
}

/// The random numbers of consecutive elements, a window at a time.
pub(crate) struct Draws<'a> {
    stream: Option<&'a Stream>,
    /// The index of the first element of the window; the window is empty at first.
    start: u64,
    window: [u32; WINDOW + MARGIN],
    len: usize,
}

/// So many random numbers are drawn at once.
const MARGIN: usize = 64;

impl<'a> Draws<'a> {
    pub fn new(rounding: Rounding, stream: &'a Stream) -> Self {
        let stream = (rounding == Rounding::Stochastic).then_some(stream);
        Self { stream, start: 0, window: [0; WINDOW + MARGIN], len: 0 }
    }

    /// The draws of up to [`WINDOW`] elements, or none where rounding is not stochastic.
    pub fn window(&mut self, index: usize, len: usize) -> &[u32] {
        let Some(stream) = self.stream else {
            return &[];
        };
        // From the beginning of a block of four on, and as many as make a vector of them: that needs no loop for the rest.
        let before = index % 4;
        let count = (before + len).next_multiple_of(MARGIN);
        (self.start, self.len) = (0, 0);
        stream.fill((index - before) as u64, &mut self.window[..count]);
        &self.window[before..before + len]
    }

    /// Calls `visit` for pieces of a run with the draws of their elements; a single piece without draws where
    /// rounding is not stochastic. Runs come in ascending order.
    pub fn pieces(
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
                stream.fill(index, &mut self.window[..WINDOW]);
                (self.start, self.len, offset) = (index, WINDOW, 0);
            }
            let take = (run + len - at).min(self.len - offset);
            visit(at..at + take, &self.window[offset..offset + take]);
            at += take;
        }
    }
}

/// The largest finite magnitude of consecutive elements, the first of which has this index in the tensor, and a count
/// of those that are not finite, for codecs that hold neither NaN nor infinity.
pub(crate) fn survey(
    x: &[f32],
    first: usize,
    nonfinite: NonFinite,
) -> Result<(f32, Tally), Refusal> {
    let amax = f32::from_bits(simd::amax_bits(x));
    if amax.is_finite() {
        return Ok((amax, Tally::default()));
    }
    let mut tally = Tally::default();
    for (i, &value) in x.iter().enumerate() {
        match (value.is_finite(), nonfinite) {
            (true, _) => {}
            (false, NonFinite::Saturate) if value.is_nan() => tally.nans += 1,
            (false, NonFinite::Saturate) => tally.infinities += 1,
            (false, _) => return Err(Refusal { index: first + i, value }),
        }
    }
    Ok((Range::of_finite(x).or_zero().amax(), tally))
}

/// How a code lies in memory between a value and the bits that it is packed to.
pub(crate) trait Unit: Copy + Default {
    /// Codes that are packed to as many bits lie in the bytes as they are.
    const BITS: u32;
    fn codes(codes: &[Self]) -> Codes<'_>;
    fn codes_mut(codes: &mut [Self]) -> CodesMut<'_>;
    /// Bytes as codes of the full width; `None` where those are not laid out as bytes.
    fn of_bytes(bytes: &[u8]) -> Option<&[Self]>;
    fn of_bytes_mut(bytes: &mut [u8]) -> Option<&mut [Self]>;
    fn pack(codes: &[Self], bits: u32, out: &mut [u8]);
    fn unpack(bytes: &[u8], bits: u32, codes: &mut [Self]);
}

impl Unit for u8 {
    const BITS: u32 = 8;
    fn codes(codes: &[Self]) -> Codes<'_> {
        Codes::Bytes(codes)
    }
    fn codes_mut(codes: &mut [Self]) -> CodesMut<'_> {
        CodesMut::Bytes(codes)
    }
    fn of_bytes(bytes: &[u8]) -> Option<&[Self]> {
        Some(bytes)
    }
    fn of_bytes_mut(bytes: &mut [u8]) -> Option<&mut [Self]> {
        Some(bytes)
    }
    fn pack(codes: &[Self], bits: u32, out: &mut [u8]) {
        pack::pack_bytes(codes, bits, out);
    }
    fn unpack(bytes: &[u8], bits: u32, codes: &mut [Self]) {
        pack::unpack_bytes(bytes, bits, codes);
    }
}

impl Unit for [u8; 2] {
    const BITS: u32 = 16;
    fn codes(codes: &[Self]) -> Codes<'_> {
        Codes::Pairs(codes)
    }
    fn codes_mut(codes: &mut [Self]) -> CodesMut<'_> {
        CodesMut::Pairs(codes)
    }
    fn of_bytes(bytes: &[u8]) -> Option<&[Self]> {
        Some(bytes.as_chunks().0)
    }
    fn of_bytes_mut(bytes: &mut [u8]) -> Option<&mut [Self]> {
        Some(bytes.as_chunks_mut().0)
    }
    fn pack(codes: &[Self], bits: u32, out: &mut [u8]) {
        pack::pack_pairs(codes, bits, out);
    }
    fn unpack(bytes: &[u8], bits: u32, codes: &mut [Self]) {
        pack::unpack_pairs(bytes, bits, codes);
    }
}

impl Unit for u32 {
    const BITS: u32 = 32;
    fn codes(codes: &[Self]) -> Codes<'_> {
        Codes::Words(codes)
    }
    fn codes_mut(codes: &mut [Self]) -> CodesMut<'_> {
        CodesMut::Words(codes)
    }
    fn of_bytes(_: &[u8]) -> Option<&[Self]> {
        None
    }
    fn of_bytes_mut(_: &mut [u8]) -> Option<&mut [Self]> {
        None
    }
    fn pack(codes: &[Self], bits: u32, out: &mut [u8]) {
        pack::pack(codes, bits, out);
    }
    fn unpack(bytes: &[u8], bits: u32, codes: &mut [Self]) {
        pack::unpack(bytes, bits, 0, codes);
    }
}

/// Gathers codes, whatever the lengths of runs, and packs eight at a time, which end on a byte whatever their width.
pub(crate) struct Packer<'a, U> {
    bits: u32,
    out: &'a mut [u8],
    codes: [U; WINDOW + 8],
    len: usize,
}

impl<'a, U: Unit> Packer<'a, U> {
    pub fn new(bits: u32, out: &'a mut [u8]) -> Self {
        Self { bits, out, codes: [U::default(); WINDOW + 8], len: 0 }
    }

    /// Takes up to [`WINDOW`] codes, which `fill` writes.
    pub fn push(&mut self, count: usize, fill: impl FnOnce(&mut [U])) {
        fill(&mut self.codes[self.len..self.len + count]);
        self.len += count;
        let whole = self.len / 8 * 8;
        self.write(whole);
        self.codes.copy_within(whole..self.len, 0);
        self.len -= whole;
    }

    pub fn finish(mut self) {
        self.write(self.len);
    }

    fn write(&mut self, count: usize) {
        let bytes = pack::packed_len(count, self.bits).unwrap_or(0);
        let (part, rest) = std::mem::take(&mut self.out).split_at_mut(bytes);
        U::pack(&self.codes[..count], self.bits, part);
        self.out = rest;
    }
}
