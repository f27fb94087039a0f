//! NVFP4: blocks of 16 e2m1fn elements with a scale in e4m3fn, under a scale for the tensor.
//!
//! `value = element * e4m3fn(code) * global`, where `global = amax / (448 * 6)` of the tensor and a block's code is the
//! nearest e4m3fn of `amax / 6 / global` of the block, without a least one. Elements are divided by the product of the
//! two scales as decoded, round to nearest, ties to even, and saturate at 6.
//!
//! Bytes: those of the scales as `scale:e4m3fn` stores them (`global` as an `f32`, then a byte for each block), then the
//! elements' codes, packed. NaN and infinity are refused, or saturate under `nonfinite:saturate`.
//!
//! # Source
//! NVIDIA, "Pretraining Large Language Models with NVFP4", arXiv:2509.25149.

use std::sync::Arc;

use super::{Card, Format, HeadError, Header, Minifloat, Params, Scaling, Top};
use crate::codecs::{Codec, Scaled};
use crate::families::Family;
use crate::{Granularity, Range, Rounding, ScaleFormat, simd};

/// The one format `nvfp4`.
pub(crate) struct Nvfp4Family;

impl Family for Nvfp4Family {
    fn syntax(&self) -> &'static str {
        "nvfp4"
    }

    fn about(&self) -> &'static str {
        "NVIDIA's FP4: blocks of 16 e2m1fn elements, a scale in e4m3fn for each, one in f32 for the tensor"
    }

    fn members(&self) -> Vec<String> {
        vec!["nvfp4".into()]
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let element = (head == "nvfp4").then(|| Minifloat::new(head, 2, 1, 1, Top::Finite))?;
        Some(element.map(|element| {
            let (grid, codes) = (element.fast(), element.fast_codes());
            Scaled::of(Nvfp4 { element, grid, codes })
        }))
    }
}

/// Elements of NVFP4.
#[derive(Clone, Debug)]
struct Nvfp4 {
    element: Minifloat,
    grid: Option<simd::FloatGrid>,
    codes: simd::FloatCodes,
}

impl Format for Nvfp4 {
    fn name(&self) -> String {
        "nvfp4".into()
    }

    fn bits(&self) -> u32 {
        4
    }

    fn card(&self) -> Card {
        Card {
            about: "NVIDIA's FP4: 4.5 bits, and four bytes for the tensor".into(),
            ..self.element.card()
        }
    }

    fn header(&self) -> Header {
        Header { scaling: Scaling::Always, zero_bits: 0, offset: false }
    }

    fn default_granularity(&self) -> Granularity {
        Granularity::Group(16)
    }

    fn scales(&self) -> &'static [ScaleFormat] {
        &[ScaleFormat::E4m3fn]
    }

    fn top(&self) -> f32 {
        self.element.top()
    }

    fn holds_nan(&self) -> bool {
        false
    }

    fn fit(&self, range: Range, store: ScaleFormat) -> Params {
        self.element.fit(range, store)
    }

    fn encode(&self, x: f32, params: &Params, rounding: Rounding, draw: u32) -> u32 {
        self.element.encode(x, params, rounding, draw)
    }

    fn decode(&self, code: u32, params: &Params) -> f32 {
        self.element.decode(code, params)
    }

    fn quantize_run(&self, x: &mut [f32], params: &Params, rounding: Rounding, draws: &[u32]) {
        match self.grid {
            Some(grid) => simd::float_run(&grid, x, params.scale, rounding, draws),
            None => super::quantize_by_definition(self, x, params, rounding, draws),
        }
    }

    fn encode_run(
        &self,
        x: &[f32],
        params: &Params,
        rounding: Rounding,
        draws: &[u32],
        codes: &mut [u32],
    ) {
        match self.grid {
            Some(grid) if rounding == Rounding::NearestEven => {
                simd::float_encode(&grid, self.codes, x, params.scale, codes);
            }
            _ => super::encode_by_definition(self, x, params, rounding, draws, codes),
        }
    }

    fn decode_run(&self, codes: &[u32], params: &Params, out: &mut [f32]) {
        match self.grid {
            Some(grid) => simd::float_decode(&grid, self.codes, codes, params.scale, out),
            None => super::decode_by_definition(self, codes, params, out),
        }
    }
}
