//! Layer normalization.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use crate::ops;
use crate::tap::{Scope, Tap};

/// Normalizes each row by its own mean and variance, then scales and shifts it. All eight tensors are tapped.
///
/// # Shapes
/// - `weight`, `bias`: `[dim]`
///
/// # Source
/// Ba et al. 2016, arXiv:1607.06450; the variance is biased and epsilon under the root, as in `PyTorch`.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// Scale.
    pub weight: Param<Tensor<1>>,
    /// Shift.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    tap: Tap,
}

/// Added to variances.
const EPSILON: f32 = 1e-5;

impl LayerNorm {
    /// A norm that leaves normalized rows as they are.
    pub fn new(scope: &Scope, dim: usize, device: &Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::ones([dim], device)),
            bias: Param::from_tensor(Tensor::zeros([dim], device)),
            tap: scope.tap("layer_norm", &[dim], Some(&[dim])),
        }
    }

    /// The forward pass, over the last axis. Shapes of `x` and result: `[batch, ..., dim]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        ops::layer_norm(x, [self.tap.weight(weight), self.tap.bias(bias)], EPSILON, &self.tap)
    }
}
