//! Double quantization: the scales of a tensor, less their mean, as codes of the dynamic 8-bit map.
//!
//! The bytes of *G* scales, all little-endian:
//!
//! | part | bytes |
//! |---|---|
//! | mean of the scales, f32 | 4 |
//! | largest distance from the mean in each 256 scales, f32 | 4 `ceil(G / 256)` |
//! | codes | *G* |
//!
//! A scale is `level(code) * distance + mean`, each operation rounded to f32, and at least 2^-126. Without scales there
//! are no bytes.
//!
//! # Source
//! Dettmers et al. 2023, "QLoRA", arXiv:2305.14314, section 3, as in bitsandbytes (`quantize_4bit` with
//! `compress_statistics`, its reference implementation for any device).
//!
//! Differs: the mean is a sum in f64 of blocks of fixed length; scales are divided by the distance and not multiplied
//! by its reciprocal; and a scale that comes back as zero or less, which would change the sign of its group, becomes
//! 2^-126, which makes the group as good as zero.

use std::sync::OnceLock;

use super::{DOUBLE_BLOCK, MIN_SCALE};
use crate::formats::{Levels, dynamic8};
use crate::{Params, Rounding};

fn map() -> &'static Levels {
    static MAP: OnceLock<Levels> = OnceLock::new();
    MAP.get_or_init(|| Levels::new(dynamic8()))
}

/// The scale that a reader finds.
fn restored(code: u8, distance: f32, mean: f32) -> f32 {
    (map().level(code.into()) * distance + mean).clamp(MIN_SCALE, f32::MAX)
}

/// The mean of all scales.
fn mean(params: &[Params]) -> f32 {
    const BLOCK: usize = 1024;
    let sum = |block: &[Params]| block.iter().map(|p| f64::from(p.scale)).sum::<f64>();
    let mean = params.chunks(BLOCK).map(sum).sum::<f64>() / params.len() as f64;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the mean of floats is no larger than they"
    )]
    let mean = mean as f32;
    mean
}

/// Rounds the scales to what a reader will find, and gives their bytes.
pub(super) fn nest(params: &mut [Params]) -> Vec<u8> {
    if params.is_empty() {
        return Vec::new();
    }
    let mean = mean(params);
    let mut bytes = mean.to_le_bytes().to_vec();
    let mut codes = Vec::with_capacity(params.len());
    for block in params.chunks_mut(DOUBLE_BLOCK) {
        let distance = block.iter().map(|p| (p.scale - mean).abs()).fold(0.0, f32::max);
        bytes.extend(distance.to_le_bytes());
        for p in block {
            // Where all scales are equal the quotient is NaN, whose code is that of zero.
            let code = map().code((p.scale - mean) / distance, Rounding::NearestEven, 0);
            let code = code.to_le_bytes()[0];
            p.scale = restored(code, distance, mean);
            codes.push(code);
        }
    }
    bytes.append(&mut codes);
    bytes
}

/// Reads the scales back; the error is the first group whose bytes hold no scale.
pub(super) fn unnest(bytes: &[u8], params: &mut [Params]) -> Result<(), usize> {
    let Some((mean, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(());
    };
    let mean = f32::from_le_bytes(*mean);
    if !mean.is_finite() || mean < 0.0 {
        return Err(0);
    }
    let distances = rest.len().min(4 * params.len().div_ceil(DOUBLE_BLOCK));
    let (distances, codes) = rest.split_at(distances);
    let blocks = params.chunks_mut(DOUBLE_BLOCK).zip(codes.chunks(DOUBLE_BLOCK));
    for (i, ((block, codes), distance)) in blocks.zip(distances.as_chunks::<4>().0).enumerate() {
        let distance = f32::from_le_bytes(*distance);
        if !distance.is_finite() || distance < 0.0 {
            return Err(i * DOUBLE_BLOCK);
        }
        for (p, code) in block.iter_mut().zip(codes) {
            p.scale = restored(*code, distance, mean);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(scales: &[f32]) -> (Vec<f32>, Vec<u8>) {
        let mut params: Vec<Params> =
            scales.iter().map(|s| Params { scale: *s, ..Params::UNIT }).collect();
        let bytes = nest(&mut params);
        let stored: Vec<f32> = params.iter().map(|p| p.scale).collect();
        let mut read = vec![Params::UNIT; scales.len()];
        unnest(&bytes, &mut read).unwrap();
        assert_eq!(read, params);
        (stored, bytes)
    }

    #[test]
    fn equal_scales_are_kept_exactly() {
        let (stored, bytes) = nested(&[0.3; 300]);
        assert_eq!(stored, [0.3; 300]);
        assert_eq!(bytes.len(), 4 + 8 + 300);
    }

    #[test]
    fn the_largest_scale_of_each_256_is_off_by_rounding_alone() {
        let scales: Vec<f32> = (0..600u16).map(|i| 1.0 + f32::from(i % 256) / 64.0).collect();
        let (stored, _) = nested(&scales);
        for i in [255, 511] {
            assert!((stored[i] - scales[i]).abs() <= 4.0 * f32::EPSILON, "{}", stored[i]);
        }
        // Elsewhere by half a step, which is at most 0.0141 times the largest distance, under the top level.
        for (s, x) in stored.iter().zip(&scales) {
            assert!((s - x).abs() < 0.0141 * 2.2, "{s} {x}");
        }
    }

    #[test]
    fn any_scales_come_back_positive_and_finite() {
        for scales in [
            vec![f32::MAX; 3],
            vec![f32::MAX, MIN_SCALE, MIN_SCALE, 1.0],
            vec![MIN_SCALE],
            vec![100.0, 1e-6, 1e-6, 2e-6],
        ] {
            for s in nested(&scales).0 {
                assert!(s >= MIN_SCALE && s.is_finite(), "{scales:?} {s}");
            }
        }
    }

    #[test]
    fn foreign_bytes_that_hold_no_scale_are_refused() {
        let (_, bytes) = nested(&[1.0; 300]);
        let mut params = vec![Params::UNIT; 300];
        let mut wrong = bytes.clone();
        wrong[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        assert_eq!(unnest(&wrong, &mut params), Err(0));
        let mut wrong = bytes;
        wrong[8..12].copy_from_slice(&f32::INFINITY.to_le_bytes());
        assert_eq!(unnest(&wrong, &mut params), Err(256));
    }
}
