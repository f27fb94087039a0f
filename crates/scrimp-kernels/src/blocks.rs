//! How passes over memory are cut: into blocks whose size depends on shapes alone.

use rayon::prelude::*;

use crate::KernelError;

/// About how many values a task works on: enough that a task costs nothing beside them, and few enough that a second
/// look at them finds them in the cache of the core.
pub(crate) const BLOCK: usize = 1 << 15;

/// How many values share a word of a bit mask.
pub(crate) const LANES: usize = 32;

/// The bits of a magnitude.
pub(crate) const MAGNITUDE: u32 = 0x7FFF_FFFF;

/// Does the work on every item, on all threads if there are several; results in the order of items.
pub(crate) fn map<T: Send, R: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> R + Sync + Send,
) -> Vec<R> {
    let items: Vec<T> = items.collect();
    // Handing over to the pool and waiting takes longer than a small block.
    if items.len() <= 1 {
        items.into_iter().map(work).collect()
    } else {
        items.into_par_iter().map(work).collect()
    }
}

/// [`map`] with memory that the work may use as it likes, made anew as seldom as the pool allows.
pub(crate) fn map_with<T: Send, S, R: Send>(
    items: impl Iterator<Item = T>,
    memory: impl Fn() -> S + Sync + Send,
    work: impl Fn(&mut S, T) -> R + Sync + Send,
) -> Vec<R> {
    let items: Vec<T> = items.collect();
    if items.len() <= 1 {
        items.into_iter().map(|item| work(&mut memory(), item)).collect()
    } else {
        items.into_par_iter().map_init(memory, work).collect()
    }
}

/// The same as [`map`] for work whose result is the bits of the largest magnitude; gives the magnitude, NaN if any value is.
pub(crate) fn absmax<T: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> u32 + Sync + Send,
) -> f32 {
    f32::from_bits(map(items, work).into_iter().max().unwrap_or(0))
}

/// `count` parts of a slice that may be there.
pub(crate) fn parts_mut<T>(
    slice: Option<&mut [T]>,
    part_len: usize,
    count: usize,
) -> impl Iterator<Item = Option<&mut [T]>> {
    let mut parts = slice.map(|s| s.chunks_mut(part_len));
    (0..count).map(move |_| parts.as_mut().and_then(Iterator::next))
}

/// Complains about a slice that has not the shape.
pub(crate) fn check_len(
    what: &'static str,
    shape: &[usize],
    actual: usize,
) -> Result<(), KernelError> {
    let expected = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).unwrap_or(usize::MAX);
    if expected == actual {
        Ok(())
    } else {
        Err(KernelError::Length { what, shape: shape.to_vec(), expected, actual })
    }
}

/// Complains about a size.
pub(crate) fn check(
    valid: bool,
    what: &'static str,
    problem: impl FnOnce() -> String,
) -> Result<(), KernelError> {
    if valid { Ok(()) } else { Err(KernelError::Shape { what, problem: problem() }) }
}
