//! Which tensors of small graphs get codes, and where pairs stand.

use scrimp_onnx::proto::{NodeProto, TensorProto, ValueInfoProto};
use scrimp_onnx::{DataType, Mode, NodeRule, Quantized, Sharing, State, Why, quantize};

use super::graphs::{
    Samples, Sketch, config, count, engine, groups, info, normal, outputs, quantized, spec, sqnr,
    state,
};

fn images() -> Samples {
    Samples::of(8, &[4, 6, 6])
}

/// Signal against noise of the output, in dB.
fn quality(done: &Quantized, data: &Samples) -> f64 {
    sqnr(&outputs(&done.float, data), &outputs(&done.model, data))
}

#[test]
fn a_relu_disappears_into_the_codes_of_the_convolution() {
    let model = Sketch::of(&[4, 6, 6])
        .conv("x", "a", [4, 5])
        .node("Relu", &["a"], "r")
        .conv("r", "y", [5, 3])
        .model();
    let done = quantized(&model, &images(), |_| {});
    assert_eq!(groups(&done.plan), [["r"], ["x"], ["y"]]);
    assert_eq!(
        ["a", "r", "y"].map(|name| state(&done.plan, name)),
        [State::Quantized, State::Cut, State::Quantized]
    );
    // The codes of what a Relu gives begin at 0.
    let at = done.plan.activations.iter().position(|g| g.tensors == ["r"]).unwrap();
    assert_eq!(done.grids[at].zero, 0);
    assert_eq!(
        (count(&done.model, "QuantizeLinear"), count(&done.model, "DequantizeLinear")),
        (3, 5)
    );
    assert!(quality(&done, &images()) > 35.0, "{}", quality(&done, &images()));
    // The output keeps its name, and is what the codes stand for.
    assert_eq!(done.model.graph().output[0].name(), "y");
    let maker = done.model.graph().node.iter().find(|n| n.output[0] == "y").unwrap();
    assert_eq!(maker.op_type(), "DequantizeLinear");
}

#[test]
fn both_sides_of_a_residual_sum_get_codes() {
    let model = Sketch::of(&[4, 6, 6])
        .conv("x", "a", [4, 4])
        .node("Relu", &["a"], "r")
        .conv("r", "b", [4, 4])
        .node("Add", &["b", "r"], "s")
        .node("Relu", &["s"], "t")
        .conv("t", "y", [4, 4])
        .model();
    let done = quantized(&model, &images(), |_| {});
    assert_eq!(groups(&done.plan), [["b"], ["r"], ["t"], ["x"], ["y"]]);
    assert_eq!(state(&done.plan, "s"), State::Quantized);
    // Both readers of r read the same codes.
    let readers = |name: &str| {
        done.model.graph().node.iter().filter(|n| n.input.iter().any(|i| i == name)).count()
    };
    assert_eq!(readers("r/dq"), 2);
    assert_eq!(readers("r"), 1);
    assert!(quality(&done, &images()) > 30.0);
}

#[test]
fn moves_of_elements_share_one_scale() {
    let pool = NodeProto::call("MaxPool", "p", &["r"], &["p"]).with_ints("kernel_shape", &[2, 2]);
    let joined = NodeProto::call("Concat", "j", &["p", "q"], &["j"]).with_int("axis", 1);
    let other = NodeProto::call("MaxPool", "q", &["b"], &["q"]).with_ints("kernel_shape", &[2, 2]);
    let model = Sketch::of(&[4, 6, 6])
        .conv("x", "a", [4, 4])
        .node("Relu", &["a"], "r")
        .conv("x", "b", [4, 4])
        .with(pool)
        .with(other)
        .with(joined)
        .node("Flatten", &["j"], "f")
        .weight("w", &[200, 10])
        .node("MatMul", &["f", "w"], "y")
        .model();
    let done = quantized(&model, &images(), |_| {});
    assert_eq!(groups(&done.plan), [vec!["b", "f", "j", "p", "q", "r"], vec!["x"]]);
    let tied = done.plan.activations.iter().find(|g| g.tensors.len() == 6).unwrap();
    assert_eq!(
        {
            let mut s = tied.sources.clone();
            s.sort();
            s
        },
        ["b", "r"]
    );
    for name in ["p", "q", "j", "f"] {
        assert_eq!(state(&done.plan, name), State::Passing, "{name}");
    }
    // Each of the six has a pair, and all twelve nodes read one scale.
    let of_group: Vec<&NodeProto> = done
        .model
        .graph()
        .node
        .iter()
        .filter(|n| n.op_type() == "QuantizeLinear" && n.input[0] != "x")
        .collect();
    assert_eq!(of_group.len(), 6);
    assert!(of_group.iter().all(|n| n.input[1..] == of_group[0].input[1..]));
    assert!(quality(&done, &images()) > 30.0);
}

#[test]
fn padding_passes_codes_on_only_where_it_pads_with_zero() {
    for (value, passes) in [(None, true), (Some(0.0), true), (Some(1.5), false)] {
        let mut inputs = vec!["r", "pads"];
        inputs.extend(value.map(|_| "value"));
        let model = Sketch::of(&[4, 6, 6])
            .conv("x", "a", [4, 4])
            .node("Relu", &["a"], "r")
            .ints("pads", &[0, 0, 1, 1, 0, 0, 1, 1])
            .floats("value", &[], &[value.unwrap_or(0.0)])
            .node("Pad", &inputs, "p")
            .conv("p", "y", [4, 4])
            .model();
        let done = quantized(&model, &images(), |_| {});
        let expected = if passes { State::Passing } else { State::Float(Why::NoCodes) };
        assert_eq!(state(&done.plan, "p"), expected, "{value:?}");
        let tied = groups(&done.plan).contains(&vec!["p".to_owned(), "r".to_owned()]);
        assert_eq!(tied, passes, "{value:?}");
        assert!(quality(&done, &images()) > 30.0);
    }
}

#[test]
fn what_prepares_the_outputs_stays_float() {
    let model = Sketch::of(&[4, 6, 6])
        .conv("x", "a", [4, 4])
        .weight("k", &[1])
        .node("Mul", &["a", "k"], "m")
        .node("Sigmoid", &["m"], "y")
        .model();
    let done = quantized(&model, &images(), |_| {});
    assert_eq!(state(&done.plan, "m"), State::Float(Why::AtTheEnd));
    assert_eq!(state(&done.plan, "y"), State::Float(Why::Operator));
    assert_eq!(groups(&done.plan), [["a"], ["x"]]);
    assert_eq!(done.model.graph().constant("k"), done.float.graph().constant("k"));
}

#[test]
fn excluded_nodes_stay_float_and_keep_a_weight_that_they_share() {
    let model = Sketch::of(&[4, 6, 6])
        .conv("x", "a", [4, 4])
        .with(NodeProto::call("Conv", "b", &["a", "w_a"], &["b"]).with_ints("pads", &[1; 4]))
        .node("Relu", &["b"], "y")
        .model();
    let done = quantized(&model, &images(), |config| config.rules.push(NodeRule::float("b")));
    assert_eq!(state(&done.plan, "b"), State::Float(Why::Excluded));
    assert_eq!(done.plan.weights[0].readers, ["a"]);
    // The float constant is there beside the codes, as it was in the file.
    assert_eq!(done.model.graph().constant("w_a"), done.float.graph().constant("w_a"));
    let node = |name: &str| done.model.graph().node.iter().find(|n| n.name() == name).unwrap();
    assert_eq!((node("a").arg(1), node("b").arg(1)), (Some("w_a/dq"), Some("w_a")));
    assert!(quality(&done, &images()) > 30.0);

    let both = quantized(&model, &images(), |_| {});
    assert_eq!(both.plan.weights[0].readers, ["a", "b"]);
    assert!(both.model.graph().constant("w_a").is_none());
}

#[test]
fn a_constant_among_activations_becomes_codes_for_those_that_read_codes() {
    // 0.5 .. 3.7 has no place on a grid of 255 steps, so that a float reader would notice.
    let values: Vec<f32> = (0..36).map(|i| 0.5 + 0.089 * i as f32).collect();
    let model = Sketch::of(&[4, 6, 6])
        .conv("x", "a", [4, 4])
        .floats("k", &[1, 1, 6, 6], &values)
        .node("Add", &["a", "k"], "s")
        .conv("s", "c", [4, 4])
        .node("Sigmoid", &["c"], "g")
        .node("Mul", &["g", "k"], "y")
        .model();
    let done = quantized(&model, &images(), |_| {});
    assert_eq!(state(&done.plan, "s"), State::Quantized);
    let node = |name: &str| done.model.graph().node.iter().find(|n| n.name() == name).unwrap();
    assert_eq!(node("s").arg(1), Some("k/dq"));
    assert_eq!(node("y").arg(1), Some("k"));
    assert_eq!(done.model.graph().constant("k").unwrap().to_f32().unwrap(), values);
    let codes = done.model.graph().constant("k/c").unwrap();
    assert_eq!((codes.kind(), codes.dims.as_slice()), (Some(DataType::Uint8), &[1, 1, 6, 6][..]));
}

#[test]
fn a_second_output_reads_the_codes_of_the_convolution() {
    let model =
        Sketch::of(&[4, 6, 6]).conv("x", "a", [4, 4]).conv("a", "y", [4, 4]).output("a").model();
    let done = quantized(&model, &images(), |_| {});
    let names: Vec<&str> = done.model.graph().output.iter().map(ValueInfoProto::name).collect();
    assert_eq!(names, ["y", "a"]);
    for name in ["y", "a"] {
        let maker = done.model.graph().node.iter().find(|n| n.output[0] == name).unwrap();
        assert_eq!(maker.op_type(), "DequantizeLinear", "{name}");
    }
    assert!(quality(&done, &images()) > 30.0);
}

#[test]
fn tensorrt_gets_a_pair_for_each_reader_and_no_zero_points() {
    let model = Sketch::of(&[4, 6, 6])
        .conv("x", "a", [4, 4])
        .node("Relu", &["a"], "r")
        .conv("r", "b", [4, 4])
        .node("Add", &["b", "r"], "s")
        .conv("s", "y", [4, 4])
        .model();
    let config = config("tensorrt");
    let done = quantize(&model, &config, &images(), &*engine(), &mut |_| true).unwrap();
    assert!(done.grids.iter().all(|grid| grid.zero == 0));
    assert!(done.plan.activations.iter().all(|g| g.spec.element.name == "int8"));
    // One reader for each value but the codes of r, which two read: five tensors, six pairs.
    assert_eq!(count(&done.model, "QuantizeLinear"), 6);
    let graph = done.model.graph();
    for node in graph.node.iter().filter(|n| n.op_type() == "DequantizeLinear") {
        let readers = graph.node.iter().filter(|n| n.input.contains(&node.output[0])).count();
        assert!(readers <= 1, "{}: {readers}", node.output[0]);
    }
    let quality = quality(&done, &images());
    assert!(quality > 25.0, "{quality}");
}

#[test]
fn weights_alone_need_no_data_and_leave_activations() {
    let model = Sketch::of(&[4, 6, 6]).conv("x", "a", [4, 5]).conv("a", "y", [5, 4]).model();
    let nothing = Samples { name: "x".into(), shape: vec![4, 6, 6], values: Vec::new() };
    let done = quantized(&model, &nothing, |config| config.mode = Mode::Weights);
    assert_eq!((done.samples, done.grids.len(), done.plan.activations.len()), (0, 0, 0));
    assert_eq!(["a", "y"].map(|name| state(&done.plan, name)), [State::Weights; 2]);
    assert_eq!(
        (count(&done.model, "QuantizeLinear"), count(&done.model, "DequantizeLinear")),
        (0, 2)
    );
    assert!(quality(&done, &images()) > 38.0);
}

#[test]
fn blocks_of_int4_declare_the_version_that_has_them() {
    // Peer failure 13: files of int4 under version 17 do not load.
    let model = Sketch::of(&[70])
        .weight("w", &[70, 12])
        .node("MatMul", &["x", "w"], "m")
        .weight("v", &[6, 12])
        .with(NodeProto::call("Gemm", "y", &["m", "v"], &["y"]).with_int("transB", 1))
        .model();
    let data = Samples::of(4, &[70]);
    let done = quantized(&model, &data, |config| {
        config.mode = Mode::Weights;
        config.weights = spec("int4/group:32");
    });
    assert_eq!((done.model.opset(), done.model.proto.ir_version), (21, Some(10)));
    let sharing: Vec<Sharing> = done.weights.iter().map(|w| w.sharing).collect();
    assert_eq!(
        sharing,
        [Sharing::Blocks { axis: 0, len: 32 }, Sharing::Blocks { axis: 1, len: 32 }]
    );
    let graph = done.model.graph();
    let dims = |name: &str| graph.constant(name).map(|t| t.dims.clone());
    // Three blocks of 32, 32 and 6.
    assert_eq!((dims("w/c"), dims("w/s")), (Some(vec![70, 12]), Some(vec![3, 12])));
    assert_eq!((dims("v/c"), dims("v/s")), (Some(vec![6, 12]), Some(vec![6, 1])));
    assert_eq!(graph.constant("w/c").unwrap().raw_data.as_ref().unwrap().len(), 420);
    let node = graph.node.iter().find(|n| n.arg(0) == Some("w/c")).unwrap();
    assert_eq!((node.int("block_size", 0), node.int("axis", -1)), (32, 0));
    assert!(quality(&done, &data) > 15.0);
}

#[test]
fn blocks_under_powers_of_two_are_those_of_the_codec() {
    // Three blocks of 32, 32 and 6, along either axis.
    let model = Sketch::of(&[70])
        .weight("w", &[70, 12])
        .node("MatMul", &["x", "w"], "m")
        .weight("v", &[6, 12])
        .with(NodeProto::call("Gemm", "y", &["m", "v"], &["y"]).with_int("transB", 1))
        .model();
    let data = Samples::of(16, &[70]);
    for (name, least) in [("mxfp8_e4m3", 22.0), ("mxfp8_e5m2", 17.0), ("mxfp4/scale:even", 9.0)] {
        let done = quantized(&model, &data, |config| {
            config.mode = Mode::Weights;
            config.weights = spec(name);
            // A spread is brought back by scales, which these cannot.
            config.statistics = scrimp_onnx::Statistics::MeanAndSpread;
        });
        assert_eq!((done.model.opset(), done.model.proto.ir_version), (24, Some(12)), "{name}");
        let graph = done.model.graph();
        let exponents = graph.constant("w/s").unwrap();
        assert_eq!(exponents.kind(), Some(DataType::Float8E8M0));
        assert_eq!(exponents.dims, [3, 12]);
        assert_eq!(count(&done.model, "Cast"), 2);
        let node = graph.node.iter().find(|n| n.arg(0) == Some("w/c")).unwrap();
        assert_eq!((node.int("block_size", 0), node.int("axis", -1)), (32, 0));

        let scheme: scrimp_codec::Scheme = name.parse().unwrap();
        let values = done.float.graph().constant("w").unwrap().to_f32().unwrap();
        let packed = &done.weights[0];
        let stored = packed.values();
        for column in 0..12 {
            let column: Vec<usize> = (0..70).map(|row| row * 12 + column).collect();
            for block in column.chunks(32) {
                let mut wanted: Vec<f32> = block.iter().map(|&at| values[at]).collect();
                let shape = [1, wanted.len()];
                scheme.emulate(&mut wanted, &shape, &scrimp_codec::Stream::new(0, 0)).unwrap();
                let found: Vec<f32> = block.iter().map(|&at| stored[at]).collect();
                assert_eq!(found, wanted, "{name}");
            }
        }
        let spec = spec(name);
        assert_eq!(spec.bytes(&done.plan.weights[0].layout, false), Ok(packed.bytes()));
        assert!(quality(&done, &data) > least, "{name}: {} dB", quality(&done, &data));
    }
}

#[test]
fn the_least_and_the_largest_power_of_two_are_exponents() {
    let mut values = vec![0.0; 32];
    values.extend([f32::MAX; 32]);
    values.extend([1e-45; 32]);
    let model =
        Sketch::of(&[96]).floats("w", &[96, 1], &values).node("MatMul", &["x", "w"], "y").model();
    let none = Samples::of(0, &[96]);
    let done = quantized(&model, &none, |config| {
        config.mode = Mode::Weights;
        config.weights = spec("mxfp4");
    });
    let exponents = done.model.graph().constant("w/s").unwrap();
    assert_eq!(exponents.raw_data.as_deref(), Some(&[0, 252, 0][..]));
    // And they are read as what they were written from.
    let mut folded = done.model.clone();
    scrimp_onnx::simplify::fold_weights(&mut folded).unwrap();
    let read = folded.graph().constant("w/dq").unwrap().to_f32().unwrap();
    assert_eq!(read, done.weights[0].values());
    assert_eq!(folded.graph().node.len(), 1);
    assert!(read[32..64].iter().all(|&v| v > 2e38 && v.is_finite()), "{}", read[32]);
}

#[test]
fn blocks_run_along_what_is_summed_over() {
    let lstm = NodeProto::call("LSTM", "l", &["x", "w", "r"], &["l"]).with_int("hidden_size", 8);
    let channel = NodeProto::call("Conv", "y", &["c", "d"], &["y"]).with_int("group", 4);
    let model = Sketch::of(&[1, 64])
        .weight("w", &[1, 32, 64])
        .weight("r", &[1, 32, 8])
        .weight("d", &[4, 1, 1, 7])
        .with(lstm)
        .ints("shape", &[-1, 4, 1, 8])
        .node("Reshape", &["l", "shape"], "c")
        .with(channel)
        .model();
    let done = quantized(&model, &Samples::of(2, &[1, 64]), |config| {
        config.mode = Mode::Weights;
        config.weights = spec("int4/group:32");
    });
    let scales: Vec<(&str, usize)> = done
        .plan
        .weights
        .iter()
        .zip(&done.weights)
        .map(|(plan, packed)| (plan.tensor.as_str(), packed.scales.len()))
        .collect();
    assert_eq!(scales, [("w", 64), ("r", 32), ("d", 4)]);
}

#[test]
fn a_bias_of_a_product_is_stored_at_the_scale_of_its_sums() {
    let model = Sketch::of(&[24])
        .weight("w", &[24, 6])
        .weight("b", &[6])
        .node("Gemm", &["x", "w", "b"], "y")
        .model();
    let data = Samples::of(16, &[24]);
    let done = quantized(&model, &data, |_| {});
    let graph = done.model.graph();
    let value = |name: &str| graph.constant(name).unwrap();
    assert_eq!(value("b/c").kind(), Some(DataType::Int32));
    let scales = value("b/s").to_f32().unwrap();
    let wanted: Vec<f32> = done.weights[0].scales.iter().map(|s| s * done.grids[0].scale).collect();
    assert_eq!(scales, wanted);
    let biases = done.float.graph().constant("b").unwrap().to_f32().unwrap();
    for ((code, scale), bias) in value("b/c").to_i64().unwrap().into_iter().zip(scales).zip(biases)
    {
        assert!((code as f32 * scale - bias).abs() <= scale * 0.51);
    }
    assert!(quality(&done, &data) > 35.0);
}

#[test]
fn integers_that_look_like_activations_stay_as_they_are() {
    // An Add of shapes before a Reshape: no float, no codes.
    let mut model = Sketch::of(&[4, 6, 6])
        .conv("x", "a", [4, 4])
        .node("Shape", &["a"], "n")
        .ints("zero", &[0, 0, 0, 0])
        .node("Add", &["n", "zero"], "m")
        .node("Reshape", &["a", "m"], "f")
        .conv("f", "y", [4, 4])
        .model();
    model.graph_mut().input[0] = info("x", &[None, Some(4), Some(6), Some(6)]);
    let done = quantized(&model, &images(), |_| {});
    assert!(matches!(state(&done.plan, "m"), State::Float(Why::NotFloat | Why::AtTheEnd)));
    assert!(
        !groups(&done.plan)
            .iter()
            .flatten()
            .any(|name| ["m", "n", "zero"].contains(&name.as_str()))
    );
    assert!(quality(&done, &images()) > 30.0);
}

#[test]
fn a_mean_of_a_layer_of_one_axis_is_brought_back() {
    // Ten places of ten channels, and then nine: the channels are axis 1 whatever the sizes.
    for places in [10, 9] {
        let conv =
            NodeProto::call("Conv", "y", &["x", "w", "b"], &["y"]).with_ints("pads", &[1, 1]);
        let model =
            Sketch::of(&[6, places]).weight("w", &[10, 6, 3]).weight("b", &[10]).with(conv).model();
        let mut data = Samples::of(32, &[6, places]);
        data.values.iter_mut().for_each(|v| *v += 1.0);
        let done = quantized(&model, &data, |config| {
            config.mode = Mode::Weights;
            config.weights = spec("int2/channel");
            config.statistics = scrimp_onnx::Statistics::Mean;
        });
        let (float, rounded) = (outputs(&done.float, &data), outputs(&done.model, &data));
        for channel in 0..10 {
            let mean = |values: &[f32]| -> f32 {
                let of_channel = values.chunks(places).skip(channel).step_by(10).flatten();
                of_channel.sum::<f32>() / (32 * places) as f32
            };
            let (a, b) = (mean(&float), mean(&rounded));
            assert!((a - b).abs() < 1e-3, "{places}, {channel}: {a}, {b}");
        }
    }
}

#[test]
fn gptq_loses_less_than_the_nearest_codes() {
    let mut data = Samples::of(64, &[24]);
    // Inputs that go together: each is half of the one before it and half its own.
    for sample in data.values.chunks_mut(24) {
        for at in 1..sample.len() {
            sample[at] = 0.7 * sample[at - 1] + 0.5 * sample[at];
        }
    }
    let model = Sketch::of(&[24]).weight("w", &[24, 16]).node("MatMul", &["x", "w"], "y").model();
    let [nearest, gptq] = [scrimp_onnx::WeightRounding::Nearest, scrimp_onnx::WeightRounding::Gptq]
        .map(|rounding| {
            let done = quantized(&model, &data, |config| {
                config.mode = Mode::Weights;
                config.weights = spec("int3/channel");
                config.weight_rounding = rounding;
            });
            quality(&done, &data)
        });
    assert!(gptq > nearest + 2.0, "{gptq}, {nearest}");
}

#[test]
fn a_layer_that_calibration_never_reaches_keeps_its_weights() {
    let model = Sketch::of(&[8]).weight("w", &[8, 4]).node("MatMul", &["x", "w"], "y").model();
    let silent = Samples { name: "x".into(), shape: vec![8], values: vec![0.0; 80] };
    let done = quantized(&model, &silent, |config| {
        config.mode = Mode::Weights;
        config.weight_rounding = scrimp_onnx::WeightRounding::Gptq;
    });
    let spoken = Samples { values: normal(80, 3), ..silent };
    assert!(quality(&done, &spoken) > 38.0);
    let _: &TensorProto = done.model.graph().constant("w/c").unwrap();
}
