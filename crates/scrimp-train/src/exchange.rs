//! How the gradients of parameters are summed over the batch: by simulated workers, which send rounded sums.

use std::sync::{Arc, Mutex, PoisonError};

use schemars::JsonSchema;
use scrimp_codec::Scheme;
use scrimp_exchange::{Level, Reducer, Reduction};
use scrimp_kernels::KernelError;
use serde::{Deserialize, Serialize};

use crate::params::NamedTensor;
use crate::tap::Session;

/// How each batch is divided among workers, and what they send.
///
/// The gradients of the weights and biases of linear and convolution layers are exchanged; those of norms are summed in
/// f32. Batch norms see the whole batch, as if its workers were one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExchangeConfig {
    /// What is usual for a published method; the other keys override it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Into how many parts of one size each batch is divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// In place of `workers`: how many tensors each level adds, from samples on, and what they are rounded to before
    /// that, as in QML's `hsum`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<LevelConfig>,
    /// What each worker's sum is rounded to; `aw` and `ab` of a rule override it. f32 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub up: Option<Scheme>,
    /// What the sum of all is rounded to on its way back. f32 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub down: Option<Scheme>,
    /// Whether what a message lost is added to the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_feedback: Option<bool>,
    /// Whether all workers use one scale, the largest of theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_scales: Option<bool>,
}

/// A level of an exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LevelConfig {
    /// How many tensors are added to one.
    pub count: usize,
    /// What each of them is rounded to first. f32 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub scheme: Option<Scheme>,
}

/// A published way to exchange gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Three values and one scale for all workers, drawn so that their mean is the gradient (Wen et al. 2017,
    /// arXiv:1705.07878).
    Terngrad,
    /// One bit up and down, with error feedback on both ways (Seide et al. 2014, Interspeech).
    OnebitSgd,
}

impl Preset {
    fn scheme(self) -> Scheme {
        let text = match self {
            Self::Terngrad => "terngrad",
            Self::OnebitSgd => "onebit",
        };
        text.parse().expect("it is a scheme")
    }
}

impl ExchangeConfig {
    /// What is wrong with the keys, if anything: the key and why.
    pub fn complaint(&self) -> Option<(&'static str, String)> {
        match (self.workers, &self.levels[..]) {
            (None, []) => {
                Some(("workers", "say how many workers there are, or give levels".into()))
            }
            (Some(0), _) => Some(("workers", "there is at least 1 worker".into())),
            (Some(_), [_, ..]) => {
                Some(("levels", "`workers` and `levels` both divide the batch; give one".into()))
            }
            (None, levels) if levels.iter().any(|level| level.count == 0) => {
                Some(("levels", "each level adds at least 1 tensor".into()))
            }
            (None, [.., last]) if last.scheme.is_some() && self.up.is_some() => {
                Some(("up", "the last of `levels` has a scheme, too".into()))
            }
            _ => None,
        }
    }

    /// What each worker sends where no rule says otherwise.
    pub fn up(&self) -> Scheme {
        let last = self.levels.last().and_then(|level| level.scheme.clone());
        let preset = || self.preset.map(Preset::scheme);
        self.up.clone().or(last).or_else(preset).unwrap_or_else(Scheme::float32)
    }

    /// The reduction of a batch of so many samples, of a tensor of which workers send this.
    pub fn reduction(&self, batch: usize, sent: Scheme) -> Reduction {
        let level = |count, scheme: Option<&Scheme>| Level {
            count,
            scheme: scheme.cloned().unwrap_or_else(Scheme::float32),
        };
        let mut levels: Vec<Level> = if let Some(workers) = self.workers {
            let workers = workers.clamp(1, batch.max(1));
            vec![level(batch.div_ceil(workers), None), level(workers, None)]
        } else {
            self.levels.iter().map(|l| level(l.count, l.scheme.as_ref())).collect()
        };
        if let Some(last) = levels.last_mut() {
            last.scheme = sent;
        }
        let one_bit = self.preset == Some(Preset::OnebitSgd);
        let down = self.down.clone().or_else(|| one_bit.then(|| Preset::OnebitSgd.scheme()));
        Reduction {
            levels,
            down: down.unwrap_or_else(Scheme::float32),
            feedback: self.error_feedback.unwrap_or(one_bit),
            shares_scales: self.share_scales.unwrap_or(self.preset == Some(Preset::Terngrad)),
        }
    }
}

/// The exchange of one parameter's gradient.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// `LAYER.aw` or `LAYER.ab`.
    name: String,
    reducer: Mutex<Reducer>,
    session: Arc<Session>,
}

impl Exchange {
    pub fn new(name: String, reducer: Reducer, session: &Arc<Session>) -> Self {
        Self { name, reducer: Mutex::new(reducer), session: Arc::clone(session) }
    }

    /// The gradient of a batch: `part` gives the sum over some samples. What cannot be held is reported to the session.
    pub fn sum(
        &self,
        samples: usize,
        mut part: impl FnMut(std::ops::Range<usize>) -> Result<Vec<f32>, KernelError>,
    ) -> Result<Vec<f32>, KernelError> {
        let mut reducer = self.reducer.lock().unwrap_or_else(PoisonError::into_inner);
        let local = reducer.local();
        let parts = (0..samples).step_by(local);
        let sums = parts.map(|first| part(first..samples.min(first + local)));
        let sums = sums.collect::<Result<Vec<_>, _>>()?;
        match reducer.reduce(sums, self.session.step()) {
            Ok(sum) => Ok(sum),
            Err(e) => {
                self.session.report(&self.name, e.to_string());
                part(0..samples)
            }
        }
    }

    /// What the next step depends on.
    pub fn state(&self) -> Vec<NamedTensor> {
        let reducer = self.reducer.lock().unwrap_or_else(PoisonError::into_inner);
        let tensor = |(sender, values): (String, Vec<f32>)| NamedTensor {
            name: format!("{}.{sender}", self.name),
            shape: vec![values.len()],
            values,
        };
        reducer.state().into_iter().map(tensor).collect()
    }

    /// Takes up a saved tensor, if it is one of this exchange; gives it back if not.
    pub fn restore(&self, saved: NamedTensor) -> Option<NamedTensor> {
        let own = saved.name.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('.'));
        let Some(sender) = own else { return Some(saved) };
        let mut reducer = self.reducer.lock().unwrap_or_else(PoisonError::into_inner);
        if !reducer.set_state(sender, &saved.values) {
            self.session.report(&saved.name, "the checkpoint has another state of it".into());
        }
        None
    }
}
