//! What goes into a model and comes out of it.

use crate::tensor::DataType;

/// The elements of a value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are the types")]
pub enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    Bool(Vec<bool>),
}

/// A dense tensor in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// The size of each axis.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Data,
}

impl Value {
    /// A tensor of `f32`.
    pub fn f32(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        Self { shape: shape.into(), data: Data::F32(values) }
    }

    /// A tensor of `i64`.
    pub fn i64(shape: impl Into<Vec<usize>>, values: Vec<i64>) -> Self {
        Self { shape: shape.into(), data: Data::I64(values) }
    }

    /// The elements, where they are `f32`.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(values) => Some(values),
            _ => None,
        }
    }

    /// The element type.
    pub fn kind(&self) -> DataType {
        match self.data {
            Data::F32(_) => DataType::Float,
            Data::F64(_) => DataType::Double,
            Data::I64(_) => DataType::Int64,
            Data::I32(_) => DataType::Int32,
            Data::I8(_) => DataType::Int8,
            Data::U8(_) => DataType::Uint8,
            Data::Bool(_) => DataType::Bool,
        }
    }
}
