//! Functions of single values.

use burn::module::Module;
use burn::tensor::{Tensor, activation};

use crate::ops;
use crate::tap::{Arithmetic, Scope, Tap};
use crate::trace::Op;

/// `max(x, 0)`; keeps one bit for each value. Its input and output are tapped, and the gradients of both.
#[derive(Module, Debug)]
pub struct Relu {
    #[module(skip)]
    tap: Tap,
}

impl Relu {
    /// The function at this place of a network.
    pub fn new(scope: &Scope) -> Self {
        Self { tap: scope.tap_function("activation") }
    }

    /// The forward pass, of any shape.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.tap.arithmetic() {
            Arithmetic::Kernels => ops::relu(x, &self.tap),
            Arithmetic::Engine => self.tap.output(activation::relu(self.tap.input(x))),
            Arithmetic::Recorded => self.tap.record("", Op::Relu, &[&x], x.dims()),
        }
    }
}

/// `x Phi(x)`, with the normal distribution itself and no approximation of it; keeps its input. Its input and output are
/// tapped, and the gradients of both.
///
/// # Source
/// Hendrycks and Gimpel 2016, arXiv:1606.08415.
#[derive(Module, Debug)]
pub struct Gelu {
    #[module(skip)]
    tap: Tap,
}

impl Gelu {
    /// The function at this place of a network.
    pub fn new(scope: &Scope) -> Self {
        Self { tap: scope.tap_function("activation") }
    }

    /// The forward pass, of any shape.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::gelu(x, &self.tap)
    }
}
