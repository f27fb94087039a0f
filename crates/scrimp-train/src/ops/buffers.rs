//! Buffers that ops are done with, kept for the next results of the same length.
//!
//! The activations of a step are as large as those of the step before. New memory would be cleared by the allocator, or
//! by the system page by page, before an op writes all of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Values;

/// Shorter buffers are cleared faster than found.
const SHORTEST: usize = 1 << 13;
/// Values that are kept at most: 512 MiB.
const MOST: usize = 1 << 27;
/// The same where memory counts more than time: 16 MiB. The results of a network's first layers are large, and wait for the
/// way back while later layers fill the rest of the memory.
const FEW: usize = 1 << 22;

/// Buffers of one length.
struct Shelf {
    buffers: Vec<Vec<f32>>,
    /// How many were ever made for want of one. The engine's own results pass here too, and more than were wanted at once
    /// would only pile up.
    made: usize,
}

struct Pool {
    /// By length.
    shelves: BTreeMap<usize, Shelf>,
    /// Values in all buffers.
    values: usize,
    /// Values that are kept at most.
    most: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { shelves: BTreeMap::new(), values: 0, most: MOST });

/// Room for a result that is written as a whole before it is read. In debug builds it is full of NaN.
pub(super) fn room(shape: &[usize]) -> Vec<f32> {
    let len = shape.iter().product();
    let mut buffer = taken(len).unwrap_or_else(|| vec![0.0; len]);
    if cfg!(debug_assertions) {
        buffer.fill(f32::NAN);
    }
    buffer
}

fn taken(len: usize) -> Option<Vec<f32>> {
    if len < SHORTEST {
        return None;
    }
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let shelf = pool.shelves.entry(len).or_insert(Shelf { buffers: Vec::new(), made: 0 });
    let Some(buffer) = shelf.buffers.pop() else {
        shelf.made += 1;
        return None;
    };
    pool.values -= len;
    Some(buffer)
}

/// Keeps the buffer of a tensor that nobody else holds.
pub(super) fn done(x: Values) {
    if !x.is_unique() || !x.is_contiguous() || x.layout().start_offset() != 0 {
        return;
    }
    let len = x.layout().num_elements();
    // A part of a longer buffer would be copied.
    if x.bytes().len() != len * size_of::<f32>() {
        return;
    }
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let full = pool.values + len > pool.most;
    let Some(shelf) = pool.shelves.get_mut(&len).filter(|s| !full && s.buffers.len() < s.made)
    else {
        return;
    };
    let (bytes, ..) = x.into_data().into_parts();
    // Memory that the engine has allocated in its own way goes back to it.
    let Ok(buffer) = bytes.try_into_vec::<f32>() else { return };
    shelf.buffers.push(buffer);
    pool.values += len;
}

/// Says for the steps to come whether memory counts more than time.
pub(crate) fn save_memory(saves: bool) {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    pool.most = if saves { FEW } else { MOST };
    if pool.values > pool.most {
        pool.values = 0;
        pool.shelves.values_mut().for_each(|shelf| shelf.buffers.clear());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tensor;

    #[test]
    fn a_buffer_comes_back_when_nobody_else_holds_it() {
        // A length that no other test uses.
        let shape = [3, 12_345];
        let buffer = room(&shape);
        let place = buffer.as_ptr();
        let x = tensor(buffer, &shape);
        let second = x.clone();
        done(x);
        assert!(taken(37_035).is_none(), "it is held by another");
        done(second);
        let again = room(&shape);
        assert_eq!(again.as_ptr(), place);
        assert!(taken(37_035).is_none());
        done(tensor(vec![1.0; 8], &[8]));
        assert!(taken(8).is_none(), "short ones are not kept");
        // What others made is kept as long as it was wanted.
        let foreign = || tensor(vec![1.0; 37_036], &[37_036]);
        done(foreign());
        assert!(taken(37_036).is_none(), "nobody has wanted such a length");
        done(foreign());
        done(foreign());
        assert!(taken(37_036).is_some() && taken(37_036).is_none(), "one was wanted");
    }
}
