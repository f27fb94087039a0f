//! Buffers that ops are done with, kept for the next results of the same length.
//!
//! The activations of a step are as large as those of the step before. New memory would be cleared by the allocator, or
//! by the system page by page, before an op writes all of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Values;

/// Shorter buffers are cleared faster than found.
const SHORTEST: usize = 1 << 13;
/// Values that are kept at most: 2 GiB.
const MOST: usize = 1 << 29;

struct Pool {
    /// By length.
    buffers: BTreeMap<usize, Vec<Vec<f32>>>,
    /// Values in all of them.
    values: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { buffers: BTreeMap::new(), values: 0 });

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
    let buffer = pool.buffers.get_mut(&len)?.pop()?;
    pool.values -= len;
    Some(buffer)
}

/// Keeps the buffer of a tensor that nobody else holds.
pub(super) fn done(x: Values) {
    if !x.is_unique() || !x.is_contiguous() || x.layout().start_offset() != 0 {
        return;
    }
    let (bytes, ..) = x.into_data().into_parts();
    // Memory that the engine has allocated in its own way goes back to it.
    let Ok(buffer) = bytes.try_into_vec::<f32>() else { return };
    let len = buffer.len();
    if len < SHORTEST {
        return;
    }
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.values + len > MOST {
        // What is kept may be of another network.
        *pool = Pool { buffers: BTreeMap::new(), values: 0 };
    }
    pool.values += len;
    pool.buffers.entry(len).or_default().push(buffer);
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
    }
}
