//! Whether a runtime computes what the network does.

use scrimp_files::{Dtype, Tensor, TensorError};
use scrimp_onnx::proto::NodeProto;
use scrimp_onnx::{Engine, LoadOptions, Value};
use scrimp_train::data::{Loader, Splits};
use scrimp_train::models;
use scrimp_train::plan::PlanRequest;

use super::{ExportError, Exported, INPUT, OUTPUT, evaluator};
use crate::run::TrainedRun;

/// What a runtime made of a model.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Check {
    /// The runtime and its version.
    pub engine: String,
    /// Test images that both were given.
    pub images: usize,
    /// The largest difference of two logits, as a share of the largest logit.
    pub difference: f64,
    /// The same in steps of the output's scale, where the output is rounded.
    pub steps: Option<f64>,
    /// Images to which both give the same class.
    pub same_class: usize,
}

/// What the network answers to images.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// `[images, channels, height, width]`
    pub shape: [usize; 4],
    /// Normalized images.
    pub input: Vec<f32>,
    /// `[images, classes]`
    pub logits: Vec<f32>,
    /// The classes of the images.
    pub labels: Vec<u8>,
}

/// A float model is as near as this to the network; what is left is the order of sums.
const FLOAT_SLACK: f64 = 1e-3;

impl Exported {
    /// What the network, rounded as the model is, answers to the first test images.
    ///
    /// # Errors
    /// If a scheme cannot hold a value.
    ///
    /// # Panics
    /// If the recipe's model does not exist, which reading it has checked.
    pub fn reference(
        &self,
        run: &TrainedRun,
        device: &str,
        images: usize,
    ) -> Result<Reference, ExportError> {
        let recipe = &run.source.recipe;
        let entry = models::find(&recipe.model).expect("the model was checked");
        let mut plan = run.variant.request(recipe, device);
        if self.tensors.is_empty() {
            plan = PlanRequest { rules: Vec::new(), ..plan };
        }
        let mut network = evaluator(entry, run, plan, self.held.clone())?;
        let Splits { test, mean, std, .. } = &*self.splits;
        let loader = Loader::new(test, mean, std);
        let count = images.min(test.len());
        let indices: Vec<u32> = (0..u32::try_from(count).unwrap_or(u32::MAX)).collect();
        let mut input = vec![0.0; count * test.image_len()];
        loader.fill(&indices, 0, &mut input);
        let mut logits = Vec::new();
        for part in input.chunks(recipe.batch * test.image_len()) {
            logits.extend(network.logits(part).map_err(ExportError::Problem)?);
        }
        Ok(Reference {
            shape: [count, test.channels, test.height, test.width],
            input,
            logits,
            labels: loader.labels(&indices).collect(),
        })
    }

    /// Runs the model, and compares its logits with those of the network.
    ///
    /// # Errors
    /// If the runtime does not run it, or if a float model computes something else.
    pub fn check(&self, reference: &Reference, engine: &dyn Engine) -> Result<Check, ExportError> {
        let Reference { shape, input, logits, labels } = reference;
        let options = LoadOptions::default();
        let mut session = engine.load(&self.model, &[OUTPUT.to_owned()], options)?;
        let value = Value::f32(shape.to_vec(), input.clone());
        let given = session.run(&[(INPUT, &value)])?;
        let given = given.first().and_then(Value::as_f32).unwrap_or_default();
        let classes = logits.len() / labels.len().max(1);
        let largest = logits.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let distance = if given.len() == logits.len() {
            given
                .iter()
                .zip(logits)
                .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
                // NaN differs from all.
                .fold(0.0, |most, d| if d <= most { most } else { d })
        } else {
            f64::NAN
        };
        let difference = distance / f64::from(largest).max(f64::MIN_POSITIVE);
        if self.tensors.is_empty() && (difference.is_nan() || difference > FLOAT_SLACK) {
            return Err(ExportError::Differs { difference });
        }
        let same = |(a, b): &(&[f32], &[f32])| class(a) == class(b);
        let rows = given.chunks(classes.max(1)).zip(logits.chunks(classes.max(1)));
        Ok(Check {
            engine: engine.version(),
            images: labels.len(),
            difference,
            steps: self.output_scale().map(|scale| distance / f64::from(scale)),
            same_class: rows.filter(same).count(),
        })
    }

    /// The scale of the logits, where they are rounded.
    fn output_scale(&self) -> Option<f32> {
        let graph = self.model.graph();
        let last = graph.node.iter().find(|node| node.output.iter().any(|o| o == OUTPUT))?;
        let is_pair = last.is("DequantizeLinear");
        let scale = last.arg(1).filter(|_| is_pair).and_then(|name| graph.constant(name))?;
        scale.to_f32().ok()?.first().copied()
    }

    /// Bytes of the parameters: codes, scales and zero points, and what stays in f32.
    pub fn parameter_bytes(&self) -> usize {
        let graph = self.model.graph();
        let is_float = |name: &str| !name.contains('/');
        let floats = graph.initializer.iter().filter(|t| is_float(t.name()));
        // What a parameter is read from by way of a DequantizeLinear; one of an activation reads a value.
        let constant = |name: &String| graph.constant(name);
        let reads = |node: &&NodeProto| {
            node.is("DequantizeLinear") && node.input.first().and_then(constant).is_some()
        };
        let codes =
            graph.node.iter().filter(reads).flat_map(|n| n.input.iter().filter_map(constant));
        floats.chain(codes).filter_map(|t| t.raw_data.as_deref()).map(<[u8]>::len).sum()
    }
}

fn class(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

impl Reference {
    /// The tensors `input`, `logits` and `labels`, for a file.
    ///
    /// # Errors
    /// If they are too large for one.
    pub fn tensors(&self) -> Result<Vec<Tensor>, TensorError> {
        let images = self.labels.len();
        let classes = self.logits.len() / images.max(1);
        Ok(vec![
            Tensor::from_f32("input", self.shape.to_vec(), Dtype::F32, &self.input)?,
            Tensor::from_f32("logits", vec![images, classes], Dtype::F32, &self.logits)?,
            Tensor::new("labels", vec![images], Dtype::U8, self.labels.clone())?,
        ])
    }
}
