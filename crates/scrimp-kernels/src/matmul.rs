//! Products of batches of matrices.

use crate::conv2d::of_one_kind;
use crate::gemm::element::Element;
use crate::gemm::product::{Matrix, Product};
use crate::gemm::{check_len, check_scale};
use crate::operand::common_kind;
use crate::{KernelError, Level, Operand, Scale};

/// The sizes of a batch of products, and how its factors are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MatmulShape {
    /// How many products.
    pub batch: usize,
    /// Rows of the left factor and of the product.
    pub m: usize,
    /// What is summed over.
    pub k: usize,
    /// Columns of the right factor and of the product.
    pub n: usize,
    /// Whether the left factors are stored as `[k, m]` instead of `[m, k]`.
    pub left_is_transposed: bool,
    /// Whether the right factors are stored as `[n, k]` instead of `[k, n]`.
    pub right_is_transposed: bool,
}

/// `out = scale * left right`, for each of a batch.
///
/// # Shapes
/// - `left`: `[batch, m, k]`, `right`: `[batch, k, n]`, each with its last axes swapped if it is transposed; `out`: `[batch,
///   m, n]`
/// - the channels of `scale`: `[n]`
/// # Errors
/// Slices that do not fit the shape, operands of two kinds, int8 sums that may not fit 32 bits.
pub fn matmul(
    shape: &MatmulShape,
    left: Operand,
    right: Operand,
    scale: Scale,
    out: &mut [f32],
) -> Result<(), KernelError> {
    matmul_at(Level::detected(), shape, left, right, scale, out)
}

/// [`matmul`] at a level; one that the machine lacks becomes the best that it has.
///
/// # Errors
/// As [`matmul`].
pub fn matmul_at(
    level: Level,
    shape: &MatmulShape,
    left: Operand,
    right: Operand,
    scale: Scale,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let MatmulShape { batch, m, k, n, .. } = *shape;
    check_len("left", left.len(), &[batch, m, k])?;
    check_len("right", right.len(), &[batch, k, n])?;
    check_len("out", out.len(), &[batch, m, n])?;
    check_scale(scale, n)?;
    of_one_kind!(left, right, run, level, shape, scale, out)
}

fn run<T: Element>(
    left: &[T],
    right: &[T],
    level: Level,
    shape: &MatmulShape,
    scale: Scale,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let MatmulShape { m, k, n, .. } = *shape;
    let left = Matrix { elements: left, is_transposed: shape.left_is_transposed };
    let right = Matrix { elements: right, is_transposed: shape.right_is_transposed };
    Product { m, k, n, scale, bias: None }.run(level, left, right, out)
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::{MatmulShape, matmul_at};
    use crate::gemm::testing::{Draws, TestElement, assert_near};
    use crate::linear::{self, LinearShape};
    use crate::{Level, Scale};

    /// The definition: sums of products, and of their magnitudes.
    fn reference<T: TestElement>(shape: &MatmulShape, left: &[T], right: &[T]) -> Vec<[f64; 2]> {
        let MatmulShape { batch, m, k, n, left_is_transposed, right_is_transposed } = *shape;
        let mut sums = vec![[0.0; 2]; batch * m * n];
        for (at, sum) in sums.iter_mut().enumerate() {
            let (b, i, j) = (at / (m * n), at / n % m, at % n);
            for l in 0..k {
                let a = b * m * k + if left_is_transposed { l * m + i } else { i * k + l };
                let c = b * k * n + if right_is_transposed { j * k + l } else { l * n + j };
                let product = left[a].value() * right[c].value();
                *sum = [sum[0] + product, sum[1] + product.abs()];
            }
        }
        sums
    }

    fn check<T: TestElement>(shape: &MatmulShape) {
        let MatmulShape { batch, m, k, n, .. } = *shape;
        let mut draws = Draws::new(5);
        let (left, right) =
            (T::many(&mut draws, batch * m * k), T::many(&mut draws, batch * k * n));
        let scales = draws.floats(n);
        let sums = reference(shape, &left, &right);
        for level in Level::available() {
            let mut out = vec![f32::NAN; batch * m * n];
            let (a, b) = (T::operand(&left), T::operand(&right));
            let scale = Scale::Channel(&scales);
            matmul_at(level, shape, a, b, scale, &mut out).unwrap();
            let case = format!("{} {} {shape:?}", T::KIND.name(), level.name());
            assert_near::<T>(&out, &sums, k, scale, None, |i| i % n, &case);
        }
    }

    #[test]
    fn shapes_and_sides() {
        let sizes = [
            (1, 1, 1, 1),
            (3, 5, 7, 9),
            (2, 17, 33, 65),
            (1, 8, 16, 32),
            (1, 70, 300, 48),
            (20, 4, 6, 3),
            (2, 3, 0, 4),
            (0, 3, 4, 4),
            (2, 0, 4, 4),
            (1, 200, 150, 170),
        ];
        for (batch, m, k, n) in sizes {
            for side in 0..4 {
                let (left_is_transposed, right_is_transposed) = (side & 1 == 1, side & 2 == 2);
                let shape = MatmulShape { batch, m, k, n, left_is_transposed, right_is_transposed };
                check::<f32>(&shape);
                check::<bf16>(&shape);
                check::<i8>(&shape);
            }
        }
    }

    fn check_linear<T: TestElement>(shape: &LinearShape) {
        let LinearShape { rows, inputs, outputs } = *shape;
        let mut draws = Draws::new(6);
        let x = T::many(&mut draws, rows * inputs);
        let w = T::many(&mut draws, outputs * inputs);
        let dy = T::many(&mut draws, rows * outputs);
        let (bias, outs, ins) =
            (draws.floats(outputs), draws.floats(outputs), draws.floats(inputs));
        let product = |m, k, n, left_is_transposed, right_is_transposed| MatmulShape {
            batch: 1,
            m,
            k,
            n,
            left_is_transposed,
            right_is_transposed,
        };
        let (xo, wo, dyo) = (T::operand(&x), T::operand(&w), T::operand(&dy));
        for level in Level::available() {
            let case = format!("{} {} {shape:?}", T::KIND.name(), level.name());
            let scale = Scale::Channel(&outs);
            let mut y = vec![f32::NAN; rows * outputs];
            linear::forward_at(level, shape, xo, wo, scale, Some(&bias), &mut y).unwrap();
            let sums = reference(&product(rows, inputs, outputs, false, true), &x, &w);
            assert_near::<T>(&y, &sums, inputs, scale, Some(&bias), |i| i % outputs, &case);
            let mut dw = vec![f32::NAN; outputs * inputs];
            linear::weight_gradient_at(level, shape, xo, dyo, scale, &mut dw).unwrap();
            let sums = reference(&product(outputs, rows, inputs, true, false), &dy, &x);
            assert_near::<T>(&dw, &sums, rows, scale, None, |i| i / inputs, &case);
            let scale = Scale::Channel(&ins);
            let mut dx = vec![f32::NAN; rows * inputs];
            linear::input_gradient_at(level, shape, dyo, wo, scale, &mut dx).unwrap();
            let sums = reference(&product(rows, outputs, inputs, false, false), &dy, &w);
            assert_near::<T>(&dx, &sums, outputs, scale, None, |i| i % inputs, &case);
        }
    }

    #[test]
    fn linear_layers() {
        for (rows, inputs, outputs) in
            [(64, 84, 10), (1, 1, 1), (0, 5, 3), (33, 129, 35), (7, 3, 64)]
        {
            let shape = LinearShape { rows, inputs, outputs };
            check_linear::<f32>(&shape);
            check_linear::<bf16>(&shape);
            check_linear::<i8>(&shape);
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let shape = MatmulShape { batch: 1, m: 300, k: 70, n: 250, ..MatmulShape::default() };
        let mut draws = Draws::new(7);
        let (left, right) = (draws.floats(300 * 70), draws.floats(70 * 250));
        let run = |threads| {
            let mut out = vec![0.0; 300 * 250];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (a, b) = (f32::operand(&left), f32::operand(&right));
            pool.install(|| super::matmul(&shape, a, b, Scale::Tensor(1.0), &mut out).unwrap());
            out
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(3));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_small_product_is_its_definition(
            (batch, m, k, n) in (0..4_usize, 0..40_usize, 0..50_usize, 0..70_usize),
            left_is_transposed: bool,
            right_is_transposed: bool,
        ) {
            let shape = MatmulShape { batch, m, k, n, left_is_transposed, right_is_transposed };
            check::<f32>(&shape);
            check::<bf16>(&shape);
            check::<i8>(&shape);
            let shape = LinearShape { rows: m, inputs: k + 1, outputs: n + 1 };
            check_linear::<f32>(&shape);
            check_linear::<bf16>(&shape);
            check_linear::<i8>(&shape);
        }
    }

    #[test]
    fn a_batch_of_none_may_have_any_size() {
        for (m, n) in [(usize::MAX, 1), (1, usize::MAX), (usize::MAX, usize::MAX)] {
            let shape = MatmulShape { batch: 0, m, k: 7, n, ..MatmulShape::default() };
            let (nothing, scale) = (f32::operand(&[]), Scale::Tensor(1.0));
            super::matmul(&shape, nothing, nothing, scale, &mut []).unwrap();
        }
    }
}
