//! The table of rows that tokens stand for.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::Init;
use crate::ops;
use crate::tap::{Scope, Tap};

/// Token numbers, `[batch, time]` in row-major order.
#[derive(Clone, Debug)]
pub struct Ids {
    /// The numbers.
    pub values: Arc<[u32]>,
    /// `[batch, time]`
    pub shape: [usize; 2],
}

/// A row of a table for each token, with weight and output tapped.
///
/// # Shapes
/// - `weight`: `[tokens, dim]`
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[tokens, dim]`
    pub weight: Param<Tensor<2>>,
    #[module(skip)]
    tap: Tap,
}

impl Embedding {
    /// A table whose first values are normal with a standard deviation of 1, as in `PyTorch`.
    pub fn new(scope: &Scope, tokens: usize, dim: usize, device: &Device) -> Self {
        let shape = [tokens, dim];
        Self {
            weight: Init::Normal.weight(shape, &scope.init_stream("weight"), device),
            tap: scope.tap("embedding", &shape, None),
        }
    }

    /// The rows of these tokens: `[batch, time, dim]`.
    ///
    /// # Panics
    /// If a token is not in the table, which a caller checks when it reads text.
    pub fn forward(&self, ids: &Ids) -> Tensor<3> {
        let table = self.tap.weight(self.weight.val());
        self.tap.output(ops::embed(table, Arc::clone(&ids.values), ids.shape))
    }
}
