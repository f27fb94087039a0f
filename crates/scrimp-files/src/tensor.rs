//! A tensor in memory, as it stands in a file.

use std::fmt;

use thiserror::Error;

use crate::Dtype;
use crate::dtype::value_count;

/// A named array in row-major order with little-endian elements.
///
/// The bytes always fill the shape exactly.
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    bytes: Vec<u8>,
}

impl Tensor {
    /// Puts `bytes` under a name and a shape.
    ///
    /// # Errors
    /// [`TensorError::Length`] where the bytes do not fill the shape.
    pub fn new(
        name: impl Into<String>,
        shape: Vec<usize>,
        dtype: Dtype,
        bytes: Vec<u8>,
    ) -> Result<Self, TensorError> {
        let name = name.into();
        if dtype.byte_len(&shape) == Some(bytes.len()) {
            Ok(Self { name, shape, dtype, bytes })
        } else {
            Err(TensorError::Length { name, dtype, shape, bytes: bytes.len() })
        }
    }

    /// Puts `values` under a name and a shape, rounded to `dtype` as [`Dtype::from_f32`] does.
    ///
    /// # Errors
    /// [`TensorError::NotFloat`] where `dtype` is not f16, bf16, f32 or f64, and
    /// [`TensorError::Length`] where the values do not fill the shape.
    pub fn from_f32(
        name: impl Into<String>,
        shape: Vec<usize>,
        dtype: Dtype,
        values: &[f32],
    ) -> Result<Self, TensorError> {
        let name = name.into();
        match dtype.from_f32(values) {
            Some(bytes) => Self::new(name, shape, dtype, bytes),
            None => Err(TensorError::NotFloat { name, dtype }),
        }
    }

    /// The name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Extents, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The elements, row-major and little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives up the name and the shape.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Number of elements, 1 for a scalar.
    pub fn values(&self) -> usize {
        value_count(&self.shape).unwrap_or_default()
    }

    /// The values of a float tensor, `None` for any other; see [`Dtype::to_f32`].
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        self.dtype.to_f32(&self.bytes)
    }
}

/// Prints the header alone: the bytes of a layer would drown every message.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?} {} {:?})", self.name, self.dtype, self.shape)
    }
}

/// Why a tensor could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The bytes do not fill the shape.
    #[error("tensor `{name}` of shape {shape:?} and dtype {dtype} does not fit {bytes} bytes")]
    Length {
        /// Name of the tensor.
        name: String,
        /// Its element type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// The bytes that were given.
        bytes: usize,
    },
    /// Values were given for a dtype that does not hold them.
    #[error("tensor `{name}` of dtype {dtype} holds no float values; f16, bf16, f32 and f64 do")]
    NotFloat {
        /// Name of the tensor.
        name: String,
        /// Its element type.
        dtype: Dtype,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_fill_the_shape() {
        assert!(Tensor::new("a", vec![2, 3], Dtype::F32, vec![0; 24]).is_ok());
        let error = Tensor::new("a", vec![2, 3], Dtype::F32, vec![0; 23]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor `a` of shape [2, 3] and dtype f32 does not fit 23 bytes"
        );
        assert!(Tensor::new("a", vec![usize::MAX, 2], Dtype::U8, vec![]).is_err());
    }

    #[test]
    fn values_survive_the_way_through_f16() {
        let tensor = Tensor::from_f32("a", vec![3], Dtype::F16, &[1.0, -0.5, 0.0]).unwrap();
        assert_eq!(tensor.bytes(), [0x00, 0x3c, 0x00, 0xb8, 0, 0]);
        assert_eq!(tensor.to_f32().unwrap(), [1.0, -0.5, 0.0]);
        assert!(Tensor::from_f32("a", vec![1], Dtype::I8, &[1.0]).is_err());
    }
}
