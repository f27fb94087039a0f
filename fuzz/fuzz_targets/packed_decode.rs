//! Any bytes decode or are refused, and bytes of the wrong length are always refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scrimp_codec::Scheme;

/// Schemes of every family, granularity and scale.
const SCHEMES: [&str; 24] = [
    "f32",
    "int8",
    "int8/channel",
    "int4/group:3",
    "int4/group:128",
    "int3/tile:2x3",
    "int8/axis:1",
    "int5/flat:4",
    "int8/row",
    "int8/scale:f16",
    "int8/scale:bf16",
    "int8/scale:pow2",
    "uint8",
    "uint4/channel",
    "uint8/qml/row",
    "int8/full",
    "e4m3fn",
    "e5m2/channel",
    "e4m3fn/tensor",
    "fp:e3m4",
    "fp:e2m1/group:16",
    "f16",
    "bf16",
    "int16",
];

fuzz_target!(|input: (u8, [u8; 4], u8, &[u8])| {
    let (scheme, extents, rank, bytes) = input;
    let text = SCHEMES[usize::from(scheme) % SCHEMES.len()];
    let scheme: Scheme = text.parse().expect("every scheme of the list");
    let shape: Vec<usize> = extents.iter().map(|&extent| usize::from(extent % 24)).collect();
    let shape = &shape[..usize::from(rank % 5)];
    let Ok(expected) = scheme.size(shape) else { return };
    let mut packed = bytes.to_vec();
    // Mostly the right length, which is where the decoder's work begins.
    if rank & 0x80 == 0 {
        packed.resize(expected, 0x3f);
    }
    let values = shape.iter().product();
    let mut out = vec![0.0; values];
    let decoded = scheme.decode(&packed, shape, &mut out);
    assert!(decoded.is_err() || packed.len() == expected);
});
