//! A tensor as ops take it and keep it: values, bf16, or the bytes of its scheme.

use std::borrow::Cow;

use burn::backend::TensorMetadata;
use half::bf16;
use rayon::prelude::*;
use scrimp_codec::codecs::{IntegerCodes, Integers};
use scrimp_kernels::{Kind, Operand};

use super::{Values, contiguous, done, room, slice, tensor, values_mut};
use crate::engine::PointRef;

/// What the activations of a layer are rounded to.
#[derive(Debug, Default)]
pub(crate) struct Points {
    pub x: Option<PointRef>,
    pub y: Option<PointRef>,
    pub dy: Option<PointRef>,
    pub dx: Option<PointRef>,
}

/// A tensor that was rounded and waits for the products that it is a factor of.
#[derive(Debug)]
pub(super) enum Held {
    /// Values.
    Float(Values),
    /// Values that bf16 holds exactly.
    Short(Vec<bf16>),
    /// Bytes as the scheme of the point stores them.
    Packed { bytes: Vec<u8>, point: PointRef, shape: Vec<usize> },
}

/// A factor in the kind that was asked for, and what its elements are multiplied by.
pub(super) struct Factor<'a> {
    elements: Elements<'a>,
    /// One scale for the whole tensor, or one for each index of the axis that its granularity names.
    pub scales: Vec<f32>,
}

enum Elements<'a> {
    F32(Cow<'a, [f32]>),
    Bf16(Cow<'a, [bf16]>),
    Int8(Cow<'a, [i8]>),
}

impl Factor<'_> {
    pub fn operand(&self) -> Operand<'_> {
        match &self.elements {
            Elements::F32(v) => Operand::F32(v),
            Elements::Bf16(v) => Operand::Bf16(v),
            Elements::Int8(v) => Operand::Int8(v),
        }
    }
}

/// Rounds a tensor as its point says and holds it as the products of these kinds need it.
pub(super) fn hold(x: Values, point: Option<&PointRef>, kinds: &[Kind]) -> Held {
    let mut x = contiguous(x);
    let Some(point) = point else { return Held::Float(x) };
    let shape: Vec<usize> = x.shape().as_slice().to_vec();
    let integers = kinds.contains(&Kind::Int8) || kinds.contains(&Kind::Bf16) && !point.is_short();
    if integers && let Some(bytes) = point.encode(slice(&x), &shape) {
        done(x);
        return Held::Packed { bytes, point: PointRef::clone(point), shape };
    }
    if point.is_active() {
        point.apply(values_mut(&mut x), &shape);
    }
    if kinds.contains(&Kind::Bf16)
        && let Some(values) = exactly(slice(&x))
    {
        done(x);
        return Held::Short(values);
    }
    Held::Float(x)
}

/// The same for a tensor that the way back needs too, if it is to `keep` some: what the way there works with, and what is
/// kept of it where that is something else, namely bytes whose values are those.
pub(super) fn hold_both_ways(
    x: Values,
    point: Option<&PointRef>,
    kinds: &[Kind],
    keep: bool,
) -> (Held, Option<Held>) {
    let Some(point) = point.filter(|p| keep && p.packs()) else {
        return (hold(x, point, kinds), None);
    };
    let mut x = contiguous(x);
    let shape: Vec<usize> = x.shape().as_slice().to_vec();
    let Some(bytes) = point.encode(slice(&x), &shape) else { return (Held::Float(x), None) };
    // Codes that are multiplied as they are serve both ways.
    let serves = kinds.iter().any(|kind| *kind != Kind::F32) && point.has_integers();
    if !serves {
        point.decode_into(&bytes, &shape, values_mut(&mut x));
    }
    let packed = Held::Packed { bytes, point: PointRef::clone(point), shape };
    if serves {
        done(x);
        return (packed, None);
    }
    let now = match exactly(slice(&x)).filter(|_| kinds.contains(&Kind::Bf16)) {
        Some(short) => {
            done(x);
            Held::Short(short)
        }
        None => Held::Float(x),
    };
    (now, Some(packed))
}

impl Held {
    /// The tensor as a factor of this kind; `None` if it has values that the kind does not hold.
    pub fn factor(&self, kind: Kind) -> Option<Factor<'_>> {
        let plain = |elements| Some(Factor { elements, scales: vec![1.0] });
        match (self, kind) {
            (_, Kind::F32) => plain(Elements::F32(self.values())),
            (Self::Short(x), Kind::Bf16) => plain(Elements::Bf16(x.into())),
            (Self::Packed { bytes, point, shape }, _) => {
                let Some(Integers { scales, codes }) = point.integers(bytes, shape) else {
                    return match kind {
                        Kind::Bf16 => plain(Elements::Bf16(exactly(&self.values())?.into())),
                        _ => None,
                    };
                };
                let elements = match (codes, kind) {
                    (IntegerCodes::Narrow(codes), Kind::Int8) => Elements::Int8(codes),
                    (IntegerCodes::Narrow(codes), _) => {
                        let short = |c: &i8| bf16::from_f32(f32::from(*c));
                        Elements::Bf16(codes.par_iter().map(short).collect::<Vec<_>>().into())
                    }
                    (IntegerCodes::Wide(_), Kind::Int8) => return None,
                    (IntegerCodes::Wide(codes), _) => {
                        let short = |c: &i16| bf16::from_f32(f32::from(*c));
                        Elements::Bf16(codes.par_iter().map(short).collect::<Vec<_>>().into())
                    }
                };
                Some(Factor { elements, scales })
            }
            (Self::Float(_), _) | (Self::Short(_), Kind::Int8) => None,
        }
    }

    /// What is kept of it, with the second result of [`hold_both_ways`].
    pub fn or_packed(self, packed: Option<Self>) -> Self {
        let Some(packed) = packed else { return self };
        self.done();
        packed
    }

    /// Gives the memory back, where nobody else holds it.
    pub fn done(self) {
        if let Self::Float(x) = self {
            done(x);
        }
    }

    /// The values as a tensor of this shape, to be changed.
    pub fn into_tensor(self, shape: &[usize]) -> Values {
        match self {
            Self::Float(x) => contiguous(x),
            Self::Short(x) => tensor(widened(&x), shape),
            Self::Packed { bytes, point, shape } => {
                let mut x = room(&shape);
                point.decode_into(&bytes, &shape, &mut x);
                tensor(x, &shape)
            }
        }
    }

    /// The values.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Float(x) => slice(x).into(),
            Self::Short(x) => widened(x).into(),
            Self::Packed { bytes, point, shape } => point.decode(bytes, shape).into(),
        }
    }
}

/// The values of a tensor that lies in order, rounded as its point says.
pub(super) fn rounded(x: Values, point: Option<&PointRef>) -> Values {
    let mut x = contiguous(x);
    if let Some(point) = point.filter(|p| p.is_active()) {
        let shape = x.shape();
        point.apply(values_mut(&mut x), shape.as_slice());
    }
    x
}

/// Rounds a result in place as its point says.
pub(super) fn round(point: Option<&PointRef>, x: &mut [f32], shape: &[usize]) {
    if let Some(point) = point.filter(|p| p.is_active()) {
        point.apply(x, shape);
    }
}

/// Two factors of a product in this kind, or in f32 where one has values that the kind does not hold.
pub(super) fn factors<'a>(left: &'a Held, right: &'a Held, kind: Kind) -> (Factor<'a>, Factor<'a>) {
    let both = |kind| Some((left.factor(kind)?, right.factor(kind)?));
    both(kind).or_else(|| both(Kind::F32)).expect("every tensor has values")
}

/// The values as bf16, if none of them loses a bit.
fn exactly(x: &[f32]) -> Option<Vec<bf16>> {
    const PART: usize = 1 << 14;
    let mut short = vec![bf16::ZERO; x.len()];
    let lost = short
        .par_chunks_mut(PART)
        .zip(x.par_chunks(PART))
        .map(|(short, x)| {
            let mut lost = 0;
            for (short, x) in short.iter_mut().zip(x) {
                let bits = x.to_bits();
                lost |= bits & 0xFFFF;
                *short = bf16::from_bits((bits >> 16) as u16);
            }
            lost
        })
        .reduce(|| 0, |a, b| a | b);
    (lost == 0).then_some(short)
}

fn widened(x: &[bf16]) -> Vec<f32> {
    x.par_iter().map(|v| f32::from_bits(u32::from(v.to_bits()) << 16)).collect()
}
