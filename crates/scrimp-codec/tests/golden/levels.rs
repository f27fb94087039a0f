//! Codecs of one and two bits, and sparse ones: torch.

use super::*;

/// Values by the rules of the header of `levels.csv`.
fn made(rule: &str) -> Vec<f32> {
    let fields: Vec<&str> = rule.split(':').collect();
    let (n, salt): (u32, u32) = (parse(fields[1]), parse(fields[2]));
    let value = |i: u32| {
        let mut h = i.wrapping_add(salt.wrapping_mul(0x9e37_79b9));
        h ^= h >> 16;
        h = h.wrapping_mul(0x7feb_352d);
        h ^= h >> 15;
        h = h.wrapping_mul(0x846c_a68b);
        h ^= h >> 16;
        match fields[0] {
            "bell" => {
                let sum: u16 = h.to_le_bytes().into_iter().map(u16::from).sum();
                (f32::from(sum) - 510.0) / 64.0
            }
            "wide" => f32::from_bits((h & 0x807f_ffff) | ((100 + (h >> 23) % 32) << 23)),
            "few" if h % 50 == 0 => f32::from_bits(h & 0xbfff_ffff),
            "few" => f32::from_bits(h & 0x8000_0000),
            _ if (h >> 23) & 255 == 255 => 0.0,
            _ => f32::from_bits(h),
        }
    };
    (0..n).map(value).collect()
}

/// The hash of each 65536 words, the last filled with zeros.
fn hashes(bytes: &[u8]) -> Vec<String> {
    let block = 4 * 65536;
    bytes
        .chunks(block)
        .map(|part| {
            let mut part = part.to_vec();
            part.resize(block, 0);
            let words = part.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
            format!("{:016x}", fnv1a64(words))
        })
        .collect()
}

#[test]
fn few_levels_and_few_elements_have_the_bytes_and_values_of_torch() {
    let (mut seen, mut values) = (0, 0);
    let mut memory = None;
    for row in rows(include_str!("levels.csv"), 8) {
        let [case, scheme, shape, stream, input, length, expected, decoded] = row[..] else {
            panic!("{row:?}")
        };
        let case = format!("{case} in {scheme}");
        let scheme: Scheme = parse(scheme);
        let shape: Vec<usize> = shape.split('x').map(parse).collect();
        let key: Vec<u64> = stream.split(' ').map(parse).collect();
        let stream = Stream::new(u32::try_from(key[0]).unwrap(), u32::try_from(key[1]).unwrap())
            .at_step(key[2]);
        let by_rule = input.contains(':');
        let x = if by_rule { made(input) } else { floats(input) };
        // A memory goes on from one step to the next; what has no steps is the first.
        if !row[0].contains('.') || row[0].ends_with(".0") {
            memory = scheme.memory(&shape).unwrap();
        }
        let mut twin = memory.clone();
        let mut bytes = Vec::new();
        scheme
            .encode_next(&x, &shape, &stream, memory.as_mut(), &mut bytes)
            .unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(bytes.len(), parse::<usize>(length), "{case}");
        let mut back = vec![0.0; x.len()];
        scheme.decode(&bytes, &shape, &mut back).unwrap_or_else(|e| panic!("{case}: {e}"));
        let mut emulated = x.clone();
        scheme.emulate_next(&mut emulated, &shape, &stream, twin.as_mut()).unwrap();
        assert!(emulated.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()), "{case}");
        assert_eq!(twin, memory, "{case}");
        let value_bytes: Vec<u8> = back.iter().flat_map(|v| v.to_le_bytes()).collect();
        if by_rule {
            let expected: Vec<&str> = expected.split(' ').collect();
            let decoded: Vec<&str> = decoded.split(' ').collect();
            assert_eq!(hashes(&value_bytes), decoded, "{case}: values");
            assert_eq!(hashes(&bytes), expected, "{case}: bytes");
        } else {
            let text: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(text.concat(), expected, "{case}: bytes, for {x:?} and {back:?}");
            let decoded: Vec<u32> = floats(decoded).iter().map(|v| v.to_bits()).collect();
            let back: Vec<u32> = back.iter().map(|v| v.to_bits()).collect();
            assert_eq!(back, decoded, "{case}: values");
        }
        (seen, values) = (seen + 1, values + x.len());
    }
    assert!(seen > 250 && values > 50 << 20, "{seen} tensors of {values} values");
}
