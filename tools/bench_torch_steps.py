"""Measures the training steps of `scrimp bench` beside the same steps in PyTorch, in one run.

    SCRIMP=target/release/scrimp venv/bin/python tools/bench_torch_steps.py [--models ...] [--threads 2] [--rounds 3]

Every way to make a step is a process of its own, and rounds alternate between all of them, so that a slow minute of the
machine hits all alike. The figure of a process is its median over some steps, that of the table the median over rounds,
with the least beside it. The peak of memory is that of the process (on Linux, in MB).

PyTorch runs eagerly, contiguous and channels_last, in f32 and under autocast to bf16, with a glibc allocator that
does not give memory back after every step (its default costs PyTorch a third). The networks are those of scrimp: the
same layers, sizes, optimizer and batch, on noise. Also 8-bit training as PyTorch users write it: fake quantization of
the operands with straight-through gradients (`f32, int8 fake`), forward and backward; and of all eight tensors of a layer
(`int8 everywhere`, and `fp8 everywhere` with e4m3fn forward and e5m2 backward), beside `recipes/everywhere.toml`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

MODELS = {
    # name: batch, optimizer, steps that count
    "lenet": (64, "sgd", 61),
    "resnet20": (128, "sgd", 5),
    "resnet18": (32, "sgd", 5),
    "text-transformer": (64, "adam", 15),
}
OURS = ["f32", "bf16", "int8", "int8, emulated", "f32, engine's own"]
OURS += ["int8-everywhere", "int8-everywhere-emulated", "fp8-everywhere"]
TORCH = ["f32", "f32 channels_last", "bf16", "bf16 channels_last", "f32, int8 fake"]
TORCH += ["int8 everywhere", "fp8 everywhere"]
RECIPE = os.path.join(os.path.dirname(__file__), "../recipes/everywhere.toml")
TUNABLES = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=1073741824"


def torch_step(model, variant, threads):
    """Prints the median milliseconds of a step, in the process that makes them."""
    import time

    import torch
    import torch.nn as nn
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batch, optimizer, steps = MODELS[model]

    class Fake(torch.autograd.Function):
        """Symmetric int8 by the largest magnitude; forward rounds the value, backward its gradient if asked to."""

        @staticmethod
        def forward(ctx, x, backward):
            ctx.backward_too = backward
            return x if backward else Fake.round(x)

        @staticmethod
        def backward(ctx, g):
            return (Fake.round(g) if ctx.backward_too else g), None

        @staticmethod
        def round(x):
            scale = x.abs().amax().item() / 127 or 1.0
            return torch.fake_quantize_per_tensor_affine(x, scale, 0, -127, 127)

    fake = "fake" in variant

    def int8(x):
        return Fake.round(x)

    class Round(torch.autograd.Function):
        """Rounds a tensor on the way there, and its gradient on the way back."""

        @staticmethod
        def forward(ctx, x):
            return int8(x) if "int8" in variant else x.to(torch.float8_e4m3fn).to(torch.float32)

        @staticmethod
        def backward(ctx, g):
            return int8(g) if "int8" in variant else g.to(torch.float8_e5m2).to(torch.float32)

    everywhere = "everywhere" in variant

    def rounded(layer, x, product):
        bias = None if layer.bias is None else Round.apply(layer.bias)
        return Round.apply(product(Round.apply(x), Round.apply(layer.weight), bias))

    class Conv(nn.Conv2d):
        def forward(self, x):
            if everywhere:
                return rounded(self, x, self._conv_forward)
            if not fake:
                return super().forward(x)
            y = self._conv_forward(Fake.apply(x, False), Fake.apply(self.weight, False), self.bias)
            return Fake.apply(y, True)

    class Linear(nn.Linear):
        def forward(self, x):
            if everywhere:
                return rounded(self, x, F.linear)
            if not fake:
                return super().forward(x)
            y = F.linear(Fake.apply(x, False), Fake.apply(self.weight, False), self.bias)
            return Fake.apply(y, True)

    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1, self.c2 = Conv(1, 6, 5, padding=2), Conv(6, 16, 5, padding=2)
            self.f1, self.f2, self.f3 = Linear(784, 120), Linear(120, 84), Linear(84, 10)

        def forward(self, x):
            x = F.max_pool2d(F.relu(self.c1(x)), 2)
            x = F.max_pool2d(F.relu(self.c2(x)), 2)
            x = F.relu(self.f1(x.flatten(1)))
            return self.f3(F.relu(self.f2(x)))

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride, project):
            super().__init__()
            self.c1 = Conv(inputs, outputs, 3, stride, 1, bias=False)
            self.b1 = nn.BatchNorm2d(outputs)
            self.c2 = Conv(outputs, outputs, 3, 1, 1, bias=False)
            self.b2 = nn.BatchNorm2d(outputs)
            self.stride, self.pad = stride, (outputs - inputs) // 2
            changes = stride != 1 or inputs != outputs
            self.down = None
            if changes and project:
                conv = Conv(inputs, outputs, 1, stride, bias=False)
                self.down = nn.Sequential(conv, nn.BatchNorm2d(outputs))

        def forward(self, x):
            y = self.b2(self.c2(F.relu(self.b1(self.c1(x)))))
            if self.down is not None:
                x = self.down(x)
            elif self.stride != 1:
                x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
            return F.relu(y + x)

    class ResNet(nn.Module):
        def __init__(self, widths, blocks, project):
            super().__init__()
            self.c, self.b = Conv(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
            layers, inputs = [], widths[0]
            for width in widths:
                for i in range(blocks):
                    stride = 2 if i == 0 and width != widths[0] else 1
                    layers.append(Block(inputs, width, stride, project))
                    inputs = width
            self.layers, self.f = nn.Sequential(*layers), Linear(inputs, 10)

        def forward(self, x):
            x = self.layers(F.relu(self.b(self.c(x))))
            return self.f(F.adaptive_avg_pool2d(x, 1).flatten(1))

    class Encoder(nn.Module):
        def __init__(self, dim, heads, hidden):
            super().__init__()
            self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
            self.f1, self.f2 = Linear(dim, hidden), Linear(hidden, dim)
            self.n1, self.n2, self.heads = nn.LayerNorm(dim), nn.LayerNorm(dim), heads

        def forward(self, x):
            n, t, d = x.shape
            split = lambda y: y.view(n, t, self.heads, d // self.heads).transpose(1, 2)
            q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
            y = F.scaled_dot_product_attention(q, k, v)
            x = self.n1(x + self.o(y.transpose(1, 2).reshape(n, t, d)))
            return self.n2(x + self.f2(F.gelu(self.f1(x))))

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = nn.Embedding(20000, 128)
            self.p = nn.Parameter(torch.randn(1, 64, 128) * 0.02)
            self.layers = nn.Sequential(*(Encoder(128, 4, 256) for _ in range(2)))
            self.f = Linear(128, 10)

        def forward(self, x):
            return self.f(self.layers(self.e(x) + self.p).mean(1))

    make = {
        "lenet": LeNet,
        "resnet20": lambda: ResNet([16, 32, 64], 3, False),
        "resnet18": lambda: ResNet([64, 128, 256, 512], 2, True),
        "text-transformer": Text,
    }[model]
    net, text = make(), model == "text-transformer"
    if text:
        x = torch.randint(0, 20000, (batch, 64))
    else:
        x = torch.rand(batch, *((1, 28, 28) if model == "lenet" else (3, 32, 32))) - 0.5
    if "channels_last" in variant and not text:
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 10
    if optimizer == "adam":
        update = torch.optim.Adam(net.parameters(), 1e-4)
    else:
        update = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9)
    times = []
    for step in range(3 + steps):
        start = time.perf_counter()
        update.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in variant):
            loss = F.cross_entropy(net(x).float(), labels)
        loss.backward()
        update.step()
        loss.item()
        if step >= 3:
            times.append(time.perf_counter() - start)
    print(1e3 * statistics.median(times))


def run(command, env):
    """The output of a process, and the peak of its memory in MB."""
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return output, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="only ways with one of these in their names, between semicolons")
    parser.add_argument("--json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        torch_step(*args.one, args.threads)
        return
    scrimp = os.environ.get("SCRIMP", "target/release/scrimp")
    table = []
    for model in args.models.split(","):
        batch, optimizer, steps = MODELS[model]
        text = model == "text-transformer"
        cases = [("PyTorch", v) for v in TORCH if not (text and "channels_last" in v)]
        cases += [("scrimp", v) for v in OURS if not (text and "engine" in v)]
        if args.only:
            cases = [case for case in cases if any(part in case[1] for part in args.only.split(";"))]
        times = {case: [] for case in cases}
        memory = {case: [] for case in cases}
        for _ in range(args.rounds):
            for case in cases:
                who, variant = case
                env = dict(os.environ)
                if who == "PyTorch":
                    env["GLIBC_TUNABLES"] = TUNABLES
                    command = [sys.executable, __file__, "--threads", str(args.threads), "--one"]
                    output, peak = run(command + [model, variant], env)
                    ms = float(output.split()[-1])
                else:
                    command = [scrimp, "--threads", str(args.threads), "bench", model, "--json"]
                    command += ["--batch", str(batch), "--optimizer", optimizer]
                    command += ["--rounds", str(steps), "--only", variant]
                    command += ["--engine"] if "engine" in variant else []
                    command += ["--recipe", RECIPE] if "everywhere" in variant else []
                    output, peak = run(command, env)
                    rows = [json.loads(line) for line in output.splitlines()]
                    ms = next(r["median_ms"] for r in rows if r["type"] == "step")
                times[case].append(ms)
                memory[case].append(peak)
        floats = [times[case] for case in cases if case[0] == "PyTorch" and case[1] in TORCH[:2]]
        best = min((statistics.median(of) for of in floats), default=float("nan"))
        print(f"\n{model}, batch {batch}, {optimizer}, {args.threads} thread(s)")
        print(f"{'':<34}{'ms':>9}{'least':>9}{'of PyTorch f32':>16}{'peak MB':>9}")
        for case in cases:
            ms, least = statistics.median(times[case]), min(times[case])
            peak = statistics.median(memory[case])
            print(f"{' '.join(case):<34}{ms:>9.2f}{least:>9.2f}{ms / best:>15.2f}x{peak:>9.0f}", flush=True)
            table.append({"model": model, "threads": args.threads, "who": case[0],
                          "variant": case[1], "ms": ms, "least_ms": least, "peak_mb": peak})
    if args.json:
        with open(args.json, "w") as file:
            json.dump(table, file, indent=1)


if __name__ == "__main__":
    main()
