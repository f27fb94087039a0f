//! Layers whose tensors are tapped. All other layers of Burn may stand between them.

mod activation;
mod attention;
mod batch_norm;
mod conv2d;
mod embedding;
mod functions;
mod layer_norm;
mod linear;
mod pooling;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use scrimp_codec::Stream;

pub use activation::{Gelu, Relu};
pub use attention::SelfAttention;
pub use batch_norm::BatchNorm;
pub use conv2d::{Conv2d, Conv2dOptions};
pub use embedding::{Embedding, Ids};
pub use functions::{add, channels_last, concat, features, subsample_and_widen};
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use pooling::{AveragePool, GlobalAverage, MaxPool, Pool};

/// How a weight gets its first values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// Uniform in `+-1/sqrt(fan_in)`, weight and bias, as PyTorch does by default.
    #[default]
    Uniform,
    /// Normal with variance 1; a bias is uniform.
    Normal,
    /// Normal with variance `2/fan_in` (He et al. 2015, arXiv:1502.01852), as the residual networks for CIFAR use; a bias is uniform.
    KaimingNormal,
}

impl Init {
    #[expect(clippy::cast_possible_truncation, reason = "a first value is rounded to f32")]
    pub(crate) fn weight<const D: usize>(
        self,
        shape: [usize; D],
        stream: &Stream,
        device: &Device,
    ) -> Param<Tensor<D>> {
        let fan_in: usize = shape[1..].iter().product();
        let deviation = if self == Self::Normal { 1.0 } else { (2.0 / fan_in as f64).sqrt() };
        let values: Vec<f32> = match self {
            Self::Uniform => return uniform(shape, fan_in, stream, device),
            // Box and Muller 1958, one pair of uniform numbers for each value.
            Self::Normal | Self::KaimingNormal => (0..shape.iter().product::<usize>() as u64)
                .map(|i| {
                    let radius = (-2.0 * (1.0 - f64::from(stream.uniform(2 * i))).ln()).sqrt();
                    let angle = std::f64::consts::TAU * f64::from(stream.uniform(2 * i + 1));
                    (radius * angle.cos() * deviation) as f32
                })
                .collect(),
        };
        parameter(values, shape, device)
    }
}

fn uniform<const D: usize>(
    shape: [usize; D],
    fan_in: usize,
    stream: &Stream,
    device: &Device,
) -> Param<Tensor<D>> {
    let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
    let count = shape.iter().product::<usize>() as u64;
    let values = (0..count).map(|i| (2.0 * stream.uniform(i) - 1.0) * bound).collect();
    parameter(values, shape, device)
}

fn parameter<const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Param<Tensor<D>> {
    Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
}
