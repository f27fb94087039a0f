//! What transformers need beside products: embeddings, layer norm, GELU and attention.

use std::sync::Arc;

use burn::backend::TensorMetadata;
use burn::tensor::Tensor;
use scrimp_kernels::activation::{self, Gelu};
use scrimp_kernels::attention::{self, Options, Rows};
use scrimp_kernels::{embedding, layer_norm};

use super::held::{Held, Points, hold_both_ways, round, rounded};
use super::{Function, Values, apply, contiguous, done, room, slice, tensor};
use crate::tap::Tap;

const CHECKED: &str = "buffers have the shapes of their tensors";

#[derive(Debug)]
struct Embed {
    ids: Arc<[u32]>,
    /// Shape of the output, of which the last axis is that of the table.
    output: Vec<usize>,
}

impl Function<1> for Embed {
    /// The shape of the table.
    type Saved = [usize; 2];

    fn forward(&self, [table]: [Values; 1], _keep: bool) -> (Values, Option<[usize; 2]>) {
        let table = contiguous(table);
        let shape: [usize; 2] = table.shape().dims();
        let mut y = room(&self.output);
        embedding::gather(slice(&table), shape[1], &self.ids, &mut y).expect(CHECKED);
        (tensor(y, &self.output), Some(shape))
    }

    fn backward(&self, dy: Values, shape: [usize; 2], _needs: [bool; 1]) -> [Option<Values>; 1] {
        let dy = contiguous(dy);
        let mut table = room(&shape);
        embedding::gather_backward(slice(&dy), shape[1], &self.ids, &mut table).expect(CHECKED);
        done(dy);
        [Some(tensor(table, &shape))]
    }
}

#[derive(Debug)]
struct LayerNorm {
    epsilon: f32,
    points: Points,
}

#[derive(Debug)]
struct SavedRows {
    x: Held,
    shape: Vec<usize>,
    gamma: Values,
    mean: Vec<f32>,
    rstd: Vec<f32>,
}

impl Function<3> for LayerNorm {
    type Saved = SavedRows;

    fn forward(&self, inputs: [Values; 3], keep: bool) -> (Values, Option<SavedRows>) {
        let [x, gamma, beta] = inputs;
        let shape = x.shape().as_slice().to_vec();
        let (x, packed) = hold_both_ways(x, self.points.x.as_ref(), &[], keep);
        let [gamma, beta] = [gamma, beta].map(contiguous);
        let rows = shape[..shape.len() - 1].iter().product();
        let (mut y, mut mean, mut rstd) = (room(&shape), room(&[rows]), room(&[rows]));
        let saved = [&mut mean[..], &mut rstd[..]];
        layer_norm::forward(&x.values(), slice(&gamma), slice(&beta), self.epsilon, &mut y, saved)
            .expect(CHECKED);
        round(self.points.y.as_ref(), &mut y, &shape);
        let y = tensor(y, &shape);
        let x = x.or_packed(packed);
        (y, keep.then_some(SavedRows { x, shape, gamma, mean, rstd }))
    }

    fn backward(&self, dy: Values, saved: SavedRows, _needs: [bool; 3]) -> [Option<Values>; 3] {
        let SavedRows { x, shape, gamma, mean, rstd } = saved;
        let dy = rounded(dy, self.points.dy.as_ref());
        let len = gamma.shape().num_elements();
        let (mut dx, mut dgamma, mut dbeta) = (room(&shape), room(&[len]), room(&[len]));
        let gradients =
            layer_norm::Gradients { dx: &mut dx, dgamma: &mut dgamma, dbeta: &mut dbeta };
        layer_norm::backward(slice(&dy), &x.values(), [&mean, &rstd], slice(&gamma), gradients)
            .expect(CHECKED);
        round(self.points.dx.as_ref(), &mut dx, &shape);
        done(dy);
        x.done();
        [Some(tensor(dx, &shape)), Some(tensor(dgamma, &[len])), Some(tensor(dbeta, &[len]))]
    }
}

#[derive(Debug)]
struct GeluErf {
    points: Points,
}

impl Function<1> for GeluErf {
    /// The input.
    type Saved = Held;

    fn forward(&self, [x]: [Values; 1], keep: bool) -> (Values, Option<Held>) {
        let shape = x.shape().as_slice().to_vec();
        let (x, packed) = hold_both_ways(x, self.points.x.as_ref(), &[], keep);
        let mut y = room(&shape);
        activation::gelu(Gelu::Erf, &x.values(), &mut y).expect(CHECKED);
        round(self.points.y.as_ref(), &mut y, &shape);
        let x = x.or_packed(packed);
        (tensor(y, &shape), keep.then_some(x))
    }

    fn backward(&self, dy: Values, x: Held, _needs: [bool; 1]) -> [Option<Values>; 1] {
        let dy = rounded(dy, self.points.dy.as_ref());
        let shape = dy.shape().as_slice().to_vec();
        let mut dx = room(&shape);
        activation::gelu_backward(Gelu::Erf, &x.values(), slice(&dy), &mut dx).expect(CHECKED);
        round(self.points.dx.as_ref(), &mut dx, &shape);
        done(dy);
        x.done();
        [Some(tensor(dx, &shape))]
    }
}

/// Queries, keys and values are `[batch, time, heads * head_dim]`.
#[derive(Debug)]
struct Attention {
    heads: usize,
    causal: bool,
    /// `[batch, keys]`: where it is true, the key is padding.
    padding: Option<Arc<[bool]>>,
}

impl Attention {
    fn shape(&self, q: &Values, k: &Values) -> attention::Shape {
        let [batch, queries, width]: [usize; 3] = q.shape().dims();
        let [_, keys, _]: [usize; 3] = k.shape().dims();
        attention::Shape { batch, heads: self.heads, queries, keys, head_dim: width / self.heads }
    }

    fn options(&self, shape: attention::Shape) -> Options<'_> {
        Options {
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            causal: self.causal,
            padding: self.padding.as_deref(),
            dropout: None,
        }
    }
}

fn rows(x: &Values) -> Rows<'_> {
    let [_, _, width]: [usize; 3] = x.shape().dims();
    Rows { values: slice(x), stride: width }
}

impl Function<3> for Attention {
    /// The inputs, and the sums of each row of scores.
    type Saved = ([Values; 3], Vec<f32>);

    fn forward(&self, inputs: [Values; 3], keep: bool) -> (Values, Option<Self::Saved>) {
        let inputs = inputs.map(contiguous);
        let [q, k, v] = &inputs;
        let shape = self.shape(q, k);
        let mut y = room(q.shape().as_slice());
        let mut sums = room(&[shape.batch, shape.heads, shape.queries, 2]);
        let all = [rows(q), rows(k), rows(v)];
        attention::forward(shape, all, self.options(shape), &mut y, &mut sums).expect(CHECKED);
        let y = tensor(y, q.shape().as_slice());
        (y, keep.then_some((inputs, sums)))
    }

    fn backward(&self, dy: Values, saved: Self::Saved, _needs: [bool; 3]) -> [Option<Values>; 3] {
        let ([q, k, v], sums) = saved;
        let dy = contiguous(dy);
        let shape = self.shape(&q, &k);
        let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| room(x.shape().as_slice()));
        let gradients = attention::Gradients::Separate { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        let all = [rows(&q), rows(&k), rows(&v)];
        attention::backward(shape, all, self.options(shape), &sums, slice(&dy), gradients)
            .expect(CHECKED);
        done(dy);
        [(dq, q), (dk, k), (dv, v)].map(|(d, of)| {
            let gradient = tensor(d, of.shape().as_slice());
            done(of);
            Some(gradient)
        })
    }
}

/// Rows of a table: `[batch, time]` ids give `[batch, time, dim]`.
pub(crate) fn embed(table: Tensor<2>, ids: Arc<[u32]>, [batch, time]: [usize; 2]) -> Tensor<3> {
    let output = vec![batch, time, table.dims()[1]];
    Tensor::from_dispatch(apply(Embed { ids, output }, [table.into_dispatch()]))
}

/// Normalizes over the last axis.
pub(crate) fn layer_norm<const D: usize>(
    x: Tensor<D>,
    [gamma, beta]: [Tensor<1>; 2],
    epsilon: f32,
    tap: &Tap,
) -> Tensor<D> {
    let points = tap.points(x.dims(), x.dims());
    let inputs = [x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch()];
    Tensor::from_dispatch(apply(LayerNorm { epsilon, points }, inputs))
}

/// `x Phi(x)`, with the normal distribution itself and no approximation of it.
pub(crate) fn gelu<const D: usize>(x: Tensor<D>, tap: &Tap) -> Tensor<D> {
    let points = tap.points(x.dims(), x.dims());
    Tensor::from_dispatch(apply(GeluErf { points }, [x.into_dispatch()]))
}

/// Scaled dot-product attention of `[batch, time, heads * head_dim]`.
pub(crate) fn attention(
    qkv: [Tensor<3>; 3],
    heads: usize,
    causal: bool,
    padding: Option<Arc<[bool]>>,
) -> Tensor<3> {
    let inputs = qkv.map(Tensor::into_dispatch);
    Tensor::from_dispatch(apply(Attention { heads, causal, padding }, inputs))
}
