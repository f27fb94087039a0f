//! Embeddings.

use super::{OpRule, Output};
use crate::proto::{GraphProto, NodeProto};
use crate::weights::Layout;

/// `Gather` from a constant table: the table is stored as codes with a scale for each row.
#[derive(Debug)]
pub struct Lookup;

impl OpRule for Lookup {
    fn ops(&self) -> &'static [&'static str] {
        &["Gather"]
    }

    fn activations(&self, _node: &NodeProto) -> Vec<usize> {
        Vec::new()
    }

    fn weights(&self, node: &NodeProto, graph: &GraphProto) -> Vec<(usize, Layout)> {
        let table = node.arg(0).and_then(|name| graph.constant(name)).and_then(|t| t.shape().ok());
        match table {
            Some(shape) if shape.len() == 2 && node.int("axis", 0) == 0 => {
                vec![(0, Layout { shape, axis: 0 })]
            }
            _ => Vec::new(),
        }
    }

    fn output(&self) -> Output {
        Output::Free
    }
}
