"""Golden file of the stages nnw, bdi and rans: sizes, bytes and decoded values of about three and a half million codes.

No library writes these bytes, so they are derived a second time here, from the layouts in the documentation of the
modules: bits as strings, bases from sorted sets, states as unbounded integers.
"""

import math

import ml_dtypes
import numpy as np

from golden_file import CODEC, FNV_OFFSET, FNV_PRIME, write

COUNT = 100_000
CHUNK = 16 * 1024
GROUP = 1000
FORMS = [(0, j) for j in range(5)] + [(1, j) for j in range(4)] + [(3, j) for j in range(1, 5)]
PAIRS = [(8, 1), (8, 2), (8, 4), (4, 1), (4, 2), (2, 1)]
KINDS = ["uniform", "peaked", "clusters"]
CASES = [
    *((f"int8/{stage}", kind) for stage in ["nnw", "nnw:sd2", "rans"] for kind in KINDS),
    ("int8/nnw:first", "clusters"),
    ("int8/nnw:16", "peaked"),
    ("int8/nnw:128:sb1", "clusters"),
    ("int8/nnw:si1:sd1", "clusters"),
    ("int4/nnw", "peaked"),
    ("int12/nnw", "clusters"),
    ("e4m3fn/nnw", "peaked"),
    ("uint8/nnw/flat:1000", "peaked"),
    ("uint8/nnw:si1:sd1/flat:1000", "peaked"),
    *((f"{head}/{stage}", "lines") for head in ["int8", "int4", "int12", "int16"] for stage in ["bdi", "bdi:64"]),
    ("int8/nnw", "lines"),
    ("int16/bdi", "clusters"),
    ("e4m3fn/bdi", "lines"),
    ("uint8/bdi/flat:1000", "lines"),
    ("int4/rans", "peaked"),
    ("int12/rans", "clusters"),
    ("e4m3fn/rans", "peaked"),
    ("uint8/rans/flat:1000", "peaked"),
]
NOTES = """
Input i of a case comes from r(i), the i-th output of splitmix64 with seed 0 (r(0) is the first), with
K the bits of a code and h = 2^(K-1) - 1:
uniform: r mod (2h + 1) - h.
peaked: m = floor(r / 2^16) mod 2^(r mod K), negative where bit 15 of r is set.
clusters: c(j) = r(2^40 + j) mod (2h + 1) - h for j = floor(i / 64); c + floor(r / 256) mod 16 - 8, and 0 where
r mod 8 = 0; cut to -h..h.
lines: p = r(2^42 + floor(i / 32)), q = 2^(p mod 4); c = r(2^43 + 8 floor(i / 32) + i mod q) mod (2h + 1) - h;
where q divides i and bit 6 of p is set floor(r / 256) mod 16 - 8 is added; 0 where bits 4 and 5 of p are clear and
floor(i / q) is odd, and where bits 8 to 10 are; cut to -h..h.
Symmetric integers: inputs 0 and 1 are h and -h, so that the scale is 1. uintK: groups of 1000 begin with lo and
lo + 255, lo = -(r(2^41 + group) mod 256), and the others are cut to that range; again the scale is 1. Floats: the
input mod 256 is the code, 0 in place of NaN, and the value is that of the code.
bytes: of the whole tensor. fnv1a64: of these bytes, and of the f32 patterns of the decoded values as bytes.
"""


def splitmix(index):
    with np.errstate(over="ignore"):
        z = (np.asarray(index, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def inputs(kind, k):
    i = np.arange(COUNT, dtype=np.uint64)
    r = [int(v) for v in splitmix(i)]
    h = 2 ** (k - 1) - 1
    if kind == "uniform":
        return [v % (2 * h + 1) - h for v in r]
    if kind == "peaked":
        return [(v >> 16) % 2 ** (v % k) * (-1 if v >> 15 & 1 else 1) for v in r]
    if kind == "lines":
        p = [int(v) for v in splitmix(i // np.uint64(32) + np.uint64(2**42))]
        place = [2**43 + j // 32 * 8 + j % 2 ** (v % 4) for j, v in enumerate(p)]
        c = [int(v) % (2 * h + 1) - h for v in splitmix(np.asarray(place, dtype=np.uint64))]
        x = []
        for j, (v, w, b) in enumerate(zip(r, p, c)):
            q = 2 ** (w % 4)
            if j % q == 0 and w >> 6 & 1:
                b += (v >> 8) % 16 - 8
            if w >> 4 & 3 == 0 and j // q % 2 or w >> 8 & 7 == 0:
                b = 0
            x.append(min(max(b, -h), h))
        return x
    c = [int(v) % (2 * h + 1) - h for v in splitmix(i // np.uint64(64) + np.uint64(2**40))]
    near = [0 if v % 8 == 0 else b + (v >> 8) % 16 - 8 for v, b in zip(r, c)]
    return [min(max(v, -h), h) for v in near]


def fnv(data):
    h = FNV_OFFSET
    for byte in data:
        h = (h ^ byte) * FNV_PRIME % 2**64
    return f"{h:016x}"


def field(value, width):
    """Bits of a number, the lowest first."""
    return format(value % 2**width, f"0{width}b")[::-1] if width else ""


def to_bytes(bits):
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))


def pack(codes, k):
    return to_bytes("".join(field(c, k) for c in codes))


def halves_to_even(v, shift):
    """v / 2^shift, rounded half to even."""
    step = 2**shift
    low, rest = divmod(v, step)
    if 2 * rest > step or 2 * rest == step and low % 2:
        low += 1
    return low


class Nnw:
    def __init__(self, options, k, low, high, is_integer):
        self.block, self.si, self.sb, self.sd, self.first = 64, 0, 0, 0, False
        for option in options:
            if option == "first":
                self.first = True
            elif option[:2] in ("si", "sb", "sd"):
                setattr(self, option[:2], int(option[2:]))
            else:
                self.block = int(option)
        unsigned = 1 if is_integer and low >= 0 else 0
        self.k, self.low, self.high, self.unsigned = k, low, high, unsigned
        self.e = k if self.si == 0 else k + 1 - self.si + unsigned
        self.r = k + unsigned if self.si == 0 else self.e
        self.t = k - 1 if self.si + self.sd == 0 else k - self.si - self.sd
        self.signed_codes = not unsigned

    def ends(self, w):
        return -(2 ** (w - 1)) * 2**self.sd, (2 ** (w - 1) - 1) * 2**self.sd

    def bases(self, block, w):
        low, high = self.ends(w)
        unit = 2**self.sb
        largest = 2 ** (self.r - 1) - 1
        found = []
        if self.first:
            for v in block:
                if any(low <= v - b <= high for b in [0, *found]):
                    continue
                base = v // unit * unit
                if not low <= v - base <= high or len(found) == 3:
                    return None
                found.append(base)
            return sorted(found)
        left = sorted({v for v in block if not low <= v <= high})
        while left:
            base = min(left[0] - low, largest) // unit * unit
            if base + high < left[0] or len(found) == 3:
                return None
            found.append(base)
            left = [v for v in left if v > base + high]
        return found

    def compress_block(self, block):
        if len(set(block)) == 1:
            return field(1, 4) if block[0] == 0 else field(2, 4) + field(block[0], self.e)
        best = (len(block) * self.e, None)
        nonzero = sum(v != 0 for v in block)
        known = {}
        for form, (n, j) in enumerate(FORMS, 3):
            w = self.t - j
            if w < 1:
                continue
            if w not in known:
                known[w] = self.bases(block, w)
            if known[w] is None or len(known[w]) > n:
                continue
            s = math.ceil(math.log2(n + 1))
            apart, together = len(block) + nonzero * (s + w), len(block) * (s + w)
            bits = 1 + n * (self.r - self.sb) + min(apart, together)
            if bits < best[0]:
                best = (bits, (form, n, w, s, known[w], apart < together))
        if best[1] is None:
            return field(0, 4) + "".join(field(v, self.e) for v in block)
        form, n, w, s, bases, apart = best[1]
        bases = bases + [0] * (n - len(bases))
        out = field(form, 4) + field(int(apart), 1)
        if apart:
            out += "".join("1" if v else "0" for v in block)
        out += "".join(field(b >> self.sb, self.r - self.sb) for b in bases)
        low, high = self.ends(w)
        for v in block:
            if apart and v == 0:
                continue
            fitting = [i for i, b in enumerate([0, *bases]) if low <= v - b <= high]
            which = 0 if 0 in fitting else fitting[-1]
            out += field(which, s) + field(halves_to_even(v - [0, *bases][which], self.sd), w)
        assert len(out) == 4 + best[0]
        return out

    def compress(self, codes, zeros):
        values = []
        for c, z in zip(codes, zeros):
            v = c - 2**self.k if self.signed_codes and c >= 2 ** (self.k - 1) else c
            values.append(halves_to_even(v - z, self.si))
        blocks = (values[i : i + self.block] for i in range(0, len(values), self.block))
        return to_bytes("".join(self.compress_block(b) for b in blocks))

    def decompress(self, data, zeros):
        """Codes, from the bits alone."""
        stream = "".join(format(b, "08b")[::-1] for b in data)
        at = 0

        def take(width, signed=False):
            nonlocal at
            value = int("0" + stream[at : at + width][::-1], 2)
            at += width
            return value - 2**width if signed and value >= 2 ** (width - 1) else value

        codes = []
        for start in range(0, len(zeros), self.block):
            elems = min(self.block, len(zeros) - start)
            z = zeros[start : start + elems]
            form = take(4)
            if form < 3:
                if form == 0:
                    values = [take(self.e, True) for _ in range(elems)]
                else:
                    values = [0 if form == 1 else take(self.e, True)] * elems
                if self.si == 0:
                    codes += [(v + zero) % 2**self.k for v, zero in zip(values, z)]
                    continue
                values = [v * 2**self.si for v in values]
            else:
                n, j = FORMS[form - 3]
                w, s = self.t - j, math.ceil(math.log2(n + 1))
                apart = take(1)
                there = [take(1) for _ in range(elems)] if apart else [1] * elems
                bases = [0] + [take(self.r - self.sb, True) * 2**self.sb for _ in range(n)]
                values = []
                for yes in there:
                    base = bases[take(s)] if yes else 0
                    values.append((base + take(w, True) * 2**self.sd) * 2**self.si if yes else 0)
            codes += [min(max(v + zero, self.low), self.high) % 2**self.k for v, zero in zip(values, z)]
        assert 0 <= len(stream) - at < 8
        return codes


def bdi_line(line):
    size = len(line)
    if line == bytes(size):
        return 0, b""
    if line == line[:8] * (size // 8):
        return 1, line[:8]
    best = (size, 8, line)
    for form, (b, d) in enumerate(PAIRS, 2):
        values = np.frombuffer(line, dtype=f"<i{b}")
        zero = np.frombuffer(line, dtype=f"<i{b}").astype(f"<i{d}").astype(f"<i{b}") == values
        base = values[~zero][0] if not zero.all() else values.dtype.type(0)
        with np.errstate(over="ignore"):
            delta = values - base
        if not (zero | (delta.astype(f"<i{d}").astype(f"<i{b}") == delta)).all():
            continue
        mask = np.packbits(~zero, bitorder="little").tobytes()
        deltas = np.where(zero, values, delta).astype(f"<i{d}").tobytes()
        held = base.tobytes() + mask + deltas
        if len(held) < best[0]:
            best = (len(held), form, held)
    return best[1], best[2]


def bdi(packed, size):
    whole = len(packed) // size * size
    lines = [bdi_line(packed[i : i + size]) for i in range(0, whole, size)]
    forms = pack([form for form, _ in lines], 4)
    return forms + b"".join(held for _, held in lines) + packed[whole:]


def frequencies(values, width):
    counts = np.bincount(values, minlength=2**width).tolist()
    total = len(values)
    f = [max(c * 4096 // total, 1) if c else 0 for c in counts]
    order = sorted((v for v in range(len(f)) if counts[v]), key=lambda v: (-(counts[v] * 4096 % total), v))
    i = 0
    while sum(f) < 4096:
        f[order[i % len(order)]] += 1
        i += 1
    while sum(f) > 4096:
        f[f.index(max(f))] -= 1
    differences = [a - b for a, b in zip(f[:-1], [0, *f])]
    folded = [2 * d if d >= 0 else -2 * d - 1 for d in differences]
    sizes = [sum((m >> r) + 1 + r for m in folded) for r in range(13)]
    r = sizes.index(min(sizes))
    model = field(r, 4) + "".join("1" * (m >> r) + "0" + field(m, r) for m in folded)
    chunks = -(-total // CHUNK)
    coded = sum(c * (12 - math.log2(n)) for c, n in zip(counts, f) if c) + chunks * 256 + sizes[r]
    # Far from the line where the last bit of a logarithm would decide.
    assert abs(coded - total * width) > 10
    return (f, model) if coded < total * width else (None, field(15, 4))


def rans_part(values, f):
    starts = np.concatenate([[0], np.cumsum(f)]).tolist()
    states, words = [2**16] * 8, []
    for i in reversed(range(len(values))):
        v = values[i]
        x = states[i % 8]
        if x >= f[v] << 20:
            words.append(x % 2**16)
            x >>= 16
        states[i % 8] = x // f[v] * 4096 + x % f[v] + starts[v]
    parts = [x.to_bytes(4, "little") for x in states] + [w.to_bytes(2, "little") for w in reversed(words)]
    return b"".join(parts)


def rans(codes, k):
    """The model, and the chunks."""
    parts, shift = [], k
    while shift:
        width = min(shift, 8)
        shift -= width
        values = [c >> shift & (2**width - 1) for c in codes]
        parts.append((width, values, *frequencies(values, width)))
    model = to_bytes("".join(m for *_, m in parts))
    chunks = []
    for at in range(0, len(codes), CHUNK):
        pieces = [(w, v[at : at + CHUNK], f) for w, v, f, _ in parts]
        chunks.append(b"".join(rans_part(v, f) if f else pack(v, w) for w, v, f in pieces))
    return model, chunks


def case(scheme, kind):
    head, word, *_ = scheme.split("/")
    stage, *options = word.split(":")
    is_integer = not head.startswith("e")
    k = int(head.lstrip("uint")) if is_integer else 8
    x = inputs(kind, k)
    h = 2 ** (k - 1) - 1
    zeros = [0] * COUNT
    low, high = -h, h
    if head.startswith("uint"):
        low, high = 0, 2**k - 1
        groups = -(-COUNT // GROUP)
        lows = [-(int(v) % 256) for v in splitmix(np.arange(groups, dtype=np.uint64) + np.uint64(2**41))]
        for i in range(COUNT):
            lo = lows[i // GROUP]
            x[i] = lo + 255 * (i % GROUP) if i % GROUP < 2 else min(max(x[i], lo), lo + 255)
            zeros[i] = -lo
        front = np.ones(groups, dtype="<f4").tobytes() + bytes(-lo for lo in lows)
        codes = [v + z for v, z in zip(x, zeros)]
        values = lambda codes: np.asarray([c - z for c, z in zip(codes, zeros)], dtype="<f4")
    elif is_integer:
        x[0], x[1] = h, -h
        front = np.ones(1, dtype="<f4").tobytes()
        codes = [v % 2**k for v in x]
        values = lambda codes: np.asarray([c - 2**k if c > h else c for c in codes], dtype="<f4")
    else:
        low, high = -128, 127
        codes = [0 if v % 128 == 127 else v % 256 for v in x]
        front = b""
        values = lambda codes: np.asarray(codes, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype("<f4")

    plain = [pack(codes[i : i + CHUNK], k) for i in range(0, COUNT, CHUNK)]
    beside, decoded = b"", list(codes)
    if stage == "nnw":
        nnw = Nnw(options, k, low, high, is_integer)
        chunks = [nnw.compress(codes[i : i + CHUNK], zeros[i : i + CHUNK]) for i in range(0, COUNT, CHUNK)]
        decoded = []
        for i, (a, b) in enumerate(zip(chunks, plain)):
            at = slice(i * CHUNK, (i + 1) * CHUNK)
            decoded += nnw.decompress(a, zeros[at]) if len(a) < len(b) else codes[at]
        error = max(abs(int(a) - int(b)) for a, b in zip(values(decoded), values(codes))) if is_integer else 0
        assert error <= (2**nnw.si // 2 if nnw.si else 0) + (2 ** (nnw.si + nnw.sd) // 2 if nnw.sd else 0)
        assert is_integer or decoded == codes
    elif stage == "bdi":
        chunks = [bdi(p, int(options[0]) if options else 32) for p in plain]
    else:
        model, chunks = rans(codes, k)
        chunks = [a if len(a) < len(b) else b for a, b in zip(chunks, plain)]
        if sum(map(len, chunks)) + len(model) >= sum(map(len, plain)):
            model, chunks = b"", plain
        beside = len(model).to_bytes(2, "little") + model
    chunks = [a if len(a) < len(b) else b for a, b in zip(chunks, plain)]
    lengths = b"".join(len(c).to_bytes(4, "little") for c in chunks[:-1])
    data = front + beside + lengths + b"".join(chunks)
    return [scheme, kind, COUNT, len(data), fnv(data), fnv(values(decoded).tobytes())]


if __name__ == "__main__":
    write(
        CODEC / "stages.csv",
        ["ml_dtypes", "numpy"],
        NOTES,
        ["scheme", "kind", "count", "bytes", "fnv1a64_bytes", "fnv1a64_values"],
        [case(scheme, kind) for scheme, kind in CASES],
    )
