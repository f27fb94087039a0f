//! Stages: what may follow the codes of a tensor, to make fewer bytes of them. One file and one row for each.
//!
//! A stage is a word of a scheme: `int8/nnw`, `int8/bdi`, `int4/group:32/rans`. It takes the packed stream of codes that
//! a codec has written, whatever the codes mean, and gives another stream that is never longer than the first by more
//! than a few bytes. Scales, offsets and zero points stay as they are. [`STAGES`] lists them all.
//!
//! Bytes of a staged tensor, all little-endian, each part only where there is something of it:
//!
//! | part | bytes |
//! |---|---|
//! | scales, offsets, zero points | as without the stage |
//! | length of the model, for stages that have one | 2 |
//! | the model, which all chunks share | as said |
//! | length of each chunk but the last | 4 each |
//! | chunks of [`CHUNK_ELEMS`] codes, the last with what is left | as said |
//!
//! A chunk whose length is that of its packed codes holds these; a chunk that a stage wrote is shorter. Chunks know
//! nothing of each other, so all threads work on them and any one can be read by itself. Where a stage gains nothing on
//! the whole tensor, the model is empty and every chunk is packed codes.

pub(crate) mod bdi;
mod bits;
pub(crate) mod nnw;
pub(crate) mod rans;

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::formats::HeadError;
use crate::{Rounding, Stream};

/// Every stage, in the order of the tables.
pub static STAGES: &[&dyn StageFamily] = &[&nnw::NnwFamily, &bdi::BdiFamily, &rans::RansFamily];

/// How many codes a chunk holds: a whole number of blocks and cache lines, at any width of a code.
pub const CHUNK_ELEMS: usize = 16 * 1024;

/// A family of stages: it reads the word of a scheme string.
pub trait StageFamily: Sync {
    /// How its words are written, e.g. `bdi[:BYTES]`.
    fn syntax(&self) -> &'static str;
    /// One sentence on it.
    fn about(&self) -> &'static str;
    /// Members that tables list and tests run, as words; the first is the stage without options.
    fn members(&self) -> &'static [&'static str];
    /// The papers that it follows, in Markdown.
    fn source(&self) -> &'static str;
    /// What the bytes of a chunk mean, and of a model where there is one, in Markdown.
    fn layout(&self) -> &'static str;
    /// Reads a word: `None` if it is not of this family, an error if it is but cannot be.
    fn parse(&self, word: &str) -> Option<Result<Arc<dyn Stage>, HeadError>>;
}

/// The stage that a word means, `None` if it means none.
pub(crate) fn parse(word: &str) -> Option<Result<Arc<dyn Stage>, HeadError>> {
    STAGES.iter().find_map(|family| family.parse(word))
}

/// What the codes of a stream are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alphabet {
    /// Bits of one code, 1 to 32.
    pub bits: u32,
    /// The integers that codes stand for, two's complement where some are negative; `None` where codes are no integers.
    pub integers: Option<RangeInclusive<i32>>,
}

/// What a stage may know of a tensor before it compresses the first chunk.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What the codes are.
    pub alphabet: &'a Alphabet,
    /// All codes, packed.
    pub packed: &'a [u8],
    /// How many codes there are.
    pub count: usize,
    /// How a stage that may lose something rounds.
    pub rounding: Rounding,
    /// Random numbers; element `i` of the tensor has drawn number `i` already, and any beyond `count` are free.
    pub stream: &'a Stream,
}

/// Consecutive codes of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The index of the first code in the tensor.
    pub first: usize,
    /// How many there are.
    pub count: usize,
    /// The code that means zero, for each element; empty where that is code 0 everywhere.
    pub zeros: &'a [i32],
}

/// A lossless, or nearly lossless, way to write a stream of codes of a fixed width in fewer bytes.
///
/// # Contract
/// - What a [`Writer`] makes of a chunk, the [`Reader`] for the same alphabet and model turns back into codes of the
///   alphabet: the same codes if the stage is [`lossless`](Self::lossless).
/// - The same source gives the same bytes, whatever the number of threads.
/// - A reader returns for any bytes and any model.
pub trait Stage: Debug + Send + Sync {
    /// The word of a scheme string that gives this stage.
    fn word(&self) -> String;
    /// Whether codes come back as they were.
    fn lossless(&self) -> bool {
        true
    }
    /// Why the stage cannot follow such codes, if so.
    fn complaint(&self, alphabet: &Alphabet) -> Option<HeadError> {
        let _ = alphabet;
        None
    }
    /// Whether chunks share a model, which is stored once.
    fn has_model(&self) -> bool {
        false
    }
    /// What compresses the chunks of a tensor.
    fn writer<'a>(&'a self, source: Source<'a>) -> Box<dyn Writer + 'a>;
    /// What turns chunks back, given the model that the writer had.
    ///
    /// # Errors
    /// What is wrong with the model.
    fn reader<'a>(
        &'a self,
        alphabet: &'a Alphabet,
        model: &[u8],
    ) -> Result<Box<dyn Reader + 'a>, &'static str>;
}

/// Compresses the chunks of one tensor.
pub trait Writer: Sync {
    /// What readers need beside a chunk, at most 65535 bytes.
    fn model(&self) -> &[u8] {
        &[]
    }
    /// Appends the bytes of a chunk, given its packed codes.
    fn compress(&self, chunk: Chunk, packed: &[u8], out: &mut Vec<u8>);
}

/// Turns the chunks of one tensor back into packed codes.
pub trait Reader: Sync {
    /// Fills the packed codes of a chunk.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    fn decompress(&self, chunk: Chunk, bytes: &[u8], packed: &mut [u8])
    -> Result<(), &'static str>;
}

/// The error of an option that a stage does not take.
fn wrong(word: &str, message: &str, help: &str) -> HeadError {
    HeadError { message: format!("`{word}`: {message}"), help: help.into() }
}

/// Bits that a code takes on average if each is written by how often it occurs and by nothing else: the entropy of order
/// 0, `sum p log2(1/p)`. No coder that takes codes one by one does better, model not counted. 0 for no codes.
///
/// # Source
/// Shannon 1948, "A Mathematical Theory of Communication", section 6.
pub fn entropy_bits(codes: &[u32]) -> f64 {
    let mut sorted = codes.to_vec();
    sorted.sort_unstable();
    let total = codes.len() as f64;
    let information = sorted.chunk_by(|a, b| a == b).map(|equal| {
        let count = equal.len() as f64;
        count * (total / count).log2()
    });
    information.sum::<f64>() / total.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_that_of_counts() {
        assert_eq!(entropy_bits(&[]), 0.0);
        assert_eq!(entropy_bits(&[7; 9]), 0.0);
        assert_eq!(entropy_bits(&[0, 1, 2, 3]), 2.0);
        assert_eq!(entropy_bits(&[0, 0, 9, 1 << 31]), 1.5);
    }

    #[test]
    fn members_are_read_and_printed_as_themselves() {
        for family in STAGES {
            for member in family.members() {
                assert_eq!(parse(member).unwrap().unwrap().word(), *member);
            }
        }
        assert!(parse("channel").is_none());
    }
}
