//! Adam and `AdamW`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::in_parallel;

/// Adam: `m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= lr/(1-b1^t) m / (sqrt(v/(1-b2^t)) + eps)`.
///
/// # Source
/// Kingma and Ba 2015, arXiv:1412.6980; decoupled decay: Loshchilov and Hutter 2019, arXiv:1711.05101. The order of
/// operations is that of `torch.optim`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment, in [0, 1).
    #[serde(default = "beta1")]
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    #[serde(default = "beta2")]
    pub beta2: f64,
    /// Added to the root of the second moment.
    #[serde(default = "epsilon")]
    pub epsilon: f64,
    /// Weight decay.
    #[serde(default)]
    pub weight_decay: f64,
}

fn beta1() -> f64 {
    0.9
}

fn beta2() -> f64 {
    0.999
}

fn epsilon() -> f64 {
    1e-8
}

impl Adam {
    /// One update. `decoupled`: the decay shrinks the weight itself.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "options are rounded to f32, in which weights are kept"
    )]
    pub(super) fn update(
        &self,
        lr: f64,
        step: u64,
        decoupled: bool,
        w: &mut [f32],
        g: &[f32],
        [m, v]: [&mut [f32]; 2],
    ) {
        let t = i32::try_from(step).unwrap_or(i32::MAX);
        let (bias1, bias2) = (1.0 - self.beta1.powi(t), 1.0 - self.beta2.powi(t));
        let shrink = if decoupled { (1.0 - lr * self.weight_decay) as f32 } else { 1.0 };
        let decay = if decoupled { 0.0 } else { self.weight_decay as f32 };
        let (b1, b2) = (self.beta1 as f32, self.beta2 as f32);
        let (rest1, rest2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        let (rate, root) = ((lr / bias1) as f32, bias2.sqrt() as f32);
        let epsilon = self.epsilon as f32;
        in_parallel(w, g, m, v, |w, g, m, v| {
            for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                let g = g + decay * *w;
                *m = b1 * *m + rest1 * g;
                *v = b2 * *v + rest2 * g * g;
                *w = *w * shrink - rate * *m / (v.sqrt() / root + epsilon);
            }
        });
    }
}
