"""Compares gfloat, ml_dtypes and, where SCRIMP names it, the binary, over every named small float format.

One line per scheme: inputs, differences between gfloat and ml_dtypes in codes, and differences between gfloat
and scrimp in decoded bits (NaN equals NaN). The inputs are the million of the golden hashes, every value,
every midpoint of two values with its neighbours, subnormals, overflow, both zeros, infinities, and NaN where the
format has one. Exits with 1 if anything differs.
"""

import sys

import numpy as np

import scrimp_binary
from golden_file import bits
from golden_minifloat import interesting_inputs
from minifloat_formats import NAMED


def schemes(f):
    """The scheme strings of a format, each with whether it saturates: the default first."""
    if f.top == "none":
        return [(f.name, True)]
    if f.bits <= 8:
        return [(f.name, True), (f"{f.name}/ieee", False)]
    return [(f.name, False), (f"{f.name}/sat", True)]


def main():
    failed = False
    if not scrimp_binary.BINARY:
        print("SCRIMP is not set: comparing gfloat and ml_dtypes alone")
    for f in NAMED:
        x = np.concatenate([f.inputs(), f.all_values(), interesting_inputs(f)])
        if not f.has_nan:
            x = x[~np.isnan(x)]
        for scheme, saturate in schemes(f):
            codes = f.encode(x, "rne", saturate)
            foreign = scrimp = "-"
            if f.foreign:
                foreign = int(np.count_nonzero(codes != f.encode_foreign(x, saturate)))
            if scrimp_binary.BINARY:
                expected = bits(f.decode(codes))
                actual = bits(scrimp_binary.round_trip(x, scheme))
                wrong = np.flatnonzero(expected != actual)
                scrimp = len(wrong)
                for at in wrong[:5]:
                    given = x.view(np.uint32)[at]
                    print(f"  {given:08x}: gfloat {expected[at]:08x}, scrimp {actual[at]:08x}")
            failed |= foreign not in ("-", 0) or scrimp not in ("-", 0)
            print(f"{scheme}: {len(x)} inputs, gfloat - ml_dtypes {foreign}, gfloat - scrimp {scrimp}")
            sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
