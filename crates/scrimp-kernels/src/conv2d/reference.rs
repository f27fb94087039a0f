//! The definition of convolution, as nested loops.
#![cfg_attr(not(test), expect(dead_code, reason = "it is what the tests compare with"))]

use super::Conv2dShape;
use crate::gemm::element::Element;

/// Calls `each` with the places in `x`, `w` and `y` of every product. What is outside the image is left out.
fn products(shape: &Conv2dShape, mut each: impl FnMut(usize, usize, usize)) {
    let [batch, height, width, channels] = shape.input();
    let [out_channels, per_group, kernel_height, kernel_width] = shape.weight();
    let [_, out_height, out_width, _] = shape.output();
    let window = shape.window();
    let inside = |out: usize, k: usize, axis: usize, size: usize| {
        let at = out * window.stride[axis] + k * window.dilation[axis];
        at.checked_sub(window.padding[axis]).filter(|at| *at < size)
    };
    for n in 0..batch {
        for i in 0..out_height {
            for j in 0..out_width {
                for o in 0..out_channels {
                    let first = o / (out_channels / window.groups) * per_group;
                    for c in 0..per_group {
                        for kh in 0..kernel_height {
                            let Some(row) = inside(i, kh, 0, height) else { continue };
                            for kw in 0..kernel_width {
                                let Some(column) = inside(j, kw, 1, width) else { continue };
                                let x =
                                    ((n * height + row) * width + column) * channels + first + c;
                                let w =
                                    ((o * per_group + c) * kernel_height + kh) * kernel_width + kw;
                                let y = ((n * out_height + i) * out_width + j) * out_channels + o;
                                each(x, w, y);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Sums of the forward pass, before scale and bias; beside each the sum of magnitudes, which bounds the error of others.
pub(super) fn forward<T: Element>(x: &[T], w: &[T], shape: &Conv2dShape) -> Vec<[f64; 2]> {
    let mut sums = vec![[0.0; 2]; shape.output().iter().product()];
    products(shape, |i, j, k| add(&mut sums[k], x[i].value() * w[j].value()));
    sums
}

/// Sums of the gradient of the input.
pub(super) fn input_gradient<T: Element>(dy: &[T], w: &[T], shape: &Conv2dShape) -> Vec<[f64; 2]> {
    let mut sums = vec![[0.0; 2]; shape.input().iter().product()];
    products(shape, |i, j, k| add(&mut sums[i], dy[k].value() * w[j].value()));
    sums
}

/// Sums of the gradient of the weight.
pub(super) fn weight_gradient<T: Element>(x: &[T], dy: &[T], shape: &Conv2dShape) -> Vec<[f64; 2]> {
    let mut sums = vec![[0.0; 2]; shape.weight().iter().product()];
    products(shape, |i, j, k| add(&mut sums[j], x[i].value() * dy[k].value()));
    sums
}

fn add(sum: &mut [f64; 2], product: f64) {
    sum[0] += product;
    sum[1] += product.abs();
}
