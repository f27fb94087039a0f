//! Which layers lose most.

use std::collections::HashSet;

use crate::batches::Batches;
use crate::data::Data;
use crate::engine::{Engine, LoadOptions};
use crate::graph::Index;
use crate::insert::Writer;
use crate::plan::{Plan, State, Why};
use crate::proto::TensorProto;
use crate::quantize::{QuantizeError, Quantized};
use crate::verify::Sums;
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

/// The nodes whose error can be told, by their places: those with codes in the main graph.
pub fn measurable(quantized: &Quantized) -> Vec<usize> {
    let nodes = &quantized.plan.nodes;
    (0..nodes.len())
        .filter(|&at| matches!(nodes[at].state, State::Quantized | State::Weights))
        .collect()
}

/// Tells the error of layers, each alone.
#[derive(Debug)]
pub struct Alone<'a> {
    quantized: &'a Quantized,
    data: &'a dyn Data,
    engine: &'a dyn Engine,
    pair_per_reader: bool,
    outputs: Vec<String>,
    reference: Vec<Vec<Value>>,
}

impl<'a> Alone<'a> {
    /// Runs the float model.
    ///
    /// # Errors
    /// If it does not run.
    pub fn new(
        quantized: &'a Quantized,
        data: &'a dyn Data,
        engine: &'a dyn Engine,
        pair_per_reader: bool,
    ) -> Result<Self, QuantizeError> {
        let graph = quantized.float.graph();
        let outputs: Vec<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
        let reference = outputs_of(&quantized.float, &outputs, data, engine)?;
        Ok(Self { quantized, data, engine, pair_per_reader, outputs, reference })
    }

    /// The error of the node at this place, when it alone has codes.
    ///
    /// # Errors
    /// If the model does not run so.
    ///
    /// # Panics
    /// If the graph has no such node.
    pub fn error(&self, at: usize) -> Result<LayerError, QuantizeError> {
        let node = &self.quantized.plan.nodes[at];
        let alone = only(self.quantized, at, self.pair_per_reader)?;
        let values = outputs_of(&alone, &self.outputs, self.data, self.engine)?;
        Ok(LayerError {
            node: node.name.clone(),
            op: node.op.clone(),
            sqnr_db: error_of(&self.reference, &values),
        })
    }
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
    let mut writer = Writer::new(graph);
    writer.weights(&plan, &weights);
    writer.activations(&plan, &grids, pair_per_reader)?;
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
    let constants: HashSet<&str> =
        quantized.float.graph().initializer.iter().map(TensorProto::name).collect();
    let names: Vec<&String> = quantized
        .plan
        .activations
        .iter()
        .flat_map(|group| &group.tensors)
        .filter(|name| !constants.contains(name.as_str()))
        .collect();
    let graph = quantized.model.graph();
    let index = Index::of(graph);
    let after = |name: &str, op: &str| {
        let mut readers = index.readers(name).iter().map(|&(at, _)| &graph.node[at]);
        readers.find(|node| node.is(op)).map(|node| node.output[0].clone())
    };
    // What comes out of the pair behind the tensor; an output of the model has that name itself.
    let coded = |name: &String| {
        let codes = after(name, "QuantizeLinear");
        codes.and_then(|codes| after(&codes, "DequantizeLinear")).unwrap_or_else(|| name.clone())
    };
    let float: Vec<String> = names.iter().map(|name| (*name).clone()).collect();
    let codes: Vec<String> = names.iter().map(|name| coded(name)).collect();
    let mut floats = Batches::new(&quantized.float, &float, data, engine, PLAIN)?;
    let mut values = Batches::new(&quantized.model, &codes, data, engine, PLAIN)?;
    let mut sums = vec![Sums::default(); names.len()];
    while let (Some(floats), Some(values)) = (floats.next()?, values.next()?) {
        for (sums, (a, b)) in sums.iter_mut().zip(floats.iter().zip(&values)) {
            sums.add(a, b);
        }
    }
    let errors = names.into_iter().zip(&sums);
    Ok(errors
        .map(|(name, sums)| TensorError { tensor: name.clone(), sqnr_db: sums.sqnr_db() })
        .collect())
}

/// Nothing is joined, so that every tensor exists.
const PLAIN: LoadOptions = LoadOptions { threads: 2, optimize: false };

/// The outputs of a model on all of the data.
fn outputs_of(
    model: &Model,
    outputs: &[String],
    data: &dyn Data,
    engine: &dyn Engine,
) -> Result<Vec<Vec<Value>>, QuantizeError> {
    let mut batches = Batches::new(model, outputs, data, engine, PLAIN)?;
    let mut all = Vec::new();
    while let Some(values) = batches.next()? {
        all.push(values);
    }
    Ok(all)
}

fn error_of(reference: &[Vec<Value>], values: &[Vec<Value>]) -> f64 {
    let mut sums = Sums::default();
    for (a, b) in reference.iter().flatten().zip(values.iter().flatten()) {
        sums.add(a, b);
    }
    sums.sqnr_db()
}
