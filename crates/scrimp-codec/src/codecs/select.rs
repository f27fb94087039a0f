//! The elements with the largest keys, found by radix selection: the same for any number of threads, in O(n).

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

use crate::simd::select as kernels;

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

/// The keys of all elements.
pub(super) trait Keys: Sync {
    /// Bits of a key.
    const BITS: u32;

    /// Writes the keys of a range of elements.
    fn fill(&self, range: Range<usize>, keys: &mut [u32]);

    /// What decides between elements of equal keys, before their order does: more goes first.
    fn tie(&self, index: usize) -> u32;

    /// Whether [`tie`](Self::tie) tells elements apart.
    const TIES: bool;

    /// Keys between which the least accepted one is likely to lie. This changes how long the search takes and nothing
    /// else.
    fn likely(&self, n: usize, k: usize) -> Range<u32>;
}

/// What an element is ordered by, least first: its key and tie from above, and its index.
type Order = (u32, u32, usize);

/// The elements that may be among the largest, and between which keys the least accepted one lies.
struct Search {
    /// Those of each part.
    found: Vec<Vec<Candidate>>,
    /// Keys from here on are accepted.
    end: u64,
    /// How many these are.
    above: usize,
}

/// The indices of the `k` elements with the largest keys, in ascending order. Of equal keys and ties the lower index goes
/// first.
pub(super) fn largest<K: Keys>(n: usize, k: usize, keys: &K) -> Vec<usize> {
    if k >= n {
        return (0..n).collect();
    }
    if k == 0 {
        return Vec::new();
    }
    let Search { found, end, above } =
        guessed(n, k, keys).unwrap_or_else(|| by_histograms(n, k, keys));
    // Of those in question, the last one that is accepted.
    let order = |part: usize, c: &Candidate| -> Order {
        let index = part * PART + c.offset as usize;
        (!c.key, if K::TIES { !keys.tie(index) } else { 0 }, index)
    };
    let mut open: Vec<Order> = found
        .par_iter()
        .enumerate()
        .flat_map_iter(|(i, part)| {
            let inside = part.iter().filter(|c| u64::from(c.key) < end);
            inside.map(move |c| order(i, c))
        })
        .collect();
    let wanted = k - above;
    let last = if wanted == open.len() {
        (u32::MAX, u32::MAX, usize::MAX)
    } else if wanted == 0 {
        (0, 0, 0)
    } else {
        *open.select_nth_unstable(wanted - 1).1
    };
    let accepts = |part: usize, c: &Candidate| {
        let key = !c.key;
        u64::from(c.key) >= end || key < last.0 || (key == last.0 && order(part, c) <= last)
    };
    let counts: Vec<usize> = found
        .par_iter()
        .enumerate()
        .map(|(i, part)| part.iter().filter(|c| accepts(i, c)).count())
        .collect();
    let mut indices = vec![0; counts.iter().sum()];
    let mut rest = &mut indices[..];
    let mut rooms = Vec::with_capacity(counts.len());
    for count in counts {
        let (room, others) = rest.split_at_mut(count);
        rooms.push(room);
        rest = others;
    }
    rooms.into_par_iter().zip(&found).enumerate().for_each(|(i, (room, part))| {
        for (index, c) in room.iter_mut().zip(part.iter().filter(|c| accepts(i, c))) {
            *index = i * PART + c.offset as usize;
        }
    });
    indices
}

/// The search between the keys that are likely; `None` where they were wrong.
fn guessed<K: Keys>(n: usize, k: usize, keys: &K) -> Option<Search> {
    let Range { start, end } = keys.likely(n, k);
    if start == 0 || start >= end {
        return None;
    }
    let count = |found: &[Vec<Candidate>], key: u32| {
        found.par_iter().map(|part| part.iter().filter(|c| c.key >= key).count()).sum::<usize>()
    };
    let room = AtomicUsize::new(2 * k + n / 16);
    let found = reaching(n, start, usize::MAX, Some(&room), keys)?;
    let above = count(&found, end);
    let total: usize = found.iter().map(Vec::len).sum();
    (above <= k && k <= total).then_some(Search { found, end: end.into(), above })
}

/// The search by the digits of keys, from the highest on: right for any keys.
fn by_histograms<K: Keys>(n: usize, k: usize, keys: &K) -> Search {
    // The least accepted key lies in [low, low + 2^shift); `above` keys lie beyond that.
    let (mut low, mut above, mut shift, mut inside) = (0, 0, K::BITS, n);
    while shift > 0 && (inside > n / 64 + WINDOW || shift == K::BITS) {
        let digit = DIGIT_BITS.min(shift);
        let counts = histogram(n, low, shift, digit, keys);
        let mut bin = counts.len() - 1;
        while above + counts[bin] < k {
            above += counts[bin];
            bin -= 1;
        }
        shift -= digit;
        inside = counts[bin];
        low |= u32::try_from(bin).unwrap_or(0) << shift;
    }
    // Where one key is left and its elements are in order, no part gives more of them than are wanted in all.
    let ties = if shift == 0 && !K::TIES { k - above } else { usize::MAX };
    let found = reaching(n, low, ties, None, keys).unwrap_or_default();
    Search { found, end: u64::from(low) + (1 << shift), above }
}

fn parts(n: usize) -> Vec<Range<usize>> {
    (0..n).step_by(PART).map(|at| at..(at + PART).min(n)).collect()
}

fn windows(part: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = part.end;
    part.clone().step_by(WINDOW).map(move |at| at..(at + WINDOW).min(end))
}

/// How many keys have each digit below `shift`, among those that equal `prefix` from `shift` on.
fn histogram<K: Keys>(n: usize, prefix: u32, shift: u32, digit: u32, keys: &K) -> Vec<usize> {
    let low = shift - digit;
    let (bins, mask) = (1usize << digit, (1u32 << digit) - 1);
    // Shifts by all bits are none, so what is above the digit is reached in two steps.
    let above = |key: u32| key >> (shift - 1) >> 1;
    let whole = |mut counts: Vec<usize>, part: Range<usize>| {
        let mut window = [0; WINDOW];
        for at in windows(&part) {
            let window = &mut window[..at.len()];
            keys.fill(at, window);
            for key in window {
                if above(*key) == above(prefix) {
                    counts[(*key >> low & mask) as usize] += 1;
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

/// The elements of each part whose keys are at least `low`, of those that equal it at most `ties`; `None` where there are
/// more of them than there is room for.
fn reaching<K: Keys>(
    n: usize,
    low: u32,
    ties: usize,
    room: Option<&AtomicUsize>,
    keys: &K,
) -> Option<Vec<Vec<Candidate>>> {
    let search = |part: Range<usize>| {
        let mut found = Vec::new();
        let mut ties = ties;
        let (mut window, mut picked) = ([0; WINDOW], [0u16; WINDOW + 1]);
        for at in windows(&part) {
            let window = &mut window[..at.len()];
            keys.fill(at.clone(), window);
            let count = kernels::reaching(window, low, &mut picked);
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
        // Which part finds no room left depends on the threads, but whether one does not.
        let taken = |left: usize| left.checked_sub(found.len());
        let fits = room.is_none_or(|r| r.fetch_update(Relaxed, Relaxed, taken).is_ok());
        fits.then_some(found)
    };
    parts(n).into_par_iter().map(search).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stream;

    struct Given<'a, const TIES: bool> {
        keys: &'a [u32],
        likely: Range<u32>,
    }

    impl<const TIES: bool> Keys for Given<'_, TIES> {
        const BITS: u32 = 31;
        const TIES: bool = TIES;

        fn fill(&self, range: Range<usize>, keys: &mut [u32]) {
            keys.copy_from_slice(&self.keys[range]);
        }

        fn tie(&self, index: usize) -> u32 {
            if TIES { u32::try_from(index).unwrap() % 5 } else { 0 }
        }

        fn likely(&self, _: usize, _: usize) -> Range<u32> {
            self.likely.clone()
        }
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
                (0..).take(n).collect(),
            ];
            for keys in kinds {
                let sorted = |tie: fn(usize) -> usize| {
                    let mut order: Vec<usize> = (0..n).collect();
                    order.sort_by_key(|i| (!keys[*i], usize::MAX - tie(*i), *i));
                    order
                };
                let orders = [sorted(|_| 0), sorted(|i| i % 5)];
                for k in [0, 1, 2, n / 100, n / 3, n / 2, n - 1, n] {
                    let k = k.min(n);
                    let [plain, tied] = orders.each_ref().map(|order| {
                        let mut first = order[..k].to_vec();
                        first.sort_unstable();
                        first
                    });
                    let most = u32::MAX >> 1;
                    for likely in
                        [0..0, 1..most, 1..8, 7..9, 9..1 << 30, 1 << 25..1 << 30, most - 1..most]
                    {
                        let keys = &keys[..];
                        let what = format!("{n} elements, {k} of them, {likely:?}");
                        let given = Given::<false> { keys, likely: likely.clone() };
                        assert!(largest(n, k, &given) == plain, "{what}");
                        let given = Given::<true> { keys, likely };
                        assert!(largest(n, k, &given) == tied, "{what} with ties");
                    }
                }
            }
        }
    }
}
