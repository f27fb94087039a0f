//! What stands between layers and has no parameters.

use burn::tensor::Tensor;
use burn::tensor::activation;
use burn::tensor::module::{avg_pool2d, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};

pub use scrimp_kernels::pool::Window as Pool;

use crate::ops;
use crate::tap::Arithmetic;

/// Images as layers take them: `[batch, channels, height, width]` becomes `[batch, height, width, channels]`, except with
/// the engine's own arithmetic.
pub fn channels_last(x: Tensor<4>, arithmetic: Arithmetic) -> Tensor<4> {
    match arithmetic {
        Arithmetic::Kernels if x.dims()[1] == 1 => {
            // One channel: the values stay where they are.
            let [batch, _, height, width] = x.dims();
            x.reshape([batch, height, width, 1])
        }
        Arithmetic::Kernels => x.permute([0, 2, 3, 1]),
        Arithmetic::Engine => x,
    }
}

/// Rows of features, in the order that a linear layer of a usual checkpoint expects: channel by channel.
pub fn features(x: Tensor<4>, arithmetic: Arithmetic) -> Tensor<2> {
    match arithmetic {
        Arithmetic::Kernels => x.permute([0, 3, 1, 2]).flatten(1, 3),
        Arithmetic::Engine => x.flatten(1, 3),
    }
}

/// `x + added`, where `added` has the shape of `x`, or that with a first axis of 1, along which it is repeated.
pub fn add<const D: usize>(x: Tensor<D>, added: Tensor<D>) -> Tensor<D> {
    ops::add(x, added)
}

/// `max(x, 0)`; saves one bit for each value.
pub fn relu<const D: usize>(x: Tensor<D>, arithmetic: Arithmetic) -> Tensor<D> {
    match arithmetic {
        Arithmetic::Kernels => ops::relu(x),
        Arithmetic::Engine => activation::relu(x),
    }
}

/// `x Phi(x)`, with the normal distribution itself and no approximation of it.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    ops::gelu(x)
}

/// The largest value of each window; saves one byte for each output.
pub fn max_pool(x: Tensor<4>, window: Pool, arithmetic: Arithmetic) -> Tensor<4> {
    match arithmetic {
        Arithmetic::Kernels => ops::max_pool(x, window),
        Arithmetic::Engine => {
            let options = MaxPoolOptions::new(window.kernel).with_stride(window.stride);
            max_pool2d(x, options.with_padding(window.padding))
        }
    }
}

/// [`max_pool`] of [`relu`], in one pass.
pub fn relu_max_pool(x: Tensor<4>, window: Pool, arithmetic: Arithmetic) -> Tensor<4> {
    match arithmetic {
        Arithmetic::Kernels => ops::relu_max_pool(x, window),
        Arithmetic::Engine => max_pool(relu(x, arithmetic), window, arithmetic),
    }
}

/// The mean of each window, in which zeros of the padding count.
pub fn average_pool(x: Tensor<4>, window: Pool, arithmetic: Arithmetic) -> Tensor<4> {
    match arithmetic {
        Arithmetic::Kernels => ops::average_pool(x, window),
        Arithmetic::Engine => {
            let options = AvgPoolOptions::new(window.kernel).with_stride(window.stride);
            avg_pool2d(x, options.with_padding(window.padding))
        }
    }
}

/// The channels of up to four images of one size as those of one image, in their order.
///
/// # Panics
/// If there is no image, or a fifth.
pub fn concat(images: Vec<Tensor<4>>, arithmetic: Arithmetic) -> Tensor<4> {
    match arithmetic {
        Arithmetic::Kernels => ops::concat(images),
        Arithmetic::Engine => Tensor::cat(images, 1),
    }
}

/// The mean of each channel over height and width: `[batch, channels]`.
pub fn global_average(x: Tensor<4>, arithmetic: Arithmetic) -> Tensor<2> {
    match arithmetic {
        Arithmetic::Kernels => ops::global_average(x),
        Arithmetic::Engine => {
            let x: Tensor<3> = x.flatten(2, 3);
            x.mean_dim(2).flatten(1, 2)
        }
    }
}
