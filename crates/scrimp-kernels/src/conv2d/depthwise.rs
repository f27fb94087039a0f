//! Convolutions whose groups have one channel: channels are lanes, and no product of matrices is left.

use rayon::prelude::*;

use super::Conv2dShape;
use crate::gemm::TASKS;
use crate::gemm::element::{BLOCK, Element, LONGEST_INT8, check_reduction};
use crate::gemm::pack::versions;
use crate::{KernelError, Kind, Level, Scale};

/// Whether every group has one channel in and one out.
pub(super) fn applies(shape: &Conv2dShape) -> bool {
    shape.window.groups > 1 && shape.group_in() == 1 && shape.group_out() == 1
}

/// What one position sees along an axis: an element of the kernel, and a pixel of the source.
#[derive(Clone, Copy)]
struct Seen {
    kernel: usize,
    at: usize,
}

/// For each position of the output along an axis, what it sees of the input.
fn seen_by_outputs(shape: &Conv2dShape, a: usize) -> Vec<Vec<Seen>> {
    let window = shape.window;
    let of = |out: usize| {
        let one = |kernel: usize| {
            let at = (out * window.stride[a] + kernel * window.dilation[a])
                .checked_sub(window.padding[a]);
            at.filter(|at| *at < shape.size[a]).map(|at| Seen { kernel, at })
        };
        (0..shape.kernel[a]).filter_map(one).collect()
    };
    (0..shape.out_size[a]).map(of).collect()
}

/// For each pixel of the input along an axis, by what of the output it is seen.
fn seen_by_inputs(shape: &Conv2dShape, a: usize) -> Vec<Vec<Seen>> {
    let mut all = vec![Vec::new(); shape.size[a]];
    for (at, seen) in seen_by_outputs(shape, a).into_iter().enumerate() {
        for one in seen {
            all[one.at].push(Seen { kernel: one.kernel, at });
        }
    }
    all
}

/// A pass that gathers: for each line and pixel of the target, what it sees of the source.
struct Gather<'a, T> {
    source: &'a [T],
    width: usize,
    channels: usize,
    /// `[taps, channels]`.
    weights: &'a [T],
    kernel_width: usize,
    down: &'a [Seen],
    across: &'a [Vec<Seen>],
    scale: Scale<'a>,
    bias: Option<&'a [f32]>,
}

versions! {
    /// One line of the target; `gather.source` is its image.
    fn gather_line<T: Element>(level, gather: &Gather<T>, out: &mut [f32]) {
        let _ = level;
        let channels = gather.channels;
        for (out, across) in out.chunks_exact_mut(channels).zip(gather.across) {
            for first in (0..channels).step_by(BLOCK) {
                let lanes = BLOCK.min(channels - first);
                let mut sums = [T::Sum::default(); BLOCK];
                for row in gather.down {
                    for column in across {
                        let at = (row.at * gather.width + column.at) * channels + first;
                        let tap = (row.kernel * gather.kernel_width + column.kernel) * channels + first;
                        accumulate(&mut sums, &gather.source[at..at + lanes], &gather.weights[tap..tap + lanes]);
                    }
                }
                for (l, sum) in sums.iter().enumerate().take(lanes) {
                    let scale = channel_scale(gather.scale, first + l);
                    let value = T::finish(*sum) * scale;
                    out[first + l] = gather.bias.map_or(value, |bias| value + bias[first + l]);
                }
            }
        }
    }
}

#[inline(always)]
fn accumulate<T: Element>(sums: &mut [T::Sum], a: &[T], b: &[T]) {
    if let (Some(sums), Some(a), Some(b)) =
        (sums.first_chunk_mut::<BLOCK>(), a.first_chunk::<BLOCK>(), b.first_chunk::<BLOCK>())
    {
        // A number of lanes that is known becomes vectors.
        for l in 0..BLOCK {
            sums[l] = T::multiply_add(sums[l], a[l], b[l]);
        }
    } else {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = T::multiply_add(*sum, *a, *b);
        }
    }
}

fn channel_scale(scale: Scale, channel: usize) -> f32 {
    match scale {
        Scale::Tensor(scale) => scale,
        Scale::Channel(scale) => scale[channel],
    }
}

/// `[channels, taps]` to `[taps, channels]`.
fn by_tap<T: Element>(w: &[T], taps: usize) -> Vec<T> {
    let channels = w.len() / taps;
    (0..w.len()).map(|i| w[i % channels * taps + i / channels]).collect()
}

pub(super) fn forward<T: Element>(
    x: &[T],
    w: &[T],
    level: Level,
    shape: &Conv2dShape,
    scale: Scale,
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<(), KernelError> {
    let seen = [0, 1].map(|a| seen_by_outputs(shape, a));
    gather(x, w, level, shape, (shape.size, shape.out_size), &seen, scale, bias, y)
}

pub(super) fn input_gradient<T: Element>(
    dy: &[T],
    w: &[T],
    level: Level,
    shape: &Conv2dShape,
    scale: Scale,
    dx: &mut [f32],
) -> Result<(), KernelError> {
    let seen = [0, 1].map(|a| seen_by_inputs(shape, a));
    gather(dy, w, level, shape, (shape.out_size, shape.size), &seen, scale, None, dx)
}

#[expect(clippy::too_many_arguments, reason = "it is both passes in one")]
fn gather<T: Element>(
    source: &[T],
    w: &[T],
    level: Level,
    shape: &Conv2dShape,
    (from, to): ([usize; 2], [usize; 2]),
    seen: &[Vec<Vec<Seen>>; 2],
    scale: Scale,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let taps = shape.kernel[0] * shape.kernel[1];
    check_reduction::<T>(taps)?;
    let channels = shape.in_channels;
    let weights = by_tap(w, taps);
    let [down, across] = seen;
    let image = from[0] * from[1] * channels;
    out.par_chunks_exact_mut(to[1] * channels).enumerate().for_each(|(line, out)| {
        let line_of_image = Gather {
            source: &source[line / to[0] * image..][..image],
            width: from[1],
            channels,
            weights: &weights,
            kernel_width: shape.kernel[1],
            down: &down[line % to[0]],
            across,
            scale,
            bias,
        };
        gather_line(level, &line_of_image, out);
    });
    Ok(())
}

versions! {
    /// Adds the products of one image to sums `[taps, channels]`.
    fn add_image<T: Element>(
        level,
        shape: &Conv2dShape,
        seen: &[Vec<Vec<Seen>>; 2],
        x: &[T],
        dy: &[T],
        sums: &mut [T::Sum],
    ) {
        let _ = level;
        let channels = shape.in_channels;
        for (i, down) in seen[0].iter().enumerate() {
            for (j, across) in seen[1].iter().enumerate() {
                let dy = &dy[(i * shape.out_size[1] + j) * channels..][..channels];
                for row in down {
                    for column in across {
                        let x = &x[(row.at * shape.size[1] + column.at) * channels..][..channels];
                        let tap = row.kernel * shape.kernel[1] + column.kernel;
                        let sums = &mut sums[tap * channels..][..channels];
                        for first in (0..channels).step_by(BLOCK) {
                            let end = channels.min(first + BLOCK);
                            accumulate(&mut sums[first..end], &x[first..end], &dy[first..end]);
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn weight_gradient<T: Element>(
    x: &[T],
    dy: &[T],
    level: Level,
    shape: &Conv2dShape,
    scale: Scale,
    dw: &mut [f32],
) -> Result<(), KernelError> {
    let positions = shape.out_size[0] * shape.out_size[1];
    check_reduction::<T>(positions)?;
    let channels = shape.in_channels;
    let taps = shape.kernel[0] * shape.kernel[1];
    let image = shape.size[0] * shape.size[1] * channels;
    let seen = [0, 1].map(|a| seen_by_outputs(shape, a));
    // Images whose sums fit 32 bits, in about as many parts as tasks.
    let most = if T::KIND == Kind::Int8 { LONGEST_INT8 / positions } else { usize::MAX };
    let images = shape.batch.div_ceil(TASKS).clamp(1, most);
    let parts: Vec<Vec<T::Sum>> = x
        .par_chunks(image * images)
        .zip(dy.par_chunks(positions * channels * images))
        .map(|(x, dy)| {
            let mut sums = vec![T::Sum::default(); taps * channels];
            let images = x.chunks_exact(image).zip(dy.chunks_exact(positions * channels));
            images.for_each(|(x, dy)| add_image(level, shape, &seen, x, dy, &mut sums));
            sums
        })
        .collect();
    for (i, dw) in dw.iter_mut().enumerate() {
        let (channel, tap) = (i / taps, i % taps);
        let each = parts.iter().map(|sums| sums[tap * channels + channel]);
        *dw = T::finish_all(each) * channel_scale(scale, channel);
    }
    Ok(())
}
