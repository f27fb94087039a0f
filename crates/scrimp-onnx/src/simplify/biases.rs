//! Additions of a constant, folded into the bias of the layer before them.

use crate::graph::Index;
use crate::proto::{GraphProto, TensorProto};
use crate::weights::Layout;
use crate::{DataType, OnnxError};

/// Folds every `Add` of one value for each channel whose other input is a convolution that nothing else reads and that
/// has no bias yet.
///
/// # Errors
/// If a constant contradicts its shape.
pub fn fold(graph: &mut GraphProto) -> Result<usize, OnnxError> {
    let mut folded = 0;
    loop {
        let index = Index::of(graph);
        let Some((add, layer, constant)) =
            (0..graph.node.len()).find_map(|add| find(graph, &index, add))
        else {
            return Ok(folded);
        };
        let tensor = graph
            .constant(&constant)
            .ok_or_else(|| OnnxError::graph(format!("`{constant}` is not a constant")))?;
        let values = tensor.to_f32()?;
        take_in(graph, layer, add, &constant, &values);
        folded += 1;
    }
}

/// Gives a layer without a bias these values as one, in place of the addition of a constant after it, which goes.
pub(super) fn take_in(
    graph: &mut GraphProto,
    layer: usize,
    add: usize,
    constant: &str,
    values: &[f32],
) {
    let name = graph.fresh_name(&format!("{constant}_bias"));
    graph.initializer.push(TensorProto::from_f32(&name, &[values.len()], values));
    let output = graph.node[add].output[0].clone();
    let node = &mut graph.node[layer];
    node.input.truncate(2);
    node.input.push(name);
    node.output[0] = output;
    graph.node.remove(add);
}

fn find(graph: &GraphProto, index: &Index, add: usize) -> Option<(usize, usize, String)> {
    let node = &graph.node[add];
    if !node.is("Add") {
        return None;
    }
    [(0, 1), (1, 0)].into_iter().find_map(|(from, with)| {
        let (value, constant) = (node.arg(from)?, node.arg(with)?);
        let layer = index.maker(value)?;
        index.only_reader(value)?;
        let before = &graph.node[layer];
        let convolves = before.is("Conv") || before.is("ConvTranspose");
        let layout = Layout::of(before, graph)?;
        let tensor = graph.constant(constant)?;
        // One value for each channel: axis 1 of the result, counted from the end of the shape.
        let rank = before.arg(1).and_then(|w| graph.constant(w))?.dims.len();
        let channel_axis = tensor.dims.len().checked_sub(rank - 1)?;
        let per_channel = tensor
            .dims
            .iter()
            .enumerate()
            .all(|(at, &size)| size == if at == channel_axis { layout.rows_i64() } else { 1 });
        // More axes than the result has would give it more; what is folded is written as f32.
        let fits = tensor.dims.len() <= rank && tensor.kind() == Some(DataType::Float);
        (convolves && before.arg(2).is_none() && per_channel && fits)
            .then(|| (add, layer, constant.to_owned()))
    })
}
