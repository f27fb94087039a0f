//! The loops of S2FP8: sums of logarithms, the power law there and back, and its codes from a table.

use crate::logarithm::{exp2, log2};

use super::{INFINITY, SIGN, clamp};

/// The power law of a group, `log2 Y = alpha log2 |x| + beta`, as stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PowerLaw {
    pub alpha: f32,
    pub beta: f32,
}

impl PowerLaw {
    /// `sign(x) 2^beta |x|^alpha`. Zeros, infinities and NaN stay what they are.
    #[inline(always)]
    pub fn forward(self, x: f32) -> f32 {
        let (a, sign) = (x.to_bits() & !SIGN, x.to_bits() & SIGN);
        let usual = a > 0 && a < INFINITY;
        let log = log2(f64::from(f32::from_bits(if usual { a } else { 0x3F80_0000 })));
        let y = exp2(f64::from(self.alpha) * log + f64::from(self.beta)) as f32;
        f32::from_bits(if usual { y.to_bits() } else { a } | sign)
    }

    /// `sign(y) (2^-beta |y|)^(1 / alpha)`, kept finite. Zeros, infinities and NaN stay what they are.
    #[inline(always)]
    pub fn back(self, y: f32) -> f32 {
        let (a, sign) = (y.to_bits() & !SIGN, y.to_bits() & SIGN);
        let usual = a > 0 && a < INFINITY;
        let log = log2(f64::from(f32::from_bits(if usual { a } else { 0x3F80_0000 })));
        let x = exp2((log - f64::from(self.beta)) / f64::from(self.alpha)) as f32;
        let x = clamp(x, 0.0, f32::MAX).to_bits();
        f32::from_bits(if usual { x } else { a } | sign)
    }
}

versions! {
    /// [`PowerLaw::forward`] of many values.
    fn s2fp8_forward(law: PowerLaw, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) { *y = law.forward(*x); }
    }
}

versions! {
    /// [`PowerLaw::back`] of many values, in place.
    fn s2fp8_back(law: PowerLaw, x: &mut [f32]) {
        for v in x { *v = law.back(*v); }
    }
}

/// Cells of a [`CodeTable`], so many of them for each power of two.
const CELLS: usize = 2048;
const CELLS_PER_OCTAVE: f32 = 32.0;
/// The logarithm at which the first cell begins: below it all codes are zero.
const FIRST_LOG: f32 = -18.0;
/// How far, in cells, the place of a value may be from where its logarithm lies, twice.
const SLACK: f32 = 1.0;

/// The codes to nearest under a power law, by the place of a magnitude's logarithm.
///
/// A code rises with the magnitude, and so it is known from the least magnitudes that have each code. The logarithm only
/// has to be near: it leads to a cell with at most one such magnitude, which decides. Errors of logarithms and powers are
/// so much smaller than what a power law makes of two neighbours in `f32` that no code is out of order.
#[derive(Debug)]
pub(crate) struct CodeTable {
    law: PowerLaw,
    /// The bits from which on a magnitude in the cell has the upper code.
    least: [u32; CELLS],
    lower: [u32; CELLS],
    upper: [u32; CELLS],
}

impl CodeTable {
    /// The table of a law whose codes `codes` gives for magnitudes of any bits below infinity. `None` where a cell is too
    /// wide, which is so for magnitudes that are subnormal.
    pub fn new(law: PowerLaw, codes: impl Fn(&[f32], &mut [u32])) -> Option<Box<Self>> {
        /// The largest code that a finite magnitude may have.
        const MOST: usize = 0x7C;
        // For all codes at once: `low` has a smaller code, and `high` has it, or is infinity.
        let (mut low, mut high) = ([0u32; MOST], [INFINITY; MOST]);
        let (mut middle, mut found) = ([0.0; MOST], [0; MOST]);
        for _ in 0..31 {
            for (middle, (low, high)) in middle.iter_mut().zip(low.iter().zip(&high)) {
                *middle = f32::from_bits(low + (high - low) / 2);
            }
            codes(&middle, &mut found);
            for (i, (middle, found)) in middle.iter().zip(&found).enumerate() {
                let bound = if *found as usize > i { &mut high[i] } else { &mut low[i] };
                *bound = middle.to_bits();
            }
        }
        let mut table =
            Box::new(Self { law, least: [0; CELLS], lower: [0; CELLS], upper: [0; CELLS] });
        let (mut next, mut before) = (0, 0);
        let bounds = high.iter().zip(1..).filter(|(least, _)| **least < INFINITY);
        let mut bounds = bounds.peekable();
        while let Some((least, code)) = bounds.next() {
            if bounds.peek().is_some_and(|(after, _)| *after == least) {
                continue;
            }
            let place = law.place(f32::from_bits(*least));
            let (first, last) = (cell(place - SLACK), cell(place + SLACK));
            if first < next || *least < f32::MIN_POSITIVE.to_bits() {
                return None;
            }
            table.fill(next..first, [0, before, before]);
            table.fill(first..last + 1, [*least, before, code]);
            (next, before) = (last + 1, code);
        }
        table.fill(next..CELLS, [0, before, before]);
        Some(table)
    }

    fn fill(&mut self, cells: std::ops::Range<usize>, [least, lower, upper]: [u32; 3]) {
        self.least[cells.clone()].fill(least);
        self.lower[cells.clone()].fill(lower);
        self.upper[cells].fill(upper);
    }
}

#[inline(always)]
fn cell(place: f32) -> usize {
    // What is beyond the ends belongs to the last cells. The sum has the nearest integer in the last bits of its mantissa.
    let sum = clamp(place, 0.0, (CELLS - 1) as f32) + 8_388_608.0;
    sum.to_bits() as usize & (CELLS - 1)
}

impl PowerLaw {
    /// About where the logarithm of what becomes of a finite magnitude lies, in cells.
    #[inline(always)]
    fn place(self, a: f32) -> f32 {
        // The polynomial of degree 4 through the logarithms of Chebyshev's points between 1 and 2, within 1.2e-4 of it.
        const C: [f32; 5] = [-2.498_353, 4.029_211_4, -2.078_335_2, 0.626_032_2, -0.078_440_68];
        let bits = a.to_bits();
        let m = f32::from_bits(bits & 0x007F_FFFF | 0x3F80_0000);
        let [c0, c1, c2, c3, c4] = C;
        let log = (((c4 * m + c3) * m + c2) * m + c1) * m + c0;
        let log = log + ((bits >> 23).cast_signed() - 127) as f32;
        (self.alpha * log + self.beta - FIRST_LOG) * CELLS_PER_OCTAVE
    }
}

versions! {
    /// The codes of finite values by a table.
    fn s2fp8_codes(table: &CodeTable, x: &[f32], codes: &mut [u32]) {
        let law = table.law;
        for (v, code) in x.iter().zip(codes) {
            let (a, sign) = (v.to_bits() & !SIGN, v.to_bits() & SIGN);
            let cell = cell(law.place(f32::from_bits(a)));
            let c = if a >= table.least[cell] { table.upper[cell] } else { table.lower[cell] };
            *code = c | sign >> 24;
        }
    }
}

/// What the power law of a group is made from: of values that are neither zero nor infinite nor NaN, the number, the
/// sum of logarithms, and the bits of the least and of the largest magnitude; and the number of zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Logs {
    pub count: u64,
    pub sum: f64,
    pub least: u32,
    pub most: u32,
    pub zeros: u64,
}

impl Logs {
    pub const NOTHING: Logs = Logs { count: 0, sum: 0.0, least: u32::MAX, most: 0, zeros: 0 };

    /// Those of two stretches together.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            least: self.least.min(other.least),
            most: self.most.max(other.most),
            zeros: self.zeros + other.zeros,
        }
    }
}

/// Products run in so many lanes, which are added up from the first to the last.
const LANES: usize = 16;
/// The most elements that [`s2fp8_logs`] takes at a time: products of 64 mantissas below 2 are far from the end of
/// `f64`.
pub(crate) const BLOCK: usize = 1024;

/// Adds exponents, and multiplies mantissas.
#[inline(always)]
fn add_logs(x: &[f32; LANES], exponents: &mut [u64; LANES], products: &mut [f64; LANES]) {
    const ONE: u64 = 0x3FF0_0000_0000_0000;
    for l in 0..LANES {
        let a = x[l].to_bits() & !SIGN;
        let usual = a > 0 && a < INFINITY;
        let bits = f64::from(f32::from_bits(if usual { a } else { 0x3F80_0000 })).to_bits();
        exponents[l] += bits >> 52;
        products[l] *= f64::from_bits(bits & 0x000F_FFFF_FFFF_FFFF | ONE);
    }
}

versions! {
    /// The logarithms of at most [`BLOCK`] values.
    ///
    /// Their sum is that of the exponents and of the logarithm of the product of the mantissas in each lane.
    fn s2fp8_logs(x: &[f32]) -> Logs {
        let (mut count, mut zeros, mut least, mut most) = (0u32, 0u32, u32::MAX, 0u32);
        for v in x {
            let a = v.to_bits() & !SIGN;
            let usual = a > 0 && a < INFINITY;
            count += u32::from(usual);
            zeros += u32::from(a == 0);
            least = least.min(if usual { a } else { u32::MAX });
            most = most.max(if usual { a } else { 0 });
        }
        let (mut exponents, mut products) = ([0u64; LANES], [1.0f64; LANES]);
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            add_logs(chunk, &mut exponents, &mut products);
        }
        if !rest.is_empty() {
            // What lacks in the last chunk counts as 1, as does what is zero or not finite.
            let mut last = [1.0; LANES];
            last[..rest.len()].copy_from_slice(rest);
            add_logs(&last, &mut exponents, &mut products);
        }
        let biased: u64 = exponents.iter().sum();
        let bias = 1023 * x.len().next_multiple_of(LANES) as u64;
        let sum = biased.wrapping_sub(bias).cast_signed() as f64;
        let sum = products.iter().fold(sum, |sum, p| sum + log2(*p));
        Logs { count: u64::from(count), sum, least, most, zeros: u64::from(zeros) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::at_every_level;
    use super::*;
    use crate::Stream;

    #[test]
    fn every_level_gives_the_bits_of_the_definition() {
        let stream = Stream::named(5, "s2fp8");
        let x: Vec<f32> = (0..1024)
            .map(|i| {
                let word = stream.words(i)[0];
                match i % 8 {
                    0 => f32::from_bits(word & SIGN),
                    1 => f32::from_bits(word | INFINITY),
                    2 => f32::from_bits(word & 0x807F_FFFF),
                    _ => f32::from_bits(word),
                }
            })
            .collect();
        let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for law in [
            PowerLaw { alpha: 1.0, beta: 0.0 },
            PowerLaw { alpha: 0.3, beta: -7.25 },
            PowerLaw { alpha: 64.0, beta: 9e3 },
        ] {
            let there: Vec<f32> = x.iter().map(|v| law.forward(*v)).collect();
            let back: Vec<f32> = x.iter().map(|v| law.back(*v)).collect();
            at_every_level(|_| {
                for (start, len) in (0..70).map(|len| (len % 3, len)).chain([(0, 1024)]) {
                    let part = start..start + len;
                    let mut y = vec![0.0; len];
                    s2fp8_forward(law, &x[part.clone()], &mut y);
                    assert_eq!(bits(&y), bits(&there[part.clone()]));
                    y.copy_from_slice(&x[part.clone()]);
                    s2fp8_back(law, &mut y);
                    assert_eq!(bits(&y), bits(&back[part]));
                }
            });
        }
        for len in (0..70).chain([1000, 1024]) {
            let part = &x[..len];
            let logs = s2fp8_logs(part);
            let usual = || part.iter().filter(|v| v.is_finite() && **v != 0.0).map(|v| v.abs());
            let sum: f64 = usual().map(|v| log2(f64::from(v))).sum();
            assert!((logs.sum - sum).abs() < 1e-8, "{} {sum}", logs.sum);
            assert_eq!(logs.count, usual().count() as u64);
            assert_eq!(logs.zeros, part.iter().filter(|v| **v == 0.0).count() as u64);
            assert_eq!(logs.most, usual().fold(0.0, f32::max).to_bits());
            let least = usual().fold(f32::NAN, f32::min);
            assert!(least.is_nan() || logs.least == least.to_bits());
            at_every_level(|_| assert_eq!(s2fp8_logs(part), logs));
        }
    }
}
