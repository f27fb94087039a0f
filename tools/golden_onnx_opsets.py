"""Golden file of ONNX models of old opsets: one small model for each way in which an operator changed, and what it gives.

The outputs are those of ONNX Runtime, at the old opset and without its optimizer. Where it does not run the old operator,
or does not do there what the specification says, they are those of onnx's reference evaluator or of numpy; column `from`
says so.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from golden_file import ONNX, shape_text, write

NOTES = """
model: the bytes of a model file. inputs, outputs: `name:type:shape:bytes` of each, values little-endian.
from: what made the outputs.
"""
IR_OF_OPSET = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9}
F, D, I, B = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL
random = np.random.RandomState(20)
cases = []


def floats(*shape):
    """Values with few digits, so that the file stays small and sums stay away from ties."""
    return (random.randint(-4000, 4001, shape) / np.float32(1024)).astype(np.float32)


def value_info(name, array, ranked=True):
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, array.shape if ranked else None)


def constants(**arrays):
    return [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]


def node(op, inputs, outputs=("y",), **attributes):
    return helper.make_node(op, list(inputs), list(outputs), name=op.lower(), **attributes)


def case(name, opset, nodes, inputs, outputs=("y",), initializers=(), expected=None, types=None, functions=(), imports=()):
    """Adds a model. `types` are those of outputs that are no floats; `expected` is for what nothing else computes."""
    types = types or {}
    nodes = nodes if isinstance(nodes, list) else [nodes]
    ir_version = 8 if functions else IR_OF_OPSET[opset]
    declared = [value_info(n, a) for n, a in inputs.items()]
    if ir_version < 4:
        declared += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in initializers]
    results = [helper.make_tensor_value_info(o, types.get(o, F), None) for o in outputs]
    graph = helper.make_graph(nodes, "g", declared, results, list(initializers))
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), *imports],
        ir_version=ir_version,
        functions=list(functions),
        producer_name="",
    )
    made_by = "numpy"
    if expected is None:
        made_by, expected = run(model, inputs, list(outputs))
    # A whole model says how many axes its outputs have.
    for output, array in zip(model.graph.output, expected, strict=True):
        kind = output.type.tensor_type.elem_type
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind, [None] * np.ndim(array)))
    rows = [text(n, a) for n, a in inputs.items()]
    cases.append(
        [name, opset, made_by, model.SerializeToString(deterministic=True).hex(), " ".join(rows)]
        + [" ".join(text(n, a) for n, a in zip(outputs, expected, strict=True))]
    )


def text(name, array):
    array = np.asarray(array)
    return f"{name}:{array.dtype}:{shape_text(array.shape)}:{array.tobytes().hex()}"


def run(model, inputs, outputs):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        return "onnxruntime", session.run(outputs, inputs)
    except Exception as refusal:  # ONNX Runtime has no common class of errors.
        print(f"{model.graph.node[0].op_type}: {str(refusal)[:150]}")
    return "onnx", ReferenceEvaluator(model).run(outputs, inputs)


def batch_normalization():
    def parameters(*shape):
        scale, bias, mean = floats(*shape), floats(*shape), floats(*shape)
        return constants(scale=scale, bias=bias, mean=mean, var=np.abs(floats(*shape)) + np.float32(0.5))

    names = ["x", "scale", "bias", "mean", "var"]
    x = {"x": floats(2, 3, 2, 2)}
    case("batch_normalization_7", 7, node("BatchNormalization", names, spatial=1), x, initializers=parameters(3))
    spatial = node("BatchNormalization", names, spatial=0, epsilon=0.01)
    values = parameters(3, 2, 2)
    scale, bias, mean, var = (numpy_helper.to_array(t) for t in values)
    y = (x["x"] - mean) / np.sqrt(var + np.float32(0.01)) * scale + bias
    case("batch_normalization_7_positions", 7, spatial, x, initializers=values, expected=[y])
    flat = {"x": floats(2, 3)}
    case("batch_normalization_7_positions_flat", 7, spatial, flat, initializers=parameters(3))
    values = parameters(3)
    scale, bias, mean, var = (numpy_helper.to_array(t).reshape(1, 3, 1, 1) for t in values)
    now = x["x"].mean(axis=(0, 2, 3), keepdims=True)
    now_var = x["x"].var(axis=(0, 2, 3), keepdims=True)
    y = (x["x"] - now) / np.sqrt(now_var + np.float32(1e-5)) * scale + bias
    decay = np.float32(0.75)
    running = [(old * decay + new * (1 - decay)).reshape(3) for old, new in ((mean, now), (var, now_var))]
    training = node("BatchNormalization", names, ["y", "m", "v", "sm", "sv"], momentum=0.75)
    case("batch_normalization_9_training", 9, training, x, ["y", "m", "v"], values, [y, *running])


def inputs_from_attributes():
    x = {"x": floats(3, 4)}
    case("clip_6", 7, node("Clip", ["x"], min=-1.5, max=2.25), x)
    case("clip_6_min", 10, node("Clip", ["x"], min=-0.5), x)
    case("clip_6_max", 10, node("Clip", ["x"], max=0.5), x)
    case("clip_6_plain", 10, node("Clip", ["x"]), x)
    double = [node("Cast", ["x"], ["d"], to=D), node("Clip", ["d"], min=-1.0, max=1.0)]
    case("clip_6_double", 9, double, x, types={"y": D})
    # The element type of the input follows from other nodes alone.
    chain = [node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["a"])]
    case("clip_6_inferred", 9, [*chain, node("Clip", ["a"], max=1.0)], x)
    case("pad_2", 7, node("Pad", ["x"], pads=[1, 0, 0, 2]), x)
    case("pad_2_value", 10, node("Pad", ["x"], pads=[0, 1, 1, 0], value=1.5), x)
    case("pad_2_crop", 10, node("Pad", ["x"], pads=[0, -1, 1, 0], value=-2.0), x)
    case("pad_2_reflect", 10, node("Pad", ["x"], pads=[1, 1, 0, 2], mode="reflect"), x)
    case("pad_2_edge", 10, node("Pad", ["x"], pads=[1, 1, 0, 2], mode="edge"), x)
    case("slice_1", 7, node("Slice", ["x"], starts=[1, -3], ends=[3, 1000]), x)
    case("slice_1_axes", 9, node("Slice", ["x"], starts=[1], ends=[-1], axes=[1]), x)
    case("top_k_1", 9, node("TopK", ["x"], ["y", "i"], k=2), x, ["y", "i"], types={"i": I})
    case("top_k_1_axis", 7, node("TopK", ["x"], ["y", "i"], k=1, axis=0), x, ["y", "i"], types={"i": I})
    case("dropout_7", 7, node("Dropout", ["x"], ratio=0.25), x)
    case("dropout_10", 10, node("Dropout", ["x"], ["y", "mask"]), x)
    case("erf_9", 9, node("Erf", ["x"]), x)
    case("split_2", 7, node("Split", ["x"], ["a", "b"], axis=1), x, ["a", "b"])
    case("split_2_sizes", 11, node("Split", ["x"], ["a", "b"], axis=-1, split=[1, 3]), x, ["a", "b"])
    case("split_13", 13, node("Split", ["x"], ["a", "b", "c"]), x, ["a", "b", "c"])
    sizes = constants(sizes=np.array([1, 2]))
    case("split_13_sizes", 13, node("Split", ["x", "sizes"], ["a", "b"]), x, ["a", "b"], sizes)
    x = {"x": floats(1, 3, 1, 2)}
    case("squeeze_1", 7, node("Squeeze", ["x"], axes=[0]), x)
    case("squeeze_1_all", 11, node("Squeeze", ["x"]), x)
    case("unsqueeze_1", 9, node("Unsqueeze", ["x"], axes=[0, 3]), x)
    case("unsqueeze_11", 11, node("Unsqueeze", ["x"], axes=[-1]), x)


def softmax():
    x2, x3 = {"x": floats(2, 5)}, {"x": floats(2, 3, 4)}
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        key = op.lower()
        case(f"{key}_1", 7, node(op, ["x"]), x2)
        case(f"{key}_1_matrix", 9, node(op, ["x"]), x3)
        case(f"{key}_11_first", 11, node(op, ["x"], axis=0), x3)
        case(f"{key}_11_negative", 11, node(op, ["x"], axis=-2), x3)
        case(f"{key}_11_last", 11, node(op, ["x"], axis=2), x3)
    # The number of axes follows from other nodes alone, or not at all.
    shaped = [node("Flatten", ["x"], ["f"], axis=2), node("Relu", ["f"], ["r"]), node("Softmax", ["r"])]
    case("softmax_1_inferred", 9, shaped, x3)
    unknown = [node("Expand", ["x", "s"], ["e"]), node("Softmax", ["e"])]
    case("softmax_1_unknown", 9, unknown, {**x2, "s": np.array([2, 2, 5])})


def reductions():
    x = {"x": np.abs(floats(2, 3, 4)) + np.float32(0.5)}
    for op in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
        key = f"reduce_{op.lower()}"
        case(f"{key}_1", 9, node(f"Reduce{op}", ["x"], axes=[1]), x)
        case(f"{key}_11", 11, node(f"Reduce{op}", ["x"], axes=[0, -1], keepdims=0), x)
        case(f"{key}_11_all", 11, node(f"Reduce{op}", ["x"]), x)
        if op != "Sum":
            case(f"{key}_13", 13, node(f"Reduce{op}", ["x"], axes=[2]), x)


def resizing():
    x = {"x": floats(1, 1, 3, 4)}
    scales = [1.0, 1.0, 2.0, 1.5]
    case("upsample_7", 7, node("Upsample", ["x"], scales=scales), x)
    case("upsample_7_linear", 8, node("Upsample", ["x"], scales=[1.0, 1.0, 2.0, 2.0], mode="linear"), x)
    given = constants(scales=np.float32(scales))
    case("upsample_9", 9, node("Upsample", ["x", "scales"]), x, initializers=given)
    resize = node("Resize", ["x", "scales"])
    case("resize_10", 10, resize, x, initializers=given)
    for name, scales in (("down", [1, 1, 0.6, 0.6]), ("both", [1, 1, 0.6, 2.5]), ("linear", [1, 1, 2, 0.5])):
        given = constants(scales=np.float32(scales))
        kind = node("Resize", ["x", "scales"], mode="linear") if name == "linear" else resize
        case(f"resize_10_{name}", 10, kind, x, initializers=given)
    case("resize_10_given", 10, resize, {**x, "scales": np.float32([1, 1, 2, 0.5])})
    empty = np.zeros(0, np.float32)
    given = constants(roi=empty, scales=empty, sizes=np.array([1, 1, 5, 6]))
    sized = node("Resize", ["x", "roi", "scales", "sizes"], mode="linear")
    case("resize_11_sizes", 11, sized, x, initializers=given)
    given = constants(roi=empty, scales=np.float32([1, 1, 1.5, 2.0]))
    half = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"}
    case("resize_11_tf", 11, node("Resize", ["x", "roi", "scales"], **half), x, initializers=given)
    cubic = node("Resize", ["x", "roi", "scales"], mode="cubic")
    case("resize_11_cubic", 11, cubic, x, initializers=given)
    given = constants(roi=np.float32([0, 0, 0.25, 0.25, 1, 1, 0.75, 0.75]), scales=np.float32([1, 1, 1, 1]))
    crop = node("Resize", ["x", "roi", "scales"], mode="linear", coordinate_transformation_mode="tf_crop_and_resize")
    case("resize_11_crop", 11, crop, x, initializers=given)


def indices():
    given = constants(depth=np.array(3), values=np.float32([0.5, 2.0]))
    hot = node("OneHot", ["x", "depth", "values"])
    # What the specification of that version says: below 0 nothing is hot. ONNX Runtime counts from the end.
    spec = np.float32([[2, 0.5, 0.5], [0.5, 0.5, 2], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    case("one_hot_9", 9, hot, {"x": np.array([0, 2, -1, 3])}, initializers=given, expected=[spec])
    first = node("OneHot", ["x", "depth", "values"], axis=0)
    case("one_hot_9_axis", 9, first, {"x": np.array([1, 0])}, initializers=given)
    given += constants(x=np.array([2, 0]))
    case("one_hot_9_constant", 9, [hot], {"unused": floats(1)}, initializers=given)
    given = constants(at=np.array([[1, 0, 2]]), updates=floats(1, 3))
    case("scatter_9", 9, node("Scatter", ["x", "at", "updates"]), {"x": floats(3, 3)}, initializers=given)


def sampling():
    x = {"x": floats(1, 2, 5, 5)}
    given = constants(rois=np.float32([[0.5, 0.5, 3.5, 4.0]]), of=np.array([0]))
    align = node("RoiAlign", ["x", "rois", "of"], output_height=2, output_width=2, sampling_ratio=2)
    case("roi_align_10", 10, align, x, initializers=given)
    x["grid"] = floats(1, 2, 3, 2) / np.float32(4)
    for mode in (None, "nearest", "bicubic"):
        attributes = {"mode": mode} if mode else {}
        case(f"grid_sample_16_{mode or 'default'}", 16, node("GridSample", ["x", "grid"], **attributes), x)
    signal = {"x": floats(1, 4, 3, 1)}
    case("dft_17", 17, node("DFT", ["x"]), signal)
    case("dft_17_axis", 17, node("DFT", ["x"], axis=2, onesided=1), signal)
    length = constants(n=np.array(6))
    case("dft_17_length", 17, node("DFT", ["x", "n"]), signal, initializers=length)
    case("dft_17_inverse", 17, node("DFT", ["x"], inverse=1, axis=-2), {"x": floats(1, 2, 4, 2)})
    given = constants(scale=floats(2), bias=floats(2))
    group = node("GroupNormalization", ["x", "scale", "bias"], num_groups=2, epsilon=0.01)
    x = {"x": floats(2, 4, 3)}
    wide = x["x"].reshape(2, 2, 6)
    normal = (wide - wide.mean(axis=2, keepdims=True)) / np.sqrt(wide.var(axis=2, keepdims=True) + np.float32(0.01))
    scale, bias = (numpy_helper.to_array(t).reshape(1, 2, 1) for t in given)
    case("group_normalization_18", 18, group, x, initializers=given, expected=[(normal * scale + bias).reshape(2, 4, 3)])


def inside():
    """Graphs within nodes, and functions."""
    x = {"x": floats(2, 3), "c": np.array(True)}
    branches = {}
    for name, low in (("then_branch", -1.0), ("else_branch", 1.0)):
        # Clips a value of the graph around.
        clip = [node("Clip", ["x"], [f"{name}_c"], min=low), node("Unsqueeze", [f"{name}_c"], [f"{name}_o"], axes=[0])]
        result = helper.make_tensor_value_info(f"{name}_o", F, None)
        branches[name] = helper.make_graph(clip, name, [], [result])
    case("if_7", 9, [node("If", ["c"], ["u"], **branches), node("Clip", ["u"], max=2.0)], x)
    declared = [helper.make_tensor_value_info(n, k, s) for n, k, s in (("i", I, []), ("go", B, []), ("a", F, [2, 3]))]
    steps = [node("Softmax", ["a"], ["s"]), node("ReduceSum", ["s"], ["r"], axes=[0]), node("Add", ["a", "r"], ["n"])]
    steps.append(node("Identity", ["go"], ["more"]))
    results = [helper.make_tensor_value_info("more", B, []), helper.make_tensor_value_info("n", F, [2, 3])]
    results.append(helper.make_tensor_value_info("r", F, [1, 3]))
    body = helper.make_graph(steps, "body", declared, results)
    trips = constants(trips=np.array(3))
    loop = node("Loop", ["trips", "c", "x"], ["y", "all"], body=body)
    case("loop_1", 10, loop, x, ["y", "all"], trips)

    shapes = (("state", [2]), ("a", [2]), ("b", [2]))
    declared = [helper.make_tensor_value_info(n, F, s) for n, s in shapes]
    steps = [node("Add", ["state", "a"], ["sum"]), node("Sub", ["sum", "b"], ["next"])]
    steps += [node("Mul", ["next", "factor"], ["scaled"]), node("Clip", ["scaled"], ["element"], min=-4.0, max=4.0)]
    results = [helper.make_tensor_value_info(n, F, [2]) for n in ("next", "element")]
    body = helper.make_graph(steps, "body", declared, results)
    scan = node("Scan", ["", "start", "p", "q"], ["end", "all"], body=body, num_scan_inputs=2, directions=[0, 1])
    given = {"start": floats(3, 2), "p": floats(3, 4, 2), "q": floats(3, 4, 2)}
    case("scan_8", 8, scan, given, ["end", "all"], constants(factor=np.float32([0.5, 2.0])))

    body = [node("Unsqueeze", ["a"], ["u"], axes=[0]), node("Softmax", ["u"], ["s"]), node("Squeeze", ["s"], ["b"], axes=[0])]
    function = helper.make_function("own", "Whole", ["a"], ["b"], body, [helper.make_opsetid("", 11)])
    call = helper.make_node("Whole", ["x"], ["w"], domain="own")
    imports = [helper.make_opsetid("own", 1)]
    nodes = [call, node("ReduceSum", ["w"], axes=[1])]
    whole = np.exp(x["x"] - x["x"].max())
    expected = [(whole / whole.sum()).sum(axis=1, keepdims=True)]
    case("function_11", 11, nodes, {"x": x["x"]}, functions=[function], imports=imports, expected=expected)


for add in (batch_normalization, inputs_from_attributes, softmax, reductions, resizing, indices, sampling, inside):
    add()
write(
    ONNX / "opsets.csv",
    ["onnx", "onnxruntime", "numpy"],
    NOTES,
    ["case", "opset", "from", "model", "inputs", "outputs"],
    cases,
)
