//! One product for all operations: rows at any addresses times packed columns.
//!
//! A left operand is memory with words in it, a table of offsets that all rows share, and a start for each row; so a
//! convolution reads its padded image where it lies, and no matrix of patches is made (an *indirect* product). A right
//! operand is packed into panels of 32 columns. The loop computes tiles of 8 rows by one panel, in 32-bit *words* that
//! hold one f32, two bf16 or four int8, which is what the instructions for these kinds multiply in one lane.
//!
//! # Numbers
//! - f32: one fused multiply and add for each product where the level has it.
//! - bf16: the level with the instruction adds pairs of products, and takes subnormal factors, products and sums for
//!   zero; the others widen to f32 and keep them.
//! - int8: left codes are stored as code + 128, and 128 times the sum of the right ones is taken from every sum at its
//!   start. That wraps and is exact whenever the true sum fits 32 bits: for reductions of up to
//!   [`LONGEST_INT8`](element::LONGEST_INT8) codes within ±127; longer ones are refused, but for weight
//!   gradients of convolutions, which divide the batch. (-128 times itself is larger: with such codes on both sides the
//!   bound is 131071.)
//! - Sums of products of integers within ±127 are the same in all three kinds while the length times 127² is below 2^24,
//!   because f32 is exact there.
//!
//! Every sum runs over its reduction in one order, cut into blocks that depend on shapes alone.

pub(crate) mod buffer;
mod dot;
pub(crate) mod element;
pub(crate) mod pack;
pub(crate) mod product;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tile;

use buffer::Place;
use tile::{End, Kernels, ROWS, Segment, Start, Tile, Values, WIDE};

use crate::{KernelError, Scale};

/// Groups of the reduction that are summed before the next panel row is left: a panel's part of that length stays in the
/// nearest cache while all rows pass.
const BLOCK_GROUPS: usize = 256;

/// Tasks that an operation is cut into at least, where it is large enough.
pub(crate) const TASKS: usize = 16;

/// Up to eight rows that share a pattern.
#[derive(Clone, Debug)]
pub(crate) struct RowTile {
    /// Where each row's offsets count from, in bytes.
    pub rows: [usize; ROWS],
    /// The first element of each row's values, in the first column.
    pub out: [usize; ROWS],
    pub count: usize,
    pub pattern: usize,
}

/// Which segments of the reduction each pattern has, cut into blocks.
pub(crate) struct Patterns {
    /// For each block, for each pattern.
    blocks: Vec<Vec<Vec<Segment>>>,
}

impl Patterns {
    /// The parts of each pattern's segments that lie in `range`.
    pub fn new(patterns: &[Vec<Segment>], range: Segment) -> Self {
        let len = range.end - range.start;
        let count = len.div_ceil(BLOCK_GROUPS).max(1);
        let block = len.div_ceil(count);
        let cut = |b: usize| {
            let (start, end) =
                (range.start + b * block, range.end.min(range.start + (b + 1) * block));
            let clip = |s: &Segment| Segment { start: s.start.max(start), end: s.end.min(end) };
            let one = |p: &Vec<Segment>| p.iter().map(clip).filter(|s| s.start < s.end).collect();
            patterns.iter().map(one).collect()
        };
        Self { blocks: (0..count).map(cut).collect() }
    }
}

/// Rows to be multiplied by panels.
pub(crate) struct Sweep<'a> {
    pub kernels: &'a Kernels,
    pub a: &'a [u32],
    pub offsets: &'a [u32],
    pub tiles: &'a [RowTile],
    pub patterns: &'a Patterns,
    /// What the sums of each pattern begin with, if not with zero.
    pub starts: &'a [[i32; WIDE]],
}

/// How the columns of a panel are finished.
pub(crate) struct Finish {
    pub scale: [f32; WIDE],
    pub bias: Option<[f32; WIDE]>,
}

impl Finish {
    /// Of columns from `first` on.
    pub fn new(scale: Scale, bias: Option<&[f32]>, first: usize, columns: usize) -> Self {
        let mut all = [1.0; WIDE];
        match scale {
            Scale::Tensor(scale) => all.fill(scale),
            Scale::Channel(scale) => all[..columns].copy_from_slice(&scale[first..first + columns]),
        }
        let bias = bias.map(|bias| {
            let mut all = [0.0; WIDE];
            all[..columns].copy_from_slice(&bias[first..first + columns]);
            all
        });
        Self { scale: all, bias }
    }

    /// Of `times` pixels with all their channels beside each other.
    pub fn repeated(scale: Scale, bias: Option<&[f32]>, channels: usize, times: usize) -> Self {
        let one = Self::new(scale, bias, 0, channels);
        let repeat = |values: [f32; WIDE]| {
            let mut all = values;
            for pixel in all.chunks_exact_mut(channels).take(times) {
                pixel.copy_from_slice(&values[..channels]);
            }
            all
        };
        Self { scale: repeat(one.scale), bias: one.bias.map(repeat) }
    }
}

impl Sweep<'_> {
    /// Words that [`Self::sums`] needs for its sums.
    pub fn sums_len(&self, width: usize) -> usize {
        self.tiles.len() * ROWS * width
    }

    fn start(&self, pattern: usize) -> Start<'_> {
        self.starts.get(pattern).map_or(Start::Zero, Start::Same)
    }

    /// Computes the values of one panel of `columns` columns.
    ///
    /// # Safety
    /// Every row of every tile has `columns` elements from `out` plus its place on, which are this task's alone, and every
    /// group of its pattern lies in `a`, in the offsets and in the panel.
    #[expect(unsafe_code, reason = "tiles write where rows lie")]
    pub unsafe fn values(
        &self,
        panel: &[u32],
        width: usize,
        out: Place<f32>,
        columns: usize,
        finish: &Finish,
        sums: &mut [u32],
    ) {
        let last = self.patterns.blocks.len() - 1;
        for (b, block) in self.patterns.blocks.iter().enumerate() {
            for (tile, sums) in self.tiles.iter().zip(sums.chunks_exact_mut(ROWS * width)) {
                let segments = &block[tile.pattern];
                if b > 0 && b < last && segments.is_empty() {
                    continue;
                }
                let values = Values {
                    out,
                    rows: &tile.out,
                    columns,
                    scale: &finish.scale,
                    bias: finish.bias.as_ref(),
                };
                let mut work = Tile {
                    a: self.a,
                    rows: &tile.rows,
                    count: tile.count,
                    offsets: self.offsets,
                    segments,
                    b: panel,
                    start: if b == 0 { self.start(tile.pattern) } else { Start::Unfinished },
                    end: if b == last { End::Values(&values) } else { End::Unfinished },
                    unfinished: sums,
                };
                // SAFETY: the caller promises what the tile needs.
                unsafe { self.kernels.tile(width, &mut work) };
            }
        }
    }

    /// Computes the bare sums of one panel, without what they begin with: for each tile, for each row, a word for each
    /// column. Adds to what is there if it `continues`.
    ///
    /// # Safety
    /// Every group of every tile's pattern lies in `a`, in the offsets and in the panel.
    #[expect(unsafe_code, reason = "tiles read where rows lie")]
    pub unsafe fn sums(&self, panel: &[u32], width: usize, continues: bool, sums: &mut [u32]) {
        for (b, block) in self.patterns.blocks.iter().enumerate() {
            for (tile, sums) in self.tiles.iter().zip(sums.chunks_exact_mut(ROWS * width)) {
                let segments = &block[tile.pattern];
                let is_first = b == 0 && !continues;
                if !is_first && segments.is_empty() {
                    continue;
                }
                let mut work = Tile {
                    a: self.a,
                    rows: &tile.rows,
                    count: tile.count,
                    offsets: self.offsets,
                    segments,
                    b: panel,
                    start: if is_first { Start::Zero } else { Start::Unfinished },
                    end: End::Unfinished,
                    unfinished: sums,
                };
                // SAFETY: the caller promises what the tile needs.
                unsafe { self.kernels.tile(width, &mut work) };
            }
        }
    }
}

/// Fails unless a slice has as many elements as its shape.
pub(crate) fn check_len(
    what: &'static str,
    actual: usize,
    shape: &[usize],
) -> Result<(), KernelError> {
    let expected = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d)).ok_or_else(|| {
        KernelError::Shape { what, problem: format!("{shape:?} has too many elements") }
    })?;
    if actual == expected {
        Ok(())
    } else {
        Err(KernelError::Length { what, shape: shape.to_vec(), expected, actual })
    }
}

/// Fails unless there is one scale, or one for each channel.
pub(crate) fn check_scale(scale: Scale, channels: usize) -> Result<(), KernelError> {
    match scale {
        Scale::Tensor(_) => Ok(()),
        Scale::Channel(scale) => check_len("scale", scale.len(), &[channels]),
    }
}
