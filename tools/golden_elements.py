"""Golden file of the elements of quantized ONNX tensors: values, codes and bytes.

Values of small floats come from ml_dtypes, codes from `QuantizeLinear` of the ONNX reference evaluator, bytes from the
packing of `onnx.helper`.
"""

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto as T, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from golden_file import ONNX, hex32, write

ELEMENTS = {
    "int8": (T.INT8, np.int8),
    "uint8": (T.UINT8, np.uint8),
    "int16": (T.INT16, np.int16),
    "uint16": (T.UINT16, np.uint16),
    "int4": (T.INT4, ml_dtypes.int4),
    "uint4": (T.UINT4, ml_dtypes.uint4),
    "int2": (T.INT2, ml_dtypes.int2),
    "uint2": (T.UINT2, ml_dtypes.uint2),
    "e4m3fn": (T.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    "e5m2": (T.FLOAT8E5M2, ml_dtypes.float8_e5m2),
    "e2m1fn": (T.FLOAT4E2M1, ml_dtypes.float4_e2m1fn),
}
ZEROS = {
    "int8": [0, -3, 127, -128],
    "uint8": [0, 128, 255],
    "int16": [0, -3000],
    "uint16": [0, 32768],
    "int4": [0, -8, 3],
    "uint4": [0, 8, 15],
    "int2": [0, 1],
    "uint2": [0, 2],
}


def inputs(name, scale):
    """Every quarter of a step around zero and around the ends, and values far away."""
    quarters = np.arange(-40, 41, dtype=np.float32) / np.float32(4)
    ends = {"int8": [-128, 127], "uint8": [255], "int16": [-32768, 32767], "uint16": [65535]}.get(name, [])
    if name.startswith("e"):
        grid = np.arange(2 ** (4 if name == "e2m1fn" else 8)).astype(np.uint8)
        decoded = grid.view(ELEMENTS[name][1]).astype(np.float32)
        decoded = np.unique(decoded[np.isfinite(decoded)])
        middles = (decoded[1:] + decoded[:-1]) / np.float32(2)
        # Ties, and what lies on either side of them.
        near = [np.nextafter(middles, np.float32(s)) for s in (-np.inf, np.inf)]
        x = np.concatenate([decoded, middles, *near])
    else:
        x = np.concatenate([quarters] + [quarters[::5] + np.float32(e) for e in ends])
    return np.concatenate([x * np.float32(scale), np.array([1e6, -1e6], np.float32)])


def quantized(x, scale, zero, kind, dtype):
    """By the reference evaluator."""
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, [None])],
        [helper.make_tensor_value_info("q", kind, [None])],
        [
            helper.make_tensor("s", T.FLOAT, [], [scale]),
            numpy_helper.from_array(np.array(zero).astype(dtype), "z"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


def codes(array):
    """Codes as numbers: those of a float are its bits."""
    if array.dtype.kind in "iu" or array.dtype.name.startswith(("int", "uint")):
        return array.astype(np.int64)
    return array.view(np.uint8).astype(np.int64)


def rows():
    for name, (kind, dtype) in ELEMENTS.items():
        for scale in (0.25,) if name in ("e4m3fn", "e5m2") else (1.0, 0.1):
            for zero in ZEROS.get(name, [0]):
                x = inputs(name, scale)
                q = quantized(x, scale, zero, kind, dtype)
                listed = codes(q)
                yield [name, "codes", f"{scale:.9g}", zero, hex32(x), " ".join(map(str, listed))]
        if name.startswith("e"):
            grid = np.arange(16 if name == "e2m1fn" else 256, dtype=np.uint8)
            values = grid.view(dtype).astype(np.float32)
            yield [name, "values", 1, 0, hex32(values), " ".join(map(str, grid))]
        # Nine elements, so that the last byte of a packed one is not full.
        nine = codes(quantized(np.array([-9, -8, -2, -1, 0, 1, 2, 7, 20], np.float32), 1.0, 0, kind, dtype))
        array = nine.astype(np.uint8).view(dtype) if name.startswith("e") else nine.astype(dtype)
        raw = numpy_helper.from_array(array, "t").raw_data
        assert onnx.numpy_helper.to_array(numpy_helper.from_array(array, "t")).shape == (9,)
        yield [name, "bytes", 1, 0, raw.hex(), " ".join(map(str, nine))]


if __name__ == "__main__":
    write(
        ONNX / "elements.csv",
        ["onnx", "ml_dtypes", "numpy"],
        """
`codes`: the inputs, and what QuantizeLinear gives for them with this scale and zero point; codes of floats are their bits.
`values`: the value of each code. `bytes`: what a file holds for these codes, in hexadecimal.
""",
        ["element", "what", "scale", "zero", "inputs", "codes"],
        list(rows()),
    )
