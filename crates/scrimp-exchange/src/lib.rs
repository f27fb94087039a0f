//! How the gradients of workers become one: each is rounded to what its message holds, groups of them are added, and
//! what was lost may be added to the next message (error feedback).
//!
//! A [`Reduction`] says how, for tensors of any shape. A [`Reducer`] does it for one tensor, step after step, in one
//! process that stands for all workers; the [`Sender`] of each link is what a process of its own will use, whose messages
//! hold the same values.
//!
//! # Source
//! Levels of rounded sums: the `HsumAccumulator` of QML (q7d-nn). Error feedback: Seide et al. 2014 (1-Bit Stochastic
//! Gradient Descent, Interspeech) and Karimireddy et al. 2019, arXiv:1901.09847.

mod reducer;
mod reduction;
mod sender;

pub use reducer::Reducer;
pub use reduction::{Level, Reduction, ReductionError};
pub use sender::Sender;
