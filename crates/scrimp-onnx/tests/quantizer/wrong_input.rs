//! Wrong models and wrong data: what the errors say.

use scrimp_onnx::proto::{AttributeProto, GraphProto, NodeProto, ValueInfoProto};
use scrimp_onnx::{Data, Mode, Model, Statistics, Value, WeightRounding, quantize};

use super::graphs::{Samples, Sketch, config, engine, info, quantized, tried};

fn model() -> Model {
    Sketch::of(&[4, 6, 6]).conv("x", "a", [4, 4]).conv("a", "y", [4, 4]).model()
}

fn images() -> Samples {
    Samples::of(4, &[4, 6, 6])
}

fn refusal(model: &Model, data: &dyn Data) -> String {
    tried(model, data, |_| {}).unwrap_err().to_string()
}

#[test]
fn a_quantized_model_is_refused() {
    let once = quantized(&model(), &images(), |_| {}).model;
    let said = refusal(&once, &images());
    assert!(said.starts_with("the model is quantized already: node `"), "{said}");
    assert!(said.ends_with("Linear; start from the float model"), "{said}");
}

#[test]
fn data_without_the_input_is_refused() {
    let other = Samples { name: "image".into(), ..images() };
    assert_eq!(
        refusal(&model(), &other),
        "calibration data: no input `x`; the data has `image`, and the model wants `x`"
    );
}

#[test]
fn data_of_another_type_is_refused() {
    #[derive(Debug)]
    struct Integers;
    impl Data for Integers {
        fn len(&self) -> usize {
            2
        }
        fn batch(&self, start: usize, end: usize) -> Result<Vec<(String, Value)>, String> {
            Ok(vec![("x".into(), Value::i64([end - start, 4, 6, 6], vec![1; (end - start) * 144]))])
        }
    }
    assert_eq!(
        refusal(&model(), &Integers),
        "calibration data: input `x` is int64 in the data, and the model wants float32"
    );
}

#[test]
fn data_of_another_shape_is_refused() {
    for (shape, text) in
        [(vec![4, 6, 7], "[1, 4, 6, 7]"), (vec![6, 6, 4], "[1, 6, 6, 4]"), (vec![144], "[1, 144]")]
    {
        assert_eq!(
            refusal(&model(), &Samples::of(4, &shape)),
            format!(
                "calibration data: input `x` has shape {text} in the data, and the model wants [?, 4, 6, 6]"
            )
        );
    }
}

#[test]
fn too_few_samples_are_refused() {
    let none = Samples { values: Vec::new(), ..images() };
    assert_eq!(refusal(&model(), &none), "calibration data: no samples");
    let mut fixed = model();
    fixed.graph_mut().input[0] = info("x", &[Some(8), Some(4), Some(6), Some(6)]);
    assert_eq!(
        refusal(&fixed, &images()),
        "calibration data: 4 samples, and the model runs 8 at a time"
    );
}

#[test]
fn nan_in_the_data_is_named_whatever_is_asked_for() {
    let mut data = images();
    data.values[200] = f32::NAN;
    data.values[201] = f32::INFINITY;
    assert_eq!(
        refusal(&model(), &data),
        "tensor `x` has 1 NaN and 1 infinite values on the calibration data"
    );
    // Moments and means would be NaN, and rounding would never end.
    for mode in [Mode::Static, Mode::Weights] {
        let gptq = tried(&model(), &data, |config| {
            config.mode = mode;
            config.weight_rounding = WeightRounding::Gptq;
        });
        assert_eq!(
            gptq.unwrap_err().to_string(),
            "tensor `x` has 1 NaN and 1 infinite values on the calibration data"
        );
        let means = tried(&model(), &data, |config| {
            config.mode = mode;
            config.statistics = Statistics::Mean;
        });
        let said = means.unwrap_err().to_string();
        assert!(said.starts_with("tensor `") && said.contains(" NaN and "), "{said}");
    }
}

#[test]
fn nan_of_one_part_of_a_concatenation_is_named_as_that_part() {
    // The square root of what is negative.
    let joined = NodeProto::call("Concat", "j", &["x", "r"], &["j"]).with_int("axis", 1);
    let model = Sketch::of(&[4, 6, 6])
        .node("Sqrt", &["x"], "r")
        .with(joined)
        .conv("j", "y", [8, 4])
        .model();
    let said = refusal(&model, &images());
    assert!(said.starts_with("tensor `r` has "), "{said}");
}

#[test]
fn a_weight_that_is_not_finite_is_refused() {
    let mut broken = model();
    let weight = &mut broken.graph_mut().initializer[0];
    let mut values = weight.to_f32().unwrap();
    values[5] = f32::NAN;
    *weight = scrimp_onnx::proto::TensorProto::from_f32("w_a", &[4, 4, 3, 3], &values);
    let weights_alone = tried(&broken, &images(), |config| config.mode = Mode::Weights);
    assert_eq!(weights_alone.unwrap_err().to_string(), "tensor `w_a`: value 5 is NaN");
}

#[test]
fn nothing_to_quantize_says_what_there_was() {
    let model = Sketch::of(&[4]).node("Relu", &["x"], "r").node("Sigmoid", &["r"], "y").model();
    assert_eq!(
        refusal(&model, &Samples::of(2, &[4])),
        "no node of the model can be quantized; 1 Relu (no rule for the operator), \
         1 Sigmoid (no rule for the operator)"
    );
}

#[test]
fn a_panic_of_the_engine_is_an_error() {
    let model = Sketch::of(&[2, 4])
        .weight("w", &[4, 3])
        .node("MatMul", &["x", "w"], "m")
        .weight("b", &[1])
        .node("Add", &["m", "b"], "y")
        .model();
    // It may be right one day.
    if let Err(error) = tried(&model, &Samples::of(2, &[2, 4]), |_| {}) {
        let said = error.to_string();
        assert!(said.contains("it panicked; ONNX Runtime may run the model"), "{said}");
    }
}

#[test]
fn a_cycle_is_named() {
    let mut model = model();
    model.graph_mut().node[0].input[0] = "y".into();
    let said = refusal(&model, &images());
    assert!(said.ends_with("needs its own output: the graph has a cycle"), "{said}");
}

#[test]
fn an_unknown_calibration_is_refused() {
    let said = tried(&model(), &images(), |config| config.calibration = "kl".into());
    assert!(said.unwrap_err().to_string().starts_with("unknown calibration `kl`"));
}

#[test]
fn a_watch_stops_the_work() {
    let mut told = 0;
    let stopped = quantize(&model(), &config("ort-x86"), &images(), &*engine(), &mut |_| {
        told += 1;
        told < 2
    });
    assert_eq!(stopped.unwrap_err().to_string(), "stopped");
}

#[test]
fn a_pair_within_a_branch_is_seen() {
    let inner = GraphProto {
        name: Some("then".into()),
        node: vec![NodeProto::call("DequantizeLinear", "inner", &["c", "s"], &["t"])],
        output: vec![ValueInfoProto::of_kind("t", 1)],
        ..GraphProto::default()
    };
    let mut branch = NodeProto::call("If", "choice", &["which"], &["z"]);
    branch.attribute.push(AttributeProto {
        name: Some("then_branch".into()),
        g: Some(inner),
        r#type: Some(5),
        ..AttributeProto::default()
    });
    let model = Sketch::of(&[4, 6, 6]).conv("x", "y", [4, 4]).with(branch).model();
    assert_eq!(
        refusal(&model, &images()),
        "the model is quantized already: node `inner` is a DequantizeLinear; start from the float model"
    );
}
