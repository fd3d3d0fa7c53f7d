"""Numbers beyond the range of a type: where an evaluation in that type is no measure of noise, and where a runtime may overflow.

between nodes        a tensor goes out of range in the graph's own types: the error behind it is no noise
squares in a node    a normalization or a norm squares numbers whose squares float32 does not have: neither is that error
sums in a node       the terms of a sum exceed float32 together although their sum does not: whether it overflows depends on the order,
                     which is the runtime's. There an infinity is no fault, and what follows from it is none either.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends.base import Rounding
from relu_deploy.graph.bodies import dependents, iterate_nodes
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["LargeOperands", "NonFinite", "PossibleOverflows", "behind_overflow"]

#: operators whose result is a sum of products or of numbers
SUMMING = {
    "AveragePool",
    "Conv",
    "ConvTranspose",
    "CumSum",
    "Einsum",
    "Gemm",
    "GlobalAveragePool",
    "MatMul",
    "ReduceMean",
    "ReduceSum",
}
SUMMING |= {"FusedMatMul", "ReduceL1", "TransposeMatMul"}
#: operators that square their operand
SQUARING = {"GlobalLpPool", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "LpPool"}
SQUARING |= {"MeanVarianceNormalization", "RMSNormalization", "ReduceL2", "ReduceSumSquare", "SimplifiedLayerNormalization"}
SQUARING |= {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
LARGEST = float(np.finfo(np.float32).max)
#: the sum of a tensor's squares up to which no sum of products of two of them overflows, by the Cauchy-Schwarz inequality, and no square
LARGEST_SQUARES = LARGEST
#: share of the largest number that the terms of a sum may reach: fast convolutions add some of their operands before they multiply
SHARE = 1 / 8


class NonFinite:
    """Counts the elements of each tensor of an evaluation that are NaN or infinite. counts: By tensor, of those that have any."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def seen(self, name: str, value: Any) -> Any:
        """Look at a tensor; see `Seen`."""
        # A sum takes no memory, and is finite only where all elements are.
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value.sum()):
            count = int(np.count_nonzero(~np.isfinite(value)))
            if count:
                self.counts[name] = self.counts.get(name, 0) + count
        return value


class LargeOperands(Rounding):
    """Rounds nothing: it looks for operands so large that sums or squares of them may go beyond float32.

    Attributes:
        sums: A node that sums has such an operand.
        squares: A node that squares has one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sums = self.squares = False

    def result(self, value: Any) -> Any:
        return value

    def operands(self, operator: str, values: Sequence[Any], weights: Sequence[bool]) -> list[Any]:  # noqa: ARG002
        if operator in SQUARING:
            self.squares = self.squares or any(map(_is_large, values))
        elif operator in SUMMING:
            self.sums = self.sums or any(map(_is_large, values))
        return list(values)


def _is_large(value: Any) -> bool:
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not value.size:
        return False
    flat = value.reshape(-1)
    # A product with itself takes no memory; in float32 it overflows where the limit is.
    squares = float(flat @ flat) if value.dtype.itemsize >= 4 else 0.0
    return not squares <= LARGEST_SQUARES * SHARE


def behind_overflow(model: ir.Model, computed: NonFinite, true: NonFinite, *, squares: bool = False) -> set[str]:
    """Return the tensors that depend on one with more such elements in the graph's own types than in float64.

    squares: Those that depend on a node of `SQUARING` too.
    """
    overflown = {name for name, count in computed.counts.items() if count > true.counts.get(name, 0)}
    nodes = dependents(
        model,
        lambda node: (squares and node.op_type in SQUARING) or any(str(value.name) in overflown for value in node.outputs),
    )
    return {str(value.name) for node in nodes for value in node.outputs}


class PossibleOverflows(Rounding):
    """Finds the elements of sums whose terms exceed float32 together, in three kinds of evaluations, one after the other.

    `keep` (float64) remembers the sums, `compare` (float64, with this object as its rounding) evaluates them with the magnitudes of
    their operands, and what `overflowing` returns (in the graph's own types) puts infinities in their places.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        self._nodes = {str(node.outputs[0].name): node for node, _ in iterate_nodes(model) if node.op_type in SUMMING}
        self._true: dict[str, list[Array]] = defaultdict(list)
        self._masks: dict[tuple[str, int], Array] = {}
        self._places: Counter[str] = Counter()
        self._terms = 1

    @property
    def found(self) -> bool:
        """Whether there are such elements."""
        return bool(self._masks)

    def result(self, value: Any) -> Any:
        return value

    def operands(self, operator: str, values: Sequence[Any], weights: Sequence[bool]) -> list[Any]:  # noqa: ARG002
        if operator not in SUMMING:
            return list(values)
        self._terms = int(np.size(values[0]))
        return [np.abs(value) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value for value in values]

    def keep(self, name: str, value: Any) -> Any:
        """Remember a sum; see `Seen`."""
        if name in self._nodes:
            self._true[name].append(value)
        return value

    def compare(self, name: str, value: Any) -> Any:
        """Look for sums of magnitudes beyond float32, and return the sum itself; see `Seen`."""
        node = self._nodes.get(name)
        place = self._places[name]
        self._places[name] += 1
        if node is None or place >= len(self._true[name]):
            return value
        true = self._true[name][place]
        if isinstance(value, np.ndarray) and value.dtype == np.float64 and value.shape == np.shape(true):
            mask = np.abs(value) * self._terms_of_mean(node, value) > LARGEST * SHARE
            if mask.any():
                self._masks[name, place] = mask
        return true

    def _terms_of_mean(self, node: ir.Node, value: Array) -> float:
        """Return by how much the sum of a mean is larger than the mean."""
        if node.op_type == "AveragePool":
            return float(np.prod(node.attributes["kernel_shape"].as_ints()))
        return self._terms / max(1, value.size) if node.op_type in ("GlobalAveragePool", "ReduceMean") else 1.0

    def overflowing(self, infinity: float) -> Any:
        """Return a callback, see `Seen`, that puts `infinity` where a sum may overflow."""
        places: Counter[str] = Counter()

        def seen(name: str, value: Any) -> Any:
            mask = self._masks.get((name, places[name]))
            places[name] += 1
            return value if mask is None or mask.shape != np.shape(value) else np.where(mask, value.dtype.type(infinity), value)

        return seen
