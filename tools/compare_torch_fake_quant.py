"""Compares torch's fake quantization with the rule of ONNX: round(x / s) with a true division.

torch multiplies by the reciprocal of the scale, so that it differs where x * (1 / s) and x / s round to different
integers; every difference is shown to be such a place. Where SCRIMP names the binary, its output is compared
with the true division as well, and must be equal bit for bit. Exits with 1 if it is not, or if a difference
to torch has another cause.
"""

import sys

import numpy as np
import torch

import scrimp_binary
from golden_file import bits

F = np.float32
TOP = 127


def true_division(x, scale):
    return np.clip(np.rint(x / scale), -TOP, TOP).astype(np.int32)


def reciprocal(x, scale):
    return np.clip(np.rint(x * (F(1) / scale)), -TOP, TOP).astype(np.int32)


def decoded(codes, scale):
    return codes.astype(F) * scale


def report(label, scheme, x, scale, torch_result):
    """`scale` broadcasts against `x`; prints the counts and says whether all is as it should be."""
    divided = true_division(x, scale)
    multiplied = reciprocal(x, scale)
    ours = decoded(divided, scale)
    differs = bits(ours) != bits(torch_result + F(0))
    places = divided.reshape(-1) != multiplied.reshape(-1)
    explained = differs & places & (bits(decoded(multiplied, scale)) == bits(torch_result + F(0)))
    print(
        f"{label}: {x.size} inputs, torch - true division {int(differs.sum())}, of which x * (1 / s) rounds"
        f" otherwise than x / s {int(explained.sum())}; such places in all {int(places.sum())}"
    )
    for at in np.flatnonzero(differs)[:3]:
        s = np.broadcast_to(scale, x.shape).reshape(-1)[at]
        v = x.reshape(-1)[at]
        print(f"  x {v!r}, s {s!r}: x / s = {v / s!r}, x * (1 / s) = {v * (F(1) / s)!r}")
    good = np.array_equal(differs, explained)
    if scrimp_binary.BINARY:
        wrong = int(np.count_nonzero(bits(ours) != bits(scrimp_binary.round_trip(x, scheme))))
        print(f"  scrimp {scheme} - true division {wrong}")
        good &= wrong == 0
    return good


def inputs():
    """A million values of which a tenth lie beside the midpoint of two codes, where the two rules part."""
    rng = np.random.default_rng(41)
    x = rng.normal(size=(64, 16384)).astype(F)
    x *= np.exp(rng.uniform(-8, 8, size=(64, 1))).astype(F)
    scale = np.max(np.abs(x), axis=1, keepdims=True) / F(TOP)
    middles = (rng.integers(-TOP, TOP, size=x.shape) + 0.5).astype(F) * scale
    # Never at the amax of a row, which must stay its amax.
    chosen = (rng.random(x.shape) < 0.1) & (np.abs(x) < np.max(np.abs(x), axis=1, keepdims=True))
    x = np.where(chosen, middles, x).astype(F)
    whole = np.max(np.abs(x)) / F(TOP)
    middles = (rng.integers(-TOP, TOP, size=x.shape) + 0.5).astype(F) * whole
    return x, np.where((rng.random(x.shape) < 0.1) & (np.abs(x) < np.max(np.abs(x))), middles, x)


def main():
    channels, whole = inputs()
    t = torch.from_numpy(whole)
    scale = np.max(np.abs(whole)) / F(TOP)
    result = torch.fake_quantize_per_tensor_affine(t, float(scale), 0, -TOP, TOP).numpy()
    good = report("int8 per tensor", "int8", whole, scale, result)
    t = torch.from_numpy(channels)
    scales = np.max(np.abs(channels), axis=1) / F(TOP)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    result = torch.fake_quantize_per_channel_affine(t, torch.from_numpy(scales), zeros, 0, -TOP, TOP).numpy()
    good &= report("int8 per channel", "int8/channel", channels, scales[:, None], result)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
