//! Operators that move or choose elements, so that codes pass through them as they are.

use super::{OpRule, Output};
use crate::proto::NodeProto;

/// Moves and choices of the elements of one tensor.
#[derive(Debug)]
pub struct Passing;

impl OpRule for Passing {
    fn ops(&self) -> &'static [&'static str] {
        &[
            "MaxPool",
            "Reshape",
            "Flatten",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Split",
            "Expand",
            "Tile",
            "Pad",
            "DepthToSpace",
            "SpaceToDepth",
            "Identity",
        ]
    }

    fn activations(&self, _node: &NodeProto) -> Vec<usize> {
        vec![0]
    }

    fn output(&self) -> Output {
        Output::Same
    }
}

/// `Concat`, whose inputs get one scale together.
#[derive(Debug)]
pub struct Concat;

impl OpRule for Concat {
    fn ops(&self) -> &'static [&'static str] {
        &["Concat"]
    }

    fn activations(&self, node: &NodeProto) -> Vec<usize> {
        (0..node.input.len()).collect()
    }

    fn output(&self) -> Output {
        Output::Same
    }
}
