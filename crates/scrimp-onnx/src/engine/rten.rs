//! rten, an engine in Rust.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rten::Value as Theirs;
use rten::{Model as Loaded, ModelOptions, NodeId, RunOptions, ValueOrView, ValueView};
use rten_tensor::Layout;

use super::{Engine, EngineError, LoadOptions, Session};
use crate::value::Data;
use crate::{Model, Value};

const NAME: &str = "rten";

/// The engine.
#[derive(Debug)]
pub(super) struct Rten;

impl Engine for Rten {
    fn version(&self) -> String {
        "rten 0.27".into()
    }

    fn is_deployed(&self) -> bool {
        false
    }

    fn runs_weights(&self, _name: &str) -> bool {
        // Weights are computed back to floats before it sees them.
        true
    }

    fn load(
        &self,
        model: &Model,
        outputs: &[String],
        options: LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        let refused = |reason: String| EngineError::Load { engine: NAME, reason };
        let mut copy = model.clone();
        copy.load_external().map_err(|error| refused(error.to_string()))?;
        // In this order: the rank of a weight is known once it is a constant.
        crate::simplify::fold_weights(&mut copy).map_err(|error| refused(error.to_string()))?;
        crate::simplify::explicit_attributes(copy.graph_mut());
        let loaded = ModelOptions::with_all_ops()
            .enable_optimization(options.optimize)
            .load(copy.to_bytes())
            .map_err(|error| refused(error.to_string()))?;
        let ids = outputs
            .iter()
            .map(|name| loaded.node_id(name).map_err(|error| refused(error.to_string())))
            .collect::<Result<_, _>>()?;
        let pool = std::sync::Arc::new(rten::ThreadPool::with_num_threads(options.threads));
        Ok(Box::new(RtenSession { loaded, outputs: ids, pool }))
    }
}

struct RtenSession {
    loaded: Loaded,
    outputs: Vec<NodeId>,
    pool: std::sync::Arc<rten::ThreadPool>,
}

impl std::fmt::Debug for RtenSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RtenSession").field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

impl Session for RtenSession {
    fn run(&mut self, inputs: &[(&str, &Value)]) -> Result<Vec<Value>, EngineError> {
        let failed = |reason: String| EngineError::Run { engine: NAME, reason };
        let given = inputs
            .iter()
            .map(|(name, value)| {
                let id = self.loaded.node_id(name).map_err(|error| failed(error.to_string()))?;
                Ok((id, to_theirs(value).map_err(failed)?))
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        let options = RunOptions::default().with_thread_pool(Some(self.pool.clone()));
        // Its fused products panic where a bias has one value for all columns.
        let ran =
            catch_unwind(AssertUnwindSafe(|| self.loaded.run(given, &self.outputs, Some(options))));
        let results = ran
            .map_err(|_| failed("it panicked; ONNX Runtime may run the model".into()))?
            .map_err(|error| failed(error.to_string()))?;
        results.into_iter().map(|value| from_theirs(value).map_err(failed)).collect()
    }
}

/// The engine has 32-bit integers only; wider ones are checked to fit.
fn to_theirs(value: &Value) -> Result<ValueOrView<'_>, String> {
    let shape = &value.shape;
    let narrow = |values: &[i64]| -> Result<Vec<i32>, String> {
        values
            .iter()
            .map(|&v| i32::try_from(v).map_err(|_| format!("{v} does not fit 32 bits")))
            .collect()
    };
    Ok(match &value.data {
        Data::F32(values) => {
            ValueView::from_shape(shape, values).map_err(|error| error.to_string())?.into()
        }
        Data::I64(values) => {
            Theirs::from_shape(shape, narrow(values)?).map_err(|error| error.to_string())?.into()
        }
        Data::I32(values) => {
            ValueView::from_shape(shape, values).map_err(|error| error.to_string())?.into()
        }
        Data::I8(values) => {
            ValueView::from_shape(shape, values).map_err(|error| error.to_string())?.into()
        }
        Data::U8(values) => {
            ValueView::from_shape(shape, values).map_err(|error| error.to_string())?.into()
        }
        Data::Bool(values) => {
            let values: Vec<i32> = values.iter().map(|&v| i32::from(v)).collect();
            Theirs::from_shape(shape, values).map_err(|error| error.to_string())?.into()
        }
        Data::F64(_) => return Err("values of 64 bits are not supported".into()),
    })
}

fn from_theirs(value: Theirs) -> Result<Value, String> {
    Ok(match value {
        Theirs::FloatTensor(t) => {
            Value { shape: t.shape().to_vec(), data: Data::F32(t.into_data()) }
        }
        Theirs::Int32Tensor(t) => {
            Value { shape: t.shape().to_vec(), data: Data::I32(t.into_data()) }
        }
        Theirs::Int8Tensor(t) => Value { shape: t.shape().to_vec(), data: Data::I8(t.into_data()) },
        Theirs::UInt8Tensor(t) => {
            Value { shape: t.shape().to_vec(), data: Data::U8(t.into_data()) }
        }
        _ => return Err("an output is not a tensor".into()),
    })
}
