//! Rows side by side, and columns of rows: the channels of several images as those of one, and back.

use std::ops::Range;

use crate::KernelError;
use crate::blocks::{BLOCK, check, check_len, map};

/// Writes the rows of all `parts` beside each other. A part comes with the length of its rows.
///
/// # Shapes
/// - each part: `[rows, its length]`
/// - `out`: `[rows, sum of lengths]`
///
/// # Errors
/// If a slice has not its shape.
pub fn concat(parts: &[(&[f32], usize)], out: &mut [f32]) -> Result<(), KernelError> {
    let columns = parts.iter().try_fold(0usize, |sum, (_, len)| sum.checked_add(*len));
    let columns = columns.unwrap_or(usize::MAX);
    let fits = if columns == 0 { out.is_empty() } else { out.len().is_multiple_of(columns) };
    check(fits, "output", || format!("{} values are no rows of {columns}", out.len()))?;
    let rows = out.len().checked_div(columns).unwrap_or(0);
    for (part, len) in parts {
        check_len("part", &[rows, *len], part.len())?;
    }
    if out.is_empty() {
        return Ok(());
    }
    let block = (BLOCK / columns).max(1);
    map(out.chunks_mut(block * columns).enumerate(), |(i, out)| {
        let mut from = 0;
        // Part by part, so that the length of a copy is the same in each pass.
        for (part, len) in parts.iter().filter(|(_, len)| *len > 0) {
            let rows = part[i * block * len..].chunks_exact(*len);
            for (out, row) in out.chunks_exact_mut(columns).zip(rows) {
                out[from..from + len].copy_from_slice(row);
            }
            from += len;
        }
    });
    Ok(())
}

/// Writes these columns of all rows of `x`, which is the way back of [`concat()`] to one of its parts.
///
/// # Shapes
/// - `x`: `[rows, columns]`
/// - `out`: `[rows, length of the range]`
///
/// # Errors
/// If the range reaches beyond the columns, or a slice has not its shape.
pub fn columns(
    x: &[f32],
    columns: usize,
    range: Range<usize>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    check(range.start <= range.end && range.end <= columns, "range", || {
        format!("{range:?} is no part of {columns} columns")
    })?;
    let rows = x.len().checked_div(columns).unwrap_or(0);
    check_len("input", &[rows, columns], x.len())?;
    let len = range.len();
    check_len("output", &[rows, len], out.len())?;
    if out.is_empty() {
        return Ok(());
    }
    let block = (BLOCK / len).max(1);
    map(out.chunks_mut(block * len).zip(x.chunks(block * columns)), |(out, x)| {
        for (out, row) in out.chunks_exact_mut(len).zip(x.chunks_exact(columns)) {
            out.copy_from_slice(&row[range.clone()]);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{same_everywhere, values};

    /// Every element of every part is found at its place in the result, and comes back.
    fn check_parts(rows: usize, lens: &[usize]) {
        let parts: Vec<Vec<f32>> = (1..).zip(lens).map(|(i, len)| values(i, rows * len)).collect();
        let total: usize = lens.iter().sum();
        let mut expected = Vec::new();
        for row in 0..rows {
            for (part, len) in parts.iter().zip(lens) {
                for column in 0..*len {
                    expected.push(part[row * len + column]);
                }
            }
        }
        let got = same_everywhere(|| {
            let borrowed: Vec<_> =
                parts.iter().map(Vec::as_slice).zip(lens.iter().copied()).collect();
            let mut out = vec![9.0; rows * total];
            concat(&borrowed, &mut out).unwrap();
            let mut results = vec![out];
            let mut from = 0;
            for len in lens {
                let mut part = vec![9.0; rows * len];
                columns(&results[0], total, from..from + len, &mut part).unwrap();
                results.push(part);
                from += len;
            }
            results
        });
        assert_eq!(got[0], expected, "{rows} {lens:?}");
        assert_eq!(got[1..], parts, "{rows} {lens:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_small_rows_come_beside_each_other_and_apart(
            rows in 0..7_usize,
            lens in prop::collection::vec(0..9_usize, 0..5),
        ) {
            check_parts(rows, &lens);
        }
    }

    #[test]
    fn rows_come_beside_each_other_and_apart() {
        for (rows, lens) in [
            (0, vec![3, 4]),
            (1, vec![1]),
            (1000, vec![64, 64, 96, 32]),
            (3, vec![50_000, 1, 0, 17]),
            (40_000, vec![1, 2]),
        ] {
            check_parts(rows, &lens);
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let x = [1.0; 6];
        assert!(concat(&[(&x, 2), (&x, 3)], &mut [0.0; 15]).is_err());
        assert!(concat(&[(&x, 2), (&x, 2)], &mut [0.0; 11]).is_err());
        assert!(concat(&[(&x, 2), (&x, usize::MAX)], &mut [0.0; 12]).is_err());
        assert!(concat(&[], &mut [0.0]).is_err());
        assert_eq!(concat(&[], &mut []), Ok(()));
        assert!(columns(&x, 3, 1..4, &mut [0.0; 6]).is_err());
        assert!(columns(&x, 4, 0..1, &mut [0.0; 1]).is_err());
        assert!(columns(&x, 3, 0..1, &mut [0.0; 3]).is_err());
        assert!(columns(&x, 0, 0..0, &mut []).is_err());
        assert_eq!(columns(&[], 0, 0..0, &mut []), Ok(()));
    }
}
