//! Convolutions.

use super::{OpRule, Output};
use crate::proto::{GraphProto, NodeProto};
use crate::weights::Layout;

/// `Conv` and `ConvTranspose`: input and weight; the bias stays float, which runtimes bring to 32 bits by themselves.
#[derive(Debug)]
pub struct Convolution;

impl OpRule for Convolution {
    fn ops(&self) -> &'static [&'static str] {
        &["Conv", "ConvTranspose"]
    }

    fn activations(&self, _node: &NodeProto) -> Vec<usize> {
        vec![0]
    }

    fn weights(&self, node: &NodeProto, graph: &GraphProto) -> Vec<(usize, Layout)> {
        Layout::of(node, graph).into_iter().map(|layout| (1, layout)).collect()
    }

    fn output(&self) -> Output {
        Output::Codes
    }

    fn leads(&self) -> bool {
        true
    }
}
