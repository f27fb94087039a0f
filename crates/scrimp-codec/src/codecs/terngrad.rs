//! `terngrad`: gradients as zero and plus or minus the scale of the group, right on average.
//!
//! Values are clipped to `c` standard deviations of the group (`clip:2.5`; `noclip`: not at all). The scale `s` is the
//! largest magnitude that is left, and `floor(x / s + u)` the code, so that a value becomes `s` times its sign with
//! probability `|x| / s` and else zero. Workers may agree on the largest of their scales: see
//! [`Scheme::scales`](crate::Scheme::scales).
//!
//! # Bytes
//! See [`Family::layout`].
//!
//! # Source
//! Wen et al. 2017, "TernGrad", arXiv:1705.07878, eq. 1 to 3, and section 4 for clipping.
//! Differs: the released code takes `c` standard deviations as the scale even where no value is as large; here the scale is
//! the largest magnitude then, which has less variance. Where all values of a group are equal, the standard deviation is
//! zero and nothing is clipped. Codes lie in order, where the released code interleaves four quarters.

use std::sync::Arc;

use super::levels::{Coder, Fit, Levels, Packing, Rule, Sums, once, read_magnitude, rounded};
use super::ternary::{dense_suffix, three, three_level_card, trits};
use super::{Codec, Defaults};
use crate::formats::{Card, HeadError, Scaling};
use crate::simd::{amax_bits, levels::moments};
use crate::{Family, Granularity, Rounding, ScaleFormat};

/// The paper, for the book.
const SOURCE: &str = "\
Wen et al. 2017, TernGrad, [arXiv:1705.07878](https://arxiv.org/abs/1705.07878), eq. 1 to 3, and section 4 for clipping";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
| part | bytes |
|---|---|
| scale of each group; all bytes 0 for a group of zeros | 4 each, f32 |
| codes | `ceil(N / 4)`, under `dense` `ceil(N / 5)` |

Codes are 0 for zero, 1 above and 2 below, in the order of the elements. Two bits are packed as codes are everywhere, and
3 is no code. Under `dense`, a byte is `c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4` of five codes; above 242 it is none. What fills
the last byte is 0. The levels are the scale and its negation.";

/// The row of the family.
pub(crate) struct TernGradFamily;

impl Family for TernGradFamily {
    fn syntax(&self) -> &'static str {
        "terngrad"
    }

    fn about(&self) -> &'static str {
        "three levels: zero, and the largest magnitude with a probability that makes it right on average (TernGrad)"
    }

    fn members(&self) -> Vec<String> {
        ["terngrad", "terngrad/dense", "terngrad/noclip", "terngrad/clip:1.5"]
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
        (head == "terngrad").then(|| Ok(Levels::of(TernGrad { clip: None, dense: None })))
    }
}

/// How far from zero values may be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Clip {
    /// In standard deviations.
    Deviations(f64),
    Never,
}

/// The default of the paper.
const USUAL: Clip = Clip::Deviations(2.5);

/// Zero and the scale, at random.
#[derive(Clone, Copy, Debug)]
struct TernGrad {
    /// What a word says.
    clip: Option<Clip>,
    dense: Option<()>,
}

impl Rule for TernGrad {
    fn name(&self) -> &'static str {
        "terngrad"
    }

    fn suffix(&self) -> String {
        let clip = match self.clip.filter(|c| *c != USUAL) {
            None => String::new(),
            Some(Clip::Never) => "/noclip".into(),
            Some(Clip::Deviations(c)) => format!("/clip:{c}"),
        };
        dense_suffix(self.dense) + &clip
    }

    fn card(&self) -> Card {
        let name = format!("terngrad{}", self.suffix());
        three_level_card(name, Rounding::Stochastic, "zero, and the largest magnitude at random")
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            scaling: Scaling::Always,
            granularity: Granularity::Tensor,
            scales: &[ScaleFormat::F32],
            rounding: Some(Rounding::Stochastic),
        }
    }

    fn words(&self) -> &'static [&'static str] {
        &["dense", "clip:2.5", "noclip"]
    }

    fn with_word(&self, word: &str) -> Option<Result<Self, HeadError>> {
        let mut changed = *self;
        let clip = match word {
            "dense" => return Some(once(&mut changed.dense, (), "`dense`").map(|()| changed)),
            "noclip" => Clip::Never,
            _ => match word.strip_prefix("clip:")?.parse::<f64>() {
                Ok(c) if c >= 0.1 && c.is_finite() => Clip::Deviations(c),
                _ => {
                    return Some(Err(HeadError {
                        message: format!(
                            "`{word}` needs a number of standard deviations from 0.1 on"
                        ),
                        help: "write for example `clip:2.5`, or `noclip`".into(),
                    }));
                }
            },
        };
        Some(once(&mut changed.clip, clip, "the clipping").map(|()| changed))
    }

    fn coder(&self) -> Coder {
        Coder::Share
    }

    fn packing(&self) -> Packing {
        trits(self.dense)
    }

    fn sum(&self, _: usize, x: &[f32], _: &Fit) -> Sums {
        let clips = self.clip.unwrap_or(USUAL) != Clip::Never;
        let (mean, square) = if clips { moments(x) } else { (0.0, 0.0) };
        let largest = f32::from_bits(amax_bits(x));
        Sums { count: [x.len() as f64, 0.0], mean, square, largest, ..Sums::default() }
    }

    fn add_one(&self, pass: usize, x: f32, fit: &Fit, total: &mut Sums) {
        *total = total.join(self.sum(pass, &[x], fit));
    }

    fn fit(&self, _: usize, sums: &Sums, _: Option<ScaleFormat>, fit: &mut Fit) {
        let mut limit = sums.largest;
        if let Clip::Deviations(c) = self.clip.unwrap_or(USUAL)
            && sums.square > 0.0
        {
            limit = limit.min(rounded(c * (sums.square / sums.count[0]).sqrt()));
        }
        fit.limit = limit;
        *fit = with_scale(fit, limit);
    }

    fn read(&self, store: Option<ScaleFormat>, bytes: &[u8]) -> Option<[f32; 3]> {
        read_magnitude(store, bytes).map(three)
    }

    fn with_scale(&self, fit: &Fit, scale: f32) -> Option<Fit> {
        Some(with_scale(fit, scale))
    }
}

fn with_scale(fit: &Fit, scale: f32) -> Fit {
    if scale > 0.0 {
        let scale = ScaleFormat::F32.store(scale);
        Fit { levels: three(scale), scale, ..*fit }
    } else {
        // Nothing but zeros: any scale gives their codes.
        Fit { levels: three(0.0), scale: 1.0, limit: 0.0, ..*fit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codecs::levels::tests::assert_one_is_a_block;
    use crate::{EncodeError, Memory, Scheme, Stream};

    fn scheme(text: &str) -> Scheme {
        text.parse().unwrap()
    }

    #[test]
    fn the_worked_example_of_the_specification_holds() {
        let x = [0.3, -0.1, 0.0, 0.05, -0.2];
        let terngrad = scheme("terngrad");
        assert_eq!(terngrad.scales(&x, &[5]).unwrap(), [0.3]);
        // A draw of u = 0.5 rounds as half-away does on these values: {.3, 0, 0, 0, -.3}.
        let mut y = x;
        scheme("terngrad/half-away").emulate(&mut y, &[5], &Stream::new(0, 0)).unwrap();
        assert_eq!(y, [0.3, 0.0, 0.0, 0.0, -0.3]);
        // The draws themselves decide, element by element.
        let stream = Stream::named(3, "g").at_step(9);
        let mut y = x;
        terngrad.emulate(&mut y, &[5], &stream).unwrap();
        for (i, (v, got)) in x.iter().zip(y).enumerate() {
            let share = f64::from(*v / 0.3);
            let code = (share + f64::from(stream.draw(i as u64)) / 16_777_216.0).floor();
            assert_eq!(f64::from(got), code * f64::from(0.3f32));
        }
    }

    #[test]
    fn clipping_cuts_outliers_and_nothing_else() {
        let mut x = [0.0f32; 100];
        x[7] = 10.0;
        // The mean is 0.1, the variance 0.99, and 2.5 deviations 2.487...
        let s = scheme("terngrad").scales(&x, &[100]).unwrap()[0];
        assert!((f64::from(s) - 2.5 * 0.99f64.sqrt()).abs() < 1e-6, "{s}");
        assert_eq!(scheme("terngrad/noclip").scales(&x, &[100]).unwrap(), [10.0]);
        assert_eq!(scheme("terngrad/clip:20").scales(&x, &[100]).unwrap(), [10.0]);
        for value in [1e-40, 0.1, 3.0, f32::MAX] {
            let s = scheme("terngrad").scales(&[value; 3000], &[3000]).unwrap();
            assert_eq!(s, [value.max(f32::MIN_POSITIVE)]);
        }
    }

    #[test]
    fn workers_that_share_a_scale_have_codes_that_add_up() {
        let terngrad = scheme("terngrad/noclip");
        let (a, b) = ([0.3, -0.1, 0.0, 0.05], [-0.6, 0.6, 0.1, 0.0]);
        let own = [&a, &b].map(|x| terngrad.scales(x, &[4]).unwrap()[0]);
        let mut shared = Memory::Shared { scales: vec![own[0].max(own[1])] };
        for x in [a, b] {
            let (mut y, mut bytes, mut back) = (x, Vec::new(), [0.0; 4]);
            let stream = Stream::new(1, 1);
            terngrad.encode_next(&x, &[4], &stream, Some(&mut shared), &mut bytes).unwrap();
            terngrad.emulate_next(&mut y, &[4], &stream, Some(&mut shared)).unwrap();
            terngrad.decode(&bytes, &[4], &mut back).unwrap();
            assert_eq!(y, back);
            assert_eq!(bytes[..4], 0.6f32.to_le_bytes());
            assert!(y.iter().all(|v| [0.0, 0.6, -0.6].contains(v)));
        }
        for scales in [vec![], vec![0.5, 0.5], vec![f32::NAN], vec![-1.0]] {
            let mut memory = Memory::Shared { scales };
            let error =
                terngrad.emulate_next(&mut a.clone(), &[4], &Stream::new(0, 0), Some(&mut memory));
            assert!(matches!(error, Err(EncodeError::Memory { .. })), "{error:?}");
        }
    }

    #[test]
    fn it_is_right_on_average_and_without_bias_for_each_value() {
        let n = 1 << 20;
        for text in ["terngrad/noclip", "terngrad/noclip/dense"] {
            for value in [0.37f32, -0.0501, 0.999, -1e-4] {
                let mut x = vec![value; n];
                x[0] = 1.0;
                scheme(text).emulate(&mut x, &[n], &Stream::named(5, text)).unwrap();
                let rest = &x[1..];
                let mean = rest.iter().map(|v| f64::from(*v)).sum::<f64>() / rest.len() as f64;
                let p = f64::from(value.abs());
                let slack = 4.0 * (p * (1.0 - p) / n as f64).sqrt();
                assert!(
                    (mean - f64::from(value)).abs() < slack,
                    "{text} {value}: {mean} +- {slack}"
                );
            }
        }
    }

    #[test]
    fn scattered_values_are_summed_as_others() {
        assert_one_is_a_block(&TernGrad { clip: None, dense: None });
        assert_one_is_a_block(&TernGrad { clip: Some(Clip::Never), dense: None });
    }
}
