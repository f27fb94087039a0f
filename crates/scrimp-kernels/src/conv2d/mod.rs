//! Convolution of images: forward, and the gradients of input and weight.
//!
//! `y[n, i, j, o] = scale * sum over kh, kw, c of x[n, i * s - p + kh * d, j * s - p + kw * d, c] * w[o, c, kh, kw] +
//! bias[o]`, where `c` runs over the channels of the group of `o`, and what lies outside the image is zero.

mod depthwise;
mod reference;
mod shape;
mod taps;
mod weight;

pub use shape::{Conv2dShape, Window};

use crate::gemm::{check_len, check_scale};
use crate::operand::common_kind;
use crate::{KernelError, Level, Operand, Scale};

/// Runs a generic function on two operands of one kind.
macro_rules! of_one_kind {
    ($a:expr, $b:expr, $function:path $(, $arg:expr)*) => {
        match ($a, $b) {
            (Operand::F32(a), Operand::F32(b)) => $function(a, b $(, $arg)*),
            (Operand::Bf16(a), Operand::Bf16(b)) => $function(a, b $(, $arg)*),
            (Operand::Int8(a), Operand::Int8(b)) => $function(a, b $(, $arg)*),
            (a, b) => common_kind(&a, &b).map(|_| ()),
        }
    };
}
pub(crate) use of_one_kind;

/// The output of a convolution.
///
/// # Shapes
/// - `x`: [`Conv2dShape::input`], `w`: [`Conv2dShape::weight`], `y`: [`Conv2dShape::output`]
/// - `bias` and the channels of `scale`: `[out_channels]`
/// # Errors
/// Slices that do not fit the shape, operands of two kinds, int8 sums that may not fit 32 bits.
pub fn forward(
    shape: &Conv2dShape,
    x: Operand,
    w: Operand,
    scale: Scale,
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<(), KernelError> {
    forward_at(Level::detected(), shape, x, w, scale, bias, y)
}

/// [`forward`] at a level; one that the machine lacks becomes the best that it has.
///
/// # Errors
/// As [`forward`].
pub fn forward_at(
    level: Level,
    shape: &Conv2dShape,
    x: Operand,
    w: Operand,
    scale: Scale,
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<(), KernelError> {
    check_len("x", x.len(), &shape.input())?;
    check_len("w", w.len(), &shape.weight())?;
    check_len("y", y.len(), &shape.output())?;
    check_scale(scale, shape.out_channels)?;
    if let Some(bias) = bias {
        check_len("bias", bias.len(), &[shape.out_channels])?;
    }
    if depthwise::applies(shape) {
        return of_one_kind!(x, w, depthwise::forward, level, shape, scale, bias, y);
    }
    of_one_kind!(x, w, taps::forward, level, shape, scale, bias, y)
}

/// The gradient of the input.
///
/// # Shapes
/// - `dy`: [`Conv2dShape::output`], `w`: [`Conv2dShape::weight`], `dx`: [`Conv2dShape::input`]
/// - the channels of `scale`: `[in_channels]`
/// # Errors
/// As [`forward`].
pub fn input_gradient(
    shape: &Conv2dShape,
    dy: Operand,
    w: Operand,
    scale: Scale,
    dx: &mut [f32],
) -> Result<(), KernelError> {
    input_gradient_at(Level::detected(), shape, dy, w, scale, dx)
}

/// [`input_gradient`] at a level; one that the machine lacks becomes the best that it has.
///
/// # Errors
/// As [`forward`].
pub fn input_gradient_at(
    level: Level,
    shape: &Conv2dShape,
    dy: Operand,
    w: Operand,
    scale: Scale,
    dx: &mut [f32],
) -> Result<(), KernelError> {
    check_len("dy", dy.len(), &shape.output())?;
    check_len("w", w.len(), &shape.weight())?;
    check_len("dx", dx.len(), &shape.input())?;
    check_scale(scale, shape.in_channels)?;
    if depthwise::applies(shape) {
        return of_one_kind!(dy, w, depthwise::input_gradient, level, shape, scale, dx);
    }
    of_one_kind!(dy, w, taps::input_gradient, level, shape, scale, dx)
}

/// The gradient of the weight.
///
/// # Shapes
/// - `x`: [`Conv2dShape::input`], `dy`: [`Conv2dShape::output`], `dw`: [`Conv2dShape::weight`]
/// - the channels of `scale`: `[out_channels]`
/// # Errors
/// As [`forward`].
pub fn weight_gradient(
    shape: &Conv2dShape,
    x: Operand,
    dy: Operand,
    scale: Scale,
    dw: &mut [f32],
) -> Result<(), KernelError> {
    weight_gradient_at(Level::detected(), shape, x, dy, scale, dw)
}

/// [`weight_gradient`] at a level; one that the machine lacks becomes the best that it has.
///
/// # Errors
/// As [`forward`].
pub fn weight_gradient_at(
    level: Level,
    shape: &Conv2dShape,
    x: Operand,
    dy: Operand,
    scale: Scale,
    dw: &mut [f32],
) -> Result<(), KernelError> {
    check_len("x", x.len(), &shape.input())?;
    check_len("dy", dy.len(), &shape.output())?;
    check_len("dw", dw.len(), &shape.weight())?;
    check_scale(scale, shape.out_channels)?;
    if depthwise::applies(shape) {
        return of_one_kind!(x, dy, depthwise::weight_gradient, level, shape, scale, dw);
    }
    of_one_kind!(x, dy, weight::weight_gradient, level, shape, scale, dw)
}

#[cfg(test)]
mod tests;
