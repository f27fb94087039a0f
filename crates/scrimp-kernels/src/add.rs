//! Sums of tensors.

use crate::KernelError;
use crate::blocks::{BLOCK, check, map};
use crate::dispatch::versions;

/// Adds `added` to `x`, which is a whole number of rows of that length: a tensor of the same shape, or one that is
/// repeated along the first axes.
///
/// # Errors
/// If `x` is no whole number of such rows.
pub fn add(x: &mut [f32], added: &[f32]) -> Result<(), KernelError> {
    let fits = if added.is_empty() { x.is_empty() } else { x.len().is_multiple_of(added.len()) };
    check(fits, "sum", || format!("{} values are no rows of {}", x.len(), added.len()))?;
    if added.is_empty() {
        return Ok(());
    }
    // Blocks are parts of long rows, or several short ones.
    let part = if added.len() >= BLOCK { BLOCK } else { BLOCK / added.len() * added.len() };
    let rows = x.chunks_mut(added.len().max(part));
    map(rows.flat_map(|row| row.chunks_mut(part).zip(added.chunks(part).cycle())), |(x, added)| {
        for x in x.chunks_mut(added.len()) {
            add_row(x, added);
        }
    });
    Ok(())
}

versions! {
    fn add_row(x: &mut [f32], added: &[f32]) {
        for (x, added) in x.iter_mut().zip(added) {
            *x += added;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{same_everywhere, values};

    #[test]
    fn rows_are_added_to() {
        for (rows, len) in
            [(0, 3), (1, 1), (5, 7), (900, 70), (1, 100_001), (3, 70_000), (40_000, 2)]
        {
            let (x, added) = (values(1, rows * len), values(2, len));
            let got = same_everywhere(|| {
                let mut sum = x.clone();
                add(&mut sum, &added).unwrap();
                vec![sum]
            });
            let expected = x.iter().zip(added.iter().cycle()).map(|(x, a)| x + a);
            assert!(got[0].iter().copied().eq(expected), "{rows} rows of {len}");
        }
        assert_eq!(add(&mut [], &[]), Ok(()));
        assert!(add(&mut [1.0], &[]).is_err());
        assert!(add(&mut [1.0; 5], &[1.0; 2]).is_err());
    }
}
