//! Small floats, integers, random numbers and rounding: gfloat, `ml_dtypes`, onnx, numpy, randomgen.

use super::*;

#[test]
fn every_code_of_the_small_formats_has_its_value() {
    let mut checked = 0;
    for row in rows(include_str!("minifloat_values.csv"), 3) {
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
    for row in rows(include_str!("minifloat_hashes.csv"), 7) {
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
    for row in rows(include_str!("minifloat_encode.csv"), 4) {
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
pub fn hashed_input(i: u32, mantissa_bits: u32, low: u32, high: u32) -> f32 {
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
    for row in rows(include_str!("minifloat_encode_hashes.csv"), 10) {
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
    for row in rows(include_str!("integer.csv"), 9) {
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
    for row in rows(include_str!("philox.csv"), 3) {
        let words = |text: &str| text.split_whitespace().map(hex).collect::<Vec<u32>>();
        let (key, counter) = (words(row[0]), words(row[1]));
        let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let stream = Stream::new(key[0], key[1]).at_step(wide(counter[0], counter[1]));
        assert_eq!(stream.words(wide(counter[2], counter[3])).to_vec(), words(row[2]));
    }
}

#[test]
fn stochastic_rounding_equals_exact_rational_arithmetic() {
    for row in rows(include_str!("stochastic.csv"), 3) {
        let v = f32::from_bits(hex(row[0]));
        let rounded = Rounding::Stochastic.round(f64::from(v), parse(row[1]));
        assert_eq!(rounded, parse::<f64>(row[2]), "{v:e} with {}", row[1]);
    }
}
