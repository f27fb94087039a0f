//! Changes that keep what a model computes, so that a quantizer meets few forms of the same thing.

mod attributes;
mod biases;
mod constants;
mod dequantize;
mod norms;
mod products;

use std::collections::HashSet;

pub use attributes::explicit_attributes;
pub use dequantize::fold_weights;

use crate::proto::{GraphProto, NodeProto};
use crate::{Model, OnnxError};

/// What was changed, for the plan that a user reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Simplified {
    /// Nodes whose values do not depend on the input, now constants.
    pub constants: usize,
    /// Batch norms that became part of the layer before them.
    pub norms: usize,
    /// Additions of a constant that became the bias of the layer before them.
    pub biases: usize,
}

/// Computes constants, folds batch norms and biases into the layers before them, and drops what nothing reads.
///
/// Tied weights stay tied: a layer whose weight another node reads keeps its batch norm.
///
/// # Errors
/// If a constant contradicts its shape or the graph has a cycle.
pub fn simplify(model: &mut Model) -> Result<Simplified, OnnxError> {
    let graph = model.graph_mut();
    // Old versions list every constant among the inputs, as a default that a caller may replace; what becomes codes or is
    // folded can no longer be replaced.
    let constants: HashSet<String> =
        graph.initializer.iter().map(|t| t.name().to_owned()).collect();
    graph.input.retain(|input| !constants.contains(input.name()));
    graph.sort()?;
    let constants = constants::fold(graph)?;
    constants::hoist(graph);
    drop_dead_within(graph);
    // Before norms, so that those after such a product have a layer to become part of.
    let products = products::fold(graph)?;
    let norms = norms::fold(graph)?;
    let biases = products + biases::fold(graph)?;
    graph.drop_dead();
    // Shapes and types of intermediate values are no longer those of the file.
    graph.value_info.clear();
    Ok(Simplified { constants, norms, biases })
}

/// Drops what nothing reads any more in subgraphs: the constants that others were computed from.
fn drop_dead_within(graph: &mut GraphProto) {
    for sub in graph.node.iter_mut().flat_map(NodeProto::subgraphs_mut) {
        drop_dead_within(sub);
        sub.drop_dead();
    }
}
