"""Compares the messages of an ONNX file as scrimp-onnx declares them with the descriptors of the onnx package.

Names, numbers and types of fields, and whether they are optional, repeated, packed or one of several; and the numbers of
element types. Prints what differs; exit status 1 if anything does.
"""

import re
import sys

import onnx
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from onnx import onnx_ml_pb2

from golden_file import CRATES

SOURCE = CRATES / "scrimp-onnx" / "src"
# Messages within others have their own names in Rust.
NAMES = {"TypeProto.Tensor": "TensorType", "TypeProto.Sequence": "SequenceType", "TypeProto.Map": "MapType"}
NAMES |= {"TypeProto.Optional": "OptionalType", "TypeProto.SparseTensor": "SparseTensorType"}
NAMES |= {"TypeProto.Opaque": "OpaqueType", "TensorProto.Segment": "Segment", "TensorShapeProto.Dimension": "Dimension"}
# Those of one of several: the field that a oneof becomes belongs to the message before it.
FIELD = re.compile(r'#\[prost\(([^\]]*)\)\]\s*(?:pub )?(\S+?)(?::|\()\s*([^\n]*?)\)?,\n')
TYPE = FieldDescriptorProto.Type


def snake(name):
    """`SparseTensor` as it is in a message: `sparse_tensor`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def described():
    """The fields of each message: (name, number) to a description."""
    file = FileDescriptorProto()
    onnx_ml_pb2.DESCRIPTOR.CopyToProto(file)
    found = {}

    def visit(message, outer):
        path = f"{outer}.{message.name}" if outer else message.name
        fields = found[NAMES.get(path, path)] = {}
        for field in message.field:
            words = [TYPE.Name(field.type).removeprefix("TYPE_").lower().replace("enum", "int32")]
            if field.type == TYPE.TYPE_MESSAGE:
                full = field.type_name.removeprefix(".onnx.")
                words.append(NAMES.get(full, full))
            if field.HasField("oneof_index"):
                words.append(f"one of {message.oneof_decl[field.oneof_index].name}")
            elif field.label == FieldDescriptorProto.LABEL_REPEATED:
                words.append("repeated")
                numeric = field.type not in (TYPE.TYPE_MESSAGE, TYPE.TYPE_STRING, TYPE.TYPE_BYTES)
                if numeric:
                    words.append("packed" if field.options.packed else "unpacked")
            elif field.label == FieldDescriptorProto.LABEL_OPTIONAL:
                words.append("optional")
            else:
                words.append("required")
            fields[field.name, field.number] = " ".join(words)
        for nested in message.nested_type:
            visit(nested, path)

    for message in file.message_type:
        visit(message, "")
    return found


def declared():
    """The same from the Rust source, and the items of it that could not be read."""
    text = re.sub(r"///[^\n]*\n", "", (SOURCE / "proto.rs").read_text())
    bodies = {name: body for name, body in re.findall(r"pub (?:struct|enum) (\w+) \{\n(.*?)\n\}", text, re.DOTALL)}
    found = {}
    for name in re.findall(r"prost::Message\)\]\npub struct (\w+)", text):
        fields = found[name] = {}
        for field, number, description in rust_fields(bodies[name], bodies, None):
            fields[field, number] = description
    return found


def rust_fields(body, bodies, group):
    attributes = body.count("#[prost(")
    matches = FIELD.findall(body + "\n")
    if len(matches) != attributes:
        problems.append(f"{attributes} fields, of which {len(matches)} can be read: {body}")
    for attribute, name, rust in matches:
        name = name.removeprefix("r#")
        if several := re.match(r'oneof = "(\w+)", tags = "([\d, ]+)"', attribute):
            inner = list(rust_fields(bodies[several[1]], bodies, name))
            tags = [int(tag) for tag in several[2].split(",")]
            if sorted(tags) != sorted(number for _, number, _ in inner):
                problems.append(f"{several[1]}: the tags {tags} are not those of its variants")
            yield from inner
            continue
        words = attribute.split(", ")
        kind = words[0].split(" = ")[0]
        description = [kind]
        if kind == "message":
            description.append(re.search(r"(\w+)>*$", rust)[1])
        options = dict(word.split(" = ") for word in words if " = " in word)
        if group is not None:
            name = variant(name, group)
            description.append(f"one of {group}")
        elif "repeated" in words:
            description.append("repeated")
            if "packed" in options:
                description.append("packed" if options["packed"] == '"true"' else "unpacked")
            elif kind not in ("message", "string", "bytes"):
                description.append("packed by default")
        else:
            description.append("optional" if "optional" in words else "required")
        yield name, int(options["tag"].strip('"')), " ".join(description)


def variant(name, group):
    """Variants of a type are those of the type, `tensor_type`; those of a size `dim_value`."""
    return f"{snake(name)}_type" if group == "value" and name in TYPES else f"dim_{snake(name)}"


TYPES = {"Tensor", "Sequence", "Map", "Optional", "SparseTensor", "Opaque"}
problems = []
theirs, ours = described(), declared()
for message in sorted(theirs.keys() | ours.keys()):
    if message not in ours or message not in theirs:
        problems.append(f"{message}: only {'the package' if message in theirs else 'scrimp'} has it")
        continue
    for key in sorted(theirs[message].keys() | ours[message].keys(), key=lambda key: (key[1], key[0])):
        there, here = theirs[message].get(key), ours[message].get(key)
        if there != here:
            problems.append(f"{message}: {key[0]} = {key[1]}: the package has `{there}`, scrimp has `{here}`")

enum = re.search(r"pub enum DataType \{\n(.*?)\n\}", (SOURCE / "tensor.rs").read_text(), re.DOTALL)[1]
here = {name.lower(): int(number) for name, number in re.findall(r"(\w+) = (\d+),", enum)}
there = {name.lower().replace("_", ""): number for name, number in onnx.TensorProto.DataType.items() if number}
here = {name.replace("_", ""): number for name, number in here.items()}
for name in sorted(there.keys() | here.keys()):
    if there.get(name) != here.get(name):
        problems.append(f"type {name}: the package has {there.get(name)}, scrimp has {here.get(name)}")

fields = sum(len(message) for message in theirs.values())
print(f"onnx {onnx.__version__}: {len(theirs)} messages, {fields} fields, {len(there)} types; {len(problems)} differences")
for problem in problems:
    print(problem)
sys.exit(bool(problems))
