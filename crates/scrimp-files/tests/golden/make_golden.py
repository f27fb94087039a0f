"""Writes the files of this folder: what NumPy, PyTorch and safetensors make of known values.

Made with numpy 2.4.6, torch 2.15.0 and safetensors 0.8.0:

    python3 make_golden.py
"""

from collections import OrderedDict

import numpy as np
import torch
from safetensors.torch import save_file

# .npy: every header version, both byte orders, both axis orders.
grid = np.arange(6, dtype=np.float32).reshape(2, 3) / 4 - 0.5
np.save("row_f4.npy", grid)
np.save("column_f4.npy", np.asfortranarray(grid))
np.save("column_big_f8.npy", np.asfortranarray(np.arange(24, dtype=">f8").reshape(2, 3, 4)))
np.save("big_i2.npy", np.array([-2, 1, 256], dtype=">i2"))
np.save("half.npy", np.array([1.5, -0.0, np.inf], dtype=np.float16))
np.save("scalar_bool.npy", np.array(True))
np.save("empty_u4.npy", np.zeros((0, 3), dtype=np.uint32))
np.save("complex.npy", np.array([1 + 2j], dtype=">c8"))
for version in (2, 3):
    with open(f"version_{version}.npy", "wb") as file:
        np.lib.format.write_array(file, np.array([7, -7], dtype=np.int64), version=(version, 0))
np.save("fields.npy", np.zeros(1, dtype=[("a", "<f4"), ("b", "<i2")]))
np.save("objects.npy", np.array([None]), allow_pickle=True)

# PyTorch: a checkpoint as training scripts write it, in both containers.
weight = torch.arange(6, dtype=torch.float32).reshape(2, 3) * 0.25
state = OrderedDict()
state["module.weight"] = weight
state["module.tied"] = weight.t()
state["module.row"] = weight[1]
state["module.half"] = torch.tensor([1.0, -2.5], dtype=torch.float16)
state["module.brain"] = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
state["module.double"] = torch.tensor(0.1, dtype=torch.float64)
state["module.steps"] = torch.tensor(12345678901, dtype=torch.int64)
state["module.mask"] = torch.tensor([True, False, True])
state["module.none"] = torch.zeros(0, 4)
moment = torch.full((2,), 0.5)
checkpoint = {
    "state_dict": state,
    "epoch": 3,
    "best_prec1": 91.5,
    "arch": "tiny",
    "optimizer": {"state": {0: {"exp_avg": moment}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
}
torch.save(checkpoint, "checkpoint.pt")
torch.save(checkpoint, "checkpoint_legacy.pth", _use_new_zipfile_serialization=False)
# A view that would take 16 GB.
torch.save({"huge": torch.zeros(1).expand(1 << 32)}, "expanded.pt")
# A view that would take 4 GB, below the limit that the parser itself has.
torch.save({"large": torch.zeros(1).expand(1 << 30)}, "expanded_less.pt")
# Two paths to one name.
torch.save({"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}, "ambiguous.pt")

# The same tensors, as safetensors itself stores them.
named = {f"state_dict.{name}": tensor.contiguous().clone() for name, tensor in state.items()}
named["optimizer.state.0.exp_avg"] = moment
save_file(named, "checkpoint.safetensors", metadata={"format": "pt"})
