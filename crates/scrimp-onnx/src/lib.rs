//! Post-training quantization of ONNX models: read a float model, calibrate it on data, write one that runtimes load.

mod engine;
mod error;
mod graph;
mod model;
pub mod proto;
mod simplify;
mod tensor;
mod value;

pub use engine::{Choice, Engine, EngineError, LoadOptions, Session, open as open_engine};
pub use error::OnnxError;
pub use graph::Index;
pub use model::Model;
pub use tensor::DataType;
pub use value::{Data, Value};
