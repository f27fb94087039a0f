//! Flexpoint: integer mantissas in two's complement under one exponent for the whole tensor.
//!
//! `value = mantissa * 2^E`. The bytes of a tensor, all little-endian; an empty tensor has none:
//!
//! | part | bytes |
//! |---|---|
//! | bias of the exponent, i16 | 2 |
//! | exponent less its bias, 0 to 31 | 1 |
//! | mantissas of *N* bits in the order of the elements, packed | `ceil(elements * N / 8)` |
//!
//! E lies from -126 to 127, so that 2^E is a normal f32; a reader refuses others. What a tensor of smaller magnitude
//! than 2^-127 holds is zero.
//!
//! # Exponents
//! Without a memory each tensor gets the least exponent under which it fits, `E = ceil(log2(amax / (2^(N-1) - 1)))`, and
//! the bias `E - 15`. A tensor of zeros has exponent 0.
//!
//! With one, only the first tensor that is not all zeros is looked at before it is encoded. The bias is chosen then and
//! stays, and with it a window of 32 exponents. Each later tensor takes the exponent that was predicted from those
//! before, saturates where that was too low, and moves the prediction ([`Autoflex`]). A prediction that leaves the window
//! becomes its nearest end: above, values saturate, below, they lose bits.
//!
//! # Source
//! Köster et al. 2017, "Flexpoint: an adaptive numerical format for efficient training of deep neural networks",
//! arXiv:1711.02213; the constants of Autoflex and its treatment of overflow as in Nervana's implementation in ngraph.
//!
//! Differs: there, a first exponent is found by running the operation several times; here it is the one that fits. The
//! first tensor's bias, the window's ends, and that zeros teach nothing are ours too, and so are widths other than 16.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bands::{Draws, Packer, Refusal, WINDOW, each_band, split, survey};
use super::{Codec, DecodeError, Defaults, EncodeError, Job, Size, Tally, Terms};
use crate::families::Family;
use crate::formats::{Card, Codes, CodesMut, Groups, HeadError, Params, Scaling, finite};
use crate::granularity::{Band, Layout, elems};
use crate::{Granularity, Memory, NonFinite, Rounding, ShapeError, pack, simd};

/// Bytes before the mantissas.
const HEAD_BYTES: usize = 3;

/// The exponent of the first tensor lies so far above the bias: in the middle of the window.
const FIRST: i32 = 15;

/// The largest exponent above the bias.
const LAST: i32 = 31;

/// The exponents whose power of two is a normal f32.
const EXPONENTS: std::ops::RangeInclusive<i32> = -126..=127;

/// The paper, for the book.
const SOURCE: &str = "\
Köster et al. 2017, [arXiv:1711.02213](https://arxiv.org/abs/1711.02213); Autoflex as in Nervana's implementation in ngraph";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
| part | bytes |
|---|---|
| bias of the exponent | 2, i16 |
| exponent less its bias, 0 to 31 | 1 |
| mantissas of *K* bits in two's complement, in the order of the elements, packed as codes are everywhere | `ceil(N K / 8)` |

`value = mantissa * 2^E` with the exponent *E* from -126 to 127; a reader refuses others.";

/// `flexN+5`.
pub(crate) struct FlexpointFamily;

impl Family for FlexpointFamily {
    fn syntax(&self) -> &'static str {
        "flex8+5..flex16+5"
    }

    fn about(&self) -> &'static str {
        "Flexpoint: integers under one 5-bit exponent for the tensor, which is predicted from those before"
    }

    fn members(&self) -> Vec<String> {
        ["flex16+5", "flex8+5", "flex11+5"].map(String::from).to_vec()
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        let widths = head.strip_prefix("flex")?;
        let bits = widths.strip_suffix("+5").and_then(|n| n.parse().ok());
        Some(match bits.filter(|n| (8..=16).contains(n)) {
            Some(bits) => Ok(Arc::new(Flexpoint { bits })),
            None => Err(HeadError {
                message: format!("`{head}`: Flexpoint has 8 to 16 bits and a 5-bit exponent"),
                help: "write for example flex16+5".into(),
            }),
        })
    }

    fn synonyms(&self) -> &'static [(&'static str, &'static str)] {
        &[("flexpoint", "flex16+5"), ("flex16", "flex16+5")]
    }
}

/// What Autoflex keeps of one tensor, to predict the exponent of the next.
///
/// With Γ the largest mantissa of a tensor and κ = 2^E: where Γ saturated the history is dropped and Γ doubled; then Γκ
/// joins the history, which keeps 16. The next exponent is `floor(log2 χ) - (N - 2)` for
/// `χ = max(history) + 3 std(history) + 100 κ` (the last term times `2^(N - 16)`), so that χ itself would use all bits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Autoflex {
    /// The bias of the exponent; `None` before the first tensor that is not all zeros.
    bias: Option<i16>,
    /// The exponent of the next tensor.
    exponent: i16,
    /// The largest magnitudes of the last tensors, the latest last.
    history: Vec<f64>,
}

/// A bias and the exponent that is stored above it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Window {
    bias: i16,
    exponent: i32,
}

impl Window {
    /// The window of a tensor that is the first.
    fn around(exponent: i32) -> Self {
        Self { bias: narrow(exponent - FIRST), exponent }
    }

    /// The nearest exponent that the window has.
    fn clamp(bias: i16, exponent: i32) -> i32 {
        let bias = i32::from(bias);
        exponent.clamp(bias, bias + LAST).clamp(*EXPONENTS.start(), *EXPONENTS.end())
    }

    fn bytes(self) -> [u8; HEAD_BYTES] {
        let [low, high] = self.bias.to_le_bytes();
        [low, high, (self.exponent - i32::from(self.bias)).to_le_bytes()[0]]
    }
}

/// Exponents are far smaller than an i16.
fn narrow(exponent: i32) -> i16 {
    i16::try_from(exponent).unwrap_or(0)
}

impl Autoflex {
    /// How many tensors are remembered.
    const HISTORY: usize = 16;
    const DEVIATIONS: f64 = 3.0;
    const OFFSET: f64 = 100.0;

    /// The state as numbers: bias (NaN before the first tensor), exponent, then mantissa and exponent of each magnitude.
    pub(crate) fn values(&self) -> Vec<f32> {
        let head = [self.bias.map_or(f32::NAN, f32::from), f32::from(self.exponent)];
        let parts = self.history.iter().flat_map(|m| {
            let e = exponent(*m);
            #[expect(clippy::cast_possible_truncation, reason = "a mantissa has at most 17 bits")]
            let mantissa = (m * 2f64.powi(-e)) as f32;
            [mantissa, f32::from(narrow(e))]
        });
        head.into_iter().chain(parts).collect()
    }

    /// The state of such numbers; `None` if they are none of its own.
    pub(crate) fn from_values(values: &[f32]) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "compared with what it was")]
        let whole = |v: f32| Some(v as i16).filter(|i| f32::from(*i) == v);
        let (&[bias, exponent], rest) = values.split_first_chunk::<2>()?;
        let (pairs, []) = rest.as_chunks::<2>() else { return None };
        let magnitude = |&[mantissa, e]: &[f32; 2]| {
            let e = whole(e).filter(|e| (-1022..=1023).contains(e))?;
            let mantissa = Some(mantissa).filter(|m| (1.0..2.0).contains(m))?;
            Some(f64::from(mantissa) * 2f64.powi(e.into()))
        };
        Some(Self {
            bias: if bias.is_nan() { None } else { Some(whole(bias)?) },
            exponent: whole(exponent)?,
            history: pairs.iter().map(magnitude).collect::<Option<_>>()?,
        })
    }

    /// The exponent for a tensor of this largest magnitude, from the tensors before; learns from it.
    fn next(&mut self, amax: f32, format: Flexpoint) -> Window {
        // A memory comes from a file, so its bias is not taken on trust.
        let known = self.bias.filter(|b| EXPONENTS.contains(&(i32::from(*b) + FIRST)));
        let window = match known {
            Some(bias) => Window { bias, exponent: Window::clamp(bias, self.exponent.into()) },
            None => Window::around(format.least_exponent(amax)),
        };
        if amax > 0.0 {
            self.bias = Some(window.bias);
            self.learn(amax, window, format.bits);
        }
        window
    }

    fn learn(&mut self, amax: f32, window: Window, bits: u32) {
        let (bits, unit) = (f64::from(bits), 2f64.powi(window.exponent));
        let top = (bits - 1.0).exp2() - 1.0;
        let mut mantissa = (f64::from(amax) / unit).round_ties_even().min(top);
        if mantissa >= top {
            self.history.clear();
            mantissa *= 2.0;
        }
        self.history.push(mantissa * unit);
        self.history.drain(..self.history.len().saturating_sub(Self::HISTORY));
        let n = self.history.len() as f64;
        let mean = self.history.iter().sum::<f64>() / n;
        let variance = self.history.iter().map(|m| (m - mean) * (m - mean)).sum::<f64>() / n;
        let largest = self.history.iter().copied().fold(0.0, f64::max);
        let offset = Self::OFFSET * unit * (bits - 16.0).exp2();
        let expected = largest + Self::DEVIATIONS * variance.sqrt() + offset;
        #[expect(clippy::cast_possible_truncation, reason = "an exponent")]
        let exponent = exponent(expected) - (bits as i32 - 2);
        self.exponent = narrow(Window::clamp(window.bias, exponent));
    }
}

/// `floor(log2 v)` of a positive number, from its bits.
fn exponent(v: f64) -> i32 {
    i32::try_from(v.to_bits() >> 52 & 0x7FF).unwrap_or(0) - 1023
}

/// Integers of so many bits under a common exponent.
#[derive(Clone, Copy, Debug)]
struct Flexpoint {
    bits: u32,
}

impl Flexpoint {
    /// The largest mantissa; the smallest is one below its negative.
    fn top(self) -> f32 {
        2f32.powi(self.bits.cast_signed() - 1) - 1.0
    }

    /// The least exponent under which the magnitude fits.
    fn least_exponent(self, amax: f32) -> i32 {
        if amax == 0.0 {
            return 0;
        }
        let (amax, top) = (f64::from(amax), f64::from(self.top()));
        let mut e = exponent(amax) - exponent(top);
        // Exact: neither side has more than 24 bits.
        e += i32::from(amax > top * 2f64.powi(e));
        e.clamp(*EXPONENTS.start(), *EXPONENTS.end())
    }

    /// The mantissa of a value: the definition. A NaN counts as zero.
    fn mantissa(self, x: f32, scale: f32, rounding: Rounding, draw: u32) -> f32 {
        let steps = if x.is_nan() { 0.0 } else { f64::from(x / scale) };
        let top = f64::from(self.top());
        #[expect(clippy::cast_possible_truncation, reason = "an integer of at most 16 bits")]
        let mantissa = rounding.round(steps, draw).clamp(-top - 1.0, top) as f32;
        mantissa
    }

    /// The value of a mantissa: the definition.
    fn value(mantissa: f32, scale: f32) -> f32 {
        finite(mantissa * scale) + 0.0
    }

    /// The codes of the vector loops; `None` where a value may lie beyond f32.
    fn fast(self, scale: f32) -> Option<simd::Integers> {
        let high = i32::from(i16::MAX) >> (16 - self.bits);
        let integers = simd::Integers { low: -high - 1, high, bits: self.bits, signed: true };
        ((-self.top() - 1.0) * scale).is_finite().then_some(integers)
    }

    fn round(self, x: &mut [f32], scale: f32, rounding: Rounding, draws: &[u32]) {
        if let Some(integers) = self.fast(scale) {
            let params = [Params { scale, ..Params::UNIT }];
            let groups = Groups { params: &params, len: x.len() };
            return simd::int_groups(integers, groups, x, rounding, draws);
        }
        for (i, v) in x.iter_mut().enumerate() {
            let draw = draws.get(i).copied().unwrap_or(0);
            *v = Self::value(self.mantissa(*v, scale, rounding, draw), scale);
        }
    }

    fn encode_run(
        self,
        x: &[f32],
        scale: f32,
        rounding: Rounding,
        draws: &[u32],
        codes: &mut [u32],
    ) {
        if let Some(integers) = self.fast(scale) {
            let params = [Params { scale, ..Params::UNIT }];
            let groups = Groups { params: &params, len: x.len() };
            return simd::int_encode(integers, groups, x, rounding, draws, CodesMut::Words(codes));
        }
        for (i, (v, code)) in x.iter().zip(codes).enumerate() {
            let draw = draws.get(i).copied().unwrap_or(0);
            #[expect(clippy::cast_possible_truncation, reason = "an integer")]
            let mantissa = self.mantissa(*v, scale, rounding, draw) as i32;
            *code = mantissa.cast_unsigned() & (u32::MAX >> (32 - self.bits));
        }
    }

    fn decode_run(self, codes: &[u32], scale: f32, out: &mut [f32]) {
        if let Some(integers) = self.fast(scale) {
            let params = [Params { scale, ..Params::UNIT }];
            let groups = Groups { params: &params, len: out.len() };
            return simd::int_decode(integers, groups, Codes::Words(codes), out);
        }
        let unused = 32 - self.bits;
        for (code, v) in codes.iter().zip(out) {
            *v = Self::value(((code << unused).cast_signed() >> unused) as f32, scale);
        }
    }

    /// Looks at all values, and answers with the exponent of the tensor.
    fn fit(
        self,
        x: &[f32],
        bands: &[Band],
        nonfinite: NonFinite,
        autoflex: Option<&mut Autoflex>,
    ) -> Result<(Window, Tally), Refusal> {
        let parts = each_band(vec![(); bands.len()], bands, |(), band| {
            survey(&x[band.elems.clone()], band.elems.start, nonfinite)
        });
        let (mut amax, mut tally) = (0f32, Tally::default());
        for part in parts {
            let (largest, seen) = part?;
            (amax, tally) = (amax.max(largest), tally.join(seen));
        }
        let window = match autoflex {
            Some(autoflex) => autoflex.next(amax, self),
            None => Window::around(self.least_exponent(amax)),
        };
        Ok((window, tally))
    }
}

/// The part of a memory that is Flexpoint's.
fn autoflex(memory: Option<&mut Memory>) -> Option<&mut Autoflex> {
    match memory? {
        Memory::Flexpoint(autoflex) => Some(autoflex),
        _ => None,
    }
}

fn layout(shape: &[usize]) -> Result<Layout, ShapeError> {
    Granularity::Tensor.layout(shape)
}

impl Codec for Flexpoint {
    fn name(&self) -> String {
        format!("flex{}+5", self.bits)
    }

    fn card(&self) -> Card {
        Card {
            name: self.name(),
            bits: self.bits,
            exponent_bits: None,
            mantissa_bits: None,
            bias: None,
            min: -self.top() - 1.0,
            max: self.top(),
            min_normal: None,
            min_subnormal: None,
            specials: "none",
            overflow: "saturate",
            rounding: Rounding::NearestEven.word(),
            about: "integers under one exponent for the tensor, predicted from the tensors before"
                .into(),
        }
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            scaling: Scaling::Never,
            granularity: Granularity::Tensor,
            scales: &[],
            rounding: Some(Rounding::NearestEven),
        }
    }

    fn memory(&self, _: &Terms, shape: &[usize]) -> Result<Option<Memory>, ShapeError> {
        elems(shape)?;
        Ok(Some(Memory::Flexpoint(Autoflex::default())))
    }

    fn size(&self, _: &Terms, shape: &[usize]) -> Result<Size, ShapeError> {
        let n = elems(shape)?;
        let bytes = pack::packed_len(n, self.bits)
            .and_then(|codes| codes.checked_add(if n > 0 { HEAD_BYTES } else { 0 }));
        bytes.map(Size::fixed).ok_or_else(|| ShapeError::TooLarge { shape: shape.to_vec() })
    }

    fn emulate(&self, job: Job, x: &mut [f32]) -> Result<Tally, EncodeError> {
        let Job { terms, shape, stream, memory, scheme } = job;
        let layout = layout(shape)?;
        let bands = layout.bands();
        if bands.is_empty() {
            return Ok(Tally::default());
        }
        let (window, tally) =
            self.fit(x, &bands, terms.nonfinite, autoflex(memory)).map_err(|r| r.by(scheme))?;
        let scale = 2f32.powi(window.exponent);
        each_band(split(x, &bands, |band| band.elems.len()), &bands, |x, band| {
            let mut draws = Draws::new(terms.rounding, stream);
            draws.pieces(band.elems.start, 0, x.len(), |at, draws| {
                self.round(&mut x[at], scale, terms.rounding, draws);
            });
        });
        Ok(tally)
    }

    fn encode(&self, job: Job, x: &[f32], out: &mut Vec<u8>) -> Result<Tally, EncodeError> {
        let Job { terms, shape, stream, memory, scheme } = job;
        let layout = layout(shape)?;
        let bands = layout.bands();
        if bands.is_empty() {
            return Ok(Tally::default());
        }
        let too_large = || ShapeError::TooLarge { shape: shape.to_vec() };
        let packed_bytes = pack::packed_len(x.len(), self.bits).ok_or_else(too_large)?;
        let (window, tally) =
            self.fit(x, &bands, terms.nonfinite, autoflex(memory)).map_err(|r| r.by(scheme))?;
        let scale = 2f32.powi(window.exponent);
        out.extend(window.bytes());
        let start = out.len();
        out.resize(start + packed_bytes, 0);
        // Bands begin at multiples of eight elements, and so at whole bytes.
        let bytes = |band: &Band| pack::packed_len(band.elems.len(), self.bits).unwrap_or(0);
        each_band(split(&mut out[start..], &bands, bytes), &bands, |packed, band| {
            let x = &x[band.elems.clone()];
            let mut packer = Packer::<u32>::new(self.bits, packed);
            let mut draws = Draws::new(terms.rounding, stream);
            for (i, x) in x.chunks(WINDOW).enumerate() {
                let draws = draws.window(band.elems.start + i * WINDOW, x.len());
                packer.push(x.len(), |codes| {
                    self.encode_run(x, scale, terms.rounding, draws, codes);
                });
            }
            packer.finish();
        });
        Ok(tally)
    }

    fn decode(
        &self,
        _: &Terms,
        bytes: &[u8],
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        let bands = layout(shape)?.bands();
        let Some((&[low, high, above], packed)) = bytes.split_first_chunk() else {
            return Ok(());
        };
        let exponent = i32::from(i16::from_le_bytes([low, high])) + i32::from(above);
        if i32::from(above) > LAST || !EXPONENTS.contains(&exponent) {
            let reason = format!("exponent {exponent}, {above} above its bias, is never written");
            return Err(DecodeError::Corrupt { scheme: self.name(), reason });
        }
        let scale = 2f32.powi(exponent);
        each_band(split(out, &bands, |band| band.elems.len()), &bands, |out, band| {
            let mut codes = [0; WINDOW];
            for (i, out) in out.chunks_mut(WINDOW).enumerate() {
                let codes = &mut codes[..out.len()];
                pack::unpack(packed, self.bits, band.elems.start + i * WINDOW, codes);
                self.decode_run(codes, scale, out);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scheme, Stream};

    fn scheme(text: &str) -> Scheme {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    fn emulated(text: &str, x: &[f32]) -> Vec<f32> {
        let mut x = x.to_vec();
        let shape = [x.len()];
        scheme(text).emulate(&mut x, &shape, &Stream::new(0, 0)).unwrap();
        x
    }

    #[test]
    fn the_worked_example_of_the_specification_holds() {
        let mut bytes = Vec::new();
        let x = [0.5, -1.25, 3.1];
        scheme("flex16+5").encode(&x, &[3], &Stream::new(0, 0), &mut bytes).unwrap();
        let mut expected = (-13i16 - 15).to_le_bytes().to_vec();
        expected.push(15);
        for mantissa in [4096i16, -10240, 25395] {
            expected.extend(mantissa.to_le_bytes());
        }
        assert_eq!(bytes, expected);
    }

    #[test]
    fn the_exponent_is_the_least_that_fits() {
        let least = |bits, amax| Flexpoint { bits }.least_exponent(amax);
        assert_eq!(least(16, 32767.0), 0);
        assert_eq!(least(16, 32767f32.next_up()), 1);
        assert_eq!(least(16, 3.1), -13);
        assert_eq!(least(8, 127.0), 0);
        assert_eq!(least(8, 128.0), 1);
        assert_eq!(least(16, f32::MAX), 114);
        assert_eq!(least(16, 1e-45), -126);
        assert_eq!(least(16, 0.0), 0);
    }

    #[test]
    fn the_ends_of_f32_stay_finite_and_close() {
        assert_eq!(emulated("flex16+5", &[f32::MAX, f32::MIN, 1.0]), [f32::MAX, f32::MIN, 0.0]);
        assert_eq!(emulated("flex16+5", &[2f32.powi(-120), -0.0])[0], 2f32.powi(-120));
        assert_eq!(emulated("flex8+5", &[1e-45, 0.0]), [0.0, 0.0]);
    }

    #[test]
    fn the_fast_loops_give_the_bits_of_the_definition() {
        let format = Flexpoint { bits: 11 };
        let stream = Stream::new(1, 2);
        let n = 333;
        let mut draws = vec![0; n];
        stream.fill(0, &mut draws);
        let x: Vec<f32> = (0..n as u64).map(|i| (stream.uniform(i) - 0.5) * 9.0).collect();
        for exponent in [-126, -20, -8, -7, 0, 110, 117, 118, 127] {
            let scale = 2f32.powi(exponent);
            let x: Vec<f32> = x.iter().map(|v| finite(v * scale * 300.0)).collect();
            for (_, rounding) in Rounding::WORDS {
                let mut fast = x.clone();
                format.round(&mut fast, scale, rounding, &draws);
                let mut codes = vec![0; n];
                format.encode_run(&x, scale, rounding, &draws, &mut codes);
                let mut decoded = vec![0.0; n];
                format.decode_run(&codes, scale, &mut decoded);
                for i in 0..n {
                    let mantissa = format.mantissa(x[i], scale, rounding, draws[i]);
                    let value = Flexpoint::value(mantissa, scale);
                    assert_eq!(fast[i].to_bits(), value.to_bits(), "{exponent} {rounding:?}");
                    assert_eq!(decoded[i].to_bits(), value.to_bits(), "{exponent} {rounding:?}");
                }
            }
        }
    }

    /// The exponents and results of a row of one-element tensors.
    fn run(values: &[f32]) -> Vec<(i32, f32)> {
        let scheme = scheme("flex16+5");
        let mut memory = scheme.memory(&[1]).unwrap();
        let stream = Stream::new(0, 0);
        values
            .iter()
            .map(|&v| {
                let (mut bytes, mut back, mut x) = (Vec::new(), [0.0], [v]);
                let mut same = memory.clone();
                scheme.encode_next(&x, &[1], &stream, same.as_mut(), &mut bytes).unwrap();
                scheme.decode(&bytes, &[1], &mut back).unwrap();
                scheme.emulate_next(&mut x, &[1], &stream, memory.as_mut()).unwrap();
                assert_eq!((x, &memory), (back, &same));
                let text = serde_json::to_string(&memory).unwrap();
                assert_eq!(serde_json::from_str::<Option<Memory>>(&text).unwrap(), memory);
                (i32::from(i16::from_le_bytes([bytes[0], bytes[1]])) + i32::from(bytes[2]), back[0])
            })
            .collect()
    }

    #[test]
    fn a_steady_tensor_keeps_its_exponent_and_all_bits() {
        for (e, v) in run(&[3.0; 20]) {
            assert_eq!((e, v), (-13, 3.0));
        }
    }

    #[test]
    fn an_overflow_saturates_once_and_raises_the_exponent() {
        let seen = run(&[1.0, 1.0, 100.0, 100.0, 100.0, 100.0, 100.0]);
        // 1 fits under 2^-14; its mantissa is 16384, which predicts the same again.
        assert_eq!(seen[..2], [(-14, 1.0), (-14, 1.0)]);
        assert_eq!(seen[2], (-14, 32767.0 / 16384.0));
        // A saturated mantissa counts twice: 65534 + 100 needs two bits more, each time until 100 fits.
        assert_eq!(seen[3].0, -12);
        assert_eq!(seen[4].0, -10);
        assert_eq!(seen[5].0, -8);
        assert_eq!(seen[5].1, 100.0);
    }

    #[test]
    fn zeros_teach_nothing() {
        let seen = run(&[0.0, 0.0, 3.0, 0.0, 0.0, 3.0]);
        assert_eq!(seen[0], (0, 0.0));
        assert_eq!(seen[2], (-13, 3.0));
        assert_eq!(seen[5], (-13, 3.0));
    }

    #[test]
    fn a_shrinking_tensor_is_followed_once_the_history_forgets() {
        let mut values = vec![1.0; 4];
        values.extend([2f32.powi(-6); 60]);
        let seen = run(&values);
        assert_eq!(seen.last().map(|s| s.0), Some(-20));
        // The spread of the history asks for headroom meanwhile; nothing is lost.
        assert!(seen.iter().zip(&values).all(|(s, v)| s.1 == *v && s.0 <= -13), "{seen:?}");
    }

    #[test]
    fn the_window_of_exponents_has_ends() {
        let mut values = vec![1.0];
        values.extend([1e30; 40]);
        let (e, v) = *run(&values).last().unwrap();
        assert_eq!((e, v), (-14 + 16, 32767.0 * 4.0));
        let mut values = vec![1.0];
        values.extend([1e-30; 60]);
        assert_eq!(run(&values).last().unwrap().0, -14 - 15);
    }

    #[test]
    fn a_memory_from_elsewhere_does_no_harm() {
        let scheme = scheme("flex16+5");
        for json in [
            r#"{"flexpoint":{"bias":30000,"exponent":-30000,"history":[]}}"#,
            r#"{"flexpoint":{"bias":-100,"exponent":30000,"history":[1e300,1e308,-5]}}"#,
            r#"{"scales":{"scales":[1.0]}}"#,
        ] {
            let mut memory: Memory = serde_json::from_str(json).unwrap();
            for _ in 0..3 {
                let (mut bytes, mut back) = (Vec::new(), [0.0]);
                let stream = Stream::new(0, 0);
                scheme.encode_next(&[1.5], &[1], &stream, Some(&mut memory), &mut bytes).unwrap();
                scheme.decode(&bytes, &[1], &mut back).unwrap();
            }
        }
    }

    #[test]
    fn foreign_exponents_are_refused() {
        let scheme = scheme("flex16+5");
        for head in [[0, 0, 32], [0x80, 0, 15], [0, 0x80, 0]] {
            let bytes = [head[0], head[1], head[2], 1, 0];
            assert!(matches!(
                scheme.decode(&bytes, &[1], &mut [0.0]),
                Err(DecodeError::Corrupt { .. })
            ));
        }
    }
}
