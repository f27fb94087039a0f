//! Operands in the order in which the innermost loop reads them.
use rayon::prelude::*;

use super::buffer::Scratch;
use super::element::{BLOCK, Element, copy_runs, interleave, word};
use super::tile::{Kernels, NARROW, WIDE};
use crate::{Kind, Level};

/// A square of words.
pub(crate) type Block = [[u32; BLOCK]; BLOCK];

/// Defines a function whose body is compiled for every level. The first argument chooses.
macro_rules! versions {
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident $(<$type:ident: $bound:path>)? ($level:ident $(, $arg:ident: $ty:ty)* $(,)?)
        $body:block
    ) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments, reason = "a loop is told where everything lies")]
        #[cfg_attr(
            target_arch = "x86_64",
            expect(unsafe_code, reason = "a version is called after its instruction set was detected")
        )]
        $vis fn $name $(<$type: $bound>)? ($level: $crate::Level, $($arg: $ty),*) {
            #[allow(clippy::too_many_arguments, reason = "as above")]
            #[inline(always)]
            fn body $(<$type: $bound>)? ($level: $crate::Level, $($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
            fn avx512 $(<$type: $bound>)? ($level: $crate::Level, $($arg: $ty),*) { body($level, $($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$type: $bound>)? ($level: $crate::Level, $($arg: $ty),*) { body($level, $($arg),*) }
            match $level.min($crate::Level::detected()) {
                // SAFETY: the level is at most what was detected.
                #[cfg(target_arch = "x86_64")]
                $crate::Level::Avx512 | $crate::Level::Avx512Bf16 => unsafe { avx512($level, $($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::Level::Avx2 => unsafe { avx2($level, $($arg),*) },
                _ => body($level, $($arg),*),
            }
        }
    };
}

pub(crate) use versions;

/// Swaps rows and columns.
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "a version is called after its instruction set was detected")
)]
#[inline(always)]
pub(crate) fn transpose(level: Level, block: &mut Block) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 && Level::detected() >= Level::Avx512 {
        // SAFETY: AVX-512 was detected.
        unsafe { x86::transpose(block) };
        return;
    }
    let _ = level;
    let from = *block;
    for (i, row) in block.iter_mut().enumerate() {
        for (to, from) in row.iter_mut().zip(&from) {
            *to = from[i];
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vectors are read from and written to addresses")]
mod x86 {
    use std::arch::x86_64::{
        _mm512_loadu_si512, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512,
        _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };

    use super::{BLOCK, Block};

    /// Four rounds, each of which swaps blocks half as large as the one after it.
    #[target_feature(enable = "avx512f")]
    pub fn transpose(block: &mut Block) {
        let mut r = [_mm512_setzero_si512(); BLOCK];
        let mut t = r;
        for (r, row) in r.iter_mut().zip(block.iter()) {
            // SAFETY: a row has 16 words.
            *r = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
        }
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..4 {
            for j in 0..2 {
                let (low, high) = (t[4 * i + j], t[4 * i + 2 + j]);
                r[4 * i + 2 * j] = _mm512_unpacklo_epi64(low, high);
                r[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(low, high);
            }
        }
        for i in 0..2 {
            for j in 0..4 {
                let (low, high) = (r[8 * i + j], r[8 * i + 4 + j]);
                t[8 * i + j] = _mm512_shuffle_i32x4::<0x88>(low, high);
                t[8 * i + 4 + j] = _mm512_shuffle_i32x4::<0xDD>(low, high);
            }
        }
        for j in 0..8 {
            r[j] = _mm512_shuffle_i32x4::<0x88>(t[j], t[8 + j]);
            r[8 + j] = _mm512_shuffle_i32x4::<0xDD>(t[j], t[8 + j]);
        }
        for (r, row) in r.iter().zip(block.iter_mut()) {
            // SAFETY: a row has 16 words.
            unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), *r) };
        }
    }
}

/// A right operand: panels of [`WIDE`] columns, the last one of [`NARROW`] where that is enough. In a panel every group of
/// the reduction has a word for each column; what is in columns that are missing does not matter.
pub(crate) struct Panels {
    words: Scratch,
    groups: usize,
    columns: usize,
    /// For int8: what the sums of each panel's columns begin with, for each span of the reduction.
    corrections: Vec<[i32; WIDE]>,
    spans: usize,
}

impl Panels {
    /// Packs panels, in parallel or within one task: `fill` gets the first column of a panel, its number of columns, its
    /// width, and its words, which it overwrites. The reduction consists of `spans` spans of one length that may be left out of a sum.
    pub fn new<T: Element>(
        kernels: &Kernels,
        in_parallel: bool,
        groups: usize,
        spans: usize,
        columns: usize,
        fill: impl Fn(usize, usize, usize, &mut [u32]) + Sync,
    ) -> Self {
        let rest = columns % WIDE;
        let width = columns - rest
            + match rest {
                0 => 0,
                1..=NARROW => NARROW,
                _ => WIDE,
            };
        let mut words = Scratch::new(groups * width);
        let count = columns.div_ceil(WIDE);
        let spans = if T::KIND == Kind::Int8 { spans } else { 0 };
        let mut corrections = vec![[0; WIDE]; count * spans];
        let panel = |(p, (words, corrections)): (usize, (&mut [u32], &mut [[i32; WIDE]]))| {
            let width = Self::width_of(columns, p);
            fill(p * WIDE, (columns - p * WIDE).min(WIDE), width, words);
            if spans > 0 && groups > 0 {
                let spans = words.chunks_exact(groups / spans * width);
                for (span, sums) in spans.zip(corrections) {
                    kernels.correct(span, width, sums);
                }
            }
        };
        if groups > 0 {
            let len = groups * WIDE;
            match (in_parallel, spans > 0) {
                (true, true) => words
                    .par_chunks_mut(len)
                    .zip(corrections.par_chunks_mut(spans))
                    .enumerate()
                    .for_each(panel),
                (true, false) => words
                    .par_chunks_mut(len)
                    .enumerate()
                    .for_each(|(p, words)| panel((p, (words, &mut [])))),
                (false, true) => {
                    words
                        .chunks_mut(len)
                        .zip(corrections.chunks_mut(spans))
                        .enumerate()
                        .for_each(panel);
                }
                (false, false) => words
                    .chunks_mut(len)
                    .enumerate()
                    .for_each(|(p, words)| panel((p, (words, &mut [])))),
            }
        }
        Self { words, groups, columns, corrections, spans }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.columns.div_ceil(WIDE)
    }

    fn width_of(columns: usize, p: usize) -> usize {
        if columns - p * WIDE <= NARROW { NARROW } else { WIDE }
    }

    /// How many words a panel has for each group.
    pub fn width(&self, p: usize) -> usize {
        Self::width_of(self.columns, p)
    }

    pub fn panel(&self, p: usize) -> &[u32] {
        let start = p * self.groups * WIDE;
        &self.words[start..start + self.groups * self.width(p)]
    }

    /// What sums over `spans` begin with; `None` for kinds that need no correction.
    pub fn correction(&self, p: usize, spans: impl Iterator<Item = usize>) -> Option<[i32; WIDE]> {
        if self.spans == 0 {
            return None;
        }
        let mut sums = [0_i32; WIDE];
        for span in spans {
            for (sum, one) in sums.iter_mut().zip(&self.corrections[p * self.spans + span]) {
                *sum = sum.wrapping_add(*one);
            }
        }
        Some(sums)
    }
}

/// Where elements lie whose reduction runs over *images*, at each of some positions: element `c` of image `n` at position
/// `p` is number `n * image + p * position + c`.
#[derive(Clone, Copy)]
pub(crate) struct Images {
    pub count: usize,
    pub image: usize,
    pub position: usize,
}

impl Images {
    /// Where the last row of group `k` starts at a position.
    #[inline(always)]
    fn last(&self, position: usize, k: usize, group: usize) -> usize {
        ((k + 1) * group).min(self.count).saturating_sub(1) * self.image + position * self.position
    }

    /// The rows of group `k` at a position, each of `lanes` elements from the `first` on. Returns how many there are.
    #[inline(always)]
    fn rows<'a, T: Element>(
        &self,
        from: &'a [T],
        position: usize,
        k: usize,
        first: usize,
        lanes: usize,
    ) -> ([&'a [T]; 4], usize) {
        let mut rows: [&[T]; 4] = [&[]; 4];
        let count = T::GROUP.min(self.count - k * T::GROUP);
        for (q, row) in rows.iter_mut().enumerate().take(count) {
            let start = (k * T::GROUP + q) * self.image + position * self.position + first;
            *row = &from[start..start + lanes];
        }
        (rows, count)
    }
}

versions! {
    /// Packs part of a panel whose columns are elements that follow each other, and whose reduction runs over positions and,
    /// within them, groups of images. `to` begins with group `first_group` of it.
    pub(crate) fn right_of_images<T: Element>(
        level,
        from: &[T],
        images: Images,
        column: usize,
        lanes: usize,
        width: usize,
        first_group: usize,
        to: &mut [u32],
    ) {
        let _ = level;
        let groups = images.count.div_ceil(T::GROUP);
        let (mut position, mut k) = (first_group / groups, first_group % groups);
        for to in to.chunks_exact_mut(width) {
            // What lies after the columns may fill lanes that nobody reads, in whole vectors.
            let lanes = if images.last(position, k, T::GROUP) + column + width <= from.len() {
                width
            } else {
                lanes
            };
            let (rows, count) = images.rows(from, position, k, column, lanes);
            interleave(&rows[..count], 0, to);
            k += 1;
            if k == groups {
                (position, k) = (position + 1, 0);
            }
        }
    }
}

versions! {
    /// Packs left rows whose elements follow each other in memory, and whose reduction runs over `positions` positions and,
    /// within them, groups of images. Row `l` of up to [`BLOCK`] goes to `to[l]`.
    pub(crate) fn left_of_images<T: Element>(
        level,
        from: &[T],
        images: Images,
        first_position: usize,
        first: usize,
        to: &mut [&mut [u32]],
    ) {
        let lanes = to.len();
        let len = to.first().map_or(0, |to| to.len());
        let groups = images.count.div_ceil(T::GROUP);
        let (mut position, mut k) = (first_position, 0);
        if lanes == 1 {
            for to in &mut *to[0] {
                let (rows, count) = images.rows(from, position, k, first, 1);
                let mut group = [T::default(); 4];
                for (element, row) in group.iter_mut().zip(&rows[..count]) {
                    *element = row[0];
                }
                *to = word(&group[..T::GROUP]) ^ T::FLIP;
                k += 1;
                if k == groups {
                    (position, k) = (position + 1, 0);
                }
            }
            return;
        }
        let mut block = [[0; BLOCK]; BLOCK];
        for start in (0..len).step_by(BLOCK) {
            let part = BLOCK.min(len - start);
            for row in &mut block[..part] {
                let (rows, count) = images.rows(from, position, k, first, lanes);
                interleave(&rows[..count], T::FLIP, row);
                k += 1;
                if k == groups {
                    (position, k) = (position + 1, 0);
                }
            }
            transpose(level, &mut block);
            for (to, row) in to.iter_mut().zip(&block) {
                if part == BLOCK {
                    to[start..start + BLOCK].copy_from_slice(row);
                } else {
                    to[start..start + part].copy_from_slice(&row[..part]);
                }
            }
        }
    }
}

versions! {
    /// Packs left rows whose reduction follows itself in memory, in runs that each begin a new word.
    pub(crate) fn left_of_runs<T: Element>(level, from: &[T], run: usize, to: &mut [u32]) {
        let _ = level;
        copy_runs(from, run, T::FLIP, to);
    }
}

versions! {
    /// Packs a panel from rows of `len` words, one for each column. `place` says at which group each word of a row goes.
    pub(crate) fn right_of_rows(level, rows: &[u32], len: usize, lanes: usize, width: usize, place: &[u32], to: &mut [u32]) {
        for first in (0..width).step_by(BLOCK) {
            let lanes = lanes.saturating_sub(first).min(BLOCK);
            let mut block = [[0; BLOCK]; BLOCK];
            for start in (0..len).step_by(BLOCK) {
                let part = BLOCK.min(len - start);
                for (l, row) in block.iter_mut().enumerate() {
                    if l >= lanes {
                        row.fill(0);
                        continue;
                    }
                    let from = (first + l) * len + start;
                    if part == BLOCK {
                        row.copy_from_slice(&rows[from..from + BLOCK]);
                    } else {
                        row[..part].copy_from_slice(&rows[from..from + part]);
                    }
                }
                transpose(level, &mut block);
                for (group, row) in place[start..start + part].iter().zip(&block) {
                    let at = *group as usize * width + first;
                    to[at..at + BLOCK].copy_from_slice(row);
                }
            }
        }
    }
}
