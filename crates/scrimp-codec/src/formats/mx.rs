//! OCP Microscaling: blocks of 32 elements of 4, 6 or 8 bits under a power of two.
//!
//! `value = element * 2^X` with `X = floor(log2 amax) - emax`, where `2^emax` is the largest power of two of the element
//! format, clamped to -127..=127; the words `scale:ceil`, `scale:even` and `scale:rceil` choose another rule
//! ([`ExponentRule`](crate::ExponentRule)). Elements are small floats, or integers over 64 (`mxint8`); they round to
//! nearest, ties to the even code, keep their subnormals and saturate. A block of zeros has the smallest scale.
//!
//! Bytes: one for each block, X + 127, with 255 for a block that is NaN; then the elements' codes, packed. Float
//! elements are written as by their own format, `mxint8` in two's complement.
//!
//! NaN and infinity are refused. Under `nonfinite:propagate` either makes the whole block NaN; under
//! `nonfinite:saturate` NaN becomes zero and infinity the largest element, and X is found without them.
//!
//! # Source
//! OCP Microscaling Formats (MX) Specification 1.0 (2023); Rouhani et al. 2023, arXiv:2310.10537, for the rule `floor`.
//! `even` as in AMD's Quark, `rceil` as in cuBLAS's one-dimensional block scaling. Differs: `mxint8` has no -128, so that
//! its range is symmetric; a product beyond `f32`, to which the rules that round up may lead, becomes the largest `f32`.

use std::sync::Arc;

use super::shared_exponent::{self, SharedExponent, Sign};
use super::{HeadError, Minifloat, Top};
use crate::ScaleFormat;
use crate::codecs::{Codec, Scaled};
use crate::families::Family;
use crate::scale::ExponentRule;

/// The rules for the shared exponent, the default first.
const RULES: [ScaleFormat; 4] = [
    ScaleFormat::Exponent(ExponentRule::Floor),
    ScaleFormat::Exponent(ExponentRule::Ceil),
    ScaleFormat::Exponent(ExponentRule::Even),
    ScaleFormat::Exponent(ExponentRule::Rceil),
];

/// An element format of the specification.
struct Element {
    name: &'static str,
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    top: Top,
    sign: Sign,
    about: &'static str,
}

static ELEMENTS: [Element; 6] = [
    Element {
        name: "mxfp8_e4m3",
        exponent_bits: 4,
        mantissa_bits: 3,
        bias: 7,
        top: Top::AllOnesNan,
        sign: Sign::Magnitude,
        about: "OCP MX with e4m3fn elements: 8.25 bits",
    },
    Element {
        name: "mxfp8_e5m2",
        exponent_bits: 5,
        mantissa_bits: 2,
        bias: 15,
        top: Top::Ieee,
        sign: Sign::Magnitude,
        about: "OCP MX with e5m2 elements: 8.25 bits",
    },
    Element {
        name: "mxfp6_e3m2",
        exponent_bits: 3,
        mantissa_bits: 2,
        bias: 3,
        top: Top::Finite,
        sign: Sign::Magnitude,
        about: "OCP MX with e3m2fn elements: 6.25 bits",
    },
    Element {
        name: "mxfp6_e2m3",
        exponent_bits: 2,
        mantissa_bits: 3,
        bias: 1,
        top: Top::Finite,
        sign: Sign::Magnitude,
        about: "OCP MX with e2m3fn elements: 6.25 bits",
    },
    Element {
        name: "mxfp4",
        exponent_bits: 2,
        mantissa_bits: 1,
        bias: 1,
        top: Top::Finite,
        sign: Sign::Magnitude,
        about: "OCP MX with e2m1fn elements: 4.25 bits",
    },
    Element {
        name: "mxint8",
        exponent_bits: 1,
        mantissa_bits: 6,
        bias: 1,
        top: Top::Finite,
        sign: Sign::TwosComplement,
        about: "OCP MX with elements q/64, q from -127 to 127: 8.25 bits",
    },
];

/// The paper, for the book.
const SOURCE: &str = "\
OCP Microscaling Formats (MX) Specification 1.0, 2023; Rouhani et al. 2023, [arXiv:2310.10537](https://arxiv.org/abs/2310.10537), for the rule
`floor`; `even` as in AMD's Quark, `rceil` as in cuBLAS";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
A code is that of the element's format: `e4m3fn`, `e5m2`, `e3m2fn`, `e2m3fn` or `e2m1fn`; in `mxint8` it is *q* in two's
complement, and the element `q / 64`. `value = element * scale`, and what is beyond the largest f32 becomes it. A scale of
255 makes the block NaN. A block of zeros has scale 0, which is 2^-127.";

/// `mxfp8_e4m3` to `mxint8`.
pub(crate) struct MxFamily;

impl Family for MxFamily {
    fn syntax(&self) -> &'static str {
        "mxfp8_e4m3 mxfp8_e5m2 mxfp6_e3m2 mxfp6_e2m3 mxfp4 mxint8"
    }

    fn about(&self) -> &'static str {
        "OCP Microscaling: blocks of 32 under a power of two; `/scale:ceil`, `even` and `rceil` choose another rule for it"
    }

    fn members(&self) -> Vec<String> {
        ELEMENTS.iter().map(|e| e.name.into()).collect()
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let row = ELEMENTS.iter().find(|e| e.name == head)?;
        let element = Minifloat::new(head, row.exponent_bits, row.mantissa_bits, row.bias, row.top);
        Some(element.map(|element| {
            Scaled::of(SharedExponent {
                name: head.into(),
                about: row.about.into(),
                element: shared_exponent::Element::of(element),
                sign: row.sign,
                block: 32,
                rules: &RULES,
                bump: None,
                propagate: Some(false),
            })
        }))
    }

    fn synonyms(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("mxfp8", "mxfp8_e4m3"),
            ("mxfp8_e4m3fn", "mxfp8_e4m3"),
            ("mxfp6", "mxfp6_e3m2"),
            ("mxfp6_e3m2fn", "mxfp6_e3m2"),
            ("mxfp6_e2m3fn", "mxfp6_e2m3"),
            ("mxfp4_e2m1", "mxfp4"),
            ("mxfp4_e2m1fn", "mxfp4"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use crate::{Scheme, Stream};

    fn emulated(scheme: &str, x: &[f32]) -> Vec<f32> {
        let scheme: Scheme = scheme.parse().unwrap_or_else(|e| panic!("{e}"));
        let mut x = x.to_vec();
        let shape = [1, x.len()];
        scheme.emulate(&mut x, &shape, &Stream::new(0, 0)).unwrap();
        x
    }

    fn bytes(scheme: &str, x: &[f32]) -> Vec<u8> {
        let scheme: Scheme = scheme.parse().unwrap_or_else(|e| panic!("{e}"));
        let mut bytes = Vec::new();
        scheme.encode(x, &[1, x.len()], &Stream::new(0, 0), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_worked_examples_of_the_specification_hold() {
        let x = [6.5, -1.3, 0.4, 0.02];
        for (scheme, exponent, expected) in [
            ("mxfp4", 0, [6.0, -1.5, 0.5, 0.0]),
            ("mxfp6_e2m3", 0, [6.5, -1.25, 0.375, 0.0]),
            ("mxfp6_e3m2", -2, [6.0, -1.25, 0.375, 0.015_625]),
            ("mxfp8_e4m3", -6, [6.5, -1.25, 0.406_25, 0.019_531_25]),
            ("mxfp8_e5m2", -13, [6.0, -1.25, 0.375, 0.019_531_25]),
            ("mxint8", 2, [6.5, -1.3125, 0.375, 0.0]),
        ] {
            assert_eq!(emulated(scheme, &x), expected, "{scheme}");
            assert_eq!(i32::from(bytes(scheme, &x)[0]) - 127, exponent, "{scheme}");
        }
    }

    #[test]
    fn each_rule_chooses_its_exponent() {
        // The largest e2m1fn is 6 = 1.5 * 2^2, with one mantissa bit.
        for (amax, exponents) in [
            (4.0, [0, 0, 0, 0]),
            (5.9, [0, 1, 0, 0]),
            (6.0, [0, 1, 0, 0]),
            (6.1, [0, 1, 0, 1]),
            (6.99, [0, 1, 0, 1]),
            (7.0, [0, 1, 1, 1]),
            (f32::from_bits(8f32.to_bits() - 1), [0, 1, 1, 1]),
            (8.0, [1, 1, 1, 1]),
            (0.0, [-127; 4]),
            (1e-45, [-127; 4]),
            (f32::MAX, [125, 126, 126, 126]),
        ] {
            for (rule, exponent) in ["floor", "ceil", "even", "rceil"].into_iter().zip(exponents) {
                let byte = bytes(&format!("mxfp4/scale:{rule}"), &[amax])[0];
                assert_eq!(i32::from(byte) - 127, exponent, "{rule} of {amax:e}");
            }
        }
        // Elements of the largest exponent 0 reach the subnormal numbers of f32.
        let half = f32::MIN_POSITIVE / 2.0;
        for (amax, exponents) in [
            (half, [-127; 4]),
            (half * 1.01, [-127, -126, -127, -127]),
            (half * 1.99, [-127, -126, -127, -126]),
            (half * 1.999, [-127, -126, -126, -126]),
            (half / 2.0, [-127; 4]),
            (f32::MAX, [127; 4]),
        ] {
            for (rule, exponent) in ["floor", "ceil", "even", "rceil"].into_iter().zip(exponents) {
                let byte = bytes(&format!("mxint8/scale:{rule}"), &[amax])[0];
                assert_eq!(i32::from(byte) - 127, exponent, "{rule} of {amax:e}");
            }
        }
    }

    #[test]
    fn a_block_that_is_not_finite_becomes_nan_where_it_may() {
        let mut x = vec![1.0f32; 96];
        x[40] = f32::NEG_INFINITY;
        x[70] = f32::NAN;
        let out = emulated("mxfp4/nonfinite:propagate", &x);
        assert!(out[..32].iter().all(|v| *v == 1.0) && out[32..].iter().all(|v| v.is_nan()));
        let written = bytes("mxfp4/nonfinite:propagate", &x);
        assert_eq!(written[..3], [125, 255, 255]);
        assert!(written[3 + 16..].iter().all(|code| *code == 0));
        let out = emulated("mxfp4/nonfinite:saturate", &x);
        assert_eq!((out[40], out[70], out[41]), (-1.5, 0.0, 1.0));
    }

    #[test]
    fn what_was_rounded_by_floor_stays() {
        let x: Vec<f32> = (0..4096u16)
            .map(|i| (f32::from(i) * 0.37).sin() * 1.3f32.powi(i32::from(i % 97) - 48))
            .collect();
        for scheme in ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4", "mxint8"] {
            let once = emulated(scheme, &x);
            assert_eq!(emulated(scheme, &once), once, "{scheme}");
        }
    }

    #[test]
    fn rules_that_round_up_clip_nothing() {
        let x: Vec<f32> = (1..2000u16).map(|i| 1.01f32.powi(i32::from(i) - 1000)).collect();
        for scheme in ["mxfp8_e4m3", "mxfp6_e3m2", "mxfp4", "mxint8"] {
            for rule in ["ceil", "rceil"] {
                for v in &x {
                    let byte = bytes(&format!("{scheme}/scale:{rule}"), &[*v])[0];
                    let scheme: Scheme = scheme.parse().unwrap();
                    let top = f64::from(scheme.card().max) * 2f64.powi(i32::from(byte) - 127);
                    assert!(f64::from(*v) <= top, "{scheme}/{rule} {v}");
                }
            }
        }
    }
}
