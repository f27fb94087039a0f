//! Loss scaling: the loss is multiplied before the way back and the gradients of parameters are divided after it, so that
//! formats with a short range hold the gradients in between.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the loss is multiplied by on the way back.
///
/// # Source
/// Micikevicius et al. 2018, "Mixed precision training", arXiv:1710.03740, section 3.2; the defaults of the dynamic factor
/// are those of `torch.amp.GradScaler`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a number such as 1024, \"dynamic\", or a table with initial, factor and every"
)]
pub enum LossScale {
    /// Always the same factor.
    Fixed(f32),
    /// A factor that follows the gradients, with its defaults.
    Word(Dynamic),
    /// A factor that follows the gradients.
    Dynamic(DynamicScale),
}

/// The word for a factor that follows the gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dynamic {
    /// As [`DynamicScale::default`] says.
    Dynamic,
}

/// A factor that is divided when a gradient is not finite, which skips the update, and multiplied after a row of steps
/// without that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DynamicScale {
    /// Its first value.
    pub initial: f32,
    /// What it is multiplied and divided by.
    pub factor: f32,
    /// Steps after which it grows, if all gradients were finite.
    pub every: u64,
}

impl Default for DynamicScale {
    fn default() -> Self {
        Self { initial: 65536.0, factor: 2.0, every: 2000 }
    }
}

/// Below this the loss itself is what is wrong.
const LEAST: f32 = 1.0 / (1 << 24) as f32;
/// The gradients of a larger one leave f32 itself.
const MOST: f32 = (1u64 << 40) as f32;

impl LossScale {
    /// The key that is wrong, and why; an empty key is the whole.
    pub fn complaint(&self) -> Option<(&'static str, String)> {
        let within = |v: f32| (LEAST..=MOST).contains(&v);
        let range = "is between 2^-24 and 2^40";
        match self {
            Self::Fixed(v) if !within(*v) => Some(("", format!("a loss scale {range}"))),
            Self::Dynamic(d) if !within(d.initial) => {
                Some(("initial", format!("a loss scale {range}")))
            }
            Self::Dynamic(d) if !(d.factor > 1.0 && d.factor <= 65536.0) => {
                Some(("factor", "it grows and shrinks by a factor above 1 and up to 65536".into()))
            }
            Self::Dynamic(d) if d.every == 0 => {
                Some(("every", "it grows after 1 step or more".into()))
            }
            _ => None,
        }
    }

    fn dynamic(&self) -> Option<DynamicScale> {
        match self {
            Self::Fixed(_) => None,
            Self::Word(_) => Some(DynamicScale::default()),
            Self::Dynamic(d) => Some(*d),
        }
    }
}

/// The factor of a run, from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScaleState {
    /// What the loss is multiplied by now.
    pub scale: f32,
    /// Steps since it last changed.
    pub steady: u64,
    /// Steps so far whose update was skipped.
    pub skipped: u64,
}

impl ScaleState {
    /// The start of a run.
    pub(crate) fn new(config: &LossScale) -> Self {
        let scale = match config {
            LossScale::Fixed(scale) => *scale,
            _ => config.dynamic().unwrap_or_default().initial,
        };
        Self { scale, steady: 0, skipped: 0 }
    }

    /// All gradients of a step were finite.
    pub(crate) fn succeed(&mut self, config: &LossScale) {
        let Some(DynamicScale { factor, every, .. }) = config.dynamic() else { return };
        self.steady += 1;
        if self.steady >= every {
            self.scale = (self.scale * factor).min(MOST);
            self.steady = 0;
        }
    }

    /// A gradient of a step was not finite. `false` if no other factor can help, so that the step failed.
    pub(crate) fn fail(&mut self, config: &LossScale) -> bool {
        let Some(DynamicScale { factor, .. }) = config.dynamic() else { return false };
        if self.scale <= LEAST {
            return false;
        }
        *self =
            Self { scale: (self.scale / factor).max(LEAST), steady: 0, skipped: self.skipped + 1 };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> LossScale {
        serde_json::from_str(json).unwrap()
    }

    /// As the documentation of `torch.amp.GradScaler` has it: halved and skipped at an overflow, doubled after so many
    /// steps without.
    #[test]
    fn a_dynamic_scale_halves_at_an_overflow_and_doubles_after_a_steady_row() {
        let config = parsed(r#"{"initial": 8, "every": 3}"#);
        let mut state = ScaleState::new(&config);
        let mut seen = Vec::new();
        for finite in [true, true, false, true, true, true, true, true, true, false, false] {
            if finite {
                state.succeed(&config);
            } else {
                assert!(state.fail(&config));
            }
            seen.push(state.scale);
        }
        assert_eq!(seen, [8.0, 8.0, 4.0, 4.0, 4.0, 8.0, 8.0, 8.0, 16.0, 8.0, 4.0]);
        assert_eq!(state.skipped, 3);
    }

    #[test]
    fn a_scale_has_ends_and_a_fixed_one_never_moves() {
        let config = parsed(r#""dynamic""#);
        let mut state = ScaleState::new(&config);
        assert_eq!(state.scale, 65536.0);
        let halvings = (0..100).take_while(|_| state.fail(&config)).count();
        assert_eq!((halvings, state.scale), (40, LEAST));
        for _ in 0..200_000 {
            state.succeed(&config);
        }
        assert_eq!(state.scale, MOST);

        let config = parsed("128");
        let mut state = ScaleState::new(&config);
        state.succeed(&config);
        assert!(!state.fail(&config));
        assert_eq!(state, ScaleState { scale: 128.0, steady: 0, skipped: 0 });
    }

    #[test]
    fn values_without_sense_are_complained_of() {
        for (json, key) in [
            ("0", ""),
            ("-2", ""),
            ("1e30", ""),
            (r#"{"initial": 0}"#, "initial"),
            (r#"{"factor": 1}"#, "factor"),
            (r#"{"every": 0}"#, "every"),
        ] {
            assert_eq!(parsed(json).complaint().map(|(key, _)| key), Some(key), "{json}");
        }
        assert_eq!(parsed(r#""dynamic""#).complaint(), None);
        assert!(serde_json::from_str::<LossScale>(r#""dynamics""#).is_err());
    }
}
