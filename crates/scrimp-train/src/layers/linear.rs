//! The fully connected layer.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::{Init, uniform};
use crate::tap::{Scope, Tap};

/// `y = x w^T + b`, with all eight tensors tapped.
///
/// The weight has PyTorch's layout, so that rows are outputs and groups run along the inputs.
///
/// # Shapes
/// - `weight`: `[out, in]`, `bias`: `[out]`
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    tap: Tap,
}

impl Linear {
    /// A layer with a bias and uniform first values.
    pub fn new(scope: &Scope, inputs: usize, outputs: usize, device: &Device) -> Self {
        let shape = [outputs, inputs];
        Self {
            weight: Init::Uniform.weight(shape, &scope.init_stream("weight"), device),
            bias: Some(uniform([outputs], inputs, &scope.init_stream("bias"), device)),
            tap: scope.tap("linear", &shape, Some(&[outputs])),
        }
    }

    /// The forward pass.
    ///
    /// # Shapes
    /// - `x`: `[batch, in]`
    /// - result: `[batch, out]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.tap.input(x);
        let w = self.tap.weight(self.weight.val());
        let mut y = x.matmul(w.transpose());
        if let Some(bias) = &self.bias {
            y = y + self.tap.bias(bias.val()).unsqueeze();
        }
        self.tap.output(y)
    }
}
