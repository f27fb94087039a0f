//! Element types of stored tensors.

use std::fmt;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Element type of a stored tensor, under the name that safetensors gives it.
///
/// The variants stand in the order in which safetensors lays tensors out, narrow types first;
/// [`Ord`] follows it. The types of 8 bits and fewer named `F..` travel as opaque bytes: their
/// values belong to the number formats of `scrimp-codec`.
///
/// # Source
/// The safetensors format description, section "Format", and its 0.8 type list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Dtype {
    /// One byte per element, 0 or 1.
    #[serde(rename = "BOOL")]
    Bool,
    /// 4-bit float (e2m1), two elements in a byte.
    F4,
    /// 6-bit float, 2 exponent bits, four elements in three bytes.
    #[serde(rename = "F6_E2M3")]
    F6E2M3,
    /// 6-bit float, 3 exponent bits, four elements in three bytes.
    #[serde(rename = "F6_E3M2")]
    F6E3M2,
    /// Unsigned 8-bit integer; also the type under which packed tensors are stored.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// 8-bit float, 5 exponent bits.
    #[serde(rename = "F8_E5M2")]
    F8E5M2,
    /// 8-bit float, 4 exponent bits, no infinity.
    #[serde(rename = "F8_E4M3")]
    F8E4M3,
    /// 8-bit power of two, the scale of the MX formats.
    #[serde(rename = "F8_E8M0")]
    F8E8M0,
    /// 8-bit float, 4 exponent bits, no infinity and no negative zero.
    #[serde(rename = "F8_E4M3FNUZ")]
    F8E4M3Fnuz,
    /// 8-bit float, 5 exponent bits, no infinity and no negative zero.
    #[serde(rename = "F8_E5M2FNUZ")]
    F8E5M2Fnuz,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    #[serde(rename = "BF16")]
    Bf16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE 754 binary32.
    F32,
    /// Two binary32, real and imaginary part.
    C64,
    /// IEEE 754 binary64.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
}

/// Every dtype with its safetensors key, its printed name and its width in bits, in the order of
/// the enum.
const TABLE: [(Dtype, &str, &str, usize); 22] = [
    (Dtype::Bool, "BOOL", "bool", 8),
    (Dtype::F4, "F4", "f4", 4),
    (Dtype::F6E2M3, "F6_E2M3", "f6_e2m3", 6),
    (Dtype::F6E3M2, "F6_E3M2", "f6_e3m2", 6),
    (Dtype::U8, "U8", "u8", 8),
    (Dtype::I8, "I8", "i8", 8),
    (Dtype::F8E5M2, "F8_E5M2", "f8_e5m2", 8),
    (Dtype::F8E4M3, "F8_E4M3", "f8_e4m3", 8),
    (Dtype::F8E8M0, "F8_E8M0", "f8_e8m0", 8),
    (Dtype::F8E4M3Fnuz, "F8_E4M3FNUZ", "f8_e4m3fnuz", 8),
    (Dtype::F8E5M2Fnuz, "F8_E5M2FNUZ", "f8_e5m2fnuz", 8),
    (Dtype::I16, "I16", "i16", 16),
    (Dtype::U16, "U16", "u16", 16),
    (Dtype::F16, "F16", "f16", 16),
    (Dtype::Bf16, "BF16", "bf16", 16),
    (Dtype::I32, "I32", "i32", 32),
    (Dtype::U32, "U32", "u32", 32),
    (Dtype::F32, "F32", "f32", 32),
    (Dtype::C64, "C64", "c64", 64),
    (Dtype::F64, "F64", "f64", 64),
    (Dtype::I64, "I64", "i64", 64),
    (Dtype::U64, "U64", "u64", 64),
];

impl Dtype {
    /// Every dtype, narrow ones first.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// The name in a safetensors header, e.g. `F32` or `F8_E4M3`.
    pub fn key(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// The dtype that a safetensors header calls `key`.
    pub fn from_key(key: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == key).map(|row| row.0)
    }

    /// Width of one element in bits.
    pub fn bits(self) -> usize {
        TABLE[self as usize].3
    }

    /// Whether [`Dtype::to_f32`] and [`Dtype::from_f32`] convert this dtype: f16, bf16, f32 and
    /// f64.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    /// Bytes of a tensor of this dtype, or `None` where the product overflows or does not fill
    /// whole bytes.
    pub fn byte_len(self, shape: &[usize]) -> Option<usize> {
        let bits = value_count(shape)?.checked_mul(self.bits())?;
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// The values of little-endian `bytes`, or `None` where the dtype is not one that
    /// [`Dtype::is_float`] names.
    ///
    /// f16 and bf16 widen exactly. f64 rounds to nearest even, beyond the range of f32 to
    /// infinity, as IEEE 754 has it. Bytes after the last whole element are not looked at.
    pub fn to_f32(self, bytes: &[u8]) -> Option<Vec<f32>> {
        match self {
            Self::F32 => {
                let (elements, _) = bytes.as_chunks::<4>();
                Some(elements.iter().map(|&b| f32::from_le_bytes(b)).collect())
            }
            Self::F64 => {
                let (elements, _) = bytes.as_chunks::<8>();
                #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the task")]
                let values = elements.iter().map(|&b| f64::from_le_bytes(b) as f32).collect();
                Some(values)
            }
            Self::F16 => {
                let (elements, _) = bytes.as_chunks::<2>();
                let halves: Vec<f16> = elements.iter().map(|&b| f16::from_le_bytes(b)).collect();
                Some(halves.to_f32_vec())
            }
            Self::Bf16 => {
                let (elements, _) = bytes.as_chunks::<2>();
                Some(elements.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect())
            }
            _ => None,
        }
    }

    /// Little-endian bytes of `values`, rounded to nearest even, or `None` where the dtype is not
    /// one that [`Dtype::is_float`] names.
    ///
    /// A finite value beyond the range of f16 or bf16 becomes the largest finite one: a decoder
    /// may overshoot the largest weight by a rounding step, and that must not turn into an
    /// infinity. Infinities and NaN stay what they are.
    pub fn from_f32(self, values: &[f32]) -> Option<Vec<u8>> {
        match self {
            Self::F32 => Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Self::F64 => Some(values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect()),
            Self::F16 => Some(
                values
                    .iter()
                    .flat_map(|&v| {
                        let half = f16::from_f32(v);
                        let overflowed = half.is_infinite() && v.is_finite();
                        let largest = if v < 0.0 { f16::MIN } else { f16::MAX };
                        (if overflowed { largest } else { half }).to_le_bytes()
                    })
                    .collect(),
            ),
            Self::Bf16 => Some(
                values
                    .iter()
                    .flat_map(|&v| {
                        let half = bf16::from_f32(v);
                        let overflowed = half.is_infinite() && v.is_finite();
                        let largest = if v < 0.0 { bf16::MIN } else { bf16::MAX };
                        (if overflowed { largest } else { half }).to_le_bytes()
                    })
                    .collect(),
            ),
            _ => None,
        }
    }
}

/// Prints the name that schemes and tables use: the key in lower case.
impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(TABLE[*self as usize].2)
    }
}

/// Number of values of `shape`, 1 for a scalar, or `None` where the product overflows.
///
/// Overflow counts even where a later extent is zero, as safetensors has it.
pub(crate) fn value_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_follows_the_enum_and_the_safetensors_crate() {
        for (place, (dtype, key, name, bits)) in TABLE.into_iter().enumerate() {
            assert_eq!(dtype as usize, place);
            assert_eq!(Dtype::from_key(key), Some(dtype));
            assert_eq!(dtype.to_string(), name);
            assert_eq!(serde_json::to_string(&dtype).unwrap(), format!("{key:?}"));
            let theirs: safetensors::Dtype = serde_json::from_str(&format!("{key:?}")).unwrap();
            assert_eq!(theirs.bitsize(), bits, "{key}");
        }
        let mut theirs: Vec<safetensors::Dtype> = TABLE
            .iter()
            .map(|row| serde_json::from_str(&format!("{:?}", row.1)).unwrap())
            .collect();
        let ours = theirs.clone();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn sub_byte_types_need_whole_bytes() {
        assert_eq!(Dtype::F4.byte_len(&[3]), None);
        assert_eq!(Dtype::F4.byte_len(&[2, 3]), Some(3));
        assert_eq!(Dtype::F6E2M3.byte_len(&[4]), Some(3));
    }

    #[test]
    fn overflowing_shapes_have_no_length() {
        assert_eq!(Dtype::U8.byte_len(&[usize::MAX, 2]), None);
        assert_eq!(Dtype::F64.byte_len(&[usize::MAX / 8]), None);
        assert_eq!(Dtype::F64.byte_len(&[]), Some(8));
        assert_eq!(Dtype::F64.byte_len(&[5, 0]), Some(0));
    }

    #[test]
    fn every_half_survives_the_round_trip() {
        let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let values = dtype.to_f32(&halves).unwrap();
            let again = dtype.from_f32(&values).unwrap();
            for (i, value) in values.iter().enumerate() {
                let code = u16::from_le_bytes([again[2 * i], again[2 * i + 1]]);
                if !value.is_nan() {
                    assert_eq!(usize::from(code), i, "{dtype}");
                }
            }
        }
    }

    #[test]
    fn finite_values_never_become_infinite_halves() {
        let bytes = Dtype::F16.from_f32(&[1e6, -65520.0, f32::INFINITY]).unwrap();
        assert_eq!(Dtype::F16.to_f32(&bytes).unwrap(), [65504.0, -65504.0, f32::INFINITY]);
        let bytes = Dtype::Bf16.from_f32(&[f32::MAX, f32::NEG_INFINITY]).unwrap();
        let values = Dtype::Bf16.to_f32(&bytes).unwrap();
        assert!(values[0].is_finite() && values[1] == f32::NEG_INFINITY);
    }

    #[test]
    fn doubles_round_to_the_nearest_float() {
        let bytes: Vec<u8> = [0.1f64, 1e300].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(Dtype::F64.to_f32(&bytes).unwrap(), [0.1f32, f32::INFINITY]);
        assert_eq!(Dtype::I32.to_f32(&bytes), None);
    }
}
