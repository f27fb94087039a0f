"""Golden files of the small float formats: values of all codes, codes of chosen and of many inputs."""

import numpy as np

from golden_file import CODEC, bits, fnv1a64_rows, write
from minifloat_formats import BLOCK, FORMATS, INPUT_RULE, INPUTS, ROUNDINGS

PACKAGES = ["gfloat", "ml_dtypes", "numpy"]
FIELDS = """
Codes are sign-magnitude patterns of 1 + e + m bits. Exponent field 0: M * 2^(1-bias-m); else
(1 + M/2^m) * 2^(E-bias). `top`: ieee = highest exponent reserved for infinity and NaN (with m = 0 it holds
infinity alone); fn = only the all-ones code is NaN, no infinity; none = all codes finite.
"""
ENCODE_NOTES = """
rne = to nearest, ties to even; half_away = to nearest, ties away from zero; trunc = toward zero; floor =
toward minus infinity. The sign of zero is kept. Overflow is judged after rounding.
sat: everything above the largest finite value, infinity too, becomes it.
ieee: overflow becomes infinity, or NaN in formats without infinity; an infinite input likewise. As IEEE
754 has it (and gfloat does), a finite input under trunc stops at the largest finite value, and under floor
a positive one does. Formats that are all finite have no such mode.
Chosen here, because gfloat writes all ones with the sign bit for any NaN: a NaN result is all ones in fn
formats, and the quiet NaN with zero payload in ieee formats, with the sign of the input. ml_dtypes does so.
"""


def agree(label, a, b):
    """Counts the differences of two arrays of codes and demands that there are none."""
    count = int(np.count_nonzero(a != b))
    assert count == 0, (label, count)
    return count


def values():
    rows, hashes = [], []
    for f in FORMATS:
        decoded = f.all_values()
        if f.foreign:
            foreign = f.decode_foreign(np.arange(1 << f.bits))
            agree(f.name, bits(decoded), bits(foreign))
        head = [f.name, f.e, f.m, f.bias, f.top]
        if f.bits <= 8:
            for code, (value, pattern) in enumerate(zip(decoded, bits(decoded))):
                rows.append([f.name, f"{code:02x}", "nan" if np.isnan(value) else f"{pattern:08x}"])
        digest = int(fnv1a64_rows(bits(decoded).reshape(1, -1))[0])
        hashes.append([*head, 1 << f.bits, f"{digest:016x}"])
    write(
        CODEC / "minifloat_values.csv",
        PACKAGES,
        "Values by gfloat; those of the formats that ml_dtypes has are equal to its own.\n"
        "The fields of each format are in minifloat_hashes.csv.",
        ["format", "code", "f32"],
        rows,
    )
    write(
        CODEC / "minifloat_hashes.csv",
        PACKAGES,
        FIELDS
        + "Values by gfloat; f16 equal to numpy's, the others equal to ml_dtypes' where it has the type.\n"
        "fnv1a64: FNV-1a, 64 bits, over the f32 patterns of codes 0, 1, ..., each as four little-endian\n"
        "bytes, every NaN taken as 7fc00000.",
        ["format", "e", "m", "bias", "top", "codes", "fnv1a64"],
        hashes,
    )


def interesting_inputs(f):
    """Every value, midpoint and neighbour of a midpoint, the overflow region, the specials."""
    positive = f.all_values()[: f.sign_bit].astype(np.float64)
    table = positive[np.isfinite(positive)]
    after = f.value_after_max()
    table = np.append(table, after)
    middles = ((table[:-1] + table[1:]) / 2).astype(np.float32)
    assert np.array_equal(middles.astype(np.float64), (table[:-1] + table[1:]) / 2)
    with np.errstate(over="ignore"):
        far = [after, table[-2] * 1.25, table[-2] * 2, table[-2] * 1000]
        chosen = np.concatenate(
            [
                middles,
                np.nextafter(middles, np.float32(0)),
                np.nextafter(middles, np.float32(np.inf)),
                np.asarray(far, dtype=np.float32),
                np.asarray([1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF], dtype=np.uint32).view(np.float32),
                np.asarray([table[1] / 1024, table[-2], 0, 1, np.pi, np.inf], dtype=np.float32),
            ]
        )
    chosen = np.unique(bits(chosen))
    chosen = np.concatenate([chosen, chosen | np.uint32(0x80000000)])
    if f.has_nan:
        chosen = np.append(chosen, np.asarray([0x7FC00000, 0xFFC00000], dtype=np.uint32))
    return chosen.view(np.float32)


def encode():
    rows = []
    for f in FORMATS:
        if f.bits > 8:
            continue
        x = interesting_inputs(f)
        columns = []
        for saturate in [True, False] if f.top != "none" else [True]:
            codes = f.encode(x, "rne", saturate)
            agree(f.name, codes, f.encode_by_search(x, "rne", saturate))
            if f.foreign:
                agree(f.name, codes, f.encode_foreign(x, saturate))
            columns.append([f"{code:02x}" for code in codes])
        if len(columns) == 1:
            columns.append([""] * len(x))
        for pattern, saturated, ieee in zip(x.view(np.uint32), *columns):
            rows.append([f.name, f"{pattern:08x}", saturated, ieee])
    write(
        CODEC / "minifloat_encode.csv",
        PACKAGES,
        ENCODE_NOTES
        + "Codes by gfloat, ties to even; equal to ml_dtypes' for every row of a format that it has, and to a\n"
        "search in the table of values for every row. The fields of each format are in minifloat_hashes.csv.",
        ["format", "input", "sat", "ieee"],
        rows,
    )


def encode_hashes():
    rows = []
    counts = []
    for f in FORMATS:
        x = f.inputs()
        lo, hi = f.input_exponents()
        labels, blocks = [], []
        searched = differences = 0
        for rounding in ROUNDINGS:
            for overflow in ["sat", "ieee"]:
                saturate = overflow == "sat"
                if f.top == "none" and not saturate:
                    continue
                codes = f.encode(x, rounding, saturate)
                searched += int(np.count_nonzero(codes != f.encode_by_search(x, rounding, saturate)))
                if f.foreign and rounding == "rne":
                    differences += int(np.count_nonzero(codes != f.encode_foreign(x, saturate)))
                labels.append([rounding, overflow])
                blocks.append(codes.reshape(-1, BLOCK))
        digests = fnv1a64_rows(np.concatenate(blocks)).reshape(len(labels), -1)
        for label, row in zip(labels, digests):
            head = [f.name, f.e, f.m, f.bias, f.top, lo, hi]
            rows.append(head + label + [" ".join(f"{int(d):016x}" for d in row)])
        foreign = str(differences) if f.foreign else "-"
        print(f"{f.name}: gfloat - search {searched}, gfloat - ml_dtypes {foreign}", flush=True)
        assert searched == 0 and differences == 0, f.name
        counts.append(f.foreign is not None)
    write(
        CODEC / "minifloat_encode_hashes.csv",
        PACKAGES,
        FIELDS
        + ENCODE_NOTES
        + INPUT_RULE.lstrip("\n")
        + f"""fnv1a64: 16 hashes, each FNV-1a, 64 bits, over the codes of 65536 successive inputs, each as four
little-endian bytes.
Codes by gfloat. Differences to ml_dtypes (numpy for f16; rne; for sat, its input clamped) over the {INPUTS}
inputs of each of the {sum(counts)} formats that it has: 0. Differences to a search in the table of values, all
formats and modes: 0.
""",
        ["format", "e", "m", "bias", "top", "lo", "hi", "rounding", "overflow", "fnv1a64"],
        rows,
    )


if __name__ == "__main__":
    values()
    encode()
    encode_hashes()
