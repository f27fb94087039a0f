//! `top_k:P%`, `top_k:K`: the elements of the largest magnitude are kept, all others become zero.
//!
//! Of equal magnitudes the element that comes first is kept. Values are kept exactly, unless `values:f16` or `values:bf16`
//! says otherwise; `feedback` carries on what is lost.
//!
//! # Bytes
//! See [`Family::layout`].
//!
//! # Source
//! Aji and Heafield 2017, "Sparse Communication for Distributed Gradient Descent", arXiv:1704.05021, and Lin et al. 2018,
//! "Deep Gradient Compression", arXiv:1712.01887.
//! Differs: the threshold is exact and not estimated from a sample, so that the size is known beforehand.

use std::ops::Range;
use std::sync::Arc;

use super::Codec;
use super::places::Places;
use super::select::{self, Chosen, Keys};
use super::sparse::{Choice, Sparse};
use crate::formats::HeadError;
use crate::simd::select::magnitude_bits;
use crate::{Family, Stream};

/// The paper, for the book.
const SOURCE: &str = "\
Aji and Heafield 2017, Sparse Communication for Distributed Gradient Descent, [arXiv:1704.05021](https://arxiv.org/abs/1704.05021); Lin et al. 2018, Deep
Gradient Compression, [arXiv:1712.01887](https://arxiv.org/abs/1712.01887); indices: Elias 1974 and Fano 1971";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
How many are kept follows from the shape: `P%` keeps `max(1, ceil(N P / 100))` of *N* elements, exactly, and a plain number
so many, or all if there are fewer. All other elements are zero.

| part | bytes |
|---|---|
| kept values in the order of the elements | 4 each, f32; 2 under `values:f16` and `values:bf16` |
| which elements they are | none where all *k* are kept, else the shorter of the two codings below |

Values are finite; a reader refuses others. Which coding it is follows from *N* and *k* alone, the first where they are as
long:

- a bit for each element, packed as codes are everywhere, 1 where it is kept: `ceil(N / 8)` bytes;
- Elias-Fano, with `l = min(32, floor(log2(N / k)))`: the lowest *l* bits of each index, packed to a whole byte; then the
  rest of each index, *h*, of index number *j* from 0, as a 1 at bit *h + j*, in
  `ceil((k + floor((N - 1) / 2^l)) / 8)` bytes.";

/// The row of the family.
pub(crate) struct TopKFamily;

impl Family for TopKFamily {
    fn syntax(&self) -> &'static str {
        "top_k:P% top_k:K"
    }

    fn about(&self) -> &'static str {
        "the largest magnitudes, kept exactly, and zeros; a share of the tensor or a number of elements"
    }

    fn members(&self) -> Vec<String> {
        ["top_k:1%", "top_k:10%/values:f16", "top_k:30%/feedback", "top_k:100"]
            .map(String::from)
            .into()
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        Sparse::parse(TopK, head)
    }

    fn synonyms(&self) -> &'static [(&'static str, &'static str)] {
        &[("topk", "top_k:1%"), ("dgc", "top_k:0.1%")]
    }
}

/// The largest magnitudes.
#[derive(Clone, Copy, Debug)]
struct TopK;

impl Choice for TopK {
    const NAME: &'static str = "top_k";
    const ABOUT: &'static str = "the largest magnitudes, and zeros";
    const WORDS: &'static [&'static str] = &["values:f16", "values:bf16", "feedback"];

    const NEEDS_INDICES: bool = true;
    const MEETS_ALL: bool = true;

    fn choose(&self, x: &[f32], k: usize, _: &Stream) -> Chosen {
        select::largest(x.len(), k, &Magnitudes(x))
    }

    fn offsets(
        &self,
        chosen: &Chosen,
        x: &[f32],
        first: usize,
        _: &Stream,
        offsets: &mut Vec<u16>,
    ) {
        chosen.offsets(&Magnitudes(x), 0..x.len(), first, offsets);
    }

    fn bytes(&self, n: usize, k: usize) -> usize {
        Places::new(n, k).bytes()
    }

    fn write(&self, n: usize, indices: &[usize], _: &Stream, out: &mut [u8]) {
        Places::new(n, indices.len()).write(indices, out);
    }

    fn read(&self, n: usize, k: usize, bytes: &[u8]) -> Result<Vec<usize>, String> {
        Places::new(n, k).read(bytes)
    }
}

/// Magnitudes as keys: those of floats are ordered as their bits are.
struct Magnitudes<'a>(&'a [f32]);

/// From how many values a guess is made at most, and at least.
const SAMPLE: Range<usize> = 1 << 10..1 << 15;

/// One in so many is enough for a guess.
const STRIDE: usize = 16;

impl Keys for Magnitudes<'_> {
    const BITS: u32 = 31;
    const TIES: bool = false;

    fn fill(&self, range: Range<usize>, keys: &mut [u32]) {
        magnitude_bits(&self.0[range], keys);
    }

    fn tie(&self, _: usize) -> u32 {
        0
    }

    /// Five standard deviations to either side of where the least accepted magnitude lies in a sample.
    fn likely(&self, n: usize, k: usize) -> Range<u32> {
        let count = SAMPLE.end.min(n / STRIDE);
        if count < SAMPLE.start {
            return 0..0;
        }
        let stride = n / count;
        // A value from somewhere in each stride, so that rows of the tensor and strides do not keep step.
        let place = |j: usize| j * stride + j.wrapping_mul(0x9E37_79B1) / 8 % stride;
        let mut sample: Vec<u32> =
            (0..count).map(|j| !self.0[place(j)].to_bits() | 1 << 31).collect();
        let rank = k as u128 * count as u128 / n as u128;
        let rank = usize::try_from(rank).unwrap_or(count);
        let apart = 5 * rank.isqrt() + 5;
        let mut key = |rank: usize| !*sample.select_nth_unstable(rank).1;
        let end = rank.checked_sub(apart).map_or(1 << 31, |rank| key(rank) + 1);
        let start = if rank + apart < count { key(rank + apart) } else { 0 };
        start..end
    }
}

#[cfg(test)]
mod tests {
    use crate::{DecodeError, EncodeError, Memory, Scheme, Stream};

    fn emulated(scheme: &str, x: &[f32]) -> Vec<f32> {
        let scheme: Scheme = scheme.parse().unwrap();
        let mut y = x.to_vec();
        scheme.emulate(&mut y, &[x.len()], &Stream::new(0, 0)).unwrap();
        y
    }

    #[test]
    fn the_largest_magnitudes_stay_and_of_equals_the_first() {
        let x = [1.0, -3.0, 2.0, 3.0, -0.5, -3.0];
        assert_eq!(emulated("top_k:2", &x), [0.0, -3.0, 0.0, 3.0, 0.0, 0.0]);
        assert_eq!(emulated("top_k:50%", &x), [0.0, -3.0, 0.0, 3.0, 0.0, -3.0]);
        assert_eq!(emulated("top_k:1%", &x), [0.0, -3.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(emulated("top_k:100%", &x), x);
        assert_eq!(emulated("top_k:3", &[1e-45, 0.0, -1e-45, -0.0]), [1e-45, 0.0, -1e-45, 0.0]);
        assert_eq!(emulated("top_k:1/values:f16", &[1e9, -1.0]), [65504.0, 0.0]);
    }

    #[test]
    fn bytes_are_values_and_places() {
        let scheme: Scheme = "top_k:2/values:bf16".parse().unwrap();
        let mut x = [0.0; 64];
        (x[3], x[60]) = (-2.0, 1.0);
        let mut bytes = Vec::new();
        scheme.encode(&x, &[64], &Stream::new(0, 0), &mut bytes).unwrap();
        assert_eq!(bytes, [0x00, 0xc0, 0x80, 0x3f, 0b1000_0011, 0b11, 0b101]);
        assert_eq!(scheme.size(&[64]).unwrap().exact(), Some(7));
        bytes[6] = 0b1001;
        let error = scheme.decode(&bytes, &[64], &mut x).unwrap_err();
        assert!(
            matches!(&error, DecodeError::Corrupt { reason, .. } if reason.contains("64 elements"))
        );
        bytes[..2].copy_from_slice(&[0x80, 0x7f]);
        assert!(scheme.decode(&bytes, &[64], &mut x).is_err());
    }

    #[test]
    fn what_is_left_out_is_carried_on() {
        let scheme: Scheme = "top_k:1/feedback".parse().unwrap();
        let mut memory = scheme.memory(&[3]).unwrap();
        for expected in [[3.0, 0.0, 0.0], [0.0, 4.0, 0.0], [6.0, 0.0, 0.0], [0.0, 4.0, 0.0]] {
            let mut y = [3.0, 2.0, 1.0];
            scheme.emulate_next(&mut y, &[3], &Stream::new(0, 0), memory.as_mut()).unwrap();
            assert_eq!(y, expected);
        }
        assert_eq!(memory, Some(Memory::Residual { residual: vec![3.0, 0.0, 4.0] }));
        let plain: Scheme = "top_k:1".parse().unwrap();
        assert_eq!(plain.memory(&[3]).unwrap(), None);
        let error = plain.emulate_next(&mut [1.0; 3], &[3], &Stream::new(0, 0), memory.as_mut());
        assert!(matches!(error, Err(EncodeError::Memory { .. })));
    }
}
