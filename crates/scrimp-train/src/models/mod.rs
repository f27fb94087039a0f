//! Networks: one file each, one row each in [`MODELS`].

mod basic_block;
mod lenet;
mod mlp;
mod resnet18;
mod resnet20;
mod text_transformer;

use burn::module::Module;
use burn::tensor::{Device, Tensor};

pub use lenet::LeNet;
pub use mlp::Mlp;
pub use resnet18::ResNet18;
pub use resnet20::ResNet20;
pub use text_transformer::{TextTransformer, TextTransformerOptions};

use crate::plan::{Plan, PlanError, PlanRequest};
use crate::stepper::{self, StepJob, Stepper};
use crate::tap::Scope;
use crate::trainer::{self, Observer, Outcome, TrainError, TrainJob};

/// A network that can be trained on images.
pub trait Network: Module + 'static {
    /// The key in a recipe.
    const NAME: &'static str;
    /// One sentence with the source.
    const ABOUT: &'static str;

    /// Whether the network takes images of this size, and if not, which it takes.
    ///
    /// # Errors
    /// What would be valid.
    fn accepts(image: [usize; 3]) -> Result<(), String>;

    /// Builds the network for images `[channels, height, width]`.
    fn build(image: [usize; 3], classes: usize, scope: &Scope, device: &Device) -> Self;

    /// The forward pass.
    ///
    /// # Shapes
    /// - `x`: `[batch, channels, height, width]`
    /// - result: logits `[batch, classes]`
    fn forward(&self, x: Tensor<4>) -> Tensor<2>;
}

/// A row of [`MODELS`]: what can be done with a network without naming its type.
pub struct ModelEntry {
    /// The key in a recipe.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// Whether the network takes images of this size.
    pub accepts: fn([usize; 3]) -> Result<(), String>,
    /// Resolves rules against the network's layers.
    pub plan: fn(&PlanRequest) -> Result<Plan, PlanError>,
    /// Builds the network to time its training steps.
    pub stepper: fn(&StepJob) -> Result<Box<dyn Stepper>, PlanError>,
    /// Trains, or only evaluates where the job has no epochs.
    pub train: fn(&TrainJob, &mut dyn Observer) -> Result<Outcome, TrainError>,
}

impl ModelEntry {
    const fn of<N: Network>() -> Self {
        Self {
            name: N::NAME,
            about: N::ABOUT,
            accepts: N::accepts,
            plan: crate::plan::plan_network::<N>,
            stepper: stepper::stepper::<N>,
            train: trainer::train::<N>,
        }
    }
}

/// All networks.
pub static MODELS: &[ModelEntry] = &[
    ModelEntry::of::<Mlp>(),
    ModelEntry::of::<LeNet>(),
    ModelEntry::of::<ResNet20>(),
    ModelEntry::of::<ResNet18>(),
];

/// A model name that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown model `{name}`; {help}")]
pub struct UnknownModel {
    /// The name.
    pub name: String,
    /// The nearest name, or all of them.
    pub help: String,
}

/// The network with this name.
///
/// # Errors
/// Names the nearest.
pub fn find(name: &str) -> Result<&'static ModelEntry, UnknownModel> {
    let names = || MODELS.iter().map(|m| m.name);
    MODELS.iter().find(|m| m.name == name).ok_or_else(|| UnknownModel {
        name: name.to_owned(),
        help: match scrimp_codec::nearest(name, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("models are {}", names().collect::<Vec<_>>().join(", ")),
        },
    })
}
