//! What the commands print, file by file in `cmd/` and in the book. `TRYCMD=overwrite` writes down what they print
//! now.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use scrimp::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use scrimp::onnx::{DataType, Model};
use scrimp::recipe::Source;
use scrimp::run::{RunRequest, Watch, run};
use scrimp_files::{Dtype, Tensor, save, write_npy};

/// Values between -1 and 1 that are the same everywhere.
fn values(count: usize) -> Vec<f32> {
    let step = |i: usize| u16::try_from(i * 37 % 101).unwrap_or_default();
    (0..count).map(|i| (f32::from(step(i)) - 50.0) / 50.0).collect()
}

fn tensor(name: &str, shape: &[usize], dtype: Dtype) -> Tensor {
    let values = values(shape.iter().product());
    Tensor::from_f32(name, shape.to_vec(), dtype, &values).unwrap()
}

const RECIPE: &str = "\
model = \"mlp\"
data = \"digits\"
epochs = 2

[optimizer]
name = \"sgd\"
lr = 0.1
";

/// A sweep of that recipe.
const SWEEP: &str = "\
recipe = \"digits.toml\"
seeds = 2

[[axis]]
key = \"optimizer.lr\"
values = [0.1, 0.05]

[[axis]]
name = \"format\"
[[axis.point]]
name = \"none\"
[[axis.point]]
name = \"int8\"
quantize = [{ layers = \"*\", w = \"int8/channel\", d = \"int8/stochastic\" }]
";

/// A network of two convolutions and a product, with a batch norm and a softmax.
fn onnx_network() -> Model {
    let constant = |name: &str, shape: &[usize], shift: f32| {
        let shifted: Vec<f32> =
            values(shape.iter().product()).into_iter().map(|v| v + shift).collect();
        TensorProto::from_f32(name, shape, &shifted)
    };
    let value = |name: &str| ValueInfoProto::of_kind(name, DataType::Float as i32);
    let pads = [1, 1, 1, 1];
    let graph = GraphProto {
        name: Some("network".into()),
        node: vec![
            NodeProto::call("Conv", "conv1", &["image", "conv1.weight"], &["c1"])
                .with_ints("pads", &pads),
            NodeProto::call("BatchNormalization", "bn1", &["c1", "g", "b", "m", "v"], &["n1"]),
            NodeProto::call("Relu", "relu1", &["n1"], &["r1"]),
            NodeProto::call("Conv", "conv2", &["r1", "conv2.weight"], &["c2"])
                .with_ints("pads", &pads),
            NodeProto::call("Relu", "relu2", &["c2"], &["r2"]),
            NodeProto::call("GlobalAveragePool", "pool", &["r2"], &["p"]),
            NodeProto::call("Flatten", "flat", &["p"], &["f"]),
            NodeProto::call("Gemm", "fc", &["f", "fc.weight", "fc.bias"], &["logits"])
                .with_int("transB", 1),
            NodeProto::call("Softmax", "softmax", &["logits"], &["classes"]),
        ],
        initializer: vec![
            constant("conv1.weight", &[8, 3, 3, 3], 0.0),
            constant("g", &[8], 1.5),
            constant("b", &[8], 0.5),
            constant("m", &[8], 0.0),
            constant("v", &[8], 1.5),
            constant("conv2.weight", &[16, 8, 3, 3], 0.0),
            constant("fc.weight", &[4, 16], 0.0),
            constant("fc.bias", &[4], 0.0),
        ],
        input: vec![value("image")],
        output: vec![value("classes")],
        ..GraphProto::default()
    };
    Model::new(graph, 17, 8)
}

/// Networks with their first values, in two variants.
const UNTRAINED: &str = "\
model = \"mlp\"
data = \"digits\"
epochs = 0
limit = 64

[[variant]]
name = \"f32\"

[[variant]]
name = \"int8\"
[[variant.quantize]]
layers = \"*\"
w = \"int8/channel\"
b = \"int8\"
[[variant.quantize]]
layers = \"fc1\"
x = \"uint8\"
[[variant.quantize]]
layers = \"fc3\"
w = \"int4/group:32\"
x = \"bf16\"
";

/// A run folder that takes no training.
fn write_run(folder: &Path) {
    struct Quiet;
    impl Watch for Quiet {}
    let recipe = folder.join("untrained.toml");
    std::fs::write(&recipe, UNTRAINED).unwrap();
    let request = RunRequest {
        source: Source::read(&recipe, &[]).unwrap(),
        folder: folder.join("runs/untrained-1"),
        resume: false,
        data_dir: None,
        device: "flex".into(),
        baseline: false,
        seeds: 1,
    };
    run(&request, &mut Quiet).unwrap();
}

/// The files that the commands in `cmd/` read.
fn write_fixtures(folder: &Path) {
    let count = Tensor::new("bn.count", vec![], Dtype::I64, 3752i64.to_le_bytes().into()).unwrap();
    let network = [
        tensor("conv.weight", &[8, 4, 3, 3], Dtype::F32),
        tensor("bn.weight", &[8], Dtype::F32),
        count,
        tensor("fc.weight", &[10, 72], Dtype::F32),
        tensor("fc.bias", &[10], Dtype::F32),
    ];
    let path = folder.join("net.safetensors");
    save(&path, &network, &std::collections::BTreeMap::default()).unwrap();
    std::fs::create_dir_all(folder.join("run/int8/seed-7")).unwrap();
    std::fs::copy(&path, folder.join("run/int8/seed-7/model.safetensors")).unwrap();
    let result = r#"{"model": "lenet", "epochs": 3, "accuracy": 0.9845, "runs": []}"#;
    std::fs::write(folder.join("run/result.json"), result).unwrap();
    std::fs::create_dir(folder.join("nothing")).unwrap();

    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(folder.join("cut.safetensors"), &bytes[..2000]).unwrap();
    std::fs::write(folder.join("notes.md"), "# Notes\n").unwrap();
    std::fs::write(folder.join("empty.npy"), "").unwrap();

    write_npy(&folder.join("x.npy"), &tensor("x", &[4, 16], Dtype::F32)).unwrap();
    write_npy(&folder.join("line.npy"), &tensor("line", &[40], Dtype::F32)).unwrap();
    write_npy(&folder.join("double.npy"), &tensor("double", &[4, 16], Dtype::F64)).unwrap();
    let labels = Tensor::new("labels", vec![2], Dtype::I64, vec![0; 16]).unwrap();
    write_npy(&folder.join("labels.npy"), &labels).unwrap();
    let mut broken = values(16);
    broken[3] = f32::NAN;
    broken[12] = f32::INFINITY;
    let broken = Tensor::from_f32("broken", vec![2, 8], Dtype::F32, &broken).unwrap();
    write_npy(&folder.join("broken.npy"), &broken).unwrap();

    let named = |name: &str, from: &Tensor| {
        let (shape, dtype) = (from.shape().to_vec(), from.dtype());
        Tensor::new(name, shape, dtype, from.bytes().to_vec()).unwrap()
    };
    let mixed = [
        tensor("a.weight", &[4, 64], Dtype::F16),
        named("b.weight", &broken),
        tensor("c.weight", &[0, 4], Dtype::F32),
        named("d.labels", &labels),
    ];
    let path = folder.join("mixed.safetensors");
    save(&path, &mixed, &std::collections::BTreeMap::default()).unwrap();

    onnx_network().save(&folder.join("net.onnx")).unwrap();
    write_npy(&folder.join("images.npy"), &tensor("images", &[8, 3, 12, 12], Dtype::F32)).unwrap();

    std::fs::write(folder.join("digits.toml"), RECIPE).unwrap();
    std::fs::write(folder.join("formats.toml"), SWEEP).unwrap();
    std::fs::write(folder.join("typo.toml"), SWEEP.replace("int8/channel", "int8/chanel")).unwrap();
    let rule = SWEEP.replace("layers = \"*\"", "layers = \"fd*\"");
    std::fs::write(folder.join("rule.toml"), rule).unwrap();
}

#[test]
fn commands_print_what_is_written_down() {
    let folder = tempfile::tempdir().unwrap();
    write_fixtures(folder.path());
    write_run(folder.path());
    // This is the only test of its process, so that moving it disturbs no other.
    std::env::set_current_dir(folder.path()).unwrap();
    trycmd::TestCases::new()
        .register_bin("scrimp", Path::new(env!("CARGO_BIN_EXE_scrimp")))
        .env("COLUMNS", "100")
        // No runtime but the one that is built in.
        .env("ORT_DYLIB_PATH", "")
        .case(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cmd/*.trycmd"))
        .case(concat!(env!("CARGO_MANIFEST_DIR"), "/../../book/src/schemes.md"))
        .run();
}
