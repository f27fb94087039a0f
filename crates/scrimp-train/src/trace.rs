//! A network as a graph: which layer reads what, found by letting it run once.
//!
//! Under [`Arithmetic::Recorded`](crate::tap::Arithmetic) layers and functions compute nothing. Each notes its
//! node with the `Recorder` of its scope, and gives out a tensor of the right shape in which every element is the number
//! of the value that it stands for. Whoever is given that tensor knows by its elements who made it, whatever
//! views of it were taken on the way. So the graph is that of the network's own forward pass, and no second description.
//!
//! Images are `[batch, channels, height, width]` here, as in PyTorch and ONNX.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Tensor};
use scrimp_kernels::conv2d::Window;

use crate::engine;
use crate::layers::Pool;
use crate::models::{Blueprint, Network};
use crate::plan::{PlanError, PlanRequest};
use crate::tap::{Arithmetic, Scope};

/// What a node computes. Parameters of its layer are called `LAYER.weight` and so on, as in checkpoints.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// A convolution with the layer's `weight`.
    Conv2d {
        /// Stride, padding, dilation and groups.
        window: Window,
        /// Whether the layer has a `bias`.
        bias: bool,
    },
    /// Rows times the layer's `weight`, transposed.
    Linear {
        /// Whether the layer has a `bias`.
        bias: bool,
    },
    /// Normalization by the layer's `running_mean` and `running_var`, then by its `weight` and `bias`.
    BatchNorm {
        /// Added to variances.
        epsilon: f32,
    },
    /// `max(x, 0)`.
    Relu,
    /// The sum of two values of one shape.
    Add,
    /// The largest value of each window.
    MaxPool(Pool),
    /// The mean of each window, in which zeros of the padding count.
    AveragePool(Pool),
    /// The mean of each channel, of which one pixel is left.
    GlobalAverage,
    /// The values of a sample as one row.
    Flatten,
    /// The channels of several images as those of one.
    Concat,
    /// Every so manieth row and column, from the first on.
    Subsample {
        /// From one to the next.
        stride: usize,
    },
    /// Channels of zeros around those that there are.
    PadChannels {
        /// Before the first.
        before: usize,
        /// After the last.
        after: usize,
    },
}

/// The number of a value: 0 is the network's input, and node *i* gives value *i + 1*.
pub type Value = usize;

/// One step of the computation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The path of the layer, with a part after it where the layer takes several steps: `bn1`, `bn1.relu`. No two nodes
    /// have one name.
    pub name: String,
    /// The path of the layer; `None` where it has no taps.
    pub layer: Option<String>,
    /// What is computed.
    pub op: Op,
    /// Of what.
    pub inputs: Vec<Value>,
    /// The shape of the result, without the batch.
    pub shape: Vec<usize>,
}

/// A network as a graph. Nodes come after those whose values they read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// The shape of an image.
    pub input: Vec<usize>,
    /// The steps.
    pub nodes: Vec<Node>,
    /// The logits.
    pub output: Value,
}

impl Trace {
    /// The shape of a value, without the batch.
    ///
    /// # Panics
    /// If there is no such value.
    pub fn shape(&self, value: Value) -> &[usize] {
        match value.checked_sub(1) {
            None => &self.input,
            Some(node) => &self.nodes[node].shape,
        }
    }

    /// The layer whose input, of role `x`, the first input of this node is.
    pub fn entered(&self, node: usize) -> Option<&str> {
        let layer = self.nodes[node].layer.as_deref()?;
        self.nodes[..node].iter().all(|n| n.layer.as_deref() != Some(layer)).then_some(layer)
    }

    /// The layer whose output, of role `y`, this node gives.
    pub fn left(&self, node: usize) -> Option<&str> {
        let layer = self.nodes[node].layer.as_deref()?;
        self.nodes[node + 1..].iter().all(|n| n.layer.as_deref() != Some(layer)).then_some(layer)
    }
}

/// Notes what layers would compute.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Mutex<Trace>);

impl Recorder {
    /// Forgets all nodes, and gives the image that a network is to be sent.
    fn begin(&self, image: [usize; 3], device: &Device) -> Tensor<4> {
        *self.trace() = Trace { input: image.to_vec(), ..Trace::default() };
        let [channels, height, width] = image;
        stand_in(0, [1, channels, height, width], device)
    }

    /// The graph whose result is this.
    fn finish<const D: usize>(&self, logits: &Tensor<D>) -> Trace {
        let mut trace = self.trace();
        trace.output = trace.read("the network's result", logits);
        std::mem::take(&mut *trace)
    }

    /// Notes a node, of the layer with this path or of none, and gives what stands for its result, of this shape.
    pub(crate) fn node<const I: usize, const O: usize>(
        &self,
        layer: Option<&str>,
        name: String,
        op: Op,
        inputs: &[&Tensor<I>],
        shape: [usize; O],
    ) -> Tensor<O> {
        let mut trace = self.trace();
        let inputs = inputs.iter().map(|x| trace.read(&name, x)).collect();
        let layer = layer.map(str::to_owned);
        let value = trace.push(Node { name, layer, op, inputs, shape: shape[1..].to_vec() });
        stand_in(value, shape, &engine::plain_device())
    }

    fn trace(&self) -> MutexGuard<'_, Trace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trace {
    fn push(&mut self, node: Node) -> Value {
        assert!(
            self.nodes.iter().all(|known| known.name != node.name),
            "`{}` is sent an input twice: a network that shares layers cannot be recorded",
            node.name
        );
        self.nodes.push(node);
        self.nodes.len()
    }

    /// The value that a tensor stands for. Where somebody made a row of an image, that is a node.
    fn read<const D: usize>(&mut self, reader: &str, x: &Tensor<D>) -> Value {
        let number = engine::with_values(x.clone(), |values| {
            let first = values.first().copied().unwrap_or(f32::NAN);
            values.iter().all(|v| *v == first).then_some(first)
        });
        let known = |n: &f32| *n >= 1.0 && n.fract() == 0.0 && *n <= (self.nodes.len() + 1) as f32;
        let Some(number) = number.filter(known) else {
            panic!("`{reader}` reads what no layer or function of this crate has made")
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is a whole number in range"
        )]
        let value = number as usize - 1;
        let (seen, known) = (&x.dims()[1..], self.shape(value));
        if seen == known {
            return value;
        }
        let row: usize = known.iter().product();
        assert!(seen == [row], "`{reader}` reads {seen:?} where {known:?} was made");
        let is_row = |node: &Node| node.op == Op::Flatten && node.inputs == [value];
        if let Some(at) = self.nodes.iter().position(is_row) {
            return at + 1;
        }
        let name = match value.checked_sub(1) {
            None => "flatten".to_owned(),
            Some(node) => format!("{}.flatten", self.nodes[node].name),
        };
        self.push(Node {
            name,
            layer: None,
            op: Op::Flatten,
            inputs: vec![value],
            shape: vec![row],
        })
    }
}

/// A tensor that stands for a value. Its elements are above 0, so that zeros which somebody adds are none.
fn stand_in<const D: usize>(value: Value, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::full(shape, value as f32 + 1.0, device)
}

/// The graph of a network, for its [`ModelEntry`](crate::models::ModelEntry).
pub(crate) fn trace<N: Network>(
    Blueprint { name: model, options }: &Blueprint<N>,
    PlanRequest { image, classes, .. }: &PlanRequest,
) -> Result<Trace, PlanError> {
    N::accepts(*image).map_err(|valid| PlanError::Image { model, image: *image, valid })?;
    let scope = Scope::root(0).with(Arithmetic::Recorded);
    let device = engine::plain_device();
    let net = N::build(options, *image, *classes, &scope, &device);
    let logits = net.forward(scope.recorder().begin(*image, &device));
    Ok(scope.recorder().finish(&logits))
}
