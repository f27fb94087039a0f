//! Pooling.

use burn::module::Module;
use burn::tensor::module::{avg_pool2d, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};
use burn::tensor::{Tensor, activation};

pub use scrimp_kernels::pool::Window as Pool;

use crate::ops;
use crate::tap::{Arithmetic, Scope, Tap};
use crate::trace::Op;

/// The largest value of each window; keeps one byte for each output. Its input and output are tapped, and the gradients
/// of both.
///
/// # Shapes
/// - `x`: `[batch, height, width, channels]`; with the engine's own arithmetic channels stand on axis 1
#[derive(Module, Debug)]
pub struct MaxPool {
    #[module(skip)]
    window: Pool,
    #[module(skip)]
    relu: bool,
    #[module(skip)]
    tap: Tap,
}

impl MaxPool {
    /// The function at this place of a network.
    pub fn new(scope: &Scope, window: Pool) -> Self {
        Self { window, relu: false, tap: scope.tap_function("pooling") }
    }

    /// The same of the `ReLU` of its input, in one pass. The tapped input is what comes into the `ReLU`.
    pub fn of_relu(scope: &Scope, window: Pool) -> Self {
        Self { relu: true, ..Self::new(scope, window) }
    }

    /// The forward pass.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let Self { window, relu, tap } = self;
        match tap.arithmetic() {
            Arithmetic::Kernels => ops::max_pool(x, *window, *relu, tap),
            Arithmetic::Engine => {
                let x = tap.input(x);
                let x = if *relu { activation::relu(x) } else { x };
                let options = MaxPoolOptions::new(window.kernel).with_stride(window.stride);
                tap.output(max_pool2d(x, options.with_padding(window.padding)))
            }
            Arithmetic::Recorded => {
                let shape = x.dims();
                let x = if *relu { tap.record("relu", Op::Relu, &[&x], shape) } else { x };
                tap.record("", Op::MaxPool(*window), &[&x], pooled(*window, shape))
            }
        }
    }
}

/// The mean of each window, in which zeros of the padding count. Its input and output are tapped, and the gradients of
/// both.
///
/// # Shapes
/// - `x`: `[batch, height, width, channels]`; with the engine's own arithmetic channels stand on axis 1
#[derive(Module, Debug)]
pub struct AveragePool {
    #[module(skip)]
    window: Pool,
    #[module(skip)]
    tap: Tap,
}

impl AveragePool {
    /// The function at this place of a network.
    pub fn new(scope: &Scope, window: Pool) -> Self {
        Self { window, tap: scope.tap_function("pooling") }
    }

    /// The forward pass.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let Self { window, tap } = self;
        match tap.arithmetic() {
            Arithmetic::Kernels => ops::average_pool(x, *window, tap),
            Arithmetic::Engine => {
                let options = AvgPoolOptions::new(window.kernel).with_stride(window.stride);
                tap.output(avg_pool2d(tap.input(x), options.with_padding(window.padding)))
            }
            Arithmetic::Recorded => {
                let shape = pooled(*window, x.dims());
                tap.record("", Op::AveragePool(*window), &[&x], shape)
            }
        }
    }
}

/// The mean of each channel over height and width. Its input and output are tapped, and the gradients of both.
///
/// # Shapes
/// - `x`: `[batch, height, width, channels]`; with the engine's own arithmetic channels stand on axis 1
/// - result: `[batch, channels]`
#[derive(Module, Debug)]
pub struct GlobalAverage {
    #[module(skip)]
    tap: Tap,
}

impl GlobalAverage {
    /// The function at this place of a network.
    pub fn new(scope: &Scope) -> Self {
        Self { tap: scope.tap_function("pooling") }
    }

    /// The forward pass.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        match self.tap.arithmetic() {
            Arithmetic::Kernels => ops::global_average(x, &self.tap),
            Arithmetic::Engine => {
                let x: Tensor<3> = self.tap.input(x).flatten(2, 3);
                self.tap.output(x.mean_dim(2).flatten(1, 2))
            }
            Arithmetic::Recorded => {
                let [batch, channels, ..] = x.dims();
                let pixel = [batch, channels, 1, 1];
                let y: Tensor<4> = self.tap.record("", Op::GlobalAverage, &[&x], pixel);
                y.flatten(1, 3)
            }
        }
    }
}

/// The shape with a pixel for each window, of an image whose channels stand on axis 1.
fn pooled(window: Pool, [batch, channels, height, width]: [usize; 4]) -> [usize; 4] {
    let out = window.output([batch, height, width, channels]);
    let [_, height, width, _] = out.unwrap_or_else(|e| panic!("pooling: {e}"));
    [batch, channels, height, width]
}
