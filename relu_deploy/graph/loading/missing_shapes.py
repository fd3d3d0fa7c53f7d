"""Give a shape to graph inputs that are recorded without one, as some converters write them, from the operators that read them.

The number of dimensions and the sizes that a weight fixes, such as the channels of a convolution, follow from the first operator
that needs them. All other dimensions may vary. An input that no operator tells anything about is left as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from relu_deploy.graph.domains import is_standard

if TYPE_CHECKING:
    import onnx

__all__ = ["add_missing_shapes"]

#: operators whose result has the shape of their first input, if the others are constants that are broadcast to it
SHAPE_KEEPING = frozenset(
    [
        *(
            "Abs",
            "Add",
            "BatchNormalization",
            "Cast",
            "Clip",
            "Div",
            "Dropout",
            "Elu",
            "Exp",
            "HardSigmoid",
            "Identity",
            "LeakyRelu",
        ),
        *("Log", "Mul", "Neg", "Pow", "PRelu", "QuantizeLinear", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh"),
    ]
)
POOLING = frozenset(("AveragePool", "LpPool", "MaxPool"))
RECURRENT = frozenset(("GRU", "LSTM", "RNN"))
#: operators of `ai.onnx.ml` that take rows of numbers
OF_ROWS = frozenset(
    [
        *("LinearClassifier", "LinearRegressor", "Normalizer", "SVMClassifier", "SVMRegressor", "Scaler", "TreeEnsemble"),
        *("TreeEnsembleClassifier", "TreeEnsembleRegressor"),
    ]
)

#: the size of each dimension, None where it varies
Sizes = Sequence[int | None]
#: a node, and the position at which it reads a tensor
Reader = tuple["onnx.NodeProto", int]
#: the most inputs whose shapes are looked for: each may take a walk through the whole graph
MOST = 16


def add_missing_shapes(graph: onnx.GraphProto) -> list[str]:
    """Give a shape to the inputs of `graph` that have none, in place. Return a note for each. More than `MOST` are left as they are."""
    missing = [value for value in graph.input if value.type.WhichOneof("value") == "tensor_type"]
    missing = [value for value in missing if not value.type.tensor_type.HasField("shape")]
    if not 0 < len(missing) <= MOST:
        return []
    constants, readers = dict(_constants(graph)), _readers(graph)
    notes = []
    for value in missing:
        found = None if value.name in constants else _shape_of(value.name, graph, constants, readers)
        if found is None:
            continue
        sizes, reader = found
        value.type.tensor_type.shape.SetInParent()
        for size in sizes:
            dim = value.type.tensor_type.shape.dim.add()
            # Sizes that no runtime takes are refused where they are recorded.
            if size is not None and 0 < size < 2**31:
                dim.dim_value = size
        notes.append(f"the input {value.name} has no shape, and gets the {len(sizes)} dimensions that {reader} needs")
    return notes


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and the sizes of each constant of `graph`."""
    for tensor in graph.initializer:
        yield tensor.name, list(tensor.dims)
    for node in graph.node:
        if node.op_type == "Constant" and is_standard(node):
            yield from ((node.output[0], list(attribute.t.dims)) for attribute in node.attribute if attribute.HasField("t"))


def _shape_of(
    name: str, graph: onnx.GraphProto, constants: Mapping[str, list[int]], readers: Mapping[str, Sequence[Reader]]
) -> tuple[Sizes, str] | None:
    """Return the shape of the input `name`, and what it follows from; None if nothing is known."""
    declared = {value.name: value.type.tensor_type for value in graph.output}
    waiting, seen = deque([name]), {name}
    weak: tuple[Sizes, str] | None = None
    while waiting:
        current = waiting.popleft()
        if current in declared and declared[current].HasField("shape"):
            dims = declared[current].shape.dim
            return [dim.dim_value if dim.dim_value > 0 else None for dim in dims], f"the output {current}"
        for node, position in readers.get(current, ()):
            called = f"{node.op_type} {node.name or node.output[0]!r}"
            if (sizes := _needed(node, position, constants)) is not None:
                return sizes, called
            if weak is None and node.op_type == "MatMul" and position == 0 and len(constants.get(node.input[1], ())) == 2:
                # More dimensions in front would fit as well.
                weak = [None, constants[node.input[1]][0]], called
            others = [other for place, other in enumerate(node.input) if place != position and other]
            keeps = node.op_type in SHAPE_KEEPING and all(other in constants for other in others)
            for result in node.output[:1] if keeps else ():
                if result not in seen:
                    seen.add(result)
                    waiting.append(result)
    return weak


def _readers(graph: onnx.GraphProto) -> dict[str, list[Reader]]:
    """Return the nodes that read each tensor, with the position at which they do."""
    found: dict[str, list[Reader]] = {}
    for node in graph.node:
        for position, read in enumerate(node.input):
            found.setdefault(read, []).append((node, position))
    return found


def _needed(node: onnx.NodeProto, position: int, constants: Mapping[str, list[int]]) -> Sizes | None:
    """Return the shape that `node` needs at the input `position`, None where it accepts several numbers of dimensions."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.domain == "ai.onnx.ml":
        return [None, None] if node.op_type in OF_ROWS else None
    if not is_standard(node):
        return None
    if node.op_type == "Transpose" and "perm" in attributes:
        return [None] * len(attributes["perm"].ints)
    if position:
        return None
    weight = constants.get(node.input[1]) if len(node.input) > 1 else None
    if node.op_type in ("Conv", "ConvTranspose") and weight:
        group = attributes["group"].i if "group" in attributes else 1
        if len(weight) < 3:
            return None
        channels = weight[1] * group if node.op_type == "Conv" else weight[0]
        return [None, channels] + [None] * (len(weight) - 2)
    if node.op_type == "Gemm":
        transposed = {name: name in attributes and attributes[name].i == 1 for name in ("transA", "transB")}
        features = weight[1 if transposed["transB"] else 0] if weight and len(weight) == 2 else None
        return [features, None] if transposed["transA"] else [None, features]
    if node.op_type in RECURRENT:
        return [None, None, weight[2] if weight and len(weight) == 3 else None]
    if node.op_type in POOLING and "kernel_shape" in attributes:
        return [None] * (len(attributes["kernel_shape"].ints) + 2)
    if node.op_type in ("DepthToSpace", "SpaceToDepth"):
        return [None] * 4
    return None
