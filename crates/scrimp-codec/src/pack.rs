//! Codes to bits: a little-endian bit stream in which code `i` takes bits `i*b .. (i+1)*b`.

/// Bytes of `count` codes of `bits` bits; only the end is padded to a byte.
pub(crate) fn packed_len(count: usize, bits: u32) -> Option<usize> {
    // Whole groups of eight codes first, so that the product cannot overflow where the result does not.
    let bits = bits as usize;
    (count / 8).checked_mul(bits)?.checked_add((count % 8 * bits).div_ceil(8))
}

/// Packs codes; `out` holds exactly [`packed_len`] bytes. Bits above the width are ignored.
pub(crate) fn pack(codes: &[u32], bits: u32, out: &mut [u8]) {
    debug_assert_eq!(Some(out.len()), packed_len(codes.len(), bits));
    match bits {
        4 => {
            let (pairs, last) = codes.as_chunks::<2>();
            for (b, [low, high]) in out.iter_mut().zip(pairs) {
                *b = byte((low & 15) | (high & 15) << 4);
            }
            if let ([code], Some(b)) = (last, out.last_mut()) {
                *b = byte(code & 15);
            }
        }
        8 => {
            for (b, code) in out.iter_mut().zip(codes) {
                *b = byte(*code);
            }
        }
        16 => {
            for (b, code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *b = [byte(*code), byte(code >> 8)];
            }
        }
        _ => {
            let mask = (1u64 << bits) - 1;
            let (mut window, mut held) = (0u64, 0);
            let mut bytes = out.iter_mut();
            for code in codes {
                window |= (u64::from(*code) & mask) << held;
                held += bits;
                while held >= 8 {
                    if let Some(b) = bytes.next() {
                        *b = window.to_le_bytes()[0];
                    }
                    window >>= 8;
                    held -= 8;
                }
            }
            if let Some(b) = bytes.next() {
                *b = window.to_le_bytes()[0];
            }
        }
    }
}

/// Unpacks the codes from number `first` on, as many as `codes` has room for. The bytes must reach that far.
pub(crate) fn unpack(bytes: &[u8], bits: u32, first: usize, codes: &mut [u32]) {
    match bits {
        4 if first.is_multiple_of(2) => {
            let bytes = &bytes[first / 2..];
            let (pairs, last) = codes.as_chunks_mut::<2>();
            let count = pairs.len();
            for ([low, high], b) in pairs.iter_mut().zip(bytes) {
                (*low, *high) = (u32::from(b & 15), u32::from(b >> 4));
            }
            if let [code] = last {
                *code = u32::from(bytes[count] & 15);
            }
        }
        8 => {
            for (code, b) in codes.iter_mut().zip(&bytes[first..]) {
                *code = u32::from(*b);
            }
        }
        16 => {
            for (code, b) in codes.iter_mut().zip(&bytes.as_chunks::<2>().0[first..]) {
                *code = u32::from(u16::from_le_bytes(*b));
            }
        }
        _ => {
            let mask = (1u64 << bits) - 1;
            // Eight codes take `bits` whole bytes; the rest of the way is less than that many bits.
            let skip = first % 8 * bits as usize;
            let mut bytes = bytes[first / 8 * bits as usize + skip / 8..].iter();
            let mut next = || u64::from(bytes.next().copied().unwrap_or(0));
            let (mut window, mut held) = (0, 0);
            let remainder = low(skip as u64 % 8);
            if remainder != 0 {
                (window, held) = (next() >> remainder, 8 - remainder);
            }
            for code in codes {
                while held < bits {
                    window |= next() << held;
                    held += 8;
                }
                *code = low(window & mask);
                window >>= bits;
                held -= bits;
            }
        }
    }
}

/// Packs codes of at most eight bits that lie in a byte each; the number of codes is a multiple of eight.
///
/// Eight codes are one word, in which neighbours move together: pairs, then pairs of pairs, then both halves.
pub(crate) fn pack_bytes(codes: &[u8], bits: u32, out: &mut [u8]) {
    debug_assert_eq!(out.len(), codes.len() / 8 * bits as usize);
    let len = bits as usize;
    let mut at = 0;
    for eight in codes.as_chunks::<8>().0 {
        let w = u64::from_le_bytes(*eight);
        let w = (w & 0x00FF_00FF_00FF_00FF) | (w >> 8 & 0x00FF_00FF_00FF_00FF) << bits;
        let w = (w & 0x0000_FFFF_0000_FFFF) | (w >> 16 & 0x0000_FFFF_0000_FFFF) << (2 * bits);
        let w = (w & 0xFFFF_FFFF) | (w >> 32) << (4 * bits);
        // All eight bytes where there is room, because the next word covers what is too much.
        if let Some(place) = out[at..].first_chunk_mut::<8>() {
            *place = w.to_le_bytes();
        } else {
            out[at..at + len].copy_from_slice(&w.to_le_bytes()[..len]);
        }
        at += len;
    }
}

/// Unpacks what [`pack_bytes`] packs.
pub(crate) fn unpack_bytes(bytes: &[u8], bits: u32, codes: &mut [u8]) {
    debug_assert_eq!(bytes.len(), codes.len() / 8 * bits as usize);
    let len = bits as usize;
    let mask = |bits: u32| u64::MAX >> (64 - bits);
    let (one, two, four) = (mask(bits), mask(2 * bits), mask(4 * bits));
    let (one, two) = (one | one << 16 | one << 32 | one << 48, two | two << 32);
    let mut at = 0;
    for eight in codes.as_chunks_mut::<8>().0 {
        let w = if let Some(place) = bytes[at..].first_chunk::<8>() {
            u64::from_le_bytes(*place)
        } else {
            bytes[at..at + len].iter().rev().fold(0, |w, b| w << 8 | u64::from(*b))
        };
        let w = (w & four) | (w >> (4 * bits) & four) << 32;
        let w = (w & two) | (w >> (2 * bits) & two) << 16;
        let w = (w & one) | (w >> bits & one) << 8;
        *eight = w.to_le_bytes();
        at += len;
    }
}

#[inline(always)]
fn byte(code: u32) -> u8 {
    code.to_le_bytes()[0]
}

#[expect(clippy::cast_possible_truncation, reason = "the caller masks to at most 32 bits")]
fn low(x: u64) -> u32 {
    x as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(codes: &[u32], bits: u32) -> Vec<u8> {
        let mut out = vec![0; packed_len(codes.len(), bits).unwrap()];
        pack(codes, bits, &mut out);
        out
    }

    #[test]
    fn the_worked_examples_of_the_specification_hold() {
        assert_eq!(packed(&[7, 31, 0, 18], 5), [0xe7, 0x03, 0x09]);
        assert_eq!(packed(&[1, 0, 1, 1, 0, 0, 0, 1, 1], 1), [0x8d, 0x01]);
        assert_eq!(packed(&[2, 1, 0, 2, 0, 1], 2), [0x86, 0x04]);
    }

    #[test]
    fn codes_in_bytes_are_packed_as_any_others() {
        for bits in 1..=8 {
            for len in (0..80u32).step_by(8) {
                let codes: Vec<u32> =
                    (0..len).map(|i| i.wrapping_mul(0x9E37_79B9) >> (32 - bits)).collect();
                let narrow: Vec<u8> = codes.iter().map(|c| c.to_le_bytes()[0]).collect();
                let mut out = vec![0; codes.len() / 8 * bits as usize];
                pack_bytes(&narrow, bits, &mut out);
                assert_eq!(out, packed(&codes, bits), "{bits} bits");
                let mut back = vec![0; codes.len()];
                unpack_bytes(&out, bits, &mut back);
                assert_eq!(back, narrow, "{bits} bits");
            }
        }
    }

    #[test]
    fn every_width_and_length_comes_back_and_sits_at_its_bits() {
        for bits in 1..=32 {
            for len in 0..40u32 {
                let codes: Vec<u32> =
                    (0..len).map(|i| i.wrapping_mul(0x9E37_79B9) >> (32 - bits)).collect();
                let bytes = packed(&codes, bits);
                assert_eq!(bytes.len(), (codes.len() * bits as usize).div_ceil(8));
                for (i, code) in codes.iter().enumerate() {
                    for b in 0..bits as usize {
                        let at = i * bits as usize + b;
                        assert_eq!(u32::from(bytes[at / 8] >> (at % 8) & 1), code >> b & 1);
                    }
                }
                let mut back = vec![0; codes.len()];
                unpack(&bytes, bits, 0, &mut back);
                assert_eq!(back, codes, "{bits} bits");
                for first in 0..codes.len() {
                    let mut back = vec![0; (codes.len() - first).min(3)];
                    unpack(&bytes, bits, first, &mut back);
                    assert_eq!(back, codes[first..first + back.len()], "{bits} bits from {first}");
                }
            }
        }
    }
}
