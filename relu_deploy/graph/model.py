"""Load, check and save ONNX graphs, with actionable errors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import InputError
from relu_deploy.gc_pause import without_collecting
from relu_deploy.graph.bodies import iterate_nodes, name_bodies
from relu_deploy.graph.loading.external_data import check_external_data
from relu_deploy.graph.loading.inline import inline_functions
from relu_deploy.graph.loading.missing_shapes import add_missing_shapes
from relu_deploy.graph.loading.order import sort_nodes
from relu_deploy.graph.loading.repairs import irregularities_of, repair_lists
from relu_deploy.graph.loading.resources import check_resources, memory_limit
from relu_deploy.graph.loading.sparse import expand_sparse_initializers
from relu_deploy.graph.loading.structure import check_structure
from relu_deploy.graph.shapes.dimensions import normalize_dimensions
from relu_deploy.graph.shapes.input_ranks import settle_input_ranks
from relu_deploy.graph.shapes.shape_inference import infer_shapes
from relu_deploy.graph.shared_models import shared_model
from relu_deploy.graph.weights import to_proto_without_weights, to_whole_proto
from relu_deploy.run_limit import runs_are_limited
from relu_deploy.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = [
    "forget_unsupported_types",
    "io_specs",
    "load_model",
    "load_normalized_model",
    "name_nodes",
    "normalize_model",
    "opset_of",
    "read_model",
    "save_model",
    "to_bytes",
    "to_one_proto",
]

NOT_WHOLE = "check that the file was copied whole: onnx.checker.check_model(path) should pass"
#: protobuf cannot hold a message above 2 GiB; graph and attributes need a little room beside the weights
SINGLE_FILE_LIMIT = 2**31 - 2**24
#: the first version of the format in which initializers need not be inputs
FREE_INITIALIZERS = 4
#: path, time, size and limits of the files whose tensors were found to be small enough
_affordable: set[tuple[str, int, int, int, bool]] = set()


@without_collecting()
def load_model(path: Path) -> ir.Model:
    """Load and check the ONNX file `path`.

    Local functions are inlined, dimensions of unknown size have names, nodes are sorted and uniquely named, also inside bodies.
    Weights in external files are mapped into memory, not read.

    Args:
        path: The file. External weights must lie in its folder.

    Returns:
        The graph. Its `meta["notes"]` lists what was repaired, one sentence each.

    Raises:
        InputError: If the file is not a valid ONNX model, its weights are missing or outside its folder, or one of its tensors
            is too large for this machine (see `resources`).
    """
    model = read_model(path)
    try:
        copy = model.clone()
    except Exception as error:  # onnx_ir raises a dozen types for graphs that break its invariants
        raise _invalid(path, error) from error
    copy.meta.update(model.meta)
    return copy


def read_model(path: Path) -> ir.Model:
    """Return what `load_model` does, shared with other callers: it must not be changed.

    Copying takes as long as everything else for graphs of many nodes.

    Raises:
        InputError: As `load_model`.
    """
    return shared_model(path, _load).model


@without_collecting()
def _load(path: Path) -> tuple[ir.Model, bool]:
    """Return the checked model in the file `path`, and whether its weights are in other files."""
    import onnx_ir as ir

    proto = _read(path)
    where = str(path)
    notes = repair_lists(proto)
    check_structure(proto, where)
    is_external = check_external_data(proto, path)
    notes += irregularities_of(proto)
    inline_functions(proto, where)
    sort_nodes(proto.graph)
    _check_resources_once(proto, path)
    expand_sparse_initializers(proto.graph)
    notes += add_missing_shapes(proto.graph)
    normalize_dimensions(proto.graph)
    # The checker requires a name, runtimes do not.
    proto.graph.name = proto.graph.name or "graph"
    notes += forget_unsupported_types(proto.graph)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises a dozen types for contents that it does not support
        raise InputError(f"{path} cannot be read: {_first_line(error)}", NOT_WHOLE) from error
    if is_external:
        _map_external_weights(model, path.resolve().parent)
    model.meta["notes"] = notes
    try:
        name_nodes(model)
        has_bodies = any(path for _, path in iterate_nodes(model))
        if has_bodies:
            name_bodies(model)
        # Files rarely record the types of tensors inside bodies, and exposing a tensor needs its type.
        if has_bodies or any(value.shape is None for value in model.graph.outputs):
            infer_shapes(model)
            # What cannot be copied cannot be changed either. The links of a graph without bodies were checked.
            model.clone()
        settle_input_ranks(model)
    except Exception as error:  # onnx_ir raises a dozen types for graphs that break its invariants
        raise _invalid(path, error) from error
    return model, is_external


def _invalid(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is not a valid ONNX model: {_first_line(error)}", NOT_WHOLE)


def _read(path: Path) -> onnx.ModelProto:
    """Return the parsed file. Raises InputError when it cannot be read or is no ONNX model."""
    import onnx

    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty", NOT_WHOLE)
        if not path.is_file():
            raise InputError(f"{path} is not an ordinary file", "give an ONNX file or a bundle")
        return onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", "check the path and its permissions") from error
    except Exception as error:  # protobuf raises several types for bytes that are not a message
        raise InputError(f"{path} is not an ONNX model, or is cut short", NOT_WHOLE) from error


def _check_resources_once(proto: onnx.ModelProto, path: Path) -> None:
    """Check the sizes of the tensors of `proto`, which infers its shapes, the first time that the file is loaded."""
    status = path.stat()
    key = str(path.resolve()), status.st_mtime_ns, status.st_size, memory_limit(), runs_are_limited()
    if key not in _affordable:
        check_resources(proto, str(path))
        _affordable.add(key)


def _map_external_weights(model: ir.Model, folder: Path) -> None:
    """Replace the weights in external files by arrays that are mapped from them, in place."""
    import onnx_ir as ir
    from onnx_ir.external_data import set_base_dir

    set_base_dir(model.graph, folder)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _mapped(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, _mapped(attribute.value))


def _mapped(tensor: ir.ExternalTensor) -> ir.Tensor[Any]:
    import onnx_ir as ir

    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def forget_unsupported_types(graph: onnx.GraphProto) -> list[str]:
    """Remove the types that onnx_ir cannot represent (maps), in place. Return a note for each output without a type."""
    notes = []
    for values in (graph.input, graph.output, graph.value_info):
        for value in values:
            kind = value.type
            if kind.WhichOneof("value") == "tensor_type" and kind.tensor_type.elem_type == 0:
                # Recorded without a type: inference may find one.
                value.ClearField("type")
                continue
            while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
                kind = kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind.optional_type.elem_type
            if kind.WhichOneof("value") in ("map_type", "opaque_type"):
                value.ClearField("type")
                notes.append(f"{value.name} is a map, which is not a tensor: it is not compared")
    return notes


def load_normalized_model(path: Path) -> ir.Model:
    """Return the graph in `path` as `normalize_model` leaves it. Raises InputError when the checker or shape inference refuses it."""
    return normalize_model(load_model(path), str(path))


def normalize_model(model: ir.Model, where: str) -> ir.Model:
    """Check `model`, infer its shapes and name its nodes: what a bundle's model.onnx is.

    Initializers that old files also list as inputs are no longer inputs, which needs version 4 of the format, and initializers
    that nothing reads are removed. Recorded shapes that contradict the graph are dropped.

    Args:
        model: The graph, modified in place.
        where: What to call the model in an error.

    Returns:
        `model`. Its `meta["notes"]` lists what was repaired.

    Raises:
        InputError: If the ONNX checker or shape inference refuses the graph.
    """
    model.ir_version = max(model.ir_version, FREE_INITIALIZERS)
    _infer_checked(model, where)
    initializers = set(model.graph.initializers)
    if any(value.name in initializers for value in model.graph.inputs):
        inputs = [value for value in model.graph.inputs if value.name not in initializers]
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs)
    outputs = {value.name for value in model.graph.outputs}
    for name in [name for name, value in model.graph.initializers.items() if not value.uses() and name not in outputs]:
        # ONNX Runtime refuses a weight that nothing reads and that is no input any more.
        del model.graph.initializers[name]
    name_nodes(model)
    return model


def _infer_checked(model: ir.Model, where: str) -> None:
    """Check `model` and infer its shapes, in place. Shapes that it records wrongly are inferred anew, as runtimes do."""
    import onnx

    hint = "repair the graph where it was made"
    # Both see the graph without its large weights, so that one above protobuf's 2 GiB is checked like any other.
    try:
        proto = to_proto_without_weights(model)
        # Maps lost their type on loading, and the checker requires one; it requires a shape as well, which runtimes do not.
        typed = [value for value in proto.graph.output if value.type.WhichOneof("value")]
        if typed:
            for value in (*proto.graph.input, *typed):
                if value.type.WhichOneof("value") == "tensor_type":
                    value.type.tensor_type.shape.SetInParent()
            if len(typed) < len(proto.graph.output):
                kept = [type(value).FromString(value.SerializeToString()) for value in typed]
                del proto.graph.output[:]
                proto.graph.output.extend(kept)
            onnx.checker.check_model(proto, full_check=False)
        infer_shapes(model, strict=True)
    except onnx.checker.ValidationError as error:
        raise InputError(f"{where} is not a valid ONNX graph: {_first_line(error)}", hint) from error
    except onnx.shape_inference.InferenceError as error:
        recorded = [value for node, _ in iterate_nodes(model) for value in node.outputs]
        shapes = [value.shape for value in recorded]
        for value in recorded:
            value.shape = None
        try:
            infer_shapes(model, strict=True)
        except onnx.shape_inference.InferenceError:
            for value, shape in zip(recorded, shapes, strict=True):
                value.shape = shape
            raise InputError(f"{where}: shapes do not fit: {_first_line(error)}", hint) from error
        except Exception as other:  # onnx raises several types for contents that its parser does not expect
            raise InputError(f"{where} is not a valid ONNX graph: {_first_line(other)}", hint) from other
        note = f"recorded shapes contradict the graph and were inferred anew: {_first_line(error)}"
        model.meta["notes"] = [*model.meta.get("notes", ()), note]
    except Exception as error:  # onnx raises several types for contents that its parser does not expect
        raise InputError(f"{where} is not a valid ONNX graph: {_first_line(error)}", hint) from error


def name_nodes(model: ir.Model) -> None:
    """Give every node of the top graph a unique name: its type and position where it has none, else a count added."""
    seen: Counter[str] = Counter()
    for position, node in enumerate(model.graph):
        name = node.name or f"{node.op_type}_{position}"
        seen[name] += 1
        while seen[name] > 1:
            name = f"{name}_{seen[name] - 1}"
            seen[name] += 1
        node.name = name


def save_model(model: ir.Model, path: Path) -> None:
    """Write `model` to `path`: one file, or with the weights beside it (`<name>.data`) above protobuf's 2 GiB."""
    import onnx_ir as ir

    external = f"{path.name}.data" if _weights_bytes(model) >= SINGLE_FILE_LIMIT else None
    ir.save(model, path, external_data=external)


def to_bytes(model: ir.Model) -> bytes:
    """Return the serialized graph. Raises InputError when it is too large for one message."""
    return bytes(to_one_proto(model).SerializeToString())


def to_one_proto(model: ir.Model) -> onnx.ModelProto:
    """Return the graph as one message. Raises InputError when it is too large for that."""
    if _weights_bytes(model) >= SINGLE_FILE_LIMIT:
        raise InputError("the graph's weights exceed 2 GiB and cannot be held in one message", "use the file itself")
    return to_whole_proto(model)


def opset_of(model: ir.Model) -> int:
    """Return the version of the default ONNX operator set that `model` imports."""
    return int(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0)))


def io_specs(model: ir.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the specs of what must be fed (initializers are not) and of what comes out.

    Raises InputError when an input has no type or rank.
    """
    initializers = set(model.graph.initializers)
    inputs = tuple(_spec(value, "input") for value in model.graph.inputs if value.name not in initializers)
    return inputs, tuple(_spec(value, "output") for value in model.graph.outputs)


def _kind(value: ir.Value) -> str:
    """Return the type of a value that is no tensor: "sequence", "optional", or "unknown", which maps are too."""
    import onnx_ir as ir

    if isinstance(value.type, ir.SequenceType):
        return "sequence"
    return "optional" if isinstance(value.type, ir.OptionalType) else "unknown"


def _spec(value: ir.Value, role: str) -> TensorSpec:
    import onnx_ir as ir

    if not isinstance(value.type, ir.TensorType | ir.SparseTensorType) and role == "output":
        return TensorSpec(str(value.name), _kind(value), ())
    if isinstance(value.type, ir.SequenceType | ir.OptionalType):
        raise InputError(
            f"the graph's {role} {value.name!r} is of the type {_kind(value)}, and only tensors can be fed",
            "let the graph take one tensor, or each element as an input of its own",
        )
    if value.dtype is None:
        raise InputError(f"the graph's {role} {value.name!r} has no type", "export the model with typed inputs")
    if value.shape is None and role == "input":
        raise InputError(
            f"the graph's input {value.name!r} has no shape, and its number of dimensions does not follow from the graph",
            f"give one with --shape {value.name}=1x3x224x224 to verify, census, optimize or bench, or write it into a bundle with "
            f"relu-deploy export FILE.onnx --shape {value.name}=1x3x224x224 -o BUNDLE",
        )
    dims = [] if value.shape is None else list(value.shape)
    shape = tuple(dim if isinstance(dim, int) else str(dim.value or f"{value.name}_{axis}") for axis, dim in enumerate(dims))
    return TensorSpec(str(value.name), value.dtype.numpy().name, shape)


def _weights_bytes(model: ir.Model) -> int:
    values = [value.const_value for value in model.graph.initializers.values()]
    return sum(int(tensor.nbytes) for tensor in values if tensor is not None)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
