//! SmaQ and S2FP8: a second derivation in numpy. SmaQ's small floats: qtorch.

use super::*;

/// The hash of a word that `smaq.csv` and `qtorch.csv` define.
fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x7feb_352d);
    h ^= h >> 15;
    h = h.wrapping_mul(0x846c_a68b);
    h ^ h >> 16
}

/// Input `i` of a row of `smaq.csv`.
fn smaq_input(kind: &str, i: u32) -> f32 {
    let h = mix(2 * i + 1);
    if kind == "wide" {
        return f32::from_bits(h & 0x807f_ffff | (96 + (h >> 23 & 63)) << 23);
    }
    let octets = h.to_le_bytes().into_iter().map(i32::from).sum::<i32>() - 510;
    let whole = octets * 65536 + (mix(2 * i) & 0xffff).cast_signed();
    let bell = whole as f32 * 2f32.powi(-23);
    match kind {
        "relu" if bell > 0.0 => bell,
        "relu" => 0.0,
        "tails" if h.is_multiple_of(97) => bell * 8.0,
        "shifted" => bell * 0.001 + 5.0,
        _ => bell,
    }
}

#[test]
fn smaq_and_s2fp8_give_the_bytes_and_values_of_numpy() {
    let stream = Stream::new(7, 3).at_step(11);
    let mut checked = 0;
    for row in rows(include_str!("smaq.csv"), 6) {
        let scheme: Scheme = parse(&row[0].replace(' ', ","));
        let shape: Vec<usize> = row[2].split('x').map(parse).collect();
        let n = shape.iter().product::<usize>();
        let x: Vec<f32> = (0..u32::try_from(n).unwrap()).map(|i| smaq_input(row[1], i)).collect();
        let mut bytes = Vec::new();
        scheme.encode(&x, &shape, &stream, &mut bytes).unwrap();
        assert_eq!(bytes.len(), parse::<usize>(row[3]), "{row:?}");
        let hash = fnv1a64(bytes.iter().copied().map(u32::from));
        assert_eq!(format!("{hash:016x}"), row[4], "bytes of {row:?}");
        let mut values = vec![0.0; n];
        scheme.decode(&bytes, &shape, &mut values).unwrap();
        let hash = fnv1a64(values.iter().map(|v| v.to_bits()));
        assert_eq!(format!("{hash:016x}"), row[5], "values of {row:?}");
        let mut emulated = x;
        scheme.emulate(&mut emulated, &shape, &stream).unwrap();
        assert_eq!(values, emulated, "{row:?}");
        checked += n;
    }
    assert!(checked > 1 << 20, "{checked}");
}

#[test]
fn the_small_floats_of_smaq_are_those_of_qtorch() {
    for row in rows(include_str!("qtorch.csv"), 4) {
        let scheme: Scheme = parse(row[0]);
        let (low, high): (u32, u32) = (parse(row[1]), parse(row[2]));
        let input = |i| {
            let h = mix(i);
            f32::from_bits(h & 0x807f_ffff | (low + (h >> 23 & 255) % (high - low + 1)) << 23)
        };
        let mut x: Vec<f32> = (0..1 << 18).map(input).collect();
        scheme.emulate(&mut x, &[1 << 18], &Stream::new(0, 0)).unwrap();
        let hash = fnv1a64(x.iter().map(|v| v.to_bits()));
        assert_eq!(format!("{hash:016x}"), row[3], "{scheme}");
    }
}
