//! The loops of SmaQ: statistics of a block, codes of values, and streams of codes as bits.

use crate::Rounding;

use super::{SIGN, clamp};

/// Elements for which positions are stored, and over which sums run.
pub(crate) const BLOCK: usize = 1024;

/// Mean and standard deviation of a group, as stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Normal {
    pub mean: f32,
    pub std: f32,
}

/// SmaQ's two grids of normalised values: fine within `t1` standard deviations, coarse beyond.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SmaqGrid {
    /// The largest normalised magnitude of a main value.
    pub t1: f32,
    /// Steps in a standard deviation, main and outlier.
    pub steps: [f32; 2],
    /// The largest number of steps, main and outlier; below 2^23.
    pub top: [f32; 2],
    /// Where the sign lies above the magnitude, main and outlier.
    pub sign_at: [u32; 2],
    /// What a decoded value is at least: 0, or the least `f32`.
    pub low: f32,
    /// Whether zeros have no code.
    pub zeros: bool,
}

/// The code of a value before it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    /// Whether the value lies beyond `t1`.
    pub outlier: bool,
    /// The sign bit of an `f32`.
    pub sign: u32,
    /// The number of steps.
    pub magnitude: f32,
}

/// The first of two constants for a main value, the second for an outlier. Written as a choice it would become a choice
/// between addresses, and the loop a loop of gathers.
#[inline(always)]
fn pick_bits([main, other]: [u32; 2], outlier: bool) -> u32 {
    main ^ ((main ^ other) & 0u32.wrapping_sub(u32::from(outlier)))
}

#[inline(always)]
fn pick(pair: [f32; 2], outlier: bool) -> f32 {
    f32::from_bits(pick_bits(pair.map(f32::to_bits), outlier))
}

impl SmaqGrid {
    /// Where a value lies; `round` is given the signed number of steps.
    ///
    /// This is the definition, of which the loops below are many.
    #[inline(always)]
    pub fn place(self, p: Normal, x: f32, round: impl Fn(f32) -> f32) -> Place {
        let x = if x.is_nan() { 0.0 } else { x };
        let z = (x - p.mean) / p.std;
        let a = z.abs();
        let outlier = a > self.t1;
        let v = if outlier { a - self.t1 } else { a } * pick(self.steps, outlier);
        let sign = z.to_bits() & SIGN;
        let q = round(f32::from_bits(v.to_bits() | sign)).abs();
        let top = pick(self.top, outlier);
        Place { outlier, sign, magnitude: if q > top { top } else { q } }
    }

    /// The normalised value of a code.
    #[inline(always)]
    pub fn normalised(self, place: Place) -> f32 {
        let w = place.magnitude / pick(self.steps, place.outlier);
        // A quotient that is rounded up must not pass the first outlier.
        let main = if w > self.t1 { self.t1 } else { w };
        let w = if place.outlier { self.t1 + w } else { main };
        f32::from_bits(w.to_bits() | place.sign)
    }

    /// A normalised value at its group's place.
    #[inline(always)]
    pub fn value(self, p: Normal, w: f32) -> f32 {
        clamp(p.mean + p.std * w, self.low, f32::MAX)
    }

    /// The bits of a code: the magnitude, and above it the sign.
    #[inline(always)]
    pub fn code(self, place: Place) -> u32 {
        let at = pick_bits(self.sign_at, place.outlier);
        // Adding 2^23 leaves an integer below it in the mantissa; a saturating cast would not be turned into vector
        // code.
        let magnitude = (place.magnitude + 8_388_608.0).to_bits() & 0x007F_FFFF;
        magnitude | place.sign >> 31 << at
    }

    /// Whether a value has no code because it is zero, or NaN, which stands for zero.
    #[inline(always)]
    fn blank(self, x: f32) -> bool {
        self.zeros && (x == 0.0 || x.is_nan())
    }
}

/// Calls `$each` with a rounding function for each element; the choice of rule stays outside of the loop.
macro_rules! by_rounding {
    ($rounding:expr, $draws:expr, $each:ident($($arg:expr),*)) => {
        match $rounding {
            Rounding::NearestEven => $each($($arg),*, |_, v| v.round_ties_even()),
            Rounding::HalfAway => $each($($arg),*, |_, v| Rounding::HalfAway.round(f64::from(v), 0) as f32),
            Rounding::TowardZero => $each($($arg),*, |_, v| Rounding::TowardZero.round(f64::from(v), 0) as f32),
            Rounding::Floor => $each($($arg),*, |_, v| Rounding::Floor.round(f64::from(v), 0) as f32),
            Rounding::Stochastic => {
                let draws: &[u32] = $draws;
                $each($($arg),*, |i, v| Rounding::Stochastic.round(f64::from(v), draws[i]) as f32)
            }
        }
    };
}

#[inline(always)]
fn emulate_by(grid: SmaqGrid, p: Normal, x: &mut [f32], round: impl Fn(usize, f32) -> f32) {
    for (i, v) in x.iter_mut().enumerate() {
        let place = grid.place(p, *v, |steps| round(i, steps));
        let y = grid.value(p, grid.normalised(place));
        *v = if grid.blank(*v) { 0.0 } else { y };
    }
}

versions! {
    /// Rounds values of one group; `draws` is as long as `x` where rounding is stochastic.
    fn smaq_emulate(grid: &SmaqGrid, p: Normal, x: &mut [f32], rounding: Rounding, draws: &[u32]) {
        let (grid, len) = (*grid, x.len());
        by_rounding!(rounding, &draws[..len], emulate_by(grid, p, x));
    }
}

/// The tag of an outlier; that of a main value is 0.
pub(crate) const OUTLIER: u8 = 1;
/// The tag of a zero without a code.
pub(crate) const ZERO: u8 = 2;

#[inline(always)]
fn codes_by(
    grid: SmaqGrid,
    p: Normal,
    x: &[f32],
    codes: &mut [u32],
    tags: &mut [u8],
    round: impl Fn(usize, f32) -> f32,
) {
    for (i, ((v, code), tag)) in x.iter().zip(codes).zip(tags).enumerate() {
        let place = grid.place(p, *v, |steps| round(i, steps));
        *code = grid.code(place);
        *tag = if grid.blank(*v) { ZERO } else { u8::from(place.outlier) };
    }
}

versions! {
    /// Codes and tags of values of one group; all slices are of one length.
    fn smaq_codes(
        grid: &SmaqGrid, p: Normal, x: &[f32], rounding: Rounding, draws: &[u32], codes: &mut [u32], tags: &mut [u8],
    ) {
        let (grid, len) = (*grid, x.len());
        by_rounding!(rounding, &draws[..len], codes_by(grid, p, x, codes, tags));
    }
}

/// What a stretch of a tensor needs in each stream.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Census {
    pub outliers: usize,
    pub zeros: usize,
    /// The largest number of outlier steps before rounding.
    pub reach: f32,
}

versions! {
    /// Counts what values of one group need.
    fn smaq_census(grid: &SmaqGrid, p: Normal, x: &[f32]) -> Census {
        let grid = *grid;
        // Magnitudes as integers, because the compiler must not reorder comparisons of floats.
        let (mut outliers, mut zeros, mut reach) = (0u32, 0u32, 0u32);
        for v in x {
            let blank = grid.blank(*v);
            let v = if v.is_nan() { 0.0 } else { *v };
            let a = ((v - p.mean) / p.std).abs();
            outliers += u32::from(a > grid.t1 && !blank);
            zeros += u32::from(blank);
            reach = reach.max(if blank { 0 } else { a.to_bits() });
        }
        let steps = (f32::from_bits(reach) - grid.t1) * grid.steps[1];
        Census { outliers: outliers as usize, zeros: zeros as usize, reach: steps }
    }
}

versions! {
    /// The normalised values of codes of one kind.
    fn smaq_normalised(grid: &SmaqGrid, outlier: bool, codes: &[u32], out: &mut [f32]) {
        let grid = *grid;
        let at = grid.sign_at[usize::from(outlier)];
        for (code, w) in codes.iter().zip(out) {
            let magnitude = (code & ((1 << at) - 1)).cast_signed() as f32;
            *w = grid.normalised(Place { outlier, sign: code >> at << 31, magnitude });
        }
    }
}

versions! {
    /// Puts normalised values at their group's place.
    fn smaq_values(grid: &SmaqGrid, p: Normal, x: &mut [f32]) {
        let grid = *grid;
        for w in x { *w = grid.value(p, *w); }
    }
}

/// Number, sum, and sum of squared distances from the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Moments {
    pub count: f64,
    pub sum: f64,
    pub squares: f64,
}

impl Moments {
    /// Those of two stretches together.
    ///
    /// # Source
    /// Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        if self.count == 0.0 || other.count == 0.0 {
            return if self.count == 0.0 { other } else { self };
        }
        let count = self.count + other.count;
        let apart = other.sum / other.count - self.sum / self.count;
        let between = apart * apart * (self.count * other.count / count);
        Self { count, sum: self.sum + other.sum, squares: self.squares + other.squares + between }
    }
}

/// Sums run in so many lanes, which are added up from the first to the last.
const SUM_LANES: usize = 16;

/// The sum of `of(v)` in the fixed order of lanes.
#[inline(always)]
fn sum_of(x: &[f32], of: impl Fn(f32) -> f64) -> f64 {
    let mut lanes = [0.0; SUM_LANES];
    let (chunks, rest) = x.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += of(*v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += of(*v);
    }
    lanes.iter().sum()
}

versions! {
    /// The moments of a block in `f64`, of all values or of those that are not zero. The squares are not finite if any
    /// value is not.
    fn moments(x: &[f32], skip_zeros: bool) -> Moments {
        let sum = sum_of(x, f64::from);
        let skipped = |v: f32| skip_zeros && v == 0.0;
        let count = x.len() as f64 - sum_of(x, |v| f64::from(u8::from(skipped(v))));
        let mean = if count > 0.0 { sum / count } else { 0.0 };
        let squares = sum_of(x, |v| {
            let d = if skipped(v) { 0.0 } else { f64::from(v) - mean };
            d * d
        });
        Moments { count, sum, squares }
    }
}

/// The last bits of a stream, which do not fill a byte yet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Carry {
    pub bits: u64,
    pub held: u32,
}

/// Codes are moved in words of at most so many bits, so that a word fits beside seven bits that wait.
const WORD_BITS: u32 = 56;

#[inline(always)]
fn pack_words<const Q: usize>(
    codes: &[u32],
    bits: u32,
    carry: &mut Carry,
    out: &mut [u8],
) -> usize {
    let Carry { bits: mut acc, mut held } = *carry;
    let mut at = 0;
    let mut push = |word: u64, len: u32| {
        acc |= word << held;
        held += len;
        out[at..at + 8].copy_from_slice(&acc.to_le_bytes());
        at += (held / 8) as usize;
        acc >>= held & !7;
        held &= 7;
    };
    let (chunks, rest) = codes.as_chunks::<Q>();
    for chunk in chunks {
        let word = (0u32..).zip(chunk).fold(0, |w, (i, c)| w | u64::from(*c) << (i * bits));
        push(word, Q as u32 * bits);
    }
    for code in rest {
        push(u64::from(*code), bits);
    }
    *carry = Carry { bits: acc, held };
    at
}

versions! {
    /// Appends codes of at most 28 bits to a stream, as [`pack`](crate::pack) does, and returns how many bytes of `out`
    /// are whole; `out` has room for eight bytes more than that.
    fn pack_stream(codes: &[u32], bits: u32, carry: &mut Carry, out: &mut [u8]) -> usize {
        if bits * 8 <= WORD_BITS {
            pack_words::<8>(codes, bits, carry, out)
        } else if bits * 4 <= WORD_BITS {
            pack_words::<4>(codes, bits, carry, out)
        } else {
            pack_words::<2>(codes, bits, carry, out)
        }
    }
}

#[inline(always)]
fn unpack_words<const Q: usize>(bytes: &[u8], first: usize, bits: u32, codes: &mut [u32]) {
    let mask = (1u64 << bits) - 1;
    let word_at = |bit: usize| {
        let at = bit / 8;
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word) >> (bit % 8)
    };
    let mut bit = first;
    let (chunks, rest) = codes.as_chunks_mut::<Q>();
    for chunk in chunks {
        let word = word_at(bit);
        for (i, code) in (0u32..).zip(chunk) {
            *code = (word >> (i * bits) & mask) as u32;
        }
        bit += Q * bits as usize;
    }
    for code in rest {
        *code = (word_at(bit) & mask) as u32;
        bit += bits as usize;
    }
}

versions! {
    /// Reads codes of at most 28 bits from bit `first` on; `bytes` goes on for eight bytes after their last.
    fn unpack_stream(bytes: &[u8], first: usize, bits: u32, codes: &mut [u32]) {
        if bits * 8 <= WORD_BITS {
            unpack_words::<8>(bytes, first, bits, codes);
        } else if bits * 4 <= WORD_BITS {
            unpack_words::<4>(bytes, first, bits, codes);
        } else {
            unpack_words::<2>(bytes, first, bits, codes);
        }
    }
}

#[cfg(test)]
#[expect(clippy::cast_sign_loss, reason = "magnitudes are not negative")]
mod tests {
    use super::super::tests::at_every_level;
    use super::*;
    use crate::Stream;

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|v| v.to_bits()).collect()
    }

    /// Values about the mean and far from it, ties, zeros, and what is not finite.
    fn values(n: usize) -> Vec<f32> {
        let stream = Stream::named(5, "smaq");
        (0..n)
            .map(|i| {
                let word = stream.words(i as u64)[0];
                match i % 9 {
                    0 => f32::from_bits(word),
                    1 => 0.0 * (word as f32 - 1e9),
                    2 => (word % 2048) as f32 / 30.0 - 34.0,
                    _ => (word >> 8) as f32 / 4e6 - 2.0,
                }
            })
            .collect()
    }

    const GRIDS: [SmaqGrid; 3] = [
        SmaqGrid {
            t1: 1.0,
            steps: [15.0, 42.0],
            top: [15.0, 63.0],
            sign_at: [4, 6],
            low: -f32::MAX,
            zeros: false,
        },
        SmaqGrid {
            t1: 0.7,
            steps: [1.0 / 0.7, 9113.333],
            top: [1.0, 16383.0],
            sign_at: [1, 14],
            low: 0.0,
            zeros: true,
        },
        SmaqGrid {
            t1: 1.0,
            steps: [15.0, 42.0],
            top: [15.0, 8_388_607.0],
            sign_at: [4, 23],
            low: -f32::MAX,
            zeros: false,
        },
    ];

    #[test]
    fn every_level_does_what_the_definition_does() {
        let x = values(1024);
        let mut draws = vec![0; x.len()];
        Stream::new(1, 1).fill(0, &mut draws);
        for grid in GRIDS {
            for p in [Normal { mean: 0.3, std: 1.2 }, Normal { mean: -1e38, std: 1e38 }] {
                for (_, rounding) in Rounding::WORDS {
                    let places: Vec<Place> = x
                        .iter()
                        .zip(&draws)
                        .map(|(v, d)| {
                            grid.place(p, *v, |steps| rounding.round(f64::from(steps), *d) as f32)
                        })
                        .collect();
                    let blank = |v: &f32| grid.zeros && (*v == 0.0 || v.is_nan());
                    let mut expected = x.clone();
                    for (v, place) in expected.iter_mut().zip(&places) {
                        let y = grid.value(p, grid.normalised(*place));
                        *v = if blank(v) { 0.0 } else { y };
                        assert!(v.is_finite());
                    }
                    let codes: Vec<u32> = places
                        .iter()
                        .map(|place| {
                            let sign = u32::from(place.sign != 0);
                            let at = grid.sign_at[usize::from(place.outlier)];
                            place.magnitude as u32 | sign << at
                        })
                        .collect();
                    let tags: Vec<u8> = places
                        .iter()
                        .zip(&x)
                        .map(|(place, v)| if blank(v) { ZERO } else { u8::from(place.outlier) })
                        .collect();
                    at_every_level(|level| {
                        for (start, len) in (0..70).map(|len| (len % 3, len)).chain([(0, 1024)]) {
                            let part = start..start + len;
                            let mut y = x[part.clone()].to_vec();
                            smaq_emulate(&grid, p, &mut y, rounding, &draws[part.clone()]);
                            assert_eq!(bits(&y), bits(&expected[part.clone()]), "{level:?}");
                            let (mut c, mut t) = (vec![0; len], vec![9; len]);
                            let input = &x[part.clone()];
                            let draws = &draws[part.clone()];
                            smaq_codes(&grid, p, input, rounding, draws, &mut c, &mut t);
                            assert_eq!(c, codes[part.clone()], "{level:?}");
                            assert_eq!(t, tags[part.clone()], "{level:?}");
                            let census = smaq_census(&grid, p, input);
                            let count =
                                |tag| t.iter().map(|t| usize::from(*t == tag)).sum::<usize>();
                            assert_eq!(
                                (census.outliers, census.zeros),
                                (count(OUTLIER), count(ZERO))
                            );
                            for outlier in [false, true] {
                                let kind = |i: &usize| places[*i].outlier == outlier;
                                let own: Vec<usize> = part.clone().filter(kind).collect();
                                let codes: Vec<u32> = own.iter().map(|i| codes[*i]).collect();
                                let mut w = vec![0.0; own.len()];
                                smaq_normalised(&grid, outlier, &codes, &mut w);
                                smaq_values(&grid, p, &mut w);
                                for (w, i) in w.iter().zip(own).filter(|(_, i)| !blank(&x[*i])) {
                                    assert_eq!(w.to_bits(), expected[i].to_bits());
                                }
                            }
                        }
                    });
                }
            }
        }
    }

    #[test]
    fn every_level_sums_alike_and_right() {
        let x: Vec<f32> =
            values(1024).into_iter().map(|v| if v.abs() < 100.0 { v } else { 0.0 }).collect();
        for skip_zeros in [false, true] {
            for len in (0..70).chain([1000, 1024]) {
                let kept: Vec<f64> = x[..len]
                    .iter()
                    .filter(|v| !skip_zeros || **v != 0.0)
                    .map(|v| f64::from(*v))
                    .collect();
                let (n, sum) = (kept.len() as f64, kept.iter().sum::<f64>());
                let squares: f64 = kept.iter().map(|v| (v - sum / n.max(1.0)).powi(2)).sum();
                let first = moments(&x[..len], skip_zeros);
                assert_eq!(first.count, n);
                assert!((first.sum - sum).abs() < 1e-9 && (first.squares - squares).abs() < 1e-9);
                at_every_level(|_| assert_eq!(moments(&x[..len], skip_zeros), first));
                let (a, b) = x[..len].split_at(len / 3);
                let joined = moments(a, skip_zeros).join(moments(b, skip_zeros));
                assert!((joined.squares - squares).abs() < 1e-9);
            }
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!moments(&[1.0, bad, 0.0], true).squares.is_finite());
        }
    }

    #[test]
    fn streams_are_packed_as_everywhere() {
        at_every_level(|_| {
            for bits in 1..=24 {
                for len in (0..40usize).chain([1024]) {
                    let codes: Vec<u32> = (0..len as u32)
                        .map(|i| i.wrapping_mul(0x9E37_79B9) >> (32 - bits))
                        .collect();
                    for held in 0..8 {
                        // A stream that begins with `held` zeros.
                        let mut out = vec![0; len * 4 + 16];
                        let mut carry = Carry { bits: 0, held };
                        let mut bytes = pack_stream(&codes, bits, &mut carry, &mut out);
                        out[bytes] = carry.bits.to_le_bytes()[0];
                        bytes += usize::from(carry.held > 0);
                        let whole = (held as usize + len * bits as usize).div_ceil(8);
                        assert_eq!(bytes, whole);
                        let mut expected = vec![0u8; whole];
                        for (i, code) in codes.iter().enumerate() {
                            for b in 0..bits as usize {
                                let at = held as usize + i * bits as usize + b;
                                expected[at / 8] |= ((code >> b & 1) as u8) << (at % 8);
                            }
                        }
                        assert_eq!(out[..whole], expected, "{bits} bits, {len} codes");
                        out.resize(whole + 8, 0);
                        let mut back = vec![0; len];
                        unpack_stream(&out, held as usize, bits, &mut back);
                        assert_eq!(back, codes);
                    }
                }
            }
        });
    }
}
