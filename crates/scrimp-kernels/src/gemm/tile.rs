//! The innermost loop: eight rows at any addresses times one panel of columns.
#![expect(
    unsafe_code,
    reason = "rows lie at addresses that are computed, and registers are named by intrinsics"
)]

use std::hint::black_box;

use super::buffer::Place;
use super::dot::{self, Dot};
use crate::{Kind, Level};

/// Rows of a tile.
pub(crate) const ROWS: usize = 8;
/// Columns of a usual panel.
pub(crate) const WIDE: usize = 32;
/// Columns of the last panel, where so many are enough.
pub(crate) const NARROW: usize = 16;

/// A piece of the reduction, in groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub start: usize,
    pub end: usize,
}

/// With what sums begin.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// The same words, one for each column, in all rows.
    Same(&'a [i32; WIDE]),
    /// What is in the buffer of unfinished sums.
    Unfinished,
}

/// Where sums go.
pub(crate) enum End<'a> {
    /// Into the buffer of unfinished sums.
    Unfinished,
    Values(&'a Values<'a>),
}

/// How sums become values, and which lie where.
pub(crate) struct Values<'a> {
    pub out: Place<f32>,
    /// The first element of each row of the tile, from there.
    pub rows: &'a [usize; ROWS],
    /// How many columns there are.
    pub columns: usize,
    pub scale: &'a [f32; WIDE],
    pub bias: Option<&'a [f32; WIDE]>,
}

/// One tile's work.
pub(crate) struct Tile<'a> {
    pub a: &'a [u32],
    /// The bytes from the start of `a` to where each row's offsets count from; it may lie before `a` (and wrap).
    pub rows: &'a [usize; ROWS],
    /// How many of the rows are stored.
    pub count: usize,
    /// The bytes from there to each group.
    pub offsets: &'a [u32],
    pub segments: &'a [Segment],
    /// The panel: for each group a word for each column.
    pub b: &'a [u32],
    pub start: Start<'a>,
    pub end: End<'a>,
    /// Unfinished sums: for each row a word for each column.
    pub unfinished: &'a mut [u32],
}

impl Tile<'_> {
    /// Whether everything that the segments touch lies where it should.
    fn is_inside(&self, width: usize) -> bool {
        let bytes = 4 * self.a.len();
        let groups = |s: &Segment| s.start..s.end;
        self.segments.iter().all(|s| {
            s.start <= s.end && s.end <= self.offsets.len() && s.end * width <= self.b.len()
        }) && self.segments.iter().flat_map(groups).all(|i| {
            let last = |row: &usize| row.wrapping_add(self.offsets[i] as usize);
            self.rows.iter().all(|row| last(row).checked_add(4).is_some_and(|end| end <= bytes))
        })
    }

    /// Whether everything that is written lies in the output.
    fn ends_inside(&self, width: usize) -> bool {
        let End::Values(values) = &self.end else { return true };
        let inside =
            |row: &usize| row.checked_add(values.columns).is_some_and(|end| end <= values.out.len);
        values.columns <= width && values.rows.iter().take(self.count).all(inside)
    }
}

/// The versions of the loop for one kind and level.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub level: Level,
    wide: unsafe fn(&mut Tile),
    narrow: unsafe fn(&mut Tile),
    sums: unsafe fn(&[u32], usize, &mut [i32; WIDE]),
    spin: unsafe fn(usize),
    /// Products of a step of `spin`.
    step: usize,
}

impl Kernels {
    /// Those for operands of a kind. A level that the machine lacks becomes the best that it has.
    pub fn of(kind: Kind, level: Level) -> Self {
        let level = level.min(Level::detected());
        #[cfg(target_arch = "x86_64")]
        match (level, kind) {
            (Level::Avx512Bf16, Kind::Bf16) => return x86::AVX512_BF16,
            (Level::Avx512 | Level::Avx512Bf16, Kind::F32) => return x86::AVX512_F32,
            (Level::Avx512, Kind::Bf16) => return x86::AVX512_WIDENED,
            (Level::Avx512 | Level::Avx512Bf16, Kind::Int8) => return x86::AVX512_INT8,
            (Level::Avx2, Kind::F32) => return x86::AVX2_F32,
            (Level::Avx2, Kind::Bf16) => return x86::AVX2_BF16,
            (Level::Avx2, Kind::Int8) => return x86::AVX2_INT8,
            (Level::Scalar | Level::Neon, _) => {}
        }
        #[cfg(target_arch = "aarch64")]
        if level >= Level::Neon {
            return match kind {
                Kind::F32 => neon::F32,
                Kind::Bf16 => neon::BF16,
                Kind::Int8 => neon::INT8,
            };
        }
        match kind {
            Kind::F32 => SCALAR_F32,
            Kind::Bf16 => SCALAR_BF16,
            Kind::Int8 => SCALAR_INT8,
        }
    }

    /// Computes a tile of a panel of `width` columns.
    ///
    /// # Safety
    /// The first `count` rows of [`Values`] have `columns` elements each that are this task's alone, and `count` and
    /// `columns` are at most those of a tile. For every group of the segments, every row's offset leads to a word in `a`,
    /// and `b` has its `width` words.
    pub unsafe fn tile(&self, width: usize, tile: &mut Tile) {
        debug_assert!(tile.is_inside(width), "a tile reads beyond its operands");
        debug_assert!(tile.ends_inside(width), "a tile writes beyond its output");
        debug_assert!(tile.count <= ROWS, "a tile of {} rows", tile.count);
        assert!(tile.unfinished.len() >= ROWS * width, "a tile has a place for its sums");
        // SAFETY: the constructor chose a version that this machine can run; the rest is promised by the caller, and the
        // buffer of sums was checked.
        unsafe {
            if width == WIDE {
                (self.wide)(tile);
            } else {
                (self.narrow)(tile);
            }
        }
    }

    /// For int8: takes 128 times the elements of some groups of a panel from the sums of its columns, because left
    /// operands are stored as code + 128.
    pub fn correct(&self, panel: &[u32], width: usize, sums: &mut [i32; WIDE]) {
        assert!(width == WIDE || width == NARROW, "panels are wide or narrow");
        // SAFETY: the constructor chose a version that this machine can run, which reads whole rows of `width` words.
        unsafe { (self.sums)(panel, width, sums) }
    }
}

impl Kernels {
    /// Runs the loop's arithmetic without its memory. Returns how many products that were.
    pub fn spin(&self, steps: usize) -> usize {
        // SAFETY: the constructor chose a version that this machine can run.
        unsafe { (self.spin)(steps) };
        steps * self.step
    }
}

#[inline(always)]
unsafe fn spin<D: Dot, const R: usize, const V: usize>(steps: usize) {
    let word = 0x3F80_3F80_u32;
    let words = [word; WIDE];
    // SAFETY: a word is read of `word`, as many as there are lanes of `words`, and as many are written to `out`.
    unsafe {
        let mut sums = [[D::zero(); V]; R];
        let right = D::right(black_box(words.as_ptr()));
        for _ in 0..steps {
            // Where the word lies is hidden, so that the steps are not taken for one.
            let left = D::left(black_box((&raw const word).cast()));
            for row in &mut sums {
                for sum in row {
                    *sum = D::dot(*sum, left, right);
                }
            }
        }
        let mut out = [0; WIDE];
        for sum in sums.as_flattened() {
            D::store(out.as_mut_ptr(), *sum);
            black_box(&out);
        }
    }
}

#[inline(always)]
unsafe fn run<D: Dot, const R: usize, const V: usize, const WIDTH: usize>(tile: &mut Tile) {
    let base = tile.a.as_ptr().cast::<u8>();
    for r in (0..ROWS).step_by(R) {
        if r >= tile.count {
            break;
        }
        for c in (0..WIDTH).step_by(V * D::LANES) {
            // SAFETY: words are read and written at rows below `ROWS` and columns below `WIDTH` of the buffer of sums, of
            // `b` and of arrays of `WIDE`, and at the addresses that the caller of `Kernels::tile` vouches for.
            unsafe {
                let mut sums = [[D::zero(); V]; R];
                match tile.start {
                    Start::Zero => {}
                    Start::Same(words) => {
                        for v in 0..V {
                            let start = D::load(words.as_ptr().cast::<u32>().add(c + v * D::LANES));
                            for row in &mut sums {
                                row[v] = start;
                            }
                        }
                    }
                    Start::Unfinished => {
                        for (m, row) in sums.iter_mut().enumerate() {
                            for (v, sum) in row.iter_mut().enumerate() {
                                let at = (r + m) * WIDTH + c + v * D::LANES;
                                *sum = D::load(tile.unfinished.as_ptr().add(at));
                            }
                        }
                    }
                }
                let mut rows = [base; R];
                for (m, row) in rows.iter_mut().enumerate() {
                    *row = base.wrapping_add(tile.rows[r + m]);
                }
                let offsets = tile.offsets.as_ptr();
                for segment in tile.segments {
                    let mut b = tile.b.as_ptr().add(segment.start * WIDTH + c);
                    for group in segment.start..segment.end {
                        let offset = *offsets.add(group) as usize;
                        let mut right = [D::right(b); V];
                        for (v, right) in right.iter_mut().enumerate().skip(1) {
                            *right = D::right(b.add(v * D::LANES));
                        }
                        for m in 0..R {
                            let left = D::left(rows[m].wrapping_add(offset));
                            for v in 0..V {
                                sums[m][v] = D::dot(sums[m][v], left, right[v]);
                            }
                        }
                        b = b.wrapping_add(WIDTH);
                    }
                }
                match &tile.end {
                    End::Unfinished => {
                        for (m, row) in sums.iter().enumerate() {
                            for (v, sum) in row.iter().enumerate() {
                                let at = (r + m) * WIDTH + c + v * D::LANES;
                                D::store(tile.unfinished.as_mut_ptr().add(at), *sum);
                            }
                        }
                    }
                    End::Values(values) => {
                        for (m, row) in sums.iter().enumerate().take(tile.count - r) {
                            for (v, sum) in row.iter().enumerate() {
                                let column = c + v * D::LANES;
                                let lanes = values.columns.saturating_sub(column).min(D::LANES);
                                if lanes == 0 {
                                    continue;
                                }
                                let bias = values.bias.map(|bias| bias.as_ptr().add(column));
                                let out = values.out.start.add(values.rows[r + m] + column);
                                let scale = values.scale.as_ptr().add(column);
                                D::finish(*sum, scale, bias, out, lanes);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn sums<D: Dot>(panel: &[u32], width: usize, sums: &mut [i32; WIDE]) {
    let flips = 0x8080_8080_u32;
    for c in (0..width).step_by(D::LANES) {
        let mut scaled = [0_u32; WIDE];
        // SAFETY: every row has `width` words, `c` and the lanes after it are below that, and a word is read of `flips`.
        unsafe {
            let mut sum = D::zero();
            let left = D::left((&raw const flips).cast());
            for row in panel.chunks_exact(width) {
                sum = D::dot(sum, left, D::right(row.as_ptr().add(c)));
            }
            D::store(scaled.as_mut_ptr(), sum);
        }
        for (sum, scaled) in sums[c..].iter_mut().zip(&scaled[..D::LANES]) {
            *sum = sum.wrapping_sub(scaled.cast_signed());
        }
    }
}

/// Names the versions for a kind and level; `$r` rows of `$v` vectors are summed at a time.
macro_rules! kernels {
    ($name:ident, $level:expr, $group:literal, $dot:ty, $r:literal, $v:literal, $narrow:literal $(, $features:literal)?) => {
        pub(super) const $name: Kernels = {
            $(#[target_feature(enable = $features)])?
            unsafe fn wide(tile: &mut Tile) {
                // SAFETY: the caller of `Kernels::tile` promises what the loop needs.
                unsafe { run::<$dot, $r, $v, WIDE>(tile) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn narrow(tile: &mut Tile) {
                // SAFETY: as above.
                unsafe { run::<$dot, $r, $narrow, NARROW>(tile) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn columns(panel: &[u32], width: usize, out: &mut [i32; WIDE]) {
                // SAFETY: `Kernels::correct` checked the width.
                unsafe { sums::<$dot>(panel, width, out) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn arithmetic(steps: usize) {
                // SAFETY: what runs this has the instruction set.
                unsafe { spin::<$dot, $r, $v>(steps) }
            }
            Kernels {
                level: $level,
                wide,
                narrow,
                sums: columns,
                spin: arithmetic,
                step: $r * $v * <$dot as dot::Dot>::LANES * $group,
            }
        };
    };
}

mod scalar {
    use super::{Kernels, Level, NARROW, Tile, WIDE, dot, run, spin, sums};

    kernels!(F32, Level::Scalar, 1, dot::ScalarF32, 2, 1, 1);
    kernels!(BF16, Level::Scalar, 2, dot::ScalarBf16, 2, 1, 1);
    kernels!(INT8, Level::Scalar, 4, dot::ScalarInt8, 2, 1, 1);
}
use scalar::{BF16 as SCALAR_BF16, F32 as SCALAR_F32, INT8 as SCALAR_INT8};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::dot::x86::{Avx2Bf16, Avx2F32, Avx2Int8, Bf16, F32, Int8, Widened};
    use super::{Kernels, Level, NARROW, Tile, WIDE, dot, run, spin, sums};

    kernels!(AVX512_F32, Level::Avx512, 1, F32, 8, 2, 1, "avx512f,avx512vl,avx512bw,avx512dq");
    kernels!(
        AVX512_BF16,
        Level::Avx512Bf16,
        2,
        Bf16,
        8,
        2,
        1,
        "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16"
    );
    kernels!(
        AVX512_WIDENED,
        Level::Avx512,
        2,
        Widened,
        8,
        2,
        1,
        "avx512f,avx512vl,avx512bw,avx512dq"
    );
    kernels!(
        AVX512_INT8,
        Level::Avx512,
        4,
        Int8,
        8,
        2,
        1,
        "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni"
    );
    kernels!(AVX2_F32, Level::Avx2, 1, Avx2F32, 4, 2, 2, "avx2,fma");
    kernels!(AVX2_BF16, Level::Avx2, 2, Avx2Bf16, 4, 2, 2, "avx2,fma");
    kernels!(AVX2_INT8, Level::Avx2, 4, Avx2Int8, 4, 2, 2, "avx2,fma");
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::{Kernels, Level, NARROW, Tile, WIDE, dot, run, spin, sums};

    kernels!(F32, Level::Neon, 1, dot::neon::F32, 8, 2, 2);
    kernels!(BF16, Level::Neon, 2, dot::neon::Widened, 4, 2, 2);
    kernels!(INT8, Level::Neon, 4, dot::neon::Int8, 4, 2, 2);
}
