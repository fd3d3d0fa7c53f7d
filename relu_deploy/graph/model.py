"""Load, check and save ONNX graphs, with actionable errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError
from relu_deploy.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "io_specs",
    "load_model",
    "load_normalized_model",
    "name_nodes",
    "normalize_model",
    "opset_of",
    "save_model",
    "to_bytes",
]

#: protobuf cannot hold a message above 2 GiB; graph and attributes need a little room beside the weights
SINGLE_FILE_LIMIT = 2**31 - 2**24


def load_model(path: Path) -> ir.Model:
    """Return the graph in the file `path`, sorted and with every node named. Weights in external files are mapped, not read.

    Raises InputError when the file is not a whole ONNX graph.
    """
    import onnx_ir as ir

    not_onnx = f"{path} is not an ONNX model, or is cut short"
    hint = "check that the file was copied whole: onnx.checker.check_model(path) should pass"
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty", hint)
        model = ir.load(path)
        # Some converters append their casts at the end; runtimes sort for themselves, readers of a graph may not.
        model.graph.sort()
        name_nodes(model)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", "check the path and its permissions") from error
    except Exception as error:  # protobuf and onnx_ir raise a dozen types for bytes that are not a graph
        raise InputError(not_onnx, hint) from error
    if len(model.graph) == 0 and not model.graph.outputs:
        raise InputError(not_onnx, hint)
    return model


def load_normalized_model(path: Path) -> ir.Model:
    """Return the graph in `path` as `normalize_model` leaves it. Raises InputError when the checker or shape inference refuses it."""
    return normalize_model(load_model(path), str(path))


def normalize_model(model: ir.Model, where: str) -> ir.Model:
    """Return `model` checked, with shapes inferred and every node named: what a bundle's model.onnx is.

    Initializers that old files also list as inputs are no longer inputs: nobody feeds weights by hand. where: what to
    call the model in an error. Raises InputError when the ONNX checker or shape inference refuses it.
    """
    from onnx_ir.passes.common import CheckerPass, ShapeInferencePass

    # Both see the graph without its large weights, so that one above protobuf's 2 GiB is checked like any other.
    with _as_input_error(where):
        CheckerPass(full_check=True)(model)
    model = ShapeInferencePass()(model).model
    initializers = set(model.graph.initializers)
    for value in [value for value in model.graph.inputs if value.name in initializers]:
        model.graph.inputs.remove(value)
    outputs = {value.name for value in model.graph.outputs}
    for name in [name for name, value in model.graph.initializers.items() if not value.uses() and name not in outputs]:
        # ONNX Runtime refuses a weight that nothing reads and that is no input any more.
        del model.graph.initializers[name]
    name_nodes(model)
    return model


@contextmanager
def _as_input_error(where: str) -> Iterator[None]:
    import onnx

    hint = "repair the graph where it was made"
    try:
        yield
    except onnx.checker.ValidationError as error:
        raise InputError(f"{where} is not a valid ONNX graph: {_first_line(error)}", hint) from error
    except onnx.shape_inference.InferenceError as error:
        raise InputError(f"{where}: shapes do not fit: {_first_line(error)}", hint) from error


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
    ir.save(model if external else _with_own_weights(model), path, external_data=external)


def to_bytes(model: ir.Model) -> bytes:
    """Return the serialized graph. Raises InputError when it is too large for one message."""
    import onnx_ir as ir

    if _weights_bytes(model) >= SINGLE_FILE_LIMIT:
        raise InputError("the graph's weights exceed 2 GiB and cannot be held in one message", "use the file itself")
    return bytes(ir.to_proto(_with_own_weights(model)).SerializeToString())


def _with_own_weights(model: ir.Model) -> ir.Model:
    """Read the weights in external files into `model`: another folder's graph must not depend on those files."""
    import onnx_ir as ir

    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=value.name, dtype=value.const_value.dtype)
    return model


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


def _spec(value: ir.Value, role: str) -> TensorSpec:
    if value.dtype is None or (value.shape is None and role == "input"):
        raise InputError(f"the graph's {role} {value.name!r} has no type or shape", "export the model with typed inputs")
    dims = [] if value.shape is None else list(value.shape)
    shape = tuple(dim if isinstance(dim, int) else str(dim.value or f"{value.name}_{axis}") for axis, dim in enumerate(dims))
    return TensorSpec(str(value.name), value.dtype.numpy().name, shape)


def _weights_bytes(model: ir.Model) -> int:
    values = [value.const_value for value in model.graph.initializers.values()]
    return sum(int(tensor.nbytes) for tensor in values if tensor is not None)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
