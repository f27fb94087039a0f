//! `random_k:P%`, `random_k:K`: elements that are drawn by lot are kept, all others become zero.
//!
//! Each element draws a lot, and those with the largest are kept. The lot of element *i* of the
//! [`Stream`] is byte *floor(i / 64) mod 3*, where 0 is the lowest, of the draw of number *2^62 + 64 floor(i / 192) + i mod
//! 64*. Among equal lots the draw of number *i* decides, and
//! then the order of the elements: 32 bits in all, where most elements cost a third of a draw. `unbiased` multiplies the kept values by `n / k`, so that the tensor is right on average.
//! Workers whose streams are equal keep the same elements.
//!
//! # Bytes
//! See [`Family::layout`].
//!
//! # Source
//! Konečný et al. 2016, "Federated Learning: Strategies for Improving Communication Efficiency", arXiv:1610.05492, section 3
//! (subsampling, random masks from a seed); Wangni et al. 2018, "Gradient Sparsification for Communication-Efficient
//! Distributed Optimization", arXiv:1710.09854, for the factor.

use std::ops::Range;
use std::sync::Arc;

use super::Codec;
use super::select::{self, Chosen, Keys};
use super::sparse::{Choice, Sparse};
use crate::formats::HeadError;
use crate::{Family, Stream};

/// The paper, for the book.
const SOURCE: &str = "\
Konečný et al. 2016, Federated Learning: Strategies for Improving Communication Efficiency, [arXiv:1610.05492](https://arxiv.org/abs/1610.05492), section
3; Wangni et al. 2018, [arXiv:1710.09854](https://arxiv.org/abs/1710.09854), for the factor of `unbiased`";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
How many are kept follows from the shape: `P%` keeps `max(1, ceil(N P / 100))` of *N* elements, exactly, and a plain number
so many, or all if there are fewer. All other elements are zero.

| part | bytes |
|---|---|
| kept values in the order of the elements | 4 each, f32; 2 under `values:f16` and `values:bf16` |
| seed, tensor id, step of the stream that chose them; nothing where all are kept | 4, 4, 8 |

Values are finite, and under `unbiased` multiplied already. Draw *j* of a stream is word *j mod 4* of Philox4x32-10
with key (seed, tensor id) and counter (step, `floor(j / 4)`), each of 64 bits and the step first, shifted right by 8. The
lot of element *i* is byte `floor(i / 64) mod 3`, 0 being the lowest, of draw `2^62 + 64 floor(i / 192) + i mod 64`. Those
with the largest lots are kept, of equal ones those with the largest draw *i*, and of these the first.";

/// The row of the family.
pub(crate) struct RandomKFamily;

impl Family for RandomKFamily {
    fn syntax(&self) -> &'static str {
        "random_k:P% random_k:K"
    }

    fn about(&self) -> &'static str {
        "elements drawn by lot, and zeros; a reader draws the same, so that only values are stored"
    }

    fn members(&self) -> Vec<String> {
        ["random_k:1%", "random_k:30%/unbiased", "random_k:10%/values:bf16/feedback"]
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
        Sparse::parse(RandomK { unbiased: false }, head)
    }
}

/// Elements by lot.
#[derive(Clone, Copy, Debug)]
struct RandomK {
    unbiased: bool,
}

/// Bytes of a stream.
const STREAM_BYTES: usize = 16;

impl Choice for RandomK {
    const NAME: &'static str = "random_k";
    const ABOUT: &'static str = "elements drawn by lot, and zeros";
    const WORDS: &'static [&'static str] = &["unbiased", "values:f16", "values:bf16", "feedback"];

    fn with_word(&self, word: &str) -> Option<Result<Self, HeadError>> {
        (word == "unbiased").then(|| {
            if self.unbiased {
                return Err(HeadError {
                    message: "`unbiased` is said twice".into(),
                    help: "keep one of the two".into(),
                });
            }
            Ok(Self { unbiased: true })
        })
    }

    fn suffix(&self) -> &'static str {
        if self.unbiased { "/unbiased" } else { "" }
    }

    fn complaint(&self, feedback: bool) -> Option<HeadError> {
        (self.unbiased && feedback).then(|| HeadError {
            message: "`unbiased` and `feedback` do not go together: what is sent too large would be taken \
                      back, and the residual would grow"
                .into(),
            help: "keep one of the two".into(),
        })
    }

    fn factor(&self, n: usize, k: usize) -> f64 {
        if self.unbiased { n as f64 / k as f64 } else { 1.0 }
    }

    fn choose(&self, x: &[f32], k: usize, stream: &Stream) -> Chosen {
        select::largest(x.len(), k, &Lots(stream))
    }

    fn offsets(
        &self,
        chosen: &Chosen,
        x: &[f32],
        first: usize,
        stream: &Stream,
        offsets: &mut Vec<u16>,
    ) {
        chosen.offsets(&Lots(stream), first..first + x.len(), first, offsets);
    }

    fn bytes(&self, n: usize, k: usize) -> usize {
        if k < n { STREAM_BYTES } else { 0 }
    }

    fn write(&self, _: usize, _: &[usize], stream: &Stream, out: &mut [u8]) {
        let bytes = stream.to_bytes();
        out.copy_from_slice(&bytes[..out.len()]);
    }

    fn read(&self, n: usize, k: usize, bytes: &[u8]) -> Result<Vec<usize>, String> {
        let mut stored = [0; STREAM_BYTES];
        stored[..bytes.len()].copy_from_slice(bytes);
        let lots = Lots(&Stream::from_bytes(stored));
        Ok(select::largest(n, k, &lots).indices(n, &lots))
    }
}

/// The lots of a stream as keys.
struct Lots<'a>(&'a Stream);

/// The number of the first draw whose bytes are lots.
const FIRST_LOT: u64 = 1 << 62;

/// Draws whose bytes are the lots of three times as many elements.
const DRAWS: usize = 64;

impl Keys for Lots<'_> {
    const BITS: u32 = 8;
    const TIES: bool = true;

    fn fill(&self, range: Range<usize>, keys: &mut [u32]) {
        /// So many times as many draws are made at once.
        const TIMES: usize = 6;
        let (mut draws, mut lots) = ([0; TIMES * DRAWS], [0; 3 * TIMES * DRAWS]);
        let (mut at, mut keys) = (range.start, keys);
        while !keys.is_empty() {
            let (block, skip) = (at / (3 * DRAWS), at % (3 * DRAWS));
            let blocks = (skip + keys.len()).div_ceil(3 * DRAWS).min(TIMES);
            let (draws, lots) = (&mut draws[..blocks * DRAWS], &mut lots[..3 * blocks * DRAWS]);
            self.0.fill(FIRST_LOT + (block * DRAWS) as u64, draws);
            let blocks = draws.as_chunks::<DRAWS>().0.iter();
            for (draws, lots) in blocks.zip(lots.as_chunks_mut::<{ 3 * DRAWS }>().0) {
                for l in 0..DRAWS {
                    lots[l] = draws[l] & 255;
                    lots[l + DRAWS] = draws[l] >> 8 & 255;
                    lots[l + 2 * DRAWS] = draws[l] >> 16;
                }
            }
            let (now, later) = keys.split_at_mut(keys.len().min(lots.len() - skip));
            now.copy_from_slice(&lots[skip..skip + now.len()]);
            (at, keys) = (at + now.len(), later);
        }
    }

    fn tie(&self, index: usize) -> u32 {
        self.0.draw(index as u64)
    }

    /// Eight standard deviations to either side of where the least lot that wins is expected.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "lots are few, and a cast saturates"
    )]
    fn likely(&self, n: usize, k: usize) -> Range<u32> {
        let (n, k) = (n as f64, k as f64);
        let apart = 8.0 * k.sqrt() + 8.0;
        let lot = |reached: f64| ((1.0 - reached / n) * 256.0).clamp(0.0, 256.0);
        lot(k + apart).floor() as u32..lot(k - apart).ceil() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scheme;

    #[test]
    fn a_reader_finds_the_elements_from_the_stream_alone() {
        let scheme: Scheme = "random_k:10%".parse().unwrap();
        let x: Vec<f32> = (1..=1000u16).map(f32::from).collect();
        let stream = Stream::named(7, "conv1.dw").at_step(1 << 40);
        let mut bytes = Vec::new();
        scheme.encode(&x, &[1000], &stream, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 416);
        let mut back = vec![0.0; 1000];
        scheme.decode(&bytes, &[1000], &mut back).unwrap();
        assert_eq!(back.iter().filter(|v| **v != 0.0).count(), 100);
        assert!(back.iter().zip(&x).all(|(b, x)| *b == 0.0 || b == x));
        // They are those with the largest lots.
        let byte =
            |i: u64| stream.draw((1 << 62) + i / 192 * 64 + i % 64) >> (i / 64 % 3 * 8) & 255;
        let lot = |i: u64| (byte(i), stream.draw(i));
        let lots: Vec<_> = (0..1000).map(lot).collect();
        let kept = |i: usize| back[i] != 0.0;
        let least = (0..1000).filter(|i| kept(*i)).map(|i| lots[i]).min().unwrap();
        assert!((0..1000).all(|i| kept(i) == (lots[i] >= least)));
    }

    #[test]
    fn lots_are_the_same_wherever_a_window_begins() {
        let stream = Stream::new(5, 5);
        let mut all = vec![0; 5000];
        Lots(&stream).fill(0..5000, &mut all);
        for range in [0..1, 1..2, 2..5, 1..1025, 1024..2048, 2048..3072, 7..5000] {
            let mut part = vec![0; range.len()];
            Lots(&stream).fill(range.clone(), &mut part);
            assert_eq!(part, all[range]);
        }
    }

    #[test]
    fn unbiased_values_are_right_on_average() {
        let (n, rounds) = (50usize, 40_000u64);
        let x: Vec<f32> = (0..50u8).map(|i| f32::from(i) - 20.0).collect();
        for (text, k) in [("random_k:10%/unbiased", 5.0), ("random_k:17/unbiased", 17.0)] {
            let scheme: Scheme = text.parse().unwrap();
            let mut sums = vec![0.0f64; n];
            for step in 0..rounds {
                let mut y = x.clone();
                scheme.emulate(&mut y, &[n], &Stream::new(3, 9).at_step(step)).unwrap();
                sums.iter_mut().zip(&y).for_each(|(s, v)| *s += f64::from(*v));
            }
            let mut furthest: f64 = 0.0;
            for (sum, v) in sums.iter().zip(&x) {
                let v = f64::from(*v);
                let deviation = v.abs() * ((n as f64 / k - 1.0) / rounds as f64).sqrt();
                assert!((sum / rounds as f64 - v).abs() <= 4.0 * deviation, "{text} {v}");
                furthest = furthest.max((sum / rounds as f64 - v).abs() / deviation.max(1e-9));
            }
            assert!(furthest > 0.5, "fifty means are not all so near");
        }
    }

    #[test]
    fn scaling_up_and_error_feedback_exclude_each_other() {
        let error = "random_k:1%/unbiased/feedback".parse::<Scheme>().unwrap_err();
        assert!(error.to_string().contains("do not go together"), "{error}");
    }
}
