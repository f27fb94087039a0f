//! Small floats under a power of two for each block: what MX, BFP and MSFP have in common.
//!
//! `value = element * 2^X`, where X is found from the block's largest magnitude by an [`ExponentRule`] and stored in one
//! byte, X + 127. An element is a small float without infinity; what is beyond its largest value becomes that value. The
//! integer mantissas of block floating point are small floats too: with one exponent bit, the steps below and above the
//! smallest normal value are equal, so that a code counts steps of `2^-m` from 0 to `2 - 2^-m`.

use std::sync::Arc;

use super::{Card, Format, Header, Minifloat, Params, Scaling};
use crate::scale::ExponentRule;
use crate::{Granularity, Range, Rounding, ScaleFormat, pack, simd};

/// How the codes of elements are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// A sign bit above the magnitude; zero has a sign.
    Magnitude,
    /// Two's complement of the number of steps; zero has no sign.
    TwosComplement,
}

/// A format whose elements share an exponent with their block.
#[derive(Clone, Debug)]
pub(super) struct SharedExponent {
    /// As in a scheme string.
    pub name: String,
    /// One sentence.
    pub about: String,
    pub element: Element,
    pub sign: Sign,
    /// Elements of a block, unless the scheme says otherwise.
    pub block: usize,
    /// The rules that a scheme may choose from, the first being the default.
    pub rules: &'static [ScaleFormat],
    /// Whether the word `bump` was said; `None` where it is not known.
    pub bump: Option<bool>,
    /// Whether a NaN or an infinity makes NaN of its block; `None` where it never may.
    pub propagate: Option<bool>,
}

/// The small float of the elements, and what is asked of it often.
#[derive(Clone, Debug)]
pub(super) struct Element {
    format: Minifloat,
    bits: u32,
    mantissa_bits: u32,
    max: f32,
    min_normal: f32,
    /// The grid of a run, in which a NaN that was not refused is zero; `None` where only the definition serves.
    grid: Option<simd::FloatGrid>,
    codes: simd::FloatCodes,
}

impl Element {
    pub fn of(format: Minifloat) -> Self {
        Self {
            bits: format.bits(),
            mantissa_bits: format.mantissa_bits(),
            max: format.top(),
            min_normal: format.min_normal(),
            grid: format.fast().map(|grid| simd::FloatGrid { nan: 0, ..grid }),
            codes: format.fast_codes(),
            format,
        }
    }

    /// The exponent of the largest value.
    fn emax(&self) -> u32 {
        (self.max.to_bits() >> 23) - 127
    }
}

impl SharedExponent {
    fn rule(&self, store: ScaleFormat) -> ExponentRule {
        match store {
            _ if self.bump == Some(true) => ExponentRule::Even,
            ScaleFormat::Exponent(rule) => rule,
            _ => ExponentRule::Floor,
        }
    }

    /// The code of an element as it is stored, given that of the small float.
    fn stored_code(&self, code: u32) -> u32 {
        let sign_bit = 1 << (self.element.bits - 1);
        match self.sign {
            Sign::Magnitude => code,
            Sign::TwosComplement if code & sign_bit == 0 => code,
            Sign::TwosComplement => (2 * sign_bit - (code & (sign_bit - 1))) & (2 * sign_bit - 1),
        }
    }

    fn power_grid(&self, store: ScaleFormat) -> simd::PowerGrid {
        let Element { bits, mantissa_bits, max, min_normal, codes, .. } = self.element;
        simd::PowerGrid {
            carry: self.rule(store).carry(max, mantissa_bits),
            emax: self.element.emax(),
            min_normal: min_normal.to_bits(),
            shift: 23 - mantissa_bits,
            max,
            max_code: codes.max,
            infinity: if codes.has_infinity { codes.infinity } else { u32::MAX },
            sign_bit: 1 << (bits - 1),
            twos_complement: self.sign == Sign::TwosComplement,
        }
    }

    /// Whether whole blocks of this length end on a byte and have codes of at most one.
    fn fits_bytes(&self, len: usize) -> bool {
        self.bits() <= 8 && len.is_multiple_of(8)
    }
}

impl Format for SharedExponent {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn bits(&self) -> u32 {
        self.element.bits
    }

    fn card(&self) -> Card {
        Card {
            name: self.name.clone() + &self.suffix(),
            specials: if self.propagate.is_some() { "NaN of a whole block" } else { "none" },
            overflow: "saturate",
            about: self.about.clone(),
            ..self.element.format.card()
        }
    }

    fn header(&self) -> Header {
        Header { scaling: Scaling::Always, zero_bits: 0, offset: false }
    }

    fn default_granularity(&self) -> Granularity {
        Granularity::Group(self.block)
    }

    fn scales(&self) -> &'static [ScaleFormat] {
        self.rules
    }

    fn top(&self) -> f32 {
        self.element.max
    }

    fn spoils_groups(&self) -> bool {
        self.propagate == Some(true)
    }

    fn holds_nan(&self) -> bool {
        self.spoils_groups()
    }

    fn words(&self) -> &'static [&'static str] {
        if self.bump.is_some() { &["bump"] } else { &[] }
    }

    fn with_word(&self, word: &str) -> Option<Arc<dyn Format>> {
        let changed = match word {
            "bump" if self.bump.is_some() => Self { bump: Some(true), ..self.clone() },
            "nonfinite:propagate" if self.propagate.is_some() => {
                Self { propagate: Some(true), ..self.clone() }
            }
            _ => return None,
        };
        Some(Arc::new(changed))
    }

    fn suffix(&self) -> String {
        if self.bump == Some(true) { "/bump".into() } else { String::new() }
    }

    fn fit(&self, range: Range, store: ScaleFormat) -> Params {
        let amax = range.amax();
        let scale = if amax.is_finite() {
            self.rule(store).scale(amax, self.element.max, self.element.mantissa_bits)
        } else {
            f32::NAN
        };
        Params { scale, ..Params::UNIT }
    }

    fn encode(&self, x: f32, params: &Params, rounding: Rounding, draw: u32) -> u32 {
        if x.is_nan() || params.scale.is_nan() {
            return 0;
        }
        self.stored_code(self.element.format.encode(x, params, rounding, draw))
    }

    fn decode(&self, code: u32, params: &Params) -> f32 {
        if params.scale.is_nan() {
            return f32::NAN;
        }
        match self.sign {
            Sign::Magnitude => self.element.format.decode(code, params),
            Sign::TwosComplement => {
                let unused = 32 - self.bits();
                let steps = (code << unused).cast_signed() >> unused;
                // The least step of a float with one exponent bit: 2^-m of its smallest normal value.
                let step = self.element.min_normal / (1 << self.element.mantissa_bits) as f32;
                super::finite(steps as f32 * step * params.scale)
            }
        }
    }

    fn quantize_run(&self, x: &mut [f32], params: &Params, rounding: Rounding, draws: &[u32]) {
        match self.element.grid {
            Some(grid) if !params.scale.is_nan() => {
                simd::float_run(&grid, x, params.scale, rounding, draws);
                if self.sign == Sign::TwosComplement {
                    // Zero has no sign: the sum of a negative zero and zero is positive.
                    x.iter_mut().for_each(|v| *v += 0.0);
                }
            }
            _ => super::quantize_by_definition(self, x, params, rounding, draws),
        }
    }

    fn quantize_blocks(
        &self,
        x: &mut [f32],
        len: usize,
        store: ScaleFormat,
        rounding: Rounding,
    ) -> usize {
        if rounding != Rounding::NearestEven {
            return 0;
        }
        simd::power_blocks(&self.power_grid(store), x, len)
    }

    fn encode_run(
        &self,
        x: &[f32],
        params: &Params,
        rounding: Rounding,
        draws: &[u32],
        codes: &mut [u32],
    ) {
        match self.element.grid {
            Some(grid) if rounding == Rounding::NearestEven && !params.scale.is_nan() => {
                simd::float_encode(&grid, self.element.codes, x, params.scale, codes);
                if self.sign == Sign::TwosComplement {
                    codes.iter_mut().for_each(|code| *code = self.stored_code(*code));
                }
            }
            _ => super::encode_by_definition(self, x, params, rounding, draws, codes),
        }
    }

    fn decode_run(&self, codes: &[u32], params: &Params, out: &mut [f32]) {
        match self.element.grid {
            Some(grid) if self.sign == Sign::Magnitude && !params.scale.is_nan() => {
                simd::float_decode(&grid, self.element.codes, codes, params.scale, out);
            }
            _ => super::decode_by_definition(self, codes, params, out),
        }
    }

    fn encode_blocks(
        &self,
        x: &[f32],
        len: usize,
        store: ScaleFormat,
        scales: &mut [u8],
        packed: &mut [u8],
    ) -> bool {
        if !self.fits_bytes(len) {
            return false;
        }
        let grid = self.power_grid(store);
        let bits = self.bits();
        if bits == 8 {
            return simd::power_encode(&grid, x, len, scales, packed);
        }
        // As many blocks at a time as fit a buffer that stays in the cache.
        let mut codes = [0; WINDOW];
        if len > WINDOW {
            return false;
        }
        let window = WINDOW / len * len;
        let bytes = window / 8 * bits as usize;
        x.chunks(window).zip(scales.chunks_mut(window / len)).zip(packed.chunks_mut(bytes)).all(
            |((x, scales), packed)| {
                let codes = &mut codes[..x.len()];
                let encoded = simd::power_encode(&grid, x, len, scales, codes);
                pack::pack_bytes(codes, bits, packed);
                encoded
            },
        )
    }

    fn decode_blocks(
        &self,
        scales: &[u8],
        packed: &[u8],
        len: usize,
        store: ScaleFormat,
        out: &mut [f32],
    ) -> bool {
        if !self.fits_bytes(len) {
            return false;
        }
        let grid = self.power_grid(store);
        let bits = self.bits();
        if bits == 8 {
            simd::power_decode(&grid, scales, packed, len, out);
            return true;
        }
        if len > WINDOW {
            return false;
        }
        let mut codes = [0; WINDOW];
        let window = WINDOW / len * len;
        let bytes = window / 8 * bits as usize;
        for ((out, scales), packed) in
            out.chunks_mut(window).zip(scales.chunks(window / len)).zip(packed.chunks(bytes))
        {
            let codes = &mut codes[..out.len()];
            pack::unpack_bytes(packed, bits, codes);
            simd::power_decode(&grid, scales, codes, len, out);
        }
        true
    }
}

/// Codes that are held between the rounding and the packing, one byte each.
const WINDOW: usize = 1024;
