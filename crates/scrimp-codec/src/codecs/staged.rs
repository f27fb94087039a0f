//! A stage after scaled elements: what is stored for groups stays, and the packed codes become fewer bytes.
//!
//! [`stages`](crate::stages) says how bytes lie.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Codec, DecodeError, Defaults, EncodeError, Job, Scaled, Size, Tally, Terms};
use crate::formats::{Card, Format, HeadError};
use crate::granularity::{Layout, elems};
use crate::stages::{self, CHUNK_ELEMS, Chunk, Source, Stage};
use crate::{Memory, ShapeError, pack};

/// Bytes of the length of a model, and of a chunk.
const MODEL_LEN: usize = 2;
const CHUNK_LEN: usize = 4;

/// A scaled format with a stage.
#[derive(Clone, Debug)]
pub(crate) struct Staged {
    inner: Scaled,
    stage: Arc<dyn Stage>,
}

/// How a tensor falls into parts.
struct Parts {
    /// Bytes before the codes.
    front: usize,
    /// Bytes of all packed codes.
    codes: usize,
    chunks: Vec<Part>,
    bits: u32,
}

/// One chunk.
struct Part {
    first: usize,
    count: usize,
    /// Bytes of its packed codes.
    packed: usize,
}

impl Parts {
    /// Bytes between those of the groups and the chunks, without a model.
    fn beside(&self, stage: &dyn Stage) -> usize {
        let model = if stage.has_model() && !self.chunks.is_empty() { MODEL_LEN } else { 0 };
        model + self.chunks.len().saturating_sub(1) * CHUNK_LEN
    }
}

/// The zero points of all groups.
type Zeros = Option<(Layout, Vec<u32>)>;

impl Staged {
    /// A codec with a stage after it.
    pub fn of(inner: Scaled, stage: Arc<dyn Stage>) -> Arc<dyn Codec> {
        Arc::new(Self { inner, stage })
    }

    fn parts(&self, terms: &Terms, shape: &[usize]) -> Result<Parts, ShapeError> {
        let (front, codes) = self.inner.front_and_codes(terms, shape)?;
        let (count, bits) = (elems(shape)?, self.inner.alphabet().bits);
        let chunks = (0..count)
            .step_by(CHUNK_ELEMS)
            .map(|first| {
                let count = CHUNK_ELEMS.min(count - first);
                Part { first, count, packed: pack::packed_len(count, bits).unwrap_or(0) }
            })
            .collect();
        Ok(Parts { front, codes, chunks, bits })
    }

    /// Replaces the packed codes at the end of `out`, whose tensor begins at `start`, by what the stage makes of them.
    fn compress(&self, job: &Job, start: usize, out: &mut Vec<u8>) -> Result<(), ShapeError> {
        let parts = self.parts(job.terms, job.shape)?;
        let (front, packed) = out[start..].split_at(parts.front);
        let zeros = self.inner.zeros(job.terms, job.shape, front)?;
        let alphabet = self.inner.alphabet();
        let writer = self.stage.writer(Source {
            alphabet: &alphabet,
            packed,
            count: parts.chunks.iter().map(|p| p.count).sum(),
            rounding: job.terms.rounding,
            stream: job.stream,
        });
        let mut chunks: Vec<Vec<u8>> = parts
            .chunks
            .par_iter()
            .map(|part| {
                let packed = part.of(packed, parts.bits);
                // Room for blocks that end on other bits than the codes did.
                let mut bytes = Vec::with_capacity(packed.len() + packed.len() / 8 + 64);
                let zeros = part.zeros(&zeros);
                writer.compress(part.chunk(&zeros), packed, &mut bytes);
                if bytes.len() >= packed.len() {
                    bytes.clear();
                    bytes.extend_from_slice(packed);
                }
                bytes
            })
            .collect();
        let mut model = writer.model();
        let total: usize = chunks.iter().map(Vec::len).sum();
        if !model.is_empty() && total + model.len() >= packed.len() {
            model = &[];
            chunks = parts.chunks.iter().map(|p| p.of(packed, parts.bits).to_vec()).collect();
        }
        let mut bytes = Vec::with_capacity(parts.beside(&*self.stage) + model.len() + total);
        if self.stage.has_model() && !chunks.is_empty() {
            let len = u16::try_from(model.len()).unwrap_or(u16::MAX);
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(model);
        }
        for chunk in chunks.iter().rev().skip(1).rev() {
            let len = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&len.to_le_bytes());
        }
        for chunk in &chunks {
            bytes.extend_from_slice(chunk);
        }
        drop(writer);
        out.truncate(start + parts.front);
        out.append(&mut bytes);
        Ok(())
    }

    /// The bytes that the codec without the stage would have written.
    fn decompress(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
    ) -> Result<Vec<u8>, DecodeError> {
        const SHORT: &str = "they end before the last chunk";
        let corrupt = |reason: &str| DecodeError::Corrupt {
            scheme: self.name() + &self.suffix(),
            reason: reason.into(),
        };
        let parts = self.parts(terms, shape)?;
        let alphabet = self.inner.alphabet();
        let (front, mut rest) =
            bytes.split_at_checked(parts.front).ok_or_else(|| corrupt(SHORT))?;
        let mut take = |len: usize| {
            let (taken, after) = rest.split_at_checked(len)?;
            rest = after;
            Some(taken)
        };
        let mut model: &[u8] = &[];
        if self.stage.has_model() && !parts.chunks.is_empty() {
            let len = take(MODEL_LEN).map_or(0, |b| usize::from(b[0]) | usize::from(b[1]) << 8);
            model = take(len).ok_or_else(|| corrupt(SHORT))?;
        }
        let has_reader = !model.is_empty() || !self.stage.has_model();
        let reader = has_reader.then(|| self.stage.reader(&alphabet, model)).transpose();
        let reader = reader.map_err(corrupt)?;

        let lens = take(parts.chunks.len().saturating_sub(1) * CHUNK_LEN);
        let lens = lens.ok_or_else(|| corrupt(SHORT))?.as_chunks::<CHUNK_LEN>().0;
        let mut held = Vec::with_capacity(parts.chunks.len());
        for len in lens {
            let len = u32::from_le_bytes(*len) as usize;
            held.push(take(len).ok_or_else(|| corrupt(SHORT))?);
        }
        if parts.chunks.is_empty() {
            if !rest.is_empty() {
                return Err(corrupt("an empty tensor has no chunks"));
            }
        } else {
            held.push(rest);
        }

        let zeros = self.inner.zeros(terms, shape, front)?;
        let mut out = vec![0; parts.front + parts.codes];
        let (to_front, to_codes) = out.split_at_mut(parts.front);
        to_front.copy_from_slice(front);
        let step = pack::packed_len(CHUNK_ELEMS, parts.bits).unwrap_or(usize::MAX);
        to_codes
            .par_chunks_mut(step)
            .zip(held)
            .zip(&parts.chunks)
            .map(|((packed, held), part)| {
                if held.len() == part.packed {
                    packed.copy_from_slice(held);
                    return Ok(());
                }
                if held.len() > part.packed {
                    return Err("a chunk is longer than its codes");
                }
                let reader = reader.as_ref().ok_or("there is no model for a chunk")?;
                let zeros = part.zeros(&zeros);
                reader.decompress(part.chunk(&zeros), held, packed)
            })
            // One at a time, so that the error is that of the first chunk whatever the threads do.
            .collect::<Vec<_>>()
            .into_iter()
            .collect::<Result<(), _>>()
            .map_err(corrupt)?;
        Ok(out)
    }
}

impl Part {
    fn chunk<'a>(&self, zeros: &'a [i32]) -> Chunk<'a> {
        Chunk { first: self.first, count: self.count, zeros }
    }

    /// Its packed codes among all.
    fn of<'a>(&self, packed: &'a [u8], bits: u32) -> &'a [u8] {
        // Chunks begin on a byte, since they have a multiple of eight codes.
        let start = self.first / 8 * bits as usize;
        &packed[start..start + self.packed]
    }

    /// The zero point of each element; empty where there is none.
    fn zeros(&self, zeros: &Zeros) -> Vec<i32> {
        let Some((layout, zeros)) = zeros else { return Vec::new() };
        let mut each = Vec::with_capacity(self.count);
        while each.len() < self.count {
            let run = layout.run_at(self.first + each.len());
            let len = run.len.min(self.count - each.len());
            each.resize(each.len() + len, zeros[run.group].cast_signed());
        }
        each
    }
}

impl Codec for Staged {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn suffix(&self) -> String {
        format!("{}/{}", self.inner.suffix(), self.stage.word())
    }

    fn card(&self) -> Card {
        let card = self.inner.card();
        Card { name: format!("{}/{}", card.name, self.stage.word()), ..card }
    }

    fn defaults(&self) -> Defaults {
        self.inner.defaults()
    }

    fn words(&self) -> &'static [&'static str] {
        self.inner.words()
    }

    fn with_word(&self, word: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        if let Some(changed) = self.inner.with_format_word(word) {
            return Some(changed.map(|inner| Self::of(inner, self.stage.clone())));
        }
        stages::parse(word).map(|stage| {
            let (earlier, name) = (self.stage.word(), self.name());
            Err(match stage {
                Ok(_) => HeadError {
                    message: format!("`{name}` has the stage `{earlier}` already"),
                    help: "keep one of the two".into(),
                },
                Err(wrong) => wrong,
            })
        })
    }

    fn complaint(&self) -> Option<HeadError> {
        self.inner.complaint().or_else(|| self.stage.complaint(&self.inner.alphabet()))
    }

    fn under_scale(&self) -> Option<Arc<dyn Codec>> {
        let inner = self.inner.with_scale()?;
        Some(Arc::new(Self { inner, stage: Arc::clone(&self.stage) }))
    }

    fn holds_nan(&self) -> bool {
        self.inner.holds_nan()
    }

    fn holds_infinity(&self) -> bool {
        self.inner.holds_infinity()
    }

    fn format(&self) -> Option<&dyn Format> {
        self.inner.format()
    }

    fn memory(&self, terms: &Terms, shape: &[usize]) -> Result<Option<Memory>, ShapeError> {
        self.inner.memory(terms, shape)
    }

    fn size(&self, terms: &Terms, shape: &[usize]) -> Result<Size, ShapeError> {
        let (front, codes) = self.inner.front_and_codes(terms, shape)?;
        let chunks = elems(shape)?.div_ceil(CHUNK_ELEMS);
        let too_large = || ShapeError::TooLarge { shape: shape.to_vec() };
        let model = if self.stage.has_model() && chunks > 0 { MODEL_LEN } else { 0 };
        let beside = chunks.saturating_sub(1).checked_mul(CHUNK_LEN).ok_or_else(too_large)?;
        let least = front.checked_add(beside).and_then(|n| n.checked_add(model));
        let least = least.ok_or_else(too_large)?;
        Ok(Size { least, most: least.checked_add(codes).ok_or_else(too_large)? })
    }

    fn emulate(&self, job: Job, x: &mut [f32]) -> Result<Tally, EncodeError> {
        if self.stage.lossless() {
            return self.inner.emulate(job, x);
        }
        let (terms, shape) = (job.terms, job.shape);
        let mut bytes = Vec::new();
        let tally = self.encode(job, x, &mut bytes)?;
        match self.decode(terms, &bytes, shape, x) {
            Ok(()) => Ok(tally),
            Err(DecodeError::Shape(e)) => Err(e.into()),
            Err(e) => unreachable!("what was just written cannot be read: {e}"),
        }
    }

    fn encode(&self, job: Job, x: &[f32], out: &mut Vec<u8>) -> Result<Tally, EncodeError> {
        let Job { terms, shape, stream, memory, scheme } = job;
        let start = out.len();
        let tally = self.inner.encode(Job { terms, shape, stream, memory, scheme }, x, out)?;
        self.compress(&Job { terms, shape, stream, memory: None, scheme }, start, out)?;
        Ok(tally)
    }

    fn decode(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        let bytes = self.decompress(terms, bytes, shape)?;
        self.inner.decode(terms, &bytes, shape, out)
    }

    fn saturated(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        x: &[f32],
    ) -> Result<Option<u64>, DecodeError> {
        let bytes = self.decompress(terms, bytes, shape)?;
        self.inner.saturated(terms, &bytes, shape, x)
    }

    fn smallest(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        let bytes = self.decompress(terms, bytes, shape)?;
        self.inner.smallest(terms, &bytes, shape, out)
    }

    fn codes(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
    ) -> Result<Option<Vec<u32>>, DecodeError> {
        let bytes = self.decompress(terms, bytes, shape)?;
        self.inner.codes(terms, &bytes, shape)
    }
}
