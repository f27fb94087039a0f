//! Small models, made by hand, and the data that they are run on.

use scrimp_onnx::proto::{
    Dimension, DimensionValue, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    TypeValue, ValueInfoProto,
};
use scrimp_onnx::{
    Choice, Config, Data, Engine, LoadOptions, Model, Plan, QuantizeError, Quantized, Spec, State,
    Value, find_profile, open_engine, quantize,
};

use super::{bell, mix};

/// So many values close to normal; the seed says which.
pub fn normal(count: usize, seed: u32) -> Vec<f32> {
    (0..count).map(|i| bell(u32::try_from(i).unwrap().wrapping_add(mix(seed) >> 8))).collect()
}

/// A float value; sizes that are open are `None`.
pub fn info(name: &str, dims: &[Option<i64>]) -> ValueInfoProto {
    let mut info = ValueInfoProto::of_kind(name, 1);
    let dim = dims
        .iter()
        .map(|size| Dimension { value: size.map(DimensionValue::Value), denotation: None })
        .collect();
    if let Some(TypeProto { value: Some(TypeValue::Tensor(tensor)), .. }) = &mut info.r#type {
        tensor.shape = Some(TensorShapeProto { dim });
    }
    info
}

/// A model in the making: one input `x`, one output `y`.
#[derive(Default)]
pub struct Sketch {
    pub graph: GraphProto,
}

impl Sketch {
    /// With samples of this shape.
    pub fn of(sample: &[usize]) -> Self {
        let mut dims = vec![None];
        dims.extend(sample.iter().map(|&size| Some(i64::try_from(size).unwrap())));
        let graph = GraphProto {
            name: Some("g".into()),
            input: vec![info("x", &dims)],
            output: vec![ValueInfoProto::of_kind("y", 1)],
            ..GraphProto::default()
        };
        Self { graph }
    }

    /// A constant of values close to normal.
    pub fn weight(mut self, name: &str, dims: &[usize]) -> Self {
        let values = normal(dims.iter().product(), name.bytes().map(u32::from).sum());
        let values: Vec<f32> = values.iter().map(|v| v * 0.3).collect();
        self.graph.initializer.push(TensorProto::from_f32(name, dims, &values));
        self
    }

    pub fn floats(mut self, name: &str, dims: &[usize], values: &[f32]) -> Self {
        self.graph.initializer.push(TensorProto::from_f32(name, dims, values));
        self
    }

    pub fn ints(mut self, name: &str, values: &[i64]) -> Self {
        self.graph.initializer.push(TensorProto::from_i64(name, &[values.len()], values));
        self
    }

    /// A node whose name is that of its output.
    pub fn node(self, op: &str, inputs: &[&str], output: &str) -> Self {
        self.with(NodeProto::call(op, output, inputs, &[output]))
    }

    pub fn with(mut self, node: NodeProto) -> Self {
        self.graph.node.push(node);
        self
    }

    /// A convolution of 3 by 3 that keeps the size, and its weight.
    pub fn conv(self, input: &str, output: &str, channels: [usize; 2]) -> Self {
        let weight = format!("w_{output}");
        let node = NodeProto::call("Conv", output, &[input, &weight], &[output]);
        self.weight(&weight, &[channels[1], channels[0], 3, 3])
            .with(node.with_ints("pads", &[1, 1, 1, 1]))
    }

    pub fn output(mut self, name: &str) -> Self {
        self.graph.output.push(ValueInfoProto::of_kind(name, 1));
        self
    }

    pub fn model(self) -> Model {
        self.at(17)
    }

    pub fn at(self, opset: i64) -> Model {
        Model::new(self.graph, opset, 8)
    }
}

/// Samples of one input.
#[derive(Debug)]
pub struct Samples {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Samples {
    /// So many samples of `x`, close to normal.
    pub fn of(count: usize, shape: &[usize]) -> Self {
        let values = normal(count * shape.iter().product::<usize>(), 99);
        Self { name: "x".into(), shape: shape.to_vec(), values }
    }
}

impl Data for Samples {
    fn len(&self) -> usize {
        self.values.len() / self.shape.iter().product::<usize>()
    }

    fn batch(&self, start: usize, end: usize) -> Result<Vec<(String, Value)>, String> {
        let sample: usize = self.shape.iter().product();
        let shape = [vec![end - start], self.shape.clone()].concat();
        let values = self.values[start * sample..end * sample].to_vec();
        Ok(vec![(self.name.clone(), Value::f32(shape, values))])
    }
}

pub fn engine() -> Box<dyn Engine> {
    open_engine(&Choice::Rten).unwrap()
}

pub fn config(target: &str) -> Config {
    Config::of(find_profile(target).unwrap())
}

pub fn spec(text: &str) -> Spec {
    Spec::parse(text).unwrap()
}

/// Quantizes for x86, changed as asked.
pub fn quantized(model: &Model, data: &dyn Data, change: impl Fn(&mut Config)) -> Quantized {
    tried(model, data, change).unwrap()
}

pub fn tried(
    model: &Model,
    data: &dyn Data,
    change: impl Fn(&mut Config),
) -> Result<Quantized, QuantizeError> {
    let mut config = config("ort-x86");
    change(&mut config);
    quantize(model, &config, data, &*engine(), &mut |_| true)
}

/// The first output of a model for all of the data.
pub fn outputs(model: &Model, data: &dyn Data) -> Vec<f32> {
    let name = model.graph().output[0].name().to_owned();
    let mut session = engine().load(model, &[name], LoadOptions::default()).unwrap();
    let inputs = data.batch(0, data.len()).unwrap();
    let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, v)| (name.as_str(), v)).collect();
    session.run(&inputs).unwrap()[0].as_f32().unwrap().to_vec()
}

/// The largest difference, as a share of the largest magnitude.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

/// Signal against noise, in dB.
pub fn sqnr(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let signal: f64 = a.iter().map(|&v| f64::from(v).powi(2)).sum();
    let noise: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a - b).powi(2)).sum();
    10.0 * (signal / noise).log10()
}

pub fn state(plan: &Plan, name: &str) -> State {
    plan.nodes.iter().find(|node| node.name == name).unwrap_or_else(|| panic!("{name}")).state
}

pub fn count(model: &Model, op: &str) -> usize {
    model.graph().node.iter().filter(|node| node.op_type() == op).count()
}

/// The tensors of each group of activations, sorted.
pub fn groups(plan: &Plan) -> Vec<Vec<String>> {
    let mut groups: Vec<Vec<String>> = plan.activations.iter().map(|g| g.tensors.clone()).collect();
    for group in &mut groups {
        group.sort();
    }
    groups.sort();
    groups
}
