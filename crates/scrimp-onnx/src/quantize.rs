//! A float model in, a quantized one out.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use crate::batches::{batches, fewest, run};
use crate::calibration::{self, Stats};
use crate::config::{Config, Mode};
use crate::data::Data;
use crate::engine::{Engine, EngineError, LoadOptions};
use crate::equalize;
use crate::insert::{self, Grid, Writer};
use crate::layers;
use crate::opset;
use crate::plan::{self, Plan, State};
use crate::proto::{NodeProto, ValueInfoProto};
use crate::simplify::{self, Simplified};
use crate::weights::Packed;
use crate::{DataType, Model, OnnxError, Value};

/// Why a model could not be quantized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The model itself is wrong.
    #[error(transparent)]
    Model(#[from] OnnxError),
    /// The engine would not run it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The configuration does not fit the model.
    #[error("{0}")]
    Config(String),
    /// The data does not fit the model.
    #[error("calibration data: {0}")]
    Data(String),
    /// The model has codes already.
    #[error("the model is quantized already: node `{node}` is a {op}; start from the float model")]
    Quantized {
        /// The first such node.
        node: String,
        /// Its operator.
        op: String,
    },
    /// A value is not a number.
    #[error(
        "tensor `{tensor}` has {nans} NaN and {infinities} infinite values on the calibration data"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// How many are NaN.
        nans: u64,
        /// How many are infinite.
        infinities: u64,
    },
    /// There is nothing to do.
    #[error("no node of the model can be quantized; {reason}")]
    Nothing {
        /// What was found.
        reason: String,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

/// What is going on, for a progress bar: done and total of the unit in which it is counted.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// Samples whose activations were looked at.
    Calibration {
        /// Samples done.
        done: usize,
        /// Samples in all.
        total: usize,
    },
    /// Weights that were rounded.
    Weights {
        /// Weights done.
        done: usize,
        /// Weights in all.
        total: usize,
    },
}

/// Told of progress; answers whether to go on.
pub type Watch<'a> = &'a mut dyn FnMut(Progress) -> bool;

/// A quantized model, and what was done to it.
#[derive(Debug)]
pub struct Quantized {
    /// The model.
    pub model: Model,
    /// The float model as it was before rounding: batch norms folded, constants computed.
    pub float: Model,
    /// What was rewritten for a later version of the operators, a line for each kind of node.
    pub upgraded: Vec<String>,
    /// What was simplified before.
    pub simplified: Simplified,
    /// Tensors whose channels were scaled between layers.
    pub equalized: usize,
    /// What became of each tensor.
    pub plan: Plan,
    /// Codes of each weight of the plan.
    pub weights: Vec<Packed>,
    /// Scale and zero point of each group of activations of the plan.
    pub grids: Vec<Grid>,
    /// Samples that calibration saw.
    pub samples: usize,
}

/// Quantizes a model.
///
/// # Errors
/// See [`QuantizeError`].
pub fn quantize(
    model: &Model,
    config: &Config,
    data: &dyn Data,
    engine: &dyn Engine,
    watch: Watch<'_>,
) -> Result<Quantized, QuantizeError> {
    refuse_quantized(model)?;
    let mut float = model.clone();
    float.load_external()?;
    let opset = needed_opset(&float, config);
    let upgraded =
        if float.opset() < opset { opset::upgrade(&mut float, opset)? } else { Vec::new() };
    let simplified = simplify::simplify(&mut float)?;

    let kinds = probe(&float, config, data, engine)?;
    let is_float =
        |name: &str| config.mode == Mode::Dynamic || kinds.get(name) == Some(&DataType::Float);
    let plan = plan::plan(float.graph(), config, &is_float).map_err(QuantizeError::Config)?;
    if plan.weights.is_empty() && plan.activations.is_empty() {
        return Err(QuantizeError::Nothing { reason: why_nothing(&plan) });
    }

    let equalized = equalize::equalize(&mut float, &plan, config, data, engine)?;
    let mut working = float.clone();
    let mut weights = layers::round(&mut working, &plan, config, data, engine, watch)?;
    let (grids, samples) = if plan.activations.is_empty() {
        (Vec::new(), 0)
    } else {
        calibrate(&working, &plan, config, data, engine, watch)?
    };

    // The working model has the biases that were corrected.
    let mut quantized = working;
    let graph = quantized.graph_mut();
    insert::zero_points(&plan, config.profile.zero_points, &mut weights);
    let mut writer = Writer::new(graph);
    writer.biases(&plan, &weights, &grids, config.profile.integer_bias);
    if config.mode == Mode::Dynamic {
        writer.dynamic(&plan, &weights)?;
    }
    writer.weights(&plan, &weights);
    writer.activations(&plan, &grids, config.profile.pair_per_reader)?;
    graph.sort()?;
    graph.drop_dead();
    // A constant that a float node reads too is there beside its codes, as it was.
    for weight in &plan.weights {
        let kept = graph.initializer.iter_mut().find(|t| t.name() == weight.tensor);
        if let (Some(kept), Some(original)) = (kept, float.graph().constant(&weight.tensor)) {
            kept.clone_from(original);
        }
    }
    quantized.proto.producer_name = Some("scrimp".into());
    quantized.proto.producer_version = Some(env!("CARGO_PKG_VERSION").into());
    Ok(Quantized {
        model: quantized,
        float,
        upgraded,
        simplified,
        equalized,
        plan,
        weights,
        grids,
        samples,
    })
}

fn refuse_quantized(model: &Model) -> Result<(), QuantizeError> {
    const OPS: [&str; 6] = [
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "MatMulInteger",
    ];
    fn within<'a>(nodes: &'a [NodeProto], ops: &[&str]) -> Option<&'a NodeProto> {
        nodes.iter().find_map(|node| {
            let own = ops.contains(&node.op_type()).then_some(node);
            own.or_else(|| node.subgraphs().find_map(|graph| within(&graph.node, ops)))
        })
    }
    match within(&model.graph().node, &OPS) {
        Some(node) => {
            Err(QuantizeError::Quantized { node: node.label().into(), op: node.op_type().into() })
        }
        None => Ok(()),
    }
}

/// The first version of the operators that has all that the configuration asks for.
fn needed_opset(model: &Model, config: &Config) -> i64 {
    let rules = config.rules.iter().flat_map(|rule| [&rule.weights, &rule.activations]).flatten();
    let mut needed = 13;
    let mut specs: Vec<&crate::config::Spec> = vec![&config.weights];
    if config.mode == Mode::Static {
        specs.push(&config.activations);
    }
    for spec in specs.into_iter().chain(rules) {
        needed = needed.max(spec.opset());
    }
    needed.max(model.opset())
}

fn why_nothing(plan: &Plan) -> String {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for node in &plan.nodes {
        let State::Float(why) = node.state else { continue };
        let text = format!("{} ({})", node.op, why.text());
        match counts.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => counts.push((text, 1)),
        }
    }
    counts.iter().map(|(text, count)| format!("{count} {text}")).collect::<Vec<_>>().join(", ")
}

/// The element type of every value that may get codes, found by running one sample.
fn probe(
    model: &Model,
    config: &Config,
    data: &dyn Data,
    engine: &dyn Engine,
) -> Result<HashMap<String, DataType>, QuantizeError> {
    // Without a run, what a product reads is taken to be float, as its weight is.
    if config.mode != Mode::Static {
        return Ok(HashMap::new());
    }
    // What a plan could touch if every value were float.
    let widest = plan::plan(model.graph(), config, &|_| true).map_err(QuantizeError::Config)?;
    let outputs = computed(widest.activations.iter().flat_map(|group| &group.tensors), model);
    let mut kinds: HashMap<String, DataType> = model
        .graph()
        .input
        .iter()
        .filter_map(|input| {
            Some((input.name().to_owned(), DataType::from_number(input.tensor_type()?.0)?))
        })
        .collect();
    if outputs.is_empty() {
        return Ok(kinds);
    }
    // As few samples as the model takes: types do not depend on them.
    let first = batches(model, data)?[0].clone();
    let count = fewest(model, data)?.min(first.len());
    let mut session = engine.load(model, &outputs, LoadOptions::default())?;
    let inputs = data.batch(first.start, first.start + count).map_err(QuantizeError::Data)?;
    let values = run(&mut *session, &inputs)?;
    kinds.extend(outputs.into_iter().zip(values.iter().map(Value::kind)));
    Ok(kinds)
}

/// Those of the tensors that nodes compute.
fn computed<'a>(tensors: impl Iterator<Item = &'a String>, model: &Model) -> Vec<String> {
    let inputs: HashSet<&str> = model.graph().input.iter().map(ValueInfoProto::name).collect();
    tensors
        .filter(|name| !inputs.contains(name.as_str()) && model.graph().constant(name).is_none())
        .cloned()
        .collect()
}

/// Scale and zero point of each group of activations, and the number of samples seen.
fn calibrate(
    working: &Model,
    plan: &Plan,
    config: &Config,
    data: &dyn Data,
    engine: &dyn Engine,
    watch: Watch<'_>,
) -> Result<(Vec<Grid>, usize), QuantizeError> {
    let method = calibration::find(&config.calibration).map_err(QuantizeError::Config)?;
    let outputs = computed(plan.activations.iter().flat_map(|group| &group.sources), working);
    let batches = batches(working, data)?;
    let total = batches.last().map_or(0, |batch| batch.end);
    let mut session = engine.load(working, &outputs, LoadOptions::default())?;
    let mut stats: HashMap<&str, Stats> = plan
        .activations
        .iter()
        .flat_map(|group| &group.sources)
        .map(|name| (name.as_str(), Stats::default()))
        .collect();
    for batch in batches {
        if !watch(Progress::Calibration { done: batch.start, total }) {
            return Err(QuantizeError::Stopped);
        }
        let inputs = data.batch(batch.start, batch.end).map_err(QuantizeError::Data)?;
        let values = run(&mut *session, &inputs)?;
        let seen: HashMap<&str, &Value> = outputs
            .iter()
            .map(String::as_str)
            .zip(&values)
            .chain(inputs.iter().map(|(name, value)| (name.as_str(), value)))
            .collect();
        stats.par_iter_mut().for_each(|(name, stats)| {
            if let Some(values) = seen.get(name).and_then(|value| value.as_f32()) {
                stats.add(values);
            }
        });
    }
    watch(Progress::Calibration { done: total, total });
    let grids = plan
        .activations
        .par_iter()
        .map(|group| {
            let mut all = Stats::default();
            for name in &group.sources {
                match working.graph().constant(name) {
                    Some(constant) => all.add(&constant.to_f32()?),
                    None => all.merge(&stats[name.as_str()]),
                }
                if all.nans + all.infinities > 0 {
                    return Err(QuantizeError::NotFinite {
                        tensor: name.clone(),
                        nans: all.nans,
                        infinities: all.infinities,
                    });
                }
            }
            let element = &group.spec.element;
            let symmetric = config.profile.symmetric;
            let (scale, zero) = if all.count == 0 {
                (1.0, 0)
            } else {
                let range = method.range(&all, element, symmetric);
                element.fit(range.min, range.max, symmetric)
            };
            Ok(Grid { scale, zero })
        })
        .collect::<Result<_, QuantizeError>>()?;
    Ok((grids, total))
}
