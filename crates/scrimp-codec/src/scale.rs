//! How a group's scale is stored.

mod double;
pub(crate) mod nested_e4m3fn;

use half::{bf16, f16};

use crate::Params;

/// The smallest scale that is stored in a format with the exponent range of `f32`: the smallest normal number.
const MIN_SCALE: f32 = f32::MIN_POSITIVE;

/// The rule that makes a power of two of a block's largest magnitude, for elements whose largest value is `max` and
/// whose largest power of two is `2^emax`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExponentRule {
    /// `floor(log2 amax) - emax`, the rule of OCP Microscaling Formats 1.0; up to an eighth of the largest values is
    /// clipped.
    Floor,
    /// `ceil(log2 amax) - emax`: nothing is clipped.
    Ceil,
    /// As `Floor`, after `amax` was rounded to the mantissa bits of an element.
    Even,
    /// `ceil(log2(amax / max))`: the least power of two that clips nothing.
    Rceil,
}

impl ExponentRule {
    /// The power of two for a block whose largest magnitude is `amax`, where elements have so many mantissa bits and `max`
    /// as their largest value: from 2^-127, which a block of zeros has, to 2^127. This is the readable truth.
    #[expect(clippy::cast_possible_truncation, reason = "these powers of two are exact in f32")]
    pub(crate) fn scale(self, amax: f32, max: f32, mantissa_bits: u32) -> f32 {
        let power = |e: i32| f64::from_bits(u64::from((e + 1023).cast_unsigned()) << 52);
        if amax == 0.0 {
            return power_of_code(0);
        }
        let (amax, max) = (f64::from(amax), f64::from(max));
        let (exponent, emax) = (exponent(amax), exponent(max));
        let x = match self {
            Self::Floor => exponent - emax,
            Self::Ceil => exponent - emax + i32::from(amax > power(exponent)),
            Self::Even => {
                let step = power(exponent) / f64::from(1 << mantissa_bits);
                self::exponent((amax / step).round_ties_even() * step) - emax
            }
            Self::Rceil => exponent - emax + i32::from(amax > max * power(exponent - emax)),
        };
        power(x.clamp(-127, 127)) as f32
    }

    /// The rule as a number that is added to the bits of `amax` before their exponent is taken: it carries into the
    /// exponent where the rule rounds up.
    pub(crate) fn carry(self, max: f32, mantissa_bits: u32) -> u32 {
        const MANTISSA: u32 = (1 << 23) - 1;
        match self {
            Self::Floor => 0,
            Self::Ceil => MANTISSA,
            // A tie carries, because the largest mantissa is odd.
            Self::Even => 1 << (22 - mantissa_bits),
            Self::Rceil => MANTISSA - (max.to_bits() & MANTISSA),
        }
    }
}

/// `floor(log2 x)` of a positive number that came from an `f32`, all of which are normal in `f64`. The logarithm itself
/// would round up just below a power of two.
fn exponent(x: f64) -> i32 {
    (x.to_bits() >> 52) as i32 - 1023
}

/// The storage format of a scale. Values are divided by the scale *as stored*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScaleFormat {
    /// 32-bit float.
    #[default]
    F32,
    /// IEEE half precision, to nearest; at least 2^-24 and at most 65504, so that it is never zero or infinite.
    F16,
    /// bfloat16, to nearest.
    Bf16,
    /// A power of two, rounded up so that nothing is clipped; one byte, the exponent plus 127.
    Pow2,
    /// The power of two that is nearest in the logarithm, `2^round(log2 s)`, for scales that are means (IR-Net); one
    /// byte as `Pow2`.
    Log2,
    /// A power of two by a rule; one byte (E8M0), the exponent plus 127, and 255 for a group that holds NaN.
    Exponent(ExponentRule),
    /// A power of two from 2^-63 to 1; one byte, the negated exponent: the bias of a configurable float.
    Bias,
    /// One byte as e4m3fn, times an f32 for the whole tensor that makes the largest scale 448.
    E4m3fn,
    /// One byte in a table of 256 levels, times an f32 for 256 scales, plus an f32 for the tensor: the double
    /// quantization of `QLoRA`.
    Double,
}

impl ScaleFormat {
    /// The storage formats that any scaled format takes.
    pub const GENERAL: [ScaleFormat; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Pow2];

    /// Those of formats whose groups have no other parameter than a scale, so that it may be rounded last.
    pub(crate) const SYMMETRIC: [ScaleFormat; 5] =
        [Self::F32, Self::F16, Self::Bf16, Self::Pow2, Self::E4m3fn];

    /// Every storage format.
    pub const ALL: [ScaleFormat; 12] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Pow2,
        Self::Log2,
        Self::Exponent(ExponentRule::Floor),
        Self::Exponent(ExponentRule::Ceil),
        Self::Exponent(ExponentRule::Even),
        Self::Exponent(ExponentRule::Rceil),
        Self::Bias,
        Self::E4m3fn,
        Self::Double,
    ];

    /// The word that a scheme uses for this storage format, after `scale:`.
    pub fn word(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Pow2 => "pow2",
            Self::Log2 => "log2",
            Self::Exponent(ExponentRule::Floor) => "floor",
            Self::Exponent(ExponentRule::Ceil) => "ceil",
            Self::Exponent(ExponentRule::Even) => "even",
            Self::Exponent(ExponentRule::Rceil) => "rceil",
            Self::Bias => "bias",
            Self::E4m3fn => "e4m3fn",
            Self::Double => "double",
        }
    }

    /// What is stored of the scales of a tensor, and what it means.
    pub fn about(self) -> &'static str {
        match self {
            Self::F32 => "4 bytes each: an f32",
            Self::F16 => "2 bytes each: IEEE half precision, from 2^-24 to 65504",
            Self::Bf16 => "2 bytes each: bfloat16",
            Self::Pow2 => "1 byte each: the exponent of a power of two plus 127, rounded up",
            Self::Log2 => {
                "1 byte each: the exponent of the nearest power of two by its logarithm, plus 127"
            }
            Self::Exponent(ExponentRule::Floor) => {
                "1 byte each: an exponent plus 127, 255 for NaN; floor(log2 amax) - emax, the rule of OCP MX"
            }
            Self::Exponent(ExponentRule::Ceil) => {
                "1 byte each: an exponent plus 127, 255 for NaN; ceil(log2 amax) - emax"
            }
            Self::Exponent(ExponentRule::Even) => {
                "1 byte each: an exponent plus 127, 255 for NaN; as `floor`, once amax is rounded to an element's mantissa"
            }
            Self::Exponent(ExponentRule::Rceil) => {
                "1 byte each: an exponent plus 127, 255 for NaN; ceil(log2(amax / max))"
            }
            Self::Bias => "1 byte each: an exponent from -63 to 0, negated",
            Self::E4m3fn => {
                "an f32 for the tensor, then 1 byte each: e4m3fn; a scale is the product of the two"
            }
            Self::Double => {
                "for the tensor an f32, the mean of all scales; for every 256 groups an f32, the largest distance from it; \
                 then 1 byte each: a code of `bnb_dynamic8`; a scale is its level times the distance, plus the mean, and \
                 at least 2^-126"
            }
        }
    }

    /// Whether the stored scales of a tensor depend on each other.
    pub(crate) fn is_nested(self) -> bool {
        matches!(self, Self::E4m3fn | Self::Double)
    }

    /// Bytes of the scales of so many groups; `None` where that is beyond counting.
    pub fn bytes(self, groups: usize) -> Option<usize> {
        match self {
            Self::E4m3fn if groups > 0 => groups.checked_add(4),
            Self::Double if groups > 0 => {
                groups.checked_add(4)?.checked_add(groups.div_ceil(DOUBLE_BLOCK).checked_mul(4)?)
            }
            _ => groups.checked_mul(self.width()),
        }
    }

    /// Bytes of one scale by itself.
    pub(crate) fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            _ => 1,
        }
    }

    /// Rounds a positive scale to what the storage can hold; the result is positive, normal in `f32`, and finite.
    ///
    /// Scales that depend on each other are rounded together (`nest`) and stay as they are here, and so
    /// do those that a format's own rule makes.
    #[inline(always)]
    pub fn store(self, scale: f32) -> f32 {
        match self {
            Self::F16 => f16::from_f32(scale).to_f32().clamp(2f32.powi(-24), 65504.0),
            Self::Bf16 => bf16::from_f32(scale).to_f32().clamp(MIN_SCALE, bf16::MAX.to_f32()),
            Self::Pow2 => {
                // The next power of two: drop the mantissa, and step up when there was one.
                let bits = scale.clamp(MIN_SCALE, 2f32.powi(127)).to_bits();
                f32::from_bits((bits + 0x007F_FFFF) & 0x7F80_0000)
            }
            Self::E4m3fn => scale.min(f32::MAX),
            Self::Log2 => {
                // The mantissa of the largest number below the square root of two; no number lies on the root.
                const BELOW_ROOT: u32 = 0x0035_04F3;
                let bits = scale.clamp(MIN_SCALE, 2f32.powi(127)).to_bits();
                f32::from_bits((bits + (0x007F_FFFF - BELOW_ROOT)) & 0x7F80_0000)
            }
            _ => scale.clamp(MIN_SCALE, f32::MAX),
        }
    }

    /// Writes the scales of all groups, little-endian; each is one that the storage holds.
    pub(crate) fn write_all(self, params: &[Params], out: &mut [u8]) {
        for (bytes, p) in out.chunks_exact_mut(self.width()).zip(params) {
            self.write(p.scale, bytes);
        }
    }

    pub(crate) fn write(self, scale: f32, out: &mut [u8]) {
        match self {
            Self::F16 => out.copy_from_slice(&f16::from_f32(scale).to_le_bytes()),
            Self::Bf16 => out.copy_from_slice(&bf16::from_f32(scale).to_le_bytes()),
            Self::Pow2 | Self::Log2 | Self::Exponent(_) => out[0] = exponent_code(scale),
            Self::Bias => out[0] = 127u8.saturating_sub(exponent_code(scale)),
            _ => out.copy_from_slice(&scale.to_le_bytes()),
        }
    }

    /// Reads the scales of all groups; the error is the first group whose bytes hold no scale.
    pub(crate) fn read_all(self, bytes: &[u8], params: &mut [Params]) -> Result<(), usize> {
        if self.is_nested() {
            return self.unnest(bytes, params);
        }
        for (group, (bytes, p)) in bytes.chunks_exact(self.width()).zip(params).enumerate() {
            p.scale = self.read(bytes).ok_or(group)?;
        }
        Ok(())
    }

    /// Reads a scale back; `None` where the bytes hold no scale that is ever written.
    pub(crate) fn read(self, bytes: &[u8]) -> Option<f32> {
        let scale = match (self, bytes) {
            (Self::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Self::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Self::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (Self::Pow2 | Self::Log2, &[e]) => f32::from_bits(u32::from(e) << 23),
            (Self::Exponent(_), &[e]) => return Some(power_of_code(e)),
            (Self::Bias, &[b @ 0..=63]) => power_of_code(127 - b),
            _ => return None,
        };
        (scale.is_normal() && scale > 0.0).then_some(scale)
    }

    /// Rounds scales that are stored under others: `params` gets what a reader will find, and the bytes are the result.
    ///
    /// `amax` is the tensor's largest magnitude, and `top` what a range is divided by to become a scale. A scale may come
    /// out as 0: its group is zeros.
    pub(crate) fn nest(self, amax: f32, top: f32, params: &mut [Params]) -> Vec<u8> {
        match self {
            Self::E4m3fn => nested_e4m3fn::nest(amax, top, params),
            Self::Double => double::nest(params),
            _ => Vec::new(),
        }
    }

    fn unnest(self, bytes: &[u8], params: &mut [Params]) -> Result<(), usize> {
        match self {
            Self::E4m3fn => nested_e4m3fn::unnest(bytes, params),
            Self::Double => double::unnest(bytes, params),
            _ => Ok(()),
        }
    }
}

/// How many scales share a scale under [`ScaleFormat::Double`].
const DOUBLE_BLOCK: usize = 256;

/// The exponent of a power of two plus 127; 255 for NaN.
fn exponent_code(scale: f32) -> u8 {
    // 2^-127 is below the normal numbers, and its exponent field is 0 as it should be.
    (scale.to_bits() >> 23).to_le_bytes()[0]
}

/// 2^(code - 127), and NaN for 255.
#[inline(always)]
pub(crate) fn power_of_code(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_scale_is_positive_normal_and_survives_its_bytes() {
        for format in ScaleFormat::GENERAL {
            for scale in
                [0.0, 1e-45, 1e-38, 1e-20, 0.1, 1.0, 1.5, 3.0e4, 7e4, 1e38, f32::MAX, f32::INFINITY]
            {
                let stored = format.store(scale);
                assert!(stored > 0.0 && stored.is_normal(), "{format:?} {scale} -> {stored}");
                let mut bytes = vec![0; format.width()];
                format.write(stored, &mut bytes);
                assert_eq!(format.read(&bytes), Some(stored), "{format:?} {scale}");
                assert_eq!(format.store(stored), stored, "{format:?} {scale}");
            }
        }
    }

    #[test]
    fn powers_of_two_round_up() {
        let store = |s| ScaleFormat::Pow2.store(s);
        assert_eq!(
            [store(1.0), store(1.000_000_1), store(0.75), store(3e38)],
            [1.0, 2.0, 1.0, 2f32.powi(127)]
        );
    }

    #[test]
    fn the_nearest_power_of_two_changes_at_the_square_root_of_two() {
        let store = |s| ScaleFormat::Log2.store(s);
        assert_eq!([store(1.0), store(1.4), store(0.8492), store(0.70)], [1.0, 1.0, 1.0, 0.5]);
        let below = f32::from_bits(0x3FB5_04F3);
        let above = f32::from_bits(0x3FB5_04F4);
        assert!(f64::from(below).powi(2) < 2.0 && f64::from(above).powi(2) > 2.0);
        assert_eq!([store(below), store(above), store(f32::MAX)], [1.0, 2.0, 2f32.powi(127)]);
    }

    #[test]
    fn foreign_bytes_that_hold_no_scale_are_refused() {
        assert_eq!(ScaleFormat::F32.read(&f32::NAN.to_le_bytes()), None);
        assert_eq!(ScaleFormat::F32.read(&(-1f32).to_le_bytes()), None);
        assert_eq!(ScaleFormat::Pow2.read(&[255]), None);
        assert_eq!(ScaleFormat::Pow2.read(&[0]), None);
        assert_eq!(ScaleFormat::F16.read(&[0, 0]), None);
    }
}
