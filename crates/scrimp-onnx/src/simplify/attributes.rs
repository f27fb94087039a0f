//! Defaults, written out.

use std::collections::HashMap;

use crate::proto::GraphProto;

/// Writes out the strides, dilations and pads of convolutions and pools, which some engines ask for.
pub fn explicit_attributes(graph: &mut GraphProto) {
    let ranks: HashMap<String, usize> =
        graph.initializer.iter().map(|t| (t.name().to_owned(), t.dims.len())).collect();
    for node in &mut graph.node {
        let pools = ["MaxPool", "AveragePool", "LpPool"].iter().any(|op| node.is(op));
        let axes = if pools {
            node.ints("kernel_shape").len()
        } else if node.is("Conv") || node.is("ConvTranspose") || node.is("ConvInteger") {
            let rank = node.arg(1).and_then(|name| ranks.get(name)).copied();
            rank.map_or_else(|| node.ints("kernel_shape").len(), |rank| rank.saturating_sub(2))
        } else {
            0
        };
        // Some pools have no dilations.
        for name in &["strides", "dilations"][..if pools { 1 } else { 2 }] {
            if axes > 0 && node.get(name).is_none() {
                *node = std::mem::take(node).with_ints(name, &vec![1; axes]);
            }
        }
        let given = ["pads", "output_shape"].iter().any(|&name| node.get(name).is_some());
        if axes > 0 && !given && node.text("auto_pad", "NOTSET") == "NOTSET" {
            *node = std::mem::take(node).with_ints("pads", &vec![0; 2 * axes]);
        }
        node.subgraphs_mut().for_each(explicit_attributes);
    }
}
