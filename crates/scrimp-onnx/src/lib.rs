//! Post-training quantization of ONNX models: read a float model, calibrate it on data, write one that runtimes load.
//!
//! [`quantize()`] does the whole of it; [`Model`] is a file, [`Data`] what it is calibrated on, [`Engine`] what runs it.

mod batches;
pub mod calibration;
mod config;
mod data;
mod element;
mod engine;
mod equalize;
mod error;
mod facts;
mod gptq;
mod graph;
mod insert;
mod layers;
mod model;
mod opset;
mod patches;
mod plan;
mod profile;
pub mod proto;
mod quantize;
mod rounding;
pub mod rules;
pub mod sensitivity;
pub mod simplify;
mod tensor;
mod value;
pub mod verify;
mod weights;

pub use config::{
    Config, Equalize, Matcher, Mode, NodeRule, Spec, Statistics, WeightRange, WeightRounding,
};
pub use data::Data;
pub use element::Element;
pub use engine::{Choice, Engine, EngineError, LoadOptions, Session, open as open_engine};
pub use error::OnnxError;
pub use graph::Index;
pub use insert::Grid;
pub use model::Model;
pub use opset::upgrade as upgrade_opset;
pub use plan::{ActivationPlan, NodePlan, Plan, State, WeightPlan, Why};
pub use profile::{PROFILES, Profile, find as find_profile};
pub use quantize::{Progress, QuantizeError, Quantized, Watch, quantize};
pub use tensor::DataType;
pub use value::{Data as Elements, Value};
pub use weights::{BLOCKS_SINCE, Layout, POWERS_SINCE, Packed, Sharing};
