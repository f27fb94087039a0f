//! How the learning rate changes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The learning rate as a factor of the optimizer's, by step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// It stays.
    #[default]
    Constant,
    /// It is multiplied by `gamma` at the start of each of these epochs.
    MultiStep {
        /// Epochs, counted from 0.
        milestones: Vec<usize>,
        /// The factor.
        #[serde(default = "gamma")]
        gamma: f64,
    },
    /// It falls along half a cosine to `floor` times itself at the end (Loshchilov and Hutter 2017, arXiv:1608.03983).
    Cosine {
        /// The share of the learning rate that is left at the end.
        #[serde(default)]
        floor: f64,
    },
    /// It rises from 0 over `warmup` steps and falls linearly to 0 at the end.
    Linear {
        /// Steps of warm-up.
        #[serde(default)]
        warmup: u64,
    },
}

fn gamma() -> f64 {
    0.1
}

impl Schedule {
    /// The factor at a step, counted from 0, of `total` steps.
    pub fn factor(&self, step: u64, steps_per_epoch: u64, total: u64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::MultiStep { milestones, gamma } => {
                let epoch = step / steps_per_epoch.max(1);
                let passed = milestones.iter().filter(|m| **m as u64 <= epoch).count();
                gamma.powi(i32::try_from(passed).unwrap_or(i32::MAX))
            }
            Self::Cosine { floor } => {
                let progress = step as f64 / total.max(1) as f64;
                floor + (1.0 - floor) * (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0
            }
            Self::Linear { warmup } if step < *warmup => step as f64 / *warmup as f64,
            Self::Linear { warmup } => {
                total.saturating_sub(step) as f64 / total.saturating_sub(*warmup).max(1) as f64
            }
        }
    }

    /// What is wrong with the options, if anything: the key and why.
    pub fn complaint(&self) -> Option<(&'static str, String)> {
        match self {
            Self::MultiStep { gamma, .. } if !gamma.is_finite() || *gamma < 0.0 => {
                Some(("gamma", format!("{gamma} is not a number of at least 0")))
            }
            Self::Cosine { floor } if !(0.0..=1.0).contains(floor) => {
                Some(("floor", format!("{floor} is not in [0, 1]")))
            }
            _ => None,
        }
    }
}
