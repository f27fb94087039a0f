//! Room at the end of a vector for bytes that several threads write.
//!
//! Filling it with zeros first would take as long as a third of the work on it, and so each thread does that for the
//! few bytes that it is about to write, which then are in its cache.
#![expect(
    unsafe_code,
    reason = "the length of a vector is set over bytes that were counted as they were written"
)]

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are reserved and not yet written.
pub(crate) struct Blank<'a> {
    bytes: &'a mut [MaybeUninit<u8>],
    written: &'a AtomicUsize,
}

impl<'a> Blank<'a> {
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn split_at(self, at: usize) -> (Self, Self) {
        let (left, right) = self.bytes.split_at_mut(at);
        let written = self.written;
        (Self { bytes: left, written }, Self { bytes: right, written })
    }

    /// The bytes, all zero.
    pub fn zeroed(self) -> &'a mut [u8] {
        self.bytes.fill(MaybeUninit::new(0));
        self.written.fetch_add(self.bytes.len(), Ordering::Relaxed);
        // SAFETY: all of them were just written, and a `u8` is laid out as a `MaybeUninit<u8>`.
        unsafe { &mut *(std::ptr::from_mut(self.bytes) as *mut [u8]) }
    }
}

/// Appends so many bytes, all of which `write` has to ask for; if it fails, none.
///
/// # Panics
/// If `write` did not ask for all bytes.
pub(crate) fn append<T, E>(
    out: &mut Vec<u8>,
    count: usize,
    write: impl FnOnce(Blank) -> Result<T, E>,
) -> Result<T, E> {
    out.reserve(count);
    let written = AtomicUsize::new(0);
    let bytes = &mut out.spare_capacity_mut()[..count];
    let result = write(Blank { bytes, written: &written })?;
    assert_eq!(written.into_inner(), count, "every byte has to be written");
    // SAFETY: there is room for `count` more bytes. A part of them is handed out as bytes only once and counted then,
    // after it was filled, so that they all were.
    unsafe { out.set_len(out.len() + count) };
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_appended_and_zero_unless_written() {
        let mut out = vec![1, 2];
        let written = append(&mut out, 5, |blank| {
            let (left, right) = blank.split_at(2);
            right.zeroed()[2] = 7;
            Ok::<_, ()>(left.zeroed().len())
        });
        assert_eq!((written, out), (Ok(2), vec![1, 2, 0, 0, 0, 0, 7]));
    }

    #[test]
    fn nothing_is_appended_on_failure() {
        let mut out = vec![1, 2];
        assert_eq!(append(&mut out, 5, |blank| Err::<(), _>(blank.len())), Err(5));
        assert_eq!(out, [1, 2]);
    }

    #[test]
    #[should_panic(expected = "every byte")]
    fn a_byte_that_was_not_asked_for_is_a_bug() {
        let _ = append(&mut Vec::new(), 5, |blank| Ok::<_, ()>(blank.split_at(3).0.zeroed().len()));
    }
}
