//! `sign`: one bit for each value, which is 1 or -1, and nothing else.
//!
//! # Bytes
//! See [`Family::layout`].
//!
//! # Source
//! Courbariaux, Bengio and David 2015, "BinaryConnect", arXiv:1511.00363, eq. 1: the deterministic sign, with sign(0) = 1.

use std::sync::Arc;

use super::levels::{Coder, Fit, Levels, Packing, Rule, Sums};
use super::{Codec, Defaults, Terms};
use crate::formats::{Card, HeadError, Scaling};
use crate::granularity::Layout;
use crate::{Family, Granularity, Rounding, ScaleFormat, ShapeError};

/// The paper, for the book.
const SOURCE: &str = "\
Courbariaux, Bengio and David 2015, BinaryConnect, [arXiv:1511.00363](https://arxiv.org/abs/1511.00363), eq. 1";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
A bit for each element, in the order of the elements, packed as codes are everywhere: 1 for zero and above, which reads as 1, and 0 below, which reads
as -1.";

/// The row of the family.
pub(crate) struct SignFamily;

impl Family for SignFamily {
    fn syntax(&self) -> &'static str {
        "sign"
    }

    fn about(&self) -> &'static str {
        "one bit: plain 1 and -1, without a scale; zero is 1"
    }

    fn members(&self) -> Vec<String> {
        vec!["sign".into()]
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        (head == "sign").then(|| Ok(Levels::of(Sign)))
    }
}

/// Plain signs.
#[derive(Clone, Copy, Debug)]
struct Sign;

impl Rule for Sign {
    fn name(&self) -> &'static str {
        "sign"
    }

    fn card(&self) -> Card {
        one_bit_card("sign", "the sign alone: 1 or -1, and 1 for zero")
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            scaling: Scaling::Never,
            granularity: Granularity::Tensor,
            scales: &[],
            rounding: None,
        }
    }

    /// Nothing is kept of a group, so groups are only what is worked on at a time.
    fn layout(&self, _: &Terms, shape: &[usize]) -> Result<Layout, ShapeError> {
        Granularity::Flat(8192).layout(shape)
    }

    fn coder(&self) -> Coder {
        Coder::Side
    }

    fn packing(&self) -> Packing {
        Packing::Bits
    }

    fn sum(&self, _: usize, _: &[f32], _: &Fit) -> Sums {
        Sums::default()
    }

    fn add_one(&self, _: usize, _: f32, _: &Fit, _: &mut Sums) {}

    fn fit(&self, _: usize, _: &Sums, _: Option<ScaleFormat>, fit: &mut Fit) {
        fit.levels = SIGNS;
    }

    fn width(&self, _: Option<ScaleFormat>) -> usize {
        0
    }

    fn write(&self, _: &Fit, _: Option<ScaleFormat>, _: &mut [u8]) {}

    fn read(&self, _: Option<ScaleFormat>, _: &[u8]) -> Option<[f32; 3]> {
        Some(SIGNS)
    }
}

const SIGNS: [f32; 3] = [-1.0, 1.0, 0.0];

/// The card of a codec of one bit.
pub(super) fn one_bit_card(name: &str, about: &str) -> Card {
    Card {
        name: name.into(),
        bits: 1,
        exponent_bits: None,
        mantissa_bits: None,
        bias: None,
        min: -1.0,
        max: 1.0,
        min_normal: None,
        min_subnormal: None,
        specials: "none",
        overflow: "saturate",
        rounding: Rounding::NearestEven.word(),
        about: about.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codecs::levels::tests::assert_one_is_a_block;
    use crate::{Scheme, Stream};

    #[test]
    fn zeros_of_both_signs_are_one_and_bits_lie_as_specified() {
        let scheme: Scheme = "sign".parse().unwrap();
        // Bits 1,0,1,1,0,0,0,1,1 are bytes 8d 01.
        let x = [0.0, -1e-45, 2.0, -0.0, -1.0, f32::MIN, -0.5, f32::MAX, 1e-45];
        let mut bytes = Vec::new();
        scheme.encode(&x, &[9], &Stream::new(0, 0), &mut bytes).unwrap();
        assert_eq!(bytes, [0x8d, 0x01]);
        let mut back = [0.0; 9];
        scheme.decode(&bytes, &[9], &mut back).unwrap();
        assert_eq!(back, [1., -1., 1., 1., -1., -1., -1., 1., 1.]);
        assert_eq!(scheme.groups(&[9]).unwrap(), 0);
    }

    #[test]
    fn scattered_values_are_summed_as_others() {
        assert_one_is_a_block(&Sign);
    }
}
