"""Hold weights in blocks under powers of two (MX), as `scrimp quantize` writes them, to the onnx package.

A model of a convolution and two products is quantized to each scheme. The file must pass onnx.checker, the reference evaluator
must give what a model with the weights of a derivation of their own in numpy and ml_dtypes gives, and ONNX Runtime the same
where it has the elements.

    SCRIMP=target/release/scrimp python tools/check_onnx_blocks.py

Packages: onnx 1.23.2, onnxruntime 1.31.1, ml_dtypes 0.6.0, numpy 2.4.6.
"""

import subprocess
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from scrimp_binary import BINARY

BLOCK = 32
# Scheme: element, exponent of its largest power of two, largest value, whether ONNX Runtime has it.
SCHEMES = {
    "mxfp8_e4m3": (ml_dtypes.float8_e4m3fn, 8, 448.0, True),
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 15, 57344.0, True),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 2, 6.0, False),
}


def rounded(weight, axis, element, emax, largest):
    """The values of a weight in blocks along an axis: OCP MX 1.0, section 6.3."""
    moved = np.moveaxis(weight.astype(np.float64), axis, -1)
    out = np.empty_like(moved)
    for start in range(0, moved.shape[-1], BLOCK):
        block = moved[..., start : start + BLOCK]
        amax = np.abs(block).max(-1, keepdims=True)
        # frexp gives amax = m 2^e with m from 0.5, so that the floor of the logarithm is exact.
        power = np.where(amax > 0, np.frexp(amax)[1] - 1 - emax, -127)
        scale = np.exp2(np.clip(power, -127, 127).astype(np.float64))
        inner = np.clip(block / scale, -largest, largest).astype(np.float32).astype(element)
        out[..., start : start + BLOCK] = inner.astype(np.float64) * scale
    return np.moveaxis(out, -1, axis).astype(np.float32)


def model(weights):
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["c"], name="c", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="p"),
        helper.make_node("Flatten", ["p"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "gemm"], ["g"], name="g", transB=1),
        helper.make_node("MatMul", ["g", "matmul"], ["y"], name="y"),
    ]
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 40, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 7])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main():
    rng = np.random.default_rng(5)
    spread = lambda *shape: (rng.normal(size=shape) * np.exp(rng.normal(size=shape))).astype(np.float32)
    weights = {"conv": spread(48, 40, 3, 3), "gemm": spread(70, 48), "matmul": spread(70, 7)}
    weights["gemm"][3, :32] = 0
    # The longest axis that is summed over.
    axes = {"conv": 1, "gemm": 1, "matmul": 0}
    x = rng.normal(size=(4, 40, 5, 5)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "float.onnx")
        onnx.save(model(weights), source)
        for scheme, (element, emax, largest, runs) in SCHEMES.items():
            out = Path(folder, f"{scheme}.onnx")
            command = [BINARY, "quantize", source, "-a", "f32", "-w", scheme, "-o", out]
            command += ["--target", "openvino", "--engine", "rten"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            made = onnx.load(out)
            onnx.checker.check_model(made, full_check=True)
            values = {
                name: rounded(weight, axes[name], element, emax, largest)
                for name, weight in weights.items()
            }
            wanted = ReferenceEvaluator(model(values)).run(None, {"x": x})[0]
            found = ReferenceEvaluator(made).run(None, {"x": x})[0]
            assert np.array_equal(found, wanted), (scheme, np.abs(found - wanted).max())
            said = "checker and reference evaluator"
            if runs:
                session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
                near = session.run(None, {"x": x})[0]
                assert np.allclose(near, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
                said += ", ONNX Runtime"
            print(f"{scheme}: {out.stat().st_size:,} of {source.stat().st_size:,} bytes, {said}")


main()
