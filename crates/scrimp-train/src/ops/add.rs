//! Sums of tensors.

use burn::backend::TensorMetadata;
use burn::tensor::Tensor;
use scrimp_kernels::{Operand, Scale, column_sums};

use super::{Function, Values, apply, contiguous, slice, tensor};

const CHECKED: &str = "the second tensor is as large as the first, or one row of it";

#[derive(Debug)]
struct Add;

impl Function<2> for Add {
    /// The shape of the second tensor.
    type Saved = Vec<usize>;

    fn forward(&self, [x, added]: [Values; 2], keep: bool) -> (Values, Option<Vec<usize>>) {
        let (x, added) = (contiguous(x), contiguous(added));
        let (same, shape) = (x.shape() == added.shape(), added.shape().as_slice().to_vec());
        // Into the one that nobody else holds, if there is one.
        let (mut x, added) = if same && !x.is_unique() { (added, x) } else { (x, added) };
        let count = x.shape().num_elements();
        scrimp_kernels::add(&mut x.storage_mut::<f32>()[..count], slice(&added)).expect(CHECKED);
        (x, keep.then_some(shape))
    }

    fn backward(&self, dy: Values, shape: Vec<usize>, needs: [bool; 2]) -> [Option<Values>; 2] {
        let added = needs[1].then(|| {
            if dy.shape().as_slice() == shape {
                return dy.clone();
            }
            let dy = contiguous(dy.clone());
            let len = shape.iter().product();
            let sums = column_sums(Operand::F32(slice(&dy)), len, Scale::Tensor(1.0));
            tensor(sums.expect(CHECKED), &shape)
        });
        [needs[0].then_some(dy), added]
    }
}

/// `x + added`, where `added` has the shape of `x`, or that with a first axis of 1, along which it is repeated.
pub(crate) fn add<const D: usize>(x: Tensor<D>, added: Tensor<D>) -> Tensor<D> {
    debug_assert_eq!(x.dims()[1..], added.dims()[1..], "{CHECKED}");
    Tensor::from_dispatch(apply(Add, [x.into_dispatch(), added.into_dispatch()]))
}
