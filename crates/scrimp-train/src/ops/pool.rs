//! Functions of one tensor: `ReLU` and pooling. They save a bit or a byte for a value, or nothing.

use burn::backend::TensorMetadata;
use burn::tensor::Tensor;
use scrimp_kernels::pool::{self, Window};
use scrimp_kernels::{Gate, activation};

use super::held::{Points, round, rounded};
use super::{Function, Values, apply, done, room, slice, tensor, values_mut};
use crate::tap::Tap;

/// Values of a word of bits.
const WORD: usize = u32::BITS as usize;
/// Zeros of the padding count in a mean, as is the default of `PyTorch`.
const COUNT_PADDING: bool = true;
const CHECKED: &str = "buffers have the shapes of their tensors";

#[derive(Debug)]
struct Relu {
    points: Points,
}

impl Function<1> for Relu {
    /// Where the output is above zero, one bit for each value.
    type Saved = Vec<u32>;

    fn forward(&self, [x]: [Values; 1], keep: bool) -> (Values, Option<Vec<u32>>) {
        let mut x = rounded(x, self.points.x.as_ref());
        let count = x.shape().num_elements();
        let mut bits = keep.then(|| vec![0; count.div_ceil(WORD)]);
        activation::relu(values_mut(&mut x), bits.as_deref_mut()).expect(CHECKED);
        (rounded(x, self.points.y.as_ref()), bits)
    }

    fn backward(&self, dy: Values, bits: Vec<u32>, _needs: [bool; 1]) -> [Option<Values>; 1] {
        let mut dy = rounded(dy, self.points.dy.as_ref());
        activation::relu_backward(values_mut(&mut dy), Gate::Bits(&bits)).expect(CHECKED);
        [Some(rounded(dy, self.points.dx.as_ref()))]
    }
}

#[derive(Debug)]
struct MaxPool {
    window: Window,
    relu: bool,
    points: Points,
}

impl Function<1> for MaxPool {
    /// The input's shape, and which element of its window each output is.
    type Saved = ([usize; 4], Vec<u8>);

    fn forward(&self, [x]: [Values; 1], _keep: bool) -> (Values, Option<Self::Saved>) {
        let x = rounded(x, self.points.x.as_ref());
        let shape = x.shape().dims();
        let out = pooled(self.window, shape);
        let mut y = room(&out);
        let mut taps = vec![0; y.len()];
        let kernel = if self.relu { pool::relu_max_pool2d } else { pool::max_pool2d };
        kernel(slice(&x), shape, self.window, &mut y, &mut taps).expect(CHECKED);
        done(x);
        round(self.points.y.as_ref(), &mut y, &out);
        (tensor(y, &out), Some((shape, taps)))
    }

    fn backward(
        &self,
        dy: Values,
        (shape, taps): Self::Saved,
        _: [bool; 1],
    ) -> [Option<Values>; 1] {
        let dy = rounded(dy, self.points.dy.as_ref());
        let mut dx = room(&shape);
        pool::max_pool2d_backward(slice(&dy), &taps, shape, self.window, &mut dx).expect(CHECKED);
        done(dy);
        round(self.points.dx.as_ref(), &mut dx, &shape);
        [Some(tensor(dx, &shape))]
    }
}

#[derive(Debug)]
struct Average {
    window: Window,
    points: Points,
}

impl Function<1> for Average {
    /// The input's shape.
    type Saved = [usize; 4];

    fn forward(&self, [x]: [Values; 1], _keep: bool) -> (Values, Option<[usize; 4]>) {
        let x = rounded(x, self.points.x.as_ref());
        let shape: [usize; 4] = x.shape().dims();
        let out = pooled(self.window, shape);
        let mut y = room(&out);
        pool::avg_pool2d(slice(&x), shape, self.window, COUNT_PADDING, &mut y).expect(CHECKED);
        done(x);
        round(self.points.y.as_ref(), &mut y, &out);
        (tensor(y, &out), Some(shape))
    }

    fn backward(&self, dy: Values, shape: [usize; 4], _needs: [bool; 1]) -> [Option<Values>; 1] {
        let dy = rounded(dy, self.points.dy.as_ref());
        let mut dx = room(&shape);
        pool::avg_pool2d_backward(slice(&dy), shape, self.window, COUNT_PADDING, &mut dx)
            .expect(CHECKED);
        done(dy);
        round(self.points.dx.as_ref(), &mut dx, &shape);
        [Some(tensor(dx, &shape))]
    }
}

#[derive(Debug)]
struct GlobalAverage {
    points: Points,
}

impl Function<1> for GlobalAverage {
    /// The input's shape.
    type Saved = [usize; 4];

    fn forward(&self, [x]: [Values; 1], _keep: bool) -> (Values, Option<[usize; 4]>) {
        let x = rounded(x, self.points.x.as_ref());
        let shape: [usize; 4] = x.shape().dims();
        let out = [shape[0], shape[3]];
        let mut y = room(&out);
        pool::global_avg_pool(slice(&x), shape, &mut y).expect(CHECKED);
        done(x);
        round(self.points.y.as_ref(), &mut y, &out);
        (tensor(y, &out), Some(shape))
    }

    fn backward(&self, dy: Values, shape: [usize; 4], _needs: [bool; 1]) -> [Option<Values>; 1] {
        let dy = rounded(dy, self.points.dy.as_ref());
        let mut dx = room(&shape);
        pool::global_avg_pool_backward(slice(&dy), shape, &mut dx).expect(CHECKED);
        done(dy);
        round(self.points.dx.as_ref(), &mut dx, &shape);
        [Some(tensor(dx, &shape))]
    }
}

/// A shape with a pixel for each window.
fn pooled(window: Window, shape: [usize; 4]) -> [usize; 4] {
    window.output(shape).unwrap_or_else(|e| panic!("pooling: {e}"))
}

pub(crate) fn relu<const D: usize>(x: Tensor<D>, tap: &Tap) -> Tensor<D> {
    let points = tap.points(x.dims(), x.dims());
    Tensor::from_dispatch(apply(Relu { points }, [x.into_dispatch()]))
}

/// Channels stand on the last axis. With `relu`, that of the input is taken in the same pass.
pub(crate) fn max_pool(x: Tensor<4>, window: Window, relu: bool, tap: &Tap) -> Tensor<4> {
    let points = tap.points(x.dims(), pooled(window, x.dims()));
    Tensor::from_dispatch(apply(MaxPool { window, relu, points }, [x.into_dispatch()]))
}

/// Channels stand on the last axis.
pub(crate) fn average_pool(x: Tensor<4>, window: Window, tap: &Tap) -> Tensor<4> {
    let points = tap.points(x.dims(), pooled(window, x.dims()));
    Tensor::from_dispatch(apply(Average { window, points }, [x.into_dispatch()]))
}

/// `[batch, height, width, channels]` to `[batch, channels]`.
pub(crate) fn global_average(x: Tensor<4>, tap: &Tap) -> Tensor<2> {
    let [batch, .., channels] = x.dims();
    let points = tap.points(x.dims(), [batch, channels]);
    Tensor::from_dispatch(apply(GlobalAverage { points }, [x.into_dispatch()]))
}
