//! What is known of the values of a graph without running it: element types, numbers of axes, and small constants.
//!
//! It is no shape inference. Where something is not known, a rewriting takes the way that is right for any shape.

use std::collections::HashMap;

use crate::DataType;
use crate::proto::{FunctionProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::tensor::elems;

/// Constants up to this length are kept: scales, sizes and indices, no weights.
const LONGEST_CONSTANT_ELEMS: usize = 64;

/// What is known of one value.
#[derive(Clone, Debug, Default)]
struct Fact {
    kind: Option<DataType>,
    rank: Option<usize>,
    constant: Option<TensorProto>,
}

/// What is known in a graph, and in those around it.
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    outer: Option<&'a Scope<'a>>,
    facts: HashMap<String, Fact>,
}

impl<'a> Scope<'a> {
    pub(crate) fn of_graph(graph: &GraphProto, outer: Option<&'a Scope<'a>>) -> Self {
        let mut scope = Self { outer, facts: HashMap::new() };
        for value in graph.value_info.iter().chain(&graph.output).chain(&graph.input) {
            scope.note_declared(value);
        }
        for tensor in &graph.initializer {
            scope.note_constant(tensor.name(), tensor);
        }
        // Such a value is only what the input is when a caller gives nothing.
        for value in &graph.input {
            if let Some(fact) = scope.facts.get_mut(value.name()) {
                fact.constant = None;
            }
        }
        scope.infer(&graph.node);
        scope
    }

    pub(crate) fn of_function(function: &FunctionProto) -> Self {
        let mut scope = Self { outer: None, facts: HashMap::new() };
        for value in &function.value_info {
            scope.note_declared(value);
        }
        scope.infer(&function.node);
        scope
    }

    /// The element type of a value; for a sequence or an optional value, that of the tensors in it.
    pub(crate) fn kind(&self, name: &str) -> Option<DataType> {
        self.fact(name)?.kind
    }

    /// The number of a value's axes.
    pub(crate) fn rank(&self, name: &str) -> Option<usize> {
        self.fact(name)?.rank
    }

    /// The value itself, where it is a short constant.
    pub(crate) fn constant(&self, name: &str) -> Option<&TensorProto> {
        self.fact(name)?.constant.as_ref()
    }

    /// Whether anything is known of the value, if only that a node makes it.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.fact(name).is_some()
    }

    fn fact(&self, name: &str) -> Option<&Fact> {
        let here = self.facts.get(name);
        here.or_else(|| self.outer.and_then(|outer| outer.fact(name)))
    }

    fn note(&mut self, name: &str, kind: Option<DataType>, rank: Option<usize>) {
        if name.is_empty() {
            return;
        }
        let fact = self.facts.entry(name.to_owned()).or_default();
        fact.kind = fact.kind.or(kind);
        fact.rank = fact.rank.or(rank);
    }

    fn note_declared(&mut self, value: &ValueInfoProto) {
        if let Some((elem_type, sizes)) = value.tensor_type() {
            self.note(value.name(), DataType::from_number(elem_type), sizes.map(|s| s.len()));
        }
    }

    fn note_constant(&mut self, name: &str, tensor: &TensorProto) {
        self.note(name, tensor.kind(), Some(tensor.dims.len()));
        let short = elems(&tensor.dims).is_some_and(|elems| elems <= LONGEST_CONSTANT_ELEMS);
        if short && let Some(fact) = self.facts.get_mut(name) {
            fact.constant = Some(tensor.clone());
        }
    }

    fn infer(&mut self, nodes: &[NodeProto]) {
        for node in nodes {
            if node.is("Constant")
                && let (Some(tensor), Some(output)) = (constant_of(node), node.output.first())
            {
                self.note_constant(output, &tensor);
            }
            for (at, output) in node.output.iter().enumerate() {
                // Also where nothing is known: the name hides that of a graph around.
                let kind = node.is_standard().then(|| self.output_kind(node, at)).flatten();
                let rank =
                    if at == 0 && node.is_standard() { self.output_rank(node) } else { None };
                self.note(output, kind, rank);
            }
        }
    }

    /// The element type of output `at` of a standard node.
    fn output_kind(&self, node: &NodeProto, at: usize) -> Option<DataType> {
        let of_input = |input: usize| node.arg(input).and_then(|name| self.kind(name));
        let of_attribute = |name: &str, otherwise: Option<DataType>| match node.get(name) {
            Some(attribute) => {
                attribute.i.and_then(|i| DataType::from_number(i32::try_from(i).ok()?))
            }
            None => otherwise,
        };
        let declared = |offset: usize| {
            let graph = node.subgraphs().next()?;
            DataType::from_number(graph.output.get(at + offset)?.tensor_type()?.0)
        };
        match (node.op_type(), at) {
            ("Cast" | "BitCast", _) => of_attribute("to", None),
            (
                "ArgMax" | "ArgMin" | "NonMaxSuppression" | "NonZero" | "SequenceLength" | "Shape"
                | "Size",
                _,
            )
            | ("MaxPool" | "StringSplit" | "TopK", 1)
            | ("Unique", 1..) => Some(DataType::Int64),
            (
                "And" | "Equal" | "Greater" | "GreaterOrEqual" | "IsInf" | "IsNaN" | "Less"
                | "LessOrEqual" | "OptionalHasElement" | "Or" | "RegexFullMatch" | "Xor",
                _,
            )
            | ("Dropout", 1) => Some(DataType::Bool),
            ("CastLike" | "DequantizeLinear" | "Where", _) => {
                of_attribute("output_dtype", of_input(1))
            }
            ("OneHot", _) => of_input(2),
            ("QuantizeLinear", _) => {
                of_attribute("output_dtype", of_input(2).or(Some(DataType::Uint8)))
            }
            ("ConvInteger" | "MatMulInteger", _) => Some(DataType::Int32),
            ("QLinearConv" | "QLinearMatMul", _) => of_input(7),
            ("DynamicQuantizeLinear", 0 | 2) | ("ImageDecoder", _) => Some(DataType::Uint8),
            ("DynamicQuantizeLinear" | "TfIdfVectorizer", _) => Some(DataType::Float),
            ("RandomNormal" | "RandomUniform" | "SequenceEmpty", _) => {
                of_attribute("dtype", Some(DataType::Float))
            }
            ("Multinomial", _) => of_attribute("dtype", Some(DataType::Int32)),
            ("Bernoulli" | "EyeLike" | "RandomNormalLike" | "RandomUniformLike", _) => {
                of_attribute("dtype", of_input(0))
            }
            ("BlackmanWindow" | "HammingWindow" | "HannWindow" | "MelWeightMatrix", _) => {
                of_attribute("output_datatype", Some(DataType::Float))
            }
            ("ConstantOfShape", _) => match node.get("value") {
                Some(value) => value.t.as_ref()?.kind(),
                None => Some(DataType::Float),
            },
            ("If" | "Scan", _) => declared(0),
            // The first output of a body says whether to go on.
            ("Loop", _) => declared(1),
            // `Constant` is read before. Of these, later outputs have other types, or nothing tells the type.
            ("Constant" | "Optional" | "RMSNormalization", _)
            | (
                "Attention" | "BatchNormalization" | "LayerNormalization" | "LinearAttention",
                1..,
            ) => None,
            _ => of_input(0),
        }
    }

    /// The number of axes of the first output of a standard node.
    fn output_rank(&self, node: &NodeProto) -> Option<usize> {
        let of_input = |input: usize| node.arg(input).and_then(|name| self.rank(name));
        let widest =
            || node.input.iter().map(|name| self.rank(name)).try_fold(0, |r, n| Some(r.max(n?)));
        match node.op_type() {
            "Flatten" | "Gemm" => Some(2),
            "Reshape" => {
                let shape = self.constant(node.arg(1)?)?;
                usize::try_from(*shape.dims.first()?).ok()
            }
            "Shape" => Some(1),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Sum" | "Mean" | "Max" | "Min" => widest(),
            "MatMul" => widest().filter(|_| of_input(0) >= Some(2) && of_input(1) >= Some(2)),
            "Gather" => Some((of_input(0)? + of_input(1)?).saturating_sub(1)),
            "Abs"
            | "AveragePool"
            | "BatchNormalization"
            | "Cast"
            | "Clip"
            | "Concat"
            | "Conv"
            | "ConvTranspose"
            | "Dropout"
            | "Elu"
            | "Erf"
            | "Exp"
            | "GlobalAveragePool"
            | "GlobalMaxPool"
            | "HardSigmoid"
            | "Identity"
            | "InstanceNormalization"
            | "LRN"
            | "LeakyRelu"
            | "Log"
            | "LogSoftmax"
            | "MaxPool"
            | "Neg"
            | "PRelu"
            | "Pad"
            | "Relu"
            | "Resize"
            | "Selu"
            | "Sigmoid"
            | "Slice"
            | "Softmax"
            | "Softplus"
            | "Split"
            | "Sqrt"
            | "Tanh"
            | "Transpose"
            | "Upsample" => of_input(0),
            _ => None,
        }
    }
}

/// The value of a `Constant` node, where it is a dense tensor of numbers.
fn constant_of(node: &NodeProto) -> Option<TensorProto> {
    let value =
        |name: &str| node.get(name).filter(|attribute| attribute.ref_attr_name().is_empty());
    if let Some(attribute) = value("value") {
        return attribute.t.clone();
    }
    if let Some(attribute) = value("value_float") {
        return Some(TensorProto::from_f32("", &[], &[attribute.f?]));
    }
    if let Some(attribute) = value("value_int") {
        return Some(TensorProto::from_i64("", &[], &[attribute.i?]));
    }
    if let Some(attribute) = value("value_floats") {
        return Some(TensorProto::from_f32("", &[attribute.floats.len()], &attribute.floats));
    }
    let attribute = value("value_ints")?;
    Some(TensorProto::from_i64("", &[attribute.ints.len()], &attribute.ints))
}
