//! Configurable floats: small floats without infinity and NaN, whose exponent bias is chosen for each tensor.
//!
//! `value = 2^-b * (-1)^s * M * 2^(1 - m)` where the exponent field E is 0, else
//! `2^-b * (-1)^s * (1 + M / 2^m) * 2^E`, with a bias b from 0 to 63 that is stored in one byte.
//!
//! The bias is the largest under which nothing saturates: with k the smallest integer for which
//! `amax <= (2 - 2^-m) 2^k` and `E_top` the largest exponent field, `b = clamp(E_top - k, 0, 63)`. Beyond the clamp, large
//! tensors saturate and small ones vanish. A group of zeros has bias 0.
//!
//! Under a [`Memory`](crate::Memory) the bias has a hysteresis of one: it stays while the rule asks for the same or for
//! one more, and while all values are zero. It does not stay where the rule asks for one less: the largest values
//! would saturate, up to half of each lost, for a step that was refined too far by one bit.
//!
//! # Words
//! `bias:N` fixes the bias. `hw` follows the hardware: NaN, like what is too large, becomes the largest magnitude under
//! its own sign; without it NaN is an error.
//!
//! # Source
//! Tesla, "A guide to Tesla's configurable floating point formats and arithmetic" (Dojo technology white paper). The
//! choice of the bias is ours, and the 16-bit variants are as recalled from it.

use std::sync::Arc;

use super::minifloat::{Minifloat, Top};
use super::{Card, Format, HeadError, Header, Params, Scaling};
use crate::codecs::{Codec, Scaled};
use crate::families::Family;
use crate::{Range, Rounding, ScaleFormat, simd};

/// The largest bias.
const MAX_BIAS: i32 = 63;

/// A row of the list of configurable floats.
struct Row {
    name: &'static str,
    exponent_bits: u32,
    mantissa_bits: u32,
    about: &'static str,
}

static ROWS: &[Row] = &[
    row("cfloat8_1_4_3", 4, 3, "configurable float of Dojo with the finer steps, bias per tensor"),
    row("cfloat8_1_5_2", 5, 2, "configurable float of Dojo with the wider range, bias per tensor"),
    row("cfloat16_shp", 5, 10, "signed half precision of Dojo, bias per tensor"),
    row("cfloat16_uhp", 6, 9, "16-bit float of Dojo with the wider range, bias per tensor"),
];

const fn row(
    name: &'static str,
    exponent_bits: u32,
    mantissa_bits: u32,
    about: &'static str,
) -> Row {
    Row { name, exponent_bits, mantissa_bits, about }
}

/// The paper, for the book.
const SOURCE: &str = "\
Tesla, A guide to Tesla's configurable floating point formats and arithmetic, Dojo technology white paper; the choice of
the bias is ours, and the 16-bit variants are as recalled from it";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
From its most significant bit, a code is a sign, an exponent field *E* of *e* bits, and a mantissa *M* of *m* bits. The
magnitude is `2^-b * M 2^(1 - m)` if *E* is 0, else `2^-b * (1 + M / 2^m) 2^E`, where the scale is `2^-b` and *b*, from 0
to 63, is the stored byte. No code is special.";

/// The family of the configurable floats.
pub(crate) struct CFloatFamily;

impl Family for CFloatFamily {
    fn syntax(&self) -> &'static str {
        "cfloat8_1_4_3 cfloat8_1_5_2 cfloat16_shp cfloat16_uhp"
    }

    fn about(&self) -> &'static str {
        "floats without infinity and NaN whose exponent bias, 0 to 63, follows the tensor; `/bias:N` fixes it, `/hw` makes NaN the largest magnitude"
    }

    fn members(&self) -> Vec<String> {
        ROWS.iter()
            .map(|row| row.name.into())
            .chain(["cfloat8_1_4_3/bias:7", "cfloat8_1_5_2/hw"].map(String::from))
            .collect()
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        Some(Ok(Scaled::of(CFloat::named(head)?)))
    }

    fn synonyms(&self) -> &'static [(&'static str, &'static str)] {
        &[("cfloat8", "cfloat8_1_4_3"), ("cfloat16", "cfloat16_shp")]
    }
}

/// Where the bias comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bias {
    Fitted,
    Fixed(i32),
    /// Said twice, or beyond the range.
    Wrong,
}

/// A configurable float.
#[derive(Clone, Debug)]
pub struct CFloat {
    /// The values at bias 0.
    grid: Minifloat,
    about: &'static str,
    bias: Bias,
    /// Whether NaN becomes the largest magnitude.
    hardware: bool,
}

/// How often the hardware would raise each of its flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// NaNs and infinities that came in.
    pub invalid: u64,
    /// Results that are subnormal.
    pub denormal: u64,
    /// Finite values that were too large after rounding.
    pub overflow: u64,
    /// Values other than zero that became zero.
    pub underflow: u64,
}

impl CFloat {
    /// The format of this name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        let row = ROWS.iter().find(|row| row.name == name)?;
        let grid =
            Minifloat::new(row.name, row.exponent_bits, row.mantissa_bits, 0, Top::Finite).ok()?;
        Some(Self { grid, about: row.about, bias: Bias::Fitted, hardware: false })
    }

    /// Counts the flags of a conversion to nearest of `x` under a bias from 0 to 63; a larger one counts as 63.
    ///
    /// The white paper names the flags; what raises them is as recalled.
    pub fn flags(&self, x: &[f32], bias: u32) -> Flags {
        let params = with_bias(i32::try_from(bias).unwrap_or(MAX_BIAS).min(MAX_BIAS));
        let card = self.grid.card();
        let least_normal = card.min_normal.unwrap_or(0.0);
        // The largest value is so many steps of its exponent, less one.
        let steps = 2f32.powi(card.mantissa_bits.unwrap_or(0).cast_signed());
        // Half a step above the largest value, whose code is odd, a tie rounds up.
        let too_large = card.max + card.max / (2.0 * steps - 1.0) / 2.0;
        let mut flags = Flags::default();
        for &v in x {
            if !v.is_finite() {
                flags.invalid += 1;
                continue;
            }
            let code = self.encode(v, &params, Rounding::NearestEven, 0);
            let result = self.grid.decode(code, &Params::UNIT).abs();
            flags.denormal += u64::from(result > 0.0 && result < least_normal);
            flags.underflow += u64::from(result == 0.0 && v != 0.0);
            flags.overflow += u64::from((v / params.scale).abs() >= too_large);
        }
        flags
    }

    /// The bias that the rule asks for.
    fn asked(&self, amax: f32) -> i32 {
        let max = self.grid.card().max;
        // Exact: both have a significand of 24 bits at most, and the exponents are taken from the bits.
        let (of_max, of_amax) = (exponent(max), exponent(amax));
        let fraction = |v: f32| f64::from(v) / 2f64.powi(exponent(v));
        let k = of_amax + i32::from(fraction(amax) > fraction(max));
        (of_max - k).clamp(0, MAX_BIAS)
    }

    /// The bit-level twin of the definition.
    fn fast(&self) -> Option<simd::FloatGrid> {
        let grid = self.grid.fast()?;
        Some(if self.hardware { simd::FloatGrid { nan: grid.max, ..grid } } else { grid })
    }
}

/// The exponent of a positive number.
fn exponent(v: f32) -> i32 {
    let field = f64::from(v).to_bits() >> 52;
    i32::try_from(field).unwrap_or(0) - 1023
}

fn with_bias(bias: i32) -> Params {
    Params { scale: 2f32.powi(-bias), ..Params::UNIT }
}

fn bias_of(scale: f32) -> i32 {
    -exponent(scale)
}

impl Format for CFloat {
    fn name(&self) -> String {
        self.grid.name()
    }

    fn bits(&self) -> u32 {
        self.grid.bits()
    }

    fn card(&self) -> Card {
        Card { name: self.name() + &self.suffix(), about: self.about.into(), ..self.grid.card() }
    }

    fn header(&self) -> Header {
        Header { scaling: Scaling::Always, zero_bits: 0, offset: false }
    }

    fn scales(&self) -> &'static [ScaleFormat] {
        &[ScaleFormat::Bias]
    }

    fn remembers_scales(&self) -> bool {
        self.bias == Bias::Fitted
    }

    fn fit_again(&self, range: Range, before: Option<f32>) -> Params {
        let fitted = self.fit(range, ScaleFormat::Bias);
        let (Some(before), Bias::Fitted) = (before, self.bias) else {
            return fitted;
        };
        let (old, asked) = (bias_of(before).clamp(0, MAX_BIAS), bias_of(fitted.scale));
        if range.amax() == 0.0 || asked == old + 1 { with_bias(old) } else { fitted }
    }

    fn holds_nan(&self) -> bool {
        self.hardware
    }

    fn holds_infinity(&self) -> bool {
        true // It saturates.
    }

    fn words(&self) -> &'static [&'static str] {
        &["hw", "bias:7"]
    }

    fn with_word(&self, word: &str) -> Option<Arc<dyn Format>> {
        let changed = match word.strip_prefix("bias:") {
            Some(digits) => {
                let bias = match (digits.parse::<i32>().ok()?, self.bias) {
                    (b @ 0..=MAX_BIAS, Bias::Fitted) => Bias::Fixed(b),
                    _ => Bias::Wrong,
                };
                Self { bias, ..self.clone() }
            }
            None if word == "hw" => Self { hardware: true, ..self.clone() },
            None => return None,
        };
        Some(Arc::new(changed))
    }

    fn words_combine(&self) -> bool {
        true
    }

    fn complaint(&self) -> Option<HeadError> {
        (self.bias == Bias::Wrong).then(|| HeadError {
            message: format!("`{}` takes one bias, from 0 to {MAX_BIAS}", self.name()),
            help: format!("write for example `{}/bias:7`", self.name()),
        })
    }

    fn suffix(&self) -> String {
        let hardware = if self.hardware { "/hw" } else { "" };
        match self.bias {
            Bias::Fixed(bias) => format!("{hardware}/bias:{bias}"),
            _ => hardware.into(),
        }
    }

    fn fit(&self, range: Range, _store: ScaleFormat) -> Params {
        match self.bias {
            Bias::Fixed(bias) => with_bias(bias),
            _ if range.amax() == 0.0 => Params::UNIT,
            _ => with_bias(self.asked(range.amax())),
        }
    }

    fn encode(&self, x: f32, params: &Params, rounding: Rounding, draw: u32) -> u32 {
        if self.hardware && x.is_nan() {
            let sign = if x.is_sign_negative() { self.grid.sign_bit() } else { 0 };
            return sign | self.grid.max_code();
        }
        self.grid.encode(x, params, rounding, draw)
    }

    fn decode(&self, code: u32, params: &Params) -> f32 {
        self.grid.decode(code, params)
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
            Some(grid) if rounding == Rounding::NearestEven => {
                simd::float_encode(&grid, self.grid.fast_codes(), x, params.scale, codes);
            }
            _ => super::encode_by_definition(self, x, params, rounding, draws, codes),
        }
    }

    fn decode_run(&self, codes: &[u32], params: &Params, out: &mut [f32]) {
        match self.fast() {
            Some(grid) => {
                simd::float_decode(&grid, self.grid.fast_codes(), codes, params.scale, out);
            }
            None => super::decode_by_definition(self, codes, params, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Memory, Scheme, Stream};

    fn code(name: &str, bias: i32, x: f32) -> u32 {
        let format = CFloat::named(name).unwrap();
        format.encode(x, &with_bias(bias), Rounding::NearestEven, 0)
    }

    fn value(name: &str, bias: i32, x: f32) -> f32 {
        CFloat::named(name).unwrap().decode(code(name, bias, x), &with_bias(bias))
    }

    fn fitted(name: &str, amax: f32) -> i32 {
        let range = Range { min: -amax, max: amax };
        bias_of(CFloat::named(name).unwrap().fit(range, ScaleFormat::Bias).scale)
    }

    #[test]
    fn the_worked_examples_of_the_specification_hold() {
        let name = "cfloat8_1_4_3";
        assert_eq!((code(name, 7, 0.3), value(name, 7, 0.3)), (0x2a, 0.3125));
        assert_eq!((code(name, 7, 470.0), value(name, 7, 470.0)), (0x7f, 480.0));
        assert_eq!(value(name, 7, 1e9), 480.0);
        assert_eq!(value(name, 7, 1.01 * 2f32.powi(-10)), 2f32.powi(-9));
        assert_eq!((code(name, 20, 0.3), value(name, 20, 0.3)), (0x7f, 0.058_593_75));
        assert_eq!(value(name, 15, 1.9), 1.875);
        let name = "cfloat8_1_5_2";
        assert_eq!((code(name, 15, 1e5), value(name, 15, 1e5)), (0x7e, 98304.0));
        assert_eq!((code(name, 15, 2e5), value(name, 15, 2e5)), (0x7f, 114_688.0));
    }

    #[test]
    fn the_bias_is_the_largest_that_clips_nothing() {
        assert_eq!(fitted("cfloat8_1_4_3", 450.0), 7);
        assert_eq!(fitted("cfloat8_1_4_3", 480.0), 7);
        assert_eq!(fitted("cfloat8_1_4_3", 480f32.next_up()), 6);
        assert_eq!(fitted("cfloat8_1_4_3", 240f32.next_up()), 7);
        assert_eq!(fitted("cfloat8_1_4_3", f32::MAX), 0);
        assert_eq!(fitted("cfloat8_1_4_3", 1e-45), 63);
        assert_eq!(fitted("cfloat8_1_5_2", 114_688.0), 15);
        assert_eq!(fitted("cfloat16_shp", 1.0), 31);
        assert_eq!(fitted("cfloat16_uhp", 1.0), 63);
    }

    #[test]
    fn the_bias_stays_for_one_step_down_and_for_zeros_but_never_saturates() {
        let scheme: Scheme = "cfloat8_1_4_3".parse().unwrap();
        let mut memory = scheme.memory(&[1]).unwrap();
        let mut next = |v: f32| {
            let mut x = [v];
            let stream = Stream::new(0, 0);
            let mut bytes = Vec::new();
            let mut same = memory.clone();
            scheme.encode_next(&[v], &[1], &stream, same.as_mut(), &mut bytes).unwrap();
            scheme.emulate_next(&mut x, &[1], &stream, memory.as_mut()).unwrap();
            assert_eq!(memory, same);
            let mut back = [0.0];
            scheme.decode(&bytes, &[1], &mut back).unwrap();
            assert_eq!(back, x);
            (bytes[0], x[0])
        };
        assert_eq!(next(0.0), (0, 0.0)); // nothing known yet
        assert_eq!(next(1.0), (15, 1.0));
        assert_eq!(next(0.5), (15, 0.5)); // the rule asks for 16
        assert_eq!(next(0.25), (17, 0.25));
        assert_eq!(next(0.0), (17, 0.0));
        assert_eq!(next(0.5), (16, 0.5)); // at once, for 17 would clip it
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Option<Memory>>(&text).unwrap(), memory);
    }

    #[test]
    fn the_hardware_makes_nan_the_largest_magnitude_under_its_sign() {
        let scheme: Scheme = "cfloat8_1_4_3/bias:7/hw".parse().unwrap();
        assert_eq!(scheme.to_string(), "cfloat8_1_4_3/hw/bias:7");
        let mut x = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e9, 0.3];
        let (mut bytes, stream) = (Vec::new(), Stream::new(0, 0));
        let tally = scheme.encode(&x, &[6], &stream, &mut bytes).unwrap();
        assert_eq!(tally, crate::Tally::default());
        assert_eq!(bytes, [7, 0x7f, 0xff, 0x7f, 0xff, 0xff, 0x2a]);
        scheme.emulate(&mut x, &[6], &stream).unwrap();
        assert_eq!(x, [480.0, -480.0, 480.0, -480.0, -480.0, 0.3125]);
    }

    #[test]
    fn a_bias_that_cannot_be_is_refused() {
        for text in
            ["cfloat8_1_4_3/bias:64", "cfloat8_1_4_3/bias:-1", "cfloat8_1_4_3/bias:7/bias:8"]
        {
            let error = text.parse::<Scheme>().unwrap_err();
            assert!(error.to_string().contains("from 0 to 63"), "{error}");
        }
        assert!("cfloat8_1_4_3/bias:x".parse::<Scheme>().is_err());
    }

    #[test]
    fn flags_are_counted() {
        let format = CFloat::named("cfloat8_1_4_3").unwrap();
        // At bias 7 the largest is 480 in steps of 32, the least normal 2^-6, the least step 2^-9.
        let x =
            [f32::NAN, f32::INFINITY, 495.9, 496.0, 1e9, 2f32.powi(-7), 2f32.powi(-11), 0.0, 1.0];
        let flags = Flags { invalid: 2, denormal: 1, overflow: 2, underflow: 1 };
        assert_eq!(format.flags(&x, 7), flags);
    }
}
