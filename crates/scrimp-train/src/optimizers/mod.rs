//! Optimizers on flat slices: one pass over memory for each parameter.

mod adam;
mod schedule;
mod sgd;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use scrimp_kernels::optim::Moments;
use serde::{Deserialize, Serialize};

use crate::engine;
use crate::params::{self, Path};
use crate::plan::{Plan, Status};
use crate::tap::{Point, Session};
use state::{Packing, Room, State};

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

    fn update(&self, lr: f64, step: u64, w: &mut [f32], g: &[f32], moments: &mut [&mut [f32]]) {
        let (adam, decoupled) = match self {
            Self::Sgd(o) => {
                return o.update(lr, step, w, g, moments.first_mut().map(|m| &mut **m));
            }
            Self::Adam(o) => (o, false),
            Self::Adamw(o) => (o, true),
        };
        let moments = match moments {
            [m, v] => Moments { m, v, v_max: None },
            [m, v, v_max] => Moments { m, v, v_max: Some(v_max) },
            _ => unreachable!("an Adam has two moments or three"),
        };
        adam.update(lr, step, decoupled, w, g, moments);
    }

    /// How many moments of a parameter are kept: the first so many of momentum, second moment, and its largest so far.
    pub fn moments(&self) -> usize {
        match self {
            Self::Sgd(o) => usize::from(o.momentum > 0.0),
            Self::Adam(o) | Self::Adamw(o) => 2 + usize::from(o.amsgrad),
        }
    }

    /// What is kept of a parameter, in a sentence.
    pub(crate) fn keeps(&self) -> String {
        match self {
            Self::Sgd(_) if self.moments() == 0 => "sgd without momentum keeps no moments".into(),
            Self::Sgd(_) => "sgd keeps a momentum `m` and no second moment".into(),
            Self::Adam(_) | Self::Adamw(_) => "adam keeps the moments `m` and `v`".into(),
        }
    }
}

/// An optimizer with its state: the moments of every parameter, by name.
///
/// A moment for which a plan has a scheme is held as the bytes of that scheme. An update decodes it, part by part where
/// the parameter is long and the scheme allows it, and encodes it again, so that at no time more than one part of one
/// parameter is there in f32.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// How many updates were made.
    step: u64,
    /// What a plan says of parameters, by name.
    planned: BTreeMap<String, Planned>,
    state: BTreeMap<String, State>,
    room: Room,
}

/// What a plan says of what is kept of a parameter.
#[derive(Debug, Default)]
struct Planned {
    /// The moments that are packed, by number.
    moments: BTreeMap<usize, Arc<Packing>>,
    /// What rounds the parameter itself, where no f32 master is kept.
    parameter: Option<Point>,
}

/// The keys under which moments are saved.
const MOMENTS: [&str; 3] = ["m", "v", "v_max"];

/// A moment as it is saved.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedMoment {
    /// The parameter's name and the moment's key, as `conv1.weight.m`.
    pub name: String,
    /// What is held of it.
    pub content: Content,
}

/// What is held of a moment.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Its values in f32, row-major.
    Values(Vec<f32>),
    /// The bytes of a scheme: those of its parts, one after the other.
    Bytes {
        /// The scheme.
        scheme: String,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

impl Optimizer {
    /// An optimizer that has not made a step, and keeps all moments in f32.
    pub fn new(config: OptimizerConfig) -> Self {
        Self {
            config,
            step: 0,
            planned: BTreeMap::new(),
            state: BTreeMap::new(),
            room: Room::default(),
        }
    }

    /// An optimizer that has not made a step, and keeps moments and parameters as a plan says.
    pub fn planned(config: OptimizerConfig, plan: &Plan, session: &Arc<Session>) -> Self {
        let mut optimizer = Self::new(config);
        optimizer.follow(plan, session);
        optimizer
    }

    /// Holds parameters as another plan of the same run says, whose moments have the same schemes.
    pub(crate) fn follow(&mut self, plan: &Plan, session: &Arc<Session>) {
        let mut planned: BTreeMap<String, Planned> = BTreeMap::new();
        for t in &plan.tensors {
            let Some(field) = t.role.parameter() else { continue };
            let parameter = format!("{}.{field}", t.layer);
            let name = format!("{}.{}", t.layer, t.role);
            match (t.role.moment(), t.master) {
                (Some(moment), _) if t.status == Status::Packed => {
                    let packing = Packing::new(&name, &t.scheme, &t.shape, session);
                    planned.entry(parameter).or_default().moments.insert(moment, packing);
                }
                (None, Some(false)) => {
                    let point = Point::new(name, Some(t.scheme.clone()), session);
                    planned.entry(parameter).or_default().parameter = Some(point);
                }
                _ => {}
            }
        }
        self.planned = planned;
    }

    /// Updates every parameter that has a gradient. A moment or parameter that its scheme cannot hold is reported to the
    /// session.
    pub fn step<M: Module>(&mut self, lr: f64, module: M, grads: &mut GradientsParams) -> M {
        self.step += 1;
        module.map(&mut Update { optimizer: self, lr, grads, path: Path::default() })
    }

    /// The moments as they are held, called `NAME.m`, `NAME.v` and `NAME.v_max`.
    pub fn state(&self) -> Vec<SavedMoment> {
        self.state
            .iter()
            .flat_map(|(name, state)| {
                state.contents().zip(MOMENTS).map(move |(content, key)| SavedMoment {
                    name: format!("{name}.{key}"),
                    content,
                })
            })
            .collect()
    }

    /// The moments of a parameter in f32, as an update sees them; none before its first update.
    pub fn moments(&self, parameter: &str) -> Vec<Vec<f32>> {
        self.state.get(parameter).map_or_else(Vec::new, State::values)
    }

    /// How many bytes are held of each moment of all parameters together, in the order `m`, `v`, `v_max`.
    pub fn state_bytes(&self) -> Vec<usize> {
        let mut bytes = vec![0; self.config.moments()];
        for name in self.state.keys() {
            bytes.iter_mut().zip(self.parameter_bytes(name)).for_each(|(sum, b)| *sum += b);
        }
        bytes
    }

    /// How many bytes are held of each moment of a parameter; none before its first update.
    pub fn parameter_bytes(&self, parameter: &str) -> Vec<usize> {
        self.state.get(parameter).map_or_else(Vec::new, |state| state.bytes().collect())
    }

    /// Takes up the state that [`state`](Self::state) gave after `step` updates of `module`.
    ///
    /// # Errors
    /// If a tensor is no moment that this optimizer keeps of a parameter of the module, or not as it keeps it; the
    /// optimizer is then unchanged.
    pub fn restore<M: Module>(
        &mut self,
        step: u64,
        module: &M,
        state: impl IntoIterator<Item = SavedMoment>,
    ) -> Result<(), StateError> {
        let error = |name: &str, reason: String| Err(StateError { name: name.to_owned(), reason });
        let counts: BTreeMap<String, usize> =
            params::tensors(module).into_iter().map(|t| (t.name, t.values.len())).collect();
        let kept = &MOMENTS[..self.config.moments()];
        let mut all: BTreeMap<String, Vec<Option<Content>>> = BTreeMap::new();
        for SavedMoment { name, content } in state {
            let parts = name.rsplit_once('.').and_then(|(parameter, key)| {
                Some((parameter, kept.iter().position(|k| *k == key)?))
            });
            let Some((parameter, place)) = parts else {
                return error(&name, "it is no moment that this optimizer keeps".into());
            };
            let Some(count) = counts.get(parameter) else {
                return error(&name, "the network has no such parameter".into());
            };
            let packing = self.planned.get(parameter).and_then(|p| p.moments.get(&place));
            if let Err(reason) = state::check(&content, packing, *count) {
                return error(&name, reason);
            }
            let moments = all.entry(parameter.to_owned()).or_insert_with(|| vec![None; kept.len()]);
            moments[place] = Some(content);
        }
        let mut whole = BTreeMap::new();
        for (name, moments) in all {
            let Some(moments) = moments.into_iter().collect::<Option<Vec<_>>>() else {
                return error(&name, "one of its moments is missing".into());
            };
            let packings = self.planned.get(&name).map(|p| &p.moments);
            let state = State::of(moments, packings, counts[&name]);
            whole.insert(name, state);
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
        let Optimizer { config, step, planned, state, room } = &mut *self.optimizer;
        let shape = tensor.dims();
        let name = self.path.name();
        let planned = planned.get(&name);
        let state = state.entry(name).or_insert_with(|| {
            let packings = planned.map(|p| &p.moments);
            State::new(config.moments(), packings, shape.iter().product())
        });
        let rounding = planned.and_then(|p| p.parameter.as_ref());
        let tracked = tensor.is_require_grad();
        let updated: Tensor<D> = engine::with_values(grad, |g| {
            engine::map_values(tensor.inner(), |w| {
                state.update(config, self.lr, *step, w, g, room);
                if let Some(point) = rounding {
                    point.apply(w, &shape);
                }
            })
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
                let mut state = State::new(config.moments(), None, w.len());
                for step in 1..=3u8 {
                    let g: Vec<f32> =
                        range.clone().map(|i| value(i * 7 + usize::from(step))).collect();
                    state.update(&config, 0.01, step.into(), &mut w, &g, &mut Room::default());
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
