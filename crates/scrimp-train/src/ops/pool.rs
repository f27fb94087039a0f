//! Functions of one tensor: `ReLU` and pooling. They save a bit or a byte for a value, or nothing.

use burn::backend::TensorMetadata;
use burn::tensor::Tensor;
use scrimp_kernels::pool::{self, Window};
use scrimp_kernels::{Gate, activation};

use super::{Function, Values, apply, contiguous, done, room, slice, tensor};

/// Values of a word of bits.
const WORD: usize = u32::BITS as usize;
/// Zeros of the padding count in a mean, as is the default of `PyTorch`.
const COUNT_PADDING: bool = true;
const CHECKED: &str = "buffers have the shapes of their tensors";

#[derive(Debug)]
struct Relu;

impl Function<1> for Relu {
    /// Where the output is above zero, one bit for each value.
    type Saved = Vec<u32>;

    fn forward(&self, [x]: [Values; 1], keep: bool) -> (Values, Option<Vec<u32>>) {
        let mut x = contiguous(x);
        let count = x.shape().num_elements();
        let mut bits = keep.then(|| vec![0; count.div_ceil(WORD)]);
        let values = &mut x.storage_mut::<f32>()[..count];
        activation::relu(values, bits.as_deref_mut()).expect(CHECKED);
        (x, bits)
    }

    fn backward(&self, dy: Values, bits: Vec<u32>, _needs: [bool; 1]) -> [Option<Values>; 1] {
        let mut dy = contiguous(dy);
        let count = dy.shape().num_elements();
        let values = &mut dy.storage_mut::<f32>()[..count];
        activation::relu_backward(values, Gate::Bits(&bits)).expect(CHECKED);
        [Some(dy)]
    }
}

#[derive(Debug)]
struct MaxPool {
    window: Window,
    relu: bool,
}

impl Function<1> for MaxPool {
    /// The input's shape, and which element of its window each output is.
    type Saved = ([usize; 4], Vec<u8>);

    fn forward(&self, [x]: [Values; 1], _keep: bool) -> (Values, Option<Self::Saved>) {
        let x = contiguous(x);
        let shape = x.shape().dims();
        let out = self.window.output(shape).unwrap_or_else(|e| panic!("max_pool: {e}"));
        let mut y = room(&out);
        let mut taps = vec![0; y.len()];
        let kernel = if self.relu { pool::relu_max_pool2d } else { pool::max_pool2d };
        kernel(slice(&x), shape, self.window, &mut y, &mut taps).expect(CHECKED);
        done(x);
        (tensor(y, &out), Some((shape, taps)))
    }

    fn backward(
        &self,
        dy: Values,
        (shape, taps): Self::Saved,
        _: [bool; 1],
    ) -> [Option<Values>; 1] {
        let dy = contiguous(dy);
        let mut dx = room(&shape);
        pool::max_pool2d_backward(slice(&dy), &taps, shape, self.window, &mut dx).expect(CHECKED);
        done(dy);
        [Some(tensor(dx, &shape))]
    }
}

#[derive(Debug)]
struct Average(Window);

impl Function<1> for Average {
    /// The input's shape.
    type Saved = [usize; 4];

    fn forward(&self, [x]: [Values; 1], _keep: bool) -> (Values, Option<[usize; 4]>) {
        let x = contiguous(x);
        let shape: [usize; 4] = x.shape().dims();
        let out = self.0.output(shape).unwrap_or_else(|e| panic!("average_pool: {e}"));
        let mut y = room(&out);
        pool::avg_pool2d(slice(&x), shape, self.0, COUNT_PADDING, &mut y).expect(CHECKED);
        done(x);
        (tensor(y, &out), Some(shape))
    }

    fn backward(&self, dy: Values, shape: [usize; 4], _needs: [bool; 1]) -> [Option<Values>; 1] {
        let dy = contiguous(dy);
        let mut dx = room(&shape);
        pool::avg_pool2d_backward(slice(&dy), shape, self.0, COUNT_PADDING, &mut dx)
            .expect(CHECKED);
        done(dy);
        [Some(tensor(dx, &shape))]
    }
}

#[derive(Debug)]
struct GlobalAverage;

impl Function<1> for GlobalAverage {
    /// The input's shape.
    type Saved = [usize; 4];

    fn forward(&self, [x]: [Values; 1], _keep: bool) -> (Values, Option<[usize; 4]>) {
        let x = contiguous(x);
        let shape: [usize; 4] = x.shape().dims();
        let out = [shape[0], shape[3]];
        let mut y = room(&out);
        pool::global_avg_pool(slice(&x), shape, &mut y).expect(CHECKED);
        done(x);
        (tensor(y, &out), Some(shape))
    }

    fn backward(&self, dy: Values, shape: [usize; 4], _needs: [bool; 1]) -> [Option<Values>; 1] {
        let dy = contiguous(dy);
        let mut dx = room(&shape);
        pool::global_avg_pool_backward(slice(&dy), shape, &mut dx).expect(CHECKED);
        [Some(tensor(dx, &shape))]
    }
}

pub(crate) fn relu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(apply(Relu, [x.into_dispatch()]))
}

/// Channels stand on the last axis.
pub(crate) fn max_pool(x: Tensor<4>, window: Window) -> Tensor<4> {
    let pool = MaxPool { window, relu: false };
    Tensor::from_dispatch(apply(pool, [x.into_dispatch()]))
}

/// [`relu`] and [`max_pool`] in one pass.
pub(crate) fn relu_max_pool(x: Tensor<4>, window: Window) -> Tensor<4> {
    let pool = MaxPool { window, relu: true };
    Tensor::from_dispatch(apply(pool, [x.into_dispatch()]))
}

/// Channels stand on the last axis.
pub(crate) fn average_pool(x: Tensor<4>, window: Window) -> Tensor<4> {
    Tensor::from_dispatch(apply(Average(window), [x.into_dispatch()]))
}

/// `[batch, height, width, channels]` to `[batch, channels]`.
pub(crate) fn global_average(x: Tensor<4>) -> Tensor<2> {
    Tensor::from_dispatch(apply(GlobalAverage, [x.into_dispatch()]))
}
