//! Integer weights, computed back to floats for engines that do not know their type.

use std::collections::HashMap;

use crate::proto::{GraphProto, TensorProto};
use crate::tensor::elems;
use crate::weights::{Packed, power_of};
use crate::{DataType, Model, OnnxError};

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
    // Exponents of scales become floats first.
    for node in &graph.node {
        let to_float = node.is("Cast") && node.int("to", 0) == i64::from(DataType::Float as i32);
        let exponents = node.arg(0).filter(|_| to_float).and_then(|name| known.get(name));
        let (Some(exponents), Some(output)) = (exponents, node.output.first()) else { continue };
        if exponents.kind() == Some(DataType::Float8E8M0)
            && let Some(raw) = &exponents.raw_data
            && elems(&exponents.dims) == Some(raw.len())
        {
            let values: Vec<f32> = raw.iter().map(|&byte| power_of(byte)).collect();
            let scales = TensorProto::from_f32(output, &exponents.shape()?, &values);
            known.insert(output.clone(), scales);
        }
    }
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
