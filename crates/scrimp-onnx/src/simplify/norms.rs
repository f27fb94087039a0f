//! Batch norms, folded into the convolution or product before them.
//!
//! # Source
//! Jacob et al. 2018, arXiv:1712.05877, section 3.2: `w' = w γ / sqrt(σ² + ε)`, `b' = (b - μ) γ / sqrt(σ² + ε) + β`.

use crate::graph::Index;
use crate::proto::{GraphProto, TensorProto};
use crate::weights::Layout;
use crate::{DataType, OnnxError};

/// Folds every batch norm whose input is the output of one layer that nothing else reads.
///
/// # Errors
/// If a constant contradicts its shape.
pub fn fold(graph: &mut GraphProto) -> Result<usize, OnnxError> {
    let mut folded = 0;
    loop {
        let index = Index::of(graph);
        let Some(pair) = (0..graph.node.len()).find_map(|norm| find(graph, &index, norm)) else {
            return Ok(folded);
        };
        apply(graph, &pair)?;
        folded += 1;
    }
}

/// A layer and the norm after it.
struct Pair {
    layer: usize,
    norm: usize,
    layout: Layout,
}

fn find(graph: &GraphProto, index: &Index, norm: usize) -> Option<Pair> {
    let node = &graph.node[norm];
    let further = node.output.iter().skip(1).any(|name| !name.is_empty());
    if !node.is("BatchNormalization") || node.int("training_mode", 0) != 0 || further {
        return None;
    }
    let layer = index.maker(node.arg(0)?)?;
    index.only_reader(node.arg(0)?)?;
    let before = &graph.node[layer];
    let layout = Layout::of(before, graph)?;
    // A weight or bias that another node reads would change for it too.
    let own = |at: usize| {
        before.arg(at).is_none_or(|name| {
            index.constant(name).is_some()
                && index.readers(name).len() == 1
                && !index.is_exposed(name)
        })
    };
    let float =
        |name: &str| graph.constant(name).filter(|tensor| tensor.kind() == Some(DataType::Float));
    let constant =
        |at: usize| node.arg(at).and_then(float).is_some_and(|t| t.dims == [layout.rows_i64()]);
    // What is folded is written as f32. A bias of a product may also have a value for each sample.
    let by_row = before.arg(2).is_none_or(|name| {
        float(name).is_some_and(|bias| {
            bias.dims.split_last().is_none_or(|(&last, others)| {
                (last == 1 || last == layout.rows_i64()) && others.iter().all(|&size| size == 1)
            })
        })
    });
    let floats = before.arg(1).and_then(float).is_some() && by_row;
    let adds = before.op_type() != "Gemm"
        || (before.float("alpha", 1.0) == 1.0 && before.float("beta", 1.0) == 1.0);
    let folds = ["Conv", "ConvTranspose", "Gemm"].iter().any(|op| before.is(op));
    (folds && floats && adds && own(1) && own(2) && (1..5).all(constant)).then_some(Pair {
        layer,
        norm,
        layout,
    })
}

fn apply(graph: &mut GraphProto, pair: &Pair) -> Result<(), OnnxError> {
    let norm = graph.node.remove(pair.norm);
    let layer = pair.layer - usize::from(pair.norm < pair.layer);
    let values = |graph: &GraphProto, name: &str| -> Result<Vec<f64>, OnnxError> {
        let tensor = graph
            .constant(name)
            .ok_or_else(|| OnnxError::graph(format!("`{name}` is not a constant")))?;
        Ok(tensor.to_f32()?.into_iter().map(f64::from).collect())
    };
    let [gamma, beta, mean, variance] =
        [1, 2, 3, 4].map(|at| values(graph, norm.arg(at).unwrap_or_default()));
    let (gamma, beta, mean, variance) = (gamma?, beta?, mean?, variance?);
    let epsilon = f64::from(norm.float("epsilon", 1e-5));
    let factor: Vec<f64> =
        gamma.iter().zip(&variance).map(|(g, v)| g / (v + epsilon).sqrt()).collect();

    let weight_name = graph.node[layer].arg(1).unwrap_or_default().to_owned();
    let bias_name = graph.node[layer].arg(2).map(str::to_owned);
    let old_bias = match &bias_name {
        Some(name) => values(graph, name)?,
        None => vec![0.0; factor.len()],
    };
    #[expect(clippy::cast_possible_truncation, reason = "the weights are stored in f32")]
    let bias: Vec<f32> = (0..factor.len())
        .map(|c| ((old_bias[c % old_bias.len()] - mean[c]) * factor[c] + beta[c]) as f32)
        .collect();
    let name = bias_name.unwrap_or_else(|| graph.fresh_name(&format!("{weight_name}_bias")));

    let tensor = graph
        .initializer
        .iter_mut()
        .find(|t| t.name() == weight_name)
        .ok_or_else(|| OnnxError::graph(format!("`{weight_name}` is not a constant")))?;
    let mut weight = tensor.to_f32()?;
    #[expect(clippy::cast_possible_truncation, reason = "the weights are stored in f32")]
    pair.layout.for_each_mut(&mut weight, |row, w| *w = (f64::from(*w) * factor[row]) as f32);
    *tensor = TensorProto::from_f32(&weight_name, &tensor.shape()?, &weight);

    graph.initializer.retain(|t| t.name() != name);
    graph.initializer.push(TensorProto::from_f32(&name, &[bias.len()], &bias));
    let node = &mut graph.node[layer];
    node.input.truncate(2);
    node.input.push(name);
    node.output[0].clone_from(&norm.output[0]);
    Ok(())
}
