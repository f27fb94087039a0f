//! Matrix products.

use super::{OpRule, Output};
use crate::proto::{GraphProto, NodeProto};
use crate::weights::Layout;

/// `MatMul` and `Gemm`: a constant factor is a weight, and both factors are activations in a product of attention.
#[derive(Debug)]
pub struct Product;

impl OpRule for Product {
    fn ops(&self) -> &'static [&'static str] {
        &["MatMul", "Gemm"]
    }

    fn activations(&self, _node: &NodeProto) -> Vec<usize> {
        vec![0, 1]
    }

    fn weights(&self, node: &NodeProto, graph: &GraphProto) -> Vec<(usize, Layout)> {
        Layout::of(node, graph).into_iter().map(|layout| (1, layout)).collect()
    }

    fn output(&self) -> Output {
        Output::Free
    }

    fn leads(&self) -> bool {
        true
    }
}
