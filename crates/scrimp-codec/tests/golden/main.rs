//! Bits from independent implementations: the scripts in `tools/` wrote the files beside this one, whose headers name the
//! libraries and their versions.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod blocks;
mod formats;
mod levels;
mod smaq;
mod stages;
mod tables;

use std::fmt::Debug;
use std::str::FromStr;

use scrimp_codec::{Params, Rounding, Scheme, Stream};

/// The rows of a golden file, without comments and the line of column names.
fn rows(text: &'static str, columns: usize) -> impl Iterator<Item = Vec<&'static str>> {
    text.lines().filter(|l| !l.starts_with('#')).skip(1).map(move |line| {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields.len(), columns, "{line}");
        fields
    })
}

fn parse<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e:?}"))
}

fn hex(text: &str) -> u32 {
    u32::from_str_radix(text, 16).unwrap()
}

fn floats(text: &str) -> Vec<f32> {
    text.split_whitespace().map(|w| f32::from_bits(hex(w))).collect()
}

/// NaN has many bit patterns and one meaning.
fn bits(x: f32) -> u32 {
    if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }
}

fn fnv1a64(words: impl IntoIterator<Item = u32>) -> u64 {
    fnv1a64_bytes(words.into_iter().flat_map(u32::to_le_bytes))
}

fn fnv1a64_bytes(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
