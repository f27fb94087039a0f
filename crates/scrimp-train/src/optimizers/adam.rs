//! Adam and `AdamW`.

use schemars::JsonSchema;
use scrimp_kernels::optim;
use serde::{Deserialize, Serialize};

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
    /// Whether the largest second moment so far divides instead of the present one (Reddi et al. 2018, arXiv:1904.09237).
    #[serde(default)]
    pub amsgrad: bool,
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

impl Default for Adam {
    fn default() -> Self {
        let (beta1, beta2, epsilon) = (beta1(), beta2(), epsilon());
        Self { lr: 1e-3, beta1, beta2, epsilon, weight_decay: 0.0, amsgrad: false }
    }
}

impl Adam {
    /// One update. `decoupled`: the decay shrinks the weight itself. `v_max` is there with `amsgrad`.
    pub(super) fn update(
        &self,
        lr: f64,
        step: u64,
        decoupled: bool,
        w: &mut [f32],
        g: &[f32],
        moments: optim::Moments,
    ) {
        let Self { beta1, beta2, epsilon, weight_decay, .. } = *self;
        let options = optim::Adam { lr, beta1, beta2, epsilon, weight_decay, decoupled };
        optim::adam(&options, step, w, g, moments).expect("a gradient is as long as its parameter");
    }
}
