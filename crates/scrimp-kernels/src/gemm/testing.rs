//! What tests of products share: numbers, and how near a result must be.

use half::bf16;

use crate::gemm::element::Element;
use crate::{Kind, Operand, Scale};

/// Numbers that look random, from a seed.
pub(crate) struct Draws(u64);

impl Draws {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 32).unwrap_or(0)
    }

    pub fn float(&mut self) -> f32 {
        f32::from(u16::try_from(self.next() >> 16).unwrap_or(0)) / 32768.0 - 1.0
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// An element that tests can draw, and give to an operation.
pub(crate) trait TestElement: Element {
    fn draw(draws: &mut Draws) -> Self;
    fn operand(elements: &[Self]) -> Operand<'_>;

    fn many(draws: &mut Draws, n: usize) -> Vec<Self> {
        (0..n).map(|_| Self::draw(draws)).collect()
    }
}

impl TestElement for f32 {
    fn draw(draws: &mut Draws) -> Self {
        draws.float()
    }

    fn operand(elements: &[Self]) -> Operand<'_> {
        Operand::F32(elements)
    }
}

impl TestElement for bf16 {
    fn draw(draws: &mut Draws) -> Self {
        bf16::from_f32(draws.float())
    }

    fn operand(elements: &[Self]) -> Operand<'_> {
        Operand::Bf16(elements)
    }
}

impl TestElement for i8 {
    /// All codes, the extreme ones more often than others.
    fn draw(draws: &mut Draws) -> Self {
        match draws.next() {
            n if n >> 29 == 0 => -128,
            n if n >> 29 == 1 => 127,
            n => n.to_le_bytes()[0].cast_signed(),
        }
    }

    fn operand(elements: &[Self]) -> Operand<'_> {
        Operand::Int8(elements)
    }
}

/// Compares with sums in f64, each beside the sum of magnitudes: int8 bit for bit; others within one rounding of f32 for
/// each of `len` products and the last steps. `channel` is that of an element.
pub(crate) fn assert_near<T: Element>(
    actual: &[f32],
    sums: &[[f64; 2]],
    len: usize,
    scale: Scale,
    bias: Option<&[f32]>,
    channel: impl Fn(usize) -> usize,
    case: &str,
) {
    assert_eq!(actual.len(), sums.len(), "{case}");
    for (i, (actual, [sum, magnitude])) in actual.iter().zip(sums).enumerate() {
        let factor = match scale {
            Scale::Tensor(scale) => scale,
            Scale::Channel(scale) => scale[channel(i)],
        };
        let bias = bias.map_or(0.0, |bias| bias[channel(i)]);
        if T::KIND == Kind::Int8 {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the sum of a short reduction is exact"
            )]
            let expected = *sum as f32 * factor + bias;
            assert_eq!(*actual, expected, "{case}: element {i}");
        } else {
            let factor = f64::from(factor);
            let expected = sum * factor + f64::from(bias);
            let unit = f64::from(f32::EPSILON) / 2.0;
            let bound =
                (len + 4) as f64 * unit * (magnitude * factor.abs() + f64::from(bias.abs()));
            let error = (f64::from(*actual) - expected).abs();
            assert!(
                error <= bound,
                "{case}: element {i} is {actual}, not {expected}, bound {bound}"
            );
        }
    }
}
