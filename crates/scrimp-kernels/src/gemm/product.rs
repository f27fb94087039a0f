//! Products of matrices.
#![expect(unsafe_code, reason = "tasks write disjoint blocks of one output")]

use std::ops::Range;

use rayon::prelude::*;

use super::buffer::{Scratch, Shared};
use super::element::{BLOCK, Element, check_reduction, copy_runs};
use super::pack::{Images, Panels, left_of_images, left_of_runs, right_of_images, right_of_rows};
use super::tile::{Kernels, ROWS, Segment};
use super::{Finish, Patterns, RowTile, Sweep, TASKS};
use crate::{KernelError, Level, Scale};

/// A matrix and whether it is stored with its axes swapped.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub elements: &'a [T],
    pub is_transposed: bool,
}

/// `out[m, n] = scale * sum over k of a[m, k] * b[k, n] + bias[n]`, for each of a batch.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub m: usize,
    pub k: usize,
    pub n: usize,
    pub scale: Scale<'a>,
    pub bias: Option<&'a [f32]>,
}

/// Bytes of left rows that a task packs at a time.
const LEFT_BYTES: usize = 256 << 10;
/// Words of a packed row, so that 32 bits tell the bytes to each.
const LONGEST_ROW: usize = (u32::MAX / 4) as usize;
/// Products above which one matrix of a batch is worth the work of several tasks.
const LARGE: usize = 1 << 22;

impl Product<'_> {
    /// Computes the product of each pair of a batch of matrices, of which the lengths fit.
    pub fn run<T: Element>(
        &self,
        level: Level,
        a: Matrix<T>,
        b: Matrix<T>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        check_reduction::<T>(self.k)?;
        if self.k.div_ceil(T::GROUP) > LONGEST_ROW {
            let problem = format!("a sum of {} products has packed rows of 4 GiB", self.k);
            return Err(KernelError::Shape { what: "product", problem });
        }
        if out.is_empty() {
            return Ok(());
        }
        let (a_len, b_len, len) = (self.m * self.k, self.k * self.n, self.m * self.n);
        if self.k == 0 {
            let finish = |n: usize| self.bias.map_or(0.0, |bias| bias[n]);
            for row in out.chunks_exact_mut(self.n) {
                row.iter_mut().enumerate().for_each(|(n, v)| *v = finish(n));
            }
            return Ok(());
        }
        let kernels = Kernels::of(T::KIND, level);
        let part = |i: usize| {
            let a = Matrix { elements: &a.elements[i * a_len..(i + 1) * a_len], ..a };
            let b = Matrix { elements: &b.elements[i * b_len..(i + 1) * b_len], ..b };
            (a, b)
        };
        if a_len.saturating_mul(self.n) >= LARGE {
            for (i, out) in out.chunks_exact_mut(len).enumerate() {
                let (a, b) = part(i);
                self.one(&kernels, true, a, b, out);
            }
        } else {
            out.par_chunks_exact_mut(len).enumerate().for_each(|(i, out)| {
                let (a, b) = part(i);
                self.one(&kernels, false, a, b, out);
            });
        }
        Ok(())
    }

    /// One matrix of the batch; all by this task if it is not `in_parallel`.
    fn one<T: Element>(
        &self,
        kernels: &Kernels,
        in_parallel: bool,
        a: Matrix<T>,
        b: Matrix<T>,
        out: &mut [f32],
    ) {
        let groups = self.k.div_ceil(T::GROUP);
        let panels = self.pack_right(kernels, in_parallel, groups, b);
        // What lies in memory as tiles read it needs no copy.
        let in_place = if a.is_transposed || !self.k.is_multiple_of(T::GROUP) {
            None
        } else {
            T::left_words(a.elements)
        };
        // Blocks of rows fill the cache, unless that leaves too few of them. Tasks that share a block each pack it.
        let fits = (LEFT_BYTES / (4 * groups)).clamp(ROWS, 512) / ROWS * ROWS;
        let block = fits.min(self.m.div_ceil(TASKS).next_multiple_of(ROWS)).max(4 * ROWS);
        let blocks = self.m.div_ceil(block);
        let parts = TASKS.div_ceil(blocks).min(panels.count());
        let shared = Shared::new(out);
        let patterns = Patterns::new(
            &[vec![Segment { start: 0, end: groups }]],
            Segment { start: 0, end: groups },
        );
        let offsets: Vec<u32> =
            (0..groups).map(|g| 4 * u32::try_from(g).unwrap_or(u32::MAX)).collect();
        let task = |task: usize| {
            let (i, part) = (task / parts, task % parts);
            let rows = i * block..self.m.min((i + 1) * block);
            let mut packed = Scratch::new(if in_place.is_some() { 0 } else { rows.len() * groups });
            let (left, first_row) = if let Some(words) = in_place {
                (words, 0)
            } else {
                self.pack_left(kernels.level, groups, a, rows.start, &mut packed);
                (&*packed, rows.start)
            };
            let tiles = self.tiles(rows, first_row, groups);
            for p in panels.count() * part / parts..panels.count() * (part + 1) / parts {
                let starts = panels.correction(p, 0..1);
                let sweep = Sweep {
                    kernels,
                    a: left,
                    offsets: &offsets,
                    tiles: &tiles,
                    patterns: &patterns,
                    starts: starts.as_slice(),
                };
                let first = p * super::tile::WIDE;
                let columns = (self.n - first).min(super::tile::WIDE);
                let finish = Finish::new(self.scale, self.bias, first, columns);
                let width = panels.width(p);
                let mut sums = Scratch::new(sweep.sums_len(width));
                // SAFETY: the tiles' rows are those of this block, of `n` elements each, and the panels of this part are no
                // other task's; every row of `left` has as many groups as a panel.
                unsafe {
                    let out = shared.from(first);
                    sweep.values(panels.panel(p), width, out, columns, &finish, &mut sums);
                }
            }
        };
        if !in_parallel || blocks * parts == 1 {
            (0..blocks * parts).for_each(task);
        } else {
            (0..blocks * parts).into_par_iter().for_each(task);
        }
    }

    /// Tiles of these rows, in words that begin with the `first_row`.
    fn tiles(&self, rows: Range<usize>, first_row: usize, groups: usize) -> Vec<RowTile> {
        rows.clone()
            .step_by(ROWS)
            .map(|first| {
                let row = |r: usize| (first + r).min(rows.end - 1);
                RowTile {
                    rows: std::array::from_fn(|r| 4 * groups * (row(r) - first_row)),
                    out: std::array::from_fn(|r| row(r) * self.n),
                    count: ROWS.min(rows.end - first),
                    pattern: 0,
                }
            })
            .collect()
    }

    fn pack_left<T: Element>(
        &self,
        level: Level,
        groups: usize,
        a: Matrix<T>,
        first: usize,
        to: &mut [u32],
    ) {
        let rows = to.len() / groups;
        if !a.is_transposed {
            let from = &a.elements[first * self.k..(first + rows) * self.k];
            left_of_runs(level, from, self.k, to);
            return;
        }
        let images = Images { count: self.k, image: self.m, position: 0 };
        for (i, to) in to.chunks_mut(BLOCK * groups).enumerate() {
            let mut to: Vec<_> = to.chunks_exact_mut(groups).collect();
            left_of_images(level, a.elements, images, 0, first + i * BLOCK, &mut to);
        }
    }

    fn pack_right<T: Element>(
        &self,
        kernels: &Kernels,
        in_parallel: bool,
        groups: usize,
        b: Matrix<T>,
    ) -> Panels {
        let level = kernels.level;
        if !b.is_transposed {
            let images = Images { count: self.k, image: self.n, position: 0 };
            return Panels::new::<T>(
                kernels,
                in_parallel,
                groups,
                1,
                self.n,
                |first, lanes, width, to| {
                    right_of_images(level, b.elements, images, first, lanes, width, 0, to);
                },
            );
        }
        let place: Vec<u32> = (0..groups).map(|g| u32::try_from(g).unwrap_or(u32::MAX)).collect();
        Panels::new::<T>(kernels, in_parallel, groups, 1, self.n, |first, lanes, width, to| {
            let mut rows = Scratch::new(lanes * groups);
            let from = &b.elements[first * self.k..(first + lanes) * self.k];
            copy_runs(from, self.k, 0, &mut rows);
            right_of_rows(level, &rows, groups, lanes, width, &place, to);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Matrix, Product};
    use crate::gemm::element::Element;
    use crate::{KernelError, Level, Scale};

    #[test]
    fn a_sum_whose_offsets_do_not_fit_32_bits_is_refused() {
        fn run<T: Element>(k: usize) -> Result<(), KernelError> {
            let scale = Scale::Tensor(1.0);
            let product = Product { m: 1, k, n: 1, scale, bias: None };
            let nothing = Matrix::<T> { elements: &[], is_transposed: false };
            product.run(Level::Scalar, nothing, nothing, &mut [])
        }
        assert!(run::<f32>((1 << 30) - 1).is_ok());
        assert!(run::<f32>(1 << 30).is_err());
        assert!(run::<half::bf16>(1 << 30).is_ok());
        assert!(run::<half::bf16>(1 << 31).is_err());
        assert!(run::<i8>(1 << 30).is_err());
        assert!(run::<f32>(usize::MAX).is_err());
    }
}
