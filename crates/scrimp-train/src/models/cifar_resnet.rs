//! The residual networks for CIFAR, of 8, 20, 32, 44 and 56 layers.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::Network;
use super::residual::{Block, Body, Shortcut, conv};
use crate::layers::{BatchNorm, Conv2d, GlobalAverage, Linear, channels_last};
use crate::tap::{Arithmetic, Scope};

/// A stem, three stages of basic blocks with 16, 32 and 64 channels, and a linear classifier: `6 n + 2` layers with `n`
/// blocks in each stage.
///
/// # Source
/// He et al. 2016, arXiv:1512.03385, section 4.2, with option-A shortcuts (subsampled, padded with zero channels, no
/// weights). Parameter names are those of the widely used PyTorch checkpoints (`layer1.0.conv1.weight`, `linear.bias`).
#[derive(Module, Debug)]
pub struct CifarResNet {
    conv1: Conv2d,
    bn1: BatchNorm,
    layer1: Vec<Block>,
    layer2: Vec<Block>,
    layer3: Vec<Block>,
    pool: GlobalAverage,
    linear: Linear,
    #[module(skip)]
    arithmetic: Arithmetic,
}

impl Network for CifarResNet {
    /// Blocks in each stage.
    type Options = usize;

    fn accepts([_, height, width]: [usize; 3]) -> Result<(), String> {
        if height.is_multiple_of(4) && width.is_multiple_of(4) && height > 0 && width > 0 {
            Ok(())
        } else {
            Err("images whose height and width are multiples of 4".into())
        }
    }

    fn build(
        blocks: &usize,
        image: [usize; 3],
        classes: usize,
        scope: &Scope,
        device: &Device,
    ) -> Self {
        let stage = |name: &str, inputs: usize, outputs: usize| {
            let stride = if inputs == outputs { 1 } else { 2 };
            let scope = scope.at(name);
            let channels = [inputs, outputs];
            Block::stage(&scope, Body::Basic, channels, stride, *blocks, Shortcut::Pad, device)
        };
        Self {
            conv1: conv(&scope.at("conv1"), [image[0], 16], 3, 1, device),
            bn1: BatchNorm::new(&scope.at("bn1"), 16, device),
            layer1: stage("layer1", 16, 16),
            layer2: stage("layer2", 16, 32),
            layer3: stage("layer3", 32, 64),
            pool: GlobalAverage::new(&scope.at("pool")),
            linear: Linear::new(&scope.at("linear"), 64, classes, device),
            arithmetic: scope.arithmetic(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = channels_last(x, self.arithmetic);
        let x = self.bn1.forward_relu(self.conv1.forward(x));
        let stages = [&self.layer1, &self.layer2, &self.layer3];
        let x = stages.into_iter().flatten().fold(x, |x, block| block.forward(x)); // [batch, 8, 8, 64]
        self.linear.forward(self.pool.forward(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_parameters_of_the_paper() {
        // Trained parameters: 0.27 M, 0.46 M, 0.66 M and 0.85 M in table 6.
        for (blocks, trained) in
            [(1, 75_290), (3, 269_722), (5, 464_154), (7, 658_586), (9, 853_018)]
        {
            let scope = Scope::root(0);
            let net = CifarResNet::build(&blocks, [3, 32, 32], 10, &scope, &Device::flex());
            // And the running statistics of all batch norms.
            let statistics = 2 * (16 + 2 * blocks * (16 + 32 + 64));
            assert_eq!(net.num_params(), trained + statistics);
            assert_eq!(scope.sites().len(), 6 * blocks + 2 + 6 * blocks + 1 + 1);
        }
    }
}
