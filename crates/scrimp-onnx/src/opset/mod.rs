//! Raising a model's version of the standard operators.
//!
//! [`upgrade`] walks over every node once, and applies to it the rows of [`CHANGES`] that lie between the two versions,
//! in the order of the versions. A row names an operator, the version that changed it, and the function that rewrites a
//! node so that it means under that version what it meant before. What an operator only gained (types, optional inputs
//! and attributes whose default is the old meaning, broadcasting, negative axes) needs no row.
//!
//! `tools/check_onnx_opsets.py` reads the table and fails where the signature of an operator changed incompatibly in the
//! schemas of the `onnx` package and no row stands for it.
//!
//! Changes that have no row because the specification corrected itself and runtimes had always done what it says now:
//!
//! - `ConvTranspose` 11: the formula for `SAME_UPPER` exchanged the two sides; the attribute's text said so before.
//! - `AveragePool` and `MaxPool` 22: windows that would begin in the right padding are left out.
//! - `Cast` 24: infinity becomes the largest value of the `FNUZ` types, not NaN.

mod convert;

use std::collections::{BTreeMap, HashSet};

use crate::facts::Scope;
use crate::graph::Names;
use crate::proto::{FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto};
use crate::{Model, OnnxError};

/// The oldest version that models can be raised from: the one that brought broadcasting as it still is.
const OLDEST: i64 = 7;
/// The versions that models can be raised to.
const TARGETS: std::ops::RangeInclusive<i64> = 13..=25;

/// Rewrites a node, and gives the nodes in its place or the reason why there are none.
type Convert = fn(NodeProto, &mut Context<'_>) -> Result<Vec<NodeProto>, String>;

/// An operator that changed its meaning.
struct Change {
    /// The operator, by its name before the change.
    op: &'static str,
    /// The version that changed it.
    version: i64,
    /// What becomes of its nodes, for the user.
    note: &'static str,
    convert: Convert,
}

const fn row(op: &'static str, version: i64, note: &'static str, convert: Convert) -> Change {
    Change { op, version, note, convert }
}

const AXES: &str = "axes became an input";
const SOFTMAX: &str = "works on one axis, no longer on a matrix made of all axes from that one on";

/// Every change that is not compatible, by version.
#[rustfmt::skip]
const CHANGES: &[Change] = &[
    row("BatchNormalization", 9, "the attribute `spatial` is gone", convert::batch_normalization_9),
    row("MeanVarianceNormalization", 9, "an experimental operator before", convert::experimental),
    row("Scan", 9, "the batch is an outer Scan", convert::scan_9),
    row("Upsample", 9, "scales became an input", convert::upsample_9),
    row("Slice", 10, "starts, ends and axes became inputs", convert::slice_10),
    row("TopK", 10, "k became an input", convert::top_k_10),
    row("Upsample", 10, "became Resize", convert::upsample_10),
    row("Clip", 11, "min and max became inputs", convert::clip_11),
    row("OneHot", 11, "negative indices, which count from the end since, are kept out", convert::one_hot_11),
    row("Pad", 11, "pads and value became inputs", convert::pad_11),
    row("Resize", 11, "its way to place pixels is written out", convert::resize_11),
    row("Scatter", 11, "became ScatterElements", convert::scatter_11),
    row("Dropout", 12, "ratio became an input", convert::dropout_12),
    row("Erf", 13, "works on floats alone", convert::erf_13),
    row("Hardmax", 13, SOFTMAX, convert::softmax_13),
    row("LogSoftmax", 13, SOFTMAX, convert::softmax_13),
    row("ReduceSum", 13, AXES, convert::reduce),
    row("Resize", 13, "empty inputs are left out", convert::resize_13),
    row("Softmax", 13, SOFTMAX, convert::softmax_13),
    row("Split", 13, "split became an input", convert::split_13),
    row("Squeeze", 13, AXES, convert::squeeze_13),
    row("Unsqueeze", 13, AXES, convert::unsqueeze_13),
    row("BatchNormalization", 14, "training is an attribute", convert::batch_normalization_14),
    row("RoiAlign", 16, "its way to place pixels is written out", convert::roi_align_16),
    row("ReduceL1", 18, AXES, convert::reduce),
    row("ReduceL2", 18, AXES, convert::reduce),
    row("ReduceLogSum", 18, AXES, convert::reduce),
    row("ReduceLogSumExp", 18, AXES, convert::reduce),
    row("ReduceMax", 18, AXES, convert::reduce),
    row("ReduceMean", 18, AXES, convert::reduce),
    row("ReduceMin", 18, AXES, convert::reduce),
    row("ReduceProd", 18, AXES, convert::reduce),
    row("ReduceSumSquare", 18, AXES, convert::reduce),
    row("Split", 18, "the number of parts is written out", convert::split_18),
    row("DFT", 20, "axis became an input", convert::dft_20),
    row("GridSample", 20, "modes have other names", convert::grid_sample_20),
    row("GroupNormalization", 21, "scale and bias are given for each channel", convert::group_normalization_21),
];

/// Operators that early files have and no version of the specification: they were experiments.
const EXPERIMENTS: [&str; 11] = [
    "ATen",
    "Affine",
    "ConstantFill",
    "Crop",
    "DynamicSlice",
    "GRUUnit",
    "GivenTensorFill",
    "ImageScaler",
    "ParametricSoftplus",
    "Scale",
    "ScaledTanh",
];

/// Attributes that operators lost before version 7, and what they were for.
const ANCIENT: [(&str, &str); 3] = [
    ("broadcast", "broadcasting along an axis"),
    ("consumed_inputs", "reuse of memory"),
    ("is_test", "training"),
];

/// Raises the version of the standard operators to `to`, so that the model computes what it did before.
///
/// Nodes are rewritten in the graph, in the graphs inside of nodes, in those for training, and in functions, which
/// declare versions of their own. New constants are initializers of the graph that the node is in, and in a function
/// nodes. Nodes of other domains stay as they are, and so does a model or function that has this version or a later one.
/// Gives one line for each kind of node that was rewritten.
///
/// # Errors
/// If `to` is none of 13 to 25, the model's version is below 7 or missing, or a node cannot be expressed in that version;
/// the message names node, operator and versions. The model is then as it was.
pub fn upgrade(model: &mut Model, to: i64) -> Result<Vec<String>, OnnxError> {
    if !TARGETS.contains(&to) {
        return Err(OnnxError::graph(format!(
            "models cannot be raised to opset {to}; the versions are {} to {}",
            TARGETS.start(),
            TARGETS.end()
        )));
    }
    let mut proto = model.proto.clone();
    let mut work = Work { to, names: Names::of(&proto), counts: BTreeMap::new() };
    let from = declared(&proto.opset_import, "the model")?;
    if let Some(graph) = &mut proto.graph {
        work.graph(graph, from, None, "the model")?;
    }
    for training in &mut proto.training_info {
        let graphs = training.initialization.iter_mut().chain(&mut training.algorithm);
        // The values of the model's graph are seen in these; nothing is known of them here.
        graphs.into_iter().try_for_each(|graph| work.graph(graph, from, None, "the model"))?;
    }
    for function in &mut proto.functions {
        work.function(function)?;
    }
    let lines = work.lines();
    model.proto = proto;
    if from.is_some_and(|from| from < to) {
        for set in standard_sets(&mut model.proto.opset_import) {
            set.version = Some(to);
        }
        // It raises the version of the format as well.
        model.set_opset(to);
    }
    Ok(lines)
}

fn is_standard(set: &OperatorSetIdProto) -> bool {
    matches!(set.domain(), "" | "ai.onnx")
}

fn standard_sets(sets: &mut [OperatorSetIdProto]) -> impl Iterator<Item = &mut OperatorSetIdProto> {
    sets.iter_mut().filter(|set| is_standard(set))
}

/// The version of the standard operators among these; `None` where there is none.
fn declared(sets: &[OperatorSetIdProto], whose: &str) -> Result<Option<i64>, OnnxError> {
    let mut versions = sets.iter().filter(|set| is_standard(set)).map(OperatorSetIdProto::version);
    let Some(first) = versions.next() else { return Ok(None) };
    if let Some(other) = versions.find(|&version| version != first) {
        return Err(OnnxError::graph(format!(
            "{whose} declares two versions of the standard operators, {first} and {other}"
        )));
    }
    if first < OLDEST {
        return Err(OnnxError::graph(format!(
            "{whose} uses opset {first}; versions below {OLDEST} are not supported"
        )));
    }
    Ok(Some(first))
}

/// What one call of [`upgrade`] carries along.
struct Work {
    to: i64,
    names: Names,
    /// Nodes rewritten, by row of the table.
    counts: BTreeMap<usize, usize>,
}

impl Work {
    fn lines(&self) -> Vec<String> {
        let line = |(&at, &count): (&usize, &usize)| {
            let change = &CHANGES[at];
            let nodes = if count == 1 { "node" } else { "nodes" };
            format!("{} (opset {}): {}; {count} {nodes}", change.op, change.version, change.note)
        };
        self.counts.iter().map(line).collect()
    }

    fn function(&mut self, function: &mut FunctionProto) -> Result<(), OnnxError> {
        let whose = format!("function `{}`", function.name());
        let from = declared(&function.opset_import, &whose)?;
        let scope = Scope::of_function(function);
        let mut read: HashSet<String> = function.output.iter().cloned().collect();
        note_reads(&function.node, &mut read);
        let nodes = std::mem::take(&mut function.node);
        let (nodes, constants) = self.nodes(nodes, from, &scope, &read, &whose)?;
        // A function has no initializers.
        function.node = constants.into_iter().map(convert::constant_node).chain(nodes).collect();
        if from.is_some_and(|from| from < self.to) {
            standard_sets(&mut function.opset_import).for_each(|set| set.version = Some(self.to));
        }
        Ok(())
    }

    fn graph(
        &mut self,
        graph: &mut GraphProto,
        from: Option<i64>,
        outer: Option<&Scope<'_>>,
        whose: &str,
    ) -> Result<(), OnnxError> {
        let scope = Scope::of_graph(graph, outer);
        let mut read: HashSet<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
        note_reads(&graph.node, &mut read);
        let nodes = std::mem::take(&mut graph.node);
        let (nodes, constants) = self.nodes(nodes, from, &scope, &read, whose)?;
        graph.node = nodes;
        graph.initializer.extend(constants);
        Ok(())
    }

    fn nodes(
        &mut self,
        old: Vec<NodeProto>,
        from: Option<i64>,
        scope: &Scope<'_>,
        read: &HashSet<String>,
        whose: &str,
    ) -> Result<(Vec<NodeProto>, Vec<TensorProto>), OnnxError> {
        let mut new = Vec::with_capacity(old.len());
        let mut constants = Vec::new();
        for mut node in old {
            for graph in node.subgraphs_mut() {
                self.graph(graph, from, Some(scope), whose)?;
            }
            if !node.is_standard() {
                new.push(node);
                continue;
            }
            let Some(from) = from else {
                return Err(OnnxError::graph(format!(
                    "node `{}` is the standard operator {}, of which {whose} declares no version",
                    node.label(),
                    node.op_type()
                )));
            };
            if from < self.to {
                new.extend(self.node(node, from, scope, read, &mut constants)?);
            } else {
                new.push(node);
            }
        }
        Ok((new, constants))
    }

    fn node(
        &mut self,
        node: NodeProto,
        from: i64,
        scope: &Scope<'_>,
        read: &HashSet<String>,
        constants: &mut Vec<TensorProto>,
    ) -> Result<Vec<NodeProto>, OnnxError> {
        let (label, op) = (node.label().to_owned(), node.op_type().to_owned());
        let refused = |version: i64, reason: &str| {
            OnnxError::graph(format!(
                "node `{label}`, a {op} of opset {from}, cannot be expressed in opset {version}: {reason}"
            ))
        };
        if EXPERIMENTS.contains(&op.as_str()) {
            return Err(refused(self.to, "the operator was an experiment and is gone"));
        }
        if let Some((name, purpose)) = ANCIENT.iter().find(|(name, _)| node.get(name).is_some()) {
            let reason =
                format!("its attribute `{name}`, for {purpose}, is from before opset {OLDEST}");
            return Err(refused(self.to, &reason));
        }
        let mut nodes = vec![node];
        let due = |change: &Change| (from + 1..=self.to).contains(&change.version);
        for (at, change) in CHANGES.iter().enumerate().filter(|(_, change)| due(change)) {
            if !nodes.iter().any(|node| node.is(change.op)) {
                continue;
            }
            let mut next = Vec::with_capacity(nodes.len());
            for node in nodes {
                if !node.is(change.op) {
                    next.push(node);
                    continue;
                }
                let before = node.clone();
                let names = &mut self.names;
                let mut context = Context { to: self.to, scope, read, names, constants };
                let after = (change.convert)(node, &mut context)
                    .map_err(|reason| refused(change.version, &reason))?;
                if after != [before] {
                    *self.counts.entry(at).or_default() += 1;
                }
                next.extend(after);
            }
            nodes = next;
        }
        Ok(nodes)
    }
}

/// Notes every value that the nodes read.
fn note_reads(nodes: &[NodeProto], read: &mut HashSet<String>) {
    for node in nodes {
        node.reads(&mut |name| {
            read.insert(name.to_owned());
        });
    }
}

/// What a function of the table knows besides its node.
struct Context<'a> {
    /// The version that all of it ends with.
    to: i64,
    scope: &'a Scope<'a>,
    /// The values that something reads.
    read: &'a HashSet<String>,
    names: &'a mut Names,
    /// The constants that were made for nodes of this graph.
    constants: &'a mut Vec<TensorProto>,
}

impl Context<'_> {
    /// A name for a value that belongs to this node.
    fn name(&mut self, node: &NodeProto, what: &str) -> String {
        let first = node.output.iter().find(|name| !name.is_empty());
        self.names.fresh(&format!("{}_{what}", first.map_or("", String::as_str)))
    }

    /// A value, where it is a short constant or one that was made here.
    fn value(&self, name: &str) -> Option<&TensorProto> {
        if self.scope.has(name) {
            return self.scope.constant(name);
        }
        self.constants.iter().rev().find(|tensor| tensor.name() == name)
    }

    /// Makes a constant that belongs to this node, and gives its name.
    fn constant(&mut self, node: &NodeProto, what: &str, mut tensor: TensorProto) -> String {
        let name = self.name(node, what);
        tensor.name = Some(name.clone());
        self.constants.push(tensor);
        name
    }
}
