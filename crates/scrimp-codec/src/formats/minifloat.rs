//! Small floats: sign, up to 8 exponent bits, up to 10 mantissa bits.
//!
//! `value = (-1)^s * M * 2^(1 - bias - m)` where the exponent field E is 0, else `(-1)^s * (1 + M / 2^m) * 2^(E - bias)`.
//!
//! # Source
//! IEEE 754-2019; OCP 8-bit Floating Point Specification 1.0 (2023); OCP Microscaling Formats 1.0 (2023); names as in
//! `ml_dtypes`. QML's truncated float: Parsa, EPFL, "quantized machine learning" course project (`FloatingPointQuantizer`).
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "widths are at most 19 bits and exponents at most 11, and values are rounded to f32 where they are exact in it"
)]

use std::fmt::Write;
use std::sync::Arc;

use super::{Card, Codes, CodesMut, Format, Groups, HeadError, Header, Params, Scaling, finite};
use crate::codecs::{Codec, Scaled};
use crate::families::Family;
use crate::{Range, Rounding, ScaleFormat, simd};

/// What the codes with the largest exponent field mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Top {
    /// Infinity and NaNs, as IEEE 754 has it.
    Ieee,
    /// Finite values, except that the code of all ones is NaN (`fn`).
    AllOnesNan,
    /// Finite values, all of them.
    Finite,
}

/// What happens to a value that is still too large after rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The largest finite value, infinity included.
    Saturate,
    /// Infinity, or NaN where the format has no infinity.
    Ieee,
    /// The largest finite value, of which the positive one becomes infinity even where it was right: a defect of SmaQ's
    /// 16- and 8-bit floats (qtorch's `float_quantize` 0.2.0, then its "check inf"), offered to repeat its results. Only
    /// for formats with infinity. It looked for results within 1.2e-7 of the largest, which no other value of these
    /// formats is. Subnormals are IEEE's, unlike qtorch's.
    Qtorch,
}

/// A small float format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minifloat {
    name: String,
    about: String,
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    top: Top,
    overflow: Overflow,
    default_overflow: Overflow,
    /// Infinities stay infinite (or become NaN) although finite values saturate.
    keep_infinity: bool,
    default_rounding: Rounding,
}

/// A row of [`NAMED`].
struct Named {
    name: &'static str,
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    top: Top,
    about: &'static str,
}

/// The formats that have a name of their own.
static NAMED: &[Named] = &[
    named("f16", 5, 10, 15, Top::Ieee, "IEEE half precision"),
    named("bf16", 8, 7, 127, Top::Ieee, "bfloat16: the upper half of f32"),
    named(
        "tf32",
        8,
        10,
        127,
        Top::Ieee,
        "TensorFloat-32: f32's range with f16's precision, 19 bits",
    ),
    named("e5m2", 5, 2, 15, Top::Ieee, "OCP FP8 with the wider range, usual for gradients"),
    named(
        "e4m3fn",
        4,
        3,
        7,
        Top::AllOnesNan,
        "OCP FP8 with the finer steps, usual for weights and activations",
    ),
    named("e4m3", 4, 3, 7, Top::Ieee, "FP8 with infinities, as IEEE 754 would have it"),
    named("e3m4", 3, 4, 3, Top::Ieee, "FP8 with four mantissa bits and infinities"),
    named("e3m2fn", 3, 2, 3, Top::Finite, "OCP FP6 with the wider range; no infinity, no NaN"),
    named("e2m3fn", 2, 3, 1, Top::Finite, "OCP FP6 with the finer steps; no infinity, no NaN"),
    named("e2m1fn", 2, 1, 1, Top::Finite, "OCP FP4; no infinity, no NaN"),
];

const fn named(
    name: &'static str,
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    top: Top,
    about: &'static str,
) -> Named {
    Named { name, exponent_bits, mantissa_bits, bias, top, about }
}

/// What a code of these formats means, for the specification of their bytes.
const FLOAT_CODE: &str = "\
From its most significant bit, a code is a sign, an exponent field *E* of *e* bits, and a mantissa *M* of *m* bits. The
magnitude is `M 2^(1 - bias - m)` if *E* is 0, else `(1 + M / 2^m) 2^(E - bias)`, times the scale if there is one, rounded
to f32. The bias is `2^(e-1) - 1` unless the table or the name says otherwise. What the largest exponent means:

- as IEEE 754 has it, where there are infinities: with *E* all ones, infinity if *M* is 0, else NaN;
- `fn`, where NaN is the only special: the magnitude of all ones is NaN, every other one is a number;
- `none`, where there are no specials, `e3m2fn`, `e2m3fn` and `e2m1fn` among them: every magnitude is a number.

No finite code means infinity: a product beyond the largest f32 becomes it. Words for rounding and overflow matter to who
writes and not to who reads.";

/// The formats with a name.
pub(crate) struct NamedFamily;

impl Family for NamedFamily {
    fn syntax(&self) -> &'static str {
        "f16 bf16 tf32 e5m2 e4m3fn e4m3 e3m4 e3m2fn e2m3fn e2m1fn"
    }

    fn about(&self) -> &'static str {
        "floats of 4 to 19 bits; eight bits and fewer saturate, `/ieee` gives infinity or NaN instead; `/sat` clamps the wider ones"
    }

    fn members(&self) -> Vec<String> {
        NAMED.iter().map(|n| n.name.into()).collect()
    }

    fn source(&self) -> &'static str {
        "`f16`: IEEE 754-2019, binary16. `bf16`: Kalamkar et al. 2019, [arXiv:1905.12322](https://arxiv.org/abs/1905.12322). \
         `tf32`: NVIDIA A100 Tensor Core GPU Architecture, 2020. `e5m2`, `e4m3fn`: OCP 8-bit Floating Point Specification \
         1.0, 2023; Micikevicius et al. 2022, [arXiv:2209.05433](https://arxiv.org/abs/2209.05433). `e3m2fn`, `e2m3fn`, \
         `e2m1fn`: OCP Microscaling Formats 1.0, 2023; Rouhani et al. 2023, \
         [arXiv:2310.10537](https://arxiv.org/abs/2310.10537). `e4m3`, `e3m4`: the rule of IEEE 754 in eight bits. Names \
         are those of `ml_dtypes`"
    }

    fn layout(&self) -> &'static str {
        FLOAT_CODE
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let row = NAMED.iter().find(|n| n.name == head)?;
        Some(
            Minifloat::new(row.name, row.exponent_bits, row.mantissa_bits, row.bias, row.top)
                .map(|f| Scaled::of(Minifloat { about: row.about.into(), ..f })),
        )
    }
}

/// `fp:eXmY[:bias][:fn|none]`.
pub(crate) struct FreeFamily;

impl Family for FreeFamily {
    fn syntax(&self) -> &'static str {
        "fp:eXmY[:BIAS][:fn|none]"
    }

    fn about(&self) -> &'static str {
        "any float of 1 to 8 exponent and 0 to 10 mantissa bits; the top exponent is IEEE's unless `fn` or `none`"
    }

    fn members(&self) -> Vec<String> {
        [
            "fp:e3m4",
            "fp:e2m5:none",
            "fp:e5m0",
            "fp:e4m3:11:fn",
            "fp:e1m3:none",
            "fp:e6m9",
            "fp:e8m3",
        ]
        .map(String::from)
        .to_vec()
    }

    fn source(&self) -> &'static str {
        "The rule of IEEE 754-2019 for other widths; `fn` and `none` as in the OCP formats"
    }

    fn layout(&self) -> &'static str {
        FLOAT_CODE
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let spec = head.strip_prefix("fp:")?;
        Some(parse_free(head, spec).map(Scaled::of))
    }
}

fn parse_free(head: &str, spec: &str) -> Result<Minifloat, HeadError> {
    let malformed = || HeadError {
        message: format!("`{head}` is not of the form fp:eXmY[:BIAS][:fn|none]"),
        help: "write for example fp:e4m3, fp:e4m3:11 or fp:e4m3:11:fn".into(),
    };
    let mut parts = spec.split(':');
    let widths = parts.next().and_then(|p| p.strip_prefix('e')).ok_or_else(malformed)?;
    let (e, m) = widths.split_once('m').ok_or_else(malformed)?;
    let e: u32 = e.parse().map_err(|_| malformed())?;
    let m: u32 = m.parse().map_err(|_| malformed())?;
    if !(1..=8).contains(&e) || m > 10 {
        return Err(HeadError {
            message: format!(
                "`{head}`: a float has 1 to 8 exponent bits and 0 to 10 mantissa bits"
            ),
            help: format!("the nearest is fp:e{}m{}", e.clamp(1, 8), m.min(10)),
        });
    }
    let default_bias = (1 << (e - 1)) - 1;
    let (mut bias, mut top) = (None, None);
    for part in parts {
        match (part, part.parse::<i32>()) {
            ("fn", _) if top.is_none() => top = Some(Top::AllOnesNan),
            ("none", _) if top.is_none() => top = Some(Top::Finite),
            (_, Ok(b)) if bias.is_none() && top.is_none() => bias = Some(b),
            _ => return Err(malformed()),
        }
    }
    let (bias, top) = (bias.unwrap_or(default_bias), top.unwrap_or(Top::Ieee));
    let mut name = format!("fp:e{e}m{m}");
    if bias != default_bias {
        let _ = write!(name, ":{bias}");
    }
    name.push_str(match top {
        Top::Ieee => "",
        Top::AllOnesNan => ":fn",
        Top::Finite => ":none",
    });
    Minifloat::new(&name, e, m, bias, top)
}

/// `qml:mK`: QML's truncated float.
pub(crate) struct QmlFamily;

impl Family for QmlFamily {
    fn syntax(&self) -> &'static str {
        "qml:m0..qml:m10"
    }

    fn about(&self) -> &'static str {
        "QML's truncated float: f32's exponent, so many mantissa bits, the rest cut off"
    }

    fn members(&self) -> Vec<String> {
        vec!["qml:m2".into(), "qml:m7".into()]
    }

    fn source(&self) -> &'static str {
        "QML: Parsa, EPFL, course project on quantized machine learning, `FloatingPointQuantizer`"
    }

    fn layout(&self) -> &'static str {
        FLOAT_CODE
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let digits = head.strip_prefix("qml:")?;
        let bits = digits.strip_prefix('m').and_then(|d| d.parse().ok()).filter(|m| *m <= 10);
        let Some(m) = bits else {
            return Some(Err(HeadError {
                message: format!("`{head}`: QML's float has 0 to 10 mantissa bits"),
                help: "write for example qml:m2".into(),
            }));
        };
        let about = format!("QML's truncated float, {m} mantissa bits below f32's exponent");
        Some(Minifloat::new(&format!("qml:m{m}"), 8, m, 127, Top::Ieee).map(|f| {
            let f = Minifloat {
                about,
                default_rounding: Rounding::TowardZero,
                overflow: Overflow::Ieee,
                default_overflow: Overflow::Ieee,
                ..f
            };
            Scaled::of(f)
        }))
    }
}

impl Minifloat {
    /// A format that has a name of its own.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let n = NAMED.iter().find(|n| n.name == name)?;
        Self::new(n.name, n.exponent_bits, n.mantissa_bits, n.bias, n.top).ok()
    }

    pub(super) fn new(
        name: &str,
        exponent_bits: u32,
        mantissa_bits: u32,
        bias: i32,
        top: Top,
    ) -> Result<Self, HeadError> {
        let reach = |message: String| HeadError {
            message: format!("`{name}`: {message}"),
            help: format!(
                "the usual bias of {exponent_bits} exponent bits is {}",
                (1 << (exponent_bits - 1)) - 1
            ),
        };
        let (first, last) = match (exponent_bits, top) {
            (1, Top::Ieee | Top::AllOnesNan) if mantissa_bits == 0 => {
                return Err(HeadError {
                    message: format!("`{name}` has no value but zero"),
                    help: "give it a mantissa bit, or `:none` as top code".into(),
                });
            }
            // The exponents of the least step and of the largest value.
            (_, Top::Ieee) => {
                (1 - bias - mantissa_bits as i32, ((1 << exponent_bits) - 2).max(1) - bias)
            }
            (_, Top::AllOnesNan) if mantissa_bits == 0 => {
                (1 - bias, (1 << exponent_bits) - 2 - bias)
            }
            _ => (1 - bias - mantissa_bits as i32, (1 << exponent_bits) - 1 - bias),
        };
        if last > 127 {
            return Err(reach(format!("with bias {bias} it reaches 2^{last}, beyond f32")));
        }
        if first < -149 {
            return Err(reach(format!(
                "with bias {bias} its least step is 2^{first}, below f32's 2^-149"
            )));
        }
        let overflow = if 1 + exponent_bits + mantissa_bits <= 8 || top == Top::Finite {
            Overflow::Saturate
        } else {
            Overflow::Ieee
        };
        Ok(Self {
            name: name.into(),
            about: format!(
                "a float of {exponent_bits} exponent and {mantissa_bits} mantissa bits, bias {bias}"
            ),
            exponent_bits,
            mantissa_bits,
            bias,
            top,
            overflow,
            default_overflow: overflow,
            keep_infinity: false,
            default_rounding: Rounding::NearestEven,
        })
    }

    pub(super) fn mantissa_bits(&self) -> u32 {
        self.mantissa_bits
    }

    /// The value of the least exponent field above 0, at a mantissa of 0.
    pub(super) fn min_normal(&self) -> f32 {
        2f32.powi(1 - self.bias)
    }

    pub(super) fn sign_bit(&self) -> u32 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    /// The code of the largest finite magnitude.
    pub(super) fn max_code(&self) -> u32 {
        match self.top {
            Top::Ieee => self.infinity_code() - 1,
            Top::AllOnesNan => self.sign_bit() - 2,
            Top::Finite => self.sign_bit() - 1,
        }
    }

    /// The code that IEEE gives to infinity.
    fn infinity_code(&self) -> u32 {
        ((1 << self.exponent_bits) - 1) << self.mantissa_bits
    }

    /// The code of the positive quiet NaN, where there is one.
    fn nan_code(&self) -> Option<u32> {
        match self.top {
            // Without a mantissa bit the top exponent can only say infinity.
            Top::Ieee if self.mantissa_bits == 0 => None,
            Top::Ieee => Some(self.infinity_code() | 1 << (self.mantissa_bits - 1)),
            Top::AllOnesNan => Some(self.sign_bit() - 1),
            Top::Finite => None,
        }
    }

    /// What an overflow becomes.
    fn overflow_code(&self, overflow: Overflow) -> u32 {
        match (overflow, self.top, self.nan_code()) {
            (Overflow::Ieee, Top::Ieee, _) => self.infinity_code(),
            (Overflow::Ieee, _, Some(nan)) => nan,
            _ => self.max_code(),
        }
    }

    /// The value of a magnitude code.
    fn magnitude(&self, code: u32) -> f64 {
        let m = self.mantissa_bits;
        let (e, mantissa) = ((code >> m) as i32, f64::from(code & ((1 << m) - 1)));
        let unit = power(-(m as i32));
        if e == 0 {
            mantissa * unit * power(1 - self.bias)
        } else {
            (1.0 + mantissa * unit) * power(e - self.bias)
        }
    }

    /// The code of a magnitude, by definition: between which two neighbours does it lie, and which of them does the rule
    /// choose? `v` is the signed value, since two of the rules look at the sign.
    fn round_magnitude(&self, v: f32, rounding: Rounding, draw: u32) -> u32 {
        let m = self.mantissa_bits as i32;
        let a = f64::from(v).abs();
        // The exponent from the bit pattern: the logarithm of a value just under a power of two would round up.
        let exponent = (a.to_bits() >> 52) as i32 - 1023;
        let e = exponent.max(1 - self.bias);
        let steps = a * power(m - e); // exact: a power of two
        let below = steps.floor();
        let rest = steps - below;
        // Codes count steps: within an exponent by one, and across exponents without a gap.
        let base = ((e + self.bias - 1) as u32) << self.mantissa_bits;
        let low = base + below as u32;
        let up = match rounding {
            Rounding::NearestEven => rest > 0.5 || (rest == 0.5 && low & 1 == 1),
            Rounding::HalfAway => rest >= 0.5,
            Rounding::TowardZero => false,
            Rounding::Floor => v.is_sign_negative() && rest > 0.0,
            Rounding::Stochastic => {
                let signed = if v.is_sign_negative() { -steps } else { steps };
                rounding.round(signed, draw).abs() > below
            }
        };
        low + u32::from(up)
    }

    /// Whether an overflow under this rounding stays at the largest finite value although the format has infinity:
    /// IEEE 754, section 7.4, for the directed roundings.
    fn overflow_stays_finite(rounding: Rounding, negative: bool) -> bool {
        match rounding {
            Rounding::TowardZero => true,
            Rounding::Floor => !negative,
            _ => false,
        }
    }

    /// The constants of the bit-level twin of `decode(encode(x))`; `None` where the format's subnormals reach below those
    /// of `f32`, or where the magic number or the number of steps in one overflows: there only the definition serves.
    pub(super) fn fast(&self) -> Option<simd::FloatGrid> {
        let (first, m) = (1 - self.bias, self.mantissa_bits as i32);
        let as_f32 = first == -126;
        if first < -126 || first - m + 23 > 127 || (m - first > 127 && !as_f32) {
            return None;
        }
        let bits = |code: u32| (self.magnitude(code) as f32).to_bits();
        let over = match (self.overflow, self.top) {
            (Overflow::Saturate, _) | (_, Top::Finite) => bits(self.max_code()),
            (Overflow::Ieee, Top::Ieee) => f32::INFINITY.to_bits(),
            (Overflow::Ieee, Top::AllOnesNan) => 0x7FC0_0000,
            (Overflow::Qtorch, _) => return None,
        };
        let infinity = if self.keep_infinity { self.infinity_value().to_bits() } else { over };
        Some(simd::FloatGrid {
            shift: 23 - self.mantissa_bits,
            odd: u32::from(self.mantissa_bits == 0 && (self.bias - 127) & 1 != 0),
            min_normal: if as_f32 { 0 } else { (power(first) as f32).to_bits() },
            magic: power(first - m + 23) as f32,
            max: bits(self.max_code()),
            over,
            infinity,
            nan: if self.holds_nan() { 0x7FC0_0000 } else { 0 },
            step: if as_f32 { 1.0 } else { power(first - m) as f32 },
            per_step: if as_f32 { 1.0 } else { power(m - first) as f32 },
        })
    }

    pub(super) fn fast_codes(&self) -> simd::FloatCodes {
        // Infinity comes out of the grid only where it has a code, or where NaN stands for it.
        let nan = self.nan_code().unwrap_or(0);
        let has_infinity = self.top == Top::Ieee;
        simd::FloatCodes {
            rebias: ((127 - self.bias) << self.mantissa_bits).cast_unsigned(),
            sign_shift: 32 - self.bits(),
            max: self.max_code(),
            infinity: if has_infinity { self.infinity_code() } else { nan },
            nan,
            has_infinity,
        }
    }

    /// What infinity becomes where it is kept: itself, or NaN in a format without it.
    fn infinity_value(&self) -> f32 {
        if self.top == Top::Ieee { f32::INFINITY } else { f32::from_bits(0x7FC0_0000) }
    }
}

/// The scale under which the largest magnitude becomes `max`.
#[inline(always)]
fn fit(range: Range, max: f32, store: ScaleFormat) -> Params {
    let amax = range.amax();
    if amax == 0.0 {
        return Params::UNIT;
    }
    Params { scale: store.store(amax / max), ..Params::UNIT }
}

/// A power of two that is normal in `f64`. (The general function takes longer than rounding a few elements does.)
fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

impl Format for Minifloat {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn bits(&self) -> u32 {
        1 + self.exponent_bits + self.mantissa_bits
    }

    fn card(&self) -> Card {
        let max = self.magnitude(self.max_code()) as f32;
        let has_normals = self.max_code() >> self.mantissa_bits > 0;
        Card {
            name: self.name.clone() + &self.suffix(),
            bits: self.bits(),
            exponent_bits: Some(self.exponent_bits),
            mantissa_bits: Some(self.mantissa_bits),
            bias: Some(self.bias),
            min: -max,
            max,
            min_normal: has_normals.then(|| self.magnitude(1 << self.mantissa_bits) as f32),
            min_subnormal: (self.mantissa_bits > 0).then(|| self.magnitude(1) as f32),
            specials: match (self.top, self.nan_code()) {
                (Top::Ieee, Some(_)) => "inf, NaN",
                (Top::Ieee, None) => "inf",
                (_, Some(_)) => "NaN",
                (_, None) => "none",
            },
            overflow: match (self.overflow, self.top) {
                (Overflow::Saturate, _) | (_, Top::Finite) => "saturate",
                (Overflow::Ieee, Top::Ieee) => "infinity",
                (Overflow::Ieee, Top::AllOnesNan) => "NaN",
                (Overflow::Qtorch, _) => "infinity if positive",
            },
            rounding: self.default_rounding.word(),
            about: self.about.clone(),
        }
    }

    fn header(&self) -> Header {
        Header { scaling: Scaling::OnRequest, zero_bits: 0, offset: false }
    }

    fn default_rounding(&self) -> Rounding {
        self.default_rounding
    }

    fn scales(&self) -> &'static [ScaleFormat] {
        // A scale that is rounded to three bits may be too small for the largest value, which must then saturate.
        if self.bits() <= 8 { &ScaleFormat::SYMMETRIC } else { &ScaleFormat::GENERAL }
    }

    fn top(&self) -> f32 {
        self.magnitude(self.max_code()) as f32
    }

    fn holds_nan(&self) -> bool {
        self.nan_code().is_some()
    }

    fn holds_infinity(&self) -> bool {
        true // It saturates where the format has none.
    }

    fn words(&self) -> &'static [&'static str] {
        match self.top {
            Top::Ieee => &["sat", "ieee", "qtorch"],
            Top::AllOnesNan => &["sat", "ieee"],
            Top::Finite => &["sat"],
        }
    }

    fn with_word(&self, word: &str) -> Option<Arc<dyn Format>> {
        let changed = match word {
            "sat" => Self { overflow: Overflow::Saturate, ..self.clone() },
            "ieee" if self.top != Top::Finite => Self { overflow: Overflow::Ieee, ..self.clone() },
            "qtorch" if self.top == Top::Ieee => {
                Self { overflow: Overflow::Qtorch, ..self.clone() }
            }
            "nonfinite:propagate" if self.holds_nan() => {
                Self { keep_infinity: true, ..self.clone() }
            }
            _ => return None,
        };
        Some(Arc::new(changed))
    }

    fn under_scale(&self, worded: bool) -> Option<Arc<dyn Format>> {
        (self.default_overflow == Overflow::Ieee).then(|| {
            let overflow = if worded { self.overflow } else { Overflow::Saturate };
            let (default_overflow, keep_infinity) = (Overflow::Saturate, !worded);
            Arc::new(Self { overflow, default_overflow, keep_infinity, ..self.clone() })
                as Arc<dyn Format>
        })
    }

    fn suffix(&self) -> String {
        match (self.overflow, self.default_overflow) {
            (Overflow::Saturate, Overflow::Ieee) => "/sat".into(),
            (Overflow::Ieee, Overflow::Saturate) => "/ieee".into(),
            (Overflow::Qtorch, _) => "/qtorch".into(),
            _ => String::new(),
        }
    }

    fn fit(&self, range: Range, store: ScaleFormat) -> Params {
        fit(range, self.magnitude(self.max_code()) as f32, store)
    }

    fn encode(&self, x: f32, params: &Params, rounding: Rounding, draw: u32) -> u32 {
        let v = x / params.scale;
        let sign = if v.is_sign_negative() { self.sign_bit() } else { 0 };
        if v.is_nan() {
            return self.nan_code().map_or(0, |nan| sign | nan);
        }
        let at_the_top = if sign == 0 { self.infinity_code() } else { sign | self.max_code() };
        if v.is_infinite() {
            let code = if x.is_infinite() && self.keep_infinity {
                self.overflow_code(Overflow::Ieee)
            } else if self.overflow == Overflow::Qtorch {
                at_the_top
            } else {
                self.overflow_code(self.overflow)
            };
            return sign | code;
        }
        let code = self.round_magnitude(v, rounding, draw);
        if self.overflow == Overflow::Qtorch && code >= self.max_code() {
            at_the_top
        } else if code <= self.max_code() {
            sign | code
        } else if Self::overflow_stays_finite(rounding, v.is_sign_negative()) {
            sign | self.max_code()
        } else {
            sign | self.overflow_code(self.overflow)
        }
    }

    fn decode(&self, code: u32, params: &Params) -> f32 {
        let magnitude = code & (self.sign_bit() - 1);
        let signed = |v: f32| if code & self.sign_bit() != 0 { -v } else { v };
        if magnitude <= self.max_code() {
            return finite(signed(self.magnitude(magnitude) as f32) * params.scale);
        }
        let infinite = self.top == Top::Ieee && magnitude == self.infinity_code();
        signed(f32::from_bits(if infinite { 0x7F80_0000 } else { 0x7FC0_0000 }))
    }

    fn quantize_run(&self, x: &mut [f32], params: &Params, rounding: Rounding, draws: &[u32]) {
        match self.fast() {
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
        match self.fast() {
            Some(grid) => {
                let (groups, codes) = (Groups::one(params, x.len()), CodesMut::Words(codes));
                let float = self.fast_codes();
                simd::float_encode_groups(&grid, float, groups, x, rounding, draws, codes);
            }
            None => super::encode_by_definition(self, x, params, rounding, draws, codes),
        }
    }

    fn decode_run(&self, codes: &[u32], params: &Params, out: &mut [f32]) {
        match self.fast() {
            Some(grid) => simd::float_decode(&grid, self.fast_codes(), codes, params.scale, out),
            None => super::decode_by_definition(self, codes, params, out),
        }
    }

    fn fit_groups(&self, ranges: &[Range], store: ScaleFormat, params: &mut [Params]) {
        let max = self.magnitude(self.max_code()) as f32;
        for (range, params) in ranges.iter().zip(params) {
            *params = fit(range.or_zero(), max, store);
        }
    }

    fn quantize_groups(&self, x: &mut [f32], groups: Groups, rounding: Rounding, draws: &[u32]) {
        match self.fast() {
            Some(grid) => simd::float_groups(&grid, groups, x, rounding, draws),
            None => super::quantize_by_runs(self, x, groups, rounding, draws),
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
        match self.fast() {
            Some(grid) => {
                let float = self.fast_codes();
                simd::float_encode_groups(&grid, float, groups, x, rounding, draws, codes);
            }
            None => super::encode_by_runs(self, x, groups, rounding, draws, codes),
        }
    }

    fn decode_groups(&self, codes: Codes, groups: Groups, out: &mut [f32]) {
        match self.fast() {
            Some(grid) => {
                simd::float_decode_groups(&grid, self.fast_codes(), groups, codes, out);
            }
            None => super::decode_by_runs(self, codes, groups, out),
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
        let Some(grid) = self.fast() else { return false };
        let codes = self.fast_codes();
        super::encode_blocks_by(self.bits(), x, len, store, scales, packed, |x, params, out| {
            let fitted = simd::fit_blocks(x, len, f32::from_bits(grid.max), store, params);
            let (groups, out) = (Groups { params, len }, CodesMut::Bytes(out));
            let rounding = Rounding::NearestEven;
            simd::float_encode_groups(&grid, codes, groups, x, rounding, &[], out);
            fitted
        })
    }

    fn quantize_blocks(
        &self,
        x: &mut [f32],
        len: usize,
        store: ScaleFormat,
        rounding: Rounding,
    ) -> usize {
        match self.fast() {
            Some(grid) if rounding == Rounding::NearestEven => {
                simd::float_blocks(&grid, x, len, store)
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(head: &str) -> Minifloat {
        let named = NAMED.iter().find(|n| n.name == head);
        match named {
            Some(n) => {
                Minifloat::new(n.name, n.exponent_bits, n.mantissa_bits, n.bias, n.top).unwrap()
            }
            None => parse_free(head, head.strip_prefix("fp:").unwrap()).unwrap(),
        }
    }

    fn code(f: &Minifloat, x: f32) -> u32 {
        f.encode(x, &Params::UNIT, Rounding::NearestEven, 0)
    }

    #[test]
    fn the_worked_examples_of_the_ocp_formats_hold() {
        let f = format("e4m3fn");
        for (x, expected) in [
            (0.3, 0x2a),
            (1.0625, 0x38),
            (1.1875, 0x3a),
            (-3.3, 0xc5),
            (500.0, 0x7e),
            (464.0, 0x7e),
            (2f32.powi(-10), 0),
            (1.5 * 2f32.powi(-10), 1),
            (f32::INFINITY, 0x7e),
        ] {
            assert_eq!(code(&f, x), expected, "{x}");
        }
        let f = format("e5m2");
        for (x, expected) in [(0.3, 0x35), (1.125, 0x3c), (61439.0, 0x7b), (61440.0, 0x7b)] {
            assert_eq!(code(&f, x), expected, "{x}");
        }
        let ieee = Minifloat { overflow: Overflow::Ieee, ..f };
        assert_eq!([code(&ieee, 61439.0), code(&ieee, 61440.0)], [0x7b, 0x7c]);
        let ieee = Minifloat { overflow: Overflow::Ieee, ..format("e4m3fn") };
        assert_eq!([code(&ieee, 464.0), code(&ieee, 465.0)], [0x7e, 0x7f]);
    }

    #[test]
    fn the_worked_examples_of_the_sixteen_bit_formats_hold() {
        let f = format("bf16");
        for (x, expected) in
            [(1.0 + 1.0 / 256.0, 0x3f80), (1.0 + 3.0 / 256.0, 0x3f82), (0.1, 0x3dcd)]
        {
            assert_eq!(code(&f, x), expected, "{x}");
        }
        let f = format("f16");
        for (x, expected) in [(65519.0, 0x7bff), (65520.0, 0x7c00), (2.9e-8, 0)] {
            assert_eq!(code(&f, x), expected, "{x}");
        }
    }

    #[test]
    fn the_table_of_the_specification_holds() {
        for (name, max, min_normal, min_subnormal) in [
            ("f16", 65504.0, 2f32.powi(-14), 2f32.powi(-24)),
            ("bf16", 3.389_531_4e38, 2f32.powi(-126), 2f32.powi(-133)),
            ("e5m2", 57344.0, 2f32.powi(-14), 2f32.powi(-16)),
            ("e4m3fn", 448.0, 2f32.powi(-6), 2f32.powi(-9)),
            ("e3m2fn", 28.0, 0.25, 0.0625),
            ("e2m3fn", 7.5, 1.0, 0.125),
            ("e2m1fn", 6.0, 1.0, 0.5),
        ] {
            let card = format(name).card();
            assert_eq!(
                (card.max, card.min_normal, card.min_subnormal),
                (max, Some(min_normal), Some(min_subnormal)),
                "{name}"
            );
        }
    }

    #[test]
    fn qml_truncates_as_its_examples_say() {
        let scheme: crate::Scheme = "qml:m2".parse().unwrap();
        let f = scheme.format().unwrap();
        assert_eq!(f.bits(), 11);
        for (x, expected) in [(0.3, 0.25), (-1.9, -1.75), (0.7, 0.625), (3.0, 3.0)] {
            let code = f.encode(x, &Params::UNIT, f.default_rounding(), 0);
            assert_eq!(f.decode(code, &Params::UNIT), expected);
        }
    }

    #[test]
    fn qtorch_makes_infinity_of_the_largest_positive_value_only() {
        let largest = [f32::MAX, f32::INFINITY, 65504.0, 65519.0, 65472.0];
        let scheme: crate::Scheme = "f16/qtorch".parse().unwrap();
        let stream = crate::Stream::new(0, 0);
        let mut x = [largest, largest.map(|v| -v)].concat();
        let mut bytes = Vec::new();
        scheme.encode(&x, &[10], &stream, &mut bytes).unwrap();
        scheme.emulate(&mut x, &[10], &stream).unwrap();
        let inf = f32::INFINITY;
        assert_eq!(x[..5], [inf, inf, inf, inf, 65472.0]);
        assert_eq!(x[5..], [-65504.0, -65504.0, -65504.0, -65504.0, -65472.0]);
        let mut back = [0.0; 10];
        scheme.decode(&bytes, &[10], &mut back).unwrap();
        assert_eq!(back[..], x[..]);
        assert!("e4m3fn/qtorch".parse::<crate::Scheme>().is_err(), "it has no infinity");
        assert_eq!(
            "e5m2/qtorch/stochastic".parse::<crate::Scheme>().unwrap().to_string(),
            "e5m2/qtorch/stochastic"
        );
    }

    #[test]
    fn what_f32_cannot_hold_is_no_format() {
        for head in [
            "fp:e8m3:fn",
            "fp:e8m10:141",
            "fp:e4m3:-200",
            "fp:e9m1",
            "fp:e0m3",
            "fp:e4m11",
            "fp:e4",
            "fp:e1m0",
            "fp:e4m3:fn:7",
        ] {
            assert!(parse_free(head, &head[3..]).is_err(), "{head}");
        }
    }

    #[test]
    fn the_sign_of_zero_and_of_nan_is_kept() {
        let f = format("e4m3fn");
        assert_eq!(code(&f, -0.0), 0x80);
        assert_eq!(code(&f, -1e-9), 0x80);
        assert_eq!(code(&f, f32::NAN) & 0x7f, 0x7f);
        assert!(f.decode(0xff, &Params::UNIT).is_sign_negative());
    }
}
