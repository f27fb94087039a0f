//! The channels of several images as those of one.

use burn::tensor::Tensor;
use scrimp_kernels::concat;

use super::{Function, INPUTS, Values, apply, contiguous, done, room, slice, tensor};

const CHECKED: &str = "images are of one size, and buffers have the shapes of their tensors";

#[derive(Debug)]
struct Concat {
    /// `[batch, height, width]`
    size: [usize; 3],
    /// Channels of each image.
    channels: Vec<usize>,
}

impl Concat {
    fn shape(&self, channels: usize) -> [usize; 4] {
        let [batch, height, width] = self.size;
        [batch, height, width, channels]
    }
}

impl Function<INPUTS> for Concat {
    type Saved = ();

    fn inputs(&self) -> usize {
        self.channels.len()
    }

    fn forward(&self, images: [Values; INPUTS], _keep: bool) -> (Values, Option<()>) {
        let images: Vec<Values> =
            images.into_iter().take(self.channels.len()).map(contiguous).collect();
        let parts: Vec<_> = images.iter().map(slice).zip(self.channels.iter().copied()).collect();
        let shape = self.shape(self.channels.iter().sum());
        let mut y = room(&shape);
        concat::concat(&parts, &mut y).expect(CHECKED);
        images.into_iter().for_each(done);
        (tensor(y, &shape), Some(()))
    }

    fn backward(&self, dy: Values, (): (), needs: [bool; INPUTS]) -> [Option<Values>; INPUTS] {
        let dy = contiguous(dy);
        let all = self.channels.iter().sum();
        let mut from = 0;
        let gradients = std::array::from_fn(|i| {
            let channels = *self.channels.get(i)?;
            let range = from..from + channels;
            from = range.end;
            needs[i].then(|| {
                let shape = self.shape(channels);
                let mut dx = room(&shape);
                concat::columns(slice(&dy), all, range, &mut dx).expect(CHECKED);
                tensor(dx, &shape)
            })
        });
        done(dy);
        gradients
    }
}

/// Channels stand on the last axis.
pub(crate) fn concat(images: Vec<Tensor<4>>) -> Tensor<4> {
    assert!((1..=INPUTS).contains(&images.len()), "between 1 and {INPUTS} images");
    let [batch, height, width, _] = images[0].dims();
    let channels = images.iter().map(|image| image.dims()[3]).collect();
    let function = Concat { size: [batch, height, width], channels };
    let mut images = images.into_iter().map(Tensor::into_dispatch);
    let first = images.next().expect("there is one");
    let stand_in = first.clone();
    let mut images = std::iter::once(first).chain(images);
    let images = std::array::from_fn(|_| images.next().unwrap_or_else(|| stand_in.clone()));
    Tensor::from_dispatch(apply(function, images))
}
