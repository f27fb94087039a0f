"""Golden files of SmaQ, S2FP8 and SmaQ's small floats: hashes of bytes and of decoded values.

No library writes the bytes of SmaQ or S2FP8: these come from a second derivation in numpy from their formulas and byte
layouts, with numpy's sums, logarithms and powers in f64, packbits, and ml_dtypes for the codes of e5m2. The small floats come
from qtorch 0.2.0, the version that saturates where SmaQ says; it compiles itself when it is imported and needs ninja.
"""

import math

import ml_dtypes
import numpy as np
import torch
from qtorch.quant import float_quantize
from randomgen import Philox

from golden_file import CODEC, fnv1a64_rows, shape_text, write
from golden_integer import groups_of

F = np.float32
U = np.uint32
LARGEST = np.finfo(np.float32).max
SEED, TENSOR, STEP = 7, 3, 11


def mix(h):
    """A hash of u32 words."""
    h = np.asarray(h, dtype=U).copy()
    h ^= h >> U(16)
    h *= U(0x7FEB352D)
    h ^= h >> U(15)
    h *= U(0x846CA68B)
    return h ^ (h >> U(16))


def values(kind, size):
    """The inputs; the file's header defines them."""
    i = np.arange(size, dtype=U)
    h = mix(i * U(2) + U(1))
    if kind == "wide":
        bits = (h & U(0x807FFFFF)) | ((U(96) + ((h >> U(23)) & U(63))) << U(23))
        return bits.view(F)
    octets = sum(((h >> U(8 * k)) & U(255)).astype(np.int64) for k in range(4)) - 510
    whole = octets * 65536 + (mix(i * U(2)) & U(0xFFFF)).astype(np.int64)
    bell = whole.astype(F) * F(2.0**-23)
    if kind == "relu":
        return np.where(bell > 0, bell, F(0))
    if kind == "tails":
        return np.where(h % U(97) == 0, bell * F(8), bell)
    if kind == "shifted":
        return bell * F(0.001) + F(5)
    return bell


def philox(blocks, step=STEP, key=(SEED, TENSOR)):
    """Philox4x32-10 for many blocks: rows of four words."""
    mask = np.uint64(0xFFFFFFFF)
    blocks = np.asarray(blocks, dtype=np.uint64)
    c = [np.full(len(blocks), step & 0xFFFFFFFF, np.uint64), np.full(len(blocks), step >> 32, np.uint64)]
    c += [blocks & mask, blocks >> np.uint64(32)]
    k = [np.uint64(key[0]), np.uint64(key[1])]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ k[0], b & mask, (a >> np.uint64(32)) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return np.stack(c, axis=1)


def check_philox():
    """Against randomgen, which counts up before it makes a block."""
    counter = STEP + ((5 - 1) << 64)
    foreign = Philox(key=SEED | TENSOR << 32, counter=counter, number=4, width=32)
    # The counter that it reaches first is one more in its lowest word, the step.
    ours = philox([5 - 1], step=STEP + 1)[0]
    words = foreign.random_raw(4)
    assert [int(w) for w in words] == [int(w) for w in ours], (words, ours)


def draws(size):
    blocks = philox(np.arange((size + 3) // 4))
    return (blocks.reshape(-1)[:size] >> np.uint64(8)).astype(np.float64) / 2.0**24


def rounded(v, rule, u):
    """`v` is f32, the result f64."""
    v = v.astype(np.float64)
    match rule:
        case "rne":
            return np.rint(v)
        case "half-away":
            return np.copysign(np.floor(np.abs(v) + 0.5), v)
        case "toward-zero":
            return np.trunc(v)
        case "floor":
            return np.floor(v)
        case "stochastic":
            return np.floor(v + u)
    raise ValueError(rule)


ROUNDINGS = ("rne", "half-away", "toward-zero", "floor", "stochastic")


def words_of(scheme):
    head, *words = scheme.split("/")
    said = {"granularity": "tensor", "rounding": "rne", "statistics": "full", "t1": 1.0, "t2": 2.5}
    said |= {"positive": False, "zeros": False, "original": False, "zeros-counted": False}
    for word in words:
        key, _, value = word.partition(":")
        if word in ROUNDINGS:
            said["rounding"] = word
        elif key in ("t1", "t2"):
            said[key] = float(value)
        elif key in ("range", "sampled"):
            said["statistics"] = word
        elif word in said:
            said[word] = True
        else:
            said["granularity"] = word
    return head, said


def sample(n, k, group):
    """Which of n values a sample of k takes (Floyd)."""
    lasts = range(max(n - k, 0), n)
    words = philox([(1 << 63) | group << 16 | j for j in range(len(lasts))])
    chosen = set()
    for last, row in zip(lasts, words):
        random = int(row[0]) | int(row[1]) << 32
        pick = random * (last + 1) >> 64
        chosen.add(last if pick in chosen else pick)
    return sorted(chosen)


def mean_and_std(x, group, said):
    kind, _, count = said["statistics"].partition(":")
    if kind == "sampled":
        x = x[sample(len(x), int(count), group)]
    x = x.astype(np.float64)
    if said["zeros"]:
        x = x[x != 0]
    if len(x) <= 1:
        return F(x.sum()), F(1)
    if kind == "range":
        std = (x.max() - x.min()) / math.sqrt(2 * math.log(len(x)))
    else:
        std = x.std(ddof=0 if kind == "sampled" else 1)
    std = 1.0 if std == 0 else min(max(std, 2.0**-126), 1e38)
    return F(x.mean()), F(std)


def stream_bytes(codes, bits):
    """Codes of `bits` bits as a little-endian stream."""
    planes = (codes.astype(np.uint64)[:, None] >> np.arange(bits, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(planes.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def table(flags):
    """How many flags are set up to the end of each block of 1024."""
    ends = np.minimum(np.arange(1024, len(flags) + 1024, 1024), len(flags))
    return np.concatenate([[0], np.cumsum(flags)])[ends].astype("<u4").tobytes()


def smaq(scheme, shape, x):
    """The bytes and the decoded values."""
    head, said = words_of(scheme)
    main, outlier = (int(b) for b in head.partition(":")[2].split(","))
    top = [2 ** (main - 2) - 1, 2 ** (outlier - 2) - 1]
    t1, t2 = F(said["t1"]), F(said["t2"])
    r = [F(top[0]) / t1, F(top[1]) / (t2 - t1)]
    mean, std = np.empty(len(x), F), np.empty(len(x), F)
    header = b""
    for number, index in enumerate(groups_of(said["granularity"], shape)):
        mean[index], std[index] = m, s = mean_and_std(x[index], number, said)
        header += np.array([m, s], "<f4").tobytes()
    z = (x - mean) / std
    far = np.abs(z) > t1
    v = np.copysign(np.where(far, (np.abs(z) - t1) * r[1], np.abs(z) * r[0]), z)
    assert v.dtype == F
    width = outlier - 2
    coded = x != 0 if said["zeros"] else np.ones(len(x), bool)
    if said["original"]:
        reach = math.ceil(float(np.abs(v[far & coded]).max(initial=0)))
        width = min(max(width, reach.bit_length()), 23)
        top[1] = 2**width - 1
        header += bytes([width])
    q = np.minimum(np.abs(rounded(v, said["rounding"], draws(len(x)))), np.where(far, top[1], top[0]))
    w = q.astype(F) / np.where(far, r[1], r[0])
    w = np.where(far, t1 + w, np.minimum(w, t1))
    y = mean + std * np.copysign(w, z)
    assert y.dtype == F
    y = np.clip(y, F(0) if said["positive"] else -LARGEST, LARGEST)
    y = np.where(coded, y, F(0))

    codes = q.astype(np.int64) | np.where(np.signbit(z), 1, 0) << np.where(far, width, main - 2)
    blank = ~coded
    if said["zeros"]:
        header += bytes([int(blank.any())])
    header += table(far & coded)
    if blank.any():
        header += table(blank) + stream_bytes(blank, 1)
    parts = [stream_bytes(far[coded], 1), stream_bytes(codes[coded & ~far], main - 1)]
    return header + b"".join(parts) + stream_bytes(codes[coded & far], width + 1), y


def s2fp8(scheme, shape, x):
    """The bytes and the decoded values."""
    _, said = words_of(scheme)
    assert said["rounding"] == "rne"
    header, codes, y = b"", np.empty(len(x), np.uint8), np.empty(len(x), F)
    for index in groups_of(said["granularity"], shape):
        v = x[index].astype(np.float64)
        used = v != 0
        logs = np.log2(np.abs(v[used]))
        if said["zeros-counted"]:
            logs = np.concatenate([logs, np.zeros((~used).sum())])
        if not used.any():
            alpha, beta = 1.0, 0.0
        elif logs.max() == logs.min():
            alpha, beta = 1.0, -logs.max()
        else:
            alpha = min(max(15 / (logs.max() - logs.mean()), 2.0**-6), 2.0**6)
            beta = -alpha * logs.mean()
        a, b = F(alpha), F(beta + 0.0)
        header += np.array([a, b], "<f4").tobytes()
        there = np.zeros(len(v))
        there[used] = np.exp2(np.float64(a) * np.log2(np.abs(v[used])) + np.float64(b))
        group = np.copysign(there, v).astype(F).astype(ml_dtypes.float8_e5m2)
        codes[index] = group.view(np.uint8)
        magnitude = np.abs(group.astype(np.float64))
        back = np.zeros(len(v))
        some = magnitude != 0
        back[some] = np.exp2((np.log2(magnitude[some]) - np.float64(b)) / np.float64(a))
        y[index] = np.clip(np.copysign(back, group.astype(F)), -LARGEST, LARGEST).astype(F)
    return header + codes.tobytes(), y


def fnv(words):
    return f"{int(fnv1a64_rows(np.asarray(words, dtype=U).reshape(1, -1))[0]):016x}"


CASES = [
    ("bell", "smaq:6,8 smaq:4,6 smaq:3,16 smaq:16,3 smaq:16,16 smaq:3,3 smaq:7,9 smaq:9,5"),
    ("bell", " ".join(f"smaq:6,8/{r} smaq:5,11/{r}" for r in ROUNDINGS[1:])),
    ("bell", "smaq:6,8/t1:0.7 smaq:6,8/t2:4.0 smaq:6,8/t1:0.3/t2:0.9 smaq:6,8/range smaq:6,8/positive"),
    ("bell", "smaq:6,8/sampled:16 smaq:6,8/sampled:1000 smaq:6,8/axis:1/sampled:25"),
    ("bell", "smaq:6,8/channel smaq:6,8/axis:1 smaq:6,8/group:10 smaq:6,8/tile:7x9/range smaq:6,8/flat:1500"),
    ("relu", "smaq:6,8 smaq:6,8/zeros smaq:4,6/zeros/axis:1/stochastic smaq:6,8/zeros/positive/range"),
    ("relu", "smaq:6,8/zeros/original/sampled:64 s2fp8 s2fp8/zeros-counted"),
    ("tails", "smaq:6,8 smaq:6,8/original smaq:6,8/original/toward-zero smaq:4,6/original/stochastic"),
    ("shifted", "smaq:6,8 smaq:8,10/stochastic s2fp8"),
    ("wide", "smaq:6,8 smaq:6,8/original smaq:6,8/row s2fp8 s2fp8/channel s2fp8/group:17"),
    ("bell", "s2fp8 s2fp8/axis:1"),
]
SHAPES = [(5, 31, 157), (3, 1024), (1, 7, 9)]

NOTES = """Inputs of element i, all u32 arithmetic modulo 2^32: mix(h) is h ^= h >> 16, h *= 7feb352d, h ^= h >> 15,
h *= 846ca68b, h ^= h >> 16, and h = mix(2 i + 1). `wide` is the f32 of the bits (h & 807fffff) | (96 + (h >> 23 & 63)) << 23.
`bell` is the f32 nearest to (sum of the four bytes of h - 510) 65536 + (mix(2 i) & ffff), times 2^-23; `relu` the same
with 0 for what is below; `tails` the same times 8 where h is a multiple of 97; `shifted` times 0.001 plus 5, in f32.
The stream has seed 7, tensor 3, step 11. Hashes are FNV-1a, 64 bits: of the bytes (each taken as a word of 32 bits), and
of the bit patterns of the decoded values. The comma of a scheme is written as a blank."""


def smaq_rows():
    rows, count = [], 0
    for kind, schemes in CASES:
        for scheme in schemes.split():
            for shape in SHAPES:
                x = values(kind, math.prod(shape))
                with np.errstate(over="ignore"):
                    data, y = (smaq if scheme.startswith("smaq") else s2fp8)(scheme, shape, x)
                octets = np.frombuffer(data, np.uint8)
                rows.append([scheme.replace(",", " "), kind, shape_text(shape), len(data), fnv(octets), fnv(y.view(U))])
                count += len(x)
    print(f"{count} values")
    return rows


def qtorch_rows():
    """Results of qtorch under SmaQ's check, for values that are not subnormal in the format."""
    rows = []
    for name, e, m in [("f16", 5, 10), ("e5m2", 5, 2), ("e4m3", 4, 3), ("fp:e6m9", 6, 9), ("e3m4", 3, 4), ("bf16", 8, 7)]:
        bias = 2 ** (e - 1) - 1
        h = mix(np.arange(1 << 18, dtype=U))
        # From the least normal binade to four beyond the largest, as far as f32 goes.
        low, high = 128 - bias, min(127 + bias + 4, 254)
        x = ((h & U(0x807FFFFF)) | ((U(low) + ((h >> U(23)) & U(255)) % U(high - low + 1)) << U(23))).view(F)
        largest = F(2.0**bias * (2 - 2.0**-m))
        r = float_quantize(torch.from_numpy(x.copy()), exp=e, man=m, rounding="nearest")
        limit = torch.tensor(largest)
        r = torch.where((r - limit).abs() <= torch.finfo(torch.float32).eps, torch.tensor(float("inf")), r)
        rows.append([f"{name}/qtorch/half-away", low, high, fnv(r.numpy().view(U))])
    return rows


if __name__ == "__main__":
    check_philox()
    write(
        CODEC / "smaq.csv",
        ["numpy", "ml_dtypes", "randomgen"],
        NOTES,
        ["scheme", "inputs", "shape", "bytes", "bytes_hash", "values_hash"],
        smaq_rows(),
    )
    write(
        CODEC / "qtorch.csv",
        ["qtorch", "torch", "numpy"],
        "Input i < 2^18 is the f32 of the bits (h & 807fffff) | (low + (h >> 23 & 255) % (high - low + 1)) << 23 with h =\n"
        "mix(i) as in smaq.csv. The hash is FNV-1a of the bit patterns of all results.",
        ["scheme", "low", "high", "values_hash"],
        qtorch_rows(),
    )
