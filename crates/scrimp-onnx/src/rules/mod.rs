//! What each operator does to codes: one file for each kind of operator, one row for each name.

mod convolution;
mod elementwise;
mod lookup;
mod passing;
mod pooling;
mod product;
mod recurrent;

use std::fmt::Debug;

use crate::proto::{GraphProto, NodeProto};
use crate::weights::Layout;

/// What becomes of an operator's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// It gets codes: runtimes compute the operator in integers only if it does.
    Codes,
    /// It may stay float.
    Free,
    /// It has the codes of the inputs, moved or chosen.
    Same,
}

/// An operator that runtimes have in integers.
pub trait OpRule: Debug + Sync {
    /// The operators of the standard set.
    fn ops(&self) -> &'static [&'static str];
    /// The inputs that get codes while the model runs.
    fn activations(&self, node: &NodeProto) -> Vec<usize>;
    /// The constants that are stored as codes: number of the input, and the axis that counts rows.
    fn weights(&self, node: &NodeProto, graph: &GraphProto) -> Vec<(usize, Layout)> {
        let _ = (node, graph);
        Vec::new()
    }
    /// What becomes of the output.
    fn output(&self) -> Output;
    /// Whether the operator is worth integers by itself; others follow those that are.
    fn leads(&self) -> bool {
        false
    }
    /// Whether it stays float where no operator that leads comes after it: what prepares the outputs of a model needs the
    /// precision more than the speed.
    fn stays_at_the_end(&self) -> bool {
        !self.leads()
    }
}

/// Every rule.
pub static RULES: &[&dyn OpRule] = &[
    &convolution::Convolution,
    &product::Product,
    &elementwise::Elementwise,
    &pooling::Average,
    &passing::Passing,
    &passing::Concat,
    &recurrent::Recurrent,
    &lookup::Lookup,
];

/// The rule of a node; `None` for operators that stay float.
pub fn find(node: &NodeProto) -> Option<&'static dyn OpRule> {
    if !node.is_standard() {
        return None;
    }
    RULES.iter().copied().find(|rule| rule.ops().contains(&node.op_type()))
}

/// Operators that disappear into the codes of the one before them: what they cut off saturates.
pub fn is_cut(node: &NodeProto) -> bool {
    node.is("Relu") || node.is("Clip")
}
