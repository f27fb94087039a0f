"""Golden file of the integer schemes: whole tensors with their scales, codes and decoded values.

Codes and decoded values of `intK` and `uintK` come from the reference evaluator of ONNX (QuantizeLinear and
DequantizeLinear) for 2, 4, 8 and 16 bits, given scale and zero point; `uint1` is not in ONNX and comes from
numpy. The variants after DeepSpeed and QML are transcriptions of their formulas in torch.
"""

import itertools
import re
import sys

import ml_dtypes
import numpy as np
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from golden_file import CODEC, hex32, shape_text, write

F = np.float32
SMALLEST_SCALE = F(2.0**-126)
LARGEST = np.finfo(np.float32).max
ONNX_TYPES = {
    ("int", 2): (TensorProto.INT2, ml_dtypes.int2),
    ("int", 4): (TensorProto.INT4, ml_dtypes.int4),
    ("int", 8): (TensorProto.INT8, np.int8),
    ("int", 16): (TensorProto.INT16, np.int16),
    ("uint", 2): (TensorProto.UINT2, ml_dtypes.uint2),
    ("uint", 4): (TensorProto.UINT4, ml_dtypes.uint4),
    ("uint", 8): (TensorProto.UINT8, np.uint8),
    ("uint", 16): (TensorProto.UINT16, np.uint16),
}
# How often the restricted range of intK cut a code that ONNX left at -2^(K-1) or the clamp to finite cut a value.
CUTS = {"code": 0, "value": 0}


def parse(scheme):
    """The parts of a scheme string: kind, width, variant, granularity, scale storage."""
    head, *options = scheme.split("/")
    kind, width = re.fullmatch(r"(u?int)(\d+)", head).groups()
    parts = {"variant": "", "granularity": "tensor", "scale": "f32"}
    for option in options:
        if option in ("full", "deepspeed", "qml"):
            parts["variant"] = option
        elif option.startswith("scale:"):
            parts["scale"] = option.removeprefix("scale:")
        else:
            parts["granularity"] = option
    return kind, int(width), parts["variant"], parts["granularity"], parts["scale"]


def groups_of(granularity, shape):
    """The groups in the order in which their scales are stored; each is an array of flat indices."""
    size = int(np.prod(shape))
    index = np.arange(size).reshape(shape)
    name, _, argument = granularity.partition(":")
    if name == "tensor":
        return [index.reshape(-1)] if size else []
    if name == "channel" or name == "axis":
        axis = int(argument or 0)
        return [np.take(index, k, axis=axis).reshape(-1) for k in range(shape[axis])]
    if name == "row":
        return list(index.reshape(-1, shape[-1]))
    if name == "group":
        step = int(argument)
        rows = index.reshape(-1, shape[-1])
        return [row[at : at + step] for row in rows for at in range(0, shape[-1], step)]
    if name == "flat":
        step = int(argument)
        return [index.reshape(-1)[at : at + step] for at in range(0, size, step)]
    if name == "tile":
        height, width = map(int, argument.split("x"))
        planes = index.reshape(-1, *shape[-2:])
        corners = itertools.product(range(0, shape[-2], height), range(0, shape[-1], width))
        corners = list(corners)
        return [p[r : r + height, c : c + width].reshape(-1) for p in planes for r, c in corners]
    raise ValueError(granularity)


def stored(scale, storage):
    """The scale as its storage format holds it; `pow2` rounds up to a power of two."""
    scale = max(scale, SMALLEST_SCALE)
    if storage == "f32":
        return scale
    if storage == "pow2":
        fraction, exponent = np.frexp(scale)
        return np.ldexp(F(1), exponent - 1 if fraction == 0.5 else exponent)
    narrow = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}[storage](scale)
    result = F(narrow)
    # What a scale outside the normal range of f16 becomes is no concern of this file.
    assert np.isfinite(result) and (storage != "f16" or result >= 2.0**-14), (scale, storage)
    return result


def symmetric_scale(x, width, storage):
    amax = np.max(np.abs(x))
    if amax == 0:
        return F(1)
    return stored(F(amax) / F(2 ** (width - 1) - 1), storage)


def affine_parameters(x, width, storage):
    top = 2**width - 1
    lo, hi = min(F(0), x.min()), max(F(0), x.max())
    if lo == hi:
        return F(1), 0
    spread = hi - lo
    assert np.isfinite(spread)
    scale = stored(spread / F(top), storage)
    return scale, int(np.clip(np.rint(-lo / scale), 0, top))


def onnx_model(element_type, opset, attributes):
    """One QuantizeLinear and the DequantizeLinear that undoes it, as a graph."""
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("zero", element_type, None),
    ]
    outputs = [
        helper.make_tensor_value_info("codes", element_type, None),
        helper.make_tensor_value_info("decoded", TensorProto.FLOAT, None),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], **attributes),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["decoded"], **attributes),
    ]
    graph = helper.make_graph(nodes, "qdq", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def onnx_quantize(kind, width, x, scale, zero, attributes):
    element_type, dtype = ONNX_TYPES[kind, width]
    opset = 25 if width == 2 else 21
    evaluator = ReferenceEvaluator(onnx_model(element_type, opset, attributes))
    zero = np.asarray(zero).astype(dtype)
    feeds = {"x": x, "scale": np.asarray(scale, dtype=F), "zero": zero}
    with np.errstate(over="ignore"):
        codes, decoded = evaluator.run(None, feeds)
    return np.asarray(codes).astype(np.int32), np.asarray(decoded)


def numpy_quantize(width, x, scale, zero):
    codes = np.clip(np.rint(x / scale) + zero, 0, 2**width - 1).astype(np.int32)
    return codes, (codes - zero).astype(F) * scale


def plain(x, kind, width, granularity, storage):
    """`intK` and `uintK`: scales and zero points here, codes and values from ONNX."""
    groups = groups_of(granularity, x.shape)
    flat = x.reshape(-1)
    scales, zeros = [], []
    for group in groups:
        if kind == "int":
            scales.append(symmetric_scale(flat[group], width, storage))
            zeros.append(0)
        else:
            scale, zero = affine_parameters(flat[group], width, storage)
            scales.append(scale)
            zeros.append(zero)
    codes = np.zeros(flat.shape, dtype=np.int32)
    decoded = np.zeros(flat.shape, dtype=F)
    name, _, argument = granularity.partition(":")
    if width == 1 or name in ("tensor", "tile", "flat"):
        for group, scale, zero in zip(groups, scales, zeros):
            if width == 1:
                codes[group], decoded[group] = numpy_quantize(width, flat[group], scale, zero)
            else:
                result = onnx_quantize(kind, width, flat[group], scale, zero, {})
                codes[group], decoded[group] = result
    elif groups:
        if name in ("channel", "axis"):
            attributes, form = {"axis": int(argument or 0)}, (len(groups),)
        else:
            step = int(argument) if name == "group" else x.shape[-1]
            attributes = {"axis": x.ndim - 1, "block_size": step}
            form = (*x.shape[:-1], -(-x.shape[-1] // step))
        spread = [np.asarray(v).reshape(form) for v in (scales, zeros)]
        result = onnx_quantize(kind, width, x, *spread, attributes)
        codes, decoded = (part.reshape(-1) for part in result)
    if kind == "int":
        limit = 2 ** (width - 1) - 1
        cut = codes < -limit
        CUTS["code"] += int(cut.sum())
        assert not np.any(cut) or storage != "f32"
        codes = np.maximum(codes, -limit)
        owner = np.zeros(flat.shape, dtype=F)
        for group, scale in zip(groups, scales):
            owner[group] = scale
        with np.errstate(over="ignore"):
            decoded = np.where(cut, codes.astype(F) * owner, decoded)
    CUTS["value"] += int(np.isinf(decoded).sum())
    decoded = np.clip(decoded, -LARGEST, LARGEST)
    return scales, zeros if kind == "uint" else [], [], codes, decoded


def full_range(x, width, granularity):
    """DeepSpeed, symmetric: scale 2 amax / 2^k, codes -2^(k-1) ... 2^(k-1) - 1."""
    t = torch.from_numpy(x.reshape(-1).copy())
    codes, decoded = torch.zeros(t.shape, dtype=torch.int32), torch.zeros_like(t)
    scales = []
    for group in map(torch.from_numpy, groups_of(granularity, x.shape)):
        v = t[group]
        amax = v.abs().max()
        # Dividing amax by 2^(k-1) is the same number, and does not overflow as 2 amax may.
        scale = amax / 2 ** (width - 1)
        if amax == 0:
            scale = torch.tensor(1.0)
        scale = scale.clamp(min=float(SMALLEST_SCALE))
        q = torch.round(v / scale).clamp(-(2 ** (width - 1)), 2 ** (width - 1) - 1)
        codes[group] = q.to(torch.int32)
        decoded[group] = (q + 0.0) * scale
        scales.append(scale.item())
    return scales, [], [], codes.numpy(), decoded.numpy()


def deepspeed_asymmetric(x, width, granularity):
    """DeepSpeed, asymmetric: scale (max - min) / 2^k, offset a multiple of the scale."""
    t = torch.from_numpy(x.reshape(-1).copy())
    codes, decoded = torch.zeros(t.shape, dtype=torch.int32), torch.zeros_like(t)
    scales, offsets = [], []
    for group in map(torch.from_numpy, groups_of(granularity, x.shape)):
        v = t[group]
        lo, hi = v.min(), v.max()
        if lo == hi:
            scale, offset = torch.tensor(1.0), lo + 0.0
            q = torch.zeros_like(v)
        else:
            scale = ((hi - lo) / 2**width).clamp(min=float(SMALLEST_SCALE))
            offset = torch.round(lo / scale) * scale + 0.0
            q = torch.round((v - offset) / scale).clamp(0, 2**width - 1)
        codes[group] = q.to(torch.int32)
        decoded[group] = (q + 0.0) * scale + offset
        scales.append(scale.item())
        offsets.append(offset.item())
    return scales, [], offsets, codes.numpy(), decoded.numpy()


def qml_rows(x, width):
    """QML: minimum and maximum per row of dimension 0; zero is not exact."""
    t = torch.from_numpy(x.reshape(x.shape[0], -1).copy())
    codes, decoded = torch.zeros(t.shape, dtype=torch.int32), torch.zeros_like(t)
    scales, offsets = [], []
    for i, v in enumerate(t):
        lo, hi = v.min() + 0.0, v.max()
        scale = torch.tensor(1.0)
        if lo != hi:
            scale = ((hi - lo) / (2**width - 1)).clamp(min=float(SMALLEST_SCALE))
        q = torch.round((v - lo) / scale).clamp(0, 2**width - 1)
        codes[i] = q.to(torch.int32)
        decoded[i] = (q + 0.0) * scale + lo
        scales.append(scale.item())
        offsets.append(lo.item())
    return scales, [], offsets, codes.numpy().reshape(-1), decoded.numpy().reshape(-1)


def quantize(x, scheme):
    kind, width, variant, granularity, storage = parse(scheme)
    if variant == "full":
        return full_range(x, width, granularity)
    if variant == "deepspeed":
        return deepspeed_asymmetric(x, width, granularity)
    if variant == "qml":
        return qml_rows(x, width)
    return plain(x, kind, width, granularity, storage)


def reciprocal_traps(top, seed):
    """Values whose code differs when x * (1 / s) stands in for x / s, under the scale of their tensor."""
    rng = np.random.default_rng(seed)
    while True:
        amax = F(rng.uniform(1, 2))
        scale = amax / F(top)
        if F(1) / scale * scale == 1:
            continue
        near = (np.arange(top - 1) + 0.5).astype(F) * scale
        near = np.concatenate([near, np.nextafter(near, F(0)), np.nextafter(near, F(9))])
        traps = near[np.rint(near / scale) != np.rint(near * (F(1) / scale))]
        if len(traps) >= 5:
            return np.concatenate([[amax], traps[:23], -traps[:7]]).astype(F)


def tensors():
    """The inputs by name; each scheme takes those that its granularity and range allow."""
    rng = np.random.default_rng(20)
    tiny = np.asarray([1, 0x800, 0x7FFFFF, 0x400000, 0x800000, 0x2000000], dtype=np.uint32).view(F)
    rows = rng.normal(size=(7, 6)).astype(F)
    rows[1] = 0
    rows[2] = 0.3
    rows[3] = -1.7
    rows[4] = [3e38, -1e37, 1e30, -2e36, 1, 0]
    rows[5] = tiny
    rows[6] = [0, -0.0, 0, 5e-39, 0, -2e-40]
    ragged = rng.standard_t(2, size=(3, 70)).astype(F)
    ragged[0, 32:64] = 0
    ragged[1, 64:] = -0.125
    ragged[2, :32] *= F(1e-41)
    ragged[2, 32:64] *= F(1e37)
    tile = rng.normal(size=(5, 7)).astype(F)
    tile[2:4, 3:6] = 0
    tile[4, 6] = -9
    tile[0:2, 0:3] = 0.75
    negative = np.asarray([-0.5, -1.25, -3, -0.001, -2.999], dtype=F)
    return {
        "normal": rng.normal(size=(5, 8)).astype(F),
        "decades": (rng.choice([-1, 1], 40) * 10.0 ** rng.uniform(-6, 3, 40)).astype(F),
        "ties_127": np.append(np.arange(-4.5, 6), [126.5, 127, -126.5, 63.5, 64.5]).astype(F),
        "ties_7": np.asarray([7, 6.5, 5.5, 0.5, -0.5, 1.5, -1.5, 2.5, -6.5, -7, 0.49999997], dtype=F),
        "ties_255": np.append(np.arange(-4.5, 6), [250, 249.5, 248.5, -5]).astype(F),
        "traps_127": reciprocal_traps(127, 1),
        "traps_7": reciprocal_traps(7, 2),
        "positive": np.abs(rng.normal(size=17)).astype(F),
        "negative": negative,
        "one": np.asarray([-0.3], dtype=F),
        "scalar": np.asarray(2.5, dtype=F),
        "empty": np.zeros((0,), dtype=F),
        "empty_rows": np.zeros((0, 3), dtype=F),
        "zeros": np.asarray([[0, -0.0, 0], [0, 0, -0.0]], dtype=F),
        "constant": np.full((4,), 5, dtype=F),
        "constant_negative": np.full((2, 2), -0.1, dtype=F),
        "subnormal": np.concatenate([tiny, -tiny[:4], [0]]).astype(F),
        "subnormal_only": np.asarray([1e-40, -3e-41, 1e-45, -1e-45, 0], dtype=F),
        "scale_subnormal": np.asarray([1e-37, -1.1e-38, 5.9e-39, 0, -1e-37], dtype=F),
        "mixed_subnormal": np.asarray([1, -1e-40, 1e-45, 0.5, 0.003937], dtype=F),
        "huge": np.asarray([3e38, -3e37, 1e38, -1.5e37, 1, 0], dtype=F),
        "huge_both": np.asarray([3e38, -3.3e38, 1e38, -1.5e38, 1, 0], dtype=F),
        "largest": np.asarray([LARGEST, 0, LARGEST / 3, 1e30], dtype=F),
        "rows": rows,
        "cube": rng.normal(size=(2, 3, 4)).astype(F),
        "kernel": np.concatenate(
            [rng.normal(size=(3, 3, 2, 2)) * [[[[10]]], [[[1]]], [[[0.01]]]], np.zeros((1, 3, 2, 2))]
        ).astype(F),
        "ragged": ragged,
        "tile": tile,
        "tiles": rng.normal(size=(2, 5, 7)).astype(F),
    }


TENSOR = [
    "normal",
    "decades",
    "positive",
    "negative",
    "one",
    "scalar",
    "empty",
    "zeros",
    "constant",
    "constant_negative",
]
SMALL = ["subnormal", "subnormal_only", "scale_subnormal", "mixed_subnormal"]
BOTH = [*TENSOR, *SMALL, "huge", "largest"]
ROWS = ["rows", "normal", "kernel"]
CASES = [
    ("int8", [*BOTH, "huge_both", "ties_127", "traps_127", "empty_rows", "ragged"]),
    ("int4", [*BOTH, "huge_both", "ties_7", "traps_7"]),
    ("int2", [*BOTH, "huge_both"]),
    ("int16", [*BOTH, "huge_both"]),
    ("uint8", [*BOTH, "ties_255", "empty_rows", "ragged"]),
    ("uint4", BOTH),
    ("uint2", ["normal", "negative"]),
    ("uint1", BOTH),
    ("int8/channel", [*ROWS, "cube", "constant_negative", "empty_rows"]),
    ("int4/channel", ROWS),
    ("uint8/channel", [*ROWS, "cube", "constant_negative", "empty_rows"]),
    ("uint1/channel", ["normal"]),
    ("int8/axis:1", ["rows", "cube", "kernel", "tile"]),
    ("uint8/axis:1", ["normal", "cube", "kernel"]),
    ("int8/axis:2", ["cube", "kernel"]),
    ("int8/row", ["rows", "cube", "kernel"]),
    ("uint8/row", ["rows", "cube"]),
    ("int4/group:32", ["ragged", "normal", "rows"]),
    ("uint4/group:32", ["ragged", "normal", "rows"]),
    ("int8/group:3", ["tile", "cube", "rows"]),
    ("int4/flat:64", ["ragged", "normal"]),
    ("uint4/flat:64", ["ragged"]),
    ("int8/tile:2x3", ["tile", "tiles"]),
    ("uint4/tile:2x3", ["tile"]),
    ("int8/scale:f16", ["normal", "one", "zeros", "constant", "ties_127", "positive"]),
    ("int8/scale:bf16", [*TENSOR, "scale_subnormal", "ties_127", "huge_both", "largest"]),
    ("int8/scale:pow2", [*TENSOR, "scale_subnormal", "ties_127", "huge_both", "largest"]),
    ("int4/scale:bf16", ["normal", "traps_7", "largest"]),
    ("int4/group:32/scale:f16", ["normal"]),
    ("int16/scale:f16", ["constant", "ties_127"]),
    ("int16/scale:bf16", ["normal", "decades", "constant", "constant_negative", "negative", "huge_both"]),
    ("uint8/scale:f16", ["normal", "zeros"]),
    ("uint8/scale:bf16", ["normal", "positive", "largest"]),
    ("uint8/scale:pow2", ["normal", "negative", "largest"]),
    ("uint4/group:32/scale:f16", ["normal"]),
    ("int8/full", [*BOTH, "huge_both"]),
    ("int4/full", [*BOTH, "huge_both"]),
    ("int1/full", ["normal", "negative", "zeros", "huge_both"]),
    ("int4/full/channel", ["rows", "kernel"]),
    ("int4/full/flat:64", ["ragged"]),
    ("uint4/deepspeed", BOTH),
    ("uint8/deepspeed", ["normal", "decades", "huge"]),
    ("uint4/deepspeed/channel", ["rows", "kernel"]),
    ("uint4/qml", [*ROWS, "tile", "zeros", "constant_negative"]),
    ("uint8/qml", ROWS),
    ("uint1/qml", ["normal"]),
]

NOTES = """
One line per tensor. f32 values as hexadecimal bit patterns, row-major; scales, zeros and offsets one per
group in the order of the groups; codes in decimal, row-major. Columns that a scheme lacks are empty.
shape: dimensions joined by x; `scalar` has rank 0; 0 and 0x3 are empty tensors.
Groups: channel = axis 0; axis:N; row = all but the last axis; group:N = N along the last axis, the last
one of a row short; flat:N = N of the flattened tensor; tile:RxC = R x C of the last two axes, edge tiles
short, tiles in row-major order within a plane.
All arithmetic in f32, one rounding per operation, no fused multiply-add, true division.
intK: s = amax / (2^(K-1) - 1), q = rne(x / s) clamped to +-(2^(K-1) - 1), x' = q * s.
uintK: lo = min(min, 0), hi = max(max, 0), s = (hi - lo) / (2^K - 1), z = clamp(rne(-lo / s), 0, 2^K - 1),
q = clamp(rne(x / s) + z, 0, 2^K - 1), x' = (q - z) * s. The zero point is found with the stored scale.
scale:f16, scale:bf16: s rounded to nearest even before its first use; scale:pow2: the f32 quotient s raised to
the next power of two. A scale below 2^-126 becomes 2^-126, before the rounding to storage.
intK/full: s = amax / 2^(K-1), q = clamp(rne(x / s), -2^(K-1), 2^(K-1) - 1), x' = q * s.
uintK/deepspeed: s = (max - min) / 2^K, offset = rne(min / s) * s, q = clamp(rne((x - offset) / s), 0,
2^K - 1), x' = q * s + offset.
uintK/qml, per row of dimension 0: s = (max - min) / (2^K - 1), offset = min, q = rne((x - offset) / s),
x' = q * s + offset.
No range (all zero; for deepspeed and qml min = max): scale 1, codes 0, and the offset is the value.
Zero decodes to +0, an offset is never -0, and a finite input never decodes to infinity: q * s clamps to the
largest f32. Ranges whose hi - lo overflows f32, and scales outside the normal range of f16, do not occur here.
"""


def main():
    inputs = tensors()
    rows = []
    for scheme, names in CASES:
        for name in names:
            x = inputs[name]
            scales, zeros, offsets, codes, decoded = quantize(x, scheme)
            assert np.all(np.isfinite(decoded)) and len(codes) == x.size == decoded.size, (scheme, name)
            assert not np.any((decoded == 0) & np.signbit(decoded)), (scheme, name)
            assert not any(o == 0 and np.signbit(o) for o in offsets), (scheme, name)
            row = [f"{scheme} {name}", scheme, shape_text(x.shape), hex32(x), hex32(scales)]
            row += [" ".join(map(str, zeros)), hex32(offsets)]
            rows.append([*row, " ".join(map(str, codes)), hex32(decoded)])
    counts = (
        f"Codes that ONNX gave as -2^(K-1), raised to the restricted range: {CUTS['code']}. Values that ONNX decoded\n"
        f"to infinity, clamped: {CUTS['value']}."
    )
    print(counts)
    columns = ["case", "scheme", "shape", "input", "scales", "zeros", "offsets", "codes", "decoded"]
    packages = ["onnx", "numpy", "ml_dtypes", "torch"]
    write(CODEC / "integer.csv", packages, NOTES + counts, columns, rows)


if __name__ == "__main__":
    sys.exit(main())
