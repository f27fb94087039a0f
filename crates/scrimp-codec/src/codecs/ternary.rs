//! `ternary`: values of small magnitude become zero, and all others the mean magnitude of these others.
//!
//! The threshold is 0.7 times the mean magnitude of the group (`thr:0.5` takes another factor), and a value is compared with
//! it exactly, as the mean is an `f64`.
//!
//! # Bytes
//! See [`Family::layout`].
//!
//! # Source
//! Li and Liu 2016, "Ternary Weight Networks", arXiv:1605.04711, eq. 5 and 6.

use std::sync::Arc;

use super::binary::MEAN_SCALES;
use super::levels::{
    Coder, Fit, Levels, Packing, Rule, Sums, once, read_magnitude, stored_magnitude,
};
use super::{Codec, Defaults};
use crate::formats::{Card, HeadError, Scaling};
use crate::simd::levels::{magnitudes, magnitudes_above};
use crate::{Family, Granularity, Rounding, ScaleFormat};

/// The paper, for the book.
const SOURCE: &str = "\
Li and Liu 2016, Ternary Weight Networks, [arXiv:1605.04711](https://arxiv.org/abs/1605.04711), eq. 5 and 6";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
| part | bytes |
|---|---|
| upper level of each group, stored as a scale is; all bytes 0 where there is none | 4, 2 or 1 each |
| codes | `ceil(N / 4)`, under `dense` `ceil(N / 5)` |

Codes are 0 for zero, 1 above and 2 below, in the order of the elements. Two bits are packed as codes are everywhere, and
3 is no code. Under `dense`, a byte is `c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4` of five codes; above 242 it is none. What fills
the last byte is 0. The lower level is the negated upper one.";

/// The row of the family.
pub(crate) struct TernaryFamily;

impl Family for TernaryFamily {
    fn syntax(&self) -> &'static str {
        "ternary"
    }

    fn about(&self) -> &'static str {
        "three levels: zero, and the mean magnitude of what is above 0.7 of the mean (TWN); 2 bits, or 1.6 as ternary/dense"
    }

    fn members(&self) -> Vec<String> {
        ["ternary", "ternary/dense", "ternary/thr:0.5"].map(String::from).into()
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        (head == "ternary").then(|| Ok(Levels::of(Ternary { factor: None, dense: None })))
    }

    fn synonyms(&self) -> &'static [(&'static str, &'static str)] {
        &[("twn", "ternary")]
    }
}

/// Zero and a mean magnitude.
#[derive(Clone, Copy, Debug)]
struct Ternary {
    /// The threshold over the mean magnitude, where a word says it.
    factor: Option<f64>,
    dense: Option<()>,
}

/// The factor of the paper, which is best for values that are spread evenly or normally.
const FACTOR: f64 = 0.7;

/// The largest factor: some value is always above it.
const MOST: f64 = 0.99;

impl Rule for Ternary {
    fn name(&self) -> &'static str {
        "ternary"
    }

    fn suffix(&self) -> String {
        let factor = self.factor.filter(|f| *f != FACTOR).map(|f| format!("/thr:{f}"));
        dense_suffix(self.dense) + &factor.unwrap_or_default()
    }

    fn card(&self) -> Card {
        let name = format!("ternary{}", self.suffix());
        three_level_card(
            name,
            Rounding::NearestEven,
            "zero, and the mean magnitude of the larger values",
        )
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            scaling: Scaling::Always,
            granularity: Granularity::Tensor,
            scales: &MEAN_SCALES,
            rounding: None,
        }
    }

    fn words(&self) -> &'static [&'static str] {
        &["dense", "thr:0.7"]
    }

    fn with_word(&self, word: &str) -> Option<Result<Self, HeadError>> {
        let mut changed = *self;
        if word == "dense" {
            return Some(once(&mut changed.dense, (), "`dense`").map(|()| changed));
        }
        let factor = word.strip_prefix("thr:")?;
        Some(match factor.parse::<f64>() {
            Ok(f) if (0.0..=MOST).contains(&f) => {
                once(&mut changed.factor, f.abs(), "the threshold").map(|()| changed)
            }
            _ => Err(HeadError {
                message: format!("`{word}`: the threshold is 0 to {MOST} times the mean magnitude"),
                help: "write for example `thr:0.7`".into(),
            }),
        })
    }

    fn coder(&self) -> Coder {
        Coder::Magnitude
    }

    fn packing(&self) -> Packing {
        trits(self.dense)
    }

    fn passes(&self) -> usize {
        2
    }

    fn sum(&self, pass: usize, x: &[f32], fit: &Fit) -> Sums {
        let (sum, count) = if pass == 0 {
            (magnitudes(x), x.len() as f64)
        } else {
            let (sum, count) = magnitudes_above(x, fit.cut);
            (sum, f64::from(count))
        };
        Sums { count: [count, 0.0], sum: [sum, 0.0], ..Sums::default() }
    }

    fn add_one(&self, pass: usize, x: f32, fit: &Fit, total: &mut Sums) {
        if pass == 0 || x.abs() > fit.cut {
            total.count[0] += 1.0;
            total.sum[0] += f64::from(x.abs());
        }
    }

    fn fit(&self, pass: usize, sums: &Sums, store: Option<ScaleFormat>, fit: &mut Fit) {
        let mean = sums.sum[0] / sums.count[0].max(1.0);
        if pass == 0 {
            fit.cut = below(mean * self.factor.unwrap_or(FACTOR));
        } else {
            fit.levels = three(stored_magnitude(mean, store));
        }
    }

    fn read(&self, store: Option<ScaleFormat>, bytes: &[u8]) -> Option<[f32; 3]> {
        read_magnitude(store, bytes).map(three)
    }
}

/// The largest `f32` that is not above `x`: a value is above both or above neither.
#[expect(clippy::cast_possible_truncation, reason = "the rounding is put right after it")]
fn below(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) > x { near.next_down() } else { near }
}

/// The values of the codes 0, 1 and 2.
pub(super) fn three(level: f32) -> [f32; 3] {
    [0.0, level, -level]
}

/// The packing of three levels.
pub(super) fn trits(dense: Option<()>) -> Packing {
    if dense.is_some() { Packing::Trits } else { Packing::Pairs }
}

/// The word of the packing.
pub(super) fn dense_suffix(dense: Option<()>) -> String {
    if dense.is_some() { "/dense".into() } else { String::new() }
}

/// The card of a codec of three levels.
pub(super) fn three_level_card(name: String, rounding: Rounding, about: &str) -> Card {
    Card { name, bits: 2, rounding: rounding.word(), ..super::sign::one_bit_card("", about) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codecs::levels::tests::assert_one_is_a_block;
    use crate::{DecodeError, Scheme, Stream};

    fn encoded(scheme: &str, x: &[f32]) -> Vec<u8> {
        let scheme: Scheme = scheme.parse().unwrap();
        let mut bytes = Vec::new();
        scheme.encode(x, &[x.len()], &Stream::new(0, 0), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_worked_examples_of_the_specification_hold() {
        let scheme: Scheme = "ternary".parse().unwrap();
        let mut x = [0.5, -0.3, 0.2, -1.0];
        scheme.emulate(&mut x, &[4], &Stream::new(0, 0)).unwrap();
        assert_eq!(x, [0.75, 0.0, 0.0, -0.75]);
        // Codes 2, 1, 0, 2, 0, 1 are bytes 86 04, and the first five of them the number 59.
        let x = [-1.0, 1.0, 0.0, -1.0, 0.0, 1.0];
        assert_eq!(encoded("ternary", &x)[4..], [0x86, 0x04]);
        assert_eq!(encoded("ternary/dense", &x)[4..], [59, 1]);
    }

    #[test]
    fn the_threshold_is_a_word() {
        let x = [0.5, -0.3, 0.2, -1.0];
        assert_eq!(encoded("ternary/thr:0.5", &x)[4..], [0b10_00_10_01]);
        assert_eq!(encoded("ternary/thr:0", &x)[4..], [0b10_01_10_01]);
        for text in
            ["ternary/thr:1", "ternary/thr:x", "ternary/thr:0.5/thr:0.6", "ternary/dense/dense"]
        {
            assert!(text.parse::<Scheme>().is_err(), "{text}");
        }
        assert_eq!("ternary/thr:0.7".parse::<Scheme>().unwrap().to_string(), "ternary");
    }

    #[test]
    fn a_constant_keeps_its_value_however_small_it_is() {
        for value in [1.0, 1e-45, f32::MAX, -3.5e-39] {
            for scheme in ["ternary", "ternary/thr:0.99"] {
                let scheme: Scheme = scheme.parse().unwrap();
                let mut x = [value; 3];
                scheme.emulate(&mut x, &[3], &Stream::new(0, 0)).unwrap();
                assert_eq!(x, [value.signum() * value.abs().max(f32::MIN_POSITIVE); 3]);
            }
        }
    }

    #[test]
    fn a_code_that_does_not_exist_is_refused() {
        for (scheme, byte) in [("ternary", 0b0000_1100), ("ternary/dense", 243)] {
            let scheme: Scheme = scheme.parse().unwrap();
            let bytes = [0, 0, 0x80, 0x3f, byte];
            let error = scheme.decode(&bytes, &[4], &mut [0.0; 4]).unwrap_err();
            assert!(matches!(error, DecodeError::Corrupt { .. }), "{error}");
        }
        let scheme: Scheme = "ternary".parse().unwrap();
        assert!(scheme.decode(&[0, 0, 0xc0, 0x7f, 0], &[4], &mut [0.0; 4]).is_err());
    }

    #[test]
    fn scattered_values_are_summed_as_others() {
        assert_one_is_a_block(&Ternary { factor: None, dense: None });
    }
}
