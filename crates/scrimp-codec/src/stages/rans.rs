//! `rans`: an entropy coder, so that "how small could it get" has an answer that can be decoded.
//!
//! Each code is written by how often it occurs in the tensor, with a range variant of asymmetric numeral systems; eight
//! states take turns, so that a processor works on several at a time. Codes of more than 8 bits are cut into parts from
//! the top, of 8 bits and what is left at the bottom, each with frequencies of its own; what one part says of another
//! is not used.
//!
//! # Bytes
//! See [`StageFamily::layout`].
//!
//! # Source
//! Duda 2013, "Asymmetric numeral systems", arXiv:1311.2540; states that take turns: Giesen 2014, "Interleaved entropy
//! coders", arXiv:1402.3392; Rice codes: Rice and Plaunt 1971.

use std::sync::Arc;

use rayon::prelude::*;

use super::bits::{BitReader, BitWriter, mask};
use super::{Alphabet, CHUNK_ELEMS, Chunk, Reader, Source, Stage, StageFamily, Writer};
use crate::formats::HeadError;
use crate::pack;

const PRECISION: u32 = 12;
const TOTAL: u32 = 1 << PRECISION;
/// The least value of a state.
const FLOOR: u32 = 1 << 16;
const STATES: usize = 8;
/// In place of a Rice parameter: the part is stored as it is.
const AS_IT_IS: u32 = 15;
/// The largest Rice parameter that can be the best one.
const MOST_RICE: u32 = PRECISION;
const PART_BITS: u32 = 8;

/// The paper, for the book.
const SOURCE: &str = "\
Duda 2013, Asymmetric numeral systems, [arXiv:1311.2540](https://arxiv.org/abs/1311.2540); Giesen 2014, Interleaved entropy coders,
[arXiv:1402.3392](https://arxiv.org/abs/1402.3392); Rice and Plaunt 1971";

/// The bytes of a chunk, for the book.
const LAYOUT: &str = "\
Codes of more than 8 bits are cut into parts, from the top of 8 bits each, with what is left at the bottom.

The model holds for each part of a code, from the top, in a stream of bits:

| field | bits |
|---|---|
| 15 where the part is stored as it is, and no more fields; else `r` | 4 |
| for each value of the part but the last: its frequency less that of the value before, signed | as below |

Frequencies are of 4096, and the last value has what is left; the value before the first counts as 0. A difference
`d` is written as `m = 2d` for `d >= 0` and `m = -2d - 1` else: `floor(m / 2^r)` ones, a zero, and the `r` low bits
of `m` (Rice). The last byte is padded with zeros.

A chunk holds for each part, from the top:

- as it is: the parts of all codes, packed;
- else eight states of 4 bytes and as many words of 2 bytes, little-endian, as a reader asks for. Element `i` belongs
  to state `x` number `i mod 8`. A value `v` has the slots from `c`, the sum of the frequencies before, to `c + f`.
  A reader takes the `v` whose slots have `x mod 4096`, sets `x` to `f floor(x / 4096) + x mod 4096 - c`, and where
  that is below `2^16` to `2^16 x` and the next word. At the end every state is `2^16`.";

/// `rans`.
pub(crate) struct RansFamily;

impl StageFamily for RansFamily {
    fn syntax(&self) -> &'static str {
        "rans"
    }

    fn about(&self) -> &'static str {
        "an entropy coder of order 0 (rANS): about as small as codes get that know nothing of each other; lossless"
    }

    fn members(&self) -> &'static [&'static str] {
        &["rans"]
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, word: &str) -> Option<Result<Arc<dyn Stage>, HeadError>> {
        (word == "rans").then(|| Ok(Arc::new(Rans) as Arc<dyn Stage>))
    }
}

/// The stage.
#[derive(Clone, Copy, Debug)]
struct Rans;

impl Stage for Rans {
    fn word(&self) -> String {
        "rans".into()
    }

    fn has_model(&self) -> bool {
        true
    }

    fn writer<'a>(&'a self, source: Source<'a>) -> Box<dyn Writer + 'a> {
        let parts = parts(source.alphabet.bits);
        let tables: Vec<_> =
            parts.iter().map(|part| frequencies(&source, *part).map(|f| Table::of(&f))).collect();
        let mut model = Vec::new();
        let mut bits = BitWriter::new(&mut model);
        for table in &tables {
            match table {
                Some(table) => write_frequencies(&table.frequencies, &mut bits),
                None => bits.put(AS_IT_IS, 4),
            }
        }
        bits.finish();
        Box::new(RansWriter { bits: source.alphabet.bits, parts, tables, model })
    }

    fn reader<'a>(
        &'a self,
        alphabet: &'a Alphabet,
        model: &[u8],
    ) -> Result<Box<dyn Reader + 'a>, &'static str> {
        let parts = parts(alphabet.bits);
        let mut bits = BitReader::new(model);
        let slots = parts
            .iter()
            .map(|part| {
                let frequencies = read_frequencies(1 << part.bits, &mut bits)?;
                Ok(frequencies.map(|f| Slots::of(&f)))
            })
            .collect::<Result<_, &'static str>>()?;
        if bits.left() >= 8 {
            return Err("the model has bytes after its last table");
        }
        Ok(Box::new(RansReader { bits: alphabet.bits, parts, slots }))
    }
}

/// A part of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    shift: u32,
    bits: u32,
}

/// The parts of codes of a width, from the top.
fn parts(bits: u32) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut shift = bits;
    while shift > 0 {
        let bits = shift.min(PART_BITS);
        shift -= bits;
        parts.push(Part { shift, bits });
    }
    parts
}

impl Part {
    /// The part of every code.
    fn of(self, codes_bits: u32, packed: &[u8], values: &mut [u8]) {
        if codes_bits == PART_BITS {
            return values.copy_from_slice(&packed[..values.len()]);
        }
        let mut codes = [0; WINDOW];
        for (i, values) in values.chunks_mut(WINDOW).enumerate() {
            let codes = &mut codes[..values.len()];
            pack::unpack(packed, codes_bits, i * WINDOW, codes);
            for (value, code) in values.iter_mut().zip(codes) {
                *value = (*code >> self.shift & mask(self.bits)).to_le_bytes()[0];
            }
        }
    }
}

/// Codes that are unpacked at a time; a multiple of eight, so that they start on a byte.
const WINDOW: usize = 1024;

/// How often the values of a part occur, of 4096; `None` where a table would not pay.
fn frequencies(source: &Source, part: Part) -> Option<Vec<u32>> {
    let bits = source.alphabet.bits;
    let counts = (0..source.count.div_ceil(CHUNK_ELEMS))
        .into_par_iter()
        .map(|chunk| {
            let first = chunk * CHUNK_ELEMS;
            let count = CHUNK_ELEMS.min(source.count - first);
            let start = pack::packed_len(first, bits).unwrap_or(0);
            let mut values = vec![0; count];
            part.of(bits, &source.packed[start..], &mut values);
            // Four tables, because equal neighbours would wait for each other's count.
            let mut counts = [[0u64; 256]; 4];
            let (fours, rest) = values.as_chunks::<4>();
            for four in fours {
                for (counts, v) in counts.iter_mut().zip(four) {
                    counts[usize::from(*v)] += 1;
                }
            }
            for v in rest {
                counts[0][usize::from(*v)] += 1;
            }
            std::array::from_fn(|v| counts.iter().map(|counts| counts[v]).sum())
        })
        .reduce(|| [0u64; 256], |a, b| std::array::from_fn(|v| a[v] + b[v]));
    let counts = &counts[..1 << part.bits];
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let frequencies = normalized(counts, total);
    // In whole numbers, so that every machine comes to the same end.
    let spent = counts
        .iter()
        .zip(&frequencies)
        .filter(|(count, _)| **count > 0)
        .map(|(count, f)| u128::from(*count) * u128::from((PRECISION << LOG_BITS) - log2(*f)));
    let chunks = source.count.div_ceil(CHUNK_ELEMS) as u64;
    let beside = chunks * 32 * STATES as u64 + u64::from(rice(&frequencies).1);
    let coded = spent.sum::<u128>() + (u128::from(beside) << LOG_BITS);
    let plain = u128::from(total * u64::from(part.bits)) << LOG_BITS;
    (coded < plain).then_some(frequencies)
}

/// Bits after the point of a logarithm.
const LOG_BITS: u32 = 16;

/// The logarithm to base 2 of a frequency, rounded down to [`LOG_BITS`] bits after the point.
fn log2(frequency: u32) -> u32 {
    let whole = frequency.ilog2();
    // The mantissa, 1 to 2, with 31 bits after the point; squaring it gives one bit of its logarithm at a time.
    let mut mantissa = u64::from(frequency) << (31 - whole);
    (0..LOG_BITS).fold(whole, |log, _| {
        mantissa = (mantissa * mantissa) >> 31;
        let bit = mantissa >> 32 & 1;
        mantissa >>= bit;
        log << 1 | u32::from(bit == 1)
    })
}

/// Counts as frequencies whose sum is 4096; what occurs has at least 1.
///
/// Each gets its share rounded down. What is left goes one by one to the largest remainders, the lower value first; what
/// is too much is taken one by one from the largest frequency, the lowest value first.
fn normalized(counts: &[u64], total: u64) -> Vec<u32> {
    let share = |count: u64| u128::from(count) * u128::from(TOTAL);
    let mut frequencies: Vec<u32> = counts
        .iter()
        .map(|&count| {
            let f = u32::try_from(share(count) / u128::from(total)).unwrap_or(TOTAL);
            f.max(u32::from(count > 0))
        })
        .collect();
    let sum: u32 = frequencies.iter().sum();
    if sum <= TOTAL {
        let mut order: Vec<usize> = (0..counts.len()).filter(|v| counts[*v] > 0).collect();
        order.sort_by_key(|v| std::cmp::Reverse(share(counts[*v]) % u128::from(total)));
        for v in order.into_iter().cycle().take((TOTAL - sum) as usize) {
            frequencies[v] += 1;
        }
    }
    for _ in TOTAL..sum {
        let largest = frequencies.iter().copied().max().unwrap_or(0);
        if let Some(f) = frequencies.iter_mut().find(|f| **f == largest) {
            *f -= 1;
        }
    }
    frequencies
}

/// The differences of frequencies as numbers without sign.
fn steps(frequencies: &[u32]) -> impl Iterator<Item = u32> {
    let before = std::iter::once(&0).chain(frequencies);
    frequencies[..frequencies.len() - 1]
        .iter()
        .zip(before)
        .map(|(f, before)| if f >= before { 2 * (f - before) } else { 2 * (before - f) - 1 })
}

/// The Rice parameter that takes the fewest bits, the first of those that are equal, and these bits.
fn rice(frequencies: &[u32]) -> (u32, u32) {
    let bits = |r: u32| steps(frequencies).map(|m| (m >> r) + 1 + r).sum::<u32>();
    (0..=MOST_RICE).map(|r| (r, bits(r))).min_by_key(|(_, bits)| *bits).unwrap_or_default()
}

fn write_frequencies(frequencies: &[u32], bits: &mut BitWriter) {
    let (r, _) = rice(frequencies);
    bits.put(r, 4);
    for m in steps(frequencies) {
        for _ in 0..m >> r {
            bits.put(1, 1);
        }
        bits.put(0, 1);
        bits.put(m & mask(r), r);
    }
}

fn read_frequencies(values: usize, bits: &mut BitReader) -> Result<Option<Vec<u32>>, &'static str> {
    const WRONG: &str = "the frequencies of the model are not of 4096";
    let r = bits.take(4);
    if r == AS_IT_IS {
        return Ok(None);
    }
    if r > MOST_RICE {
        return Err("the model has a Rice parameter that is never written");
    }
    let (mut frequencies, mut before, mut sum) = (Vec::with_capacity(values), 0, 0);
    for _ in 1..values {
        let mut m = 0;
        // The end reads as zeros, so this ends.
        while bits.take(1) == 1 {
            m += 1 << r;
            if m > 2 * TOTAL {
                return Err(WRONG);
            }
        }
        m += bits.take(r);
        let step = if m % 2 == 0 { m / 2 } else { (m / 2 + 1).wrapping_neg() };
        before = u32::wrapping_add(before, step);
        if before > TOTAL - sum {
            return Err(WRONG);
        }
        sum += before;
        frequencies.push(before);
    }
    frequencies.push(TOTAL - sum);
    Ok(Some(frequencies))
}

/// What a writer needs of a value's frequency.
#[derive(Clone, Copy, Debug, Default)]
struct Symbol {
    frequency: u32,
    start: u32,
    /// A state beyond this gives a word away first.
    largest: u32,
    /// `ceil(2^44 / frequency)`: multiplying by it divides a state exactly.
    reciprocal: u64,
}

/// The frequencies of a part's values.
struct Table {
    frequencies: Vec<u32>,
    symbols: [Symbol; 256],
}

impl Table {
    fn of(frequencies: &[u32]) -> Self {
        let mut symbols = [Symbol::default(); 256];
        let mut start = 0;
        for (symbol, &frequency) in symbols.iter_mut().zip(frequencies) {
            let most = (u64::from(FLOOR) << (16 - PRECISION)) * u64::from(frequency);
            *symbol = Symbol {
                frequency,
                start,
                largest: u32::try_from(most.saturating_sub(1)).unwrap_or(u32::MAX),
                reciprocal: (1u64 << RECIPROCAL_BITS).div_ceil(u64::from(frequency.max(1))),
            };
            start += frequency;
        }
        Self { frequencies: frequencies.to_vec(), symbols }
    }

    /// Appends states and words.
    fn compress(&self, values: &[u8], out: &mut Vec<u8>) {
        // A reader goes forward, so the last value comes first and words are written from the end.
        let mut words = vec![[0; 2]; values.len() + 1];
        let mut at = values.len();
        let mut states = [FLOOR; STATES];
        // Whether a word is due is as good as random, so nothing may branch on it.
        let mut step = |x: &mut u32, v: u8| {
            let symbol = &self.symbols[usize::from(v)];
            let due = *x > symbol.largest;
            words[at] = low(*x).to_le_bytes();
            at -= usize::from(due);
            let state = if due { *x >> 16 } else { *x };
            // The quotient times 4096, the remainder and the first slot.
            let quotient = divided(state, symbol.reciprocal);
            *x = state + quotient * (TOTAL - symbol.frequency) + symbol.start;
        };
        let (full, last) = values.as_chunks::<STATES>();
        for (x, v) in states.iter_mut().zip(last).rev() {
            step(x, *v);
        }
        for eight in full.iter().rev() {
            for (x, v) in states.iter_mut().zip(eight).rev() {
                step(x, *v);
            }
        }
        out.extend(states.iter().flat_map(|x| x.to_le_bytes()));
        out.extend_from_slice(words[at + 1..].as_flattened());
    }
}

const RECIPROCAL_BITS: u32 = 44;

/// `x / frequency`: the reciprocal is too large by less than 1, so the product by less than `2^32`, which is not enough
/// to reach the next integer, since that is at least `2^44 / 4096` away.
#[expect(clippy::cast_possible_truncation, reason = "the quotient is not larger than the state")]
#[inline(always)]
fn divided(x: u32, reciprocal: u64) -> u32 {
    let product = u128::from(x) * u128::from(reciprocal);
    (product >> RECIPROCAL_BITS) as u32
}

/// What a reader needs of each slot: the value in the low 8 bits, then its frequency less one and the slots of the same
/// value before this one, 12 bits each.
struct Slots([u32; TOTAL as usize]);

impl Slots {
    fn of(frequencies: &[u32]) -> Box<Self> {
        let mut slots = Box::new(Self([0; TOTAL as usize]));
        let mut rest = &mut slots.0[..];
        for (value, &frequency) in (0..).zip(frequencies) {
            let (mine, others) = rest.split_at_mut((frequency as usize).min(rest.len()));
            for (before, slot) in (0..).zip(mine) {
                *slot = value | (frequency - 1) << 8 | before << (8 + PRECISION);
            }
            rest = others;
        }
        slots
    }

    /// Reads the values of a chunk, and answers the bytes after them.
    fn decompress<'a>(&self, bytes: &'a [u8], values: &mut [u8]) -> Result<&'a [u8], &'static str> {
        const SHORT: &str = "a chunk ends before its last code";
        let (head, rest) = bytes.split_at_checked(4 * STATES).ok_or(SHORT)?;
        let mut states = [FLOOR; STATES];
        for (x, four) in states.iter_mut().zip(head.as_chunks::<4>().0) {
            *x = u32::from_le_bytes(*four);
        }
        let words = rest.as_chunks::<2>().0;
        let mut at = 0;
        // Whether a word is due is as good as random, so nothing may branch on it.
        let step = |x: &mut u32, at: &mut usize| {
            let slot = self.0[(*x % TOTAL) as usize];
            let state = ((slot >> 8) % TOTAL + 1) * (*x >> PRECISION) + (slot >> (8 + PRECISION));
            // Beyond the end there are zeros; whether it was passed is asked once.
            let word = words.get(*at).map_or(0, |w| u16::from_le_bytes(*w));
            let due = state < FLOOR;
            *x = if due { state << 16 | u32::from(word) } else { state };
            *at += usize::from(due);
            slot.to_le_bytes()[0]
        };
        let (full, last) = values.as_chunks_mut::<STATES>();
        for eight in full {
            *eight = std::array::from_fn(|i| step(&mut states[i], &mut at));
        }
        for (x, v) in states.iter_mut().zip(last) {
            *v = step(x, &mut at);
        }
        if at > words.len() {
            return Err(SHORT);
        }
        if states != [FLOOR; STATES] {
            return Err("the states of a chunk do not end where they began");
        }
        Ok(&rest[2 * at..])
    }
}

struct RansWriter {
    bits: u32,
    parts: Vec<Part>,
    tables: Vec<Option<Table>>,
    model: Vec<u8>,
}

impl Writer for RansWriter {
    fn model(&self) -> &[u8] {
        &self.model
    }

    fn compress(&self, chunk: Chunk, packed: &[u8], out: &mut Vec<u8>) {
        let mut values = vec![0; chunk.count];
        for (part, table) in self.parts.iter().zip(&self.tables) {
            part.of(self.bits, packed, &mut values);
            if let Some(table) = table {
                table.compress(&values, out);
            } else {
                let codes: Vec<u32> = values.iter().map(|v| u32::from(*v)).collect();
                let start = out.len();
                out.resize(start + pack::packed_len(codes.len(), part.bits).unwrap_or(0), 0);
                pack::pack(&codes, part.bits, &mut out[start..]);
            }
        }
    }
}

struct RansReader {
    bits: u32,
    parts: Vec<Part>,
    slots: Vec<Option<Box<Slots>>>,
}

impl Reader for RansReader {
    fn decompress(
        &self,
        chunk: Chunk,
        bytes: &[u8],
        packed: &mut [u8],
    ) -> Result<(), &'static str> {
        let mut bytes = bytes;
        if let ([Some(slots)], PART_BITS) = (&self.slots[..], self.bits) {
            bytes = slots.decompress(bytes, packed)?;
        } else {
            let mut codes = vec![0; chunk.count];
            let mut values = vec![0; chunk.count];
            for (part, slots) in self.parts.iter().zip(&self.slots) {
                if let Some(slots) = slots {
                    bytes = slots.decompress(bytes, &mut values)?;
                    for (code, v) in codes.iter_mut().zip(&values) {
                        *code |= u32::from(*v) << part.shift;
                    }
                } else {
                    let mut parts = vec![0; chunk.count];
                    let len = pack::packed_len(chunk.count, part.bits).unwrap_or(0);
                    let (mine, rest) =
                        bytes.split_at_checked(len).ok_or("a chunk ends within a part")?;
                    pack::unpack(mine, part.bits, 0, &mut parts);
                    for (code, v) in codes.iter_mut().zip(&parts) {
                        *code |= v << part.shift;
                    }
                    bytes = rest;
                }
            }
            pack::pack(&codes, self.bits, packed);
        }
        if bytes.is_empty() { Ok(()) } else { Err("a chunk has bytes after its last code") }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
#[inline(always)]
fn low(x: u32) -> u16 {
    x as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_by_multiplication_is_exact() {
        for frequency in 1..=u64::from(TOTAL) {
            let reciprocal = (1u64 << RECIPROCAL_BITS).div_ceil(frequency);
            let top = u64::from(u32::MAX);
            let near = top / frequency * frequency;
            let samples = [0, 1, frequency - 1, frequency, near, near.saturating_sub(1), top];
            for x in samples.into_iter().chain((0..64).map(|i| i * 0x0400_1003 + frequency * 77)) {
                let x = x.min(top);
                let q = divided(u32::try_from(x).unwrap(), reciprocal);
                assert_eq!(u64::from(q), x / frequency, "{x} / {frequency}");
            }
        }
    }

    #[test]
    fn frequencies_are_of_4096_and_come_back() {
        let cases: [Vec<u64>; 7] = [
            vec![1, 0],
            vec![0, 7],
            vec![1, u64::from(u32::MAX) << 12],
            vec![5; 256],
            (0..256).map(|i| 1 << (i / 8)).collect(),
            (0..256).map(|i| u64::from(i % 17 == 3) * (i + 1)).collect(),
            (0..16).map(|i| 1000 - i * i).collect(),
        ];
        for counts in cases {
            let f = normalized(&counts, counts.iter().sum());
            assert_eq!(f.iter().sum::<u32>(), TOTAL, "{counts:?}");
            for (f, count) in f.iter().zip(&counts) {
                assert_eq!(*f > 0, *count > 0);
            }
            let mut model = Vec::new();
            let mut bits = BitWriter::new(&mut model);
            write_frequencies(&f, &mut bits);
            bits.finish();
            assert!(model.len() <= 449, "{}", model.len());
            let mut bits = BitReader::new(&model);
            assert_eq!(read_frequencies(f.len(), &mut bits), Ok(Some(f)));
            assert!(bits.left() < 8);
        }
    }

    #[test]
    fn logarithms_are_those_of_real_numbers_rounded_down() {
        for f in 1..=TOTAL {
            let exact = f64::from(f).log2() * f64::from(1 << LOG_BITS);
            let got = f64::from(log2(f));
            assert!(got <= exact + 1e-6 && exact - got < 1.01, "{f}: {got} {exact}");
        }
    }

    #[test]
    fn parts_go_from_the_top() {
        let p = |shift, bits| Part { shift, bits };
        assert_eq!(parts(4), [p(0, 4)]);
        assert_eq!(parts(8), [p(0, 8)]);
        assert_eq!(parts(19), [p(11, 8), p(3, 8), p(0, 3)]);
    }
}
