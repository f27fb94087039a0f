"""Golden files of the table formats, of double quantization, and of the configurable floats, Flexpoint and gguf blocks.

bitsandbytes: its reference implementation for any device is called, since the one for CPUs finds 8-bit codes through
a lookup table that misses the nearest level near zero.
"""

import importlib

import bitsandbytes._ops as bnb_ops
import bitsandbytes.backends.default.ops as bnb_default
import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from gguf import quants

from golden_file import CODEC, fnv1a64_rows, hex32, write

F = np.float32
COUNT = 1 << 20
ROW = 1 << 16
SMALLEST_SCALE = F(2.0**-126)


def reference_kernels():
    """The functions that bitsandbytes registers for devices without kernels of their own, by name."""
    found = {}

    def catch(name, _device):
        def keep(function):
            found[name.split("::")[1]] = function
            return function

        return keep

    register, bnb_ops.register_kernel = bnb_ops.register_kernel, catch
    try:
        importlib.reload(bnb_default)
    finally:
        bnb_ops.register_kernel = register
    return found


KERNELS = reference_kernels()


def mix(i):
    """A hash of 32 bits that a reader computes again."""
    with np.errstate(over="ignore"):
        h = i ^ (i >> np.uint32(16))
        h = h * np.uint32(0x7FEB352D)
        h ^= h >> np.uint32(15)
        h = h * np.uint32(0x846CA68B)
        return h ^ (h >> np.uint32(16))


def inputs(kind):
    """The inputs of a kind, as the header of the file defines them."""
    i = np.arange(COUNT, dtype=np.uint32)
    h = mix(i)
    u = (h.astype(np.int32) / F(2**31)).astype(np.float32)  # exact below 24 bits, else rounded
    if kind == "uniform":
        return u
    if kind == "scattered":
        # The magnitude of each 64 elements is a power of two between 2^-20 and 2^13, times 1 to 2.
        g = mix((i // np.uint32(64)) + np.uint32(0x9E3779B9))
        power = np.exp2((g % np.uint32(34)).astype(np.float64) - 20)
        odd = 1 + (g >> np.uint32(8)).astype(np.float64) / 2**24
        return (u * (power * odd).astype(np.float32)).astype(np.float32)
    if kind == "unit":
        # One element of each 64 is one, so that a scale is 1 and its reciprocal too.
        u = u.copy()
        u[::64] = 1
        return u
    if kind == "steps":
        # The first of each 64 is a multiple of 1/64 from 1 to 5, larger than the rest: the mean of scales is exact.
        u = u.copy()
        g = mix((i[::64] // np.uint32(64)) + np.uint32(0x9E3779B9))
        u[::64] = 1 + (g % np.uint32(256)).astype(np.float32) / 64
        return u
    raise ValueError(kind)


def by_table(x, code, block, scales=None):
    """Nearest levels of x under the largest magnitudes of blocks, with true division, and the scales."""
    order = np.argsort(code, kind="stable")
    sorted_code = code[order]
    thresholds = (sorted_code[:-1] + sorted_code[1:]) / F(2)
    blocks = x.reshape(-1, block)
    if scales is None:
        scales = np.abs(blocks).max(axis=1)
    with np.errstate(over="ignore"):
        v = (blocks / scales[:, None]).reshape(-1)
    places = np.searchsorted(thresholds, v, side="left")
    return (sorted_code[places].reshape(blocks.shape) * scales[:, None]).reshape(-1)


def four_bits(x, kind, double):
    """What bitsandbytes makes of x, and the scales that it uses."""
    t = torch.from_numpy(x)
    packed, absmax = KERNELS["quantize_4bit"](t, 64, kind, torch.uint8)
    if double:
        # The mean as policy has it: in f64. Where f32 is exact bitsandbytes finds the same.
        mean = torch.tensor(F(absmax.numpy().astype(np.float64).mean()))
        code = bnb.create_dynamic_map()
        q, distance = KERNELS["quantize_blockwise"](absmax - mean, code, 256)
        absmax = KERNELS["dequantize_blockwise"](q, distance, code, 256, torch.float32) + mean
    values = KERNELS["dequantize_4bit"](packed, absmax, 64, kind, x.shape, torch.float32)
    return values.numpy().reshape(-1), absmax.numpy()


def table_rows():
    rows = []
    for kind in ["uniform", "scattered", "unit", "steps"]:
        x = inputs(kind)
        for scheme, name in [("nf4", "nf4"), ("bnb_fp4", "fp4")]:
            code = bnb.get_4bit_type(name, "cpu").numpy()
            for double in [False, True]:
                theirs, scales = four_bits(x, name, double)
                if kind == "steps" and double:
                    # From end to end by the public functions, 8-bit codes of its kernel for CPUs apart.
                    packed, state = bnb.quantize_4bit(torch.from_numpy(x), quant_type=name, compress_statistics=True)
                    assert float(state.offset) == F(np.abs(x.reshape(-1, 64)).max(1).astype(np.float64).mean())
                    public = bnb.dequantize_4bit(packed, state).numpy().reshape(-1)
                    blocks = int((public != theirs).reshape(-1, 64).any(axis=1).sum())
                    print(f"{scheme} double: {blocks} of {x.size // 64} blocks have another scale in the CPU kernel")
                if double:
                    # bitsandbytes finds codes by the exact scales and decodes by the rounded ones; here values are
                    # divided by the scale as stored, so that the codes are nearest for the values that come out.
                    low = scales < SMALLEST_SCALE
                    scales = np.maximum(scales, SMALLEST_SCALE)
                    values = by_table(x, code, 64, scales)
                    differ = int((values != theirs).sum())
                    print(f"{int(low.sum())} of {low.size} scales come back as zero or less")
                else:
                    values = by_table(x, code, 64)
                    differ = int((values != theirs).sum())
                print(f"{scheme} {kind} double={double}: {differ} of {x.size} values differ from bitsandbytes")
                values = values + F(0)
                hashes = fnv1a64_rows(values.view(np.uint32).reshape(-1, ROW))
                text = " ".join(f"{h:016x}" for h in hashes)
                places = np.nonzero(values != theirs + F(0))[0]
                few = " ".join(map(str, places)) if places.size < 50 else ""
                scheme_text = scheme + ("/scale:double" if double else "")
                rows.append([scheme_text, kind, differ, few, hex32(scales[:8]), text])
        code = bnb.create_dynamic_map()
        t = torch.from_numpy(x)
        q, distance = KERNELS["quantize_blockwise"](t, code, 256)
        theirs = KERNELS["dequantize_blockwise"](q, distance, code, 256, torch.float32).numpy()
        values = by_table(x, code.numpy(), 256) + F(0)
        places = np.nonzero(values != theirs)[0]
        print(f"bnb_dynamic8 {kind}: {places.size} of {x.size} values differ from bitsandbytes")
        hashes = fnv1a64_rows(values.view(np.uint32).reshape(-1, ROW))
        text = " ".join(f"{h:016x}" for h in hashes)
        scales = np.abs(x.reshape(-1, 256)).max(axis=1)[:8]
        rows.append(["bnb_dynamic8", kind, places.size, " ".join(map(str, places)), hex32(scales), text])
    return rows


def level_rows():
    tables = [(s, bnb.get_4bit_type(n, "cpu")) for s, n in [("nf4", "nf4"), ("bnb_fp4", "fp4"), ("af4", "af4")]]
    tables.append(("bnb_dynamic8", bnb.create_dynamic_map()))
    return [[name, hex32(levels.numpy() + F(0))] for name, levels in tables]


def gguf_rows():
    rows = []
    for kind in ["uniform", "scattered", "unit"]:
        x = inputs(kind)
        for scheme, qtype in [
            ("q8_0", gguf.GGMLQuantizationType.Q8_0),
            ("q4_0", gguf.GGMLQuantizationType.Q4_0),
        ]:
            packed = quants.quantize(x, qtype)
            values = quants.dequantize(packed, qtype) + F(0)
            packed = np.ascontiguousarray(packed).reshape(-1)
            byte_hashes = fnv1a64_rows(packed.view("<u4").reshape(16, -1))
            value_hashes = fnv1a64_rows(np.ascontiguousarray(values).view(np.uint32).reshape(16, -1))
            head = " ".join(f"{b:02x}" for b in packed[: 34 if scheme == "q8_0" else 18])
            rows.append(
                [scheme, kind, head]
                + [" ".join(f"{h:016x}" for h in hashes) for hashes in (byte_hashes, value_hashes)]
            )
    return rows


def write_all():
    input_notes = (
        "Inputs are 2^20 values. With h(i) = i ^ i>>16, times 7feb352d, ^ itself >>15, times 846ca68b, ^ itself >>16, all\n"
        "in 32 bits: uniform is h(i) as i32 / 2^31 in f32; scattered is that times f32(2^(g mod 34 - 20) (1 + (g >> 8) /\n"
        "2^24)) with g = h(i/64 + 9e3779b9); unit is uniform with 1 at every 64th; steps is uniform with 1 + (g mod\n"
        "256) / 64 at every 64th.\n"
    )
    write(
        CODEC / "table_levels.csv",
        ["bitsandbytes", "torch", "numpy"],
        "The levels of the tables in the order of their codes, as bitsandbytes publishes them, with +0 for -0.",
        ["format", "levels"],
        level_rows(),
    )
    write(
        CODEC / "table.csv",
        ["bitsandbytes", "torch", "numpy"],
        input_notes
        + "Hashes are FNV-1a, 64 bits, of 2^16 decoded values each, with +0 for -0. Values are those of bitsandbytes'\n"
        "reference implementation, except `differ` elements, at `places` where these are few. Without `double`\n"
        "they differ because bitsandbytes multiplies by the reciprocal of the scale and we divide: both give one of\n"
        "the two levels next to a threshold. With `double`, scales are those of bitsandbytes bit for bit, given the\n"
        "mean in f64; values differ where the level nearest under the scale as stored is not the one nearest under\n"
        "the scale before it was rounded, and in blocks whose scale comes back as zero or less, where it is 2^-126 here.\n"
        "`scales` are the first eight. `places` are empty where there are fifty or more.",
        ["scheme", "inputs", "differ", "places", "scales", "hashes"],
        table_rows(),
    )
    write(
        CODEC / "gguf.csv",
        ["gguf", "numpy"],
        input_notes
        + "The first block as gguf quantizes it, and FNV-1a hashes, 64 bits, of sixteen equal parts of all bytes and of\n"
        "all dequantized values, with +0 for -0.",
        ["scheme", "inputs", "first", "bytes", "values"],
        gguf_rows(),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_all()
