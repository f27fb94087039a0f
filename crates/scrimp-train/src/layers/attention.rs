//! Attention with several heads.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::Linear;
use crate::ops;
use crate::tap::{Scope, Tap};

/// `out(attention(q(x), k(x), v(x)))`, in which all four products with weights are layers of their own. What the heads give
/// is tapped with its gradient; what they are given are the outputs of `q`, `k` and `v`.
///
/// # Source
/// Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Queries.
    pub q: Linear,
    /// Keys.
    pub k: Linear,
    /// Values.
    pub v: Linear,
    /// What heads found, mixed.
    pub out: Linear,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    tap: Tap,
}

impl SelfAttention {
    /// Attention over rows of `dim` values, divided among so many heads.
    ///
    /// # Panics
    /// If `dim` is no multiple of `heads`.
    pub fn new(scope: &Scope, dim: usize, heads: usize, device: &Device) -> Self {
        assert!(heads > 0 && dim.is_multiple_of(heads), "{dim} values for {heads} heads");
        let linear = |name| Linear::new(&scope.at(name), dim, dim, device);
        let (q, k, v) = (linear("q"), linear("k"), linear("v"));
        let tap = scope.tap_function("attention");
        Self { q, k, v, out: linear("out"), heads, tap }
    }

    /// The forward pass.
    ///
    /// # Shapes
    /// - `x` and result: `[batch, time, dim]`
    /// - `padding`: `[batch, time]`, true for keys that nobody sees
    pub fn forward(&self, x: Tensor<3>, padding: Option<Arc<[bool]>>) -> Tensor<3> {
        let (q, k, v) = (self.q.forward(x.clone()), self.k.forward(x.clone()), self.v.forward(x));
        let y = ops::attention([q, k, v], self.heads, false, padding);
        self.out.forward(self.tap.output(y))
    }
}
