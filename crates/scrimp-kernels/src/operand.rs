//! What a matrix product multiplies: the same numbers in one of three kinds.

use std::ops::Range;

use half::bf16;

use crate::KernelError;

/// In what a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// f32 products, f32 sums.
    F32,
    /// bf16 factors, exact products, f32 sums.
    Bf16,
    /// 8-bit integer factors, exact i32 sums.
    Int8,
}

impl Kind {
    /// The name for plans and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// A row-major factor of a product.
///
/// A value is the element times a scale that the caller knows and gives beside both operands ([`Scale`]).
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// Values.
    F32(&'a [f32]),
    /// Values, or integers of up to 8 significant bits.
    Bf16(&'a [bf16]),
    /// Integers in -127 to 127. -128 is allowed and exact too.
    Int8(&'a [i8]),
}

impl Operand<'_> {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::F32(_) => Kind::F32,
            Self::Bf16(_) => Kind::Bf16,
            Self::Int8(_) => Kind::Int8,
        }
    }

    /// A part of it.
    ///
    /// # Panics
    /// If it has not so many elements.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(v) => Self::F32(&v[range]),
            Self::Bf16(v) => Self::Bf16(&v[range]),
            Self::Int8(v) => Self::Int8(&v[range]),
        }
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::Int8(v) => v.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The kind that two operands have in common.
pub(crate) fn common_kind(left: &Operand, right: &Operand) -> Result<Kind, KernelError> {
    let (l, r) = (left.kind(), right.kind());
    if l == r { Ok(l) } else { Err(KernelError::Kinds { left: l.name(), right: r.name() }) }
}

/// What a finished sum is multiplied by, as its last step, in f32.
#[derive(Clone, Copy, Debug)]
pub enum Scale<'a> {
    /// The same factor everywhere; 1 changes nothing.
    Tensor(f32),
    /// A factor for each output channel: the column of a forward product, the row of a weight gradient.
    Channel(&'a [f32]),
}
