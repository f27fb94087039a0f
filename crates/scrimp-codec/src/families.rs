//! The registry: every family of schemes, one row each.

use std::sync::Arc;

use crate::codecs::{
    Codec, binary, flexpoint, gguf, onebit, random_k, s2fp8, sign, smaq, ternary, terngrad, top_k,
};
use crate::formats::{HeadError, bfp, cfloat, float32, integer, minifloat, mx, nvfp4, table};

/// Every family, in the order of the tables.
pub static FAMILIES: &[&dyn Family] = &[
    &float32::Float32Family,
    &minifloat::NamedFamily,
    &minifloat::FreeFamily,
    &minifloat::QmlFamily,
    &cfloat::CFloatFamily,
    &table::TableFamily,
    &integer::SignedFamily,
    &integer::UnsignedFamily,
    &mx::MxFamily,
    &nvfp4::Nvfp4Family,
    &bfp::BfpFamily,
    &flexpoint::FlexpointFamily,
    &gguf::GgufFamily,
    &sign::SignFamily,
    &binary::BinaryFamily,
    &ternary::TernaryFamily,
    &terngrad::TernGradFamily,
    &onebit::OneBitFamily,
    &smaq::SmaqFamily,
    &s2fp8::S2fp8Family,
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
    /// The papers and specifications that it follows, in Markdown.
    fn source(&self) -> &'static str {
        ""
    }
    /// What the bytes of a tensor mean, in Markdown: a program that follows it reads them.
    ///
    /// Where members are scaled elements, this says what a code means; the parts around the codes are the same for all
    /// such families and follow from the format's [`Header`](crate::formats::Header). Any other codec says all, part by
    /// part with order and width; of numbers little-endian, and of codes packed as everywhere, only that they are.
    fn layout(&self) -> &'static str {
        ""
    }
    /// Reads a head such as `int8`: `None` if it is not of this family, an error if it is but cannot be.
    fn parse(&self, head: &str) -> Option<Result<Arc<dyn Codec>, HeadError>>;
    /// Names that other tools use for members, beside the member's own.
    fn synonyms(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
}
