//! Maxima and means over windows of an image.
//!
//! Images are `[batch, height, width, channels]`. A window that reaches into the padding sees minus infinity there, or
//! zero if means count the padding. The order of elements in a window is row by row.

use crate::KernelError;
use crate::blocks::{BLOCK, check, check_len, map};
use crate::dispatch::versions;

/// Height and width of a window, of its steps, and of the padding on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// How high and wide the window is.
    pub kernel: [usize; 2],
    /// From one window to the next.
    pub stride: [usize; 2],
    /// On each side of the image; at most half the kernel, so that every window sees a pixel.
    pub padding: [usize; 2],
}

impl Window {
    /// Windows that lie beside each other.
    pub fn beside(kernel: [usize; 2]) -> Self {
        Self { kernel, stride: kernel, padding: [0; 2] }
    }

    /// The shape of the output, of which the last windows that do not fit are no part.
    ///
    /// # Errors
    /// If a kernel or stride is 0, a padding is above half the kernel, the image is smaller than a window, or any of them,
    /// with its padding, is longer than 2^30.
    pub fn output(&self, shape: [usize; 4]) -> Result<[usize; 4], KernelError> {
        let Self { kernel, stride, padding } = *self;
        let mut out = shape;
        for side in 0..2 {
            let (k, s, p) = (kernel[side], stride[side], padding[side]);
            check(k > 0 && s > 0, "window", || format!("{self:?} has a kernel or stride of 0"))?;
            check(p <= k / 2, "padding", || {
                format!("{p} is above half the kernel, which is {}", k / 2)
            })?;
            check([k, s, shape[1 + side]].iter().all(|len| *len <= LIMIT), "window", || {
                format!("{self:?} or a side of {} is longer than {LIMIT}", shape[1 + side])
            })?;
            let len = shape[1 + side] + 2 * p;
            check(len >= k, "window", || {
                format!("a kernel of {k} is above the padded side, {len}")
            })?;
            out[1 + side] = (len - k) / s + 1;
        }
        Ok(out)
    }
}

/// Sides are at most this long, so that products of two do not overflow.
const LIMIT: usize = 1 << 30;

/// The largest value of each window, and its place in the window, which is all that a backward pass needs.
///
/// Of equal values the first is taken; NaN is above all, and the last NaN is taken, as in PyTorch.
///
/// # Errors
/// As [`Window::output`]; if the window has more than 255 elements, or a slice has not its shape.
pub fn max_pool2d(
    x: &[f32],
    shape: [usize; 4],
    window: Window,
    out: &mut [f32],
    taps: &mut [u8],
) -> Result<(), KernelError> {
    max_pool(x, shape, window, out, taps, max_block::<false>)
}

/// [`max_pool2d`] of `max(x, 0)`. The place is 255 where no value is above zero, so that [`max_pool2d_backward`] is the
/// backward pass of this too.
///
/// # Errors
/// As [`max_pool2d`].
pub fn relu_max_pool2d(
    x: &[f32],
    shape: [usize; 4],
    window: Window,
    out: &mut [f32],
    taps: &mut [u8],
) -> Result<(), KernelError> {
    max_pool(x, shape, window, out, taps, max_block::<true>)
}

/// The gradient of the input, to `dx`, from that of the output and the places.
///
/// # Errors
/// As [`max_pool2d`].
pub fn max_pool2d_backward(
    dout: &[f32],
    taps: &[u8],
    shape: [usize; 4],
    window: Window,
    dx: &mut [f32],
) -> Result<(), KernelError> {
    let geometry = Geometry::new(shape, window)?;
    check_taps(window)?;
    check_len("gradient of the output", &geometry.out, dout.len())?;
    check_len("places", &geometry.out, taps.len())?;
    check_len("gradient of the input", &shape, dx.len())?;
    in_rows(dx, geometry.in_row(), |first, dx| max_back_block(dout, taps, geometry, first, dx));
    Ok(())
}

/// The mean of each window. `count_padding`: whether zeros of the padding count, as is the default of PyTorch.
///
/// # Errors
/// As [`Window::output`]; if a slice has not its shape.
pub fn avg_pool2d(
    x: &[f32],
    shape: [usize; 4],
    window: Window,
    count_padding: bool,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let geometry = Geometry::new(shape, window)?;
    check_len("input", &shape, x.len())?;
    check_len("output", &geometry.out, out.len())?;
    in_rows(out, geometry.out_row(), |first, out| {
        avg_block(x, geometry, count_padding, first, out);
    });
    Ok(())
}

/// The gradient of the input of [`avg_pool2d`], to `dx`.
///
/// # Errors
/// As [`avg_pool2d`].
pub fn avg_pool2d_backward(
    dout: &[f32],
    shape: [usize; 4],
    window: Window,
    count_padding: bool,
    dx: &mut [f32],
) -> Result<(), KernelError> {
    let geometry = Geometry::new(shape, window)?;
    check_len("gradient of the output", &geometry.out, dout.len())?;
    check_len("gradient of the input", &shape, dx.len())?;
    in_rows(dx, geometry.in_row(), |first, dx| {
        avg_back_block(dout, geometry, count_padding, first, dx);
    });
    Ok(())
}

/// The mean of each channel of each image, `[batch, channels]`.
///
/// # Errors
/// If images have no pixels, or a slice has not its shape.
pub fn global_avg_pool(x: &[f32], shape: [usize; 4], out: &mut [f32]) -> Result<(), KernelError> {
    let [batch, height, width, channels] = shape;
    check_pixels(height, width)?;
    check_len("input", &shape, x.len())?;
    check_len("output", &[batch, channels], out.len())?;
    if out.is_empty() {
        return Ok(());
    }
    let image = height * width * channels;
    let images = (BLOCK / image).max(1);
    let items = out.chunks_mut(images * channels).zip(x.chunks(images * image));
    map(items, |(out, x)| {
        for (out, x) in out.chunks_exact_mut(channels).zip(x.chunks_exact(image)) {
            mean_of_rows(x, out);
        }
    });
    Ok(())
}

/// The gradient of the input of [`global_avg_pool`], to `dx`.
///
/// # Errors
/// As [`global_avg_pool`].
pub fn global_avg_pool_backward(
    dout: &[f32],
    shape: [usize; 4],
    dx: &mut [f32],
) -> Result<(), KernelError> {
    let [batch, height, width, channels] = shape;
    check_pixels(height, width)?;
    check_len("gradient of the output", &[batch, channels], dout.len())?;
    check_len("gradient of the input", &shape, dx.len())?;
    if dx.is_empty() {
        return Ok(());
    }
    let image = height * width * channels;
    let images = (BLOCK / image).max(1);
    let items = dx.chunks_mut(images * image).zip(dout.chunks(images * channels));
    map(items, |(dx, dout)| {
        for (dx, dout) in dx.chunks_exact_mut(image).zip(dout.chunks_exact(channels)) {
            spread(dout, (height * width) as f32, dx);
        }
    });
    Ok(())
}

/// The place that stands for none.
const NONE: u8 = u8::MAX;

fn check_taps(window: Window) -> Result<(), KernelError> {
    let [height, width] = window.kernel;
    check(height.saturating_mul(width) <= usize::from(NONE), "window", || {
        format!("{height} x {width} elements are above 255, the most that a byte can tell apart")
    })
}

fn check_pixels(height: usize, width: usize) -> Result<(), KernelError> {
    check(height > 0 && width > 0, "image", || {
        format!("{height} x {width} has no pixels, and a mean needs one")
    })
}

type MaxBlock = fn(&[f32], Geometry, usize, &mut [f32], &mut [u8]);

fn max_pool(
    x: &[f32],
    shape: [usize; 4],
    window: Window,
    out: &mut [f32],
    taps: &mut [u8],
    block: MaxBlock,
) -> Result<(), KernelError> {
    let geometry = Geometry::new(shape, window)?;
    check_taps(window)?;
    check_len("input", &shape, x.len())?;
    check_len("output", &geometry.out, out.len())?;
    check_len("places", &geometry.out, taps.len())?;
    let row = geometry.out_row();
    if out.is_empty() {
        return Ok(());
    }
    let rows = (BLOCK / row).max(1);
    let items = out.chunks_mut(rows * row).zip(taps.chunks_mut(rows * row)).enumerate();
    map(items, |(i, (out, taps))| block(x, geometry, i * rows, out, taps));
    Ok(())
}

/// Gives blocks of rows, with the number of their first row, to the work.
fn in_rows(out: &mut [f32], row: usize, work: impl Fn(usize, &mut [f32]) + Sync + Send) {
    if out.is_empty() {
        return;
    }
    let rows = (BLOCK / row).max(1);
    map(out.chunks_mut(rows * row).enumerate(), |(i, out)| work(i * rows, out));
}

#[derive(Clone, Copy)]
struct Geometry {
    shape: [usize; 4],
    out: [usize; 4],
    window: Window,
}

impl Geometry {
    fn new(shape: [usize; 4], window: Window) -> Result<Self, KernelError> {
        Ok(Self { shape, out: window.output(shape)?, window })
    }

    fn in_row(&self) -> usize {
        self.shape[2].saturating_mul(self.shape[3])
    }

    fn out_row(&self) -> usize {
        self.out[2].saturating_mul(self.out[3])
    }

    /// The windows of a row that have a pixel under column `tap`, and the pixel of the first of them.
    #[inline(always)]
    fn columns(&self, tap: usize) -> (std::ops::Range<usize>, usize) {
        let (stride, padding) = (self.window.stride[1], self.window.padding[1]);
        let first = padding.saturating_sub(tap).div_ceil(stride);
        let last = (self.shape[2] + padding)
            .checked_sub(tap + 1)
            .map_or(0, |room| (room / stride + 1).min(self.out[2]));
        (first..last.max(first), first * stride + tap - padding.min(first * stride + tap))
    }

    /// The rows of a window that are in the image, and the image's row under the first of them.
    #[inline(always)]
    fn rows(&self, window: usize) -> (std::ops::Range<usize>, usize) {
        let (top, padding) = (window * self.window.stride[0], self.window.padding[0]);
        let first = padding.saturating_sub(top);
        let last = self.window.kernel[0].min(self.shape[1] + padding - top);
        (first..last, top + first - padding)
    }

    /// The windows, and their rows, that see a row of the image.
    #[inline(always)]
    fn windows(&self, row: usize) -> impl Iterator<Item = (usize, usize)> {
        let (kernel, stride) = (self.window.kernel[0], self.window.stride[0]);
        let row = row + self.window.padding[0];
        let first = (row + 1).saturating_sub(kernel).div_ceil(stride);
        let last = (row / stride + 1).min(self.out[1]);
        (first..last).map(move |window| (window, row - window * stride))
    }

    /// By what the sum of a window is divided.
    #[inline(always)]
    fn divisor(&self, rows: usize, column: usize, count_padding: bool) -> f32 {
        let [height, width] = self.window.kernel;
        if count_padding {
            return (height * width) as f32;
        }
        let (left, padding) = (column * self.window.stride[1], self.window.padding[1]);
        let columns = width.min(self.shape[2] + padding - left) - padding.saturating_sub(left);
        (rows * columns) as f32
    }
}

versions! {
    fn max_block<const RELU: bool>(
        x: &[f32],
        geometry: Geometry,
        first_row: usize,
        out: &mut [f32],
        taps: &mut [u8],
    ) {
        let (c, row, in_row) = (geometry.shape[3], geometry.out_row(), geometry.in_row());
        let [width, stride] = [geometry.window.kernel[1], geometry.window.stride[1]];
        for (i, (out, taps)) in out.chunks_exact_mut(row).zip(taps.chunks_exact_mut(row)).enumerate() {
            let (image, window) = ((first_row + i) / geometry.out[1], (first_row + i) % geometry.out[1]);
            let (rows, top) = geometry.rows(window);
            if RELU {
                out.fill(0.0);
                taps.fill(NONE);
            } else {
                out.fill(f32::NEG_INFINITY);
                // The first of a window, if nothing is above minus infinity.
                for (column, taps) in taps.chunks_exact_mut(c).enumerate() {
                    let left = geometry.window.padding[1].saturating_sub(column * stride);
                    taps.fill(byte(rows.start * width + left));
                }
            }
            for (tap_row, y) in rows.zip(top..) {
                let x = &x[(image * geometry.shape[1] + y) * in_row..][..in_row];
                for tap_column in 0..width {
                    let tap = byte(tap_row * width + tap_column);
                    let (columns, left) = geometry.columns(tap_column);
                    if columns.is_empty() {
                        continue;
                    }
                    let pixels = x[left * c..].chunks(stride * c);
                    let columns = columns.start * c..columns.end * c;
                    let outs = out[columns.clone()].chunks_exact_mut(c);
                    for ((x, out), taps) in pixels.zip(outs).zip(taps[columns].chunks_exact_mut(c)) {
                        larger(&x[..c], tap, out, taps);
                    }
                }
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "windows have at most 255 elements")]
#[inline(always)]
fn byte(tap: usize) -> u8 {
    tap as u8
}

/// Takes over what is larger, and its place.
#[inline(always)]
fn larger(x: &[f32], tap: u8, out: &mut [f32], taps: &mut [u8]) {
    for ((x, out), place) in x.iter().zip(out).zip(taps) {
        let takes = (*x > *out) | x.is_nan();
        *out = if takes { *x } else { *out };
        *place = if takes { tap } else { *place };
    }
}

versions! {
    fn max_back_block(dout: &[f32], taps: &[u8], geometry: Geometry, first_row: usize, dx: &mut [f32]) {
        let (c, row, out_row) = (geometry.shape[3], geometry.in_row(), geometry.out_row());
        let [width, stride] = [geometry.window.kernel[1], geometry.window.stride[1]];
        for (i, dx) in dx.chunks_exact_mut(row).enumerate() {
            let (image, y) = ((first_row + i) / geometry.shape[1], (first_row + i) % geometry.shape[1]);
            dx.fill(0.0);
            for (window, tap_row) in geometry.windows(y) {
                let at = (image * geometry.out[1] + window) * out_row;
                for tap_column in 0..width {
                    let tap = byte(tap_row * width + tap_column);
                    let (columns, left) = geometry.columns(tap_column);
                    if columns.is_empty() {
                        continue;
                    }
                    let pixels = dx[left * c..].chunks_mut(stride * c);
                    let columns = at + columns.start * c..at + columns.end * c;
                    let douts = dout[columns.clone()].chunks_exact(c);
                    for ((dx, dout), taps) in pixels.zip(douts).zip(taps[columns].chunks_exact(c)) {
                        for ((dx, dout), place) in dx[..c].iter_mut().zip(dout).zip(taps) {
                            // A select between two floats, because the compiler turns no branch into a mask.
                            let mask = if *place == tap { u32::MAX } else { 0 };
                            *dx += f32::from_bits(dout.to_bits() & mask);
                        }
                    }
                }
            }
        }
    }
}

versions! {
    fn avg_block(x: &[f32], geometry: Geometry, count_padding: bool, first_row: usize, out: &mut [f32]) {
        let (c, row, in_row) = (geometry.shape[3], geometry.out_row(), geometry.in_row());
        let [width, stride] = [geometry.window.kernel[1], geometry.window.stride[1]];
        for (i, out) in out.chunks_exact_mut(row).enumerate() {
            let (image, window) = ((first_row + i) / geometry.out[1], (first_row + i) % geometry.out[1]);
            let (rows, top) = geometry.rows(window);
            out.fill(0.0);
            for y in top..top + rows.len() {
                let x = &x[(image * geometry.shape[1] + y) * in_row..][..in_row];
                for tap_column in 0..width {
                    let (columns, left) = geometry.columns(tap_column);
                    if columns.is_empty() {
                        continue;
                    }
                    let pixels = x[left * c..].chunks(stride * c);
                    let outs = out[columns.start * c..columns.end * c].chunks_exact_mut(c);
                    for (x, out) in pixels.zip(outs) {
                        for (x, out) in x[..c].iter().zip(out) {
                            *out += x;
                        }
                    }
                }
            }
            for (column, out) in out.chunks_exact_mut(c).enumerate() {
                let divisor = geometry.divisor(rows.len(), column, count_padding);
                for out in out {
                    *out /= divisor;
                }
            }
        }
    }
}

versions! {
    fn avg_back_block(dout: &[f32], geometry: Geometry, count_padding: bool, first_row: usize, dx: &mut [f32]) {
        let (c, row, out_row) = (geometry.shape[3], geometry.in_row(), geometry.out_row());
        let [width, stride] = [geometry.window.kernel[1], geometry.window.stride[1]];
        for (i, dx) in dx.chunks_exact_mut(row).enumerate() {
            let (image, y) = ((first_row + i) / geometry.shape[1], (first_row + i) % geometry.shape[1]);
            dx.fill(0.0);
            for (window, _) in geometry.windows(y) {
                let dout = &dout[(image * geometry.out[1] + window) * out_row..][..out_row];
                let rows = geometry.rows(window).0.len();
                for tap_column in 0..width {
                    let (columns, left) = geometry.columns(tap_column);
                    if columns.is_empty() {
                        continue;
                    }
                    let pixels = dx[left * c..].chunks_mut(stride * c);
                    let douts = dout[columns.start * c..columns.end * c].chunks_exact(c);
                    for ((dx, dout), column) in pixels.zip(douts).zip(columns) {
                        let divisor = geometry.divisor(rows, column, count_padding);
                        for (dx, dout) in dx[..c].iter_mut().zip(dout) {
                            *dx += dout / divisor;
                        }
                    }
                }
            }
        }
    }
}

versions! {
    /// Means of columns. Sums of 64 rows are added up first, so that those of many rows stay exact.
    fn mean_of_rows(x: &[f32], out: &mut [f32]) {
        let c = out.len();
        let rows = (x.len() / c) as f32;
        out.fill(0.0);
        for lanes in 0..c.div_ceil(64) {
            let (from, to) = (lanes * 64, c.min(lanes * 64 + 64));
            let out = &mut out[from..to];
            for part in x.chunks(64 * c) {
                let mut sums = [0.0f32; 64];
                for row in part.chunks_exact(c) {
                    for (sum, x) in sums.iter_mut().zip(&row[from..to]) {
                        *sum += x;
                    }
                }
                for (out, sum) in out.iter_mut().zip(&sums) {
                    *out += sum;
                }
            }
            for out in out {
                *out /= rows;
            }
        }
    }
}

versions! {
    /// The same share for every row.
    fn spread(dout: &[f32], rows: f32, dx: &mut [f32]) {
        let c = dout.len();
        let (first, rest) = dx.split_at_mut(c);
        for (dx, dout) in first.iter_mut().zip(dout) {
            *dx = dout / rows;
        }
        for dx in rest.chunks_exact_mut(c) {
            dx.copy_from_slice(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{assert_close, dot, same_everywhere, slope, values, wide};

    /// The pixels that a window sees: index, and place in the window.
    fn seen(shape: [usize; 4], window: Window, at: [usize; 4]) -> Vec<(usize, usize)> {
        let [n, oy, ox, c] = at;
        let [kh, kw] = window.kernel;
        let mut pixels = vec![];
        for ky in 0..kh {
            for kx in 0..kw {
                let y = (oy * window.stride[0] + ky).checked_sub(window.padding[0]);
                let x = (ox * window.stride[1] + kx).checked_sub(window.padding[1]);
                if let (Some(y), Some(x)) = (y, x)
                    && y < shape[1]
                    && x < shape[2]
                {
                    pixels.push((((n * shape[1] + y) * shape[2] + x) * shape[3] + c, ky * kw + kx));
                }
            }
        }
        pixels
    }

    fn places(out: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
        let [n, h, w, c] = out;
        (0..n * h * w * c).map(move |i| [i / c / w / h, i / c / w % h, i / c % w, i % c])
    }

    /// The definition: maxima and their places.
    fn max_definition(
        x: &[f32],
        shape: [usize; 4],
        window: Window,
        relu: bool,
    ) -> (Vec<f32>, Vec<u8>) {
        places(window.output(shape).unwrap())
            .map(|at| {
                let pixels = seen(shape, window, at);
                let start = if relu { (0.0, NONE) } else { (f32::NEG_INFINITY, byte(pixels[0].1)) };
                pixels.iter().fold(start, |(top, place), (i, tap)| {
                    if x[*i] > top || x[*i].is_nan() { (x[*i], byte(*tap)) } else { (top, place) }
                })
            })
            .unzip()
    }

    fn avg_definition(
        x: &[f64],
        shape: [usize; 4],
        window: Window,
        count_padding: bool,
    ) -> Vec<f64> {
        places(window.output(shape).unwrap())
            .map(|at| {
                let pixels = seen(shape, window, at);
                let all = window.kernel[0] * window.kernel[1];
                let count = if count_padding { all } else { pixels.len() };
                pixels.iter().map(|(i, _)| x[*i]).sum::<f64>() / count as f64
            })
            .collect()
    }

    fn windows() -> Vec<([usize; 4], Window)> {
        let window = |kernel, stride, padding| Window { kernel, stride, padding };
        vec![
            ([2, 28, 28, 6], window([2, 2], [2, 2], [0, 0])),
            ([2, 7, 9, 17], window([3, 3], [2, 2], [1, 1])),
            ([1, 5, 5, 33], window([3, 2], [1, 3], [1, 0])),
            ([3, 1, 1, 1], window([1, 1], [1, 1], [0, 0])),
            ([1, 4, 6, 3], window([2, 5], [3, 1], [1, 2])),
            ([2, 3, 2, 15], window([2, 2], [5, 5], [0, 1])),
            ([1, 1, 1, 2], window([3, 3], [1, 1], [1, 1])),
            ([1, 2, 2, 2], window([4, 4], [2, 2], [2, 2])),
            ([0, 3, 3, 2], window([2, 2], [1, 1], [0, 0])),
            ([1, 3, 3, 0], window([2, 2], [1, 1], [0, 0])),
            ([1, 17, 17, 1], window([15, 17], [1, 1], [0, 0])),
            ([5, 40, 40, 64], window([3, 3], [2, 2], [1, 1])),
        ]
    }

    /// Maxima, their places, and gradients, of every kind.
    fn check_maxima(shape: [usize; 4], window: Window) {
        let count = shape.iter().product();
        // Few values, so that many are equal.
        let mut x: Vec<f32> = values(1, count).iter().map(|v| (v * 4.0).round() - 1.0).collect();
        if count > 40 {
            x[7] = f32::NAN;
            x[20..40].fill(f32::NEG_INFINITY);
        }
        for relu in [false, true] {
            let (out, taps) = max_definition(&x, shape, window, relu);
            let dout = values(2, out.len());
            let mut dx = vec![0.0; count];
            for (o, at) in places(window.output(shape).unwrap()).enumerate() {
                for (i, tap) in seen(shape, window, at) {
                    dx[i] += if byte(tap) == taps[o] { f64::from(dout[o]) } else { 0.0 };
                }
            }
            let got = same_everywhere(|| {
                let (mut out, mut taps) = (vec![9.0; out.len()], vec![9; out.len()]);
                let mut dx = vec![9.0; count];
                let forward = if relu { relu_max_pool2d } else { max_pool2d };
                forward(&x, shape, window, &mut out, &mut taps).unwrap();
                max_pool2d_backward(&dout, &taps, shape, window, &mut dx).unwrap();
                vec![out, taps.into_iter().map(f32::from).collect(), dx]
            });
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got[0]), bits(&out), "{shape:?} {window:?}");
            assert_eq!(got[1], taps.into_iter().map(f32::from).collect::<Vec<_>>());
            assert_close("dx", &got[2], &dx, 1e-6);
        }
    }

    /// Means and their gradients.
    fn check_means(shape: [usize; 4], window: Window) {
        let x = values(3, shape.iter().product());
        for count_padding in [false, true] {
            let out = avg_definition(&wide(&x), shape, window, count_padding);
            let dout = values(4, out.len());
            let got = same_everywhere(|| {
                let (mut out, mut dx) = (vec![9.0; out.len()], vec![9.0; x.len()]);
                avg_pool2d(&x, shape, window, count_padding, &mut out).unwrap();
                avg_pool2d_backward(&dout, shape, window, count_padding, &mut dx).unwrap();
                vec![out, dx]
            });
            assert_close("out", &got[0], &out, 1e-6);
            if x.len() < 1000 {
                let dx = slope(&wide(&x), |x| {
                    dot(&avg_definition(x, shape, window, count_padding), &dout)
                });
                assert_close("dx", &got[1], &dx, 1e-5);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_small_pool_is_its_definition(
            (batch, channels) in (0..3_usize, 0..20_usize),
            axes in std::array::from_fn::<_, 2, _>(|_| (0..6_usize, 1..6_usize, 1..7_usize, 0..3_usize)),
        ) {
            let axes = axes.map(|(room, kernel, stride, padding)| {
                let padding = padding.min(kernel / 2);
                ((kernel - 2 * padding).max(1) + room, kernel, stride, padding)
            });
            let window = Window {
                kernel: axes.map(|a| a.1),
                stride: axes.map(|a| a.2),
                padding: axes.map(|a| a.3),
            };
            let shape = [batch, axes[0].0, axes[1].0, channels];
            check_maxima(shape, window);
            check_means(shape, window);
        }
    }

    #[test]
    fn maxima_are_the_definition_and_gradients_go_to_them() {
        for (shape, window) in windows() {
            check_maxima(shape, window);
        }
    }

    #[test]
    fn means_are_the_definition_and_gradients_its_slope() {
        for (shape, window) in windows() {
            check_means(shape, window);
        }
    }

    #[test]
    fn global_means_are_those_of_one_window() {
        for shape in [[2, 7, 7, 5], [1, 1, 1, 1], [3, 4, 5, 130], [0, 2, 2, 3], [2, 90, 90, 3]] {
            let x = values(5, shape.iter().product());
            let window = Window { kernel: [shape[1], shape[2]], stride: [1, 1], padding: [0, 0] };
            let expected = avg_definition(&wide(&x), shape, window, true);
            let dout = values(6, shape[0] * shape[3]);
            let got = same_everywhere(|| {
                let (mut out, mut dx) = (vec![9.0; dout.len()], vec![9.0; x.len()]);
                global_avg_pool(&x, shape, &mut out).unwrap();
                global_avg_pool_backward(&dout, shape, &mut dx).unwrap();
                vec![out, dx]
            });
            assert_close("out", &got[0], &expected, 1e-5);
            let mut dx = vec![9.0; x.len()];
            avg_pool2d_backward(&dout, shape, window, true, &mut dx).unwrap();
            assert_eq!(got[1], dx);
        }
    }

    #[test]
    fn of_two_nans_the_last_is_taken() {
        let window = Window { kernel: [2, 2], stride: [2, 2], padding: [0, 0] };
        let (mut out, mut taps) = ([0.0], [9]);
        let x = [1.0, f32::NAN, f32::NAN, 5.0];
        max_pool2d(&x, [1, 2, 2, 1], window, &mut out, &mut taps).unwrap();
        assert!(out[0].is_nan());
        assert_eq!(taps, [2]);
    }

    #[test]
    fn a_window_of_256_elements_is_too_large_for_maxima_only() {
        let window = Window { kernel: [16, 16], stride: [1, 1], padding: [0, 0] };
        let (shape, x) = ([1, 16, 16, 1], [1.0; 256]);
        assert!(max_pool2d(&x, shape, window, &mut [0.0], &mut [0]).is_err());
        assert!(avg_pool2d(&x, shape, window, true, &mut [0.0]).is_ok());
    }

    #[test]
    fn wrong_windows_are_refused() {
        let window = |kernel, stride, padding| Window { kernel, stride, padding };
        for w in [
            window([0, 1], [1, 1], [0, 0]),
            window([1, 1], [1, 0], [0, 0]),
            window([3, 3], [1, 1], [2, 1]),
            window([5, 1], [1, 1], [0, 0]),
        ] {
            assert!(w.output([1, 4, 4, 1]).is_err(), "{w:?}");
        }
        let huge = usize::MAX;
        assert!(window([huge, 1], [1, 1], [huge / 2, 0]).output([1, 4, 4, 1]).is_err());
        assert!(window([1, 1], [huge, 1], [0, 0]).output([1, 4, 4, 1]).is_err());
        assert!(window([1, 1], [1, 1], [0, 0]).output([1, huge, 4, 1]).is_err());
        let none = [0, 1 << 30, 1 << 30, 1 << 30];
        let w = window([1, 1], [1, 1], [0, 0]);
        assert!(avg_pool2d(&[], none, w, true, &mut []).is_ok());
        assert!(avg_pool2d_backward(&[], none, w, true, &mut []).is_ok());
        assert!(max_pool2d(&[], none, w, &mut [], &mut []).is_ok());
        assert!(max_pool2d_backward(&[], &[], none, w, &mut []).is_ok());
        assert_eq!(window([3, 3], [2, 2], [1, 1]).output([1, 4, 5, 7]), Ok([1, 2, 3, 7]));
    }
}
