//! Number formats: one file per family, one row per family in [`FAMILIES`](crate::FAMILIES).
//!
//! A [`Format`] is a finite set of values with a code for each. How a format uses the scale of a group is its own
//! affair: it is given the group's range and answers with [`Params`].

pub(crate) mod bfp;
pub(crate) mod cfloat;
pub(crate) mod float32;
pub(crate) mod integer;
pub(crate) mod minifloat;
pub(crate) mod mx;
pub(crate) mod nvfp4;
mod shared_exponent;
pub(crate) mod table;

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::sync::Arc;

pub use cfloat::{CFloat, Flags};
pub use float32::Float32;
pub use integer::Integer;
pub use minifloat::{Minifloat, Overflow, Top};
pub(crate) use table::{Levels, dynamic8};

use crate::{Range, Rounding, ScaleFormat, pack};

/// Why a head of a known family is no format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadError {
    /// What is wrong.
    pub message: String,
    /// What would be valid.
    pub help: String,
}

/// How the codes of one group become values: `value = (grid(code) - zero) * scale + offset`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// The step between integer codes, or what a float format's values are multiplied by. As stored.
    pub scale: f32,
    /// The code of the value 0 in an affine integer format, else 0.
    pub zero: i32,
    /// What is added after scaling in the min/max variants, else 0.
    pub offset: f32,
}

impl Params {
    /// The parameters of a format that is not scaled.
    pub const UNIT: Params = Params { scale: 1.0, zero: 0, offset: 0.0 };
}

/// Consecutive groups of elements: element `i` belongs to group `i / len`, and the last group may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Groups<'a> {
    /// The parameters of each group.
    pub params: &'a [Params],
    /// Elements of a group.
    pub len: usize,
}

impl<'a> Groups<'a> {
    /// A single group of so many elements.
    pub fn one(params: &'a Params, len: usize) -> Self {
        Self { params: std::slice::from_ref(params), len: len.max(1) }
    }
}

/// Codes, one for each element, as wide as the format needs them.
#[derive(Clone, Copy, Debug)]
pub enum Codes<'a> {
    /// Up to 8 bits.
    Bytes(&'a [u8]),
    /// 9 to 16 bits, little-endian.
    Pairs(&'a [[u8; 2]]),
    /// 17 to 32 bits.
    Words(&'a [u32]),
}

/// Room for [`Codes`].
#[derive(Debug)]
pub enum CodesMut<'a> {
    /// Up to 8 bits.
    Bytes(&'a mut [u8]),
    /// 9 to 16 bits, little-endian.
    Pairs(&'a mut [[u8; 2]]),
    /// 17 to 32 bits.
    Words(&'a mut [u32]),
}

impl CodesMut<'_> {
    /// The same room, for a while.
    pub(crate) fn reborrow(&mut self) -> CodesMut<'_> {
        match self {
            Self::Bytes(codes) => CodesMut::Bytes(codes),
            Self::Pairs(codes) => CodesMut::Pairs(codes),
            Self::Words(codes) => CodesMut::Words(codes),
        }
    }
}

/// Whether groups have a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scaling {
    /// Never (`f32`).
    Never,
    /// Only where the scheme names a granularity or a storage format for scales (small floats).
    OnRequest,
    /// Always (integers).
    Always,
}

/// What a format stores with each group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether there is a scale.
    pub scaling: Scaling,
    /// Bits of the zero point; 0 where there is none.
    pub zero_bits: u32,
    /// Whether an `f32` offset is stored.
    pub offset: bool,
}

/// The facts about a format at scale 1.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Card {
    /// Name, as a scheme string.
    pub name: String,
    /// Bits of one code.
    pub bits: u32,
    /// Exponent bits, for floats.
    pub exponent_bits: Option<u32>,
    /// Stored mantissa bits, for floats.
    pub mantissa_bits: Option<u32>,
    /// Exponent bias, for floats.
    pub bias: Option<i32>,
    /// Smallest finite value.
    pub min: f32,
    /// Largest finite value.
    pub max: f32,
    /// Smallest positive normal value, for floats.
    pub min_normal: Option<f32>,
    /// Smallest positive subnormal value, for floats that have subnormals.
    pub min_subnormal: Option<f32>,
    /// Which of infinity and NaN have codes.
    pub specials: &'static str,
    /// What happens to values beyond the largest: `saturate` or `infinity`, `NaN`.
    pub overflow: &'static str,
    /// The rounding that is used unless the scheme names another.
    pub rounding: &'static str,
    /// One sentence.
    pub about: String,
}

/// A finite set of values, and the code of each.
///
/// [`encode`](Self::encode) and [`decode`](Self::decode) are the readable truth. The `_run` methods work on many
/// elements of one group and may be fast; they give the same bits.
///
/// # Contract
/// - `decode(encode(x))` is the value that emulation gives, for every `x` that the format can hold.
/// - A value that is decoded and encoded again keeps its code's value (idempotence), except under stochastic rounding of inexact scales.
/// - `decode` is total on `0..2^bits`.
pub trait Format: Debug + Send + Sync {
    /// The head of a scheme string that gives this format.
    fn name(&self) -> String;
    /// Bits of one code, 1 to 32.
    fn bits(&self) -> u32;
    /// The identity card.
    fn card(&self) -> Card;
    /// What is stored with each group.
    fn header(&self) -> Header;
    /// The granularity that is meant when the scheme names none.
    fn default_granularity(&self) -> crate::Granularity {
        crate::Granularity::Tensor
    }
    /// The rounding that is meant when the scheme names none.
    fn default_rounding(&self) -> Rounding {
        Rounding::NearestEven
    }
    /// The ways to store a scale, the first being the default.
    fn scales(&self) -> &'static [ScaleFormat] {
        &ScaleFormat::GENERAL
    }
    /// By what a range is divided to become a scale: as a rule the largest value at scale 1.
    fn top(&self) -> f32 {
        self.card().max
    }
    /// Whether a NaN or an infinity makes NaN of its whole group: [`fit`](Self::fit) is given an infinite range then.
    fn spoils_groups(&self) -> bool {
        false
    }
    /// Whether the scale of a group depends on the one it had before; then [`fit_again`](Self::fit_again) is called for
    /// tensors that are remembered.
    fn remembers_scales(&self) -> bool {
        false
    }
    /// The parameters of a group with this range, whose scale was `before` when it was last encoded.
    fn fit_again(&self, range: Range, before: Option<f32>) -> Params {
        let _ = before;
        self.fit(range, self.scales()[0])
    }
    /// Whether NaN has a code.
    fn holds_nan(&self) -> bool;
    /// Whether an infinity can be encoded without complaint: it has a code, or saturates as the format's rule says.
    fn holds_infinity(&self) -> bool {
        self.holds_nan()
    }
    /// The words that this format takes in a scheme, besides the common ones.
    fn words(&self) -> &'static [&'static str] {
        &[]
    }
    /// The format with such a word applied.
    fn with_word(&self, word: &str) -> Option<Arc<dyn Format>> {
        let _ = word;
        None
    }
    /// Whether its words say different things, so that several may stand together.
    fn words_combine(&self) -> bool {
        false
    }
    /// Why the format as it stands cannot be used, if so (said once all words are applied).
    fn complaint(&self) -> Option<HeadError> {
        None
    }
    /// The words in force that are not the default, as they follow the name in a scheme string: `/full`.
    fn suffix(&self) -> String {
        String::new()
    }
    /// The format as its groups have it where they share a scale, if that is another: a value that is finite must stay
    /// so although its scale was rounded. `worded` says whether a word of the format was given.
    fn under_scale(&self, worded: bool) -> Option<Arc<dyn Format>> {
        let _ = worded;
        None
    }
    /// The parameters of a group with this range.
    fn fit(&self, range: Range, store: ScaleFormat) -> Params;
    /// The code of a value. `draw` is the 24-bit random integer of stochastic rounding.
    ///
    /// A NaN that has no code becomes the code of zero; the codec's edge has refused or counted it before.
    fn encode(&self, x: f32, params: &Params, rounding: Rounding, draw: u32) -> u32;
    /// The value of a code; bits above the width are ignored.
    fn decode(&self, code: u32, params: &Params) -> f32;

    /// Rounds the elements of one group to their values in place. `draws` is empty unless `rounding` is stochastic.
    fn quantize_run(&self, x: &mut [f32], params: &Params, rounding: Rounding, draws: &[u32]) {
        quantize_by_definition(self, x, params, rounding, draws);
    }
    /// Rounds consecutive groups of `len` elements to a range of their own each, as far as there is a fast way, and
    /// answers how many elements are done: whole groups, up to the first that is shorter or not finite.
    fn quantize_blocks(
        &self,
        x: &mut [f32],
        len: usize,
        store: ScaleFormat,
        rounding: Rounding,
    ) -> usize {
        let _ = (x, len, store, rounding);
        0
    }
    /// Encodes consecutive groups of `len` elements to nearest, as far as there is a fast way: the bytes of their scales
    /// and their packed codes, if the codes of `len` elements end on a byte. `false` if there is no fast way or a value
    /// is not finite; what was written is then of no use.
    fn encode_blocks(
        &self,
        x: &[f32],
        len: usize,
        store: ScaleFormat,
        scales: &mut [u8],
        packed: &mut [u8],
    ) -> bool {
        let _ = (x, len, store, scales, packed);
        false
    }
    /// Decodes what [`encode_blocks`](Self::encode_blocks) writes, and any other bytes; `false` if there is no fast way.
    fn decode_blocks(
        &self,
        scales: &[u8],
        packed: &[u8],
        len: usize,
        store: ScaleFormat,
        out: &mut [f32],
    ) -> bool {
        let _ = (scales, packed, len, store, out);
        false
    }
    /// Rounds consecutive groups of `len` elements to nearest, each under its scale; where that is 0, to zeros. `false` if
    /// there is no fast way.
    fn quantize_scaled(&self, scales: &[f32], x: &mut [f32], len: usize) -> bool {
        let _ = (scales, x, len);
        false
    }
    /// Packs the codes of consecutive groups of `len` elements to nearest, each under its scale; where that is 0, the codes
    /// of zeros. `false` if there is no fast way.
    fn encode_scaled(&self, scales: &[f32], x: &[f32], len: usize, packed: &mut [u8]) -> bool {
        let _ = (scales, x, len, packed);
        false
    }
    /// Decodes the packed codes of consecutive groups of `len` elements, each under its scale; `false` if there is no fast
    /// way.
    fn decode_scaled(&self, scales: &[f32], packed: &[u8], len: usize, out: &mut [f32]) -> bool {
        let _ = (scales, packed, len, out);
        false
    }
    /// The parameters of many groups, as [`fit`](Self::fit) gives them.
    fn fit_groups(&self, ranges: &[Range], store: ScaleFormat, params: &mut [Params]) {
        for (range, params) in ranges.iter().zip(params) {
            *params = self.fit(range.or_zero(), store);
        }
    }
    /// [`quantize_run`](Self::quantize_run) for consecutive groups.
    fn quantize_groups(&self, x: &mut [f32], groups: Groups, rounding: Rounding, draws: &[u32]) {
        quantize_by_runs(self, x, groups, rounding, draws);
    }
    /// [`encode_run`](Self::encode_run) for consecutive groups, with codes as wide as the format needs them.
    fn encode_groups(
        &self,
        x: &[f32],
        groups: Groups,
        rounding: Rounding,
        draws: &[u32],
        codes: CodesMut,
    ) {
        encode_by_runs(self, x, groups, rounding, draws, codes);
    }
    /// [`decode_run`](Self::decode_run) for consecutive groups.
    fn decode_groups(&self, codes: Codes, groups: Groups, out: &mut [f32]) {
        decode_by_runs(self, codes, groups, out);
    }
    /// The codes of the elements of one group.
    fn encode_run(
        &self,
        x: &[f32],
        params: &Params,
        rounding: Rounding,
        draws: &[u32],
        codes: &mut [u32],
    ) {
        encode_by_definition(self, x, params, rounding, draws, codes);
    }
    /// The values of the codes of one group.
    fn decode_run(&self, codes: &[u32], params: &Params, out: &mut [f32]) {
        decode_by_definition(self, codes, params, out);
    }
    /// The integers that codes stand for, where they do: two's complement if some are negative. A value is then
    /// `(integer - zero) * scale + offset`, and integers that are near each other are values that are.
    fn integers(&self) -> Option<RangeInclusive<i32>> {
        None
    }
    /// Whether the range that [`fit`](Self::fit) needs is only the largest magnitude.
    fn wants_only_amax(&self) -> bool {
        true
    }
}

/// Codes that are held between a run and the room for them.
const PIECE: usize = 256;

/// [`Format::encode_blocks`] for codes of up to eight bits: `encode` fits and encodes a few groups at a time, so that their
/// codes and parameters stay in the cache until they are written; where it answers `false`, so does this.
fn encode_blocks_by(
    bits: u32,
    x: &[f32],
    len: usize,
    store: ScaleFormat,
    scales: &mut [u8],
    packed: &mut [u8],
    encode: impl Fn(&[f32], &mut [Params], &mut [u8]) -> bool,
) -> bool {
    const WINDOW: usize = 1024;
    const SHORTEST: usize = 16;
    // Such lengths end on a byte, whatever the width.
    if bits > 8 || len > WINDOW || !len.is_multiple_of(SHORTEST) || !x.len().is_multiple_of(len) {
        return false;
    }
    let (mut params, mut codes) = ([Params::UNIT; WINDOW / SHORTEST], [0; WINDOW]);
    let count = WINDOW / len;
    let width = scales.len() / (x.len() / len).max(1);
    let windows = x
        .chunks(count * len)
        .zip(scales.chunks_mut(count * width))
        .zip(packed.chunks_mut(count * len / 8 * bits as usize));
    for ((x, scales), packed) in windows {
        let params = &mut params[..x.len() / len];
        if bits == 8 {
            if !encode(x, params, packed) {
                return false;
            }
        } else {
            let codes = &mut codes[..x.len()];
            if !encode(x, params, codes) {
                return false;
            }
            pack::pack_bytes(codes, bits, packed);
        }
        store.write_all(params, scales);
    }
    true
}

/// Rounds groups one run after another.
fn quantize_by_runs<F: Format + ?Sized>(
    format: &F,
    x: &mut [f32],
    groups: Groups,
    rounding: Rounding,
    draws: &[u32],
) {
    for (i, (x, params)) in x.chunks_mut(groups.len).zip(groups.params).enumerate() {
        let at = i * groups.len;
        let draws = draws.get(at..at + x.len()).unwrap_or(&[]);
        format.quantize_run(x, params, rounding, draws);
    }
}

/// Encodes groups one run after another.
fn encode_by_runs<F: Format + ?Sized>(
    format: &F,
    x: &[f32],
    groups: Groups,
    rounding: Rounding,
    draws: &[u32],
    mut codes: CodesMut,
) {
    let mut piece = [0; PIECE];
    for (group, (x, params)) in x.chunks(groups.len).zip(groups.params).enumerate() {
        for (i, x) in x.chunks(PIECE).enumerate() {
            let at = group * groups.len + i * PIECE;
            let at = at..at + x.len();
            let draws = draws.get(at.clone()).unwrap_or(&[]);
            let piece = &mut piece[..x.len()];
            format.encode_run(x, params, rounding, draws, piece);
            let piece = piece.iter().map(|code| code.to_le_bytes());
            match &mut codes {
                CodesMut::Bytes(out) => {
                    out[at].iter_mut().zip(piece).for_each(|(out, [low, ..])| *out = low);
                }
                CodesMut::Pairs(out) => {
                    out[at].iter_mut().zip(piece).for_each(|(out, [a, b, ..])| *out = [a, b]);
                }
                CodesMut::Words(out) => {
                    out[at].iter_mut().zip(piece).for_each(|(out, c)| *out = u32::from_le_bytes(c));
                }
            }
        }
    }
}

/// Decodes groups one run after another.
fn decode_by_runs<F: Format + ?Sized>(format: &F, codes: Codes, groups: Groups, out: &mut [f32]) {
    let mut piece = [0; PIECE];
    for (group, (out, params)) in out.chunks_mut(groups.len).zip(groups.params).enumerate() {
        for (i, out) in out.chunks_mut(PIECE).enumerate() {
            let at = group * groups.len + i * PIECE;
            let at = at..at + out.len();
            let piece = &mut piece[..out.len()];
            match codes {
                Codes::Bytes(x) => {
                    piece.iter_mut().zip(&x[at]).for_each(|(code, x)| *code = (*x).into());
                }
                Codes::Pairs(x) => piece
                    .iter_mut()
                    .zip(&x[at])
                    .for_each(|(code, x)| *code = u16::from_le_bytes(*x).into()),
                Codes::Words(x) => piece.copy_from_slice(&x[at]),
            }
            format.decode_run(piece, params, out);
        }
    }
}

/// `decode(encode(x))`, element by element: the truth beside every fast path.
pub(crate) fn quantize_by_definition<F: Format + ?Sized>(
    format: &F,
    x: &mut [f32],
    params: &Params,
    rounding: Rounding,
    draws: &[u32],
) {
    for (i, v) in x.iter_mut().enumerate() {
        let draw = draws.get(i).copied().unwrap_or(0);
        *v = format.decode(format.encode(*v, params, rounding, draw), params);
    }
}

/// The codes of values, element by element.
pub(crate) fn encode_by_definition<F: Format + ?Sized>(
    format: &F,
    x: &[f32],
    params: &Params,
    rounding: Rounding,
    draws: &[u32],
    codes: &mut [u32],
) {
    for (i, (v, code)) in x.iter().zip(codes).enumerate() {
        let draw = draws.get(i).copied().unwrap_or(0);
        *code = format.encode(*v, params, rounding, draw);
    }
}

/// The values of codes, element by element.
pub(crate) fn decode_by_definition<F: Format + ?Sized>(
    format: &F,
    codes: &[u32],
    params: &Params,
    out: &mut [f32],
) {
    for (code, v) in codes.iter().zip(out) {
        *v = format.decode(*code, params);
    }
}

/// Keeps a decoded value finite: a scale near the top of `f32` can push the product past it.
#[inline(always)]
pub(crate) fn finite(x: f32) -> f32 {
    x.clamp(-f32::MAX, f32::MAX)
}
