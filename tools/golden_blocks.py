"""Golden file of the block formats: MX, BFP and MSFP, NVFP4, and integers with scales in e4m3fn.

The expected bytes come from a derivation in numpy: exponents by frexp in f64, elements by ml_dtypes (integers by
rint). It is checked on a million inputs of every format and rule, block by block, against torchao's `to_mx` and
`nvfp4_quantize`; against gguf's MXFP4; against gfloat's block formats on a sample; and, where the environment
variable MICROXCALING names a checkout of microsoft/microxcaling (commit 7bc4195), against its `_quantize_mx`. What
differs must be a case that is named here, and is counted in the file's header.
"""

import itertools
import math
import os
import sys

import gfloat
import gfloat.formats
import gguf
import ml_dtypes
import numpy as np
import torch
from torchao.prototype.mx_formats import mx_tensor, nvfp4_tensor

from golden_file import CODEC, bits, fnv1a64_rows, shape_text, write

F = np.float32
LARGEST = np.finfo(F).max
RULES = ["floor", "ceil", "even", "rceil"]
# Element type, mantissa bits.
MX = {
    "mxfp8_e4m3": (ml_dtypes.float8_e4m3fn, 3),
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 2),
    "mxfp6_e3m2": (ml_dtypes.float6_e3m2fn, 2),
    "mxfp6_e2m3": (ml_dtypes.float6_e2m3fn, 3),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 1),
    "mxint8": (None, 6),
}
BITS = {"mxfp8_e4m3": 8, "mxfp8_e5m2": 8, "mxfp6_e3m2": 6, "mxfp6_e2m3": 6, "mxfp4": 4, "mxint8": 8}
# The mantissas of the largest magnitudes of every eighth block: the ends, and thresholds of the rules.
MANTISSAS = [
    0x7FFFFF, 0x7FFFFE, 0x400000, 0x3FFFFF, 0x400001, 0x600000, 0x5FFFFF, 0x600001, 0x700000, 0x6FFFFF,
    0x780000, 0x77FFFF, 0x7C0000, 0x7E0000, 0x7DFFFF, 0x7E0001, 0x7F0000, 0x7EFFFF, 0x000000, 0x000001,
]  # fmt: skip


def mix(h):
    """A hash of u32 words."""
    h = h ^ (h >> 16)
    h = h * np.uint32(0x7FEB352D)
    h = h ^ (h >> 15)
    h = h * np.uint32(0x846CA68B)
    return h ^ (h >> 16)


def inputs(count, window=None):
    """`count` values in runs of 32 of eight kinds, as the header of the file defines them."""
    i = np.arange(count, dtype=np.uint32)
    b = i // np.uint32(32)
    h, hb = mix(i), mix(b ^ np.uint32(0x9E3779B9))
    sign, mantissa = h & np.uint32(0x80000000), h & np.uint32(0x7FFFFF)
    draw = h >> np.uint32(23) & np.uint32(15)
    base = (hb >> np.uint32(8)) % np.uint32(254) + np.uint32(1)
    below = np.where(base > draw, base - np.minimum(draw, base), 0).astype(np.uint32)
    near = sign | below << np.uint32(23) | mantissa
    lower = np.where(base > draw + 1, base - np.minimum(draw + 1, base), 0).astype(np.uint32)
    table = np.array(MANTISSAS, dtype=np.uint32)[(hb >> np.uint32(16)) % np.uint32(len(MANTISSAS))]
    largest = sign | base << np.uint32(23) | table
    first = i % np.uint32(32) == hb % np.uint32(32)
    sparse = (h & np.uint32(3) != 0) | (hb & np.uint32(1) == 0)
    kinds = [
        near,
        np.where(h >> np.uint32(23) & np.uint32(255) == 255, np.uint32(0), h),
        h & np.uint32(0x807FFFFF),
        np.where(first, largest, sign | lower << np.uint32(23) | mantissa),
        near & ~np.uint32(0x3FFFF),
        np.where(sparse, sign, near),
        sign | (np.uint32(254) - (draw & np.uint32(7))) << np.uint32(23) | mantissa,
        sign | (draw & np.uint32(3)) << np.uint32(23) | mantissa,
    ]
    u = np.choose((b % np.uint32(8)).astype(int), kinds).astype(np.uint32)
    if window:
        low, extent = map(np.uint32, window)
        e = u >> np.uint32(23) & np.uint32(255)
        moved = u & np.uint32(0x807FFFFF) | (low + (e - np.uint32(1)) % extent) << np.uint32(23)
        u = np.where(e > 0, moved, u)
    return u.view(F)


def blocks_of(x, length):
    """The rows of a matrix in blocks, those at the end of a row filled with zeros: [rows, blocks, length]."""
    rows, width = x.shape
    count = -(-width // length)
    padded = np.zeros((rows, count * length), dtype=F)
    padded[:, :width] = x
    return padded.reshape(rows, count, length)


def log2_floor(x):
    """floor(log2 x) of positive numbers; -1000 for 0."""
    return np.where(x > 0, np.frexp(x.astype(np.float64))[1] - 1, -1000)


def top_of(name):
    """The largest element, and its mantissa bits."""
    kind, mantissa = MX[name]
    return (127 / 64 if kind is None else float(ml_dtypes.finfo(kind).max)), mantissa


def exponents(amax, top, mantissa, rule):
    """The shared exponent of each block."""
    amax = amax.astype(np.float64)
    emax = math.frexp(top)[1] - 1
    if rule == "floor":
        e = log2_floor(amax) - emax
    elif rule == "ceil":
        e = np.where(amax > 0, np.ceil(log2_exact(amax)), -1000) - emax
    elif rule == "even":
        step = np.ldexp(1.0, np.maximum(log2_floor(amax), -900) - mantissa)
        e = log2_floor(np.rint(amax / step) * step) - emax
    else:
        # The least of three candidates that clips nothing.
        e = log2_floor(amax) - emax + 1
        for _ in range(2):
            e = np.where(amax <= top * np.ldexp(1.0, np.maximum(e - 1, -1074)), e - 1, e)
    return np.clip(e, -127, 127).astype(int)


def log2_exact(x):
    """The logarithm where it is whole, and half more than its floor elsewhere."""
    fraction, e = np.frexp(np.where(x > 0, x, 1))
    return np.where(fraction == 0.5, e - 1, e - 0.5)


def mx_codes(name, v):
    """The codes of quotients in f64, and the values of these codes."""
    kind, _ = MX[name]
    top, _ = top_of(name)
    if kind is None:
        q = np.clip(np.rint(v * 64), -127, 127).astype(int)
        return q & 255, q / 64
    coded = np.clip(v, -top, top).astype(F).astype(kind)
    return coded.view(np.uint8).astype(int), coded.astype(np.float64)


def bfp_codes(width, v):
    """Codes of sign and magnitude, and the values of these codes, with the sign of zero."""
    limit = 2**width - 1
    q = np.minimum(np.rint(np.abs(v) * 2.0 ** (width - 1)), limit)
    negative = np.signbit(v)
    value = np.copysign(q * 2.0 ** (1 - width), v)
    return q.astype(int) | negative.astype(int) << width, value


def nested(amax, top):
    """Scales in e4m3fn under one for the tensor: the bytes, and what the elements are divided by, in f32."""
    largest = amax.max()
    limit = F(F(448) * F(top))
    unit = F(1) if largest == 0 else max(F(largest / limit), F(2.0**-126))
    quotient = np.minimum((amax / F(top)) / unit, F(448))
    stored = quotient.astype(ml_dtypes.float8_e4m3fn)
    scale = unit * stored.astype(F)
    assert scale.dtype == F and quotient.dtype == F
    return F(unit).tobytes() + stored.view(np.uint8).tobytes(), scale


def pack(codes, width):
    """A little-endian stream of bits."""
    stream = (codes.reshape(-1, 1) >> np.arange(width) & 1).astype(np.uint8)
    return np.packbits(stream.reshape(-1), bitorder="little").tobytes()


def parse(scheme):
    """Head, length of a block, and the other words."""
    head, *words = scheme.split("/")
    length = 32 if head.startswith("mx") else 16
    rest = []
    for word in words:
        if word.startswith("group:"):
            length = int(word.removeprefix("group:"))
        else:
            rest.append(word.removeprefix("scale:"))
    return head, length, rest


def encode(scheme, x):
    """The bytes and the decoded values of a matrix."""
    head, length, words = parse(scheme)
    cut = lambda a: a.reshape(x.shape[0], -1)[:, : x.shape[1]]
    blocks = blocks_of(x, length)
    amax = np.abs(blocks).max(axis=-1)
    if head == "nvfp4" or words == ["e4m3fn"]:
        integer = head.startswith("int")
        width = int(head.removeprefix("int")) if integer else 4
        limit = 2 ** (width - 1) - 1 if integer else 6
        front, scale = nested(amax, limit)
        with np.errstate(divide="ignore", invalid="ignore"):
            v = blocks / scale[..., None]
        # Where the scale is zero, so are the elements, with their signs.
        v = np.where(scale[..., None] == 0, np.copysign(F(0), blocks), v)
        assert v.dtype == F
        if integer:
            q = np.clip(np.rint(v), -limit, limit).astype(int)
            codes, value = q & (2**width - 1), q.astype(np.float64)
        else:
            codes, value = mx_codes("mxfp4", v.astype(np.float64))
        decoded = (value.astype(F) * scale[..., None]) + F(0) if integer else value.astype(F) * scale[..., None]
        return front + pack(cut(codes), width), cut(decoded)
    if head in MX:
        width = BITS[head]
        e = exponents(amax, *top_of(head), words[0] if words else "floor")
        v = np.ldexp(blocks.astype(np.float64), -e[..., None])
        codes, value = mx_codes(head, v)
        if MX[head][0] is None:
            value = value + 0.0
    else:
        magnitude = int(head.removeprefix("bfp:mb")) if head.startswith("bfp") else int(head[4:]) - 9
        width = magnitude + 1
        e = np.clip(log2_floor(amax), -127, 127)
        if words == ["bump"]:
            steps = np.rint(amax.astype(np.float64) * np.ldexp(1.0, magnitude - 1 - e))
            e = np.minimum(e + (steps > 2**magnitude - 1), 127)
        codes, value = bfp_codes(magnitude, np.ldexp(blocks.astype(np.float64), -e[..., None]))
    decoded = np.clip(np.ldexp(value, e[..., None]), -float(LARGEST), float(LARGEST)).astype(F)
    return (e + 127).astype(np.uint8).tobytes() + pack(cut(codes), width), cut(decoded)


def digest(data):
    """FNV-1a of the FNV-1a hashes of 64 equal parts of the bytes, zeros at the end making them equal words."""
    padded = np.frombuffer(data + bytes(-len(data) % 256), dtype="<u4").reshape(64, -1)
    parts = fnv1a64_rows(padded)
    return f"{int(fnv1a64_rows(parts.view('<u4').reshape(1, -1))[0]):016x}"


def count(name, cases):
    text = ", ".join(f"{case} {number}" for case, number in cases.items())
    print(f"{name}: {text}")
    return f"{name}: {text}."


def against_torchao(x):
    """All float elements and rules of `to_mx`, and NVFP4 under two levels of scales."""
    types = {
        "mxfp8_e4m3": torch.float8_e4m3fn,
        "mxfp8_e5m2": torch.float8_e5m2,
        "mxfp6_e3m2": mx_tensor.DTYPE_FP6_E3M2,
        "mxfp6_e2m3": mx_tensor.DTYPE_FP6_E2M3,
        "mxfp4": torch.float4_e2m1fn_x2,
    }
    notes = []
    tensor = torch.from_numpy(x)
    blocks = blocks_of(x, 32)
    amax = np.abs(blocks).max(axis=-1)
    for (name, kind), rule in itertools.product(types.items(), RULES):
        mode = mx_tensor.ScaleCalculationMode[rule.upper()]
        scales, data = mx_tensor.to_mx(tensor, kind, 32, mode)
        scales = scales.view(torch.uint8).numpy().reshape(amax.shape)
        if name == "mxfp4":
            data = mx_tensor.unpack_uint4(data)
        codes = data.view(torch.uint8).numpy().reshape(blocks.shape)
        e = exponents(amax, *top_of(name), rule)
        wrong_scale = scales != e + 127
        with np.errstate(all="ignore"):
            descale = amax / F(top_of(name)[0])
            # The logarithm in f32 of what is just above a power of two is whole, and the quotient rounds to one where
            # it is subnormal.
            rounded = np.ceil(np.log2(descale)) != np.ceil(np.log2(descale.astype(np.float64)))
        log2 = wrong_scale & (rule == "rceil") & (rounded | (descale < F(2.0**-126)))
        assert not np.any(wrong_scale & ~log2), (name, rule, amax[wrong_scale & ~log2][:5])
        ours, _ = mx_codes(name, np.ldexp(blocks.astype(np.float64), -e[..., None]))
        differ = (codes != ours).any(axis=-1) & ~wrong_scale
        # Under the smallest scale, 2^-127, torchao divides by 2^-126 (rceil: by 1).
        smallest = differ & (e == -127)
        rest = differ & ~smallest
        assert not rest.any(), (name, rule, int(rest.sum()))
        cases = {"blocks": amax.size, "quotient or log2 rounds": int(log2.sum()), "smallest scale": int(smallest.sum())}
        notes.append(count(f"torchao {name}/{rule}", cases))
    return notes


def nvfp4_against_torchao(x):
    """Without the floor under the scales, and but for quotients that lie on a tie to within their rounding."""
    blocks = blocks_of(x, 16)
    amax = np.abs(blocks).max(axis=-1)
    front, scale = nested(amax, 6)
    unit = np.frombuffer(front[:4], dtype=F)[0]
    foreign = nvfp4_tensor.per_tensor_amax_to_scale(torch.tensor(amax.max()))
    assert foreign.item() == unit
    scales, data = nvfp4_tensor.nvfp4_quantize(torch.from_numpy(x), 16, foreign)
    scales = scales.view(torch.uint8).numpy().reshape(amax.shape)
    codes = mx_tensor.unpack_uint4(data).numpy().reshape(blocks.shape)
    stored = np.frombuffer(front[4:], dtype=np.uint8).reshape(amax.shape)
    least = np.frombuffer(F(2.0**-6).astype(ml_dtypes.float8_e4m3fn).tobytes(), dtype=np.uint8)[0]
    floored = (scales != stored) & (stored < least) & (scales == least)
    assert not np.any((scales != stored) & ~floored)
    with np.errstate(divide="ignore", invalid="ignore"):
        v = blocks / scale[..., None]
        ours, _ = mx_codes("mxfp4", np.where(scale[..., None] == 0, 0, v).astype(np.float64))
        ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
        near = (np.abs(np.abs(v)[..., None] / ties - 1) < 2.0**-21).any(axis=-1)
    same_scale = (stored == scales)[..., None]
    differ = (codes != ours) & same_scale
    assert not np.any(differ & ~near), int((differ & ~near).sum())
    cases = {"blocks": amax.size, "scale floored": int(floored.sum()), "reciprocal at a tie": int(differ.sum())}
    return [count("torchao nvfp4", cases)]


def against_gguf(x):
    """Bytes of ours that gguf decodes, and blocks that gguf encodes."""
    blocks = blocks_of(x, 32).reshape(-1, 32)
    amax = np.abs(blocks).max(axis=-1)
    e = exponents(amax, *top_of("mxfp4"), "floor")
    codes, value = mx_codes("mxfp4", np.ldexp(blocks.astype(np.float64), -e[:, None]))
    halves = (codes[:, :16] | codes[:, 16:] << 4).astype(np.uint8)
    ours = np.concatenate([(e + 127).astype(np.uint8)[:, None], halves], axis=1)
    decoded = gguf.quants.dequantize(ours, gguf.GGMLQuantizationType.MXFP4)
    expected = np.ldexp(value, e[:, None]).astype(F)
    # gguf has no negative zero.
    assert np.array_equal(bits(decoded), bits(expected + F(0))), "gguf decodes otherwise"
    with np.errstate(all="ignore"):
        foreign = gguf.quants.quantize(blocks, gguf.GGMLQuantizationType.MXFP4)
        rounded = np.floor(np.log2(amax)) != log2_floor(amax)
    # gguf does not clamp an exponent below -127: it wraps around.
    wraps = (amax > 0) & (log2_floor(amax) - 2 < -127)
    scale_differs = foreign[:, 0] != ours[:, 0]
    assert not np.any(scale_differs & ~wraps & ~rounded)
    low, high = foreign[:, 1:] & 15, foreign[:, 1:] >> 4
    theirs = np.concatenate([low, high], axis=1)
    v = np.abs(np.ldexp(blocks.astype(np.float64), -e[:, None]))
    # gguf searches the nearest: a tie goes to the smaller magnitude, and a zero has no sign.
    tie = np.isin(v, [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    # The distances are computed in f32, where those to both neighbours may round to the same.
    with np.errstate(all="ignore"):
        close = (np.abs(v[..., None] / np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]) - 1) < 2.0**-21).any(axis=-1)
    zero = codes == 8
    differ = (theirs != codes) & ~(scale_differs | wraps | rounded)[:, None]
    assert not np.any(differ & ~tie & ~zero & ~close), int((differ & ~tie & ~zero & ~close).sum())
    cases = {
        "blocks": len(blocks),
        "exponent wraps": int((wraps & scale_differs).sum()),
        "log2 in f32 rounds": int((rounded & scale_differs & ~wraps).sum()),
        "elements, ties": int((differ & (tie | close)).sum()),
        "elements, negative zeros": int((differ & zero & ~tie & ~close).sum()),
    }
    return [count("gguf mxfp4", cases)]


def against_gfloat(x):
    """A sample of blocks through gfloat's own block formats."""
    infos = {
        "mxfp8_e4m3": gfloat.formats.format_info_mxfp8_e4m3,
        "mxfp8_e5m2": gfloat.formats.format_info_mxfp8_e5m2,
        "mxfp6_e3m2": gfloat.formats.format_info_mxfp6_e3m2,
        "mxfp6_e2m3": gfloat.formats.format_info_mxfp6_e2m3,
        "mxfp4": gfloat.formats.format_info_mxfp4_e2m1,
        "mxint8": gfloat.formats.format_info_mxint8,
    }
    notes = []
    blocks = blocks_of(x, 32).reshape(-1, 32)[:640].astype(np.float64)
    for name, info in infos.items():
        cases = {"blocks": len(blocks), "int8 of -128": 0}
        for block in blocks:
            foreign = gfloat.quantize_block(info, block, gfloat.compute_scale_amax)
            amax = np.abs(block).max(keepdims=True)
            e = exponents(amax, *top_of(name), "floor")
            _, value = mx_codes(name, np.ldexp(block, -e))
            differ = np.ldexp(value, e) != foreign
            lowest = differ & (foreign == -np.ldexp(2.0, e)) & (name == "mxint8")
            assert not np.any(differ & ~lowest), (name, block[differ], foreign[differ], value[differ])
            cases["int8 of -128"] += int(lowest.sum())
        notes.append(count(f"gfloat {name}", cases))
    return notes


def against_microxcaling(x):
    """`_quantize_mx` with its rounding to even, under the rule floor; its integers are the mantissas of BFP."""
    folder = os.environ.get("MICROXCALING")
    if not folder:
        return []
    sys.path.insert(0, folder)
    from mx.mx_ops import _quantize_mx

    types = {
        "mxfp8_e4m3": ("fp8_e4m3", 32),
        "mxfp8_e5m2": ("fp8_e5m2", 32),
        "mxfp6_e3m2": ("fp6_e3m2", 32),
        "mxfp6_e2m3": ("fp6_e2m3", 32),
        "mxfp4": ("fp4_e2m1", 32),
        "mxint8": ("int8", 32),
        "msfp16": ("int8", 16),
        "msfp12": ("int4", 16),
        "bfp:mb1": ("int2", 16),
    }
    notes = []
    for name, (kind, length) in types.items():
        foreign = _quantize_mx(
            torch.from_numpy(x), 8, kind, shared_exp_method="max", axes=[-1], block_size=length, round="even"
        )
        blocks = blocks_of(x, length)
        foreign = foreign.numpy().reshape(blocks.shape)
        ours = encode(name, x)[1].reshape(blocks.shape)
        amax = np.abs(blocks).max(axis=-1)
        differ = (ours != foreign).any(axis=-1)
        # It takes logarithms in f32, and has ways of its own with blocks whose scale is near the smallest.
        with np.errstate(all="ignore"):
            log2 = (np.floor(np.log2(amax)) != log2_floor(amax)) & (amax > 0)
        small = amax < 2.0**-100
        assert not np.any(differ & ~log2 & ~small), (name, int((differ & ~log2 & ~small).sum()))
        cases = {
            "blocks": amax.size,
            "log2 in f32 rounds": int((differ & log2 & ~small).sum()),
            "below 2^-100": int((differ & small).sum()),
        }
        notes.append(count(f"microxcaling {name}", cases))
    return notes


SCHEMES = [
    *MX,
    *(f"{name}/scale:{rule}" for name in MX for rule in RULES[1:]),
    "mxfp4/group:16",
    "mxfp8_e5m2/group:24/scale:even",
    "mxint8/group:20",
    *(f"bfp:mb{k}" for k in [1, 2, 4, 8, 9, 12, 15]),
    *(f"bfp:mb{k}/bump" for k in [1, 3, 7, 15]),
    *(f"msfp{n}" for n in range(11, 17)),
]
NESTED = ["nvfp4", "nvfp4/group:32", "int4/group:16/scale:e4m3fn", "int8/group:32/scale:e4m3fn"]

NOTES = """
One line per scheme and shape. `window` is empty or LOW:EXTENT. `bytes` are those of the encoded tensor in hexadecimal,
left out where they are many; `encoded` is their hash, `decoded` that of the decoded f32 values.
Hash: zeros are added up to a multiple of 256 bytes; the 64 equal parts are hashed by FNV-1a (64 bits), and so are the
64 results, as little-endian bytes.
Input i: h = mix(i), k = mix((i / 32) ^ 9e3779b9), where mix is h ^= h >> 16; h *= 7feb352d; h ^= h >> 15;
h *= 846ca68b; h ^= h >> 16. sign = h & 80000000, m = h & 7fffff, d = h >> 23 & 15, base = (k >> 8) % 254 + 1,
near = sign, exponent field max(base - d, 0), mantissa m. The bits are, by (i / 32) % 8:
0: near. 1: h, or 0 if its exponent field is 255. 2: h & 807fffff.
3: sign, exponent field max(base - d - 1, 0), mantissa m; but where i % 32 = k % 32, sign, exponent field base, and
mantissa number (k >> 16) % 20 of MANTISSAS in the script. 4: near & ~3ffff. 5: sign if h & 3 or an even k, else near.
6: sign, exponent field 254 - (d & 7), mantissa m. 7: sign, exponent field d & 3, mantissa m.
With a window, an exponent field e above 0 becomes LOW + (e - 1) % EXTENT.
Differences to other implementations, as counts of blocks over the inputs of the shape 1024x1024 (NVFP4: its window):
"""


def main():
    shapes = [(1024, 1024), (10000, 105), (4, 44)]
    window = (112, 12)
    x = inputs(1 << 20).reshape(1024, 1024)
    notes = against_torchao(x)
    notes += nvfp4_against_torchao(inputs(1 << 20, window).reshape(1024, 1024))
    notes += against_gguf(x)
    notes += against_gfloat(x)
    notes += against_microxcaling(x)
    rows = []
    for scheme, shape in itertools.product([*SCHEMES, *NESTED], shapes):
        limits = window if scheme in NESTED else None
        x = inputs(shape[0] * shape[1], limits).reshape(shape)
        data, decoded = encode(scheme, x)
        assert np.all(np.isfinite(decoded)), scheme
        told = data.hex() if shape == shapes[-1] else ""
        span = f"{window[0]}:{window[1]}" if limits else ""
        rows.append([scheme, shape_text(shape), span, told, digest(data), digest(bits(decoded).tobytes())])
    columns = ["scheme", "shape", "window", "bytes", "encoded", "decoded"]
    packages = ["numpy", "ml_dtypes", "torch", "torchao", "gguf", "gfloat"]
    write(CODEC / "blocks.csv", packages, NOTES + "\n".join(notes), columns, rows)


if __name__ == "__main__":
    sys.exit(main())
