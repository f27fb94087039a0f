//! Recurrent layers.

use super::{OpRule, Output};
use crate::proto::{GraphProto, NodeProto};
use crate::weights::Layout;

/// `LSTM`, `GRU` and `RNN`: both weights are stored as codes with a scale for each gate's output; the state stays float.
#[derive(Debug)]
pub struct Recurrent;

impl OpRule for Recurrent {
    fn ops(&self) -> &'static [&'static str] {
        &["LSTM", "GRU", "RNN"]
    }

    fn activations(&self, _node: &NodeProto) -> Vec<usize> {
        Vec::new()
    }

    fn weights(&self, node: &NodeProto, graph: &GraphProto) -> Vec<(usize, Layout)> {
        [1, 2]
            .into_iter()
            .filter_map(|at| {
                let shape = graph.constant(node.arg(at)?)?.shape().ok()?;
                (shape.len() == 3).then_some((at, Layout { shape, axis: 1 }))
            })
            .collect()
    }

    fn output(&self) -> Output {
        Output::Free
    }
}
