//! The 2-D convolution.

use burn::module::{Module, Param};
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};
use scrimp_kernels::conv2d::{Conv2dShape, Window};

use super::{Init, uniform};
use crate::ops::Geometry;
use crate::tap::{Arithmetic, Scope, Tap};
use crate::trace::Op;

/// Geometry of a convolution; each pair is (height, width).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dOptions {
    /// Size of the kernel.
    pub kernel: [usize; 2],
    /// Step between outputs.
    pub stride: [usize; 2],
    /// Zeros around the input, on each side.
    pub padding: [usize; 2],
    /// Distance between the taps of the kernel.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// How the weight gets its first values.
    pub init: Init,
}

impl Conv2dOptions {
    /// A square kernel with stride 1, no padding, one group and a bias.
    pub fn new(kernel: usize) -> Self {
        Self {
            kernel: [kernel; 2],
            stride: [1; 2],
            padding: [0; 2],
            dilation: [1; 2],
            groups: 1,
            bias: true,
            init: Init::default(),
        }
    }
}

/// A 2-D convolution (cross-correlation, as everywhere in the field), with all eight tensors tapped.
///
/// # Shapes
/// - `weight`: `[out, in / groups, kernel height, kernel width]`, `bias`: `[out]`
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in / groups, kernel height, kernel width]`
    pub weight: Param<Tensor<4>>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    options: Conv2dOptions,
    #[module(skip)]
    tap: Tap,
}

impl Conv2d {
    /// A convolution from `inputs` to `outputs` channels.
    ///
    /// # Panics
    /// If the channels do not divide by the groups, or a size is zero.
    pub fn new(
        scope: &Scope,
        inputs: usize,
        outputs: usize,
        options: Conv2dOptions,
        device: &Device,
    ) -> Self {
        let groups = options.groups;
        assert!(
            groups > 0 && inputs.is_multiple_of(groups) && outputs.is_multiple_of(groups),
            "{inputs} and {outputs} channels do not divide into {groups} groups"
        );
        let shape = [outputs, inputs / groups, options.kernel[0], options.kernel[1]];
        let fan_in = shape[1..].iter().product();
        let bias = || uniform([outputs], fan_in, &scope.init_stream("bias"), device);
        Self {
            weight: options.init.weight(shape, &scope.init_stream("weight"), device),
            bias: options.bias.then(bias),
            tap: scope.tap("conv2d", &shape, options.bias.then_some(&[outputs])),
            options,
        }
    }

    /// The forward pass.
    ///
    /// # Shapes
    /// - `x`: `[batch, height, width, in]`
    /// - result: `[batch, height', width', out]`
    ///
    /// With the engine's own [`Arithmetic`] channels stand on axis 1 in both.
    ///
    /// # Panics
    /// If the input does not fit the layer, which is a mistake in the network's code.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (w, b) = (self.weight.val(), self.bias.as_ref().map(Param::val));
        let Conv2dOptions { stride, padding, dilation, groups, .. } = self.options;
        let window = Window { stride, padding, dilation, groups };
        // Of an image with channels on the last axis.
        let shape = |x: [usize; 4]| {
            Conv2dShape::new(x, w.dims(), window)
                .unwrap_or_else(|e| panic!("{}: {e}", self.tap.site().path))
        };
        match self.tap.arithmetic() {
            Arithmetic::Kernels => {
                let shape = shape(x.dims());
                let output = shape.output();
                self.tap.product(x, w, b, Geometry::Conv2d(shape), output)
            }
            Arithmetic::Engine => {
                let x = self.tap.input(x);
                let w = self.tap.weight(w);
                let b = b.map(|b| self.tap.bias(b));
                let options = ConvOptions::new(stride, padding, dilation, groups);
                self.tap.output(conv2d(x, w, b, options))
            }
            Arithmetic::Recorded => {
                let [batch, channels, height, width] = x.dims();
                let [_, height, width, outputs] = shape([batch, height, width, channels]).output();
                let op = Op::Conv2d { window, bias: b.is_some() };
                self.tap.record("", op, &[&x], [batch, outputs, height, width])
            }
        }
    }
}
