//! Batch normalization with what follows it: two passes over memory on the way there, two on the way back.

use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::TensorMetadata;
use burn::tensor::{Tensor, TensorData};
use scrimp_kernels::Gate;
use scrimp_kernels::batch_norm::{self, Gradients, Statistics};

use super::held::{Held, Points, hold_both_ways, round, rounded};
use super::{Function, Values, apply, contiguous, done, room, slice, tensor, values_mut};
use crate::engine::values_of;

/// A norm, and what follows it. Its output is what leaves the op, after the residual and the `ReLU`.
#[derive(Debug)]
pub(crate) struct Norm {
    points: Points,
    epsilon: f32,
    relu: bool,
    has_residual: bool,
    /// Running mean and variance, where these are taken instead of the batch's own.
    averages: Option<[Vec<f32>; 2]>,
    /// The batch's own, once they are known.
    statistics: Arc<Mutex<Option<Statistics>>>,
}

/// What the way back needs. Where the output was not zero is one bit for each value.
#[derive(Debug)]
pub(crate) struct Saved {
    x: Held,
    shape: Vec<usize>,
    gamma: Values,
    mean: Vec<f32>,
    rstd: Vec<f32>,
    bits: Option<Vec<u32>>,
}

/// Values of a word of bits.
const WORD: usize = u32::BITS as usize;
const CHECKED: &str = "the shapes of a norm are those of its input and its channels";

impl Function<4> for Norm {
    type Saved = Saved;

    fn inputs(&self) -> usize {
        if self.has_residual { 4 } else { 3 }
    }

    fn forward(
        &self,
        [x, gamma, beta, residual]: [Values; 4],
        keep: bool,
    ) -> (Values, Option<Saved>) {
        let residual = self.has_residual.then(|| contiguous(residual));
        let shape = x.shape().as_slice().to_vec();
        let point = self.points.x.as_ref();
        let (x, packed) = hold_both_ways(x, point, &[], keep);
        let [gamma, beta] = [gamma, beta].map(contiguous);
        let mut y = room(&shape);
        let mut bits = (keep && self.relu).then(|| vec![0u32; y.len().div_ceil(WORD)]);
        let after = batch_norm::After {
            residual: residual.as_ref().map(slice),
            relu: self.relu,
            bits: bits.as_deref_mut(),
        };
        let (x_values, scale, shift) = (x.values(), slice(&gamma), slice(&beta));
        let values = &*x_values;
        let (mean, rstd) = if let Some([mean, var]) = &self.averages {
            batch_norm::infer(values, [mean, var], scale, shift, self.epsilon, after, &mut y)
                .expect(CHECKED);
            (mean.clone(), Vec::new())
        } else {
            let (statistics, _) =
                batch_norm::forward(values, scale, shift, self.epsilon, after, &mut y)
                    .expect(CHECKED);
            let of = (statistics.mean.clone(), statistics.rstd.clone());
            *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = Some(statistics);
            of
        };
        if let Some(residual) = residual {
            done(residual);
        }
        drop(x_values);
        round(self.points.y.as_ref(), &mut y, &shape);
        if keep {
            let x = x.or_packed(packed);
            let saved = Saved { x, shape: shape.clone(), gamma, mean, rstd, bits };
            return (tensor(y, &shape), Some(saved));
        }
        x.done();
        (tensor(y, &shape), None)
    }

    fn backward(&self, dy: Values, saved: Saved, needs: [bool; 4]) -> [Option<Values>; 4] {
        let Saved { x, shape, gamma, mean, rstd, bits } = saved;
        assert!(
            self.averages.is_none(),
            "gradients are followed only where a batch has its own statistics"
        );
        let (mut dy, mut x) = (rounded(dy, self.points.dy.as_ref()), x.into_tensor(&shape));
        let channels = mean.len();
        let (mut dgamma, mut dbeta) = (room(&[channels]), room(&[channels]));
        let residual = self.has_residual && needs[3];
        let gradients = Gradients { dgamma: &mut dgamma, dbeta: &mut dbeta, residual };
        let gate = bits.as_deref().map_or(Gate::Open, Gate::Bits);
        let (dout, dx) = (values_mut(&mut dy), values_mut(&mut x));
        batch_norm::backward(dout, gate, dx, [&mean[..], &rstd], slice(&gamma), gradients)
            .expect(CHECKED);
        round(self.points.dx.as_ref(), dx, &shape);
        let dresidual = if residual {
            Some(dy)
        } else {
            done(dy);
            None
        };
        let [dgamma, dbeta] = [dgamma, dbeta].map(|d| Some(tensor(d, &[channels])));
        [Some(x), dgamma, dbeta, dresidual]
    }
}

/// Normalizes the channels of `x`, which stand on its last axis: by these averages (mean and variance), or by the batch's
/// own statistics, which are then given back, the variance without bias.
pub(crate) fn batch_norm(
    points: Points,
    x: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    residual: Option<Tensor<4>>,
    relu: bool,
    epsilon: f32,
    averages: Option<[Tensor<1>; 2]>,
) -> (Tensor<4>, Option<[Tensor<1>; 2]>) {
    let device = x.device().inner();
    let statistics = Arc::default();
    let norm = Norm {
        points,
        epsilon,
        relu,
        has_residual: residual.is_some(),
        averages: averages.map(|both| both.map(values_of)),
        statistics: Arc::clone(&statistics),
    };
    let beta = beta.into_dispatch();
    let residual = residual.map_or_else(|| beta.clone(), Tensor::into_dispatch);
    let y = apply(norm, [x.into_dispatch(), gamma.into_dispatch(), beta, residual]);
    let batch = statistics.lock().unwrap_or_else(PoisonError::into_inner).take();
    let batch = batch.map(|Statistics { count, mean, var, .. }| {
        let unbiased = count as f32 / count.saturating_sub(1).max(1) as f32;
        let var = var.into_iter().map(|v| v * unbiased).collect();
        [mean, var].map(|values: Vec<f32>| {
            let channels = values.len();
            Tensor::from_data(TensorData::new(values, [channels]), &device)
        })
    });
    (Tensor::from_dispatch(y), batch)
}
