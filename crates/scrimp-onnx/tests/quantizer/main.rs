//! Post-training quantization from outside: what other implementations say, small graphs, and the models of `SCRIMP_DATA`.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    reason = "a test fails by panicking, says why it is skipped, and its numbers are small"
)]

mod calibration;
mod elements;
mod graphs;
mod models;
mod passes;
mod peers;
mod plan;
mod simplify;
mod wrong_input;

use std::fmt::Debug;
use std::str::FromStr;

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

fn floats(text: &str) -> Vec<f32> {
    let float = |word| f32::from_bits(u32::from_str_radix(word, 16).unwrap());
    text.split_whitespace().map(float).collect()
}

/// The hash of a word that the golden files define.
fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x7feb_352d);
    h ^= h >> 15;
    h = h.wrapping_mul(0x846c_a68b);
    h ^ h >> 16
}

/// Value `i` of a sequence that is close to normal, with a spread of 1.
fn bell(i: u32) -> f32 {
    let words = [0, 1, 2, 3].map(|k| mix(i.wrapping_mul(4).wrapping_add(k)));
    let octets: i32 = words[..3].iter().flat_map(|w| w.to_le_bytes()).map(i32::from).sum();
    let whole = (octets - 1530) * 65536 + (words[3] & 0xffff).cast_signed();
    whole as f32 * 2f32.powi(-24)
}
