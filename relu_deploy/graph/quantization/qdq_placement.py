"""Choose which tensors of a graph are quantized to 8 bits, following the rules of each target's kernels.

Rules for `cpu` (ONNX Runtime's kernels take 8 bits in and give 8 bits out):

1. A Conv, Gemm or MatMul with constant weights reads its input quantized and its result is quantized, after the Relu that
   reads nothing else; the last ones may give float to the outputs of the graph (a Gemm or MatMul does, a Conv cannot).
2. An Add, a pool, a Concat or a nearest Resize joins when all that it reads comes from such nodes.
3. A result that the body of an If, Loop or Scan reads stays float: ONNX Runtime 1.32 aborts the process when it moves a
   DequantizeLinear to where a body reads its result.

Rules for `openvino` (the patterns that its low-precision passes turn into 8-bit kernels): 1 to 3, except that

4. any node with weights may give float: what no other quantized node reads is not quantized.

Rules for `tensorrt` (after NVIDIA's explicit-quantization guide and ModelOpt's placement):

5. A Conv, Gemm or MatMul with constant weights reads its input quantized. Nothing follows it: Conv,
   Add and Relu, then the next reader's quantization, are one kernel.
6. At a residual Add the branch that is not computed by the Conv before it is quantized as well.
7. Layers that 8 bits make slower keep their precision: few channels, a ConvTranspose, and for float8 grouped or very large kernels.

For all: tensors that a pool, a Resize or a Reshape links together have one scale, since these nodes only move numbers, and except
for `cpu` those that a Concat joins, where their ranges are alike. A node belongs to the segment of the first Relu behind it;
segments are the unit that is returned to float.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.graph.relus import find_relus

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["QdqPlacement", "place_qdq", "segments_of"]

#: operators with weights, and those that a CPU's 8-bit kernels take along
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CPU_JOINING = ("Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool", "Resize")
#: operators that only move numbers: what they read and what they give may have one scale
MOVING = ("Flatten", "MaxPool", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze")
#: operators that ONNX Runtime moves a DequantizeLinear past, beside `MOVING`
PASSED = (*MOVING, "Identity", "Slice")
#: most weights of one filter for which float8 kernels exist, and fewest channels that fill an 8-bit kernel
FLOAT8_AREA, CHANNELS = 32, 16


@dataclass(frozen=True)
class QdqPlacement:
    """What is quantized. nodes: quantized node → its segment. reads: (node, input) pairs that are fed quantized numbers.

    results: tensors of which every reader gets the quantized numbers. moved: sets of tensors that hold the same numbers, and
    have one scale. joined: for each Concat the tensors that it reads and gives, which have one scale where their ranges are
    alike (see `shared_scales`). refused: weighted nodes that stay float, with the reason.
    """

    nodes: Mapping[str, str]
    reads: frozenset[tuple[str, int]]
    results: frozenset[str]
    moved: Sequence[frozenset[str]]
    joined: Sequence[frozenset[str]]
    refused: Mapping[str, str]

    @property
    def segments(self) -> list[str]:
        """Return the segments that have quantized nodes, in the graph's order."""
        return list(dict.fromkeys(self.nodes.values()))


def place_qdq(
    model: ir.Model, target: str, precision: str = "int8", off: Collection[str] = (), excluded: Collection[str] = ()
) -> QdqPlacement:
    """Return what `target` quantizes of `model`, whose batch norms are folded.

    target: "cpu", "openvino" or "tensorrt". precision: "int8" or "float8". off: segments that stay float. excluded: nodes that do.
    """
    segments = segments_of(model)
    kept = {name for name, segment in segments.items() if segment in off} | set(excluded)
    refused: dict[str, str] = {}
    if target in ("cpu", "openvino"):
        nodes, reads, results = _place_cpu(model, kept, refused)
        if target == "openvino":
            made = {str(value.name): value for node in model.graph for value in node.outputs}
            results = {name for name in results if _is_read_quantized(made[name], reads)}
    else:
        nodes, reads = _place_tensorrt(model, precision, kept, refused)
        results = set()
    refused = {name: why for name, why in refused.items() if name not in excluded}
    names = {str(node.name): segments[str(node.name)] for node in nodes}
    return QdqPlacement(names, frozenset(reads), frozenset(results), _moved(model), _joined(model, target), refused)


def segments_of(model: ir.Model) -> dict[str, str]:
    """Return for each node the first Relu that it leads to; one that leads to none is a segment by itself."""
    order = {relu.node: relu.index for relu in find_relus(model)}
    reached: dict[str, str] = {}
    for node in reversed(list(model.graph)):
        name = str(node.name)
        if name in order:
            reached[name] = name
            continue
        behind = [reached[str(user.name)] for value in node.outputs for user in value.consumers() if str(user.name) in reached]
        relus = [one for one in behind if one in order]
        if relus:
            reached[name] = min(relus, key=order.__getitem__)
        else:
            reached[name] = name
    return reached


# ---------------------------------------------------------------- CPU


def _place_cpu(
    model: ir.Model, kept: Collection[str], refused: dict[str, str]
) -> tuple[list[ir.Node], set[tuple[str, int]], set[str]]:
    nodes: list[ir.Node] = []
    reads: set[tuple[str, int]] = set()
    results: set[str] = set()
    relus = {relu.node for relu in find_relus(model) if not relu.body}
    captured = _read_by_bodies(model)
    for node in model.graph:
        name = str(node.name)
        if name in kept or not is_standard(node):
            continue
        result = _after_relu(node.outputs[0], relus)
        inside = str(result.name) in captured
        if node.op_type in WEIGHTED:
            why = _no_weights(node) or ("there is no 8-bit ConvTranspose" if node.op_type == "ConvTranspose" else "")
            if inside and node.op_type == "Conv":
                why = why or "its result is read inside the body of an If, Loop or Scan"
            if why:
                refused[name] = why
                continue
            inputs = [0]
        elif node.op_type in CPU_JOINING and not inside and _only_moves_or_adds(node):
            inputs = list(range(len(node.inputs))) if node.op_type in ("Add", "Concat") else [0]
            if not all(_comes_from(node.inputs[position], results) for position in inputs):
                continue
        else:
            continue
        nodes.append(node)
        reads |= {(name, position) for position in inputs}
        if not (inside or (node.op_type in ("Gemm", "MatMul") and _only_leaves(result))):
            results.add(str(result.name))
    return nodes, reads, results


def _is_read_quantized(value: ir.Value, reads: Collection[tuple[str, int]]) -> bool:
    """Return whether a quantized node reads `value`, directly or through nodes that only move numbers."""
    waiting = [value]
    while waiting:
        for user, position in waiting.pop().uses():
            if (str(user.name), position) in reads:
                return True
            waiting += [user.outputs[0]] if user.op_type in MOVING else []
    return False


def _read_by_bodies(model: ir.Model) -> set[str]:
    """Return the names of the tensors of the top graph that bodies read, directly or through nodes that only move numbers."""
    names = set()
    for node in model.graph:
        for output in node.outputs:
            value: ir.Value | None = output
            if all(user.graph is model.graph for user in output.consumers()):
                continue
            while value is not None:
                names.add(str(value.name))
                maker = value.producer()
                value = maker.inputs[0] if maker is not None and maker.op_type in PASSED else None
    return names


def _only_moves_or_adds(node: ir.Node) -> bool:
    if node.op_type == "Add":
        return all(constant_of(value) is None for value in node.inputs)
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    return len([value for value in node.outputs if value.name]) == 1


def _comes_from(value: ir.Value | None, results: Collection[str]) -> bool:
    """Return whether `value` is a quantized result, or one that was only moved."""
    while value is not None and str(value.name) not in results:
        maker = value.producer()
        if maker is None or maker.op_type not in MOVING:
            return False
        value = maker.inputs[0]
    return value is not None


def _after_relu(value: ir.Value, relus: Collection[str]) -> ir.Value:
    readers = list(value.consumers())
    if len(readers) == 1 and str(readers[0].name) in relus and not value.is_graph_output():
        return readers[0].outputs[0]
    return value


def _only_leaves(value: ir.Value) -> bool:
    return value.is_graph_output() and not list(value.consumers())


# ---------------------------------------------------------------- TensorRT


def _place_tensorrt(
    model: ir.Model, precision: str, kept: Collection[str], refused: dict[str, str]
) -> tuple[list[ir.Node], set[tuple[str, int]]]:
    nodes: list[ir.Node] = []
    inputs = {value.name for value in model.graph.inputs}
    for node in model.graph:
        name = str(node.name)
        if node.op_type not in WEIGHTED or not is_standard(node):
            continue
        if why := _no_weights(node) or _not_worth(node, precision, first=node.inputs[0].name in inputs):  # type: ignore[union-attr]
            refused[name] = why
        elif name not in kept:
            nodes.append(node)
    reads = {(str(node.name), 0) for node in nodes}
    quantized = {str(node.name) for node in nodes}
    for node in model.graph:
        if node.op_type == "Add" and str(node.name) not in kept:
            skip = _skip_branch(node, quantized)
            reads |= set() if skip is None else {(str(node.name), skip)}
    return nodes, reads


def _skip_branch(node: ir.Node, quantized: Collection[str]) -> int | None:
    """Return which input of a residual Add is the one that its Conv does not make, None when it is no such Add."""
    if len(node.inputs) != 2 or any(constant_of(value) is not None for value in node.inputs):
        return None
    makers = [value.producer() if value is not None else None for value in node.inputs]
    fusible = [
        maker is not None and str(maker.name) in quantized and len(list(value.consumers())) == 1  # type: ignore[union-attr]
        for maker, value in zip(makers, node.inputs, strict=True)
    ]
    if not any(fusible):
        return None
    if not all(fusible):
        return fusible.index(False)
    # Where both come from a Conv, the projection of the skip reads what the main branch starts from: more than one reader.
    readers = [len(list(maker.inputs[0].consumers())) for maker in makers]  # type: ignore[union-attr]
    return readers.index(max(readers)) if readers[0] != readers[1] else 1


def _not_worth(node: ir.Node, precision: str, first: bool) -> str:
    """Return why the Conv `node` is no faster in 8 bits, "" when it is."""
    if node.op_type == "ConvTranspose":
        return "TensorRT merges no Q/DQ into a ConvTranspose"
    if node.op_type != "Conv":
        return ""
    weights = node.inputs[1].const_value  # type: ignore[union-attr]
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    outer, inner, *kernel = weights.shape.numpy()  # type: ignore[union-attr]
    shape = "x".join(map(str, (outer, inner, *kernel)))
    if precision == "float8":
        if groups > 1:
            return "grouped convolutions have no float8 kernel"
        if min(outer, inner) <= CHANNELS or prod(kernel) > FLOAT8_AREA:
            return f"too few channels, or too large a kernel, for float8: {shape}"
        return ""
    if min(outer, inner) >= CHANNELS:
        return ""
    if groups == 1:
        small, large = sorted((outer, inner))
        fits = (outer % 8 == 0 or inner % 8 == 0) and len(set(kernel)) == 1 and (first or (small % 8 == 0 and large >= CHANNELS))
    else:
        fits = outer % 8 == 0 and all(size >= 3 for size in kernel)
    return "" if fits else f"too few channels for int8 to be faster: {shape}"


# ---------------------------------------------------------------- both


def _no_weights(node: ir.Node) -> str:
    weights = node.inputs[1]
    if weights is None or weights.const_value is None:
        return "its weights are computed, not constant"
    if node.op_type == "Gemm" and any(
        node.attributes[key].as_int() if key == "transA" else node.attributes[key].as_float() != 1
        for key in ("alpha", "beta", "transA")
        if key in node.attributes
    ):
        return "a Gemm with alpha, beta or transA"
    if node.op_type == "MatMul" and weights.const_value.shape.rank() != 2:
        return "its weights are not a matrix"
    return "" if weights.const_value.dtype.name == "FLOAT" else "its weights are not float32"


def _moved(model: ir.Model) -> list[frozenset[str]]:
    group: dict[str, set[str]] = {}
    for node in model.graph:
        if node.op_type not in MOVING or not _only_moves_or_adds(node):
            continue
        names = _computed([node.inputs[0], node.outputs[0]])
        merged = names.union(*(group[name] for name in names if name in group))
        for name in merged:
            group[name] = merged
    return list({id(names): frozenset(names) for names in group.values()}.values())


def _joined(model: ir.Model, target: str) -> list[frozenset[str]]:
    concats = [node for node in model.graph if node.op_type == "Concat"] if target != "cpu" else []
    return [frozenset(_computed([*node.inputs, node.outputs[0]])) for node in concats]


def _computed(values: Sequence[ir.Value | None]) -> set[str]:
    return {str(value.name) for value in values if value is not None and constant_of(value) is None}
