//! What can be wrong with a tensor or with bytes.

use std::ops::Range;

use super::Size;
use crate::ShapeError;

/// What was not ordinary about the values of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Values that were NaN and became zero.
    pub nans: u64,
    /// Values that were infinite and became the largest code.
    pub infinities: u64,
}

impl Tally {
    /// Both counts together.
    #[must_use]
    pub fn join(self, other: Tally) -> Tally {
        Tally { nans: self.nans + other.nans, infinities: self.infinities + other.infinities }
    }
}

/// A tensor that a scheme cannot take.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The scheme does not fit the shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The slice has another length than the shape.
    #[error("shape {shape:?} has {expected} elements, and {actual} values were given")]
    Length {
        /// The shape.
        shape: Vec<usize>,
        /// Elements of the shape.
        expected: usize,
        /// Elements of the slice.
        actual: usize,
    },
    /// NaN or infinity, which the scheme cannot hold.
    #[error(
        "element {index} is {value}, which `{scheme}` cannot hold; `{scheme}/nonfinite:saturate` would make NaN zero and infinity the largest code"
    )]
    NonFinite {
        /// The scheme.
        scheme: String,
        /// Where, in storage order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The memory is that of another scheme or shape.
    #[error(
        "`{scheme}` was given the memory of another scheme or shape; for this tensor it takes {expected}"
    )]
    Memory {
        /// The scheme.
        scheme: String,
        /// What memory would fit.
        expected: String,
    },
}

/// Bytes that are not what a scheme writes for a shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The scheme does not fit the shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Wrong number of bytes.
    #[error("`{scheme}` stores shape {shape:?} in {expected} bytes, and there are {actual}")]
    Length {
        /// The scheme.
        scheme: String,
        /// The shape.
        shape: Vec<usize>,
        /// Bytes that the scheme writes.
        expected: Size,
        /// Bytes that are there.
        actual: usize,
    },
    /// Bytes that no tensor of this scheme has.
    #[error("these are no bytes of a tensor in `{scheme}`: {reason}")]
    Corrupt {
        /// The scheme, or its head.
        scheme: String,
        /// What does not fit.
        reason: String,
    },
    /// A stored scale is zero, negative, subnormal or not finite.
    #[error("the scale of group {group} is not a positive number")]
    Scale {
        /// The group.
        group: usize,
    },
    /// A stored offset is not finite.
    #[error("the offset of group {group} is not a finite number")]
    Offset {
        /// The group.
        group: usize,
    },
    /// The shape does not have the elements asked for.
    #[error("shape {shape:?} has {elems} elements, and {range:?} were asked for")]
    Range {
        /// The shape.
        shape: Vec<usize>,
        /// Elements of the shape.
        elems: usize,
        /// Elements asked for.
        range: Range<usize>,
    },
    /// The output slice has another length than the elements asked for.
    #[error(
        "{expected} elements of shape {shape:?} were asked for, and there is room for {actual}"
    )]
    Output {
        /// The shape.
        shape: Vec<usize>,
        /// Elements asked for.
        expected: usize,
        /// Elements of the slice.
        actual: usize,
    },
}
