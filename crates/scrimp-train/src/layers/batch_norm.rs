//! Batch normalization, with what usually follows it.

use burn::module::{Module, Param, RunningState};
use burn::tensor::activation;
use burn::tensor::{Device, Tensor};

use crate::ops;
use crate::tap::{Arithmetic, Scope, Tap};
use crate::trace::Op;

/// Normalizes each channel by its mean and variance over a batch, then scales and shifts it; when the network is
/// evaluated, by running averages. All eight tensors are tapped; the output is what leaves the layer, after the residual and
/// the `ReLU`.
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
    epsilon: f32,
    #[module(skip)]
    tap: Tap,
}

/// Added to variances, if nothing else is said.
const EPSILON: f32 = 1e-5;
/// Share of a batch in the running averages.
const MOMENTUM: f64 = 0.1;

impl BatchNorm {
    /// A norm that leaves normalized channels as they are.
    pub fn new(scope: &Scope, channels: usize, device: &Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::ones([channels], device)),
            bias: Param::from_tensor(Tensor::zeros([channels], device)),
            running_mean: RunningState::new(Tensor::zeros([channels], device)),
            running_var: RunningState::new(Tensor::ones([channels], device)),
            epsilon: EPSILON,
            tap: scope.tap("batch_norm", &[channels], Some(&[channels])),
        }
    }

    /// The same norm with another number that is added to variances; without it, that is `1e-5`.
    #[must_use]
    pub fn with_epsilon(self, epsilon: f32) -> Self {
        Self { epsilon, ..self }
    }

    /// The forward pass. Where gradients are followed, the batch's own statistics are taken and the averages updated.
    ///
    /// # Shapes
    /// - `x` and result: `[batch, height, width, channels]`; with the engine's own arithmetic channels stand on axis 1
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.normalize(x, false, None)
    }

    /// [`forward`](Self::forward) and a `ReLU`, in the same pass over memory.
    pub fn forward_relu(&self, x: Tensor<4>) -> Tensor<4> {
        self.normalize(x, true, None)
    }

    /// [`forward`](Self::forward), the sum with a tensor of the output's shape, and a `ReLU`, in the same pass over memory.
    pub fn forward_add_relu(&self, x: Tensor<4>, residual: Tensor<4>) -> Tensor<4> {
        self.normalize(x, true, Some(residual))
    }

    fn normalize(&self, x: Tensor<4>, relu: bool, residual: Option<Tensor<4>>) -> Tensor<4> {
        let training = x.device().is_autodiff();
        match self.tap.arithmetic() {
            Arithmetic::Kernels => {}
            Arithmetic::Engine => {
                let y = self.with_engine(self.tap.input(x), training);
                let y = residual.map_or_else(|| y.clone(), |residual| y.clone() + residual);
                return self.tap.output(if relu { activation::relu(y) } else { y });
            }
            Arithmetic::Recorded => return self.record(&x, relu, residual.as_ref()),
        }
        let averages = (!training).then(|| [self.running_mean.value(), self.running_var.value()]);
        let parameters = self.parameters();
        let (y, batch) = ops::batch_norm(
            self.tap.points(x.dims(), x.dims()),
            x,
            parameters,
            residual,
            relu,
            self.epsilon,
            averages,
        );
        if let Some([mean, var]) = batch {
            self.follow(mean, var);
        }
        y
    }

    fn record(&self, x: &Tensor<4>, relu: bool, residual: Option<&Tensor<4>>) -> Tensor<4> {
        let shape = x.dims();
        let mut y = self.tap.record("", Op::BatchNorm { epsilon: self.epsilon }, &[x], shape);
        if let Some(residual) = residual {
            y = self.tap.record("add", Op::Add, &[&y, residual], shape);
        }
        if relu {
            y = self.tap.record("relu", Op::Relu, &[&y], shape);
        }
        y
    }

    fn with_engine(&self, x: Tensor<4>, training: bool) -> Tensor<4> {
        let [weight, bias] = self.parameters();
        if !training {
            let [mean, var] = [self.running_mean.value(), self.running_var.value()];
            return burn::tensor::module::batch_norm(
                x,
                weight,
                bias,
                mean,
                var,
                self.epsilon.into(),
            );
        }
        let result = burn::tensor::module::batch_norm_train(x, weight, bias, self.epsilon.into());
        self.follow(result.mean.detach(), result.variance.detach());
        result.output
    }

    fn parameters(&self) -> [Tensor<1>; 2] {
        [self.tap.weight(self.weight.val()), self.tap.bias(self.bias.val())]
    }

    fn follow(&self, mean: Tensor<1>, var: Tensor<1>) {
        for (average, batch) in [(&self.running_mean, mean), (&self.running_var, var)] {
            let before = average.value_sync();
            average.update(before.mul_scalar(1.0 - MOMENTUM).add(batch.mul_scalar(MOMENTUM)));
        }
    }
}
