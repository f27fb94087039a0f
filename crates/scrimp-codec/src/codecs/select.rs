//! The elements with the largest keys, found by radix selection: the same for any number of threads, in O(n).

use std::ops::Range;

use rayon::prelude::*;

/// Elements that one task works on.
const PART: usize = 64 * 1024;

/// Keys that are held at a time.
const WINDOW: usize = 1024;

/// Bits of a key that one histogram resolves.
const DIGIT_BITS: u32 = 12;

/// An element that may be among the largest, counted from the start of its part.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    key: u32,
    offset: u32,
}

/// The indices of the `k` elements with the largest keys, in ascending order. Of equal keys the lower index goes first.
///
/// `keys` writes the keys of a range of elements, which are of `key_bits` bits. `guess` is a key that `k` elements are
/// likely to reach and few more; it changes how long this takes and nothing else.
pub(super) fn largest(
    n: usize,
    k: usize,
    key_bits: u32,
    guess: u32,
    keys: impl Fn(Range<usize>, &mut [u32]) + Sync,
) -> Vec<usize> {
    if k >= n {
        return (0..n).collect();
    }
    if k == 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut low = guess;
    if guess > 0 {
        found = reaching(n, guess, usize::MAX, &keys);
    }
    // The last accepted key lies in [low, low + span); `above` keys lie beyond that.
    let (mut span, mut above) = ((1u64 << key_bits) - u64::from(guess), 0);
    if found.iter().map(Vec::len).sum::<usize>() < k {
        let (mut shift, mut inside) = (key_bits, n);
        (low, span) = (0, 1 << key_bits);
        while shift > 0 && (inside > n / 16 + WINDOW || shift == key_bits) {
            let digit = DIGIT_BITS.min(shift);
            let counts = histogram(n, low, shift, digit, &keys);
            let mut bin = counts.len() - 1;
            while above + counts[bin] < k {
                above += counts[bin];
                bin -= 1;
            }
            shift -= digit;
            inside = counts[bin];
            low |= u32::try_from(bin).unwrap_or(0) << shift;
            span = 1 << shift;
        }
        // Where one key is left, no part gives more of them than are wanted in all.
        let ties = if span == 1 { k - above } else { usize::MAX };
        found = reaching(n, low, ties, &keys);
    }

    // Of those in question, the last one that is accepted: larger keys first, then lower indices.
    let end = u64::from(low) + span;
    let mut open: Vec<(u32, usize)> = Vec::new();
    for (i, part) in found.iter().enumerate() {
        let inside = part.iter().filter(|c| u64::from(c.key) < end);
        open.extend(inside.map(|c| (!c.key, i * PART + c.offset as usize)));
    }
    let wanted = k - above;
    let last = if wanted == open.len() {
        (u32::MAX, usize::MAX)
    } else {
        *open.select_nth_unstable(wanted - 1).1
    };
    let accepted = |(i, part): (usize, &Vec<Candidate>)| {
        part.iter()
            .map(|c| (!c.key, i * PART + c.offset as usize))
            .filter(|c| *c <= last)
            .map(|(_, index)| index)
            .collect::<Vec<_>>()
    };
    found.iter().enumerate().flat_map(accepted).collect()
}

fn parts(n: usize) -> Vec<Range<usize>> {
    (0..n).step_by(PART).map(|at| at..(at + PART).min(n)).collect()
}

fn windows(part: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = part.end;
    part.clone().step_by(WINDOW).map(move |at| at..(at + WINDOW).min(end))
}

/// How many keys have each digit below `shift`, among those that equal `prefix` from `shift` on.
fn histogram(
    n: usize,
    prefix: u32,
    shift: u32,
    digit: u32,
    keys: &(impl Fn(Range<usize>, &mut [u32]) + Sync),
) -> Vec<usize> {
    let bins = 1usize << digit;
    let low = shift - digit;
    let whole = |counts: Vec<usize>, part: Range<usize>| {
        let mut counts = counts;
        let mut window = [0; WINDOW];
        for at in windows(&part) {
            let window = &mut window[..at.len()];
            keys(at, window);
            for key in window {
                let digit = (*key >> low) as usize;
                // Shifts by all bits are none, so the prefix is compared one bit earlier.
                if *key >> (shift - 1) >> 1 == prefix >> (shift - 1) >> 1 {
                    counts[digit & (bins - 1)] += 1;
                }
            }
        }
        counts
    };
    parts(n)
        .into_par_iter()
        .fold(|| vec![0; bins], whole)
        .reduce(|| vec![0; bins], |a, b| a.iter().zip(b).map(|(a, b)| a + b).collect())
}

/// The elements of each part whose keys are at least `low`, of those that equal it at most `ties`.
fn reaching(
    n: usize,
    low: u32,
    ties: usize,
    keys: &(impl Fn(Range<usize>, &mut [u32]) + Sync),
) -> Vec<Vec<Candidate>> {
    parts(n)
        .into_par_iter()
        .map(|part| {
            let mut found = Vec::new();
            let mut ties = ties;
            let (mut window, mut picked) = ([0; WINDOW], [0u16; WINDOW]);
            for at in windows(&part) {
                let window = &mut window[..at.len()];
                keys(at.clone(), window);
                // Without a branch, as it is anybody's guess which elements are picked.
                let mut count = 0;
                for (i, key) in (0u16..).zip(&*window) {
                    picked[count] = i;
                    count += usize::from(*key >= low);
                }
                let start = at.start - part.start;
                for i in &picked[..count] {
                    let i = usize::from(*i);
                    let key = window[i];
                    if key == low {
                        if ties == 0 {
                            continue;
                        }
                        ties -= 1;
                    }
                    found.push(Candidate { key, offset: u32::try_from(start + i).unwrap_or(0) });
                }
            }
            found
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stream;

    fn by_sorting(keys: &[u32], k: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|i| (!keys[*i], *i));
        order.truncate(k);
        order.sort_unstable();
        order
    }

    #[test]
    fn it_finds_what_sorting_finds() {
        let stream = Stream::new(4, 4);
        for n in [1usize, 2, 5, 1023, 1025, 70_000, 200_001] {
            let draws: Vec<u32> = (0..n as u64).map(|i| stream.words(i)[0] >> 1).collect();
            let kinds: [Vec<u32>; 6] = [
                draws.clone(),
                draws.iter().map(|d| d >> 28).collect(),
                draws.iter().map(|d| d & 0xFFF).collect(),
                vec![7; n],
                draws.iter().map(|d| if d % 100 == 0 { d >> 20 } else { 0 }).collect(),
                (0..n as u32).collect(),
            ];
            for keys in kinds {
                for k in [0, 1, 2, n / 100, n / 3, n / 2, n - 1, n] {
                    let k = k.min(n);
                    let expected = by_sorting(&keys, k);
                    for guess in [0, 1, 9, 1 << 25, u32::MAX >> 1] {
                        let got =
                            largest(n, k, 31, guess, |at, out| out.copy_from_slice(&keys[at]));
                        assert!(got == expected, "{n} elements, {k} of them, guess {guess}");
                    }
                }
            }
        }
    }
}
