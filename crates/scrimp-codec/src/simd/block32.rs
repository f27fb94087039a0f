//! Loops for the blocks of 32 of gguf files. The shape of a block and its arithmetic stand in
//! [`gguf`](crate::codecs).

use half::f16;

use super::{SIGN, block_amax, clamp};

/// Elements of a block.
const LEN: usize = 32;

/// Which blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block32 {
    /// Eight bits, symmetric.
    Q8,
    /// Four bits, the value of largest magnitude at the lowest code.
    Q4,
}

impl Block32 {
    /// Bytes of a block of so many elements, one to 32.
    pub fn bytes(self, elems: usize) -> usize {
        match self {
            Self::Q8 => 2 + elems,
            Self::Q4 => 2 + elems.min(LEN / 2),
        }
    }
}

/// The scale as stored, and what values are multiplied by: its reciprocal before it was rounded.
#[inline(always)]
fn scale(d: f32) -> (f16, f32) {
    let stored = f16::from_f32(d);
    if stored.is_infinite() {
        let stored = if d < 0.0 { f16::MIN } else { f16::MAX };
        return (stored, 1.0 / stored.to_f32());
    }
    let inverse = 1.0 / d;
    (stored, if inverse.is_finite() { inverse } else { 0.0 })
}

/// The scale of a block, and the codes of its elements as numbers.
#[inline(always)]
fn fit8(x: &[f32]) -> (f16, f32) {
    scale(f32::from_bits(block_amax(x)) / 127.0)
}

/// To the nearest integer, halves away from zero.
#[inline(always)]
fn code8(v: f32, inverse: f32) -> f32 {
    let v = v * inverse;
    let a = f32::from_bits(v.to_bits() & !SIGN);
    let even = a.round_ties_even();
    let r = if a - even == 0.5 { even + 1.0 } else { even };
    let r = if r > 127.0 { 127.0 } else { r };
    f32::from_bits(r.to_bits() | v.to_bits() & SIGN)
}

#[inline(always)]
fn fit4(x: &[f32]) -> (f16, f32) {
    let amax = block_amax(x);
    // The first of those that have the largest magnitude says the sign.
    let first = x.iter().find(|v| v.to_bits() & !SIGN == amax).copied().unwrap_or(0.0);
    scale(first / -8.0)
}

#[inline(always)]
fn code4(v: f32, inverse: f32) -> f32 {
    clamp((v * inverse + 8.5).trunc(), 0.0, 15.0)
}

/// The low byte of a small integer, in two's complement.
#[inline(always)]
fn byte(q: f32) -> u8 {
    // Adding 1.5 * 2^23 leaves the integer in the mantissa.
    (q + 12_582_912.0).to_bits().to_le_bytes()[0]
}

/// The value of a code; adding zero takes the sign from zero.
#[inline(always)]
fn value(q: f32, d: f32) -> f32 {
    q * d + 0.0
}

#[inline(always)]
fn encode8(x: &[f32], out: &mut [u8]) {
    let (stored, inverse) = fit8(x);
    let (head, codes) = out.split_at_mut(2);
    head.copy_from_slice(&stored.to_le_bytes());
    for (v, code) in x.iter().zip(codes) {
        *code = byte(code8(*v, inverse));
    }
}

#[inline(always)]
fn encode4(x: &[f32], out: &mut [u8]) {
    let (stored, inverse) = fit4(x);
    let (head, codes) = out.split_at_mut(2);
    head.copy_from_slice(&stored.to_le_bytes());
    let (low, high) = x.split_at(x.len().min(LEN / 2));
    for (v, code) in low.iter().zip(codes.iter_mut()) {
        *code = byte(code4(*v, inverse));
    }
    for (v, code) in high.iter().zip(codes) {
        *code |= byte(code4(*v, inverse)) << 4;
    }
}

versions! {
    /// The bytes of consecutive blocks, of which the last may be short.
    fn block32_encode(kind: Block32, x: &[f32], out: &mut [u8]) {
        let (blocks, rest) = x.as_chunks::<LEN>();
        let (whole, last) = out.split_at_mut(blocks.len() * kind.bytes(LEN));
        match kind {
            Block32::Q8 => {
                for (x, out) in blocks.iter().zip(whole.as_chunks_mut::<{ 2 + LEN }>().0) {
                    encode8(x, out);
                }
                if !rest.is_empty() { encode8(rest, last); }
            }
            Block32::Q4 => {
                for (x, out) in blocks.iter().zip(whole.as_chunks_mut::<{ 2 + LEN / 2 }>().0) {
                    encode4(x, out);
                }
                if !rest.is_empty() { encode4(rest, last); }
            }
        }
    }
}

#[inline(always)]
fn emulate(kind: Block32, x: &mut [f32]) {
    match kind {
        Block32::Q8 => {
            let (stored, inverse) = fit8(x);
            let d = stored.to_f32();
            for v in x {
                *v = value(code8(*v, inverse), d);
            }
        }
        Block32::Q4 => {
            let (stored, inverse) = fit4(x);
            let d = stored.to_f32();
            for v in x {
                *v = value(code4(*v, inverse) - 8.0, d);
            }
        }
    }
}

versions! {
    /// Rounds consecutive blocks, of which the last may be short, to the values of their bytes.
    fn block32_emulate(kind: Block32, x: &mut [f32]) {
        let (blocks, rest) = x.as_chunks_mut::<LEN>();
        for block in blocks { emulate(kind, block); }
        if !rest.is_empty() { emulate(kind, rest); }
    }
}

/// Whether the scale is a number.
#[inline(always)]
fn decode8(bytes: &[u8], out: &mut [f32]) -> bool {
    let d = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    for (code, v) in bytes[2..].iter().zip(out) {
        *v = value(f32::from(code.cast_signed()), d);
    }
    d.is_finite()
}

#[inline(always)]
fn decode4(bytes: &[u8], out: &mut [f32]) -> bool {
    let d = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let (low, high) = out.split_at_mut(out.len().min(LEN / 2));
    for (code, v) in bytes[2..].iter().zip(low) {
        *v = value(f32::from(code & 15) - 8.0, d);
    }
    for (code, v) in bytes[2..].iter().zip(high) {
        *v = value(f32::from(code >> 4) - 8.0, d);
    }
    d.is_finite()
}

versions! {
    /// The values of consecutive blocks, of which the last may be short; the first block whose scale is no number.
    /// There are at least as many bytes as the values need.
    fn block32_decode(kind: Block32, bytes: &[u8], out: &mut [f32]) -> Option<usize> {
        let (blocks, rest) = out.as_chunks_mut::<LEN>();
        let count = blocks.len();
        let (whole, last) = bytes.split_at(count * kind.bytes(LEN));
        let mut bad = None;
        match kind {
            Block32::Q8 => {
                for (i, (out, b)) in blocks.iter_mut().zip(whole.as_chunks::<{ 2 + LEN }>().0).enumerate() {
                    if !decode8(b, out) { bad = bad.or(Some(i)); }
                }
                if !rest.is_empty() && !decode8(&last[..kind.bytes(rest.len())], rest) { bad = bad.or(Some(count)); }
            }
            Block32::Q4 => {
                for (i, (out, b)) in blocks.iter_mut().zip(whole.as_chunks::<{ 2 + LEN / 2 }>().0).enumerate() {
                    if !decode4(b, out) { bad = bad.or(Some(i)); }
                }
                if !rest.is_empty() && !decode4(&last[..kind.bytes(rest.len())], rest) { bad = bad.or(Some(count)); }
            }
        }
        bad
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at_every_level, values};
    use super::*;

    /// The bytes of a block as its format is written down, and their values.
    fn by_definition(kind: Block32, x: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let amax = x.iter().map(|v| v.abs()).fold(0.0, f32::max);
        let d = match kind {
            Block32::Q8 => amax / 127.0,
            Block32::Q4 => x.iter().find(|v| v.abs() == amax).unwrap() / -8.0,
        };
        let mut stored = f16::from_f32(d);
        let mut inverse = 1.0 / d;
        if stored.is_infinite() {
            stored = f16::from_f32(65504f32.copysign(d));
            inverse = 1.0 / stored.to_f32();
        } else if inverse.is_infinite() {
            inverse = 0.0;
        }
        let codes: Vec<i32> = x
            .iter()
            .map(|v| match kind {
                Block32::Q8 => (v * inverse).round().clamp(-127.0, 127.0) as i32,
                Block32::Q4 => (v * inverse + 8.5).trunc().clamp(0.0, 15.0) as i32,
            })
            .collect();
        let mut bytes = stored.to_le_bytes().to_vec();
        match kind {
            Block32::Q8 => bytes.extend(codes.iter().map(|q| q.to_le_bytes()[0])),
            Block32::Q4 => {
                for j in 0..x.len().min(16) {
                    let high = codes.get(j + 16).copied().unwrap_or(0);
                    bytes.push((codes[j] | high << 4).to_le_bytes()[0]);
                }
            }
        }
        let zero = if kind == Block32::Q4 { 8 } else { 0 };
        let values = codes.iter().map(|q| (q - zero) as f32 * stored.to_f32() + 0.0).collect();
        (bytes, values)
    }

    #[test]
    fn every_level_gives_the_blocks_of_the_definition() {
        let x: Vec<f32> = values(4000).into_iter().filter(|v| v.is_finite()).collect();
        // Small ones too, so that not every block holds a huge value.
        let tame: Vec<f32> = x.iter().map(|v| v.clamp(-3.0, 3.0)).collect();
        let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for kind in [Block32::Q8, Block32::Q4] {
            for x in [&x, &tame, &vec![0.0; 64]] {
                for start in [0, 1, 3] {
                    for len in (0..70).chain([x.len() - start]) {
                        let Some(part) = x.get(start..start + len) else { continue };
                        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
                        for block in part.chunks(LEN) {
                            let (b, v) = by_definition(kind, block);
                            bytes.extend(b);
                            expected.extend(v);
                        }
                        at_every_level(|level| {
                            let mut got = vec![0; bytes.len()];
                            block32_encode(kind, part, &mut got);
                            assert_eq!(got, bytes, "{kind:?} {level:?} {len}");
                            let mut decoded = vec![1.0; len];
                            assert_eq!(block32_decode(kind, &bytes, &mut decoded), None);
                            let mut emulated = part.to_vec();
                            block32_emulate(kind, &mut emulated);
                            assert_eq!(bits(&decoded), bits(&expected), "{kind:?} {level:?}");
                            assert_eq!(bits(&emulated), bits(&expected), "{kind:?} {level:?}");
                        });
                    }
                }
            }
        }
    }
}
