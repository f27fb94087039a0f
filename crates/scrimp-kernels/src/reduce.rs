//! Sums over rows.

use half::bf16;

use crate::blocks::{BLOCK, check, map};
use crate::dispatch::level;
use crate::gemm::check_scale;
use crate::gemm::pack::versions;
use crate::{KernelError, Operand, Scale};

/// The sum of each column of a row-major matrix, times its scale, rounded once: the gradient of a bias.
///
/// Floats are summed in f64, and integers exactly.
///
/// # Errors
/// If there are no columns, `x` is not a whole number of rows, or there is not one scale for all or for each column.
pub fn column_sums(x: Operand, columns: usize, scale: Scale) -> Result<Vec<f32>, KernelError> {
    check(columns > 0 && x.len().is_multiple_of(columns), "column sums", || {
        format!("{} values are no rows of {columns}", x.len())
    })?;
    check_scale(scale, columns)?;
    let sums = match x {
        Operand::F32(x) => sums(x, columns),
        Operand::Bf16(x) => sums(x, columns),
        Operand::Int8(x) => sums(x, columns),
    };
    let of = |column: usize| match scale {
        Scale::Tensor(scale) => f64::from(scale),
        Scale::Channel(scales) => f64::from(scales[column]),
    };
    #[expect(clippy::cast_possible_truncation, reason = "a gradient is rounded to f32")]
    Ok(sums.into_iter().enumerate().map(|(column, sum)| (sum * of(column)) as f32).collect())
}

/// What is summed, first in a type in which a block of rows is fast and, for integers, exact.
trait Summand: Copy + Sync {
    type Sum: Copy + Default + Send + Into<f64>;
    fn add(sum: Self::Sum, x: Self) -> Self::Sum;
}

impl Summand for f32 {
    type Sum = f64;
    #[inline(always)]
    fn add(sum: f64, x: Self) -> f64 {
        sum + f64::from(x)
    }
}

impl Summand for bf16 {
    type Sum = f64;
    #[inline(always)]
    fn add(sum: f64, x: Self) -> f64 {
        sum + f64::from(f32::from_bits(u32::from(x.to_bits()) << 16))
    }
}

impl Summand for i8 {
    // A block has far fewer than 2^24 rows.
    type Sum = i32;
    #[inline(always)]
    fn add(sum: i32, x: Self) -> i32 {
        sum + i32::from(x)
    }
}

fn sums<T: Summand>(x: &[T], columns: usize) -> Vec<f64> {
    let rows = (BLOCK / columns).max(1);
    let parts = map(x.chunks(rows * columns), |x| {
        let mut sums = vec![T::Sum::default(); columns];
        add_rows::<T>(level(), x, &mut sums);
        sums
    });
    let mut sums = vec![0.0; columns];
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(s, p)| *s += p.into());
    }
    sums
}

versions! {
    fn add_rows<T: Summand>(level, x: &[T], sums: &mut [T::Sum]) {
        let _ = level;
        for row in x.chunks_exact(sums.len()) {
            for (s, v) in sums.iter_mut().zip(row) {
                *s = T::add(*s, *v);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{same_everywhere, values};

    #[test]
    fn columns_are_summed_exactly_where_f64_is_exact() {
        for (rows, columns) in [(0, 3), (1, 1), (7, 5), (40_000, 3), (3, 40_000)] {
            let codes: Vec<i8> = (0..rows * columns)
                .map(|i: usize| (i * i % 255).to_le_bytes()[0].cast_signed())
                .collect();
            let floats = values(1, rows * columns);
            let short: Vec<bf16> = floats.iter().map(|v| bf16::from_f32(*v)).collect();
            let scales = values(2, columns);
            let check = |x: Operand, value: &dyn Fn(usize) -> f64| {
                for scale in [Scale::Tensor(0.75), Scale::Channel(&scales)] {
                    let sums = || vec![column_sums(x, columns, scale).unwrap()];
                    for (c, sum) in same_everywhere(sums).remove(0).iter().enumerate() {
                        let scale = match scale {
                            Scale::Tensor(scale) => scale,
                            Scale::Channel(scales) => scales[c],
                        };
                        let exact: f64 = (0..rows).map(|r| value(r * columns + c)).sum();
                        let exact = exact * f64::from(scale);
                        assert!((f64::from(*sum) - exact).abs() <= 1e-7 * exact.abs().max(1.0));
                    }
                }
            };
            check(Operand::F32(&floats), &|i| f64::from(floats[i]));
            check(Operand::Bf16(&short), &|i| short[i].to_f64());
            check(Operand::Int8(&codes), &|i| f64::from(codes[i]));
        }
        let one = Scale::Tensor(1.0);
        assert!(column_sums(Operand::F32(&[0.0; 5]), 2, one).is_err());
        assert!(column_sums(Operand::F32(&[]), 0, one).is_err());
        assert!(column_sums(Operand::F32(&[0.0; 4]), 2, Scale::Channel(&[1.0])).is_err());
    }
}
