"""Golden file of scores: what formats of other libraries lose, by sums that are exact.

The values that a tensor becomes are those of ml_dtypes, or of numpy's division and rint for integers; sums are taken by
math.fsum, moments and the histogram by numpy.
"""

import math

import ml_dtypes
import numpy as np

from golden_file import SCRIMP, write

NOTES = """
x[i] = f32(factor u^power), one multiplication after another in f64, where u = h / 2^31 - 1 and h is the low half of
the product 2654435761 (i + 1). Tensors are rows x cols. Numbers are decimal.
zeroed: values that became zero and were not. saturated: values further out than what rounds to the largest code.
within_1, within_2.5: values so many standard deviations (unbiased) from the mean. bins: numpy.histogram over what lies
within five of them, clipped to the extent of the values; beyond: values further out.
"""
COLUMNS = (
    "scheme rows cols power factor bytes sqnr_db cosine max_error amax zeroed saturated min max mean std within_1 within_2.5 "
    "beyond bins"
).split()


def values(count, power, factor):
    h = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)
    u = h.astype(np.float64) / 2.0**31 - 1.0
    x = np.full(count, factor)
    for _ in range(power):
        x *= u
    return x.astype(np.float32)


def integers(x, bits):
    """Symmetric integers with a scale in f32 for each row of `x`."""
    qmax = np.float32(2 ** (bits - 1) - 1)
    scale = (np.abs(x).max(axis=1, keepdims=True) / qmax).astype(np.float32)
    return np.rint(x / scale) * scale, x.size * bits // 8 + 4 * len(scale)


def floats(x, dtype):
    top = float(ml_dtypes.finfo(dtype).max)
    # The distance from the largest value to the one before it.
    before = float(np.array(np.array(top, dtype).view(np.uint8) - 1, np.uint8).view(dtype))
    saturated = int((np.abs(x) > top + (top - before) / 2).sum())
    return np.clip(x, -top, top).astype(dtype).astype(np.float32), saturated


def became(scheme, x):
    if scheme == "e4m3fn":
        y, saturated = floats(x, ml_dtypes.float8_e4m3fn)
        return y, x.size, saturated
    if scheme == "e2m1fn":
        y, saturated = floats(x, ml_dtypes.float4_e2m1fn)
        return y, (x.size + 1) // 2, saturated
    if scheme == "bf16":
        return x.astype(ml_dtypes.bfloat16).astype(np.float32), 2 * x.size, 0
    bits, per_row = int(scheme[3]), scheme.endswith("/channel")
    y, size = integers(x if per_row else x.reshape(1, -1), bits)
    return y.reshape(x.shape), size, 0


def row(scheme, rows, cols, power, factor):
    x = values(rows * cols, power, factor).reshape(rows, cols)
    y, size, saturated = became(scheme, x)
    x, y = x.reshape(-1).astype(np.float64), y.reshape(-1).astype(np.float64)
    signal, noise = math.fsum(x * x), math.fsum((x - y) ** 2)
    cosine = math.fsum(x * y) / math.sqrt(signal) / math.sqrt(math.fsum(y * y))
    mean, std = math.fsum(x) / x.size, x.std(ddof=1)
    low, high = max(x.min(), mean - 5 * std), min(x.max(), mean + 5 * std)
    bins, _ = np.histogram(x, bins=64, range=(low, high))
    away = np.abs(x - mean)
    return [
        scheme,
        rows,
        cols,
        power,
        factor,
        size,
        10 * math.log10(signal / noise),
        cosine,
        np.abs(x - y).max(),
        np.abs(x).max(),
        int(((x != 0) & (y == 0)).sum()),
        saturated,
        x.min(),
        x.max(),
        mean,
        std,
        int((away <= std).sum()),
        int((away <= 2.5 * std).sum()),
        int(x.size - bins.sum()),
        " ".join(map(str, bins)),
    ]


CASES = [
    ("int8", 3, 40, 1, 1.0),
    ("int4", 1, 7000, 3, 0.02),
    ("int8/channel", 64, 1100, 13, 3.0),
    ("int3/channel", 5, 16, 2, 1e20),
    ("e4m3fn", 20, 333, 3, 900.0),
    ("e4m3fn", 300, 1000, 17, 0.03),
    ("e2m1fn", 9, 1030, 4, 10.0),
    ("bf16", 2, 65537, 5, 1e-20),
]

write(
    SCRIMP / "score.csv",
    ["numpy", "ml_dtypes"],
    NOTES,
    COLUMNS,
    [row(*case) for case in CASES],
)
