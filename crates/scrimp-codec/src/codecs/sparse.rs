//! Codecs that keep some elements of a tensor and make zeros of all others.
//!
//! What differs between them is a [`Choice`]: which elements are kept, and what a reader needs to find them. The rest is
//! here.
//!
//! How many are kept follows from the shape: `P%` keeps `max(1, ceil(n P / 100))` of `n` elements, exactly, and a plain
//! number so many, or all if there are fewer.
//!
//! # Bytes
//!
//! | part | bytes |
//! |---|---|
//! | the kept values in the order of the elements | 4 each, or 2 under `values:f16` and `values:bf16` |
//! | what says which elements they are | as the codec says |
//!
//! All little-endian. An empty tensor has no bytes. Values in 16 bits are rounded to nearest, ties to even, and clamped to
//! the largest finite number; a reader refuses values that are not finite.
//!
//! Under `feedback` the values are those of the tensor plus the [residual](crate::Memory::Residual), and what is not kept,
//! or lost in rounding, is the residual of the next tensor.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;

use super::bands::Refusal;
use super::levels::once;
use super::select::{Chosen, PART, rooms};
use super::{Codec, DecodeError, Defaults, EncodeError, Job, Size, Tally, Terms};
use crate::formats::{Card, HeadError, Scaling, finite};
use crate::granularity::elems;
use crate::simd::amax_bits;
use crate::{Granularity, Memory, NonFinite, Rounding, ShapeError, Stream};

/// Kept values for which a second thread is worth its while.
const LEAST: usize = 4096;

/// How many elements are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// So many millionths of a percent.
    Percent(u64),
    /// So many.
    Count(usize),
}

/// Millionths of a percent in one percent.
const PERCENT: u64 = 1_000_000;

impl Share {
    /// Reads what follows the colon of a head such as `top_k:0.1%`.
    pub fn parse(name: &str, text: &str) -> Result<Self, HeadError> {
        let wrong = |message: String| HeadError {
            message,
            help: format!("write for example `{name}:1%`, `{name}:0.1%` or `{name}:100`"),
        };
        let Some(percent) = text.strip_suffix('%') else {
            return match text.parse::<usize>() {
                Ok(count) if count > 0 => Ok(Self::Count(count)),
                _ => Err(wrong(format!("`{text}` is no number of elements, which is 1 or more"))),
            };
        };
        let (whole, digits) = percent.split_once('.').unwrap_or((percent, ""));
        let decimal = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        // Digits are read one by one, because a fraction in binary would not be what was written.
        let units = (decimal(whole) && decimal(digits) && digits.len() <= 6 && whole.len() <= 3)
            .then(|| format!("{whole}{digits:0<6}").parse::<u64>().ok())
            .flatten();
        match units {
            Some(units @ 1..=100_000_000) => Ok(Self::Percent(units)),
            _ => Err(wrong(format!(
                "`{text}` is no share of a tensor, which is above 0% and at most 100%, with up to six decimals"
            ))),
        }
    }

    /// How many of `n` elements are kept.
    pub fn of(self, n: usize) -> usize {
        match self {
            Self::Count(count) => count.min(n),
            Self::Percent(units) => {
                let k = (n as u128 * u128::from(units)).div_ceil(100 * u128::from(PERCENT));
                usize::try_from(k).unwrap_or(n)
            }
        }
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(units) => {
                let digits = format!("{:06}", units % PERCENT);
                let digits = digits.trim_end_matches('0');
                let point = if digits.is_empty() { "" } else { "." };
                write!(f, "{}{point}{digits}%", units / PERCENT)
            }
        }
    }
}

/// How a kept value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Values {
    F32,
    F16,
    Bf16,
}

impl Values {
    const WORDS: [(&str, Values); 3] =
        [("values:f32", Self::F32), ("values:f16", Self::F16), ("values:bf16", Self::Bf16)];

    fn width(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// The value that a finite one is stored as.
    fn store(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32(),
            Self::Bf16 => {
                let most = bf16::MAX.to_f32();
                bf16::from_f32(x.clamp(-most, most)).to_f32()
            }
        }
    }

    fn write(self, x: f32, out: &mut [u8]) {
        match self {
            Self::F32 => out.copy_from_slice(&x.to_le_bytes()),
            Self::F16 => out.copy_from_slice(&f16::from_f32(x).to_le_bytes()),
            Self::Bf16 => out.copy_from_slice(&bf16::from_f32(x).to_le_bytes()),
        }
    }

    fn read(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Self::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Self::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Self::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            _ => f32::NAN,
        }
    }
}

/// Which elements are kept.
pub(super) trait Choice: Clone + Debug + Send + Sync + 'static {
    /// The head of a scheme string, without what follows the colon.
    const NAME: &'static str;
    /// What the card says.
    const ABOUT: &'static str;
    /// Words of the choice, besides those of all.
    const WORDS: &'static [&'static str];
    /// The choice with such a word applied.
    fn with_word(&self, word: &str) -> Option<Result<Self, HeadError>> {
        let _ = word;
        None
    }
    /// The words in force that are not the default.
    fn suffix(&self) -> &'static str {
        ""
    }
    /// Why the choice cannot be used, under error feedback if that is asked for.
    fn complaint(&self, feedback: bool) -> Option<HeadError> {
        let _ = feedback;
        None
    }
    /// What kept values are multiplied by.
    fn factor(&self, n: usize, k: usize) -> f64 {
        let _ = (n, k);
        1.0
    }
    /// Whether [`write`](Self::write) looks at the indices.
    const NEEDS_INDICES: bool = false;
    /// Whether the keys of the choice are the bits of magnitudes.
    const MEETS_ALL: bool = false;
    /// Chooses `k` elements.
    fn choose(&self, x: &[f32], k: usize, stream: &Stream) -> Chosen;
    /// Appends the offsets of the chosen elements of a part, whose first has the index `first`, in ascending order.
    fn offsets(
        &self,
        chosen: &Chosen,
        x: &[f32],
        first: usize,
        stream: &Stream,
        offsets: &mut Vec<u16>,
    );
    /// Bytes that say which elements they are.
    fn bytes(&self, n: usize, k: usize) -> usize;
    /// Writes these bytes, which are 0 before. There are indices only where they are needed.
    fn write(&self, n: usize, indices: &[usize], stream: &Stream, out: &mut [u8]);
    /// Reads the indices; the error says what is wrong.
    fn read(&self, n: usize, k: usize, bytes: &[u8]) -> Result<Vec<usize>, String>;
}

/// A codec that keeps some elements.
#[derive(Clone, Debug)]
pub(super) struct Sparse<C> {
    choice: C,
    share: Share,
    values: Option<Values>,
    feedback: Option<()>,
}

fn is_finite(x: &[f32]) -> bool {
    amax_bits(x) < f32::INFINITY.to_bits()
}

/// What is kept of a part, in memory that a thread uses again.
#[derive(Default)]
struct Kept {
    offsets: Vec<u16>,
    /// As stored.
    values: Vec<f32>,
}

/// Where the values lie that elements are chosen from.
enum Source<'m> {
    /// Where the caller has them.
    Given,
    /// Here, because some were not finite.
    Cleaned(Vec<f32>),
    Residual(&'m mut [f32]),
}

impl<C: Choice> Sparse<C> {
    /// Reads a head such as `top_k:1%`.
    pub fn parse(choice: C, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let share = match head.strip_prefix(C::NAME)? {
            "" => Share::parse(C::NAME, ""),
            rest => Share::parse(C::NAME, rest.strip_prefix(':')?),
        };
        let codec =
            |share| Arc::new(Self { choice, share, values: None, feedback: None }) as Arc<_>;
        Some(share.map(codec))
    }

    fn values(&self) -> Values {
        self.values.unwrap_or(Values::F32)
    }

    /// Counts what is not finite, and replaces it, or refuses the first of it.
    fn checked<'x>(
        x: &'x [f32],
        terms: &Terms,
        scheme: &str,
    ) -> Result<(Cow<'x, [f32]>, Tally), EncodeError> {
        let mut tally = Tally::default();
        if x.par_chunks(PART).all(is_finite) {
            return Ok((Cow::Borrowed(x), tally));
        }
        let mut x = x.to_vec();
        for (index, v) in x.iter_mut().enumerate().filter(|(_, v)| !v.is_finite()) {
            if terms.nonfinite != NonFinite::Saturate {
                return Err(Refusal { index, value: *v }.by(scheme));
            }
            if v.is_nan() {
                tally.nans += 1;
                *v = 0.0;
            } else {
                tally.infinities += 1;
                *v = finite(*v);
            }
        }
        Ok((Cow::Owned(x), tally))
    }

    /// What is chosen, and from what; the residual has the tensor added.
    fn choose<'m>(
        &self,
        x: &[f32],
        job: Job<'m>,
    ) -> Result<(Source<'m>, Chosen, Tally), EncodeError> {
        let Job { terms, stream, memory, scheme, .. } = job;
        let k = self.share.of(x.len());
        if C::MEETS_ALL && memory.is_none() {
            let chosen = self.choice.choose(x, k, stream);
            if chosen.largest() < f32::INFINITY.to_bits() {
                return Ok((Source::Given, chosen, Tally::default()));
            }
        }
        let (x, tally) = Self::checked(x, terms, scheme)?;
        let residual = match memory {
            None => None,
            Some(Memory::Residual { residual })
                if self.feedback.is_some() && residual.len() == x.len() =>
            {
                Some(residual)
            }
            Some(_) => {
                let expected = if self.feedback.is_some() {
                    format!("a residual of {} values", x.len())
                } else {
                    "none without `feedback`".into()
                };
                return Err(EncodeError::Memory { scheme: scheme.to_owned(), expected });
            }
        };
        if let Some(residual) = residual {
            residual.par_chunks_mut(PART).zip(x.par_chunks(PART)).for_each(|(residual, x)| {
                for (r, v) in residual.iter_mut().zip(x) {
                    *r = finite(*r + *v);
                }
            });
            let chosen = self.choice.choose(residual, k, stream);
            return Ok((Source::Residual(residual), chosen, tally));
        }
        let chosen = self.choice.choose(&x, k, stream);
        let source = match x {
            Cow::Borrowed(_) => Source::Given,
            Cow::Owned(x) => Source::Cleaned(x),
        };
        Ok((source, chosen, tally))
    }

    /// What is kept of a part, given its number and its values.
    fn keep(
        &self,
        n: usize,
        chosen: &Chosen,
        part: usize,
        x: &[f32],
        stream: &Stream,
        kept: &mut Kept,
    ) {
        kept.offsets.clear();
        self.choice.offsets(chosen, x, part * PART, stream, &mut kept.offsets);
        kept.values.clear();
        let values = kept.offsets.iter().map(|offset| x[usize::from(*offset)]);
        let (factor, store) = (self.choice.factor(n, self.share.of(n)), self.values());
        if factor == 1.0 && store == Values::F32 {
            kept.values.extend(values);
        } else {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the rounding is what is asked for"
            )]
            let stored = |v: f32| store.store(finite((f64::from(v) * factor) as f32));
            kept.values.extend(values.map(stored));
        }
    }
}

impl Kept {
    /// Zeros, and the kept values at their places.
    fn scatter(&self, out: &mut [f32]) {
        out.fill(0.0);
        for (offset, value) in self.offsets.iter().zip(&self.values) {
            out[usize::from(*offset)] = *value;
        }
    }

    /// Takes what is kept away from the residual.
    fn subtract(&self, residual: &mut [f32]) {
        for (offset, value) in self.offsets.iter().zip(&self.values) {
            let r = &mut residual[usize::from(*offset)];
            *r = finite(*r - *value);
        }
    }
}

/// Zeros, and values at their indices.
fn scatter(indices: &[usize], values: &[f32], out: &mut [f32]) {
    out.par_chunks_mut(PART).enumerate().for_each(|(i, out)| {
        out.fill(0.0);
        let first = i * PART;
        let from = indices.partition_point(|i| *i < first);
        let to = indices.partition_point(|i| *i < first + out.len());
        for (i, value) in indices[from..to].iter().zip(&values[from..to]) {
            out[*i - first] = *value;
        }
    });
}

impl<C: Choice> Codec for Sparse<C> {
    fn name(&self) -> String {
        format!("{}:{}", C::NAME, self.share)
    }

    fn suffix(&self) -> String {
        let mut suffix = String::from(self.choice.suffix());
        if self.values() != Values::F32 {
            suffix = suffix + "/" + Values::WORDS[self.values() as usize].0;
        }
        if self.feedback.is_some() {
            suffix += "/feedback";
        }
        suffix
    }

    fn card(&self) -> Card {
        let most = self.values().store(f32::MAX);
        Card {
            name: self.name() + &self.suffix(),
            bits: if self.values() == Values::F32 { 32 } else { 16 },
            exponent_bits: None,
            mantissa_bits: None,
            bias: None,
            min: -most,
            max: most,
            min_normal: None,
            min_subnormal: None,
            specials: "none",
            overflow: "saturate",
            rounding: Rounding::NearestEven.word(),
            about: C::ABOUT.into(),
        }
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            scaling: Scaling::Never,
            granularity: Granularity::Tensor,
            scales: &[],
            rounding: None,
        }
    }

    fn words(&self) -> &'static [&'static str] {
        C::WORDS
    }

    fn with_word(&self, word: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let mut changed = self.clone();
        let result = if let Some((_, values)) = Values::WORDS.iter().find(|(w, _)| *w == word) {
            once(&mut changed.values, *values, "the storage of values")
        } else if word == "feedback" {
            once(&mut changed.feedback, (), "`feedback`")
        } else if word.starts_with("values:") {
            Err(HeadError {
                message: format!("`{word}` is no storage of values"),
                help: "write one of values:f32, values:f16, values:bf16".into(),
            })
        } else {
            self.choice.with_word(word)?.map(|choice| changed.choice = choice)
        };
        Some(result.map(|()| Arc::new(changed) as Arc<_>))
    }

    fn complaint(&self) -> Option<HeadError> {
        self.choice.complaint(self.feedback.is_some())
    }

    fn memory(&self, _: &Terms, shape: &[usize]) -> Result<Option<Memory>, ShapeError> {
        let n = elems(shape)?;
        Ok(self.feedback.map(|()| Memory::Residual { residual: vec![0.0; n] }))
    }

    fn size(&self, _: &Terms, shape: &[usize]) -> Result<Size, ShapeError> {
        let n = elems(shape)?;
        if n == 0 {
            return Ok(Size::fixed(0));
        }
        let k = self.share.of(n);
        let total = k.checked_mul(self.values().width());
        let total = total.and_then(|t| t.checked_add(self.choice.bytes(n, k)));
        total.map(Size::fixed).ok_or_else(|| ShapeError::TooLarge { shape: shape.to_vec() })
    }

    fn emulate(&self, job: Job, x: &mut [f32]) -> Result<Tally, EncodeError> {
        let (n, stream) = (x.len(), job.stream);
        let (source, chosen, tally) = self.choose(x, job)?;
        match source {
            Source::Residual(residual) => {
                let parts = x.par_chunks_mut(PART).zip(residual.par_chunks_mut(PART));
                parts.enumerate().for_each_init(Kept::default, |kept, (i, (x, residual))| {
                    self.keep(n, &chosen, i, residual, stream, kept);
                    kept.subtract(residual);
                    kept.scatter(x);
                });
            }
            Source::Cleaned(cleaned) => {
                let parts = x.par_chunks_mut(PART).zip(cleaned.par_chunks(PART));
                parts.enumerate().for_each_init(Kept::default, |kept, (i, (x, cleaned))| {
                    self.keep(n, &chosen, i, cleaned, stream, kept);
                    kept.scatter(x);
                });
            }
            Source::Given => {
                x.par_chunks_mut(PART).enumerate().for_each_init(Kept::default, |kept, (i, x)| {
                    self.keep(n, &chosen, i, x, stream, kept);
                    kept.scatter(x);
                });
            }
        }
        Ok(tally)
    }

    fn encode(&self, job: Job, x: &[f32], out: &mut Vec<u8>) -> Result<Tally, EncodeError> {
        let (n, stream) = (x.len(), job.stream);
        let (source, chosen, tally) = self.choose(x, job)?;
        if x.is_empty() {
            return Ok(tally);
        }
        let (counts, store) = (chosen.counts(), self.values());
        let k: usize = counts.iter().sum();
        let (width, start) = (store.width(), out.len());
        out.resize(start + k * width + self.choice.bytes(n, k), 0);
        let (values, places) = out[start..].split_at_mut(k * width);
        let mut indices = vec![0; if C::NEEDS_INDICES { k } else { 0 }];
        let index_counts = counts.iter().map(|count| if C::NEEDS_INDICES { *count } else { 0 });
        let rooms = rooms(values, counts.iter().map(|count| count * width))
            .into_par_iter()
            .zip(self::rooms(&mut indices, index_counts))
            .enumerate();
        let write = |kept: &Kept, part: usize, values: &mut [u8], indices: &mut [usize]| {
            for (bytes, value) in values.chunks_exact_mut(width).zip(&kept.values) {
                store.write(*value, bytes);
            }
            for (index, offset) in indices.iter_mut().zip(&kept.offsets) {
                *index = part * PART + usize::from(*offset);
            }
        };
        if let Source::Residual(residual) = source {
            let parts = rooms.zip(residual.par_chunks_mut(PART));
            parts.for_each_init(Kept::default, |kept, ((i, (values, indices)), residual)| {
                self.keep(n, &chosen, i, residual, stream, kept);
                kept.subtract(residual);
                write(kept, i, values, indices);
            });
        } else {
            let x = if let Source::Cleaned(cleaned) = &source { cleaned } else { x };
            let parts = rooms.zip(x.par_chunks(PART));
            parts.for_each_init(Kept::default, |kept, ((i, (values, indices)), x)| {
                self.keep(n, &chosen, i, x, stream, kept);
                write(kept, i, values, indices);
            });
        }
        self.choice.write(n, &indices, stream, places);
        Ok(tally)
    }

    fn decode(
        &self,
        _: &Terms,
        bytes: &[u8],
        _: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        if out.is_empty() {
            return Ok(());
        }
        let corrupt = |reason| DecodeError::Corrupt { scheme: self.name(), reason };
        let k = self.share.of(out.len());
        let width = self.values().width();
        let (stored, places) = bytes.split_at(k * width);
        let read = |bytes: &[u8]| self.values().read(bytes);
        let values: Vec<f32> =
            stored.par_chunks_exact(width).with_min_len(LEAST).map(read).collect();
        if !values.par_chunks(PART).all(is_finite)
            && let Some(j) = values.iter().position(|v| !v.is_finite())
        {
            return Err(corrupt(format!("value {j} is {}", values[j])));
        }
        let indices = self.choice.read(out.len(), k, places).map_err(corrupt)?;
        scatter(&indices, &values, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_decimals() {
        let of = |text: &str, n| Share::parse("top_k", text).unwrap().of(n);
        assert_eq!([of("1%", 1000), of("1%", 1001), of("1%", 1), of("1%", 0)], [10, 11, 1, 0]);
        assert_eq!([of("0.1%", 1000), of("0.3%", 1000), of("0.7%", 3000)], [1, 3, 21]);
        assert_eq!([of("0.000001%", 100_000_000), of("100%", 7), of(".5%", 400)], [1, 7, 2]);
        assert_eq!([of("100", 1000), of("100", 10)], [100, 10]);
        assert_eq!(of("33.333333%", usize::MAX >> 1), 3_074_457_314_873_685_147);
    }

    #[test]
    fn shares_print_as_they_are_read_and_others_are_refused() {
        for (text, printed) in [("1%", "1%"), ("1.50%", "1.5%"), (".1%", "0.1%"), ("007", "7")] {
            assert_eq!(Share::parse("top_k", text).unwrap().to_string(), printed);
        }
        for text in ["", "0", "0%", "%", "100.1%", "-1", "1e3", "0.0000001%", "x%", "1.2.3%", "0.5"]
        {
            let error = Share::parse("top_k", text);
            assert!(error.is_err(), "{text}: {error:?}");
        }
    }
}
