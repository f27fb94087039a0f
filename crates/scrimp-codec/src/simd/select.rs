//! Loops of selection: which keys reach a bound.

/// Keys that are looked at together: as many as a word has bits.
const CHUNK: usize = 64;

/// Appends the numbers, from `first` on, of the bytes that are 1 and not 0, after the `count` that are there.
#[inline(always)]
fn append(found: &[u8; CHUNK], first: u16, picked: &mut [u16], mut count: usize) -> usize {
    let mut bits = 0;
    for (i, eight) in found.as_chunks::<8>().0.iter().enumerate() {
        // The multiplication moves the last bit of byte i to bit i of the highest byte.
        bits |= u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56 << (8 * i);
    }
    while bits != 0 {
        picked[count] = first + bits.trailing_zeros() as u16;
        bits &= bits - 1;
        count += 1;
    }
    count
}

/// Writes the numbers of the keys from `low` on that are less than `width` above it, in order, and answers how many there
/// are.
#[inline(always)]
fn pick(keys: &[u32], low: u32, width: u32, picked: &mut [u16]) -> usize {
    let (mut count, mut first) = (0, 0);
    let (chunks, rest) = keys.as_chunks::<CHUNK>();
    for chunk in chunks {
        let mut found = [0; CHUNK];
        for l in 0..CHUNK {
            found[l] = u8::from(chunk[l].wrapping_sub(low) < width);
        }
        count = append(&found, first, picked, count);
        first += CHUNK as u16;
    }
    let mut found = [0; CHUNK];
    for (found, key) in found.iter_mut().zip(rest) {
        *found = u8::from(key.wrapping_sub(low) < width);
    }
    append(&found, first, picked, count)
}

versions! {
    /// Writes the numbers of the keys that are at least `low`, in order, and answers how many there are. `picked` has room
    /// for as many numbers as there are keys, none of which is the largest number.
    fn reaching(keys: &[u32], low: u32, picked: &mut [u16]) -> usize {
        pick(keys, low, u32::MAX - low, picked)
    }
}

/// What was found among keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// How many lie between the bounds.
    pub within: usize,
    /// How many lie above.
    pub above: usize,
    /// The largest.
    pub largest: u32,
}

versions! {
    /// Writes the numbers of the keys from `low` on and below `end`, in order. `picked` has room for as many numbers as there
    /// are keys.
    fn between(keys: &[u32], low: u32, end: u32, picked: &mut [u16]) -> Found {
        let (mut above, mut largest) = (0u32, 0);
        for key in keys {
            above += u32::from(*key >= end);
            largest = largest.max(*key);
        }
        let within = pick(keys, low, end - low, picked);
        Found { within, above: above as usize, largest }
    }
}

versions! {
    /// The bits of magnitudes.
    fn magnitude_bits(x: &[f32], keys: &mut [u32]) {
        for (v, key) in x.iter().zip(keys) {
            *key = v.to_bits() & 0x7FFF_FFFF;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stream;
    use crate::simd::tests::at_every_level;

    #[test]
    fn every_level_picks_what_reaches_the_bound() {
        let mut keys = vec![0; 300];
        Stream::new(1, 6).fill(0, &mut keys);
        for low in [0, 1 << 20, 1 << 23, (1 << 24) - (1 << 18), u32::MAX] {
            for at in (0..70).map(|len| 1..1 + len).chain(std::iter::once(0..300)) {
                let keys = &keys[at];
                let numbers = |wanted: &dyn Fn(u32) -> bool| -> Vec<u16> {
                    (0u16..).zip(keys).filter(|(_, key)| wanted(**key)).map(|(i, _)| i).collect()
                };
                let end = low.saturating_add(1 << 21);
                let (reached, inside) =
                    (numbers(&|key| key >= low), numbers(&|key| (low..end).contains(&key)));
                at_every_level(|level| {
                    let mut picked = vec![0; keys.len()];
                    let count = reaching(keys, low, &mut picked);
                    assert_eq!(picked[..count], reached, "{level:?}");
                    let found = between(keys, low, end, &mut picked);
                    assert_eq!(picked[..found.within], inside, "{level:?}");
                    assert_eq!(found.above, keys.iter().filter(|key| **key >= end).count());
                    assert_eq!(found.largest, keys.iter().copied().max().unwrap_or(0));
                });
            }
        }
        let x: Vec<f32> = keys.iter().map(|key| f32::from_bits(key << 8)).collect();
        at_every_level(|_| {
            let mut bits = vec![0; x.len()];
            magnitude_bits(&x, &mut bits);
            assert!(bits.iter().zip(&x).all(|(b, v)| *b == v.abs().to_bits()));
        });
    }
}
