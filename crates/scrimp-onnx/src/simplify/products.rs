//! Matrix products and the addition of a constant after them, made one `Gemm`: runtimes have that in integers, and a `MatMul`
//! beside an `Add` not.

use super::biases;
use crate::facts::Scope;
use crate::graph::Index;
use crate::proto::{GraphProto, NodeProto};
use crate::{DataType, OnnxError};

/// Makes a `Gemm` of every `MatMul` of a matrix with a constant one, or `Gemm` without a bias, that nothing else reads than an
/// `Add` of one value for each column or for all.
///
/// # Errors
/// If a constant contradicts its shape.
pub fn fold(graph: &mut GraphProto) -> Result<usize, OnnxError> {
    let mut folded = 0;
    loop {
        let index = Index::of(graph);
        let scope = Scope::of_graph(graph, None);
        let found = (0..graph.node.len()).find_map(|add| find(graph, &index, &scope, add));
        let Some(pair) = found else { return Ok(folded) };
        let tensor = graph
            .constant(&pair.bias)
            .ok_or_else(|| OnnxError::graph(format!("`{}` is not a constant", pair.bias)))?;
        let mut values = tensor.to_f32()?;
        if values.len() == 1 {
            values = vec![values[0]; pair.columns];
        }
        graph.node[pair.product].op_type = Some("Gemm".into());
        biases::take_in(graph, pair.product, pair.add, &pair.bias, &values);
        folded += 1;
    }
}

/// A product of so many columns, and the addition after it.
struct Pair {
    product: usize,
    columns: usize,
    add: usize,
    bias: String,
}

fn find(graph: &GraphProto, index: &Index, scope: &Scope<'_>, add: usize) -> Option<Pair> {
    let node = &graph.node[add];
    if !node.is("Add") {
        return None;
    }
    [(0, 1), (1, 0)].into_iter().find_map(|(from, with)| {
        let (value, constant) = (node.arg(from)?, node.arg(with)?);
        let product = index.maker(value)?;
        index.only_reader(value)?;
        let columns = columns(&graph.node[product], graph, scope)?;
        let tensor = graph.constant(constant)?;
        let by_column = match tensor.dims.as_slice() {
            [] => true,
            // More axes than a matrix has would give the sum more.
            [last] | [1, last] => *last == columns || *last == 1,
            _ => false,
        };
        let columns = usize::try_from(columns).ok()?;
        let float = tensor.kind() == Some(DataType::Float);
        (by_column && float).then(|| Pair { product, columns, add, bias: constant.to_owned() })
    })
}

/// The number of columns of a product of two matrices, the second a constant, to which a bias can be added.
fn columns(node: &NodeProto, graph: &GraphProto, scope: &Scope<'_>) -> Option<i64> {
    let weight = graph.constant(node.arg(1)?)?;
    let &[rows, columns] = weight.dims.as_slice() else { return None };
    let free = node.is("MatMul")
        || (node.is("Gemm") && node.arg(2).is_none() && node.float("beta", 1.0) == 1.0);
    let matrices = free && scope.rank(node.arg(0)?) == Some(2);
    let transposed = node.is("Gemm") && node.int("transB", 0) != 0;
    (matrices && weight.kind() == Some(DataType::Float)).then_some(if transposed {
        rows
    } else {
        columns
    })
}
