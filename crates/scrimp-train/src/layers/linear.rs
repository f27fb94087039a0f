//! The fully connected layer.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use scrimp_kernels::linear::LinearShape;

use super::{Init, uniform};
use crate::ops::Geometry;
use crate::tap::{Arithmetic, Scope, Tap};
use crate::trace::Op;

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
    /// - `x`: `[batch, ..., in]`
    /// - result: `[batch, ..., out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (w, b) = (self.weight.val(), self.bias.as_ref().map(Param::val));
        match self.tap.arithmetic() {
            Arithmetic::Kernels => {
                let [outputs, inputs] = w.dims();
                let mut output = x.dims();
                output[D - 1] = outputs;
                let rows = output[..D - 1].iter().product();
                let shape = LinearShape { rows, inputs, outputs };
                self.tap.product(x, w, b, Geometry::Linear(shape), output)
            }
            Arithmetic::Engine => {
                let x = self.tap.input(x);
                let mut y = x.matmul(self.tap.weight(w).transpose().unsqueeze());
                if let Some(bias) = b {
                    y = y + self.tap.bias(bias).unsqueeze();
                }
                self.tap.output(y)
            }
            Arithmetic::Recorded => {
                let mut output = x.dims();
                output[D - 1] = w.dims()[0];
                self.tap.record("", Op::Linear { bias: b.is_some() }, &[&x], output)
            }
        }
    }
}
