"""Writes a corpus of ONNX models: `make_onnx_corpus.py FOLDER`.

The models of the backend tests of the onnx package, which are one or a few nodes of every operator in its latest
version and some whole exports; and for each opset from 7 to 25 the node tests that the package can bring to it, with
functions kept and expanded. Nothing is downloaded. `cargo run -p scrimp-onnx --example round_trip -- FOLDER` reads them.
"""

import collections
import shutil
import sys
import warnings
from pathlib import Path

import onnx
from onnx import version_converter
from onnx.backend.test.case.node import collect_testcases

FIRST, LAST = 7, 25
folder = Path(sys.argv[1])
opsets = collections.Counter()


def write(path, model):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    count(model)


def count(model):
    opsets.update(entry.version for entry in model.opset_import if entry.domain == "")


def lowered(model, to):
    """The model at an earlier opset, where all of its operators had the same meaning then; else `None`."""
    wanted = [node for node in model.graph.node if node.domain == ""]
    if len(wanted) != len(model.graph.node) or any(a.HasField("g") for n in wanted for a in n.attribute):
        return None
    for node in wanted:
        now = onnx.defs.get_schema(node.op_type, model.opset_import[0].version, "")
        if now.since_version > to:
            return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.opset_import[0].version = to
    copy.ir_version = onnx.helper.find_min_ir_version_for(copy.opset_import)
    return copy


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    cases = [case for case in collect_testcases(None) if case.model is not None]
for case in cases:
    write(folder / "node" / f"{case.name}.onnx", case.model)
for case in cases:
    version = {entry.domain: entry.version for entry in case.model.opset_import}.get("", 0)
    for to in range(FIRST, min(version, LAST + 1)):
        earlier = lowered(case.model, to)
        if earlier is None:
            try:
                # It knows some ways back from one version to the one before.
                earlier = version_converter.convert_version(case.model, to) if version - to <= 1 else None
            except Exception:  # What it does not know is an error of any kind.
                earlier = None
        if earlier is not None:
            write(folder / f"opset{to}" / f"{case.name}.onnx", earlier)
stored = Path(onnx.__file__).parent / "backend" / "test" / "data"
for path in sorted(stored.rglob("*.onnx")):
    target = folder / "stored" / path.relative_to(stored)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)
    count(onnx.load(path, load_external_data=False))
print(f"{sum(opsets.values())} models")
for version, models in sorted(opsets.items()):
    print(f"opset {version}: {models}")
