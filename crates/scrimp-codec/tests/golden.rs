//! Bits from independent implementations: the scripts in `tools/` wrote the files in `golden/`, whose headers name the
//! libraries and their versions.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

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
    words
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn every_code_of_the_small_formats_has_its_value() {
    let mut checked = 0;
    for row in rows(include_str!("golden/minifloat_values.csv"), 3) {
        let scheme: Scheme = parse(row[0]);
        let value = scheme.format().unwrap().decode(hex(row[1]), &Params::UNIT);
        let expected = if row[2] == "nan" { 0x7fc0_0000 } else { hex(row[2]) };
        assert_eq!(bits(value), expected, "{} code {}", row[0], row[1]);
        checked += 1;
    }
    assert!(checked > 2000);
}

#[test]
fn every_code_of_every_format_has_its_value_by_hash() {
    for row in rows(include_str!("golden/minifloat_hashes.csv"), 7) {
        let scheme: Scheme = parse(row[0]);
        let format = scheme.format().unwrap();
        let card = format.card();
        assert_eq!(card.exponent_bits, Some(parse(row[1])), "{}", row[0]);
        assert_eq!(card.mantissa_bits, Some(parse(row[2])), "{}", row[0]);
        assert_eq!(card.bias, Some(parse(row[3])), "{}", row[0]);
        let codes: u32 = parse(row[5]);
        assert_eq!(codes, 1 << format.bits(), "{}", row[0]);
        let hash = fnv1a64((0..codes).map(|c| bits(format.decode(c, &Params::UNIT))));
        assert_eq!(format!("{hash:016x}"), row[6], "{}", row[0]);
    }
}

#[test]
fn ties_thresholds_and_specials_get_the_codes_of_gfloat() {
    for row in rows(include_str!("golden/minifloat_encode.csv"), 4) {
        let x = f32::from_bits(hex(row[1]));
        for (word, expected) in [("sat", row[2]), ("ieee", row[3])] {
            if expected.is_empty() {
                continue;
            }
            let scheme: Scheme = parse(&format!("{}/{word}", row[0]));
            let code = scheme.format().unwrap().encode(x, &Params::UNIT, Rounding::NearestEven, 0);
            assert_eq!(code, hex(expected), "{scheme} of {x:e}");
        }
    }
}

/// Input `i` of the hashed encodings, as the file's header defines it.
fn hashed_input(i: u32, mantissa_bits: u32, low: u32, high: u32) -> f32 {
    if i < 65536 {
        let b = i << 16;
        return f32::from_bits(if b & 0x7fff_ffff > 0x7f80_0000 { 0 } else { b });
    }
    let mut h = i ^ (i >> 16);
    h = h.wrapping_mul(0x7feb_352d);
    h ^= h >> 15;
    h = h.wrapping_mul(0x846c_a68b);
    h ^= h >> 16;
    if i & 1 == 1 {
        h = (h & 0x807f_ffff) | ((low + ((h >> 23) & 255) % (high - low + 1)) << 23);
    }
    if i & 6 == 0 {
        h &= !((1 << (21 - mantissa_bits)) - 1);
    }
    if (h >> 23) & 255 == 255 {
        h = 0;
    }
    f32::from_bits(h)
}

#[test]
fn a_million_inputs_of_every_format_rounding_and_overflow_rule_get_the_codes_of_gfloat() {
    const BLOCK: u32 = 65536;
    let mut checked = 0;
    for row in rows(include_str!("golden/minifloat_encode_hashes.csv"), 10) {
        let rounding = match row[7] {
            "trunc" => "toward-zero",
            "half_away" => "half-away",
            other => other,
        };
        let scheme: Scheme = parse(&format!("{}/{rounding}/{}", row[0], row[8]));
        let format = scheme.format().unwrap();
        let (m, low, high) = (parse(row[2]), parse(row[5]), parse(row[6]));
        let stream = Stream::new(0, 0);
        for (block, expected) in row[9].split_whitespace().enumerate() {
            let first = u32::try_from(block).unwrap() * BLOCK;
            let inputs: Vec<f32> =
                (first..first + BLOCK).map(|i| hashed_input(i, m, low, high)).collect();
            let codes: Vec<u32> = inputs
                .iter()
                .map(|x| format.encode(*x, &Params::UNIT, scheme.rounding(), 0))
                .collect();
            let hash = fnv1a64(codes.iter().copied());
            assert_eq!(format!("{hash:016x}"), expected, "{scheme}, inputs from {first}");
            // The fast path gives the values of these codes.
            let mut emulated = inputs.clone();
            scheme.emulate(&mut emulated, &[inputs.len()], &stream).unwrap();
            for ((x, code), fast) in inputs.iter().zip(&codes).zip(&emulated) {
                let value = format.decode(*code, &Params::UNIT);
                assert_eq!(bits(value), bits(*fast), "{scheme} of {x:e} ({:08x})", x.to_bits());
            }
            checked += inputs.len();
        }
    }
    assert!(checked > 100 << 20, "{checked}");
}

#[test]
fn integer_schemes_give_the_scales_codes_and_values_of_onnx_and_numpy() {
    let mut seen = 0;
    for row in rows(include_str!("golden/integer.csv"), 9) {
        let [case, scheme, shape, input, scales, zeros, offsets, codes, decoded] = row[..] else {
            panic!("{row:?}")
        };
        let scheme: Scheme = parse(scheme);
        let shape: Vec<usize> =
            if shape == "scalar" { vec![] } else { shape.split('x').map(parse).collect() };
        let x = floats(input);
        let stream = Stream::new(0, 0);
        let mut bytes = Vec::new();
        scheme.encode(&x, &shape, &stream, &mut bytes).unwrap_or_else(|e| panic!("{case}: {e}"));
        let mut values = vec![0.0; x.len()];
        scheme.decode(&bytes, &shape, &mut values).unwrap();
        let mut emulated = x.clone();
        scheme.emulate(&mut emulated, &shape, &stream).unwrap();
        for (i, expected) in floats(decoded).into_iter().enumerate() {
            assert_eq!(values[i].to_bits(), expected.to_bits(), "{case}: element {i} of {}", x[i]);
            assert_eq!(emulated[i].to_bits(), expected.to_bits(), "{case}: emulated element {i}");
        }

        // The stored scales and offsets stand at the front of the bytes, the codes at the end.
        let offsets = floats(offsets);
        let scales = floats(scales);
        let bits = scheme.format().unwrap().bits() as usize;
        let code_bytes = (x.len() * bits).div_ceil(8);
        let zero_bytes = (zeros.split_whitespace().count() * bits).div_ceil(8);
        let front = bytes.len() - code_bytes - zero_bytes;
        if front == 4 * (scales.len() + offsets.len()) {
            let stored: Vec<u32> = bytes[..front]
                .chunks(4)
                .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            let expected: Vec<u32> = scales.iter().chain(&offsets).map(|s| s.to_bits()).collect();
            assert_eq!(stored, expected, "{case}: scales and offsets");
        }
        for (i, code) in codes.split_whitespace().enumerate() {
            let expected = parse::<i32>(code).cast_unsigned() & (u32::MAX >> (32 - bits));
            let at = i * bits;
            let stored = (0..bits).fold(0, |c, b| {
                let bit = bytes[bytes.len() - code_bytes + (at + b) / 8] >> ((at + b) % 8) & 1;
                c | u32::from(bit) << b
            });
            assert_eq!(stored, expected, "{case}: code {i}");
        }
        seen += 1;
    }
    assert!(seen > 80, "{seen}");
}

#[test]
fn philox_gives_the_words_of_randomgen() {
    for row in rows(include_str!("golden/philox.csv"), 3) {
        let words = |text: &str| text.split_whitespace().map(hex).collect::<Vec<u32>>();
        let (key, counter) = (words(row[0]), words(row[1]));
        let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let stream = Stream::new(key[0], key[1]).at_step(wide(counter[0], counter[1]));
        assert_eq!(stream.words(wide(counter[2], counter[3])).to_vec(), words(row[2]));
    }
}

#[test]
fn stochastic_rounding_equals_exact_rational_arithmetic() {
    for row in rows(include_str!("golden/stochastic.csv"), 3) {
        let v = f32::from_bits(hex(row[0]));
        let rounded = Rounding::Stochastic.round(f64::from(v), parse(row[1]));
        assert_eq!(rounded, parse::<f64>(row[2]), "{v:e} with {}", row[1]);
    }
}

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
    for row in rows(include_str!("golden/table_levels.csv"), 2) {
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
    for row in rows(include_str!("golden/table.csv"), 6) {
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
    for row in rows(include_str!("golden/gguf.csv"), 5) {
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
    for row in rows(include_str!("golden/cfloat_codes.csv"), 6) {
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
    for row in rows(include_str!("golden/cfloat_bias.csv"), 3) {
        let scheme: Scheme = parse(row[0]);
        let (bytes, _) = round_trip(&scheme, &floats(row[1]));
        assert_eq!(bytes[0], parse::<u8>(row[2]), "{scheme} of {}", row[1]);
    }
}

#[test]
fn flexpoint_predicts_the_exponents_of_autoflex() {
    let mut memory = None;
    for row in rows(include_str!("golden/flexpoint.csv"), 6) {
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

/// Bits of input `i` of the block formats, as the file's header defines them.
fn block_input(i: u32, window: Option<(u32, u32)>) -> f32 {
    #[rustfmt::skip]
    const MANTISSAS: [u32; 20] = [
        0x7f_ffff, 0x7f_fffe, 0x40_0000, 0x3f_ffff, 0x40_0001, 0x60_0000, 0x5f_ffff, 0x60_0001, 0x70_0000, 0x6f_ffff,
        0x78_0000, 0x77_ffff, 0x7c_0000, 0x7e_0000, 0x7d_ffff, 0x7e_0001, 0x7f_0000, 0x7e_ffff, 0, 1,
    ];
    fn mix(mut h: u32) -> u32 {
        h = (h ^ h >> 16).wrapping_mul(0x7feb_352d);
        h = (h ^ h >> 15).wrapping_mul(0x846c_a68b);
        h ^ h >> 16
    }
    let block = i / 32;
    let (h, k) = (mix(i), mix(block ^ 0x9e37_79b9));
    let (sign, mantissa, draw) = (h & 0x8000_0000, h & 0x7f_ffff, h >> 23 & 15);
    let base = (k >> 8) % 254 + 1;
    let float = |exponent: u32, mantissa| sign | exponent << 23 | mantissa;
    let near = float(base.saturating_sub(draw), mantissa);
    let bits = match block % 8 {
        0 => near,
        1 => {
            if h >> 23 & 255 == 255 {
                0
            } else {
                h
            }
        }
        2 => h & 0x807f_ffff,
        3 if i % 32 == k % 32 => float(base, MANTISSAS[(k >> 16) as usize % MANTISSAS.len()]),
        3 => float(base.saturating_sub(draw + 1), mantissa),
        4 => near & !0x3_ffff,
        5 => {
            if h & 3 != 0 || k & 1 == 0 {
                sign
            } else {
                near
            }
        }
        6 => float(254 - (draw & 7), mantissa),
        _ => float(draw & 3, mantissa),
    };
    let exponent = bits >> 23 & 255;
    f32::from_bits(match window {
        Some((low, extent)) if exponent > 0 => {
            bits & 0x807f_ffff | (low + (exponent - 1) % extent) << 23
        }
        _ => bits,
    })
}

/// The hash of many bytes, as the file's header defines it.
fn hash_of_parts(bytes: &[u8]) -> String {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(256), 0);
    let words = |bytes: &[u8]| -> Vec<u32> {
        bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    };
    let parts: Vec<u8> = padded
        .chunks(padded.len() / 64)
        .flat_map(|part| fnv1a64(words(part)).to_le_bytes())
        .collect();
    format!("{:016x}", fnv1a64(words(&parts)))
}

#[test]
fn a_million_values_in_blocks_have_the_bytes_of_numpy_and_ml_dtypes() {
    let (mut seen, mut checked) = (0, 0);
    for row in rows(include_str!("golden/blocks.csv"), 6) {
        let [scheme, shape, window, told, encoded, decoded] = row[..] else { panic!("{row:?}") };
        let scheme: Scheme = parse(scheme);
        let shape: Vec<usize> = shape.split('x').map(parse).collect();
        let window = window.split_once(':').map(|(low, extent)| (parse(low), parse(extent)));
        let count: usize = shape.iter().product();
        let x: Vec<f32> =
            (0..u32::try_from(count).unwrap()).map(|i| block_input(i, window)).collect();
        let stream = Stream::new(0, 0);
        let mut bytes = Vec::new();
        scheme.encode(&x, &shape, &stream, &mut bytes).unwrap();
        if !told.is_empty() {
            let pairs = told.as_bytes().as_chunks::<2>().0;
            let octets = pairs.iter().map(|pair| hex(std::str::from_utf8(pair).unwrap()));
            assert!(octets.eq(bytes.iter().map(|b| u32::from(*b))), "{scheme} {shape:?}");
        }
        assert_eq!(hash_of_parts(&bytes), encoded, "{scheme} {shape:?}: bytes");
        let mut values = vec![0.0; count];
        scheme.decode(&bytes, &shape, &mut values).unwrap();
        let mut emulated = x;
        scheme.emulate(&mut emulated, &shape, &stream).unwrap();
        for (way, values) in [("decoded", values), ("emulated", emulated)] {
            let octets: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(hash_of_parts(&octets), decoded, "{scheme} {shape:?}: {way}");
        }
        (seen, checked) = (seen + 1, checked + count);
    }
    assert!(seen > 140 && checked > 90 << 20, "{seen} {checked}");
}
