//! The graph of a network in ONNX operators.

use std::collections::{BTreeMap, HashMap};

use scrimp_onnx::DataType;
use scrimp_onnx::proto::{
    Dimension, DimensionValue, GraphProto, NodeProto, TensorProto, TensorShapeProto, TensorType,
    TypeProto, TypeValue, ValueInfoProto,
};
use scrimp_train::Role;
use scrimp_train::layers::Pool;
use scrimp_train::params::NamedTensor;
use scrimp_train::trace::{Node, Op, Trace, Value};

use super::rounded::{Pair, Rounding, Stored};
use super::{INPUT, OUTPUT};

/// The name of the axis that counts images.
const BATCH: &str = "batch";

/// The graph, with the parameters of the network as they are called there, and rounded as asked.
///
/// Values are named after the nodes that give them (`conv1.y`). A rounded weight has its name still: codes, scale and zero
/// point are called `conv1.weight/c`, `/s` and `/z`.
pub(super) fn graph(
    trace: &Trace,
    values: &BTreeMap<&str, &NamedTensor>,
    rounding: &Rounding,
    name: &str,
) -> GraphProto {
    let mut graph =
        Builder { trace, values, rounding, graph: GraphProto::default(), pairs: HashMap::new() };
    graph.graph.name = Some(name.to_owned());
    graph.graph.input = vec![float(INPUT, trace.shape(0))];
    graph.graph.output = vec![float(OUTPUT, trace.shape(trace.output))];
    let mut names = vec![INPUT.to_owned()];
    for at in 0..trace.nodes.len() {
        let made = graph.node(at, &names);
        names.push(made);
    }
    graph.graph
}

/// The name and type of a float tensor with a batch axis.
fn float(name: &str, sample: &[usize]) -> ValueInfoProto {
    let axis = |value| Dimension { value: Some(value), denotation: None };
    let sample = sample.iter().map(|&len| axis(DimensionValue::Value(int(len))));
    let dim = std::iter::once(axis(DimensionValue::Param(BATCH.into()))).chain(sample).collect();
    let tensor = TensorType {
        elem_type: Some(DataType::Float as i32),
        shape: Some(TensorShapeProto { dim }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { value: Some(TypeValue::Tensor(tensor)), denotation: None }),
        ..ValueInfoProto::default()
    }
}

fn int(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn ints<const N: usize>(values: [usize; N]) -> [i64; N] {
    values.map(int)
}

struct Builder<'a> {
    trace: &'a Trace,
    values: &'a BTreeMap<&'a str, &'a NamedTensor>,
    rounding: &'a Rounding,
    graph: GraphProto,
    /// The values that pairs have given, by what they round and how.
    pairs: HashMap<(String, Pair), String>,
}

impl Builder<'_> {
    /// Adds a node of the network with the pairs around it; gives the name of its value as readers see it.
    fn node(&mut self, at: usize, names: &[String]) -> String {
        let node = &self.trace.nodes[at];
        let mut inputs: Vec<String> = node.inputs.iter().map(|&v| names[v].clone()).collect();
        if let Some(layer) = self.trace.entered(at)
            && let Some(pair) = self.rounding.pair(layer, Role::Input)
        {
            inputs[0] = self.pair(&inputs[0], pair, None);
        }
        let pair = self.trace.left(at).and_then(|layer| self.rounding.pair(layer, Role::Output));
        let value: Value = at + 1;
        let is_output = value == self.trace.output;
        let made = match (is_output, pair) {
            (true, None) => OUTPUT.to_owned(),
            _ => format!("{}.y", node.name),
        };
        self.call(node, &inputs, &made);
        match pair {
            None => made,
            Some(pair) => self.pair(&made, pair, is_output.then_some(OUTPUT)),
        }
    }

    /// Adds the nodes that round a value, unless they are there already; gives the name of the rounded value.
    fn pair(&mut self, value: &str, pair: &Pair, output: Option<&str>) -> String {
        let key = (value.to_owned(), pair.clone());
        if let Some(known) = self.pairs.get(&key) {
            return known.clone();
        }
        let count = self.pairs.keys().filter(|(known, _)| known == value).count();
        // The same value may be rounded in several ways, for readers that differ.
        let base = if count == 0 { value.to_owned() } else { format!("{value}/{count}") };
        let rounded = output.map_or_else(|| format!("{base}/dq"), str::to_owned);
        let (nodes, constants) = pair.write(value, &base, &rounded);
        self.graph.node.extend(nodes);
        self.graph.initializer.extend(constants);
        self.pairs.insert(key, rounded.clone());
        rounded
    }

    /// Adds a parameter and gives the name under which the node reads it.
    fn parameter(&mut self, layer: &str, field: &str) -> String {
        let name = format!("{layer}.{field}");
        let tensor = self.values[name.as_str()];
        match self.rounding.stored(&name) {
            Some(Stored::Codes(packed)) => {
                let parts = ["/c", "/s", "/z"].map(|end| format!("{name}{end}"));
                let (nodes, constants) = packed.write(&name, parts.each_ref().map(String::as_str));
                self.graph.node.extend(nodes);
                self.graph.initializer.extend(constants);
            }
            Some(Stored::Values(values)) => {
                self.graph.initializer.push(TensorProto::from_f32(&name, &tensor.shape, values));
            }
            None => {
                let constant = TensorProto::from_f32(&name, &tensor.shape, &tensor.values);
                self.graph.initializer.push(constant);
            }
        }
        name
    }

    /// Adds the bias of a linear layer, as integers where it stands between codes.
    fn bias(&mut self, layer: &str) -> String {
        let name = format!("{layer}.bias");
        let values = match self.rounding.stored(&name) {
            Some(Stored::Values(rounded)) => rounded,
            _ => &self.values[name.as_str()].values,
        };
        let Some((node, constants)) = self.rounding.bias(layer, &name, values) else {
            return self.parameter(layer, "bias");
        };
        self.graph.node.push(node);
        self.graph.initializer.extend(constants);
        name
    }

    /// Adds a list of numbers that an operator wants as an input.
    fn list(&mut self, node: &str, what: &str, numbers: &[i64]) -> String {
        let name = format!("{node}/{what}");
        self.graph.initializer.push(TensorProto::from_i64(&name, &[numbers.len()], numbers));
        name
    }

    fn call(&mut self, node: &Node, values: &[String], made: &str) {
        let (name, mut inputs) = (&node.name, values.to_vec());
        let layer = node.layer.as_deref().unwrap_or_default();
        let mut parameters = |builder: &mut Self, fields: &[&str]| {
            inputs.extend(fields.iter().map(|field| builder.parameter(layer, field)));
        };
        let with_bias = |bias: bool| if bias { &["weight", "bias"][..] } else { &["weight"][..] };
        let op = match node.op {
            Op::Conv2d { bias, .. } => {
                parameters(self, with_bias(bias));
                "Conv"
            }
            Op::Linear { bias } => {
                parameters(self, &["weight"]);
                if bias {
                    inputs.push(self.bias(layer));
                }
                "Gemm"
            }
            Op::BatchNorm { .. } => {
                parameters(self, &["weight", "bias", "running_mean", "running_var"]);
                "BatchNormalization"
            }
            Op::Relu => "Relu",
            Op::Add => "Add",
            Op::MaxPool(_) => "MaxPool",
            Op::AveragePool(_) => "AveragePool",
            Op::GlobalAverage => "GlobalAveragePool",
            Op::Flatten => "Flatten",
            Op::Concat => "Concat",
            Op::Subsample { stride } => {
                let lists = [
                    ("starts", [0, 0]),
                    ("ends", [i64::from(i32::MAX); 2]),
                    ("axes", [2, 3]),
                    ("steps", [int(stride); 2]),
                ];
                inputs.extend(lists.map(|(what, numbers)| self.list(name, what, &numbers)));
                "Slice"
            }
            Op::PadChannels { before, after } => {
                let [before, after] = ints([before, after]);
                inputs.push(self.list(name, "pads", &[0, before, 0, 0, 0, after, 0, 0]));
                "Pad"
            }
        };
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let call = NodeProto::call(op, name, &inputs, &[made]);
        self.graph.node.push(self.with_attributes(call, node));
    }

    fn with_attributes(&self, call: NodeProto, node: &Node) -> NodeProto {
        match node.op {
            Op::Conv2d { window, .. } => {
                let layer = node.layer.as_deref().unwrap_or_default();
                let weight = self.values[format!("{layer}.weight").as_str()];
                let pads = [window.padding, window.padding].concat();
                call.with_ints("dilations", &ints(window.dilation))
                    .with_int("group", int(window.groups))
                    .with_ints("kernel_shape", &ints([weight.shape[2], weight.shape[3]]))
                    .with_ints("pads", &pads.into_iter().map(int).collect::<Vec<_>>())
                    .with_ints("strides", &ints(window.stride))
            }
            Op::Linear { .. } => call.with_int("transB", 1),
            Op::BatchNorm { epsilon } => call.with_float("epsilon", epsilon),
            Op::MaxPool(window) => pooled(call, window),
            Op::AveragePool(window) => pooled(call, window).with_int("count_include_pad", 1),
            Op::Flatten | Op::Concat => call.with_int("axis", 1),
            Op::PadChannels { .. } => call.with_text("mode", "constant"),
            Op::Relu | Op::Add | Op::GlobalAverage | Op::Subsample { .. } => call,
        }
    }
}

fn pooled(call: NodeProto, Pool { kernel, stride, padding }: Pool) -> NodeProto {
    let [top, left] = ints(padding);
    call.with_ints("kernel_shape", &ints(kernel))
        .with_ints("pads", &[top, left, top, left])
        .with_ints("strides", &ints(stride))
}
