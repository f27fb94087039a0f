//! Means over places.

use super::{OpRule, Output};
use crate::proto::NodeProto;

/// `AveragePool` and `GlobalAveragePool`, whose means have a smaller range than what they are of.
#[derive(Debug)]
pub struct Average;

impl OpRule for Average {
    fn ops(&self) -> &'static [&'static str] {
        &["AveragePool", "GlobalAveragePool"]
    }

    fn activations(&self, _node: &NodeProto) -> Vec<usize> {
        vec![0]
    }

    fn output(&self) -> Output {
        Output::Codes
    }
}
