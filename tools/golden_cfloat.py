"""Golden files of the configurable floats and of Flexpoint.

Codes come from gfloat, given a bias. No library has the choice of the bias or Autoflex: these are written here anew,
from the white paper's and the paper's description, in exact fractions and in f64.
"""

from fractions import Fraction
from math import ceil, floor, log2

import numpy as np

from golden_file import CODEC, fnv1a64_rows, hex32, write
from minifloat_formats import BLOCK, INPUT_RULE, ROUNDINGS, Format

CFLOATS = [("cfloat8_1_4_3", 4, 3), ("cfloat8_1_5_2", 5, 2), ("cfloat16_shp", 5, 10), ("cfloat16_uhp", 6, 9)]


def bias_for(amax, e, m):
    """k is the smallest integer with amax <= Smax 2^k; b = clamp(Etop - k, 0, 63)."""
    amax, most = Fraction(float(amax)), 2 - Fraction(1, 2**m)
    k = -160
    while amax > most * Fraction(2) ** k:
        k += 1
    return min(max(2**e - 1 - k, 0), 63)


def codes():
    rows = []
    for name, e, m in CFLOATS:
        for bias in [0, 1, 7, 20, 31, 63]:
            f = Format(f"{name}/bias:{bias}", e, m, bias, "none")
            x = f.inputs()[: 2 * BLOCK]
            lo, hi = f.input_exponents()
            blocks = []
            for rounding in ROUNDINGS:
                found = f.encode(x, rounding, True)
                assert np.array_equal(found, f.encode_by_search(x, rounding, True)), f.name
                blocks.append(found.reshape(-1, BLOCK))
            digests = fnv1a64_rows(np.concatenate(blocks)).reshape(len(ROUNDINGS), -1)
            for rounding, row in zip(ROUNDINGS, digests):
                rows.append([f.name, m, lo, hi, rounding, " ".join(f"{int(d):016x}" for d in row)])
    write(
        CODEC / "cfloat_codes.csv",
        ["gfloat", "numpy"],
        "Codes by gfloat of a float without infinity and NaN with this bias, saturating; equal to those of a search\n"
        "in the table of values.\n"
        + INPUT_RULE.strip()
        + "\nTwo hashes, each FNV-1a, 64 bits, over the codes of 65536 successive inputs as four little-endian bytes.",
        ["scheme", "m", "lo", "hi", "rounding", "fnv1a64"],
        rows,
    )


def biases():
    rng = np.random.default_rng(21)
    rows = []
    for name, e, m in CFLOATS:
        most = 2 - 2.0**-m
        edges = [np.float32(most * 2.0**k) for k in (-90, -33, -1, 0, 8, 15, 31, 63)]
        values = [v for x in edges for v in (x, np.nextafter(x, np.float32(3e38)), np.nextafter(x, np.float32(0)))]
        values += [np.float32(1e-45), np.finfo(np.float32).max, np.float32(450)]
        values += list((rng.normal(size=40) * 2.0 ** rng.uniform(-70, 70, 40)).astype(np.float32))
        rows += [[name, hex32([v]), bias_for(abs(v), e, m)] for v in values if v != 0]
    write(
        CODEC / "cfloat_bias.csv",
        ["numpy"],
        "The bias of a tensor of this one value, in exact fractions.",
        ["scheme", "value", "bias"],
        rows,
    )


def flexpoint():
    rng = np.random.default_rng(22)
    rows = []
    for bits in [16, 8, 11]:
        top = 2 ** (bits - 1) - 1
        # A walk of magnitudes with jumps in both directions, and zeros.
        walk = np.cumsum(rng.normal(size=150) * 0.3) + 6 * (rng.random(150) > 0.95) - 4
        bias, exponent, history = None, None, []
        for step, power in enumerate(walk):
            x = (rng.normal(size=4) * 2.0**power).astype(np.float32)
            if step % 37 == 5:
                x[:] = 0
            amax = float(np.max(np.abs(x)))
            if bias is None:
                exponent = ceil(log2(amax / top))
                bias = exponent - 15
            used = exponent
            unit = 2.0**used
            mantissas = np.clip(np.rint(x.astype(np.float64) / unit), -top - 1, top).astype(int)
            rows.append([f"flex{bits}+5", step, hex32(x), bias, used, " ".join(map(str, mantissas))])
            if amax == 0:
                continue
            largest = min(np.rint(amax / unit), top)
            if largest >= top:
                history, largest = [], 2 * largest
            history = (history + [largest * unit])[-16:]
            expected = max(history) + 3 * np.std(history) + 100 * 2.0 ** (bits - 16) * unit
            exponent = min(max(floor(log2(expected)) - (bits - 2), bias), bias + 31)
    write(
        CODEC / "flexpoint.csv",
        ["numpy"],
        "Autoflex over 150 tensors of four elements, a memory for each width: the bias, the exponent that was predicted\n"
        "for the step, and the mantissas under it.",
        ["scheme", "step", "inputs", "bias", "exponent", "mantissas"],
        rows,
    )


if __name__ == "__main__":
    codes()
    biases()
    flexpoint()
