"""Runs models of `scrimp export` in ONNX Runtime and compares them with what the network answered.

    scrimp export RUN -o model.onnx --reference images.safetensors
    venv/bin/python tools/check_export.py model.onnx images.safetensors

Each model goes through onnx's checker with shape inference, and through ONNX Runtime without and with optimizations.
Where the output is rounded, differences are counted in steps of its scale as well. More pairs of files may follow.
"""

import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from safetensors.numpy import load_file

LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def output_scale(graph):
    """The scale of the output, where the last node is a DequantizeLinear."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if graph.output[0].name in node.output and node.op_type == "DequantizeLinear":
            return float(numpy_helper.to_array(constants[node.input[1]]))
    return None


def check(path, reference_path):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    assert [i.name for i in graph.input] == ["input"], "one input, called `input`"
    assert [o.name for o in graph.output] == ["logits"], "one output, called `logits`"
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch", "a free batch axis"
    reference = load_file(reference_path)
    images, expected = reference["input"], reference["logits"]
    step = output_scale(graph)
    print(
        f"{path}: opset {model.opset_import[0].version}, {len(graph.node)} nodes, "
        f"{len(images)} images"
    )
    for name, level in LEVELS.items():
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 3
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        logits = session.run(["logits"], {"input": images})[0]
        one = session.run(["logits"], {"input": images[:1]})[0]
        distance = np.abs(logits.astype(np.float64) - expected)
        same = int((logits.argmax(1) == expected.argmax(1)).sum())
        in_steps = "" if step is None else f", {distance.max() / step:.3f} steps of its scale"
        print(
            f"  optimizations {name}: largest difference {distance.max():.3e} "
            f"({distance.max() / np.abs(expected).max():.1e} of the largest logit{in_steps}), "
            f"same class {same} of {len(images)}, "
            f"alone as in the batch: {np.abs(one - logits[:1]).max():.1e}"
        )


def main(arguments):
    if not arguments or len(arguments) % 2:
        sys.exit(__doc__)
    print(f"onnx {onnx.__version__}, onnxruntime {ort.__version__}, numpy {np.__version__}")
    for path, reference in zip(arguments[::2], arguments[1::2]):
        check(path, reference)


if __name__ == "__main__":
    main(sys.argv[1:])
