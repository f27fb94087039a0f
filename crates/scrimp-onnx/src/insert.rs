//! Writing a plan into a graph: codes in place of constants, pairs of `QuantizeLinear` and `DequantizeLinear` on activations.

use std::collections::HashMap;

use crate::graph::{Index, Names};
use crate::plan::{ActivationPlan, Plan, State};
use crate::proto::{GraphProto, NodeProto, TensorProto};
use crate::rules;
use crate::weights::{Packed, Sharing};
use crate::{DataType, OnnxError};

/// Scale and zero point of a group of activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// The scale.
    pub scale: f32,
    /// The zero point.
    pub zero: i32,
}

/// Gives the weights of some operators zero points, all 0, where they have none.
pub fn zero_points(plan: &Plan, ops: &[&str], weights: &mut [Packed]) {
    for (weight, packed) in plan.weights.iter().zip(weights) {
        let asked = plan.nodes.iter().any(|node| {
            weight.readers.contains(&node.name)
                && node.state == State::Quantized
                && ops.contains(&node.op.as_str())
        });
        if asked {
            packed.spell_zero_points();
        }
    }
}

/// Writes into one graph, whose names are looked up once.
pub struct Writer<'a> {
    graph: &'a mut GraphProto,
    names: Names,
}

impl<'a> Writer<'a> {
    /// A writer to a graph that the plan was made for.
    pub fn new(graph: &'a mut GraphProto) -> Self {
        Self { names: Names::of_graph(graph), graph }
    }

    /// Stores each weight as its codes. Readers that stay float keep the float constant.
    pub fn weights(&mut self, plan: &Plan, packed: &[Packed]) {
        let Self { graph, names } = self;
        for (weight, packed) in plan.weights.iter().zip(packed) {
            let name = &weight.tensor;
            let output = names.fresh(&format!("{name}/dq"));
            let own = ["/c", "/s", "/z"].map(|end| names.fresh(&format!("{name}{end}")));
            let (nodes, constants) = packed.write(&output, own.each_ref().map(String::as_str));
            read_instead(&mut graph.node, &weight.readers, name, &output);
            graph.node.extend(nodes);
            graph.initializer.extend(constants);
        }
    }

    /// Lets products find the scale of their input while the model runs: the codes are multiplied as integers.
    ///
    /// # Errors
    /// If a weight is not there.
    pub fn dynamic(&mut self, plan: &Plan, packed: &[Packed]) -> Result<(), OnnxError> {
        let Self { graph, names: free } = self;
        for at in 0..plan.nodes.len() {
            let node = graph.node[at].clone();
            let weight = plan.weights.iter().position(|w| node.arg(1) == Some(w.tensor.as_str()));
            let (State::Quantized, Some(weight)) = (plan.nodes[at].state, weight) else { continue };
            let (name, layout) = (&plan.weights[weight].tensor, &plan.weights[weight].layout);
            let mut packed = packed[weight].clone();
            packed.spell_zero_points();
            let (rows, len) = (layout.rows(), layout.row_len());
            // MatMulInteger knows one form of a weight: [inputs, outputs].
            let by_input = crate::weights::Layout { shape: vec![len, rows], axis: 1 };
            let codes = by_input.from_rows(&layout.to_rows(&packed.codes));
            let names = ["/c", "/s", "/z"].map(|end| free.fresh(&format!("{name}{end}")));
            let element = &packed.element;
            let kind = element.kind;
            let scale_shape: &[usize] = if packed.scales.len() == 1 { &[] } else { &[rows] };
            graph.initializer.extend([
                TensorProto::from_raw(&names[0], kind, &[len, rows], element.pack(&codes)),
                TensorProto::from_f32(&names[1], scale_shape, &packed.scales),
                TensorProto::from_raw(&names[2], kind, scale_shape, element.pack(&packed.zeros)),
            ]);
            let input =
                node.arg(0).ok_or_else(|| OnnxError::graph("a product without an input"))?;
            let label = node.label();
            let [codes, scale, zero, sums, floats, factor] = ["/q", "/s", "/z", "/i", "/f", "/m"]
                .map(|end| free.fresh(&format!("{label}.x{end}")));
            let output = node.output[0].clone();
            let bias = node.arg(2).filter(|_| node.is("Gemm"));
            let product =
                if bias.is_some() { free.fresh(&format!("{label}.y")) } else { output.clone() };
            let float = i64::from(DataType::Float as i32);
            let mut nodes = vec![
                NodeProto::call(
                    "DynamicQuantizeLinear",
                    &codes,
                    &[input],
                    &[&codes, &scale, &zero],
                ),
                NodeProto::call(
                    "MatMulInteger",
                    label,
                    &[&codes, &names[0], &zero, &names[2]],
                    &[&sums],
                ),
                NodeProto::call("Cast", &floats, &[&sums], &[&floats]).with_int("to", float),
                NodeProto::call("Mul", &factor, &[&scale, &names[1]], &[&factor]),
                NodeProto::call("Mul", &product, &[&floats, &factor], &[&product]),
            ];
            if let Some(bias) = bias {
                nodes.push(NodeProto::call("Add", &output, &[&product, bias], &[&output]));
            }
            graph.node[at] = nodes.remove(1);
            graph.node.extend(nodes);
        }
        Ok(())
    }

    /// Stores the biases of some operators as 32-bit integers at the scale of the products that they are added to. To be called
    /// before the other changes, while nodes read what the plan names.
    pub fn biases(&mut self, plan: &Plan, packed: &[Packed], grids: &[Grid], ops: &[&str]) {
        let Self { graph, names } = self;
        let scale_of: HashMap<&str, f32> = plan
            .activations
            .iter()
            .zip(grids)
            .flat_map(|(group, grid)| group.tensors.iter().map(|name| (name.as_str(), grid.scale)))
            .collect();
        for at in 0..plan.nodes.len() {
            let node = &graph.node[at];
            let chosen = plan.nodes[at].state == State::Quantized && ops.contains(&node.op_type());
            let weight = plan.weights.iter().position(|w| node.arg(1) == Some(w.tensor.as_str()));
            let scale = node.arg(0).and_then(|name| scale_of.get(name)).copied();
            let (true, Some(weight), Some(scale), Some(name)) =
                (chosen, weight, scale, node.arg(2))
            else {
                continue;
            };
            let Some(values) = graph.constant(name).and_then(|t| t.to_f32().ok()) else { continue };
            let [output, code_name, scale_name] =
                ["/dq", "/c", "/s"].map(|end| names.fresh(&format!("{name}{end}")));
            let layout = &plan.weights[weight].layout;
            let own = [code_name.as_str(), scale_name.as_str()];
            let Some((dequantize, constants)) =
                packed[weight].write_bias(layout, &values, scale, &output, own)
            else {
                continue;
            };
            graph.node.push(dequantize);
            graph.initializer.extend(constants);
            graph.node[at].input[2] = output;
        }
    }

    /// Puts a pair on every activation of the plan.
    ///
    /// # Errors
    /// If a constant among them is no float tensor.
    pub fn activations(
        &mut self,
        plan: &Plan,
        grids: &[Grid],
        pair_per_reader: bool,
    ) -> Result<(), OnnxError> {
        // Who makes and reads a tensor changes for no other tensor while pairs are put in.
        let index = Index::of(self.graph);
        let states: HashMap<String, State> =
            plan.nodes.iter().map(|node| (node.name.clone(), node.state)).collect();
        for (group, &grid) in plan.activations.iter().zip(grids) {
            let first = &group.tensors[0];
            let scale = self.names.fresh(&format!("{first}/s"));
            let zero = self.names.fresh(&format!("{first}/z"));
            self.graph.initializer.push(TensorProto::from_f32(&scale, &[], &[grid.scale]));
            let codes = group.spec.element.pack(&[grid.zero]);
            self.graph.initializer.push(TensorProto::from_raw(
                &zero,
                group.spec.element.kind,
                &[],
                codes,
            ));
            for tensor in &group.tensors {
                if self.graph.constant(tensor).is_some() {
                    self.constant(tensor, group, grid, [&scale, &zero], &states)?;
                } else {
                    self.pair(tensor, [&scale, &zero], &states, &index, pair_per_reader);
                }
            }
        }
        Ok(())
    }

    /// A constant among the activations: its codes are computed here. Readers that stay float keep the float constant.
    fn constant(
        &mut self,
        name: &str,
        group: &ActivationPlan,
        grid: Grid,
        [scale, zero]: [&str; 2],
        states: &HashMap<String, State>,
    ) -> Result<(), OnnxError> {
        let Self { graph, names } = self;
        let Some(tensor) = graph.constant(name) else { return Ok(()) };
        let values = tensor.to_f32()?;
        let element = &group.spec.element;
        let packed = Packed {
            element: element.clone(),
            shape: tensor.shape()?,
            sharing: Sharing::Tensor,
            scales: vec![grid.scale],
            powers: false,
            zeros: vec![grid.zero],
            codes: values.iter().map(|&v| element.encode(v, grid.scale, grid.zero)).collect(),
        };
        let output = names.fresh(&format!("{name}/dq"));
        let code_name = names.fresh(&format!("{name}/c"));
        let (nodes, mut constants) = packed.write(&output, [&code_name, scale, zero]);
        constants.truncate(1);
        for at in 0..graph.node.len() {
            for slot in coded_slots(&graph.node[at], states) {
                if graph.node[at].arg(slot) == Some(name) {
                    graph.node[at].input[slot].clone_from(&output);
                }
            }
        }
        graph.node.extend(nodes);
        graph.initializer.extend(constants);
        Ok(())
    }

    /// A pair on a value that is computed.
    fn pair(
        &mut self,
        name: &str,
        [scale, zero]: [&str; 2],
        states: &HashMap<String, State>,
        index: &Index,
        pair_per_reader: bool,
    ) {
        let Self { graph, names } = self;
        // Where the operator itself is computed in integers, every reader sees its codes: a second reader of the float value
        // would keep runtimes from joining the operator and its QuantizeLinear.
        let coded_maker = index.maker(name).is_some_and(|at| {
            let node = &graph.node[at];
            let maker = if rules::is_cut(node) {
                node.arg(0).and_then(|input| index.maker(input)).map_or(node, |at| &graph.node[at])
            } else {
                node
            };
            matches!(states.get(maker.label()), Some(State::Quantized | State::Passing))
        });
        let output = coded_maker && graph.output.iter().any(|o| o.name() == name);
        let readers: Vec<(usize, usize)> = index
            .readers(name)
            .iter()
            .copied()
            .filter(|&(at, slot)| {
                coded_maker || coded_slots(&graph.node[at], states).contains(&slot)
            })
            .collect();
        let source = if output {
            // The name of the output goes to the value that the codes stand for.
            let inner = names.fresh(&format!("{name}/f"));
            for node in &mut graph.node {
                for made in node.output.iter_mut().filter(|made| *made == name) {
                    made.clone_from(&inner);
                }
            }
            inner
        } else {
            name.to_owned()
        };
        let quantized = names.fresh(&format!("{name}/q"));
        let value = if output { name.to_owned() } else { names.fresh(&format!("{name}/dq")) };
        graph.node.push(NodeProto::call(
            "QuantizeLinear",
            &format!("{name}/q"),
            &[&source, scale, zero],
            &[&quantized],
        ));
        graph.node.push(NodeProto::call(
            "DequantizeLinear",
            &format!("{name}/dq"),
            &[&quantized, scale, zero],
            &[&value],
        ));
        for (at, (reader, slot)) in readers.into_iter().enumerate() {
            let read = if pair_per_reader && at > 0 {
                let quantized = names.fresh(&format!("{name}/q"));
                let value = names.fresh(&format!("{name}/dq"));
                let inputs = [source.as_str(), scale, zero];
                graph.node.push(NodeProto::call(
                    "QuantizeLinear",
                    &quantized,
                    &inputs,
                    &[&quantized],
                ));
                let inputs = [quantized.as_str(), scale, zero];
                graph.node.push(NodeProto::call("DequantizeLinear", &value, &inputs, &[&value]));
                value
            } else {
                value.clone()
            };
            graph.node[reader].input[slot] = read;
        }
        if coded_maker {
            // Subgraphs read it from outside; a name of their own hides it.
            let holders = graph.node.iter_mut().filter(|node| node.subgraphs().next().is_some());
            holders.for_each(|node| node.replace_reads(&source, &value));
        }
    }
}

/// Lets some nodes read another value, wherever they are.
fn read_instead(nodes: &mut [NodeProto], readers: &[String], old: &str, new: &str) {
    for node in nodes {
        if readers.iter().any(|reader| reader == node.label()) {
            for input in node.input.iter_mut().filter(|input| *input == old) {
                new.clone_into(input);
            }
        }
        for sub in node.subgraphs_mut() {
            read_instead(&mut sub.node, readers, old, new);
        }
    }
}

/// The inputs of a node that are codes.
fn coded_slots(node: &NodeProto, states: &HashMap<String, State>) -> Vec<usize> {
    match states.get(node.label()) {
        Some(State::Quantized | State::Passing) => {
            rules::find(node).map_or(Vec::new(), |rule| rule.activations(node))
        }
        _ => Vec::new(),
    }
}
