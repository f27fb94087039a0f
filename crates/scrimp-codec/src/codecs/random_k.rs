//! `random_k:P%`, `random_k:K`: elements that are drawn by lot are kept, all others become zero.
//!
//! Each element draws a number of its [`Stream`], and those with the largest are kept; of equal numbers, of which there are
//! 2^24, the one that comes first. `unbiased` multiplies the kept values by `n / k`, so that the tensor is right on average.
//! Workers whose streams are equal keep the same elements.
//!
//! # Bytes
//! See [`Family::layout`].
//!
//! # Source
//! Konečný et al. 2016, "Federated Learning: Strategies for Improving Communication Efficiency", arXiv:1610.05492, section 3
//! (subsampling, random masks from a seed); Wangni et al. 2018, "Gradient Sparsification for Communication-Efficient
//! Distributed Optimization", arXiv:1710.09854, for the factor.

use std::sync::Arc;

use super::Codec;
use super::select;
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

Values are finite, and under `unbiased` multiplied already. Element *i* draws word *i mod 4* of Philox4x32-10 with key
(seed, tensor id) and counter (step, `floor(i / 4)`), each of 64 bits and the step first, shifted right by 8. Those with
the largest draws are kept, of equal ones the first.";

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

/// Bits of a draw.
const DRAW_BITS: u32 = 24;

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

    fn indices(&self, x: &[f32], k: usize, stream: &Stream) -> Vec<usize> {
        drawn(x.len(), k, stream)
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
        Ok(drawn(n, k, &Stream::from_bytes(stored)))
    }
}

/// The elements with the largest draws.
fn drawn(n: usize, k: usize, stream: &Stream) -> Vec<usize> {
    select::largest(n, k, DRAW_BITS, likely(n, k), |at, draws| stream.fill(at.start as u64, draws))
}

/// A draw that at least `k` of `n` elements reach in all but one of 10^15 cases: eight standard deviations more than `k`
/// are expected to. It saves a pass over the draws and changes nothing else.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "any number will do, and a cast saturates"
)]
fn likely(n: usize, k: usize) -> u32 {
    let (n, k) = (n as f64, k as f64);
    let share = (k + 8.0 * k.sqrt() + 8.0) / n;
    ((1.0 - share).max(0.0) * f64::from(1u32 << DRAW_BITS)) as u32
}

#[cfg(test)]
mod tests {
    use crate::{Scheme, Stream};

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
        // They are those with the largest draws.
        let draws: Vec<u32> = (0..1000).map(|i| stream.draw(i)).collect();
        let kept = |i: usize| back[i] != 0.0;
        let least = (0..1000).filter(|i| kept(*i)).map(|i| draws[i]).min().unwrap();
        assert!((0..1000).all(|i| kept(i) == (draws[i] >= least)));
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
