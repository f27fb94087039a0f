//! S2FP8: a power law brings the magnitudes of a group into the range of `e5m2`, and is undone after decoding.
//!
//! # Grammar
//!
//! The head is `s2fp8`. Besides the common words (groups, rounding, `nonfinite:`) it takes `zeros-counted`: zeros enter
//! mean and maximum as if their logarithm were 0, as in a published implementation, which squeezes small values
//! wherever there are zeros (after a ReLU, in gradients).
//!
//! # Arithmetic
//!
//! Over the values of a group that are neither zero nor infinite nor NaN, `mu` is the mean of `log2 |x|` and `m` the
//! logarithm of the largest magnitude. `alpha = 15 / (m - mu)`, clamped to 2^-6..2^6, and `beta = -alpha mu`, so that
//! the mean logarithm becomes 0 and the largest 15. Where all magnitudes are equal `alpha = 1`, and where there is
//! none also `beta = 0`. Both are stored as `f32`, and used as stored.
//!
//! `Y = 2^(alpha log2 |x| + beta)` is computed in `f64` and rounded to `f32`, and `e5m2` encodes it with the sign of
//! `x`: infinity saturates there unless `nonfinite:propagate`, NaN has a code, zeros keep their sign. A code of the
//! value *y* decodes as `2^((log2 |y| - beta) / alpha)` with the sign of *y*, in `f64` rounded to `f32`, at most the
//! largest. Sums of logarithms belong to blocks of 1024 values, as the sum of the exponents and the logarithms of 16
//! products of mantissas, and are joined in the order of storage. The logarithm and the power are this crate's own,
//! with the same bits on every machine.
//!
//! # Bytes
//! See [`Family::layout`].
//!
//! # Source
//! Cambier et al. 2020, "Shifted and Squeezed 8-bit Floating Point Format for Low-Precision Training of Deep Neural
//! Networks", arXiv:2001.05674, section 3. Differs: `alpha` is bounded, and groups may be smaller than a tensor.

use std::sync::Arc;

use rayon::prelude::*;

use super::bands::{Draws, WINDOW, each_band, split};
use super::{Codec, DecodeError, Defaults, EncodeError, Job, Size, Tally, Terms};
use crate::families::Family;
use crate::formats::{Card, Format, HeadError, Minifloat, Scaling};
use crate::granularity::{Band, Layout};
use crate::logarithm::log2;
use crate::simd::amax_bits;
use crate::simd::s2fp8::{
    BLOCK, CodeTable, Logs, PowerLaw, s2fp8_back, s2fp8_codes, s2fp8_forward, s2fp8_logs,
};
use crate::{Granularity, Params, Rounding, ShapeError, Stream};

/// The paper, for the book.
const SOURCE: &str = "\
Cambier et al. 2020, Shifted and Squeezed 8-bit Floating Point Format for Low-Precision Training of Deep Neural
Networks, [arXiv:2001.05674](https://arxiv.org/abs/2001.05674), section 3";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
| part | bytes |
|---|---|
| for each group `alpha`, then `beta` | 8 each, f32 |
| a code of `e5m2` for each element | *N* |

A code of the value *y* reads as `2^((log2 |y| - beta) / alpha)` with the sign of *y*, computed in f64 and rounded to f32,
at most the largest; zeros, infinities and NaN read as themselves. A reader refuses an `alpha` outside of 2^-6 to 2^6 and a
`beta` that is not finite.";

/// `s2fp8`.
pub(crate) struct S2fp8Family;

impl Family for S2fp8Family {
    fn syntax(&self) -> &'static str {
        "s2fp8"
    }

    fn about(&self) -> &'static str {
        "S2FP8: e5m2 after a power law fitted to each tensor's magnitudes"
    }

    fn members(&self) -> Vec<String> {
        ["s2fp8", "s2fp8/zeros-counted"].map(String::from).to_vec()
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let format = Minifloat::named("e5m2").filter(|_| head == "s2fp8")?;
        Some(Ok(Arc::new(S2fp8 { format: Arc::new(format), zeros_counted: false })))
    }
}

/// The codec.
#[derive(Clone, Debug)]
struct S2fp8 {
    /// `e5m2`, under the rule for infinity.
    format: Arc<dyn Format>,
    zeros_counted: bool,
}

/// Bytes of a group's alpha and beta.
const LAW_BYTES: usize = 8;
/// What the largest logarithm becomes.
const TOP: f64 = 15.0;
/// The bound of alpha: its logarithm to base 2, of either sign.
const ALPHA_BOUND: f64 = 64.0;
/// A run of so many elements is decoded by a table of all codes.
const TABLE_FROM: usize = 512;
/// A group of so many elements is encoded by a table of its own.
const CODED_FROM: usize = 1 << 15;

/// How the values of a group are encoded.
struct Coder {
    law: PowerLaw,
    table: Option<Box<CodeTable>>,
}

impl Codec for S2fp8 {
    fn name(&self) -> String {
        "s2fp8".into()
    }

    fn suffix(&self) -> String {
        if self.zeros_counted { "/zeros-counted".into() } else { String::new() }
    }

    fn card(&self) -> Card {
        Card {
            name: self.name() + &self.suffix(),
            about: "e5m2 under a power law; the values are those at alpha 1 and beta 0".into(),
            ..self.format.card()
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
        &["zeros-counted"]
    }

    fn with_word(&self, word: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        match word {
            "zeros-counted" if self.zeros_counted => Some(Err(HeadError {
                message: "`zeros-counted` is said twice".into(),
                help: "keep one of the two".into(),
            })),
            "zeros-counted" => Some(Ok(Arc::new(Self { zeros_counted: true, ..self.clone() }))),
            "nonfinite:propagate" => {
                let format = self.format.with_word(word)?;
                Some(Ok(Arc::new(Self { format, ..self.clone() })))
            }
            _ => None,
        }
    }

    fn holds_nan(&self) -> bool {
        true
    }

    fn holds_infinity(&self) -> bool {
        true // It saturates.
    }

    fn size(&self, terms: &Terms, shape: &[usize]) -> Result<Size, ShapeError> {
        let layout = terms.layout(shape)?;
        let laws = layout.groups().checked_mul(LAW_BYTES);
        laws.and_then(|l| l.checked_add(layout.elems()))
            .map(Size::fixed)
            .ok_or_else(|| ShapeError::TooLarge { shape: shape.to_vec() })
    }

    fn emulate(&self, job: Job, x: &mut [f32]) -> Result<Tally, EncodeError> {
        let Job { terms, shape, stream, .. } = job;
        let layout = terms.layout(shape)?;
        let bands = layout.bands();
        let coders = self.fit(x, layout, &bands, terms.rounding);
        each_band(split(x, &bands, |band| band.elems.len()), &bands, |x, band| {
            let mut draws = Draws::new(terms.rounding, stream);
            let mut decoder = Decoder::new(&*self.format);
            layout.runs(band, |run| {
                for at in (0..run.len).step_by(WINDOW) {
                    let (start, len) = (run.start + at, WINDOW.min(run.len - at));
                    let coder = &coders[run.group];
                    draws.pieces(band.elems.start, start, len, |part, draws| {
                        let mut codes = [0; WINDOW];
                        let codes = &mut codes[..part.len()];
                        self.codes(coder, &x[part.clone()], terms.rounding, draws, codes);
                        decoder.values(coder.law, codes, run.len, &mut x[part]);
                    });
                }
            });
        });
        Ok(Tally::default())
    }

    fn encode(&self, job: Job, x: &[f32], out: &mut Vec<u8>) -> Result<Tally, EncodeError> {
        let Job { terms, shape, stream, .. } = job;
        let layout = terms.layout(shape)?;
        let bands = layout.bands();
        let coders = self.fit(x, layout, &bands, terms.rounding);
        let start = out.len();
        out.resize(start + coders.len() * LAW_BYTES + x.len(), 0);
        let (front, packed) = out[start..].split_at_mut(coders.len() * LAW_BYTES);
        for (bytes, Coder { law, .. }) in
            front.as_chunks_mut::<LAW_BYTES>().0.iter_mut().zip(&coders)
        {
            bytes[..4].copy_from_slice(&law.alpha.to_le_bytes());
            bytes[4..].copy_from_slice(&law.beta.to_le_bytes());
        }
        each_band(split(packed, &bands, |band| band.elems.len()), &bands, |packed, band| {
            let x = &x[band.elems.clone()];
            self.encode_band(x, band, layout, &coders, terms.rounding, stream, packed);
        });
        Ok(Tally::default())
    }

    fn decode(
        &self,
        terms: &Terms,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        let layout = terms.layout(shape)?;
        let (front, packed) = bytes.split_at(layout.groups() * LAW_BYTES);
        let mut laws = Vec::with_capacity(layout.groups());
        for (group, bytes) in front.as_chunks::<LAW_BYTES>().0.iter().enumerate() {
            let [a, b, c, d, rest @ ..] = *bytes;
            let (alpha, beta) = (f32::from_le_bytes([a, b, c, d]), f32::from_le_bytes(rest));
            let bounds = 1.0 / ALPHA_BOUND..=ALPHA_BOUND;
            if !bounds.contains(&f64::from(alpha)) || !beta.is_finite() {
                return Err(DecodeError::Corrupt {
                    scheme: self.name() + &self.suffix(),
                    reason: format!("group {group} has alpha {alpha} and beta {beta}"),
                });
            }
            laws.push(PowerLaw { alpha, beta });
        }
        let bands = layout.bands();
        each_band(split(out, &bands, |band| band.elems.len()), &bands, |out, band| {
            let packed = &packed[band.elems.clone()];
            let mut decoder = Decoder::new(&*self.format);
            let mut codes = [0; WINDOW];
            layout.runs(band, |run| {
                for at in (0..run.len).step_by(WINDOW) {
                    let part = run.start + at..run.start + (at + WINDOW).min(run.len);
                    let codes = &mut codes[..part.len()];
                    for (code, byte) in codes.iter_mut().zip(&packed[part.clone()]) {
                        *code = u32::from(*byte);
                    }
                    decoder.values(laws[run.group], codes, run.len, &mut out[part]);
                }
            });
        });
        Ok(())
    }
}

impl S2fp8 {
    /// The power law of every group, and its table where it is worth its while.
    fn fit(&self, x: &[f32], layout: Layout, bands: &[Band], rounding: Rounding) -> Vec<Coder> {
        let mut groups = vec![Logs::NOTHING; layout.groups()];
        let parts = each_band(vec![(); bands.len()], bands, |(), band| {
            let x = &x[band.elems.clone()];
            let mut seen = vec![Logs::NOTHING; band.groups.len()];
            layout.runs(band, |run| {
                let slot = &mut seen[run.group - band.groups.start];
                for block in x[run.start..run.start + run.len].chunks(BLOCK) {
                    *slot = slot.join(s2fp8_logs(block));
                }
            });
            seen
        });
        for (part, band) in parts.into_iter().zip(bands) {
            for (slot, seen) in groups[band.groups.clone()].iter_mut().zip(part) {
                *slot = slot.join(seen);
            }
        }
        let coder = |(group, logs)| {
            let mut coder = Coder { law: self.law(logs), table: None };
            if rounding == Rounding::NearestEven && layout.group_len(group) >= CODED_FROM {
                let codes =
                    |x: &[f32], codes: &mut [u32]| self.codes(&coder, x, rounding, &[], codes);
                coder.table = CodeTable::new(coder.law, codes);
            }
            coder
        };
        groups.into_par_iter().enumerate().map(coder).collect()
    }

    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    fn law(&self, logs: Logs) -> PowerLaw {
        let counts_zeros = self.zeros_counted && logs.zeros > 0;
        let count = logs.count + if counts_zeros { logs.zeros } else { 0 };
        if logs.count == 0 {
            return PowerLaw { alpha: 1.0, beta: 0.0 };
        }
        let log_of = |bits| log2(f64::from(f32::from_bits(bits)));
        let (mut least, mut most) = (log_of(logs.least), log_of(logs.most));
        if counts_zeros {
            (least, most) = (least.min(0.0), most.max(0.0));
        }
        // Where all are equal the mean is said so, since their sum may have been rounded.
        let equal = least.to_bits() == most.to_bits();
        let mean = if equal { most } else { logs.sum / count as f64 };
        let alpha = if equal {
            1.0
        } else {
            // A mean that is rounded up to the largest gives infinity, which the bound takes away.
            (TOP / (most - mean).max(0.0)).clamp(1.0 / ALPHA_BOUND, ALPHA_BOUND)
        };
        // `+ 0.0`, so that no -0 is stored.
        PowerLaw { alpha: alpha as f32, beta: (0.0 - alpha * mean) as f32 + 0.0 }
    }

    /// The codes of at most [`WINDOW`] values of one group.
    fn codes(
        &self,
        coder: &Coder,
        x: &[f32],
        rounding: Rounding,
        draws: &[u32],
        codes: &mut [u32],
    ) {
        if let Some(table) = &coder.table
            && amax_bits(x) < f32::INFINITY.to_bits()
        {
            return s2fp8_codes(table, x, codes);
        }
        let mut y = [0.0; WINDOW];
        let y = &mut y[..x.len()];
        s2fp8_forward(coder.law, x, y);
        if rounding != Rounding::NearestEven {
            // The vector loops round by every rule but write codes to nearest, which changes no rounded value.
            self.format.quantize_run(y, &Params::UNIT, rounding, draws);
        }
        self.format.encode_run(y, &Params::UNIT, Rounding::NearestEven, &[], codes);
    }

    #[expect(clippy::too_many_arguments, reason = "the context of a band")]
    fn encode_band(
        &self,
        x: &[f32],
        band: &Band,
        layout: Layout,
        coders: &[Coder],
        rounding: Rounding,
        stream: &Stream,
        packed: &mut [u8],
    ) {
        let mut draws = Draws::new(rounding, stream);
        layout.runs(band, |run| {
            for at in (0..run.len).step_by(WINDOW) {
                let (start, len) = (run.start + at, WINDOW.min(run.len - at));
                draws.pieces(band.elems.start, start, len, |part, draws| {
                    let mut codes = [0; WINDOW];
                    let codes = &mut codes[..part.len()];
                    self.codes(&coders[run.group], &x[part.clone()], rounding, draws, codes);
                    for (byte, code) in packed[part].iter_mut().zip(codes) {
                        *byte = code.to_le_bytes()[0];
                    }
                });
            }
        });
    }
}

/// Values of codes: by a table where a run is long, else one by one. Both give the same bits.
struct Decoder<'a> {
    format: &'a dyn Format,
    /// The value of each code in order.
    grid: [f32; 256],
    table: Option<(PowerLaw, [f32; 256])>,
}

impl<'a> Decoder<'a> {
    fn new(format: &'a dyn Format) -> Self {
        let mut grid = [0.0; 256];
        for (code, v) in (0..).zip(&mut grid) {
            *v = format.decode(code, &Params::UNIT);
        }
        Self { format, grid, table: None }
    }

    /// The values of codes below 256 in a run of `run_len` elements.
    fn values(&mut self, law: PowerLaw, codes: &[u32], run_len: usize, out: &mut [f32]) {
        if run_len < TABLE_FROM {
            self.format.decode_run(codes, &Params::UNIT, out);
            return s2fp8_back(law, out);
        }
        let (_, table) = match &mut self.table {
            Some(known) if known.0 == law => known,
            slot => {
                let mut table = self.grid;
                s2fp8_back(law, &mut table);
                slot.insert((law, table))
            }
        };
        for (code, v) in codes.iter().zip(out) {
            *v = table[(code & 255) as usize];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scheme;

    fn encoded(text: &str, x: &[f32]) -> (f32, f32, Vec<u8>, Vec<f32>) {
        let scheme: Scheme = text.parse().unwrap();
        let mut bytes = Vec::new();
        scheme.encode(x, &[x.len()], &Stream::new(0, 0), &mut bytes).unwrap();
        let mut back = vec![0.0; x.len()];
        scheme.decode(&bytes, &[x.len()], &mut back).unwrap();
        let float = |at: usize| f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        (float(0), float(4), bytes[8..].to_vec(), back)
    }

    #[test]
    fn the_worked_example_of_the_specification_holds() {
        let (alpha, beta, codes, back) = encoded("s2fp8", &[0.003, -0.01, 0.25, 1.0]);
        assert!((alpha - 3.524_296).abs() < 1e-6 && (beta - 15.0).abs() < 1e-6);
        assert_eq!(codes, [0x03, 0x9a, 0x5c, 0x78]);
        for (v, expected) in back.iter().zip([0.003_073, -0.01, 0.252_401, 1.0]) {
            assert!((v / expected - 1.0).abs() < 2e-4, "{v} {expected}");
        }
    }

    #[test]
    fn zeros_count_only_where_the_defect_is_asked_for() {
        let x = [0.001, -0.01, 0.1, 0.02, 0.0];
        let (alpha, beta, ..) = encoded("s2fp8", &x);
        assert!((alpha - 4.883).abs() < 1e-3 && (beta / alpha - 6.394).abs() < 1e-3);
        let (alpha, beta, ..) = encoded("s2fp8/zeros-counted", &x);
        assert!((alpha - 2.933).abs() < 1e-3 && (beta / alpha - 5.115).abs() < 1e-3);
        // Without zeros the word changes nothing.
        assert_eq!(encoded("s2fp8", &x[..4]), encoded("s2fp8/zeros-counted", &x[..4]));
    }

    #[test]
    fn edges_are_as_the_specification_says() {
        for v in [0.25f32, -3.0, 1e-45, f32::MAX] {
            let (alpha, _, codes, back) = encoded("s2fp8", &[v; 9]);
            assert_eq!((alpha, codes[0] & 0x7f), (1.0, 0x3c), "Y is 1");
            assert!((back[0] / v - 1.0).abs() < 1e-5, "{v} {}", back[0]);
        }
        assert_eq!(encoded("s2fp8", &[0.25, -0.25]).3, [0.25, -0.25]);
        let (alpha, beta, codes, _) = encoded("s2fp8", &[0.0, -0.0]);
        assert_eq!((alpha, beta, codes), (1.0, 0.0, vec![0, 0x80]));
        // Nearly equal magnitudes meet the bound.
        assert_eq!(encoded("s2fp8", &[1.0, 1.000_000_1, 1.0]).0, 64.0);
    }

    #[test]
    fn what_is_not_finite_follows_e5m2_and_leaves_the_law_alone() {
        let x = [1.0, 0.01, f32::INFINITY, f32::NAN, f32::NEG_INFINITY];
        let (alpha, beta, codes, back) = encoded("s2fp8", &x);
        let (a, b, ..) = encoded("s2fp8", &x[..2]);
        assert_eq!((alpha, beta), (a, b));
        assert_eq!((codes[2], codes[4]), (0x7b, 0xfb));
        assert!(back[2] > 1.0 && back[3].is_nan() && back[4] < -1.0);
        let back = encoded("s2fp8/nonfinite:propagate", &x).3;
        assert_eq!((back[2], back[4]), (f32::INFINITY, f32::NEG_INFINITY));
    }

    #[test]
    fn laws_that_cannot_be_are_refused() {
        let scheme: Scheme = "s2fp8".parse().unwrap();
        for (alpha, beta) in [(0.0, 0.0), (65.0, 0.0), (f32::NAN, 0.0), (1.0, f32::INFINITY)] {
            let bytes = [f32::to_le_bytes(alpha), f32::to_le_bytes(beta), [0x3c; 4]].concat();
            let error = scheme.decode(&bytes, &[4], &mut [0.0; 4]).unwrap_err();
            assert!(error.to_string().contains("alpha"), "{error}");
        }
    }

    #[test]
    fn a_table_gives_the_codes_of_the_definition() {
        let codec = |words: &[&str]| {
            let format: Arc<dyn Format> = Arc::new(Minifloat::named("e5m2").unwrap());
            let worded = |format: Arc<dyn Format>, word: &&str| format.with_word(word).unwrap();
            S2fp8 { format: words.iter().fold(format, worded), zeros_counted: false }
        };
        for codec in [codec(&[]), codec(&["nonfinite:propagate"])] {
            for (alpha, beta, fits) in [
                (1.0, 0.0, true),
                (5.37, 6.4, true),
                (0.4, -3.25, true),
                (64.0, 700.3, true),
                (64.0, -7000.3, true),
                (1.0 / 64.0, 0.1, false),
                (1.0, 130.0, false),
            ] {
                let law = PowerLaw { alpha, beta };
                let plain = Coder { law, table: None };
                let codes = |coder: &Coder, x: &[f32]| {
                    let mut codes = vec![0; x.len()];
                    codec.codes(coder, x, Rounding::NearestEven, &[], &mut codes);
                    codes
                };
                let table = CodeTable::new(law, |x, out| out.copy_from_slice(&codes(&plain, x)));
                assert_eq!(table.is_some(), fits, "{law:?}");
                let Some(table) = table else { continue };
                let coder = Coder { law, table: Some(table) };
                // Both sides of where a code changes, then numbers of any size.
                let mut x = vec![0.0, -0.0, 1e-45, f32::MIN_POSITIVE, f32::MAX, 1.0, -1.0];
                let mut bits = 0x3F80_0000u32;
                for step in 0..40_000u32 {
                    bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    x.push(f32::from_bits((bits % 0x7F80_0000) | ((step & 1) << 31)));
                }
                for pair in x.clone().windows(2) {
                    let code = |bits: u32| codes(&plain, &[f32::from_bits(bits)])[0];
                    let (mut low, mut high) = (0, pair[1].abs().to_bits());
                    let most = code(high);
                    if x.len() > 42_000 || most == 0 {
                        break;
                    }
                    while high - low > 1 {
                        let middle = low + (high - low) / 2;
                        *if code(middle) < most { &mut low } else { &mut high } = middle;
                    }
                    x.extend([f32::from_bits(low), f32::from_bits(high)]);
                }
                for x in x.chunks(WINDOW) {
                    assert_eq!(codes(&coder, x), codes(&plain, x), "{law:?}");
                }
            }
        }
    }

    #[test]
    fn a_table_and_single_values_decode_alike() {
        let x: Vec<f32> = (1..2000u16).map(|i| f32::from(i) - 700.5).collect();
        let (.., codes, long) = encoded("s2fp8", &x);
        let scheme: Scheme = "s2fp8".parse().unwrap();
        let mut bytes = Vec::new();
        scheme.encode(&x, &[x.len()], &Stream::new(0, 0), &mut bytes).unwrap();
        for (i, code) in codes.iter().enumerate().take(300) {
            let alone = [&bytes[..8], &[*code][..]].concat();
            let mut out = [0.0];
            scheme.decode(&alone, &[1], &mut out).unwrap();
            assert_eq!(out[0].to_bits(), long[i].to_bits());
        }
    }
}
