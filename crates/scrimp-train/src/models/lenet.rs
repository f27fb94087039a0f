//! LeNet in the form that QML's experiments use.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::Network;
use crate::layers::{Conv2d, Conv2dOptions, Linear, MaxPool, Pool, Relu, channels_last, features};
use crate::tap::{Arithmetic, Scope};

/// Two 5x5 convolutions (1-6-16 channels, padded) with `ReLU` and 2x2 max pooling, then 784-120-84-classes.
///
/// # Source
/// `LeCun` et al. 1998, "Gradient-based learning applied to document recognition"; widths as in QML. Differs from 1998 in
/// padding (so that 28x28 images give 784 features), max pooling and `ReLU`.
#[derive(Module, Debug)]
pub struct LeNet {
    conv1: Conv2d,
    pool1: MaxPool,
    conv2: Conv2d,
    pool2: MaxPool,
    fc1: Linear,
    relu1: Relu,
    fc2: Linear,
    relu2: Relu,
    fc3: Linear,
    #[module(skip)]
    arithmetic: Arithmetic,
}

impl Network for LeNet {
    type Options = ();

    fn accepts([_, height, width]: [usize; 3]) -> Result<(), String> {
        if height >= 4 && width >= 4 { Ok(()) } else { Err("images of at least 4x4 pixels".into()) }
    }

    fn build((): &(), image: [usize; 3], classes: usize, scope: &Scope, device: &Device) -> Self {
        let [channels, height, width] = image;
        let same = Conv2dOptions { padding: [2; 2], ..Conv2dOptions::new(5) };
        let features = 16 * (height / 4) * (width / 4);
        Self {
            conv1: Conv2d::new(&scope.at("conv1"), channels, 6, same, device),
            pool1: MaxPool::of_relu(&scope.at("pool1"), Pool::beside([2; 2])),
            conv2: Conv2d::new(&scope.at("conv2"), 6, 16, same, device),
            pool2: MaxPool::of_relu(&scope.at("pool2"), Pool::beside([2; 2])),
            fc1: Linear::new(&scope.at("fc1"), features, 120, device),
            relu1: Relu::new(&scope.at("relu1")),
            fc2: Linear::new(&scope.at("fc2"), 120, 84, device),
            relu2: Relu::new(&scope.at("relu2")),
            fc3: Linear::new(&scope.at("fc3"), 84, classes, device),
            arithmetic: scope.arithmetic(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let arithmetic = self.arithmetic;
        let x = channels_last(x, arithmetic);
        let x = self.pool1.forward(self.conv1.forward(x)); // [batch, 14, 14, 6]
        let x = self.pool2.forward(self.conv2.forward(x)); // [batch, 7, 7, 16]
        let x = self.relu1.forward(self.fc1.forward(features(x, arithmetic)));
        let x = self.relu2.forward(self.fc2.forward(x));
        self.fc3.forward(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_107_786_parameters_of_qml() {
        let net = LeNet::build(&(), [1, 28, 28], 10, &Scope::root(0), &Device::flex());
        assert_eq!(net.num_params(), 107_786);
    }
}
