//! Sums over rows.

use crate::KernelError;
use crate::blocks::{BLOCK, check, map};
use crate::dispatch::versions;

/// The sum of each column of a row-major matrix, in f64 and rounded once: the gradient of a bias.
///
/// # Errors
/// If there are no columns, or `x` is not a whole number of rows.
pub fn column_sums(x: &[f32], columns: usize) -> Result<Vec<f32>, KernelError> {
    check(columns > 0 && x.len().is_multiple_of(columns), "column sums", || {
        format!("{} values are no rows of {columns}", x.len())
    })?;
    let rows = (BLOCK / columns).max(1);
    let parts = map(x.chunks(rows * columns), |x| {
        let mut sums = vec![0.0f64; columns];
        add_rows(x, &mut sums);
        sums
    });
    let mut sums = vec![0.0f64; columns];
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
    #[expect(clippy::cast_possible_truncation, reason = "a gradient is rounded to f32")]
    Ok(sums.into_iter().map(|s| s as f32).collect())
}

versions! {
    fn add_rows(x: &[f32], sums: &mut [f64]) {
        for row in x.chunks_exact(sums.len()) {
            for (s, v) in sums.iter_mut().zip(row) {
                *s += f64::from(*v);
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
            let x = values(1, rows * columns);
            let sums = same_everywhere(|| vec![column_sums(&x, columns).unwrap()]).remove(0);
            for (c, s) in sums.iter().enumerate() {
                let exact: f64 = (0..rows).map(|r| f64::from(x[r * columns + c])).sum();
                assert!((f64::from(*s) - exact).abs() <= 1e-7 * exact.abs().max(1.0));
            }
        }
        assert!(column_sums(&[0.0; 5], 2).is_err());
        assert!(column_sums(&[], 0).is_err());
    }
}
