//! Linear layers.

use crate::conv2d::{self, Conv2dShape, Window, of_one_kind};
use crate::gemm::element::Element;
use crate::gemm::product::{Matrix, Product};
use crate::gemm::{check_len, check_scale};
use crate::operand::common_kind;
use crate::{KernelError, Level, Operand, Scale};

/// The sizes of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinearShape {
    /// Rows of the input: a batch, or everything before the last axis.
    pub rows: usize,
    /// Features of the input.
    pub inputs: usize,
    /// Features of the output.
    pub outputs: usize,
}

impl LinearShape {
    fn check(&self) -> Result<(), KernelError> {
        if self.inputs == 0 || self.outputs == 0 {
            let problem =
                format!("{} inputs and {} outputs; at least 1 each", self.inputs, self.outputs);
            return Err(KernelError::Shape { what: "linear", problem });
        }
        Ok(())
    }
}

fn run<T: Element>(
    a: &[T],
    b: &[T],
    level: Level,
    product: &Product,
    transposed: [bool; 2],
    out: &mut [f32],
) -> Result<(), KernelError> {
    let a = Matrix { elements: a, is_transposed: transposed[0] };
    let b = Matrix { elements: b, is_transposed: transposed[1] };
    product.run(level, a, b, out)
}

/// `y = scale * x w^T + bias`.
///
/// # Shapes
/// - `x`: `[rows, inputs]`, `w`: `[outputs, inputs]`, `y`: `[rows, outputs]`
/// - `bias` and the channels of `scale`: `[outputs]`
/// # Errors
/// Slices that do not fit the shape, a layer without inputs or outputs, operands of two kinds, int8 sums that may not fit
/// 32 bits.
pub fn forward(
    shape: &LinearShape,
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
    shape: &LinearShape,
    x: Operand,
    w: Operand,
    scale: Scale,
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<(), KernelError> {
    let LinearShape { rows, inputs, outputs } = *shape;
    shape.check()?;
    check_len("x", x.len(), &[rows, inputs])?;
    check_len("w", w.len(), &[outputs, inputs])?;
    check_len("y", y.len(), &[rows, outputs])?;
    check_scale(scale, outputs)?;
    if let Some(bias) = bias {
        check_len("bias", bias.len(), &[outputs])?;
    }
    let product = Product { m: rows, k: inputs, n: outputs, scale, bias };
    of_one_kind!(x, w, run, level, &product, [false, true], y)
}

/// `dx = scale * dy w`.
///
/// # Shapes
/// - `dy`: `[rows, outputs]`, `w`: `[outputs, inputs]`, `dx`: `[rows, inputs]`
/// - the channels of `scale`: `[inputs]`
/// # Errors
/// As [`forward`].
pub fn input_gradient(
    shape: &LinearShape,
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
    shape: &LinearShape,
    dy: Operand,
    w: Operand,
    scale: Scale,
    dx: &mut [f32],
) -> Result<(), KernelError> {
    let LinearShape { rows, inputs, outputs } = *shape;
    shape.check()?;
    check_len("dy", dy.len(), &[rows, outputs])?;
    check_len("w", w.len(), &[outputs, inputs])?;
    check_len("dx", dx.len(), &[rows, inputs])?;
    check_scale(scale, inputs)?;
    let product = Product { m: rows, k: outputs, n: inputs, scale, bias: None };
    of_one_kind!(dy, w, run, level, &product, [false, false], dx)
}

/// `dw = scale * dy^T x`.
///
/// # Shapes
/// - `x`: `[rows, inputs]`, `dy`: `[rows, outputs]`, `dw`: `[outputs, inputs]`
/// - the channels of `scale`: `[outputs]`
/// # Errors
/// As [`forward`], but sums over any number of rows; and a weight of 2^30 elements or more.
pub fn weight_gradient(
    shape: &LinearShape,
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
/// As [`weight_gradient`].
pub fn weight_gradient_at(
    level: Level,
    shape: &LinearShape,
    x: Operand,
    dy: Operand,
    scale: Scale,
    dw: &mut [f32],
) -> Result<(), KernelError> {
    let LinearShape { rows, inputs, outputs } = *shape;
    shape.check()?;
    check_len("x", x.len(), &[rows, inputs])?;
    check_len("dy", dy.len(), &[rows, outputs])?;
    check_len("dw", dw.len(), &[outputs, inputs])?;
    check_scale(scale, outputs)?;
    // The convolution's kernel of one pixel divides long batches among tasks, and reads every operand once.
    let window = Window::default();
    let shape = Conv2dShape::new([rows, 1, 1, inputs], [outputs, inputs, 1, 1], window)?;
    conv2d::weight_gradient_at(level, &shape, x, dy, scale, dw)
}
