"""A tensor through the binary under test: `scrimp encode`, then `scrimp decode`."""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

BINARY = os.environ.get("SCRIMP")


def round_trip(x, scheme):
    """What the file decodes to; needs the environment variable SCRIMP to name the binary."""
    with tempfile.TemporaryDirectory() as folder:
        source, packed, result = (Path(folder) / n for n in ("in.npy", "out.safetensors", "out.npy"))
        np.save(source, x)
        encode = [BINARY, "encode", source, "--scheme", scheme, "-o", packed]
        for command in [encode, [BINARY, "decode", packed, "-o", result]]:
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode != 0:
                raise SystemExit(f"{' '.join(map(str, command))}\n{run.stdout}{run.stderr}")
        decoded = np.load(result)
    assert decoded.dtype == np.float32 and decoded.shape == x.shape, (decoded.dtype, decoded.shape)
    return decoded
