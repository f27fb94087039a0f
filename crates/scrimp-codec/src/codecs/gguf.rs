//! The simplest blocks of gguf files: 32 consecutive elements under an f16 scale.
//!
//! The bytes are those of a gguf tensor: block after block, each its scale *d*, then its codes.
//!
//! | | `q8_0` | `q4_0` |
//! |---|---|---|
//! | d | largest magnitude / 127 | value of largest magnitude / -8 |
//! | code q of x | x (1/d) rounded, halves away from zero | `min(15, trunc(x (1/d) + 8.5))` |
//! | value | q d | (q - 8) d |
//! | bytes | d as f16, then q as i8 for each element | d as f16, then 16 bytes: q of element *j* in the low half of byte *j*, that of element *j* + 16 in the high half |
//!
//! All little-endian; every operation is rounded to f32, and codes are found with d before it is rounded to f16. Blocks
//! follow the storage order of the tensor. The last may be short: it then has as many code bytes as elements (`q4_0`: but
//! at most 16), which no gguf file has, since there rows are multiples of 32.
//!
//! # Source
//! `ggml-quants.c` of ggml, and the Python package `gguf` of the same project.
//!
//! Differs: where d is too large for f16 it becomes 65504 instead of infinity, and values saturate; where 1/d is too
//! large for f32 the codes are those of zero; and zero has no sign.

use std::sync::Arc;

use super::bands::{each_band, split, survey};
use super::{Codec, DecodeError, Defaults, EncodeError, Job, Size, Tally, Terms};
use crate::families::Family;
use crate::formats::{Card, HeadError, Scaling};
use crate::granularity::{Band, elems};
use crate::simd::{self, Block32};
use crate::{Granularity, Range, Rounding, ShapeError};

const BLOCK: usize = 32;

/// The paper, for the book.
const SOURCE: &str = "\
`ggml-quants.c` of ggml, and the Python package `gguf` of the same project";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
The bytes are those of a gguf tensor: for each block of 32 elements in storage order the scale *d* as f16, then codes.

| | `q8_0` | `q4_0` |
|---|---|---|
| codes | *q* as i8 for each element | 16 bytes: *q* of element *j* in the low half of byte *j*, that of element *j* + 16 in the high half |
| value | `q d` | `(q - 8) d` |

Values are products rounded to f32. The last block may be short: it has as many code bytes as elements, in `q4_0` at most
16.";

/// `q8_0` and `q4_0`.
pub(crate) struct GgufFamily;

impl Family for GgufFamily {
    fn syntax(&self) -> &'static str {
        "q8_0 q4_0"
    }

    fn about(&self) -> &'static str {
        "the blocks of gguf files of these names, byte for byte: 32 integers of 8 or 4 bits under an f16 scale"
    }

    fn members(&self) -> Vec<String> {
        ["q8_0", "q4_0"].map(String::from).to_vec()
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let kind = match head {
            "q8_0" => Block32::Q8,
            "q4_0" => Block32::Q4,
            _ => return None,
        };
        Some(Ok(Arc::new(Gguf { kind })))
    }
}

/// Blocks of 32.
#[derive(Clone, Copy, Debug)]
struct Gguf {
    kind: Block32,
}

impl Gguf {
    /// Bytes of so many elements.
    fn bytes(self, elems: usize) -> Option<usize> {
        let (whole, rest) = (elems / BLOCK, elems % BLOCK);
        let last = if rest > 0 { self.kind.bytes(rest) } else { 0 };
        whole.checked_mul(self.kind.bytes(BLOCK))?.checked_add(last)
    }

    fn bands(shape: &[usize]) -> Result<Vec<Band>, ShapeError> {
        Ok(Granularity::Flat(BLOCK).layout(shape)?.bands())
    }
}

/// Sets what is not finite to what stands for it: NaN to zero, infinity to the largest magnitude of its block.
fn tame(x: &mut [f32]) {
    for block in x.chunks_mut(BLOCK) {
        let amax = Range::of_finite(block).or_zero().amax();
        for v in block {
            *v = if v.is_nan() { 0.0 } else { v.clamp(-amax, amax) };
        }
    }
}

impl Codec for Gguf {
    fn name(&self) -> String {
        match self.kind {
            Block32::Q8 => "q8_0",
            Block32::Q4 => "q4_0",
        }
        .into()
    }

    fn card(&self) -> Card {
        let (bits, min, max, about) = match self.kind {
            Block32::Q8 => (8, -127.0, 127.0, "gguf's Q8_0: blocks of 32 under an f16 scale"),
            Block32::Q4 => {
                (4, -8.0, 7.0, "gguf's Q4_0: blocks of 32 under an f16 scale with a sign")
            }
        };
        Card {
            name: self.name(),
            bits,
            exponent_bits: None,
            mantissa_bits: None,
            bias: None,
            min,
            max,
            min_normal: None,
            min_subnormal: None,
            specials: "none",
            overflow: "saturate",
            rounding: Rounding::HalfAway.word(),
            about: about.into(),
        }
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            scaling: Scaling::Never,
            granularity: Granularity::Flat(BLOCK),
            scales: &[],
            rounding: None,
        }
    }

    fn size(&self, _: &Terms, shape: &[usize]) -> Result<Size, ShapeError> {
        let bytes = self.bytes(elems(shape)?);
        bytes.map(Size::fixed).ok_or_else(|| ShapeError::TooLarge { shape: shape.to_vec() })
    }

    fn emulate(&self, job: Job, x: &mut [f32]) -> Result<Tally, EncodeError> {
        let Job { terms, shape, scheme, .. } = job;
        let bands = Self::bands(shape)?;
        let tallies = each_band(split(x, &bands, |band| band.elems.len()), &bands, |x, band| {
            let (_, tally) = survey(x, band.elems.start, terms.nonfinite)?;
            if tally != Tally::default() {
                tame(x);
            }
            simd::block32_emulate(self.kind, x);
            Ok(tally)
        });
        tallies.into_iter().try_fold(Tally::default(), |sum, seen| {
            seen.map(|seen| sum.join(seen)).map_err(|r: super::bands::Refusal| r.by(scheme))
        })
    }

    fn encode(&self, job: Job, x: &[f32], out: &mut Vec<u8>) -> Result<Tally, EncodeError> {
        let Job { terms, shape, scheme, .. } = job;
        let bands = Self::bands(shape)?;
        let too_large = || ShapeError::TooLarge { shape: shape.to_vec() };
        let start = out.len();
        out.resize(start + self.bytes(x.len()).ok_or_else(too_large)?, 0);
        let bytes = |band: &Band| self.bytes(band.elems.len()).unwrap_or(0);
        let tallies = each_band(split(&mut out[start..], &bands, bytes), &bands, |out, band| {
            let x = &x[band.elems.clone()];
            let (_, tally) = survey(x, band.elems.start, terms.nonfinite)?;
            if tally == Tally::default() {
                simd::block32_encode(self.kind, x, out);
            } else {
                let mut tamed = x.to_vec();
                tame(&mut tamed);
                simd::block32_encode(self.kind, &tamed, out);
            }
            Ok(tally)
        });
        let tally = tallies.into_iter().try_fold(Tally::default(), |sum, seen| {
            seen.map(|seen| sum.join(seen)).map_err(|r: super::bands::Refusal| r.by(scheme))
        });
        if tally.is_err() {
            out.truncate(start);
        }
        tally
    }

    fn decode(
        &self,
        _: &Terms,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        let bands = Self::bands(shape)?;
        let found = each_band(split(out, &bands, |band| band.elems.len()), &bands, |out, band| {
            let start = self.bytes(band.elems.start).unwrap_or(0);
            let bad = simd::block32_decode(self.kind, &bytes[start..], out);
            bad.map(|block| band.elems.start / BLOCK + block)
        });
        match found.into_iter().flatten().next() {
            None => Ok(()),
            Some(block) => Err(DecodeError::Corrupt {
                scheme: self.name(),
                reason: format!("the scale of block {block} is not a finite number"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{DecodeError, Scheme, Stream};

    fn encoded(text: &str, x: &[f32]) -> Vec<u8> {
        let scheme: Scheme = text.parse().unwrap();
        let mut bytes = Vec::new();
        scheme.encode(x, &[x.len()], &Stream::new(0, 0), &mut bytes).unwrap();
        bytes
    }

    fn emulated(text: &str, x: &[f32]) -> Vec<f32> {
        let scheme: Scheme = text.parse().unwrap();
        let mut x = x.to_vec();
        let shape = [x.len()];
        scheme.emulate(&mut x, &shape, &Stream::new(0, 0)).unwrap();
        x
    }

    #[test]
    fn bytes_are_where_gguf_has_them() {
        let x: Vec<f32> = (0..34u8).map(|i| f32::from(i) - 16.0).collect();
        let q8 = encoded("q8_0", &x);
        assert_eq!(q8.len(), 34 + 4);
        assert_eq!(q8[..2], half::f16::from_f32(16.0 / 127.0).to_le_bytes());
        assert_eq!((q8[2], q8[2 + 16], q8[2 + 31]), (129, 0, 119)); // -127, 0, 15 * 127 / 16
        assert_eq!(q8[34..36], half::f16::from_f32(17.0 / 127.0).to_le_bytes());
        let q4 = encoded("q4_0", &x);
        assert_eq!(q4.len(), 18 + 4);
        // The largest is -16, so d = 2: elements 0 and 16 are -16 and 0, the codes 0 and 8.
        assert_eq!(q4[..3], [0x00, 0x40, 0x80]);
        assert_eq!(q4[17], 15 << 4 | 8); // -1 and 15: trunc(-0.5 + 8.5) and min(15, 16)
    }

    #[test]
    fn huge_tiny_and_zero_blocks_stay_finite() {
        for text in ["q8_0", "q4_0"] {
            for x in
                [[f32::MAX, -1.0], [-f32::MAX, 1.0], [1e-45, 0.0], [-1e-40, 1e-41], [0.0, -0.0]]
            {
                let y = emulated(text, &x);
                assert!(y.iter().all(|v| v.is_finite()), "{text} {x:?} {y:?}");
                assert!(y[0] * x[0] >= 0.0, "{text} {x:?} {y:?}");
            }
            assert_eq!(emulated(text, &[0.0, -0.0]).map_bits(), [0, 0]);
        }
    }

    trait Bits {
        fn map_bits(&self) -> Vec<u32>;
    }

    impl Bits for Vec<f32> {
        fn map_bits(&self) -> Vec<u32> {
            self.iter().map(|v| v.to_bits()).collect()
        }
    }

    #[test]
    fn foreign_scales_that_are_no_numbers_are_refused() {
        let scheme: Scheme = "q8_0".parse().unwrap();
        let bytes = [0, 0x7c, 1, 1];
        assert!(matches!(
            scheme.decode(&bytes, &[2], &mut [0.0; 2]),
            Err(DecodeError::Corrupt { .. })
        ));
    }
}
