//! Batch normalization, with what usually follows it.

use burn::module::{Module, Param, RunningState};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

use crate::ops;
use crate::tap::{Arithmetic, Scope};

/// Normalizes each channel by its mean and variance over a batch, then scales and shifts it; when the network is
/// evaluated, by running averages.
///
/// # Shapes
/// - all parameters and averages: `[channels]`
///
/// # Source
/// Ioffe and Szegedy 2015, arXiv:1502.03167. Running variances are unbiased, as in `PyTorch`.
#[derive(Module, Debug)]
pub struct BatchNorm {
    /// Scale.
    pub weight: Param<Tensor<1>>,
    /// Shift.
    pub bias: Param<Tensor<1>>,
    running_mean: RunningState<Tensor<1>>,
    running_var: RunningState<Tensor<1>>,
    #[module(skip)]
    arithmetic: Arithmetic,
}

/// Added to variances.
const EPSILON: f64 = 1e-5;
/// Share of a batch in the running averages.
const MOMENTUM: f64 = 0.1;

/// What follows a norm in the same pass over memory.
#[derive(Clone, Debug)]
pub enum After {
    /// Nothing.
    Nothing,
    /// A `ReLU`.
    Relu,
    /// A tensor of the output's shape is added, and a `ReLU` comes last.
    AddRelu(Tensor<4>),
}

impl BatchNorm {
    /// A norm that leaves normalized channels as they are.
    pub fn new(scope: &Scope, channels: usize, device: &Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::ones([channels], device)),
            bias: Param::from_tensor(Tensor::zeros([channels], device)),
            running_mean: RunningState::new(Tensor::zeros([channels], device)),
            running_var: RunningState::new(Tensor::ones([channels], device)),
            arithmetic: scope.arithmetic(),
        }
    }

    /// The forward pass. Where gradients are followed, the batch's own statistics are taken and the averages updated.
    ///
    /// # Shapes
    /// - `x` and result: `[batch, height, width, channels]`; with the engine's own arithmetic channels stand on axis 1
    pub fn forward(&self, x: Tensor<4>, after: After) -> Tensor<4> {
        let training = x.device().is_autodiff();
        match self.arithmetic {
            Arithmetic::Kernels => self.with_kernels(x, after, training),
            Arithmetic::Engine => {
                let y = self.with_engine(x, training);
                match after {
                    After::Nothing => y,
                    After::Relu => relu(y),
                    After::AddRelu(residual) => relu(y + residual),
                }
            }
        }
    }

    fn with_kernels(&self, x: Tensor<4>, after: After, training: bool) -> Tensor<4> {
        let (relu, residual) = match after {
            After::Nothing => (false, None),
            After::Relu => (true, None),
            After::AddRelu(residual) => (true, Some(residual)),
        };
        let averages = (!training).then(|| [self.running_mean.value(), self.running_var.value()]);
        let parameters = [self.weight.val(), self.bias.val()];
        let epsilon = EPSILON as f32;
        let (y, batch) = ops::batch_norm(x, parameters, residual, relu, epsilon, averages);
        if let Some([mean, var]) = batch {
            self.follow(mean, var);
        }
        y
    }

    fn with_engine(&self, x: Tensor<4>, training: bool) -> Tensor<4> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        if !training {
            let [mean, var] = [self.running_mean.value(), self.running_var.value()];
            return burn::tensor::module::batch_norm(x, weight, bias, mean, var, EPSILON);
        }
        let result = burn::tensor::module::batch_norm_train(x, weight, bias, EPSILON);
        self.follow(result.mean.detach(), result.variance.detach());
        result.output
    }

    fn follow(&self, mean: Tensor<1>, var: Tensor<1>) {
        for (average, batch) in [(&self.running_mean, mean), (&self.running_var, var)] {
            let before = average.value_sync();
            average.update(before.mul_scalar(1.0 - MOMENTUM).add(batch.mul_scalar(MOMENTUM)));
        }
    }
}
