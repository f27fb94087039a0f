//! The registry: every family of schemes, one row each.

use std::sync::Arc;

use crate::codecs::{Codec, binary, onebit, random_k, sign, ternary, terngrad, top_k};
use crate::formats::{HeadError, float32, integer, minifloat};

/// Every family, in the order of the tables.
pub static FAMILIES: &[&dyn Family] = &[
    &float32::Float32Family,
    &minifloat::NamedFamily,
    &minifloat::FreeFamily,
    &minifloat::QmlFamily,
    &integer::SignedFamily,
    &integer::UnsignedFamily,
    &sign::SignFamily,
    &binary::BinaryFamily,
    &ternary::TernaryFamily,
    &terngrad::TernGradFamily,
    &onebit::OneBitFamily,
    &top_k::TopKFamily,
    &random_k::RandomKFamily,
];

/// A family of codecs: it reads the head of a scheme string.
pub trait Family: Sync {
    /// How a member's name is written, e.g. `int2..int16`.
    fn syntax(&self) -> &'static str;
    /// One sentence on the family.
    fn about(&self) -> &'static str;
    /// Members that tables list and tests run, as scheme strings.
    fn members(&self) -> Vec<String>;
    /// Reads a head such as `int8`: `None` if it is not of this family, an error if it is but cannot be.
    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>>;
    /// Names that other tools use for members, beside the member's own.
    fn synonyms(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
}
