//! Scales in one byte each under a scale for the whole tensor, as NVFP4 has them.
//!
//! `scale = global * e4m3fn(code)`. With the tensor's largest magnitude `amax` and the elements' largest value `top`,
//! `global = amax / (448 * top)`, so that the largest scale is 448; a code is the nearest e4m3fn (ties to even) of the
//! scale over `global`, and 448 where that is more. All in `f32`.
//!
//! Bytes: `global` as an `f32`, then the codes. `global` is at least 2^-126, and 1 for a tensor of zeros. A code has no
//! sign and is no NaN; 0 means a group of zeros.
//!
//! # Source
//! NVIDIA, "Pretraining Large Language Models with NVFP4", arXiv:2509.25149. Differs from implementations
//! that keep a code above 0: a scale below 2^-10 of the largest becomes zero, and its group zeros.

use crate::Params;

/// The largest e4m3fn.
const LARGEST: f32 = 448.0;

/// The code of the largest e4m3fn; the next is NaN.
const LARGEST_CODE: u8 = 0x7E;

/// The least step of e4m3fn is 2^-9: this number's last mantissa bit is worth as much.
const SUBNORMAL_MAGIC: f32 = 16384.0;

/// The scale of the whole tensor.
pub(crate) fn global(amax: f32, top: f32) -> f32 {
    if amax == 0.0 { 1.0 } else { (amax / (LARGEST * top)).max(f32::MIN_POSITIVE) }
}

/// The code of a scale.
#[inline(always)]
pub(crate) fn code(scale: f32, global: f32) -> u32 {
    encode(scale / global)
}

/// What a reader makes of a code.
#[inline(always)]
pub(crate) fn scale(code: u32, global: f32) -> f32 {
    global * decode(code)
}

/// Rounds the scales to what is stored, and answers the bytes.
pub(super) fn nest(amax: f32, top: f32, params: &mut [Params]) -> Vec<u8> {
    if params.is_empty() {
        return Vec::new();
    }
    let global = global(amax, top);
    let mut bytes = Vec::with_capacity(4 + params.len());
    bytes.extend(global.to_le_bytes());
    bytes.extend(params.iter_mut().map(|p| {
        let code = code(p.scale, global);
        p.scale = scale(code, global);
        code.to_le_bytes()[0]
    }));
    bytes
}

/// Reads the scales back; the error is the first group whose bytes are none that are ever written.
pub(super) fn unnest(bytes: &[u8], params: &mut [Params]) -> Result<(), usize> {
    let Some((global, codes)) = read_global(bytes) else {
        return if bytes.is_empty() { Ok(()) } else { Err(0) };
    };
    for (group, (code, p)) in codes.iter().zip(params).enumerate() {
        p.scale = read(*code, global).ok_or(group)?;
    }
    Ok(())
}

/// The scale of the tensor, and the codes after it; `None` where the bytes hold no such scale.
pub(crate) fn read_global(bytes: &[u8]) -> Option<(f32, &[u8])> {
    let (global, codes) = bytes.split_first_chunk::<4>()?;
    let global = f32::from_le_bytes(*global);
    (global.is_normal() && global > 0.0).then_some((global, codes))
}

/// The scale of a group; `None` where the code is none that is ever written.
#[inline(always)]
pub(crate) fn read(code: u8, global: f32) -> Option<f32> {
    let scale = scale(code.into(), global);
    (code <= LARGEST_CODE && scale.is_finite()).then_some(scale)
}

/// The code of a number that is not negative.
#[inline(always)]
fn encode(x: f32) -> u32 {
    let x = if x > LARGEST { LARGEST } else { x };
    // Adding and subtracting the number at whose exponent the last mantissa bit is a step of the grid rounds to it.
    let steps = (x + SUBNORMAL_MAGIC).to_bits() - SUBNORMAL_MAGIC.to_bits();
    let bits = x.to_bits();
    let normal = (bits + 0x7_FFFF + (bits >> 20 & 1)) >> 20;
    // The exponent of f32 is 120 above that of e4m3fn.
    if x < 0.015_625 { steps } else { normal.wrapping_sub(120 << 3) }
}

/// The value of a code without a sign; its NaN counts as 480.
#[inline(always)]
fn decode(code: u32) -> f32 {
    let code = code & 0x7F;
    let subnormal = f32::from_bits(SUBNORMAL_MAGIC.to_bits() + code) - SUBNORMAL_MAGIC;
    if code < 8 { subnormal } else { f32::from_bits((code + (120 << 3)) << 20) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rounding, Scheme};

    #[test]
    fn codes_are_those_of_the_format() {
        let scheme: Scheme = "e4m3fn".parse().unwrap();
        let format = scheme.format().unwrap();
        for code in 0..=LARGEST_CODE {
            let value = format.decode(u32::from(code), &Params::UNIT);
            assert_eq!(decode(code.into()), value, "{code}");
            let next = format.decode(u32::from(code + 1).min(0x7E), &Params::UNIT);
            let middle = f32::midpoint(value, next);
            for x in [
                value,
                middle,
                f32::from_bits(middle.to_bits() + 1),
                f32::from_bits(middle.to_bits().saturating_sub(1)),
            ] {
                let expected = format.encode(x, &Params::UNIT, Rounding::NearestEven, 0);
                assert_eq!(encode(x), expected, "{x}");
            }
        }
        assert_eq!([encode(449.0), encode(f32::MAX), encode(1e-45)], [0x7E, 0x7E, 0]);
    }

    #[test]
    fn what_is_written_is_read_and_what_never_is_is_refused() {
        let scales = [0.0, 1e-30, 0.001, 0.5, 1.0, 7.3];
        let mut params = scales.map(|scale| Params { scale, ..Params::UNIT });
        let bytes = nest(7.3 * 6.0, 6.0, &mut params);
        assert_eq!(bytes[4..6], [0, 0]);
        assert_eq!(bytes[9], LARGEST_CODE);
        let mut back = [Params::UNIT; 6];
        assert_eq!(unnest(&bytes, &mut back), Ok(()));
        assert_eq!(back, params);
        for (at, byte, group) in
            [(4, 0x7F, 0), (6, 0x80, 2), (9, 0xFF, 5), (3, 0xC0, 0), (3, 0x7E, 3)]
        {
            let mut wrong = bytes.clone();
            wrong[at] = byte;
            assert_eq!(unnest(&wrong, &mut back), Err(group), "byte {at}");
        }
    }

    #[test]
    fn the_ends_of_f32_have_scales() {
        for amax in [1e-45, 1e-38, 1.0, f32::MAX] {
            for top in [6.0, 7.0, 57344.0, 2f32.powi(127)] {
                let mut params = [Params { scale: amax / top, ..Params::UNIT }];
                let bytes = nest(amax, top, &mut params);
                assert!(params[0].scale.is_finite(), "{amax} {top}");
                assert_eq!(unnest(&bytes, &mut [Params::UNIT]), Ok(()), "{amax} {top}");
            }
        }
    }
}
