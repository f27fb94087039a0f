//! Stages over codes: numpy and `ml_dtypes`.

use super::*;

/// Output `index` of splitmix64 with seed 0.
fn splitmix(index: u64) -> u64 {
    let z = (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// An input of the stages' golden file, whose header says how it comes about.
fn staged_input(kind: &str, bits: u32, i: u64) -> i64 {
    let (r, half) = (splitmix(i), (1u64 << (bits - 1)) - 1);
    let any = |r: u64| (r % (2 * half + 1)).cast_signed() - half.cast_signed();
    match kind {
        "uniform" => any(r),
        "peaked" => {
            let m = ((r >> 16) % (1 << (r % u64::from(bits)))).cast_signed();
            if r >> 15 & 1 == 1 { -m } else { m }
        }
        "lines" => {
            let p = splitmix((1 << 42) + i / 32);
            let q = 1 << (p % 4);
            let mut v = any(splitmix((1 << 43) + i / 32 * 8 + i % q));
            if i.is_multiple_of(q) && p >> 6 & 1 == 1 {
                v += ((r >> 8) % 16).cast_signed() - 8;
            }
            let zero = (p >> 4).is_multiple_of(4) && i / q % 2 == 1 || (p >> 8).is_multiple_of(8);
            if zero { 0 } else { v.clamp(-half.cast_signed(), half.cast_signed()) }
        }
        "clusters" if r.is_multiple_of(8) => 0,
        "clusters" => {
            let near = any(splitmix((1 << 40) + i / 64)) + ((r >> 8) % 16).cast_signed() - 8;
            near.clamp(-half.cast_signed(), half.cast_signed())
        }
        _ => panic!("{kind}"),
    }
}

#[test]
fn stages_write_the_bytes_that_their_layout_says() {
    let mut checked = 0;
    for row in rows(include_str!("stages.csv"), 6) {
        let [scheme, kind, count, bytes, bytes_hash, values_hash] = row[..] else {
            panic!("{row:?}")
        };
        let (scheme, count): (Scheme, u64) = (parse(scheme), parse(count));
        let format = scheme.format().unwrap();
        let name = format.name();
        let half = (1i64 << (format.bits() - 1)) - 1;
        let x: Vec<f32> = (0..count)
            .map(|i| {
                let v = staged_input(kind, format.bits(), i);
                let v = match (i, i % 1000) {
                    _ if !name.contains("int") => {
                        let code = u32::try_from(v.rem_euclid(256)).unwrap();
                        let code = if code % 128 == 127 { 0 } else { code };
                        return format.decode(code, &Params::UNIT);
                    }
                    (_, at) if name.starts_with('u') => {
                        let low = -(splitmix((1 << 41) + i / 1000) % 256).cast_signed();
                        match at {
                            0 => low,
                            1 => low + 255,
                            _ => v.clamp(low, low + 255),
                        }
                    }
                    (0, _) => half,
                    (1, _) => -half,
                    _ => v,
                };
                f32::from(i16::try_from(v).unwrap())
            })
            .collect();
        let mut encoded = Vec::new();
        scheme.encode(&x, &[x.len()], &Stream::new(0, 0), &mut encoded).unwrap();
        assert_eq!(encoded.len(), parse::<usize>(bytes), "{scheme} {kind}");
        assert_eq!(
            format!("{:016x}", fnv1a64_bytes(encoded.iter().copied())),
            bytes_hash,
            "{scheme} {kind}"
        );
        let mut decoded = vec![0.0; x.len()];
        scheme.decode(&encoded, &[x.len()], &mut decoded).unwrap();
        let values = decoded.iter().flat_map(|v| v.to_le_bytes());
        assert_eq!(format!("{:016x}", fnv1a64_bytes(values)), values_hash, "{scheme} {kind}");
        checked += x.len();
    }
    assert!(checked > 1 << 20, "{checked}");
}
