//! Rounding the weights of a model, one layer after the other, each on what the layers before it really give.

use std::collections::HashMap;

use crate::batches::Batches;
use crate::config::{Config, Statistics, WeightRounding};
use crate::data::Data;
use crate::engine::{Engine, LoadOptions};
use crate::gptq::{self, Moments};
use crate::graph::Index;
use crate::plan::{Plan, WeightPlan};
use crate::proto::{GraphProto, TensorProto};
use crate::quantize::{Progress, QuantizeError, Watch};
use crate::weights::{Packed, Sharing};
use crate::{Model, OnnxError, Value, patches, rounding};

/// Rounds every weight of the plan, and puts what its codes stand for into the working model.
pub(crate) fn round(
    working: &mut Model,
    plan: &Plan,
    config: &Config,
    data: &dyn Data,
    engine: &dyn Engine,
    watch: Watch<'_>,
) -> Result<Vec<Packed>, QuantizeError> {
    let order = in_order(working.graph(), plan);
    let targets = if config.statistics == Statistics::Keep {
        HashMap::new()
    } else {
        let outputs: Vec<String> = order
            .iter()
            .filter_map(|&at| layer_of(working.graph(), &plan.weights[at]))
            .map(|node| working.graph().node[node].output[0].clone())
            .collect();
        let all = channel_statistics(working, &outputs, data, engine)?;
        outputs.into_iter().zip(all).collect()
    };
    let float = working.clone();
    let total = order.len();
    let mut rounded: Vec<Option<Packed>> = vec![None; total];
    for (done, &at) in order.iter().enumerate() {
        if !watch(Progress::Weights { done, total }) {
            return Err(QuantizeError::Stopped);
        }
        let weight = &plan.weights[at];
        let node = layer_of(working.graph(), weight);
        let moments = match node {
            Some(node) if config.weight_rounding == WeightRounding::Gptq => {
                input_moments([working, &float], node, weight, data, engine)?
            }
            _ => None,
        };
        let graph = working.graph_mut();
        let mut values = float_constant(graph, &weight.tensor)?.to_f32()?;
        if let Some(moments) = &moments {
            values = gptq::refit(&values, &weight.layout, moments);
        }
        let importance = moments.as_ref().map(|moments| {
            (0..moments.sums.len()).map(|group| moments.squares(group)).collect::<Vec<_>>()
        });
        let mut packed = rounding::nearest(
            &values,
            &weight.layout,
            &weight.spec,
            config.weight_range,
            importance.as_deref(),
        )
        .map_err(|reason| OnnxError::tensor(&weight.tensor, reason))?;
        if let Some(moments) = &moments {
            gptq::round(&values, &weight.layout, moments, &mut packed);
        }
        *float_constant(graph, &weight.tensor)? =
            TensorProto::from_f32(&weight.tensor, &weight.layout.shape, &packed.values());
        let output = node.map(|node| working.graph().node[node].output[0].clone());
        if let (Some(node), Some(target)) = (node, output.as_ref().and_then(|o| targets.get(o))) {
            let now = channel_statistics(working, output.as_slice(), data, engine)?;
            bring_back(working, node, weight, config.statistics, [target, &now[0]], &mut packed)?;
        }
        rounded[at] = Some(packed);
    }
    watch(Progress::Weights { done: total, total });
    Ok(rounded.into_iter().flatten().collect())
}

pub(crate) fn float_constant<'a>(
    graph: &'a mut GraphProto,
    name: &str,
) -> Result<&'a mut TensorProto, OnnxError> {
    graph
        .initializer
        .iter_mut()
        .find(|t| t.name() == name)
        .ok_or_else(|| OnnxError::graph(format!("`{name}` is not a constant")))
}

/// The weights in the order in which the graph uses them.
fn in_order(graph: &GraphProto, plan: &Plan) -> Vec<usize> {
    let place: HashMap<&str, usize> =
        graph.node.iter().enumerate().map(|(at, node)| (node.label(), at)).collect();
    let mut order: Vec<usize> = (0..plan.weights.len()).collect();
    order.sort_by_key(|&at| {
        place.get(plan.weights[at].readers[0].as_str()).copied().unwrap_or(usize::MAX)
    });
    order
}

/// The one layer of the main graph that a weight belongs to; `None` where it is tied or lies in a subgraph.
fn layer_of(graph: &GraphProto, weight: &WeightPlan) -> Option<usize> {
    let index = Index::of(graph);
    let (node, slot) = index.only_reader(&weight.tensor)?;
    let is_layer =
        ["Conv", "ConvTranspose", "Gemm", "MatMul"].iter().any(|op| graph.node[node].is(op));
    (slot == 1 && is_layer).then_some(node)
}

/// How the inputs of a layer go together, on the model as it is now and with those of the float model.
pub(crate) fn input_moments(
    [model, float]: [&Model; 2],
    node: usize,
    weight: &WeightPlan,
    data: &dyn Data,
    engine: &dyn Engine,
) -> Result<Option<Moments>, QuantizeError> {
    let node = &model.graph().node[node];
    let (Some(mut moments), Some(input)) = (patches::moments(node, &weight.layout), node.arg(0))
    else {
        return Ok(None);
    };
    let outputs = [input.to_owned()];
    let mut floats = Batches::new(float, &outputs, data, engine, LoadOptions::default())?;
    let mut values = Batches::new(model, &outputs, data, engine, LoadOptions::default())?;
    while let (Some(values), Some(floats)) = (values.next()?, floats.next()?) {
        refuse_not_finite(input, &values[0])?;
        refuse_not_finite(input, &floats[0])?;
        patches::add(node, &weight.layout, &values[0], &floats[0], &mut moments);
    }
    Ok((moments.count > 0).then_some(moments))
}

/// Mean and variance of each channel of a tensor.
struct Channels {
    mean: Vec<f64>,
    variance: Vec<f64>,
}

/// An error where values are not finite: one of them would spoil every sum.
fn refuse_not_finite(tensor: &str, value: &Value) -> Result<(), QuantizeError> {
    let elements = value.as_f32().unwrap_or_default();
    if elements.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    let nans = elements.iter().filter(|v| v.is_nan()).count() as u64;
    let infinities = elements.iter().filter(|v| v.is_infinite()).count() as u64;
    Err(QuantizeError::NotFinite { tensor: tensor.to_owned(), nans, infinities })
}

/// The statistics of the channels of some tensors: axis 1 of what a convolution gives, the last axis of all else.
fn channel_statistics(
    model: &Model,
    outputs: &[String],
    data: &dyn Data,
    engine: &dyn Engine,
) -> Result<Vec<Channels>, QuantizeError> {
    let index = Index::of(model.graph());
    let convolved = |name: &String| {
        index.maker(name).is_some_and(|at| {
            let node = &model.graph().node[at];
            node.is("Conv") || node.is("ConvTranspose")
        })
    };
    let convolved: Vec<bool> = outputs.iter().map(convolved).collect();
    let mut sums: Vec<(Vec<f64>, Vec<f64>, f64)> = vec![Default::default(); outputs.len()];
    let mut batches = Batches::new(model, outputs, data, engine, LoadOptions::default())?;
    while let Some(values) = batches.next()? {
        for (at, ((sum, squares, count), value)) in sums.iter_mut().zip(&values).enumerate() {
            let Some(elements) = value.as_f32() else { continue };
            refuse_not_finite(&outputs[at], value)?;
            let axis = if convolved[at] { 1 } else { value.shape.len() - 1 };
            let channels = value.shape[axis];
            let inner: usize = value.shape[axis + 1..].iter().product();
            sum.resize(channels, 0.0);
            squares.resize(channels, 0.0);
            for (at, run) in elements.chunks_exact(inner.max(1)).enumerate() {
                let channel = at % channels;
                for &v in run {
                    sum[channel] += f64::from(v);
                    squares[channel] += f64::from(v) * f64::from(v);
                }
            }
            *count += (elements.len() / channels.max(1)) as f64;
        }
    }
    Ok(sums
        .into_iter()
        .map(|(sum, squares, count)| {
            let mean: Vec<f64> = sum.iter().map(|v| v / count).collect();
            let variance = squares.iter().zip(&mean).map(|(s, m)| (s / count - m * m).max(0.0));
            Channels { variance: variance.collect(), mean }
        })
        .collect())
}

/// Brings mean, and spread where it is asked for, of a layer's output back to what they were.
fn bring_back(
    working: &mut Model,
    node: usize,
    weight: &WeightPlan,
    statistics: Statistics,
    [target, now]: [&Channels; 2],
    packed: &mut Packed,
) -> Result<(), QuantizeError> {
    let rows = weight.layout.rows();
    if now.mean.len() != rows || target.mean.len() != rows {
        return Ok(());
    }
    let by_row = match packed.sharing {
        Sharing::Axis(axis) => axis == weight.layout.axis,
        // A power of two times a factor is none.
        Sharing::Blocks { .. } => !packed.powers,
        Sharing::Tensor => false,
    };
    let factors: Vec<f64> = if statistics == Statistics::MeanAndSpread && by_row {
        let factor = |(v, n): (&f64, &f64)| if *n > 0.0 && *v > 0.0 { (v / n).sqrt() } else { 1.0 };
        target.variance.iter().zip(&now.variance).map(factor).collect()
    } else {
        vec![1.0; rows]
    };
    let graph = working.graph_mut();
    let Some(bias_name) = bias_of(graph, node, rows) else { return Ok(()) };
    let bias = float_constant(graph, &bias_name)?;
    let old = bias.to_f32()?;
    #[expect(clippy::cast_possible_truncation, reason = "biases are stored in f32")]
    let new: Vec<f32> = (0..rows)
        .map(|row| {
            (target.mean[row] - factors[row] * (now.mean[row] - f64::from(old[row % old.len()])))
                as f32
        })
        .collect();
    *bias = TensorProto::from_f32(&bias_name, &[rows], &new);

    let scale_shape = packed.sharing.scale_shape(&packed.shape);
    let inner: usize = scale_shape.iter().skip(weight.layout.axis + 1).product();
    let in_order = packed.scales_by_row();
    for (at, scale) in packed.scales.iter_mut().enumerate().filter(|_| by_row) {
        let row = if in_order { at } else { at / inner % rows };
        #[expect(clippy::cast_possible_truncation, reason = "scales are stored in f32")]
        let brought = (f64::from(*scale) * factors[row]) as f32;
        *scale = brought;
    }
    *float_constant(graph, &weight.tensor)? =
        TensorProto::from_f32(&weight.tensor, &weight.layout.shape, &packed.values());
    Ok(())
}

/// The bias of a layer that no other node reads, made where there is none; `None` where the operator has none.
fn bias_of(graph: &mut GraphProto, node: usize, rows: usize) -> Option<String> {
    let layer = &graph.node[node];
    if layer.is("MatMul") || (layer.is("Gemm") && layer.float("beta", 1.0) != 1.0) {
        return None;
    }
    if let Some(name) = layer.arg(2).map(str::to_owned) {
        let own = Index::of(graph).only_reader(&name).is_some();
        // A bias that is another for each sample cannot be moved by row.
        let by_row = graph.constant(&name).is_some_and(|bias| is_bias(&bias.dims, rows));
        return (own && by_row).then_some(name);
    }
    let name = graph.fresh_name(&format!("{}/b", layer.label()));
    graph.initializer.push(TensorProto::from_f32(&name, &[rows], &vec![0.0; rows]));
    let layer = &mut graph.node[node];
    layer.input.truncate(2);
    layer.input.push(name.clone());
    Some(name)
}

/// Whether a bias of this shape is one number for each row of a weight, or one for all.
fn is_bias(dims: &[i64], rows: usize) -> bool {
    let last = dims.last().and_then(|&last| usize::try_from(last).ok()).unwrap_or(1);
    dims.iter().rev().skip(1).all(|&size| size == 1) && (last == rows || last == 1)
}
