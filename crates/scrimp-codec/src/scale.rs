//! How a group's scale is stored.

use half::{bf16, f16};

/// The smallest scale that is stored in a format with the exponent range of `f32`: the smallest normal number.
const MIN_SCALE: f32 = f32::MIN_POSITIVE;

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
}

impl ScaleFormat {
    /// Every storage format, with the word that a scheme uses for it.
    pub const WORDS: [(&str, ScaleFormat); 4] = [
        ("f32", ScaleFormat::F32),
        ("f16", ScaleFormat::F16),
        ("bf16", ScaleFormat::Bf16),
        ("pow2", ScaleFormat::Pow2),
    ];

    /// The word that a scheme uses for this storage format.
    pub fn word(self) -> &'static str {
        Self::WORDS[self as usize].0
    }

    /// Bytes of one stored scale.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Pow2 => 1,
        }
    }

    /// Rounds a positive scale to what the storage can hold; the result is positive, normal in `f32`, and finite.
    #[inline(always)]
    pub fn store(self, scale: f32) -> f32 {
        match self {
            Self::F32 => scale.clamp(MIN_SCALE, f32::MAX),
            Self::F16 => f16::from_f32(scale).to_f32().clamp(2f32.powi(-24), 65504.0),
            Self::Bf16 => bf16::from_f32(scale).to_f32().clamp(MIN_SCALE, bf16::MAX.to_f32()),
            Self::Pow2 => {
                // The next power of two: drop the mantissa, and step up when there was one.
                let bits = scale.clamp(MIN_SCALE, 2f32.powi(127)).to_bits();
                f32::from_bits((bits + 0x007F_FFFF) & 0x7F80_0000)
            }
        }
    }

    /// Appends a stored scale (a result of [`store`](Self::store)) as little-endian bytes.
    pub(crate) fn write(self, scale: f32, out: &mut [u8]) {
        match self {
            Self::F32 => out.copy_from_slice(&scale.to_le_bytes()),
            Self::F16 => out.copy_from_slice(&f16::from_f32(scale).to_le_bytes()),
            Self::Bf16 => out.copy_from_slice(&bf16::from_f32(scale).to_le_bytes()),
            Self::Pow2 => {
                out[0] = scale.to_bits().to_be_bytes()[0] << 1 | (scale.to_bits() >> 23 & 1) as u8;
            }
        }
    }

    /// Reads a scale back; `None` where the bytes hold no scale that [`store`](Self::store) can give.
    pub(crate) fn read(self, bytes: &[u8]) -> Option<f32> {
        let scale = match (self, bytes) {
            (Self::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Self::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Self::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (Self::Pow2, &[e]) => f32::from_bits(u32::from(e) << 23),
            _ => return None,
        };
        (scale.is_normal() && scale > 0.0).then_some(scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_scale_is_positive_normal_and_survives_its_bytes() {
        for (_, format) in ScaleFormat::WORDS {
            for scale in
                [0.0, 1e-45, 1e-38, 1e-20, 0.1, 1.0, 1.5, 3.0e4, 7e4, 1e38, f32::MAX, f32::INFINITY]
            {
                let stored = format.store(scale);
                assert!(stored > 0.0 && stored.is_normal(), "{format:?} {scale} -> {stored}");
                let mut bytes = vec![0; format.bytes()];
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
