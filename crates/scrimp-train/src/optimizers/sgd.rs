//! Stochastic gradient descent.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::in_parallel;

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
    /// One update; `m` is empty without momentum.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "options are rounded to f32, in which weights are kept"
    )]
    pub(super) fn update(&self, lr: f64, step: u64, w: &mut [f32], g: &[f32], m: &mut [f32]) {
        let (lr, mu, decay) = (lr as f32, self.momentum as f32, self.weight_decay as f32);
        if m.is_empty() {
            return in_parallel(w, g, m, &mut [], |w, g, _, _| {
                for (w, g) in w.iter_mut().zip(g) {
                    *w -= lr * (g + decay * *w);
                }
            });
        }
        let keep = if step == 1 { 0.0 } else { mu };
        let nesterov = self.nesterov;
        in_parallel(w, g, m, &mut [], |w, g, m, _| {
            for ((w, g), m) in w.iter_mut().zip(g).zip(m) {
                let g = g + decay * *w;
                *m = keep * *m + g;
                *w -= lr * if nesterov { g + mu * *m } else { *m };
            }
        });
    }
}
