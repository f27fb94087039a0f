//! What stands between layers and is not tapped.

use burn::tensor::Tensor;
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;

use crate::ops;
use crate::tap::{Arithmetic, Place};
use crate::trace::Op;

/// Images as layers take them: `[batch, channels, height, width]` becomes `[batch, height, width, channels]` for the
/// kernels' arithmetic.
pub fn channels_last(x: Tensor<4>, arithmetic: Arithmetic) -> Tensor<4> {
    match arithmetic {
        Arithmetic::Kernels if x.dims()[1] == 1 => {
            // One channel: the values stay where they are.
            let [batch, _, height, width] = x.dims();
            x.reshape([batch, height, width, 1])
        }
        Arithmetic::Kernels => x.permute([0, 2, 3, 1]),
        Arithmetic::Engine | Arithmetic::Recorded => x,
    }
}

/// Rows of features, in the order that a linear layer of a usual checkpoint expects: channel by channel.
pub fn features(x: Tensor<4>, arithmetic: Arithmetic) -> Tensor<2> {
    match arithmetic {
        Arithmetic::Kernels => x.permute([0, 3, 1, 2]).flatten(1, 3),
        Arithmetic::Engine | Arithmetic::Recorded => x.flatten(1, 3),
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
pub fn concat(images: Vec<Tensor<4>>, place: &Place) -> Tensor<4> {
    match place.arithmetic() {
        Arithmetic::Kernels => ops::concat(images),
        Arithmetic::Engine => Tensor::cat(images, 1),
        Arithmetic::Recorded => {
            let [batch, _, height, width] = images[0].dims();
            let channels = images.iter().map(|image| image.dims()[1]).sum();
            let images: Vec<&Tensor<4>> = images.iter().collect();
            place.record("", Op::Concat, &images, [batch, channels, height, width])
        }
    }
}

/// Every `stride`-th pixel of each row and column, with as many channels of zeros around as there are channels: half
/// before and half after.
pub fn subsample_and_widen(x: Tensor<4>, stride: usize, place: &Place) -> Tensor<4> {
    match place.arithmetic() {
        Arithmetic::Kernels => {
            let [batch, height, width, channels] = x.dims();
            let (height, width) = (height / stride, width / stride);
            let x: Tensor<6> = x.reshape([batch, height, stride, width, stride, channels]);
            let x = x.slice([0..batch, 0..height, 0..1, 0..width, 0..1, 0..channels]);
            let x: Tensor<4> = x.reshape([batch, height, width, channels]);
            let zeros = Tensor::zeros([batch, height, width, channels / 2], &x.device());
            Tensor::cat(vec![zeros.clone(), x, zeros], 3)
        }
        Arithmetic::Engine => {
            // A 1x1 window takes the pixels themselves.
            let x = max_pool2d(x, MaxPoolOptions::new([1; 2]).with_stride([stride; 2]));
            let [batch, channels, height, width] = x.dims();
            let zeros = Tensor::zeros([batch, channels / 2, height, width], &x.device());
            Tensor::cat(vec![zeros.clone(), x, zeros], 1)
        }
        Arithmetic::Recorded => {
            let [batch, channels, height, width] = x.dims();
            let (height, width) = (height / stride, width / stride);
            let small = [batch, channels, height, width];
            let x = place.record("subsample", Op::Subsample { stride }, &[&x], small);
            let (before, after) = (channels / 2, channels / 2);
            let wide = [batch, before + channels + after, height, width];
            place.record("pad", Op::PadChannels { before, after }, &[&x], wide)
        }
    }
}
