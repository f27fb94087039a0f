//! Tables, configurable floats and Flexpoint: bitsandbytes, gguf, gfloat, numpy.

use super::*;
use crate::formats::hashed_input;

/// The inputs of a kind, as the headers of `table.csv` and `gguf.csv` define them.
fn table_inputs(kind: &str) -> Vec<f32> {
    let mix = |i: u32| {
        let mut h = i ^ (i >> 16);
        h = h.wrapping_mul(0x7feb_352d);
        h ^= h >> 15;
        h = h.wrapping_mul(0x846c_a68b);
        h ^ (h >> 16)
    };
    (0..1u32 << 20)
        .map(|i| {
            let u = mix(i).cast_signed() as f32 / 2_147_483_648.0;
            let g = mix((i / 64).wrapping_add(0x9e37_79b9));
            match kind {
                "unit" if i % 64 == 0 => 1.0,
                "steps" if i % 64 == 0 => 1.0 + (g % 256) as f32 / 64.0,
                "scattered" => {
                    let power = 2f64.powi((g % 34).cast_signed() - 20);
                    #[expect(clippy::cast_possible_truncation, reason = "rounded as the file says")]
                    let factor = (power * (1.0 + f64::from(g >> 8) / 16_777_216.0)) as f32;
                    u * factor
                }
                _ => u,
            }
        })
        .collect()
}

fn hashes(words: &[u32], len: usize) -> Vec<String> {
    words.chunks(len).map(|w| format!("{:016x}", fnv1a64(w.iter().copied()))).collect()
}

/// The bytes of a tensor of one axis, and their values, which are those of emulation too.
fn round_trip(scheme: &Scheme, x: &[f32]) -> (Vec<u8>, Vec<u32>) {
    let (stream, shape) = (Stream::new(0, 0), [x.len()]);
    let mut bytes = Vec::new();
    scheme.encode(x, &shape, &stream, &mut bytes).unwrap();
    let mut values = vec![0.0; x.len()];
    scheme.decode(&bytes, &shape, &mut values).unwrap();
    let mut emulated = x.to_vec();
    scheme.emulate(&mut emulated, &shape, &stream).unwrap();
    let values: Vec<u32> = values.into_iter().map(f32::to_bits).collect();
    assert!(emulated.iter().map(|v| v.to_bits()).eq(values.iter().copied()), "{scheme}");
    (bytes, values)
}

#[test]
fn the_levels_of_tables_are_those_of_bitsandbytes() {
    for row in rows(include_str!("table_levels.csv"), 2) {
        let scheme: Scheme = parse(row[0]);
        let format = scheme.format().unwrap();
        let levels: Vec<u32> = row[1].split_whitespace().map(hex).collect();
        assert_eq!(levels.len(), 1 << format.bits());
        for (code, level) in (0..).zip(levels) {
            let ours = format.decode(code, &Params::UNIT);
            assert_eq!(ours.to_bits(), level, "{scheme} code {code}: {ours:e}");
        }
    }
}

#[test]
fn a_million_values_of_every_table_are_those_of_bitsandbytes() {
    for row in rows(include_str!("table.csv"), 6) {
        let scheme: Scheme = parse(row[0]);
        let (bytes, values) = round_trip(&scheme, &table_inputs(row[1]));
        let first: Vec<u32> = row[4].split_whitespace().map(hex).collect();
        if !row[0].ends_with("double") {
            for (stored, scale) in bytes.as_chunks::<4>().0.iter().zip(first) {
                assert_eq!(u32::from_le_bytes(*stored), scale, "{scheme} {}", row[1]);
            }
        }
        let expected: Vec<&str> = row[5].split_whitespace().collect();
        assert_eq!(hashes(&values, 1 << 16), expected, "{scheme} {}", row[1]);
    }
}

#[test]
fn gguf_blocks_have_the_bytes_and_values_of_gguf() {
    for row in rows(include_str!("gguf.csv"), 5) {
        let scheme: Scheme = parse(row[0]);
        let (bytes, values) = round_trip(&scheme, &table_inputs(row[1]));
        for (byte, expected) in bytes.iter().zip(row[2].split_whitespace()) {
            assert_eq!(u32::from(*byte), hex(expected), "{scheme} {}", row[1]);
        }
        let words: Vec<u32> =
            bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let expected: Vec<&str> = row[3].split_whitespace().collect();
        assert_eq!(hashes(&words, words.len() / 16), expected, "{scheme} {} bytes", row[1]);
        let expected: Vec<&str> = row[4].split_whitespace().collect();
        assert_eq!(hashes(&values, values.len() / 16), expected, "{scheme} {} values", row[1]);
    }
}

#[test]
fn configurable_floats_get_the_codes_of_gfloat() {
    const BLOCK: u32 = 65536;
    for row in rows(include_str!("cfloat_codes.csv"), 6) {
        let rounding = match row[4] {
            "trunc" => "toward-zero",
            "half_away" => "half-away",
            other => other,
        };
        let scheme: Scheme = parse(&format!("{}/{rounding}", row[0]));
        let (m, low, high) = (parse(row[1]), parse(row[2]), parse(row[3]));
        for (block, expected) in row[5].split_whitespace().enumerate() {
            let first = u32::try_from(block).unwrap() * BLOCK;
            let x: Vec<f32> =
                (first..first + BLOCK).map(|i| hashed_input(i, m, low, high)).collect();
            let (bytes, _) = round_trip(&scheme, &x);
            // One byte of bias, then the codes.
            let width = scheme.format().unwrap().bits() as usize / 8;
            let codes = bytes[1..]
                .chunks(width)
                .map(|c| c.iter().rev().fold(0, |code, b| code << 8 | u32::from(*b)));
            assert_eq!(format!("{:016x}", fnv1a64(codes)), expected, "{scheme}, from {first}");
        }
    }
}

#[test]
fn the_bias_of_configurable_floats_follows_the_rule() {
    for row in rows(include_str!("cfloat_bias.csv"), 3) {
        let scheme: Scheme = parse(row[0]);
        let (bytes, _) = round_trip(&scheme, &floats(row[1]));
        assert_eq!(bytes[0], parse::<u8>(row[2]), "{scheme} of {}", row[1]);
    }
}

#[test]
fn flexpoint_predicts_the_exponents_of_autoflex() {
    let mut memory = None;
    for row in rows(include_str!("flexpoint.csv"), 6) {
        let scheme: Scheme = parse(row[0]);
        if row[1] == "0" {
            memory = scheme.memory(&[4]).unwrap();
        }
        let mut bytes = Vec::new();
        let (x, stream) = (floats(row[2]), Stream::new(0, 0));
        scheme.encode_next(&x, &[4], &stream, memory.as_mut(), &mut bytes).unwrap();
        let bias = i32::from(i16::from_le_bytes([bytes[0], bytes[1]]));
        assert_eq!(bias, parse::<i32>(row[3]), "{scheme} step {}", row[1]);
        assert_eq!(bias + i32::from(bytes[2]), parse::<i32>(row[4]), "{scheme} step {}", row[1]);
        let mut values = [0.0; 4];
        scheme.decode(&bytes, &[4], &mut values).unwrap();
        for (value, mantissa) in values.iter().zip(row[5].split_whitespace()) {
            let expected = parse::<f64>(mantissa) * 2f64.powi(parse(row[4]));
            assert_eq!(f64::from(*value), expected, "{scheme} step {}", row[1]);
        }
    }
}
