//! What is folded keeps what a model computes.

use scrimp_onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use scrimp_onnx::simplify::{Simplified, simplify};
use scrimp_onnx::{DataType, LoadOptions, Model, Value};

use super::graphs::{Samples, Sketch, count, distance, engine, info, outputs};

/// Simplifies, and asserts that the outputs are the same within rounding.
fn kept(model: &Model, data: &Samples) -> (Model, Simplified) {
    let mut simple = model.clone();
    let done = simplify(&mut simple).unwrap();
    let far = distance(&outputs(model, data), &outputs(&simple, data));
    assert!(far < 1e-5, "{far}");
    (simple, done)
}

/// A batch norm of `from` whose constants are anything but neutral.
fn norm(sketch: Sketch, from: &str, to: &str, channels: usize) -> Sketch {
    let values = |base: f32, step: f32| -> Vec<f32> {
        (0..channels).map(|c| base + step * c as f32).collect()
    };
    let names = ["gamma", "beta", "mean", "variance"].map(|what| format!("{to}_{what}"));
    let inputs = [from, &names[0], &names[1], &names[2], &names[3]];
    let node =
        NodeProto::call("BatchNormalization", to, &inputs, &[to]).with_float("epsilon", 1e-3);
    sketch
        .floats(&names[0], &[channels], &values(0.5, 0.25))
        .floats(&names[1], &[channels], &values(-1.0, 0.5))
        .floats(&names[2], &[channels], &values(0.3, -0.2))
        .floats(&names[3], &[channels], &values(0.1, 0.7))
        .with(node)
}

#[test]
fn batch_norms_become_part_of_convolutions() {
    let data = Samples::of(3, &[4, 6, 6]);
    for bias in [false, true] {
        for (op, weight, groups) in [
            ("Conv", [5, 4, 3, 3], 1),
            ("Conv", [6, 2, 3, 3], 2),
            ("ConvTranspose", [4, 5, 3, 3], 1),
        ] {
            let channels = weight[usize::from(op == "ConvTranspose")];
            let inputs = ["x", "w", "b"];
            let node = NodeProto::call(op, "c", &inputs[..2 + usize::from(bias)], &["c"]);
            let sketch = Sketch::of(&[4, 6, 6])
                .weight("w", &weight)
                .weight("b", &[channels])
                .with(node.with_int("group", groups));
            let (simple, done) = kept(&norm(sketch, "c", "y", channels).model(), &data);
            assert_eq!((done.norms, count(&simple, "BatchNormalization")), (1, 0), "{op}, {bias}");
        }
    }
}

#[test]
fn batch_norms_become_part_of_products() {
    let data = Samples::of(7, &[4]);
    for transposed in [0, 1] {
        for bias in [None, Some(vec![5]), Some(vec![1, 5]), Some(vec![1])] {
            let inputs = ["x", "w", "b"];
            let node =
                NodeProto::call("Gemm", "c", &inputs[..2 + usize::from(bias.is_some())], &["c"]);
            let weight = if transposed == 1 { [5, 4] } else { [4, 5] };
            let sketch = Sketch::of(&[4])
                .weight("w", &weight)
                .weight("b", bias.as_deref().unwrap_or(&[5]))
                .with(node.with_int("transB", transposed));
            let (simple, done) = kept(&norm(sketch, "c", "y", 5).model(), &data);
            assert_eq!(
                (done.norms, count(&simple, "BatchNormalization")),
                (1, 0),
                "{transposed}, {bias:?}"
            );
        }
        // A bias of one value for each sample is no bias of a row.
        let sketch = Sketch::of(&[4]).weight("w", &[4, 5]).weight("b", &[5, 1]).node(
            "Gemm",
            &["x", "w", "b"],
            "c",
        );
        let (_, done) = kept(&norm(sketch, "c", "y", 5).model(), &Samples::of(5, &[4]));
        assert_eq!(done.norms, 0);
    }
}

#[test]
fn tied_weights_stay_tied() {
    // Two convolutions of one weight, of which one has a batch norm.
    let sketch = Sketch::of(&[3, 5, 5])
        .conv("x", "a", [3, 3])
        .with(NodeProto::call("Conv", "b", &["a_n", "w_a"], &["b"]).with_ints("pads", &[1; 4]));
    let model = norm(sketch, "a", "a_n", 3).node("Relu", &["b"], "y").model();
    let (simple, done) = kept(&model, &Samples::of(2, &[3, 5, 5]));
    assert_eq!((done.norms, count(&simple, "BatchNormalization")), (0, 1));
    assert!(simple.graph().node.iter().filter(|n| n.arg(1) == Some("w_a")).count() == 2);
}

#[test]
fn a_norm_of_what_something_else_reads_stays() {
    let sketch = Sketch::of(&[3, 5, 5]).conv("x", "a", [3, 3]);
    let model = norm(sketch, "a", "n", 3).node("Add", &["a", "n"], "y").model();
    let (simple, done) = kept(&model, &Samples::of(2, &[3, 5, 5]));
    assert_eq!((done.norms, count(&simple, "BatchNormalization")), (0, 1));
}

#[test]
fn additions_become_biases() {
    let data = Samples::of(2, &[3, 5, 5]);
    for (shape, folds) in [
        (vec![1, 4, 1, 1], true),
        (vec![4, 1, 1], true),
        (vec![5], false),
        (vec![1, 1, 5, 5], false),
        (vec![1], false),
        // The sum has an axis more than the convolution.
        (vec![1, 1, 4, 1, 1], false),
    ] {
        for swapped in [false, true] {
            let inputs = if swapped { ["b", "c"] } else { ["c", "b"] };
            let sketch = Sketch::of(&[3, 5, 5]).conv("x", "c", [3, 4]).weight("b", &shape);
            let model = sketch.node("Add", &inputs, "y").model();
            let (simple, done) = kept(&model, &data);
            assert_eq!((done.biases == 1, count(&simple, "Add") == 0), (folds, folds), "{shape:?}");
        }
    }
}

#[test]
fn a_product_and_the_addition_after_it_become_one() {
    let data = Samples::of(3, &[4, 3]);
    let flat = |sketch: Sketch| sketch.node("Flatten", &["x"], "f").weight("w", &[12, 5]);
    for (shape, folds) in [
        (vec![5], true),
        (vec![1, 5], true),
        (vec![1], true),
        (vec![], true),
        // The sum has an axis more than the product.
        (vec![1, 1, 5], false),
        (vec![3, 5], false),
    ] {
        for swapped in [false, true] {
            let inputs = if swapped { ["b", "p"] } else { ["p", "b"] };
            let sketch = flat(Sketch::of(&[4, 3])).node("MatMul", &["f", "w"], "p");
            let mut model = sketch.weight("b", &shape).node("Add", &inputs, "y").model();
            // What the engine makes of a bias of one value is a panic, so it sees the sum of a plain product alone.
            let product = flat(Sketch::of(&[4, 3])).node("MatMul", &["f", "w"], "y").model();
            let bias = model.graph().constant("b").unwrap().to_f32().unwrap();
            assert_eq!(simplify(&mut model).unwrap().biases, usize::from(folds), "{shape:?}");
            if folds {
                assert_eq!((count(&model, "Gemm"), count(&model, "Add")), (1, 0), "{shape:?}");
                let mut wanted = outputs(&product, &data);
                wanted.iter_mut().enumerate().for_each(|(at, v)| *v += bias[at % 5 % bias.len()]);
                let far = distance(&wanted, &outputs(&model, &data));
                assert!(far < 1e-5, "{shape:?}: {far}");
            }
        }
    }
    // Without a bias of its own, and with another order of the weight.
    let gemm = NodeProto::call("Gemm", "p", &["f", "v"], &["p"]).with_int("transB", 1);
    let model = flat(Sketch::of(&[4, 3]))
        .weight("v", &[5, 12])
        .with(gemm.with_float("alpha", 0.5))
        .weight("b", &[5])
        .node("Add", &["p", "b"], "y")
        .model();
    assert_eq!(kept(&model, &data).1.biases, 1);
    // Where the input has more axes, or as many as nobody says, there is no Gemm of it.
    let model = Sketch::of(&[4, 3])
        .weight("w", &[3, 5])
        .node("MatMul", &["x", "w"], "p")
        .weight("b", &[5])
        .node("Add", &["p", "b"], "y")
        .model();
    let (simple, done) = kept(&model, &data);
    assert_eq!((done.biases, count(&simple, "MatMul")), (0, 1));
    let unknown = {
        let mut model = model;
        model.graph_mut().input[0] = ValueInfoProto::of_kind("x", 1);
        model
    };
    assert_eq!(kept(&unknown, &data).1.biases, 0);
    // What something else reads stays, too.
    let model = flat(Sketch::of(&[4, 3]))
        .node("MatMul", &["f", "w"], "p")
        .weight("b", &[5])
        .node("Add", &["p", "b"], "s")
        .node("Mul", &["p", "s"], "y")
        .model();
    assert_eq!(kept(&model, &data).1.biases, 0);
}

#[test]
fn a_norm_after_a_product_and_an_addition_becomes_part_of_both() {
    let sketch = Sketch::of(&[12])
        .weight("w", &[12, 5])
        .node("MatMul", &["x", "w"], "p")
        .weight("b", &[5])
        .node("Add", &["p", "b"], "s");
    let model = norm(sketch, "s", "y", 5).model();
    let (simple, done) = kept(&model, &Samples::of(3, &[12]));
    assert_eq!((done.biases, done.norms), (1, 1));
    assert_eq!(simple.graph().node.len(), 1);
}

#[test]
fn constants_of_half_precision_are_left_as_they_are() {
    let half = |name: &str, dims: &[usize]| {
        let count: usize = dims.iter().product();
        TensorProto::from_raw(name, DataType::Float16, dims, 0x3800u16.to_le_bytes().repeat(count))
    };
    let mut sketch = Sketch::of(&[3, 5, 5]);
    sketch.graph.initializer = vec![half("w", &[4, 3, 3, 3]), half("b", &[1, 4, 1, 1])];
    sketch.graph.initializer.extend(["g", "be", "m", "v"].map(|name| half(name, &[4])));
    let mut model = sketch
        .node("Conv", &["x", "w"], "c")
        .node("BatchNormalization", &["c", "g", "be", "m", "v"], "n")
        .node("Conv", &["x", "w2"], "c2")
        .node("Add", &["c2", "b"], "a")
        .node("Add", &["a", "n"], "y")
        .model();
    model.graph_mut().initializer.push(half("w2", &[4, 3, 3, 3]));
    let before = model.graph().initializer.clone();
    let done = simplify(&mut model).unwrap();
    assert_eq!((done.norms, done.biases), (0, 0));
    for tensor in &model.graph().initializer {
        assert_eq!(tensor.kind(), Some(DataType::Float16), "{}", tensor.name());
    }
    assert_eq!(model.graph().initializer.len(), before.len());
}

#[test]
fn moves_of_constants_are_done_once() {
    // [2, 12] by way of every operator that moves elements.
    let slice = NodeProto::call("Slice", "sliced", &["t", "from", "to", "axes"], &["sliced"]);
    let transposed =
        NodeProto::call("Transpose", "t", &["r"], &["t"]).with_ints("perm", &[2, 0, 1]);
    let joined =
        NodeProto::call("Concat", "joined", &["sliced", "last"], &["joined"]).with_int("axis", -3);
    let model = Sketch::of(&[12])
        .weight("w", &[4, 12])
        .ints("shape", &[2, -1, 3])
        .ints("from", &[0, -8])
        .ints("to", &[-1, i64::MAX])
        .ints("axes", &[0, 2])
        .ints("one", &[1])
        .ints("flat", &[0, -1])
        .ints("twelve", &[12])
        .ints("zero", &[0])
        .ints("three", &[3])
        .node("Reshape", &["w", "shape"], "r") // [2, 8, 3]
        .with(transposed) // [3, 2, 8]
        .with(slice) // [2, 2, 8]
        .node("Slice", &["t", "two", "three", "zero"], "last") // [1, 2, 8]
        .ints("two", &[2])
        .with(joined) // [3, 2, 8]
        .node("Unsqueeze", &["joined", "one"], "u") // [3, 1, 2, 8]
        .node("Squeeze", &["u", "one"], "s") // [3, 2, 8]
        .ints("square", &[12, 4])
        .node("Reshape", &["s", "square"], "m")
        .node("Identity", &["m"], "i")
        .node("MatMul", &["x", "i"], "y")
        .model();
    let (simple, done) = kept(&model, &Samples::of(5, &[12]));
    assert_eq!(done.constants, 9);
    assert_eq!(simple.graph().node.len(), 1);
    assert_eq!(simple.graph().initializer.len(), 1);
}

#[test]
fn a_constant_that_callers_may_replace_becomes_one_that_they_may_not() {
    // Versions of the format before 4 list constants among the inputs.
    let mut model = Sketch::of(&[3, 5, 5]).conv("x", "y", [3, 4]).model();
    model.proto.ir_version = Some(3);
    model.graph_mut().input.push(info("w_y", &[Some(4), Some(3), Some(3), Some(3)]));
    simplify(&mut model).unwrap();
    let inputs: Vec<&str> = model.graph().input.iter().map(ValueInfoProto::name).collect();
    assert_eq!(inputs, ["x"]);
    assert!(model.graph().constant("w_y").is_some());
}

/// A model of an `If` whose branches multiply by the same weights.
pub fn branches() -> Model {
    let branch = |name: &str, op: &str| GraphProto {
        name: Some(name.into()),
        initializer: vec![
            Sketch::default().weight("w", &[16, 16]).graph.initializer[0].clone(),
            TensorProto::from_f32("k", &[1], &[if op == "Relu" { 2.0 } else { 3.0 }]),
        ],
        node: vec![
            NodeProto::call("MatMul", &format!("{name}_m"), &["x", "w"], &["m"]),
            NodeProto::call("Mul", &format!("{name}_k"), &["m", "k"], &["s"]),
            NodeProto::call(op, &format!("{name}_a"), &["s"], &["o"]),
        ],
        output: vec![ValueInfoProto::of_kind("o", 1)],
        ..GraphProto::default()
    };
    let mut choose = NodeProto::call("If", "y", &["which"], &["y"]);
    for (key, graph) in
        [("then_branch", branch("then", "Relu")), ("else_branch", branch("else", "Tanh"))]
    {
        let attribute = scrimp_onnx::proto::AttributeProto {
            name: Some(key.into()),
            r#type: Some(5),
            g: Some(graph),
            ..Default::default()
        };
        choose.set(attribute);
    }
    let mut model = Sketch::of(&[16]).with(choose).model();
    model.graph_mut().input.push(ValueInfoProto::of_kind("which", DataType::Bool as i32));
    model
}

/// The output of [`branches`], for either branch.
pub fn chosen(model: &Model, which: bool) -> Vec<f32> {
    let mut session = engine().load(model, &["y".into()], LoadOptions::default()).unwrap();
    let x = Value::f32([2, 16], super::graphs::normal(32, 5));
    let which = Value { shape: Vec::new(), data: scrimp_onnx::Elements::Bool(vec![which]) };
    session.run(&[("x", &x), ("which", &which)]).unwrap()[0].as_f32().unwrap().to_vec()
}

#[test]
fn weights_that_branches_share_are_kept_once() {
    let model = branches();
    let mut simple = model.clone();
    simplify(&mut simple).unwrap();
    let large: Vec<&str> = simple.graph().initializer.iter().map(TensorProto::name).collect();
    assert_eq!(large, ["w.1"]);
    for which in [true, false] {
        assert!(distance(&chosen(&model, which), &chosen(&simple, which)) < 1e-6);
    }
    assert!(simple.to_bytes().len() < model.to_bytes().len() - 900);
}
