//! The product of a layer with all of its tensors rounded: forward, and both gradients.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn::tensor::Tensor;
use scrimp_kernels::conv2d::{self, Conv2dShape};
use scrimp_kernels::linear::{self, LinearShape};
use scrimp_kernels::{KernelError, Kind, Operand, Scale, column_sums};

use super::held::{Held, factors, hold, hold_both_ways, round};
use super::{Function, Values, apply, room, tensor};
use crate::compute::Products;
use crate::engine::PointRef;
use crate::exchange::Exchange;
use crate::tap::Site;

/// What is multiplied with what.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Geometry {
    /// `[rows, in] x [out, in]`
    Linear(LinearShape),
    /// `[batch, height, width, in] x [out, in / groups, kernel height, kernel width]`
    Conv2d(Conv2dShape),
}

impl Geometry {
    /// Products of two numbers in one pass.
    fn macs(&self) -> usize {
        match self {
            Self::Linear(shape) => shape.rows * shape.inputs * shape.outputs,
            Self::Conv2d(shape) => shape.products(),
        }
    }

    /// The same on a part of its samples.
    fn part(self, count: usize, samples: usize) -> Self {
        match self {
            Self::Linear(shape) => {
                Self::Linear(LinearShape { rows: shape.rows / samples.max(1) * count, ..shape })
            }
            Self::Conv2d(shape) => Self::Conv2d(shape.with_batch(count)),
        }
    }

    fn forward(
        &self,
        x: Operand,
        w: Operand,
        scale: Scale,
        b: Option<&[f32]>,
        y: &mut [f32],
    ) -> Result<(), KernelError> {
        match self {
            Self::Linear(shape) => linear::forward(shape, x, w, scale, b, y),
            Self::Conv2d(shape) => conv2d::forward(shape, x, w, scale, b, y),
        }
    }

    fn input_gradient(
        &self,
        dy: Operand,
        w: Operand,
        scale: Scale,
        dx: &mut [f32],
    ) -> Result<(), KernelError> {
        match self {
            Self::Linear(shape) => linear::input_gradient(shape, dy, w, scale, dx),
            Self::Conv2d(shape) => conv2d::input_gradient(shape, dy, w, scale, dx),
        }
    }

    fn weight_gradient(
        &self,
        x: Operand,
        dy: Operand,
        scale: Scale,
        dw: &mut [f32],
    ) -> Result<(), KernelError> {
        match self {
            Self::Linear(shape) => linear::weight_gradient(shape, x, dy, scale, dw),
            Self::Conv2d(shape) => conv2d::weight_gradient(shape, x, dy, scale, dw),
        }
    }
}

/// A layer's product: its geometry, what its tensors are rounded to, and in which kinds it is computed.
#[derive(Debug)]
pub(crate) struct Product {
    pub geometry: Geometry,
    pub products: Products,
    /// Shape of the output.
    pub output: Vec<usize>,
    pub x: Option<PointRef>,
    pub w: Option<PointRef>,
    pub b: Option<PointRef>,
    pub y: Option<PointRef>,
    pub dy: Option<PointRef>,
    pub dx: Option<PointRef>,
    /// The layer, whose clock runs while its products are timed.
    pub site: Arc<Site>,
    /// Whether there is a bias; without one, the weight stands in its place.
    pub has_bias: bool,
}

/// What the way back needs: the rounded operands, and the shapes of their gradients.
#[derive(Debug)]
pub(crate) struct Saved {
    x: Held,
    w: Held,
    input: Vec<usize>,
    weight: Vec<usize>,
}

/// The scale of a product whose one factor has a single scale and whose other may have one for each output channel: a
/// plan gives integers to no other tensors.
fn product_scale<'a>(single: &[f32], channels: &'a mut [f32]) -> Scale<'a> {
    let factor = the_one(single);
    if channels.len() <= 1 {
        return Scale::Tensor(factor * the_one(channels));
    }
    for scale in &mut *channels {
        *scale *= factor;
    }
    Scale::Channel(channels)
}

impl Product {
    fn time(&self, product: usize, work: impl FnOnce()) {
        self.site.clock().time(product, self.geometry.macs(), work);
    }
}

/// Those of some samples.
fn rows<'a>(x: Operand<'a>, samples: usize, range: &Range<usize>) -> Operand<'a> {
    let len = x.len() / samples.max(1);
    x.part(range.start * len..range.end * len)
}

/// The gradient of a whole batch, from that of any part of it.
fn summed(
    exchange: Option<&Exchange>,
    samples: usize,
    mut part: impl FnMut(Range<usize>) -> Result<Vec<f32>, KernelError>,
) -> Result<Vec<f32>, KernelError> {
    match exchange {
        Some(exchange) => exchange.sum(samples, part),
        None => part(0..samples),
    }
}

/// The scale of all elements; an empty tensor has none.
fn the_one(scales: &[f32]) -> f32 {
    scales.first().copied().unwrap_or(1.0)
}

const CHECKED: &str = "a layer checks its shapes when it is given its input";

impl Function<3> for Product {
    type Saved = Saved;

    fn inputs(&self) -> usize {
        if self.has_bias { 3 } else { 2 }
    }

    fn forward(&self, [x, w, b]: [Values; 3], keep: bool) -> (Values, Option<Saved>) {
        let Products { forward, input_gradient, weight_gradient } = self.products.kinds();
        let (input, weight) = (x.shape().as_slice().to_vec(), w.shape().as_slice().to_vec());
        let bias = self.has_bias.then(|| hold(b, self.b.as_ref(), &[]));
        // What is kept is held as the way back needs it, too.
        let back = |kind| if keep { kind } else { forward };
        let (kinds_x, kinds_w) =
            ([forward, back(weight_gradient)], [forward, back(input_gradient)]);
        let (x, packed_x) = hold_both_ways(x, self.x.as_ref(), &kinds_x, keep);
        let (w, packed_w) = hold_both_ways(w, self.w.as_ref(), &kinds_w, keep);
        let bias = bias.as_ref().map(Held::values);
        let mut y = room(&self.output);
        self.time(0, || {
            let (x, mut w) = factors(&x, &w, forward);
            let mut scales = std::mem::take(&mut w.scales);
            let scale = product_scale(&x.scales, &mut scales);
            self.geometry
                .forward(x.operand(), w.operand(), scale, bias.as_deref(), &mut y)
                .expect(CHECKED);
        });
        round(self.y.as_ref(), &mut y, &self.output);
        if keep {
            let (x, w) = (x.or_packed(packed_x), w.or_packed(packed_w));
            return (tensor(y, &self.output), Some(Saved { x, w, input, weight }));
        }
        x.done();
        (tensor(y, &self.output), None)
    }

    fn backward(&self, dy: Values, saved: Saved, needs: [bool; 3]) -> [Option<Values>; 3] {
        let Products { input_gradient, weight_gradient, .. } = self.products.kinds();
        let Saved { x, w, input, weight } = saved;
        let [need_x, need_w, need_b] = needs;
        let dy = hold(dy, self.dy.as_ref(), &[input_gradient, weight_gradient]);
        let dx = need_x.then(|| {
            let mut dx = room(&input);
            self.time(1, || {
                let (dy, w) = factors(&dy, &w, input_gradient);
                let scale = Scale::Tensor(the_one(&dy.scales) * the_one(&w.scales));
                self.geometry
                    .input_gradient(dy.operand(), w.operand(), scale, &mut dx)
                    .expect(CHECKED);
            });
            round(self.dx.as_ref(), &mut dx, &input);
            tensor(dx, &input)
        });
        drop(w);
        let [exchange_w, exchange_b] = self.site.exchange();
        let samples = input[0];
        let dw = need_w.then(|| {
            let mut dw = Vec::new();
            self.time(2, || {
                let (x, mut dy) = factors(&x, &dy, weight_gradient);
                let mut scales = std::mem::take(&mut dy.scales);
                let scale = product_scale(&x.scales, &mut scales);
                let (x, dy) = (x.operand(), dy.operand());
                let part = |range: Range<usize>| {
                    let mut dw = room(&weight);
                    let (x, dy) = (rows(x, samples, &range), rows(dy, samples, &range));
                    let geometry = self.geometry.part(range.len(), samples);
                    geometry.weight_gradient(x, dy, scale, &mut dw).map(|()| dw)
                };
                dw = summed(exchange_w, samples, part).expect(CHECKED);
            });
            tensor(dw, &weight)
        });
        let db = (need_b && self.has_bias).then(|| {
            let floats = || dy.factor(Kind::F32).expect("every tensor has values");
            let mut dy = dy.factor(weight_gradient).unwrap_or_else(floats);
            let mut scales = std::mem::take(&mut dy.scales);
            let scale = product_scale(&[], &mut scales);
            let dy = dy.operand();
            let part = |range| column_sums(rows(dy, samples, &range), weight[0], scale);
            tensor(summed(exchange_b, samples, part).expect(CHECKED), &weight[..1])
        });
        x.done();
        dy.done();
        [dx, dw, db]
    }
}

/// The output of a layer, of the shape that its [`Product`] says.
pub(crate) fn product<const D: usize, const W: usize>(
    x: Tensor<D>,
    w: Tensor<W>,
    b: Option<Tensor<1>>,
    layer: Product,
) -> Tensor<D> {
    let w = w.into_dispatch();
    let b = b.map_or_else(|| w.clone(), Tensor::into_dispatch);
    Tensor::from_dispatch(apply(layer, [x.into_dispatch(), w, b]))
}
