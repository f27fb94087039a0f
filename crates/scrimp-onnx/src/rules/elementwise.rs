//! Sums and products of elements.

use super::{OpRule, Output};
use crate::proto::NodeProto;

/// `Add` and `Mul`.
#[derive(Debug)]
pub struct Elementwise;

impl OpRule for Elementwise {
    fn ops(&self) -> &'static [&'static str] {
        &["Add", "Mul"]
    }

    fn activations(&self, _node: &NodeProto) -> Vec<usize> {
        vec![0, 1]
    }

    fn output(&self) -> Output {
        Output::Codes
    }
}
