//! Networks as ONNX models: what a runtime computes from them is what the network computes.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use scrimp::codec::Stream;
use scrimp::export::float_model;
use scrimp::onnx::{Choice, LoadOptions, Model, Value, open_engine};
use scrimp::train::compute::Compute;
use scrimp::train::evaluation::{EvaluationJob, Evaluator, Held};
use scrimp::train::models::{self, MODELS, ModelEntry};
use scrimp::train::optimizers::OptimizerConfig;
use scrimp::train::params::NamedTensor;
use scrimp::train::plan::{PlanRequest, Saved};
use scrimp::train::trace::Op;

fn request(image: [usize; 3], classes: usize) -> PlanRequest {
    PlanRequest {
        image,
        classes,
        batch: 2,
        rules: Vec::new(),
        device: "flex".into(),
        compute: Compute::Auto,
        optimizer: OptimizerConfig::default(),
        exchange: None,
        saved: Saved::default(),
    }
}

fn evaluator(
    entry: &ModelEntry,
    plan: PlanRequest,
    tensors: Option<Vec<NamedTensor>>,
) -> Box<dyn Evaluator> {
    let path = PathBuf::from("made-up.safetensors");
    (entry.evaluator)(EvaluationJob {
        plan,
        path,
        tensors,
        seed: 3,
        step: 0,
        held: Held::default(),
    })
    .unwrap()
}

/// Numbers in [-0.5, 0.5) that are the same everywhere.
fn noise(stream: u32, count: usize) -> Vec<f32> {
    let stream = Stream::new(5, stream);
    (0..count as u64).map(|i| stream.uniform(i) - 0.5).collect()
}

/// The fresh parameters of a network, but with norms that do something.
fn tensors(entry: &ModelEntry, plan: &PlanRequest) -> Vec<NamedTensor> {
    let mut all = evaluator(entry, plan.clone(), None).tensors();
    for (number, tensor) in (0..).zip(&mut all) {
        let numbers = noise(100 + number, tensor.values.len()).into_iter();
        let is_norm = tensor.shape.len() == 1;
        for (value, number) in tensor.values.iter_mut().zip(numbers).filter(|_| is_norm) {
            *value += 0.4 * number;
        }
    }
    all
}

/// The logits that rten gives.
fn runtime(model: &Model, shape: &[usize], images: &[f32]) -> Vec<f32> {
    let engine = open_engine(&Choice::Rten).unwrap();
    let mut session = engine.load(model, &["logits".into()], LoadOptions::default()).unwrap();
    let input = Value::f32(shape, images.to_vec());
    session.run(&[("input", &input)]).unwrap()[0].as_f32().unwrap().to_vec()
}

/// The largest difference, as a share of the largest value.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    assert!(largest.is_finite() && largest > 0.0 && a.iter().all(|v| v.is_finite()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

fn same_in_a_runtime(entry: &ModelEntry, image: [usize; 3]) {
    const CLASSES: usize = 7;
    let plan = request(image, CLASSES);
    let tensors = tensors(entry, &plan);
    let trace = (entry.trace)(&plan).unwrap();
    let model = float_model(&trace, &tensors, entry.name);
    // The graph has every parameter of the checkpoint, under its name.
    let graph = model.graph();
    for tensor in &tensors {
        let constant = graph.constant(&tensor.name).unwrap_or_else(|| panic!("{}", tensor.name));
        assert_eq!(constant.shape().unwrap(), tensor.shape, "{}", tensor.name);
    }
    // Batches of one and of two: the batch axis is free.
    for batch in [1, 2] {
        let shape = [batch, image[0], image[1], image[2]];
        let images = noise(9, shape.iter().product());
        let own = evaluator(entry, plan.clone(), Some(tensors.clone())).logits(&images).unwrap();
        assert_eq!(own.len(), batch * CLASSES);
        let theirs = runtime(&model, &shape, &images);
        let difference = difference(&theirs, &own);
        assert!(difference < 1e-4, "{} {image:?}: {difference:e}", entry.name);
    }
}

#[test]
fn every_model_computes_in_a_runtime_what_the_network_does() {
    for entry in MODELS {
        let image = [[1, 28, 28], [3, 32, 32], [3, 75, 75]];
        let fits = image.into_iter().find(|image| (entry.accepts)(*image).is_ok());
        same_in_a_runtime(entry, fits.unwrap());
    }
    // Large images get another stem, and sides may differ.
    for (name, image) in [("resnet18", [3, 64, 72]), ("lenet", [3, 21, 30]), ("mlp", [2, 3, 5])] {
        same_in_a_runtime(models::find(name).unwrap(), image);
    }
}

#[test]
fn nodes_are_called_as_layers_are() {
    let names = |model: &str, image| -> Vec<(String, Option<String>)> {
        let trace = (models::find(model).unwrap().trace)(&request(image, 10)).unwrap();
        trace.nodes.into_iter().map(|node| (node.name, node.layer)).collect()
    };
    let of = |layer: &str| Some(layer.to_owned());
    let expected = [
        ("conv1", of("conv1")),
        ("pool1.relu", of("pool1")),
        ("pool1", of("pool1")),
        ("conv2", of("conv2")),
        ("pool2.relu", of("pool2")),
        ("pool2", of("pool2")),
        ("pool2.flatten", None),
        ("fc1", of("fc1")),
        ("relu1", of("relu1")),
        ("fc2", of("fc2")),
        ("relu2", of("relu2")),
        ("fc3", of("fc3")),
    ];
    assert_eq!(names("lenet", [1, 28, 28]), expected.map(|(n, l)| (n.to_owned(), l)));
    let resnet: Vec<String> = names("resnet8", [3, 32, 32]).into_iter().map(|n| n.0).collect();
    let first = resnet.iter().position(|name| name == "layer2.0.conv1").unwrap();
    // The shortcut comes before the norm whose sum it is a part of.
    let block = ["conv1", "bn1", "bn1.relu", "conv2", "shortcut.subsample", "shortcut.pad", "bn2"];
    for (name, expected) in resnet[first..].iter().zip(block.iter().chain(&["bn2.add", "bn2.relu"]))
    {
        assert_eq!(*name, format!("layer2.0.{expected}"));
    }
    assert_eq!(resnet[resnet.len() - 3..], ["pool", "pool.flatten", "linear"]);
}

#[test]
fn a_trace_says_where_layers_begin_and_end() {
    let entry = models::find("resnet8").unwrap();
    let trace = (entry.trace)(&request([3, 32, 32], 10)).unwrap();
    let at = |name: &str| trace.nodes.iter().position(|node| node.name == name).unwrap();
    let (norm, relu) = (at("layer1.0.bn2"), at("layer1.0.bn2.relu"));
    assert_eq!((trace.entered(norm), trace.left(norm)), (Some("layer1.0.bn2"), None));
    assert_eq!((trace.entered(relu), trace.left(relu)), (None, Some("layer1.0.bn2")));
    assert_eq!(trace.nodes[at("layer1.0.bn2.add")].inputs, [norm + 1, at("bn1.relu") + 1]);
    let subsample = &trace.nodes[at("layer3.0.shortcut.subsample")];
    assert_eq!(
        (subsample.op, &subsample.shape[..]),
        (Op::Subsample { stride: 2 }, &[32, 8, 8][..])
    );
    assert_eq!(trace.output, trace.nodes.len());
    assert_eq!(trace.shape(trace.output), [10]);
    assert_eq!(trace.shape(0), [3, 32, 32]);
}

#[test]
fn an_image_that_a_model_does_not_take_is_refused() {
    let error = (models::find("inception-v3").unwrap().trace)(&request([3, 32, 32], 10));
    assert!(error.unwrap_err().to_string().contains("at least 75 x 75"));
}

/// The published weights of three networks, and ONNX models that PyTorch's own exporter has no part in: both were made from
/// one checkpoint by others.
#[test]
fn published_weights_give_what_published_models_give() {
    let Some(folder) = std::env::var_os("SCRIMP_DATA") else {
        eprintln!("SCRIMP_DATA is not set: skipped");
        return;
    };
    let folder = Path::new(&folder).join("models");
    for (name, weights) in [
        ("resnet20", "resnet20-12fca82f.safetensors"),
        ("resnet32", "resnet32-d509ac18.safetensors"),
        ("resnet44", "resnet44-014dd654.safetensors"),
    ] {
        let [weights, published] =
            [weights.to_owned(), format!("{name}.onnx")].map(|f| folder.join(f));
        if !(weights.exists() && published.exists()) {
            eprintln!("{name} is not among the data: skipped");
            continue;
        }
        let reader = scrimp::files::open(&weights).unwrap();
        let tensors: Vec<NamedTensor> = (0..reader.entries().len())
            .filter(|&place| reader.entries()[place].dtype.is_float())
            .map(|place| NamedTensor {
                name: reader.entries()[place].name.clone(),
                shape: reader.entries()[place].shape.clone(),
                values: reader.read_f32(place).unwrap(),
            })
            .collect();
        let entry = models::find(name).unwrap();
        let trace = (entry.trace)(&request([3, 32, 32], 10)).unwrap();
        let model = float_model(&trace, &tensors, name);
        let shape = [4, 3, 32, 32];
        let images: Vec<f32> = noise(8, 4 * 3072).iter().map(|v| 4.0 * v).collect();
        let theirs = Model::open(&published).unwrap();
        let output = theirs.graph().output[0].name().to_owned();
        let input = theirs.graph().input[0].name().to_owned();
        let engine = open_engine(&Choice::Rten).unwrap();
        let mut session = engine.load(&theirs, &[output], LoadOptions::default()).unwrap();
        let value = Value::f32(shape, images.clone());
        let expected = session.run(&[(&input, &value)]).unwrap();
        let found = runtime(&model, &shape, &images);
        let difference = difference(&found, expected[0].as_f32().unwrap());
        assert!(difference < 1e-5, "{name}: {difference:e}");
    }
}
