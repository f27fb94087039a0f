"""Checks the raising of ONNX models to later opsets with the onnx package.

    check_onnx_opsets.py [PROGRAM [MODEL...]]

Reads the table of changes in scrimp-onnx and compares it with the schemas of all operators: whatever an operator lost or
demands since needs a row. PROGRAM is the example `upgrade_opset` of scrimp-onnx. With it, the models of the golden file
and those named are raised to several opsets; `onnx.checker` must accept the results with shapes inferred, and onnx's
reference evaluator must compute the golden outputs from them. Exit status 1 if anything differs.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from golden_file import CRATES, ONNX

TABLE = CRATES / "scrimp-onnx" / "src" / "opset" / "mod.rs"
TARGETS = [13, 17, 18, 21, 25]
FIRST, LAST = 8, 25
# Operators that were there before their first version, as experiments.
EXPERIMENTS = {("MeanVarianceNormalization", 9)}
# The type of the mask, which the row for opset 12 lets nothing read.
LATER = {("Dropout", 10)}
# What the reference evaluator of onnx does not do, and in which targets. ONNX Runtime runs these in the tests of
# scrimp-onnx.
ALL = range(LAST + 1)
NOT_EVALUATED = {
    "batch_normalization_7": (range(14), "takes the statistics of the input"),
    "batch_normalization_7_positions_flat": (range(14), "takes the statistics of the input"),
    "batch_normalization_9_training": (range(14), "gives one output"),
    "grid_sample_16_bicubic": (range(20), "knows the mode by its later name only"),
    "loop_1": (ALL, "joins scan outputs where it should stack them"),
    "pad_2_crop": (ALL, "takes no negative pads"),
    "resize_11_crop": (ALL, "samples other places"),
    "roi_align_10": (range(16), "samples the places of opset 16"),
    "scan_8": (ALL, "scans in one direction only"),
}
# Since onnx 1.16 the checker takes this operator of opset 18 to be gone, while opset 21 has the next one.
NOT_CHECKED = {"group_normalization_18": range(18, 21)}

problems = []


def changes():
    """Pairs of schemas of one operator, the later one from within the versions that models are raised over."""
    by_name = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            by_name[schema.name].append(schema)
    for schemas in by_name.values():
        schemas.sort(key=lambda schema: schema.since_version)
        for old, new in zip(schemas, schemas[1:]):
            if FIRST <= new.since_version <= LAST:
                yield old, new


def losses(old, new):
    """What nodes of the old version may have, or may do without, that those of the new one may not."""
    required = onnx.defs.OpSchema.FormalParameterOption.Single
    if new.deprecated:
        yield "it is gone"
    for name, attribute in old.attributes.items():
        if name not in new.attributes:
            yield f"attribute {name} is gone"
        elif new.attributes[name].required and not attribute.required:
            yield f"attribute {name} is required"
        elif new.attributes[name].default_value != attribute.default_value:
            yield f"attribute {name} has another default"
    for name, attribute in new.attributes.items():
        if attribute.required and name not in old.attributes:
            yield f"attribute {name} is new and required"
    for what, before, after in (("input", old.inputs, new.inputs), ("output", old.outputs, new.outputs)):
        if len(after) < len(before):
            yield f"there are fewer {what}s"
        for at, parameter in enumerate(after):
            if at >= len(before):
                if parameter.option == required:
                    yield f"{what} {parameter.name} is new and required"
            elif parameter.option == required != before[at].option:
                yield f"{what} {parameter.name} is required"
            elif before[at].types - parameter.types:
                yield f"{what} {parameter.name} has fewer types"


def check_table():
    rows = {(op, int(version)) for op, version in re.findall(r'row\("(\w+)", (\d+),', TABLE.read_text())}
    known = set(EXPERIMENTS)
    for old, new in changes():
        key = (new.name, new.since_version)
        known.add(key)
        lost = sorted(set(losses(old, new)))
        if lost and key not in rows | LATER:
            problems.append(f"{new.name} {new.since_version} has no row: {', '.join(lost)}")
    problems.extend(f"{op} did not change in opset {version}" for op, version in sorted(rows - known))
    print(f"{len(rows)} rows, {len(known)} changes of operators")


def values(text):
    result = {}
    for entry in text.split():
        name, kind, shape, raw = entry.split(":")
        sizes = [] if shape == "scalar" else [int(size) for size in shape.split("x")]
        result[name] = np.frombuffer(bytes.fromhex(raw), kind).reshape(sizes)
    return result


def check_models(program, files):
    lines = [line for line in (ONNX / "opsets.csv").read_text().splitlines() if not line.startswith("#")]
    cases = {fields[0]: fields for fields in (line.split(",") for line in lines[1:])}
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        old.mkdir()
        for name, fields in cases.items():
            (old / f"{name}.onnx").write_bytes(bytes.fromhex(fields[3]))
        for file in files:
            shutil.copy(file, old)
        checked = 0
        for to in TARGETS:
            raised = Path(folder) / str(to)
            said = subprocess.run([program, old, str(to), raised], check=True, capture_output=True, text=True)
            problems.extend(line for line in said.stdout.splitlines() if ": refused: " in line)
            for path in sorted(raised.glob("*.onnx")):
                checked += 1
                try:
                    check_model(path, cases.get(path.stem))
                except Exception as error:  # onnx has many classes of errors.
                    problems.append(f"{path.stem} at {to}: {type(error).__name__}: {str(error)[:300]}")
    print(f"{checked} models checked")


def check_model(path, case):
    model = onnx.load(path)
    version = model.opset_import[0].version
    if version not in NOT_CHECKED.get(path.stem, ()):
        onnx.checker.check_model(model, full_check=True)
    if case is None or version in NOT_EVALUATED.get(path.stem, ((),))[0]:
        return
    expected = values(case[5])
    found = ReferenceEvaluator(model).run(list(expected), values(case[4]))
    for name, array in zip(expected, found, strict=True):
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


check_table()
if len(sys.argv) > 1:
    check_models(sys.argv[1], sys.argv[2:])
for problem in problems:
    print(problem)
sys.exit(bool(problems))
