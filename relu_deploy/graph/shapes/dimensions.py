"""Normalize the dimensions of graph inputs, set them to fixed sizes, and infer the sizes that follow.

Converters write "any size" in several ways: -1, an empty name, "?", "None", or one name for several dimensions that are not
equal. Runtimes accept all of them. Here each dimension of unknown size gets a name of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError, UsageError, nearest
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.propagation import infer_with_values
from relu_deploy.graph.shapes.shape_inference import forget_shapes, infer_shapes
from relu_deploy.graph.weights import to_proto_without_weights

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["infer_sizes", "normalize_dimensions", "set_input_shapes"]

#: names that mean "unknown" and never "equal to another dimension of this name"
UNKNOWN_NAMES = frozenset(["", "?", "-1", "none", "null", "unknown", "unk", "any", "dynamic", "*"])


def normalize_dimensions(graph: onnx.GraphProto) -> None:
    """Rewrite in place the dimensions of unknown size in the inputs, outputs and value_info of `graph`.

    An input's unknown dimension is named `<input>_<axis>`; so is one whose name occurs twice in the same input. Unknown
    dimensions of other tensors lose their name.
    """
    taken = {dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim if not _is_unknown(dim)}
    for value in graph.input:
        names: set[str] = set()
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if _is_unknown(dim) or (dim.dim_param and dim.dim_param in names):
                dim.dim_param = _fresh(f"{value.name}_{axis}", taken)
            names.add(dim.dim_param)
    for value in (*graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if _is_unknown(dim):
                dim.Clear()


def _is_unknown(dim: onnx.TensorShapeProto.Dimension) -> bool:
    if dim.HasField("dim_value"):
        return dim.dim_value < 0
    return dim.dim_param.strip().lower() in UNKNOWN_NAMES


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def set_input_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int | str]]) -> ir.Model:
    """Return a copy of `model` (weights shared) whose inputs have the given shapes, with all other shapes inferred again.

    Args:
        model: The graph. A dimension that shares its name with one that is set gets the same size everywhere.
        shapes: By input name, the whole shape, for instance `(1, 3, 320, 320)`; a dimension that stays has its own name.

    Raises:
        UsageError: If an input does not exist, or a shape has another rank or another size where the graph fixes one.
        InputError: If the graph does not accept these shapes.
    """
    import onnx_ir as ir

    fixed = model.clone()
    inputs = {str(value.name): value for value in fixed.graph.inputs if not value.is_initializer()}
    sizes: dict[str, int | str] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise UsageError(f"there is no input {name!r}", nearest(name, inputs))
        declared = inputs[name].shape
        text = "x".join(map(str, shape))
        fits = declared is None or (
            len(declared) == len(shape)
            and all(not isinstance(dim, int) or dim == size for dim, size in zip(declared, shape, strict=True))
        )
        if not fits:
            raise UsageError(
                f"input {name!r} is {'x'.join(str(dim) for dim in declared or ())}, which {text} does not fit",
                "give a size for each dimension, and keep those that the graph fixes",
            )
        for dim, size in zip(declared or (), shape, strict=False):
            if not isinstance(dim, int) and dim.value is not None and sizes.setdefault(str(dim.value), size) != size:
                raise UsageError(
                    f"the dimension {dim.value!r} cannot be both {sizes[str(dim.value)]} and {size}",
                    f"correct the shape of {name!r}",
                )
        inputs[name].shape = ir.Shape(shape)
    for value in inputs.values():
        if value.shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else sizes.get(str(dim.value), dim.value) for dim in value.shape])
    recorded = {value: value.shape for value in fixed.graph.outputs}
    error = _infer(fixed)
    for value, known in recorded.items():
        if known is not None:
            value.shape = _merged(
                value.shape, [dim if isinstance(dim, int) else sizes.get(str(dim.value), dim.value) for dim in known]
            )
    if error:
        raise InputError(f"the graph does not accept these input shapes: {error}", "give other sizes with --shape")
    return fixed


def _merged(inferred: ir.Shape | None, recorded: Sequence[int | str | None]) -> ir.Shape:
    """Return what is inferred about a shape and, where inference does not reach, what the file records."""
    import onnx_ir as ir

    if inferred is None:
        return ir.Shape(recorded)
    if len(inferred) != len(recorded):
        return inferred
    return ir.Shape([dim if isinstance(dim, int) else known for dim, known in zip(inferred, recorded, strict=True)])


def infer_sizes(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> dict[str, list[int | None]] | None:
    """Return the sizes of the outputs of `model` for inputs of the given shapes.

    Args:
        model: The graph; it is not modified.
        shapes: By input name, the whole shape.

    Returns:
        By output name, its sizes, None for each that inference cannot tell; None in all where the shapes do not fit the graph.
        Outputs of unknown rank are absent.
    """
    try:
        proto = to_proto_without_weights(model)
        forget_shapes(proto.graph)
        for value in proto.graph.input:
            if value.name in shapes:
                for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
                    dim.dim_value = size
        inferred = infer_with_values(proto, strict_mode=True)
    except Exception:  # onnx raises InferenceError, and other types for graphs that it cannot serialize
        return None
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in inferred.graph.output
        if value.type.tensor_type.HasField("shape")
    }


def _infer(model: ir.Model) -> str:
    """Infer all shapes of `model` anew from its inputs, in place. Return the error where they do not fit, else ""."""
    for node, _ in iterate_nodes(model):
        for value in node.outputs:
            value.shape = None
    try:
        infer_shapes(model, strict=True)
    except Exception as error:  # onnx raises InferenceError, and other types for graphs that it cannot serialize
        return str(error).strip().splitlines()[0]
    return ""
