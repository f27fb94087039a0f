//! What stands between layers and is not tapped.

use burn::tensor::Tensor;

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
