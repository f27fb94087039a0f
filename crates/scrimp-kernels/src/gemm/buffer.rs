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

thread_local! {
    static KEPT_BUFFERS: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Words at the start of a cache line, with whatever an earlier task left in them. The thread that drops it keeps the
/// memory.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    pub fn new(len: usize) -> Self {
        let need = len.div_ceil(LINE_WORDS);
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
        Self { lines, len }
    }
}

impl Deref for Scratch {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        // SAFETY: `new` made at least `len` words in lines, which are arrays of words without padding, all initialized.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
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

// SAFETY: it is a borrowed slice whose users promise, in `part` and where `start` is written through, that no two of them
// touch one element.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Where it starts, and how long it is.
    pub fn raw(&self) -> (*mut T, usize) {
        (self.start, self.len)
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
