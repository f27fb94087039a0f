"""Write the network of Burn's MNIST example as an ONNX model, with the weights of a safetensors file.

Three convolutions of 3 by 3 without padding, a ReLU after each, a batch norm, a layer of 32 with a ReLU, one of 10, and a
batch norm. The input is [images, 1, 28, 28] of (pixel / 255 - 0.1307) / 0.3081, as the metadata of the model says.

    python tools/make_burn_mnist.py burn_mnist.safetensors burn_mnist.onnx [--check FOLDER_OF_MNIST]

Packages: onnx 1.23.2, safetensors 0.8.0, numpy 2.4.6; with --check also onnxruntime 1.31.1, which gives the share of the test
images whose class comes first.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

MEAN, STD = 0.1307, 0.3081
EPSILON = 1e-5  # Burn's default.


def norm(name, source, result):
    inputs = [source] + [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    return helper.make_node("BatchNormalization", inputs, [result], name=name, epsilon=EPSILON)


def network(weights):
    nodes, value = [], "input"
    for name in ("conv1", "conv2", "conv3"):
        inputs = [value, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.y"], name=name, kernel_shape=[3, 3]))
        nodes.append(helper.make_node("Relu", [f"{name}.y"], [f"{name}.r"], name=f"{name}.relu"))
        value = f"{name}.r"
    nodes += [
        norm("norm1", value, "norm1.y"),
        helper.make_node("Flatten", ["norm1.y"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "fc1.weight", "fc1.bias"], ["fc1.y"], name="fc1", transB=1),
        helper.make_node("Relu", ["fc1.y"], ["fc1.r"], name="fc1.relu"),
        helper.make_node("Gemm", ["fc1.r", "fc2.weight", "fc2.bias"], ["fc2.y"], name="fc2", transB=1),
        norm("norm2", "fc2.y", "logits"),
    ]
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "burn_mnist",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items() if name in read],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"mean": str(MEAN), "std": str(STD)})
    onnx.checker.check_model(model, full_check=True)
    return model


def right(path, folder):
    import onnxruntime

    def read(name, skip):
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8)[skip:]

    images = read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28).astype(np.float32)
    labels = read("t10k-labels-idx1-ubyte.gz", 8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batches = np.array_split((images / 255 - MEAN) / STD, 100)
    logits = np.concatenate([session.run(None, {"input": b.astype(np.float32)})[0] for b in batches])
    return np.mean(logits.argmax(1) == labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--check", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    onnx.save(network(load_file(arguments.weights)), arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
    if arguments.check:
        print(f"right: {100 * right(arguments.out, arguments.check):.2f} %")


main()
