//! Constant tensors: their types, and their values as Rust sees them.

use prost::bytes::Bytes;

use crate::OnnxError;
use crate::proto::TensorProto;

/// The element type of a tensor, by its number in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the specification")]
#[repr(i32)]
pub enum DataType {
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Uint16 = 4,
    Int16 = 5,
    Int32 = 6,
    Int64 = 7,
    String = 8,
    Bool = 9,
    Float16 = 10,
    Double = 11,
    Uint32 = 12,
    Uint64 = 13,
    Complex64 = 14,
    Complex128 = 15,
    Bfloat16 = 16,
    Float8E4M3FN = 17,
    Float8E4M3FNUZ = 18,
    Float8E5M2 = 19,
    Float8E5M2FNUZ = 20,
    Uint4 = 21,
    Int4 = 22,
    Float4E2M1 = 23,
    Float8E8M0 = 24,
    Uint2 = 25,
    Int2 = 26,
    Float6E2M3 = 27,
    Float6E3M2 = 28,
}

impl DataType {
    /// Every type, in the order of the numbers.
    pub const ALL: [DataType; 28] = [
        Self::Float,
        Self::Uint8,
        Self::Int8,
        Self::Uint16,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::String,
        Self::Bool,
        Self::Float16,
        Self::Double,
        Self::Uint32,
        Self::Uint64,
        Self::Complex64,
        Self::Complex128,
        Self::Bfloat16,
        Self::Float8E4M3FN,
        Self::Float8E4M3FNUZ,
        Self::Float8E5M2,
        Self::Float8E5M2FNUZ,
        Self::Uint4,
        Self::Int4,
        Self::Float4E2M1,
        Self::Float8E8M0,
        Self::Uint2,
        Self::Int2,
        Self::Float6E2M3,
        Self::Float6E3M2,
    ];

    /// The type with this number; `None` where the specification has none.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|&t| t as i32 == number)
    }

    /// Bits of one element in `raw_data`; `None` for strings.
    pub fn bits(self) -> Option<usize> {
        Some(match self {
            Self::String => return None,
            Self::Uint2 | Self::Int2 => 2,
            Self::Uint4 | Self::Int4 | Self::Float4E2M1 => 4,
            Self::Float6E2M3 | Self::Float6E3M2 => 6,
            Self::Uint8
            | Self::Int8
            | Self::Bool
            | Self::Float8E4M3FN
            | Self::Float8E4M3FNUZ
            | Self::Float8E5M2
            | Self::Float8E5M2FNUZ
            | Self::Float8E8M0 => 8,
            Self::Uint16 | Self::Int16 | Self::Float16 | Self::Bfloat16 => 16,
            Self::Float | Self::Int32 | Self::Uint32 => 32,
            Self::Int64 | Self::Double | Self::Uint64 | Self::Complex64 => 64,
            Self::Complex128 => 128,
        })
    }

    /// Bytes of so many elements in `raw_data`; `None` for strings and where the number is beyond `usize`.
    pub fn bytes(self, elems: usize) -> Option<usize> {
        elems.checked_mul(self.bits()?).map(|bits| bits.div_ceil(8))
    }

    /// The name of the type in messages: `float32`, `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float => "float32",
            Self::Uint8 => "uint8",
            Self::Int8 => "int8",
            Self::Uint16 => "uint16",
            Self::Int16 => "int16",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::String => "string",
            Self::Bool => "bool",
            Self::Float16 => "float16",
            Self::Double => "float64",
            Self::Uint32 => "uint32",
            Self::Uint64 => "uint64",
            Self::Complex64 => "complex64",
            Self::Complex128 => "complex128",
            Self::Bfloat16 => "bfloat16",
            Self::Float8E4M3FN => "float8_e4m3fn",
            Self::Float8E4M3FNUZ => "float8_e4m3fnuz",
            Self::Float8E5M2 => "float8_e5m2",
            Self::Float8E5M2FNUZ => "float8_e5m2fnuz",
            Self::Uint4 => "uint4",
            Self::Int4 => "int4",
            Self::Float4E2M1 => "float4_e2m1fn",
            Self::Float8E8M0 => "float8_e8m0fnu",
            Self::Uint2 => "uint2",
            Self::Int2 => "int2",
            Self::Float6E2M3 => "float6_e2m3fn",
            Self::Float6E3M2 => "float6_e3m2fn",
        }
    }
}

/// The number of elements of a shape; `None` where a size is negative or the product is beyond `usize`.
pub fn elems(dims: &[i64]) -> Option<usize> {
    dims.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))
}

/// The lower 16 bits, in which the typed fields hold half floats.
#[expect(clippy::cast_possible_truncation, reason = "the upper bits are unused")]
fn low_half(field: i32) -> u16 {
    field.cast_unsigned() as u16
}

impl TensorProto {
    /// A tensor of `f32` values.
    pub fn from_f32(name: &str, dims: &[usize], values: &[f32]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::from_raw(name, DataType::Float, dims, raw)
    }

    /// A tensor of `i64` values.
    pub fn from_i64(name: &str, dims: &[usize], values: &[i64]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::from_raw(name, DataType::Int64, dims, raw)
    }

    /// A tensor whose bytes are laid out as in a file.
    ///
    /// # Panics
    /// If a size is beyond `i64`, which no tensor in memory has.
    pub fn from_raw(name: &str, kind: DataType, dims: &[usize], raw: Vec<u8>) -> Self {
        Self {
            name: Some(name.to_owned()),
            data_type: Some(kind as i32),
            dims: dims.iter().map(|&d| i64::try_from(d).expect("a tensor in memory")).collect(),
            raw_data: Some(Bytes::from(raw)),
            ..Self::default()
        }
    }

    /// The element type; `None` where the file says none that exists.
    pub fn kind(&self) -> Option<DataType> {
        DataType::from_number(self.data_type.unwrap_or_default())
    }

    /// The shape.
    ///
    /// # Errors
    /// If a size is negative.
    pub fn shape(&self) -> Result<Vec<usize>, OnnxError> {
        self.dims.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>().map_err(|_| {
            OnnxError::tensor(self.name(), format!("impossible shape {:?}", self.dims))
        })
    }

    /// Whether the values lie in another file.
    pub fn is_external(&self) -> bool {
        self.data_location == Some(1)
    }

    /// The values of a tensor of floats (16, 32 or 64 bits), in row-major order.
    ///
    /// # Errors
    /// If the type is another, the values lie in another file, or there are too few or too many of them.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "f64 constants become what an f32 engine sees"
    )]
    pub fn to_f32(&self) -> Result<Vec<f32>, OnnxError> {
        let kind = self.kind();
        let raw = self.raw(kind.and_then(DataType::bits).unwrap_or(8) / 8)?;
        let values: Vec<f32> = match (kind, raw) {
            (Some(DataType::Float), Some(raw)) => {
                raw.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
            }
            (Some(DataType::Float), None) => self.float_data.clone(),
            (Some(DataType::Double), Some(raw)) => {
                raw.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect()
            }
            (Some(DataType::Double), None) => self.double_data.iter().map(|&v| v as f32).collect(),
            (Some(DataType::Float16), Some(raw)) => {
                raw.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
            }
            (Some(DataType::Float16), None) => self
                .int32_data
                .iter()
                .map(|&v| half::f16::from_bits(low_half(v)).to_f32())
                .collect(),
            (Some(DataType::Bfloat16), Some(raw)) => {
                raw.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
            }
            (Some(DataType::Bfloat16), None) => self
                .int32_data
                .iter()
                .map(|&v| half::bf16::from_bits(low_half(v)).to_f32())
                .collect(),
            _ => return Err(self.wrong_type("a float")),
        };
        self.counted(values)
    }

    /// The values of a tensor of integers or truth values, in row-major order.
    ///
    /// # Errors
    /// If the type is another, a value is beyond its type or beyond `i64`, the values lie in another file, or there are too
    /// few or too many of them.
    pub fn to_i64(&self) -> Result<Vec<i64>, OnnxError> {
        let kind = self.kind();
        let bits = kind.and_then(DataType::bits).unwrap_or(8);
        let raw = self.raw(bits / 8)?;
        let signed = match kind {
            Some(
                DataType::Int2
                | DataType::Int4
                | DataType::Int8
                | DataType::Int16
                | DataType::Int32
                | DataType::Int64,
            ) => true,
            Some(
                DataType::Bool
                | DataType::Uint2
                | DataType::Uint4
                | DataType::Uint8
                | DataType::Uint16
                | DataType::Uint32
                | DataType::Uint64,
            ) => false,
            _ => return Err(self.wrong_type("an integer")),
        };
        let beyond =
            |what: &str| OnnxError::tensor(self.name(), format!("a value is beyond {what}"));
        let values: Vec<i64> = match (bits, raw) {
            (2 | 4, Some(raw)) => self.unpacked(raw, bits, signed)?,
            // The bytes that `raw_data` would have, one in each number.
            (2 | 4, None) => {
                let bytes = self.int32_data.iter().map(|&v| u8::try_from(v).ok());
                let bytes: Option<Vec<u8>> = bytes.collect();
                self.unpacked(&bytes.ok_or_else(|| beyond("a byte"))?, bits, signed)?
            }
            (_, Some(raw)) => {
                let values: Option<_> =
                    raw.chunks_exact(bits / 8).map(|bytes| integer(bytes, signed)).collect();
                values.ok_or_else(|| beyond("64 bits with a sign"))?
            }
            (64, None) if signed => self.int64_data.clone(),
            (32 | 64, None) if !signed => {
                let values: Option<_> =
                    self.uint64_data.iter().map(|&v| i64::try_from(v).ok()).collect();
                values.ok_or_else(|| beyond("64 bits with a sign"))?
            }
            (_, None) => self.int32_data.iter().map(|&v| i64::from(v)).collect(),
        };
        if bits < 64 {
            let (low, high) = if signed {
                (-1 << (bits - 1), (1 << (bits - 1)) - 1)
            } else {
                (0, (1 << bits) - 1)
            };
            if !values.iter().all(|v| (low..=high).contains(v)) {
                return Err(beyond(&format!("{low}..={high}")));
            }
        }
        self.counted(values)
    }

    /// Integers of 2 or 4 bits, of which the first of a byte lies in its lowest bits.
    fn unpacked(&self, bytes: &[u8], bits: usize, signed: bool) -> Result<Vec<i64>, OnnxError> {
        let elems = elems(&self.dims).filter(|elems| elems.div_ceil(8 / bits) == bytes.len());
        let elems = elems.ok_or_else(|| {
            let reason =
                format!("{} bytes of {bits}-bit values for shape {:?}", bytes.len(), self.dims);
            OnnxError::tensor(self.name(), reason)
        })?;
        let codes = bytes.iter().flat_map(|&byte| (0..8).step_by(bits).map(move |at| byte >> at));
        let value = |code: u8| {
            let code = i64::from(code) & ((1 << bits) - 1);
            if signed && code >> (bits - 1) == 1 { code - (1 << bits) } else { code }
        };
        Ok(codes.take(elems).map(value).collect())
    }

    fn raw(&self, width: usize) -> Result<Option<&[u8]>, OnnxError> {
        if self.is_external() {
            return Err(OnnxError::tensor(
                self.name(),
                "its values lie in another file and were not read",
            ));
        }
        match &self.raw_data {
            Some(raw) if width > 0 && raw.len() % width != 0 => Err(OnnxError::tensor(
                self.name(),
                format!("{} bytes are no whole number of {width}-byte values", raw.len()),
            )),
            raw => Ok(raw.as_deref()),
        }
    }

    fn counted<T>(&self, values: Vec<T>) -> Result<Vec<T>, OnnxError> {
        if Some(values.len()) == elems(&self.dims) {
            Ok(values)
        } else {
            Err(OnnxError::tensor(
                self.name(),
                format!("{} values for shape {:?}", values.len(), self.dims),
            ))
        }
    }

    fn wrong_type(&self, wanted: &str) -> OnnxError {
        let found = self.kind().map_or_else(
            || format!("type {}", self.data_type.unwrap_or_default()),
            |kind| kind.name().to_owned(),
        );
        OnnxError::tensor(self.name(), format!("{found} where {wanted} is expected"))
    }
}

/// An integer of up to 8 little-endian bytes; `None` where it is beyond `i64`.
fn integer(bytes: &[u8], signed: bool) -> Option<i64> {
    let negative = bytes.last().is_some_and(|&last| last >= 0x80);
    let mut wide = [if signed && negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let value = i64::from_le_bytes(wide);
    (signed || value >= 0).then_some(value)
}
