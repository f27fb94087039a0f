//! How a group's scale is stored.

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

    /// Every storage format.
    pub const ALL: [ScaleFormat; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Pow2,
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
            Self::Exponent(ExponentRule::Floor) => "floor",
            Self::Exponent(ExponentRule::Ceil) => "ceil",
            Self::Exponent(ExponentRule::Even) => "even",
            Self::Exponent(ExponentRule::Rceil) => "rceil",
            Self::Bias => "bias",
            Self::E4m3fn => "e4m3fn",
            Self::Double => "double",
        }
    }

    /// Whether the stored scales of a tensor depend on each other.
    pub(crate) fn is_nested(self) -> bool {
        matches!(self, Self::E4m3fn | Self::Double)
    }

    /// Bytes of the scales of so many groups; `None` where that is beyond counting.
    pub(crate) fn bytes(self, groups: usize) -> Option<usize> {
        match self {
            Self::E4m3fn if groups > 0 => groups.checked_add(4),
            Self::Double if groups > 0 => {
                groups.checked_add(4)?.checked_add(groups.div_ceil(DOUBLE_BLOCK).checked_mul(4)?)
            }
            _ => groups.checked_mul(self.width()),
        }
    }

    /// Bytes of one scale by itself.
    fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            _ => 1,
        }
    }

    /// Rounds a positive scale to what the storage can hold; the result is positive, normal in `f32`, and finite.
    ///
    /// Scales that depend on each other are rounded together ([`nest`](Self::nest)) and stay as they are here, and so
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
            _ => scale.clamp(MIN_SCALE, f32::MAX),
        }
    }

    /// Writes the scales of all groups, little-endian; each is one that the storage holds.
    pub(crate) fn write_all(self, params: &[Params], out: &mut [u8]) {
        for (bytes, p) in out.chunks_exact_mut(self.width()).zip(params) {
            self.write(p.scale, bytes);
        }
    }

    fn write(self, scale: f32, out: &mut [u8]) {
        match self {
            Self::F16 => out.copy_from_slice(&f16::from_f32(scale).to_le_bytes()),
            Self::Bf16 => out.copy_from_slice(&bf16::from_f32(scale).to_le_bytes()),
            Self::Pow2 | Self::Exponent(_) => out[0] = exponent_code(scale),
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
    fn read(self, bytes: &[u8]) -> Option<f32> {
        let scale = match (self, bytes) {
            (Self::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Self::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Self::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (Self::Pow2, &[e]) => f32::from_bits(u32::from(e) << 23),
            (Self::Exponent(_), &[e]) => return Some(power_of_code(e)),
            (Self::Bias, &[b @ 0..=63]) => power_of_code(127 - b),
            _ => return None,
        };
        (scale.is_normal() && scale > 0.0).then_some(scale)
    }

    /// Rounds scales that are stored under others: `params` gets what a reader will find, and the bytes are the result.
    ///
    /// `top` is the scale that the tensor's largest magnitude would have by itself. A scale that is stored as zero
    /// becomes the largest number instead, so that dividing by it gives the zeros that it decodes to.
    pub(crate) fn nest(self, top: f32, params: &mut [Params]) -> Vec<u8> {
        let _ = (top, params);
        todo!()
    }

    fn unnest(self, bytes: &[u8], params: &mut [Params]) -> Result<(), usize> {
        let _ = (bytes, params);
        todo!()
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
fn power_of_code(code: u8) -> f32 {
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
    fn foreign_bytes_that_hold_no_scale_are_refused() {
        assert_eq!(ScaleFormat::F32.read(&f32::NAN.to_le_bytes()), None);
        assert_eq!(ScaleFormat::F32.read(&(-1f32).to_le_bytes()), None);
        assert_eq!(ScaleFormat::Pow2.read(&[255]), None);
        assert_eq!(ScaleFormat::Pow2.read(&[0]), None);
        assert_eq!(ScaleFormat::F16.read(&[0, 0]), None);
    }
}
