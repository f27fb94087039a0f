//! The residual networks of 18, 34 and 50 layers.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::Network;
use super::residual::{Block, Body, Shortcut, conv};
use crate::layers::{BatchNorm, Conv2d, GlobalAverage, Linear, MaxPool, Pool, channels_last};
use crate::tap::{Arithmetic, Scope};

/// Which blocks, and how many of them in each stage.
#[derive(Clone, Copy, Debug)]
pub struct ResNetOptions {
    /// Blocks of each of the four stages.
    pub blocks: [usize; 4],
    /// Whether they have a third convolution.
    pub bottleneck: bool,
}

/// A stem, four stages with 64, 128, 256 and 512 channels (four times as many after a bottleneck), and a linear
/// classifier.
///
/// Images of 64 pixels and more get the stem of the paper, a 7x7 convolution and a 3x3 maximum, each with stride 2.
/// Smaller ones get the stem that is usual for 32x32 images: one 3x3 convolution with stride 1, and no pooling.
///
/// # Source
/// He et al. 2016, arXiv:1512.03385, table 1. Parameter names are those of torchvision (`layer2.0.downsample.0.weight`,
/// `fc.bias`).
#[derive(Module, Debug)]
pub struct ResNet {
    conv1: Conv2d,
    bn1: BatchNorm,
    maxpool: Option<MaxPool>,
    layer1: Vec<Block>,
    layer2: Vec<Block>,
    layer3: Vec<Block>,
    layer4: Vec<Block>,
    avgpool: GlobalAverage,
    fc: Linear,
    #[module(skip)]
    arithmetic: Arithmetic,
}

/// From this height and width on, images get the large stem.
const LARGE: usize = 64;

impl Network for ResNet {
    type Options = ResNetOptions;

    fn accepts([_, height, width]: [usize; 3]) -> Result<(), String> {
        if height > 0 && width > 0 { Ok(()) } else { Err("images of at least one pixel".into()) }
    }

    fn build(
        options: &ResNetOptions,
        [channels, height, width]: [usize; 3],
        classes: usize,
        scope: &Scope,
        device: &Device,
    ) -> Self {
        let body = if options.bottleneck { Body::Bottleneck } else { Body::Basic };
        let stage = |i: usize| {
            let (width, stride) = (64 << i, if i == 0 { 1 } else { 2 });
            let inputs = if i == 0 { width } else { body.outputs(width / 2) };
            let scope = scope.at(format!("layer{}", i + 1));
            let (channels, blocks) = ([inputs, width], options.blocks[i]);
            Block::stage(&scope, body, channels, stride, blocks, Shortcut::Project, device)
        };
        let large = height >= LARGE && width >= LARGE;
        let (kernel, stride) = if large { (7, 2) } else { (3, 1) };
        let window = Pool { kernel: [3; 2], stride: [2; 2], padding: [1; 2] };
        Self {
            conv1: conv(&scope.at("conv1"), [channels, 64], kernel, stride, device),
            bn1: BatchNorm::new(&scope.at("bn1"), 64, device),
            maxpool: large.then(|| MaxPool::new(&scope.at("maxpool"), window)),
            layer1: stage(0),
            layer2: stage(1),
            layer3: stage(2),
            layer4: stage(3),
            avgpool: GlobalAverage::new(&scope.at("avgpool")),
            fc: Linear::new(&scope.at("fc"), body.outputs(512), classes, device),
            arithmetic: scope.arithmetic(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = channels_last(x, self.arithmetic);
        let mut x = self.bn1.forward_relu(self.conv1.forward(x));
        if let Some(pool) = &self.maxpool {
            x = pool.forward(x);
        }
        let stages = [&self.layer1, &self.layer2, &self.layer3, &self.layer4];
        let x = stages.into_iter().flatten().fold(x, |x, block| block.forward(x));
        self.fc.forward(self.avgpool.forward(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trained parameters with the small stem and 10 classes, and with the large one and 1000; and outputs of all norms.
    #[test]
    fn they_have_the_parameters_of_the_usual_networks() {
        let basic = |blocks| ResNetOptions { blocks, bottleneck: false };
        let deep = ResNetOptions { blocks: [3, 4, 6, 3], bottleneck: true };
        for (options, small, large, norms) in [
            (basic([2, 2, 2, 2]), 11_173_962, 11_689_512, 4_800),
            (basic([3, 4, 6, 3]), 21_282_122, 21_797_672, 8_512),
            (deep, 23_520_842, 25_557_032, 26_560),
        ] {
            for (image, classes, trained) in [([3, 32, 32], 10, small), ([3, 64, 64], 1000, large)]
            {
                let net = ResNet::build(&options, image, classes, &Scope::root(0), &Device::flex());
                assert_eq!(net.num_params(), trained + 2 * norms, "{options:?} {image:?}");
            }
        }
    }

    #[test]
    fn a_large_image_loses_a_factor_of_four_before_the_blocks() {
        let device = Device::flex();
        let options = ResNetOptions { blocks: [1, 1, 1, 1], bottleneck: true };
        for arithmetic in [Arithmetic::Kernels, Arithmetic::Engine] {
            let scope = Scope::root(0).with(arithmetic);
            let net = ResNet::build(&options, [3, 64, 65], 7, &scope, &device);
            let logits = net.forward(Tensor::ones([2, 3, 64, 65], &device));
            assert_eq!(logits.dims(), [2, 7]);
            let first = scope.sites().into_iter().find(|s| s.path == "layer1.0.conv1").unwrap();
            let seen = first.shape(crate::Role::Input).unwrap();
            let expected = match arithmetic {
                Arithmetic::Kernels => [16, 17, 64],
                _ => [64, 16, 17],
            };
            assert_eq!(seen, expected);
        }
    }
}
