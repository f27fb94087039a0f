//! Which `k` of `n` elements a sparse tensor holds, as bytes.
//!
//! The coding follows from `n` and `k` alone, so that the number of bytes is known beforehand and nothing has to say
//! which it is:
//!
//! - all elements: no bytes;
//! - a bit for each element, from the least significant of each byte on, 1 where it is held: `ceil(n / 8)` bytes;
//! - Elias-Fano, where that is shorter than a bit for each element. With `l = min(32, floor(log2(n / k)))`, the lowest `l`
//!   bits of each index, packed one after the other from the least significant bit of each byte on, to a whole byte; then
//!   the rest of each index, `h`, of index number `j` (from 0) as a 1 at bit `h + j`, in `ceil((k + floor((n - 1) / 2^l)) /
//!   8)` bytes.
//!
//! # Source
//! Elias 1974, "Efficient Storage and Retrieval by Content and Address of Static Files", and Fano 1971: at most about half a
//! bit for each index above the least possible.

use rayon::prelude::*;

use crate::pack;

/// Indices that are packed at a time.
const WINDOW: usize = 4096;

/// The coding of `k` of `n` places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    All,
    Bits,
    /// Elias-Fano with so many bits below.
    Split(u32),
}

/// How the places of `k` of `n` elements are stored; `k` is 1 to `n`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    n: usize,
    k: usize,
    coding: Coding,
}

impl Places {
    pub fn new(n: usize, k: usize) -> Self {
        let split = (n / k).ilog2().min(32);
        let bits = bits_of(n, k, split);
        let coding = match bits {
            _ if k == n => Coding::All,
            Some(bits) if bits < n => Coding::Split(split),
            _ => Coding::Bits,
        };
        Self { n, k, coding }
    }

    /// The bytes of the lower bits, and of what follows them.
    fn parts(self) -> [usize; 2] {
        match self.coding {
            Coding::All => [0, 0],
            Coding::Bits => [0, self.n.div_ceil(8)],
            Coding::Split(low) => [
                pack::packed_len(self.k, low).unwrap_or(usize::MAX),
                upper_bits(self.n, self.k, low).div_ceil(8),
            ],
        }
    }

    /// How many bytes the places take.
    pub fn bytes(self) -> usize {
        let [low, high] = self.parts();
        low.saturating_add(high)
    }

    /// Writes ascending indices, `k` of them, into [`bytes`](Self::bytes) bytes that are 0.
    pub fn write(self, indices: &[usize], out: &mut [u8]) {
        match self.coding {
            Coding::All => {}
            Coding::Bits => indices.iter().for_each(|i| out[i / 8] |= 1 << (i % 8)),
            Coding::Split(low) => {
                let (lower, upper) = out.split_at_mut(self.parts()[0]);
                if low > 0 {
                    // Whole bytes of codes, which are cut to their width when they are packed.
                    let bytes = WINDOW / 8 * low as usize;
                    indices.par_chunks(WINDOW).zip(lower.par_chunks_mut(bytes)).for_each(
                        |(indices, lower)| {
                            let mut codes = [0; WINDOW];
                            for (code, i) in codes.iter_mut().zip(indices) {
                                *code = lowest(*i);
                            }
                            pack::pack(&codes[..indices.len()], low, lower);
                        },
                    );
                }
                for (j, i) in indices.iter().enumerate() {
                    let at = (i >> low) + j;
                    upper[at / 8] |= 1 << (at % 8);
                }
            }
        }
    }

    /// Reads `k` ascending indices; the error says what is wrong.
    pub fn read(self, bytes: &[u8]) -> Result<Vec<usize>, String> {
        let (lower, upper) = bytes.split_at(self.parts()[0]);
        let mut indices = Vec::with_capacity(self.k);
        match self.coding {
            Coding::All => indices.extend(0..self.n),
            Coding::Bits | Coding::Split(_) => {
                let ones: usize = upper.iter().map(|b| b.count_ones() as usize).sum();
                if ones != self.k {
                    return Err(format!("{ones} elements are marked, and there are {}", self.k));
                }
                each_one(upper, |at| indices.push(at));
            }
        }
        if let Coding::Split(low) = self.coding {
            indices.par_chunks_mut(WINDOW).enumerate().for_each(|(part, indices)| {
                let mut codes = [0; WINDOW];
                if low > 0 {
                    pack::unpack(lower, low, part * WINDOW, &mut codes[..indices.len()]);
                }
                for (j, (i, code)) in (part * WINDOW..).zip(indices.iter_mut().zip(codes)) {
                    *i = (*i - j) << low | code as usize;
                }
            });
        }
        if let Some([before, after]) = indices.array_windows().find(|[a, b]| a >= b) {
            return Err(format!("index {after} comes after index {before}"));
        }
        match indices.last() {
            Some(last) if *last >= self.n => {
                Err(format!("index {last} is beyond the {} elements", self.n))
            }
            _ => Ok(indices),
        }
    }
}

/// Bits of the upper parts of `k` indices below `n`.
fn upper_bits(n: usize, k: usize, low: u32) -> usize {
    k + ((n - 1) >> low)
}

fn bits_of(n: usize, k: usize, low: u32) -> Option<usize> {
    k.checked_mul(low as usize)?.checked_add(upper_bits(n, k, low))
}

#[expect(clippy::cast_possible_truncation, reason = "the lowest bits are what is asked for")]
fn lowest(index: usize) -> u32 {
    index as u32
}

/// Calls `visit` for the number of every bit that is 1.
fn each_one(bytes: &[u8], mut visit: impl FnMut(usize)) {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut word = |first: usize, mut word: u64| {
        while word != 0 {
            visit(first + word.trailing_zeros() as usize);
            word &= word - 1;
        }
    };
    for (i, bytes) in words.iter().enumerate() {
        word(64 * i, u64::from_le_bytes(*bytes));
    }
    for (i, byte) in rest.iter().enumerate() {
        word(64 * words.len() + 8 * i, u64::from(*byte));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subset_of_a_few_elements_comes_back_and_no_other_bytes_do() {
        for n in 1..=9usize {
            for k in 1..=n {
                let places = Places::new(n, k);
                let mut seen = 0;
                for set in (0u32..1 << n).filter(|set| set.count_ones() as usize == k) {
                    let indices: Vec<usize> = (0..n).filter(|i| set >> i & 1 == 1).collect();
                    let mut bytes = vec![0; places.bytes()];
                    places.write(&indices, &mut bytes);
                    assert_eq!(places.read(&bytes).unwrap(), indices, "{n} {k}");
                    seen += 1;
                }
                // All other bytes are refused or differ only in bits that mean nothing.
                if places.bytes() <= 2 {
                    let mut read = std::collections::HashSet::new();
                    for word in 0..1u32 << (8 * places.bytes()) {
                        let bytes = &word.to_le_bytes()[..places.bytes()];
                        if let Ok(indices) = places.read(bytes) {
                            assert!(indices.len() == k && indices.is_sorted());
                            assert!(indices.iter().all(|i| *i < n));
                            read.insert(indices);
                        }
                    }
                    assert_eq!(read.len(), seen, "{n} {k}");
                }
            }
        }
    }

    #[test]
    fn large_sets_come_back_and_are_near_the_least_possible() {
        for (n, k) in [
            (1 << 20, 10_486),
            (1_000_003, 100_000),
            (1 << 24, 7),
            ((1 << 24) + 1, 1),
            (100_000, 30_000),
        ] {
            let indices: Vec<usize> = (0..k).map(|j| j * n / k + (j * 7919 % (n / k))).collect();
            let places = Places::new(n, k);
            let mut bytes = vec![0; places.bytes()];
            places.write(&indices, &mut bytes);
            assert_eq!(places.read(&bytes).unwrap(), indices);
            let p = k as f64 / n as f64;
            let least = -(p * p.log2() + (1.0 - p) * (1.0 - p).log2()) * n as f64;
            assert!((places.bytes() * 8) as f64 <= least + 0.6 * k as f64 + 16.0, "{n} {k}");
            assert!(places.bytes() <= n.div_ceil(8));
        }
    }

    #[test]
    fn sizes_beyond_memory_are_counted_without_overflow() {
        let n = isize::MAX.unsigned_abs();
        for k in [1, 1 << 40, n / 2, n] {
            assert!(Places::new(n, k).bytes() <= n / 8 + 1);
        }
    }

    #[test]
    fn foreign_bytes_are_refused_with_a_reason() {
        // Two of 64: five bits below each, and the rest in 2 + 63 / 32 bits.
        let places = Places::new(64, 2);
        let mut bytes = vec![0; places.bytes()];
        places.write(&[3, 60], &mut bytes);
        assert_eq!(bytes, [0b1000_0011, 0b11, 0b101]);
        for (bytes, reason) in [
            ([0b1000_0011, 0b11, 0b100], "1 elements are marked"),
            ([0b0110_0011, 0, 0b011], "index 3 comes after index 3"),
            ([0b0100_0011, 0, 0b011], "index 2 comes after index 3"),
            ([0, 0, 0b1001], "beyond the 64 elements"),
        ] {
            let error = places.read(&bytes).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
