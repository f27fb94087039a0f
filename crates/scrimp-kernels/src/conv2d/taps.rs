//! Forward and the gradient of the input: both slide taps over a padded image.
//!
//! Each task copies a few images into a padded scratch and multiplies its pixels, where they lie, by panels of weights. The
//! rows of a tile are the same position in several images, as far as there are, so that taps on padding are left out. With a
//! stride, the gradient of the input falls into classes of positions, by their remainder, that see different taps.
#![expect(unsafe_code, reason = "tasks write disjoint parts of one output")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "sizes of a checked shape are below 2^30, and differences are made positive by the padding"
)]

use rayon::prelude::*;

use super::Conv2dShape;
use crate::gemm::buffer::{Scratch, Shared};
use crate::gemm::element::{Element, check_reduction, interleave};
use crate::gemm::pack::{Panels, left_of_runs, right_of_rows};
use crate::gemm::tile::{Kernels, NARROW, ROWS, Segment, WIDE};
use crate::gemm::{Finish, Patterns, RowTile, Sweep, TASKS};
use crate::{KernelError, Level, Scale};

/// An element of the kernel along one axis.
#[derive(Clone, Copy, Debug)]
struct Tap {
    /// Which one.
    kernel: usize,
    /// Where it looks: pixels of the padded source from the first one that the position sees.
    offset: usize,
}

/// Positions of the target along one axis that see the same taps.
#[derive(Clone, Debug)]
struct Axis {
    /// Pixels of the source, without padding, and of padding before it.
    source: usize,
    before: usize,
    /// Pixels of the padded source from one position to the next.
    step: usize,
    count: usize,
    /// Where the positions lie in the target.
    first: usize,
    stride: usize,
    taps: Vec<Tap>,
}

impl Axis {
    /// Which taps see the source from a position; they follow each other.
    fn range(&self, position: usize) -> (usize, usize) {
        let sees = |tap: &Tap| {
            let at = position * self.step + tap.offset;
            at >= self.before && at < self.before + self.source
        };
        match self.taps.iter().position(sees) {
            Some(start) => (start, self.taps.iter().rposition(sees).map_or(start, |last| last + 1)),
            None => (0, 0),
        }
    }

    /// The same axis with `times` positions taken as one: its taps are those of any of them.
    fn widened(&self, times: usize) -> Self {
        let all = |pixel: usize| self.taps.iter().map(move |tap| tap.offset + pixel * self.step);
        let mut offsets: Vec<usize> = (0..times).flat_map(all).collect();
        offsets.sort_unstable();
        offsets.dedup();
        Self {
            step: times * self.step,
            count: self.count / times,
            taps: offsets.into_iter().map(|offset| Tap { kernel: usize::MAX, offset }).collect(),
            ..self.clone()
        }
    }
}

/// A pass over images: from a source to a target, by classes of positions.
struct Pass<'a> {
    batch: usize,
    source: [usize; 2],
    target: [usize; 2],
    before: [usize; 2],
    padded: [usize; 2],
    groups: usize,
    /// Channels of a group.
    channels: usize,
    columns: usize,
    classes: Vec<[Axis; 2]>,
    scale: Scale<'a>,
    bias: Option<&'a [f32]>,
}

pub(super) fn forward<T: Element>(
    x: &[T],
    w: &[T],
    level: Level,
    shape: &Conv2dShape,
    scale: Scale,
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<(), KernelError> {
    check_reduction::<T>(shape.group_in() * shape.kernel[0] * shape.kernel[1])?;
    let window = shape.window;
    let axis = |a: usize| Axis {
        source: shape.size[a],
        before: window.padding[a],
        step: window.stride[a],
        count: shape.out_size[a],
        first: 0,
        stride: 1,
        taps: (0..shape.kernel[a])
            .map(|kernel| Tap { kernel, offset: kernel * window.dilation[a] })
            .collect(),
    };
    let pass = Pass {
        batch: shape.batch,
        source: shape.size,
        target: shape.out_size,
        before: window.padding,
        padded: [0, 1].map(|a| shape.size[a] + 2 * window.padding[a]),
        groups: window.groups,
        channels: shape.group_in(),
        columns: shape.group_out(),
        classes: vec![[axis(0), axis(1)]],
        scale,
        bias,
    };
    let kernels = Kernels::of(T::KIND, level);
    let panels = |class: &[Axis; 2], g: usize| pack_forward(&kernels, w, shape, class, g);
    pass.run(&kernels, x, panels, y);
    Ok(())
}

pub(super) fn input_gradient<T: Element>(
    dy: &[T],
    w: &[T],
    level: Level,
    shape: &Conv2dShape,
    scale: Scale,
    dx: &mut [f32],
) -> Result<(), KernelError> {
    check_reduction::<T>(shape.group_out() * shape.kernel[0] * shape.kernel[1])?;
    let window = shape.window;
    let mut before = [0; 2];
    let mut padded = [0; 2];
    let mut axes = [const { Vec::new() }; 2];
    for a in 0..2 {
        let (size, stride) = (shape.size[a], window.stride[a]);
        // From a position of its class, in outputs, to the output that a tap sees.
        let shift = |first: usize, kernel: usize| {
            let at = (first + window.padding[a]) as isize - (kernel * window.dilation[a]) as isize;
            (at.rem_euclid(stride as isize) == 0).then(|| at.div_euclid(stride as isize))
        };
        let (mut low, mut high) = (0_isize, shape.out_size[a] as isize);
        for first in 0..stride.min(size) {
            let count = (size - first).div_ceil(stride);
            for shift in (0..shape.kernel[a]).filter_map(|kernel| shift(first, kernel)) {
                (low, high) = (low.min(shift), high.max(count as isize + shift));
            }
        }
        before[a] = -low as usize;
        padded[a] = (high - low) as usize;
        for first in 0..stride.min(size) {
            let tap = |kernel| Some(Tap { kernel, offset: (shift(first, kernel)? - low) as usize });
            axes[a].push(Axis {
                source: shape.out_size[a],
                before: before[a],
                step: 1,
                count: (size - first).div_ceil(stride),
                first,
                stride,
                taps: (0..shape.kernel[a]).filter_map(tap).collect(),
            });
        }
    }
    let [rows, columns] = axes;
    let classes = rows.iter().flat_map(|r| columns.iter().map(|c| [r.clone(), c.clone()]));
    let pass = Pass {
        batch: shape.batch,
        source: shape.out_size,
        target: shape.size,
        before,
        padded,
        groups: window.groups,
        channels: shape.group_out(),
        columns: shape.group_in(),
        classes: classes.collect(),
        scale,
        bias: None,
    };
    let kernels = Kernels::of(T::KIND, level);
    let panels = |class: &[Axis; 2], g: usize| pack_input_gradient(&kernels, w, shape, class, g);
    pass.run(&kernels, dy, panels, dx);
    Ok(())
}

/// Columns are output channels; the reduction runs over taps and, within them, input channels.
fn pack_forward<T: Element>(
    kernels: &Kernels,
    w: &[T],
    shape: &Conv2dShape,
    class: &[Axis; 2],
    group: usize,
) -> Panels {
    let channels = shape.group_in();
    let taps = shape.kernel[0] * shape.kernel[1];
    let (words, len) = (channels.div_ceil(T::GROUP), channels * taps);
    debug_assert_eq!(class[0].taps.len() * class[1].taps.len(), taps, "one class has all taps");
    // One element is one word, which can be put where it belongs; elements of a longer word are brought together first.
    let place: Vec<u32> = if T::GROUP == 1 {
        (0..len).map(|i| (i % taps * channels + i / taps) as u32).collect()
    } else {
        (0..taps * words).map(|i| i as u32).collect()
    };
    let fill = |first: usize, lanes: usize, width: usize, to: &mut [u32]| {
        let mut rows = Scratch::new(lanes * place.len());
        let filters = &w[(group * shape.group_out() + first) * len..][..lanes * len];
        for (row, filter) in rows.chunks_exact_mut(place.len()).zip(filters.chunks_exact(len)) {
            if T::GROUP == 1 {
                row.iter_mut().zip(filter).for_each(|(word, v)| *word = v.bits());
            } else {
                words_of_filter(filter, taps, row);
            }
        }
        right_of_rows(kernels.level, &rows, place.len(), lanes, width, &place, to);
    };
    Panels::new::<T>(kernels, true, taps * words, taps, shape.group_out(), fill)
}

/// The words of a filter `[channels, taps]`, in the order `[taps, words]`.
#[inline(always)]
fn words_of_filter<T: Element>(filter: &[T], taps: usize, to: &mut [u32]) {
    let words = to.len() / taps;
    let bits = 32 / T::GROUP;
    for (c, group) in filter.chunks(T::GROUP * taps).enumerate() {
        for t in 0..taps {
            let mut word = 0;
            for (q, channel) in group.chunks_exact(taps).enumerate() {
                word |= channel[t].bits() << (q * bits);
            }
            to[t * words + c] = word;
        }
    }
}

/// Columns are input channels; the reduction runs over taps and, within them, output channels.
fn pack_input_gradient<T: Element>(
    kernels: &Kernels,
    w: &[T],
    shape: &Conv2dShape,
    class: &[Axis; 2],
    group: usize,
) -> Panels {
    let (inner, outer) = (shape.group_in(), shape.group_out());
    let taps = shape.kernel[0] * shape.kernel[1];
    let words = outer.div_ceil(T::GROUP);
    let seen = || class[0].taps.iter().flat_map(|r| class[1].taps.iter().map(move |c| (r, c)));
    // Where the first word of each tap goes, if the class sees it.
    let mut place = vec![u32::MAX; taps];
    for (t, (row, column)) in seen().enumerate() {
        place[row.kernel * shape.kernel[1] + column.kernel] = (t * words) as u32;
    }
    let count = seen().count();
    let fill = |first: usize, lanes: usize, width: usize, to: &mut [u32]| {
        let mut row = Scratch::new(lanes * taps);
        for k in 0..words {
            let mut filters: [&[T]; 4] = [&[]; 4];
            let some = T::GROUP.min(outer - k * T::GROUP);
            for (q, filter) in filters.iter_mut().enumerate().take(some) {
                let o = group * outer + k * T::GROUP + q;
                *filter = &w[(o * inner + first) * taps..][..lanes * taps];
            }
            interleave(&filters[..some], 0, &mut row);
            for (t, place) in place.iter().enumerate().filter(|(_, place)| **place != u32::MAX) {
                let to = &mut to[(*place as usize + k) * width..][..width];
                for (to, word) in to.iter_mut().zip(row.iter().skip(t).step_by(taps)) {
                    *to = *word;
                }
                to[lanes..].fill(0);
            }
        }
    };
    Panels::new::<T>(kernels, true, count * words, count, inner, fill)
}

/// What tasks of one number of images know of a class.
struct Table {
    offsets: Vec<u32>,
    tiles: Vec<RowTile>,
    patterns: Patterns,
    /// For each pattern, which taps it sees.
    seen: Vec<Vec<usize>>,
}

/// Bytes of padded images that a task copies at a time.
const IMAGE_BYTES: usize = 400 << 10;
/// Positions that a task has at least, where it can, because each loads all panels.
const POSITIONS: usize = 256;

impl Pass<'_> {
    /// Words of a pixel.
    fn pixel<T: Element>(&self) -> usize {
        self.groups * self.channels.div_ceil(T::GROUP)
    }

    fn run<T: Element>(
        &self,
        kernels: &Kernels,
        source: &[T],
        panels: impl Fn(&[Axis; 2], usize) -> Panels,
        out: &mut [f32],
    ) {
        if self.batch == 0 {
            return;
        }
        if let Some(times) = self.widening() {
            let axis = self.classes[0][1].widened(times);
            let panels = |class: &[Axis; 2], g: usize| {
                self.widened_panels::<T>(kernels, &panels(&self.classes[0], g), &class[1], times)
            };
            let classes = vec![[self.classes[0][0].clone(), axis]];
            return self.run_classes(kernels, source, &classes, panels, times, out);
        }
        self.run_classes(kernels, source, &self.classes, panels, 1, out);
    }

    /// How many pixels beside each other are better computed as one with all their channels, because those of one fill only
    /// a part of a panel: taps that they share are then multiplied once.
    fn widening(&self) -> Option<usize> {
        let [[_, across]] = &self.classes[..] else { return None };
        if self.groups > 1 || across.stride > 1 {
            return None;
        }
        let most = NARROW / self.columns.max(1);
        let times = (2..=most).filter(|times| across.count.is_multiple_of(*times));
        let cost = |times: usize| across.widened(times).taps.len() as f64 / times as f64;
        let best = times.min_by(|a, b| cost(*a).total_cmp(&cost(*b)))?;
        (cost(best) < cost(1)).then_some(best)
    }

    /// The panels of pixels beside each other, from those of one.
    fn widened_panels<T: Element>(
        &self,
        kernels: &Kernels,
        one: &Panels,
        wide: &Axis,
        times: usize,
    ) -> Panels {
        let [down, across] = &self.classes[0];
        let words = self.channels.div_ceil(T::GROUP);
        let taps = down.taps.len() * wide.taps.len();
        let (panel, width) = (one.panel(0), one.width(0));
        let fill = |_: usize, _: usize, to_width: usize, to: &mut [u32]| {
            to.fill(0);
            for (t, to) in to.chunks_exact_mut(words * to_width).enumerate() {
                let (row, offset) = (t / wide.taps.len(), wide.taps[t % wide.taps.len()].offset);
                for pixel in 0..times {
                    let same = |tap: &Tap| tap.offset + pixel * across.step == offset;
                    let Some(tap) = across.taps.iter().position(same) else { continue };
                    let from = &panel[(row * across.taps.len() + tap) * words * width..];
                    for (to, from) in to.chunks_exact_mut(to_width).zip(from.chunks_exact(width)) {
                        to[pixel * self.columns..][..self.columns]
                            .copy_from_slice(&from[..self.columns]);
                    }
                }
            }
        };
        Panels::new::<T>(kernels, false, taps * words, taps, times * self.columns, fill)
    }

    /// Computes all classes, `times` pixels beside each other at a time.
    fn run_classes<T: Element>(
        &self,
        kernels: &Kernels,
        source: &[T],
        classes: &[[Axis; 2]],
        panels: impl Fn(&[Axis; 2], usize) -> Panels,
        times: usize,
        out: &mut [f32],
    ) {
        let panels: Vec<Vec<Panels>> =
            classes.iter().map(|c| (0..self.groups).map(|g| panels(c, g)).collect()).collect();
        let image = self.padded[0] * self.padded[1] * self.pixel::<T>();
        let images = self.images_of_a_task(4 * image);
        let tables = |images: usize| -> Vec<Table> {
            classes.iter().map(|class| self.table::<T>(class, times, images)).collect()
        };
        let tasks = self.batch.div_ceil(images);
        let whole = tables(images);
        let rest = match self.batch % images {
            0 => Vec::new(),
            rest => tables(rest),
        };
        let parts = TASKS.div_ceil(tasks).min(panels[0][0].count());
        let (source_len, target_len) = (
            self.source[0] * self.source[1] * self.groups * self.channels,
            self.target[0] * self.target[1] * self.groups * self.columns,
        );
        let out = Shared::new(out);
        let task = |task: usize| {
            let (t, part) = (task / parts, task % parts);
            let range = t * images..self.batch.min((t + 1) * images);
            let mut scratch = Scratch::new(range.len() * image);
            for (n, to) in range.clone().zip(scratch.chunks_exact_mut(image)) {
                self.copy(kernels.level, &source[n * source_len..][..source_len], to);
            }
            let tables = if range.len() == images { &whole } else { &rest };
            for (table, panels) in tables.iter().zip(&panels) {
                for (g, panels) in panels.iter().enumerate() {
                    let a = &scratch[g * self.channels.div_ceil(T::GROUP)..];
                    for p in panels.count() * part / parts..panels.count() * (part + 1) / parts {
                        let start = |seen: &Vec<usize>| panels.correction(p, seen.iter().copied());
                        let starts: Vec<_> = table.seen.iter().filter_map(start).collect();
                        let sweep = Sweep {
                            kernels,
                            a,
                            offsets: &table.offsets,
                            tiles: &table.tiles,
                            patterns: &table.patterns,
                            starts: &starts,
                        };
                        let (first, width) = (p * WIDE, panels.width(p));
                        let columns = (times * self.columns - first).min(WIDE);
                        let finish = if times > 1 {
                            Finish::repeated(self.scale, self.bias, self.columns, times)
                        } else {
                            Finish::new(self.scale, self.bias, g * self.columns + first, columns)
                        };
                        let mut sums = Scratch::new(sweep.sums_len(width));
                        let at = range.start * target_len + g * self.columns + first;
                        // SAFETY: rows of the table are positions of this task's images, each of `groups * columns`
                        // elements, and these columns of them are this part's; all taps of a position lie in its padded
                        // image, and a panel has a row for every word of them.
                        unsafe {
                            let out = out.from(at);
                            sweep.values(panels.panel(p), width, out, columns, &finish, &mut sums);
                        }
                    }
                }
            }
        };
        (0..tasks * parts).into_par_iter().for_each(task);
    }

    fn images_of_a_task(&self, image_bytes: usize) -> usize {
        let positions = self.classes[0][0].count * self.classes[0][1].count;
        let most = self.batch.div_ceil(2).next_power_of_two();
        let mut images = (IMAGE_BYTES / image_bytes).clamp(1, most);
        images = (images + 1).next_power_of_two() / 2;
        while images * positions < POSITIONS && images < most {
            images *= 2;
        }
        // Many small tasks rather than few, as long as a tile has a row for each image.
        while images > ROWS && self.batch.div_ceil(images) < TASKS && images * positions > POSITIONS
        {
            images /= 2;
        }
        images
    }

    /// Copies an image into its padded place.
    fn copy<T: Element>(&self, level: Level, from: &[T], to: &mut [u32]) {
        let pixel = self.pixel::<T>();
        let (line, padded) = (self.source[1] * pixel, self.padded[1] * pixel);
        let len = self.source[1] * self.groups * self.channels;
        let (left, first) = (self.before[1] * pixel, self.before[0] * padded);
        let end = first + self.source[0] * padded;
        to[..first].fill(T::FLIP);
        to[end..].fill(T::FLIP);
        if line == padded {
            left_of_runs(level, from, self.channels, &mut to[first..end]);
            return;
        }
        for (from, to) in from.chunks_exact(len).zip(to[first..end].chunks_exact_mut(padded)) {
            to[..left].fill(T::FLIP);
            to[left + line..].fill(T::FLIP);
            left_of_runs(level, from, self.channels, &mut to[left..left + line]);
        }
    }

    fn table<T: Element>(&self, class: &[Axis; 2], times: usize, images: usize) -> Table {
        let [rows, columns] = class;
        let words = self.channels.div_ceil(T::GROUP);
        let pixel = self.pixel::<T>();
        let at = |i: usize, j: usize| 4 * (i * self.padded[1] + j) * pixel;
        let mut offsets = Vec::with_capacity(rows.taps.len() * columns.taps.len() * words);
        for row in &rows.taps {
            for column in &columns.taps {
                let start = at(row.offset, column.offset);
                offsets.extend((0..words).map(|q| (start + 4 * q) as u32));
            }
        }
        let image = at(self.padded[0], 0);
        let (ranges_down, ranges_across): (Vec<_>, Vec<_>) = (
            (0..rows.count).map(|a| rows.range(a)).collect(),
            (0..columns.count).map(|b| columns.range(b)).collect(),
        );
        let count = images * rows.count * columns.count;
        let mut tiles = Vec::with_capacity(count.div_ceil(ROWS));
        // Rectangles of taps, as ranges down and across.
        let mut rectangles: Vec<[(usize, usize); 2]> = Vec::new();
        let place = |q: usize| {
            let (position, n) = (q / images, q % images);
            (n, position / columns.count, position % columns.count)
        };
        for first in (0..count).step_by(ROWS) {
            let mut tile = RowTile {
                rows: [0; ROWS],
                out: [0; ROWS],
                count: ROWS.min(count - first),
                pattern: 0,
            };
            let mut seen = [(usize::MAX, 0); 2];
            for r in 0..ROWS {
                let (n, a, b) = place((first + r).min(count - 1));
                tile.rows[r] = n * image + at(a * rows.step, b * columns.step);
                let line = n * self.target[0] + a * rows.stride + rows.first;
                let pixel = line * self.target[1] + b * times * columns.stride + columns.first;
                tile.out[r] = pixel * self.groups * self.columns;
                let (down, across) = (ranges_down[a], ranges_across[b]);
                if down.0 < down.1 && across.0 < across.1 {
                    for (all, one) in seen.iter_mut().zip([down, across]) {
                        *all = (all.0.min(one.0), all.1.max(one.1));
                    }
                }
            }
            tile.pattern = rectangles.iter().rposition(|r| *r == seen).unwrap_or_else(|| {
                rectangles.push(seen);
                rectangles.len() - 1
            });
            tiles.push(tile);
        }
        let across = columns.taps.len();
        let taps = |r: &[(usize, usize); 2]| -> Vec<usize> {
            let [down, right] = *r;
            (down.0..down.1).flat_map(|t| (right.0..right.1).map(move |u| t * across + u)).collect()
        };
        let seen: Vec<Vec<usize>> = rectangles.iter().map(taps).collect();
        let segments: Vec<Vec<Segment>> = seen
            .iter()
            .map(|taps| {
                let mut segments: Vec<Segment> = Vec::new();
                for t in taps {
                    let (start, end) = (t * words, (t + 1) * words);
                    match segments.last_mut() {
                        Some(last) if last.end == start => last.end = end,
                        _ => segments.push(Segment { start, end }),
                    }
                }
                segments
            })
            .collect();
        let all = Segment { start: 0, end: offsets.len() };
        Table { patterns: Patterns::new(&segments, all), offsets, tiles, seen }
    }
}

#[cfg(test)]
mod tests {
    use super::words_of_filter;
    use crate::gemm::element::word;

    #[test]
    fn words_of_a_filter_hold_channels_of_one_tap() {
        // Five channels, two taps.
        let filter: Vec<i8> = (0..10).collect();
        let mut words = [0; 4];
        words_of_filter(&filter, 2, &mut words);
        assert_eq!(
            words,
            [word(&[0_i8, 2, 4, 6]), word(&[8_i8]), word(&[1_i8, 3, 5, 7]), word(&[9_i8])]
        );
    }
}
