//! What can be wrong with a call.

/// Sizes that do not fit together, found before any work is done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice of the wrong length.
    #[error("{what} has {actual} elements, and shape {shape:?} needs {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// The shape that it should have.
        shape: Vec<usize>,
        /// How many elements that is.
        expected: usize,
        /// How many there are.
        actual: usize,
    },
    /// A size that an operation does not take.
    #[error("{what}: {problem}")]
    Shape {
        /// Which operation or size.
        what: &'static str,
        /// What is wrong with it, and what would be valid.
        problem: String,
    },
    /// Operands of two kinds.
    #[error("operands of two kinds: {left} and {right}")]
    Kinds {
        /// The left operand's.
        left: &'static str,
        /// The right operand's.
        right: &'static str,
    },
}
