"""The small float formats under test, as gfloat and ml_dtypes describe them, and the test inputs.

`top` says what the highest exponent means: `ieee` reserves it for infinity and NaN, `fn` gives only the
all-ones code to NaN and has no infinity, `none` makes every code a finite number.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from gfloat import FormatInfo, RoundMode, decode_ndarray, encode_ndarray, round_ndarray
from gfloat.types import Domain

ROUNDINGS = {
    "rne": RoundMode.TiesToEven,
    "half_away": RoundMode.TiesToAway,
    "trunc": RoundMode.TowardZero,
    "floor": RoundMode.TowardNegative,
}
INPUTS = 1 << 20
BLOCK = 1 << 16


@dataclass(frozen=True)
class Format:
    """One format; `foreign` is the ml_dtypes or numpy type that implements it, if one does."""

    name: str
    e: int
    m: int
    bias: int
    top: str
    foreign: type = None

    @property
    def bits(self):
        return 1 + self.e + self.m

    @property
    def sign_bit(self):
        return 1 << (self.e + self.m)

    @property
    def has_nan(self):
        return self.top == "fn" or (self.top == "ieee" and self.m > 0)

    @property
    def has_inf(self):
        return self.top == "ieee"

    @property
    def nan_code(self):
        """The positive NaN: all ones for `fn`, the quiet one with a zero payload for `ieee`."""
        if self.top == "fn":
            return self.sign_bit - 1
        return ((1 << self.e) - 1) << self.m | 1 << (self.m - 1)

    @property
    def gfloat(self):
        top_codes = 1 << self.m
        return FormatInfo(
            self.name,
            k=self.bits,
            precision=self.m + 1,
            bias=self.bias,
            is_signed=True,
            domain=Domain.Extended if self.has_inf else Domain.Finite,
            has_nz=True,
            num_high_nans={"ieee": top_codes - 1, "fn": 1, "none": 0}[self.top],
            has_subnormals=True,
            is_twos_complement=False,
        )

    def decode(self, codes):
        """Values of codes by gfloat, as f32; every value must fit f32 exactly."""
        wide = decode_ndarray(self.gfloat, np.asarray(codes, dtype=np.int64))
        narrow = wide.astype(np.float32)
        assert np.array_equal(narrow.astype(np.float64), wide, equal_nan=True), self.name
        return narrow

    def all_values(self):
        return self.decode(np.arange(1 << self.bits))

    def max_value(self):
        values = self.all_values()
        return float(values[np.isfinite(values)].max())

    def value_after_max(self):
        """The value that the next code would have, were the range not at its end."""
        largest = self.max_value()
        exponent = max(int(np.floor(np.log2(largest))), 1 - self.bias)
        return largest + 2.0 ** (exponent - self.m)

    def encode(self, x, rounding, saturate):
        """Codes of f32 inputs by gfloat; a NaN result takes `nan_code` and the sign of its input."""
        x = np.asarray(x, dtype=np.float32)
        rounded = round_ndarray(self.gfloat, x.astype(np.float64), ROUNDINGS[rounding], saturate)
        codes = encode_ndarray(self.gfloat, rounded).astype(np.uint32)
        return self.with_signed_nan(codes, np.isnan(rounded), x)

    def encode_foreign(self, x, saturate):
        """Codes by ml_dtypes or numpy; saturation is had by clamping the input, NaN passes."""
        x = np.asarray(x, dtype=np.float32)
        if saturate:
            x = np.clip(x, np.float32(-self.max_value()), np.float32(self.max_value()))
        with np.errstate(over="ignore", invalid="ignore"):
            cast = x.astype(self.foreign)
        return cast.view(np.uint16 if self.bits == 16 else np.uint8).astype(np.uint32)

    def decode_foreign(self, codes):
        codes = np.asarray(codes).astype(np.uint16 if self.bits == 16 else np.uint8)
        return codes.view(self.foreign).astype(np.float32)

    def with_signed_nan(self, codes, is_nan, x):
        if np.any(is_nan):
            signed = np.where(np.signbit(x), self.nan_code | self.sign_bit, self.nan_code)
            codes = np.where(is_nan, signed, codes).astype(np.uint32)
        return codes

    def encode_by_search(self, x, rounding, saturate):
        """Third opinion: search in the sorted table of values, all comparisons exact in f64.

        The table is extended by the value that would follow the largest one, so that overflow is
        judged after rounding; it stands for everything above.
        """
        x = np.asarray(x, dtype=np.float32)
        positive = self.all_values()[: self.sign_bit].astype(np.float64)
        table = positive[np.isfinite(positive)]
        assert np.all(np.diff(table) > 0)
        count = len(table)
        table = np.append(table, self.value_after_max())
        negative = np.signbit(x)
        a = np.where(np.isnan(x), 0.0, np.abs(x.astype(np.float64)))
        below = np.minimum(np.searchsorted(table, a, side="right") - 1, count)
        above = np.minimum(below + 1, count)
        middle = (table[below] + table[above]) / 2
        inexact = a > table[below]
        up = {
            "rne": (a > middle) | ((a == middle) & (below % 2 == 1)),
            "half_away": a >= middle,
            "trunc": np.zeros(a.shape, dtype=bool),
            "floor": negative,
        }[rounding]
        codes = np.where(inexact & up, above, below)
        over = codes >= count
        # Directed rounding stops at the largest finite value on the side that it rounds towards.
        keeps = {"trunc": np.ones(a.shape, dtype=bool), "floor": ~negative}.get(
            rounding, np.zeros(a.shape, dtype=bool)
        )
        clamps = over & (saturate | (keeps & np.isfinite(x)))
        codes = np.where(clamps, count - 1, codes)
        over &= ~clamps
        if self.has_inf:
            codes = np.where(over, ((1 << self.e) - 1) << self.m, codes)
            over = np.zeros(a.shape, dtype=bool)
        codes = np.where(negative, codes + self.sign_bit, codes).astype(np.uint32)
        return self.with_signed_nan(codes, over | np.isnan(x), x)

    def input_exponents(self):
        """The span of f32 exponent fields that `inputs` maps half of its numbers to."""
        smallest = 1 - self.bias - self.m
        largest = int(np.floor(np.log2(self.max_value())))
        return max(0, 127 + smallest - 3), min(254, 127 + largest + 2)

    def inputs(self, count=INPUTS):
        """The test inputs, as `INPUT_RULE` says."""
        lo, hi = self.input_exponents()
        i = np.arange(count, dtype=np.uint32)
        h = i ^ (i >> 16)
        h *= np.uint32(0x7FEB352D)
        h ^= h >> 15
        h *= np.uint32(0x846CA68B)
        h ^= h >> 16
        exponent = np.uint32(lo) + ((h >> 23) & 255) % np.uint32(hi - lo + 1)
        h = np.where(i & 1 == 1, (h & np.uint32(0x807FFFFF)) | exponent << 23, h)
        keep = np.uint32(0xFFFFFFFF ^ ((1 << (21 - self.m)) - 1))
        h = np.where(i & 6 == 0, h & keep, h)
        h = np.where((h >> 23) & 255 == 255, np.uint32(0), h)
        short = i << 16
        short = np.where((short & 0x7FFFFFFF) > 0x7F800000, np.uint32(0), short)
        return np.where(i < 65536, short, h).astype(np.uint32).view(np.float32)


INPUT_RULE = """
Input i (0 <= i < 1048576) as f32 bits, in u32 arithmetic that wraps; m, lo, hi are the row's columns:
  if i < 65536: b = i << 16; if (b & 0x7fffffff) > 0x7f800000 (NaN): b = 0; done (infinities stay)
  h = i ^ (i >> 16); h *= 0x7feb352d; h ^= h >> 15; h *= 0x846ca68b; h ^= h >> 16
  if i & 1 == 1: h = (h & 0x807fffff) | ((lo + ((h >> 23) & 255) % (hi - lo + 1)) << 23)
  if i & 6 == 0: h &= !((1 << (21 - m)) - 1)        (keeps m + 2 bits of mantissa: many ties)
  if (h >> 23) & 255 == 255: h = 0
lo = max(0, 127 + (exponent of the smallest subnormal) - 3), hi = min(254, 127 + (exponent of the largest
finite value) + 2).
"""


def fp(e, m, top="ieee", bias=None):
    """A format by its fields, under the name `fp:eXmY[:bias][:fn|:none]`."""
    default = (1 << (e - 1)) - 1
    name = f"fp:e{e}m{m}" + ("" if bias is None else f":{bias}")
    name += "" if top == "ieee" else f":{top}"
    return Format(name, e, m, default if bias is None else bias, top)


NAMED = [
    Format("e5m2", 5, 2, 15, "ieee", ml_dtypes.float8_e5m2),
    Format("e4m3fn", 4, 3, 7, "fn", ml_dtypes.float8_e4m3fn),
    Format("e4m3", 4, 3, 7, "ieee", ml_dtypes.float8_e4m3),
    Format("e3m4", 3, 4, 3, "ieee", ml_dtypes.float8_e3m4),
    Format("e3m2fn", 3, 2, 3, "none", ml_dtypes.float6_e3m2fn),
    Format("e2m3fn", 2, 3, 1, "none", ml_dtypes.float6_e2m3fn),
    Format("e2m1fn", 2, 1, 1, "none", ml_dtypes.float4_e2m1fn),
    Format("f16", 5, 10, 15, "ieee", np.float16),
    Format("bf16", 8, 7, 127, "ieee", ml_dtypes.bfloat16),
    Format("tf32", 8, 10, 127, "ieee"),
]
GENERIC = [
    fp(1, 3),
    fp(1, 3, "none"),
    fp(1, 2, "fn"),
    fp(2, 1),
    fp(2, 2, "fn"),
    fp(2, 5),
    fp(2, 5, "none"),
    fp(3, 0),
    fp(3, 0, "fn"),
    fp(3, 0, "none"),
    fp(3, 2),
    fp(3, 2, "fn"),
    fp(4, 3, "none"),
    fp(5, 0),
    fp(5, 2, "fn"),
    fp(5, 2, "none"),
    fp(6, 1),
    fp(6, 1, "fn"),
    fp(7, 0, "none"),
    fp(4, 3, "fn", bias=11),
    fp(5, 2, "ieee", bias=140),
    fp(3, 2, "none", bias=20),
    fp(2, 3, "none", bias=-3),
    fp(4, 3, "none", bias=-100),
    fp(8, 0),
    fp(8, 2),
    fp(4, 7, "fn"),
    fp(5, 6),
    fp(6, 9),
    fp(3, 10, "none"),
    fp(5, 10, "none"),
]
FORMATS = NAMED + GENERIC
