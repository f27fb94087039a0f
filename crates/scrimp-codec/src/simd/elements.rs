//! Loops over the elements of groups: integers and small floats, under every rounding.
//!
//! An [`Op`] says what becomes of one element, and the loops here are generic in it. Ops are types with methods and not
//! closures, because only those can be told to become part of the loop that is compiled for an instruction set.

use std::marker::PhantomData;

use super::{BlockGrid, FloatCodes, FloatGrid, INFINITY, NAN, SIGN, clamp, ordered, rescale};
use crate::formats::{Codes, CodesMut, Groups, Params};
use crate::{Range, Rounding, ScaleFormat};

/// Elements that a loop works on. It is long enough for the compiler to make vectors of it before it unrolls it.
const CHUNK: usize = 64;

/// Elements of a chunk that belong to one group together, where the length of groups is a multiple of this.
const PART: usize = 16;

/// What becomes of an element of a group.
pub(crate) trait Op<I, O>: Copy {
    /// Whether it looks at the random number.
    const DRAWS: bool = false;
    /// What it has to know of a group.
    type Group: Group;
    fn group(self, params: &Params) -> Self::Group;
    fn one(self, group: Self::Group, x: I, draw: u32) -> O;
}

/// What there is to know of a group.
pub(crate) trait Group: Copy {
    /// The groups of all elements of a chunk, each number in an array of its own, so that vectors can be loaded.
    type Chunk;
    fn chunk(self) -> Self::Chunk;
    fn set(self, chunk: &mut Self::Chunk, at: usize);
    fn get(chunk: &Self::Chunk, at: usize) -> Self;
}

impl Group for f32 {
    type Chunk = [f32; CHUNK];
    #[inline(always)]
    fn chunk(self) -> Self::Chunk {
        [self; CHUNK]
    }
    #[inline(always)]
    fn set(self, chunk: &mut Self::Chunk, at: usize) {
        chunk[at] = self;
    }
    #[inline(always)]
    fn get(chunk: &Self::Chunk, at: usize) -> Self {
        chunk[at]
    }
}

versions! {
    /// Works on the elements of consecutive groups.
    fn map<I: Element, O: Element, T: Op<I, O>>(
        op: T, groups: Groups, x: &[I], draws: &[u32], out: &mut [O],
    ) {
        let draws = if T::DRAWS { &draws[..x.len()] } else { &[] };
        let mut reader = Reader::new(op, groups);
        let (chunks, rest) = x.as_chunks::<CHUNK>();
        let (outs, rest_out) = out.as_chunks_mut::<CHUNK>();
        let (drawn, rest_drawn) = draws.as_chunks::<CHUNK>();
        for (i, (x, out)) in chunks.iter().zip(outs).enumerate() {
            let draws = if T::DRAWS { &drawn[i] } else { &[0; CHUNK] };
            if let Some(group) = reader.whole() {
                for l in 0..CHUNK {
                    out[l] = op.one(group, x[l], if T::DRAWS { draws[l] } else { 0 });
                }
            } else {
                let groups = reader.chunk();
                for l in 0..CHUNK {
                    let group = T::Group::get(groups, l);
                    out[l] = op.one(group, x[l], if T::DRAWS { draws[l] } else { 0 });
                }
            }
        }
        if !rest.is_empty() {
            let (x, draws, mut out) = (padded(rest), padded(rest_drawn), [O::default(); CHUNK]);
            let groups = reader.chunk();
            for l in 0..CHUNK {
                let group = T::Group::get(groups, l);
                out[l] = op.one(group, x[l], if T::DRAWS { draws[l] } else { 0 });
            }
            rest_out.copy_from_slice(&out[..rest.len()]);
        }
    }
}

versions! {
    /// As [`map`], where each result takes the place of its element.
    fn map_in_place<O: Element, T: Op<O, O>>(op: T, groups: Groups, x: &mut [O], draws: &[u32]) {
        let draws = if T::DRAWS { &draws[..x.len()] } else { &[] };
        let mut reader = Reader::new(op, groups);
        let (chunks, rest) = x.as_chunks_mut::<CHUNK>();
        let (drawn, rest_drawn) = draws.as_chunks::<CHUNK>();
        for (i, x) in chunks.iter_mut().enumerate() {
            let draws = if T::DRAWS { &drawn[i] } else { &[0; CHUNK] };
            if let Some(group) = reader.whole() {
                for l in 0..CHUNK {
                    x[l] = op.one(group, x[l], if T::DRAWS { draws[l] } else { 0 });
                }
            } else {
                let groups = reader.chunk();
                for l in 0..CHUNK {
                    let group = T::Group::get(groups, l);
                    x[l] = op.one(group, x[l], if T::DRAWS { draws[l] } else { 0 });
                }
            }
        }
        if !rest.is_empty() {
            let (mut x, draws) = (padded(rest), padded(rest_drawn));
            let groups = reader.chunk();
            for l in 0..CHUNK {
                let group = T::Group::get(groups, l);
                x[l] = op.one(group, x[l], if T::DRAWS { draws[l] } else { 0 });
            }
            rest.copy_from_slice(&x[..rest.len()]);
        }
    }
}

/// How the largest magnitude of a group becomes its scale: over the largest value of the format, or the next that can be
/// stored. Where `F32`, all can be.
#[derive(Clone, Copy)]
pub(crate) struct Fit<const F32: bool> {
    pub top: f32,
    pub store: ScaleFormat,
}

impl<const F32: bool> FitGroup for Fit<F32> {
    /// `None` for what is not finite or comes near the top of `f32`, where the loops are not made for.
    #[inline(always)]
    fn params(self, amax: u32) -> Option<Params> {
        if amax > 0x7D00_0000 {
            return None;
        }
        // Apart, so that the loop for the usual storage holds no conversion.
        let store = if F32 { ScaleFormat::F32 } else { self.store };
        let scale = if amax == 0 { 1.0 } else { store.store(f32::from_bits(amax) / self.top) };
        Some(Params { scale, ..Params::UNIT })
    }
}

/// The parameters of whole groups of `len` elements that have only a scale, of which `top` is the value at scale 1 of the
/// largest magnitude. `false` if a group is not finite or comes near the top of `f32`.
pub(crate) fn fit_blocks(
    x: &[f32],
    len: usize,
    top: f32,
    store: ScaleFormat,
    params: &mut [Params],
) -> bool {
    if store == ScaleFormat::F32 {
        fit_each(x, len, Fit::<true> { top, store }, params)
    } else {
        fit_each(x, len, Fit::<false> { top, store }, params)
    }
}

/// The scale of a group of that largest magnitude.
pub(crate) trait FitGroup: Copy {
    fn params(self, amax: u32) -> Option<Params>;
}

versions! {
    fn fit_each<F: FitGroup>(x: &[f32], len: usize, fit: F, params: &mut [Params]) -> bool {
        match len {
            16 => fit_fixed::<16, F>(x, fit, params),
            32 => fit_fixed::<32, F>(x, fit, params),
            _ => {
                for (x, params) in x.chunks_exact(len).zip(params) {
                    let Some(fitted) = fit.params(super::block_amax(x)) else { return false };
                    *params = fitted;
                }
                true
            }
        }
    }
}

#[inline(always)]
fn fit_fixed<const LEN: usize, F: FitGroup>(x: &[f32], fit: F, params: &mut [Params]) -> bool {
    for (x, params) in x.as_chunks::<LEN>().0.iter().zip(params) {
        let Some(fitted) = fit.params(super::block_amax(x)) else { return false };
        *params = fitted;
    }
    true
}

/// What lies in a slice.
pub(crate) trait Element: Copy + Default {}
impl<T: Copy + Default> Element for T {}

/// The elements after the last whole chunk, with others behind them that do not matter.
#[inline(always)]
fn padded<T: Element>(rest: &[T]) -> [T; CHUNK] {
    let mut chunk = [T::default(); CHUNK];
    chunk[..rest.len()].copy_from_slice(rest);
    chunk
}

/// Tells of chunk after chunk which groups its elements belong to.
struct Reader<'a, I, O, T: Op<I, O>> {
    op: T,
    groups: Groups<'a>,
    chunk: <T::Group as Group>::Chunk,
    /// The group of the next element, and how many of its elements came before.
    next: usize,
    before: usize,
    element: PhantomData<(I, O)>,
}

impl<'a, I, O, T: Op<I, O>> Reader<'a, I, O, T> {
    #[inline(always)]
    fn new(op: T, groups: Groups<'a>) -> Self {
        let first = op.group(groups.params.first().unwrap_or(&Params::UNIT));
        Self { op, groups, chunk: first.chunk(), next: 0, before: 0, element: PhantomData }
    }

    /// The group of the next element; the last one where elements do not matter.
    #[inline(always)]
    fn group(&self) -> T::Group {
        let last = self.groups.params.len().saturating_sub(1);
        self.op.group(self.groups.params.get(self.next.min(last)).unwrap_or(&Params::UNIT))
    }

    #[inline(always)]
    fn step(&mut self, elems: usize) {
        self.before += elems;
        if self.before >= self.groups.len {
            (self.before, self.next) = (0, self.next + 1);
        }
    }

    /// The group of the next chunk, if it has only one.
    #[inline(always)]
    fn whole(&mut self) -> Option<T::Group> {
        if self.groups.len - self.before < CHUNK {
            return None;
        }
        let group = self.group();
        self.step(CHUNK);
        Some(group)
    }

    /// The groups of the next chunk.
    #[inline(always)]
    fn chunk(&mut self) -> &<T::Group as Group>::Chunk {
        if self.groups.len.is_multiple_of(PART) {
            for part in 0..CHUNK / PART {
                let group = self.group();
                for l in 0..PART {
                    group.set(&mut self.chunk, part * PART + l);
                }
                self.step(PART);
            }
        } else if self.groups.len == 1 && self.next + CHUNK <= self.groups.params.len() {
            let params = &self.groups.params[self.next..self.next + CHUNK];
            for (l, params) in params.iter().enumerate() {
                self.op.group(params).set(&mut self.chunk, l);
            }
            self.next += CHUNK;
        } else {
            let mut at = 0;
            while at < CHUNK {
                let group = self.group();
                let end = CHUNK.min(at + self.groups.len - self.before);
                for l in at..end {
                    group.set(&mut self.chunk, l);
                }
                self.step(end - at);
                at = end;
            }
        }
        &self.chunk
    }
}

versions! {
    /// Joins the ranges of consecutive groups of `len` elements to those in `ranges`. With `only_amax`, ranges reach as
    /// far below zero as above. A range that holds anything else than finite numbers is not finite.
    fn join_ranges(x: &[f32], len: usize, only_amax: bool, ranges: &mut [Range]) {
        match (len, only_amax) {
            (1, true) => {
                for (x, range) in x.iter().zip(ranges) {
                    let amax = larger(range.max, f32::from_bits(x.to_bits() & !SIGN));
                    *range = Range { min: -amax, max: amax };
                }
            }
            (1, false) => {
                for (x, range) in x.iter().zip(ranges) {
                    *range = Range { min: smaller(range.min, *x), max: larger(range.max, *x) };
                }
            }
            (_, true) => {
                for (x, range) in x.chunks(len).zip(ranges) {
                    let amax = larger(range.max, f32::from_bits(super::block_amax(x)));
                    *range = Range { min: -amax, max: amax };
                }
            }
            (_, false) => {
                for (x, range) in x.chunks(len).zip(ranges) {
                    let (min, max) = super::block_min_max(x);
                    *range = Range { min: smaller(range.min, min), max: larger(range.max, max) };
                }
            }
        }
    }
}

/// The larger in the order in which NaN lies beyond the infinities.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    let key = |v: f32| ordered(v.to_bits().cast_signed());
    f32::from_bits(ordered(key(a).max(key(b))).cast_unsigned())
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    let key = |v: f32| ordered(v.to_bits().cast_signed());
    f32::from_bits(ordered(key(a).min(key(b))).cast_unsigned())
}

/// A rounding, in the arithmetic of `f32`. Each is proved equal to its definition in [`Rounding::round`].
pub(crate) trait Rule: Copy {
    const DRAWS: bool = false;
    /// Rounds a signed number, given as its magnitude and sign, and gives the magnitude.
    fn magnitude(a: f32, negative: bool, draw: u32) -> f32;
    /// Rounds to an integer between two, which are less than 2^22.
    #[inline(always)]
    fn clamped(v: f32, low: f32, high: f32, draw: u32) -> f32 {
        let sign = v.to_bits() & SIGN;
        let a = Self::magnitude(f32::from_bits(v.to_bits() & !SIGN), sign != 0, draw);
        clamp(f32::from_bits(a.to_bits() | sign), low, high)
    }
    /// The same with [`BIAS`] added.
    #[inline(always)]
    fn biased(v: f32, low: f32, high: f32, draw: u32) -> f32 {
        Self::clamped(v, low, high, draw) + BIAS
    }
    /// What is added to the bits of a magnitude before the last `shift` are cut off; a carry rounds up.
    fn carry(grid: FloatGrid, a: u32, negative: bool, draw: u32) -> u32;
    /// How many subnormal steps a small magnitude becomes.
    #[inline(always)]
    fn steps(grid: FloatGrid, a: f32, negative: bool, draw: u32) -> f32 {
        // Scaling up is exact. Scaling down may underflow, and then the least positive number is rounded as any other
        // magnitude below 2^-24 would be.
        let steps = (a * grid.per_step).to_bits().max(a.to_bits().min(1));
        Self::magnitude(f32::from_bits(steps), negative, draw)
    }
    /// The value of those steps.
    #[inline(always)]
    fn subnormal(grid: FloatGrid, a: f32, negative: bool, draw: u32) -> f32 {
        Self::steps(grid, a, negative, draw) * grid.step
    }
    /// Their code.
    #[inline(always)]
    fn subnormal_code(grid: FloatGrid, a: f32, negative: bool, draw: u32) -> u32 {
        const BIAS: f32 = 8_388_608.0;
        let biased = Self::steps(grid, a, negative, draw) + BIAS;
        biased.to_bits().wrapping_sub(BIAS.to_bits())
    }
    /// Whether what is too large stays at the largest finite value although the format has infinity: IEEE 754, section
    /// 7.4, for the directed roundings.
    #[inline(always)]
    fn clips(negative: bool) -> bool {
        let _ = negative;
        false
    }
}

/// Added to an integer below 2^22, it leaves that integer in the last bits of the mantissa, rounded to even.
const BIAS: f32 = 12_582_912.0;

#[derive(Clone, Copy)]
pub(super) struct Nearest;
#[derive(Clone, Copy)]
pub(super) struct HalfAway;
#[derive(Clone, Copy)]
pub(super) struct TowardZero;
#[derive(Clone, Copy)]
pub(super) struct Floor;
#[derive(Clone, Copy)]
pub(super) struct Stochastic;

#[inline(always)]
fn mask(grid: FloatGrid) -> u32 {
    (1 << grid.shift) - 1
}

#[inline(always)]
fn up(round_up: bool) -> f32 {
    if round_up { 1.0 } else { 0.0 }
}

impl Rule for Nearest {
    #[inline(always)]
    fn magnitude(a: f32, _: bool, _: u32) -> f32 {
        a.round_ties_even()
    }
    #[inline(always)]
    fn clamped(v: f32, low: f32, high: f32, draw: u32) -> f32 {
        Self::biased(v, low, high, draw) - BIAS
    }
    #[inline(always)]
    fn biased(v: f32, low: f32, high: f32, _: u32) -> f32 {
        // Both ends are integers, so that it does not matter what comes first.
        clamp(v, low, high) + BIAS
    }
    #[inline(always)]
    fn carry(grid: FloatGrid, a: u32, _: bool, _: u32) -> u32 {
        (mask(grid) >> 1) + ((a >> grid.shift & 1) ^ grid.odd)
    }
    #[inline(always)]
    fn subnormal(grid: FloatGrid, a: f32, _: bool, _: u32) -> f32 {
        (a + grid.magic) - grid.magic
    }
    #[inline(always)]
    fn subnormal_code(grid: FloatGrid, a: f32, _: bool, _: u32) -> u32 {
        (a + grid.magic).to_bits().wrapping_sub(grid.magic.to_bits())
    }
}

impl Rule for HalfAway {
    #[inline(always)]
    fn magnitude(a: f32, _: bool, _: u32) -> f32 {
        let whole = a.trunc();
        whole + up(a - whole >= 0.5)
    }
    #[inline(always)]
    fn carry(grid: FloatGrid, _: u32, _: bool, _: u32) -> u32 {
        1 << (grid.shift - 1)
    }
}

impl Rule for TowardZero {
    #[inline(always)]
    fn magnitude(a: f32, _: bool, _: u32) -> f32 {
        a.trunc()
    }
    #[inline(always)]
    fn carry(_: FloatGrid, _: u32, _: bool, _: u32) -> u32 {
        0
    }
    #[inline(always)]
    fn clips(_: bool) -> bool {
        true
    }
}

impl Rule for Floor {
    #[inline(always)]
    fn magnitude(a: f32, negative: bool, _: u32) -> f32 {
        let whole = a.trunc();
        whole + up(negative && a > whole)
    }
    #[inline(always)]
    fn carry(grid: FloatGrid, _: u32, negative: bool, _: u32) -> u32 {
        if negative { mask(grid) } else { 0 }
    }
    #[inline(always)]
    fn clips(negative: bool) -> bool {
        !negative
    }
}

/// `floor(v + u)` with `u = draw / 2^24`, where the fraction of `|v|` is `f`, an exact difference in `f32`:
///
/// - for `v >= 0` it rounds up if `f + u >= 1`, that is `2^24 f >= 2^24 - draw`;
/// - for `v < 0` it is `-ceil(|v| - u)`, whose magnitude rounds up if `f > u`, that is `2^24 f > draw`.
///
/// Both sides are exact in `f32`: one is scaled by a power of two, the other is an integer of at most 24 bits. As neither
/// is negative, they may be compared by their bits, where `>` is `>=` with the next number. (The fraction of infinity is
/// NaN; what is added to infinity does not matter.)
///
/// In the bits of a float, `f` is an integer `F` of `shift` bits over `2^shift`. As `F` is an integer, the draw may be cut
/// off to `d = floor(draw / 2^(24-shift))`: the first condition is `F + d >= 2^shift`, the second `F > d`, that is
/// `F + (2^shift - 1 - d) >= 2^shift`, and so each is a carry out of the last `shift` bits.
impl Rule for Stochastic {
    const DRAWS: bool = true;
    #[inline(always)]
    fn magnitude(a: f32, negative: bool, draw: u32) -> f32 {
        const ONE: u32 = 1 << 24;
        let whole = a.trunc();
        let fraction = (a - whole) * ONE as f32;
        let limit = if negative { draw } else { ONE - draw };
        let limit = (limit.cast_signed() as f32).to_bits() + u32::from(negative);
        whole + up(fraction.to_bits() >= limit)
    }
    #[inline(always)]
    fn carry(grid: FloatGrid, _: u32, negative: bool, draw: u32) -> u32 {
        (draw >> (24 - grid.shift)) ^ if negative { mask(grid) } else { 0 }
    }
}

/// Calls a generic function with the type of a rounding.
macro_rules! by_rule {
    ($rounding:expr, $rule:ident => $call:expr) => {
        match $rounding {
            Rounding::NearestEven => {
                type $rule = Nearest;
                $call
            }
            Rounding::HalfAway => {
                type $rule = HalfAway;
                $call
            }
            Rounding::TowardZero => {
                type $rule = TowardZero;
                $call
            }
            Rounding::Floor => {
                type $rule = Floor;
                $call
            }
            Rounding::Stochastic => {
                type $rule = Stochastic;
                $call
            }
        }
    };
}

/// A code as it lies in memory.
pub(super) trait Code: Copy + Default {
    fn of(bits: u32) -> Self;
    fn bits(self) -> u32;
}

impl Code for u8 {
    #[inline(always)]
    fn of(bits: u32) -> Self {
        bits as u8
    }
    #[inline(always)]
    fn bits(self) -> u32 {
        self.into()
    }
}

impl Code for [u8; 2] {
    #[inline(always)]
    fn of(bits: u32) -> Self {
        (bits as u16).to_le_bytes()
    }
    #[inline(always)]
    fn bits(self) -> u32 {
        u16::from_le_bytes(self).into()
    }
}

impl Code for u32 {
    #[inline(always)]
    fn of(bits: u32) -> Self {
        bits
    }
    #[inline(always)]
    fn bits(self) -> u32 {
        self
    }
}

/// An integer grid as the loops see it: `clamp(round((x - offset) / scale), low, high) * scale + offset`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Integers {
    /// The smallest and the largest code.
    pub low: i32,
    pub high: i32,
    pub bits: u32,
    /// Whether codes are in two's complement; then groups have neither a zero point nor an offset.
    pub signed: bool,
}

/// A group of integers.
pub(crate) trait IntGroup: Group {
    fn of(integers: Integers, params: &Params) -> Self;
    /// A value in steps, and the smallest and the largest integer, all less the zero point.
    fn steps(self, integers: Integers, x: f32) -> [f32; 3];
    /// The value of an integer less the zero point.
    fn value(self, q: f32) -> f32;
    fn zero(self) -> u32;
}

/// The scale of a group that has nothing else.
#[derive(Clone, Copy)]
pub(crate) struct Symmetric(f32);

impl Group for Symmetric {
    type Chunk = [f32; CHUNK];
    #[inline(always)]
    fn chunk(self) -> Self::Chunk {
        [self.0; CHUNK]
    }
    #[inline(always)]
    fn set(self, chunk: &mut Self::Chunk, at: usize) {
        chunk[at] = self.0;
    }
    #[inline(always)]
    fn get(chunk: &Self::Chunk, at: usize) -> Self {
        Self(chunk[at])
    }
}

impl IntGroup for Symmetric {
    #[inline(always)]
    fn of(_: Integers, params: &Params) -> Self {
        Self(params.scale)
    }
    #[inline(always)]
    fn steps(self, integers: Integers, x: f32) -> [f32; 3] {
        [x / self.0, integers.low as f32, integers.high as f32]
    }
    #[inline(always)]
    fn value(self, q: f32) -> f32 {
        // Adding zero makes a negative zero positive.
        q * self.0 + 0.0
    }
    #[inline(always)]
    fn zero(self) -> u32 {
        0
    }
}

/// A group with a zero point or an offset.
#[derive(Clone, Copy)]
pub(crate) struct Affine {
    scale: f32,
    offset: f32,
    zero: i32,
}

/// The groups of the elements of a chunk.
pub(crate) struct AffineChunk {
    scale: [f32; CHUNK],
    offset: [f32; CHUNK],
    zero: [i32; CHUNK],
}

impl Group for Affine {
    type Chunk = AffineChunk;
    #[inline(always)]
    fn chunk(self) -> AffineChunk {
        let Self { scale, offset, zero } = self;
        AffineChunk { scale: [scale; CHUNK], offset: [offset; CHUNK], zero: [zero; CHUNK] }
    }
    #[inline(always)]
    fn set(self, chunk: &mut AffineChunk, at: usize) {
        chunk.scale[at] = self.scale;
        chunk.offset[at] = self.offset;
        chunk.zero[at] = self.zero;
    }
    #[inline(always)]
    fn get(chunk: &AffineChunk, at: usize) -> Self {
        Self { scale: chunk.scale[at], offset: chunk.offset[at], zero: chunk.zero[at] }
    }
}

impl IntGroup for Affine {
    #[inline(always)]
    fn of(_: Integers, params: &Params) -> Self {
        Self { scale: params.scale, offset: params.offset, zero: params.zero }
    }
    #[inline(always)]
    fn steps(self, integers: Integers, x: f32) -> [f32; 3] {
        let low = (integers.low - self.zero) as f32;
        let high = (integers.high - self.zero) as f32;
        [(x - self.offset) / self.scale, low, high]
    }
    #[inline(always)]
    fn value(self, q: f32) -> f32 {
        q * self.scale + self.offset
    }
    #[inline(always)]
    fn zero(self) -> u32 {
        self.zero.cast_unsigned()
    }
}

/// A NaN, which has no code, counts as zero.
#[inline(always)]
fn number(x: f32) -> f32 {
    if x.is_nan() { 0.0 } else { x }
}

#[derive(Clone, Copy)]
struct IntRound<R, G>(Integers, PhantomData<(R, G)>);

impl<R: Rule, G: IntGroup> Op<f32, f32> for IntRound<R, G> {
    const DRAWS: bool = R::DRAWS;
    type Group = G;
    #[inline(always)]
    fn group(self, params: &Params) -> G {
        G::of(self.0, params)
    }
    #[inline(always)]
    fn one(self, group: G, x: f32, draw: u32) -> f32 {
        let [v, low, high] = group.steps(self.0, number(x));
        group.value(R::clamped(v, low, high, draw))
    }
}

#[derive(Clone, Copy)]
struct IntEncode<R, G>(Integers, PhantomData<(R, G)>);

impl<R: Rule, G: IntGroup, C: Code> Op<f32, C> for IntEncode<R, G> {
    const DRAWS: bool = R::DRAWS;
    type Group = G;
    #[inline(always)]
    fn group(self, params: &Params) -> G {
        G::of(self.0, params)
    }
    #[inline(always)]
    fn one(self, group: G, x: f32, draw: u32) -> C {
        let [v, low, high] = group.steps(self.0, number(x));
        let q = R::biased(v, low, high, draw).to_bits().wrapping_sub(BIAS.to_bits());
        C::of(q.wrapping_add(group.zero()) & (u32::MAX >> (32 - self.0.bits)))
    }
}

#[derive(Clone, Copy)]
struct IntDecode<G>(Integers, PhantomData<G>);

impl<G: IntGroup, C: Code> Op<C, f32> for IntDecode<G> {
    type Group = G;
    #[inline(always)]
    fn group(self, params: &Params) -> G {
        G::of(self.0, params)
    }
    #[inline(always)]
    fn one(self, group: G, code: C, _: u32) -> f32 {
        let unused = 32 - self.0.bits;
        let q = if self.0.signed {
            (code.bits() << unused).cast_signed() >> unused
        } else {
            (code.bits() << unused >> unused).wrapping_sub(group.zero()).cast_signed()
        };
        group.value(q as f32)
    }
}

/// Calls a generic function with the type of integers' groups.
macro_rules! by_group {
    ($integers:expr, $group:ident => $call:expr) => {
        if $integers.signed {
            type $group = Symmetric;
            $call
        } else {
            type $group = Affine;
            $call
        }
    };
}

/// Rounds values to integers, group by group.
pub(crate) fn int_groups(
    integers: Integers,
    groups: Groups,
    x: &mut [f32],
    rounding: Rounding,
    draws: &[u32],
) {
    by_rule!(rounding, R => by_group!(integers, G => {
        map_in_place(IntRound(integers, PhantomData::<(R, G)>), groups, x, draws);
    }));
}

/// The codes of values, group by group.
pub(crate) fn int_encode(
    integers: Integers,
    groups: Groups,
    x: &[f32],
    rounding: Rounding,
    draws: &[u32],
    codes: CodesMut,
) {
    by_rule!(rounding, R => by_group!(integers, G => {
        let op = IntEncode(integers, PhantomData::<(R, G)>);
        match codes {
            CodesMut::Bytes(out) => map(op, groups, x, draws, out),
            CodesMut::Pairs(out) => map(op, groups, x, draws, out),
            CodesMut::Words(out) => map(op, groups, x, draws, out),
        }
    }));
}

/// The values of codes, group by group.
pub(crate) fn int_decode(integers: Integers, groups: Groups, codes: Codes, out: &mut [f32]) {
    by_group!(integers, G => {
        let op = IntDecode(integers, PhantomData::<G>);
        match codes {
            Codes::Bytes(x) => map(op, groups, x, &[], out),
            Codes::Pairs(x) => map(op, groups, x, &[], out),
            Codes::Words(x) => map(op, groups, x, &[], out),
        }
    });
}

impl FloatGrid {
    /// The value on the grid at scale 1.
    #[inline(always)]
    pub(super) fn round<R: Rule>(self, v: f32, draw: u32) -> f32 {
        let bits = v.to_bits();
        let (a, negative) = (bits & !SIGN, bits & SIGN != 0);
        let normal = (a + R::carry(self, a, negative, draw)) & !mask(self);
        let subnormal = R::subnormal(self, f32::from_bits(a), negative, draw).to_bits();
        let r = if a < self.min_normal { subnormal } else { normal };
        let over = if R::clips(negative) { self.max } else { self.over };
        self.specials(a, r, over, bits & SIGN)
    }
}

versions! {
    /// Whether all scales are positive, and they and the magnitudes of offsets below a limit.
    fn are_ordinary(params: &[Params], limit: f32) -> bool {
        let mut ordinary = true;
        for p in params {
            // No branch, so that this is a loop over vectors.
            ordinary &= p.scale > 0.0;
            ordinary &= p.scale < limit;
            ordinary &= p.offset.abs() < limit;
        }
        ordinary
    }
}

versions! {
    /// Whether all scales are one, and whether all are at most a limit.
    fn are_unit_or_small(params: &[Params], limit: f32) -> [bool; 2] {
        let (mut unit, mut small) = (true, true);
        for p in params {
            unit &= p.scale == 1.0;
            small &= p.scale <= limit;
        }
        [unit, small]
    }
}

/// How values are multiplied by the scales of all groups.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scaling {
    /// They are one: dividing and multiplying by them changes nothing.
    Unit,
    /// They are so small that no product overflows.
    Small,
    /// What was finite has to be kept finite.
    Large,
}

impl Scaling {
    fn of(groups: Groups, grid: &FloatGrid) -> Self {
        let limit = f32::MAX / 2.0 / f32::from_bits(grid.max);
        match are_unit_or_small(groups.params, limit) {
            [true, _] => Self::Unit,
            [_, true] => Self::Small,
            _ => Self::Large,
        }
    }
}

/// Calls a generic function with the number of a way of scaling.
macro_rules! by_scaling {
    ($scaling:expr, $number:ident => $call:expr) => {
        match $scaling {
            Scaling::Unit => {
                const $number: u8 = UNIT;
                $call
            }
            Scaling::Small => {
                const $number: u8 = SMALL;
                $call
            }
            Scaling::Large => {
                const $number: u8 = LARGE;
                $call
            }
        }
    };
}

const UNIT: u8 = Scaling::Unit as u8;
const SMALL: u8 = Scaling::Small as u8;
const LARGE: u8 = Scaling::Large as u8;

/// A value of the grid times the scale. Infinity and NaN stay what they are.
#[inline(always)]
fn scaled<const SCALING: u8>(r: f32, scale: f32) -> f32 {
    match SCALING {
        UNIT => r,
        SMALL => r * scale,
        _ => rescale(r, scale),
    }
}

/// Rounds to a float grid times the scale of the group.
#[derive(Clone, Copy)]
struct FloatRound<R, const SCALING: u8>(FloatGrid, PhantomData<R>);

impl<R: Rule, const SCALING: u8> Op<f32, f32> for FloatRound<R, SCALING> {
    const DRAWS: bool = R::DRAWS;
    type Group = f32;
    #[inline(always)]
    fn group(self, params: &Params) -> f32 {
        params.scale
    }
    #[inline(always)]
    fn one(self, scale: f32, x: f32, draw: u32) -> f32 {
        let v = if SCALING == UNIT { x } else { self.0.quotient(x, scale) };
        scaled::<SCALING>(self.0.round::<R>(v, draw), scale)
    }
}

/// Codes of values over the scale of the group.
#[derive(Clone, Copy)]
struct FloatEncode<R> {
    grid: FloatGrid,
    codes: FloatCodes,
    /// The codes of the largest magnitude, of an overflow, of infinity and of NaN.
    max: u32,
    over: u32,
    infinity: u32,
    nan: u32,
    /// The sign bit, unless NaN becomes a zero, which has none.
    nan_sign: u32,
    rule: PhantomData<R>,
}

impl<R: Rule> FloatEncode<R> {
    fn new(grid: FloatGrid, codes: FloatCodes) -> Self {
        let code = |a: u32| match a {
            INFINITY => codes.infinity,
            _ if a > INFINITY => codes.nan,
            _ if a < grid.min_normal => Nearest::subnormal_code(grid, f32::from_bits(a), false, 0),
            _ => (a >> grid.shift).wrapping_sub(codes.rebias),
        };
        Self {
            grid,
            codes,
            max: code(grid.max),
            over: code(grid.over),
            infinity: code(grid.infinity),
            nan: code(grid.nan),
            nan_sign: if grid.nan == 0 { 0 } else { SIGN },
            rule: PhantomData,
        }
    }
}

impl<R: Rule, C: Code> Op<f32, C> for FloatEncode<R> {
    const DRAWS: bool = R::DRAWS;
    type Group = f32;
    #[inline(always)]
    fn group(self, params: &Params) -> f32 {
        params.scale
    }
    #[inline(always)]
    fn one(self, scale: f32, x: f32, draw: u32) -> C {
        let grid = self.grid;
        let bits = grid.quotient(x, scale).to_bits();
        let (a, negative) = (bits & !SIGN, bits & SIGN != 0);
        let normal = (a + R::carry(grid, a, negative, draw)) >> grid.shift;
        let normal = normal.wrapping_sub(self.codes.rebias);
        let subnormal = R::subnormal_code(grid, f32::from_bits(a), negative, draw);
        let c = if a < grid.min_normal { subnormal } else { normal };
        let over = if R::clips(negative) { self.max } else { self.over };
        let c = if c > self.max { over } else { c };
        let c = if a == INFINITY { self.infinity } else { c };
        let c = if a > INFINITY { self.nan } else { c };
        let sign = bits & if a > INFINITY { self.nan_sign } else { SIGN };
        C::of(c | sign >> self.codes.sign_shift)
    }
}

/// The values of codes times the scale of the group.
#[derive(Clone, Copy)]
struct FloatDecode<const SCALING: u8>(FloatGrid, FloatCodes);

impl<C: Code, const SCALING: u8> Op<C, f32> for FloatDecode<SCALING> {
    type Group = f32;
    #[inline(always)]
    fn group(self, params: &Params) -> f32 {
        params.scale
    }
    #[inline(always)]
    fn one(self, scale: f32, code: C, _: u32) -> f32 {
        let Self(grid, codes) = self;
        let code = code.bits();
        let sign_bit = SIGN >> codes.sign_shift;
        let a = code & (sign_bit - 1);
        let normal = a.wrapping_add(codes.rebias) << grid.shift;
        let steps = f32::from_bits(grid.magic.to_bits().wrapping_add(a)) - grid.magic;
        let r = if a < 1 << (23 - grid.shift) { steps.to_bits() } else { normal };
        let r = if a > codes.max { NAN } else { r };
        let infinite = a > codes.max && codes.has_infinity && a == codes.infinity;
        let r = if infinite { INFINITY } else { r };
        let sign = (code & sign_bit) << codes.sign_shift;
        scaled::<SCALING>(f32::from_bits(r | sign), scale)
    }
}

/// Rounds values to a float grid times their group's scale.
pub(crate) fn float_groups(
    grid: &FloatGrid,
    groups: Groups,
    x: &mut [f32],
    rounding: Rounding,
    draws: &[u32],
) {
    let scaling = Scaling::of(groups, grid);
    by_rule!(rounding, R => by_scaling!(scaling, S => {
        map_in_place(FloatRound::<R, S>(*grid, PhantomData), groups, x, draws);
    }));
}

/// The codes of values over their group's scale.
pub(crate) fn float_encode_groups(
    grid: &FloatGrid,
    float: FloatCodes,
    groups: Groups,
    x: &[f32],
    rounding: Rounding,
    draws: &[u32],
    codes: CodesMut,
) {
    by_rule!(rounding, R => {
        let op = FloatEncode::<R>::new(*grid, float);
        match codes {
            CodesMut::Bytes(out) => map(op, groups, x, draws, out),
            CodesMut::Pairs(out) => map(op, groups, x, draws, out),
            CodesMut::Words(out) => map(op, groups, x, draws, out),
        }
    });
}

/// The values of codes times their group's scale.
pub(crate) fn float_decode_groups(
    grid: &FloatGrid,
    float: FloatCodes,
    groups: Groups,
    codes: Codes,
    out: &mut [f32],
) {
    by_scaling!(Scaling::of(groups, grid), S => {
        let op = FloatDecode::<S>(*grid, float);
        match codes {
            Codes::Bytes(x) => map(op, groups, x, &[], out),
            Codes::Pairs(x) => map(op, groups, x, &[], out),
            Codes::Words(x) => map(op, groups, x, &[], out),
        }
    });
}

/// The values of codes of a block grid under the scale of the group; NaN where that is none.
#[derive(Clone, Copy)]
struct BlockDecode(BlockGrid);

impl<C: Code> Op<C, f32> for BlockDecode {
    type Group = f32;
    #[inline(always)]
    fn group(self, params: &Params) -> f32 {
        params.scale
    }
    #[inline(always)]
    fn one(self, scale: f32, code: C, _: u32) -> f32 {
        let v = self.0.value(code.bits(), scale);
        if scale.is_nan() { f32::NAN } else { v }
    }
}

/// The values of codes of a block grid under their group's scale.
pub(crate) fn block_decode_groups(grid: &BlockGrid, groups: Groups, codes: Codes, out: &mut [f32]) {
    let op = BlockDecode(*grid);
    match codes {
        Codes::Bytes(x) => map(op, groups, x, &[], out),
        Codes::Pairs(x) => map(op, groups, x, &[], out),
        Codes::Words(x) => map(op, groups, x, &[], out),
    }
}
