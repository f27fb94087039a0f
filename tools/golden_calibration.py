"""Golden file of the calibration methods: ranges of activations by torch's observers, numpy and brute force.

Entropy and mean squared error have no library that does what ours says: these are written here anew, entropy from its
description as nested loops on a histogram of the exact values, the error by trying every pair of shares on the values
themselves with the ONNX reference evaluator's rounding.
"""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch.ao.quantization.observer import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver

from golden_file import ONNX, hex32, write

COUNT = 20_000
BATCH = 5_000
BINS = 2048


def mix(h):
    """A hash of u32 words."""
    h = h ^ (h >> 16)
    h = h * np.uint32(0x7FEB352D)
    h = h ^ (h >> 15)
    h = h * np.uint32(0x846CA68B)
    return h ^ (h >> 16)


def bell(i):
    words = [mix(np.uint32(4) * i + np.uint32(k)) for k in range(4)]
    octets = sum((w >> np.uint32(8 * b) & np.uint32(255)).astype(np.int64) for w in words[:3] for b in range(4))
    whole = (octets - 1530) * 65536 + (words[3] & np.uint32(0xFFFF)).astype(np.int64)
    return whole.astype(np.float32) * np.float32(2.0**-24)


def laplace(i):
    h = mix(i)
    value = (h >> np.uint32(1)) | np.uint32(1)
    zeros = 31 - np.floor(np.log2(value.astype(np.float64))).astype(np.int64)
    below = (value.astype(np.int64) << (zeros + 1) & 0xFFFFFFFF) >> 16
    whole = (zeros - 1) * 65536 + (65535 - below)
    sign = np.where(h & np.uint32(1), -1, 1)
    return (sign * whole).astype(np.float32) * np.float32(2.0**-16)


def inputs(kind):
    i = np.arange(COUNT, dtype=np.uint32)
    match kind:
        case "normal":
            return bell(i)
        case "laplace":
            return laplace(i)
        case "relu":
            return np.maximum(bell(i), np.float32(0))
        case "outlier":
            return np.where(i == 777, np.float32(20), bell(i))
        case "shifted":
            return bell(i) * np.float32(0.125) + np.float32(4)
        case "growing":
            return bell(i) * (i // np.uint32(BATCH) + np.uint32(1)).astype(np.float32)
        case "constant":
            return np.full(COUNT, 0.75, dtype=np.float32)
        case "zeros":
            return np.zeros(COUNT, dtype=np.float32)


KINDS = ["normal", "laplace", "relu", "outlier", "shifted", "growing", "constant", "zeros"]


def observed(observer, values):
    for start in range(0, COUNT, BATCH):
        observer(torch.from_numpy(values[start : start + BATCH]))
    return [observer.min_val.item(), observer.max_val.item()]


def order_statistics(values, percent):
    """The share on either side goes, and at least one value."""
    share = max((100 - percent) / 200, 1.5 / COUNT)
    low = np.quantile(values, share, method="inverted_cdf")
    high = np.quantile(values, 1 - share, method="inverted_cdf")
    return [low, high]


def l2(values):
    observer = HistogramObserver(bins=BINS, dtype=torch.quint8)
    observer(torch.from_numpy(values))
    return [v.item() for v in observer._non_linear_param_search()]


def rounded(values, scale, zero, low, high):
    return (np.clip(np.rint(values / scale) + zero, low, high) - zero) * scale


def squared_error(values, low, high, codes, symmetric):
    first, last = codes
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        scale, zero = max(high, -low) / last, 0
    else:
        scale = (high - low) / (last - first)
        zero = np.clip(np.rint(first - low / scale), first, last)
    return float(np.sum((values - rounded(values, scale, zero, first, last)) ** 2))


def least_error(values, codes, symmetric):
    """The least error among all pairs of 120 shares of the ends."""
    values = values.astype(np.float64)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    shares = np.arange(1, 121) / 120
    if symmetric:
        amax = max(high, -low)
        return min(squared_error(values, -amax * s, amax * s, codes, True) for s in shares)
    lows = [low * s for s in shares] if low < 0 else [0.0]
    highs = [high * s for s in shares] if high > 0 else [0.0]
    # The codes of one in ten values tell which pairs are worth the whole.
    few = values[::10]
    pairs = sorted((squared_error(few, a, b, codes, False), a, b) for a in lows for b in highs)
    return min(squared_error(values, a, b, codes, False) for _, a, b in pairs[:300])


def entropy(values, levels, symmetric):
    """The least and the largest threshold whose divergence is at most a tenth above the least; bin by bin."""
    amax = float(np.abs(values).max())
    two_sided = symmetric or values.min() < 0
    low = -amax if two_sided else 0.0
    counts, _ = np.histogram(values[values != 0], bins=BINS, range=(low, amax))
    reach = BINS // 2 if two_sided else BINS
    zero = BINS - reach
    found = []
    for half in range(levels // 2 if two_sided else levels, reach + 1):
        window = counts[zero - half if two_sided else 0 : zero + half].astype(np.float64)
        p = window.copy()
        p[0] += counts[: zero - half].sum() if two_sided else 0
        p[-1] += counts[zero + half :].sum()
        q = np.zeros_like(p)
        run = len(window) // levels
        for level in range(levels):
            stop = len(window) if level == levels - 1 else (level + 1) * run
            part = slice(level * run, stop)
            filled = p[part] > 0
            if filled.any():
                q[part][filled] = window[part].sum() / filled.sum()
        for d in (p, q):
            empty = d == 0
            d[~empty] = np.maximum(d[~empty] - 1e-4 * empty.sum() / max((~empty).sum(), 1), 1e-4)
            d[empty] = 1e-4
        p, q = p / p.sum(), q / q.sum()
        divergence = float(np.sum(p * np.log(p / q)))
        found.append((divergence, amax * half / reach))
    least = min(found)[0]
    near = [threshold for divergence, threshold in found if divergence <= 1.1 * least]
    return [min(near), max(near)]


def aciq(bits):
    """The clipping point, in mean absolute deviations, with the least error for a Laplace distribution (eq. of the paper)."""
    error = lambda a: 2 * np.exp(-a) + a * a / (3 * 4.0**bits)
    return minimize_scalar(error, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-9}).x


def rows():
    for kind in KINDS:
        values = inputs(kind)
        yield [kind, "min-max", "uint8", hex32(observed(MinMaxObserver(), values)), ""]
        yield [kind, "moving-average", "uint8", hex32(observed(MovingAverageMinMaxObserver(), values)), ""]
        for percent in ("99.999", "99.905", "99.005"):
            yield [kind, f"percentile:{percent}", "uint8", hex32(order_statistics(values, float(percent))), ""]
        if kind in ("constant", "zeros"):
            continue
        yield [kind, "l2", "uint8", hex32(l2(values)), ""]
        for element, codes, symmetric in (("uint8", (0, 255), 0), ("int8", (-128, 127), 1), ("int4", (-8, 7), 1)):
            yield [kind, "mse", element, "", f"{least_error(values, codes, symmetric):.6g}"]
        for element, levels, symmetric in (("uint8", 256, 0), ("int8", 256, 1), ("int4", 16, 1)):
            yield [kind, "entropy", element, hex32(entropy(values, levels, symmetric)), ""]
    for bits, element in ((2, "uint2"), (3, "int3"), (4, "uint4")):
        yield ["", "aciq", element, "", f"{aciq(bits):.6g}"]


if __name__ == "__main__":
    write(
        ONNX / "calibration.csv",
        ["torch", "numpy", "scipy"],
        """
Value i of 20000, all u32 arithmetic modulo 2^32: mix(h) is h ^= h >> 16, h *= 7feb352d, h ^= h >> 15, h *= 846ca68b,
h ^= h >> 16. `normal` is the f32 nearest to (sum of the bytes of mix(4 i), mix(4 i + 1), mix(4 i + 2) - 1530) 65536 +
(mix(4 i + 3) & ffff), times 2^-24. `laplace`: h = mix(i), v = h >> 1 | 1 with z zeros before its first one; the f32 of
(z - 1) 65536 + 65535 - (the 16 bits after the first one), times 2^-16, negative where h is odd. `relu` is normal with 0
for what is below; `outlier` has 20 at 777; `shifted` is normal times 0.125 plus 4, in f32; `growing` is normal times 1 + i / 5000.
Observers see batches of 5000. Codes of int8 and int4 are symmetric. `mse` has the least sum of squared errors over shares of
120 on either side; `aciq` the clipping point in mean absolute deviations; `entropy` the smallest and the largest threshold
whose divergence is at most a tenth above the least; the others have the range, two f32.
""",
        ["values", "method", "element", "range", "number"],
        list(rows()),
    )
