//! `onebit`: the gradients of 1-bit SGD. One bit for each value says its side of zero, and each side of a group decodes to
//! its mean. What is lost is added to the next gradient.
//!
//! The values that are encoded are those of the tensor plus the residual, which is the whole point: without a
//! [memory](crate::Memory::Residual) the residual is zero each time.
//!
//! A group is a column of the paper's weight matrix, where `z = W^T v`: all that leads to one output. Here, as in most
//! frameworks, a weight is `[outputs, inputs]`, so that this is `channel`, the default; `axis:1` is the other reading. A
//! tensor of fewer than two axes is one group.
//!
//! # Bytes
//! See [`Family::layout`].
//!
//! # Source
//! Seide, Fu, Droppo, Li and Yu 2014, "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed
//! Training of Speech DNNs", Interspeech, section 3.1.

use std::sync::Arc;

use super::levels::{Coder, Fit, Levels, Packing, Rule, Sums, rounded};
use super::sign::one_bit_card;
use super::{Codec, Defaults, Terms};
use crate::formats::{Card, HeadError, Scaling};
use crate::granularity::Layout;
use crate::simd::levels::sides;
use crate::{Family, Granularity, ScaleFormat, ShapeError};

/// The paper, for the book.
const SOURCE: &str = "\
Seide, Fu, Droppo, Li and Yu 2014, 1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed
Training of Speech DNNs, Interspeech, section 3.1";

/// The bytes of a tensor, for the book.
const LAYOUT: &str = "\
| part | bytes |
|---|---|
| for each group the mean of the values from zero on, then the mean of those below; 0 for a side without values | 8 each, f32 |
| a bit for each element: 1 from zero on, 0 below | `ceil(N / 8)` |

Bits lie in the order of the elements, packed as codes are everywhere, and each reads as the mean of its side. A tensor of fewer than two axes is one
group.";

/// The row of the family.
pub(crate) struct OneBitFamily;

impl Family for OneBitFamily {
    fn syntax(&self) -> &'static str {
        "onebit"
    }

    fn about(&self) -> &'static str {
        "one bit: the mean of the values on either side of zero, with error feedback (1-bit SGD)"
    }

    fn members(&self) -> Vec<String> {
        vec!["onebit".into()]
    }

    fn source(&self) -> &'static str {
        SOURCE
    }

    fn layout(&self) -> &'static str {
        LAYOUT
    }

    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>> {
        (head == "onebit").then(|| Ok(Levels::of(OneBit)))
    }

    fn synonyms(&self) -> &'static [(&'static str, &'static str)] {
        &[("1bit", "onebit"), ("one_bit", "onebit")]
    }
}

/// The means of both sides of zero.
#[derive(Clone, Copy, Debug)]
struct OneBit;

impl Rule for OneBit {
    fn name(&self) -> &'static str {
        "onebit"
    }

    fn card(&self) -> Card {
        one_bit_card(
            "onebit",
            "the mean of the values on either side of zero; what is lost is carried on",
        )
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            scaling: Scaling::Always,
            granularity: Granularity::Channel,
            scales: &[],
            rounding: None,
        }
    }

    fn layout(&self, terms: &Terms, shape: &[usize]) -> Result<Layout, ShapeError> {
        if shape.len() < 2 && terms.granularity == Granularity::Channel {
            return Granularity::Tensor.layout(shape);
        }
        terms.layout(shape)
    }

    fn coder(&self) -> Coder {
        Coder::Side
    }

    fn packing(&self) -> Packing {
        Packing::Bits
    }

    fn sum(&self, _: usize, x: &[f32], _: &Fit) -> Sums {
        let (above, below, count) = sides(x);
        let count = f64::from(count);
        Sums { count: [x.len() as f64 - count, count], sum: [above, below], ..Sums::default() }
    }

    fn add_one(&self, _: usize, x: f32, _: &Fit, total: &mut Sums) {
        let side = usize::from(x < 0.0);
        total.count[side] += 1.0;
        total.sum[side] += f64::from(x);
    }

    fn fit(&self, _: usize, sums: &Sums, _: Option<ScaleFormat>, fit: &mut Fit) {
        let mean = |side: usize| rounded(sums.sum[side] / sums.count[side].max(1.0));
        fit.levels = [mean(1), mean(0), 0.0];
    }

    fn width(&self, _: Option<ScaleFormat>) -> usize {
        8
    }

    fn write(&self, fit: &Fit, _: Option<ScaleFormat>, bytes: &mut [u8]) {
        let (above, below) = bytes.split_at_mut(4);
        above.copy_from_slice(&fit.levels[1].to_le_bytes());
        below.copy_from_slice(&fit.levels[0].to_le_bytes());
    }

    fn read(&self, _: Option<ScaleFormat>, bytes: &[u8]) -> Option<[f32; 3]> {
        let &[a, b, c, d, e, f, g, h] = bytes else { return None };
        let (above, below) = (f32::from_le_bytes([a, b, c, d]), f32::from_le_bytes([e, f, g, h]));
        let fits = above.is_finite() && below.is_finite() && above >= 0.0 && below <= 0.0;
        fits.then_some([below, above, 0.0])
    }

    fn remembers(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codecs::levels::tests::assert_one_is_a_block;
    use crate::{EncodeError, Memory, Scheme, Stream};

    fn residual(memory: &Memory) -> &[f32] {
        match memory {
            Memory::Residual { residual } => residual,
            other => panic!("{other:?}"),
        }
    }

    fn near(a: &[f32], b: &[f32]) {
        assert!(
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6),
            "{a:?} {b:?}"
        );
    }

    #[test]
    fn the_two_steps_of_the_specification_hold_and_emulation_takes_them_too() {
        let scheme: Scheme = "onebit".parse().unwrap();
        let stream = Stream::new(0, 0);
        let mut memory = scheme.memory(&[4]).unwrap().unwrap();
        let mut twin = memory.clone();
        let steps = [
            ([0.4, -0.1, 0.2, -0.5], 0b0101, [0.3, -0.3], [0.1, 0.2, -0.1, -0.2]),
            ([0.1, 0.1, -0.3, -0.1], 0b0011, [0.25, -0.35], [-0.05, 0.05, -0.05, 0.05]),
        ];
        for (g, bits, means, lost) in steps {
            let (mut bytes, mut back) = (Vec::new(), [0.0; 4]);
            scheme.encode_next(&g, &[4], &stream, Some(&mut memory), &mut bytes).unwrap();
            assert_eq!(bytes[8], bits);
            scheme.decode(&bytes, &[4], &mut back).unwrap();
            near(&back, &[0, 1, 2, 3].map(|i| means[usize::from(bits >> i & 1 == 0)]));
            near(residual(&memory), &lost);
            let mut emulated = g;
            scheme.emulate_next(&mut emulated, &[4], &stream, Some(&mut twin)).unwrap();
            assert_eq!(emulated, back);
            assert_eq!(twin, memory);
        }
        let saved = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Memory>(&saved).unwrap(), memory);
    }

    #[test]
    fn columns_are_outputs_and_an_empty_side_is_zero() {
        let scheme: Scheme = "onebit".parse().unwrap();
        let x = [1.0, 3.0, -1.0, 4.0, -2.0, -6.0];
        let mut bytes = Vec::new();
        scheme.encode(&x, &[3, 2], &Stream::new(0, 0), &mut bytes).unwrap();
        let means: Vec<f32> =
            bytes[..24].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(means, [2.0, 0.0, 4.0, -1.0, 0.0, -4.0]);
        assert_eq!(scheme.groups(&[3, 2]).unwrap(), 3);
        assert_eq!((scheme.groups(&[6]).unwrap(), scheme.groups(&[]).unwrap()), (1, 1));
        assert_eq!(
            scheme.to_string().parse::<Scheme>().unwrap().size(&[6]).unwrap().exact(),
            Some(9)
        );
    }

    #[test]
    fn what_is_sent_adds_up_to_what_was_given() {
        let scheme: Scheme = "onebit/group:7".parse().unwrap();
        let shape = [5, 40];
        let mut memory = scheme.memory(&shape).unwrap();
        let (mut given, mut sent) = (vec![0.0f64; 200], vec![0.0f64; 200]);
        for step in 0..50 {
            let stream = Stream::new(2, 2).at_step(step);
            let g: Vec<f32> = (0..200).map(|i| stream.uniform(i) - 0.5).collect();
            let mut y = g.clone();
            scheme.emulate_next(&mut y, &shape, &stream, memory.as_mut()).unwrap();
            for i in 0..200 {
                given[i] += f64::from(g[i]);
                sent[i] += f64::from(y[i]);
            }
        }
        for (i, r) in residual(&memory.unwrap()).iter().enumerate() {
            assert!((given[i] - sent[i] - f64::from(*r)).abs() < 1e-4, "element {i}");
        }
    }

    #[test]
    fn another_tensors_memory_is_refused_and_special_values_leave_no_trace() {
        let scheme: Scheme = "onebit/nonfinite:saturate".parse().unwrap();
        let mut memory = scheme.memory(&[3]).unwrap();
        let x = [1.0, 2.0, 3.0, 4.0];
        let error =
            scheme.encode_next(&x, &[4], &Stream::new(0, 0), memory.as_mut(), &mut Vec::new());
        assert!(matches!(error, Err(EncodeError::Memory { .. })));
        let mut y = [f32::NAN, 2.0, f32::NEG_INFINITY];
        let tally = scheme.emulate_next(&mut y, &[3], &Stream::new(0, 0), memory.as_mut()).unwrap();
        assert_eq!((tally.nans, tally.infinities), (1, 1));
        assert!(residual(&memory.unwrap()).iter().all(|r| r.is_finite()));
        assert!(y.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn scattered_values_are_summed_as_others() {
        assert_one_is_a_block(&OneBit);
    }
}
