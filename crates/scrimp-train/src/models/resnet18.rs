//! The ResNet with 18 layers, for small images.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::Network;
use super::basic_block::{BasicBlock, Shortcut, conv};
use crate::layers::{BatchNorm, Conv2d, Linear, channels_last, global_average};
use crate::tap::{Arithmetic, Scope};

/// A stem, four stages of two basic blocks with 64, 128, 256 and 512 channels, and a linear classifier.
///
/// # Source
/// He et al. 2016, arXiv:1512.03385, table 1, with the stem that is usual for 32x32 images: one 3x3 convolution with
/// stride 1, and no pooling. Parameter names are those of torchvision (`layer2.0.downsample.0.weight`, `fc.bias`).
#[derive(Module, Debug)]
pub struct ResNet18 {
    conv1: Conv2d,
    bn1: BatchNorm,
    layer1: Vec<BasicBlock>,
    layer2: Vec<BasicBlock>,
    layer3: Vec<BasicBlock>,
    layer4: Vec<BasicBlock>,
    fc: Linear,
    #[module(skip)]
    arithmetic: Arithmetic,
}

impl Network for ResNet18 {
    const NAME: &'static str = "resnet18";
    const ABOUT: &'static str = "ResNet, 18 layers, stem for small images (He 2016)";

    fn accepts([_, height, width]: [usize; 3]) -> Result<(), String> {
        if height > 0 && width > 0 { Ok(()) } else { Err("images of at least one pixel".into()) }
    }

    fn build(image: [usize; 3], classes: usize, scope: &Scope, device: &Device) -> Self {
        let stage = |name: &str, inputs: usize, outputs: usize| {
            let stride = if inputs == outputs { 1 } else { 2 };
            let scope = scope.at(name);
            BasicBlock::stage(&scope, [inputs, outputs], stride, 2, Shortcut::Project, device)
        };
        Self {
            conv1: conv(&scope.at("conv1"), [image[0], 64], 3, 1, device),
            bn1: BatchNorm::new(&scope.at("bn1"), 64, device),
            layer1: stage("layer1", 64, 64),
            layer2: stage("layer2", 64, 128),
            layer3: stage("layer3", 128, 256),
            layer4: stage("layer4", 256, 512),
            fc: Linear::new(&scope.at("fc"), 512, classes, device),
            arithmetic: scope.arithmetic(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = channels_last(x, self.arithmetic);
        let x = self.bn1.forward_relu(self.conv1.forward(x));
        let stages = [&self.layer1, &self.layer2, &self.layer3, &self.layer4];
        let x = stages.into_iter().flatten().fold(x, |x, block| block.forward(x));
        self.fc.forward(global_average(x, self.arithmetic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_parameters_of_the_usual_cifar_network() {
        let scope = Scope::root(0);
        let net = ResNet18::build([3, 32, 32], 10, &scope, &Device::flex());
        // 11,173,962 trained parameters, and the running statistics of 20 batch norms.
        let statistics = 2 * (5 * 64 + 5 * 128 + 5 * 256 + 5 * 512);
        assert_eq!(net.num_params(), 11_173_962 + statistics);
        assert_eq!(scope.sites().len(), 21 + 20);
    }
}
