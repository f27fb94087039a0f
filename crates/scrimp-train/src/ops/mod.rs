//! The engine's ops of our own, whose arithmetic is that of [`scrimp_kernels`].
//!
//! An op is a [`Function`] of one to four tensors with its own backward pass. How Burn dispatches to a backend, and how
//! its autodiff is told of an op, stands here once for all of them.

mod add;
mod batch_norm;
mod buffers;
mod concat;
mod held;
mod loss;
mod pool;
mod product;
mod text;

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, DispatchTensor, Flex, TensorMetadata, backend_extension,
};
use burn::tensor::TensorData;

pub(crate) use add::add;
pub(crate) use batch_norm::batch_norm;
pub(crate) use buffers::save_memory;
use buffers::{done, room};
pub(crate) use concat::concat;
pub(crate) use held::Points;
pub(crate) use loss::cross_entropy;
pub(crate) use pool::{average_pool, global_average, max_pool, relu};
pub(crate) use product::{Geometry, Product, product};
pub(crate) use text::{attention, embed, gelu, layer_norm};

/// A tensor of the CPU backend.
pub(crate) type Values = FloatTensor<Flex>;

/// An op of `N` tensors, with its gradients.
pub(crate) trait Function<const N: usize>: Debug + Send + Sync + 'static {
    /// What the way back needs.
    type Saved: Debug + Send;

    /// The result; with `keep` also what the way back needs, which is held until then.
    fn forward(&self, inputs: [Values; N], keep: bool) -> (Values, Option<Self::Saved>);

    /// How many inputs count; those after them stand for tensors that are not there.
    fn inputs(&self) -> usize {
        N
    }

    /// The gradients of the inputs that need one.
    fn backward(&self, dy: Values, saved: Self::Saved, needs: [bool; N]) -> [Option<Values>; N];
}

/// The most inputs of an op.
const INPUTS: usize = 4;

/// A function in one place of a computation, without its type.
trait Call: Debug + Send + Sync {
    fn forward(&self, inputs: [Values; INPUTS], keep: bool) -> Values;
    fn backward(&self, dy: Values, needs: [bool; INPUTS]) -> [Values; INPUTS];
    /// How many inputs count; the others stand for nothing.
    fn inputs(&self) -> usize;
}

type CallRef = Arc<dyn Call>;

#[derive(Debug)]
struct Placed<F: Function<N>, const N: usize> {
    function: F,
    saved: Mutex<Option<F::Saved>>,
}

impl<F: Function<N>, const N: usize> Call for Placed<F, N> {
    fn forward(&self, inputs: [Values; INPUTS], keep: bool) -> Values {
        let mut inputs = inputs.into_iter();
        // What stands for nothing is given back before the function runs: it may be a second handle of an input, which
        // would make the engine copy it.
        let own = std::array::from_fn(|_| inputs.next().expect("there are at most four inputs"));
        inputs.for_each(drop);
        let (y, saved) = self.function.forward(own, keep);
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = saved;
        y
    }

    fn backward(&self, dy: Values, needs: [bool; INPUTS]) -> [Values; INPUTS] {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let saved = saved.expect("a forward pass comes before its one backward pass");
        let needs = std::array::from_fn(|i| needs[i]);
        let mut gradients = self.function.backward(dy, saved, needs).into_iter();
        std::array::from_fn(|_| gradients.next().flatten().unwrap_or_else(nothing))
    }

    fn inputs(&self) -> usize {
        self.function.inputs()
    }
}

/// Ops of our own.
#[backend_extension(Autodiff, Flex)]
trait FunctionOps: Backend {
    fn call(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        call: CallRef,
        keep: bool,
    ) -> FloatTensor<Self>;

    /// The gradients of the inputs; those that are not needed are empty.
    fn call_backward(
        dy: FloatTensor<Self>,
        call: CallRef,
        needs: [bool; INPUTS],
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl FunctionOps for Flex {
    fn call(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        call: CallRef,
        keep: bool,
    ) -> FloatTensor<Self> {
        call.forward([a, b, c, d], keep)
    }

    fn call_backward(
        dy: FloatTensor<Self>,
        call: CallRef,
        needs: [bool; INPUTS],
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        call.backward(dy, needs).into()
    }
}

impl<B: FunctionOps, C: CheckpointStrategy> FunctionOps for Autodiff<B, C> {
    fn call(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        call: CallRef,
        _keep: bool,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct CallBackward;

        impl<B: FunctionOps> Backward<B, INPUTS> for CallBackward {
            type State = CallRef;

            fn backward(
                self,
                ops: Ops<Self::State, INPUTS>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let call = ops.state;
                let dy = grads.consume::<B>(&ops.node);
                let count = call.inputs();
                let needs = std::array::from_fn(|i| i < count && ops.parents[i].is_some());
                let (a, b, c, d) = B::call_backward(dy, call, needs);
                for ((parent, gradient), needed) in
                    ops.parents.into_iter().zip([a, b, c, d]).zip(needs)
                {
                    if let Some(parent) = parent.filter(|_| needed) {
                        grads.register::<B>(parent.id, gradient);
                    }
                }
            }
        }

        let ((a, a_guard), (b, b_guard)) = (a.into_parts(), b.into_parts());
        let ((c, c_guard), (d, d_guard)) = (c.into_parts(), d.into_parts());
        let guards = [a_guard, b_guard, c_guard, d_guard];
        match CallBackward.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(op) => {
                let y = B::call(a, b, c, d, Arc::clone(&call), true);
                op.finish(call, y)
            }
            OpsKind::UnTracked(op) => op.finish(B::call(a, b, c, d, call, false)),
        }
    }

    fn call_backward(
        _dy: FloatTensor<Self>,
        _call: CallRef,
        _needs: [bool; INPUTS],
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("a gradient is not differentiated again")
    }
}

/// The result of a function of tensors.
fn apply<F: Function<N>, const N: usize>(
    function: F,
    inputs: [DispatchTensor; N],
) -> DispatchTensor {
    let call = Arc::new(Placed { function, saved: Mutex::new(None) });
    let spare = inputs[N - 1].clone();
    let mut inputs = inputs.into_iter();
    let [a, b, c, d] = std::array::from_fn(|_| inputs.next().unwrap_or_else(|| spare.clone()));
    drop(spare);
    Dispatch::call(a, b, c, d, call, false)
}

/// Row-major values of a tensor, from the start of its storage.
fn contiguous(x: Values) -> Values {
    if x.is_contiguous() && x.layout().start_offset() == 0 { x } else { x.to_contiguous() }
}

/// The values of a contiguous tensor.
fn slice(x: &Values) -> &[f32] {
    &x.storage::<f32>()[..x.shape().num_elements()]
}

/// The values of a contiguous tensor, to be changed: in place when the buffer is ours alone; the engine copies it when it
/// is shared.
fn values_mut(x: &mut Values) -> &mut [f32] {
    let count = x.shape().num_elements();
    &mut x.storage_mut::<f32>()[..count]
}

/// A tensor of these values.
fn tensor(values: Vec<f32>, shape: &[usize]) -> Values {
    Values::from_data(TensorData::new(values, shape.to_vec()))
}

/// What stands for a tensor that is not needed.
fn nothing() -> Values {
    tensor(Vec::new(), &[0])
}
