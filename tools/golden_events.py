"""Golden file of TensorBoard event files: the bytes that TensorBoard's own writer makes of scalars."""

import io
import struct

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from golden_file import SCRIMP, hex32, write

NOTES = """
Records of one event file, in order; `bytes` is the whole record. The first is the version of the file. time: bits of an
f64. tags and values: those of the scalars, values as bits of f32.
"""
CASES = [
    (0.25, 0, [("train/loss", 0.0)]),
    (1.5, 1, [("train/loss", 2.302585), ("train/learning_rate", 0.002)]),
    (1764536370.25, 127, [("validation/accuracy", 0.9945)]),
    (1764536371.0, 128, [("dy.sqnr_db/layer1.0.conv1", -3.25), ("dy.min/größe", float("-inf"))]),
    (1764536372.0, 16384, [("w.amax/fc", 1e-45)]),
    (1e300, 2**62 + 5, [("t" * 200, float("nan")), ("u", 3.4e38)]),
]


def record(event):
    out = io.BytesIO()
    RecordWriter(out).write(event.SerializeToString(deterministic=True))
    return out.getvalue().hex()


def scalars(time, step, values):
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=v) for tag, v in values])
    return [
        struct.pack(">d", time).hex(),
        step,
        " ".join(tag for tag, _ in values),
        " ".join(hex32([v]) for _, v in values),
        record(Event(wall_time=time, step=step, summary=summary)),
    ]


first = Event(wall_time=0.5, file_version="brain.Event:2")
rows = [[struct.pack(">d", 0.5).hex(), 0, "", "", record(first)]]
rows += [scalars(*case) for case in CASES]
write(SCRIMP / "events.csv", ["tensorboard", "protobuf", "numpy"], NOTES, ["time", "step", "tags", "values", "bytes"], rows)
