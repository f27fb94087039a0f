//! A quantization as a page: one file of HTML.

use serde::Serialize;

use super::Outcome;
use crate::page::{self, PageError, grouped};
use scrimp_onnx::State;

/// Errors of this many dB or more fill a bar; a float has about as many.
const FULL_DB: f64 = 60.0;
/// The width of a full bar, in letters.
const FULL_BAR: f64 = 18.0;

/// The page of an outcome. `facts` is a line on model, target and data.
///
/// # Errors
/// [`PageError`], which is a defect.
pub fn render(
    title: &str,
    facts: &str,
    outcome: &Outcome,
    [before, bytes]: [u64; 2],
) -> Result<String, PageError> {
    page::render(
        include_str!("page.html"),
        &Page {
            title: title.into(),
            facts: facts.into(),
            summary: summary(outcome, [before, bytes]),
            layers: outcome.layers.iter().map(|l| Level::of(&l.node, &l.op, l.sqnr_db)).collect(),
            tensors: tensors(outcome),
            weights: weights(outcome),
            nodes: outcome
                .quantized
                .plan
                .nodes
                .iter()
                .map(|node| Node {
                    name: node.name.clone(),
                    op: node.op.clone(),
                    state: state(node.state),
                })
                .collect(),
        },
    )
}

#[derive(Serialize)]
struct Page {
    title: String,
    facts: String,
    summary: Vec<Fact>,
    layers: Vec<Level>,
    tensors: Vec<Level>,
    weights: Vec<Weight>,
    nodes: Vec<Node>,
}

#[derive(Serialize)]
struct Fact {
    label: String,
    value: String,
    note: String,
}

/// A name and how far it is from the float model.
#[derive(Serialize)]
struct Level {
    name: String,
    op: String,
    text: String,
    sort: f64,
    bar: f64,
    scale: String,
    zero: String,
}

impl Level {
    fn of(name: &str, op: &str, db: f64) -> Self {
        let shown = if db.is_finite() { format!("{db:.1}") } else { "exact".into() };
        Self {
            name: name.into(),
            op: op.into(),
            text: shown,
            sort: db.clamp(-1e6, 1e6),
            bar: db.clamp(0.0, FULL_DB) / FULL_DB * FULL_BAR,
            scale: String::new(),
            zero: String::new(),
        }
    }
}

#[derive(Serialize)]
struct Weight {
    name: String,
    shape: String,
    scheme: String,
    before: u64,
    before_text: String,
    bytes: u64,
    bytes_text: String,
    bits: String,
}

#[derive(Serialize)]
struct Node {
    name: String,
    op: String,
    state: String,
}

fn state(state: State) -> String {
    match state {
        State::Quantized => "integers".into(),
        State::Weights => "weights as codes, computed in floats".into(),
        State::Passing => "passes codes on".into(),
        State::Cut => "joined with the codes of its output".into(),
        State::Float(why) => format!("float: {}", why.text()),
    }
}

fn summary(outcome: &Outcome, [before, bytes]: [u64; 2]) -> Vec<Fact> {
    let fact = |label: &str, value: String, note: String| Fact { label: label.into(), value, note };
    let mut facts = vec![fact(
        "file bytes",
        grouped(bytes),
        format!("float {} ({:.2}x)", grouped(before), before as f64 / bytes as f64),
    )];
    if let Some(comparison) = &outcome.comparison {
        if let Some(classes) = comparison.classes {
            if let (Some(float), Some(now)) = (classes.float, classes.quantized) {
                let text = format!("{:.2} %", 100.0 * now);
                facts.push(fact("top-1", text, format!("float {:.2} %", 100.0 * float)));
            }
            let text = format!("{:.2} %", 100.0 * classes.same);
            facts.push(fact("same top-1 as float", text, String::new()));
        }
        for output in &comparison.outputs {
            facts.push(fact(
                &format!("signal to noise of {}", output.name),
                format!("{:.1} dB", output.sqnr_db),
                format!("largest difference {:.3}", output.largest),
            ));
        }
    }
    for latency in &outcome.latency {
        facts.push(fact(
            &format!("latency, batch {}", latency.batch),
            format!("{:.2} ms", latency.quantized_ms),
            format!("float {:.2} ms", latency.float_ms),
        ));
    }
    facts
}

fn tensors(outcome: &Outcome) -> Vec<Level> {
    outcome
        .tensors
        .iter()
        .map(|tensor| {
            let mut level = Level::of(&tensor.tensor, "", tensor.sqnr_db);
            let groups = outcome.quantized.plan.activations.iter().zip(&outcome.quantized.grids);
            for (group, grid) in groups {
                if group.tensors.contains(&tensor.tensor) {
                    level.scale = format!("{:.4e}", grid.scale);
                    level.zero = grid.zero.to_string();
                }
            }
            level
        })
        .collect()
}

fn weights(outcome: &Outcome) -> Vec<Weight> {
    let quantized = &outcome.quantized;
    quantized
        .plan
        .weights
        .iter()
        .zip(&quantized.weights)
        .map(|(weight, packed)| {
            let values = packed.codes.len() as u64;
            let bytes = packed.bytes() as u64;
            let shape: Vec<String> = packed.shape.iter().map(usize::to_string).collect();
            Weight {
                name: weight.tensor.clone(),
                shape: format!("[{}]", shape.join(",")),
                scheme: weight.spec.text.clone(),
                before: 4 * values,
                before_text: grouped(4 * values),
                bytes,
                bytes_text: grouped(bytes),
                bits: format!("{:.2}", 8.0 * bytes as f64 / values.max(1) as f64),
            }
        })
        .collect()
}
