//! Data to calibrate and judge with.

use std::fmt::Debug;

use crate::Value;

/// Samples of a model's inputs, that can be read again and in any part.
pub trait Data: Debug + Sync {
    /// The number of samples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The inputs by name for the samples `start..end`, joined along axis 0.
    ///
    /// # Errors
    /// A sentence, where the samples cannot be read.
    fn batch(&self, start: usize, end: usize) -> Result<Vec<(String, Value)>, String>;

    /// The class of each of these samples, where it is known.
    fn labels(&self, start: usize, end: usize) -> Option<Vec<u32>> {
        let _ = (start, end);
        None
    }
}
