//! The CIFAR ResNet with 20 layers.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::Network;
use super::basic_block::{BasicBlock, Shortcut, conv};
use crate::layers::{BatchNorm, Conv2d, Linear, channels_last, global_average};
use crate::tap::{Arithmetic, Scope};

/// A stem, three stages of three basic blocks with 16, 32 and 64 channels, and a linear classifier.
///
/// # Source
/// He et al. 2016, arXiv:1512.03385, section 4.2, with option-A shortcuts (subsampled, padded with zero channels, no
/// weights). Parameter names are those of the widely used PyTorch checkpoints (`layer1.0.conv1.weight`, `linear.bias`).
#[derive(Module, Debug)]
pub struct ResNet20 {
    conv1: Conv2d,
    bn1: BatchNorm,
    layer1: Vec<BasicBlock>,
    layer2: Vec<BasicBlock>,
    layer3: Vec<BasicBlock>,
    linear: Linear,
    #[module(skip)]
    arithmetic: Arithmetic,
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
            let stride = if inputs == outputs { 1 } else { 2 };
            let scope = scope.at(name);
            BasicBlock::stage(&scope, [inputs, outputs], stride, 3, Shortcut::Pad, device)
        };
        Self {
            conv1: conv(&scope.at("conv1"), [image[0], 16], 3, 1, device),
            bn1: BatchNorm::new(&scope.at("bn1"), 16, device),
            layer1: stage("layer1", 16, 16),
            layer2: stage("layer2", 16, 32),
            layer3: stage("layer3", 32, 64),
            linear: Linear::new(&scope.at("linear"), 64, classes, device),
            arithmetic: scope.arithmetic(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = channels_last(x, self.arithmetic);
        let x = self.bn1.forward_relu(self.conv1.forward(x));
        let stages = [&self.layer1, &self.layer2, &self.layer3];
        let x = stages.into_iter().flatten().fold(x, |x, block| block.forward(x)); // [batch, 8, 8, 64]
        self.linear.forward(global_average(x, self.arithmetic))
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
        assert_eq!(scope.sites().len(), 20 + 19);
    }
}
