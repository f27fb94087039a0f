//! What codecs remember of a tensor from one step to the next.

use serde::{Deserialize, Serialize};

/// What a codec keeps of one tensor between steps. It is made by [`Scheme::memory`](crate::Scheme::memory), changed by
/// each [`encode_next`](crate::Scheme::encode_next) or [`emulate_next`](crate::Scheme::emulate_next), and can be saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Memory {
    /// The scale that each group had, for formats that change it only when they must.
    Scales {
        /// One for each group; `None` before its first tensor.
        scales: Vec<Option<f32>>,
    },
    /// The scales that several workers agreed on, by which each of them encodes its own tensor; made of what
    /// [`scales`](crate::Scheme::scales) gives, and not changed.
    Shared {
        /// One for each group.
        scales: Vec<f32>,
    },
    /// What the last encoding lost, which is added to the next tensor (error feedback).
    Residual {
        /// One for each element.
        residual: Vec<f32>,
    },
}
