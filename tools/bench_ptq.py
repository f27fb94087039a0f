"""Quantize ResNets with scrimp and with onnxruntime.quantization, side by side in one run.

Each quantization is a process of its own, whose wall time and peak memory are taken; every model is judged in ONNX
Runtime on the same images. Data and models are those of the folder in SCRIMP_DATA.

    SCRIMP=target/release/scrimp python tools/bench_ptq.py [--models resnet20,resnet32,resnet44] [--samples 128]

Packages: onnxruntime 1.31.1, onnx 1.23.2, numpy 2.4.6.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from scrimp_binary import BINARY

DATA = Path(os.environ["SCRIMP_DATA"])
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def images(path, count):
    raw = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
    records = np.frombuffer(raw, np.uint8).reshape(-1, 3073)[:count]
    pixels = records[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255
    return ((pixels - MEAN) / STD).astype(np.float32), records[:, 0].astype(np.int64)


def measured(command, environment=None):
    """Wall seconds and peak MB of a command."""
    start = time.perf_counter()
    code = (
        "import resource,subprocess,sys;"
        "r=subprocess.run(sys.argv[1:],stdout=subprocess.DEVNULL,stderr=subprocess.PIPE);"
        "sys.stderr.buffer.write(r.stderr[-2000:]);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss);sys.exit(r.returncode)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, env=environment
    )
    seconds = time.perf_counter() - start
    if result.returncode:
        raise SystemExit(f"{command}: {result.stderr[-1500:]}")
    return seconds, int(result.stdout) / 1024


def quantize_with_onnxruntime(model, out, samples, method):
    """What the child process does."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    x, _ = images(DATA / "cifar10_lossless/train4000.bin.zst", samples)

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.parts = iter({"input": x[i : i + 16]} for i in range(0, len(x), 16))

        def get_next(self):
            return next(self.parts, None)

    prepared = out + ".prepared.onnx"
    quant_pre_process(model, prepared)
    quantize_static(
        prepared,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=CalibrationMethod[method],
    )


def session(path, threads=2):
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(path, options)


def logits(path, x):
    s = session(path)
    return np.concatenate([s.run(None, {"input": x[i : i + 100]})[0] for i in range(0, len(x), 100)])


def latency(paths, x, batch, threads, rounds=30):
    """Median milliseconds of each model; their runs take turns."""
    sessions = [session(path, threads) for path in paths]
    times = [[] for _ in paths]
    for number in range(rounds + 3):
        for s, t in zip(sessions, times):
            start = time.perf_counter()
            s.run(None, {"input": x[:batch]})
            if number >= 3:
                t.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(t) for t in times]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="resnet20,resnet32,resnet44")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--child", nargs=4)
    arguments = parser.parse_args()
    if arguments.child:
        model, out, samples, method = arguments.child
        quantize_with_onnxruntime(model, out, int(samples), method)
        return

    x, labels = images(DATA / "cifar10_jpeg/test_a.bin.zst", 5000)
    library = Path(__import__("onnxruntime").__file__).parent / "capi"
    found = sorted(library.glob("libonnxruntime.so.*"))
    environment = {**os.environ, "ORT_DYLIB_PATH": str(found[-1])} if found else dict(os.environ)
    lossless = str(DATA / "cifar10_lossless/train4000.bin.zst")
    print("model     quantizer        seconds   MB   bytes    top-1  same   dB    ms b1 1T/2T   ms b32 1T/2T")
    for name in arguments.models.split(","):
        model = str(DATA / f"models/{name}.onnx")
        float_logits = logits(model, x)
        rows = [("float", model, None)]
        with tempfile.TemporaryDirectory() as folder:
            for label, command in [
                (
                    "scrimp",
                    lambda out: [
                        BINARY, "quantize", model, "--data", lossless, "--samples", str(arguments.samples),
                        "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "-o", out,
                    ],
                ),
                (
                    "ort min-max",
                    lambda out: [sys.executable, __file__, "--child", model, out, str(arguments.samples), "MinMax"],
                ),
                (
                    "ort percentile",
                    lambda out: [sys.executable, __file__, "--child", model, out, str(arguments.samples), "Percentile"],
                ),
            ]:
                out = str(Path(folder) / f"{label.replace(' ', '-')}.onnx")
                rows.append((label, out, measured(command(out), environment)))
            times = {
                (batch, threads): latency([path for _, path, _ in rows], x, batch, threads)
                for batch in (1, 32)
                for threads in (1, 2)
            }
            for at, (label, path, cost) in enumerate(rows):
                y = logits(path, x)
                top, same = (y.argmax(1) == labels).mean(), (y.argmax(1) == float_logits.argmax(1)).mean()
                noise = ((y - float_logits) ** 2).sum()
                db = 10 * np.log10((float_logits**2).sum() / noise) if noise else np.inf
                seconds, megabytes = cost or (0, 0)
                ms = [times[key][at] for key in ((1, 1), (1, 2), (32, 1), (32, 2))]
                print(
                    f"{name:9} {label:15} {seconds:7.2f} {megabytes:5.0f} {os.path.getsize(path):9,}"
                    f" {100 * top:6.2f} {100 * same:6.2f} {db:5.1f}"
                    f"  {ms[0]:6.2f} {ms[1]:6.2f}   {ms[2]:6.2f} {ms[3]:6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
