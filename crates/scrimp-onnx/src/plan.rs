//! Which tensors of a graph become codes, decided before any value is looked at.

use std::collections::{BTreeMap, HashMap, HashSet};

use scrimp_codec::Granularity;

use crate::config::{Config, Mode, Spec};
use crate::graph::Index;
use crate::proto::{GraphProto, NodeProto};
use crate::rules::{self, Output};
use crate::tensor::DataType;
use crate::weights::Layout;

/// What a node becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its inputs and weights are codes, and the runtime computes in integers where it can.
    Quantized,
    /// Its weights are stored as codes and computed in floats.
    Weights,
    /// It passes codes on.
    Passing,
    /// What it cuts off saturates in the codes of what it gives, so that runtimes can leave it out.
    Cut,
    /// It stays as it is.
    Float(Why),
}

/// Why a node stays float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no rule for the operator.
    Operator,
    /// A rule of the configuration says so.
    Excluded,
    /// No layer with weights comes after it.
    AtTheEnd,
    /// What it reads is not float.
    NotFloat,
    /// Nothing that it reads or gives has codes.
    NoCodes,
}

impl Why {
    /// The reason, for a list of nodes that stay float.
    pub fn text(self) -> &'static str {
        match self {
            Self::Operator => "no rule for the operator",
            Self::Excluded => "excluded",
            Self::AtTheEnd => "prepares the outputs",
            Self::NotFloat => "not float",
            Self::NoCodes => "no neighbour has codes",
        }
    }
}

/// A node and what it becomes.
#[derive(Clone, Debug)]
pub struct NodePlan {
    /// Its name.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// What it becomes.
    pub state: State,
}

/// A constant that is stored as codes.
#[derive(Clone, Debug)]
pub struct WeightPlan {
    /// The constant.
    pub tensor: String,
    /// The nodes that read it as a weight; others keep the float constant.
    pub readers: Vec<String>,
    /// Its rows.
    pub layout: Layout,
    /// Its scheme.
    pub spec: Spec,
}

/// Tensors that have one scale together.
#[derive(Clone, Debug)]
pub struct ActivationPlan {
    /// All of them, in the order of the graph; the first gives the scale its name.
    pub tensors: Vec<String>,
    /// Those whose values decide the scale; the others only move them.
    pub sources: Vec<String>,
    /// Their scheme.
    pub spec: Spec,
}

/// The whole plan.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Every node of the main graph, in its order.
    pub nodes: Vec<NodePlan>,
    /// Every weight.
    pub weights: Vec<WeightPlan>,
    /// Every group of activations.
    pub activations: Vec<ActivationPlan>,
}

/// Decides what becomes of each node. `is_float` says whether a value of the main graph is a float tensor.
///
/// # Errors
/// A sentence, where a scheme does not fit a tensor.
pub fn plan(
    graph: &GraphProto,
    config: &Config,
    is_float: &dyn Fn(&str) -> bool,
) -> Result<Plan, String> {
    let index = Index::of(graph);
    let mut planner = Planner {
        graph,
        index: &index,
        config,
        states: graph.node.iter().map(|node| first_state(node, graph, config, is_float)).collect(),
        coded: BTreeMap::new(),
    };
    planner.leave_the_end();
    let mut plan = Plan { weights: planner.weights()?, ..Plan::default() };
    if config.mode == Mode::Static {
        planner.mark();
        planner.pass();
        plan.activations = planner.groups();
    }
    planner.settle();
    plan.nodes = graph
        .node
        .iter()
        .zip(&planner.states)
        .map(|(node, &state)| NodePlan {
            name: node.label().into(),
            op: node.op_type().into(),
            state,
        })
        .collect();
    Ok(plan)
}

/// What the configuration says of one node.
struct Said<'a> {
    float: bool,
    weights: &'a Spec,
    activations: &'a Spec,
}

fn said<'a>(node: &NodeProto, config: &'a Config) -> Said<'a> {
    let mut said =
        Said { float: false, weights: &config.weights, activations: &config.activations };
    for rule in config.rules.iter().filter(|rule| rule.speaks_of(node)) {
        said.float = rule.float;
        said.weights = rule.weights.as_ref().unwrap_or(said.weights);
        said.activations = rule.activations.as_ref().unwrap_or(said.activations);
    }
    said
}

fn first_state(
    node: &NodeProto,
    graph: &GraphProto,
    config: &Config,
    is_float: &dyn Fn(&str) -> bool,
) -> State {
    let Some(rule) = rules::find(node) else { return State::Float(Why::Operator) };
    if said(node, config).float {
        return State::Float(Why::Excluded);
    }
    if rule.output() == Output::Same {
        return State::Passing;
    }
    let weights = rule.weights(node, graph);
    let taken: Vec<usize> = weights.iter().map(|(at, _)| *at).collect();
    let reads = rule.activations(node);
    let mut values = reads.iter().filter(|at| !taken.contains(at)).filter_map(|&at| node.arg(at));
    let floats = values.all(|name| {
        graph.constant(name).map_or_else(|| is_float(name), |t| t.kind() == Some(DataType::Float))
    });
    let whole = match config.mode {
        Mode::Static => true,
        Mode::Dynamic => is_dynamic(node, &weights, said(node, config).weights),
        Mode::Weights => false,
    };
    let whole = whole && !reads.is_empty() && !config.profile.float_ops.contains(&node.op_type());
    if whole && floats {
        State::Quantized
    } else if weights.is_empty() {
        State::Float(if floats { Why::NoCodes } else { Why::NotFloat })
    } else {
        State::Weights
    }
}

/// Whether a node is a product whose input can get its scale while the model runs.
fn is_dynamic(node: &NodeProto, weights: &[(usize, Layout)], spec: &Spec) -> bool {
    let plain = node.is("MatMul")
        || (node.is("Gemm")
            && node.int("transA", 0) == 0
            && node.float("alpha", 1.0) == 1.0
            && node.float("beta", 1.0) == 1.0);
    let matrix = matches!(weights, [(1, layout)] if layout.shape.len() == 2);
    let shared = matches!(spec.granularity, Granularity::Tensor | Granularity::Channel);
    plain && matrix && shared && matches!(spec.element.name, "int8" | "uint8")
}

struct Planner<'a> {
    graph: &'a GraphProto,
    index: &'a Index,
    config: &'a Config,
    states: Vec<State>,
    /// Tensors that get codes, with their scheme.
    coded: BTreeMap<String, Spec>,
}

impl Planner<'_> {
    /// Leaves nodes float that no layer with weights comes after, where their rule says so.
    fn leave_the_end(&mut self) {
        let mut led = vec![false; self.graph.node.len()];
        for at in (0..self.graph.node.len()).rev() {
            let node = &self.graph.node[at];
            let readers = node.output.iter().flat_map(|name| self.index.readers(name));
            led[at] = readers.clone().any(|&(reader, _)| {
                led[reader]
                    || (self.states[reader] == State::Quantized
                        && rules::find(&self.graph.node[reader]).is_some_and(rules::OpRule::leads))
            });
            let stays = rules::find(node).is_some_and(rules::OpRule::stays_at_the_end);
            if self.states[at] == State::Quantized && stays && !led[at] {
                self.states[at] = State::Float(Why::AtTheEnd);
            }
        }
    }

    /// The constants that selected nodes read as weights, in this graph and in its subgraphs.
    fn weights(&self) -> Result<Vec<WeightPlan>, String> {
        let mut found: Vec<WeightPlan> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut add = |node: &NodeProto| -> Result<(), String> {
            let Some(rule) = rules::find(node) else { return Ok(()) };
            let said = said(node, self.config);
            if said.float {
                return Ok(());
            }
            for (at, layout) in rule.weights(node, self.graph) {
                let tensor = node.arg(at).unwrap_or_default();
                let constant = self.graph.constant(tensor);
                let float = constant.is_some_and(|t| t.kind() == Some(DataType::Float));
                if !float || layout.shape.contains(&0) {
                    continue;
                }
                // A tied weight stays one tensor; its first reader says how it is stored.
                if let Some(&place) = places.get(tensor) {
                    found[place].readers.push(node.label().into());
                    continue;
                }
                places.insert(tensor.to_owned(), found.len());
                let spec = said.weights.clone();
                spec.sharing(&layout)
                    .map_err(|error| format!("node `{}`: {error}", node.label()))?;
                found.push(WeightPlan {
                    tensor: tensor.into(),
                    readers: vec![node.label().into()],
                    layout,
                    spec,
                });
            }
            Ok(())
        };
        for (node, state) in self.graph.node.iter().zip(&self.states) {
            if matches!(state, State::Quantized | State::Weights) {
                add(node)?;
            }
            in_subgraphs(node, &mut add)?;
        }
        Ok(found)
    }

    /// The name under which the output of node `at` gets codes: that of the cut that follows it, if one does.
    fn outlet(&self, at: usize) -> Option<String> {
        let name = self.graph.node[at].output.first()?;
        if let Some((reader, _)) = self.index.only_reader(name)
            && rules::is_cut(&self.graph.node[reader])
        {
            return self.graph.node[reader].output.first().cloned();
        }
        Some(name.clone())
    }

    /// Marks what quantized nodes read and give.
    fn mark(&mut self) {
        for at in 0..self.graph.node.len() {
            if self.states[at] != State::Quantized {
                continue;
            }
            let node = &self.graph.node[at];
            let Some(rule) = rules::find(node) else { continue };
            let spec = said(node, self.config).activations.clone();
            let weights: Vec<usize> =
                rule.weights(node, self.graph).into_iter().map(|(slot, _)| slot).collect();
            for slot in rule.activations(node) {
                if !weights.contains(&slot)
                    && let Some(name) = node.arg(slot)
                {
                    self.coded.entry(name.to_owned()).or_insert_with(|| spec.clone());
                }
            }
            if rule.output() == Output::Codes
                && let Some(name) = self.outlet(at)
            {
                self.coded.entry(name).or_insert(spec);
            }
        }
    }

    /// Carries marks backward through what only moves elements.
    fn pass(&mut self) {
        for at in (0..self.graph.node.len()).rev() {
            if self.states[at] != State::Passing {
                continue;
            }
            let node = &self.graph.node[at];
            let spec = node.output.first().and_then(|name| self.coded.get(name)).cloned();
            let Some(rule) = rules::find(node) else { continue };
            let Some(spec) = spec.filter(|_| passes_zero(node, self.graph)) else {
                self.states[at] = State::Float(Why::NoCodes);
                continue;
            };
            for slot in rule.activations(node) {
                if let Some(name) = node.arg(slot) {
                    self.coded.entry(name.to_owned()).or_insert_with(|| spec.clone());
                }
            }
        }
    }

    /// Tensors that are tied by what only moves elements, as groups.
    fn groups(&self) -> Vec<ActivationPlan> {
        let names: Vec<&String> = self.coded.keys().collect();
        let place: HashMap<&str, usize> =
            names.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        let mut parent: Vec<usize> = (0..names.len()).collect();
        let mut moved = HashSet::new();
        for (node, state) in self.graph.node.iter().zip(&self.states) {
            if *state != State::Passing {
                continue;
            }
            let Some(rule) = rules::find(node) else { continue };
            let outputs: Vec<usize> =
                node.output.iter().filter_map(|name| place.get(name.as_str()).copied()).collect();
            for slot in rule.activations(node) {
                let Some(&from) = node.arg(slot).and_then(|name| place.get(name)) else { continue };
                for &to in &outputs {
                    moved.insert(to);
                    let (a, b) = (root(&mut parent, from), root(&mut parent, to));
                    parent[b] = a;
                }
            }
        }
        // The order of the graph: inputs and constants first, then what nodes give.
        let order: HashMap<&str, usize> = self
            .graph
            .node
            .iter()
            .enumerate()
            .flat_map(|(at, node)| node.output.iter().map(move |name| (name.as_str(), at + 1)))
            .collect();
        let mut sorted: Vec<usize> = (0..names.len()).collect();
        sorted.sort_by_key(|&at| (order.get(names[at].as_str()).copied().unwrap_or(0), at));
        let mut groups: Vec<ActivationPlan> = Vec::new();
        let mut group_of: HashMap<usize, usize> = HashMap::new();
        for at in sorted {
            let name = names[at].clone();
            let group = *group_of.entry(root(&mut parent, at)).or_insert_with(|| {
                groups.push(ActivationPlan {
                    tensors: Vec::new(),
                    sources: Vec::new(),
                    spec: self.coded[&name].clone(),
                });
                groups.len() - 1
            });
            if !moved.contains(&at) {
                groups[group].sources.push(name.clone());
            }
            groups[group].tensors.push(name);
        }
        groups
    }

    /// Nodes that were to pass codes on, and have none, stay float; cuts whose output has codes are named so.
    fn settle(&mut self) {
        for (node, state) in self.graph.node.iter().zip(&mut self.states) {
            let coded = node.output.first().is_some_and(|name| self.coded.contains_key(name));
            if rules::is_cut(node) && coded {
                *state = State::Cut;
            }
        }
        if self.config.mode != Mode::Static {
            for state in &mut self.states {
                match state {
                    State::Passing => *state = State::Float(Why::NoCodes),
                    State::Quantized if self.config.mode == Mode::Weights => {
                        *state = State::Weights;
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The representative of a set of a forest, whose paths become shorter on the way.
fn root(parent: &mut [usize], mut at: usize) -> usize {
    while parent[at] != at {
        parent[at] = parent[parent[at]];
        at = parent[at];
    }
    at
}

/// Whether what a node adds of its own is zero, which every scale has.
fn passes_zero(node: &NodeProto, graph: &GraphProto) -> bool {
    if !node.is("Pad") {
        return true;
    }
    let constant = node.text("mode", "constant") == "constant";
    let value = node.arg(2).map(|name| {
        graph
            .constant(name)
            .and_then(|t| t.to_f32().ok())
            .is_some_and(|v| v.iter().all(|&v| v == 0.0))
    });
    !constant || value.unwrap_or_else(|| node.float("value", 0.0) == 0.0)
}

fn in_subgraphs(
    node: &NodeProto,
    visit: &mut dyn FnMut(&NodeProto) -> Result<(), String>,
) -> Result<(), String> {
    for graph in node.subgraphs() {
        for inner in &graph.node {
            visit(inner)?;
            in_subgraphs(inner, visit)?;
        }
    }
    Ok(())
}
