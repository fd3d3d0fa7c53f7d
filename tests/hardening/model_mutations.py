"""Corrupt and hostile ONNX files, each determined by a seed: mutations of valid models, and models made to exhaust a reader."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from onnx import TensorProto as T
from onnx import helper as h
from onnx_bombs import BOMBS
from seed_models import SEED_MODELS

__all__ = ["hostile_model"]

TEXTS = (
    "",
    "x",
    "nowhere",
    "y",
    "\x1b[2J\x1b]0;t\x07",
    "[red]m[/red]",
    "../../etc/passwd",
    "a\0b",
    "ä" * 300,
    "é\u202e",
    "%s{0}$(id)",
)
NUMBERS = (0, 1, -1, 2, 3, 7, 64, 65, 127, 255, 2**15, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
REALS = (0.0, -1.0, 1e38, -1e38, float("nan"), float("inf"), 1e-45, 0.5)
INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
#: share of files that are bombs: each takes a hundred times as long as another one
BOMB_SHARE = 0.02


def hostile_model(seed: int, real: tuple[bytes, ...] = ()) -> tuple[str, bytes]:
    """Return what was done to a model, and the file.

    Args:
        seed: Determines the file.
        real: Further valid models to start from.
    """
    draw = random.Random(seed)
    if draw.random() < BOMB_SHARE:
        name = draw.choice(sorted(BOMBS))
        return f"bomb {name}", BOMBS[name](draw)
    start = draw.randrange(len(SEED_MODELS) + len(real))
    name = [*SEED_MODELS, *(f"real{at}" for at in range(len(real)))][start]
    content = serialized(name) if name in SEED_MODELS else real[start - len(SEED_MODELS)]
    done = []
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        mutation = draw.choice(MUTATIONS)
        try:
            content = mutation(content, draw)
        except Exception:  # what was done before may have left nothing that this mutation can read
            continue
        done.append(mutation.__name__)
    return f"{name}: {', '.join(done) or 'unchanged'}", content


@cache
def serialized(name: str) -> bytes:
    return SEED_MODELS[name]().SerializeToString()


# ---------------------------------------------------------------- bytes


def flip_bytes(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 2, 5, 20))):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def splice(content: bytes, draw: random.Random) -> bytes:
    start, target = draw.randrange(len(content) + 1), draw.randrange(len(content) + 1)
    piece = content[start : start + draw.randrange(1, 64)]
    return content[:target] + piece + content[target + draw.choice((0, len(piece), 2 * len(piece))) :]


# ---------------------------------------------------------------- fields of the message


def mutate_field(content: bytes, draw: random.Random) -> bytes:
    """Change one field of one message of the model, whatever it is."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(20):
        message = draw.choice(list(_messages(model)))
        field = draw.choice(message.DESCRIPTOR.fields)
        if _change(message, field, draw):
            break
    return model.SerializeToString()


def _messages(message: Any) -> Iterator[Any]:
    waiting = [message]
    while waiting:
        current = waiting.pop()
        yield current
        for field, held in current.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                waiting += held if _is_repeated(field) else [held]


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED


def _change(message: Any, field: FieldDescriptor, draw: random.Random) -> bool:
    held = getattr(message, field.name)
    if not _is_repeated(field):
        if draw.random() < 0.4 or field.type == FieldDescriptor.TYPE_MESSAGE:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, _scalar(field, draw))
        return True
    action = draw.choice(("drop", "double", "add", "shuffle", "set", "clear"))
    if action == "clear":
        message.ClearField(field.name)
    elif action == "drop" and len(held):
        del held[draw.randrange(len(held))]
    elif action == "double" and len(held):
        held.extend([held[draw.randrange(len(held))]])
    elif action == "shuffle" and len(held) > 1:
        kept = list(held)
        draw.shuffle(kept)
        copies = [
            type(each).FromString(each.SerializeToString()) if hasattr(each, "SerializeToString") else each for each in kept
        ]
        del held[:]
        held.extend(copies)
    elif action in ("add", "set") and field.type != FieldDescriptor.TYPE_MESSAGE:
        if action == "set" and len(held):
            held[draw.randrange(len(held))] = _scalar(field, draw)
        else:
            held.append(_scalar(field, draw))
    elif action == "add":
        held.add()
    else:
        return False
    return True


def _scalar(field: FieldDescriptor, draw: random.Random) -> Any:
    if field.type in INTEGERS:
        low, high = INTEGERS[field.type]
        return max(low, min(high, draw.choice(NUMBERS)))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return draw.choice([number.number for number in field.enum_type.values])
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return draw.choice(REALS)
    if field.type == FieldDescriptor.TYPE_STRING:
        return draw.choice(TEXTS)
    return draw.randbytes(draw.choice((0, 1, 4, 16, 64)))


# ---------------------------------------------------------------- what a graph is made of


def rename_tensor(content: bytes, draw: random.Random) -> bytes:
    """Let a node read or compute another name: one that nothing provides, one that exists twice, or its own result."""
    model = onnx.ModelProto.FromString(content)
    graph = _graph(model, draw)
    node = draw.choice(graph.node)
    names = draw.choice([each for each in (node.input, node.output) if len(each)])
    known = [name for each in graph.node for name in (*each.input, *each.output)]
    names[draw.randrange(len(names))] = draw.choice([*TEXTS, *known])
    return model.SerializeToString()


def change_operator(content: bytes, draw: random.Random) -> bytes:
    model = onnx.ModelProto.FromString(content)
    node = draw.choice(_graph(model, draw).node)
    node.op_type = draw.choice([*_operators(), "Nosuch", "", "If", "Loop", "Relu"])
    if draw.random() < 0.1:
        node.domain = draw.choice(("", "com.microsoft", "ai.onnx.ml", "local", "evil"))
    return model.SerializeToString()


def change_attribute(content: bytes, draw: random.Random) -> bytes:
    model = onnx.ModelProto.FromString(content)
    node = draw.choice(_graph(model, draw).node)
    name = draw.choice([each.name for each in node.attribute] or ["axis", "group", "to", "perm", "kernel_shape"])
    kept = [each for each in node.attribute if each.name != name]
    number = draw.choice(NUMBERS)
    changed = draw.choice((number, [number] * draw.randrange(1, 5), draw.choice(REALS), draw.choice(TEXTS), [draw.choice(REALS)]))
    del node.attribute[:]
    node.attribute.extend([*kept, h.make_attribute(name, changed)])
    return model.SerializeToString()


def change_shape(content: bytes, draw: random.Random) -> bytes:
    """Give an input, output or weight another shape: huge, negative, of no or of high rank."""
    model = onnx.ModelProto.FromString(content)
    graph = model.graph
    if draw.random() < 0.4 and len(graph.initializer):
        tensor = draw.choice(graph.initializer)
        del tensor.dims[:]
        tensor.dims.extend(draw.choice(NUMBERS) for _ in range(draw.choice((0, 1, 2, 4, 70))))
        return model.SerializeToString()
    described = draw.choice([*graph.input, *graph.output, *graph.value_info])
    shape = described.type.tensor_type.shape
    if draw.random() < 0.5 and len(shape.dim):
        shape.dim[draw.randrange(len(shape.dim))].dim_value = draw.choice(NUMBERS)
        return model.SerializeToString()
    del shape.dim[:]
    for _ in range(draw.choice((0, 1, 2, 4, 65))):
        dim = shape.dim.add()
        if draw.random() < 0.3:
            dim.dim_param = draw.choice(TEXTS)
        else:
            dim.dim_value = draw.choice(NUMBERS)
    return model.SerializeToString()


def change_type(content: bytes, draw: random.Random) -> bytes:
    model = onnx.ModelProto.FromString(content)
    graph = model.graph
    if draw.random() < 0.5 and len(graph.initializer):
        draw.choice(graph.initializer).data_type = draw.choice((*T.DataType.values(), 99, -1))
    else:
        described = draw.choice([*graph.input, *graph.output])
        if draw.random() < 0.3:
            described.ClearField("type")
        else:
            described.type.tensor_type.elem_type = draw.choice((*T.DataType.values(), 99, -1))
    return model.SerializeToString()


def change_numbers(content: bytes, draw: random.Random) -> bytes:
    """Replace the numbers of a small constant, such as a shape, a scale or a repeat count."""
    from onnx import numpy_helper

    model = onnx.ModelProto.FromString(content)
    small = [each for each in model.graph.initializer if len(each.raw_data) <= 64 and each.data_location != T.EXTERNAL]
    tensor = draw.choice(small)
    array = numpy_helper.to_array(tensor).copy()
    choices = NUMBERS if array.dtype.kind in "iu" else REALS
    with_limits = [number for number in choices if array.dtype.kind not in "iu" or -(2**62) < number < 2**63]
    array[...] = draw.choice(with_limits) if array.dtype.itemsize == 8 or array.dtype.kind == "f" else draw.randrange(100)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model.SerializeToString()


def change_versions(content: bytes, draw: random.Random) -> bytes:
    model = onnx.ModelProto.FromString(content)
    model.opset_import[0].version = draw.choice((-1, 0, 1, 5, 6, 7, 9, 11, 13, 17, 21, 23, 26, 99, 2**62))
    if draw.random() < 0.3:
        model.ir_version = draw.choice((0, 1, 3, 4, 11, 99, -1))
    return model.SerializeToString()


def make_external(content: bytes, draw: random.Random) -> bytes:
    """Let a weight lie in another file: outside the folder, a device, or past the end."""
    model = onnx.ModelProto.FromString(content)
    tensor = draw.choice(model.graph.initializer)
    tensor.data_location = T.EXTERNAL
    places = ("../secret.bin", "/etc/passwd", "/dev/zero", "m.onnx", ".", "", "x/../../y", "a\0b", "weights.bin", "nosuch.bin")
    entries = {"location": draw.choice(places)}
    entries |= {key: str(draw.choice((*NUMBERS, "x", "1e9"))) for key in ("offset", "length") if draw.random() < 0.5}
    del tensor.external_data[:]
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    return model.SerializeToString()


def _graph(model: onnx.ModelProto, draw: random.Random) -> Any:
    """Return the graph, the body of a function, or a graph in a node; each has nodes."""
    found = [model.graph, *model.functions]
    found += [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]
    return draw.choice([each for each in found if len(each.node)] or [model.graph])


@cache
def _operators() -> tuple[str, ...]:
    return tuple(sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}))


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bytes,
    flip_bytes,
    cut,
    splice,
    mutate_field,
    mutate_field,
    mutate_field,
    mutate_field,
    rename_tensor,
    rename_tensor,
    change_operator,
    change_attribute,
    change_attribute,
    change_shape,
    change_type,
    change_numbers,
    change_versions,
    make_external,
)
