//! Defaults, written out.

use std::collections::HashMap;

use crate::proto::GraphProto;

/// Writes out the strides and dilations of convolutions and pools, which some engines ask for.
pub fn explicit_attributes(graph: &mut GraphProto) {
    let ranks: HashMap<String, usize> =
        graph.initializer.iter().map(|t| (t.name().to_owned(), t.dims.len())).collect();
    for node in &mut graph.node {
        let axes = if node.is("Conv") || node.is("ConvTranspose") || node.is("ConvInteger") {
            let rank = node.arg(1).and_then(|name| ranks.get(name)).copied();
            rank.map_or_else(|| node.ints("kernel_shape").len(), |rank| rank.saturating_sub(2))
        } else {
            0
        };
        for name in ["strides", "dilations"] {
            if axes > 0 && node.get(name).is_none() {
                *node = std::mem::take(node).with_ints(name, &vec![1; axes]);
            }
        }
        node.subgraphs_mut().for_each(explicit_attributes);
    }
}
