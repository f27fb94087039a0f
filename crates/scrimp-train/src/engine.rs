//! The engine's side of a tap: one op with its own backward pass, and raw slices of tensors.
//!
//! What depends on how Burn dispatches to a backend stands here and in `ops/mod.rs`.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Device, Tensor, TensorData};

use crate::tap::Point;

/// What an op does to the values that pass it.
pub(crate) type PointRef = Arc<Point>;

/// The devices that this build can train on.
pub static DEVICES: &[&str] = &["flex"];

/// A device name that this build does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown device `{name}`; this build has {}", DEVICES.join(", "))]
pub struct UnknownDevice {
    /// The name asked for.
    pub name: String,
}

/// The device with this name; `flex` is Burn's CPU backend.
///
/// # Errors
/// If this build has no such device.
pub fn device(name: &str) -> Result<Device, UnknownDevice> {
    match name {
        "flex" => Ok(Device::flex()),
        _ => Err(UnknownDevice { name: name.to_owned() }),
    }
}

/// The CPU, without gradients: for what needs no other device.
pub(crate) fn plain_device() -> Device {
    Device::flex()
}

/// Ops that the engine lacks.
#[backend_extension(Autodiff, Flex)]
pub(crate) trait TapOps: Backend {
    /// Applies `forward` to what passes, and `backward` to the gradient on its way back.
    fn tap(
        x: FloatTensor<Self>,
        forward: Option<PointRef>,
        backward: Option<PointRef>,
    ) -> FloatTensor<Self>;
}

impl TapOps for Flex {
    fn tap(
        mut x: FloatTensor<Self>,
        forward: Option<PointRef>,
        _backward: Option<PointRef>,
    ) -> FloatTensor<Self> {
        let Some(point) = forward else { return x };
        if !(x.is_contiguous() && x.layout().start_offset() == 0) {
            x = x.to_contiguous();
        }
        let shape = x.shape();
        let count = shape.num_elements();
        // In place when the buffer is ours alone; the engine copies it when it is shared.
        let values: &mut [f32] = x.storage_mut::<f32>();
        point.apply(&mut values[..count], shape.as_slice());
        x
    }
}

impl<B: TapOps, C: CheckpointStrategy> TapOps for Autodiff<B, C> {
    fn tap(
        x: FloatTensor<Self>,
        forward: Option<PointRef>,
        backward: Option<PointRef>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct TapBackward;

        impl<B: TapOps> Backward<B, 1> for TapBackward {
            type State = Option<PointRef>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let point = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |g| B::tap(g, point, None));
            }
        }

        let (inner, guard) = x.into_parts();
        match TapBackward.prepare::<C>([guard]).compute_bound().stateful() {
            OpsKind::Tracked(op) => op.finish(backward, B::tap(inner, forward, None)),
            OpsKind::UnTracked(op) => op.finish(B::tap(inner, forward, None)),
        }
    }
}

/// Passes a tensor through the points; without any it is the same tensor.
pub(crate) fn pass<const D: usize>(
    x: Tensor<D>,
    forward: Option<PointRef>,
    backward: Option<PointRef>,
) -> Tensor<D> {
    if forward.is_none() && backward.is_none() {
        return x;
    }
    Tensor::from_dispatch(Dispatch::tap(x.into_dispatch(), forward, backward))
}

/// Lets `change` work on the values of a tensor that does not track gradients, row-major, in place where the device's
/// memory allows it.
pub(crate) fn map_values<const D: usize>(
    x: Tensor<D>,
    change: impl FnOnce(&mut [f32]),
) -> Tensor<D> {
    let device = x.device();
    if let Ok(mut p) = x.clone().try_into_primitive::<Flex>() {
        // The second handle would make the storage shared, and `storage_mut` copy it.
        drop(x);
        if !(p.is_contiguous() && p.layout().start_offset() == 0) {
            p = p.to_contiguous();
        }
        let count = p.shape().num_elements();
        change(&mut p.storage_mut::<f32>()[..count]);
        return Tensor::from_primitive::<Flex>(p);
    }
    let shape = x.shape();
    let mut values = values_of(x);
    change(&mut values);
    Tensor::from_data(TensorData::new(values, shape), &device)
}

/// Lets `look` see the values of a tensor that does not track gradients, row-major, without a copy where the device's
/// memory allows it.
pub(crate) fn with_values<const D: usize, R>(x: Tensor<D>, look: impl FnOnce(&[f32]) -> R) -> R {
    match x.clone().try_into_primitive::<Flex>() {
        Ok(p) if p.is_contiguous() && p.layout().start_offset() == 0 => {
            look(&p.storage::<f32>()[..p.shape().num_elements()])
        }
        _ => look(&values_of(x)),
    }
}

/// The values of a tensor, row-major.
pub(crate) fn values_of<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    let data = x.into_data();
    data.try_to_vec::<f32>().unwrap_or_else(|_| data.iter::<f32>().collect())
}
