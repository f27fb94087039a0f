//! ONNX Runtime, from a library that is found when the program runs.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;
use ort::session::Session as Loaded;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{DynValue, TensorElementType, TensorRef};

use super::{Engine, EngineError, LoadOptions, Session};
use crate::value::Data;
use crate::{Model, Value};

const NAME: &str = "ONNX Runtime";
/// Names the library, as for other programs that load it.
const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// The engine.
#[derive(Debug)]
pub(super) struct OnnxRuntime {
    environment: Environment,
    version: String,
}

/// A process loads the library once; the environment is kept for all sessions.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

impl OnnxRuntime {
    pub(super) fn open(library: Option<&Path>) -> Result<Self, EngineError> {
        let missing = |reason: String| EngineError::Unavailable { engine: NAME, reason };
        let path = match library {
            Some(path) => path.to_owned(),
            None => find().ok_or_else(|| {
                missing(format!(
                    "no libonnxruntime was found; `pip install onnxruntime` brings one, and {LIBRARY_VARIABLE} can name it"
                ))
            })?,
        };
        if !path.is_file() {
            return Err(missing(format!("{} is not a file", path.display())));
        }
        let mut kept = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
        let environment = if let Some(environment) = &*kept {
            environment.clone()
        } else {
            let environment = ort::init_from(&path)
                .map_err(|error| missing(error.to_string()))?
                .with_telemetry(false)
                .build()
                .map_err(|error| missing(error.to_string()))?;
            kept.insert(environment).clone()
        };
        let version = version_of(&path);
        Ok(Self { environment, version })
    }
}

/// Where the library is usually found: where the variable says, beside the program, or in a Python environment.
fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(LIBRARY_VARIABLE) {
        return Some(path.into());
    }
    let file = |folder: &Path| -> Option<PathBuf> {
        let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.starts_with("libonnxruntime.so")
                    || (name.starts_with("libonnxruntime.") && name.ends_with("dylib"))
                    || name == "onnxruntime.dll"
            })
            .collect();
        found.sort();
        found.pop()
    };
    let beside = std::env::current_exe().ok();
    if let Some(found) = beside.as_deref().and_then(Path::parent).and_then(file) {
        return Some(found);
    }
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os);
    for environment in environments {
        let lib = Path::new(&environment).join("lib");
        for entry in std::fs::read_dir(&lib).into_iter().flatten().flatten() {
            let wheel = entry.path().join("site-packages/onnxruntime/capi");
            if let Some(found) = file(&wheel) {
                return Some(found);
            }
        }
    }
    ["/usr/local/lib", "/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
        .iter()
        .find_map(|folder| file(Path::new(folder)))
}

/// The name of the library ends with its version.
fn version_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let digits = name.split_once(".so.").map(|(_, version)| version);
    digits.map_or_else(|| "onnxruntime".into(), |version| format!("onnxruntime {version}"))
}

impl Engine for OnnxRuntime {
    fn version(&self) -> String {
        self.version.clone()
    }

    fn is_deployed(&self) -> bool {
        true
    }

    fn runs_weights(&self, name: &str) -> bool {
        // Its processor kernels of DequantizeLinear have every type but floats of four bits.
        !["e2m1fn", "mxfp4"].contains(&name)
    }

    fn load(
        &self,
        model: &Model,
        outputs: &[String],
        options: LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        let refused = |reason: String| EngineError::Load { engine: NAME, reason };
        let mut copy = super::with_outputs(model, outputs);
        copy.load_external().map_err(|error| refused(error.to_string()))?;
        let level = if options.optimize {
            GraphOptimizationLevel::All
        } else {
            GraphOptimizationLevel::Disable
        };
        let build = || -> ort::Result<Loaded> {
            let mut builder = Loaded::builder(&self.environment)?
                .with_optimization_level(level)?
                .with_intra_threads(options.threads)?
                .with_intra_op_spinning(false)?
                // Without it, products with weights of few bits round the activations too.
                .with_config_entry("session.qdq_matmulnbits_accuracy_level", "1")?
                // Buffers go back to the system, so that memory does not grow with what a batch once needed.
                .with_memory_pattern(false)?;
            builder.commit_from_memory(&copy.to_bytes())
        };
        let loaded = build().map_err(|error| refused(error.to_string()))?;
        Ok(Box::new(OrtSession { loaded }))
    }
}

#[derive(Debug)]
struct OrtSession {
    loaded: Loaded,
}

impl Session for OrtSession {
    fn run(&mut self, inputs: &[(&str, &Value)]) -> Result<Vec<Value>, EngineError> {
        let failed = |reason: String| EngineError::Run { engine: NAME, reason };
        let given = inputs
            .iter()
            .map(|(name, value)| {
                let value =
                    to_theirs(value).map_err(|error| failed(format!("input `{name}`: {error}")))?;
                Ok(((*name).to_owned(), value))
            })
            .collect::<Result<Vec<(String, ort::session::SessionInputValue<'_>)>, EngineError>>()?;
        let results = self.loaded.run(given).map_err(|error| failed(error.to_string()))?;
        // Each of theirs is given back once it is copied, so that no more than one of them is there twice.
        results
            .into_iter()
            .map(|(name, value)| {
                from_theirs(&value).map_err(|error| failed(format!("output `{name}`: {error}")))
            })
            .collect()
    }
}

fn to_theirs(value: &Value) -> Result<ort::session::SessionInputValue<'_>, String> {
    let shape = value.shape.clone();
    macro_rules! view {
        ($values:expr) => {
            TensorRef::from_array_view((shape, $values.as_slice()))
                .map_err(|error| error.to_string())?
                .into()
        };
    }
    Ok(match &value.data {
        Data::F32(v) => view!(v),
        Data::F64(v) => view!(v),
        Data::I64(v) => view!(v),
        Data::I32(v) => view!(v),
        Data::I8(v) => view!(v),
        Data::U8(v) => view!(v),
        Data::Bool(v) => view!(v),
    })
}

fn from_theirs(value: &DynValue) -> Result<Value, String> {
    let kind = value.dtype().tensor_type().ok_or("it is not a tensor")?;
    macro_rules! copy {
        ($variant:ident, $type:ty) => {{
            let (shape, values) = value.try_extract_tensor::<$type>().map_err(|e| e.to_string())?;
            let shape = shape.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
            Value { shape, data: Data::$variant(values.to_vec()) }
        }};
    }
    Ok(match kind {
        TensorElementType::Float32 => copy!(F32, f32),
        TensorElementType::Float64 => copy!(F64, f64),
        TensorElementType::Int64 => copy!(I64, i64),
        TensorElementType::Int32 => copy!(I32, i32),
        TensorElementType::Int8 => copy!(I8, i8),
        TensorElementType::Uint8 => copy!(U8, u8),
        TensorElementType::Bool => copy!(Bool, bool),
        other => return Err(format!("values of type {other:?} are not supported")),
    })
}
