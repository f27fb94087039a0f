//! Stochastic gradient descent.

use schemars::JsonSchema;
use scrimp_kernels::optim;
use serde::{Deserialize, Serialize};

/// SGD: `g += wd w; m = mu m + g; w -= lr (nesterov ? g + mu m : m)`.
///
/// # Source
/// The form of `torch.optim.SGD` (Sutskever et al. 2013 with the learning rate outside the momentum); the first
/// momentum is the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Momentum, in [0, 1).
    #[serde(default)]
    pub momentum: f64,
    /// Whether the gradient is taken ahead of the momentum.
    #[serde(default)]
    pub nesterov: bool,
    /// Weight decay, added to the gradient.
    #[serde(default)]
    pub weight_decay: f64,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { lr: 0.05, momentum: 0.9, nesterov: false, weight_decay: 0.0 }
    }
}

impl Sgd {
    /// One update; there is no `m` without momentum.
    pub(super) fn update(
        &self,
        lr: f64,
        step: u64,
        w: &mut [f32],
        g: &[f32],
        m: Option<&mut [f32]>,
    ) {
        let Self { momentum, nesterov, weight_decay, .. } = *self;
        let options = optim::Sgd { lr, momentum, nesterov, weight_decay };
        optim::sgd(&options, step, w, g, m).expect("a gradient is as long as its parameter");
    }
}
