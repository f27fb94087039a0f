//! `nnw`: NNW-BDI, base-delta-immediate compression of quantized weights, block by block in bits.
//!
//! A block of 64 integers is stored as short signed differences from a few bases, one of which is always zero. The
//! integer of an element is its code less the code that means zero; codes that are no integers are taken as two's
//! complement numbers.
//!
//! Words: `nnw[:N][:siI][:sbB][:sdD][:first]`.
//!
//! | word | meaning | default |
//! |---|---|---|
//! | `N` | elements of a block, a multiple of 8 | 64 |
//! | `si` | initial shift: integers are rounded to multiples of `2^si` first | 0 |
//! | `sb` | base shift: bases are multiples of `2^sb` | 0 |
//! | `sd` | delta shift: differences are rounded to multiples of `2^sd` | 0 |
//! | `first` | bases are the first integers that no base covers | the fewest bases that cover all |
//!
//! With `si` and `sd` zero the stage is lossless; `sb` alone only saves bits of bases. An initial shift moves an integer
//! by at most half of `2^si`, and a delta shift by at most half of `2^(si+sd)` more; by less than all of it where the
//! scheme does not round to nearest. Results stay within the codes of the format, and differences never saturate: a
//! block whose differences do not fit is stored in another form.
//!
//! # Bytes
//! See [`StageFamily::layout`].
//!
//! # Source
//! Formats and downscaling after NNW-BDI (MEMSYS 2020) and its program libbdi; the cache's compression after Pekhimenko
//! et al. 2012, "Base-Delta-Immediate Compression", PACT. Differs: differences are signed; the form, the selectors and
//! the bits of zeros are stored and counted; sixteen forms with widths that follow the width of a code, because bases 0
//! to 3 with 2 to 6 bits and the three special forms are more than four bits can name, and because wide differences are
//! what real weights of 8 bits need; bases are not drawn at random but chosen by stabbing intervals from the left, which
//! gives the least number of bases that covers a block.

use std::fmt::Write as _;
use std::sync::Arc;

use super::bits::{BitReader, BitWriter, extend, mask};
use super::{Alphabet, Chunk, Reader, Source, Stage, StageFamily, Writer, wrong};
use crate::formats::HeadError;
use crate::{Rounding, pack};

const PLAIN: u32 = 0;
const ZEROS: u32 = 1;
const REPEATED: u32 = 2;
const FIRST_FORM: u32 = 3;
const FORM_BITS: u32 = 4;
/// How many bases a form has beside zero, and how much narrower than the widest its differences are.
const FORMS: [(usize, u32); 13] = [
    (0, 0),
    (0, 1),
    (0, 2),
    (0, 3),
    (0, 4),
    (1, 0),
    (1, 1),
    (1, 2),
    (1, 3),
    (3, 1),
    (3, 2),
    (3, 3),
    (3, 4),
];
const MOST_BASES: usize = 3;
const WIDTHS: usize = 5;
const MOST_BLOCK: usize = 1024;
/// The widest codes: differences of the integers fit in 32 bits.
const MOST_BITS: u32 = 24;

/// The paper, for the book.
const SOURCE: &str = "\
NNW-BDI, MEMSYS 2020, and its program libbdi; Pekhimenko et al. 2012, Base-Delta-Immediate Compression, PACT";

/// The bytes of a chunk, for the book.
const LAYOUT: &str = "\
A chunk is a stream of bits, little-endian, of its blocks; the last block may be short. Let `k` be the bits of a
code, `B` the elements of the block, and `z` the code that means zero for an element.

| field | bits |
|---|---|
| form | 4 |
| form 0, plain: each integer | `e` each |
| form 1, all zero | none |
| form 2, one integer repeated | `e` |
| forms 3 to 15: whether zeros are stored apart | 1 |
| if so: for each element, whether it is not zero | `B` |
| the bases, ascending, then zeros where fewer are needed, less their `sb` low bits | `n (r - sb)` |
| for each element (not zero, where zeros are apart): which base, 0 being zero | `ceil(log2(n + 1))` each |
| ... followed by the difference, less its `sd` low bits | `w` each |

Integers are stored less their `si` low bits. Without initial shift `e = k`, and integers are taken modulo `2^k`: a
reader adds `z` and drops what is above. With it `e` is `k + 1 - si`, one more where codes have no sign. `r`, the
bits of a base, is `k` without initial shift, one more where codes have no sign, and `e` with one. What a reader
finds plus `z` is clamped to the codes of the format. Let `t` be `k - 1`, or `k - si - sd` if that differs from `k`;
then forms 3 to 7 have `n = 0` and `w = t ... t-4`, forms 8 to 11 `n = 1` and `w = t ... t-3`, forms 12 to 15
`n = 3` and `w = t-1 ... t-4`, as far as `w` is at least 1. The form with the fewest bits is taken, the first of
those that are equal, and zeros are stored apart where that takes fewer bits.";

/// `nnw` with its options.
pub(crate) struct NnwFamily;

impl StageFamily for NnwFamily {
    fn syntax(&self) -> &'static str {
        "nnw[:N][:siI][:sbB][:sdD][:first]"
    }

    fn about(&self) -> &'static str {
        "NNW-BDI: blocks of integers as differences from zero and up to three bases; lossy with the shifts `si` and `sd`"
    }

    fn members(&self) -> &'static [&'static str] {
        &["nnw", "nnw:first", "nnw:16", "nnw:128:sb1", "nnw:sd1", "nnw:si1:sd1"]
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, word: &str) -> Option<Result<Arc<dyn Stage>, HeadError>> {
        let mut parts = word.split(':');
        if parts.next() != Some("nnw") {
            return None;
        }
        Some(Nnw::parse(word, parts).map(|nnw| Arc::new(nnw) as Arc<dyn Stage>))
    }
}

/// The stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Nnw {
    block_elems: usize,
    initial_shift: u32,
    base_shift: u32,
    delta_shift: u32,
    first_uncovered: bool,
}

impl Nnw {
    const DEFAULT: Nnw = Nnw {
        block_elems: 64,
        initial_shift: 0,
        base_shift: 0,
        delta_shift: 0,
        first_uncovered: false,
    };

    fn parse<'a>(word: &str, options: impl Iterator<Item = &'a str>) -> Result<Self, HeadError> {
        const HELP: &str = "for example `nnw`, `nnw:32`, `nnw:sd2` or `nnw:first`";
        let mut nnw = Self::DEFAULT;
        let mut said = [false; 5];
        for option in options {
            let (place, number) = match option {
                "first" => (4, "1"),
                _ => match option.split_at_checked(2) {
                    Some(("si", n)) => (1, n),
                    Some(("sb", n)) => (2, n),
                    Some(("sd", n)) => (3, n),
                    _ => (0, option),
                },
            };
            let digits = number.bytes().all(|b| b.is_ascii_digit());
            let number = number.parse::<u32>().ok().filter(|_| digits);
            let number = number
                .ok_or_else(|| wrong(word, "there is an option that does not exist", HELP))?;
            if std::mem::replace(&mut said[place], true) {
                return Err(wrong(word, "an option is said twice", "keep one of the two"));
            }
            match place {
                0 => nnw.block_elems = number as usize,
                1 => nnw.initial_shift = number,
                2 => nnw.base_shift = number,
                3 => nnw.delta_shift = number,
                _ => nnw.first_uncovered = true,
            }
        }
        if !nnw.block_elems.is_multiple_of(8) || !(8..=MOST_BLOCK).contains(&nnw.block_elems) {
            return Err(wrong(word, "a block has 8 to 1024 elements, a multiple of 8", HELP));
        }
        Ok(nnw)
    }

    fn code<'a>(&self, alphabet: &'a Alphabet) -> Code<'a> {
        let bits = alphabet.bits;
        let half = 1i32 << (bits.min(MOST_BITS) - 1);
        let (low, high) = match &alphabet.integers {
            Some(integers) => (*integers.start(), *integers.end()),
            None => (-half, half - 1),
        };
        let Self { initial_shift, base_shift, delta_shift, .. } = *self;
        let unsigned = u32::from(low >= 0);
        let (plain_bits, reach) = if initial_shift == 0 {
            (bits, bits + unsigned)
        } else {
            let bits = (bits + 1 + unsigned).saturating_sub(initial_shift);
            (bits, bits)
        };
        let widest = match initial_shift + delta_shift {
            0 => bits - 1,
            shift => bits.saturating_sub(shift),
        };
        let widths = std::array::from_fn(|j| widest.saturating_sub(u32::try_from(j).unwrap_or(0)));
        let base_bits = reach.saturating_sub(base_shift);
        Code { nnw: *self, alphabet, low, high, plain_bits, reach, base_bits, widths }
    }
}

impl Stage for Nnw {
    fn word(&self) -> String {
        let mut word = String::from("nnw");
        if self.block_elems != Self::DEFAULT.block_elems {
            let _ = write!(word, ":{}", self.block_elems);
        }
        let shifts =
            [("si", self.initial_shift), ("sb", self.base_shift), ("sd", self.delta_shift)];
        for (name, shift) in shifts.into_iter().filter(|(_, shift)| *shift > 0) {
            let _ = write!(word, ":{name}{shift}");
        }
        if self.first_uncovered {
            word += ":first";
        }
        word
    }

    fn lossless(&self) -> bool {
        self.initial_shift == 0 && self.delta_shift == 0
    }

    fn complaint(&self, alphabet: &Alphabet) -> Option<HeadError> {
        let bits = alphabet.bits;
        let refuse = |message: String, help: &str| Some(HeadError { message, help: help.into() });
        if bits > MOST_BITS {
            return refuse(
                format!("`nnw` takes codes of up to {MOST_BITS} bits, and these have {bits}"),
                "`rans` takes any width",
            );
        }
        if !self.lossless() && alphabet.integers.is_none() {
            return refuse(
                "the shifts `si` and `sd` round integers, and these codes are none".into(),
                "leave them out, or use an integer format such as `int8`",
            );
        }
        let [initial, base, delta] = [self.initial_shift, self.base_shift, self.delta_shift];
        let far = initial.saturating_add(base.max(delta));
        if far > 0 && far >= bits {
            return refuse(
                format!("codes of {bits} bits cannot be shifted so far"),
                "`si` and the larger of `sb` and `sd` together must be fewer bits than a code has",
            );
        }
        None
    }

    fn writer<'a>(&'a self, source: Source<'a>) -> Box<dyn Writer + 'a> {
        Box::new(NnwWriter { code: self.code(source.alphabet), source })
    }

    fn reader<'a>(
        &'a self,
        alphabet: &'a Alphabet,
        _: &[u8],
    ) -> Result<Box<dyn Reader + 'a>, &'static str> {
        Ok(Box::new(self.code(alphabet)))
    }
}

/// The stage for codes of an alphabet.
#[derive(Clone, Debug)]
struct Code<'a> {
    nnw: Nnw,
    alphabet: &'a Alphabet,
    /// The smallest code as an integer.
    low: i32,
    /// The largest.
    high: i32,
    /// Bits of an integer in a plain block.
    plain_bits: u32,
    /// Bits that any integer has.
    reach: u32,
    /// Bits of a stored base.
    base_bits: u32,
    /// The widths of differences, widest first; 0 where there is none.
    widths: [u32; WIDTHS],
}

/// The bases that cover a block under differences of one width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cover {
    bases: [i32; MOST_BASES],
    count: usize,
}

/// Bits of a selector among zero and so many bases.
fn selector_bits(bases: usize) -> u32 {
    (bases + 1).next_power_of_two().trailing_zeros()
}

impl Code<'_> {
    /// How far below and above a base its differences of a width reach.
    fn span(&self, width: u32) -> (i32, i32) {
        let half = 1 << (width - 1);
        (half << self.nnw.delta_shift, (half - 1) << self.nnw.delta_shift)
    }

    /// The base for an integer at the left end of what it is to cover.
    fn base_above(&self, v: i32, below: i32) -> i32 {
        let largest = (1 << (self.reach - 1)) - 1;
        (v + below).min(largest) >> self.nnw.base_shift << self.nnw.base_shift
    }

    /// The fewest bases that cover a block, if three are enough. `next` gives the least integer of the block from one on.
    fn stab(&self, width: u32, next: impl Fn(i32) -> Option<i32>) -> Option<Cover> {
        let (below, above) = self.span(width);
        let mut cover = Cover::default();
        let mut from = i32::MIN;
        while let Some(v) = next(from) {
            if (-below..=above).contains(&v) {
                from = above + 1;
                continue;
            }
            if cover.count == MOST_BASES {
                return None;
            }
            let base = self.base_above(v, below);
            // A coarse base may end before the integer that it is for.
            if base + above < v {
                return None;
            }
            cover.bases[cover.count] = base;
            cover.count += 1;
            from = base + above + 1;
        }
        Some(cover)
    }

    /// The first integers that no base covers, ascending, if three are enough.
    fn first_uncovered(&self, width: u32, block: &[i32]) -> Option<Cover> {
        let (below, above) = self.span(width);
        let mut cover = Cover::default();
        for &v in block {
            let covered = |base: &i32| (-below..=above).contains(&(v - base));
            if covered(&0) || cover.bases[..cover.count].iter().any(covered) {
                continue;
            }
            if cover.count == MOST_BASES {
                return None;
            }
            let base = v >> self.nnw.base_shift << self.nnw.base_shift;
            if !covered(&base) {
                return None;
            }
            cover.bases[cover.count] = base;
            cover.count += 1;
        }
        cover.bases[..cover.count].sort_unstable();
        Some(cover)
    }

    /// The bases that cover a block for each width, where there are some.
    fn covers(&self, block: &[i32], scratch: &mut Vec<i32>) -> [Option<Cover>; WIDTHS] {
        let each = |cover: &dyn Fn(u32) -> Option<Cover>| {
            self.widths.map(|width| if width == 0 { None } else { cover(width) })
        };
        if self.nnw.first_uncovered {
            return each(&|width| self.first_uncovered(width, block));
        }
        if self.reach <= Present::BITS {
            let present = Present::of(block);
            return each(&|width| self.stab(width, |from| present.next(from)));
        }
        scratch.clear();
        scratch.extend_from_slice(block);
        scratch.sort_unstable();
        let sorted = &scratch[..];
        each(&|width| {
            self.stab(width, |from| sorted.get(sorted.partition_point(|v| *v < from)).copied())
        })
    }

    /// Bits of a block in a form, without those that name it, and whether zeros are stored apart.
    fn cost(&self, bases: usize, width: u32, elems: usize, nonzero: usize) -> (usize, bool) {
        let each = (selector_bits(bases) + width) as usize;
        let (together, apart) = (elems * each, elems + nonzero * each);
        (1 + bases * self.base_bits as usize + together.min(apart), apart < together)
    }

    fn compress_block(
        &self,
        block: &[i32],
        rounded: impl Fn(usize, i32) -> i32,
        scratch: &mut Vec<i32>,
        out: &mut BitWriter,
    ) {
        let first = block.first().copied().unwrap_or(0);
        if block.iter().all(|v| *v == first) {
            if first == 0 {
                return out.put(ZEROS, FORM_BITS);
            }
            out.put(REPEATED, FORM_BITS);
            return out.put(first.cast_unsigned() & mask(self.plain_bits), self.plain_bits);
        }
        let nonzero = block.iter().filter(|v| **v != 0).count();
        let covers = self.covers(block, scratch);
        let mut best = None;
        let mut least = block.len() * self.plain_bits as usize;
        for (form, (bases, narrower)) in (FIRST_FORM..).zip(FORMS) {
            let Some(cover) = covers[narrower as usize].filter(|c| c.count <= bases) else {
                continue;
            };
            let width = self.widths[narrower as usize];
            let (cost, apart) = self.cost(bases, width, block.len(), nonzero);
            if cost < least {
                (best, least) = (Some((form, bases, width, cover, apart)), cost);
            }
        }
        let Some((form, bases, width, cover, apart)) = best else {
            out.put(PLAIN, FORM_BITS);
            for v in block {
                out.put(v.cast_unsigned() & mask(self.plain_bits), self.plain_bits);
            }
            return;
        };
        out.put(form, FORM_BITS);
        out.put(u32::from(apart), 1);
        if apart {
            for v in block {
                out.put(u32::from(*v != 0), 1);
            }
        }
        for base in &cover.bases[..bases] {
            let base = base >> self.nnw.base_shift;
            out.put(base.cast_unsigned() & mask(self.base_bits), self.base_bits);
        }
        let (below, above) = self.span(width);
        let selector = selector_bits(bases);
        let bits = selector + width;
        for (i, &v) in block.iter().enumerate() {
            if apart && v == 0 {
                continue;
            }
            // Zero before all others, then the last base that covers the integer. Bases that are not needed are zero and
            // cover nothing more.
            let mut which = 0;
            let mut delta = v;
            if !(-below..=above).contains(&v) {
                for (j, base) in (1u32..).zip(&cover.bases[..bases]) {
                    if (-below..=above).contains(&(v - base)) {
                        (which, delta) = (j, v - base);
                    }
                }
            }
            let delta = rounded(i, delta);
            out.put(which | (delta.cast_unsigned() & mask(width)) << selector, bits);
        }
    }

    fn decompress_block(
        &self,
        bits: &mut BitReader,
        block: &mut [i32],
        zeros: &[i32],
    ) -> Result<(), &'static str> {
        const SHORT: &str = "a chunk ends within a block";
        let Nnw { initial_shift, base_shift, delta_shift, .. } = self.nnw;
        let elems = block.len();
        if bits.left() < FORM_BITS as usize {
            return Err(SHORT);
        }
        let form = bits.take(FORM_BITS);
        let Some((bases, narrower)) =
            form.checked_sub(FIRST_FORM).and_then(|f| FORMS.get(f as usize))
        else {
            let stored = match form {
                PLAIN => elems,
                ZEROS => 0,
                _ => 1,
            };
            if bits.left() < stored * self.plain_bits as usize {
                return Err(SHORT);
            }
            match form {
                PLAIN => block.iter_mut().for_each(|v| *v = bits.take_signed(self.plain_bits)),
                ZEROS => block.fill(0),
                _ => block.fill(bits.take_signed(self.plain_bits)),
            }
            if initial_shift == 0 {
                self.wrap(block, zeros);
            } else {
                for v in &mut *block {
                    *v <<= initial_shift;
                }
                self.clamp(block, zeros);
            }
            return Ok(());
        };
        let width = self.widths[*narrower as usize];
        if width == 0 {
            return Err("a block has a form that codes of this width do not have");
        }
        if bits.left() < 1 + bases * self.base_bits as usize {
            return Err(SHORT);
        }
        let apart = bits.take(1) == 1;
        let mut nonzero = elems;
        if apart {
            if bits.left() < elems {
                return Err(SHORT);
            }
            nonzero = 0;
            for v in &mut *block {
                *v = bits.take(1).cast_signed();
                nonzero += usize::from(*v != 0);
            }
        }
        let selector = selector_bits(*bases);
        let each = selector + width;
        if bits.left() < bases * self.base_bits as usize + nonzero * each as usize {
            return Err(SHORT);
        }
        let mut base = [0; MOST_BASES + 1];
        for base in &mut base[1..=*bases] {
            *base = bits.take_signed(self.base_bits) << base_shift;
        }
        let mut next = || {
            let field = bits.take(each);
            let delta = extend(field >> selector, width) << delta_shift;
            (base[(field & mask(selector)) as usize] + delta) << initial_shift
        };
        if apart {
            for v in block.iter_mut().filter(|v| **v != 0) {
                *v = next();
            }
        } else {
            for v in &mut *block {
                *v = next();
            }
        }
        self.clamp(block, zeros);
        Ok(())
    }

    /// Adds the zero points and keeps the bits of a code.
    fn wrap(&self, block: &mut [i32], zeros: &[i32]) {
        for (v, zero) in block.iter_mut().zip(zeros) {
            *v = v.wrapping_add(*zero);
        }
        let mask = mask(self.alphabet.bits).cast_signed();
        for v in block {
            *v &= mask;
        }
    }

    /// Adds the zero points and keeps within the codes.
    fn clamp(&self, block: &mut [i32], zeros: &[i32]) {
        for (v, zero) in block.iter_mut().zip(zeros) {
            *v = v.wrapping_add(*zero);
        }
        let mask = mask(self.alphabet.bits).cast_signed();
        for v in block {
            *v = (*v).clamp(self.low, self.high) & mask;
        }
    }
}

/// Which integers a block has, for integers of few bits.
struct Present([u64; 1 << (Self::BITS - 6)]);

impl Present {
    const BITS: u32 = 9;
    const HALF: i32 = 1 << (Self::BITS - 1);

    fn of(block: &[i32]) -> Self {
        let mut words = [0; 1 << (Self::BITS - 6)];
        for v in block {
            let place = (v + Self::HALF).cast_unsigned() & mask(Self::BITS);
            words[(place / 64) as usize] |= 1 << (place % 64);
        }
        Self(words)
    }

    /// The least integer that is not less than `from`.
    fn next(&self, from: i32) -> Option<i32> {
        let place = from.saturating_add(Self::HALF).max(0).cast_unsigned();
        let mut word = place / 64;
        let mut bits = *self.0.get(word as usize)? >> (place % 64) << (place % 64);
        while bits == 0 {
            word += 1;
            bits = *self.0.get(word as usize)?;
        }
        Some((word * 64 + bits.trailing_zeros()).cast_signed() - Self::HALF)
    }
}

struct NnwWriter<'a> {
    code: Code<'a>,
    source: Source<'a>,
}

impl NnwWriter<'_> {
    /// Divides by a power of two, by the rule of the scheme. Initial shift and differences draw numbers of their own.
    fn rounded(&self, v: i32, shift: u32, draw: u64) -> i32 {
        if shift == 0 {
            return v;
        }
        let Source { rounding, stream, .. } = self.source;
        let draw = if rounding == Rounding::Stochastic { stream.draw(draw) } else { 0 };
        let steps = f64::from(v) / f64::from(1 << shift);
        #[expect(clippy::cast_possible_truncation, reason = "the integer had fewer bits than 32")]
        let steps = rounding.round(steps, draw) as i32;
        steps
    }
}

impl Writer for NnwWriter<'_> {
    fn compress(&self, chunk: Chunk, packed: &[u8], out: &mut Vec<u8>) {
        let code = &self.code;
        let Alphabet { bits, .. } = *code.alphabet;
        let signed = code.low < 0;
        let mut bits_out = BitWriter::new(out);
        let (mut codes, mut block) = ([0; MOST_BLOCK], [0; MOST_BLOCK]);
        let mut scratch = Vec::new();
        for first in (0..chunk.count).step_by(code.nnw.block_elems) {
            let elems = code.nnw.block_elems.min(chunk.count - first);
            let (codes, block) = (&mut codes[..elems], &mut block[..elems]);
            pack::unpack(packed, bits, first, codes);
            for (v, code) in block.iter_mut().zip(&*codes) {
                *v = if signed { extend(*code, bits) } else { code.cast_signed() };
            }
            for (v, zero) in block.iter_mut().zip(chunk.zeros.get(first..).unwrap_or(&[])) {
                *v -= zero;
            }
            let index = (chunk.first + first) as u64;
            let count = self.source.count as u64;
            if code.nnw.initial_shift > 0 {
                for (i, v) in (index..).zip(&mut *block) {
                    *v = self.rounded(*v, code.nnw.initial_shift, count + i);
                }
            }
            let rounded = |i: usize, delta| {
                self.rounded(delta, code.nnw.delta_shift, 2 * count + index + i as u64)
            };
            code.compress_block(block, rounded, &mut scratch, &mut bits_out);
        }
        bits_out.finish();
    }
}

impl Reader for Code<'_> {
    fn decompress(
        &self,
        chunk: Chunk,
        bytes: &[u8],
        packed: &mut [u8],
    ) -> Result<(), &'static str> {
        let bits = self.alphabet.bits;
        let mut reader = BitReader::new(bytes);
        let (mut block, mut codes) = ([0i32; MOST_BLOCK], [0u32; MOST_BLOCK]);
        let mut packed = packed;
        for first in (0..chunk.count).step_by(self.nnw.block_elems) {
            let elems = self.nnw.block_elems.min(chunk.count - first);
            let (block, codes) = (&mut block[..elems], &mut codes[..elems]);
            let zeros = chunk.zeros.get(first..).unwrap_or(&[]);
            self.decompress_block(&mut reader, block, zeros)?;
            for (code, v) in codes.iter_mut().zip(&*block) {
                *code = v.cast_unsigned();
            }
            let len = pack::packed_len(elems, bits).unwrap_or(0).min(packed.len());
            let (part, rest) = packed.split_at_mut(len);
            pack::pack(codes, bits, part);
            packed = rest;
        }
        if reader.left() >= 8 {
            return Err("a chunk has bytes after its last block");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stream;

    const INT8: Alphabet = Alphabet { bits: 8, integers: Some(-127..=127) };

    fn parse(word: &str) -> Nnw {
        Nnw::parse(word, word.split(':').skip(1)).unwrap()
    }

    fn compress(nnw: Nnw, alphabet: &Alphabet, rounding: Rounding, x: &[i32]) -> Vec<u8> {
        let codes: Vec<u32> = x.iter().map(|v| v.cast_unsigned() & mask(alphabet.bits)).collect();
        let mut packed = vec![0; pack::packed_len(codes.len(), alphabet.bits).unwrap()];
        pack::pack(&codes, alphabet.bits, &mut packed);
        let stream = Stream::new(1, 2);
        let source =
            Source { alphabet, packed: &packed, count: x.len(), rounding, stream: &stream };
        let mut out = Vec::new();
        let chunk = Chunk { first: 0, count: x.len(), zeros: &[] };
        nnw.writer(source).compress(chunk, &packed, &mut out);
        out
    }

    fn decompress(nnw: Nnw, alphabet: &Alphabet, count: usize, bytes: &[u8]) -> Vec<i32> {
        let mut packed = vec![0; pack::packed_len(count, alphabet.bits).unwrap()];
        let reader = nnw.reader(alphabet, &[]).unwrap();
        reader.decompress(Chunk { first: 0, count, zeros: &[] }, bytes, &mut packed).unwrap();
        let mut codes = vec![0; count];
        pack::unpack(&packed, alphabet.bits, 0, &mut codes);
        codes.into_iter().map(|c| extend(c, alphabet.bits)).collect()
    }

    #[test]
    fn the_example_of_the_specification_has_its_bases_and_differences() {
        // 8 bits of zeros, 8 of the base, 7 selectors and 7 differences of 4 bits: 51 bits. The zero among the others
        // takes 5 bits instead of 8, so that 48 are written, and 5 that name the form and say that.
        let x = [120, 121, 118, 0, 125, 119, 3, -2];
        let nnw = parse("nnw:8:first");
        let bytes = compress(nnw, &INT8, Rounding::NearestEven, &x);
        assert_eq!(bytes.len(), 53usize.div_ceil(8));
        assert_eq!(nnw.code(&INT8).cost(1, 4, 8, 7), (1 + 48, false));
        let mut bits = BitReader::new(&bytes);
        let form = bits.take(4);
        assert_eq!(FORMS[(form - FIRST_FORM) as usize], (1, 3), "one base and 7 - 3 bits");
        assert_eq!((bits.take(1), bits.take_signed(8)), (0, 120));
        for (which, delta) in [(1, 0), (1, 1), (1, -2), (0, 0), (1, 5), (1, -1), (0, 3), (0, -2)] {
            assert_eq!((bits.take(1), bits.take_signed(4)), (which, delta));
        }
        assert_eq!(decompress(nnw, &INT8, 8, &bytes), x);
        // Three bits do not hold the difference 5, from whatever base.
        let code = nnw.code(&INT8);
        assert_eq!(code.first_uncovered(3, &x).map(|c| c.count), Some(2));
        // The base that reaches furthest lies elsewhere and takes as many bits.
        let nnw = parse("nnw:8");
        let bytes = compress(nnw, &INT8, Rounding::NearestEven, &x);
        assert_eq!(bytes.len(), 7);
        assert_eq!(decompress(nnw, &INT8, 8, &bytes), x);
    }

    #[test]
    fn stabbing_takes_the_fewest_bases_of_all() {
        // By trying every set of bases of 5-bit integers, the widths 1 to 4.
        let nnw = parse("nnw:8");
        let alphabet = Alphabet { bits: 5, integers: Some(-16..=15) };
        let code = nnw.code(&alphabet);
        let stream = Stream::new(5, 5);
        for case in 0..300u64 {
            let block: Vec<i32> =
                (0..8).map(|i| (stream.draw(case * 8 + i) % 32).cast_signed() - 16).collect();
            let mut sorted = block.clone();
            sorted.sort_unstable();
            for width in 1..=4 {
                let half = 1 << (width - 1);
                let covers = |bases: &[i32]| {
                    let near = |v: i32, b: i32| (-half..half).contains(&(v - b));
                    block.iter().all(|v| near(*v, 0) || bases.iter().any(|b| near(*v, *b)))
                };
                let range = -16..16;
                let least = if covers(&[]) {
                    Some(0)
                } else if range.clone().any(|a| covers(&[a])) {
                    Some(1)
                } else if range.clone().any(|a| range.clone().any(|b| covers(&[a, b]))) {
                    Some(2)
                } else if range
                    .clone()
                    .any(|a| range.clone().any(|b| range.clone().any(|c| covers(&[a, b, c]))))
                {
                    Some(3)
                } else {
                    None
                };
                let present = Present::of(&block);
                let by_bits = code.stab(width, |from| present.next(from));
                let by_order = code
                    .stab(width, |from| sorted.get(sorted.partition_point(|v| *v < from)).copied());
                assert_eq!(by_bits, by_order);
                assert_eq!(by_bits.map(|c| c.count), least, "{block:?} width {width}");
            }
        }
    }

    #[test]
    fn shifts_move_integers_as_far_as_said_and_no_further() {
        let x: Vec<i32> = (0..4096u64)
            .map(|i| (Stream::new(3, 3).draw(i) % 255).cast_signed() - 127)
            .map(|v| if v % 3 == 0 { v / 9 } else { v })
            .collect();
        for word in [
            "nnw:si1",
            "nnw:si3",
            "nnw:sd1",
            "nnw:sd3:16",
            "nnw:si1:sd2:8",
            "nnw:si2:sb1:sd1:first",
        ] {
            let nnw = parse(word);
            assert!(nnw.complaint(&INT8).is_none());
            let halves =
                |shift: u32, on: u32| if on == 0 { 0.0 } else { f64::from(1 << shift) / 2.0 };
            let most = halves(nnw.initial_shift, nnw.initial_shift)
                + halves(nnw.initial_shift + nnw.delta_shift, nnw.delta_shift);
            for (_, rounding) in Rounding::WORDS {
                let nearest = matches!(rounding, Rounding::NearestEven | Rounding::HalfAway);
                let most = if nearest { most } else { 2.0 * most };
                let bytes = compress(nnw, &INT8, rounding, &x);
                let back = decompress(nnw, &INT8, x.len(), &bytes);
                let mut moved = 0;
                for (v, b) in x.iter().zip(&back) {
                    assert!(f64::from((v - b).abs()) <= most, "{word} {rounding:?} {v} -> {b}");
                    assert!((-127..=127).contains(b));
                    moved += usize::from(v != b);
                }
                assert!(moved > 100, "{word} {rounding:?} moved {moved}");
            }
        }
    }

    #[test]
    fn shifts_round_to_the_mean_when_stochastic() {
        let nnw = parse("nnw:sd4");
        let x = vec![23; 64 * 1024];
        // Not a single integer repeated, and not plain.
        let x: Vec<i32> =
            x.iter().enumerate().map(|(i, v)| if i % 64 == 0 { 1 } else { *v }).collect();
        let bytes = compress(nnw, &INT8, Rounding::Stochastic, &x);
        let back = decompress(nnw, &INT8, x.len(), &bytes);
        let rest: Vec<i32> =
            back.iter().enumerate().filter(|(i, _)| i % 64 != 0).map(|(_, v)| *v).collect();
        let mean = f64::from(rest.iter().sum::<i32>()) / rest.len() as f64;
        assert!((mean - 23.0).abs() < 4.0 * 8.0 / (rest.len() as f64).sqrt(), "{mean}");
    }

    #[test]
    fn what_is_no_option_or_too_far_is_refused() {
        for word in [
            "nnw:7",
            "nnw:0",
            "nnw:2048",
            "nnw:",
            "nnw:sd",
            "nnw:sd+1",
            "nnw:8:16",
            "nnw:firs",
            "nnw:sd1:sd1",
        ] {
            assert!(Nnw::parse(word, word.split(':').skip(1)).is_err(), "{word}");
        }
        let floats = Alphabet { bits: 8, integers: None };
        assert!(parse("nnw:sb2").complaint(&floats).is_none());
        assert!(parse("nnw:sd1").complaint(&floats).is_some());
        assert!(parse("nnw:si4:sd4").complaint(&INT8).is_some());
        assert!(parse("nnw:si4294967295:sd4294967295").complaint(&INT8).is_some());
        assert!(parse("nnw").complaint(&Alphabet { bits: 32, integers: None }).is_some());
    }
}
