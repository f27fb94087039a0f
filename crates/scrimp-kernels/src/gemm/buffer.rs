//! Memory of a task: aligned to cache lines, kept by the thread for its next task.
#![expect(
    unsafe_code,
    reason = "lines of words are viewed as words, and tasks write disjoint parts of one output"
)]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};

const LINE_WORDS: usize = 16;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u32; LINE_WORDS]);

/// How many buffers a thread keeps.
const KEPT: usize = 6;
/// Bytes of the largest buffer that it keeps. What is larger goes back, so that one large layer does not hold memory for
/// the rest of the process.
const KEPT_BYTES: usize = 64 << 20;

thread_local! {
    static KEPT_BUFFERS: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Words at the start of a cache line, with whatever an earlier task left in them. The thread that drops it keeps the
/// memory.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    first: usize,
    len: usize,
}

impl Scratch {
    pub fn new(len: usize) -> Self {
        let need = len.div_ceil(LINE_WORDS);
        if is_exact() {
            // The last word is the last of the memory, and a result that depends on an old word is NaN.
            let lines = vec![Line([0x7FC0_7FC0; LINE_WORDS]); need];
            return Self { lines, first: need * LINE_WORDS - len, len };
        }
        let mut lines = KEPT_BUFFERS.with_borrow_mut(|kept| {
            // The smallest that is large enough, else the largest, which then grows.
            let fits = |lines: &Vec<Line>| (lines.len() < need, lines.len().abs_diff(need));
            let best = (0..kept.len()).min_by_key(|i| fits(&kept[*i]));
            best.map(|i| kept.swap_remove(i)).unwrap_or_default()
        });
        if lines.len() < need {
            // What is in the old memory is not worth a copy.
            lines = Vec::new();
            lines.resize(need, Line([0; LINE_WORDS]));
        }
        Self { lines, first: 0, len }
    }
}

/// Whether every buffer is new and ends where its memory ends, so that a sanitizer sees a word too many. Tests ask for
/// it, by `SCRIMP_TEST_SCRATCH=exact`.
#[cfg(test)]
fn is_exact() -> bool {
    use std::sync::OnceLock;
    static EXACT: OnceLock<bool> = OnceLock::new();
    *EXACT.get_or_init(|| std::env::var("SCRIMP_TEST_SCRATCH").is_ok_and(|v| v == "exact"))
}

#[cfg(not(test))]
const fn is_exact() -> bool {
    false
}

impl Deref for Scratch {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        // SAFETY: `new` made at least `first + len` words in lines, which are arrays of words without padding, all
        // initialized.
        unsafe {
            let start = self.lines.as_ptr().cast::<u32>().add(self.first);
            std::slice::from_raw_parts(start, self.len)
        }
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe {
            let start = self.lines.as_mut_ptr().cast::<u32>().add(self.first);
            std::slice::from_raw_parts_mut(start, self.len)
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if is_exact() || size_of_val(lines.as_slice()) > KEPT_BYTES {
            return;
        }
        // At the end of a thread there is nothing left to keep it in.
        let _ = KEPT_BUFFERS.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < KEPT {
                kept.push(lines);
            }
        });
    }
}

/// A slice that tasks write to in parallel, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a borrowed slice whose users promise, in `part` and where a `Place` is written through, that no two of them
// touch one element.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// What is from an element on.
    pub fn from(&self, at: usize) -> Place<T> {
        assert!(at <= self.len, "element {at} of {}", self.len);
        // SAFETY: the address is in the slice, or just behind it.
        Place { start: unsafe { self.start.add(at) }, len: self.len - at }
    }

    /// A part of it.
    ///
    /// # Safety
    /// No other task reads or writes any of these elements as long as the part lives.
    pub unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part of {}", self.len);
        // SAFETY: the range lies in the slice, and the caller promises that it is this task's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// An address in a shared slice, and how many elements there are from it on.
#[derive(Clone, Copy)]
pub(crate) struct Place<T> {
    pub start: *mut T,
    pub len: usize,
}

#[cfg(test)]
mod tests {
    use super::{KEPT, KEPT_BUFFERS, KEPT_BYTES, Scratch, is_exact};

    #[test]
    fn a_thread_keeps_few_buffers_and_none_that_is_large() {
        std::thread::spawn(|| {
            let kept = || KEPT_BUFFERS.with_borrow(|kept| kept.iter().map(Vec::len).sum::<usize>());
            drop(Scratch::new(KEPT_BYTES / 4 + 1));
            assert_eq!(kept(), 0);
            drop((0..2 * KEPT).map(|_| Scratch::new(33)).collect::<Vec<_>>());
            assert_eq!(kept(), if is_exact() { 0 } else { KEPT * 3 });
            let all: Vec<_> = (0..40).map(Scratch::new).collect();
            assert!(all.iter().enumerate().all(|(len, scratch)| scratch.len() == len));
        })
        .join()
        .unwrap();
    }
}
