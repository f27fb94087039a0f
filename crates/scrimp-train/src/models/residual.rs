//! The blocks that residual networks are made of.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::layers::{BatchNorm, Conv2d, Conv2dOptions, Init, subsample_and_widen};
use crate::tap::{Place, Scope};

/// `relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))`; a bottleneck has one more convolution.
///
/// # Source
/// He et al. 2016, arXiv:1512.03385, figures 2 and 5. The stride of a bottleneck stands in the middle, as in torchvision.
#[derive(Module, Debug)]
pub(super) struct Block {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
    conv3: Option<Conv2d>,
    bn3: Option<BatchNorm>,
    /// Convolution and norm of a shortcut with weights.
    downsample: Option<(Conv2d, BatchNorm)>,
    #[module(skip)]
    stride: usize,
    #[module(skip)]
    shortcut: Place,
}

/// How the input gets past a block that changes its shape (section 3.3 of the paper).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortcut {
    /// Option A: subsampled, with zero channels around, half before and half after.
    Pad,
    /// Option B: a 1x1 convolution and a norm.
    Project,
}

/// The convolutions of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Two of 3x3.
    Basic,
    /// One of 1x1, one of 3x3, and one of 1x1 from which four times as many channels come out.
    Bottleneck,
}

impl Body {
    /// Channels that come out of a stage of this width.
    pub fn outputs(self, width: usize) -> usize {
        match self {
            Self::Basic => width,
            Self::Bottleneck => 4 * width,
        }
    }
}

/// A convolution without bias, since a batch norm follows.
pub(super) fn conv(
    scope: &Scope,
    [inputs, outputs]: [usize; 2],
    kernel: usize,
    stride: usize,
    device: &Device,
) -> Conv2d {
    let options = Conv2dOptions {
        stride: [stride; 2],
        padding: [kernel / 2; 2],
        bias: false,
        init: Init::KaimingNormal,
        ..Conv2dOptions::new(kernel)
    };
    Conv2d::new(scope, inputs, outputs, options, device)
}

impl Block {
    pub fn new(
        scope: &Scope,
        body: Body,
        [inputs, width]: [usize; 2],
        stride: usize,
        shortcut: Shortcut,
        device: &Device,
    ) -> Self {
        let outputs = body.outputs(width);
        let project = shortcut == Shortcut::Project && (stride != 1 || inputs != outputs);
        let downsample = || {
            let scope = scope.at("downsample");
            let conv = conv(&scope.at(0), [inputs, outputs], 1, stride, device);
            (conv, BatchNorm::new(&scope.at(1), outputs, device))
        };
        let layer = |place: usize, channels: [usize; 2], kernel, stride| {
            let conv = conv(&scope.at(format!("conv{place}")), channels, kernel, stride, device);
            (conv, BatchNorm::new(&scope.at(format!("bn{place}")), channels[1], device))
        };
        let ((conv1, bn1), (conv2, bn2), third) = match body {
            Body::Basic => {
                (layer(1, [inputs, width], 3, stride), layer(2, [width, width], 3, 1), None)
            }
            Body::Bottleneck => (
                layer(1, [inputs, width], 1, 1),
                layer(2, [width, width], 3, stride),
                Some(layer(3, [width, outputs], 1, 1)),
            ),
        };
        let (conv3, bn3) = third.unzip();
        Self {
            conv1,
            bn1,
            conv2,
            bn2,
            conv3,
            bn3,
            downsample: project.then(downsample),
            stride,
            shortcut: scope.at("shortcut").place(),
        }
    }

    /// A stage: blocks of which the first may change the shape.
    pub fn stage(
        scope: &Scope,
        body: Body,
        [inputs, width]: [usize; 2],
        stride: usize,
        blocks: usize,
        shortcut: Shortcut,
        device: &Device,
    ) -> Vec<Self> {
        (0..blocks)
            .map(|i| {
                let (inputs, stride) =
                    if i == 0 { (inputs, stride) } else { (body.outputs(width), 1) };
                Self::new(&scope.at(i), body, [inputs, width], stride, shortcut, device)
            })
            .collect()
    }

    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = self.bn1.forward_relu(self.conv1.forward(x.clone()));
        let y = self.conv2.forward(y);
        let (y, last) = match (&self.conv3, &self.bn3) {
            (Some(conv), Some(norm)) => (conv.forward(self.bn2.forward_relu(y)), norm),
            _ => (y, &self.bn2),
        };
        last.forward_add_relu(y, self.shortcut(x))
    }

    fn shortcut(&self, x: Tensor<4>) -> Tensor<4> {
        if let Some((conv, norm)) = &self.downsample {
            return norm.forward(conv.forward(x));
        }
        if self.stride == 1 {
            return x;
        }
        subsample_and_widen(x, self.stride, &self.shortcut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Arithmetic;

    #[test]
    fn the_shortcut_takes_every_second_pixel_and_pads_channels() {
        let device = Device::flex();
        let x = Tensor::<1>::from_floats(std::array::from_fn::<f32, 32, _>(|i| i as f32), &device);
        let x: Tensor<4> = x.reshape([1, 2, 4, 4]);
        let expected = [[0.0; 4], [0.0, 2.0, 8.0, 10.0], [16.0, 18.0, 24.0, 26.0], [0.0; 4]];
        for arithmetic in [Arithmetic::Kernels, Arithmetic::Engine] {
            let scope = Scope::root(0).with(arithmetic);
            let block = Block::new(&scope, Body::Basic, [2, 4], 2, Shortcut::Pad, &device);
            let y = match arithmetic {
                Arithmetic::Kernels => {
                    block.shortcut(x.clone().permute([0, 2, 3, 1])).permute([0, 3, 1, 2])
                }
                _ => block.shortcut(x.clone()),
            };
            assert_eq!(crate::engine::values_of(y), expected.concat());
        }
    }
}
