//! Models raised to later versions of the operators compute what they did before.

use std::fmt::Write as _;
use std::path::PathBuf;

use scrimp_onnx::proto::{
    FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use scrimp_onnx::{
    Choice, Elements, Engine, LoadOptions, Model, Value, open_engine, upgrade_opset,
};

/// Versions that models are raised to: with what each changed last, and with everything.
const TARGETS: [i64; 5] = [13, 17, 18, 21, 25];

/// Cases by the beginning of their names that rten 0.27 does not run, and what it lacks. ONNX Runtime runs them where it
/// is found.
const RTEN_LACKS: &[(&str, &str)] = &[
    ("batch_normalization_9_training", "training"),
    ("dropout", "the operator, in our build"),
    ("function", "functions of a model"),
    ("grid_sample_16_bicubic", "the mode"),
    ("grid_sample_16_nearest", "the mode"),
    ("group_normalization", "the operator"),
    ("hardmax", "the operator"),
    ("resize_11_crop", "the mode"),
    ("resize_11_cubic", "the mode, for which it takes another one"),
    ("roi_align", "the operator"),
    ("scan", "the operator"),
];
/// Targets from which on ONNX Runtime 1.31 does not run a case.
const ONNX_RUNTIME_LACKS: &[(&str, i64)] = &[("roi_align", 22)];

/// Sums are made in other orders, by the engines and by what made the file.
const SLACK: f64 = 1e-5;

struct Case {
    name: String,
    opset: i64,
    model: Vec<u8>,
    inputs: Vec<(String, Value)>,
    outputs: Vec<(String, Value)>,
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
    (0..hex.len()).step_by(2).map(digit).collect()
}

fn values(text: &str) -> Vec<(String, Value)> {
    let value = |text: &str| {
        let parts: Vec<&str> = text.split(':').collect();
        let [name, kind, shape, raw] = parts[..] else { panic!("`{text}` has four parts") };
        let shape = match shape {
            "scalar" => Vec::new(),
            sizes => sizes.split('x').map(|size| size.parse().expect("a size")).collect(),
        };
        let raw = bytes(raw);
        let data = match kind {
            "float32" => {
                Elements::F32(raw.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
            }
            "float64" => {
                Elements::F64(raw.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect())
            }
            "int64" => {
                Elements::I64(raw.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect())
            }
            "bool" => Elements::Bool(raw.iter().map(|&b| b != 0).collect()),
            other => panic!("no case has the type {other}"),
        };
        (name.to_owned(), Value { shape, data })
    };
    text.split(' ').filter(|text| !text.is_empty()).map(value).collect()
}

fn cases() -> Vec<Case> {
    let case = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        Case {
            name: fields[0].to_owned(),
            opset: fields[1].parse().expect("a version"),
            model: bytes(fields[3]),
            inputs: values(fields[4]),
            outputs: values(fields[5]),
        }
    };
    let lines = include_str!("golden/opsets.csv").lines().filter(|line| !line.starts_with('#'));
    lines.skip(1).map(case).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    match &value.data {
        Elements::F32(v) => v.iter().map(|&v| f64::from(v)).collect(),
        Elements::F64(v) => v.clone(),
        Elements::I64(v) => v.iter().map(|&v| v as f64).collect(),
        Elements::I32(v) => v.iter().map(|&v| f64::from(v)).collect(),
        Elements::I8(v) => v.iter().map(|&v| f64::from(v)).collect(),
        Elements::U8(v) => v.iter().map(|&v| f64::from(v)).collect(),
        Elements::Bool(v) => v.iter().map(|&v| f64::from(u8::from(v))).collect(),
    }
}

/// Says how two values differ by more than `slack` of their size.
fn difference(found: &Value, expected: &Value, slack: f64) -> Option<String> {
    if found.shape != expected.shape {
        return Some(format!("shape {:?} instead of {:?}", found.shape, expected.shape));
    }
    let pairs = numbers(found).into_iter().zip(numbers(expected));
    let far = pairs
        .enumerate()
        .find(|(_, (a, b))| (a - b).abs() > slack * b.abs().max(1.0) || a.is_nan() != b.is_nan());
    far.map(|(at, (a, b))| format!("element {at} is {a} instead of {b}"))
}

fn names(values: &[(String, Value)]) -> Vec<String> {
    values.iter().map(|(name, _)| name.clone()).collect()
}

fn run(
    engine: &dyn Engine,
    model: &Model,
    inputs: &[(String, Value)],
    outputs: &[String],
) -> Result<Vec<Value>, String> {
    let options = LoadOptions { threads: 1, ..LoadOptions::default() };
    let mut session = engine.load(model, outputs, options).map_err(|error| error.to_string())?;
    let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(n, v)| (n.as_str(), v)).collect();
    session.run(&inputs).map_err(|error| error.to_string())
}

fn upgraded(case: &Case, to: i64) -> Model {
    let mut model = Model::parse(case.model.clone()).expect("a model");
    upgrade_opset(&mut model, to).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    assert_eq!(model.opset(), to.max(case.opset), "{}", case.name);
    model
}

/// Runs all cases that the engine does not lack at a target, and says what went wrong.
fn check(engine: &dyn Engine, lacks: impl Fn(&str, i64) -> bool) -> String {
    let mut wrong = String::new();
    for case in cases() {
        for to in TARGETS {
            let model = upgraded(&case, to);
            if lacks(&case.name, to) {
                continue;
            }
            let differences = match run(engine, &model, &case.inputs, &names(&case.outputs)) {
                Err(error) => vec![error],
                Ok(found) => {
                    let pairs = found.iter().zip(&case.outputs);
                    pairs
                        .filter_map(|(found, (_, expected))| difference(found, expected, SLACK))
                        .collect()
                }
            };
            for difference in differences {
                writeln!(wrong, "{} at {to}: {difference}", case.name).expect("a string");
            }
        }
    }
    wrong
}

#[test]
fn every_change_of_an_operator_keeps_what_a_model_computes() {
    let engine = open_engine(&Choice::Rten).expect("rten is built in");
    let wrong =
        check(&*engine, |name, _| RTEN_LACKS.iter().any(|(start, _)| name.starts_with(start)));
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn onnx_runtime_gives_the_same_where_it_is_found() {
    let engine = match open_engine(&Choice::OnnxRuntime(None)) {
        Ok(engine) => engine,
        Err(error) => return println!("skipped: {error}"),
    };
    let wrong = check(&*engine, |name, to| {
        ONNX_RUNTIME_LACKS.iter().any(|&(start, from)| name.starts_with(start) && to >= from)
    });
    assert!(wrong.is_empty(), "{wrong}");
}

/// Values of both signs that repeat only after many, in [-1, 1).
fn wave(shape: &[usize]) -> Value {
    let elems: usize = shape.iter().product();
    let values = (0..elems).map(|i| ((i * 7919 % 2003) as f32 / 1001.5) - 1.0).collect();
    Value::f32(shape, values)
}

#[test]
fn real_models_give_the_same_outputs_after_the_upgrade() {
    let Some(data) = std::env::var_os("SCRIMP_DATA").map(PathBuf::from) else {
        return println!("skipped: SCRIMP_DATA is not set");
    };
    let models = [
        ("mnist-8.onnx", vec![("Input3", wave(&[1, 1, 28, 28]))]),
        ("version-RFB-320.onnx", vec![("input", wave(&[1, 3, 240, 320]))]),
        (
            "silero/silero_vad_16k_op15.onnx",
            vec![
                ("input", wave(&[1, 576])),
                ("state", wave(&[2, 1, 128])),
                ("sr", Value::i64([], vec![16000])),
            ],
        ),
    ];
    let engines: Vec<_> = [Choice::Rten, Choice::OnnxRuntime(None)]
        .iter()
        .filter_map(|c| open_engine(c).ok())
        .collect();
    for (file, inputs) in models {
        let path = data.join("models").join(file);
        if !path.is_file() {
            println!("skipped: {} is not there", path.display());
            continue;
        }
        let inputs: Vec<_> =
            inputs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let model = Model::open(&path).expect("a model");
        let outputs: Vec<String> =
            model.graph().output.iter().map(|o| o.name().to_owned()).collect();
        for engine in &engines {
            let before = run(&**engine, &model, &inputs, &outputs).expect("it runs");
            for to in [13, 17, 21] {
                let mut raised = model.clone();
                upgrade_opset(&mut raised, to).expect("it can be raised");
                let after = run(&**engine, &raised, &inputs, &outputs).expect("it runs still");
                for (after, before) in after.iter().zip(&before) {
                    let difference = difference(after, before, 1e-6);
                    assert_eq!(difference, None, "{file} at {to} in {}", engine.version());
                }
            }
        }
    }
}

/// A model with these nodes, whose inputs and outputs have no type.
fn model(opset: i64, nodes: Vec<NodeProto>) -> Model {
    let untyped = |name: &str| ValueInfoProto { name: Some(name.to_owned()), ..Default::default() };
    let graph = GraphProto {
        node: nodes,
        input: vec![untyped("x")],
        output: vec![untyped("y")],
        ..Default::default()
    };
    Model::new(graph, opset, 8)
}

fn one(opset: i64, node: NodeProto) -> Model {
    model(opset, vec![node])
}

fn call(op: &str) -> NodeProto {
    NodeProto::call(op, "n", &["x"], &["y"])
}

/// What is said of a model that cannot be raised; it must be as it was.
fn refusal(mut model: Model, to: i64) -> String {
    let before = model.proto.clone();
    let error = upgrade_opset(&mut model, to).expect_err("it cannot be raised");
    assert_eq!(model.proto, before);
    error.to_string()
}

#[test]
fn a_node_that_cannot_be_expressed_is_named_with_its_versions() {
    let old = "node `n`, a ";
    let lengths = NodeProto::call("Scan", "n", &["lengths", "x"], &["y"]);
    let dropout = NodeProto::call("Dropout", "n", &["x"], &["d", "y"]);
    let training = NodeProto::call("BatchNormalization", "n", &["x"; 5], &["o", "m", "v", "y"]);
    let resize = NodeProto::call("Resize", "n", &["x", "roi", "scales"], &["y"])
        .with_text("coordinate_transformation_mode", "tf_half_pixel_for_nn");
    for (model, to, version, reason) in [
        (one(8, call("ATen")), 13, 13, "was an experiment and is gone"),
        (
            one(8, call("MeanVarianceNormalization")),
            17,
            9,
            "was an experiment with other attributes",
        ),
        (
            one(7, call("Add").with_int("broadcast", 1)),
            13,
            13,
            "`broadcast`, for broadcasting along an axis, is from before opset 7",
        ),
        (one(12, call("Dropout").with_int("is_test", 1)), 13, 13, "`is_test`"),
        (one(8, lengths), 13, 9, "its sequences have lengths of their own, `lengths`"),
        (one(10, dropout), 13, 12, "its mask `y` is read"),
        (one(9, training), 14, 14, "`y` is one of the saved statistics"),
        (one(11, resize), 13, 13, "coordinate_transformation_mode `tf_half_pixel_for_nn` is gone"),
        (
            one(10, call("Clip").with_float("min", 0.0)),
            13,
            11,
            "nothing tells that type; shape inference would",
        ),
        (one(9, call("Slice")), 13, 10, "it has no attribute `starts`"),
        (
            one(9, call("Upsample").with_text("mode", "cubic")),
            13,
            10,
            "its mode `cubic` is none of `nearest` and `linear`",
        ),
        (
            one(16, call("GridSample").with_text("mode", "area")),
            20,
            20,
            "its mode `area` is none of",
        ),
    ] {
        let said = refusal(model, to);
        assert!(said.starts_with(old), "{said}");
        assert!(said.contains(&format!("cannot be expressed in opset {version}: ")), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn versions_that_are_not_known_are_refused() {
    assert_eq!(
        refusal(one(8, call("Relu")), 12),
        "models cannot be raised to opset 12; the versions are 13 to 25"
    );
    assert_eq!(
        refusal(one(6, call("Relu")), 13),
        "the model uses opset 6; versions below 7 are not supported"
    );
    let mut none = one(8, call("Relu"));
    none.proto.opset_import.clear();
    assert_eq!(
        refusal(none, 13),
        "node `n` is the standard operator Relu, of which the model declares no version"
    );
    let mut two = one(8, call("Relu"));
    let other = OperatorSetIdProto { domain: Some("ai.onnx".into()), version: Some(9) };
    two.proto.opset_import.push(other);
    assert_eq!(
        refusal(two, 13),
        "the model declares two versions of the standard operators, 8 and 9"
    );
}

#[test]
fn a_model_of_a_later_version_stays_as_it_is() {
    let mut later = one(18, call("Split"));
    let before = later.proto.clone();
    assert_eq!(upgrade_opset(&mut later, 13).expect("nothing to do"), [""; 0]);
    assert_eq!(later.proto, before);
}

#[test]
fn nodes_of_other_domains_stay_as_they_are() {
    let foreign =
        NodeProto { domain: Some("com.microsoft".into()), ..call("Clip").with_float("min", 0.0) };
    let mut model = one(8, foreign.clone());
    assert_eq!(upgrade_opset(&mut model, 13).expect("nothing to do"), [""; 0]);
    assert_eq!(model.graph().node, [foreign]);
    assert_eq!((model.opset(), model.proto.ir_version()), (13, 8));
}

#[test]
fn an_attribute_that_callers_of_a_function_give_cannot_become_an_input() {
    let mut squeeze = call("Squeeze").with_ints("axes", &[]);
    squeeze.attribute[0].ref_attr_name = Some("where".into());
    let function = FunctionProto {
        name: Some("own".into()),
        input: vec!["x".into()],
        output: vec!["y".into()],
        node: vec![squeeze],
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(12) }],
        ..Default::default()
    };
    let mut model = one(15, call("Relu"));
    model.proto.functions.push(function);
    let said = refusal(model, 17);
    assert!(said.contains("node `n`, a Squeeze of opset 12"), "{said}");
    assert!(said.contains("`axes` is an attribute of the function, `where`"), "{said}");
}

#[test]
fn what_was_rewritten_is_counted_by_operator_and_version() {
    let first = NodeProto::call("Squeeze", "a", &["x"], &["s"]).with_ints("axes", &[0]);
    let second = NodeProto::call("Squeeze", "b", &["s"], &["t"]).with_ints("axes", &[0]);
    let plain = NodeProto::call("Squeeze", "c", &["t"], &["u"]);
    let split = NodeProto::call("Split", "d", &["u"], &["y", "z"]);
    let mut model = model(11, vec![first, second, plain, split]);
    let lines = upgrade_opset(&mut model, 18).expect("it can be raised");
    assert_eq!(
        lines,
        [
            "Squeeze (opset 13): axes became an input; 2 nodes",
            "Split (opset 18): the number of parts is written out; 1 node",
        ]
    );
}

#[test]
fn names_of_new_constants_are_free() {
    let first = NodeProto::call("Squeeze", "a", &["x"], &["y_axes"]).with_ints("axes", &[0]);
    let second = NodeProto::call("Squeeze", "b", &["y_axes"], &["y"]).with_ints("axes", &[0]);
    let mut model = model(11, vec![first, second]);
    upgrade_opset(&mut model, 13).expect("it can be raised");
    let names: Vec<&str> = model.graph().initializer.iter().map(TensorProto::name).collect();
    assert_eq!(names, ["y_axes_axes", "y_axes_1"]);
}
