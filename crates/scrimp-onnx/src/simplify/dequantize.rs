//! Integer weights, computed back to floats for engines that do not know their type.

use std::collections::HashMap;

use crate::proto::{GraphProto, TensorProto};
use crate::weights::Packed;
use crate::{Model, OnnxError};

/// Replaces `DequantizeLinear` of constants by the constants it gives, in subgraphs too. What the model computes stays the
/// same; it only takes more memory.
///
/// # Errors
/// If a constant contradicts its shape.
pub fn fold_weights(model: &mut Model) -> Result<(), OnnxError> {
    fold(model.graph_mut(), &HashMap::new())
}

fn fold(graph: &mut GraphProto, outside: &HashMap<String, TensorProto>) -> Result<(), OnnxError> {
    let mut known = outside.clone();
    known.extend(graph.initializer.iter().map(|t| (t.name().to_owned(), t.clone())));
    let mut kept = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        let folded = node.is("DequantizeLinear")
            && match Packed::read(&node, &known)? {
                Some(packed) => {
                    let name = node.output[0].clone();
                    let values = packed.values();
                    graph.initializer.push(TensorProto::from_f32(&name, &packed.shape, &values));
                    true
                }
                None => false,
            };
        if !folded {
            for sub in node.subgraphs_mut() {
                fold(sub, &known)?;
            }
            kept.push(node);
        }
    }
    graph.node = kept;
    graph.drop_dead();
    Ok(())
}
