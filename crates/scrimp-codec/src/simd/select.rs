//! Loops of selection: which keys reach a bound.

/// Keys that are looked at together.
const CHUNK: usize = 16;

versions! {
    /// Writes the numbers of the keys that are at least `low`, in order, and answers how many there are. `picked` has
    /// room for one number more than there are keys.
    fn reaching(keys: &[u32], low: u32, picked: &mut [u16]) -> usize {
        let mut count = 0;
        let mut first = 0u16;
        let (chunks, rest) = keys.as_chunks::<CHUNK>();
        for chunk in chunks {
            if chunk.iter().fold(0, |m, key| m | u32::from(*key >= low)) != 0 {
                // Without a branch for each, as it is anybody's guess which keys they are.
                for (i, key) in (first..).zip(chunk) {
                    picked[count] = i;
                    count += usize::from(*key >= low);
                }
            }
            first += CHUNK as u16;
        }
        for (i, key) in (first..).zip(rest) {
            picked[count] = i;
            count += usize::from(*key >= low);
        }
        count
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
                let expected: Vec<u16> =
                    (0u16..).zip(keys).filter(|(_, key)| **key >= low).map(|(i, _)| i).collect();
                at_every_level(|level| {
                    let mut picked = vec![0; keys.len() + 1];
                    let count = reaching(keys, low, &mut picked);
                    assert_eq!(picked[..count], expected, "{level:?}");
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
