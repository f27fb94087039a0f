//! The parameters and buffers of a network by name, in the names that PyTorch gives them.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::engine;

/// Follows a traversal and names what it meets.
#[derive(Debug, Default)]
pub(crate) struct Path(Vec<String>);

impl Path {
    pub fn enter(&mut self, name: &str, container: &str) {
        // Batch and layer norm call their scale and shift gamma and beta; checkpoints call them weight and bias.
        let name = match name {
            "gamma" if container.ends_with("Norm") => "weight",
            "beta" if container.ends_with("Norm") => "bias",
            other => other,
        };
        self.0.push(name.to_owned());
    }

    pub fn exit(&mut self) {
        self.0.pop();
    }

    pub fn name(&self) -> String {
        self.0.join(".")
    }
}

/// A float parameter or buffer of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Its path, e.g. `layer1.0.bn1.running_mean`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// The float parameters and buffers of a network, in the order of its fields.
pub fn tensors<M: Module>(module: &M) -> Vec<NamedTensor> {
    struct Collect {
        path: Path,
        found: Vec<NamedTensor>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.base().without_autodiff();
            let shape = tensor.dims().to_vec();
            self.found.push(NamedTensor {
                name: self.path.name(),
                shape,
                values: engine::values_of(tensor),
            });
        }
    }
    // Running statistics lag one update behind until they are synchronized, which `valid` does.
    let mut collect = Collect { path: Path::default(), found: Vec::new() };
    module.valid().visit(&mut collect);
    collect.found
}

/// Names and shapes of the float parameters and buffers of a network, in the order of its fields.
pub fn shapes<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    struct Collect {
        path: Path,
        found: Vec<(String, Vec<usize>)>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.found.push((self.path.name(), param.base().dims().to_vec()));
        }
    }
    let mut collect = Collect { path: Path::default(), found: Vec::new() };
    module.visit(&mut collect);
    collect.found
}

/// The first value that is not finite, among trained parameters or among all: its tensor's name, its index, and itself.
pub(crate) fn not_finite<M: Module>(
    module: &M,
    only_trained: bool,
) -> Option<(String, usize, f32)> {
    struct Search {
        path: Path,
        only_trained: bool,
        found: Option<(String, usize, f32)>,
    }
    impl ModuleVisitor for Search {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.base();
            if self.found.is_some() || (self.only_trained && !tensor.is_require_grad()) {
                return;
            }
            let at = |values: &[f32]| {
                let index = values.iter().position(|v| !v.is_finite())?;
                Some((index, values[index]))
            };
            let found = engine::with_values(tensor.without_autodiff(), at);
            self.found = found.map(|(index, value)| (self.path.name(), index, value));
        }
    }
    let mut search = Search { path: Path::default(), only_trained, found: None };
    module.visit(&mut search);
    search.found
}

/// What loading did with every key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Keys that were loaded.
    pub used: Vec<String>,
    /// Tensors of the network that the file lacks.
    pub missing: Vec<String>,
    /// Keys of the file that the network lacks.
    pub unexpected: Vec<String>,
}

/// A tensor of the wrong shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("`{name}` has shape {actual:?} in the file and {expected:?} in the network")]
pub struct ShapeMismatch {
    /// The tensor.
    pub name: String,
    /// The network's shape.
    pub expected: Vec<usize>,
    /// The file's shape.
    pub actual: Vec<usize>,
}

/// Replaces the parameters and buffers of a network by those in `tensors`, by name.
///
/// # Errors
/// If a shape differs.
pub fn load<M: Module>(
    module: M,
    tensors: impl IntoIterator<Item = NamedTensor>,
) -> Result<(M, LoadReport), ShapeMismatch> {
    struct Replace {
        path: Path,
        tensors: BTreeMap<String, NamedTensor>,
        report: LoadReport,
        mismatch: Option<ShapeMismatch>,
    }
    impl ModuleMapper for Replace {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let name = self.path.name();
            let Some(new) = self.tensors.remove(&name) else {
                self.report.missing.push(name);
                return param;
            };
            param.map(|old| {
                let expected = old.dims().to_vec();
                if expected != new.shape {
                    let actual = new.shape;
                    self.mismatch.get_or_insert(ShapeMismatch { name, expected, actual });
                    return old;
                }
                self.report.used.push(name);
                let data = TensorData::new(new.values, old.dims());
                Tensor::from_data(data, &old.device()).set_require_grad(old.is_require_grad())
            })
        }
    }
    let tensors = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
    let mut replace =
        Replace { path: Path::default(), tensors, report: LoadReport::default(), mismatch: None };
    let module = module.map(&mut replace);
    if let Some(mismatch) = replace.mismatch {
        return Err(mismatch);
    }
    let mut report = replace.report;
    report.unexpected = replace.tensors.into_keys().collect();
    Ok((module, report))
}
