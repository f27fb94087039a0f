//! What is done besides rounding: ranges that move between layers, scales that are found at run time, errors of single
//! layers and tensors.

use scrimp_onnx::proto::NodeProto;
use scrimp_onnx::{Equalize, Mode, Model, State, sensitivity};

use super::graphs::{
    Samples, Sketch, count, distance, engine, outputs, quantized, spec, sqnr, state,
};

/// Two convolutions with a ReLU between them, whose middle channels differ in range by up to 500.
fn uneven() -> Model {
    let mut sketch = Sketch::of(&[4, 6, 6]).conv("x", "a", [4, 4]).node("Relu", &["a"], "r").conv(
        "r",
        "y",
        [4, 4],
    );
    stretch(&mut sketch, "w_a");
    sketch.model()
}

/// The same along one axis, where the channels are as many as the places.
fn uneven_line() -> Model {
    let conv = |input: &str, output: &str| {
        let weight = format!("w_{output}");
        NodeProto::call("Conv", output, &[input, &weight], &[output]).with_ints("pads", &[1, 1])
    };
    let mut sketch = Sketch::of(&[4, 6])
        .weight("w_a", &[6, 4, 3])
        .weight("w_y", &[4, 6, 3])
        .with(conv("x", "a"))
        .node("Relu", &["a"], "r")
        .with(conv("r", "y"));
    stretch(&mut sketch, "w_a");
    sketch.model()
}

/// Two products with biases.
fn uneven_products() -> Model {
    let gemm = |inputs: &[&str], output: &str| {
        NodeProto::call("Gemm", output, inputs, &[output]).with_int("transB", 1)
    };
    let mut sketch = Sketch::of(&[8])
        .weight("w1", &[6, 8])
        .weight("b1", &[6])
        .weight("w2", &[4, 6])
        .with(gemm(&["x", "w1", "b1"], "a"))
        .with(gemm(&["a", "w2"], "y"));
    stretch(&mut sketch, "w1");
    sketch.model()
}

/// Multiplies the rows of a weight by 1, 8, 64, 512, 1, ...
fn stretch(sketch: &mut Sketch, name: &str) {
    let tensor = sketch.graph.initializer.iter_mut().find(|t| t.name() == name).unwrap();
    let shape = tensor.shape().unwrap();
    let row: usize = shape[1..].iter().product();
    let values = tensor.to_f32().unwrap();
    let stretched: Vec<f32> = values
        .iter()
        .enumerate()
        .map(|(at, v)| v * [1.0, 8.0, 64.0, 512.0][at / row % 4])
        .collect();
    *tensor = scrimp_onnx::proto::TensorProto::from_f32(name, &shape, &stretched);
}

#[test]
fn moving_ranges_keeps_the_float_model() {
    for (model, shape) in
        [(uneven(), &[4, 6, 6][..]), (uneven_line(), &[4, 6]), (uneven_products(), &[8])]
    {
        let data = Samples::of(8, shape);
        let before = outputs(&model, &data);
        for way in
            [Equalize::CrossLayer, Equalize::Smooth { alpha: 0.5 }, Equalize::ActivationAware]
        {
            let done = quantized(&model, &data, |config| config.equalize = way);
            assert_eq!(done.equalized, 1, "{way:?}");
            let off = distance(&before, &outputs(&done.float, &data));
            assert!(off < 1e-5, "{way:?} on {shape:?}: {off}");
            let weight = |model: &Model| model.graph().initializer[0].to_f32().unwrap();
            assert_ne!(weight(&model), weight(&done.float), "{way:?} on {shape:?}");
        }
    }
}

#[test]
fn equal_ranges_round_better_under_one_scale() {
    let (model, data) = (uneven(), Samples::of(8, &[4, 6, 6]));
    let before = outputs(&model, &data);
    let rounded = |equalize| {
        let done = quantized(&model, &data, |config| {
            config.mode = Mode::Weights;
            config.weights = spec("int8");
            config.equalize = equalize;
        });
        sqnr(&before, &outputs(&done.model, &data))
    };
    let (plain, equal) = (rounded(Equalize::None), rounded(Equalize::CrossLayer));
    assert!(equal > plain + 3.0, "{equal} dB, {plain} dB");
}

#[test]
fn products_find_their_scale_while_the_model_runs() {
    let model = uneven_products();
    let data = Samples::of(8, &[8]);
    let done = quantized(&model, &data, |config| config.mode = Mode::Dynamic);
    assert_eq!(count(&done.model, "DynamicQuantizeLinear"), 2);
    assert_eq!(count(&done.model, "MatMulInteger"), 2);
    // Weights are there once, as what is multiplied.
    assert_eq!(count(&done.model, "DequantizeLinear"), 0);
    assert!(done.model.graph().constant("w1").is_none());
    let db = sqnr(&outputs(&model, &data), &outputs(&done.model, &data));
    assert!(db > 30.0, "{db}");
    // Convolutions have codes for their weights alone.
    let done = quantized(&uneven(), &Samples::of(8, &[4, 6, 6]), |c| c.mode = Mode::Dynamic);
    assert_eq!(state(&done.plan, "a"), State::Weights);
}

#[test]
fn the_layer_with_fewest_bits_loses_most() {
    let (model, data) = (uneven(), Samples::of(8, &[4, 6, 6]));
    let done = quantized(&model, &data, |config| {
        config.rules.push(scrimp_onnx::NodeRule {
            ops: vec!["Conv".into()],
            nodes: Some(scrimp_onnx::NodeRule::matcher("y").unwrap()),
            weights: Some(spec("int2/channel")),
            ..Default::default()
        });
    });
    let engine = engine();
    let alone = sensitivity::Alone::new(&done, &data, &*engine, false).unwrap();
    let mut layers: Vec<_> =
        sensitivity::measurable(&done).into_iter().map(|at| alone.error(at).unwrap()).collect();
    layers.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    let names: Vec<&str> = layers.iter().map(|layer| layer.node.as_str()).collect();
    assert_eq!(names, ["y", "a"]);
    assert!(layers[0].sqnr_db + 10.0 < layers[1].sqnr_db, "{layers:?}");

    let tensors = sensitivity::tensors(&done, &data, &*engine).unwrap();
    let names: Vec<&str> = tensors.iter().map(|tensor| tensor.tensor.as_str()).collect();
    assert_eq!(names, ["x", "r", "y"]);
    // The input has lost what 8 bits lose; the output, all that was lost.
    assert!(tensors[0].sqnr_db > 35.0 && tensors[0].sqnr_db.is_finite(), "{tensors:?}");
    let whole = sqnr(&outputs(&done.float, &data), &outputs(&done.model, &data));
    assert!((tensors[2].sqnr_db - whole).abs() < 0.1, "{tensors:?}, {whole}");
}
