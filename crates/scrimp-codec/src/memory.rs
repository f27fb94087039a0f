//! What codecs remember of a tensor from one step to the next.

use serde::{Deserialize, Serialize};

use crate::codecs::Autoflex;

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
    /// What the last encoding lost, which is added to the next tensor (error feedback).
    Residual {
        /// One for each element.
        residual: Vec<f32>,
    },
    /// The largest mantissas of the last tensors, from which Flexpoint predicts its exponent.
    Flexpoint(Autoflex),
}

impl Memory {
    /// The state as numbers, for files of tensors; [`set_values`](Self::set_values) takes them back.
    pub fn values(&self) -> Vec<f32> {
        match self {
            Self::Scales { scales } => scales.iter().map(|s| s.unwrap_or(f32::NAN)).collect(),
            Self::Residual { residual } => residual.clone(),
        }
    }

    /// Puts saved numbers into a memory of the same scheme and shape. `false` if they are not of its kind; it is then
    /// unchanged.
    #[must_use]
    pub fn set_values(&mut self, values: &[f32]) -> bool {
        match self {
            Self::Scales { scales } if scales.len() == values.len() => {
                for (scale, v) in scales.iter_mut().zip(values) {
                    *scale = (v.is_finite() && *v > 0.0).then_some(*v);
                }
            }
            Self::Residual { residual } if residual.len() == values.len() => {
                residual.copy_from_slice(values);
            }
            _ => return false,
        }
        true
    }
}
