"""Golden file of a quantizer at each of the eight points around a layer, forward and backward."""

import numpy as np
import torch

from golden_file import TRAIN, hex32, shape_text, write
from minifloat_formats import NAMED

FORMATS = {f.name: f for f in NAMED}
SCHEMES = {
    "x": "e4m3fn",
    "w": "e3m2fn",
    "b": "bf16",
    "y": "e5m2",
    "dy": "e2m3fn",
    "dx": "e4m3",
    "dw": "e5m2",
    "db": "f16",
}
# The other way round, so that bias and bias gradient are rounded coarsely and no format stands where it did.
SWAPPED = {
    "x": "e2m3fn",
    "w": "e5m2",
    "b": "e2m1fn",
    "y": "e4m3fn",
    "dy": "e3m2fn",
    "dx": "bf16",
    "dw": "e4m3",
    "db": "e3m4",
}


def quantize(name, t):
    """Rounds to nearest even by gfloat; formats of 8 bits saturate, the others cannot overflow here."""
    f = FORMATS[name]
    narrow = t.detach().numpy().astype(np.float32)
    assert np.array_equal(narrow.astype(np.float64), t.detach().numpy())
    return torch.from_numpy(f.decode(f.encode(narrow, "rne", f.bits <= 8)).astype(np.float64))


class Point(torch.autograd.Function):
    """Rounds the value on its way forward and the gradient on its way back; `None` leaves it alone."""

    @staticmethod
    def forward(ctx, t, scheme, gradient_scheme):
        ctx.gradient_scheme = gradient_scheme
        return quantize(scheme, t)

    @staticmethod
    def backward(ctx, gradient):
        return quantize(ctx.gradient_scheme, gradient), None, None


def layer(operation, schemes, tensors):
    """One layer in f64 with the taps of QML around it; returns y, dx, dw and db."""
    leaves = {k: torch.tensor(tensors[k], dtype=torch.float64, requires_grad=True) for k in "xwb"}
    x = Point.apply(leaves["x"], schemes["x"], schemes["dx"])
    w = Point.apply(leaves["w"], schemes["w"], schemes["dw"])
    b = Point.apply(leaves["b"], schemes["b"], schemes["db"])
    y = Point.apply(operation(x, w, b), schemes["y"], schemes["dy"])
    upstream = torch.tensor(tensors["upstream"], dtype=torch.float64)
    y.backward(upstream)
    gradients = {f"d{k}": leaves[k].grad.numpy() for k in "xwb"}
    return {"y": y.detach().numpy(), **gradients}


def assert_exact_in_f32(operation, schemes, tensors):
    """Every sum of a layer is exact in f32 in any order: all terms are multiples of one power of two,
    and even the sum of their magnitudes stays below 2^24 times it.
    """
    q = {k: quantize(schemes[k], torch.tensor(tensors[k], dtype=torch.float64)) for k in "xwb"}
    g = quantize(schemes["dy"], torch.tensor(tensors["upstream"], dtype=torch.float64))

    def unit(t):
        values = t.numpy()[t.numpy() != 0]
        fraction, exponent = np.frexp(np.abs(values))
        odd = np.round(fraction * 2**53).astype(np.int64)
        return float(np.min(2.0 ** (exponent - 53) * (odd & -odd)))

    a = {k: v.abs().requires_grad_() for k, v in q.items()}
    y = operation(a["x"], a["w"], a["b"])
    y.backward(g.abs())
    units = {"x": unit(q["x"]), "w": unit(q["w"]), "b": unit(q["b"]), "g": unit(g)}
    sums = [
        (y.max().item(), min(units["x"] * units["w"], units["b"])),
        (a["x"].grad.max().item(), units["g"] * units["w"]),
        (a["w"].grad.max().item(), units["g"] * units["x"]),
        (a["b"].grad.max().item(), units["g"]),
    ]
    for largest, step in sums:
        assert largest / step < 2**24, (largest, step)


def draw(rng, shape, step, limit):
    """Multiples of `step` of magnitude up to `limit`, a tenth of them zero."""
    top = round(limit / step)
    values = rng.integers(-top, top + 1, size=shape) * step
    return np.where(rng.random(shape) < 0.1, 0.0, values)


def main():
    functional = torch.nn.functional

    def convolution(dilation):
        def operation(x, w, b):
            return functional.conv2d(x, w, b, stride=2, padding=1, dilation=dilation, groups=2)

        return operation

    rng = np.random.default_rng(31)
    layers = [
        ("linear", functional.linear, (4, 6), (3, 6), (4, 3)),
        ("conv_dilation_1", convolution(1), (2, 2, 5, 7), (4, 1, 3, 3), (2, 4, 3, 4)),
        ("conv_dilation_2", convolution(2), (2, 2, 5, 7), (4, 1, 3, 3), (2, 4, 2, 3)),
    ]
    rows = []
    for name, operation, x_shape, w_shape, y_shape in layers:
        for label, schemes in [("", SCHEMES), ("_swapped", SWAPPED)]:
            tensors = {
                "x": draw(rng, x_shape, 1 / 64, 6),
                "w": draw(rng, w_shape, 1 / 32, 4),
                "b": draw(rng, w_shape[:1], 1 / 256, 7),
                "upstream": draw(rng, y_shape, 1 / 16, 10),
            }
            # The upstream gradient is pushed over the top of its format once and ties once.
            tensors["upstream"].flat[:3] = [40, -7.75, 1.0625]
            tensors["x"].flat[0] = 1.0625
            if name == "linear":
                tensors["w"].flat[:2] = [30, -1.375]
            assert_exact_in_f32(operation, schemes, tensors)
            results = layer(operation, schemes, tensors)
            assert results["y"].shape == y_shape
            text = " ".join(f"{k}={v}" for k, v in schemes.items())
            for key, value in {**tensors, **results}.items():
                # Adding zero makes a negative zero positive and changes nothing else.
                rows.append([name + label, text, key, shape_text(value.shape), hex32(value + 0.0)])
    write(
        TRAIN / "eight_points.csv",
        ["torch", "gfloat", "ml_dtypes", "numpy"],
        "One tensor per line, f32 bit patterns, row-major. Given x, w, b and upstream (dL/dy); wanted y, dx, dw, db:\n"
        "  y = qy(op(qx(x), qw(w), qb(b))), g = qdy(upstream), dx = qdx(gradient of op with g for qx(x)),\n"
        "  dw = qdw(the same for qw(w), summed over the batch), db = qdb(the same for qb(b)),\n"
        "every quantizer passing gradients straight through, without a mask. Schemes have no scale; to nearest, ties to\n"
        "even; those of 8 bits and fewer saturate.\n"
        "linear: x 4x6, w 3x6 (out x in). conv: stride 2, padding 1, two groups, dilation 1 or 2; x NCHW, w OIHW.\n"
        "Every sum is exact in f32 in any order of addition (checked when made), so the values are to be met exactly.\n"
        "Zeros are written as +0: the sign of a sum of zeros depends on the order, and is not part of this.",
        ["case", "schemes", "tensor", "shape", "f32"],
        rows,
    )


if __name__ == "__main__":
    main()
