//! Block formats: numpy and `ml_dtypes`, checked against torchao, gguf, gfloat and microxcaling.

use super::*;

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
    for row in rows(include_str!("blocks.csv"), 6) {
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
