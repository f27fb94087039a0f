//! Counter-based random numbers: the same element gets the same number, whatever thread asks for it.
//!
//! # Source
//! Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3" (Philox4x32-10, Random123).

use crate::simd;

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// A stream of random numbers, named by seed, tensor and step, and read at any index.
///
/// The Philox key is (seed, tensor id), its counter (step, element index / 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    step: u64,
}

impl Stream {
    /// The stream of one tensor at step 0.
    pub fn new(seed: u32, tensor: u32) -> Self {
        Self { key: [seed, tensor], step: 0 }
    }

    /// The stream of a tensor known by its name (a layer's path and role, say).
    ///
    /// The tensor's id is the 32-bit FNV-1a hash of the name.
    pub fn named(seed: u32, name: &str) -> Self {
        let id =
            name.bytes().fold(0x811C_9DC5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Self::new(seed, id)
    }

    /// The same stream at another step.
    #[must_use]
    pub fn at_step(self, step: u64) -> Self {
        Self { step, ..self }
    }

    /// The stream as bytes: seed, tensor id and step, little-endian.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.key[0].to_le_bytes());
        bytes[4..8].copy_from_slice(&self.key[1].to_le_bytes());
        bytes[8..].copy_from_slice(&self.step.to_le_bytes());
        bytes
    }

    /// The stream that [`to_bytes`](Self::to_bytes) wrote; any bytes are one.
    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        let [seed, tensor, low, high] =
            [0, 4, 8, 12].map(|at| std::array::from_fn(|i| bytes[at + i])).map(u32::from_le_bytes);
        Self { key: [seed, tensor], step: u64::from(low) | u64::from(high) << 32 }
    }

    /// The four 32-bit words of one block.
    pub fn words(&self, block: u64) -> [u32; 4] {
        philox([low(self.step), high(self.step), low(block), high(block)], self.key)
    }

    /// The 24-bit integer that element `index` draws; divided by 2^24 it is uniform in [0, 1).
    pub fn draw(&self, index: u64) -> u32 {
        self.words(index / 4)[(index % 4) as usize] >> 8
    }

    /// A number in [0, 1) with 24 bits, for element `index`.
    pub fn uniform(&self, index: u64) -> f32 {
        self.draw(index) as f32 / 16_777_216.0
    }

    /// Fills `out` with the 24-bit draws of the elements from `index` on.
    pub fn fill(&self, index: u64, out: &mut [u32]) {
        let head = ((4 - index % 4) % 4).min(out.len() as u64) as usize;
        for (i, v) in out[..head].iter_mut().enumerate() {
            *v = self.draw(index + i as u64);
        }
        let blocks = (index + head as u64) / 4;
        let (body, tail) = out[head..].as_chunks_mut::<4>();
        simd::philox_blocks(self, blocks, body);
        let next = index + (head + 4 * body.len()) as u64;
        for (i, v) in tail.iter_mut().enumerate() {
            *v = self.draw(next + i as u64);
        }
    }

    /// The draws of consecutive blocks, written so that the compiler can keep a block per lane of a vector.
    ///
    /// A lane has 64 bits for a word of 32, and only the lower half is ever read: a product needs no unpacking then.
    #[inline(always)]
    pub(crate) fn blocks(&self, block: u64, out: &mut [[u32; 4]]) {
        let mut at = block;
        let (chunks, rest) = out.as_chunks_mut::<32>();
        for chunk in chunks {
            for l in 0..16 {
                let a = self.block(at.wrapping_add(l as u64));
                let b = self.block(at.wrapping_add(l as u64 + 16));
                chunk[l] = a;
                chunk[l + 16] = b;
            }
            at = at.wrapping_add(32);
        }
        let (chunks, rest) = rest.as_chunks_mut::<16>();
        for chunk in chunks {
            for (l, four) in chunk.iter_mut().enumerate() {
                *four = self.block(at.wrapping_add(l as u64));
            }
            at = at.wrapping_add(16);
        }
        for four in rest {
            *four = self.block(at);
            at = at.wrapping_add(1);
        }
    }

    #[inline(always)]
    fn block(&self, block: u64) -> [u32; 4] {
        let word = |w: u32| u64::from(w);
        let mut c = [word(low(self.step)), word(high(self.step)), block, block >> 32];
        let mut key = self.key;
        for _ in 0..ROUNDS {
            let a = word(MULTIPLIER[0]) * word(low(c[0]));
            let b = word(MULTIPLIER[1]) * word(low(c[2]));
            c = [(b >> 32) ^ c[1] ^ word(key[0]), b, (a >> 32) ^ c[3] ^ word(key[1]), a];
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        c.map(|w| low(w) >> 8)
    }
}

fn philox(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIER[0]) * u64::from(c[0]);
        let b = u64::from(MULTIPLIER[1]) * u64::from(c[2]);
        c = [high(b) ^ c[1] ^ key[0], low(b), high(a) ^ c[3] ^ key[1], low(a)];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    c
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
#[inline(always)]
fn low(x: u64) -> u32 {
    x as u32
}

#[inline(always)]
fn high(x: u64) -> u32 {
    (x >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_random123_known_answers_hold() {
        let cases: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn filling_equals_drawing_one_by_one_at_any_offset_and_length() {
        let s = Stream::named(7, "conv1.weight").at_step(u64::from(u32::MAX) + 3);
        for start in [0u64, 1, 2, 3, 4, 63, (1 << 34) - 5] {
            for len in [0usize, 1, 3, 4, 5, 63, 64, 65, 200] {
                let mut out = vec![0; len];
                s.fill(start, &mut out);
                let expected: Vec<u32> = (0..len as u64).map(|i| s.draw(start + i)).collect();
                assert_eq!(out, expected, "start {start}, length {len}");
            }
        }
    }
}
