//! Table formats: any set of levels, of which each value takes the nearest.
//!
//! A row of [`TABLES`] is the whole format: its name and the level of every code. Levels are divided by none but the
//! group's scale, the largest magnitude of the group over the largest level.
//!
//! # Rounding
//! The threshold between two levels is their midpoint, rounded to f32. `rne` takes the upper level above the threshold
//! and the lower one at it and below, as bitsandbytes does (a table has no even codes that mean anything).
//! `half-away` differs at the threshold alone. `toward-zero` and `floor` take one of the two neighbours, and
//! `stochastic` takes the upper one with the probability that makes the result right on average.
//!
//! # Source
//! `nf4`: Dettmers et al. 2023, "QLoRA", arXiv:2305.14314, appendix E. `af4`: Yoshida 2023, "NF4 isn't information
//! theoretically optimal", arXiv:2306.06965, for blocks of 64. `bnb_fp4`, `bnb_dynamic8`, and the order of codes:
//! bitsandbytes; the last after Dettmers 2016, "8-bit approximations for parallelism in deep learning", arXiv:1511.04561.
//!
//! Differs from bitsandbytes: values are divided by the scale and not multiplied by its reciprocal, which changes the
//! code of about one value in a million; a scale is never subnormal; and a code of -0 is never written.

use std::sync::{Arc, OnceLock};

use super::{Card, Format, HeadError, Header, Params, Scaling, finite};
use crate::codecs::{Codec, Scaled};
use crate::families::Family;
use crate::simd::{self, Sixteen, Wide};
use crate::{Granularity, Range, Rounding, ScaleFormat};

/// The ways to store a scale: those of any format, and the double quantization that came with nf4.
static SCALES: [ScaleFormat; 5] =
    [ScaleFormat::F32, ScaleFormat::F16, ScaleFormat::Bf16, ScaleFormat::Pow2, ScaleFormat::Double];

/// A row of the list of tables.
struct Row {
    name: &'static str,
    /// How many consecutive elements share a scale unless the scheme says otherwise.
    block: usize,
    /// The level of each code.
    levels: fn() -> Vec<f32>,
    about: &'static str,
}

/// Every table.
static TABLES: &[Row] = &[
    Row {
        name: "nf4",
        block: 64,
        levels: || NF4.to_vec(),
        about: "QLoRA's normal float: quantiles of the normal distribution",
    },
    Row {
        name: "bnb_fp4",
        block: 64,
        levels: || FP4.map(|v| v / 12.0).to_vec(),
        about: "bitsandbytes' 4-bit float, whose levels are not those of e2m1fn",
    },
    Row {
        name: "af4",
        block: 64,
        levels: || AF4.to_vec(),
        about: "abnormal float: levels of least absolute error for normal values in blocks of 64",
    },
    Row {
        name: "bnb_dynamic8",
        block: 256,
        levels: dynamic8,
        about: "bitsandbytes' dynamic 8-bit map: seven decades, finer near one",
    },
];

static NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Times twelve.
static FP4: [f32; 16] =
    [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, 0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0];

static AF4: [f32; 16] = [
    1.0,
    0.724_248_63,
    0.554_962_34,
    0.425_638_82,
    0.316_756_66,
    0.219_612_74,
    0.129_344_83,
    0.042_731_64,
    0.0,
    -0.049_348_12,
    -0.149_824_78,
    -0.256_075_52,
    -0.373_695_1,
    -0.512_437_4,
    -0.694_410_1,
    -1.0,
];

/// The signed dynamic map: zero, one, and in each decade `10^(i-6)` to `10^(i-7)` of either sign `2^i` levels, the
/// midpoints of equal parts of it.
pub(crate) fn dynamic8() -> Vec<f32> {
    const DECADES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut levels = vec![0.0, 1.0];
    for (i, decade) in DECADES.into_iter().enumerate() {
        let parts = 1u16 << i;
        let step = (1.0 - 0.1) / f32::from(parts);
        // Counted from the nearer end with one rounding each, so that the levels are the published ones to the last bit.
        let boundary = |j: u16| {
            if j < parts.div_ceil(2) {
                step.mul_add(f32::from(j), 0.1)
            } else {
                step.mul_add(-f32::from(parts - j), 1.0)
            }
        };
        for j in 0..parts {
            let level = decade * f32::midpoint(boundary(j), boundary(j + 1));
            levels.extend([level, -level]);
        }
    }
    levels.sort_by(f32::total_cmp);
    levels
}

/// The levels of a table in ascending order, each once, and the thresholds between them.
#[derive(Debug)]
pub(crate) struct Levels {
    by_code: Vec<f32>,
    values: Vec<f32>,
    codes: Vec<u32>,
    /// The midpoints of neighbours, rounded to f32.
    thresholds: Vec<f32>,
    zero: usize,
}

impl Levels {
    /// Of levels in the order of their codes. Of codes with equal levels the first is the one that is written.
    pub fn new(by_code: Vec<f32>) -> Self {
        let mut order: Vec<(f32, u32)> = by_code.iter().copied().zip(0..).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        order.dedup_by(|later, first| later.0 == first.0);
        let (values, codes): (Vec<f32>, Vec<u32>) = order.into_iter().unzip();
        let thresholds = values.windows(2).map(|w| f32::midpoint(w[0], w[1])).collect();
        let zero = values.partition_point(|l| *l < 0.0);
        Self { by_code, values, codes, thresholds, zero }
    }

    /// The place, in ascending order, of the level that a value takes; that of zero for NaN.
    fn place(&self, v: f32, rounding: Rounding, draw: u32) -> usize {
        if v.is_nan() {
            return self.zero;
        }
        let upper = self.values.partition_point(|l| *l <= v);
        if upper == 0 || upper == self.values.len() {
            return upper.saturating_sub(1);
        }
        let lower = upper - 1;
        let (low, high, middle) = (self.values[lower], self.values[upper], self.thresholds[lower]);
        let up = match rounding {
            Rounding::NearestEven => v > middle,
            Rounding::HalfAway => v > middle || (v == middle && v > 0.0),
            Rounding::TowardZero => v < 0.0 && v > low,
            Rounding::Floor => false,
            Rounding::Stochastic => {
                let part = (f64::from(v) - f64::from(low)) / (f64::from(high) - f64::from(low));
                rounding.round(part, draw) >= 1.0
            }
        };
        if up { upper } else { lower }
    }

    /// The code that a value takes.
    pub fn code(&self, v: f32, rounding: Rounding, draw: u32) -> u32 {
        self.codes[self.place(v, rounding, draw)]
    }

    /// The level of a code; codes beyond the table start again.
    pub fn level(&self, code: u32) -> f32 {
        self.by_code[code as usize % self.by_code.len()]
    }
}

/// The paper, for the book.
const SOURCE: &str = "\
`nf4`: Dettmers et al. 2023, QLoRA, [arXiv:2305.14314](https://arxiv.org/abs/2305.14314), appendix E. `af4`: Yoshida 2023,
[arXiv:2306.06965](https://arxiv.org/abs/2306.06965). `bnb_fp4`, `bnb_dynamic8` and the order of codes: bitsandbytes, the last after
Dettmers 2016, [arXiv:1511.04561](https://arxiv.org/abs/1511.04561)";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
A code is the place of a level in the list above, and `value = level * scale`, rounded to f32.";

/// The family of all tables.
pub(crate) struct TableFamily;

impl Family for TableFamily {
    fn syntax(&self) -> &'static str {
        "nf4 bnb_fp4 af4 bnb_dynamic8"
    }

    fn about(&self) -> &'static str {
        "the nearest of a table of levels under the largest magnitude of a block; `/double` quantizes the scales too"
    }

    fn members(&self) -> Vec<String> {
        TABLES.iter().map(|row| row.name.into()).collect()
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        static PARSED: [OnceLock<Table>; 4] = [const { OnceLock::new() }; 4];
        let at = TABLES.iter().position(|row| row.name == head)?;
        let table = PARSED[at].get_or_init(|| Table::new(&TABLES[at]));
        Some(Ok(Scaled::of(table.clone())))
    }

    fn synonyms(&self) -> &'static [(&'static str, &'static str)] {
        &[("normalfloat4", "nf4"), ("bnb_nf4", "nf4"), ("fp4_bnb", "bnb_fp4")]
    }
}

/// A table of levels as a format.
#[derive(Clone, Debug)]
struct Table {
    name: &'static str,
    about: &'static str,
    block: usize,
    levels: Arc<Levels>,
    /// The levels as the vector loops want them, where there are sixteen.
    sixteen: Option<Arc<Sixteen>>,
    /// The same, where there are more.
    wide: Option<Arc<Wide>>,
}

impl Table {
    fn new(row: &Row) -> Self {
        let levels = Levels::new((row.levels)());
        let sixteen =
            Sixteen::new(&levels.values, &levels.thresholds, &levels.codes, &levels.by_code);
        let wide = if sixteen.is_none() {
            Wide::new(&levels.values, &levels.thresholds, &levels.codes)
        } else {
            None
        };
        Self {
            name: row.name,
            about: row.about,
            block: row.block,
            levels: Arc::new(levels),
            sixteen: sixteen.map(Arc::new),
            wide: wide.map(Arc::new),
        }
    }

    fn min(&self) -> f32 {
        self.levels.values.first().copied().unwrap_or(0.0)
    }

    fn max(&self) -> f32 {
        self.levels.values.last().copied().unwrap_or(0.0)
    }
}

impl Format for Table {
    fn name(&self) -> String {
        self.name.into()
    }

    fn bits(&self) -> u32 {
        self.levels.by_code.len().ilog2()
    }

    fn card(&self) -> Card {
        Card {
            name: self.name(),
            bits: self.bits(),
            exponent_bits: None,
            mantissa_bits: None,
            bias: None,
            min: self.min(),
            max: self.max(),
            min_normal: None,
            min_subnormal: None,
            specials: "none",
            overflow: "saturate",
            rounding: Rounding::NearestEven.word(),
            about: self.about.into(),
        }
    }

    fn header(&self) -> Header {
        Header { scaling: Scaling::Always, zero_bits: 0, offset: false }
    }

    fn default_granularity(&self) -> Granularity {
        Granularity::Flat(self.block)
    }

    fn scales(&self) -> &'static [ScaleFormat] {
        &SCALES
    }

    fn top(&self) -> f32 {
        self.max().max(-self.min())
    }

    fn holds_nan(&self) -> bool {
        false
    }

    fn fit(&self, range: Range, store: ScaleFormat) -> Params {
        let amax = range.amax();
        // Where scales are stored less their mean, a scale of 1 for nothing would move the mean of all others.
        if amax == 0.0 && !store.is_nested() {
            return Params::UNIT;
        }
        Params { scale: store.store(amax / self.top()), ..Params::UNIT }
    }

    fn encode(&self, x: f32, params: &Params, rounding: Rounding, draw: u32) -> u32 {
        self.levels.code(x / params.scale, rounding, draw)
    }

    fn decode(&self, code: u32, params: &Params) -> f32 {
        finite(self.levels.level(code) * params.scale)
    }

    fn quantize_run(&self, x: &mut [f32], params: &Params, rounding: Rounding, draws: &[u32]) {
        match (rounding, &self.sixteen, &self.wide) {
            (Rounding::NearestEven, Some(table), _) => simd::sixteen_run(table, x, params.scale),
            (Rounding::NearestEven, _, Some(table)) => simd::wide_run(table, x, params.scale),
            (Rounding::Stochastic, Some(table), _) => {
                simd::sixteen_run_drawn(table, x, params.scale, draws);
            }
            (Rounding::Stochastic, _, Some(table)) => {
                simd::wide_run_drawn(table, x, params.scale, draws);
            }
            _ => super::quantize_by_definition(self, x, params, rounding, draws),
        }
    }

    fn encode_run(
        &self,
        x: &[f32],
        params: &Params,
        rounding: Rounding,
        draws: &[u32],
        codes: &mut [u32],
    ) {
        match (rounding, &self.sixteen, &self.wide) {
            (Rounding::NearestEven, Some(table), _) => {
                simd::sixteen_encode(table, x, params.scale, codes);
            }
            (Rounding::NearestEven, _, Some(table)) => {
                simd::wide_encode(table, x, params.scale, codes);
            }
            (Rounding::Stochastic, Some(table), _) => {
                simd::sixteen_encode_drawn(table, x, params.scale, draws, codes);
            }
            (Rounding::Stochastic, _, Some(table)) => {
                simd::wide_encode_drawn(table, x, params.scale, draws, codes);
            }
            _ => super::encode_by_definition(self, x, params, rounding, draws, codes),
        }
    }

    fn decode_run(&self, codes: &[u32], params: &Params, out: &mut [f32]) {
        match &self.sixteen {
            Some(table) => simd::sixteen_decode(table, codes, params.scale, out),
            None => super::decode_by_definition(self, codes, params, out),
        }
    }

    fn quantize_blocks(
        &self,
        x: &mut [f32],
        len: usize,
        store: ScaleFormat,
        rounding: Rounding,
    ) -> usize {
        match &self.sixteen {
            Some(table) if rounding == Rounding::NearestEven && !store.is_nested() => {
                simd::sixteen_blocks(table, x, len, store)
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scheme, Stream};

    fn table(name: &str) -> Table {
        Table::new(TABLES.iter().find(|row| row.name == name).unwrap())
    }

    fn level(t: &Table, v: f32, rounding: Rounding) -> f32 {
        t.decode(t.encode(v, &Params::UNIT, rounding, 0), &Params::UNIT)
    }

    #[test]
    fn the_levels_of_the_specification_hold() {
        let rounded = [
            -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609,
            0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0,
        ];
        for (code, expected) in rounded.into_iter().enumerate() {
            assert!((NF4[code] - expected).abs() < 5.1e-5, "nf4 {code}");
        }
        let rounded = [0.0, 0.0052, 0.6667, 1.0, 0.3333, 0.5, 0.1667, 0.25];
        let fp4 = table("bnb_fp4");
        for (code, expected) in (0..).zip(rounded) {
            assert!((fp4.levels.level(code) - expected).abs() < 5.1e-5, "fp4 {code}");
            assert_eq!(fp4.levels.level(code + 8), -fp4.levels.level(code) + 0.0);
        }
    }

    #[test]
    fn a_value_on_a_threshold_takes_the_lower_level_and_above_it_the_upper() {
        for row in TABLES {
            let t = Table::new(row);
            for (pair, &middle) in t.levels.values.windows(2).zip(&t.levels.thresholds) {
                assert_eq!(level(&t, middle, Rounding::NearestEven), pair[0]);
                assert_eq!(level(&t, middle.next_up(), Rounding::NearestEven), pair[1]);
                let away = if middle > 0.0 { pair[1] } else { pair[0] };
                assert_eq!(level(&t, middle, Rounding::HalfAway), away);
                assert_eq!(level(&t, middle, Rounding::Floor), pair[0]);
                let inner = if middle > 0.0 { pair[0] } else { pair[1] };
                assert_eq!(level(&t, middle, Rounding::TowardZero), inner);
            }
        }
    }

    #[test]
    fn levels_are_their_own_values_under_every_rounding() {
        for row in TABLES {
            let t = Table::new(row);
            for code in 0..1 << t.bits() {
                let value = t.decode(code, &Params::UNIT);
                for (_, rounding) in Rounding::WORDS {
                    for draw in [0, (1 << 24) - 1] {
                        let again = t.encode(value, &Params::UNIT, rounding, draw);
                        assert_eq!(t.decode(again, &Params::UNIT).to_bits(), value.to_bits());
                    }
                }
            }
        }
    }

    #[test]
    fn stochastic_rounding_between_uneven_levels_is_right_on_average() {
        let n = 1 << 18;
        for text in ["nf4/tensor/stochastic", "bnb_dynamic8/tensor/stochastic"] {
            let scheme: Scheme = text.parse().unwrap();
            for value in [0.3f32, -0.05, 0.9] {
                let mut x = vec![value; n];
                x[0] = 1.0;
                scheme.emulate(&mut x, &[n], &Stream::named(3, "mean")).unwrap();
                let mean = x[1..].iter().map(|v| f64::from(*v)).sum::<f64>() / (n - 1) as f64;
                // Half a step of at most 0.28, over the root of n, times four.
                assert!((mean - f64::from(value)).abs() < 4.0 * 0.14 / (n as f64).sqrt(), "{text}");
            }
        }
    }

    #[test]
    fn the_dynamic_map_has_256_levels_over_seven_decades() {
        let t = table("bnb_dynamic8");
        assert_eq!((t.bits(), t.levels.values.len()), (8, 256));
        assert_eq!((t.max(), t.min()), (1.0, -0.992_968_74));
        assert_eq!(t.levels.values[128], 5.500_000_4e-7);
    }

    #[test]
    fn double_is_a_word_of_its_own() {
        let scheme: Scheme = "nf4/double".parse().unwrap();
        assert_eq!(scheme.to_string(), "nf4/scale:double");
        // 130 groups: a byte each, one f32 for the 256 and one for the tensor.
        assert_eq!(scheme.size(&[130 * 64]).unwrap().exact(), Some(130 * 32 + 130 + 4 + 4));
    }
}
