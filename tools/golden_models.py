"""Golden file of networks: what torchvision's give for weights that both sides make from the same rule."""

import math

import numpy as np
import torch
import torchvision

from golden_file import FNV_OFFSET, FNV_PRIME, TRAIN, hex64, write

NOTES = """
Outputs, gradients and running averages of torchvision's inception_v3 (aux_logits=False, dropout left out, 10
classes) on two images of 139 x 139, in f64. Element i of the tensor NAME is made of u = (z >> 40) / 2^24, where z is
the output of SplitMix64 after i + 1 steps from the 64-bit FNV-1a hash of NAME. With n inputs of an output, weights
are (2u - 1) sqrt(6 / n); weights and variances of norms u + 0.5; their biases and means, and the bias of `fc`,
(2u - 1) / 10; `images` 4u - 2. All are rounded to f32.
evaluated: logits. trained: logits with the statistics of the batch. loss: cross entropy of these, classes 3 and 7.
gradient and average: of a tensor, its 2-norm and its product with the values 2u - 1 of NAME.direction. The column
torch_f32 is the largest difference of torch in f32, of a norm or product in parts of the norm.
"""
SIDE, CLASSES = 139, 10
MASK = (1 << 64) - 1


def uniform(name, shape):
    key = FNV_OFFSET
    for byte in name.encode():
        key = ((key ^ byte) * FNV_PRIME) & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(key) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)).astype(np.float64) / (1 << 24)).reshape(shape)


def first_value(name, shape):
    u = uniform(name, shape)
    if name == "images":
        values = 4 * u - 2
    elif len(shape) > 1:
        values = (2 * u - 1) * math.sqrt(6 / math.prod(shape[1:]))
    elif name.endswith(("bn.weight", "running_var")):
        values = u + 0.5
    else:
        values = (2 * u - 1) / 10
    return torch.from_numpy(values.astype(np.float32))


def network(dtype):
    net = torchvision.models.inception_v3(
        weights=None, aux_logits=False, init_weights=False, num_classes=CLASSES, dropout=0.0
    )
    state = {}
    for name, tensor in net.state_dict().items():
        counter = name.endswith("num_batches_tracked")
        state[name] = tensor if counter else first_value(name, tuple(tensor.shape))
    net.load_state_dict(state)
    return net.to(dtype)


def summary(name, tensor):
    values = tensor.detach().double().numpy()
    direction = 2 * uniform(f"{name}.direction", values.shape) - 1
    return float(np.sqrt((values**2).sum())), float((values * direction).sum())


def results(dtype):
    net = network(dtype)
    images = first_value("images", (2, 3, SIDE, SIDE)).to(dtype)
    net.eval()
    with torch.no_grad():
        logits = net(images)
    yield "evaluated", "", logits.double().flatten().tolist()
    net.train()
    logits = net(images)
    yield "trained", "", logits.detach().double().flatten().tolist()
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([3, 7]))
    yield "loss", "", [float(loss.detach().double())]
    loss.backward()
    for name, parameter in net.named_parameters():
        yield "gradient", name, summary(name, parameter.grad)
    for name, buffer in net.named_buffers():
        if not name.endswith("num_batches_tracked"):
            yield "average", name, summary(name, buffer)


def main():
    torch.set_num_threads(2)
    rows = []
    for (what, name, exact), (_, _, rounded) in zip(results(torch.float64), results(torch.float32), strict=True):
        unit = exact[0] if name else max(abs(v) for v in exact)
        apart = max(abs(a - b) for a, b in zip(exact, rounded, strict=True)) / unit
        rows.append([what, name, hex64(exact), f"{apart:.1e}"])
    write(TRAIN / "inception_v3.csv", ["torch", "torchvision", "numpy"], NOTES, ["what", "name", "values", "torch_f32"], rows)
    worst = {}
    for what, name, _, apart in rows:
        worst[what] = max(worst.get(what, (0.0, "")), (float(apart), name))
    print(worst)


main()
