//! `binary`: one bit for each value, the sign, times the mean magnitude of the group.
//!
//! # Bytes
//! See [`Family::layout`].
//!
//! # Source
//! Rastegari et al. 2016, "XNOR-Net", arXiv:1603.05279, section 3.1. `binary/channel/scale:log2` is the weight of Qin et al.
//! 2020, "Forward and Backward Information Retention for Accurate Binary Neural Networks" (IR-Net), arXiv:1909.10788,
//! eq. 12, after it was standardized, which is the quantizer's affair.
//! Differs: the sign of zero is 1, as one bit has no third value.

use std::sync::Arc;

use super::levels::{Coder, Fit, Levels, Packing, Rule, Sums, read_magnitude, stored_magnitude};
use super::sign::one_bit_card;
use super::{Codec, Defaults};
use crate::formats::{Card, HeadError, Scaling};
use crate::simd::levels::magnitudes;
use crate::{Family, Granularity, ScaleFormat};

/// The paper, for the book.
const SOURCE: &str = "\
Rastegari et al. 2016, XNOR-Net, [arXiv:1603.05279](https://arxiv.org/abs/1603.05279), section 3.1; with `channel/scale:log2` the weights of IR-Net,
Qin et al. 2020, [arXiv:1909.10788](https://arxiv.org/abs/1909.10788), eq. 12";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
| part | bytes |
|---|---|
| mean magnitude of each group, stored as a scale is; all bytes 0 for a group of zeros | 4, 2 or 1 each |
| a bit for each element: 1 for zero and above, 0 below | `ceil(N / 8)` |

Bits lie in the order of the elements, packed as codes are everywhere. `value = mean` for a 1 and `-mean` for a 0.";

/// The row of the family.
pub(crate) struct BinaryFamily;

impl Family for BinaryFamily {
    fn syntax(&self) -> &'static str {
        "binary"
    }

    fn about(&self) -> &'static str {
        "one bit: the sign times the mean magnitude of the group (XNOR-Net)"
    }

    fn members(&self) -> Vec<String> {
        vec!["binary".into()]
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        (head == "binary").then(|| Ok(Levels::of(Binary)))
    }

    fn synonyms(&self) -> &'static [(&'static str, &'static str)] {
        &[("bwn", "binary"), ("xnor", "binary")]
    }
}

/// How a mean magnitude may be stored.
pub(super) static MEAN_SCALES: [ScaleFormat; 5] =
    [ScaleFormat::F32, ScaleFormat::F16, ScaleFormat::Bf16, ScaleFormat::Pow2, ScaleFormat::Log2];

/// Signs times a mean magnitude.
#[derive(Clone, Copy, Debug)]
struct Binary;

impl Rule for Binary {
    fn name(&self) -> &'static str {
        "binary"
    }

    fn card(&self) -> Card {
        one_bit_card(
            "binary",
            "the sign times the mean magnitude of the group; zero counts as positive",
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

    fn coder(&self) -> Coder {
        Coder::Side
    }

    fn packing(&self) -> Packing {
        Packing::Bits
    }

    fn sum(&self, _: usize, x: &[f32], _: &Fit) -> Sums {
        Sums { count: [x.len() as f64, 0.0], sum: [magnitudes(x), 0.0], ..Sums::default() }
    }

    fn add_one(&self, _: usize, x: f32, _: &Fit, total: &mut Sums) {
        total.count[0] += 1.0;
        total.sum[0] += f64::from(x.abs());
    }

    fn fit(&self, _: usize, sums: &Sums, store: Option<ScaleFormat>, fit: &mut Fit) {
        fit.levels = signed(stored_magnitude(sums.sum[0] / sums.count[0].max(1.0), store));
    }

    fn read(&self, store: Option<ScaleFormat>, bytes: &[u8]) -> Option<[f32; 3]> {
        read_magnitude(store, bytes).map(signed)
    }
}

fn signed(magnitude: f32) -> [f32; 3] {
    [-magnitude, magnitude, 0.0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codecs::levels::tests::assert_one_is_a_block;
    use crate::{Scheme, Stream};

    fn emulated<const N: usize>(scheme: &str, mut x: [f32; N], shape: &[usize]) -> [f32; N] {
        let scheme: Scheme = scheme.parse().unwrap();
        scheme.emulate(&mut x, shape, &Stream::new(0, 0)).unwrap();
        x
    }

    #[test]
    fn the_worked_example_of_the_specification_holds() {
        let x = [0.5, -0.3, 0.2, -1.0];
        assert_eq!(emulated("binary", x, &[4]), [0.5, -0.5, 0.5, -0.5]);
    }

    #[test]
    fn the_weights_of_ir_net_have_a_power_of_two() {
        // {.4, -.1, .3, -.2} standardized, whose mean magnitude is 0.8492.
        let x = [1.019, -0.6794, 0.6794, -1.019];
        assert_eq!(emulated("binary/channel/scale:log2", x, &[1, 4]), [1.0, -1.0, 1.0, -1.0]);
        let half = x.map(|v| v * 0.8);
        assert_eq!(emulated("binary/scale:log2", half, &[4]), [0.5, -0.5, 0.5, -0.5]);
        assert_eq!(emulated("binary/scale:pow2", half, &[4]), [1.0, -1.0, 1.0, -1.0]);
    }

    #[test]
    fn the_largest_and_smallest_values_stay_what_they_are() {
        for scheme in ["binary", "binary/flat:3"] {
            assert_eq!(
                emulated(scheme, [f32::MAX, f32::MIN, f32::MAX], &[3]),
                [f32::MAX, f32::MIN, f32::MAX]
            );
            assert_eq!(emulated(scheme, [1e-45; 3], &[3]), [f32::MIN_POSITIVE; 3]);
        }
    }

    #[test]
    fn scattered_values_are_summed_as_others() {
        assert_one_is_a_block(&Binary);
    }
}
