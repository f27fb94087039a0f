//! `f32` itself: nothing is rounded, four bytes are stored.

use std::sync::Arc;

use super::{Card, Format, HeadError, Header, Params, Scaling};
use crate::codecs::{Codec, Scaled};
use crate::families::Family;
use crate::{Range, Rounding, ScaleFormat};

/// The family of the one format `f32`.
pub(crate) struct Float32Family;

impl Family for Float32Family {
    fn syntax(&self) -> &'static str {
        "f32"
    }

    fn about(&self) -> &'static str {
        "IEEE single precision: the tensor as it is"
    }

    fn members(&self) -> Vec<String> {
        vec!["f32".into()]
    }

    fn source(&self) -> &'static str {
        "IEEE 754-2019, binary32"
    }

    fn layout(&self) -> &'static str {
        "Every value as it is, 4 bytes."
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        (head == "f32").then(|| Ok(Scaled::of(Float32)))
    }
}

/// IEEE single precision.
#[derive(Clone, Copy, Debug)]
pub struct Float32;

impl Format for Float32 {
    fn name(&self) -> String {
        "f32".into()
    }

    fn bits(&self) -> u32 {
        32
    }

    fn card(&self) -> Card {
        Card {
            name: self.name(),
            bits: 32,
            exponent_bits: Some(8),
            mantissa_bits: Some(23),
            bias: Some(127),
            min: f32::MIN,
            max: f32::MAX,
            min_normal: Some(f32::MIN_POSITIVE),
            min_subnormal: Some(f32::from_bits(1)),
            specials: "inf, NaN",
            overflow: "infinity",
            rounding: Rounding::NearestEven.word(),
            about: "IEEE single precision".into(),
        }
    }

    fn header(&self) -> Header {
        Header { scaling: Scaling::Never, zero_bits: 0, offset: false }
    }

    fn holds_nan(&self) -> bool {
        true
    }

    fn fit(&self, _range: Range, _store: ScaleFormat) -> Params {
        Params::UNIT
    }

    fn encode(&self, x: f32, _params: &Params, _rounding: Rounding, _draw: u32) -> u32 {
        x.to_bits()
    }

    fn decode(&self, code: u32, _params: &Params) -> f32 {
        f32::from_bits(code)
    }

    fn quantize_run(&self, _: &mut [f32], _: &Params, _: Rounding, _: &[u32]) {}
}
