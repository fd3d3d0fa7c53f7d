"""Count the cost of a graph: floating-point operations, bytes moved, parameters.

    Conv, ConvTranspose   2 * outputs * (inputs per output)      multiply and add count as two
    Gemm, MatMul          2 * rows * columns * depth
    everything else       one operation per output element; copies and shape arithmetic none

`bytes` is what must be moved when every node reads its inputs and writes its outputs once: an upper bound that fusion
lowers. `compulsory` is what no fusion saves: weights, the graph's inputs and its outputs, each once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from relu_deploy.graph.bodies import bodies_of, iterate_nodes
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.graph.multiply_adds import multiply_adds
from relu_deploy.graph.shapes.batching import input_batch_axes
from relu_deploy.graph.shapes.shape_inference import infer_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Cost", "CostCounter", "count_cost", "sized_graph"]

FREE = frozenset(
    [
        "Constant",
        "ConstantOfShape",
        "Identity",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Shape",
        "Size",
        "Cast",
        "Concat",
        "Slice",
        "Split",
        "Gather",
        "Expand",
        "Pad",
        "Dropout",
        "Range",
        "Tile",
    ]
)


@dataclass(frozen=True)
class Cost:
    """The cost of one run of a graph.

    Attributes:
        flops: Floating-point operations at `batch`.
        bytes: Bytes moved, unfused.
        parameters: Elements of all constants: initializers and Constant nodes, also inside bodies.
        batch: Rows.
        unknown: Nodes whose sizes are not known, which count as nothing.
        compulsory: Bytes of weights, inputs and outputs.
        symbols: Names of the dimensions, other than the batch, on which the unknown sizes depend.
    """

    flops: int
    bytes: int
    parameters: int
    batch: int
    unknown: tuple[str, ...]
    compulsory: int = 0
    symbols: tuple[str, ...] = ()


def count_cost(model: ir.Model, batch: int = 1) -> Cost:
    """Return the cost of one run of `model` with its batch set to `batch`.

    The branch of an If that costs most counts. A Loop or Scan body counts once for each iteration where the graph fixes
    their number; otherwise it counts as unknown.
    """
    sized, counter = sized_graph(model, batch)
    names = counter.batch_names
    flops, moved = counter.graph(sized.graph)
    tensors = _constants(model)
    parameters = sum(int(tensor.size) for tensor in tensors)
    ends = sum(counter.nbytes(value) for value in (*sized.graph.inputs, *sized.graph.outputs))
    compulsory = ends + sum(_tensor_bytes(tensor) for tensor in tensors)
    varying = {
        _name(value, axis)
        for value in model.graph.inputs
        for axis, dim in enumerate(value.shape or ())
        if not isinstance(dim, int)
    }
    symbols = tuple(sorted(str(name) for name in varying - names)) if counter.unknown else ()
    return Cost(flops, moved, parameters, batch, tuple(counter.unknown), compulsory, symbols)


def sized_graph(model: ir.Model, batch: int = 1) -> tuple[ir.Model, CostCounter]:
    """Return `model` with all sizes that can be inferred for a batch size, and what counts the cost of its nodes."""
    axes = input_batch_axes(model)
    names = {_name(value, axes[str(value.name)]) for value in model.graph.inputs if axes.get(str(value.name)) is not None}
    sized = model if _is_sized(model, names) else _with_batch(model, axes, batch)
    return sized, CostCounter(batch, names)


def _name(value: ir.Value, axis: int | None) -> str | None:
    """Return the name of a varying dimension, None for a fixed one."""
    if axis is None or value.shape is None or axis >= len(value.shape):
        return None
    dim = value.shape[axis]
    return None if isinstance(dim, int) else str(dim.value or f"{value.name}_{axis}")


def _is_sized(model: ir.Model, names: set[str | None]) -> bool:
    """Return whether all sizes are recorded, and vary with the batch only."""
    return all(
        value.shape is not None and all(isinstance(dim, int) or dim.value in names for dim in value.shape)
        for node, _ in iterate_nodes(model)
        for value in node.outputs
        if value.name
    )


def _with_batch(model: ir.Model, axes: Mapping[str, int | None], batch: int) -> ir.Model:
    """Return a copy of `model` with its batch fixed and all shapes inferred again."""
    import onnx_ir as ir

    sized = model.clone()
    for value in sized.graph.inputs:
        axis = axes.get(str(value.name))
        if axis is not None and value.shape is not None and not isinstance(value.shape[axis], int):
            value.shape = ir.Shape([batch if index == axis else dim for index, dim in enumerate(value.shape)])
    for node, _ in iterate_nodes(sized):
        for value in node.outputs:
            value.shape = None
    try:
        infer_shapes(sized)
    except Exception:  # onnx refuses the graph: sizes stay unknown
        return sized
    return sized


def _constants(model: ir.Model) -> list[ir.TensorProtocol]:
    import onnx_ir as ir

    graphs = [model.graph, *(graph for node, _ in iterate_nodes(model) for _, graph in bodies_of(node))]
    tensors = [value.const_value for graph in graphs for value in graph.initializers.values() if value.const_value is not None]
    for node, _ in iterate_nodes(model):
        if node.op_type == "Constant":
            tensors += [each.as_tensor() for each in node.attributes.values() if each.type == ir.AttributeType.TENSOR]
    return tensors


def _tensor_bytes(tensor: ir.TensorProtocol) -> int:
    return _bytes_of(int(tensor.size), tensor.dtype)


def _bytes_of(elements: int, dtype: ir.DataType | None) -> int:
    """Return the bytes of `elements` numbers; strings have no fixed size and count as none."""
    try:
        return 0 if dtype is None else -(-elements * int(dtype.bitwidth) // 8)
    except TypeError:
        return 0


@dataclass
class CostCounter:
    """Counts the cost of nodes.

    Attributes:
        batch: Rows.
        batch_names: Names of the batch dimension.
        unknown: Names of the nodes that were not counted.
    """

    batch: int
    batch_names: set[str | None]
    unknown: list[str] = field(default_factory=list)

    def graph(self, graph: ir.Graph) -> tuple[int, int]:
        """Return operations and bytes moved of the nodes of `graph` and of the bodies inside it."""
        flops = moved = 0
        for node in graph:
            operations, size = self.node(node)
            flops += operations
            moved += size
        return flops, moved

    def node(self, node: ir.Node) -> tuple[int, int]:
        """Return operations and bytes moved of `node` and of the bodies inside it."""
        if node.op_type in ("Constant", "ConstantOfShape"):
            return 0, 0
        bodies = [self.graph(body) for _, body in bodies_of(node)]
        if bodies:
            times = self.iterations(node)
            if times is None:
                self.unknown.append(str(node.name))
                return 0, 0
            return times * max(each[0] for each in bodies), times * max(each[1] for each in bodies)
        values = [value for value in (*node.outputs, *node.inputs) if value is not None and value.name]
        if any(self.shape(value) is None for value in values):
            self.unknown.append(str(node.name))
            return 0, 0
        return self.flops(node), sum(self.nbytes(value) for value in values)

    def iterations(self, node: ir.Node) -> int | None:
        """Return how often the body of `node` runs, None where that is not known."""
        if node.op_type == "If":
            return 1
        if node.op_type == "Loop":
            count = constant_of(node.inputs[0])
            return None if count is None or node.inputs[0] is None or count.size != 1 else max(0, int(count.reshape(-1)[0]))
        if node.op_type == "Scan" and node.inputs:
            axes = node.attributes.get("scan_input_axes")
            shape = None if node.inputs[-1] is None else self.shape(node.inputs[-1])
            return None if shape is None or not shape else shape[int(axes.as_ints()[-1]) if axes else 0]
        return None

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        if value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        if value.shape is None or any(not isinstance(dim, int) and dim.value not in self.batch_names for dim in value.shape):
            return None
        return tuple(dim if isinstance(dim, int) else self.batch for dim in value.shape)

    def nbytes(self, value: ir.Value) -> int:
        shape = self.shape(value)
        return 0 if shape is None else _bytes_of(prod(shape), value.dtype)

    def flops(self, node: ir.Node) -> int:
        sizes = [() if value is None else self.shape(value) or () for value in node.inputs]
        return _flops(node, prod(self.shape(node.outputs[0]) or ()), sizes)


def _flops(node: ir.Node, elements: int, sizes: Sequence[tuple[int, ...]]) -> int:
    """Return the operations of one node. elements: of its first output. sizes: shapes of its inputs."""
    if node.op_type in FREE:
        return 0
    transposed = node.op_type == "Gemm" and "transA" in node.attributes and node.attributes["transA"].as_int() == 1
    if (products := multiply_adds(node.op_type, elements, sizes, transposed)) is not None:
        return 2 * products
    if node.op_type in ("MaxPool", "AveragePool") and "kernel_shape" in node.attributes:
        return int(elements * prod(node.attributes["kernel_shape"].as_ints()))
    if node.op_type.startswith(("Reduce", "Global")):
        return prod(sizes[0])
    return elements
