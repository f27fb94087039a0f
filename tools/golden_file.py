"""Writing of golden files: plain CSV under comment lines that name script and versions.

Floats are written as the hexadecimal digits of their bit pattern, so that a reader needs no decimal
parser and loses nothing. Columns are separated by commas, the elements of a list by spaces.
"""

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

CRATES = Path(__file__).resolve().parent.parent / "crates"
CODEC = CRATES / "scrimp-codec" / "tests" / "golden"
ONNX = CRATES / "scrimp-onnx" / "tests" / "golden"
SCRIMP = CRATES / "scrimp" / "tests" / "golden"
TRAIN = CRATES / "scrimp-train" / "tests" / "golden"
ONNX = CRATES / "scrimp-onnx" / "tests" / "golden"

FNV_OFFSET = 0xCBF29CE484222325
FNV_PRIME = 0x00000100000001B3


def write(path, packages, notes, columns, rows):
    """Writes one golden file and says what was written."""
    versions = ", ".join(f"{p} {version(p)}" for p in packages)
    script = Path(sys.argv[0]).name
    lines = [f"# Made by tools/{script} with Python {platform.python_version()}, {versions}."]
    lines += [f"# {line}".rstrip() for line in notes.strip().splitlines()]
    lines.append(",".join(columns))
    for row in rows:
        assert len(row) == len(columns), (row, columns)
        lines.append(",".join(str(field) for field in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    path.write_text(text)
    print(f"{path.name}: {len(rows)} rows, {len(text)} bytes")


def bits(values):
    """The f32 bit patterns of an array, flat, with every NaN made 7fc00000."""
    f = np.ascontiguousarray(np.asarray(values, dtype=np.float32)).reshape(-1)
    u = f.view(np.uint32).copy()
    u[np.isnan(f)] = 0x7FC00000
    return u


def hex32(values):
    """A list of f32 bit patterns, separated by spaces."""
    return " ".join(f"{u:08x}" for u in bits(values))


def hex64(values):
    """A list of f64 bit patterns, separated by spaces."""
    f = np.ascontiguousarray(np.asarray(values, dtype=np.float64)).reshape(-1)
    return " ".join(f"{u:016x}" for u in f.view(np.uint64))


def shape_text(shape):
    """The dimensions joined by `x`; a scalar is `scalar`."""
    return "x".join(str(d) for d in shape) if len(shape) else "scalar"


def fnv1a64_rows(words):
    """FNV-1a, 64 bits, of each row of a 2-D array of u32 words taken as little-endian bytes."""
    words = np.ascontiguousarray(words, dtype="<u4")
    octets = np.ascontiguousarray(words.view(np.uint8).reshape(words.shape[0], -1).T)
    h = np.full(words.shape[0], FNV_OFFSET, dtype=np.uint64)
    prime = np.uint64(FNV_PRIME)
    for octet in octets:
        h ^= octet
        h *= prime
    return h
