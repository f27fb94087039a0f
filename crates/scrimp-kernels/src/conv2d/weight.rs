//! The gradient of the weight: the reduction runs over positions and, within them, images.
//!
//! The images of one position make the groups of a word, so neither stride nor padding matters to packing. The left operand
//! is the input as `[channels, height, width, batch]`, the right one the gradient of the output, whose channels are columns.
//! Rows of a tile are eight channels of one tap, which leave out the positions where the tap is on padding; where channels
//! are few or uneven the input is padded instead, and rows of any taps share a tile.
#![expect(unsafe_code, reason = "tasks write disjoint parts of packed operands and of one output")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets within a channel are checked to fit 32 bits"
)]

use rayon::prelude::*;

use super::Conv2dShape;
use crate::gemm::buffer::{Scratch, Shared};
use crate::gemm::element::{BLOCK, Element, check_reduction};
use crate::gemm::pack::{Images, Panels, left_of_images, parts, right_of_images, transpose};
use crate::gemm::tile::{Kernels, ROWS, Segment, WIDE};
use crate::gemm::{Finish, Patterns, RowTile, Sweep, TASKS};
use crate::{KernelError, Kind, Level, Scale};

/// Groups that a part of a divided reduction has at least.
const PART_GROUPS: usize = 1024;

pub(super) fn weight_gradient<T: Element>(
    x: &[T],
    dy: &[T],
    level: Level,
    shape: &Conv2dShape,
    scale: Scale,
    dw: &mut [f32],
) -> Result<(), KernelError> {
    let positions = shape.out_size[0] * shape.out_size[1];
    check_reduction::<T>(shape.batch * positions)?;
    if shape.batch == 0 {
        dw.fill(0.0);
        return Ok(());
    }
    let pass = Pass::new::<T>(shape, scale)?;
    let kernels = Kernels::of(T::KIND, level);
    let len = shape.group_out() * pass.rows();
    for (group, dw) in dw.chunks_exact_mut(len).enumerate() {
        pass.run(&kernels, group, x, dy, dw);
    }
    Ok(())
}

struct Pass<'a> {
    shape: &'a Conv2dShape,
    scale: Scale<'a>,
    /// Whether the packed input is padded, and rows of a tile may be of different taps.
    is_padded: bool,
    /// Size of the packed input, padding included.
    size: [usize; 2],
    before: [usize; 2],
    /// Words of one position.
    words: usize,
    /// Words from one channel to the next; not a power of two, so that channels do not share places in the caches.
    stride: usize,
}

impl<'a> Pass<'a> {
    fn new<T: Element>(shape: &'a Conv2dShape, scale: Scale<'a>) -> Result<Self, KernelError> {
        let is_padded = !shape.group_in().is_multiple_of(ROWS);
        let before = if is_padded { shape.window.padding } else { [0; 2] };
        let size = [0, 1].map(|a| shape.size[a] + 2 * before[a]);
        let words = shape.batch.div_ceil(T::GROUP);
        let channel = size[0] * size[1] * words;
        if u32::try_from(4 * channel).is_err() {
            let problem = format!("a batch of {} images of one channel is over 4 GiB", shape.batch);
            return Err(KernelError::Shape { what: "conv2d weight gradient", problem });
        }
        Ok(Self {
            shape,
            scale,
            is_padded,
            size,
            before,
            words,
            stride: channel.next_multiple_of(BLOCK) + BLOCK,
        })
    }

    fn taps(&self) -> usize {
        self.shape.kernel[0] * self.shape.kernel[1]
    }

    /// Rows of the product: the elements of one filter.
    fn rows(&self) -> usize {
        self.shape.group_in() * self.taps()
    }

    fn run<T: Element>(&self, kernels: &Kernels, group: usize, x: &[T], dy: &[T], dw: &mut [f32]) {
        let shape = self.shape;
        let left = self.pack_left(kernels.level, group, x);
        let right = self.pack_right(kernels, group, dy);
        let groups = shape.out_size[0] * shape.out_size[1] * self.words;
        let mut offsets = Vec::with_capacity(groups);
        for i in 0..shape.out_size[0] {
            for j in 0..shape.out_size[1] {
                let [down, across] = shape.window.stride;
                let start = (i * down * self.size[1] + j * across) * self.words;
                offsets.extend((start..start + self.words).map(|word| 4 * word as u32));
            }
        }
        let tiles = self.tiles();
        let segments = self.segments();
        // Units are rows that one task finishes: whole blocks of channels, or anything.
        let unit_tiles = if self.is_padded { 1 } else { self.taps() };
        let units = tiles.len() / unit_tiles;
        let splits = TASKS.div_ceil(right.count()).min(units);
        // Few sums of many products are divided along the reduction.
        let depth = (TASKS / (right.count() * splits)).clamp(1, (groups / PART_GROUPS).max(1));
        let patterns: Vec<Patterns> = (0..depth)
            .map(|d| {
                let range = Segment { start: groups * d / depth, end: groups * (d + 1) / depth };
                Patterns::new(&segments, range)
            })
            .collect();
        let out = Shared::new(dw);
        let of = |split: usize| {
            units * split / splits * unit_tiles..units * (split + 1) / splits * unit_tiles
        };
        let panel_tasks = right.count() * splits;
        let sum = |task: usize, d: usize, sums: &mut [u32]| {
            let (p, split) = (task / splits, task % splits);
            let width = right.width(p);
            let starts: Vec<[i32; WIDE]> = if T::KIND == Kind::Int8 && d == 0 {
                segments.iter().map(|s| correction(kernels, right.panel(p), width, s)).collect()
            } else {
                Vec::new()
            };
            let sweep = Sweep {
                kernels,
                a: &left,
                offsets: &offsets,
                tiles: &tiles[of(split)],
                patterns: &patterns[d],
                starts: &starts,
            };
            // SAFETY: segments of a tap hold the positions where it sees the packed input, and all positions of a padded
            // one; the panel has a row for each.
            unsafe { sweep.sums(right.panel(p), width, sums) };
        };
        let len = |task: usize| of(task % splits).len() * ROWS * right.width(task / splits);
        if depth == 1 {
            (0..panel_tasks).into_par_iter().for_each(|task| {
                let mut sums = Scratch::new(len(task));
                sum(task, 0, &mut sums);
                let (p, tiles) = (task / splits, of(task % splits));
                self.finish::<T>(kernels.level, group, p, right.width(p), tiles, &[&sums], &out);
            });
            return;
        }
        let longest = (0..panel_tasks).map(len).max().unwrap_or(0);
        let mut all = Scratch::new(panel_tasks * depth * longest);
        all.par_chunks_exact_mut(longest).enumerate().for_each(|(i, sums)| {
            let task = i / depth;
            sum(task, i % depth, &mut sums[..len(task)]);
        });
        (0..panel_tasks).into_par_iter().for_each(|task| {
            let sums: Vec<&[u32]> =
                (0..depth).map(|d| &all[(task * depth + d) * longest..][..len(task)]).collect();
            let (p, tiles) = (task / splits, of(task % splits));
            self.finish::<T>(kernels.level, group, p, right.width(p), tiles, &sums, &out);
        });
    }

    fn pack_left<T: Element>(&self, level: Level, group: usize, x: &[T]) -> Scratch {
        let shape = self.shape;
        let channels = shape.group_in();
        let mut packed = Scratch::new(channels * self.stride);
        if self.is_padded {
            packed.par_chunks_mut(self.stride).for_each(|channel| channel.fill(T::FLIP));
        }
        let [height, width] = shape.size;
        let images = Images {
            count: shape.batch,
            image: height * width * shape.in_channels,
            position: shape.in_channels,
        };
        let all = Shared::new(&mut packed);
        (0..height).into_par_iter().for_each(|i| {
            let start = ((i + self.before[0]) * self.size[1] + self.before[1]) * self.words;
            for first in (0..channels).step_by(BLOCK) {
                let rows = first..channels.min(first + BLOCK);
                // SAFETY: the line of the image is this task's alone, and so is its place in every channel.
                let mut to = unsafe { parts(&all, self.stride, rows, start, width * self.words) };
                left_of_images(level, x, images, i * width, group * channels + first, &mut to);
            }
        });
        packed
    }

    fn pack_right<T: Element>(&self, kernels: &Kernels, group: usize, dy: &[T]) -> Panels {
        let shape = self.shape;
        let [height, width] = shape.out_size;
        let channels = shape.group_out();
        let images = Images {
            count: shape.batch,
            image: height * width * shape.out_channels,
            position: shape.out_channels,
        };
        let line = width * self.words;
        // Spans are not used: what is left out differs between taps, and is summed where it is known.
        Panels::new::<T>(kernels, height * line, 0, channels, |first, lanes, panel_width, to| {
            to.par_chunks_mut(line * panel_width).enumerate().for_each(|(i, to)| {
                let column = group * channels + first;
                right_of_images(
                    kernels.level,
                    dy,
                    images,
                    column,
                    lanes,
                    panel_width,
                    i * line,
                    to,
                );
            });
        })
    }

    fn tiles(&self) -> Vec<RowTile> {
        let (channels, taps) = (self.shape.group_in(), self.taps());
        let tile = |row: &dyn Fn(usize) -> (usize, usize), count: usize, pattern: usize| RowTile {
            rows: std::array::from_fn(|r| {
                let (channel, tap) = row(r);
                self.start(channel, tap)
            }),
            out: [0; ROWS],
            row_scale: [1.0; ROWS],
            count,
            pattern,
        };
        if self.is_padded {
            let rows = self.rows();
            return (0..rows)
                .step_by(ROWS)
                .map(|first| {
                    let row = |r: usize| {
                        let row = (first + r).min(rows - 1);
                        (row / taps, row % taps)
                    };
                    tile(&row, ROWS.min(rows - first), 0)
                })
                .collect();
        }
        (0..channels)
            .step_by(ROWS)
            .flat_map(|first| (0..taps).map(move |tap| (first, tap)))
            .map(|(first, tap)| tile(&|r| (first + r, tap), ROWS, tap))
            .collect()
    }

    /// Bytes to where a tap sees the first position of a channel; before the channel where that is on padding.
    fn start(&self, channel: usize, tap: usize) -> usize {
        let window = self.shape.window;
        let at = |a: usize, k: usize| {
            (k * window.dilation[a] + self.before[a]).wrapping_sub(window.padding[a])
        };
        let (down, across) = (at(0, tap / self.shape.kernel[1]), at(1, tap % self.shape.kernel[1]));
        let position = down.wrapping_mul(self.size[1]).wrapping_add(across);
        (channel * self.stride).wrapping_add(position.wrapping_mul(self.words)).wrapping_mul(4)
    }

    /// For each tap, or for all, the groups of positions where it sees the packed input.
    fn segments(&self) -> Vec<Vec<Segment>> {
        let shape = self.shape;
        let [height, width] = shape.out_size;
        if self.is_padded {
            return vec![vec![Segment { start: 0, end: height * width * self.words }]];
        }
        // Outputs whose tap is on the image, along one axis.
        let seen = |a: usize, k: usize| {
            let (stride, padding) = (shape.window.stride[a], shape.window.padding[a]);
            let tap = k * shape.window.dilation[a];
            let start = padding.saturating_sub(tap).div_ceil(stride);
            let end = (shape.size[a] + padding).saturating_sub(tap).div_ceil(stride);
            (start, end.min(shape.out_size[a]))
        };
        let of = |tap: usize| {
            let (down, across) = (seen(0, tap / shape.kernel[1]), seen(1, tap % shape.kernel[1]));
            let mut segments: Vec<Segment> = Vec::new();
            if across.0 >= across.1 {
                return segments;
            }
            for i in down.0..down.1 {
                let start = (i * width + across.0) * self.words;
                let end = (i * width + across.1) * self.words;
                match segments.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => segments.push(Segment { start, end }),
                }
            }
            segments
        };
        (0..self.taps()).map(of).collect()
    }

    /// Adds the parts of sums, scales them, and writes them as rows of filters.
    #[expect(clippy::too_many_arguments, reason = "it is one step of `run`")]
    fn finish<T: Element>(
        &self,
        level: Level,
        group: usize,
        p: usize,
        width: usize,
        tiles: std::ops::Range<usize>,
        sums: &[&[u32]],
        out: &Shared<f32>,
    ) {
        let taps = self.taps();
        let columns = (self.shape.group_out() - p * WIDE).min(WIDE);
        let finish =
            Finish::new(self.scale, None, group * self.shape.group_out() + p * WIDE, columns);
        // Rows of filters that these tiles hold, and where the sums of each are.
        let (start, end) = (tiles.start * ROWS, (tiles.end * ROWS).min(self.rows()));
        let place = |row: usize| {
            if self.is_padded {
                return (row - start) * width;
            }
            let (channel, tap) = (row / taps, row % taps);
            let tile = channel / ROWS * taps + tap - tiles.start;
            (tile * ROWS + channel % ROWS) * width
        };
        let mut block = [[0; BLOCK]; BLOCK];
        for column in (0..columns).step_by(BLOCK) {
            let scale: &[f32; BLOCK] =
                finish.scale[column..].first_chunk().unwrap_or(&[1.0; BLOCK]);
            for first in (start..end).step_by(BLOCK) {
                let count = BLOCK.min(end - first);
                for (r, to) in block.iter_mut().enumerate().take(count) {
                    let at = place(first + r) + column;
                    finish_row::<T>(sums, at, scale, to);
                }
                transpose(level, &mut block);
                for (c, values) in block.iter().enumerate().take(columns - column) {
                    let at = (p * WIDE + column + c) * self.rows() + first;
                    // SAFETY: rows of these tiles and columns of this panel are this task's alone.
                    let out = unsafe { out.part(at..at + count) };
                    for (out, value) in out.iter_mut().zip(values) {
                        *out = f32::from_bits(*value);
                    }
                }
            }
        }
    }
}

/// Values of sums in lanes, as bits.
#[inline(always)]
fn finish_row<T: Element>(sums: &[&[u32]], at: usize, scale: &[f32; BLOCK], to: &mut [u32; BLOCK]) {
    let (first, more) = (&sums[0][at..at + BLOCK], &sums[1..]);
    if T::KIND == Kind::Int8 {
        for (l, to) in to.iter_mut().enumerate() {
            let sum = more.iter().fold(first[l], |sum, part| sum.wrapping_add(part[at + l]));
            *to = (sum.cast_signed() as f32 * scale[l]).to_bits();
        }
    } else {
        for (l, to) in to.iter_mut().enumerate() {
            let first = f32::from_bits(first[l]);
            let sum = more.iter().fold(first, |sum, part| sum + f32::from_bits(part[at + l]));
            *to = (sum * scale[l]).to_bits();
        }
    }
}

fn correction(kernels: &Kernels, panel: &[u32], width: usize, segments: &[Segment]) -> [i32; WIDE] {
    let mut sums = [0; WIDE];
    for s in segments {
        kernels.correct(&panel[s.start * width..s.end * width], width, &mut sums);
    }
    sums
}
