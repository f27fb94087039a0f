"""Golden file of the codecs below two bits and of the sparse ones: whole tensors, their bytes and decoded values.

Torch computes every mean, deviation and order, in f64; numpy packs bits. Nothing here knows the Rust: places of sparse
tensors are written from the description of their bytes. Random draws come from Philox in numpy, which is compared
with randomgen.
"""

import math
from fractions import Fraction

import numpy as np
import torch
from randomgen import Philox

from golden_file import CODEC, fnv1a64_rows, hex32, shape_text, write
from golden_integer import groups_of

F = np.float32
BLOCK = 65536  # words of one hash
SMALLEST = F(2.0**-126)


# --- inputs, which the test makes by the same rules ---


def mixed(n, salt):
    h = np.arange(n, dtype=np.uint32) + np.uint32(salt * 0x9E3779B9 % 2**32)
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


def made(rule):
    """`kind:length:salt`."""
    kind, n, salt = rule.split(":")
    h = mixed(int(n), int(salt))
    if kind == "bell":  # the sum of four bytes, in steps of 1/64: many ties
        total = sum((h >> np.uint32(s)) & np.uint32(255) for s in (0, 8, 16, 24))
        return (total.astype(F) - F(510)) / F(64)
    if kind == "wide":  # any number between 2^-27 and 2^4
        exponent = np.uint32(100) + (h >> np.uint32(23)) % np.uint32(32)
        return ((h & np.uint32(0x807FFFFF)) | (exponent << np.uint32(23))).view(F)
    if kind == "any":  # any finite number at all
        return np.where((h >> np.uint32(23)) & np.uint32(255) == 255, np.uint32(0), h).view(F)
    if kind == "few":  # nearly all zero, of both signs
        value = np.where(h % np.uint32(50) == 0, h & np.uint32(0xBFFFFFFF), h & np.uint32(0x80000000))
        return value.view(F)
    raise ValueError(rule)


# --- random numbers ---


def words_of(stream, blocks):
    """Philox4x32-10 of many blocks, in numpy."""
    seed, tensor, step = stream
    mask = np.uint64(0xFFFFFFFF)
    blocks = np.asarray(blocks, dtype=np.uint64)
    c = [np.full_like(blocks, step & 0xFFFFFFFF), np.full_like(blocks, step >> 32)]
    c += [blocks & mask, blocks >> np.uint64(32)]
    k = [seed, tensor]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        high = np.uint64(32)
        c = [
            (b >> high) ^ c[1] ^ np.uint64(k[0]),
            b & mask,
            (a >> high) ^ c[3] ^ np.uint64(k[1]),
            a & mask,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return np.stack(c, axis=1)


def draws_of(stream, n, first=0):
    """The draws of the elements from `first` on, a multiple of four."""
    words = words_of(stream, first // 4 + np.arange((n + 3) // 4)).reshape(-1)[:n]
    for block in (0, 1, first // 4 + (n - 1) // 4):
        seed, tensor, step = stream
        counter = (step + (block << 64) - 1) % 2**128
        theirs = Philox(counter=counter, key=seed + (tensor << 32), number=4, width=32).random_raw(4)
        ours = words_of(stream, [block])[0]
        assert list(map(int, ours)) == list(map(int, theirs)), (ours, theirs)
    return words >> np.uint64(8)


# --- bytes ---


def packed(codes, packing):
    codes = np.asarray(codes, dtype=np.uint8)
    if packing == "bits":
        return np.packbits(codes, bitorder="little").tobytes()
    if packing == "pairs":
        bits = np.stack([codes & 1, codes >> 1], axis=1).reshape(-1)
        return np.packbits(bits, bitorder="little").tobytes()
    codes = np.pad(codes, (0, -len(codes) % 5)).reshape(-1, 5)
    return (codes.astype(int) @ np.array([1, 3, 9, 27, 81])).astype(np.uint8).tobytes()


def stored(mean, storage):
    """A mean as the storage holds it, and its bytes."""
    if mean == 0:
        return F(0), bytes({"f32": 4, "f16": 2, "bf16": 2, "pow2": 1, "log2": 1}[storage])
    scale = F(mean)
    if storage == "f32":
        scale = max(scale, SMALLEST)
        return scale, scale.tobytes()
    if storage == "f16":
        half = torch.tensor(scale).to(torch.float16)
        scale = F(min(max(half.float().item(), 2.0**-24), 65504.0))
        return scale, scale.astype(np.float16).tobytes()
    if storage == "bf16":
        half = torch.tensor(scale).to(torch.bfloat16).float().item()
        scale = F(min(max(half, float(SMALLEST)), 2.0**127 * (2 - 2.0**-7)))
        return scale, scale.tobytes()[2:]
    exact = Fraction(float(max(scale, SMALLEST)))
    exponent = next(e for e in range(-126, 129) if Fraction(2) ** (e + 1) > exact)
    if storage == "pow2":
        exponent += exact > Fraction(2) ** exponent
    else:  # to the nearest in the logarithm: up beyond 2^(e + 1/2)
        exponent += exact**2 > Fraction(2) ** (2 * exponent + 1)
    exponent = min(exponent, 127)
    return F(2.0**exponent), bytes([exponent + 127])


def places(indices, n, k):
    """The places of k of n elements, from the description of their bytes."""
    if k == n:
        return b""
    low = min(32, int(math.log2(n // k)))
    upper = k + ((n - 1) >> low)
    if k * low + upper >= n:
        bits = np.zeros(n, dtype=np.uint8)
        bits[indices] = 1
        return np.packbits(bits, bitorder="little").tobytes()
    lower_bits = ((np.asarray(indices)[:, None] >> np.arange(low)) & 1).astype(np.uint8).reshape(-1)
    upper_bits = np.zeros(upper, dtype=np.uint8)
    upper_bits[(np.asarray(indices) >> low) + np.arange(k)] = 1
    return b"".join(np.packbits(b, bitorder="little").tobytes() for b in (lower_bits, upper_bits))


# --- codecs: each gives bytes and decoded values ---


def binary(x, shape, words, storage):
    header, y, bits = b"", np.empty_like(x), x >= 0
    for group in groups_of(words or "tensor", shape):
        mean = torch.from_numpy(x[group]).double().abs().mean().item()
        alpha, raw = stored(mean, storage)
        header += raw
        y[group] = torch.where(torch.from_numpy(bits[group]), alpha.item(), -alpha.item()).numpy()
    return header + packed(bits, "bits"), y


def ternary(x, shape, words, storage, factor, packing):
    header, y, codes = b"", np.zeros_like(x), np.zeros(x.size, dtype=np.uint8)
    for group in groups_of(words or "tensor", shape):
        g = torch.from_numpy(x[group]).double()
        threshold = g.abs().mean() * factor
        above = g.abs() > threshold
        mean = g.abs()[above].mean().item() if above.any() else 0.0
        alpha, raw = stored(mean, storage)
        header += raw
        codes[group] = torch.where(above, torch.where(g > 0, 1, 2), 0).numpy()
        y[group] = (above * g.sign()).float().numpy() * alpha + F(0)
    return header + packed(codes, packing), y


def terngrad(x, shape, words, clip, packing, stream):
    header, y, codes = b"", np.zeros_like(x), np.zeros(x.size, dtype=np.uint8)
    draws = draws_of(stream, x.size)
    for group in groups_of(words or "tensor", shape):
        g = torch.from_numpy(x[group])
        limit = g.abs().max().item()
        deviation = torch.std(g.double(), correction=0).item()
        if clip and not bool((g == g[0]).all()):
            limit = min(limit, F(min(clip * deviation, limit)).item())
        s = F(0) if limit == 0 else max(F(limit), SMALLEST)
        header += s.tobytes()
        if s == 0:
            continue
        share = (g.clamp(-limit, limit) / torch.tensor(s)).double()
        q = torch.floor(share + torch.from_numpy(draws[group].astype(np.float64)) / 2**24)
        codes[group] = q.remainder(3).to(torch.uint8).numpy()
        y[group] = (q.float() * torch.tensor(s)).numpy() + F(0)
    return header + packed(codes, packing), y


def onebit(x, shape, words, residual):
    h = x + residual
    header, y, bits = b"", np.empty_like(h), h >= 0
    whole = "tensor" if len(shape) < 2 else "channel"
    for group in groups_of(words or whole, shape):
        g = torch.from_numpy(h[group]).double()
        above = g >= 0
        mean = [g[side].mean().float().item() if side.any() else 0.0 for side in (above, ~above)]
        header += F(mean[0]).tobytes() + F(mean[1]).tobytes()
        y[group] = torch.where(above, *mean).numpy()
    residual[:] = h - y
    return header + packed(bits, "bits"), y


def kept_values(values, storage):
    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[storage]
    t = torch.from_numpy(values).clamp(-torch.finfo(kind).max, torch.finfo(kind).max).to(kind)
    width = torch.int32 if storage == "f32" else torch.int16
    return t.view(width).numpy().tobytes(), t.float().numpy()


def count(share, n):
    if share.endswith("%"):
        return max(1, math.ceil(Fraction(share[:-1]) / 100 * n)) if n else 0
    return min(n, int(share))


def top_k(x, share, storage, residual):
    h = x if residual is None else x + residual
    k = count(share, x.size)
    order = torch.sort(torch.from_numpy(h).abs(), descending=True, stable=True)
    indices = np.sort(order.indices[:k].numpy())
    theirs = torch.topk(torch.from_numpy(h).abs(), k).values
    assert torch.equal(theirs, order.values[:k])
    raw, values = kept_values(h[indices], storage)
    y = np.zeros_like(x)
    y[indices] = values
    if residual is not None:
        residual[:] = h - y
    return raw + places(indices, x.size, k), y


def random_k(x, share, storage, unbiased, stream):
    k = count(share, x.size)
    i = np.arange(x.size)
    draws = draws_of(stream, (x.size // 192 + 1) * 64, first=1 << 62)
    lots = draws[i // 192 * 64 + i % 64] >> (i // 64 % 3 * 8).astype(np.uint64) & np.uint64(255)
    lots = lots << np.uint64(24) | draws_of(stream, x.size)
    order = torch.sort(torch.from_numpy(lots.astype(np.int64)), descending=True, stable=True).indices[:k]
    indices = np.sort(order.numpy())
    values = x[indices].astype(np.float64) * (x.size / k if unbiased else 1)
    raw, values = kept_values(np.clip(values, -np.finfo(F).max, np.finfo(F).max).astype(F), storage)
    y = np.zeros_like(x)
    y[indices] = values
    seed, tensor, step = stream
    key = np.array([seed, tensor, step % 2**32, step >> 32], dtype="<u4").tobytes()
    return raw + (key if k < x.size else b""), y


def encoded(scheme, x, shape, stream, state):
    head, *words = scheme.split("/")
    name, _, share = head.partition(":")
    said = {w.partition(":")[0]: w.partition(":")[2] for w in words}
    packing = "trits" if "dense" in said else "pairs"
    own = ("scale", "thr", "clip", "noclip", "dense", "values", "feedback", "unbiased")
    granularity = next((w for w in words if w.partition(":")[0] not in own), None)
    storage = said.get("scale", "f32")
    if name == "sign":
        return packed(x >= 0, "bits"), np.where(x >= 0, F(1), F(-1))
    if name == "binary":
        return binary(x, shape, granularity, storage)
    if name == "ternary":
        factor = float(said.get("thr", "0.7"))
        return ternary(x, shape, granularity, storage, factor, packing)
    if name == "terngrad":
        clip = None if "noclip" in said else float(said.get("clip", "2.5"))
        return terngrad(x, shape, granularity, clip, packing, stream)
    if name == "onebit":
        return onebit(x, shape, granularity, state.setdefault("residual", np.zeros_like(x)))
    values = said.get("values", "f32")
    if name == "top_k":
        feedback = "feedback" in said
        residual = state.setdefault("residual", np.zeros_like(x)) if feedback else None
        return top_k(x, share, values, residual)
    return random_k(x, share, values, "unbiased" in said, stream)


# --- rows ---


def hashed(raw):
    words = np.frombuffer(raw + bytes(-len(raw) % (4 * BLOCK)), dtype="<u4").reshape(-1, BLOCK)
    return " ".join(f"{h:016x}" for h in fnv1a64_rows(words))


def rows_of(case, scheme, shape, inputs, stream=(7, 42, 5)):
    """One row for each input; several are steps of one memory."""
    state, rows = {}, []
    for step, given in enumerate(inputs):
        stream = (*stream[:2], stream[2] + step)
        by_rule = isinstance(given, str)
        x = made(given) if by_rule else np.array(given, dtype=F)
        raw, y = encoded(scheme, x.reshape(-1), shape, stream, state)
        y = np.asarray(y, dtype=F)
        texts = [hashed(raw), hashed(y.tobytes())] if by_rule else [raw.hex(), hex32(y)]
        name = f"{case}.{step}" if len(inputs) > 1 else case
        keys = " ".join(map(str, stream))
        text = given if by_rule else hex32(x)
        rows.append([name, scheme, shape_text(shape), keys, text, len(raw), *texts])
    return rows


SMALL = {
    "example": [0.5, -0.3, 0.2, -1.0],
    "gradient": [0.3, -0.1, 0.0, 0.05, -0.2],
    "zeros": [0.0, -0.0, 0.0, 0.0, -0.0, 0.0, 0.0],
    "ties": [1.0, -1.0, 1.0, -1.0, 0.5, -0.5, 0.7, -0.7, 1.0],
    "constant": [3.0, 3.0, 3.0, 3.0, 3.0],
    "tiny": [1e-45, -1e-45, 3e-42, -1e-38, 2e-38, 0.0],
    "huge": [3.4028234663852886e38, -3.4028234663852886e38, 1.0, -1e38],
    "one": [-2.5],
    "root": [1.4142135, 1.4142135, 1.4142135],
    "above_root": [1.4142137, 1.4142137],
}


def rows():
    rows = []
    small = "sign binary binary/scale:f16 binary/scale:bf16 binary/scale:pow2 binary/scale:log2 binary/flat:3 ternary"
    small += " ternary/dense ternary/thr:0.5 ternary/thr:0/flat:2/scale:bf16 terngrad terngrad/noclip terngrad/clip:1"
    small += " terngrad/dense/flat:4 onebit onebit/flat:3 top_k:1% top_k:50% top_k:2/values:f16 top_k:3/values:bf16"
    small += " random_k:40% random_k:2/unbiased random_k:1/values:f16"
    for scheme in small.split():
        for name, values in SMALL.items():
            rows += rows_of(f"{name}_{scheme}", scheme, [len(values)], [values])
    steps = [[0.4, -0.1, 0.2, -0.5], [0.1, 0.1, -0.3, -0.1], [0.0, 0.2, 0.3, -0.4]]
    rows += rows_of("steps", "onebit", [4], steps)
    rows += rows_of("steps", "top_k:25%/feedback", [4], steps)

    million = 1 << 20
    for kind in ("bell", "wide", "few"):
        at = lambda salt: f"{kind}:{million + 19}:{salt}"
        for scheme in ("sign", "binary", "binary/scale:log2", "ternary", "ternary/dense/thr:0.6", "terngrad",
                       "terngrad/dense/noclip", "top_k:1%", "top_k:0.1%/values:f16", "top_k:26%",
                       "random_k:1%", "random_k:33.3%/unbiased/values:bf16"):
            rows += rows_of(f"million_{kind}", scheme, [million + 19], [at(1)])
        rows += rows_of(f"million_{kind}", "onebit", [million + 19], [at(s) for s in (2, 3)])
        rows += rows_of(f"million_{kind}", "top_k:5%/feedback", [million + 19], [at(s) for s in (4, 5)])
    at = lambda salt: f"bell:{96 * 11000}:{salt}"
    for scheme in ("binary/channel/scale:f16", "binary/axis:1", "ternary/group:128", "ternary/dense/axis:1",
                   "ternary/tile:16x16/scale:bf16", "terngrad/channel", "terngrad/dense/group:100/clip:2"):
        rows += rows_of("matrix", scheme, [96, 11000], [at(6)])
    rows += rows_of("matrix", "onebit", [96, 11000], [at(s) for s in (7, 8, 9)])
    rows += rows_of("matrix", "onebit/axis:1", [96, 11000], [at(s) for s in (7, 8)])
    any_number = f"any:{million}:11"
    for scheme in ("sign", "top_k:2%", "top_k:3%/values:bf16", "random_k:5%"):
        rows += rows_of("any", scheme, [million], [any_number])
    return rows


NOTES = """
One line per tensor; `case.0`, `case.1`, ... are the steps of one memory. f32 values as hexadecimal bit patterns.
stream: seed, tensor id and step. input: values, or `kind:length:salt`: h = mix(i + salt * 9e3779b9) as in the other
files; bell: (sum of the four bytes of h - 510) / 64; wide: sign and mantissa of h, exponent 100 + (h >> 23) % 32;
few: h with bit 30 cleared where h % 50 = 0, else the sign of h alone; any: h, or 0 where it is not finite.
bytes and decoded: in full, or FNV-1a 64 of each 65536 words, the last filled with zeros, where the input is a rule.
Means and deviations are those of torch in f64, then rounded to f32 and to the storage of the scale; the threshold of
`ternary` is compared in f64. Orders are those of torch.sort(stable), compared with torch.topk.
"""

if __name__ == "__main__":
    columns = ["case", "scheme", "shape", "stream", "input", "length", "bytes", "decoded"]
    write(CODEC / "levels.csv", ["torch", "numpy", "randomgen"], NOTES, columns, rows())
