//! Codecs: how a tensor becomes bytes. One file for each way; [`FAMILIES`](crate::families::FAMILIES) lists them.
//!
//! Most number formats are elements of `Scaled`: codes of a fixed width under a scale for each group. What needs
//! other statistics, or bytes whose number depends on the values, is a codec of its own.

pub(crate) mod bands;
mod batch_norm;
pub(crate) mod binary;
mod blocks;
mod error;
pub(crate) mod flexpoint;
pub(crate) mod gguf;
mod integers;
mod levels;
pub(crate) mod onebit;
mod places;
pub(crate) mod random_k;
pub(crate) mod s2fp8;
mod scaled;
mod select;
pub(crate) mod sign;
pub(crate) mod smaq;
mod sparse;
mod staged;
pub(crate) mod ternary;
pub(crate) mod terngrad;
pub(crate) mod top_k;

use std::fmt::{self, Debug};
use std::ops::Range;
use std::sync::Arc;

pub use batch_norm::BatchNormAware;
pub use error::{DecodeError, EncodeError, Tally};
pub use flexpoint::Autoflex;
pub use integers::{Factors, IntegerCodes, Integers, Width};
pub(crate) use scaled::Scaled;
pub(crate) use staged::Staged;

use crate::formats::{Card, Format, HeadError, Scaling};
use crate::granularity::{Layout, elems};
use crate::{Granularity, Memory, NonFinite, Rounding, ScaleFormat, ShapeError, Stream};

/// What the words of a scheme that mean the same everywhere have said.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// Which elements share a scale, or whatever else a codec keeps for a group.
    pub granularity: Granularity,
    /// Whether all axes but the first are taken as one.
    pub matrix: bool,
    /// How a scale is stored. `None`: there is none, and values are codes as they are.
    pub scale: Option<ScaleFormat>,
    /// How a value between two codes is rounded.
    pub rounding: Rounding,
    /// What happens to NaN and infinity.
    pub nonfinite: NonFinite,
    /// By how many earlier tensors a scale goes that is remembered, instead of by its own.
    pub delayed: Option<u16>,
}

impl Terms {
    /// How a tensor of this shape falls into groups.
    pub(crate) fn layout(&self, shape: &[usize]) -> Result<Layout, ShapeError> {
        match (self.matrix, shape) {
            // The elements are counted first: a product of parts may overflow where the whole is empty.
            (true, [rows, rest @ ..]) if rest.len() > 1 && elems(shape)? > 0 => {
                self.granularity.layout(&[*rows, rest.iter().product()])
            }
            _ => self.granularity.layout(shape),
        }
    }
}

/// Which of the common words a codec takes, and what it means without them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Whether there are groups with parameters; [`Scaling::Never`] takes no granularity.
    pub scaling: Scaling,
    /// The granularity that is meant when the scheme names none.
    pub granularity: Granularity,
    /// The ways to store a scale, the first being the default. Where there is no choice, none.
    pub scales: &'static [ScaleFormat],
    /// The rounding that is meant when the scheme names none; `None`: there is nothing to choose.
    pub rounding: Option<Rounding>,
}

/// How many bytes a tensor takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Size {
    /// No tensor of the shape takes less.
    pub least: usize,
    /// None takes more.
    pub most: usize,
}

impl Size {
    /// The size of a tensor whose values do not matter.
    pub fn fixed(bytes: usize) -> Self {
        Self { least: bytes, most: bytes }
    }

    /// The size, where it does not depend on the values.
    pub fn exact(self) -> Option<usize> {
        (self.least == self.most).then_some(self.least)
    }

    /// Whether so many bytes are possible.
    pub fn contains(self, bytes: usize) -> bool {
        (self.least..=self.most).contains(&bytes)
    }
}

/// Prints `8`, or `8 to 12`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exact() {
            Some(bytes) => write!(f, "{bytes}"),
            None => write!(f, "{} to {}", self.least, self.most),
        }
    }
}

/// A tensor on its way to bytes, and what goes with it.
#[derive(Debug)]
pub struct Job<'a> {
    /// What the scheme said.
    pub terms: &'a Terms,
    /// The tensor's shape; its elements are in row-major order.
    pub shape: &'a [usize],
    /// Random numbers, for codecs that draw.
    pub stream: &'a Stream,
    /// What the codec remembers of this tensor, for codecs that do; without it every tensor is the first.
    pub memory: Option<&'a mut Memory>,
    /// The scheme as a string, for errors.
    pub scheme: &'a str,
}

/// A way to turn a tensor into bytes and back.
///
/// # Contract
/// - `emulate(x)` gives what `decode(encode(x))` gives, bit for bit, with any number of threads.
/// - `encode` appends a number of bytes that [`size`](Self::size) contains, and nothing if it fails.
/// - `decode` returns for any bytes, and takes no memory that the shape does not pay for.
/// - The caller has checked that slices are as long as the shape says and that `size` contains the number of bytes.
pub trait Codec: Debug + Send + Sync {
    /// The head of a scheme string that gives this codec.
    fn name(&self) -> String;
    /// The words in force that are not the default, as they follow the name in a scheme string: `/full`.
    fn suffix(&self) -> String {
        String::new()
    }
    /// The identity card.
    fn card(&self) -> Card;
    /// Which of the common words it takes.
    fn defaults(&self) -> Defaults;
    /// The words that it takes besides the common ones.
    fn words(&self) -> &'static [&'static str] {
        &[]
    }
    /// The codec with such a word applied: `None` if it is no word of this codec, an error if it cannot be here.
    fn with_word(&self, word: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let _ = word;
        None
    }
    /// Whether a word of [`STAGES`](crate::STAGES) may follow.
    fn takes_stages(&self) -> bool {
        false
    }
    /// Whether its scales can be those of earlier tensors (`delayed:N`).
    fn takes_history(&self) -> bool {
        false
    }
    /// Why the codec as it stands cannot be used, if so (said once all words are applied).
    fn complaint(&self) -> Option<HeadError> {
        None
    }
    /// The codec as it is where the scheme asks for scales, if that is another.
    fn under_scale(&self) -> Option<Arc<dyn Codec>> {
        None
    }
    /// Whether NaN can be encoded.
    fn holds_nan(&self) -> bool {
        false
    }
    /// Whether an infinity can be encoded without complaint: it has a code, or saturates as the format's rule says.
    fn holds_infinity(&self) -> bool {
        false
    }
    /// The format of the elements, where elements have one.
    fn format(&self) -> Option<&dyn Format> {
        None
    }
    /// How many groups a tensor of this shape has, for codecs with groups.
    ///
    /// # Errors
    /// If the scheme does not fit the shape.
    fn groups(&self, terms: &Terms, shape: &[usize]) -> Result<usize, ShapeError> {
        Ok(terms.layout(shape)?.groups())
    }
    /// The scales that a tensor would get by itself, one for each group, where workers can agree on others; else none.
    ///
    /// # Errors
    /// If the codec cannot hold a value.
    fn scales(&self, job: Job, x: &[f32]) -> Result<Vec<f32>, EncodeError> {
        let _ = (job, x);
        Ok(Vec::new())
    }
    /// What a new tensor of this shape is remembered by, for codecs with a memory.
    ///
    /// # Errors
    /// If the scheme does not fit the shape.
    fn memory(&self, terms: &Terms, shape: &[usize]) -> Result<Option<Memory>, ShapeError> {
        let _ = (terms, shape);
        Ok(None)
    }
    /// How many bytes a tensor of this shape takes.
    ///
    /// # Errors
    /// If the scheme does not fit the shape.
    fn size(&self, terms: &Terms, shape: &[usize]) -> Result<Size, ShapeError>;
    /// Rounds a tensor to the values that its bytes would hold.
    ///
    /// # Errors
    /// If the codec cannot hold a value.
    fn emulate(&self, job: Job, x: &mut [f32]) -> Result<Tally, EncodeError>;
    /// Appends the bytes of a tensor.
    ///
    /// # Errors
    /// If the codec cannot hold a value.
    fn encode(&self, job: Job, x: &[f32], out: &mut Vec<u8>) -> Result<Tally, EncodeError>;
    /// Turns bytes back into values.
    ///
    /// # Errors
    /// If the bytes are not what this codec writes for this shape.
    fn decode(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError>;
    /// Decodes the elements `range` alone; `out` is as long. The caller has checked that the shape has them.
    ///
    /// The default decodes all; codecs whose bytes can be entered anywhere read no more than they need, and may not
    /// notice what is wrong elsewhere.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    fn decode_range(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        range: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        let mut all = vec![0.0; elems(shape)?];
        self.decode(terms, bytes, shape, &mut all)?;
        out.copy_from_slice(&all[range]);
        Ok(())
    }
    /// The codes that bytes hold, one for each element; `None` where elements have no codes of one width.
    ///
    /// # Errors
    /// If the bytes are not what this codec writes for this shape.
    fn codes(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
    ) -> Result<Option<Vec<u32>>, DecodeError> {
        let _ = (terms, bytes, shape);
        Ok(None)
    }
    /// What the elements are as factors of a product.
    fn factors(&self, terms: &Terms) -> Factors {
        let _ = terms;
        Factors::default()
    }
    /// The integers that bytes hold, where [`factors`](Self::factors) says that there are any.
    ///
    /// # Errors
    /// If the bytes are not what this codec writes for this shape.
    fn integers<'a>(
        &self,
        terms: &Terms,
        bytes: &'a [u8],
        shape: &[usize],
    ) -> Result<Option<Integers<'a>>, DecodeError> {
        let _ = (terms, bytes, shape);
        Ok(None)
    }
    /// How many values of `x`, whose encoding `bytes` is, lie beyond the outermost values that their group's codes
    /// reach, by more than rounding takes; `None` where that means nothing to the codec.
    ///
    /// NaN is not counted; an infinity is.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    fn saturated(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        x: &[f32],
    ) -> Result<Option<u64>, DecodeError> {
        let _ = (terms, bytes, shape, x);
        Ok(None)
    }
    /// Fills `out`, which is as long as the tensor, with the smallest positive value that each element's codes offer
    /// beside what the bytes store for its group; 0 where they offer none.
    ///
    /// The default knows no codes, and takes the smallest positive value that the bytes hold for all elements.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    fn smallest(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        self.decode(terms, bytes, shape, out)?;
        let positive = out.iter().copied().filter(|v| *v > 0.0);
        let least = positive.min_by(f32::total_cmp).unwrap_or(0.0);
        out.fill(least);
        Ok(())
    }
}
