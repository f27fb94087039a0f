//! The VGG for small images that papers on binary networks use.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::Network;
use super::residual::conv;
use crate::layers::{BatchNorm, Conv2d, Linear, MaxPool, Pool, channels_last, features};
use crate::tap::{Arithmetic, Scope};

/// Six 3x3 convolutions with 128, 128, 256, 256, 512 and 512 channels, each with a batch norm and a `ReLU`, a 2x2 maximum
/// after each second, and a linear classifier.
///
/// # Source
/// Zhang et al. 2018 (LQ-Nets), arXiv:1807.10029, after Simonyan and Zisserman 2015; parameter names are those of IR-Net's
/// (`conv0.weight`, `bn5.weight`, `fc.bias`).
#[derive(Module, Debug)]
pub struct VggSmall {
    conv0: Conv2d,
    bn0: BatchNorm,
    conv1: Conv2d,
    bn1: BatchNorm,
    pool1: MaxPool,
    conv2: Conv2d,
    bn2: BatchNorm,
    conv3: Conv2d,
    bn3: BatchNorm,
    pool3: MaxPool,
    conv4: Conv2d,
    bn4: BatchNorm,
    conv5: Conv2d,
    bn5: BatchNorm,
    pool5: MaxPool,
    fc: Linear,
    #[module(skip)]
    arithmetic: Arithmetic,
}

impl Network for VggSmall {
    type Options = ();

    fn accepts([_, height, width]: [usize; 3]) -> Result<(), String> {
        if height >= 8 && width >= 8 { Ok(()) } else { Err("images of at least 8x8 pixels".into()) }
    }

    fn build(
        (): &(),
        [channels, height, width]: [usize; 3],
        classes: usize,
        scope: &Scope,
        device: &Device,
    ) -> Self {
        let conv = |i: usize, channels| conv(&scope.at(format!("conv{i}")), channels, 3, 1, device);
        let norm =
            |i: usize, channels| BatchNorm::new(&scope.at(format!("bn{i}")), channels, device);
        let halve = |i: usize| MaxPool::new(&scope.at(format!("pool{i}")), Pool::beside([2; 2]));
        let (conv0, bn0) = (conv(0, [channels, 128]), norm(0, 128));
        let (conv1, bn1) = (conv(1, [128, 128]), norm(1, 128));
        let pool1 = halve(1);
        let (conv2, bn2) = (conv(2, [128, 256]), norm(2, 256));
        let (conv3, bn3) = (conv(3, [256, 256]), norm(3, 256));
        let pool3 = halve(3);
        let (conv4, bn4) = (conv(4, [256, 512]), norm(4, 512));
        let (conv5, bn5) = (conv(5, [512, 512]), norm(5, 512));
        let pool5 = halve(5);
        let features = 512 * (height / 8) * (width / 8);
        let fc = Linear::new(&scope.at("fc"), features, classes, device);
        let arithmetic = scope.arithmetic();
        Self {
            conv0,
            bn0,
            conv1,
            bn1,
            pool1,
            conv2,
            bn2,
            conv3,
            bn3,
            pool3,
            conv4,
            bn4,
            conv5,
            bn5,
            pool5,
            fc,
            arithmetic,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let arithmetic = self.arithmetic;
        let x = channels_last(x, arithmetic);
        let x = self.bn0.forward_relu(self.conv0.forward(x));
        let x = self.pool1.forward(self.bn1.forward_relu(self.conv1.forward(x)));
        let x = self.bn2.forward_relu(self.conv2.forward(x));
        let x = self.pool3.forward(self.bn3.forward_relu(self.conv3.forward(x)));
        let x = self.bn4.forward_relu(self.conv4.forward(x));
        let x = self.pool5.forward(self.bn5.forward_relu(self.conv5.forward(x)));
        self.fc.forward(features(x, arithmetic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_as_many_parameters_as_its_widths_say() {
        let scope = Scope::root(0);
        let net = VggSmall::build(&(), [3, 32, 32], 10, &scope, &Device::flex());
        let filters = 3 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512;
        let channels = 2 * (128 + 256 + 512);
        assert_eq!(net.num_params(), 9 * filters + 4 * channels + 8192 * 10 + 10);
        assert_eq!(net.forward(Tensor::ones([1, 3, 32, 32], &Device::flex())).dims(), [1, 10]);
    }
}
