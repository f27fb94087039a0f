//! What a training step costs by its plan: products by the formats that are multiplied, bytes moved, and an estimate of
//! the energy.
//!
//! Nothing here is measured. It says what hardware made for a plan would have to do, to compare plans with each other;
//! how long a step takes on this machine is for [`stepper`](crate::stepper) to say.
//!
//! # Model
//! - **Products.** `y`, `dx` and `dw` take one multiplication and one addition (a MAC) for each pair of numbers, padding
//!   included. A multiplier has the width of its factors' formats; scales and zero points are not counted. What has no
//!   codes of one kind (`smaq`, `top_k`, tables) is decoded before, to bf16 where that holds its values, or else f32.
//! - **Energy of a product.** The published figures are those of two widths. Any other is on the power of the number of
//!   significant bits that goes through both: for integers nearly the square. The width of a product of unlike factors
//!   is the geometric mean of theirs; with one float among them, both count as floats. Sums are kept in 32 bits: int32
//!   for integers, f32 for others.
//! - **Bytes moved.** Each use of a tensor reads or writes all of it once, by the table below. What is read as `x` was
//!   rounded where it was written, as the `y` of another layer, which is counted by its own scheme.
//! - **Energy of memory.** All tensors lie in the smallest memory that holds those of the whole step.
//! - Not counted: instructions, activation functions, the update's arithmetic, the energy of messages.
//!
//! | tensor | read for | written |
//! |---|---|---|
//! | `w` | `y`, `dx` | after the update |
//! | `b` | `y` | after the update |
//! | its f32 master, or where there is none it itself | the update | after it |
//! | `x` | `y`, `dw` | as the `y` of another layer |
//! | `y` | as the `x` of another layer | once |
//! | `dy` | `dx`, `dw` | as the `dx` of another layer |
//! | `dx` | as the `dy` of another layer | once |
//! | `dw`, `db` | the update | once |
//! | moments | the update | after it |
//!
//! # Source
//! Horowitz 2014, "Computing's energy problem (and what we can do about it)", ISSCC, 10.1109/ISSCC.2014.6757323, for
//! 45 nm and 0.9 V.

use std::collections::BTreeMap;

use scrimp_codec::Scheme;
use scrimp_kernels::Kind;
use serde::Serialize;

use crate::compute::{Choice, kind_name};
use crate::plan::{Plan, PlannedProducts, PlannedTensor, Status};
use crate::role::Role;

/// What a training step costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Each layer, in the order of the plan.
    pub layers: Vec<LayerCost>,
    /// All layers together.
    pub total: StepCost,
}

/// What a layer's part of a step costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerCost {
    /// Path of the layer.
    pub layer: String,
    /// Its cost.
    #[serde(flatten)]
    pub cost: StepCost,
}

/// Products, bytes and energy of one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StepCost {
    /// Products, by what is multiplied.
    pub products: Vec<ProductCost>,
    /// Bytes moved, by what they are.
    pub moved: BTreeMap<Traffic, Moved>,
    /// The estimate.
    pub energy: Energy,
    /// The estimate for the same step with every tensor in f32.
    pub f32_energy: Energy,
}

/// Products of numbers in the same two formats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProductCost {
    /// What is computed of them: `y`, `dx` or `dw`.
    pub product: Role,
    /// The formats of the factors: of `x` and `w` for `y`, `dy` and `w` for `dx`, `x` and `dy` for `dw`.
    pub factors: [String; 2],
    /// In what they are computed here.
    #[serde(serialize_with = "kind_name")]
    pub kind: Kind,
    /// Products of two numbers.
    pub macs: u64,
    /// Estimated energy of one multiplication and one addition.
    pub picojoules: f64,
}

/// What bytes are moved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Traffic {
    /// Weights and biases, with their f32 masters.
    Weights,
    /// Inputs and outputs.
    Activations,
    /// The gradients of all four.
    Gradients,
    /// What the optimizer keeps.
    OptimizerState,
    /// What all workers send, and the sum that each gets back, once.
    Exchange,
}

impl Traffic {
    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Activations => "activations",
            Self::Gradients => "gradients",
            Self::OptimizerState => "optimizer state",
            Self::Exchange => "messages",
        }
    }
}

/// Bytes that a step reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// As the plan has it, scales included.
    pub bytes: usize,
    /// With every tensor in f32.
    pub f32_bytes: usize,
}

impl Moved {
    /// Both together.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, f32_bytes: self.f32_bytes + other.f32_bytes }
    }
}

/// An estimate of energy, in millijoules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Energy {
    /// Of products and sums.
    pub arithmetic_mj: f64,
    /// Of bytes moved, between these two.
    pub memory_mj: [f64; 2],
    /// The memory that holds the tensors.
    pub memory: &'static str,
}

impl StepCost {
    /// Products of two numbers in all.
    pub fn macs(&self) -> u64 {
        self.products.iter().map(|p| p.macs).sum()
    }

    /// Bytes moved in all.
    pub fn all_moved(&self) -> Moved {
        self.moved.values().copied().fold(Moved::default(), Moved::join)
    }

    /// Adds what a layer's part takes.
    fn add(&mut self, part: &Self) {
        for product in &part.products {
            let is_alike = |p: &&mut ProductCost| {
                (p.product, &p.factors, p.kind) == (product.product, &product.factors, product.kind)
            };
            match self.products.iter_mut().find(is_alike) {
                Some(known) => known.macs += product.macs,
                None => self.products.push(product.clone()),
            }
        }
        for (traffic, moved) in &part.moved {
            let sum = self.moved.entry(*traffic).or_default();
            *sum = sum.join(*moved);
        }
    }

    /// Makes the estimates, where tensors lie in these memories: those of the plan, and those of f32.
    fn estimate(&mut self, memories: [&Memory; 2]) {
        let local = self.moved.iter().filter(|(traffic, _)| **traffic != Traffic::Exchange);
        let moved = local.fold(Moved::default(), |sum, (_, moved)| sum.join(*moved));
        let [planned, float] = memories;
        let float_pj = Operand::FLOAT32.picojoules(&Operand::FLOAT32) * self.macs() as f64;
        let planned_pj = self.products.iter().map(|p| p.macs as f64 * p.picojoules).sum();
        self.energy = planned.energy(planned_pj, moved.bytes);
        self.f32_energy = float.energy(float_pj, moved.f32_bytes);
    }
}

/// Whether numbers have a fixed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arithmetic {
    /// They have: integers, and blocks under a shared exponent.
    Integer,
    /// They have an exponent each.
    Float,
}

/// What a product of two numbers consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Add,
    Multiply,
}

/// A published figure.
struct Figure {
    operation: Operation,
    arithmetic: Arithmetic,
    /// Bits of an integer, or significant bits of a float.
    bits: f64,
    picojoules: f64,
}

const FIGURES: [Figure; 6] = {
    use Arithmetic::{Float, Integer};
    use Operation::{Add, Multiply};
    [
        Figure { operation: Add, arithmetic: Integer, bits: 32.0, picojoules: 0.1 },
        Figure { operation: Add, arithmetic: Float, bits: 24.0, picojoules: 0.9 },
        Figure { operation: Multiply, arithmetic: Integer, bits: 8.0, picojoules: 0.2 },
        Figure { operation: Multiply, arithmetic: Integer, bits: 32.0, picojoules: 3.1 },
        Figure { operation: Multiply, arithmetic: Float, bits: 11.0, picojoules: 1.1 },
        Figure { operation: Multiply, arithmetic: Float, bits: 24.0, picojoules: 3.7 },
    ]
};

/// Energy of an operation on so many bits: on the power of the bits through the first and the last figure of it.
fn picojoules(operation: Operation, arithmetic: Arithmetic, bits: f64) -> f64 {
    let is_of = |f: &&Figure| f.operation == operation && f.arithmetic == arithmetic;
    let mut figures = FIGURES.iter().filter(is_of);
    let first = figures.next().expect("every operation has a figure");
    let Some(last) = figures.next_back() else { return first.picojoules };
    let power = (last.picojoules / first.picojoules).ln() / (last.bits / first.bits).ln();
    first.picojoules * (bits / first.bits).powf(power)
}

/// A memory that tensors may lie in.
#[derive(Debug)]
struct Memory {
    name: &'static str,
    bytes: usize,
    /// Of an access to 64 bits: the least and the most that is published.
    picojoules: [f64; 2],
}

/// The smallest first; the last holds everything.
const MEMORIES: [Memory; 4] = [
    Memory { name: "a cache of 8 KB", bytes: 8 << 10, picojoules: [10.0; 2] },
    Memory { name: "a cache of 32 KB", bytes: 32 << 10, picojoules: [20.0; 2] },
    Memory { name: "a cache of 1 MB", bytes: 1 << 20, picojoules: [100.0; 2] },
    Memory { name: "DRAM", bytes: usize::MAX, picojoules: [1300.0, 2600.0] },
];

impl Memory {
    /// The smallest that holds so many bytes.
    fn of(bytes: usize) -> &'static Self {
        let [.., last] = &MEMORIES;
        MEMORIES.iter().find(|m| bytes <= m.bytes).unwrap_or(last)
    }

    fn energy(&self, arithmetic_pj: f64, moved_bytes: usize) -> Energy {
        const PJ_PER_MJ: f64 = 1e9;
        let words = moved_bytes as f64 / 8.0;
        Energy {
            arithmetic_mj: arithmetic_pj / PJ_PER_MJ,
            memory_mj: self.picojoules.map(|pj| words * pj / PJ_PER_MJ),
            memory: self.name,
        }
    }
}

/// A factor as a multiplier takes it.
#[derive(Clone, Debug, PartialEq)]
struct Operand {
    name: std::borrow::Cow<'static, str>,
    arithmetic: Arithmetic,
    /// Bits of an integer, or significant bits of a float.
    bits: u32,
}

impl Operand {
    const FLOAT32: Self = Self::float("f32", 24);

    const fn float(name: &'static str, bits: u32) -> Self {
        let name = std::borrow::Cow::Borrowed(name);
        Self { name, arithmetic: Arithmetic::Float, bits }
    }

    fn of(scheme: &Scheme) -> Self {
        let known = scheme.format().and_then(|format| {
            let card = format.card();
            let (arithmetic, bits) = match (card.exponent_bits, card.mantissa_bits) {
                _ if format.integers().is_some() => (Arithmetic::Integer, card.bits),
                // One bit of an exponent says whether the first bit of the mantissa is set.
                (Some(0 | 1), _) => (Arithmetic::Integer, card.bits),
                (Some(_), Some(mantissa_bits)) => (Arithmetic::Float, mantissa_bits + 1),
                _ => return None,
            };
            Some(Self { name: format.name().into(), arithmetic, bits })
        });
        let decoded = || {
            if scheme.factors().short { Self::float("bf16", 8) } else { Self::FLOAT32 }
        };
        known.unwrap_or_else(decoded)
    }

    /// Energy of a product with another factor, and of adding it to a sum.
    fn picojoules(&self, other: &Self) -> f64 {
        const SUM_BITS: f64 = 32.0;
        let arithmetic = match (self.arithmetic, other.arithmetic) {
            (Arithmetic::Integer, Arithmetic::Integer) => Arithmetic::Integer,
            _ => Arithmetic::Float,
        };
        let bits = (f64::from(self.bits) * f64::from(other.bits)).sqrt();
        picojoules(Operation::Multiply, arithmetic, bits)
            + picojoules(Operation::Add, arithmetic, SUM_BITS)
    }
}

/// How often a step reads or writes a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moves {
    traffic: Traffic,
    times: usize,
}

impl Moves {
    /// Of a tensor with this role, in a layer that computes `dx` or not; `None` for messages, which are counted as such.
    fn of(role: Role, computes_dx: bool) -> Option<Self> {
        let dx = usize::from(computes_dx);
        let (traffic, times) = match role {
            Role::Weight => (Traffic::Weights, 2 + dx),
            Role::Bias => (Traffic::Weights, 2),
            Role::Input => (Traffic::Activations, 2),
            Role::Output => (Traffic::Activations, 1),
            Role::OutputGrad => (Traffic::Gradients, 1 + dx),
            Role::InputGrad => (Traffic::Gradients, 1),
            Role::WeightGrad | Role::BiasGrad => (Traffic::Gradients, 2),
            Role::WeightSent | Role::BiasSent => return None,
            Role::Moment1
            | Role::BiasMoment1
            | Role::Moment2
            | Role::BiasMoment2
            | Role::LargestMoment2
            | Role::BiasLargestMoment2 => (Traffic::OptimizerState, 2),
        };
        Some(Self { traffic, times })
    }
}

/// What the update moves of a parameter besides: its f32 master, read and written; where there is none, it is read
/// before it is written.
fn master(tensor: &PlannedTensor, f32_bytes: usize) -> usize {
    match (tensor.role, tensor.master) {
        (Role::Weight | Role::Bias, Some(true)) => 2 * f32_bytes,
        (Role::Weight | Role::Bias, _) => tensor.bytes,
        _ => 0,
    }
}

/// What a step of this plan costs.
pub fn cost(plan: &Plan) -> Cost {
    let mut layers: Vec<LayerCost> = Vec::new();
    let mut held = Moved::default();
    for tensors in plan.tensors.chunk_by(|a, b| a.layer == b.layer) {
        let layer = &tensors[0].layer;
        let products = plan.products.iter().find(|p| p.layer == *layer);
        let products = products.map_or_else(Vec::new, |p| products_of(tensors, p));
        let mut cost = StepCost { products, ..StepCost::default() };
        let computed = |t: &&PlannedTensor| t.status != Status::NotComputed;
        let computes_dx = tensors.iter().filter(computed).any(|t| t.role == Role::InputGrad);
        for tensor in tensors.iter().filter(computed) {
            let f32_bytes = 4 * tensor.shape.iter().product::<usize>();
            let (traffic, moved) = match Moves::of(tensor.role, computes_dx) {
                Some(Moves { traffic, times }) => {
                    let copy = if tensor.master == Some(true) { f32_bytes } else { 0 };
                    held = held.join(Moved { bytes: tensor.bytes + copy, f32_bytes });
                    let is_parameter = usize::from(traffic == Traffic::Weights);
                    let bytes = times * tensor.bytes + master(tensor, f32_bytes);
                    (traffic, Moved { bytes, f32_bytes: (times + is_parameter) * f32_bytes })
                }
                // Where the bytes of messages depend on values, nothing is known of them.
                None => match plan.message(tensor) {
                    Some([bytes, f32_bytes]) => {
                        let [bytes, f32_bytes] = [bytes, f32_bytes].map(|b| b.iter().sum());
                        (Traffic::Exchange, Moved { bytes, f32_bytes })
                    }
                    None => continue,
                },
            };
            let sum = cost.moved.entry(traffic).or_default();
            *sum = sum.join(moved);
        }
        layers.push(LayerCost { layer: layer.clone(), cost });
    }
    let memories = [held.bytes, held.f32_bytes].map(Memory::of);
    let mut total = StepCost::default();
    for LayerCost { cost, .. } in &mut layers {
        total.add(cost);
        cost.estimate(memories);
    }
    total.estimate(memories);
    Cost { layers, total }
}

/// The products of a layer. Each of the three multiplies as many pairs.
fn products_of(tensors: &[PlannedTensor], planned: &PlannedProducts) -> Vec<ProductCost> {
    let find = |role| tensors.iter().find(|t| t.role == role).expect("a product has its tensors");
    let [x, w, y, dy] = [Role::Input, Role::Weight, Role::Output, Role::OutputGrad].map(find);
    // Every element of `y` is a sum of products with all weights of its channel.
    let channel: usize = w.shape[1..].iter().product();
    let macs = (y.shape.iter().product::<usize>() * channel) as u64;
    let [x, w, dy] = [x, w, dy].map(|tensor| Operand::of(&tensor.scheme));
    let all: [(Role, Option<Choice>, [&Operand; 2]); 3] = [
        (Role::Output, Some(planned.y), [&x, &w]),
        (Role::InputGrad, planned.dx, [&dy, &w]),
        (Role::WeightGrad, Some(planned.dw), [&x, &dy]),
    ];
    let cost = |(product, choice, [left, right]): (Role, Option<Choice>, [&Operand; 2])| {
        Some(ProductCost {
            product,
            factors: [left, right].map(|operand| operand.name.clone().into_owned()),
            kind: choice?.kind,
            macs,
            picojoules: left.picojoules(right),
        })
    };
    all.into_iter().filter_map(cost).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Compute;
    use crate::optimizers::OptimizerConfig;
    use crate::plan::{PlanRequest, Saved};
    use crate::rules::Rule;

    fn plan(model: &str, image: [usize; 3], batch: usize, keys: &[(&str, &str)]) -> Plan {
        let request = request(image, batch, keys);
        (crate::models::find(model).unwrap().plan)(&request).unwrap()
    }

    fn request(image: [usize; 3], batch: usize, keys: &[(&str, &str)]) -> PlanRequest {
        let pairs = keys.iter().map(|(k, s)| ((*k).to_owned(), serde_json::json!(s)));
        let all = pairs.chain([("layers".to_owned(), serde_json::json!("*"))]);
        let rule = (!keys.is_empty())
            .then(|| serde_json::from_value::<Rule>(all.collect()).expect("a rule"));
        PlanRequest {
            image,
            classes: 10,
            batch,
            rules: rule.into_iter().collect(),
            device: "flex".into(),
            compute: Compute::Auto,
            optimizer: OptimizerConfig::default(),
            exchange: None,
            saved: Saved::default(),
        }
    }

    fn macs(cost: &StepCost, product: Role) -> u64 {
        cost.products.iter().filter(|p| p.product == product).map(|p| p.macs).sum()
    }

    fn is_near(value: f64, expected: f64) {
        assert!((value / expected - 1.0).abs() < 1e-9, "{value} is not {expected}");
    }

    #[test]
    fn resnet20_multiplies_as_often_as_its_literature_says() {
        // 40.55 M for an image, with shortcuts that have no weights; the first layer of 442,368 has no `dx`.
        let Cost { total, layers } = cost(&plan("resnet20", [3, 32, 32], 1, &[]));
        assert_eq!(macs(&total, Role::Output), 40_551_040);
        assert_eq!(macs(&total, Role::InputGrad), 40_551_040 - 442_368);
        assert_eq!(macs(&total, Role::WeightGrad), 40_551_040);
        assert_eq!(layers.iter().map(|l| l.cost.macs()).sum::<u64>(), total.macs());
    }

    #[test]
    fn lenet_is_counted_by_hand() {
        let batch = 2;
        let cost = cost(&plan("lenet", [1, 28, 28], batch, &[("default", "int8"), ("d", "e5m2")]));
        let forward: Vec<u64> = cost.layers.iter().map(|l| macs(&l.cost, Role::Output)).collect();
        let by_hand = [28 * 28 * 6 * 25, 14 * 14 * 16 * 6 * 25, 784 * 120, 120 * 84, 84 * 10];
        assert_eq!(forward, by_hand.map(|macs| macs * batch as u64));
        let factors = cost.total.products.iter().map(|p| p.factors.join(" x "));
        assert_eq!(factors.collect::<Vec<_>>(), ["int8 x int8", "int8 x e5m2", "e5m2 x int8"]);
        // fc3: w 84 x 10 and b 10 with scales of 4 bytes each; x 84, y and dy 10, dx 84 for each of 2 images.
        let moved = &cost.layers[4].cost.moved;
        let is =
            |traffic, bytes, f32_bytes| assert_eq!(moved[&traffic], Moved { bytes, f32_bytes });
        is(Traffic::Weights, 3 * 844 + 2 * 14 + 2 * (3360 + 40), 4 * 3360 + 3 * 40);
        is(Traffic::Activations, 2 * (168 + 4) + (20 + 4), 4 * (2 * 168 + 20));
        is(Traffic::Gradients, 2 * 20 + 168 + 2 * 840 + 2 * 10, 4 * (2 * 20 + 168 + 2 * 850));
        is(Traffic::OptimizerState, 2 * 3400, 2 * 3400);
        assert_eq!(cost.total.moved.len(), 4);
    }

    #[test]
    fn messages_are_counted_and_have_no_energy() {
        let plain = request([1, 28, 28], 8, &[]);
        let workers = serde_json::json!({"workers": 2, "up": "int8"});
        let exchange = Some(serde_json::from_value(workers).unwrap());
        let lenet = crate::models::find("lenet").unwrap().plan;
        let with = cost(&lenet(&PlanRequest { exchange, ..plain.clone() }).unwrap());
        // fc3: two workers send 840 and 10 values with a scale each, and get them back in f32.
        let sent = with.layers[4].cost.moved[&Traffic::Exchange];
        assert_eq!(sent.bytes, 2 * (844 + 14) + 4 * 850);
        assert_eq!(sent.f32_bytes, 2 * 4 * 850 + 4 * 850);
        assert_eq!(with.total.energy, cost(&lenet(&plain).unwrap()).total.energy);
    }

    #[test]
    fn energy_follows_from_the_published_figures() {
        let each = |left: &str, right: &str| {
            let [left, right] = [left, right].map(|s| Operand::of(&s.parse().unwrap()));
            left.picojoules(&right)
        };
        // A multiplication and an addition, as published.
        is_near(each("f32", "f32"), 3.7 + 0.9);
        is_near(each("f16", "f16"), 1.1 + 0.9);
        is_near(each("int8", "int8/channel"), 0.2 + 0.1);
        // Between them and beyond: 0.2 (4/8)^1.97710, 1.1 (4/11)^1.55484 and 1.1 (sqrt(4 * 3) / 11)^1.55484.
        assert!((each("int4", "int4") - 0.1 - 0.050_80).abs() < 1e-5, "{}", each("int4", "int4"));
        assert!((each("e4m3fn", "e4m3fn") - 0.9 - 0.228_19).abs() < 1e-5);
        assert!((each("e4m3fn", "e5m2") - 0.9 - 0.182_46).abs() < 1e-5);
        // Blocks under a shared exponent multiply integers; what has no codes is decoded.
        assert_eq!(each("mxint8", "int8"), each("int8", "int8"));
        assert_eq!(each("top_k:10%", "nf4"), each("f32", "f32"));

        let float = cost(&plan("lenet", [1, 28, 28], 1, &[])).total;
        // 693,000 products there, as many for dw, and for dx all but the 117,600 of the first layer.
        is_near(float.energy.arithmetic_mj, (3.0 * 693e3 - 117_600.0) * 4.6e-9);
        assert_eq!(float.energy, float.f32_energy);
        let words = float.all_moved().bytes as f64 / 8.0;
        is_near(float.energy.memory_mj[0], words * 1.3e-6);
        is_near(float.energy.memory_mj[1], words * 2.6e-6);
    }

    #[test]
    fn a_step_lies_in_the_smallest_memory_that_holds_it() {
        let of = |bytes: usize| Memory::of(bytes).name;
        assert_eq!(of(0), "a cache of 8 KB");
        assert_eq!(of(8193), "a cache of 32 KB");
        assert_eq!(of((1 << 20) + 1), "DRAM");
        // LeNet's weights, gradients and momenta are 107,786 values each; a byte each but for masters fits 1 MB.
        let keys = [("default", "int8"), ("d", "int8"), ("m", "int8")];
        let small = cost(&plan("lenet", [1, 28, 28], 1, &keys)).total;
        assert_eq!(small.energy.memory, "a cache of 1 MB");
        assert_eq!(small.f32_energy.memory, "DRAM");
    }
}
