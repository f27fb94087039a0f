//! The elements with the largest keys, found by radix selection: the same for any number of threads, in O(n).

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

use crate::simd::select as kernels;

/// Elements of a part, which one task works on: an offset in it takes 16 bits.
pub(super) const PART: usize = 64 * 1024;

/// Keys that are held at a time.
const WINDOW: usize = 1024;

/// Bits of a key that one histogram resolves.
const DIGIT_BITS: u32 = 12;

/// An element that may be among the largest, counted from the start of its part.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    key: u32,
    offset: u16,
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

/// The elements that were chosen, as what tells them from all others.
pub(super) struct Chosen {
    /// The last one that is accepted.
    last: Order,
    /// How many there are in each part.
    counts: Vec<usize>,
    /// The largest key of all elements, or the largest that is possible.
    largest: u32,
    /// All that may be among them, where that is little.
    found: Option<Vec<Found>>,
}

impl Chosen {
    /// How many there are in each part of [`PART`] elements.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// The largest key of all elements, or the largest that is possible.
    pub fn largest(&self) -> u32 {
        self.largest
    }

    /// Appends the offsets of the chosen elements of a part, in ascending order. The keys of its elements are those of
    /// `range`, and `first` is the index of its first element.
    pub fn offsets<K: Keys>(
        &self,
        keys: &K,
        range: Range<usize>,
        first: usize,
        offsets: &mut Vec<u16>,
    ) {
        let low = !self.last.0;
        if let Some(found) = &self.found {
            let accepts = |c: &&Candidate| {
                let offset = usize::from(c.offset);
                let tie = || if K::TIES { !keys.tie(range.start + offset) } else { 0 };
                c.key > low || (c.key == low && (!low, tie(), first + offset) <= self.last)
            };
            let part = &found[first / PART].candidates;
            return offsets.extend(part.iter().filter(accepts).map(|c| c.offset));
        }
        let (mut window, mut picked) = ([0; WINDOW], [0; WINDOW]);
        for at in windows(&range) {
            let start = at.start - range.start;
            let window = &mut window[..at.len()];
            keys.fill(at.clone(), window);
            let count = kernels::reaching(window, low, &mut picked);
            let accepts = |i: u16| {
                let i = usize::from(i);
                let tie = || if K::TIES { !keys.tie(at.start + i) } else { 0 };
                window[i] > low || (!low, tie(), first + start + i) <= self.last
            };
            let start = u16::try_from(start).unwrap_or(u16::MAX);
            offsets.extend(picked[..count].iter().filter(|i| accepts(**i)).map(|i| start + i));
        }
    }

    /// The indices of the chosen elements of a tensor, in ascending order.
    pub fn indices<K: Keys>(&self, n: usize, keys: &K) -> Vec<usize> {
        let mut indices = vec![0; self.counts.iter().sum()];
        let rooms = rooms(&mut indices, self.counts.iter().copied());
        rooms.into_par_iter().zip(parts(n)).for_each_init(Vec::new, |offsets, (room, part)| {
            offsets.clear();
            self.offsets(keys, part.clone(), part.start, offsets);
            for (index, offset) in room.iter_mut().zip(offsets) {
                *index = part.start + usize::from(*offset);
            }
        });
        indices
    }
}

/// Cuts a slice into consecutive parts of these lengths.
pub(super) fn rooms<T>(mut rest: &mut [T], lens: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    let room = |len| {
        let (room, others) = std::mem::take(&mut rest).split_at_mut(len);
        rest = others;
        room
    };
    lens.map(room).collect()
}

/// What was found in a part.
struct Found {
    /// The elements whose keys lie between the bounds.
    candidates: Vec<Candidate>,
    /// How many keys lie above.
    above: usize,
    largest: u32,
}

/// The `k` elements with the largest keys. Of equal keys and ties the lower index goes first.
pub(super) fn largest<K: Keys>(n: usize, k: usize, keys: &K) -> Chosen {
    if k >= n || k == 0 {
        let whole = |part: Range<usize>| if k == 0 { 0 } else { part.len() };
        return Chosen {
            last: if k == 0 { (0, 0, 0) } else { (u32::MAX, u32::MAX, usize::MAX) },
            counts: parts(n).into_iter().map(whole).collect(),
            largest: u32::MAX,
            found: None,
        };
    }
    let Search { found, end } = guessed(n, k, keys).unwrap_or_else(|| by_histograms(n, k, keys));
    let above: usize = found.iter().map(|part| part.above).sum();
    let wanted = k - above;
    let order = |part: usize, c: &Candidate| -> Order {
        let index = part * PART + usize::from(c.offset);
        (!c.key, if K::TIES { !keys.tie(index) } else { 0 }, index)
    };
    let last = if wanted == 0 {
        (!end, u32::MAX, usize::MAX)
    } else {
        // Few of the candidates have to be put in order.
        let Digit { keys: inside, before } = digit(&found, wanted);
        let open = |(i, part): (usize, &Found)| {
            let open = part.candidates.iter().filter(|c| inside.contains(&c.key));
            open.map(|c| order(i, c)).collect::<Vec<_>>()
        };
        let open: Vec<Vec<Order>> = found.par_iter().enumerate().map(open).collect();
        *open.concat().select_nth_unstable(wanted - before - 1).1
    };
    let accepts = |part: usize, c: &Candidate| {
        !c.key < last.0 || (!c.key == last.0 && order(part, c) <= last)
    };
    let count = |(i, part): (usize, &Found)| {
        part.above + part.candidates.iter().filter(|c| accepts(i, c)).count()
    };
    Chosen {
        last,
        counts: found.par_iter().enumerate().map(count).collect(),
        largest: found.iter().map(|part| part.largest).max().unwrap_or(0),
        found: (above == 0).then_some(found),
    }
}

/// Keys between which the last of the wanted candidates lies.
struct Digit {
    keys: Range<u32>,
    /// How many candidates lie above.
    before: usize,
}

/// Counts candidates by their highest bits, as far as they differ; at least one is wanted and there are as many as are.
fn digit(found: &[Found], wanted: usize) -> Digit {
    const BINS: usize = 1 << DIGIT_BITS;
    let keys = || found.iter().flat_map(|part| &part.candidates).map(|c| c.key);
    let (low, high) = keys().fold((u32::MAX, 0), |(low, high), key| (low.min(key), high.max(key)));
    let shift = (32 - high.saturating_sub(low).leading_zeros()).saturating_sub(DIGIT_BITS);
    let mut counts = vec![0; BINS];
    for key in keys() {
        counts[((key - low) >> shift) as usize % BINS] += 1;
    }
    let (mut bin, mut before) = (BINS - 1, 0);
    while before + counts[bin] < wanted {
        before += counts[bin];
        bin -= 1;
    }
    let low = low + (u32::try_from(bin).unwrap_or(0) << shift);
    Digit { keys: low..low.saturating_add(1 << shift), before }
}

/// What is left of a search: all elements with keys from `end` on are chosen, and of the candidates some.
struct Search {
    found: Vec<Found>,
    end: u32,
}

/// The search between the keys that are likely; `None` where they were wrong.
fn guessed<K: Keys>(n: usize, k: usize, keys: &K) -> Option<Search> {
    /// Where fewer than one in so many are chosen, all of them are gathered, so that no key is looked at twice.
    const FEW: usize = 32;
    let mut likely = keys.likely(n, k);
    if likely.is_empty() || likely.start == 0 {
        return None;
    }
    if k < n / FEW {
        likely.end = u32::MAX;
    }
    let room = AtomicUsize::new(n / 8);
    let end = likely.end;
    let found = between(n, likely, usize::MAX, Some(&room), keys)?;
    let above: usize = found.iter().map(|part| part.above).sum();
    let total = above + found.iter().map(|part| part.candidates.len()).sum::<usize>();
    (above <= k && k <= total).then_some(Search { found, end })
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
    let most = if shift == 0 && !K::TIES { k - above } else { usize::MAX };
    let end = low + (1 << shift);
    Search { found: between(n, low..end, most, None, keys).unwrap_or_default(), end }
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

/// The elements of each part whose keys lie between two, of each part the first `most`; `None` where there are more of them
/// than there is room for.
fn between<K: Keys>(
    n: usize,
    bounds: Range<u32>,
    most: usize,
    room: Option<&AtomicUsize>,
    keys: &K,
) -> Option<Vec<Found>> {
    let search = |part: Range<usize>| {
        let mut found = Found { candidates: Vec::new(), above: 0, largest: 0 };
        let (mut window, mut picked) = ([0; WINDOW], [0; WINDOW]);
        for at in windows(&part) {
            let window = &mut window[..at.len()];
            keys.fill(at.clone(), window);
            let seen = kernels::between(window, bounds.start, bounds.end, &mut picked);
            found.above += seen.above;
            found.largest = found.largest.max(seen.largest);
            let start = u16::try_from(at.start - part.start).unwrap_or(u16::MAX);
            let left = (most - found.candidates.len()).min(seen.within);
            let candidate = |i: &u16| Candidate { key: window[usize::from(*i)], offset: start + i };
            found.candidates.extend(picked[..left].iter().map(candidate));
        }
        // Which part finds no room left depends on the threads, but whether one does not.
        let taken = |left: usize| left.checked_sub(found.candidates.len());
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
                        assert!(largest(n, k, &given).indices(n, &given) == plain, "{what}");
                        let given = Given::<true> { keys, likely };
                        let chosen = largest(n, k, &given);
                        assert!(chosen.indices(n, &given) == tied, "{what} with ties");
                        assert_eq!(chosen.counts().iter().sum::<usize>(), k, "{what}");
                        assert!(chosen.largest() >= keys.iter().copied().max().unwrap());
                    }
                }
            }
        }
    }
}
