//! Small floats under a power of two for each block: what MX, BFP and MSFP have in common.
//!
//! `value = element * 2^X`, where X is found from the block's largest magnitude by an [`ExponentRule`] and stored in one
//! byte, X + 127. An element is a small float without infinity; what is beyond its largest value becomes that value. The
//! integer mantissas of block floating point are small floats too: with one exponent bit, the steps below and above the
//! smallest normal value are equal, so that a code counts steps of `2^-m` from 0 to `2 - 2^-m`.

use std::sync::Arc;

use super::{Card, Codes, CodesMut, Format, Groups, Header, Minifloat, Params, Scaling};
use crate::scale::{ExponentRule, power_of_code};
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
    pub format: Minifloat,
    bits: u32,
    mantissa_bits: u32,
    pub max: f32,
    min_normal: f32,
    /// The grid of a run, in which a NaN that was not refused is zero; `None` where only the definition serves.
    pub grid: Option<simd::FloatGrid>,
    pub codes: simd::FloatCodes,
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

    pub fn block_grid(&self) -> simd::BlockGrid {
        simd::BlockGrid {
            carry: 0,
            emax: (self.max.to_bits() >> 23) - 127,
            min_normal: self.min_normal.to_bits(),
            shift: 23 - self.mantissa_bits,
            max: self.max,
            max_code: self.codes.max,
            infinity: if self.codes.has_infinity { self.codes.infinity } else { u32::MAX },
            sign_bit: 1 << (self.bits - 1),
            twos_complement: false,
        }
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

    /// Makes codes as they are stored of those of the small float.
    fn complement(&self, codes: CodesMut) {
        match codes {
            CodesMut::Bytes(codes) => codes.iter_mut().for_each(|code| {
                [*code, ..] = self.stored_code((*code).into()).to_le_bytes();
            }),
            CodesMut::Pairs(codes) => codes.iter_mut().for_each(|code| {
                let [low, high, ..] =
                    self.stored_code(u16::from_le_bytes(*code).into()).to_le_bytes();
                *code = [low, high];
            }),
            CodesMut::Words(codes) => codes.iter_mut().for_each(|code| {
                *code = self.stored_code(*code);
            }),
        }
    }

    /// The grid for groups whose loops need it; `None` where only the definition serves.
    fn grid(&self, groups: Groups) -> Option<simd::FloatGrid> {
        let spoiled = self.spoils_groups() && groups.params.iter().any(|p| p.scale.is_nan());
        self.element.grid.filter(|_| !spoiled)
    }

    fn block_grid(&self, store: ScaleFormat) -> simd::BlockGrid {
        let Element { mantissa_bits, max, .. } = self.element;
        simd::BlockGrid {
            carry: self.rule(store).carry(max, mantissa_bits),
            twos_complement: self.sign == Sign::TwosComplement,
            ..self.element.block_grid()
        }
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

    fn quantize_groups(&self, x: &mut [f32], groups: Groups, rounding: Rounding, draws: &[u32]) {
        let Some(grid) = self.grid(groups) else {
            return super::quantize_by_runs(self, x, groups, rounding, draws);
        };
        simd::float_groups(&grid, groups, x, rounding, draws);
        if self.sign == Sign::TwosComplement {
            // Zero has no sign: the sum of a negative zero and zero is positive.
            for v in x {
                *v += 0.0;
            }
        }
    }

    fn encode_groups(
        &self,
        x: &[f32],
        groups: Groups,
        rounding: Rounding,
        draws: &[u32],
        mut codes: CodesMut,
    ) {
        let Some(grid) = self.grid(groups) else {
            return super::encode_by_runs(self, x, groups, rounding, draws, codes);
        };
        let float = self.element.codes;
        simd::float_encode_groups(&grid, float, groups, x, rounding, draws, codes.reborrow());
        if self.sign == Sign::TwosComplement {
            self.complement(codes);
        }
    }

    fn decode_groups(&self, codes: Codes, groups: Groups, out: &mut [f32]) {
        let grid = simd::BlockGrid {
            twos_complement: self.sign == Sign::TwosComplement,
            ..self.element.block_grid()
        };
        simd::block_decode_groups(&grid, groups, codes, out);
    }

    fn quantize_run(&self, x: &mut [f32], params: &Params, rounding: Rounding, draws: &[u32]) {
        if params.scale.is_nan() || self.element.grid.is_none() {
            return super::quantize_by_definition(self, x, params, rounding, draws);
        }
        self.quantize_groups(x, Groups::one(params, x.len()), rounding, draws);
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
        simd::power_blocks(&self.block_grid(store), x, len)
    }

    fn encode_run(
        &self,
        x: &[f32],
        params: &Params,
        rounding: Rounding,
        draws: &[u32],
        codes: &mut [u32],
    ) {
        if params.scale.is_nan() || self.element.grid.is_none() {
            return super::encode_by_definition(self, x, params, rounding, draws, codes);
        }
        let groups = Groups::one(params, x.len());
        self.encode_groups(x, groups, rounding, draws, CodesMut::Words(codes));
    }

    fn decode_run(&self, codes: &[u32], params: &Params, out: &mut [f32]) {
        self.decode_groups(Codes::Words(codes), Groups::one(params, codes.len()), out);
    }

    fn encode_blocks(
        &self,
        x: &[f32],
        len: usize,
        store: ScaleFormat,
        scales: &mut [u8],
        packed: &mut [u8],
    ) -> bool {
        let Some(window) = Window::of(len, self.bits()) else { return false };
        let grid = self.block_grid(store);
        let mut codes = [0; WINDOW];
        let scales = scales.chunks_mut(window.elems / len);
        let packed = packed.chunks_mut(window.bytes);
        x.chunks(window.elems).zip(scales).zip(packed).all(|((x, scales), packed)| {
            let codes = &mut codes[..x.len()];
            let encoded = simd::power_encode(&grid, x, len, scales, codes);
            window.pack(codes, packed);
            encoded
        })
    }

    fn decode_blocks(
        &self,
        scales: &[u8],
        packed: &[u8],
        len: usize,
        store: ScaleFormat,
        out: &mut [f32],
    ) -> bool {
        let Some(window) = Window::of(len, self.bits()) else { return false };
        // The reader of single scales says which one is wrong.
        if !self.holds_nan() && scales.contains(&u8::MAX) {
            return false;
        }
        let grid = self.block_grid(store);
        let (mut codes, mut powers) = ([0; WINDOW], [0.0; WINDOW / 8]);
        let scales = scales.chunks(window.elems / len);
        let packed = packed.chunks(window.bytes);
        for ((out, scales), packed) in out.chunks_mut(window.elems).zip(scales).zip(packed) {
            let codes = &mut codes[..out.len()];
            window.unpack(packed, codes);
            for (power, scale) in powers.iter_mut().zip(scales) {
                *power = power_of_code(*scale);
            }
            simd::scaled_decode(&grid, &powers, codes, len, out);
        }
        true
    }
}

/// Codes that are held between the rounding and the packing.
pub(super) const WINDOW: usize = 1024;

/// Whole blocks that are worked on at a time.
pub(super) struct Window {
    pub elems: usize,
    /// What their codes take.
    pub bytes: usize,
    bits: u32,
}

impl Window {
    /// A window of blocks of `len` elements, whose codes end on a byte. `None` if they do not, or if blocks are so long
    /// that they need no loop of their own.
    pub fn of(len: usize, bits: u32) -> Option<Self> {
        let elems = (len.is_multiple_of(8) && len <= WINDOW).then(|| WINDOW / len * len)?;
        Some(Self { elems, bytes: elems / 8 * bits as usize, bits })
    }

    pub fn pack(&self, codes: &[u32], out: &mut [u8]) {
        match self.bits {
            8 => simd::narrow(codes, out),
            1..8 => {
                let mut narrow = [0; WINDOW];
                let narrow = &mut narrow[..codes.len()];
                simd::narrow(codes, narrow);
                pack::pack_bytes(narrow, self.bits, out);
            }
            _ => pack::pack(codes, self.bits, out),
        }
    }

    pub fn unpack(&self, bytes: &[u8], codes: &mut [u32]) {
        match self.bits {
            8 => simd::widen(bytes, codes),
            1..8 => {
                let mut narrow = [0; WINDOW];
                let narrow = &mut narrow[..codes.len()];
                pack::unpack_bytes(bytes, self.bits, narrow);
                simd::widen(narrow, codes);
            }
            _ => pack::unpack(bytes, self.bits, 0, codes),
        }
    }
}
