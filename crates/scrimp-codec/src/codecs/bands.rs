//! What codecs share: a tensor is worked on in bands, its random numbers and its codes in windows.

use rayon::prelude::*;

use super::{EncodeError, Tally};
use crate::granularity::Band;
use crate::{NonFinite, Range, Rounding, Stream, pack, simd};

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

/// Gathers codes, whatever the lengths of runs, and packs them a window at a time.
pub(crate) struct Packer<'a> {
    bits: u32,
    out: &'a mut [u8],
    codes: [u32; WINDOW],
    len: usize,
}

impl<'a> Packer<'a> {
    pub fn new(bits: u32, out: &'a mut [u8]) -> Self {
        Self { bits, out, codes: [0; WINDOW], len: 0 }
    }

    /// Takes `count` codes, which `fill` writes in pieces: it is given how many were written before, and room.
    pub fn push(&mut self, count: usize, mut fill: impl FnMut(usize, &mut [u32])) {
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

    pub fn flush(&mut self) {
        let bytes = pack::packed_len(self.len, self.bits).unwrap_or(0);
        let (part, rest) = std::mem::take(&mut self.out).split_at_mut(bytes);
        pack::pack(&self.codes[..self.len], self.bits, part);
        (self.out, self.len) = (rest, 0);
    }
}

/// The random numbers of a band, a window at a time.
pub(crate) struct Draws<'a> {
    stream: Option<&'a Stream>,
    /// The index of the first element of the window; the window is empty at first.
    start: u64,
    window: [u32; WINDOW],
    len: usize,
}

impl<'a> Draws<'a> {
    pub fn new(rounding: Rounding, stream: &'a Stream) -> Self {
        let stream = (rounding == Rounding::Stochastic).then_some(stream);
        Self { stream, start: 0, window: [0; WINDOW], len: 0 }
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
                stream.fill(index, &mut self.window);
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
