//! SmaQ: values become distances from the mean in standard deviations, in a short code near the mean and in a longer
//! one beyond.
//!
//! # Grammar
//!
//! The head is `smaq:M,O`, or `smaq` for `smaq:6,8`: bits of a main value and of an outlier, 3 to 16 each. Both counts
//! include the tag and the sign. Words, each left out where it says the default:
//!
//! | word | meaning |
//! |---|---|
//! | `t1:1.0` | main values lie within so many standard deviations of the mean |
//! | `t2:2.5` | outliers are clamped, on both sides, at so many |
//! | `full` | mean and unbiased standard deviation of all values (default) |
//! | `sampled:K` | mean and biased standard deviation of K values, drawn without replacement from the stream |
//! | `range` | standard deviation taken as `(max - min) / sqrt(2 ln n)`, mean of all values |
//! | `positive` | decoded values are at least 0 (second moments of Adam) |
//! | `zeros` | zeros are exact: they lie in a bitmap, have no code, and do not count in statistics |
//! | `original` | outliers are not clamped at `t2`; see below |
//! | `min:8` | a tensor of fewer elements stays `f32` |
//!
//! Groups, rounding and `nonfinite:` are the common words. Statistics belong to a group.
//!
//! # Arithmetic
//!
//! Mean and variance are computed in `f64`: the sum and the squared distances from the block's mean over blocks of 1024
//! values (at most; a run of a group begins a new one), joined in the order of storage. They are stored as `f32`, -0 as
//! 0. A standard deviation of 0 becomes 1, others are limited to 2^-126..1e38; the limited one divides and multiplies.
//! Everything else is `f32`, each operation rounded: with
//! `r1 = (2^(M-2) - 1) / t1` and `r2 = (2^(O-2) - 1) / (t2 - t1)`,
//!
//! | | if | steps | decoded |
//! |---|---|---|---|
//! | main | `abs(z) <= t1`, `z = (x - mean) / std` | `q = round(z r1)` | `mean + std w`, `w = min(q / r1, t1)` |
//! | outlier | else | `q = round(sign(z) (abs(z) - t1) r2)` | `mean + std w`, `abs(w) = t1 + abs(q) / r2` |
//!
//! with `abs(q)` clamped to the largest magnitude and the sign of `w` that of `z`. What overflows becomes the largest
//! `f32`.
//!
//! # Bytes
//! See [`Family::layout`].
//!
//! # The originals' defects
//!
//! The original promises to clamp beyond `t2` and does not: a value 5 standard deviations out gets code 168 for a
//! field of 6 bits, which its bytes could not hold. With `original` there is a field for it: the outliers of a tensor
//! are as wide as its largest needs (no narrower than *O* - 1 and at most 24 bits, where magnitudes are clamped), the
//! width is stored, and the size says what that costs. It trained with `stochastic`; `toward-zero` is its other
//! rounding. The original also limited the standard deviation where it divides but not where it multiplies; that is
//! not offered.
//!
//! # Source
//! Shoghi et al. 2021, "SmaQ: Smart Quantization for DNN Training by Exploiting Value Clustering", IEEE CAL; the
//! layout of the bytes is ours, since the original only emulates. Differs: nearest is the default rounding, mean and
//! standard deviation are counted in the size, values beyond `t2` are clamped, and `zeros`, which the original maps to
//! noise around zero (harmful for feature maps after a ReLU and for second moments), is ours.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops;
use std::sync::Arc;

use super::bands::{Refusal, each_band, split};
use super::{Codec, DecodeError, Defaults, EncodeError, Job, Size, Tally, Terms};
use crate::families::Family;
use crate::formats::{Card, HeadError, Scaling};
use crate::granularity::{Band, Layout};
use crate::logarithm::log2;
use crate::simd::smaq::{
    BLOCK, Carry, Census, Moments, Normal, OUTLIER, SmaqGrid, ZERO, moments, pack_stream,
    smaq_census, smaq_codes, smaq_emulate, smaq_normalised, smaq_values, unpack_stream,
};
use crate::{Granularity, NonFinite, Range, Rounding, ShapeError, Stream, simd};

/// The paper, for the book.
const SOURCE: &str = "\
Shoghi et al. 2021, SmaQ: Smart Quantization for DNN Training by Exploiting Value Clustering, IEEE Computer Architecture
Letters; the layout of the bytes is ours, since the original only emulates";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
A tensor of fewer than `min` elements is its values as `f32`. All others are, little-endian, in this order, with *G*
groups, *N* elements and *B* = `ceil(N / 1024)` blocks of consecutive elements, the last of which may be short:

| part | present | bytes |
|---|---|---|
| for each group mean, then standard deviation | always | 8 *G* |
| width of an outlier's magnitude | `original` | 1 |
| whether there are zeros, 0 or 1 | `zeros` | 1 |
| for each block the number of outliers up to its end, `u32` | always | 4 *B* |
| for each block the number of zeros up to its end, `u32` | if there are zeros | 4 *B* |
| a bit for each element, 1: it is zero | if there are zeros | `ceil(N / 8)` |
| tags: a bit for each element that is not zero, 1: outlier | always | `ceil((N - zeros) / 8)` |
| main codes of *M* - 1 bits | always | `ceil(mains (M - 1) / 8)` |
| outlier codes of *O* - 1 bits | always | `ceil(outliers (O - 1) / 8)` |

A code is a magnitude with the sign above it. Bits and codes are packed as everywhere: bit *j* of a stream is bit *j mod
8* of byte *floor(j / 8)*. A stream holds the codes of its kind in the order of the elements; nothing is padded between
blocks. So the tables give the place of a block in each stream: before block *b* come `outliers[b - 1]` outliers and
`1024 b - zeros[b - 1] - outliers[b - 1]` main values, and the last entries give the lengths. Tensors of more than
2^32 - 1 elements are refused.

With `r1 = (2^(M-2) - 1) / t1` and `r2 = (2^(O-2) - 1) / (t2 - t1)`, each operation rounded to f32, a main code of magnitude
*q* reads as `mean + std w` with `w = min(q / r1, t1)`, and an outlier with `w = t1 + q / r2`, under the sign of the code;
with `positive` at least 0. What overflows becomes the largest f32.

The words `t1:T` and `t2:T` set the two thresholds, in standard deviations; `min:N` the length from which tensors are
encoded; `full`, `sampled:K` and `range` say what mean and standard deviation are taken of, and `original` that outliers are
not clamped at `t2`, which a reader sees in nothing but the stored width.";

/// `smaq:M,O`.
pub(crate) struct SmaqFamily;

impl Family for SmaqFamily {
    fn syntax(&self) -> &'static str {
        "smaq:3,3..smaq:16,16"
    }

    fn about(&self) -> &'static str {
        "SmaQ: a short code within a standard deviation of the mean, a longer one beyond; `smaq` is `smaq:6,8`"
    }

    fn members(&self) -> Vec<String> {
        ["smaq:6,8", "smaq:4,6", "smaq:6,8/sampled:16", "smaq:6,8/zeros", "smaq:6,8/original"]
            .map(String::from)
            .to_vec()
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let widths = match head.strip_prefix("smaq")? {
            "" => "6,8",
            rest => rest.strip_prefix(':')?,
        };
        let number = |text: &str| text.parse().ok().filter(|bits| (3..=16).contains(bits));
        let parsed = widths.split_once(',').and_then(|(m, o)| Some([number(m)?, number(o)?]));
        Some(match parsed {
            Some(bits) => Ok(Arc::new(Smaq { bits, ..Smaq::default() })),
            None => Err(HeadError {
                message: format!("`{head}` needs bits of main values and of outliers, 3 to 16"),
                help: "write for example smaq:6,8".into(),
            }),
        })
    }
}

/// What mean and standard deviation are computed from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Statistics {
    Full,
    Sampled(usize),
    Range,
}

/// The codec: bits, thresholds and choices.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Smaq {
    /// Main, outlier, with tag and sign.
    bits: [u32; 2],
    t1: f32,
    t2: f32,
    statistics: Statistics,
    positive: bool,
    zeros: bool,
    original: bool,
    min_elems: usize,
    /// Which words were said, so that saying one twice is an error.
    said: Vec<&'static str>,
}

impl Default for Smaq {
    fn default() -> Self {
        Self {
            bits: [6, 8],
            t1: 1.0,
            t2: 2.5,
            statistics: Statistics::Full,
            positive: false,
            zeros: false,
            original: false,
            min_elems: 8,
            said: Vec::new(),
        }
    }
}

/// Thresholds may lie between these: beyond, steps leave the range of `f32`.
const THRESHOLDS: ops::RangeInclusive<f32> = 0.01..=1000.0;
/// The largest sample, so that drawing it stays cheap.
const MOST_SAMPLED: usize = 65_536;
/// The widest magnitude of an outlier that is not clamped.
const WIDEST: u32 = 23;
/// Bytes of a group's mean and standard deviation.
const NORMAL_BYTES: usize = 8;
/// Blocks that one task works on.
const BAND_BLOCKS: usize = 32;
/// A block of the widest codes, and the slack that moving whole words needs.
const BUFFER: usize = BLOCK * (WIDEST as usize + 1) / 8 + 16;

impl Codec for Smaq {
    fn name(&self) -> String {
        format!("smaq:{},{}", self.bits[0], self.bits[1])
    }

    fn suffix(&self) -> String {
        let plain = Self::default();
        let mut text = String::new();
        if self.t1.to_bits() != plain.t1.to_bits() {
            let _ = write!(text, "/t1:{:?}", self.t1);
        }
        if self.t2.to_bits() != plain.t2.to_bits() {
            let _ = write!(text, "/t2:{:?}", self.t2);
        }
        match self.statistics {
            Statistics::Full => {}
            Statistics::Sampled(k) => {
                let _ = write!(text, "/sampled:{k}");
            }
            Statistics::Range => text += "/range",
        }
        for (said, word) in
            [(self.positive, "/positive"), (self.zeros, "/zeros"), (self.original, "/original")]
        {
            if said {
                text += word;
            }
        }
        if self.min_elems != plain.min_elems {
            let _ = write!(text, "/min:{}", self.min_elems);
        }
        text
    }

    fn card(&self) -> Card {
        let top = if self.original { f32::MAX } else { self.t2 };
        Card {
            name: self.name() + &self.suffix(),
            bits: self.bits[0],
            exponent_bits: None,
            mantissa_bits: None,
            bias: None,
            min: if self.positive { 0.0 } else { -top },
            max: top,
            min_normal: None,
            min_subnormal: None,
            specials: "none",
            overflow: "saturate",
            rounding: Rounding::NearestEven.word(),
            about: format!(
                "SmaQ: {} bits within {:?} standard deviations of the mean, {} bits beyond, and 8 bytes a group",
                self.bits[0], self.t1, self.bits[1]
            ),
        }
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            scaling: Scaling::Always,
            granularity: Granularity::Tensor,
            scales: &[],
            rounding: Some(Rounding::NearestEven),
        }
    }

    fn words(&self) -> &'static [&'static str] {
        &[
            "t1:1.0",
            "t2:2.5",
            "full",
            "sampled:16",
            "range",
            "positive",
            "zeros",
            "original",
            "min:8",
        ]
    }

    fn with_word(&self, word: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let mut new = self.clone();
        let (key, value) = word.split_once(':').unwrap_or((word, ""));
        let wrong = |needs: &str, example: &str| {
            Some(Err(HeadError {
                message: format!("`{word}` needs {needs}"),
                help: format!("write for example `{example}`"),
            }))
        };
        let slot = match (key, value) {
            ("t1" | "t2", _) => {
                let Some(t) = value.parse().ok().filter(|t| THRESHOLDS.contains(t)) else {
                    return wrong("a number of standard deviations, 0.01 to 1000", "t2:2.5");
                };
                if key == "t1" {
                    new.t1 = t;
                    "t1"
                } else {
                    new.t2 = t;
                    "t2"
                }
            }
            ("sampled", _) => {
                let Some(k) = value.parse().ok().filter(|k| (2..=MOST_SAMPLED).contains(k)) else {
                    return wrong("a number of values, 2 to 65536", "sampled:16");
                };
                new.statistics = Statistics::Sampled(k);
                "statistics"
            }
            ("min", _) => {
                let Some(n) = value.parse().ok().filter(|n| *n >= 1) else {
                    return wrong("a number of elements, from 1 on", "min:8");
                };
                new.min_elems = n;
                "min"
            }
            ("full", "") => {
                new.statistics = Statistics::Full;
                "statistics"
            }
            ("range", "") => {
                new.statistics = Statistics::Range;
                "statistics"
            }
            ("positive", "") => {
                new.positive = true;
                "positive"
            }
            ("zeros", "") => {
                new.zeros = true;
                "zeros"
            }
            ("original", "") => {
                new.original = true;
                "original"
            }
            _ => return None,
        };
        if self.said.contains(&slot) {
            return Some(Err(HeadError {
                message: format!("`{word}` contradicts an earlier word of `{}`", self.name()),
                help: "keep one of the two".into(),
            }));
        }
        new.said.push(slot);
        Some(Ok(Arc::new(new)))
    }

    fn complaint(&self) -> Option<HeadError> {
        (self.t1 >= self.t2).then(|| HeadError {
            message: format!(
                "outliers would end at {:?} before they begin at {:?}",
                self.t2, self.t1
            ),
            help: "make t1 smaller than t2".into(),
        })
    }

    fn size(&self, terms: &Terms, shape: &[usize]) -> Result<Size, ShapeError> {
        let layout = terms.layout(shape)?;
        let too_large = || ShapeError::TooLarge { shape: shape.to_vec() };
        let n = layout.elems();
        u32::try_from(n).map_err(|_| too_large())?;
        if n < self.min_elems {
            return n.checked_mul(4).map(Size::fixed).ok_or_else(too_large);
        }
        // `u64` holds 2^32 elements of 26 bits and as many groups of 8 bytes.
        let (n, groups) = (n as u64, layout.groups() as u64);
        let tables = n.div_ceil(BLOCK as u64) * 4;
        let front = groups * NORMAL_BYTES as u64
            + u64::from(self.original)
            + u64::from(self.zeros)
            + tables;
        let widest = if self.original { WIDEST } else { self.bits[1] - 2 };
        let (main, outlier) = (u64::from(self.bits[0] - 1), u64::from(self.bits[1] - 1));
        // However many are outliers, the two streams together take no less than all codes at the lesser width, and no
        // more than all at the greater one, but for the byte that is begun twice.
        let plain = front + n.div_ceil(8);
        let mut least = plain + (n * main.min(outlier)).div_ceil(8);
        let mut most = plain + (n * main.max(u64::from(widest) + 1)).div_ceil(8) + 1;
        if self.zeros {
            let bitmap = tables + n.div_ceil(8);
            // All values are zero, or only one is.
            least = least.min(front + bitmap);
            most += bitmap;
        }
        let bytes = |n: u64| usize::try_from(n).map_err(|_| too_large());
        Ok(Size { least: bytes(least)?, most: bytes(most)? })
    }

    fn emulate(&self, job: Job, x: &mut [f32]) -> Result<Tally, EncodeError> {
        let Job { terms, shape, stream, scheme, .. } = job;
        let layout = terms.layout(shape)?;
        let refused = |r: Refusal| r.by(scheme);
        if x.len() < self.min_elems {
            return keep(x, terms).map_err(refused);
        }
        let grid = self.grid(self.bits[1] - 2, true);
        let bands = layout.bands();
        // Groups inside a band are rounded while they are still in the cache.
        let fused = !layout.spans_bands() && !matches!(self.statistics, Statistics::Sampled(_));
        let (normals, tally) = if fused {
            (Vec::new(), Tally::default())
        } else {
            self.fit(x, layout, terms, stream).map_err(refused)?
        };
        let slices = split(x, &bands, |band| band.elems.len());
        let tallies = each_band(slices, &bands, |x, band| {
            let first = band.groups.start;
            let (own, tally);
            let normals = if fused {
                let (found, seen) = self.scan_band(x, band, layout, terms)?;
                own = found.iter().map(|s| s.normal(self)).collect::<Vec<_>>();
                tally = seen;
                &own[..]
            } else {
                tally = Tally::default();
                &normals[band.groups.clone()]
            };
            let mut draws = [0; BLOCK];
            layout.runs(band, |run| {
                for at in (0..run.len).step_by(BLOCK) {
                    let part = run.start + at..run.start + (at + BLOCK).min(run.len);
                    if terms.rounding == Rounding::Stochastic {
                        let from = (band.elems.start + part.start) as u64;
                        stream.fill(from, &mut draws[..part.len()]);
                    }
                    let normal = normals[run.group - first];
                    smaq_emulate(&grid, normal, &mut x[part], terms.rounding, &draws);
                }
            });
            Ok(tally)
        });
        tallies.into_iter().try_fold(tally, |sum, seen| Ok(sum.join(seen.map_err(refused)?)))
    }

    fn encode(&self, job: Job, x: &[f32], out: &mut Vec<u8>) -> Result<Tally, EncodeError> {
        let Job { terms, shape, stream, scheme, .. } = job;
        let layout = terms.layout(shape)?;
        if x.len() < self.min_elems {
            let mut kept = x.to_vec();
            let tally = keep(&mut kept, terms).map_err(|r| r.by(scheme))?;
            out.extend(kept.iter().flat_map(|v| v.to_le_bytes()));
            return Ok(tally);
        }
        let (normals, tally) = self.fit(x, layout, terms, stream).map_err(|r| r.by(scheme))?;
        Writer { smaq: self, layout, terms, stream, normals: &normals }.write(x, out);
        Ok(tally)
    }

    fn decode(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        let layout = terms.layout(shape)?;
        if layout.elems() < self.min_elems {
            return read_kept(bytes, out).map_err(|reason| self.corrupt(reason));
        }
        let reader = Reader::new(self, layout, bytes).map_err(|reason| self.corrupt(reason))?;
        reader.check_tables().map_err(|reason| self.corrupt(reason))?;
        let bands = blocks(layout.elems());
        let results = each_band(split(out, &bands, |b| b.elems.len()), &bands, |out, band| {
            let first = band.elems.start / BLOCK;
            (first..).zip(out.chunks_mut(BLOCK)).try_for_each(|(b, out)| reader.block(b, out))
        });
        results.into_iter().collect::<Result<(), _>>().map_err(|reason| self.corrupt(reason))
    }

    fn decode_range(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        range: ops::Range<usize>,
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        let layout = terms.layout(shape)?;
        let corrupt = |reason| self.corrupt(reason);
        if layout.elems() < self.min_elems {
            let part = bytes.get(range.start * 4..range.end * 4).unwrap_or(&[]);
            return read_kept(part, out).map_err(corrupt);
        }
        let reader = Reader::new(self, layout, bytes).map_err(corrupt)?;
        let mut block = [0.0; BLOCK];
        let mut at = range.start;
        while at < range.end {
            let b = at / BLOCK;
            let start = b * BLOCK;
            let end = (start + BLOCK).min(layout.elems());
            reader.block(b, &mut block[..end - start]).map_err(corrupt)?;
            let next = end.min(range.end);
            out[at - range.start..next - range.start]
                .copy_from_slice(&block[at - start..next - start]);
            at = next;
        }
        Ok(())
    }
}

/// Consecutive blocks in tasks, as bands without groups.
fn blocks(elems: usize) -> Vec<Band> {
    let step = BAND_BLOCKS * BLOCK;
    (0..elems)
        .step_by(step)
        .map(|at| Band { elems: at..(at + step).min(elems), groups: 0..0 })
        .collect()
}

/// Treats what is not finite in a tensor that stays as it is.
fn keep(x: &mut [f32], terms: &Terms) -> Result<Tally, Refusal> {
    let tally = count(x, 0, terms)?;
    for v in x.iter_mut().filter(|v| !v.is_finite()) {
        *v = if v.is_nan() { 0.0 } else { f32::MAX.copysign(*v) };
    }
    Ok(tally)
}

/// Counts or refuses what is not finite; `first` is the index of the first value.
fn count(x: &[f32], first: usize, terms: &Terms) -> Result<Tally, Refusal> {
    let mut tally = Tally::default();
    for (i, &value) in x.iter().enumerate().filter(|(_, v)| !v.is_finite()) {
        match terms.nonfinite {
            NonFinite::Saturate if value.is_nan() => tally.nans += 1,
            NonFinite::Saturate => tally.infinities += 1,
            _ => return Err(Refusal { index: first + i, value }),
        }
    }
    Ok(tally)
}

/// Reads the values of a tensor that stayed as it is.
fn read_kept(bytes: &[u8], out: &mut [f32]) -> Result<(), String> {
    for (i, (v, bytes)) in out.iter_mut().zip(bytes.as_chunks::<4>().0).enumerate() {
        *v = f32::from_le_bytes(*bytes);
        if !v.is_finite() {
            return Err(format!("element {i} is {v}"));
        }
    }
    Ok(())
}

/// What is known of a group.
#[derive(Clone, Copy, Debug)]
struct Seen {
    moments: Moments,
    /// Only for [`Statistics::Range`].
    range: Range,
}

impl Seen {
    const NOTHING: Seen =
        Seen { moments: Moments { count: 0.0, sum: 0.0, squares: 0.0 }, range: Range::EMPTY };

    fn join(self, other: Self) -> Self {
        Self { moments: self.moments.join(other.moments), range: self.range.join(other.range) }
    }

    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    fn normal(&self, smaq: &Smaq) -> Normal {
        let Moments { count, sum, squares } = self.moments;
        // One value has no deviation, whatever the rule.
        if count <= 1.0 {
            return Normal { mean: sum as f32 + 0.0, std: 1.0 };
        }
        let std = match smaq.statistics {
            Statistics::Full => (squares / (count - 1.0)).sqrt(),
            Statistics::Sampled(_) => (squares / count).sqrt(),
            Statistics::Range => {
                let Range { min, max } = self.range;
                let ln = log2(count) * std::f64::consts::LN_2;
                (f64::from(max) - f64::from(min)) / (2.0 * ln).sqrt()
            }
        };
        let std = if std == 0.0 { 1.0 } else { std.clamp(f64::from(f32::MIN_POSITIVE), 1e38) };
        Normal { mean: (sum / count) as f32 + 0.0, std: std as f32 }
    }
}

impl Smaq {
    fn corrupt(&self, reason: String) -> DecodeError {
        DecodeError::Corrupt { scheme: self.name() + &self.suffix(), reason }
    }

    /// The grid where outliers have magnitudes of so many bits.
    ///
    /// An emulation of `original` does not know the bits that the bytes will have; it takes as many as there can be,
    /// which is the same, since no magnitude of a tensor needs more than its bytes give it.
    fn grid(&self, outlier_bits: u32, emulated: bool) -> SmaqGrid {
        let largest = |bits: u32| ((1u32 << bits) - 1) as f32;
        let main = largest(self.bits[0] - 2);
        let wide = if self.original && emulated { WIDEST } else { outlier_bits };
        SmaqGrid {
            t1: self.t1,
            steps: [main / self.t1, largest(self.bits[1] - 2) / (self.t2 - self.t1)],
            top: [main, largest(wide)],
            sign_at: [self.bits[0] - 2, wide],
            low: if self.positive { 0.0 } else { -f32::MAX },
            zeros: self.zeros,
        }
    }

    /// Statistics of at most [`BLOCK`] values, the first of which is element `first`.
    fn scan(&self, x: &[f32], first: usize, terms: &Terms) -> Result<(Seen, Tally), Refusal> {
        let seen = self.scan_finite(x);
        if seen.moments.squares.is_finite() {
            return Ok((seen, Tally::default()));
        }
        let tally = count(x, first, terms)?;
        let finite: Vec<f32> = x.iter().copied().filter(|v| v.is_finite()).collect();
        Ok((self.scan_finite(&finite), tally))
    }

    fn scan_finite(&self, x: &[f32]) -> Seen {
        let range = match self.statistics {
            Statistics::Range if self.zeros => x
                .iter()
                .filter(|v| **v != 0.0)
                .fold(Range::EMPTY, |r, &v| r.join(Range { min: v, max: v })),
            Statistics::Range if !x.is_empty() => {
                let (min, max) = simd::min_max(x);
                Range { min, max }
            }
            _ => Range::EMPTY,
        };
        Seen { moments: moments(x, self.zeros), range }
    }

    /// Statistics of the groups of a band, as far as they lie in it; `x` is the band.
    fn scan_band(
        &self,
        x: &[f32],
        band: &Band,
        layout: Layout,
        terms: &Terms,
    ) -> Result<(Vec<Seen>, Tally), Refusal> {
        let mut seen = vec![Seen::NOTHING; band.groups.len()];
        let mut result = Ok(Tally::default());
        layout.runs(band, |run| {
            for at in (0..run.len).step_by(BLOCK) {
                let Ok(tally) = result else { return };
                let part = run.start + at..run.start + (at + BLOCK).min(run.len);
                let first = band.elems.start + part.start;
                result = self.scan(&x[part], first, terms).map(|(found, more)| {
                    let slot = &mut seen[run.group - band.groups.start];
                    *slot = slot.join(found);
                    tally.join(more)
                });
            }
        });
        result.map(|tally| (seen, tally))
    }

    /// Mean and standard deviation of every group.
    fn fit(
        &self,
        x: &[f32],
        layout: Layout,
        terms: &Terms,
        stream: &Stream,
    ) -> Result<(Vec<Normal>, Tally), Refusal> {
        let bands = layout.bands();
        let mut tally = Tally::default();
        let nothing = vec![(); bands.len()];
        if let Statistics::Sampled(k) = self.statistics {
            for seen in each_band(nothing, &bands, |(), band| {
                let x = &x[band.elems.clone()];
                let finite = simd::amax_bits(x) < f32::INFINITY.to_bits();
                if finite { Ok(Tally::default()) } else { count(x, band.elems.start, terms) }
            }) {
                tally = tally.join(seen?);
            }
            let normal = |group| self.sample(x, layout, group, k, stream).normal(self);
            return Ok(((0..layout.groups()).map(normal).collect(), tally));
        }
        let mut groups = vec![Seen::NOTHING; layout.groups()];
        let parts = each_band(nothing, &bands, |(), band| {
            self.scan_band(&x[band.elems.clone()], band, layout, terms)
        });
        // In the order of the bands, so that the first refusal is the one that is told.
        for (part, band) in parts.into_iter().zip(&bands) {
            let (part, more) = part?;
            tally = tally.join(more);
            for (slot, seen) in groups[band.groups.clone()].iter_mut().zip(part) {
                *slot = slot.join(seen);
            }
        }
        Ok((groups.iter().map(|s| s.normal(self)).collect(), tally))
    }

    /// Statistics of `k` values of a group, or of all if it has no more.
    ///
    /// # Source
    /// Floyd's algorithm: Bentley and Floyd 1987, "A sample of brilliance".
    fn sample(&self, x: &[f32], layout: Layout, group: usize, k: usize, stream: &Stream) -> Seen {
        let n = layout.group_len(group);
        let mut chosen = BTreeSet::new();
        for (j, last) in (0u64..).zip(n.saturating_sub(k)..n) {
            // Blocks from the middle of the counter on: rounding draws from its start.
            let [low, high, ..] = stream.words(1 << 63 | (group as u64) << 16 | j);
            let random = u128::from(u64::from(low) | u64::from(high) << 32);
            let pick = usize::try_from((random * (last as u128 + 1)) >> 64).unwrap_or(last);
            if !chosen.insert(pick) {
                chosen.insert(last);
            }
        }
        let values: Vec<f32> = chosen
            .into_iter()
            .map(|i| x[layout.element(group, i)])
            .filter(|v| v.is_finite())
            .collect();
        values.chunks(BLOCK).map(|part| self.scan_finite(part)).fold(Seen::NOTHING, Seen::join)
    }
}

/// Where the parts of an encoded tensor begin, and how much the streams hold.
#[derive(Clone, Copy, Debug)]
struct Parts {
    /// Bits of an outlier's magnitude.
    outlier_bits: u32,
    elems: usize,
    outliers: usize,
    /// `None`: there is no bitmap of zeros.
    zeros: Option<usize>,
    outlier_table: usize,
    zero_table: usize,
    bitmap: usize,
    tags: usize,
    mains: usize,
    others: usize,
    end: usize,
}

/// Bits to bytes.
fn bytes_of(codes: usize, bits: u32) -> usize {
    // `codes` is at most 2^32, and where `usize` has 32 bits the tensor lies in half the address space.
    usize::try_from((codes as u64 * u64::from(bits)).div_ceil(8)).unwrap_or(usize::MAX)
}

impl Parts {
    fn new(
        smaq: &Smaq,
        layout: Layout,
        outlier_bits: u32,
        outliers: usize,
        zeros: Option<usize>,
    ) -> Option<Self> {
        let elems = layout.elems();
        let table = elems.div_ceil(BLOCK) * 4;
        let coded = elems.checked_sub(zeros.unwrap_or(0))?;
        let main = bytes_of(coded.checked_sub(outliers)?, smaq.bits[0] - 1);
        let outlier_table =
            layout.groups() * NORMAL_BYTES + usize::from(smaq.original) + usize::from(smaq.zeros);
        let zero_table = outlier_table + table;
        let bitmap = zero_table + if zeros.is_some() { table } else { 0 };
        let tags = bitmap + if zeros.is_some() { elems.div_ceil(8) } else { 0 };
        let mains = tags + coded.div_ceil(8);
        let others = mains.checked_add(main)?;
        let end = others.checked_add(bytes_of(outliers, outlier_bits + 1))?;
        Some(Self {
            outlier_bits,
            elems,
            outliers,
            zeros,
            outlier_table,
            zero_table,
            bitmap,
            tags,
            mains,
            others,
            end,
        })
    }
}

/// One encoding.
struct Writer<'a> {
    smaq: &'a Smaq,
    layout: Layout,
    terms: &'a Terms,
    stream: &'a Stream,
    normals: &'a [Normal],
}

/// A stretch of one stream that a task writes: the bytes that begin in it. The bits before the first of them share a
/// byte with the stretch before, and are put there when all are done.
struct Stretch<'a> {
    out: &'a mut [u8],
    at: usize,
    carry: Carry,
    /// Whether the first byte of all belongs to the stretch before.
    spills: bool,
    spill: u8,
}

impl<'a> Stretch<'a> {
    fn new(first_bit: u64, out: &'a mut [u8]) -> Self {
        let held = u32::try_from(first_bit % 8).unwrap_or(0);
        Self { out, at: 0, carry: Carry { bits: 0, held }, spills: held > 0, spill: 0 }
    }

    fn push(&mut self, codes: &[u32], bits: u32) {
        let mut buffer = [0; BUFFER];
        let len = pack_stream(codes, bits, &mut self.carry, &mut buffer);
        self.put(&buffer[..len]);
    }

    /// As [`push`](Self::push) for codes of one bit that are packed already.
    fn push_bits(&mut self, bits: &[u8], count: usize) {
        let mut codes = [0; BLOCK / 8];
        for (code, byte) in codes.iter_mut().zip(bits) {
            *code = u32::from(*byte);
        }
        let whole = count / 8;
        self.push(&codes[..whole], 8);
        let loose: [u32; 8] = std::array::from_fn(|i| codes.get(whole).map_or(0, |c| c >> i & 1));
        self.push(&loose[..count % 8], 1);
    }

    fn put(&mut self, mut bytes: &[u8]) {
        if self.spills
            && let [first, rest @ ..] = bytes
        {
            (self.spill, self.spills, bytes) = (*first, false, rest);
        }
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// Writes what does not fill a byte, and gives the bits for the stretch before.
    fn finish(mut self) -> u8 {
        if self.carry.held > 0 {
            let [last, ..] = self.carry.bits.to_le_bytes();
            self.put(&[last]);
        }
        self.spill
    }
}

/// Cuts a stream into the bytes that begin in each stretch; `firsts` are the bits at which stretches begin.
fn stretches<'a>(mut stream: &'a mut [u8], firsts: &[u64], end: u64) -> Vec<Stretch<'a>> {
    let ends = firsts.iter().skip(1).copied().chain([end]);
    firsts
        .iter()
        .zip(ends)
        .map(|(&first, end)| {
            let len = usize::try_from(end.div_ceil(8) - first.div_ceil(8)).unwrap_or(0);
            let (part, rest) = std::mem::take(&mut stream).split_at_mut(len);
            stream = rest;
            Stretch::new(first, part)
        })
        .collect()
}

/// The codes of a block on their way into the streams.
struct Sorted {
    /// A tag for each value that is not zero.
    tags: [u8; BLOCK],
    /// Main codes from the front, outliers from the middle on.
    codes: [u32; 2 * BLOCK],
}

/// Where the next code of a block stands when main codes are at the front and outliers from the middle on: `main` and
/// `other` of them came before, and `tag` is 1 for an outlier. There is no branch, which would be mispredicted often.
#[inline(always)]
fn place(main: usize, other: usize, tag: usize) -> usize {
    let outlier = 0usize.wrapping_sub(tag);
    ((main & !outlier) | ((BLOCK + other) & outlier)) & (2 * BLOCK - 1)
}

impl Sorted {
    /// Sorts codes by their tags and gives how many have a code and how many of these are outliers.
    fn fill(&mut self, codes: &[u32], tags: &[u8], zeros: bool) -> (usize, usize) {
        let mut other = 0;
        if !zeros {
            for (i, (&code, &tag)) in codes.iter().zip(tags).enumerate() {
                let tag = usize::from(tag);
                self.codes[place(i - other, other, tag)] = code;
                other += tag;
            }
            return (codes.len(), other);
        }
        // Tags and codes of zeros are overwritten by the next.
        let mut coded = 0;
        for (&code, &tag) in codes.iter().zip(tags) {
            let outlier = usize::from(tag == OUTLIER);
            self.tags[coded & (BLOCK - 1)] = tag;
            self.codes[place(coded - other, other, outlier)] = code;
            other += outlier;
            coded += usize::from(tag != ZERO);
        }
        (coded, other)
    }

    fn mains(&self, count: usize) -> &[u32] {
        &self.codes[..count]
    }

    fn others(&self, count: usize) -> &[u32] {
        &self.codes[BLOCK..BLOCK + count]
    }
}

/// Writes the lowest bits of flags, eight to a byte.
fn bits_of(flags: &[u8], out: &mut [u8]) {
    // Byte i is moved to bit 56 + i by the one factor that reaches there; no two products meet.
    let eight = |flags: [u8; 8]| {
        let lowest = u64::from_le_bytes(flags) & 0x0101_0101_0101_0101;
        (lowest.wrapping_mul(0x0102_0408_1020_4080) >> 56).to_le_bytes()[0]
    };
    let (chunks, rest) = flags.as_chunks::<8>();
    for (byte, chunk) in out.iter_mut().zip(chunks) {
        *byte = eight(*chunk);
    }
    if let Some(byte) = out.get_mut(chunks.len()).filter(|_| !rest.is_empty()) {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        *byte = eight(last);
    }
}

impl Writer<'_> {
    /// Calls `visit` with stretches of a block that belong to one group, counted from the start of the block.
    fn runs(&self, block: &ops::Range<usize>, mut visit: impl FnMut(ops::Range<usize>, Normal)) {
        let mut at = block.start;
        while at < block.end {
            let run = self.layout.run_at(at);
            let (group, end) = (run.group, at + run.len);
            let end = end.min(block.end);
            visit(at - block.start..end - block.start, self.normals[group]);
            at = end;
        }
    }

    /// Counts what each block needs.
    fn census(&self, x: &[f32], bands: &[Band]) -> Vec<Census> {
        let grid = self.smaq.grid(self.smaq.bits[1] - 2, true);
        let mut needs = vec![Census::default(); x.len().div_ceil(BLOCK)];
        let slots = split(&mut needs, bands, |band| band.elems.len().div_ceil(BLOCK));
        each_band(slots, bands, |slots, band| {
            for (i, slot) in slots.iter_mut().enumerate() {
                let start = band.elems.start + i * BLOCK;
                let block = start..(start + BLOCK).min(band.elems.end);
                self.runs(&block, |part, normal| {
                    let x = &x[start + part.start..start + part.end];
                    let more = smaq_census(&grid, normal, x);
                    slot.outliers += more.outliers;
                    slot.zeros += more.zeros;
                    slot.reach = slot.reach.max(more.reach);
                });
            }
        });
        needs
    }

    /// The bits of an outlier's magnitude: under `original` those that the farthest value may need, however it is
    /// rounded.
    fn outlier_bits(&self, needs: &[Census]) -> u32 {
        let promised = self.smaq.bits[1] - 2;
        if !self.smaq.original {
            return promised;
        }
        let reach = f64::from(needs.iter().map(|n| n.reach).fold(0.0, f32::max)).ceil();
        let fits = |bits: &u32| reach <= f64::from((1u32 << bits) - 1);
        (promised..WIDEST).find(fits).unwrap_or(WIDEST)
    }

    fn write(&self, x: &[f32], out: &mut Vec<u8>) {
        let smaq = self.smaq;
        let bands = blocks(x.len());
        let needs = self.census(x, &bands);
        let outlier_bits = self.outlier_bits(&needs);
        let outliers = needs.iter().map(|n| n.outliers).sum();
        let zeros = needs.iter().map(|n| n.zeros).sum();
        let has_zeros = smaq.zeros && zeros > 0;
        // The counts are those of elements, so the parts fit.
        let Some(parts) =
            Parts::new(smaq, self.layout, outlier_bits, outliers, has_zeros.then_some(zeros))
        else {
            unreachable!("no tensor has more outliers than elements")
        };

        let start = out.len();
        out.resize(start + parts.end, 0);
        let out = &mut out[start..];
        let (front, streams) = out.split_at_mut(parts.bitmap);
        self.write_front(front, &parts, &needs);
        let (bitmap, streams) = streams.split_at_mut(parts.tags - parts.bitmap);
        let (tags, streams) = streams.split_at_mut(parts.mains - parts.tags);
        let (mains, others) = streams.split_at_mut(parts.others - parts.mains);

        // Where each band begins in the three streams.
        let widths = [1, smaq.bits[0] - 1, outlier_bits + 1].map(u64::from);
        let mut firsts: [Vec<u64>; 3] = Default::default();
        let mut before = [0u64; 3];
        for (band, needs) in bands.iter().zip(needs.chunks(BAND_BLOCKS)) {
            for (firsts, before) in firsts.iter_mut().zip(before) {
                firsts.push(before);
            }
            let others: usize = needs.iter().map(|n| n.outliers).sum();
            let blank: usize = needs.iter().map(|n| n.zeros).sum();
            let coded = band.elems.len() - blank;
            for (before, (count, width)) in
                before.iter_mut().zip([coded, coded - others, others].into_iter().zip(widths))
            {
                *before += count as u64 * width;
            }
        }
        let bitmaps =
            split(bitmap, &bands, |band| if has_zeros { band.elems.len().div_ceil(8) } else { 0 });
        let work: Vec<_> = bitmaps
            .into_iter()
            .zip(stretches(tags, &firsts[0], before[0]))
            .zip(stretches(mains, &firsts[1], before[1]))
            .zip(stretches(others, &firsts[2], before[2]))
            .map(|(((bitmap, tags), mains), others)| (bitmap, [tags, mains, others]))
            .collect();
        let grid = smaq.grid(outlier_bits, false);
        let spills = each_band(work, &bands, |(bitmap, streams), band| {
            self.write_band(x, band, &grid, bitmap, streams)
        });
        let begins = [parts.tags, parts.mains, parts.others];
        for (i, spill) in spills.into_iter().enumerate() {
            for ((spill, firsts), begin) in spill.into_iter().zip(&firsts).zip(begins) {
                if firsts[i] % 8 != 0 {
                    out[begin + usize::try_from(firsts[i] / 8).unwrap_or(0)] |= spill;
                }
            }
        }
    }

    fn write_front(&self, front: &mut [u8], parts: &Parts, needs: &[Census]) {
        let (normals, rest) = front.split_at_mut(self.normals.len() * NORMAL_BYTES);
        for (bytes, normal) in
            normals.as_chunks_mut::<NORMAL_BYTES>().0.iter_mut().zip(self.normals)
        {
            bytes[..4].copy_from_slice(&normal.mean.to_le_bytes());
            bytes[4..].copy_from_slice(&normal.std.to_le_bytes());
        }
        let flags = [
            (self.smaq.original, parts.outlier_bits.to_le_bytes()[0]),
            (self.smaq.zeros, u8::from(parts.zeros.is_some())),
        ];
        let said = flags.iter().filter(|(present, _)| *present).map(|(_, flag)| *flag);
        let (flags, tables) = rest.split_at_mut(said.clone().count());
        for (byte, flag) in flags.iter_mut().zip(said) {
            *byte = flag;
        }
        let (outliers, zeros) = tables.split_at_mut(parts.zero_table - parts.outlier_table);
        let cumulate = |table: &mut [u8], count: fn(&Census) -> usize| {
            let mut sum = 0u32;
            for (entry, need) in table.as_chunks_mut::<4>().0.iter_mut().zip(needs) {
                // The sum is at most the number of elements, for which `size` has seen to it.
                sum += u32::try_from(count(need)).unwrap_or(0);
                *entry = sum.to_le_bytes();
            }
        };
        cumulate(outliers, |n| n.outliers);
        cumulate(zeros, |n| n.zeros);
    }

    /// Writes the codes of a band, and gives what belongs into the byte before each stretch.
    fn write_band(
        &self,
        x: &[f32],
        band: &Band,
        grid: &SmaqGrid,
        bitmap: &mut [u8],
        mut streams: [Stretch; 3],
    ) -> [u8; 3] {
        let has_zeros = !bitmap.is_empty();
        let (mut codes, mut tags, mut draws) = ([0; BLOCK], [0; BLOCK], [0; BLOCK]);
        let mut sorted = Sorted { tags: [0; BLOCK], codes: [0; 2 * BLOCK] };
        for start in band.elems.clone().step_by(BLOCK) {
            let block = start..(start + BLOCK).min(band.elems.end);
            let n = block.len();
            let rounding = self.terms.rounding;
            if rounding == Rounding::Stochastic {
                self.stream.fill(start as u64, &mut draws[..n]);
            }
            self.runs(&block, |part, normal| {
                let x = &x[start + part.start..start + part.end];
                let (codes, tags) = (&mut codes[part.clone()], &mut tags[part.clone()]);
                smaq_codes(grid, normal, x, rounding, &draws[part], codes, tags);
            });
            let (coded, others) = sorted.fill(&codes[..n], &tags[..n], has_zeros);
            let mut bits = [0; BLOCK / 8];
            if has_zeros {
                let at = (start - band.elems.start) / 8;
                for tag in &mut tags[..n] {
                    *tag >>= 1;
                }
                bits_of(&tags[..n], &mut bitmap[at..at + n.div_ceil(8)]);
                bits_of(&sorted.tags[..coded], &mut bits);
                streams[0].push_bits(&bits, coded);
            } else {
                bits_of(&tags[..n], &mut bits);
                streams[0].put(&bits[..n.div_ceil(8)]);
            }
            streams[1].push(sorted.mains(coded - others), grid.sign_at[0] + 1);
            streams[2].push(sorted.others(others), grid.sign_at[1] + 1);
        }
        streams.map(Stretch::finish)
    }
}

/// One decoding.
struct Reader<'a> {
    bytes: &'a [u8],
    layout: Layout,
    parts: Parts,
    grid: SmaqGrid,
}

/// How many of each kind come before an element.
#[derive(Clone, Copy, Debug)]
struct Before {
    coded: usize,
    outliers: usize,
}

impl<'a> Reader<'a> {
    /// Finds the parts; what is wrong with them is said in words.
    fn new(smaq: &Smaq, layout: Layout, bytes: &'a [u8]) -> Result<Self, String> {
        let elems = layout.elems();
        let short = || "they end too early".to_owned();
        let mut at = layout.groups() * NORMAL_BYTES;
        let mut flag = |present: bool, otherwise: u32| {
            if !present {
                return Some(otherwise);
            }
            at += 1;
            bytes.get(at - 1).map(|b| u32::from(*b))
        };
        let promised = smaq.bits[1] - 2;
        let outlier_bits = flag(smaq.original, promised).ok_or_else(short)?;
        if !(promised..=WIDEST.max(promised)).contains(&outlier_bits) {
            return Err(format!("outliers of {outlier_bits} bits"));
        }
        let has_zeros = match flag(smaq.zeros, 0).ok_or_else(short)? {
            0 => false,
            1 => true,
            other => {
                return Err(format!("{other} where 1 says that there are zeros and 0 that not"));
            }
        };
        let table = elems.div_ceil(BLOCK) * 4;
        let total = |table_at: usize| {
            let end = bytes.get(table_at + table - 4..table_at + table)?;
            let count = u32::from_le_bytes(end.try_into().ok()?);
            usize::try_from(count).ok()
        };
        let outliers = total(at).ok_or_else(short)?;
        let zeros = if has_zeros { Some(total(at + table).ok_or_else(short)?) } else { None };
        let parts = Parts::new(smaq, layout, outlier_bits, outliers, zeros)
            .ok_or("more outliers and zeros than elements")?;
        if parts.end != bytes.len() {
            return Err(format!("{} bytes, and the tables say {}", bytes.len(), parts.end));
        }
        Ok(Self { bytes, layout, parts, grid: smaq.grid(outlier_bits, false) })
    }

    fn entry(&self, table: usize, block: usize) -> usize {
        let at = table + block * 4;
        let mut entry = [0; 4];
        entry.copy_from_slice(&self.bytes[at..at + 4]);
        usize::try_from(u32::from_le_bytes(entry)).unwrap_or(usize::MAX)
    }

    /// What comes before the end of block `block - 1`; nonsense where the tables lie.
    fn before(&self, block: usize) -> Before {
        let Some(last) = block.checked_sub(1) else {
            return Before { coded: 0, outliers: 0 };
        };
        let zeros = self.parts.zeros.map_or(0, |_| self.entry(self.parts.zero_table, last));
        let elems = (block * BLOCK).min(self.parts.elems);
        let coded = elems.saturating_sub(zeros);
        Before { coded, outliers: self.entry(self.parts.outlier_table, last) }
    }

    /// The counts before a block and after it, if they are possible.
    fn span(&self, block: usize) -> Result<(Before, Before), String> {
        let (from, to) = (self.before(block), self.before(block + 1));
        let len = BLOCK.min(self.parts.elems - block * BLOCK);
        let all = self.parts.elems - self.parts.zeros.unwrap_or(0);
        let grows = |from: usize, to: usize, most: usize| from <= to && to - from <= most;
        // No count passes its total, and so nothing is read beyond its stream.
        let fits = |b: Before| {
            b.coded <= all
                && b.outliers <= self.parts.outliers
                && b.outliers <= b.coded
                && b.coded - b.outliers <= all - self.parts.outliers
        };
        if fits(from)
            && fits(to)
            && grows(from.coded, to.coded, len)
            && grows(from.outliers, to.outliers, to.coded - from.coded)
        {
            Ok((from, to))
        } else {
            Err(format!("counts that no block {block} has"))
        }
    }

    /// Checks every entry, so that a lie is found even if nothing is decoded there.
    fn check_tables(&self) -> Result<(), String> {
        (0..self.parts.elems.div_ceil(BLOCK)).try_for_each(|b| self.span(b).map(|_| ()))
    }

    /// Reads codes of `bits` bits from code number `first` on of the stream that takes the bytes `part`, and whose
    /// codes are of `each` bits.
    fn read(&self, part: ops::Range<usize>, first: usize, each: u32, bits: u32, codes: &mut [u32]) {
        let from = first as u64 * u64::from(each);
        let start = part.start + usize::try_from(from / 8).unwrap_or(0);
        let bit = usize::try_from(from % 8).unwrap_or(0);
        let len = (bit + codes.len() * bits as usize).div_ceil(8);
        // The copy has the slack that moving whole words needs.
        let mut buffer = [0; BUFFER];
        buffer[..len].copy_from_slice(&self.bytes[start..start + len]);
        unpack_stream(&buffer, bit, bits, codes);
    }

    fn zero_at(&self, elem: usize) -> bool {
        self.bytes[self.parts.bitmap + elem / 8] >> (elem % 8) & 1 == 1
    }

    fn normal(&self, group: usize) -> Result<Normal, String> {
        let at = group * NORMAL_BYTES;
        let float = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&self.bytes[at..at + 4]);
            f32::from_le_bytes(bytes)
        };
        let normal = Normal { mean: float(at), std: float(at + 4) };
        if normal.mean.is_finite() && normal.std.is_finite() && normal.std >= f32::MIN_POSITIVE {
            Ok(normal)
        } else {
            let Normal { mean, std } = normal;
            Err(format!("group {group} has mean {mean} and standard deviation {std}"))
        }
    }

    /// Decodes one block; `out` is as long as it is.
    fn block(&self, block: usize, out: &mut [f32]) -> Result<(), String> {
        let (from, to) = self.span(block)?;
        let (coded, others) = (to.coded - from.coded, to.outliers - from.outliers);
        let parts = &self.parts;
        let first = block * BLOCK;
        let mut tags = [0; BLOCK / 8];
        let tag_bytes = &mut tags[..coded.div_ceil(8)];
        if parts.zeros.is_some() {
            let mut eights = [0; BLOCK / 8];
            let eights = &mut eights[..coded / 8];
            self.read(parts.tags..parts.mains, from.coded, 1, 8, eights);
            let mut loose = [0; 8];
            let loose = &mut loose[..coded % 8];
            self.read(parts.tags..parts.mains, from.coded + coded / 8 * 8, 1, 1, loose);
            let last = loose.iter().rev().fold(0, |byte, bit| byte << 1 | bit);
            for (byte, code) in tag_bytes.iter_mut().zip(eights.iter().chain([&last])) {
                *byte = code.to_le_bytes()[0];
            }
        } else {
            let at = parts.tags + first / 8;
            tag_bytes.copy_from_slice(&self.bytes[at..at + coded.div_ceil(8)]);
            // The bits that fill the last byte are no tags.
            if let Some(last) = tag_bytes.last_mut().filter(|_| coded % 8 != 0) {
                *last &= (1 << (coded % 8)) - 1;
            }
        }
        let tagged: u32 = tags.iter().map(|byte| byte.count_ones()).sum();
        if tagged as usize != others {
            return Err(format!("{tagged} tags of outliers in block {block}, which has {others}"));
        }

        // Main values at the front, outliers from the middle on.
        let mut codes = [0; BLOCK];
        let mut values = [0.0; 2 * BLOCK];
        let mains = coded - others;
        let [main_bits, other_bits] = self.grid.sign_at.map(|at| at + 1);
        self.read(
            parts.mains..parts.others,
            from.coded - from.outliers,
            main_bits,
            main_bits,
            &mut codes[..mains],
        );
        smaq_normalised(&self.grid, false, &codes[..mains], &mut values[..mains]);
        let stream = parts.others..parts.end;
        self.read(stream, from.outliers, other_bits, other_bits, &mut codes[..others]);
        smaq_normalised(&self.grid, true, &codes[..others], &mut values[BLOCK..BLOCK + others]);

        let mut other = 0;
        if parts.zeros.is_some() {
            let mut rank = 0;
            for (i, v) in out.iter_mut().enumerate() {
                // A zero takes the value of the next; `rank` may pass the end only where the bitmap lies.
                let tag = usize::from(tags[rank / 8 % tags.len()] >> (rank % 8) & 1);
                *v = values[place(rank.wrapping_sub(other), other, tag)];
                let coded = usize::from(!self.zero_at(first + i));
                rank += coded;
                other += tag & coded;
            }
            if rank != coded {
                return Err(format!("{rank} values that are not zero in block {block} of {coded}"));
            }
        } else {
            let (eights, rest) = out.as_chunks_mut::<8>();
            let mut start = 0;
            let whole = eights.len();
            for (eight, byte) in eights.iter_mut().zip(tags) {
                for (i, v) in eight.iter_mut().enumerate() {
                    let tag = usize::from(byte >> i & 1);
                    *v = values[place(start + i - other, other, tag)];
                    other += tag;
                }
                start += 8;
            }
            for (i, v) in rest.iter_mut().enumerate() {
                let tag = usize::from(tags[whole] >> i & 1);
                *v = values[place(start + i - other, other, tag)];
                other += tag;
            }
        }
        let mut at = first;
        let end = first + out.len();
        while at < end {
            let run = self.layout.run_at(at);
            let (group, next) = (run.group, at + run.len);
            let next = next.min(end);
            let normal = self.normal(group)?;
            smaq_values(&self.grid, normal, &mut out[at - first..next - first]);
            at = next;
        }
        if parts.zeros.is_some() {
            for (i, v) in out.iter_mut().enumerate() {
                *v = if self.zero_at(first + i) { 0.0 } else { *v };
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "expected values are made from small numbers"
)]
mod tests {
    use super::*;
    use crate::Scheme;

    fn scheme(text: &str) -> Scheme {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    fn encoded(scheme: &Scheme, x: &[f32], shape: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        scheme.encode(x, shape, &Stream::new(0, 0), &mut bytes).unwrap();
        bytes
    }

    fn decoded(scheme: &Scheme, bytes: &[u8], shape: &[usize]) -> Result<Vec<f32>, DecodeError> {
        let mut out = vec![0.0; shape.iter().product()];
        scheme.decode(bytes, shape, &mut out).map(|()| out)
    }

    fn float(bytes: &[u8], at: usize) -> f32 {
        f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// Normally distributed values, by the method of Box and Muller.
    fn gaussian(n: usize, mean: f64, std: f64) -> Vec<f32> {
        let stream = Stream::named(1, "gaussian");
        (0..n as u64)
            .map(|i| {
                let [a, b, ..] = stream.words(i).map(|w| (f64::from(w) + 0.5) / 4_294_967_296.0);
                let z = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
                (mean + std * z) as f32
            })
            .collect()
    }

    #[test]
    fn the_worked_example_of_the_specification_holds() {
        let smaq = Smaq::default();
        let grid = smaq.grid(6, false);
        assert_eq!((grid.steps, grid.top), ([15.0, 42.0], [15.0, 63.0]));
        let p = Normal { mean: 45.0, std: 5.0 };
        let steps = |grid: SmaqGrid, x: f32| {
            let place = grid.place(p, x, f32::trunc);
            let sign = if place.sign == 0 { 1.0 } else { -1.0 };
            (place.outlier, sign * place.magnitude, grid.value(p, grid.normalised(place)))
        };
        assert_eq!(steps(grid, 42.0), (false, -9.0, 42.0));
        assert_eq!(steps(grid, 57.0), (true, 58.0, 56.904_762));
        assert_eq!(steps(grid, 49.9), (false, 14.0, 49.666_668));
        assert_eq!(steps(grid, 70.0), (true, 63.0, 57.5));
        assert_eq!(steps(grid, 30.0), (true, -63.0, 32.5));
        // Without the clamp they leave the field of 6 bits.
        let wide = Smaq { original: true, ..smaq }.grid(6, true);
        assert_eq!(steps(wide, 70.0), (true, 168.0, 70.0));
        assert_eq!(steps(wide, 30.0), (true, -84.0, 30.0));
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        // Mean 0, standard deviation 2; z = x / 2: seven main values and one outlier at z = -2.3452.
        let x = [-4.0f32, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0];
        // Sum of squares 32 over 7.
        let std = (32.0f64 / 7.0).sqrt() as f32;
        let bytes = encoded(&scheme("smaq"), &x, &[8]);
        let z = 4.0 / std;
        let q = ((z - 1.0) * 42.0).round_ties_even() as u32;
        let mut expected = Vec::new();
        expected.extend(0f32.to_le_bytes());
        expected.extend(std.to_le_bytes());
        expected.extend(2u32.to_le_bytes()); // outliers up to the end of the block
        expected.push(0b0001_0001); // tags
        expected.extend([0; 4]); // six main codes of 5 bits, all zero
        let others = (q | 64) | q << 7; // sign above six bits of magnitude
        expected.extend(&others.to_le_bytes()[..2]);
        assert_eq!(bytes, expected);
        assert_eq!(q, 37);
    }

    #[test]
    fn a_gaussian_takes_the_bits_that_theory_says() {
        let n = 1 << 20;
        let x = gaussian(n, 3.0, 0.7);
        let bytes = encoded(&scheme("smaq:6,8"), &x, &[n]);
        let bits = bytes.len() as f64 * 8.0 / n as f64;
        // 6 bits for 68.27 %, 8 for the rest: 6.6346; an index of 32 bits for 1024 values; 64 bits of header.
        let theory = 6.634_6 + 32.0 / 1024.0 + 64.0 / n as f64;
        // The share of outliers is known up to 4 standard deviations of a count.
        let slack = 2.0 * 4.0 * (0.3173f64 * 0.6827 / n as f64).sqrt() + 1e-4;
        assert!((bits - theory).abs() < slack, "{bits} {theory}");
        assert!((float(&bytes, 0) - 3.0).abs() < 0.004 && (float(&bytes, 4) - 0.7).abs() < 0.003);
        let back = decoded(&scheme("smaq:6,8"), &bytes, &[n]).unwrap();
        let clamped = back.iter().filter(|v| (**v - 3.0).abs() > 0.7 * 2.49).count();
        // 1.24 % lie beyond 2.5 standard deviations, and some more round to the last code.
        assert!((0.0124..0.0129).contains(&(clamped as f64 / n as f64)), "{clamped}");
    }

    #[test]
    fn statistics_are_those_of_their_words() {
        let x: Vec<f32> = (0..2048u16).map(|i| f32::from(i % 64)).collect();
        let stats = |text: &str, x: &[f32]| {
            let bytes = encoded(&scheme(text), x, &[x.len()]);
            (float(&bytes, 0), float(&bytes, 4))
        };
        // Variance of 0..=63: (64^2 - 1) / 12, unbiased times n / (n - 1).
        let variance = 4095.0 / 12.0f64;
        assert_eq!(stats("smaq", &x), (31.5, (variance * 2048.0 / 2047.0).sqrt() as f32));
        let (mean, std) = stats("smaq/range", &x);
        assert_eq!(mean, 31.5);
        // The factor that the specification gives for n = 2048.
        assert!((std / 63.0 - 0.25608).abs() < 1e-5, "{std}");
        // A sample of all is all, with the biased deviation.
        assert_eq!(stats("smaq/sampled:2048", &x), (31.5, variance.sqrt() as f32));
        assert_eq!(stats("smaq/sampled:65536", &x), (31.5, variance.sqrt() as f32));
        let (mean, std) = stats("smaq/sampled:256", &x);
        assert!((mean - 31.5).abs() < 6.0 && (std - 18.5).abs() < 3.0, "{mean} {std}");
        // Zeros do not count where they are exact.
        let mut sparse = vec![0.0; 100];
        (sparse[7], sparse[70]) = (3.0, 5.0);
        assert_eq!(stats("smaq/zeros", &sparse), (4.0, 2f32.sqrt()));
        assert_eq!(stats("smaq", &[2.5; 100]), (2.5, 1.0));
        assert_eq!(stats("smaq", &[-0.0; 100]).0.to_bits(), 0);
    }

    #[test]
    fn a_sample_has_no_value_twice_and_favours_none() {
        let smaq = Smaq::default();
        let layout = Granularity::Tensor.layout(&[40]).unwrap();
        let x: Vec<f32> = (0..40).map(|i| 2f32.powi(i)).collect();
        let mut hits = [0u32; 40];
        for step in 0..4000 {
            let stream = Stream::new(1, 1).at_step(step);
            let sum = smaq.sample(&x, layout, 0, 16, &stream).moments.sum as u64;
            // Distinct powers of two add up without a carry.
            assert_eq!(sum.count_ones(), 16);
            for (i, hit) in hits.iter_mut().enumerate() {
                *hit += (sum >> i & 1) as u32;
            }
        }
        // Binomial with p = 0.4: 1600 and a standard deviation of 31.
        assert!(hits.iter().all(|h| (1470..1730).contains(h)), "{hits:?}");
    }

    #[test]
    fn groups_of_a_sample_and_of_blocks_are_their_own() {
        let x: Vec<f32> =
            (0..6000u16).map(|i| f32::from(i % 3) * 100.0 + f32::from(i % 7)).collect();
        for text in ["smaq/axis:1", "smaq/axis:1/sampled:16", "smaq/axis:1/range"] {
            let bytes = encoded(&scheme(text), &x, &[2000, 3]);
            for group in 0..3u8 {
                let mean = float(&bytes, usize::from(group) * 8);
                assert!((mean - f32::from(group) * 100.0 - 3.0).abs() < 2.0, "{text} {mean}");
            }
        }
    }

    #[test]
    fn zeros_are_exact_and_second_moments_stay_positive() {
        let mut x = gaussian(5000, 0.1, 0.05);
        for v in &mut x {
            *v = if *v < 0.09 { 0.0 } else { *v * *v };
        }
        let back = |text: &str| {
            let s = scheme(text);
            decoded(&s, &encoded(&s, &x, &[5000]), &[5000]).unwrap()
        };
        let (plain, exact) = (back("smaq"), back("smaq/zeros"));
        for (i, v) in x.iter().enumerate() {
            assert_eq!(*v == 0.0, exact[i] == 0.0);
        }
        assert!(plain.iter().all(|v| *v != 0.0));
        let mut small = gaussian(1000, 0.0, 1.0);
        scheme("smaq/positive").emulate(&mut small, &[1000], &Stream::new(0, 0)).unwrap();
        assert!(small.iter().all(|v| *v >= 0.0) && small.contains(&0.0));
        // A tensor of zeros, and one without, under the same word.
        let s = scheme("smaq/zeros");
        let bytes = encoded(&s, &[0.0; 100], &[100]);
        assert_eq!(bytes.len(), 8 + 1 + 4 + 4 + 13);
        assert_eq!(Some(bytes.len()), s.size(&[100]).ok().map(|size| size.least));
        assert_eq!(decoded(&s, &bytes, &[100]).unwrap(), [0.0; 100]);
        let bytes = encoded(&s, &[1.0; 100], &[100]);
        assert_eq!(bytes.len(), 8 + 1 + 4 + 13 + 63);
    }

    #[test]
    fn small_tensors_stay_as_they_are() {
        let x: Vec<f32> = (0..7u8).map(|i| f32::from(i).exp()).collect();
        let s = scheme("smaq");
        let bytes = encoded(&s, &x, &[7]);
        assert_eq!((bytes.len(), s.size(&[7]).unwrap()), (28, Size::fixed(28)));
        assert_eq!(decoded(&s, &bytes, &[7]).unwrap(), x);
        let mut range = [0.0; 2];
        s.decode_range(&bytes, &[7], 3..5, &mut range).unwrap();
        assert_eq!(range, x[3..5]);
        assert!(decoded(&s, &[255; 28], &[7]).is_err());
        let s = scheme("smaq/min:1");
        assert!(encoded(&s, &x, &[7]).len() < 28);
        assert_eq!(decoded(&s, &encoded(&s, &[5.0], &[]), &[]).unwrap(), [5.0]);
        let tolerant = scheme("smaq/nonfinite:saturate");
        let mut x = [f32::NAN, f32::INFINITY, 1.0];
        let tally = tolerant.emulate(&mut x, &[3], &Stream::new(0, 0)).unwrap();
        assert_eq!((tally.nans, tally.infinities, x), (1, 1, [0.0, f32::MAX, 1.0]));
    }

    #[test]
    fn what_the_original_does_not_clamp_is_counted() {
        let mut x = gaussian(4096, 0.0, 1.0);
        x[17] = 40.0;
        let (kept, clamped) = (scheme("smaq/original"), scheme("smaq"));
        let bytes = encoded(&kept, &x, &[4096]);
        let back = decoded(&kept, &bytes, &[4096]).unwrap();
        assert!((back[17] - 40.0).abs() < 0.05, "{}", back[17]);
        // 39 standard deviations and 42 steps in each take 11 bits, and a third of the values pay for them.
        let width = bytes[8];
        assert_eq!(width, 11);
        let more = bytes.len() - encoded(&clamped, &x, &[4096]).len();
        assert!((500..900).contains(&more), "{more}");
        assert!(kept.size(&[4096]).unwrap().contains(bytes.len()));
        let narrow = encoded(&kept, &gaussian(4096, 0.0, 1.0), &[4096])[8];
        assert!(narrow < 9, "{narrow}");
    }

    #[test]
    fn bytes_that_lie_are_refused() {
        let x = gaussian(3000, 0.0, 1.0);
        let refused = |text: &str, x: &[f32], at: usize, with: &[u8], why: &str| {
            let s = scheme(text);
            let mut bytes = encoded(&s, x, &[3000]);
            bytes[at..at + with.len()].copy_from_slice(with);
            let error = decoded(&s, &bytes, &[3000]).unwrap_err();
            assert!(matches!(error, DecodeError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        };
        refused("smaq", &x, 0, &f32::NAN.to_le_bytes(), "mean NaN");
        refused("smaq", &x, 4, &(-1f32).to_le_bytes(), "standard deviation -1");
        refused("smaq", &x, 8, &u32::MAX.to_le_bytes(), "no block 0");
        refused("smaq", &x, 12, &0u32.to_le_bytes(), "no block 1");
        refused("smaq", &x, 8, &300u32.to_le_bytes(), "tags of outliers in block 0");
        refused("smaq", &x, 16, &u32::MAX.to_le_bytes(), "than elements");
        refused("smaq", &x, 16, &17u32.to_le_bytes(), "the tables say");
        refused("smaq", &x, 20, &[255; 8], "tags of outliers");
        refused("smaq/original", &x, 8, &[99], "99 bits");
        refused("smaq/zeros", &x, 8, &[2], "2 where 1 says");
        let mut sparse = x;
        sparse[..50].fill(0.0);
        // Behind header and flag two tables of three entries, then the bitmap.
        refused("smaq/zeros", &sparse, 9 + 24, &[0; 4], "not zero in block 0");
        refused("smaq/zeros", &sparse, 9 + 24 + 100, &[255; 4], "not zero in block 0");
        refused("smaq/zeros", &sparse, 9 + 12, &2000u32.to_le_bytes(), "no block 0");
    }

    #[test]
    fn a_range_reads_nothing_else() {
        let x = gaussian(10_000, 0.0, 1.0);
        for text in ["smaq", "smaq/zeros", "smaq:3,16/flat:100", "smaq/original"] {
            let s = scheme(text);
            let mut x = x.clone();
            x.iter_mut().step_by(5).for_each(|v| *v = 0.0);
            let mut bytes = encoded(&s, &x, &[10_000]);
            let whole = decoded(&s, &bytes, &[10_000]).unwrap();
            for (a, b) in [(0, 1), (1023, 1025), (5000, 5000), (3000, 9999), (9999, 10_000)] {
                let mut part = vec![0.0; b - a];
                s.decode_range(&bytes, &[10_000], a..b, &mut part).unwrap();
                assert_eq!(part, whole[a..b]);
            }
            // The last block's outliers are destroyed, and the first does not notice.
            let last = bytes.len() - 3;
            bytes[last..].fill(0);
            let mut part = [0.0; 1024];
            s.decode_range(&bytes, &[10_000], 0..1024, &mut part).unwrap();
            assert_eq!(part, whole[..1024]);
        }
    }

    #[test]
    fn words_print_as_they_are_read_and_errors_name_what_is_valid() {
        for text in [
            "smaq:6,8",
            "smaq:4,6",
            "smaq:6,8/t1:0.7/t2:3.0",
            "smaq:6,8/sampled:25/positive/zeros/original/min:100/channel/stochastic",
            "smaq:6,8/range",
            "smaq:6,8/t2:1000.0",
        ] {
            assert_eq!(scheme(text).to_string(), text);
        }
        assert_eq!(scheme("smaq/full/t1:1/t2:2.5/min:8/tensor").to_string(), "smaq:6,8");
        for (text, part) in [
            ("smaq:2,8", "3 to 16"),
            ("smaq:6", "smaq:6,8"),
            ("smaq:6,17", "3 to 16"),
            ("smaq/t1:3", "before they begin"),
            ("smaq/t1:nan", "0.01 to 1000"),
            ("smaq/t2:x", "t2:2.5"),
            ("smaq/sampled:1", "2 to 65536"),
            ("smaq/min:0", "from 1 on"),
            ("smaq/range/full", "keep one"),
            ("smaq/scale:f16", "no scale"),
            ("smaq/zero", "did you mean `zeros`"),
        ] {
            let error = text.parse::<Scheme>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn more_elements_than_the_tables_count_are_refused() {
        assert!(scheme("smaq").size(&[1 << 16, 1 << 16]).is_err());
        assert!(scheme("smaq").size(&[1 << 16, (1 << 16) - 1]).is_ok());
    }
}
