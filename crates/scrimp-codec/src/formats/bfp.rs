//! Block floating point: the elements of a block share an exponent and have sign and magnitude of their own.
//!
//! `value = +-q * 2^(e - K + 1)` with `e = floor(log2 amax)` and q of K bits; there is no hidden bit. Elements round to
//! nearest, ties to even, and clip at `2^K - 1`. Under the word `bump` the exponent is one higher where rounding the
//! largest magnitude to nearest would clip it. `msfp11` to `msfp16` are BFP of 2 to 7 magnitude bits under the names of
//! Microsoft Floating Point, which count sign, magnitude and the exponent.
//!
//! Bytes: one for each block, e + 127, where e is at least -127; then the elements' codes of K + 1 bits, packed, a sign
//! above a magnitude. A block of zeros has e = -127.
//!
//! # Source
//! Rouhani et al. 2020, "Pushing the Limits of Narrow Precision Inferencing at Cloud Scale with Microsoft Floating
//! Point", Advances in Neural Information Processing Systems 33. The exponent byte 255, which no writer makes, reads as
//! NaN.

use std::sync::Arc;

use super::shared_exponent::{Element, SharedExponent, Sign};
use super::{HeadError, Minifloat, Top};
use crate::ScaleFormat;
use crate::codecs::{Codec, Scaled};
use crate::families::Family;
use crate::scale::ExponentRule;

/// The paper, for the book.
const SOURCE: &str = "\
Rouhani et al. 2020, Pushing the Limits of Narrow Precision Inferencing at Cloud Scale with Microsoft Floating Point,
NeurIPS";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
A code is a sign above a magnitude *q* of *K* - 1 bits, `value = +-q 2^(e - K + 2)`, where the stored scale is `2^e` and
*e* is at least -127, which a block of zeros has. A scale of 255 reads as NaN, and none is written.";

/// `bfp:mbK` and `msfpN`.
pub(crate) struct BfpFamily;

impl Family for BfpFamily {
    fn syntax(&self) -> &'static str {
        "bfp:mb1..bfp:mb15 msfp11..msfp16"
    }

    fn about(&self) -> &'static str {
        "block floating point: blocks of 16 share an 8-bit exponent, elements are sign and magnitude; `/bump` raises the exponent instead of clipping"
    }

    fn members(&self) -> Vec<String> {
        let free = ["bfp:mb1", "bfp:mb4", "bfp:mb8", "bfp:mb15", "bfp:mb3/bump"].map(String::from);
        free.into_iter().chain((11..=16).map(|n| format!("msfp{n}"))).collect()
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let refuse = |message: &str, help: &str| {
            Some(Err(HeadError { message: format!("`{head}`: {message}"), help: help.into() }))
        };
        let (bits, about) = if let Some(width) = head.strip_prefix("bfp:") {
            let bits = width.strip_prefix("mb").and_then(|bits| bits.parse::<u32>().ok());
            let Some(bits) = bits.filter(|bits| (1..=15).contains(bits)) else {
                return refuse(
                    "block floating point has 1 to 15 magnitude bits",
                    "write for example bfp:mb4",
                );
            };
            (bits, format!("block floating point, {bits} magnitude bits under a shared exponent"))
        } else {
            let width = head.strip_prefix("msfp")?;
            let Some(width) = width.parse::<u32>().ok().filter(|n| (11..=16).contains(n)) else {
                return refuse(
                    "Microsoft Floating Point is msfp11 to msfp16",
                    "write for example msfp12, or bfp:mbK for another width",
                );
            };
            let bits = width - 9;
            (
                bits,
                format!("Microsoft Floating Point, {bits} magnitude bits under a shared exponent"),
            )
        };
        // One exponent bit of bias 1: codes count steps of 2^(1 - K) from 0 to 2^K - 1.
        Some(Minifloat::new(head, 1, bits - 1, 1, Top::Finite).map(|element| {
            Scaled::of(SharedExponent {
                name: head.into(),
                about,
                element: Element::of(element),
                sign: Sign::Magnitude,
                block: 16,
                rules: &[ScaleFormat::Exponent(ExponentRule::Floor)],
                bump: Some(false),
                propagate: None,
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use crate::{Scheme, Stream};

    fn bytes(scheme: &str, x: &[f32]) -> Vec<u8> {
        let scheme: Scheme = scheme.parse().unwrap_or_else(|e| panic!("{e}"));
        let mut bytes = Vec::new();
        scheme.encode(x, &[1, x.len()], &Stream::new(0, 0), &mut bytes).unwrap();
        bytes
    }

    fn emulated(scheme: &str, x: &[f32]) -> Vec<f32> {
        let scheme: Scheme = scheme.parse().unwrap_or_else(|e| panic!("{e}"));
        let mut x = x.to_vec();
        let shape = [1, x.len()];
        scheme.emulate(&mut x, &shape, &Stream::new(0, 0)).unwrap();
        x
    }

    #[test]
    fn the_worked_examples_of_the_specification_hold() {
        let x = [0.9, -0.3, 0.11, 1.7];
        assert_eq!(emulated("msfp12", &x), [1.0, -0.25, 0.0, 1.75]);
        assert_eq!(bytes("msfp12", &x), [127, 0x94, 0x70]);
        assert_eq!(emulated("msfp16", &x), [0.90625, -0.296_875, 0.109_375, 1.703_125]);
        assert_eq!(emulated("msfp12", &[1.99]), [1.75]);
        assert_eq!(emulated("msfp12/bump", &[1.99, 0.3]), [2.0, 0.5]);
        assert_eq!(bytes("msfp12/bump", &[1.99, 0.3]), [128, 0x14]);
    }

    #[test]
    fn widths_are_those_of_the_names() {
        for (name, bits) in
            [("msfp11", 3), ("msfp12", 4), ("msfp16", 8), ("bfp:mb1", 2), ("bfp:mb15", 16)]
        {
            let scheme: Scheme = name.parse().unwrap();
            assert_eq!(scheme.format().unwrap().bits(), bits, "{name}");
            // Two blocks of 16, a byte of exponent each.
            let expected = 2 + 4 * bits as usize;
            assert_eq!(scheme.size(&[2, 16]).unwrap().exact(), Some(expected), "{name}");
        }
        let scheme: Scheme = "bfp:mb4/block:32".parse().unwrap();
        assert_eq!(scheme.to_string(), "bfp:mb4/group:32");
    }

    #[test]
    fn the_exponent_is_bumped_only_where_the_largest_would_clip() {
        for bits in 1..=15 {
            // In steps of 2^(1 - K) under e = 0.
            let step = 2f32.powi(1 - bits);
            let largest = 2f32.powi(bits) - 1.0;
            for (steps, bumped) in [(largest, 0), (largest + 0.49, 0), (largest + 0.5, 1)] {
                let byte = |word: &str| bytes(&format!("bfp:mb{bits}{word}"), &[steps * step])[0];
                assert_eq!(byte(""), 127, "{bits} bits, {steps} steps");
                assert_eq!(byte("/bump"), 127 + bumped, "{bits} bits, {steps} steps");
            }
        }
        assert_eq!(bytes("bfp:mb3/bump", &[f32::MAX])[0], 254, "the exponent has an end");
    }

    #[test]
    fn the_ends_of_f32_are_steps_like_any_others() {
        let tiny = f32::from_bits(3);
        assert_eq!(bytes("bfp:mb15", &[0.0, -0.0]), [0, 0, 0, 0, 0x80]);
        // Under e = -127 the step of fifteen bits is 2^-141.
        assert_eq!(emulated("bfp:mb15", &[2f32.powi(-141), tiny]), [2f32.powi(-141), 0.0]);
        assert_eq!(emulated("bfp:mb15", &[f32::MAX]), [32767.0 * 2f32.powi(113)]);
    }

    #[test]
    fn errors_name_what_is_valid() {
        for (text, part) in [
            ("bfp:mb16", "1 to 15"),
            ("bfp:4", "bfp:mb4"),
            ("msfp17", "msfp16"),
            ("bfp:mb4/ieee", "bump"),
        ] {
            let error = text.parse::<Scheme>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
