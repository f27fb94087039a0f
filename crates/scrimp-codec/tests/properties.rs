//! What holds for every scheme: the members of every family, crossed with granularities, scales and roundings.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use scrimp_codec::formats::Scaling;
use scrimp_codec::{EncodeError, FAMILIES, Granularity, Rounding, Scheme, Stream};

fn members() -> Vec<String> {
    FAMILIES.iter().flat_map(|f| f.members()).collect()
}

/// Every member, under words that its format takes.
fn any_scheme() -> impl Strategy<Value = Scheme> {
    let granularity = prop_oneof![
        Just(String::new()),
        Just("/tensor".into()),
        Just("/channel".into()),
        Just("/axis:1".into()),
        Just("/row".into()),
        (1usize..40).prop_map(|n| format!("/group:{n}")),
        (1usize..40).prop_map(|n| format!("/flat:{n}")),
        (1usize..4, 1usize..9).prop_map(|(r, c)| format!("/tile:{r}x{c}")),
    ];
    (
        prop::sample::select(members()),
        granularity,
        any::<prop::sample::Index>(),
        prop::sample::select(Rounding::WORDS.map(|(w, _)| w).to_vec()),
    )
        .prop_map(|(member, granularity, scale, rounding)| {
            let plain: Scheme = member.parse().unwrap();
            let takes = plain.codec().defaults();
            let mut text = member;
            let scaled = match takes.scaling {
                Scaling::Never => false,
                Scaling::OnRequest => !granularity.is_empty(),
                Scaling::Always => true,
            };
            if scaled {
                text += &granularity;
            }
            if scaled && !takes.scales.is_empty() && !text.contains("scale:") {
                text += "/scale:";
                text += scale.get(takes.scales).word();
            }
            if takes.rounding.is_some() {
                text += "/";
                text += rounding;
            }
            text.parse().unwrap_or_else(|e| panic!("{e}"))
        })
}

/// Every format that needs no scale, under every rounding. (With a scale the rounded values would find another one.)
fn unscaled_scheme() -> impl Strategy<Value = Scheme> {
    let formats: Vec<String> = members()
        .into_iter()
        .filter(|m| m.parse::<Scheme>().unwrap().codec().defaults().scaling == Scaling::OnRequest)
        .collect();
    (prop::sample::select(formats), prop::sample::select(Rounding::WORDS.map(|(w, _)| w).to_vec()))
        .prop_map(|(format, rounding)| format!("{format}/{rounding}").parse().unwrap())
}

fn any_shape() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        8 => prop::collection::vec(1usize..9, 2..5),
        1 => (1usize..4, 30usize..300).prop_map(|(a, b)| vec![a, b]),
        1 => prop::collection::vec(0usize..3, 2..4),
    ]
}

/// Finite values of every kind: ordinary, tiny, huge, zero, repeated.
fn any_value() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -4.0f32..4.0,
        1 => Just(0.0),
        1 => Just(-0.0),
        1 => prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL,
        1 => prop::sample::select(vec![1.0, -1.0, 0.5, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45]),
    ]
}

fn any_tensor() -> impl Strategy<Value = (Vec<usize>, Vec<f32>)> {
    any_shape().prop_flat_map(|shape| {
        let n = shape.iter().product::<usize>();
        let mixed = prop::collection::vec(any_value(), n);
        let plain = prop::collection::vec(-2.0f32..2.0, n);
        let constant = any_value().prop_map(move |v| vec![v; n]);
        (Just(shape), prop_oneof![4 => plain, 4 => mixed, 1 => constant])
    })
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn emulation_is_the_bytes_and_the_bytes_are_as_many_as_said(
        scheme in any_scheme(), (shape, x) in any_tensor(), seed: u32, step: u64,
    ) {
        let stream = Stream::named(seed, "w").at_step(step);
        let mut bytes = vec![7];
        scheme.encode(&x, &shape, &stream, &mut bytes).unwrap();
        prop_assert!(scheme.size(&shape).unwrap().contains(bytes.len() - 1), "{} {:?}", scheme, shape);
        let mut decoded = vec![0.0; x.len()];
        scheme.decode(&bytes[1..], &shape, &mut decoded).unwrap();
        let mut emulated = x.clone();
        scheme.emulate(&mut emulated, &shape, &stream).unwrap();
        prop_assert_eq!(bits(&emulated), bits(&decoded), "{} {:?} {:?}", scheme, shape, x);
        let overflows = scheme.card().overflow != "saturate";
        prop_assert!(decoded.iter().all(|v| v.is_finite() || overflows), "{} {:?}", scheme, x);
    }

    #[test]
    fn what_is_on_the_grid_stays_there(scheme in unscaled_scheme(), (shape, x) in any_tensor()) {
        let stream = Stream::new(0, 0);
        let mut once = x.clone();
        scheme.emulate(&mut once, &shape, &stream).unwrap();
        let mut twice = once.clone();
        scheme.emulate(&mut twice, &shape, &stream).unwrap();
        prop_assert_eq!(bits(&once), bits(&twice), "{}", scheme);
    }

    #[test]
    fn rounding_keeps_the_order_of_values(scheme in any_scheme(), x in prop::collection::vec(any_value(), 2..60)) {
        prop_assume!(scheme.rounding() != Rounding::Stochastic);
        // Where zeros are exact, values near them still move toward the mean, and so past zero.
        let text = scheme.to_string();
        // What is kept of equal values depends on where they stand, or on the lot.
        let chooses = ["top_k", "random_k"].iter().any(|name| text.starts_with(name));
        if chooses || text.split('/').any(|word| word == "zeros") {
            return Ok(());
        }
        // One group, because groups have steps of their own.
        let tensor: Scheme = match scheme.granularity() {
            Some(g) if text.contains(&format!("/{g}")) => {
                text.replace(&format!("/{g}"), "/tensor").parse().unwrap()
            }
            // The family's own granularity is not written.
            Some(_) => format!("{text}/tensor").parse().unwrap(),
            None => scheme,
        };
        let mut x = x;
        // A codec whose blocks are its own shows one of them.
        if let Granularity::Flat(len) = tensor.codec().defaults().granularity
            && tensor.granularity().is_none()
        {
            x.truncate(len);
        }
        x.sort_by(f32::total_cmp);
        let shape = [1, x.len()];
        prop_assume!(tensor.check(&shape).is_ok());
        prop_assume!(tensor.groups(&shape).unwrap() <= 1);
        tensor.emulate(&mut x, &shape, &Stream::new(0, 0)).unwrap();
        prop_assert!(x.is_sorted(), "{} {:?}", tensor, x);
    }

    #[test]
    fn what_is_remembered_is_the_same_whether_a_tensor_is_encoded_or_emulated(
        scheme in any_scheme(), (shape, x) in any_tensor(), seed: u32,
    ) {
        let mut memory = scheme.memory(&shape).unwrap();
        let mut twin = memory.clone();
        for step in 0..3 {
            let stream = Stream::named(seed, "g").at_step(step);
            let mut bytes = Vec::new();
            scheme.encode_next(&x, &shape, &stream, memory.as_mut(), &mut bytes).unwrap();
            prop_assert!(scheme.size(&shape).unwrap().contains(bytes.len()), "{}", scheme);
            let mut decoded = vec![0.0; x.len()];
            scheme.decode(&bytes, &shape, &mut decoded).unwrap();
            let mut emulated = x.clone();
            scheme.emulate_next(&mut emulated, &shape, &stream, twin.as_mut()).unwrap();
            prop_assert_eq!(bits(&emulated), bits(&decoded), "{} {:?} {:?}", scheme, shape, x);
            prop_assert_eq!(&memory, &twin, "{} {:?} {:?}", scheme, shape, x);
        }
    }

    #[test]
    fn a_printed_scheme_is_read_as_itself(scheme in any_scheme()) {
        let text = scheme.to_string();
        prop_assert_eq!(text.parse::<Scheme>().unwrap(), scheme);
    }

    #[test]
    fn any_bytes_decode_or_fail(
        scheme in any_scheme(), shape in any_shape(), bytes in prop::collection::vec(any::<u8>(), 0..200), fit: bool,
    ) {
        let n: usize = shape.iter().product();
        let mut out = vec![0.0; n];
        let mut bytes = bytes;
        if fit {
            bytes.resize(scheme.size(&shape).unwrap().most, 0x3c);
        }
        let _ = scheme.decode(&bytes, &shape, &mut out);
    }

    #[test]
    fn damaged_bytes_decode_to_finite_values_or_fail(
        scheme in any_scheme(), (shape, x) in any_tensor(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = Vec::new();
        scheme.encode(&x, &shape, &Stream::new(0, 0), &mut bytes).unwrap();
        if bytes.is_empty() {
            return Ok(());
        }
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let mut out = vec![0.0; x.len()];
        let specials = scheme.card().specials != "none" || scheme.is_float32();
        if scheme.decode(&bytes, &shape, &mut out).is_ok() {
            prop_assert!(specials || out.iter().all(|v| v.is_finite()), "{} {:?}", scheme, out);
            let mut part = vec![0.0; x.len() / 2];
            let start = x.len() / 3;
            scheme.decode_range(&bytes, &shape, start..start + x.len() / 2, &mut part).unwrap();
        }
    }

    #[test]
    fn a_range_of_elements_is_decoded_as_in_the_whole(
        scheme in any_scheme(), (shape, x) in any_tensor(), ends: [prop::sample::Index; 2],
    ) {
        let stream = Stream::new(3, 3);
        let mut bytes = Vec::new();
        scheme.encode(&x, &shape, &stream, &mut bytes).unwrap();
        let mut whole = vec![0.0; x.len()];
        scheme.decode(&bytes, &shape, &mut whole).unwrap();
        let [a, b] = ends.map(|end| end.index(x.len() + 1));
        let range = a.min(b)..a.max(b);
        let mut part = vec![0.0; range.len()];
        scheme.decode_range(&bytes, &shape, range.clone(), &mut part).unwrap();
        prop_assert_eq!(bits(&part), bits(&whole[range]), "{}", scheme);
        let beyond = x.len() + 1;
        prop_assert!(scheme.decode_range(&bytes, &shape, beyond..beyond, &mut []).is_err());
    }

    #[test]
    fn any_text_is_a_scheme_or_an_error_that_prints(text in "[a-z0-9:/×x-]{0,20}") {
        if let Err(e) = text.parse::<Scheme>() {
            prop_assert!(e.to_string().contains("help: "));
        }
    }

    #[test]
    fn non_finite_values_are_held_refused_or_counted(scheme in any_scheme(), special in 0usize..3, at in 0usize..24) {
        let value = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][special];
        let shape = [4, 6];
        let mut x: Vec<f32> = (0u8..24).map(|i| f32::from(i) / 8.0 - 1.0).collect();
        x[at] = value;
        let stream = Stream::new(1, 2);
        let mut bytes = Vec::new();
        let codec = scheme.codec();
        let held = if value.is_nan() { codec.holds_nan() } else { codec.holds_infinity() };
        match scheme.encode(&x, &shape, &stream, &mut bytes) {
            Ok(_) => prop_assert!(held, "{}", scheme),
            Err(EncodeError::NonFinite { index, .. }) => {
                prop_assert!(!held, "{}", scheme);
                prop_assert_eq!(index, at);
                prop_assert!(bytes.is_empty());
            }
            Err(e) => prop_assert!(false, "{}", e),
        }
        if scheme.is_float32() {
            return Ok(());
        }
        // The two other policies: saturate counts, and emulation still is the bytes.
        let tolerant: Scheme = format!("{scheme}/nonfinite:saturate").parse().unwrap();
        bytes.clear();
        let tally = tolerant.encode(&x, &shape, &stream, &mut bytes).unwrap();
        prop_assert_eq!(tally.nans + tally.infinities, u64::from(!held));
        let mut decoded = vec![0.0; 24];
        tolerant.decode(&bytes, &shape, &mut decoded).unwrap();
        let mut emulated = x.clone();
        prop_assert_eq!(tolerant.emulate(&mut emulated, &shape, &stream).unwrap(), tally);
        prop_assert_eq!(bits(&emulated), bits(&decoded), "{}", tolerant);
        if !held && value.is_nan() && scheme.format().is_some_and(|f| !f.header().offset) {
            prop_assert_eq!(decoded[at], 0.0, "{}", tolerant);
        }
    }
}

#[test]
fn members_parse_and_print_as_themselves() {
    for member in members() {
        let scheme: Scheme = member.parse().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(scheme.to_string(), member);
        let card = scheme.card();
        assert_eq!(card.name, member);
        assert!(card.min < card.max, "{card:?}");
    }
}

#[test]
fn every_code_of_every_member_is_encoded_as_itself() {
    use scrimp_codec::Params;
    for member in members() {
        let scheme: Scheme = member.parse().unwrap();
        let Some(format) = scheme.format().filter(|f| f.bits() <= 19) else { continue };
        for code in 0..1u32 << format.bits() {
            let value = format.decode(code, &Params::UNIT);
            if value.is_nan() && !format.holds_nan() {
                // Blocks have elements with a code for NaN that is never written: their scale says it.
                continue;
            }
            // Codes outside a symmetric range, and NaNs, have a representative.
            let again = format.encode(value, &Params::UNIT, Rounding::NearestEven, 0);
            let canonical = format.decode(again, &Params::UNIT);
            let outside = !value.is_nan() && value < format.card().min;
            assert!(
                canonical.to_bits() == value.to_bits() || outside || value.is_infinite(),
                "{member} code {code:x}: {value} -> {again:x}"
            );
        }
    }
}

#[test]
fn threads_and_alignment_change_nothing() {
    let n: usize = 3 * 50 * 1021 + 1;
    let x: Vec<f32> =
        (0..n as u64).map(|i| Stream::new(3, 4).uniform(i).mul_add(8.0, -4.0).powi(3)).collect();
    let x = &x[1..]; // no alignment beyond that of a float
    let shape = [3, 50, 1021];
    for text in [
        "int8",
        "int8/stochastic",
        "int4/group:32/stochastic",
        "uint5/axis:1",
        "e4m3fn/channel",
        "e5m2/stochastic",
        "int3/tile:7x100",
        "uint8/qml",
        "bf16",
        "fp:e3m2/row/scale:f16",
        "mxfp4",
        "mxint8/group:3/stochastic",
        "mxfp6_e3m2/row",
        "msfp12/bump",
        "nvfp4",
        "int5/scale:e4m3fn/stochastic",
        "cfloat8_1_4_3/stochastic",
        "nf4",
        "nf4/double/stochastic",
        "flex16+5/stochastic",
        "flex11+5",
        "q4_0",
        "q8_0",
        "sign",
        "binary/axis:1",
        "binary/tile:7x100",
        "ternary",
        "ternary/dense/group:32",
        "terngrad/dense",
        "terngrad/axis:2",
        "onebit",
        "onebit/tensor",
        "smaq:6,8",
        "smaq:3,16/group:100/stochastic",
        "smaq:6,8/axis:1/zeros/sampled:16",
        "smaq:5,7/tile:7x100/original/range",
        "s2fp8",
        "s2fp8/axis:1/stochastic",
        "top_k:1%",
        "top_k:40%/values:f16",
        "random_k:3%",
    ] {
        let scheme: Scheme = text.parse().unwrap();
        let stream = Stream::named(9, "x").at_step(5);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut bytes = Vec::new();
                scheme.encode(x, &shape, &stream, &mut bytes).unwrap();
                let mut emulated = x.to_vec();
                scheme.emulate(&mut emulated, &shape, &stream).unwrap();
                let mut decoded = vec![0.0; x.len()];
                scheme.decode(&bytes, &shape, &mut decoded).unwrap();
                assert_eq!(bits(&decoded), bits(&emulated), "{text}");
                bytes
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3), "{text}");
    }
}

#[test]
fn stochastic_rounding_is_right_on_average() {
    // 2.3 is two steps and 0.3: with n draws the mean lies within 4 standard deviations.
    let n = 1 << 20;
    for text in [
        "int8/stochastic",
        "e4m3fn/stochastic",
        "e4m3fn/tensor/stochastic",
        "uint8/qml/tensor/stochastic",
    ] {
        let scheme: Scheme = text.parse().unwrap();
        for value in [2.3f32, -0.7, 0.011] {
            let mut x = vec![value; n];
            x[0] = 127.0;
            x[1] = -127.0;
            let stream = Stream::named(11, "mean");
            scheme.emulate(&mut x, &[n], &stream).unwrap();
            let rest = &x[2..];
            let mean = rest.iter().map(|v| f64::from(*v)).sum::<f64>() / rest.len() as f64;
            let var = rest.iter().map(|v| (f64::from(*v) - f64::from(value)).powi(2)).sum::<f64>()
                / rest.len() as f64;
            // The grid points around the value may be off by the scale's rounding in f32.
            let slack = 4.0 * (var / n as f64).sqrt() + 1e-6;
            assert!(
                (mean - f64::from(value)).abs() < slack,
                "{text} of {value}: mean {mean}, slack {slack}"
            );
        }
    }
}

#[test]
fn empty_scalar_and_all_zero_tensors_are_exact_and_small() {
    for member in members() {
        let scheme: Scheme = member.parse().unwrap();
        let stream = Stream::new(0, 0);
        let mut bytes = Vec::new();
        if scheme.check(&[0]).is_ok() {
            scheme.encode(&[], &[0], &stream, &mut bytes).unwrap();
            assert!(bytes.is_empty(), "{member}");
        }
        for shape in [vec![], vec![1], vec![2, 3]] {
            if scheme.check(&shape).is_err() {
                continue;
            }
            let n = shape.iter().product();
            let zeros = vec![0.0; n];
            if member == "sign" {
                // It has no zero: the sign of zero is 1, and there is no scale that could be zero.
                let mut x = zeros;
                scheme.emulate(&mut x, &shape, &stream).unwrap();
                assert!(x.iter().all(|v| *v == 1.0));
                continue;
            }
            let (mut bytes, mut back) = (Vec::new(), vec![1.0; n]);
            scheme.encode(&zeros, &shape, &stream, &mut bytes).unwrap();
            scheme.decode(&bytes, &shape, &mut back).unwrap();
            assert_eq!(bits(&back), bits(&zeros), "{member} {shape:?}");
        }
    }
}

#[test]
fn a_wrong_length_is_named() {
    let scheme: Scheme = "int8".parse().unwrap();
    let mut bytes = Vec::new();
    let stream = Stream::new(0, 0);
    assert!(matches!(
        scheme.encode(&[1.0; 3], &[2, 2], &stream, &mut bytes),
        Err(EncodeError::Length { expected: 4, actual: 3, .. })
    ));
    let error = scheme.decode(&[0; 3], &[2, 2], &mut [0.0; 4]).unwrap_err();
    assert_eq!(error.to_string(), "`int8` stores shape [2, 2] in 8 bytes, and there are 3");
    let huge = scheme.size(&[usize::MAX, 3]).unwrap_err();
    assert!(huge.to_string().contains("too large"), "{huge}");
}
