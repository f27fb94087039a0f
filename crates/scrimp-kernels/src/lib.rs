//! The arithmetic of a training step on the CPU: matrix products and convolutions in f32, bf16 and int8, and the passes
//! over memory between them.
//!
//! Slices in, slices out; the crate knows no training engine and no number format. Activations are NHWC,
//! `[batch, height, width, channels]`; weights are laid out as in PyTorch, `[out, in / groups, kernel height, kernel
//! width]` and `[out, in]`.
//!
//! Every operation has a plain scalar version that defines it, and versions for AVX-512, AVX2 and NEON that are chosen at run
//! time ([`Level`]). Integer products are exact; sums of floats run in an order that depends on shapes alone, so that the
//! number of threads never changes a bit.

pub mod activation;
mod add;
pub mod attention;
pub mod batch_norm;
mod blocks;
pub mod concat;
pub mod conv2d;
mod dispatch;
pub mod embedding;
mod error;
mod gate;
mod gemm;
pub mod layer_norm;
mod level;
pub mod linear;
mod math;
pub mod matmul;
mod operand;
pub mod optim;
mod peak;
pub mod pool;
mod reduce;
pub mod softmax;
#[cfg(test)]
mod testing;

pub use add::add;
pub use embedding::Id;
pub use error::KernelError;
pub use gate::Gate;
pub use gemm::element::LONGEST_INT8;
pub use level::Level;
pub use operand::{Kind, Operand, Scale};
pub use peak::register_peak;
pub use reduce::column_sums;
