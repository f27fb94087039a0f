//! Rows of a table by their numbers, and the gradient of the table.
//!
//! # Shapes
//! - `table` and its gradient: `[rows, len]`
//! - `ids`: `[count]`
//! - `out` and its gradient: `[count, len]`

use std::fmt::Display;

use crate::KernelError;
use crate::blocks::{BLOCK, check, check_len, map};

/// An integer that numbers rows or classes.
pub trait Id: Copy + Display + TryInto<usize> {}

impl<I: Copy + Display + TryInto<usize>> Id for I {}

/// Copies the rows that `ids` name.
///
/// # Errors
/// If rows have no elements, a slice has not its shape, or an id is no row.
pub fn gather<I: Id>(
    table: &[f32],
    len: usize,
    ids: &[I],
    out: &mut [f32],
) -> Result<(), KernelError> {
    let rows = check_table(table, len)?;
    check_len("output", &[ids.len(), len], out.len())?;
    let ids = checked(ids, rows, "id")?;
    let part = (BLOCK / len).max(1);
    map(out.chunks_mut(part * len).zip(ids.chunks(part)), |(out, ids)| {
        for (out, id) in out.chunks_exact_mut(len).zip(ids) {
            out.copy_from_slice(&table[id * len..][..len]);
        }
    });
    Ok(())
}

/// The gradient of the table, to `dtable`: to each row what came to it, added up in the order of `ids`, and zero to the
/// others.
///
/// # Errors
/// As [`gather`].
pub fn gather_backward<I: Id>(
    dout: &[f32],
    len: usize,
    ids: &[I],
    dtable: &mut [f32],
) -> Result<(), KernelError> {
    let rows = check_table(dtable, len)?;
    check_len("gradient of the output", &[ids.len(), len], dout.len())?;
    let ids = checked(ids, rows, "id")?;
    // Positions sorted by row: where those of a row end, and before that how many there are.
    let mut ends = vec![0; rows + 1];
    for id in &ids {
        ends[id + 1] += 1;
    }
    let mut total = 0;
    for end in &mut ends {
        total += *end;
        *end = total;
    }
    let mut positions = vec![0; ids.len()];
    let mut next = ends.clone();
    for (position, id) in ids.iter().enumerate() {
        positions[next[*id]] = position;
        next[*id] += 1;
    }
    let part = (BLOCK / len).max(1);
    map(dtable.chunks_mut(part * len).enumerate(), |(i, dtable)| {
        dtable.fill(0.0);
        for (row, dtable) in (i * part..).zip(dtable.chunks_exact_mut(len)) {
            for position in &positions[ends[row]..ends[row + 1]] {
                for (sum, dout) in dtable.iter_mut().zip(&dout[position * len..][..len]) {
                    *sum += dout;
                }
            }
        }
    });
    Ok(())
}

fn check_table(table: &[f32], len: usize) -> Result<usize, KernelError> {
    check(len > 0, "row", || "it has no elements, and an embedding needs one".to_owned())?;
    let rows = table.len() / len;
    check_len("table", &[rows, len], table.len())?;
    Ok(rows)
}

/// The ids as indices below `count`.
pub(crate) fn checked<I: Id>(
    ids: &[I],
    count: usize,
    what: &'static str,
) -> Result<Vec<usize>, KernelError> {
    let index = |(position, id): (usize, &I)| match (*id).try_into() {
        Ok(index) if index < count => Ok(index),
        _ => Err(KernelError::Shape {
            what,
            problem: format!("{id} at position {position} is not below {count}"),
        }),
    };
    ids.iter().enumerate().map(index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, same_everywhere, values};

    #[test]
    fn rows_are_copied_and_gradients_added_up() {
        for (rows, len, count) in [(1, 1, 1), (3, 15, 0), (7, 17, 33), (5, 3, 200), (4000, 33, 999)]
        {
            let (table, dout) = (values(1, rows * len + 1), values(2, count * len));
            let table = &table[1..];
            // Some rows often, and some never.
            let ids: Vec<i64> =
                (0..count).map(|i| i64::try_from(i * i % 11 % rows).unwrap()).collect();
            let got = same_everywhere(|| {
                let (mut out, mut dtable) = (vec![9.0; count * len], vec![9.0; rows * len]);
                gather(table, len, &ids, &mut out).unwrap();
                gather_backward(&dout, len, &ids, &mut dtable).unwrap();
                vec![out, dtable]
            });
            let mut dtable = vec![0.0; rows * len];
            for (i, d) in dout.iter().enumerate() {
                let at = usize::try_from(ids[i / len]).unwrap() * len + i % len;
                assert_eq!(got[0][i], table[at]);
                dtable[at] += f64::from(*d);
            }
            assert_close("dtable", &got[1], &dtable, 1e-6);
        }
    }

    #[test]
    fn the_order_of_addition_is_that_of_positions() {
        let mut dtable = [9.0; 2];
        let dout = [1e8, 1.0, -1e8, 1.0];
        gather_backward(&dout, 1, &[1u8, 1, 1, 1], &mut dtable).unwrap();
        assert_eq!(dtable, [0.0, 1.0]);
    }

    #[test]
    fn an_id_that_is_no_row_is_named() {
        let error = gather(&[0.0; 6], 2, &[0, 2, 3], &mut [0.0; 6]).unwrap_err();
        assert_eq!(error.to_string(), "id: 3 at position 2 is not below 3");
        let error = gather_backward(&[0.0; 2], 2, &[-1i32], &mut [0.0; 6]).unwrap_err();
        assert_eq!(error.to_string(), "id: -1 at position 0 is not below 3");
        assert!(gather(&[0.0; 5], 2, &[0], &mut [0.0; 2]).is_err());
        assert!(gather(&[], 0, &[0u64; 0], &mut []).is_err());
    }
}
