//! Looking around in a graph, and changing it.

use std::collections::{HashMap, HashSet};

use crate::OnnxError;
use crate::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, TypeValue,
    ValueInfoProto,
};

/// The kinds of attributes that graphs are made with.
mod attribute_kind {
    pub const FLOAT: i32 = 1;
    pub const INT: i32 = 2;
    pub const STRING: i32 = 3;
    pub const TENSOR: i32 = 4;
    pub const GRAPH: i32 = 5;
    pub const FLOATS: i32 = 6;
    pub const INTS: i32 = 7;
}

/// Calls `visit` for every constant tensor of a model, those of subgraphs and functions among them.
pub fn visit_tensors(model: &ModelProto, visit: &mut dyn FnMut(&TensorProto)) {
    fn of_nodes(nodes: &[NodeProto], visit: &mut dyn FnMut(&TensorProto)) {
        for attribute in nodes.iter().flat_map(|node| &node.attribute) {
            attribute.t.iter().chain(&attribute.tensors).for_each(&mut *visit);
            attribute.g.iter().chain(&attribute.graphs).for_each(|g| of_graph(g, visit));
        }
    }
    fn of_graph(graph: &GraphProto, visit: &mut dyn FnMut(&TensorProto)) {
        graph.initializer.iter().for_each(&mut *visit);
        for sparse in &graph.sparse_initializer {
            sparse.values.iter().chain(&sparse.indices).for_each(&mut *visit);
        }
        of_nodes(&graph.node, visit);
    }
    model.graph.iter().for_each(|graph| of_graph(graph, visit));
    model.functions.iter().for_each(|function| of_nodes(&function.node, visit));
}

/// As [`visit_tensors`], with the right to change them.
pub fn for_each_tensor(model: &mut ModelProto, visit: &mut dyn FnMut(&mut TensorProto)) {
    fn of_nodes(nodes: &mut [NodeProto], visit: &mut dyn FnMut(&mut TensorProto)) {
        for attribute in nodes.iter_mut().flat_map(|node| &mut node.attribute) {
            attribute.t.iter_mut().chain(&mut attribute.tensors).for_each(&mut *visit);
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|g| of_graph(g, visit));
        }
    }
    fn of_graph(graph: &mut GraphProto, visit: &mut dyn FnMut(&mut TensorProto)) {
        graph.initializer.iter_mut().for_each(&mut *visit);
        for sparse in &mut graph.sparse_initializer {
            sparse.values.iter_mut().chain(&mut sparse.indices).for_each(&mut *visit);
        }
        of_nodes(&mut graph.node, visit);
    }
    model.graph.iter_mut().for_each(|graph| of_graph(graph, visit));
    model.functions.iter_mut().for_each(|function| of_nodes(&mut function.node, visit));
}

impl NodeProto {
    /// A node of the standard operators.
    pub fn call(op: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        Self {
            op_type: Some(op.into()),
            name: Some(name.into()),
            input: inputs.iter().map(|&s| s.into()).collect(),
            output: outputs.iter().map(|&s| s.into()).collect(),
            ..Self::default()
        }
    }

    /// The node with an integer attribute set.
    #[must_use]
    pub fn with_int(mut self, name: &str, value: i64) -> Self {
        self.set(AttributeProto {
            i: Some(value),
            ..AttributeProto::named(name, attribute_kind::INT)
        });
        self
    }

    /// The node with an attribute of integers set.
    #[must_use]
    pub fn with_ints(mut self, name: &str, values: &[i64]) -> Self {
        self.set(AttributeProto {
            ints: values.to_vec(),
            ..AttributeProto::named(name, attribute_kind::INTS)
        });
        self
    }

    /// The node with a float attribute set.
    #[must_use]
    pub fn with_float(mut self, name: &str, value: f32) -> Self {
        self.set(AttributeProto {
            f: Some(value),
            ..AttributeProto::named(name, attribute_kind::FLOAT)
        });
        self
    }

    /// The node with a text attribute set.
    #[must_use]
    pub fn with_text(mut self, name: &str, value: &str) -> Self {
        self.set(AttributeProto {
            s: Some(value.to_owned().into()),
            ..AttributeProto::named(name, attribute_kind::STRING)
        });
        self
    }

    /// Sets an attribute, in place of one with the same name.
    pub fn set(&mut self, attribute: AttributeProto) {
        match self.attribute.iter_mut().find(|a| a.name == attribute.name) {
            Some(old) => *old = attribute,
            None => self.attribute.push(attribute),
        }
    }

    /// Takes an attribute out.
    pub fn take(&mut self, name: &str) -> Option<AttributeProto> {
        let at = self.attribute.iter().position(|a| a.name() == name)?;
        Some(self.attribute.remove(at))
    }

    /// An attribute, where the node has it.
    pub fn get(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|a| a.name() == name)
    }

    /// An integer attribute, or its default.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.get(name).and_then(|a| a.i).unwrap_or(default)
    }

    /// A float attribute, or its default.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.get(name).and_then(|a| a.f).unwrap_or(default)
    }

    /// An attribute of integers; empty where the node has none.
    pub fn ints(&self, name: &str) -> &[i64] {
        self.get(name).map_or(&[], |a| &a.ints)
    }

    /// A text attribute, or its default.
    pub fn text<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.get(name).and_then(|a| std::str::from_utf8(a.s.as_deref()?).ok()).unwrap_or(default)
    }

    /// Whether this is such an operator of the standard set.
    pub fn is(&self, op: &str) -> bool {
        self.op_type() == op && self.is_standard()
    }

    /// Whether the operator belongs to the standard set.
    pub fn is_standard(&self) -> bool {
        matches!(self.domain(), "" | "ai.onnx")
    }

    /// The name of input `at`; `None` where it is left out.
    pub fn arg(&self, at: usize) -> Option<&str> {
        self.input.get(at).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// What messages call the node: its name, or its first output where it has none.
    pub fn label(&self) -> &str {
        if self.name().is_empty() {
            self.output.first().map_or("", String::as_str)
        } else {
            self.name()
        }
    }

    /// The graphs among the attributes.
    pub fn subgraphs(&self) -> impl Iterator<Item = &GraphProto> {
        self.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
    }

    /// The graphs among the attributes, to be changed.
    pub fn subgraphs_mut(&mut self) -> impl Iterator<Item = &mut GraphProto> {
        self.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs))
    }
}

impl AttributeProto {
    fn named(name: &str, kind: i32) -> Self {
        Self { name: Some(name.into()), r#type: Some(kind), ..Self::default() }
    }

    /// An attribute of floats.
    pub fn of_floats(name: &str, values: Vec<f32>) -> Self {
        Self { floats: values, ..Self::named(name, attribute_kind::FLOATS) }
    }

    /// An attribute that is a tensor.
    pub fn of_tensor(name: &str, tensor: TensorProto) -> Self {
        Self { t: Some(tensor), ..Self::named(name, attribute_kind::TENSOR) }
    }

    /// An attribute that is a graph.
    pub fn of_graph(name: &str, graph: GraphProto) -> Self {
        Self { g: Some(graph), ..Self::named(name, attribute_kind::GRAPH) }
    }
}

impl GraphProto {
    /// The constant with this name.
    pub fn constant(&self, name: &str) -> Option<&TensorProto> {
        self.initializer.iter().find(|t| t.name() == name)
    }

    /// The inputs that a caller must give: those that no constant stands for.
    pub fn required_inputs(&self) -> impl Iterator<Item = &ValueInfoProto> {
        let constants: HashSet<&str> = self.initializer.iter().map(TensorProto::name).collect();
        self.input.iter().filter(move |input| !constants.contains(input.name()))
    }

    /// Replaces a value by another wherever it is read, in subgraphs too. The graph's own outputs keep their names. No
    /// subgraph may have a value of the new name, as is so with a [`fresh_name`](Self::fresh_name).
    pub fn replace_uses(&mut self, old: &str, new: &str) {
        for node in &mut self.node {
            node.replace_reads(old, new);
        }
    }

    /// Puts the nodes in an order in which each comes after those whose outputs it reads; nodes keep their order where it
    /// does not matter.
    ///
    /// # Errors
    /// If nodes need each other's outputs, or two make the same value.
    pub fn sort(&mut self) -> Result<(), OnnxError> {
        let mut made: HashMap<&str, usize> = HashMap::new();
        for (at, node) in self.node.iter().enumerate() {
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                if let Some(other) = made.insert(name, at) {
                    return Err(OnnxError::graph(format!(
                        "nodes `{}` and `{}` both make the value `{name}`",
                        self.node[other].label(),
                        node.label()
                    )));
                }
            }
        }
        let mut order = Vec::with_capacity(self.node.len());
        // 0: not seen, 1: being placed, 2: placed.
        let mut state = vec![0u8; self.node.len()];
        for start in 0..self.node.len() {
            let mut stack = vec![(start, false)];
            while let Some((at, ready)) = stack.pop() {
                if ready {
                    state[at] = 2;
                    order.push(at);
                    continue;
                }
                match state[at] {
                    2 => continue,
                    1 => {
                        return Err(OnnxError::graph(format!(
                            "node `{}` needs its own output: the graph has a cycle",
                            self.node[at].label()
                        )));
                    }
                    _ => {}
                }
                state[at] = 1;
                stack.push((at, true));
                let mut needs = Vec::new();
                self.node[at].reads(&mut |name| needs.extend(made.get(name).copied()));
                for &need in needs.iter().rev() {
                    match state[need] {
                        0 => stack.push((need, false)),
                        1 => {
                            return Err(OnnxError::graph(format!(
                                "node `{}` needs its own output: the graph has a cycle",
                                self.node[need].label()
                            )));
                        }
                        _ => {}
                    }
                }
            }
        }
        if order.iter().enumerate().any(|(place, &at)| place != at) {
            let mut nodes: Vec<Option<NodeProto>> =
                std::mem::take(&mut self.node).into_iter().map(Some).collect();
            self.node = order.iter().filter_map(|&at| nodes[at].take()).collect();
        }
        Ok(())
    }

    /// Drops nodes and constants that no output needs, and what is said of values that are gone. Nodes with side effects do
    /// not exist in ONNX.
    pub fn drop_dead(&mut self) {
        let mut makers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, node) in self.node.iter().enumerate() {
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                makers.entry(name).or_default().push(at);
            }
        }
        let mut read: HashSet<String> = HashSet::new();
        let mut live = vec![false; self.node.len()];
        let mut found = Vec::new();
        let mut note = |name: &str, found: &mut Vec<usize>| {
            if read.insert(name.to_owned()) {
                found.extend(makers.get(name).into_iter().flatten());
            }
        };
        self.output.iter().for_each(|output| note(output.name(), &mut found));
        while let Some(at) = found.pop() {
            if !std::mem::replace(&mut live[at], true) {
                self.node[at].reads(&mut |name| note(name, &mut found));
            }
        }
        let mut live = live.into_iter();
        self.node.retain(|_| live.next() == Some(true));
        let inputs: HashSet<&str> = self.input.iter().map(ValueInfoProto::name).collect();
        self.initializer.retain(|t| read.contains(t.name()) || inputs.contains(t.name()));
        self.sparse_initializer.retain(|t| {
            let name = t.values.as_ref().map_or("", TensorProto::name);
            read.contains(name) || inputs.contains(name)
        });
        let made: HashSet<&str> =
            self.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
        let kept = |name: &str| made.contains(name) || read.contains(name);
        self.value_info.retain(|value| kept(value.name()));
        self.quantization_annotation.retain(|annotation| kept(annotation.tensor_name()));
    }

    /// A name that nothing in the graph has, made from `base`.
    pub fn fresh_name(&self, base: &str) -> String {
        Names::of_graph(self).fresh(base)
    }

    /// The values that come from this graph, and not from one around it.
    fn own_values(&self) -> impl Iterator<Item = &str> {
        let sparse = self.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
        let constants = self.initializer.iter().chain(sparse).map(TensorProto::name);
        let made = self.node.iter().flat_map(|node| &node.output).map(String::as_str);
        self.input.iter().map(ValueInfoProto::name).chain(constants).chain(made)
    }

    /// Calls `visit` for every name of a value in the graph and in those inside of it.
    pub fn names(&self, visit: &mut dyn FnMut(&str)) {
        let declared = self.input.iter().chain(&self.output).chain(&self.value_info);
        declared.for_each(|value| visit(value.name()));
        let sparse = self.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
        self.initializer.iter().chain(sparse).for_each(|tensor| visit(tensor.name()));
        self.node.iter().for_each(|node| node.names(visit));
    }
}

impl NodeProto {
    /// As [`GraphProto::names`], for one node.
    pub(crate) fn names(&self, visit: &mut dyn FnMut(&str)) {
        self.input.iter().chain(&self.output).for_each(|name| visit(name));
        self.subgraphs().for_each(|graph| graph.names(visit));
    }

    /// Calls `visit` for every value that the node reads, those that its subgraphs take from outside among them.
    pub fn reads(&self, visit: &mut dyn FnMut(&str)) {
        self.input.iter().filter(|name| !name.is_empty()).for_each(|name| visit(name));
        for graph in self.subgraphs() {
            let own: HashSet<&str> = graph.own_values().collect();
            for node in &graph.node {
                node.reads(&mut |name| {
                    if !own.contains(name) {
                        visit(name);
                    }
                });
            }
            for output in &graph.output {
                if !own.contains(output.name()) {
                    visit(output.name());
                }
            }
        }
    }

    /// Replaces a value by another wherever this node reads it, in its subgraphs too.
    pub fn replace_reads(&mut self, old: &str, new: &str) {
        for name in self.input.iter_mut().filter(|name| *name == old) {
            new.clone_into(name);
        }
        // In a graph that has a value of that name, the name stands for that one.
        let outside = |graph: &&mut GraphProto| graph.own_values().all(|name| name != old);
        for graph in self.subgraphs_mut().filter(outside) {
            graph.replace_uses(old, new);
            for output in graph.output.iter_mut().filter(|o| o.name() == old) {
                output.name = Some(new.to_owned());
            }
        }
    }
}

/// Who makes and who reads each value of a graph, subgraphs not entered.
#[derive(Debug, Default)]
pub struct Index {
    makers: HashMap<String, usize>,
    readers: HashMap<String, Vec<(usize, usize)>>,
    /// Values that are read inside subgraphs or are outputs of the graph.
    exposed: HashSet<String>,
    constants: HashMap<String, usize>,
}

impl Index {
    /// The index of a graph as it is now.
    pub fn of(graph: &GraphProto) -> Self {
        let mut index = Self::default();
        for (at, node) in graph.node.iter().enumerate() {
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                index.makers.insert(name.clone(), at);
            }
            for (slot, name) in node.input.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                index.readers.entry(name.clone()).or_default().push((at, slot));
            }
            if node.subgraphs().next().is_some() {
                let direct: HashSet<&String> = node.input.iter().collect();
                node.reads(&mut |name| {
                    if !direct.contains(&name.to_owned()) {
                        index.exposed.insert(name.to_owned());
                    }
                });
            }
        }
        index.exposed.extend(graph.output.iter().map(|o| o.name().to_owned()));
        let constants = graph.initializer.iter().enumerate();
        index.constants = constants.map(|(at, t)| (t.name().to_owned(), at)).collect();
        index
    }

    /// The node that makes a value.
    pub fn maker(&self, name: &str) -> Option<usize> {
        self.makers.get(name).copied()
    }

    /// The nodes that read a value, with the number of the input.
    pub fn readers(&self, name: &str) -> &[(usize, usize)] {
        self.readers.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether a value is read elsewhere than by nodes of this graph.
    pub fn is_exposed(&self, name: &str) -> bool {
        self.exposed.contains(name)
    }

    /// The place of a constant among the initializers.
    pub fn constant(&self, name: &str) -> Option<usize> {
        self.constants.get(name).copied()
    }

    /// The one node that reads a value, where there is one and nothing else sees the value.
    pub fn only_reader(&self, name: &str) -> Option<(usize, usize)> {
        match self.readers(name) {
            [only] if !self.is_exposed(name) => Some(*only),
            _ => None,
        }
    }
}

impl ValueInfoProto {
    /// A value of which only name and element type are known.
    pub fn of_kind(name: &str, elem_type: i32) -> Self {
        let tensor = crate::proto::TensorType { elem_type: Some(elem_type), shape: None };
        Self {
            name: Some(name.into()),
            r#type: Some(TypeProto { value: Some(TypeValue::Tensor(tensor)), denotation: None }),
            ..Self::default()
        }
    }

    /// The element type and the sizes that are known, where the value is a dense tensor.
    pub fn tensor_type(&self) -> Option<(i32, Option<Vec<Option<i64>>>)> {
        let Some(TypeValue::Tensor(tensor)) = self.r#type.as_ref()?.value.as_ref() else {
            return None;
        };
        let dims = tensor.shape.as_ref().map(|shape| {
            shape
                .dim
                .iter()
                .map(|d| match d.value {
                    Some(crate::proto::DimensionValue::Value(size)) => Some(size),
                    _ => None,
                })
                .collect()
        });
        Some((tensor.elem_type(), dims))
    }
}

/// Names of values that are taken.
pub(crate) struct Names {
    taken: HashSet<String>,
    /// Where to look on for a free number.
    next: HashMap<String, usize>,
}

impl Names {
    /// Those of a whole model, its graphs for training and functions among them.
    pub(crate) fn of(model: &ModelProto) -> Self {
        let mut taken = HashSet::new();
        let mut note = |name: &str| {
            taken.insert(name.to_owned());
        };
        let training =
            model.training_info.iter().flat_map(|t| t.initialization.iter().chain(&t.algorithm));
        model.graph.iter().chain(training).for_each(|graph| graph.names(&mut note));
        for function in &model.functions {
            function.input.iter().chain(&function.output).for_each(|name| note(name));
            function.node.iter().for_each(|node| node.names(&mut note));
        }
        Self { taken, next: HashMap::new() }
    }

    /// Those of one graph and the graphs inside of it.
    pub(crate) fn of_graph(graph: &GraphProto) -> Self {
        let mut taken = HashSet::new();
        graph.names(&mut |name| {
            taken.insert(name.to_owned());
        });
        Self { taken, next: HashMap::new() }
    }

    /// A name that was free, made from `base`; it is taken now.
    pub(crate) fn fresh(&mut self, base: &str) -> String {
        let mut name = base.to_owned();
        let next = self.next.entry(name.clone()).or_default();
        while self.taken.contains(&name) {
            *next += 1;
            name = format!("{base}_{next}");
        }
        self.taken.insert(name.clone());
        name
    }
}
