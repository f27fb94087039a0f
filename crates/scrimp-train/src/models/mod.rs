//! Networks: one file each, one row each in [`MODELS`].

mod cifar_resnet;
mod inception_v3;
mod lenet;
mod mlp;
mod residual;
mod resnet;
mod text_transformer;
mod vgg_small;

use burn::module::Module;
use burn::tensor::{Device, Tensor};

pub use cifar_resnet::CifarResNet;
pub use inception_v3::InceptionV3;
pub use lenet::LeNet;
pub use mlp::Mlp;
pub use resnet::{ResNet, ResNetOptions};
pub use text_transformer::{TextTransformer, TextTransformerOptions};
pub use vgg_small::VggSmall;

use crate::engine;
use crate::evaluation::{self, EvaluationJob, Evaluator};
use crate::params;
use crate::plan::{self, Plan, PlanError, PlanRequest};
use crate::stepper::{self, StepJob, Stepper};
use crate::tap::Scope;
use crate::trace::{self, Trace};
use crate::trainer::{self, Observer, Outcome, TrainError, TrainJob};
use crate::weights::{FirstValues, WeightsReport};

/// A network that can be trained on images.
pub trait Network: Module + 'static {
    /// What differs between networks of this type.
    type Options: Copy + 'static;

    /// Beginnings of keys that usual checkpoints of this network have for parts that are left out here.
    const LEFT_OUT: &'static [&'static str] = &[];

    /// Whether the network takes images of this size, and if not, which it takes.
    ///
    /// # Errors
    /// What would be valid.
    fn accepts(image: [usize; 3]) -> Result<(), String>;

    /// Builds the network for images `[channels, height, width]`.
    fn build(
        options: &Self::Options,
        image: [usize; 3],
        classes: usize,
        scope: &Scope,
        device: &Device,
    ) -> Self;

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
    /// Says which tensors of the network come from a file.
    pub fit: fn(&PlanRequest, &FirstValues) -> Result<WeightsReport, TrainError>,
    /// Builds the network to time its training steps.
    pub stepper: fn(&StepJob) -> Result<Box<dyn Stepper>, PlanError>,
    /// The network as a graph.
    pub trace: fn(&PlanRequest) -> Result<Trace, PlanError>,
    /// Builds a trained network to run it on images.
    pub evaluator: fn(EvaluationJob) -> Result<Box<dyn Evaluator>, TrainError>,
    /// Trains, or only evaluates where the job has no epochs.
    pub train: fn(&TrainJob, &mut dyn Observer) -> Result<Outcome, TrainError>,
}

/// A network's name and options, by which it is built.
pub(crate) struct Blueprint<N: Network> {
    /// The key in a recipe.
    pub name: &'static str,
    /// What differs between networks of the type.
    pub options: N::Options,
}

/// A row: the key in a recipe, the type with its options, and one sentence with the source.
macro_rules! model {
    ($name:literal, $network:ty, $options:expr, $about:literal) => {{
        const BLUEPRINT: Blueprint<$network> = Blueprint { name: $name, options: $options };
        ModelEntry {
            name: $name,
            about: $about,
            accepts: <$network as Network>::accepts,
            plan: |request| plan::plan_network(&BLUEPRINT, request),
            fit: |request, values| fit(&BLUEPRINT, request, values),
            stepper: |job| stepper::stepper(&BLUEPRINT, job),
            trace: |request| trace::trace(&BLUEPRINT, request),
            evaluator: |job| evaluation::evaluator(&BLUEPRINT, job),
            train: |job, observer| trainer::train(&BLUEPRINT, job, observer),
        }
    }};
}

/// Builds the network for its names and shapes alone.
fn fit<N: Network>(
    Blueprint { options, .. }: &Blueprint<N>,
    PlanRequest { image, classes, device, .. }: &PlanRequest,
    values: &FirstValues,
) -> Result<WeightsReport, TrainError> {
    let device = engine::device(device).map_err(PlanError::from)?;
    let net = N::build(options, *image, *classes, &Scope::root(0), &device);
    Ok(values.fit(&params::shapes(&net), N::LEFT_OUT)?)
}

const fn basic(blocks: [usize; 4]) -> ResNetOptions {
    ResNetOptions { blocks, bottleneck: false }
}

const fn deep(blocks: [usize; 4]) -> ResNetOptions {
    ResNetOptions { blocks, bottleneck: true }
}

/// All networks.
pub static MODELS: &[ModelEntry] = &[
    model!("mlp", Mlp, (), "fully connected: pixels-256-128-classes, ReLU"),
    model!(
        "lenet",
        LeNet,
        (),
        "LeNet: conv 1-6, conv 6-16, linear 784-120-84-classes (LeCun 1998, as QML has it)"
    ),
    model!("resnet8", CifarResNet, 1, "CIFAR ResNet, 8 layers, option-A shortcuts (He 2016)"),
    model!("resnet20", CifarResNet, 3, "CIFAR ResNet, 20 layers, option-A shortcuts (He 2016)"),
    model!("resnet32", CifarResNet, 5, "CIFAR ResNet, 32 layers, option-A shortcuts (He 2016)"),
    model!("resnet44", CifarResNet, 7, "CIFAR ResNet, 44 layers, option-A shortcuts (He 2016)"),
    model!("resnet56", CifarResNet, 9, "CIFAR ResNet, 56 layers, option-A shortcuts (He 2016)"),
    model!(
        "resnet18",
        ResNet,
        basic([2, 2, 2, 2]),
        "ResNet, 18 layers; the stem goes by the image (He 2016)"
    ),
    model!(
        "resnet34",
        ResNet,
        basic([3, 4, 6, 3]),
        "ResNet, 34 layers; the stem goes by the image (He 2016)"
    ),
    model!(
        "resnet50",
        ResNet,
        deep([3, 4, 6, 3]),
        "ResNet, 50 layers; the stem goes by the image (He 2016)"
    ),
    model!(
        "inception-v3",
        InceptionV3,
        (),
        "Inception v3, without its auxiliary classifier (Szegedy 2016)"
    ),
    model!("vgg-small", VggSmall, (), "VGG for small images, 6 convolutions (Zhang 2018)"),
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
