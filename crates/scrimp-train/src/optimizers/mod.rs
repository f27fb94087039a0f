//! Optimizers on flat slices: one pass over memory for each parameter.

mod adam;
mod schedule;
mod sgd;

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine;
use crate::params::{self, NamedTensor, Path};

pub use adam::Adam;
pub use schedule::Schedule;
pub use sgd::Sgd;

/// Which optimizer, with its options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Stochastic gradient descent, with momentum and weight decay.
    Sgd(Sgd),
    /// Adam; weight decay is added to the gradient.
    Adam(Adam),
    /// Adam with decoupled weight decay.
    Adamw(Adam),
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Sgd(Sgd::default())
    }
}

impl OptimizerConfig {
    /// The learning rate before any schedule.
    pub fn learning_rate(&self) -> f64 {
        match self {
            Self::Sgd(o) => o.lr,
            Self::Adam(o) | Self::Adamw(o) => o.lr,
        }
    }

    /// What is wrong with the options, if anything: the key and why.
    pub fn complaint(&self) -> Option<(&'static str, String)> {
        let share = |key, v: f64| {
            (!(0.0..1.0).contains(&v)).then(|| (key, format!("{v} is not in [0, 1)")))
        };
        let amount = |key, v: f64| {
            let valid = v.is_finite() && v >= 0.0;
            (!valid).then(|| (key, format!("{v} is not a number of at least 0")))
        };
        let lr = self.learning_rate();
        if let Some((key, _)) = amount("lr", lr) {
            return Some((key, format!("{lr} is no learning rate; it is a number of at least 0")));
        }
        match self {
            Self::Sgd(o) => share("momentum", o.momentum)
                .or_else(|| amount("weight_decay", o.weight_decay))
                .or_else(|| {
                    (o.nesterov && o.momentum == 0.0)
                        .then(|| ("nesterov", "needs a momentum above 0".into()))
                }),
            Self::Adam(o) | Self::Adamw(o) => share("beta1", o.beta1)
                .or_else(|| share("beta2", o.beta2))
                .or_else(|| amount("epsilon", o.epsilon))
                .or_else(|| amount("weight_decay", o.weight_decay)),
        }
    }

    fn update(&self, lr: f64, step: u64, w: &mut [f32], g: &[f32], moments: &mut [Vec<f32>]) {
        match (self, moments) {
            (Self::Sgd(o), moments) => {
                o.update(lr, step, w, g, moments.first_mut().map(Vec::as_mut_slice));
            }
            (Self::Adam(o), [m, v]) => o.update(lr, step, false, w, g, [m, v]),
            (Self::Adamw(o), [m, v]) => o.update(lr, step, true, w, g, [m, v]),
            _ => unreachable!("an Adam has two moments"),
        }
    }

    /// How many moments a parameter has.
    fn moments(&self) -> usize {
        match self {
            Self::Sgd(o) => usize::from(o.momentum > 0.0),
            Self::Adam(_) | Self::Adamw(_) => 2,
        }
    }
}

/// An optimizer with its state: the moments of every parameter, by name.
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// How many updates were made.
    step: u64,
    state: BTreeMap<String, Vec<Vec<f32>>>,
}

/// The keys under which moments are saved.
const MOMENTS: [&str; 2] = ["m", "v"];

impl Optimizer {
    /// An optimizer that has not made a step.
    pub fn new(config: OptimizerConfig) -> Self {
        Self { config, step: 0, state: BTreeMap::new() }
    }

    /// Updates every parameter that has a gradient.
    pub fn step<M: Module>(&mut self, lr: f64, module: M, grads: &mut GradientsParams) -> M {
        self.step += 1;
        module.map(&mut Update { optimizer: self, lr, grads, path: Path::default() })
    }

    /// The moments as tensors called `NAME.m` and `NAME.v`, flat.
    pub fn state(&self) -> Vec<NamedTensor> {
        self.state
            .iter()
            .flat_map(|(name, moments)| {
                moments.iter().zip(MOMENTS).map(move |(values, key)| NamedTensor {
                    name: format!("{name}.{key}"),
                    shape: vec![values.len()],
                    values: values.clone(),
                })
            })
            .collect()
    }

    /// Takes up the state that [`state`](Self::state) gave after `step` updates of `module`.
    ///
    /// # Errors
    /// If a tensor is no moment that this optimizer keeps of a parameter of the module; the optimizer is then unchanged.
    pub fn restore<M: Module>(
        &mut self,
        step: u64,
        module: &M,
        state: impl IntoIterator<Item = NamedTensor>,
    ) -> Result<(), StateError> {
        let error = |name: &str, reason: &str| {
            Err(StateError { name: name.to_owned(), reason: reason.to_owned() })
        };
        let counts: BTreeMap<String, usize> =
            params::tensors(module).into_iter().map(|t| (t.name, t.values.len())).collect();
        let kept = &MOMENTS[..self.config.moments()];
        let mut all: BTreeMap<String, Vec<Option<Vec<f32>>>> = BTreeMap::new();
        for NamedTensor { name, values, .. } in state {
            let parts = name.rsplit_once('.').and_then(|(parameter, key)| {
                Some((parameter, kept.iter().position(|k| *k == key)?))
            });
            let Some((parameter, place)) = parts else {
                return error(&name, "it is no moment that this optimizer keeps");
            };
            match counts.get(parameter) {
                None => return error(&name, "the network has no such parameter"),
                Some(count) if *count != values.len() => {
                    return error(&name, "its length is not that of the parameter");
                }
                Some(_) => {}
            }
            let moments = all.entry(parameter.to_owned()).or_insert_with(|| vec![None; kept.len()]);
            moments[place] = Some(values);
        }
        let mut whole = BTreeMap::new();
        for (name, moments) in all {
            let Some(moments) = moments.into_iter().collect::<Option<Vec<_>>>() else {
                return error(&name, "one of its moments is missing");
            };
            whole.insert(name, moments);
        }
        self.state = whole;
        self.step = step;
        Ok(())
    }
}

/// A saved state that does not belong to an optimizer or a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` cannot be taken up: {reason}")]
pub struct StateError {
    /// The tensor.
    pub name: String,
    /// Why.
    pub reason: String,
}

struct Update<'a> {
    optimizer: &'a mut Optimizer,
    lr: f64,
    grads: &'a mut GradientsParams,
    path: Path,
}

impl ModuleMapper for Update<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(grad) = self.grads.remove::<D>(param.id) else { return param };
        let (id, tensor, mapper) = param.consume();
        let Optimizer { config, step, state } = &mut *self.optimizer;
        let count: usize = tensor.dims().iter().product();
        let moments = state
            .entry(self.path.name())
            .or_insert_with(|| vec![vec![0.0; count]; config.moments()]);
        let tracked = tensor.is_require_grad();
        let updated: Tensor<D> = engine::with_values(grad, |g| {
            engine::map_values(tensor.inner(), |w| config.update(self.lr, *step, w, g, moments))
        });
        Param::from_mapped_value(id, Tensor::from_inner(updated).set_require_grad(tracked), mapper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_parameter_is_updated_as_short_ones_are() {
        let n = 131_149;
        let value = |i: usize| (i % 1009) as f32 / 500.0 - 1.0;
        let start: Vec<f32> = (0..n).map(value).collect();
        let sgd = |momentum, nesterov| Sgd { lr: 0.1, momentum, nesterov, weight_decay: 0.01 };
        let adam: Adam = serde_json::from_str(r#"{"lr": 0.01, "weight_decay": 0.1}"#).unwrap();
        for config in [
            OptimizerConfig::Sgd(sgd(0.0, false)),
            OptimizerConfig::Sgd(sgd(0.9, false)),
            OptimizerConfig::Sgd(sgd(0.9, true)),
            OptimizerConfig::Adam(adam),
            OptimizerConfig::Adamw(adam),
        ] {
            let run = |range: std::ops::Range<usize>| {
                let mut w = start[range.clone()].to_vec();
                let mut moments = vec![vec![0.0; w.len()]; config.moments()];
                for step in 1..=3u8 {
                    let g: Vec<f32> =
                        range.clone().map(|i| value(i * 7 + usize::from(step))).collect();
                    config.update(0.01, step.into(), &mut w, &g, &mut moments);
                }
                w
            };
            let whole = run(0..n);
            let pieces: Vec<f32> =
                (0..n).step_by(1000).flat_map(|at| run(at..(at + 1000).min(n))).collect();
            assert_eq!(whole, pieces, "{config:?}");
            assert!(
                whole.iter().zip(&start).all(|(a, b)| a != b),
                "{config:?} left a value as it was"
            );
        }
    }
}
