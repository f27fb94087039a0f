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
    let window = match bits {
        // Loops of their own for the widths of floats beyond 16 bits, so that shifts are constants.
        18 => pack_words(codes, 18, out),
        19 => pack_words(codes, 19, out),
        _ => pack_words(codes, bits, out),
    };
    let Window { mut held, mut value, done } = window;
    let mut bytes = out[done..].iter_mut();
    while held > 0 {
        if let Some(b) = bytes.next() {
            *b = value.to_le_bytes()[0];
        }
        value >>= 8;
        held = held.saturating_sub(8);
    }
}

/// Bits that are not written yet, and how many bytes are.
struct Window {
    value: u64,
    held: u32,
    done: usize,
}

/// Packs codes as far as they fill words of 32 bits.
#[inline(always)]
fn pack_words(codes: &[u32], bits: u32, out: &mut [u8]) -> Window {
    let mask = (1u64 << bits) - 1;
    let (mut value, mut held, mut done) = (0u64, 0, 0);
    for code in codes {
        value |= (u64::from(*code) & mask) << held;
        held += bits;
        if held >= 32 {
            out[done..done + 4].copy_from_slice(&low(value).to_le_bytes());
            value >>= 32;
            held -= 32;
            done += 4;
        }
    }
    Window { value, held, done }
}

/// Unpacks the codes from number `first` on, as many as `codes` has room for. The bytes must reach that far.
pub(crate) fn unpack(bytes: &[u8], bits: u32, first: usize, codes: &mut [u32]) {
    // Eight codes take `bits` whole bytes; the rest of the way is less than that many bits.
    let skip = first % 8 * bits as usize;
    let bytes = &bytes[first / 8 * bits as usize + skip / 8..];
    let skip = low(skip as u64 % 8);
    match bits {
        18 => unpack_words(bytes, 18, skip, codes),
        19 => unpack_words(bytes, 19, skip, codes),
        _ => unpack_words(bytes, bits, skip, codes),
    }
}

/// Unpacks codes that begin `skip` bits into a byte.
#[inline(always)]
fn unpack_words(bytes: &[u8], bits: u32, skip: u32, codes: &mut [u32]) {
    let mask = (1u64 << bits) - 1;
    let mut at = 0;
    // Up to four bytes; those beyond the end count as zero.
    let mut next = || {
        let word = match bytes.get(at..at + 4) {
            Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
            _ => (bytes.iter().skip(at).take(4).rev()).fold(0, |word, b| word << 8 | u32::from(*b)),
        };
        at += 4;
        u64::from(word)
    };
    let (mut value, mut held) = (0, 0);
    if skip > 0 {
        (value, held) = (next() >> skip, 32 - skip);
    }
    for code in codes {
        if held < bits {
            value |= next() << held;
            held += 32;
        }
        *code = low(value & mask);
        value >>= bits;
        held -= bits;
    }
}

/// Codes of up to eight bits, a byte each, as [`pack`] would pack them.
pub(crate) fn pack_bytes(codes: &[u8], bits: u32, out: &mut [u8]) {
    debug_assert_eq!(Some(out.len()), packed_len(codes.len(), bits));
    match bits {
        1 => pack_eight::<1>(codes, out),
        2 => pack_eight::<2>(codes, out),
        3 => pack_eight::<3>(codes, out),
        4 => {
            let (pairs, last) = codes.as_chunks::<2>();
            for (b, pair) in out.iter_mut().zip(pairs) {
                // As one number, so that a loop over vectors has no bytes to sort.
                let pair = u16::from_le_bytes(*pair);
                *b = (pair & 15 | pair >> 4 & 0xF0).to_le_bytes()[0];
            }
            if let ([code], Some(b)) = (last, out.last_mut()) {
                *b = code & 15;
            }
        }
        5 => pack_eight::<5>(codes, out),
        6 => pack_eight::<6>(codes, out),
        7 => pack_eight::<7>(codes, out),
        _ => out.copy_from_slice(codes),
    }
}

/// What [`pack_bytes`] packed, from its beginning on.
pub(crate) fn unpack_bytes(bytes: &[u8], bits: u32, codes: &mut [u8]) {
    match bits {
        1 => unpack_eight::<1>(bytes, codes),
        2 => unpack_eight::<2>(bytes, codes),
        3 => unpack_eight::<3>(bytes, codes),
        4 => {
            let (pairs, last) = codes.as_chunks_mut::<2>();
            let count = pairs.len();
            for ([low, high], b) in pairs.iter_mut().zip(bytes) {
                (*low, *high) = (b & 15, b >> 4);
            }
            if let [code] = last {
                *code = bytes[count] & 15;
            }
        }
        5 => unpack_eight::<5>(bytes, codes),
        6 => unpack_eight::<6>(bytes, codes),
        7 => unpack_eight::<7>(bytes, codes),
        _ => codes.copy_from_slice(&bytes[..codes.len()]),
    }
}

/// Codes of 9 to 16 bits, two little-endian bytes each, as [`pack`] would pack them.
pub(crate) fn pack_pairs(codes: &[[u8; 2]], bits: u32, out: &mut [u8]) {
    debug_assert_eq!(Some(out.len()), packed_len(codes.len(), bits));
    match bits {
        9 => pack_eight_pairs::<9>(codes, out),
        10 => pack_eight_pairs::<10>(codes, out),
        11 => pack_eight_pairs::<11>(codes, out),
        12 => pack_eight_pairs::<12>(codes, out),
        13 => pack_eight_pairs::<13>(codes, out),
        14 => pack_eight_pairs::<14>(codes, out),
        15 => pack_eight_pairs::<15>(codes, out),
        _ => out.copy_from_slice(codes.as_flattened()),
    }
}

/// What [`pack_pairs`] packed, from its beginning on.
pub(crate) fn unpack_pairs(bytes: &[u8], bits: u32, codes: &mut [[u8; 2]]) {
    match bits {
        9 => unpack_eight_pairs::<9>(bytes, codes),
        10 => unpack_eight_pairs::<10>(bytes, codes),
        11 => unpack_eight_pairs::<11>(bytes, codes),
        12 => unpack_eight_pairs::<12>(bytes, codes),
        13 => unpack_eight_pairs::<13>(bytes, codes),
        14 => unpack_eight_pairs::<14>(bytes, codes),
        15 => unpack_eight_pairs::<15>(bytes, codes),
        _ => {
            let codes = codes.as_flattened_mut();
            codes.copy_from_slice(&bytes[..codes.len()]);
        }
    }
}

/// So many low bits in each lane of `width` bits.
const fn lanes(bits: u32, width: u32) -> u64 {
    let (mut mask, mut at) = (0, 0);
    while at < 64 {
        mask |= ((1u64 << bits) - 1) << at;
        at += width;
    }
    mask
}

/// Moves the upper of every two lanes of `width` bits, which hold so many bits each, down to the lower one.
#[inline(always)]
const fn together(w: u64, bits: u32, width: u32) -> u64 {
    let lower = lanes(bits, 2 * width);
    w & lower | w >> (width - bits) & lower << bits
}

/// Undoes [`together`].
#[inline(always)]
const fn apart(w: u64, bits: u32, width: u32) -> u64 {
    let lower = lanes(bits, 2 * width);
    w & lower | (w & lower << bits) << (width - bits)
}

/// Brings together the codes of eight bytes: first two and two, then those pairs, then both halves.
#[inline(always)]
fn squeeze<const BITS: u32>(codes: [u8; 8]) -> u64 {
    let w = together(u64::from_le_bytes(codes), BITS, 8);
    together(together(w, 2 * BITS, 16), 4 * BITS, 32)
}

/// Undoes [`squeeze`]. Bits above the eight codes are ignored.
#[inline(always)]
fn spread<const BITS: u32>(w: u64) -> [u8; 8] {
    let w = apart(apart(w, 4 * BITS, 32), 2 * BITS, 16);
    apart(w, BITS, 8).to_le_bytes()
}

fn pack_eight<const BITS: u32>(codes: &[u8], out: &mut [u8]) {
    let bytes = BITS as usize;
    let (eights, rest) = codes.as_chunks::<8>();
    let mut at = 0;
    for eight in eights {
        let packed = squeeze::<BITS>(*eight).to_le_bytes();
        // All eight bytes where there is room: the next codes overwrite what is too much.
        match out[at..].first_chunk_mut::<8>() {
            Some(out) => *out = packed,
            None => out[at..at + bytes].copy_from_slice(&packed[..bytes]),
        }
        at += bytes;
    }
    if !rest.is_empty() {
        let mut eight = [0; 8];
        eight[..rest.len()].copy_from_slice(rest);
        let packed = squeeze::<BITS>(eight).to_le_bytes();
        let end = &mut out[at..];
        end.copy_from_slice(&packed[..end.len()]);
    }
}

fn unpack_eight<const BITS: u32>(bytes: &[u8], codes: &mut [u8]) {
    let mut at = 0;
    let (eights, rest) = codes.as_chunks_mut::<8>();
    for eight in eights {
        *eight = spread::<BITS>(u64::from_le_bytes(padded(&bytes[at..])));
        at += BITS as usize;
    }
    let eight = spread::<BITS>(u64::from_le_bytes(padded(&bytes[at..])));
    rest.copy_from_slice(&eight[..rest.len()]);
}

/// The first bytes, with zeros after the end.
#[inline(always)]
fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    if let Some(whole) = bytes.first_chunk() {
        return *whole;
    }
    let mut padded = [0; N];
    padded[..bytes.len()].copy_from_slice(bytes);
    padded
}

/// As [`squeeze`] for four codes of two bytes.
#[inline(always)]
fn squeeze_pairs<const BITS: u32>(codes: &[[u8; 2]; 4]) -> u64 {
    let [[a, b], [c, d], [e, f], [g, h]] = *codes;
    let w = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    together(together(w, BITS, 16), 2 * BITS, 32)
}

/// Undoes [`squeeze_pairs`]. Bits above the four codes are ignored.
#[inline(always)]
fn spread_pairs<const BITS: u32>(w: u64) -> [[u8; 2]; 4] {
    let [a, b, c, d, e, f, g, h] = apart(apart(w, 2 * BITS, 32), BITS, 16).to_le_bytes();
    [[a, b], [c, d], [e, f], [g, h]]
}

#[inline(always)]
fn squeeze_eight_pairs<const BITS: u32>([a, b]: &[[[u8; 2]; 4]; 2]) -> [u8; 16] {
    let (a, b) = (squeeze_pairs::<BITS>(a), squeeze_pairs::<BITS>(b));
    (u128::from(a) | u128::from(b) << (4 * BITS)).to_le_bytes()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "what is above the four codes of a half is ignored"
)]
#[inline(always)]
fn spread_eight_pairs<const BITS: u32>(bytes: &[u8]) -> [[[u8; 2]; 4]; 2] {
    let w = u128::from_le_bytes(padded(bytes));
    let half = |w: u128| spread_pairs::<BITS>(w as u64);
    [half(w), half(w >> (4 * BITS))]
}

fn pack_eight_pairs<const BITS: u32>(codes: &[[u8; 2]], out: &mut [u8]) {
    let bytes = BITS as usize;
    let (fours, rest) = codes.as_chunks::<4>();
    let (eights, four) = fours.as_chunks::<2>();
    let mut at = 0;
    for eight in eights {
        let packed = squeeze_eight_pairs::<BITS>(eight);
        match out[at..].first_chunk_mut::<16>() {
            Some(out) => *out = packed,
            None => out[at..at + bytes].copy_from_slice(&packed[..bytes]),
        }
        at += bytes;
    }
    let mut eight = [[[0; 2]; 4]; 2];
    for (to, from) in
        eight.as_flattened_mut().iter_mut().zip(four.as_flattened().iter().chain(rest))
    {
        *to = *from;
    }
    let end = &mut out[at..];
    end.copy_from_slice(&squeeze_eight_pairs::<BITS>(&eight)[..end.len()]);
}

fn unpack_eight_pairs<const BITS: u32>(bytes: &[u8], codes: &mut [[u8; 2]]) {
    let mut at = 0;
    let (eights, rest) = codes.as_chunks_mut::<8>();
    for eight in eights {
        eight.copy_from_slice(spread_eight_pairs::<BITS>(&bytes[at..]).as_flattened());
        at += BITS as usize;
    }
    let eight = spread_eight_pairs::<BITS>(&bytes[at..]);
    rest.copy_from_slice(&eight.as_flattened()[..rest.len()]);
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
                if bits <= 8 {
                    // Bits above the width are ignored here too.
                    let above = if bits == 8 { 0 } else { 0xFFu8 << bits };
                    let single: Vec<u8> =
                        codes.iter().map(|c| c.to_le_bytes()[0] | above).collect();
                    let mut again = vec![7; bytes.len()];
                    pack_bytes(&single, bits, &mut again);
                    assert_eq!(again, bytes, "{bits} bits");
                    let mut back = vec![7; codes.len()];
                    unpack_bytes(&bytes, bits, &mut back);
                    assert!(
                        back.iter().zip(&codes).all(|(b, c)| u32::from(*b) == *c),
                        "{bits} bits"
                    );
                } else if bits <= 16 {
                    let above = if bits == 16 { 0 } else { u32::MAX << bits };
                    let two =
                        |c: &u32| [(c | above).to_le_bytes()[0], (c | above).to_le_bytes()[1]];
                    let pairs: Vec<[u8; 2]> = codes.iter().map(two).collect();
                    let mut again = vec![7; bytes.len()];
                    pack_pairs(&pairs, bits, &mut again);
                    assert_eq!(again, bytes, "{bits} bits");
                    let mut back = vec![[7; 2]; codes.len()];
                    unpack_pairs(&bytes, bits, &mut back);
                    let code = |b: &[u8; 2]| u32::from(u16::from_le_bytes(*b));
                    assert!(back.iter().zip(&codes).all(|(b, c)| code(b) == *c), "{bits} bits");
                }
                for first in 0..codes.len() {
                    let mut back = vec![0; (codes.len() - first).min(3)];
                    unpack(&bytes, bits, first, &mut back);
                    assert_eq!(back, codes[first..first + back.len()], "{bits} bits from {first}");
                }
            }
        }
    }
}
