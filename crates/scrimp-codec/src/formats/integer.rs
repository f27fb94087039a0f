//! Integers of 1 to 16 bits: symmetric, full range, affine, and the variants of the systems that scrimp unites.
//!
//! `value = (q - zero) * scale + offset`.
//!
//! # Source
//! Arithmetic as ONNX `QuantizeLinear` (true division by the stored scale, ties to even). `full` and `deepspeed`:
//! DeepSpeed's `SymQuantizer` and `AsymQuantizer`; `qml`: QML's `IntQuantizer`. Differs: a constant group decodes exactly
//! in every variant (the originals divide by zero), and a scale is never zero.
#![expect(
    clippy::cast_possible_truncation,
    reason = "codes have at most 16 bits, and values are rounded to f32 as the formulas say"
)]

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::{Card, Codes, CodesMut, Format, Groups, HeadError, Header, Params, Scaling, finite};
use crate::codecs::{Codec, Scaled};
use crate::families::Family;
use crate::{Granularity, Range, Rounding, ScaleFormat, simd};

/// Which integers a code means, and how a range becomes a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// Codes `-(2^(K-1)-1) ..= 2^(K-1)-1`, scale `amax / (2^(K-1)-1)`.
    Symmetric,
    /// Codes `-2^(K-1) ..= 2^(K-1)-1`, scale `2 amax / 2^K`: the largest positive value loses one step.
    Full,
    /// Codes `0 ..= 2^K-1` with a zero point, so that zero is exact.
    Affine,
    /// Codes `0 ..= 2^K-1` from the smallest to the largest value; zero is not exact.
    Qml,
    /// As `Qml`, with a step of `range / 2^K` and the offset a multiple of the step.
    DeepSpeed,
}

/// An integer format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Integer {
    bits: u32,
    variant: Variant,
}

/// `int2` to `int16`, and `int1/full`.
pub(crate) struct SignedFamily;

impl Family for SignedFamily {
    fn syntax(&self) -> &'static str {
        "int2..int16"
    }

    fn about(&self) -> &'static str {
        "symmetric integers, codes +-(2^(K-1)-1); `/full` adds the most negative code, with DeepSpeed's scale"
    }

    fn members(&self) -> Vec<String> {
        (2..=16)
            .map(|k| format!("int{k}"))
            .chain(["int1/full".into(), "int4/full".into(), "int8/full".into()])
            .collect()
    }

    fn source(&self) -> &'static str {
        "Arithmetic: ONNX `QuantizeLinear`. `full`: DeepSpeed, `SymQuantizer`"
    }

    fn layout(&self) -> &'static str {
        "The code is *q* in two's complement of *K* bits. `value = q * scale`, rounded to f32; a product beyond the largest f32 \
         becomes it. Without `full` the code of `-2^(K-1)` is never written."
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        parse("int", Variant::Symmetric, head)
    }
}

/// `uint1` to `uint16`.
pub(crate) struct UnsignedFamily;

impl Family for UnsignedFamily {
    fn syntax(&self) -> &'static str {
        "uint1..uint16"
    }

    fn about(&self) -> &'static str {
        "affine integers, codes 0..2^K-1 with an exact zero; `/qml` and `/deepspeed` span from min to max instead"
    }

    fn members(&self) -> Vec<String> {
        (1..=16)
            .map(|k| format!("uint{k}"))
            .chain(
                ["uint1/qml", "uint4/qml", "uint8/qml", "uint4/deepspeed", "uint8/deepspeed"]
                    .map(String::from),
            )
            .collect()
    }

    fn source(&self) -> &'static str {
        "Jacob et al. 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877); arithmetic: ONNX \
         `QuantizeLinear`. `qml`: QML, Parsa, EPFL, `IntQuantizer`. `deepspeed`: DeepSpeed, `AsymQuantizer`"
    }

    fn layout(&self) -> &'static str {
        "The code is *q*. `value = (q - zero) * scale + offset`, each operation rounded to f32, with `zero = 0` and without the \
         addition where the parts are absent; where the product overflows f32, the whole is computed in f64, and what is \
         beyond the largest f32 becomes it."
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        parse("uint", Variant::Affine, head)
    }
}

fn parse(prefix: &str, variant: Variant, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
    let digits = head.strip_prefix(prefix)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bits = digits.parse().ok().filter(|k| (1..=16).contains(k));
    let Some(bits) = bits else {
        let nearest = if digits.trim_start_matches('0').is_empty() { 2 } else { 16 };
        return Some(Err(HeadError {
            message: format!("`{head}`: an integer has 1 to 16 bits"),
            help: format!("the nearest is {prefix}{nearest}"),
        }));
    };
    Some(Ok(Scaled::of(Integer { bits, variant })))
}

impl Integer {
    fn signed(&self) -> bool {
        matches!(self.variant, Variant::Symmetric | Variant::Full)
    }

    /// The smallest and the largest code, as integers.
    fn codes(&self) -> (i32, i32) {
        let half = 1 << (self.bits - 1);
        match self.variant {
            Variant::Symmetric => (1 - half, half - 1),
            Variant::Full => (-half, half - 1),
            _ => (0, 2 * half - 1),
        }
    }

    /// What the largest magnitude of a symmetric group is divided by.
    fn divisor(&self) -> f32 {
        let (_, high) = self.codes();
        (if self.variant == Variant::Symmetric { high } else { high + 1 }) as f32
    }

    fn prefix(&self) -> &'static str {
        if self.signed() { "int" } else { "uint" }
    }

    /// The constants of the vector twin.
    fn fast(&self) -> simd::Integers {
        let (low, high) = self.codes();
        simd::Integers { low, high, bits: self.bits, signed: self.signed() }
    }

    /// Whether the twin serves all groups: near the top of `f32` only the definition has the care that is needed.
    fn is_fast(groups: Groups) -> bool {
        // So that neither 2^17 steps nor an offset comes near.
        const LARGE: f32 = 1.267_650_6e30;
        simd::are_ordinary(groups.params, LARGE)
    }
}

/// The parameters of a symmetric group.
#[inline(always)]
fn symmetric(range: Range, divisor: f32, store: ScaleFormat) -> Params {
    let amax = range.amax();
    if amax == 0.0 {
        return Params::UNIT;
    }
    Params { scale: store.store(amax / divisor), ..Params::UNIT }
}

impl Format for Integer {
    fn name(&self) -> String {
        format!("{}{}", self.prefix(), self.bits)
    }

    fn bits(&self) -> u32 {
        self.bits
    }

    fn card(&self) -> Card {
        let (low, high) = self.codes();
        Card {
            name: self.name() + &self.suffix(),
            bits: self.bits,
            exponent_bits: None,
            mantissa_bits: None,
            bias: None,
            min: low as f32,
            max: high as f32,
            min_normal: None,
            min_subnormal: None,
            specials: "none",
            overflow: "saturate",
            rounding: Rounding::NearestEven.word(),
            about: match self.variant {
                Variant::Symmetric => "symmetric: scale amax / (2^(K-1)-1)",
                Variant::Full => {
                    "full range, as DeepSpeed: scale 2 amax / 2^K, +amax is clipped by one step"
                }
                Variant::Affine => "affine: scale (max-min) / (2^K-1), zero is exact",
                Variant::Qml => "from min to max, as QML: zero is not exact",
                Variant::DeepSpeed => "from min to max, as DeepSpeed: step (max-min) / 2^K",
            }
            .into(),
        }
    }

    fn header(&self) -> Header {
        Header {
            scaling: Scaling::Always,
            zero_bits: if self.variant == Variant::Affine { self.bits } else { 0 },
            offset: matches!(self.variant, Variant::Qml | Variant::DeepSpeed),
        }
    }

    fn default_granularity(&self) -> Granularity {
        // QML quantizes each row along axis 0 by itself.
        if self.variant == Variant::Qml { Granularity::Axis(0) } else { Granularity::Tensor }
    }

    fn scales(&self) -> &'static [ScaleFormat] {
        // A zero point or an offset is found with the scale, and would not fit one that is rounded later.
        if self.signed() { &ScaleFormat::SYMMETRIC } else { &ScaleFormat::GENERAL }
    }

    fn top(&self) -> f32 {
        let (_, high) = self.codes();
        // The full range is divided by half the number of codes, which is one more than the largest.
        (if self.variant == Variant::Full { high + 1 } else { high }) as f32
    }

    fn holds_nan(&self) -> bool {
        false
    }

    fn holds_infinity(&self) -> bool {
        false
    }

    fn words(&self) -> &'static [&'static str] {
        if self.signed() { &["full"] } else { &["qml", "deepspeed"] }
    }

    fn with_word(&self, word: &str) -> Option<Arc<dyn Format>> {
        let variant = match (word, self.variant) {
            ("full", Variant::Symmetric) => Variant::Full,
            ("qml", Variant::Affine) => Variant::Qml,
            ("deepspeed", Variant::Affine) => Variant::DeepSpeed,
            _ => return None,
        };
        Some(Arc::new(Self { bits: self.bits, variant }))
    }

    fn complaint(&self) -> Option<HeadError> {
        (self.bits == 1 && self.variant == Variant::Symmetric).then(|| HeadError {
            message: "`int1` has no symmetric code but zero".into(),
            help: "one bit is `uint1` (affine), `uint1/qml` or `int1/full`".into(),
        })
    }

    fn suffix(&self) -> String {
        match self.variant {
            Variant::Symmetric | Variant::Affine => "",
            Variant::Full => "/full",
            Variant::Qml => "/qml",
            Variant::DeepSpeed => "/deepspeed",
        }
        .into()
    }

    fn fit(&self, range: Range, store: ScaleFormat) -> Params {
        let steps = (1u32 << self.bits) as f32;
        // In f32 as the sources compute it; in f64 only where the difference of two finite values would be infinite.
        let step = |low: f32, high: f32, steps: f32| {
            let span = high - low;
            store.store(if span.is_finite() {
                span / steps
            } else {
                ((f64::from(high) - f64::from(low)) / f64::from(steps)) as f32
            })
        };
        match self.variant {
            Variant::Symmetric | Variant::Full => symmetric(range, self.divisor(), store),
            Variant::Affine => {
                let (low, high) = (range.min.min(0.0), range.max.max(0.0));
                if low == high {
                    return Params::UNIT;
                }
                let scale = step(low, high, steps - 1.0);
                let zero = (-low / scale).round_ties_even().clamp(0.0, steps - 1.0);
                Params { scale, zero: zero as i32, offset: 0.0 }
            }
            Variant::Qml | Variant::DeepSpeed => {
                // Adding zero makes a negative zero positive, as integers have it.
                if range.min == range.max {
                    return Params { scale: 1.0, zero: 0, offset: range.min + 0.0 };
                }
                if self.variant == Variant::Qml {
                    let scale = step(range.min, range.max, steps - 1.0);
                    return Params { scale, zero: 0, offset: range.min + 0.0 };
                }
                let scale = step(range.min, range.max, steps);
                let offset = finite((range.min / scale).round_ties_even() * scale) + 0.0;
                Params { scale, zero: 0, offset }
            }
        }
    }

    fn integers(&self) -> Option<RangeInclusive<i32>> {
        let (low, high) = self.codes();
        Some(low..=high)
    }

    fn wants_only_amax(&self) -> bool {
        self.signed()
    }

    fn fit_groups(&self, ranges: &[Range], store: ScaleFormat, params: &mut [Params]) {
        let divisor = self.divisor();
        for (range, params) in ranges.iter().zip(params) {
            *params = if self.signed() {
                symmetric(range.or_zero(), divisor, store)
            } else {
                self.fit(range.or_zero(), store)
            };
        }
    }

    fn encode(&self, x: f32, params: &Params, rounding: Rounding, draw: u32) -> u32 {
        let (low, high) = self.codes();
        let x = if x.is_nan() { 0.0 } else { x };
        let above = x - params.offset;
        let steps = if above.is_finite() || x.is_infinite() {
            f64::from(above / params.scale)
        } else {
            (f64::from(x) - f64::from(params.offset)) / f64::from(params.scale)
        };
        let q = rounding.round(steps, draw) + f64::from(params.zero);
        let q = q.clamp(f64::from(low), f64::from(high)) as i32;
        q.cast_unsigned() & (u32::MAX >> (32 - self.bits))
    }

    fn decode(&self, code: u32, params: &Params) -> f32 {
        let unused = 32 - self.bits;
        let q = if self.signed() {
            (code << unused).cast_signed() >> unused
        } else {
            (code << unused >> unused).cast_signed()
        };
        let steps = (q - params.zero) as f32;
        let above = steps * params.scale;
        if above.is_finite() {
            finite(above + params.offset)
        } else {
            finite((f64::from(steps) * f64::from(params.scale) + f64::from(params.offset)) as f32)
        }
    }

    fn quantize_run(&self, x: &mut [f32], params: &Params, rounding: Rounding, draws: &[u32]) {
        let groups = Groups::one(params, x.len());
        if Self::is_fast(groups) {
            simd::int_groups(self.fast(), groups, x, rounding, draws);
        } else {
            super::quantize_by_definition(self, x, params, rounding, draws);
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
        let groups = Groups::one(params, x.len());
        if Self::is_fast(groups) {
            simd::int_encode(self.fast(), groups, x, rounding, draws, CodesMut::Words(codes));
        } else {
            super::encode_by_definition(self, x, params, rounding, draws, codes);
        }
    }

    fn decode_run(&self, codes: &[u32], params: &Params, out: &mut [f32]) {
        let groups = Groups::one(params, codes.len());
        if Self::is_fast(groups) {
            simd::int_decode(self.fast(), groups, Codes::Words(codes), out);
        } else {
            super::decode_by_definition(self, codes, params, out);
        }
    }

    fn quantize_groups(&self, x: &mut [f32], groups: Groups, rounding: Rounding, draws: &[u32]) {
        if Self::is_fast(groups) {
            simd::int_groups(self.fast(), groups, x, rounding, draws);
        } else {
            super::quantize_by_runs(self, x, groups, rounding, draws);
        }
    }

    fn encode_groups(
        &self,
        x: &[f32],
        groups: Groups,
        rounding: Rounding,
        draws: &[u32],
        codes: CodesMut,
    ) {
        if Self::is_fast(groups) {
            simd::int_encode(self.fast(), groups, x, rounding, draws, codes);
        } else {
            super::encode_by_runs(self, x, groups, rounding, draws, codes);
        }
    }

    fn decode_groups(&self, codes: Codes, groups: Groups, out: &mut [f32]) {
        if Self::is_fast(groups) {
            simd::int_decode(self.fast(), groups, codes, out);
        } else {
            super::decode_by_runs(self, codes, groups, out);
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
        let (integers, top) = (self.fast(), self.divisor());
        self.signed()
            && super::encode_blocks_by(
                self.bits,
                x,
                len,
                store,
                scales,
                packed,
                |x, params, out| {
                    let fitted = simd::fit_blocks(x, len, top, store, params);
                    let groups = Groups { params, len };
                    let codes = CodesMut::Bytes(out);
                    simd::int_encode(integers, groups, x, Rounding::NearestEven, &[], codes);
                    fitted
                },
            )
    }

    fn quantize_blocks(
        &self,
        x: &mut [f32],
        len: usize,
        store: ScaleFormat,
        rounding: Rounding,
    ) -> usize {
        if !self.signed() || rounding != Rounding::NearestEven {
            return 0;
        }
        let (low, high) = self.codes();
        simd::int_blocks(x, len, store, [low as f32, high as f32, self.divisor()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantize(head: &str, word: Option<&str>, x: &[f32]) -> (Params, Vec<u32>, Vec<f32>) {
        let text = word.map_or(head.to_owned(), |word| format!("{head}/{word}"));
        let scheme: crate::Scheme = text.parse().unwrap();
        let f = scheme.format().unwrap();
        let params = f.fit(Range::of_finite(x), ScaleFormat::F32);
        let codes: Vec<u32> =
            x.iter().map(|&v| f.encode(v, &params, Rounding::NearestEven, 0)).collect();
        let values = codes.iter().map(|&c| f.decode(c, &params)).collect();
        (params, codes, values)
    }

    fn close(a: &[f32], b: &[f32]) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4), "{a:?} {b:?}");
    }

    #[test]
    fn the_affine_example_of_the_specification_holds() {
        let (p, codes, values) = quantize("uint4", None, &[-0.6, -0.1, 0.0, 0.45, 1.5]);
        assert_eq!((p.zero, codes), (4, vec![0, 3, 4, 7, 15]));
        close(&values, &[-0.56, -0.14, 0.0, 0.42, 1.54]);
    }

    #[test]
    fn the_symmetric_example_of_the_specification_holds() {
        let (p, codes, _) = quantize("int4", None, &[-0.6, -0.1, 0.0, 0.45, 1.5]);
        close(&[p.scale], &[0.214_285_7]);
        assert_eq!(codes, [13, 0, 0, 2, 7]);
    }

    #[test]
    fn the_full_range_example_of_the_specification_holds() {
        let (_, _, values) = quantize("int4", Some("full"), &[-1.0, -0.5, 0.1, 0.7, 1.0]);
        assert_eq!(values, [-1.0, -0.5, 0.125, 0.75, 0.875]);
    }

    #[test]
    fn the_qml_example_of_the_specification_holds() {
        let (_, codes, values) = quantize("uint4", Some("qml"), &[0.0, 0.1, 0.25, 1.0]);
        assert_eq!(codes, [0, 2, 4, 15]);
        close(&values, &[0.0, 0.1333, 0.2667, 1.0]);
        let (_, codes, values) = quantize("uint8", Some("qml"), &[5.0, 5.0]);
        assert_eq!((codes, values), (vec![0, 0], vec![5.0, 5.0]), "constants are exact");
    }

    #[test]
    fn the_ends_of_f32_stay_finite_and_close() {
        let x = [-3e38, 1e38, 3e38, f32::MAX, f32::MIN, 0.0];
        for (head, word) in [
            ("int8", None),
            ("int8", Some("full")),
            ("uint8", None),
            ("uint8", Some("qml")),
            ("uint8", Some("deepspeed")),
        ] {
            let (p, _, values) = quantize(head, word, &x);
            for (v, x) in values.iter().zip(x) {
                assert!(
                    (f64::from(*v) - f64::from(x)).abs() <= 1.01 * f64::from(p.scale),
                    "{head}{word:?} {x} -> {v}"
                );
            }
        }
    }
}
