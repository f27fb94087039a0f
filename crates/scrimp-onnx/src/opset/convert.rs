//! The functions of the table: each takes a node of one version to the next.
#![expect(clippy::unnecessary_wraps, reason = "the functions of a table have one signature")]

use crate::DataType;
use crate::opset::Context;
use crate::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};

type Nodes = Result<Vec<NodeProto>, String>;

/// The node that makes a constant where there are no initializers.
pub(super) fn constant_node(tensor: TensorProto) -> NodeProto {
    let mut node = NodeProto::call("Constant", "", &[], &[tensor.name()]);
    node.set(AttributeProto::of_tensor("value", tensor));
    node
}

/// The number of an attribute, or its default; `Err` where the value comes from a caller of a function.
fn int(node: &NodeProto, name: &str, default: i64) -> Result<i64, String> {
    known(node, name)?;
    Ok(node.int(name, default))
}

/// Takes an attribute out, whose value is needed here and now.
fn take(node: &mut NodeProto, name: &str) -> Result<Option<AttributeProto>, String> {
    known(node, name)?;
    Ok(node.take(name))
}

/// An attribute of a node in a function may be one of the function's, which only its callers give a value.
fn known(node: &NodeProto, name: &str) -> Result<(), String> {
    match node.get(name) {
        Some(attribute) if !attribute.ref_attr_name().is_empty() => Err(format!(
            "`{name}` is an attribute of the function, `{}`",
            attribute.ref_attr_name()
        )),
        _ => Ok(()),
    }
}

fn missing(name: &str) -> String {
    format!("it has no attribute `{name}`")
}

/// Puts an input in its place, those before it that are not there being left out.
fn set_input(node: &mut NodeProto, at: usize, name: String) {
    if node.input.len() <= at {
        node.input.resize(at + 1, String::new());
    }
    node.input[at] = name;
}

/// Makes input `at` of an attribute of integers, where the node has it.
fn ints_to_input(
    node: &mut NodeProto,
    name: &str,
    at: usize,
    cx: &mut Context<'_>,
) -> Result<bool, String> {
    let Some(attribute) = take(node, name)? else { return Ok(false) };
    let tensor = TensorProto::from_i64("", &[attribute.ints.len()], &attribute.ints);
    let made = cx.constant(node, name, tensor);
    set_input(node, at, made);
    Ok(true)
}

/// A name for a node that belongs to this one; none where this one has none.
fn node_name(node: &NodeProto, what: &str) -> String {
    if node.name().is_empty() { String::new() } else { format!("{}_{what}", node.name()) }
}

fn input(node: &NodeProto, at: usize) -> Result<&str, String> {
    node.arg(at).ok_or_else(|| format!("its input {at} is missing"))
}

fn output(node: &NodeProto) -> Result<&str, String> {
    let first = node.output.first().map(String::as_str).filter(|name| !name.is_empty());
    first.ok_or_else(|| "it has no output".to_owned())
}

/// A number in the element type of an input, whose operator takes no other.
fn scalar_like(
    node: &NodeProto,
    at: usize,
    value: f32,
    cx: &Context<'_>,
) -> Result<TensorProto, String> {
    let name = input(node, at)?;
    let kind = cx.scope.kind(name);
    let raw = match kind {
        Some(DataType::Float) => value.to_le_bytes().to_vec(),
        Some(DataType::Double) => f64::from(value).to_le_bytes().to_vec(),
        Some(DataType::Float16) => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Some(DataType::Bfloat16) => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        Some(kind) => {
            return Err(format!("`{name}` has the type {}, not one of floats", kind.name()));
        }
        None => {
            return Err(format!(
                "a constant of the type of `{name}` is needed, and nothing tells that type; shape inference would"
            ));
        }
    };
    let kind = kind.unwrap_or(DataType::Float);
    Ok(TensorProto::from_raw("", kind, &[], raw))
}

/// The node that does a part of another one's work.
fn part(node: &NodeProto, op: &str, what: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto::call(op, &node_name(node, what), inputs, &[output])
}

pub(super) fn experimental(_: NodeProto, _: &mut Context<'_>) -> Nodes {
    Err("the operator was an experiment with other attributes".into())
}

/// Statistics of every position, which `spatial = 0` asks for, are written out as arithmetic.
pub(super) fn batch_normalization_9(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    let spatial = take(&mut node, "spatial")?.is_none_or(|attribute| attribute.i() != 0);
    // With one axis besides the batch, every position is a channel.
    if spatial || cx.scope.rank(input(&node, 1)?) == Some(1) {
        return Ok(vec![node]);
    }
    if node.output.iter().skip(1).any(|name| !name.is_empty()) {
        return Err("it trains with statistics of every position (`spatial` = 0)".into());
    }
    known(&node, "epsilon")?;
    let epsilon = scalar_like(&node, 4, node.float("epsilon", 1e-5), cx)?;
    let epsilon = cx.constant(&node, "epsilon", epsilon);
    let [x, scale, bias, mean, variance] = [0, 1, 2, 3, 4].map(|at| input(&node, at));
    let (x, scale, bias, mean, variance) = (x?, scale?, bias?, mean?, variance?);
    let [raised, deviation, centred, normal, scaled] =
        ["raised", "deviation", "centred", "normal", "scaled"].map(|what| cx.name(&node, what));
    Ok(vec![
        part(&node, "Add", "raised", &[variance, &epsilon], &raised),
        part(&node, "Sqrt", "deviation", &[&raised], &deviation),
        part(&node, "Sub", "centred", &[x, mean], &centred),
        part(&node, "Div", "normal", &[&centred, &deviation], &normal),
        part(&node, "Mul", "scaled", &[&normal, scale], &scaled),
        NodeProto::call("Add", node.name(), &[&scaled, bias], &[output(&node)?]),
    ])
}

pub(super) fn batch_normalization_14(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    // Saved statistics were for the way back.
    for name in node.output.iter().skip(3).filter(|name| !name.is_empty()) {
        if cx.read.contains(name) {
            return Err(format!("`{name}` is one of the saved statistics, which are gone"));
        }
    }
    node.output.truncate(3);
    while node.output.last().is_some_and(String::is_empty) {
        node.output.pop();
    }
    if node.output.len() > 1 {
        node = node.with_int("training_mode", 1);
    }
    Ok(vec![node])
}

/// The old operator scanned the second axis for each entry of the first, the batch. So a scan over the batch does that
/// for one entry.
pub(super) fn scan_9(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    if node.arg(0).is_some() {
        return Err(format!("its sequences have lengths of their own, `{}`", node.input[0]));
    }
    let scanned =
        take(&mut node, "num_scan_inputs")?.ok_or_else(|| missing("num_scan_inputs"))?.i();
    let directions = take(&mut node, "directions")?;
    let body = take(&mut node, "body")?.and_then(|body| body.g).ok_or_else(|| missing("body"))?;
    let inputs = node.input.get(1..).unwrap_or_default().to_vec();
    if usize::try_from(scanned).map_or(true, |n| n == 0 || n > inputs.len())
        || inputs.len() != body.input.len()
    {
        return Err(format!(
            "its body has {} inputs, where {} are given, {scanned} of them to be scanned",
            body.input.len(),
            inputs.len()
        ));
    }
    // Types are those that the body declares; the sizes of a slice are not known.
    let mut like = |value: &ValueInfoProto, what: &str| {
        let name = cx.name(&node, what);
        match value.tensor_type() {
            Some((elem_type, _)) => ValueInfoProto::of_kind(&name, elem_type),
            None => ValueInfoProto { name: Some(name), ..ValueInfoProto::default() },
        }
    };
    let outer_inputs: Vec<_> = body.input.iter().map(|value| like(value, "entry")).collect();
    let outer_outputs: Vec<_> = body.output.iter().map(|value| like(value, "result")).collect();
    let names = |values: &[ValueInfoProto]| values.iter().map(|v| v.name().to_owned()).collect();
    let mut inner = NodeProto {
        input: names(&outer_inputs),
        output: names(&outer_outputs),
        ..NodeProto::call("Scan", &node_name(&node, "entry"), &[], &[])
    };
    inner = inner.with_int("num_scan_inputs", scanned);
    if let Some(directions) = directions {
        inner = inner.with_ints("scan_input_directions", &directions.ints);
    }
    inner.set(AttributeProto::of_graph("body", body));
    let batch = GraphProto {
        name: Some("batch".into()),
        node: vec![inner],
        input: outer_inputs,
        output: outer_outputs,
        ..GraphProto::default()
    };
    let all = i64::try_from(inputs.len()).map_err(|_| "it has too many inputs")?;
    node.input = inputs;
    node = node.with_int("num_scan_inputs", all);
    node.set(AttributeProto::of_graph("body", batch));
    Ok(vec![node])
}

pub(super) fn upsample_9(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    let scales = take(&mut node, "scales")?.ok_or_else(|| missing("scales"))?.floats;
    let tensor = TensorProto::from_f32("", &[scales.len()], &scales);
    let made = cx.constant(&node, "scales", tensor);
    set_input(&mut node, 1, made);
    Ok(vec![node])
}

pub(super) fn slice_10(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    for (name, at) in [("starts", 1), ("ends", 2)] {
        if !ints_to_input(&mut node, name, at, cx)? {
            return Err(missing(name));
        }
    }
    ints_to_input(&mut node, "axes", 3, cx)?;
    Ok(vec![node])
}

pub(super) fn top_k_10(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    let k = take(&mut node, "k")?.ok_or_else(|| missing("k"))?.i();
    let made = cx.constant(&node, "k", TensorProto::from_i64("", &[1], &[k]));
    set_input(&mut node, 1, made);
    Ok(vec![node])
}

pub(super) fn upsample_10(mut node: NodeProto, _: &mut Context<'_>) -> Nodes {
    let mode = node.text("mode", "nearest");
    if !matches!(mode, "nearest" | "linear") {
        return Err(format!("its mode `{mode}` is none of `nearest` and `linear`"));
    }
    node.op_type = Some("Resize".into());
    Ok(vec![node])
}

pub(super) fn clip_11(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    for (name, at) in [("min", 1), ("max", 2)] {
        if let Some(attribute) = take(&mut node, name)? {
            let tensor = scalar_like(&node, 0, attribute.f(), cx)?;
            let made = cx.constant(&node, name, tensor);
            set_input(&mut node, at, made);
        }
    }
    Ok(vec![node])
}

/// An index below 0 selected nothing before. One beyond every depth still does.
pub(super) fn one_hot_11(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    let indices = input(&node, 0)?.to_owned();
    let constant = cx.value(&indices);
    let integers = constant.and_then(|tensor| tensor.to_i64().ok());
    if integers.is_some_and(|values| values.iter().all(|&v| v >= 0)) {
        return Ok(vec![node]);
    }
    let zero = cx.constant(&node, "zero", TensorProto::from_i64("", &[], &[0]));
    let beyond =
        cx.constant(&node, "beyond", TensorProto::from_i64("", &[], &[i64::from(i32::MAX)]));
    let [whole, negative, kept] = ["whole", "negative", "kept"].map(|what| cx.name(&node, what));
    let cast =
        part(&node, "Cast", "whole", &[&indices], &whole).with_int("to", DataType::Int64 as i64);
    let less = part(&node, "Less", "negative", &[&whole, &zero], &negative);
    let choice = part(&node, "Where", "kept", &[&negative, &beyond, &whole], &kept);
    set_input(&mut node, 0, kept);
    Ok(vec![cast, less, choice, node])
}

pub(super) fn pad_11(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    if !ints_to_input(&mut node, "pads", 1, cx)? {
        return Err(missing("pads"));
    }
    let value = take(&mut node, "value")?.map_or(0.0, |attribute| attribute.f());
    // Zero, of either sign but here the positive one, is what is padded with by default.
    if value.to_bits() != 0 {
        let tensor = scalar_like(&node, 0, value, cx)?;
        let made = cx.constant(&node, "value", tensor);
        set_input(&mut node, 2, made);
    }
    Ok(vec![node])
}

/// Pixel `i` of the output lies at `i / scale` of the input. The nearest one is the one before it where the axis grows
/// and the one after it where the axis shrinks; where it may do either, two nodes do one each.
pub(super) fn resize_11(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    let scales = input(&node, 1)?.to_owned();
    let values = cx.value(&scales).and_then(|tensor| tensor.to_f32().ok());
    known(&node, "mode")?;
    node.input = vec![input(&node, 0)?.to_owned(), String::new(), scales.clone()];
    node = node.with_text("coordinate_transformation_mode", "asymmetric");
    if node.text("mode", "nearest") != "nearest" {
        return Ok(vec![node]);
    }
    let all = |test: fn(f32) -> bool| values.as_ref().is_some_and(|v| v.iter().all(|&s| test(s)));
    if all(|s| s >= 1.0) {
        return Ok(vec![node.with_text("nearest_mode", "floor")]);
    }
    if all(|s| s <= 1.0) {
        return Ok(vec![node.with_text("nearest_mode", "ceil")]);
    }
    let one = cx.constant(&node, "one", TensorProto::from_f32("", &[], &[1.0]));
    let [growth, shrinkage, grown] =
        ["growth", "shrinkage", "grown"].map(|what| cx.name(&node, what));
    let grow = NodeProto {
        name: Some(node_name(&node, "grown")),
        input: vec![node.input[0].clone(), String::new(), growth.clone()],
        output: vec![grown.clone()],
        ..node.clone()
    };
    node.input[0] = grown;
    node.input[2].clone_from(&shrinkage);
    Ok(vec![
        part(&node, "Max", "growth", &[&scales, &one], &growth),
        grow.with_text("nearest_mode", "floor"),
        part(&node, "Min", "shrinkage", &[&scales, &one], &shrinkage),
        node.with_text("nearest_mode", "ceil"),
    ])
}

pub(super) fn scatter_11(mut node: NodeProto, _: &mut Context<'_>) -> Nodes {
    node.op_type = Some("ScatterElements".into());
    Ok(vec![node])
}

/// Nothing is dropped outside training, for which the old operator had no switch; its mask then was not specified.
pub(super) fn dropout_12(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    if let Some(mask) = node.output.get(1).filter(|name| cx.read.contains(*name)) {
        return Err(format!("its mask `{mask}` is read"));
    }
    node.output.truncate(1);
    if let Some(ratio) = take(&mut node, "ratio")? {
        let made = cx.constant(&node, "ratio", TensorProto::from_f32("", &[], &[ratio.f()]));
        set_input(&mut node, 1, made);
    }
    Ok(vec![node])
}

pub(super) fn erf_13(node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    match cx.scope.kind(input(&node, 0)?) {
        None
        | Some(DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16) => {
            Ok(vec![node])
        }
        Some(kind) => Err(format!("its input has the type {}", kind.name())),
    }
}

/// The old operator saw a matrix, whose second axis was made of all axes from `axis` on.
pub(super) fn softmax_13(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    let axis = int(&node, "axis", 1)?;
    let x = input(&node, 0)?.to_owned();
    let y = output(&node)?.to_owned();
    let last = cx.scope.rank(&x).and_then(|rank| i64::try_from(rank).ok()).map(|rank| rank - 1);
    if axis == -1 || Some(axis) == last {
        return Ok(vec![node.with_int("axis", -1)]);
    }
    let [shape, matrix, result] = ["shape", "matrix", "rows"].map(|what| cx.name(&node, what));
    let mut back = part(&node, "Reshape", "back", &[&result, &shape], &y);
    if cx.to >= 14 {
        // Else a size of 0 would stand for that of the matrix.
        back = back.with_int("allowzero", 1);
    }
    let before = [
        part(&node, "Shape", "shape", &[&x], &shape),
        part(&node, "Flatten", "matrix", &[&x], &matrix).with_int("axis", axis),
    ];
    node.input[0] = matrix;
    node.output[0] = result;
    Ok(before.into_iter().chain([node.with_int("axis", -1), back]).collect())
}

pub(super) fn reduce(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    known(&node, "axes")?;
    // No axes are all axes, whether they are not given or given as none.
    if node.ints("axes").is_empty() {
        node.take("axes");
    }
    ints_to_input(&mut node, "axes", 1, cx)?;
    Ok(vec![node])
}

/// Inputs that a mode does not use, or that the other one of scales and sizes replaces, were empty tensors.
pub(super) fn resize_13(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    for name in ["coordinate_transformation_mode", "mode", "nearest_mode"] {
        known(&node, name)?;
    }
    let mode = node.text("coordinate_transformation_mode", "half_pixel");
    if mode == "tf_half_pixel_for_nn" {
        let nearest =
            (node.text("mode", "nearest"), node.text("nearest_mode", "round_prefer_floor"));
        if nearest != ("nearest", "floor") {
            return Err(format!("its coordinate_transformation_mode `{mode}` is gone"));
        }
        // floor((i + 0.5) / s) is floor((i + 0.5) / s - 0.5 + 0.5), half a pixel back and then rounded up.
        node = node
            .with_text("coordinate_transformation_mode", "half_pixel")
            .with_text("nearest_mode", "round_prefer_ceil");
    } else if mode == "tf_crop_and_resize" {
        input(&node, 1)?;
    }
    let crops = node.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize";
    if !crops && node.input.len() > 1 {
        node.input[1].clear();
    }
    if node.arg(3).is_some() {
        node.input[2].clear();
    } else {
        node.input.truncate(3);
        let empty = |name: &str| cx.value(name).is_some_and(|scales| scales.dims == [0]);
        if node.arg(2).is_none_or(empty) {
            return Err("it has neither scales nor sizes".into());
        }
    }
    Ok(vec![node])
}

pub(super) fn split_13(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    ints_to_input(&mut node, "split", 1, cx)?;
    Ok(vec![node])
}

pub(super) fn split_18(node: NodeProto, _: &mut Context<'_>) -> Nodes {
    if node.arg(1).is_some() {
        return Ok(vec![node]);
    }
    let parts = i64::try_from(node.output.len()).map_err(|_| "it has too many outputs")?;
    Ok(vec![node.with_int("num_outputs", parts)])
}

pub(super) fn squeeze_13(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    ints_to_input(&mut node, "axes", 1, cx)?;
    Ok(vec![node])
}

pub(super) fn unsqueeze_13(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    if !ints_to_input(&mut node, "axes", 1, cx)? {
        return Err(missing("axes"));
    }
    Ok(vec![node])
}

pub(super) fn roi_align_16(node: NodeProto, _: &mut Context<'_>) -> Nodes {
    Ok(vec![node.with_text("coordinate_transformation_mode", "output_half_pixel")])
}

pub(super) fn dft_20(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    let axis = int(&node, "axis", 1)?;
    node.take("axis");
    let made = cx.constant(&node, "axis", TensorProto::from_i64("", &[], &[axis]));
    set_input(&mut node, 2, made);
    Ok(vec![node])
}

pub(super) fn grid_sample_20(node: NodeProto, _: &mut Context<'_>) -> Nodes {
    known(&node, "mode")?;
    let mode = match node.text("mode", "bilinear") {
        "bilinear" => "linear",
        "bicubic" => "cubic",
        "nearest" => return Ok(vec![node]),
        other => {
            return Err(format!(
                "its mode `{other}` is none of `bilinear`, `bicubic` and `nearest`"
            ));
        }
    };
    Ok(vec![node.with_text("mode", mode)])
}

/// Repeats the values of each group for its channels, of which only the running model knows the number.
pub(super) fn group_normalization_21(mut node: NodeProto, cx: &mut Context<'_>) -> Nodes {
    let groups = int(&node, "num_groups", 0)?;
    if groups < 1 {
        return Err(missing("num_groups"));
    }
    let x = input(&node, 0)?.to_owned();
    let groups = cx.constant(&node, "groups", TensorProto::from_i64("", &[1], &[groups]));
    let one = cx.constant(&node, "one", TensorProto::from_i64("", &[1], &[1]));
    let flat = cx.constant(&node, "flat", TensorProto::from_i64("", &[1], &[-1]));
    let [channels, each, repeats] =
        ["channels", "each", "repeats"].map(|what| cx.name(&node, what));
    let mut nodes = vec![
        part(&node, "Shape", "channels", &[&x], &channels).with_int("start", 1).with_int("end", 2),
        part(&node, "Div", "each", &[&channels, &groups], &each),
        part(&node, "Concat", "repeats", &[&one, &each], &repeats).with_int("axis", 0),
    ];
    for (at, what) in [(1, "scale"), (2, "bias")] {
        let of_group = input(&node, at)?.to_owned();
        let [column, spread, of_channel] =
            ["column", "spread", "channels"].map(|step| cx.name(&node, &format!("{what}_{step}")));
        let name = |step: &str| format!("{what}_{step}");
        nodes.extend([
            part(&node, "Unsqueeze", &name("column"), &[&of_group, &one], &column),
            part(&node, "Expand", &name("spread"), &[&column, &repeats], &spread),
            part(&node, "Reshape", &name("channels"), &[&spread, &flat], &of_channel),
        ]);
        node.input[at] = of_channel;
    }
    nodes.push(node);
    Ok(nodes)
}
