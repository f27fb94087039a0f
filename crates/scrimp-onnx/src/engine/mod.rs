//! Programs that run a model: what a quantizer sees of them.

#[cfg(feature = "engine-ort")]
mod onnx_runtime;
#[cfg(feature = "engine-rten")]
mod rten;

use std::fmt::Debug;
use std::path::PathBuf;

use crate::{Model, Value};

/// Why an engine would not load or run a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The engine is not there.
    #[error("{engine} is not available: {reason}")]
    Unavailable {
        /// The engine.
        engine: &'static str,
        /// Why, and what would help.
        reason: String,
    },
    /// The model was refused.
    #[error("{engine} does not load the model: {reason}")]
    Load {
        /// The engine.
        engine: &'static str,
        /// What it said.
        reason: String,
    },
    /// A run failed.
    #[error("{engine} failed while it ran the model: {reason}")]
    Run {
        /// The engine.
        engine: &'static str,
        /// What it said.
        reason: String,
    },
}

/// How a model is to be loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Threads of one run.
    pub threads: usize,
    /// Whether the engine may rewrite the graph. Weight-only models are compared without: some engines round the
    /// activations too when they fuse.
    pub optimize: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { threads: 2, optimize: true }
    }
}

/// A program that runs models.
pub trait Engine: Debug + Send + Sync {
    /// Its name and version.
    fn version(&self) -> String;
    /// Whether what it runs is what users deploy, so that its time and its refusals mean something.
    fn is_deployed(&self) -> bool;
    /// Whether it runs a model with weights of this scheme; the name is that of a [`Spec`](crate::Spec).
    fn runs_weights(&self, name: &str) -> bool;
    /// Loads a model, which gives `outputs` besides its own outputs' order: exactly these values, in this order.
    ///
    /// # Errors
    /// If the engine does not load it.
    fn load(
        &self,
        model: &Model,
        outputs: &[String],
        options: LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError>;
}

/// A loaded model.
pub trait Session: Debug + Send {
    /// Runs the model on named inputs, and gives the outputs in the order that was asked for.
    ///
    /// # Errors
    /// If an input is missing, or has a shape or type that the model refuses.
    fn run(&mut self, inputs: &[(&str, &Value)]) -> Result<Vec<Value>, EngineError>;
}

/// Which engine is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// ONNX Runtime where it is found, else rten.
    #[default]
    Best,
    /// rten.
    Rten,
    /// ONNX Runtime, from this library or from where it is usually found.
    OnnxRuntime(Option<PathBuf>),
}

/// The engine of that choice.
///
/// # Errors
/// If it is not built in or its library is not found.
pub fn open(choice: &Choice) -> Result<Box<dyn Engine>, EngineError> {
    match choice {
        Choice::Best => open(&Choice::OnnxRuntime(None)).or_else(|_| open(&Choice::Rten)),
        #[cfg(feature = "engine-rten")]
        Choice::Rten => Ok(Box::new(rten::Rten)),
        #[cfg(not(feature = "engine-rten"))]
        Choice::Rten => Err(EngineError::Unavailable {
            engine: "rten",
            reason: "this build has no `engine-rten` feature".into(),
        }),
        #[cfg(feature = "engine-ort")]
        Choice::OnnxRuntime(library) => {
            Ok(Box::new(onnx_runtime::OnnxRuntime::open(library.as_deref())?))
        }
        #[cfg(not(feature = "engine-ort"))]
        Choice::OnnxRuntime(_) => Err(EngineError::Unavailable {
            engine: "ONNX Runtime",
            reason: "this build has no `engine-ort` feature".into(),
        }),
    }
}

/// A copy of the model whose outputs are exactly these values.
#[cfg(feature = "engine-ort")]
fn with_outputs(model: &Model, outputs: &[String]) -> Model {
    let mut model = model.clone();
    let graph = model.graph_mut();
    let known: std::collections::HashMap<String, crate::proto::ValueInfoProto> = graph
        .output
        .drain(..)
        .chain(graph.input.iter().cloned())
        .map(|v| (v.name().to_owned(), v))
        .collect();
    // The engine infers the types of intermediate values by itself; a name is enough for it.
    graph.output = outputs
        .iter()
        .map(|name| {
            known.get(name).cloned().unwrap_or_else(|| crate::proto::ValueInfoProto {
                name: Some(name.clone()),
                ..Default::default()
            })
        })
        .collect();
    model
}
