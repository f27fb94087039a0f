//! Moving range between layers: a channel is divided by a factor where it is made and multiplied by it where it is read.
//!
//! What the float model computes stays the same. Three ways to choose the factors:
//! - `cross-layer`: so that rows of one weight and columns of the next have equal ranges. Nagel et al. 2019,
//!   arXiv:1906.04721, section 4.1.
//! - `smooth`: so that outliers of activations go over to weights, `s = max|X|^a / max|W|^(1-a)`. Xiao et al. 2023,
//!   arXiv:2211.10438 (`SmoothQuant`). Limits as Intel Neural Compressor has them: what is divided by is at least 1e-5.
//! - `awq`: so that weights of large activations lose less, `s = mean|X|^r`, with the `r` of 21 that loses least. Lin et al.
//!   2024, arXiv:2306.00978.

use crate::batches::Batches;
use crate::config::{Config, Equalize};
use crate::data::Data;
use crate::engine::{Engine, LoadOptions};
use crate::graph::Index;
use crate::layers::{float_constant, input_moments};
use crate::plan::{Plan, WeightPlan};
use crate::proto::{GraphProto, NodeProto, TensorProto};
use crate::quantize::QuantizeError;
use crate::weights::Layout;
use crate::{Model, rounding, tensor};

/// Rounds of the cross-layer way; ranges of chains settle in few.
const ROUNDS: usize = 20;
/// A round that changes no factor by more than this ends it.
const SETTLED: f32 = 1e-3;
/// The least range that is divided by.
const LEAST: f32 = 1e-5;

/// A tensor whose channels can be scaled: where it is made and where it is read.
#[derive(Clone, Debug)]
struct Joint {
    /// The layer that makes it, what only follows the sign in between left out.
    maker: usize,
    /// The name of what is read.
    tensor: String,
    /// The layers that read it.
    readers: Vec<usize>,
    channels: usize,
}

/// Equalizes the model as the configuration says, and gives the number of tensors whose channels were scaled.
pub(crate) fn equalize(
    model: &mut Model,
    plan: &Plan,
    config: &Config,
    data: &dyn Data,
    engine: &dyn Engine,
) -> Result<usize, QuantizeError> {
    let joints = joints(model.graph());
    match config.equalize {
        Equalize::None => return Ok(0),
        Equalize::CrossLayer => cross_layer(model.graph_mut(), &joints)?,
        Equalize::Smooth { alpha } => {
            let extremes = channel_magnitudes(model, &joints, data, engine, f32::max)?;
            for (joint, extremes) in joints.iter().zip(&extremes) {
                let weights = column_ranges(model.graph(), joint)?;
                let factors: Vec<f32> = extremes
                    .iter()
                    .zip(&weights)
                    .map(|(&x, &w)| {
                        let factor = x.powf(alpha) / w.max(LEAST).powf(1.0 - alpha);
                        if x > 0.0 { factor.max(LEAST) } else { 1.0 }
                    })
                    .collect();
                scale(model.graph_mut(), joint, &factors)?;
            }
        }
        Equalize::ActivationAware => activation_aware(model, &joints, plan, config, data, engine)?,
    }
    Ok(joints.len())
}

/// Every tensor that one layer makes, up to operators that keep a positive factor, and only layers read.
fn joints(graph: &GraphProto) -> Vec<Joint> {
    let index = Index::of(graph);
    (0..graph.node.len()).filter_map(|maker| joint_of(graph, &index, maker)).collect()
}

fn joint_of(graph: &GraphProto, index: &Index, maker: usize) -> Option<Joint> {
    let node = &graph.node[maker];
    let channels = rows_of(node, graph, index)?;
    let mut tensor = node.output.first()?.clone();
    // max(0, x) and the like of a positive multiple are the multiple.
    while let Some((next, 0)) = index.only_reader(&tensor) {
        let follower = &graph.node[next];
        let homogeneous = ["Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool"];
        if !homogeneous.iter().any(|op| follower.is(op)) || follower.output.len() != 1 {
            break;
        }
        tensor.clone_from(&follower.output[0]);
    }
    let readers: Vec<usize> = index.readers(&tensor).iter().map(|(reader, _)| *reader).collect();
    let all_scale = index.readers(&tensor).iter().all(|&(reader, slot)| {
        slot == 0 && columns_of(&graph.node[reader], graph, index) == Some(channels)
    });
    (!readers.is_empty() && !index.is_exposed(&tensor) && all_scale).then_some(Joint {
        maker,
        tensor,
        readers,
        channels,
    })
}

/// Whether a constant belongs to one node alone.
fn own(name: &str, graph: &GraphProto, index: &Index) -> bool {
    graph.constant(name).is_some() && index.only_reader(name).is_some()
}

/// The number of output channels that a layer can scale; `None` where it cannot.
fn rows_of(node: &NodeProto, graph: &GraphProto, index: &Index) -> Option<usize> {
    let constants = |from: usize| {
        (from..node.input.len()).all(|at| node.arg(at).is_none_or(|name| own(name, graph, index)))
    };
    if node.is("LayerNormalization") {
        let scale = graph.constant(node.arg(1)?)?.shape().ok()?;
        return (scale.len() == 1 && constants(1)).then_some(scale[0]);
    }
    let layer = ["Conv", "Gemm", "MatMul"].iter().any(|op| node.is(op));
    let layout = Layout::of(node, graph)?;
    // One number of a bias for all rows, or others for each sample, cannot be divided by row.
    let bias = node.arg(2).is_none_or(|name| {
        graph.constant(name).is_some_and(|bias| {
            let last = bias.dims.last().copied();
            last == Some(layout.rows_i64()) && tensor::elems(&bias.dims) == Some(layout.rows())
        })
    });
    (layer && bias && constants(1)).then(|| layout.rows())
}

/// The number of input channels that a layer can scale; `None` where it cannot.
fn columns_of(node: &NodeProto, graph: &GraphProto, index: &Index) -> Option<usize> {
    let axis = column_axis(node, graph)?;
    own(node.arg(1)?, graph, index).then_some(())?;
    graph.constant(node.arg(1)?)?.shape().ok().map(|shape| shape[axis])
}

/// The axis of a layer's weight that counts its inputs.
fn column_axis(node: &NodeProto, graph: &GraphProto) -> Option<usize> {
    let layout = Layout::of(node, graph)?;
    match node.op_type() {
        "Conv" if node.int("group", 1) == 1 => Some(1),
        "Gemm" if node.int("transA", 0) == 0 => Some(1 - layout.axis),
        "MatMul" if layout.shape.len() == 2 => Some(0),
        _ => None,
    }
}

/// The largest magnitude of each slice of a tensor along an axis, joined with what is there.
fn ranges_along(values: &[f32], shape: &[usize], axis: usize, ranges: &mut [f32]) {
    let layout = Layout { shape: shape.to_vec(), axis };
    let mut copy = values.to_vec();
    layout.for_each_mut(&mut copy, |at, value| ranges[at] = ranges[at].max(value.abs()));
}

/// The largest magnitude that each channel is multiplied by, over all readers.
fn column_ranges(graph: &GraphProto, joint: &Joint) -> Result<Vec<f32>, QuantizeError> {
    let mut ranges = vec![0f32; joint.channels];
    for &reader in &joint.readers {
        let node = &graph.node[reader];
        let weight = node.arg(1).and_then(|name| graph.constant(name));
        if let (Some(weight), Some(axis)) = (weight, column_axis(node, graph)) {
            ranges_along(&weight.to_f32()?, &weight.shape()?, axis, &mut ranges);
        }
    }
    Ok(ranges)
}

/// Divides the channels of a tensor where it is made, and multiplies them where it is read.
fn scale(graph: &mut GraphProto, joint: &Joint, factors: &[f32]) -> Result<(), QuantizeError> {
    let maker = graph.node[joint.maker].clone();
    let norm = maker.is("LayerNormalization");
    for slot in 1..maker.input.len() {
        let Some(name) = maker.arg(slot) else { continue };
        let shape = float_constant(graph, name)?.shape()?;
        let layout = if slot == 1 && !norm { Layout::of(&maker, graph) } else { None };
        let layout = layout.unwrap_or(Layout { axis: shape.len().saturating_sub(1), shape });
        change(graph, name, &layout, |channel, value| *value /= factors[channel])?;
    }
    for &reader in &joint.readers {
        let node = graph.node[reader].clone();
        let (Some(name), Some(axis)) = (node.arg(1), column_axis(&node, graph)) else { continue };
        let layout = Layout { shape: float_constant(graph, name)?.shape()?, axis };
        change(graph, name, &layout, |channel, value| *value *= factors[channel])?;
    }
    Ok(())
}

fn change(
    graph: &mut GraphProto,
    name: &str,
    layout: &Layout,
    change: impl FnMut(usize, &mut f32),
) -> Result<(), QuantizeError> {
    let tensor = float_constant(graph, name)?;
    let mut values = tensor.to_f32()?;
    layout.for_each_mut(&mut values, change);
    *tensor = TensorProto::from_f32(name, &layout.shape, &values);
    Ok(())
}

/// Makes the ranges of rows and columns equal, again and again, since a layer in the middle of a chain is both.
fn cross_layer(graph: &mut GraphProto, joints: &[Joint]) -> Result<(), QuantizeError> {
    for _ in 0..ROUNDS {
        let mut largest = 0f32;
        for joint in joints {
            let maker = &graph.node[joint.maker];
            let Some(layout) = Layout::of(maker, graph) else { continue };
            let name = maker.arg(1).unwrap_or_default().to_owned();
            let mut rows = vec![0f32; joint.channels];
            let values = float_constant(graph, &name)?.to_f32()?;
            ranges_along(&values, &layout.shape, layout.axis, &mut rows);
            let columns = column_ranges(graph, joint)?;
            let factors: Vec<f32> = rows
                .iter()
                .zip(&columns)
                .map(
                    |(&row, &column)| {
                        if row > 0.0 && column > 0.0 { (row / column).sqrt() } else { 1.0 }
                    },
                )
                .collect();
            largest = factors.iter().fold(largest, |l, f| l.max(f.ln().abs()));
            scale(graph, joint, &factors)?;
        }
        if largest < SETTLED {
            break;
        }
    }
    Ok(())
}

/// A number for each channel of each tensor: magnitudes joined by `join`; divided by nothing.
fn channel_magnitudes(
    model: &Model,
    joints: &[Joint],
    data: &dyn Data,
    engine: &dyn Engine,
    join: fn(f32, f32) -> f32,
) -> Result<Vec<Vec<f32>>, QuantizeError> {
    let outputs: Vec<String> = joints.iter().map(|joint| joint.tensor.clone()).collect();
    let mut all: Vec<Vec<f32>> = joints.iter().map(|joint| vec![0f32; joint.channels]).collect();
    let mut batches = Batches::new(model, &outputs, data, engine, LoadOptions::default())?;
    while let Some(values) = batches.next()? {
        for ((channels, value), joint) in all.iter_mut().zip(&values).zip(joints) {
            let Some(elements) = value.as_f32() else { continue };
            let convolved = model.graph().node[joint.maker].is("Conv");
            let axis = if convolved { 1 } else { value.shape.len() - 1 };
            let inner: usize = value.shape[axis + 1..].iter().product();
            let count = channels.len();
            for (at, run) in elements.chunks_exact(inner.max(1)).enumerate() {
                let channel = &mut channels[at % count];
                *channel = run.iter().fold(*channel, |c, v| join(c, v.abs()));
            }
        }
    }
    Ok(all)
}

/// Tries 21 powers of the mean magnitude for each tensor, and keeps the one whose rounded weights lose least on the data.
fn activation_aware(
    model: &mut Model,
    joints: &[Joint],
    plan: &Plan,
    config: &Config,
    data: &dyn Data,
    engine: &dyn Engine,
) -> Result<(), QuantizeError> {
    // A sum is as good as a mean: factors are brought to a common size.
    let means = channel_magnitudes(model, joints, data, engine, |a, b| a + b)?;
    for (joint, means) in joints.iter().zip(&means) {
        let Some(&reader) = joint.readers.first() else { continue };
        let node = model.graph().node[reader].clone();
        let weight = plan.weights.iter().find(|w| node.arg(1) == Some(w.tensor.as_str()));
        let Some(weight) = weight else { continue };
        let Some(moments) = input_moments([model, model], reader, weight, data, engine)? else {
            continue;
        };
        let values = float_constant(model.graph_mut(), &weight.tensor)?.to_f32()?;
        let Some(axis) = column_axis(&node, model.graph()) else { continue };
        let columns = Layout { shape: weight.layout.shape.clone(), axis };
        let mut best: Option<(f64, Vec<f32>)> = None;
        for step in 0..=20u8 {
            let factors = powers(means, f32::from(step) / 20.0);
            let lost = loss(&values, weight, &columns, &factors, &moments.sums[0], config)?;
            if best.as_ref().is_none_or(|(least, _)| lost < *least) {
                best = Some((lost, factors));
            }
        }
        if let Some((_, factors)) = best {
            // The channel is divided where it is made by what the weight is multiplied by.
            scale(model.graph_mut(), joint, &factors)?;
        }
    }
    Ok(())
}

/// `mean^r`, over the geometric mean of the largest and the smallest.
fn powers(means: &[f32], power: f32) -> Vec<f32> {
    let raised: Vec<f32> =
        means.iter().map(|m| if *m > 0.0 { m.powf(power) } else { 1.0 }).collect();
    let (low, high) = raised.iter().fold((f32::INFINITY, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
    let middle = (low * high).sqrt();
    raised.iter().map(|v| if middle > 0.0 { v / middle } else { 1.0 }).collect()
}

/// `sum d^T H d` over rows, with `d` what a row loses when it is rounded under these factors.
fn loss(
    values: &[f32],
    weight: &WeightPlan,
    columns: &Layout,
    factors: &[f32],
    moments: &[f64],
    config: &Config,
) -> Result<f64, QuantizeError> {
    let mut scaled = values.to_vec();
    columns.for_each_mut(&mut scaled, |channel, value| *value *= factors[channel]);
    let packed =
        rounding::nearest(&scaled, &weight.layout, &weight.spec, config.weight_range, None)
            .map_err(|reason| crate::OnnxError::tensor(&weight.tensor, reason))?;
    let mut rounded = packed.values();
    columns.for_each_mut(&mut rounded, |channel, value| *value /= factors[channel]);
    let lost: Vec<f32> = rounded.iter().zip(values).map(|(a, b)| a - b).collect();
    let len = weight.layout.row_len();
    Ok(weight
        .layout
        .to_rows(&lost)
        .chunks_exact(len)
        .map(|row| {
            row.iter()
                .zip(moments.chunks_exact(len))
                .map(|(&d, moments)| {
                    let dot: f64 = row.iter().zip(moments).map(|(&o, m)| f64::from(o) * m).sum();
                    f64::from(d) * dot
                })
                .sum::<f64>()
        })
        .sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of the paper's formula: rows of range .2 and 4 before columns of range 1 and .02.
    #[test]
    fn ranges_of_rows_and_columns_become_equal() {
        let mut graph = GraphProto {
            node: vec![
                NodeProto::call("Gemm", "a", &["x", "w1", "b1"], &["h"]).with_int("transB", 1),
                NodeProto::call("Relu", "r", &["h"], &["g"]),
                NodeProto::call("Gemm", "b", &["g", "w2"], &["y"]).with_int("transB", 1),
            ],
            initializer: vec![
                TensorProto::from_f32("w1", &[2, 1], &[0.2, 4.0]),
                TensorProto::from_f32("b1", &[2], &[1.0, 1.0]),
                TensorProto::from_f32("w2", &[1, 2], &[1.0, 0.02]),
            ],
            ..GraphProto::default()
        };
        let joints = joints(&graph);
        assert_eq!(joints.len(), 1);
        cross_layer(&mut graph, &joints).unwrap();
        let values = |name: &str| graph.constant(name).unwrap().to_f32().unwrap();
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        assert!(near(&values("w1"), &[0.4472, 0.2828]), "{:?}", values("w1"));
        assert!(near(&values("w2"), &[0.4472, 0.2828]), "{:?}", values("w2"));
        assert!(near(&values("b1"), &[1.0 / 0.4472, 1.0 / 14.142]), "{:?}", values("b1"));
    }

    /// The worked example of `SmoothQuant` with a = 0.5: both ranges become {1, 1.789, .632}.
    #[test]
    fn factors_share_the_range_between_activations_and_weights() {
        let (x, w) = ([2.0f32, 16.0, 0.5], [0.5f32, 0.2, 0.8]);
        let factors: Vec<f32> = x.iter().zip(&w).map(|(x, w)| x.powf(0.5) / w.powf(0.5)).collect();
        for (at, (factor, shared)) in factors.iter().zip([1.0, 1.789, 0.632]).enumerate() {
            assert!(
                (x[at] / factor - shared).abs() < 1e-3 && (w[at] * factor - shared).abs() < 1e-3
            );
        }
    }

    #[test]
    fn a_bias_that_is_no_number_for_each_row_leaves_the_layer_alone() {
        let with = |dims: &[usize]| GraphProto {
            node: vec![
                NodeProto::call("Gemm", "a", &["x", "w1", "b1"], &["h"]).with_int("transB", 1),
                NodeProto::call("Gemm", "b", &["h", "w2"], &["y"]).with_int("transB", 1),
            ],
            initializer: vec![
                TensorProto::from_f32("w1", &[2, 1], &[0.2, 4.0]),
                TensorProto::from_f32("b1", dims, &vec![1.0; dims.iter().product()]),
                TensorProto::from_f32("w2", &[1, 2], &[1.0, 0.02]),
            ],
            ..GraphProto::default()
        };
        assert_eq!(joints(&with(&[2])).len(), 1);
        assert_eq!(joints(&with(&[1, 2])).len(), 1);
        for dims in [&[][..], &[1], &[2, 1], &[3, 2]] {
            assert!(joints(&with(dims)).is_empty(), "{dims:?}");
        }
    }
}
