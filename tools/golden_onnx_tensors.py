"""Golden file of ONNX tensors of integers and floats: messages in both ways to hold values, and the values.

What the onnx package writes and reads again.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from golden_file import ONNX, hex32, write

NOTES = """
tensor: the bytes of a message. as: in `raw_data`, or in the field of the type. values: integers, or bits of f32.
"""
INTEGERS = ["INT2", "UINT2", "INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64"]
FLOATS = ["FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE"]
rows = []


def add(kind, values, shape):
    """The values are as they are read, so that what the type cannot hold is gone."""
    number = TensorProto.DataType.Value(kind)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    array = np.array(values).astype(dtype).reshape(shape)
    raw = numpy_helper.from_array(array)
    typed = helper.make_tensor("", number, shape, array.reshape(-1))
    for held, tensor in (("raw", raw), ("typed", typed)):
        assert (tensor.HasField("raw_data")) == (held == "raw")
        read = numpy_helper.to_array(tensor).reshape(-1)
        text = hex32(read) if kind in FLOATS else " ".join(str(int(v)) for v in read)
        rows.append([kind.lower(), held, " ".join(map(str, shape)), tensor.SerializeToString().hex(), text])


for kind in INTEGERS:
    bits = int(kind.removeprefix("U").removeprefix("INT"))
    low, high = (0, 2**bits - 1) if kind[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    high = min(high, 2**63 - 1)
    add(kind, [low, high, 1, 0, high, low, high // 2], [7])
    add(kind, [1], [])
add("BOOL", [True, False, True], [3, 1])
for kind in FLOATS:
    add(kind, [0.0, -1.5, 3.14159, 1e-5, 65504.0, -2.0], [2, 3])
write(ONNX / "tensors.csv", ["onnx", "numpy"], NOTES, ["type", "as", "shape", "tensor", "values"], rows)
