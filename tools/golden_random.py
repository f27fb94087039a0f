"""Golden files of the random generator and of stochastic rounding."""

from fractions import Fraction
from math import floor

import numpy as np
from randomgen import Philox

from golden_file import CODEC, write

KNOWN_ANSWERS = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 2, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def number(words):
    """Words, the least significant first, as one integer."""
    return sum(word << (32 * i) for i, word in enumerate(words))


def philox(key, counter):
    """One block. randomgen counts up before it makes a block, so it starts one below."""
    start = (number(counter) - 1) % 2**128
    generator = Philox(counter=start, key=number(key), number=4, width=32)
    return tuple(int(word) for word in generator.random_raw(4))


def philox_rows():
    for key, counter, answer in KNOWN_ANSWERS:
        assert philox(key, counter) == answer, (key, counter)
    pairs = [(key, counter) for key, counter, _ in KNOWN_ANSWERS]
    # Each word of key and counter on its own, so that an order mistaken is seen.
    for i in range(4):
        pairs.append(((0, 0), tuple(int(j == i) for j in range(4))))
    for i in range(2):
        pairs.append((tuple(int(j == i) for j in range(2)), (0, 0, 0, 0)))
    # Successive blocks of one stream, across the carry out of the low word.
    for low in [1, 2, 3, 2**32 - 2, 2**32 - 1]:
        pairs.append(((7, 42), (low, 0, 5, 0)))
    pairs.append(((7, 42), (0, 1, 5, 0)))
    rng = np.random.default_rng(4)
    for words in rng.integers(0, 2**32, size=(16, 6)):
        pairs.append((tuple(map(int, words[:2])), tuple(map(int, words[2:]))))

    def text(words):
        return " ".join(f"{word:08x}" for word in words)

    return [[text(key), text(counter), text(philox(key, counter))] for key, counter in pairs]


def stochastic_rows():
    top = 2**24
    draws = [0, 1, top // 4, top // 2 - 1, top // 2, top // 2 + 1, 3 * top // 4, top - 2, top - 1]
    values = [0.0, -0.0, 0.5, -0.5, 0.25, -0.25, 1.0, -1.0, 2.3, -2.3, 0.1, -0.1, 1.75, -1.75, 126.5, -126.5]
    values += [127.0, 15.999999, -15.999999, 0.99999994, -0.99999994, 5.9604645e-8, -5.9604645e-8, 1e-40]
    values += [-1e-40, 1.4e-45, -1.4e-45, 2.9802322e-8, 1.1920929e-7, -1e-9, 8388607.5, -8388607.5]
    values += [8388608.0, -8388608.0, 16777216.0, -16777214.0, 4194303.75, -4194303.75, 32766.998]
    values += [1.00000012, -1.00000012, 2.9999998, -2.9999998]
    values = np.asarray(values, dtype=np.float32)
    rng = np.random.default_rng(5)
    scattered = (rng.normal(size=60) * 10.0 ** rng.uniform(-8, 5, 60)).astype(np.float32)
    pairs = [(v, k) for v in values for k in draws]
    pairs += [(v, int(k)) for v, k in zip(scattered, rng.integers(0, top, 60))]
    # The draws on either side of the one at which the result goes up.
    for v in scattered:
        exact = Fraction(float(v))
        edge = floor((1 - (exact - floor(exact))) * top)
        pairs += [(v, k) for k in (edge - 1, edge, edge + 1) if 0 <= k < top]
    rows = []
    for v, k in pairs:
        result = floor(Fraction(float(v)) + Fraction(k, top))
        rows.append([f"{np.float32(v).view(np.uint32):08x}", k, result])
    return rows


if __name__ == "__main__":
    write(
        CODEC / "philox.csv",
        ["randomgen", "numpy"],
        "One block of Philox4x32-10 per line: two key words, four counter words, four output words; of key\n"
        "and counter the least significant word first. The first three are the known answers of Random123, which\n"
        "randomgen gives when started one count below, since it counts up before it makes a block.",
        ["key", "counter", "output"],
        philox_rows(),
    )
    write(
        CODEC / "stochastic.csv",
        ["numpy"],
        "floor(v + u) in exact rational arithmetic (Python fractions): v an f32 bit pattern, u = k / 2^24.",
        ["v", "k", "floor"],
        stochastic_rows(),
    )
