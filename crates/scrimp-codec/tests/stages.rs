//! What holds for every stage after every format: each row of `STAGES` crossed with members of all families.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use scrimp_codec::stages::{CHUNK_ELEMS, entropy_bits};
use scrimp_codec::{FAMILIES, Rounding, STAGES, Scheme, Stream};

/// Every word of a stage that members name, and options that no member has.
fn words() -> Vec<String> {
    let more = ["nnw:8", "nnw:1024:first", "nnw:sb1:sd1", "nnw:32:si1", "nnw:si1:sb1:first"];
    STAGES.iter().flat_map(|s| s.members()).chain(&more).map(|w| (*w).to_owned()).collect()
}

/// Every member of a family that a stage may follow, without and with it.
fn pairs() -> Vec<(Scheme, Scheme)> {
    let mut pairs = Vec::new();
    for member in FAMILIES.iter().flat_map(|f| f.members()) {
        let plain: Scheme = member.parse().unwrap();
        if !plain.codec().takes_stages() {
            continue;
        }
        for word in words() {
            // Some codes cannot be shifted, or are too wide; that is said, and tested beside the stage.
            if let Ok(staged) = format!("{member}/{word}").parse::<Scheme>() {
                pairs.push((plain.clone(), staged));
            }
        }
    }
    pairs
}

/// Whether codes come back as they were.
fn lossless(scheme: &Scheme) -> bool {
    !scheme.to_string().contains(":si") && !scheme.to_string().contains(":sd")
}

fn with_words(scheme: &Scheme, words: &str) -> Scheme {
    format!("{scheme}{words}").parse().unwrap_or_else(|e| panic!("{e}"))
}

fn any_pair() -> impl Strategy<Value = (Scheme, Scheme)> {
    let granularity = prop::sample::select(vec![
        "",
        "/tensor",
        "/channel",
        "/axis:1",
        "/row",
        "/group:5",
        "/flat:3",
        "/tile:2x3",
    ]);
    let rounding = prop::sample::select(Rounding::WORDS.map(|(w, _)| w).to_vec());
    (prop::sample::select(pairs()), granularity, rounding).prop_map(|((plain, staged), g, r)| {
        let takes = plain.codec().defaults();
        let rounding = if takes.rounding.is_some() { format!("/{r}") } else { String::new() };
        let words = format!("{g}{rounding}");
        (with_words(&plain, &words), with_words(&staged, &words))
    })
}

fn any_tensor() -> impl Strategy<Value = (Vec<usize>, Vec<f32>)> {
    let shape = prop_oneof![
        6 => prop::collection::vec(1usize..9, 2..5),
        2 => (1usize..4, 60usize..400).prop_map(|(a, b)| vec![a, b]),
        1 => prop::collection::vec(0usize..3, 2..4),
    ];
    shape.prop_flat_map(|shape| {
        let n = shape.iter().product::<usize>();
        let spread = prop::collection::vec(-2.0f32..2.0, n);
        let value = prop_oneof![
            5 => -0.1f32..0.1, 3 => Just(0.0), 1 => 1.9f32..2.0, 1 => -5.0f32..5.0,
            1 => prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL,
        ];
        let clustered = prop::collection::vec(value, n);
        let constant = (-3.0f32..3.0).prop_map(move |v| vec![v; n]);
        (Just(shape), prop_oneof![3 => spread, 6 => clustered, 1 => constant])
    })
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn emulation_is_the_bytes_and_codes_come_back(
        (plain, staged) in any_pair(), (shape, x) in any_tensor(), seed: u32,
    ) {
        let stream = Stream::named(seed, "w").at_step(3);
        let mut before = Vec::new();
        prop_assume!(plain.encode(&x, &shape, &stream, &mut before).is_ok());
        let mut bytes = vec![7];
        staged.encode(&x, &shape, &stream, &mut bytes).unwrap();
        prop_assert_eq!(bytes.remove(0), 7);
        prop_assert!(staged.size(&shape).unwrap().contains(bytes.len()), "{} {:?}", staged, shape);
        let mut decoded = vec![0.0; x.len()];
        staged.decode(&bytes, &shape, &mut decoded).unwrap();
        let mut emulated = x.clone();
        staged.emulate(&mut emulated, &shape, &stream).unwrap();
        prop_assert_eq!(bits(&emulated), bits(&decoded), "{} {:?} {:?}", staged, shape, x);
        let (codes, stored) = (plain.codes(&before, &shape).unwrap(), staged.codes(&bytes, &shape).unwrap());
        if lossless(&staged) {
            prop_assert_eq!(codes, stored, "{}", staged);
            let mut values = vec![0.0; x.len()];
            plain.decode(&before, &shape, &mut values).unwrap();
            prop_assert_eq!(bits(&values), bits(&decoded), "{}", staged);
        }
    }

    #[test]
    fn any_bytes_decode_or_fail(
        (_, staged) in any_pair(), (shape, x) in any_tensor(), noise in prop::collection::vec(any::<u8>(), 0..300),
        changed in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut in 0usize..9, from_true: bool,
    ) {
        let n: usize = shape.iter().product();
        let mut bytes = noise;
        if from_true {
            bytes.clear();
            let _ = staged.encode(&x, &shape, &Stream::new(0, 0), &mut bytes);
            bytes.truncate(bytes.len().saturating_sub(cut));
            for (at, value) in changed {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = value;
                }
            }
        } else {
            let size = staged.size(&shape).unwrap();
            bytes.resize(bytes.len().clamp(size.least, size.most), 0x3c);
        }
        let mut out = vec![0.0; n];
        let _ = staged.decode(&bytes, &shape, &mut out);
    }
}

#[test]
fn stages_print_as_they_are_read_in_any_order_of_words() {
    for (plain, staged) in pairs() {
        assert_eq!(staged.to_string().parse::<Scheme>().unwrap(), staged);
        assert_eq!(staged.card().name, staged.to_string());
        assert_eq!(staged.card().bits, plain.card().bits);
    }
    let print = |text: &str| text.parse::<Scheme>().unwrap().to_string();
    assert_eq!(print("int8/channel/nnw/full"), "int8/full/nnw/channel");
    assert_eq!(print("uint4/rans/qml"), "uint4/qml/rans");
    assert_eq!(print("int8/nnw:first:sd1:32/stochastic"), "int8/nnw:32:sd1:first/stochastic");
    assert_eq!(print("e4m3fn/rans/nonfinite:propagate"), "e4m3fn/rans/nonfinite:propagate");
    for (text, part) in [
        ("int8/nnw/bdi", "`nnw` already"),
        ("int8/nnw:63", "multiple of 8"),
        ("int8/bdi:16", "32 or 64"),
        ("int4/nnw:si2:sd2", "cannot be shifted"),
        ("e4m3fn/nnw:sd1", "integer format"),
        ("f32/rans", "write `f32`"),
        ("int8/nwn", "`nnw`"),
        ("int8/zstd", "rans"),
    ] {
        let error = text.parse::<Scheme>().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// Values whose codes gather near zero, with zeros and single large ones.
fn weights(n: usize) -> Vec<f32> {
    let stream = Stream::new(3, 4);
    let one = |i: u64| {
        let u = stream.uniform(2 * i).mul_add(2.0, -1.0);
        match stream.draw(2 * i + 1) % 50 {
            0..8 => 0.0,
            8 => 4.0 * u,
            _ => u * u * u,
        }
    };
    (0..n as u64).map(one).collect()
}

#[test]
fn threads_change_nothing_and_chunks_may_be_ragged() {
    for n in [1, CHUNK_ELEMS - 1, CHUNK_ELEMS, CHUNK_ELEMS + 1, 5 * CHUNK_ELEMS + 777] {
        let x = weights(n);
        for word in words() {
            for head in [
                "int8/flat:50",
                "uint8/flat:50/stochastic",
                "uint5",
                "int12",
                "int4/stochastic",
                "e4m3fn",
            ] {
                let Ok(scheme) = format!("{head}/{word}").parse::<Scheme>() else { continue };
                let stream = Stream::named(9, "x");
                let run = |threads: usize| {
                    let pool =
                        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| {
                        let mut bytes = Vec::new();
                        scheme.encode(&x, &[n], &stream, &mut bytes).unwrap();
                        let mut emulated = x.clone();
                        scheme.emulate(&mut emulated, &[n], &stream).unwrap();
                        let mut decoded = vec![0.0; n];
                        scheme.decode(&bytes, &[n], &mut decoded).unwrap();
                        assert_eq!(bits(&decoded), bits(&emulated), "{scheme}");
                        bytes
                    })
                };
                let one = run(1);
                assert!(one == run(3), "{scheme} of {n}");
            }
        }
    }
}

#[test]
fn entropy_coding_comes_close_to_the_entropy_and_noise_takes_what_it_took() {
    let n = 40 * CHUNK_ELEMS;
    let x = weights(n);
    for head in ["int8", "int4", "uint6", "e4m3fn", "int12"] {
        let scheme: Scheme = format!("{head}/rans").parse().unwrap();
        let mut bytes = Vec::new();
        scheme.encode(&x, &[n], &Stream::new(0, 0), &mut bytes).unwrap();
        let codes = scheme.codes(&bytes, &[n]).unwrap().unwrap();
        // Codes of more than eight bits are coded in two parts, which know nothing of each other.
        let below = scheme.card().bits.saturating_sub(8);
        let part =
            |f: &dyn Fn(u32) -> u32| entropy_bits(&codes.iter().map(|c| f(*c)).collect::<Vec<_>>());
        let reachable = part(&|c| c >> below) + part(&|c| c % (1 << below));
        let taken = bytes.len() as f64 * 8.0 / n as f64;
        assert!(taken >= entropy_bits(&codes), "{head}");
        assert!(taken < reachable + 0.06, "{head}: {taken} bits, entropy {reachable}");
    }
    let noise: Vec<f32> = (0..n as u64).map(|i| Stream::new(1, 1).uniform(i) - 0.5).collect();
    for (plain, staged) in
        [("int8", "int8/rans"), ("int8", "int8/nnw"), ("int8", "int8/bdi"), ("int16", "int16/rans")]
    {
        let len = |text: &str| {
            let mut bytes = Vec::new();
            let scheme: Scheme = text.parse().unwrap();
            scheme.encode(&noise, &[n], &Stream::new(0, 0), &mut bytes).unwrap();
            bytes.len()
        };
        assert!(len(staged) <= len(plain) + 2 + 4 * 39, "{staged}");
    }
}

#[test]
fn narrow_codes_get_narrow() {
    // One large value makes all other codes small: four bits of eight hold them.
    let n = 64 * 1024;
    let mut x: Vec<f32> =
        (0..n as u64).map(|i| Stream::new(1, 1).uniform(i) * 14.0 - 7.0).collect();
    x[0] = 127.0;
    for (scheme, most) in [("int8/nnw", 4.2), ("int8/rans", 4.0), ("int16/nnw:sb1", 12.2)] {
        let scheme: Scheme = scheme.parse().unwrap();
        let mut bytes = Vec::new();
        scheme.encode(&x, &[n], &Stream::new(0, 0), &mut bytes).unwrap();
        let taken = bytes.len() as f64 * 8.0 / n as f64;
        assert!(taken < most, "{scheme}: {taken}");
    }
}
