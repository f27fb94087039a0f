//! Which layers lose most.

use std::collections::HashSet;

use crate::data::Data;
use crate::engine::{Engine, LoadOptions};
use crate::insert;
use crate::plan::{Plan, State, Why};
use crate::proto::TensorProto;
use crate::quantize::{QuantizeError, Quantized, batches, run};
use crate::verify::sqnr;
use crate::{Model, Value};

/// What a layer does to the outputs of the model when it alone has codes.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerError {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Signal against noise of the model's outputs, in dB.
    pub sqnr_db: f64,
}

/// How far a tensor of the quantized model is from that of the float model.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorError {
    /// The tensor.
    pub tensor: String,
    /// Signal against noise, in dB, with all that the layers before it lost.
    pub sqnr_db: f64,
}

/// The error of each quantized layer alone, the worst first.
///
/// # Errors
/// If a model does not run.
pub fn layers(
    quantized: &Quantized,
    data: &dyn Data,
    engine: &dyn Engine,
    pair_per_reader: bool,
    watch: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Vec<LayerError>, QuantizeError> {
    let outputs: Vec<String> =
        quantized.float.graph().output.iter().map(|o| o.name().to_owned()).collect();
    let reference = outputs_of(&quantized.float, &outputs, data, engine)?;
    let chosen: Vec<usize> = (0..quantized.plan.nodes.len())
        .filter(|&at| matches!(quantized.plan.nodes[at].state, State::Quantized | State::Weights))
        .collect();
    let mut errors = Vec::with_capacity(chosen.len());
    for (done, &at) in chosen.iter().enumerate() {
        if !watch(done, chosen.len()) {
            return Err(QuantizeError::Stopped);
        }
        let node = &quantized.plan.nodes[at];
        let alone = only(quantized, at, pair_per_reader)?;
        let values = outputs_of(&alone, &outputs, data, engine)?;
        errors.push(LayerError {
            node: node.name.clone(),
            op: node.op.clone(),
            sqnr_db: error_of(&reference, &values),
        });
    }
    watch(chosen.len(), chosen.len());
    errors.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    Ok(errors)
}

/// The float model with the codes of one layer: its weights and what it reads.
fn only(quantized: &Quantized, at: usize, pair_per_reader: bool) -> Result<Model, QuantizeError> {
    let node = &quantized.float.graph().node[at];
    let mut plan = Plan { nodes: quantized.plan.nodes.clone(), ..Plan::default() };
    for (other, node) in plan.nodes.iter_mut().enumerate() {
        if other != at {
            node.state = State::Float(Why::Excluded);
        }
    }
    let mut weights = Vec::new();
    for (weight, packed) in quantized.plan.weights.iter().zip(&quantized.weights) {
        if node.input.contains(&weight.tensor) {
            plan.weights.push(weight.clone());
            weights.push(packed.clone());
        }
    }
    let mut grids = Vec::new();
    for (group, &grid) in quantized.plan.activations.iter().zip(&quantized.grids) {
        let mut group = group.clone();
        group.tensors.retain(|name| node.input.contains(name));
        if !group.tensors.is_empty() {
            plan.activations.push(group);
            grids.push(grid);
        }
    }
    let mut model = quantized.float.clone();
    let graph = model.graph_mut();
    insert::weights(graph, &plan, &weights);
    insert::activations(graph, &plan, &grids, pair_per_reader)?;
    graph.sort()?;
    graph.drop_dead();
    Ok(model)
}

/// The error of every tensor with codes, in the order of the graph.
///
/// # Errors
/// If a model does not run.
pub fn tensors(
    quantized: &Quantized,
    data: &dyn Data,
    engine: &dyn Engine,
) -> Result<Vec<TensorError>, QuantizeError> {
    let made: HashSet<&str> = quantized
        .model
        .graph()
        .node
        .iter()
        .flat_map(|node| &node.output)
        .map(String::as_str)
        .collect();
    let constants: HashSet<&str> =
        quantized.float.graph().initializer.iter().map(TensorProto::name).collect();
    let names: Vec<&String> = quantized
        .plan
        .activations
        .iter()
        .flat_map(|group| &group.tensors)
        .filter(|name| !constants.contains(name.as_str()))
        .collect();
    // The value after the codes, under the name that it got.
    let coded = |name: &String| {
        let value = format!("{name}/dq");
        if made.contains(value.as_str()) { value } else { name.clone() }
    };
    let float: Vec<String> = names.iter().map(|name| (*name).clone()).collect();
    let codes: Vec<String> = names.iter().map(|name| coded(name)).collect();
    let reference = outputs_of(&quantized.float, &float, data, engine)?;
    let values = outputs_of(&quantized.model, &codes, data, engine)?;
    let mut errors = Vec::with_capacity(names.len());
    for (at, name) in names.into_iter().enumerate() {
        let one = |batches: &[Vec<Value>]| -> Vec<Vec<Value>> {
            batches.iter().map(|batch| vec![batch[at].clone()]).collect()
        };
        errors.push(TensorError {
            tensor: name.clone(),
            sqnr_db: error_of(&one(&reference), &one(&values)),
        });
    }
    Ok(errors)
}

/// The values of some tensors on all of the data, unoptimized, so that every tensor exists.
fn outputs_of(
    model: &Model,
    outputs: &[String],
    data: &dyn Data,
    engine: &dyn Engine,
) -> Result<Vec<Vec<Value>>, QuantizeError> {
    let given = |name: &String| model.graph().input.iter().any(|input| input.name() == name);
    let computed: Vec<String> = outputs.iter().filter(|name| !given(name)).cloned().collect();
    let options = LoadOptions { optimize: false, ..LoadOptions::default() };
    let mut session = engine.load(model, &computed, options)?;
    let mut all = Vec::new();
    for batch in batches(model, data)? {
        let inputs = data.batch(batch.start, batch.end).map_err(QuantizeError::Data)?;
        let mut made = run(&mut *session, &inputs)?.into_iter();
        let value = |name: &String| {
            let given = inputs.iter().find(|(input, _)| input == name);
            given.map(|(_, value)| value.clone()).or_else(|| made.next())
        };
        all.push(outputs.iter().filter_map(value).collect());
    }
    Ok(all)
}

fn error_of(reference: &[Vec<Value>], values: &[Vec<Value>]) -> f64 {
    let (mut signal, mut noise) = (0.0, 0.0);
    for (a, b) in reference.iter().flatten().zip(values.iter().flatten()) {
        let (Some(a), Some(b)) = (a.as_f32(), b.as_f32()) else { continue };
        for (&a, &b) in a.iter().zip(b) {
            signal += f64::from(a).powi(2);
            noise += f64::from(a - b).powi(2);
        }
    }
    sqnr(signal, noise)
}
