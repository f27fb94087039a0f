//! A multilayer perceptron.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::Network;
use crate::layers::{Linear, Relu};
use crate::tap::Scope;

/// Three fully connected layers with `ReLU` between them.
///
/// The widths 256 and 128 are small enough for seconds of training and enough for 98 % on MNIST.
#[derive(Module, Debug)]
pub struct Mlp {
    fc1: Linear,
    relu1: Relu,
    fc2: Linear,
    relu2: Relu,
    fc3: Linear,
}

impl Network for Mlp {
    type Options = ();

    fn accepts(_image: [usize; 3]) -> Result<(), String> {
        Ok(())
    }

    fn build((): &(), image: [usize; 3], classes: usize, scope: &Scope, device: &Device) -> Self {
        Self {
            fc1: Linear::new(&scope.at("fc1"), image.iter().product(), 256, device),
            relu1: Relu::new(&scope.at("relu1")),
            fc2: Linear::new(&scope.at("fc2"), 256, 128, device),
            relu2: Relu::new(&scope.at("relu2")),
            fc3: Linear::new(&scope.at("fc3"), 128, classes, device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = x.flatten(1, 3); // [batch, pixels]
        let x = self.relu1.forward(self.fc1.forward(x));
        let x = self.relu2.forward(self.fc2.forward(x));
        self.fc3.forward(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_as_many_parameters_as_its_widths_say() {
        let net = Mlp::build(&(), [1, 28, 28], 10, &Scope::root(0), &Device::flex());
        assert_eq!(net.num_params(), 785 * 256 + 257 * 128 + 129 * 10);
    }
}
