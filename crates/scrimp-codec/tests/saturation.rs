//! What counts as clipped, and the smallest positive value of each group.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use scrimp_codec::{FAMILIES, Scheme, Stream};

/// How many of `x` a scheme clips.
fn saturated(scheme: &str, shape: &[usize], x: &[f32]) -> Option<u64> {
    let scheme: Scheme = scheme.parse().unwrap();
    let mut bytes = Vec::new();
    scheme.encode(x, shape, &Stream::new(1, 2), &mut bytes).unwrap();
    scheme.saturated(x, &bytes, shape).unwrap()
}

#[test]
fn what_rounds_to_the_largest_value_is_not_clipped_and_what_lies_beyond_is() {
    let x = [0.0, -448.0, 464.0, -465.0, 1e9, f32::NAN];
    assert_eq!(saturated("e4m3fn", &[6], &x), Some(2));
    assert_eq!(saturated("e4m3fn/toward-zero", &[5], &x[..5]), Some(1));
    // Overflow to infinity is a loss of the same kind.
    assert_eq!(saturated("f16", &[4], &[65504.0, 65519.0, 65521.0, -1e5]), Some(2));
    assert_eq!(saturated("e4m3fn/tensor", &[5], &x[..5]), Some(0));
}

#[test]
fn every_group_has_its_own_limits() {
    // The full range of four bits ends at 7 steps, where the largest value is at 8.
    let x = [1.0, -1.0, 0.5, 0.25, 100.0, 8.0, -100.0, 3.0];
    assert_eq!(saturated("int4/full/row", &[2, 4], &x), Some(2));
    assert_eq!(saturated("int4/row", &[2, 4], &x), Some(0));
    assert_eq!(saturated("uint4/axis:1", &[2, 4], &x), Some(0));
}

#[test]
fn a_scale_that_fits_clips_nothing_and_every_member_can_be_asked() {
    let x: Vec<f32> = (0..512u16).map(|i| (f32::from(i * 37 % 101) - 50.0) / 7.0).collect();
    for member in FAMILIES.iter().flat_map(|family| family.members()) {
        let count = saturated(&member, &[16, 32], &x);
        assert!(count.is_none_or(|count| count <= 512), "{member}");
    }
    for scheme in ["int8", "int3/group:5", "int8/flat:7/scale:f16", "e2m1fn/channel", "bf16"] {
        assert_eq!(saturated(scheme, &[16, 32], &x), Some(0), "{scheme}");
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let scheme: Scheme = "int8".parse().unwrap();
    assert!(scheme.saturated(&[1.0; 4], &[0; 7], &[4]).is_err());
    assert!(scheme.saturated(&[1.0; 3], &[0, 0, 128, 63, 0, 0, 0, 0], &[4]).is_err());
}

#[test]
fn the_smallest_positive_value_is_that_of_the_codes_under_the_scale_of_each_group() {
    let x = [127.0, 1.0, 0.0, 0.0, 0.0, 254.0, 0.0, 3.0];
    let smallest = |scheme: &str| {
        let scheme: Scheme = scheme.parse().unwrap();
        let (mut bytes, mut out) = (Vec::new(), [f32::NAN; 8]);
        scheme.encode(&x, &[2, 4], &Stream::new(1, 2), &mut bytes).unwrap();
        scheme.smallest(&bytes, &[2, 4], &mut out).unwrap();
        out
    };
    assert_eq!(smallest("int8/row"), [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
    assert_eq!(smallest("uint8/row")[0], 127.0 / 255.0);
    assert_eq!(smallest("e4m3fn"), [1.0 / 512.0; 8]);
    assert_eq!(smallest("bf16"), [f32::from_bits(1 << 16); 8]);
    assert_eq!(smallest("int8/row/rans"), smallest("int8/row"));
    assert_eq!(smallest("top_k:2"), [127.0; 8]);
    // No code is smaller, and one is as small: what is raised to it is held.
    for member in FAMILIES.iter().flat_map(|family| family.members()) {
        let scheme: Scheme = member.parse().unwrap();
        let stream = Stream::new(1, 2);
        let x: Vec<f32> = (0..512u64).map(|i| stream.uniform(i)).collect();
        let (mut bytes, mut out) = (Vec::new(), vec![f32::NAN; 512]);
        let mut values = out.clone();
        scheme.encode(&x, &[16, 32], &stream, &mut bytes).unwrap();
        scheme.smallest(&bytes, &[16, 32], &mut out).unwrap();
        scheme.decode(&bytes, &[16, 32], &mut values).unwrap();
        for (v, least) in values.iter().zip(&out) {
            assert!(*least >= 0.0 && (*v <= 0.0 || v >= least), "{member}: {v} below {least}");
        }
    }
}
