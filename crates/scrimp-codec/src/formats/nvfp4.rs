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

use super::shared_exponent::{Element, WINDOW, Window};
use super::{
    Card, Codes, CodesMut, Format, Groups, HeadError, Header, Minifloat, Params, Scaling, Top,
};
use crate::codecs::{Codec, Scaled};
use crate::families::Family;
use crate::{Granularity, Range, Rounding, ScaleFormat, simd};

/// The paper, for the book.
const SOURCE: &str = "\
NVIDIA, Pretraining Large Language Models with NVFP4, [arXiv:2509.25149](https://arxiv.org/abs/2509.25149)";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
A code is that of `e2m1fn`, and `value = element * (global * block)`, where `global` is the f32 at the start and `block` the
e4m3fn of the block; 0 means a block of zeros.";

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

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let element = (head == "nvfp4").then(|| Minifloat::new(head, 2, 1, 1, Top::Finite))?;
        Some(element.map(|element| Scaled::of(Nvfp4 { element: Element::of(element) })))
    }
}

/// Elements of NVFP4.
#[derive(Clone, Debug)]
struct Nvfp4 {
    element: Element,
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
            ..self.element.format.card()
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
        self.element.max
    }

    fn holds_nan(&self) -> bool {
        false
    }

    fn fit(&self, range: Range, store: ScaleFormat) -> Params {
        Params { scale: store.store(range.amax() / self.element.max), ..Params::UNIT }
    }

    fn encode(&self, x: f32, params: &Params, rounding: Rounding, draw: u32) -> u32 {
        self.element.format.encode(x, params, rounding, draw)
    }

    fn decode(&self, code: u32, params: &Params) -> f32 {
        self.element.format.decode(code, params)
    }

    fn quantize_groups(&self, x: &mut [f32], groups: Groups, rounding: Rounding, draws: &[u32]) {
        self.element.format.quantize_groups(x, groups, rounding, draws);
    }

    fn encode_groups(
        &self,
        x: &[f32],
        groups: Groups,
        rounding: Rounding,
        draws: &[u32],
        codes: CodesMut,
    ) {
        self.element.format.encode_groups(x, groups, rounding, draws, codes);
    }

    fn decode_groups(&self, codes: Codes, groups: Groups, out: &mut [f32]) {
        self.element.format.decode_groups(codes, groups, out);
    }

    fn quantize_scaled(&self, scales: &[f32], x: &mut [f32], len: usize) -> bool {
        simd::scaled_blocks(&self.element.block_grid(), scales, x, len);
        true
    }

    fn encode_scaled(&self, scales: &[f32], x: &[f32], len: usize, packed: &mut [u8]) -> bool {
        let Some(window) = Window::of(len, self.bits()) else { return false };
        let grid = self.element.block_grid();
        let mut codes = [0; WINDOW];
        let scales = scales.chunks(window.elems / len);
        let packed = packed.chunks_mut(window.bytes);
        for ((x, scales), packed) in x.chunks(window.elems).zip(scales).zip(packed) {
            let codes = &mut codes[..x.len()];
            simd::scaled_encode(&grid, scales, x, len, codes);
            window.pack(codes, packed);
        }
        true
    }

    fn decode_scaled(&self, scales: &[f32], packed: &[u8], len: usize, out: &mut [f32]) -> bool {
        let Some(window) = Window::of(len, self.bits()) else { return false };
        let grid = self.element.block_grid();
        let mut codes = [0; WINDOW];
        let scales = scales.chunks(window.elems / len);
        let packed = packed.chunks(window.bytes);
        for ((out, scales), packed) in out.chunks_mut(window.elems).zip(scales).zip(packed) {
            let codes = &mut codes[..out.len()];
            window.unpack(packed, codes);
            simd::scaled_decode(&grid, scales, codes, len, out);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::{Scheme, Stream};

    fn bytes(scheme: &str, x: &[f32], shape: &[usize]) -> Vec<u8> {
        let scheme: Scheme = scheme.parse().unwrap_or_else(|e| panic!("{e}"));
        let mut bytes = Vec::new();
        scheme.encode(x, shape, &Stream::new(0, 0), &mut bytes).unwrap();
        let (mut decoded, mut emulated) = (vec![0.0; x.len()], x.to_vec());
        scheme.decode(&bytes, shape, &mut decoded).unwrap();
        scheme.emulate(&mut emulated, shape, &Stream::new(0, 0)).unwrap();
        assert!(decoded.iter().zip(&emulated).all(|(d, e)| d.to_bits() == e.to_bits()));
        bytes
    }

    #[test]
    fn a_block_has_its_share_of_the_tensors_scale() {
        // The largest magnitude is 2688, so that the global scale is 1.
        let mut x = vec![0.0; 48];
        x[..3].copy_from_slice(&[2688.0, -1344.0, 100.0]);
        x[16..20].copy_from_slice(&[3.0, -0.5, 0.24, 7.0]);
        let bytes = bytes("nvfp4", &x, &[1, 48]);
        assert_eq!(bytes[..4], 1f32.to_le_bytes());
        // 448; 7 / 6 is nearest to 1.125; a block of zeros.
        assert_eq!(bytes[4..7], [0x7E, 0x39, 0]);
        // 6, -3, 0.22; then 2.67, -0.44, 0.21 and 6.22 over 1.125.
        assert_eq!(bytes[7..9], [0xD7, 0x00]);
        assert_eq!(bytes[15..17], [0x95, 0x70]);
        assert!(bytes[17..].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_block_far_below_the_largest_becomes_zeros_and_keeps_their_signs() {
        let mut x = vec![0.0; 32];
        x[0] = 1.0;
        x[16] = -1e-7;
        x[17] = 1e-7;
        for rounding in ["rne", "floor", "half-away", "stochastic"] {
            let bytes = bytes(&format!("nvfp4/{rounding}"), &x, &[2, 16]);
            assert_eq!((bytes[5], bytes[14]), (0, 0x08), "{rounding}");
        }
        // A row that is not whole blocks takes the general way.
        assert_eq!(bytes("nvfp4", &[1.0, 0.0, 0.0], &[1, 3]).len(), 4 + 1 + 2);
    }

    #[test]
    fn it_is_the_small_float_under_its_scales() {
        let x: Vec<f32> = (0..4096u16)
            .map(|i| (f32::from(i) * 0.7).sin() * 1.01f32.powi(i32::from(i) - 2000))
            .collect();
        for shape in [[64, 64], [128, 32], [16, 256]] {
            assert_eq!(
                bytes("nvfp4", &x, &shape),
                bytes("e2m1fn/group:16/scale:e4m3fn", &x, &shape)
            );
        }
    }
}
