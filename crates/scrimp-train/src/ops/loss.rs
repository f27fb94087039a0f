//! The loss, with its gradient from the same pass.

use burn::backend::TensorMetadata;
use burn::tensor::Tensor;
use scrimp_kernels::{optim, softmax};

use super::{Function, Values, apply, contiguous, room, slice, tensor};

const CHECKED: &str = "there is a label for each row, and each is a class";

#[derive(Debug)]
struct CrossEntropy {
    labels: Vec<u8>,
    smoothing: f32,
}

impl Function<1> for CrossEntropy {
    /// The gradient of the logits.
    type Saved = Values;

    fn forward(&self, [logits]: [Values; 1], keep: bool) -> (Values, Option<Values>) {
        let logits = contiguous(logits);
        let shape = logits.shape().as_slice().to_vec();
        let mut gradient = keep.then(|| room(&shape));
        let (labels, smoothing) = (&self.labels[..], self.smoothing);
        let loss = softmax::cross_entropy(
            slice(&logits),
            shape[1],
            labels,
            smoothing,
            gradient.as_deref_mut(),
        )
        .expect(CHECKED);
        (tensor(vec![loss], &[1]), gradient.map(|gradient| tensor(gradient, &shape)))
    }

    fn backward(&self, dy: Values, mut gradient: Values, _: [bool; 1]) -> [Option<Values>; 1] {
        let (factor, count) = (slice(&dy)[0], gradient.shape().num_elements());
        // The loss itself is usually what is differentiated.
        if factor.to_bits() != 1.0_f32.to_bits() {
            optim::scale(&mut gradient.storage_mut::<f32>()[..count], factor);
        }
        [Some(gradient)]
    }
}

/// The mean over rows of the cross entropy, `[1]`.
pub(crate) fn cross_entropy(logits: Tensor<2>, labels: &[u8], smoothing: f32) -> Tensor<1> {
    let function = CrossEntropy { labels: labels.to_vec(), smoothing };
    Tensor::from_dispatch(apply(function, [logits.into_dispatch()]))
}
