//! The CIFAR ResNet with 20 layers.

use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::activation::relu;
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Device, Tensor};

use super::Network;
use crate::layers::{Conv2d, Conv2dOptions, Init, Linear};
use crate::tap::Scope;

/// A stem, three stages of three basic blocks with 16, 32 and 64 channels, and a linear classifier.
///
/// # Source
/// He et al. 2016, arXiv:1512.03385, section 4.2, with option-A shortcuts (subsampled, padded with zero channels, no
/// weights). Parameter names are those of the widely used PyTorch checkpoints (`layer1.0.conv1.weight`, `linear.bias`).
#[derive(Module, Debug)]
pub struct ResNet20 {
    conv1: Conv2d,
    bn1: BatchNorm,
    layer1: Vec<Block>,
    layer2: Vec<Block>,
    layer3: Vec<Block>,
    linear: Linear,
}

#[derive(Module, Debug)]
struct Block {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
    #[module(skip)]
    stride: usize,
}

/// A 3x3 convolution without bias, since a batch norm follows.
fn conv3x3(scope: &Scope, inputs: usize, outputs: usize, stride: usize, device: &Device) -> Conv2d {
    let options = Conv2dOptions {
        stride: [stride; 2],
        padding: [1; 2],
        bias: false,
        init: Init::KaimingNormal,
        ..Conv2dOptions::new(3)
    };
    Conv2d::new(scope, inputs, outputs, options, device)
}

impl Block {
    fn new(scope: &Scope, inputs: usize, outputs: usize, stride: usize, device: &Device) -> Self {
        Self {
            conv1: conv3x3(&scope.at("conv1"), inputs, outputs, stride, device),
            bn1: BatchNormConfig::new(outputs).init(device),
            conv2: conv3x3(&scope.at("conv2"), outputs, outputs, 1, device),
            bn2: BatchNormConfig::new(outputs).init(device),
            stride,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = relu(self.bn1.forward(self.conv1.forward(x.clone())));
        let y = self.bn2.forward(self.conv2.forward(y));
        relu(y + self.shortcut(x))
    }

    /// Option A: every second pixel, and zeros for the new channels, half before and half after.
    fn shortcut(&self, x: Tensor<4>) -> Tensor<4> {
        if self.stride == 1 {
            return x;
        }
        // A 1x1 window takes the pixels themselves.
        let x = max_pool2d(x, MaxPoolOptions::new([1; 2]).with_stride([self.stride; 2]));
        let [batch, channels, height, width] = x.dims();
        let zeros = Tensor::zeros([batch, channels / 2, height, width], &x.device());
        Tensor::cat(vec![zeros.clone(), x, zeros], 1)
    }
}

impl Network for ResNet20 {
    const NAME: &'static str = "resnet20";
    const ABOUT: &'static str = "CIFAR ResNet, 20 layers, option-A shortcuts (He 2016)";

    fn accepts([_, height, width]: [usize; 3]) -> Result<(), String> {
        if height.is_multiple_of(4) && width.is_multiple_of(4) && height > 0 && width > 0 {
            Ok(())
        } else {
            Err("images whose height and width are multiples of 4".into())
        }
    }

    fn build(image: [usize; 3], classes: usize, scope: &Scope, device: &Device) -> Self {
        let stage = |name: &str, inputs: usize, outputs: usize| {
            let scope = scope.at(name);
            let stride = if inputs == outputs { 1 } else { 2 };
            let block = |i: usize| {
                let (inputs, stride) = if i == 0 { (inputs, stride) } else { (outputs, 1) };
                Block::new(&scope.at(i), inputs, outputs, stride, device)
            };
            (0..3).map(block).collect()
        };
        Self {
            conv1: conv3x3(&scope.at("conv1"), image[0], 16, 1, device),
            bn1: BatchNormConfig::new(16).init(device),
            layer1: stage("layer1", 16, 16),
            layer2: stage("layer2", 16, 32),
            layer3: stage("layer3", 32, 64),
            linear: Linear::new(&scope.at("linear"), 64, classes, device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = relu(self.bn1.forward(self.conv1.forward(x)));
        let stages = [&self.layer1, &self.layer2, &self.layer3];
        let x = stages.into_iter().flatten().fold(x, |x, block| block.forward(x)); // [batch, 64, 8, 8]
        let x: Tensor<3> = x.flatten(2, 3);
        self.linear.forward(x.mean_dim(2).flatten(1, 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_parameters_of_the_paper() {
        let scope = Scope::root(0);
        let net = ResNet20::build([3, 32, 32], 10, &scope, &Device::flex());
        // 269,722 trained parameters (0.27 M in the paper), and the running statistics of 19 batch norms.
        let statistics = 2 * (7 * 16 + 6 * 32 + 6 * 64);
        assert_eq!(net.num_params(), 269_722 + statistics);
        assert_eq!(scope.sites().len(), 20);
    }

    #[test]
    fn the_shortcut_takes_every_second_pixel_and_pads_channels() {
        let device = Device::flex();
        let block = Block::new(&Scope::root(0), 2, 4, 2, &device);
        let x = Tensor::<1>::from_floats(std::array::from_fn::<f32, 32, _>(|i| i as f32), &device);
        let y = block.shortcut(x.reshape([1, 2, 4, 4]));
        let expected = [[0.0; 4], [0.0, 2.0, 8.0, 10.0], [16.0, 18.0, 24.0, 26.0], [0.0; 4]];
        assert_eq!(crate::engine::values_of(y), expected.concat());
    }
}
