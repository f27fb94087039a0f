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
use crate::params::{NamedTensor, Path};

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
        let in_unit = |v: f64| (0.0..1.0).contains(&v);
        let positive = |v: f64| v.is_finite() && v >= 0.0;
        match self {
            Self::Sgd(o) => {
                if !positive(o.lr) {
                    Some((
                        "lr",
                        format!("{} is no learning rate; it is a number of at least 0", o.lr),
                    ))
                } else if !in_unit(o.momentum) {
                    Some(("momentum", format!("{} is not in [0, 1)", o.momentum)))
                } else if !positive(o.weight_decay) {
                    Some((
                        "weight_decay",
                        format!("{} is not a number of at least 0", o.weight_decay),
                    ))
                } else if o.nesterov && o.momentum == 0.0 {
                    Some(("nesterov", "needs a momentum above 0".into()))
                } else {
                    None
                }
            }
            Self::Adam(o) | Self::Adamw(o) => {
                if !positive(o.lr) {
                    Some((
                        "lr",
                        format!("{} is no learning rate; it is a number of at least 0", o.lr),
                    ))
                } else if !in_unit(o.beta1) {
                    Some(("beta1", format!("{} is not in [0, 1)", o.beta1)))
                } else if !in_unit(o.beta2) {
                    Some(("beta2", format!("{} is not in [0, 1)", o.beta2)))
                } else if !positive(o.epsilon) {
                    Some(("epsilon", format!("{} is not a number of at least 0", o.epsilon)))
                } else if !positive(o.weight_decay) {
                    Some((
                        "weight_decay",
                        format!("{} is not a number of at least 0", o.weight_decay),
                    ))
                } else {
                    None
                }
            }
        }
    }

    fn update(&self, lr: f64, step: u64, w: &mut [f32], g: &[f32], moments: &mut [Vec<f32>]) {
        match (self, moments) {
            (Self::Sgd(o), moments) => {
                o.update(lr, step, w, g, moments.first_mut().map_or(&mut [], Vec::as_mut_slice));
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

    /// Takes up the state that [`state`](Self::state) gave after `step` updates.
    pub fn restore(&mut self, step: u64, state: impl IntoIterator<Item = NamedTensor>) {
        self.step = step;
        let mut all: BTreeMap<String, NamedTensor> =
            state.into_iter().map(|t| (t.name.clone(), t)).collect();
        let names: Vec<String> =
            all.keys().filter_map(|k| k.strip_suffix(".m").map(str::to_owned)).collect();
        for name in names {
            let moments = MOMENTS
                .iter()
                .filter_map(|key| all.remove(&format!("{name}.{key}")).map(|t| t.values))
                .collect();
            self.state.insert(name, moments);
        }
    }
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

/// Splits four slices of one length into parts that fit the caches and runs them on all cores.
fn in_parallel(
    w: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    work: impl Fn(&mut [f32], &[f32], &mut [f32], &mut [f32]) + Sync,
) {
    use rayon::prelude::*;
    const PART: usize = 1 << 16;
    if w.len() <= PART {
        return work(w, g, m, v);
    }
    // A slice that is not there is empty in every part.
    let part = |slice: &[f32]| if slice.is_empty() { 0 } else { PART };
    let parts = w.len().div_ceil(PART);
    let mut m = parts_of(m, part(m), parts);
    let mut v = parts_of(v, part(v), parts);
    w.par_chunks_mut(PART)
        .zip(g.par_chunks(PART))
        .zip(m.par_iter_mut().zip(v.par_iter_mut()))
        .for_each(|((w, g), (m, v))| work(w, g, m, v));
}

fn parts_of(mut rest: &mut [f32], len: usize, count: usize) -> Vec<&mut [f32]> {
    (0..count)
        .map(|_| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(len.min(rest.len()));
            rest = tail;
            part
        })
        .collect()
}
