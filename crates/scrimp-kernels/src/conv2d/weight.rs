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

use std::ops::Range;

use rayon::prelude::*;

use super::Conv2dShape;
use crate::gemm::buffer::{Scratch, Shared};
use crate::gemm::element::{BLOCK, Element, LONGEST_INT8, check_reduction};
use crate::gemm::pack::{Images, Panels, left_of_images, right_of_images, transpose};
use crate::gemm::tile::{Kernels, NARROW, ROWS, Segment, WIDE};
use crate::gemm::{Finish, Patterns, RowTile, Sweep, TASKS};
use crate::{KernelError, Kind, Level, Scale};

/// Bytes of filters' gradients up to which the batch is divided among tasks, each with sums of its own.
const SMALL_BYTES: usize = 256 << 10;
/// Tasks among which a batch is divided: few, because each has sums of its own, which are added in the end.
const PARTS: usize = 8;
/// Bytes of both packed operands that a task of a divided batch has at a time.
const PACKED_BYTES: usize = 400 << 10;

pub(super) fn weight_gradient<T: Element>(
    x: &[T],
    dy: &[T],
    level: Level,
    shape: &Conv2dShape,
    scale: Scale,
    dw: &mut [f32],
) -> Result<(), KernelError> {
    let positions = shape.out_size[0] * shape.out_size[1];
    // Longer sums are divided among tasks.
    check_reduction::<T>(positions)?;
    if shape.batch == 0 {
        dw.fill(0.0);
        return Ok(());
    }
    let kernels = Kernels::of(T::KIND, level);
    let rows = shape.group_in() * shape.kernel[0] * shape.kernel[1];
    let len = shape.group_out() * rows;
    let is_small = 4 * rows * shape.group_out().next_multiple_of(NARROW) <= SMALL_BYTES;
    let pixels = shape.size[0] * shape.size[1] * shape.group_in();
    let image_bytes = 4 * (pixels + positions * shape.group_out().next_multiple_of(NARROW));
    let words = shape.batch.div_ceil(T::GROUP);
    let is_divided =
        is_small && words > 1 || check_reduction::<T>(shape.batch * positions).is_err();
    let whole = if is_divided { None } else { Some(Pass::new::<T>(shape, shape.batch, scale)?) };
    for (group, dw) in dw.chunks_exact_mut(len).enumerate() {
        let operands = Operands { kernels: &kernels, group, x, dy };
        if let Some(whole) = &whole {
            whole.run(&operands, dw);
        } else {
            let fits = (PACKED_BYTES / image_bytes).clamp(1, words.div_ceil(TASKS)) * T::GROUP;
            let chunk = fits.min(LONGEST_INT8 / positions).max(1);
            divided(shape, scale, &operands, chunk, dw)?;
        }
    }
    Ok(())
}

/// What is multiplied, and how.
struct Operands<'a, T> {
    kernels: &'a Kernels,
    group: usize,
    x: &'a [T],
    dy: &'a [T],
}

/// The gradient of one group, in chunks of the batch whose packed operands stay in the cache. Tasks have sums of their own,
/// which are added in order.
fn divided<T: Element>(
    shape: &Conv2dShape,
    scale: Scale,
    operands: &Operands<T>,
    chunk: usize,
    dw: &mut [f32],
) -> Result<(), KernelError> {
    let whole = Pass::new::<T>(shape, chunk, scale)?;
    let rest = match shape.batch % chunk {
        0 => None,
        rest => Some(Pass::new::<T>(shape, rest, scale)?),
    };
    let positions = shape.out_size[0] * shape.out_size[1];
    let chunks = shape.batch.div_ceil(chunk);
    // Sums of one part fit 32 bits.
    let most = if T::KIND == Kind::Int8 { LONGEST_INT8 / (chunk * positions) } else { chunks };
    let parts = chunks.div_ceil(most.min(chunks.div_ceil(PARTS)));
    let count = shape.group_out().div_ceil(WIDE);
    let len = whole.tiles.len() * ROWS * WIDE;
    let mut sums = Scratch::new(parts * count * len);
    let mut corrections = vec![[0_i32; WIDE]; parts * count * whole.segments.len()];
    let per_part = corrections.par_chunks_exact_mut(count * whole.segments.len());
    sums.par_chunks_exact_mut(count * len).zip(per_part).enumerate().for_each(
        |(part, (sums, corrections))| {
            let range = chunks * part / parts..chunks * (part + 1) / parts;
            debug_assert!(range.len() <= most, "sums of {} chunks fit", range.len());
            for c in range.clone() {
                let first = c * chunk;
                let pass = rest.as_ref().filter(|_| first + chunk > shape.batch).unwrap_or(&whole);
                let left = pass.pack_left(operands, first, false);
                let right = pass.pack_right(operands, first, false);
                let sweep = pass.sweep(operands.kernels, &left, &pass.tiles);
                let corrections = corrections.chunks_exact_mut(pass.segments.len());
                for (p, (sums, corrections)) in
                    sums.chunks_exact_mut(len).zip(corrections).enumerate()
                {
                    let (panel, width) = (right.panel(p), right.width(p));
                    let sums = &mut sums[..sweep.sums_len(width)];
                    // SAFETY: segments of a tap hold the positions where it sees the packed input, and all positions of
                    // a padded one; the panel has a row for each.
                    unsafe { sweep.sums(panel, width, c > range.start, sums) };
                    pass.correct::<T>(operands.kernels, panel, width, corrections);
                }
            }
        },
    );
    let out = Shared::new(dw);
    let splits = TASKS.div_ceil(count).min(whole.units());
    (0..count * splits).into_par_iter().for_each(|task| {
        let (p, tiles) = (task / splits, whole.split(task % splits, splits));
        let width = if shape.group_out() - p * WIDE <= NARROW { NARROW } else { WIDE };
        let all: Vec<Part> = (0..parts)
            .map(|part| {
                let start = (part * count + p) * len;
                let patterns = whole.segments.len();
                Part {
                    sums: &sums
                        [start + tiles.start * ROWS * width..start + tiles.end * ROWS * width],
                    corrections: &corrections[(part * count + p) * patterns..][..patterns],
                }
            })
            .collect();
        whole.finish::<T>(operands, p, width, tiles, &all, &out);
    });
    Ok(())
}

/// Sums over a part of the batch, and what is to be added to those of each pattern.
struct Part<'a> {
    sums: &'a [u32],
    corrections: &'a [[i32; WIDE]],
}

/// The geometry of one group for some images of the batch.
struct Pass<'a> {
    shape: &'a Conv2dShape,
    images: usize,
    scale: Scale<'a>,
    /// Whether the packed input is padded, and rows of a tile may be of different taps.
    is_padded: bool,
    /// Pixels of the input from one packed pixel to the next: what a kernel of one pixel skips is not packed.
    sample: [usize; 2],
    /// Size of the packed input, padding included.
    size: [usize; 2],
    before: [usize; 2],
    /// Words of one position.
    words: usize,
    /// Words from one channel to the next; not a power of two, so that channels do not share places in the caches.
    stride: usize,
    offsets: Vec<u32>,
    tiles: Vec<RowTile>,
    segments: Vec<Vec<Segment>>,
    patterns: Patterns,
}

impl<'a> Pass<'a> {
    fn new<T: Element>(
        shape: &'a Conv2dShape,
        images: usize,
        scale: Scale<'a>,
    ) -> Result<Self, KernelError> {
        let window = shape.window;
        let is_padded = !shape.group_in().is_multiple_of(ROWS);
        let is_sampled = shape.kernel == [1; 2] && window.padding == [0; 2];
        let before = if is_padded { window.padding } else { [0; 2] };
        let size = [0, 1]
            .map(|a| if is_sampled { shape.out_size[a] } else { shape.size[a] + 2 * before[a] });
        let words = images.div_ceil(T::GROUP);
        let channel = size[0] * size[1] * words;
        let sample = if is_sampled { window.stride } else { [1; 2] };
        let [down, across] = [0, 1].map(|a| window.stride[a] / sample[a]);
        // Offsets count from where a tap sees the first position, and lead beyond the channel where that is on padding.
        let [lines, pixels] = shape.out_size;
        let reach = ((lines - 1) * down * size[1] + (pixels - 1) * across + 1) * words;
        if u32::try_from(4 * channel.max(reach)).is_err() {
            let problem = format!("a batch of {} images of one channel is over 4 GiB", shape.batch);
            return Err(KernelError::Shape { what: "conv2d weight gradient", problem });
        }
        let mut pass = Self {
            shape,
            images,
            scale,
            is_padded,
            sample,
            size,
            before,
            words,
            stride: channel.next_multiple_of(BLOCK) + BLOCK,
            offsets: Vec::new(),
            tiles: Vec::new(),
            segments: Vec::new(),
            patterns: Patterns::new(&[], Segment { start: 0, end: 0 }),
        };
        let groups = shape.out_size[0] * shape.out_size[1] * words;
        pass.offsets.reserve(groups);
        for i in 0..shape.out_size[0] {
            for j in 0..shape.out_size[1] {
                let start = (i * down * size[1] + j * across) * words;
                pass.offsets.extend((start..start + words).map(|word| 4 * word as u32));
            }
        }
        pass.tiles = pass.tiles();
        pass.segments = pass.segments();
        pass.patterns = Patterns::new(&pass.segments, Segment { start: 0, end: groups });
        Ok(pass)
    }

    fn taps(&self) -> usize {
        self.shape.kernel[0] * self.shape.kernel[1]
    }

    /// Rows of the product: the elements of one filter.
    fn rows(&self) -> usize {
        self.shape.group_in() * self.taps()
    }

    /// Tiles that hold whole rows of filters come in units: of all taps of eight channels, or single.
    fn units(&self) -> usize {
        if self.is_padded { self.tiles.len() } else { self.tiles.len() / self.taps() }
    }

    /// The tiles of one of some parts.
    fn split(&self, part: usize, parts: usize) -> Range<usize> {
        let units = self.units();
        let unit = self.tiles.len() / units;
        units * part / parts * unit..units * (part + 1) / parts * unit
    }

    fn sweep<'s>(
        &'s self,
        kernels: &'s Kernels,
        left: &'s [u32],
        tiles: &'s [RowTile],
    ) -> Sweep<'s> {
        Sweep {
            kernels,
            a: left,
            offsets: &self.offsets,
            tiles,
            patterns: &self.patterns,
            starts: &[],
        }
    }

    /// All of it at once: packed by all threads, then cut into tasks by panels and rows.
    fn run<T: Element>(&self, operands: &Operands<T>, dw: &mut [f32]) {
        let left = self.pack_left(operands, 0, true);
        let right = self.pack_right(operands, 0, true);
        let splits = TASKS.div_ceil(right.count()).min(self.units());
        let out = Shared::new(dw);
        (0..right.count() * splits).into_par_iter().for_each(|task| {
            let (p, tiles) = (task / splits, self.split(task % splits, splits));
            let (panel, width) = (right.panel(p), right.width(p));
            let sweep = self.sweep(operands.kernels, &left, &self.tiles[tiles.clone()]);
            let mut sums = Scratch::new(sweep.sums_len(width));
            // SAFETY: as in `divided`.
            unsafe { sweep.sums(panel, width, false, &mut sums) };
            let mut corrections = vec![[0; WIDE]; self.segments.len()];
            self.correct::<T>(operands.kernels, panel, width, &mut corrections);
            let part = Part { sums: &sums, corrections: &corrections };
            self.finish::<T>(operands, p, width, tiles, &[part], &out);
        });
    }

    /// Adds what belongs to the sums of each pattern, for int8.
    fn correct<T: Element>(
        &self,
        kernels: &Kernels,
        panel: &[u32],
        width: usize,
        corrections: &mut [[i32; WIDE]],
    ) {
        if T::KIND != Kind::Int8 {
            return;
        }
        for (segments, sums) in self.segments.iter().zip(corrections) {
            for s in segments {
                kernels.correct(&panel[s.start * width..s.end * width], width, sums);
            }
        }
    }

    /// Packs images from the `first` on.
    fn pack_left<T: Element>(
        &self,
        operands: &Operands<T>,
        first: usize,
        in_parallel: bool,
    ) -> Scratch {
        let shape = self.shape;
        let channels = shape.group_in();
        let mut packed = Scratch::new(channels * self.stride);
        if self.before != [0; 2] {
            packed.fill(T::FLIP);
        }
        let [height, width] = shape.size;
        let [down, across] = self.sample;
        let image = height * width * shape.in_channels;
        let images = Images { count: self.images, image, position: across * shape.in_channels };
        let x = &operands.x[first * image..];
        let all = Shared::new(&mut packed);
        let (lines, pixels) =
            (self.size[0] - 2 * self.before[0], self.size[1] - 2 * self.before[1]);
        let line = |i: usize| {
            let start = ((i + self.before[0]) * self.size[1] + self.before[1]) * self.words;
            let x = &x[i * down * width * shape.in_channels..];
            for first in (0..channels).step_by(BLOCK) {
                let rows = first..channels.min(first + BLOCK);
                let column = operands.group * channels + first;
                // SAFETY: the line of the image is this task's alone, and so is its place in every channel.
                unsafe {
                    let mut to: [&mut [u32]; BLOCK] = std::array::from_fn(|_| Default::default());
                    let count = rows.len();
                    for (to, row) in to.iter_mut().zip(rows) {
                        let start = row * self.stride + start;
                        *to = all.part(start..start + pixels * self.words);
                    }
                    left_of_images(operands.kernels.level, x, images, 0, column, &mut to[..count]);
                }
            }
        };
        if in_parallel {
            (0..lines).into_par_iter().for_each(line);
        } else {
            (0..lines).for_each(line);
        }
        packed
    }

    fn pack_right<T: Element>(
        &self,
        operands: &Operands<T>,
        first: usize,
        in_parallel: bool,
    ) -> Panels {
        let shape = self.shape;
        let (kernels, channels) = (operands.kernels, shape.group_out());
        let [height, width] = shape.out_size;
        let image = height * width * shape.out_channels;
        let images = Images { count: self.images, image, position: shape.out_channels };
        let dy = &operands.dy[first * image..];
        let line = width * self.words;
        // Spans are not used: what is left out differs between taps, and is summed where it is known.
        Panels::new::<T>(
            kernels,
            in_parallel,
            height * line,
            0,
            channels,
            |first, lanes, width, to| {
                let column = operands.group * channels + first;
                let part = |(i, to): (usize, &mut [u32])| {
                    right_of_images(kernels.level, dy, images, column, lanes, width, i * line, to);
                };
                if in_parallel {
                    to.par_chunks_mut(line * width).enumerate().for_each(part);
                } else {
                    part((0, to));
                }
            },
        )
    }

    fn tiles(&self) -> Vec<RowTile> {
        let (channels, taps) = (self.shape.group_in(), self.taps());
        let tile = |row: &dyn Fn(usize) -> (usize, usize), count: usize, pattern: usize| RowTile {
            rows: std::array::from_fn(|r| {
                let (channel, tap) = row(r);
                self.start(channel, tap)
            }),
            out: [0; ROWS],
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
    fn finish<T: Element>(
        &self,
        operands: &Operands<T>,
        p: usize,
        width: usize,
        tiles: Range<usize>,
        parts: &[Part],
        out: &Shared<f32>,
    ) {
        let taps = self.taps();
        let outs = self.shape.group_out();
        let columns = (outs - p * WIDE).min(WIDE);
        let finish = Finish::new(self.scale, None, operands.group * outs + p * WIDE, columns);
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
            for first in (start..end).step_by(BLOCK) {
                let count = BLOCK.min(end - first);
                for (r, to) in block.iter_mut().enumerate().take(count) {
                    let row = first + r;
                    let pattern = if self.is_padded { 0 } else { row % taps };
                    let scale = &finish.scale[column..column + BLOCK];
                    finish_row::<T>(parts, place(row) + column, pattern, column, scale, to);
                }
                transpose(operands.kernels.level, &mut block);
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
fn finish_row<T: Element>(
    parts: &[Part],
    at: usize,
    pattern: usize,
    column: usize,
    scale: &[f32],
    to: &mut [u32; BLOCK],
) {
    if T::KIND == Kind::Int8 {
        // Each part fits 32 bits; all of them may not.
        let mut total = [0_i64; BLOCK];
        for part in parts {
            let correction = &part.corrections[pattern][column..column + BLOCK];
            let sums = &part.sums[at..at + BLOCK];
            for ((total, sum), correction) in total.iter_mut().zip(sums).zip(correction) {
                *total += i64::from(sum.cast_signed().wrapping_add(*correction));
            }
        }
        for ((to, total), scale) in to.iter_mut().zip(total).zip(scale) {
            *to = (total as f32 * scale).to_bits();
        }
    } else {
        let mut total = [0_f32; BLOCK];
        for (i, part) in parts.iter().enumerate() {
            for (total, sum) in total.iter_mut().zip(&part.sums[at..at + BLOCK]) {
                let sum = f32::from_bits(*sum);
                *total = if i == 0 { sum } else { *total + sum };
            }
        }
        for ((to, total), scale) in to.iter_mut().zip(total).zip(scale) {
            *to = (total * scale).to_bits();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pass;
    use crate::Scale;
    use crate::conv2d::{Conv2dShape, Window};

    #[test]
    fn offsets_beyond_a_channel_are_counted_too() {
        // A channel has 4 MiB, and the last position looks 8 GiB behind the first.
        let window = Window { padding: [1024, 0], ..Window::default() };
        let shape = Conv2dShape::new([1 << 20, 1, 1, 8], [1, 8, 1, 1], window).unwrap();
        assert!(Pass::new::<f32>(&shape, 1 << 20, Scale::Tensor(1.0)).is_err());
        assert!(Pass::new::<f32>(&shape, 1 << 4, Scale::Tensor(1.0)).is_ok());
    }
}
