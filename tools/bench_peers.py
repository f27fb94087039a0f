"""Measures what other libraries in Python need for the work that scrimp does, on the same machine in the same run.

    venv/bin/python tools/bench_peers.py [--size small|large|both] [--threads 1,2] [--rounds 5] [--json FILE]

Every figure is GB/s of f32: the bytes of the unpacked tensor over the median time of rounds that alternate between
all cases. The bench binary of scrimp-codec (`cargo bench -p scrimp-codec`, or the command in the environment variable
SCRIMP_BENCH) runs once in every round as well, so that a slow minute of the machine hits all alike. Shares are those
of a copy: numpy's for the peers, which is one thread, and memcpy on as many threads as asked for in ours.

What is compared is not always the same work: torch's fake quantization is given no scale here and finds it first, as
we do; ml_dtypes writes a code of 6 bits to a whole byte; gguf interleaves scales and codes; torchao leaves the scales
of MX in a tensor of their own. A library that is not installed is left out.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")

SIZES = {"small": [1 << 16], "large": [1 << 26], "both": [1 << 26, 1 << 16]}
# A timing lasts at least so long: what is in the cache is repeated.
LEAST_SECONDS = 0.02


def numpy_cases(x):
    y = np.empty_like(x)
    yield "numpy copy", None, lambda: np.copyto(y, x)

    def quantize():
        scale = np.abs(x).max() / np.float32(127)
        return np.clip(np.rint(x / scale), -127, 127).astype(np.int8)

    codes, scale = quantize(), np.float32(0.01)
    yield "numpy int8: abs, max, rint, clip, astype", ("int8", "encode"), quantize
    yield "numpy int8: astype, multiply", ("int8", "decode"), lambda: codes.astype(np.float32) * scale
    half = x.astype(np.float16)
    yield "numpy float16: astype", ("f16", "encode"), lambda: x.astype(np.float16)
    yield "numpy float16: back", ("f16", "decode"), lambda: half.astype(np.float32)


def ml_dtypes_cases(x):
    import ml_dtypes

    for name, ours in [
        ("bfloat16", "bf16"),
        ("float8_e4m3fn", "e4m3fn"),
        ("float8_e5m2", "e5m2"),
        ("float6_e3m2fn", "e3m2fn"),
        ("float4_e2m1fn", "e2m1fn"),
    ]:
        dtype = getattr(ml_dtypes, name)
        codes = x.astype(dtype)
        yield f"ml_dtypes {name}: astype", (ours, "encode"), lambda d=dtype: x.astype(d)
        yield f"ml_dtypes {name}: back", (ours, "decode"), lambda c=codes: c.astype(np.float32)


def torch_cases(x):
    import torch

    t = torch.from_numpy(x)
    out = torch.empty_like(t)
    yield "torch copy_", None, lambda: out.copy_(t)

    def scale():
        low, high = torch.aminmax(t)
        return max(-low.item(), high.item()) / 127

    yield (
        "torch fake_quantize_per_tensor_affine",
        ("int8", "emulate"),
        lambda: torch.fake_quantize_per_tensor_affine(t, scale(), 0, -127, 127),
    )
    rows = t.view(64, -1)
    zeros = torch.zeros(64, dtype=torch.int32)

    def per_channel():
        scales = rows.abs().amax(1) / 127
        return torch.fake_quantize_per_channel_affine(rows, scales, zeros, 0, -127, 127)

    yield "torch fake_quantize_per_channel_affine", ("int8/channel", "emulate"), per_channel
    quantized = torch.quantize_per_tensor(t, scale(), 0, torch.qint8)
    yield (
        "torch quantize_per_tensor",
        ("int8", "encode"),
        lambda: torch.quantize_per_tensor(t, scale(), 0, torch.qint8),
    )
    yield "torch dequantize", ("int8", "decode"), quantized.dequantize
    for dtype, ours in [
        (torch.bfloat16, "bf16"),
        (torch.float16, "f16"),
        (torch.float8_e4m3fn, "e4m3fn"),
        (torch.float8_e5m2, "e5m2"),
    ]:
        codes = t.to(dtype)
        name = str(dtype).removeprefix("torch.")
        yield f"torch {name}: to", (ours, "encode"), lambda d=dtype: t.to(d)
        yield f"torch {name}: back", (ours, "decode"), lambda c=codes: c.to(torch.float32)


def torchao_cases(x):
    import torch
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

    t = torch.from_numpy(x).view(64, -1)
    for dtype, ours in [(torch.float8_e4m3fn, "mxfp8_e4m3"), (torch.float4_e2m1fn_x2, "mxfp4")]:
        scales, codes = to_mx(t, dtype, 32)
        name = str(dtype).removeprefix("torch.")
        yield f"torchao to_mx {name}", (ours, "encode"), lambda d=dtype: to_mx(t, d, 32)
        yield (
            f"torchao to_dtype {name}",
            (ours, "decode"),
            lambda c=codes, s=scales, d=dtype: to_dtype(c, s, d, 32, torch.float32),
        )


def gguf_cases(x):
    from gguf import GGMLQuantizationType as Type
    from gguf.quants import dequantize, quantize

    rows = x.reshape(64, -1)
    for kind, ours in [
        (Type.Q8_0, "int8/group:32/scale:f16"),
        (Type.Q4_0, "int4/full/group:32/scale:f16"),
        (Type.BF16, "bf16"),
    ]:
        codes = quantize(rows, kind)
        yield f"gguf {kind.name}: quantize", (ours, "encode"), lambda k=kind: quantize(rows, k)
        yield (
            f"gguf {kind.name}: dequantize",
            (ours, "decode"),
            lambda c=codes, k=kind: dequantize(c, k),
        )


def bitsandbytes_cases(x):
    import torch
    from bitsandbytes import functional

    t = torch.from_numpy(x)
    codes, state = functional.quantize_4bit(t, blocksize=64, quant_type="nf4")
    yield (
        "bitsandbytes nf4: quantize_4bit",
        ("nf4", "encode"),
        lambda: functional.quantize_4bit(t, blocksize=64, quant_type="nf4"),
    )
    yield (
        "bitsandbytes nf4: dequantize_4bit",
        ("nf4", "decode"),
        lambda: functional.dequantize_4bit(codes, state),
    )


LIBRARIES = [
    numpy_cases,
    ml_dtypes_cases,
    torch_cases,
    torchao_cases,
    gguf_cases,
    bitsandbytes_cases,
]


def seconds(case):
    start, runs = time.perf_counter(), 0
    while True:
        case()
        runs += 1
        elapsed = time.perf_counter() - start
        if elapsed > LEAST_SECONDS:
            return elapsed / runs


def bell_shaped(n):
    rng = np.random.default_rng(7)
    # Sums of four uniform numbers, as in the bench of scrimp-codec.
    x = rng.random(n, dtype=np.float32)
    for _ in range(3):
        x += rng.random(n, dtype=np.float32)
    x -= np.float32(2)
    return x


class Ours:
    """The bench binary, and which of the schemes it knows."""

    def __init__(self, schemes):
        default = "cargo bench -q -p scrimp-codec --bench codec --"
        self.command = shlex.split(os.environ.get("SCRIMP_BENCH", default))
        # An unknown scheme ends the bench before anything is measured.
        self.schemes = [s for s in schemes if self.runs(["--test", "--schemes", s])]
        self.times = {}

    def runs(self, arguments):
        return self.output(arguments).returncode == 0

    def output(self, arguments):
        root = Path(__file__).resolve().parent.parent
        return subprocess.run(
            self.command + arguments, capture_output=True, text=True, cwd=root, check=False
        )

    def measure(self, n, threads):
        size = "small" if n == SIZES["small"][0] else "large"
        schemes = ",".join(self.schemes)
        result = self.output(
            ["--schemes", schemes, "--size", size, "--threads", str(threads), "--rounds", "1"]
        )
        if result.returncode:
            sys.exit(result.stderr)
        for line in result.stdout.splitlines():
            figures = re.findall(r"(\d+\.\d+)(?:\s+\d+ %)?", line)
            name = line.split()[0] if line else ""
            if name == "memcpy":
                self.times.setdefault((name, ""), []).append(float(figures[0]))
            elif len(figures) == 3:
                for work, figure in zip(["emulate", "encode", "decode"], figures):
                    self.times.setdefault((name, work), []).append(float(figure))

    def speed(self, key):
        return statistics.median(self.times[key]) if key in self.times else None


def cases_of(x):
    for library in LIBRARIES:
        try:
            yield from library(x)
        except ImportError as error:
            print(f"left out: {error}", file=sys.stderr)


def table(n, threads, rounds):
    try:
        import torch

        torch.set_num_threads(threads)
    except ImportError:
        pass
    cases = list(cases_of(bell_shaped(n)))
    ours = Ours(sorted({key[0] for _, key, _ in cases if key}))
    times = {name: [] for name, _, _ in cases}
    # The first round only warms up.
    for round_ in range(rounds + 1):
        for name, _, case in cases:
            elapsed = seconds(case)
            if round_:
                times[name].append(elapsed)
        if round_:
            ours.measure(n, threads)
    copy = n * 4e-9 / statistics.median(times["numpy copy"])
    memcpy = ours.speed(("memcpy", ""))
    print(f"\n{n} values, {threads} thread(s): GB/s of f32 (share of a copy)")
    print(f"{'peer':<44}{'GB/s':>8}{'':>8}  {'ours':<38}{'GB/s':>8}{'':>8}{'ratio':>9}")
    print(f"{'':<44}{'':>16}  {'memcpy':<38}{memcpy:>8.2f}")
    rows = []
    for name, key, _ in cases:
        peer = n * 4e-9 / statistics.median(times[name])
        line = f"{name:<44}{peer:>8.2f}{100 * peer / copy:>6.0f} %"
        own = ours.speed(key) if key else None
        if own:
            share = f"{100 * own / memcpy:>6.0f} %"
            line += f"  {' '.join(key):<38}{own:>8.2f}{share}{own / peer:>7.1f} x"
        print(line)
        rows.append({"values": n, "threads": threads, "peer": name, "peer_gb_per_s": peer})
        rows[-1] |= {"ours": key and " ".join(key), "ours_gb_per_s": own, "memcpy_gb_per_s": memcpy}
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="both")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for n in SIZES[options.size]:
        for threads in map(int, options.threads.split(",")):
            rows += table(n, threads, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
