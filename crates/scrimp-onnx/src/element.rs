//! The number formats that ONNX has for quantized tensors.

use scrimp_codec::{Params, Rounding, Scheme};

use crate::tensor::DataType;

/// An element type of quantized tensors: what its codes mean at scale 1, and from which version of the operators on it
/// can be used.
#[derive(Clone, Debug)]
pub struct Element {
    /// The type in a file.
    pub kind: DataType,
    /// The first version of the standard operators with this type in `DequantizeLinear`.
    pub opset: i64,
    /// How it is called in schemes.
    pub name: &'static str,
    coding: Coding,
}

#[derive(Clone, Debug)]
enum Coding {
    Integer { low: i32, high: i32 },
    Float(Scheme),
}

/// Every integer type: name, type, version, smallest and largest code.
const INTEGERS: [(&str, DataType, i64, i32, i32); 9] = [
    ("int8", DataType::Int8, 13, -128, 127),
    ("uint8", DataType::Uint8, 13, 0, 255),
    ("int16", DataType::Int16, 21, -32768, 32767),
    ("uint16", DataType::Uint16, 21, 0, 65535),
    ("int4", DataType::Int4, 21, -8, 7),
    ("uint4", DataType::Uint4, 21, 0, 15),
    // ONNX has no three bits; they take four in a file.
    ("int3", DataType::Int4, 21, -4, 3),
    ("int2", DataType::Int2, 25, -2, 1),
    ("uint2", DataType::Uint2, 25, 0, 3),
];

/// Every float type that schemes have a name for: name, type, version.
const FLOATS: [(&str, DataType, i64); 3] = [
    ("e4m3fn", DataType::Float8E4M3FN, 19),
    ("e5m2", DataType::Float8E5M2, 19),
    ("e2m1fn", DataType::Float4E2M1, 23),
];

impl Element {
    /// The element that schemes call so.
    pub fn named(name: &str) -> Option<Self> {
        INTEGERS
            .iter()
            .find(|row| row.0 == name)
            .map(|&(name, kind, opset, low, high)| Self {
                kind,
                opset,
                name,
                coding: Coding::Integer { low, high },
            })
            .or_else(|| {
                let &(name, kind, opset) = FLOATS.iter().find(|row| row.0 == name)?;
                let scheme: Scheme = name.parse().ok()?;
                Some(Self { kind, opset, name, coding: Coding::Float(scheme) })
            })
    }

    /// The element of a type in a file; `None` where it is no quantized type.
    pub fn of(kind: DataType) -> Option<Self> {
        Self::names()
            .find(|name| Self::named(name).is_some_and(|element| element.kind == kind))
            .and_then(Self::named)
    }

    /// The names of all elements.
    pub fn names() -> impl Iterator<Item = &'static str> {
        INTEGERS.iter().map(|row| row.0).chain(FLOATS.iter().map(|row| row.0))
    }

    /// The smallest and largest code of an integer; `None` for floats.
    pub fn codes(&self) -> Option<(i32, i32)> {
        match self.coding {
            Coding::Integer { low, high } => Some((low, high)),
            Coding::Float(_) => None,
        }
    }

    /// Whether the type has negative values.
    pub fn is_signed(&self) -> bool {
        self.codes().is_none_or(|(low, _)| low < 0)
    }

    /// How many values it has.
    pub fn levels(&self) -> usize {
        self.codes().map_or(1 << self.bits(), |(low, high)| high.abs_diff(low) as usize + 1)
    }

    /// Bits that a code takes in a file.
    ///
    /// # Panics
    /// Never: every quantized type has a width.
    pub fn bits(&self) -> usize {
        self.kind.bits().expect("a quantized type has a width")
    }

    /// The code of a value: `clamp(round(x / scale) + zero)` for integers, the nearest value for floats.
    ///
    /// # Panics
    /// Never: a small float is a format.
    #[expect(clippy::cast_possible_truncation, reason = "the value is clamped to the codes before")]
    pub fn encode(&self, x: f32, scale: f32, zero: i32) -> i32 {
        match &self.coding {
            Coding::Integer { low, high } => {
                let code = (x / scale).round_ties_even() + zero as f32;
                code.clamp(*low as f32, *high as f32) as i32
            }
            Coding::Float(scheme) => {
                let format = scheme.format().expect("a small float is a format");
                let largest = format.card().max;
                let value = (x / scale).clamp(-largest, largest);
                format.encode(value, &Params::UNIT, Rounding::NearestEven, 0).cast_signed()
            }
        }
    }

    /// The value of a code.
    ///
    /// # Panics
    /// Never: a small float is a format.
    pub fn decode(&self, code: i32, scale: f32, zero: i32) -> f32 {
        match &self.coding {
            Coding::Integer { .. } => (code - zero) as f32 * scale,
            Coding::Float(scheme) => {
                let format = scheme.format().expect("a small float is a format");
                format.decode(code.cast_unsigned(), &Params::UNIT) * scale
            }
        }
    }

    /// The largest value at scale 1 of the range that is the same on both sides of zero.
    ///
    /// # Panics
    /// Never: a small float is a format.
    pub fn reach(&self) -> f32 {
        match &self.coding {
            Coding::Integer { low, high } if *low < 0 => *high as f32,
            Coding::Integer { high, .. } => (*high / 2) as f32,
            Coding::Float(scheme) => scheme.format().expect("a small float is a format").card().max,
        }
    }

    /// Scale and zero point for values between `min` and `max`, zero exact.
    ///
    /// `symmetric` keeps the zero point at 0 (signed) or in the middle of the codes (unsigned).
    #[expect(clippy::cast_possible_truncation, reason = "the zero point is clamped to the codes")]
    pub fn fit(&self, min: f32, max: f32, symmetric: bool) -> (f32, i32) {
        let (low, high) = (min.min(0.0), max.max(0.0));
        let usable = |scale: f32| if scale > 0.0 { scale.max(f32::MIN_POSITIVE) } else { 1.0 };
        match self.codes() {
            Some((first, last)) if !symmetric => {
                let steps = (last - first) as f32;
                let scale = usable(high / steps - low / steps);
                let zero = (first as f32 - low / scale).round_ties_even();
                (scale, zero.clamp(first as f32, last as f32) as i32)
            }
            codes => {
                let scale = usable(high.max(-low) / self.reach());
                let zero =
                    codes.map_or(0, |(first, last)| if first < 0 { 0 } else { (last + 1) / 2 });
                (scale, zero)
            }
        }
    }

    /// The bytes of codes as a file holds them: the first in the lowest bits.
    pub fn pack(&self, codes: &[i32]) -> Vec<u8> {
        let bits = self.bits();
        if bits >= 8 {
            return codes.iter().flat_map(|code| code.to_le_bytes()[..bits / 8].to_vec()).collect();
        }
        let per_byte = 8 / bits;
        let mask = (1i32 << bits) - 1;
        codes
            .chunks(per_byte)
            .map(|chunk| {
                let byte = chunk.iter().enumerate().map(|(at, code)| (code & mask) << (at * bits));
                byte.fold(0, |byte, code| byte | code).to_le_bytes()[0]
            })
            .collect()
    }

    /// The codes in the bytes of a file; `None` where there are too few bytes.
    pub fn unpack(&self, bytes: &[u8], count: usize) -> Option<Vec<i32>> {
        if bytes.len() < self.kind.bytes(count)? {
            return None;
        }
        let bits = self.bits();
        let extend = |code: i32| {
            if matches!(self.coding, Coding::Integer { low, .. } if low < 0) {
                let unused = 32 - bits;
                (code << unused) >> unused
            } else {
                code
            }
        };
        let code = |at: usize| {
            let first = at * bits;
            let (byte, shift) = (first / 8, first % 8);
            let word =
                i32::from(bytes[byte]) | bytes.get(byte + 1).map_or(0, |&b| i32::from(b) << 8);
            let mask = if bits == 16 { 0xffff } else { (1 << bits) - 1 };
            extend((word >> shift) & mask)
        };
        Some((0..count).map(code).collect())
    }
}
