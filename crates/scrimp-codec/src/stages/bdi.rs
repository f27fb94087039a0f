//! `bdi`: base-delta-immediate compression of the packed codes, line by line, as a cache does it.
//!
//! A line of 32 or 64 bytes is taken as little-endian values of 8, 4 or 2 bytes. Each is stored as a short signed
//! difference from one base that the line holds, or from zero.
//!
//! # Bytes
//! See [`StageFamily::layout`].
//!
//! # Source
//! Pekhimenko et al. 2012, "Base-Delta-Immediate Compression: Practical Data Compression for On-Chip Caches", PACT.
//! Differs: the paper's sizes leave out the bits that say which base a value has, and count one byte for a line of
//! zeros; here everything that a reader needs is stored.

use std::sync::Arc;

use super::{Alphabet, Chunk, Reader, Source, Stage, StageFamily, Writer, wrong};
use crate::formats::HeadError;

/// Bytes of a value and of a difference, for forms 2 to 7.
const PAIRS: [(usize, usize); 6] = [(8, 1), (8, 2), (8, 4), (4, 1), (4, 2), (2, 1)];
const ZEROS: u8 = 0;
const REPEATED: u8 = 1;
const FIRST_PAIR: u8 = 2;
const PLAIN: u8 = 8;
/// Values of a line at most: 64 bytes, two each.
const MOST_VALUES: usize = 32;

/// The paper, for the book.
const SOURCE: &str = "\
Pekhimenko et al. 2012, Base-Delta-Immediate Compression: Practical Data Compression for On-Chip Caches, PACT";

/// The bytes of a chunk, for the book.
const LAYOUT: &str = "\
Bytes of a chunk:

| part | bytes |
|---|---|
| the form of each line, 4 bits, the first line in the low half | `ceil(lines / 2)` |
| what each line holds by its form | as below |
| the bytes after the last whole line, as they are | fewer than a line |

| form | bytes of a value and of a difference | a line of `L` bytes holds |
|---|---|---|
| 0 | all zero | nothing |
| 1 | one value of 8 bytes, repeated | 8 bytes |
| 2, 3, 4 | 8 and 1, 2, 4 | base, a bit for each value, differences |
| 5, 6 | 4 and 1, 2 | base, a bit for each value, differences |
| 7 | 2 and 1 | base, a bit for each value, differences |
| 8 | not compressed | `L` bytes |

The bit of a value is set where its difference is from the base, and clear where it is from zero. Differences wrap
around at the width of a value. The base is the first value that is too far from zero, 0 if none is. The form with
the fewest bytes is taken, the first of those that are equal.";

/// `bdi` and `bdi:64`.
pub(crate) struct BdiFamily;

impl StageFamily for BdiFamily {
    fn syntax(&self) -> &'static str {
        "bdi[:32|:64]"
    }

    fn about(&self) -> &'static str {
        "base-delta-immediate over the packed bytes in lines of 32 or 64, as in caches (PACT'12); lossless"
    }

    fn members(&self) -> &'static [&'static str] {
        &["bdi", "bdi:64"]
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, word: &str) -> Option<Result<Arc<dyn Stage>, HeadError>> {
        let rest = word.strip_prefix("bdi")?;
        let line_bytes = match rest.strip_prefix(':') {
            None if rest.is_empty() => 32,
            None => return None,
            Some("32") => 32,
            Some("64") => 64,
            Some(_) => {
                return Some(Err(wrong(
                    word,
                    "a line has 32 or 64 bytes",
                    "write `bdi` or `bdi:64`",
                )));
            }
        };
        Some(Ok(Arc::new(Bdi { line_bytes })))
    }
}

/// The stage.
#[derive(Clone, Copy, Debug)]
struct Bdi {
    line_bytes: usize,
}

impl Stage for Bdi {
    fn word(&self) -> String {
        if self.line_bytes == 32 { "bdi".into() } else { format!("bdi:{}", self.line_bytes) }
    }

    fn writer<'a>(&'a self, _: Source<'a>) -> Box<dyn Writer + 'a> {
        Box::new(*self)
    }

    fn reader<'a>(
        &'a self,
        _: &'a Alphabet,
        _: &[u8],
    ) -> Result<Box<dyn Reader + 'a>, &'static str> {
        Ok(Box::new(*self))
    }
}

impl Writer for Bdi {
    fn compress(&self, _: Chunk, packed: &[u8], out: &mut Vec<u8>) {
        let lines = packed.chunks_exact(self.line_bytes);
        let forms = out.len();
        out.resize(forms + lines.len().div_ceil(2), 0);
        let rest = lines.remainder();
        for (i, line) in lines.enumerate() {
            let form = compress_line(line, out);
            out[forms + i / 2] |= form << (i % 2 * 4);
        }
        out.extend_from_slice(rest);
    }
}

impl Reader for Bdi {
    fn decompress(&self, _: Chunk, bytes: &[u8], packed: &mut [u8]) -> Result<(), &'static str> {
        const SHORT: &str = "a chunk ends within a line";
        let lines = packed.chunks_exact_mut(self.line_bytes);
        let (forms, mut rest) = bytes.split_at_checked(lines.len().div_ceil(2)).ok_or(SHORT)?;
        let mut lines = lines;
        for (i, line) in lines.by_ref().enumerate() {
            let form = forms[i / 2] >> (i % 2 * 4) & 15;
            let held = held(form, line.len()).ok_or("a line has no form that exists")?;
            let (held, after) = rest.split_at_checked(held).ok_or(SHORT)?;
            decompress_line(form, held, line);
            rest = after;
        }
        let tail = lines.into_remainder();
        if rest.len() != tail.len() {
            return Err("a chunk has bytes after its last line");
        }
        tail.copy_from_slice(rest);
        Ok(())
    }
}

/// Bytes that a line of so many holds in a form.
fn held(form: u8, line: usize) -> Option<usize> {
    match form {
        ZEROS => Some(0),
        REPEATED => Some(8),
        PLAIN => Some(line),
        _ => PAIRS.get(usize::from(form - FIRST_PAIR)).map(|(value, delta)| {
            let values = line / value;
            value + values.div_ceil(8) + values * delta
        }),
    }
}

/// Appends what a line holds in its shortest form, and answers the form.
fn compress_line(line: &[u8], out: &mut Vec<u8>) -> u8 {
    let (eights, _) = line.as_chunks::<8>();
    let first = eights.first().copied().unwrap_or_default();
    if eights.iter().all(|v| *v == first) {
        if first == [0; 8] {
            return ZEROS;
        }
        out.extend_from_slice(&first);
        return REPEATED;
    }
    let mut best = None;
    let mut least = line.len();
    for (form, pair) in (FIRST_PAIR..).zip(PAIRS) {
        let size = held(form, line.len()).unwrap_or(usize::MAX);
        if size < least
            && let Some(base) = base(line, pair)
        {
            (best, least) = (Some((form, pair, base)), size);
        }
    }
    let Some((form, (width, delta), base)) = best else {
        out.extend_from_slice(line);
        return PLAIN;
    };
    out.extend_from_slice(&base.to_le_bytes()[..width]);
    let values = line.len() / width;
    let mut deltas = [0i64; MOST_VALUES];
    let mut bits = 0u32;
    for (i, (v, d)) in line.chunks_exact(width).zip(&mut deltas).enumerate() {
        let v = value(v);
        *d = v;
        if !fits(v, delta) {
            bits |= 1 << i;
            *d = difference(v, base, width);
        }
    }
    out.extend_from_slice(&bits.to_le_bytes()[..values.div_ceil(8)]);
    for d in &deltas[..values] {
        out.extend_from_slice(&d.to_le_bytes()[..delta]);
    }
    form
}

fn decompress_line(form: u8, held: &[u8], line: &mut [u8]) {
    match form {
        ZEROS => line.fill(0),
        REPEATED => line.chunks_exact_mut(8).for_each(|v| v.copy_from_slice(held)),
        PLAIN => line.copy_from_slice(held),
        _ => {
            let (width, delta) = PAIRS[usize::from(form - FIRST_PAIR)];
            let values = line.len() / width;
            let (base, rest) = held.split_at(width);
            let (bits, deltas) = rest.split_at(values.div_ceil(8));
            let base = value(base);
            for (i, (v, d)) in
                line.chunks_exact_mut(width).zip(deltas.chunks_exact(delta)).enumerate()
            {
                let from = if bits[i / 8] >> (i % 8) & 1 == 1 { base } else { 0 };
                v.copy_from_slice(&from.wrapping_add(value(d)).to_le_bytes()[..width]);
            }
        }
    }
}

/// The base of a line in a form: the first value that is too far from zero. `None` where another is too far from both.
fn base(line: &[u8], (width, delta): (usize, usize)) -> Option<i64> {
    let mut far = line.chunks_exact(width).map(value).filter(|v| !fits(*v, delta));
    let base = far.next().unwrap_or(0);
    far.all(|v| fits(difference(v, base, width), delta)).then_some(base)
}

/// Little-endian bytes as a signed integer.
#[inline(always)]
fn value(bytes: &[u8]) -> i64 {
    match *bytes {
        [a] => i64::from(a.cast_signed()),
        [a, b] => i64::from(i16::from_le_bytes([a, b])),
        [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
        _ => bytes.first_chunk::<8>().map_or(0, |eight| i64::from_le_bytes(*eight)),
    }
}

/// `v - base`, wrapped to the width of a value.
#[inline(always)]
fn difference(v: i64, base: i64, width: usize) -> i64 {
    let unused = 64 - 8 * width;
    (v.wrapping_sub(base) << unused) >> unused
}

/// Whether a signed integer has so few bytes.
#[inline(always)]
fn fits(v: i64, bytes: usize) -> bool {
    let unused = 64 - 8 * bytes;
    (v << unused) >> unused == v
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: &[u8]) -> (u8, Vec<u8>) {
        let mut out = Vec::new();
        let form = compress_line(bytes, &mut out);
        assert_eq!(Some(out.len()), held(form, bytes.len()));
        let mut back = vec![0xAA; bytes.len()];
        decompress_line(form, &out, &mut back);
        assert_eq!(back, bytes);
        (form, out)
    }

    #[test]
    fn the_sizes_of_the_paper_hold_beside_the_bits_that_choose_the_base() {
        for (line, sizes) in [(32, [12, 16, 24, 12, 20, 18]), (64, [16, 24, 40, 20, 36, 34])] {
            for (i, (width, size)) in PAIRS.iter().zip(sizes).enumerate() {
                let bits = (line / width.0).div_ceil(8);
                assert_eq!(held(2 + u8::try_from(i).unwrap(), line), Some(size + bits));
            }
        }
    }

    #[test]
    fn the_paper_s_lines_take_their_form() {
        // Narrow values of four bytes (the paper's h264ref) and pointers with some zeros (perlbench, mcf).
        let narrow: Vec<u8> =
            [0u32, 0x0B, 3, 1, 4, 0, 3, 4].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(line(&narrow).0, 5);
        let near = [
            0xC040_39C0_u32,
            0xC040_39C8,
            0xC040_39D0,
            0xC040_39D8,
            0xC040_39E0,
            0xC040_39E8,
            0xC040_39F0,
            0xC040_39F8,
        ];
        let near: Vec<u8> = near.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(
            line(&near),
            (5, [&[0xC0, 0x39, 0x40, 0xC0, 0xFF][..], &[0, 8, 16, 24, 32, 40, 48, 56]].concat())
        );
        let mixed = [0u32, 0x09A4_0178, 0x0B, 1, 0x09A4_A838, 0x0A, 0x0B, 0x09A4_C2F0];
        let mixed: Vec<u8> = mixed.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(line(&mixed).0, PLAIN, "the pointers are more than two bytes' difference apart");
        let mixed = [0u32, 0x09A4_0178, 0x0B, 1, 0x09A4_3838, 0x0A, 0x0B, 0x09A4_62F0];
        let mixed: Vec<u8> = mixed.iter().flat_map(|v| v.to_le_bytes()).collect();
        let (form, held) = line(&mixed);
        assert_eq!((form, held[4]), (6, 0b1001_0010));
        assert_eq!(line(&[0; 64]), (ZEROS, vec![]));
        assert_eq!(line(&[5; 32]), (REPEATED, vec![5; 8]));
        let noise: Vec<u8> =
            (0..32u32).map(|i| i.wrapping_mul(0x9E37_79B9).to_le_bytes()[3]).collect();
        assert_eq!(line(&noise).0, PLAIN);
    }

    #[test]
    fn differences_wrap_around_and_reach_both_ends() {
        let wide = |a: u64, b: u64| -> Vec<u8> {
            [a, b, a, b].iter().flat_map(|v| v.to_le_bytes()).collect()
        };
        for (a, b) in [
            (i64::MAX.cast_unsigned(), i64::MIN.cast_unsigned()),
            (1 << 40, (1 << 40) + 127),
            (1 << 40, (1 << 40) - 128),
            (1 << 40, (1 << 40) + 128),
            (1 << 40, 127),
            (1 << 40, 128),
        ] {
            let (form, _) = line(&wide(a, b));
            let one_byte = b.wrapping_sub(a).wrapping_add(128) < 256 || b == 127;
            assert_eq!(form == 2, one_byte, "{a:x} {b:x}");
        }
    }
}
