//! `scrimp export` as a user sees it: runs that were trained, stopped, or never were.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::{Command, Output};

use scrimp::export::{As, ExportRequest, Exported, RangeSource, export};
use scrimp::onnx::proto::NodeProto;
use scrimp::onnx::{Choice, DataType, Model, open_engine};
use scrimp::recipe::Source;
use scrimp::run::{RunRequest, TrainedRun, Watch, run};
use scrimp::train::Role;
use scrimp::train::trainer::StepReport;
use serde_json::Value;
use tempfile::TempDir;

mod support;

use support::contains;

/// A small part of the generated digits, so that a run takes a second.
fn recipe(model: &str, rest: &str) -> String {
    format!("model = \"{model}\"\ndata = \"digits\"\nepochs = 2\nbatch = 32\nlimit = 192\n{rest}")
}

struct Quiet {
    /// After how many steps to stop.
    stop: Option<u64>,
    steps: u64,
}

impl Watch for Quiet {
    fn step(&mut self, report: &StepReport) {
        self.steps = report.step;
    }
    fn stop_requested(&self) -> bool {
        self.stop.is_some_and(|stop| self.steps >= stop)
    }
}

/// A folder in which a recipe was carried out, or begun.
fn trained(recipe: &str, seeds: u32, stop: Option<u64>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.toml");
    std::fs::write(&path, recipe).unwrap();
    let request = RunRequest {
        source: Source::read(&path, &[]).unwrap(),
        folder: folder.path().join("run"),
        resume: false,
        data_dir: None,
        device: "flex".into(),
        baseline: false,
        seeds,
    };
    let ended = run(&request, &mut Quiet { stop, steps: 0 });
    assert_eq!(ended.is_ok(), stop.is_none(), "{ended:?}");
    folder
}

fn exported(run: &TrainedRun, quantized: bool) -> Exported {
    let device = "flex".to_owned();
    export(run, &ExportRequest { quantized, samples: 96, data_dir: None, device }).unwrap()
}

/// A model and the network that it is made of, on test images.
fn checked(folder: &TempDir, quantized: bool) -> (Exported, scrimp::export::Check) {
    let run = TrainedRun::open(&folder.path().join("run"), None, None).unwrap();
    let exported = exported(&run, quantized);
    let reference = exported.reference(&run, "flex", 64).unwrap();
    let engine = open_engine(&Choice::Rten).unwrap();
    let check = exported.check(&reference, &*engine).unwrap();
    assert_eq!(check.images, 64);
    (exported, check)
}

#[test]
fn trained_networks_compute_in_a_runtime_what_they_did() {
    for model in ["lenet", "resnet8"] {
        let folder = trained(&recipe(model, ""), 1, None);
        let (exported, check) = checked(&folder, false);
        assert!(check.difference < 1e-4, "{model}: {check:?}");
        assert_eq!(check.same_class, 64);
        assert!(exported.tensors.is_empty());
        let props = &exported.model.proto.metadata_props;
        let prop = |key: &str| props.iter().find(|p| p.key() == key).unwrap().value().to_owned();
        assert_eq!(prop("labels"), r#"["0","1","2","3","4","5","6","7","8","9"]"#);
        assert_eq!(prop("scrimp.model"), model);
        assert_eq!(prop("scrimp.recipe.sha256").len(), 64);
        assert!(prop("mean").parse::<f32>().unwrap() > 0.0);
    }
}

#[test]
fn pairs_of_a_runtime_round_as_the_network_does_within_a_step() {
    // The classifier's output is rounded too, so that logits lie on a grid.
    for (model, rule) in [
        ("lenet", "w = \"int8/channel\"\nx = \"int8\"\ny = \"int8\""),
        ("lenet", "w = \"uint8\"\nx = \"uint8\"\ny = \"uint8\""),
        ("lenet", "w = \"int8/row\"\nx = \"int6\"\ny = \"int8/delayed:4\""),
        ("resnet8", "w = \"int8/channel\"\nx = \"uint8/delayed:2\"\ny = \"int8\""),
    ] {
        let rules = format!("[[quantize]]\nlayers = \"*\"\n{rule}\n");
        let folder = trained(&recipe(model, &rules), 1, None);
        let (exported, check) = checked(&folder, true);
        let steps = check.steps.unwrap();
        assert!(steps < 1.01, "{model} {rule}: {check:?}");
        let is_pair = |t: &&scrimp::export::RoundedTensor| matches!(t.is, As::Pair { .. });
        let (pairs, codes): (Vec<_>, Vec<_>) = exported.tensors.iter().partition(is_pair);
        assert!(codes.iter().all(|t| matches!(t.is, As::Codes { .. })), "{codes:?}");
        for tensor in pairs {
            let As::Pair { range, .. } = tensor.is else { panic!() };
            let delayed = tensor.scheme.contains("delayed");
            let expected = if delayed { RangeSource::Remembered } else { RangeSource::Calibrated };
            assert_eq!(range, Some(expected), "{tensor:?}");
        }
        assert_eq!(exported.model.opset(), 17);
        // Without these ONNX Runtime computes a Gemm in floats.
        let graph = exported.model.graph();
        let index = scrimp::onnx::Index::of(graph);
        for gemm in graph.node.iter().filter(|node| node.is("Gemm") && !rule.contains("int6")) {
            let makers = gemm.input.iter().map(|input| &graph.node[index.maker(input).unwrap()]);
            let makers: Vec<&NodeProto> = makers.collect();
            assert!(makers.iter().all(|maker| maker.is("DequantizeLinear")), "{rule}: {makers:?}");
            assert!(makers[1].arg(2).is_some(), "the zero points of {}", gemm.label());
            let bias = graph.constant(makers[2].arg(0).unwrap()).unwrap();
            assert_eq!(bias.kind(), Some(scrimp::onnx::DataType::Int32));
        }
    }
}

#[test]
fn what_onnx_lacks_stays_float_and_says_why() {
    let rules = "
[[quantize]]
layers = \"*\"
w = \"int4/channel\"
x = \"int8/stochastic\"
[[quantize]]
layers = \"fc1\"
w = \"smaq\"
x = \"bf16\"
[[quantize]]
layers = \"fc2\"
w = \"int4/group:32\"
b = \"int8\"
y = \"int8/channel\"
[[quantize]]
layers = \"fc3\"
w = \"e4m3fn/channel\"
x = \"e5m2\"
";
    let folder = trained(&recipe("lenet", rules), 1, None);
    let run = TrainedRun::open(&folder.path().join("run"), None, None).unwrap();
    let exported = exported(&run, true);
    let is = |layer: &str, role: Role| {
        &exported.tensors.iter().find(|t| t.layer == layer && t.role == role).unwrap().is
    };
    let codes = |layer: &str, expected: &str| {
        let As::Codes { element, .. } = is(layer, Role::Weight) else { panic!("{layer}") };
        assert_eq!(*element, expected);
    };
    codes("conv1", "int4");
    codes("fc2", "int4");
    codes("fc3", "e4m3fn");
    let why = |layer: &str, role: Role, part: &str| match is(layer, role) {
        As::Float { why } | As::Values { why } => assert!(why.contains(part), "{why}"),
        other => panic!("{layer}.{role}: {other:?}"),
    };
    why("conv1", Role::Input, "nearest");
    why("fc1", Role::Weight, "no type");
    why("fc1", Role::Input, "bf16");
    why("fc2", Role::Bias, "products alone");
    why("fc2", Role::Output, "per tensor");
    let As::Pair { element: "e5m2", scale: 1.0, zero: 0, range: None } = is("fc3", Role::Input)
    else {
        panic!("{:?}", is("fc3", Role::Input))
    };
    assert_eq!((exported.model.opset(), exported.samples), (21, 0));
    let graph = exported.model.graph();
    let constant = |name: &str| graph.constant(name).unwrap();
    assert_eq!(constant("fc2.weight/c").kind(), Some(DataType::Int4));
    assert_eq!(constant("fc2.weight/s").shape().unwrap(), [84, 4]);
    assert_eq!(constant("fc3.weight/c").kind(), Some(DataType::Float8E4M3FN));
    // What is stored as values is what the network was evaluated with.
    assert_ne!(
        constant("fc1.weight").to_f32().unwrap(),
        run.tensors.iter().find(|t| t.name == "fc1.weight").unwrap().values
    );
}

fn scrimp(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("SCRIMP_DATA")
        .env_remove("ORT_DYLIB_PATH")
        .env_remove("VIRTUAL_ENV")
        .env_remove("CONDA_PREFIX")
        .output()
        .unwrap()
}

fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = scrimp(folder, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(said.starts_with("error: ") && !said.contains("panicked"), "{said}");
    said
}

#[test]
fn the_program_writes_a_model_of_the_run_that_is_meant() {
    let rules = "[[variant]]\nname = \"f32\"\n[[variant]]\nname = \"int8\"\n\
                 [[variant.quantize]]\nlayers = \"*\"\nw = \"int8/channel\"\nx = \"int8\"\n";
    let folder = trained(&recipe("mlp", rules), 2, None);
    let at = folder.path();

    contains(&refused(at, &["export", "run"]), &["4 runs", "int8 of seed 7", "--variant NAME"]);
    contains(
        &refused(at, &["export", "run", "--variant", "int4"]),
        &["no such run", "f32 of seed 8"],
    );
    contains(&refused(at, &["export", "elsewhere"]), &["no such folder"]);
    std::fs::create_dir(at.join("empty")).unwrap();
    contains(&refused(at, &["export", "empty"]), &["not the folder of a run", "recipe.toml"]);
    let f32_run = ["export", "run/f32/seed-7", "--quantized"];
    contains(&refused(at, &f32_run), &["rounds no weight and no activation"]);
    contains(&refused(at, &["export", "run/f32/seed-7", "-o", "m.pt"]), &["m.onnx"]);

    let one = ["export", "run/int8", "--seed", "8", "-o", "m.onnx", "--json"];
    let output = scrimp(at, &one);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let last: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(last["predicted_file_bytes"], last["file_bytes"]);
    assert_eq!(last["parameters"], 785 * 256 + 257 * 128 + 129 * 10);
    assert_eq!(last["parameter_bytes"], 4 * (785 * 256 + 257 * 128 + 129 * 10));
    assert_eq!((&last["seed"], &last["quantized"]), (&8.into(), &false.into()));
    contains(&refused(at, &one), &["m.onnx exists already", "--force"]);

    let quantized = [
        "export",
        "run/int8/seed-8",
        "-o",
        "m.onnx",
        "--force",
        "--quantized",
        "--samples",
        "32",
        "--reference",
        "images.safetensors",
    ];
    let output = scrimp(at, &quantized);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    contains(
        &said,
        &[
            "int8 codes",
            "3 ranges from the least to the greatest value over 32 training images",
            "as predicted",
            "checked in rten",
            "→ m.onnx",
        ],
    );
    let model = Model::open(&at.join("m.onnx")).unwrap();
    let ops: Vec<&str> = model.graph().node.iter().map(NodeProto::op_type).collect();
    assert_eq!(ops.iter().filter(|op| **op == "QuantizeLinear").count(), 3);
    // Of each layer the input, the weight and the bias.
    assert_eq!(ops.iter().filter(|op| **op == "DequantizeLinear").count(), 9);
    let reference = scrimp::files::open(&at.join("images.safetensors")).unwrap();
    let shapes: Vec<_> = ["input", "logits", "labels"]
        .map(|name| reference.entries()[reference.find(name).unwrap()].shape.clone())
        .into();
    assert_eq!(shapes, [vec![64, 1, 28, 28], vec![64, 10], vec![64]]);
}

#[test]
fn a_run_that_was_stopped_is_exported_from_its_checkpoint() {
    let folder = trained(&recipe("mlp", ""), 1, Some(8));
    let run = TrainedRun::open(&folder.path().join("run"), None, None).unwrap();
    assert_eq!((run.is_finished, run.epochs, run.steps), (false, 1, 8));
    let output = scrimp(folder.path(), &["export", "run", "-o", "m.onnx"]);
    let said = String::from_utf8(output.stdout).unwrap();
    contains(&said, &["not done: 1 of 2 epochs, 8 steps", "scrimp quantize m.onnx"]);
    // A run that saved nothing has nothing to give.
    std::fs::remove_file(folder.path().join("run/f32/seed-7/checkpoint.safetensors")).unwrap();
    contains(&refused(folder.path(), &["export", "run"]), &["nothing was saved of this run yet"]);
}
