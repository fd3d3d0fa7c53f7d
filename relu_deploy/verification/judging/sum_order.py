"""Long sums in the least favorable order, and functions that runtimes compute in another way than exactly.

A runtime may add terms in any order, and one after the other in float32 loses what is small beside the sum so far. The error of
the least favorable order, the largest terms first, is measured and not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph import opset_of
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.judging.normalization_order import NORMALIZATIONS, normalized_terms, shift_of_order
from relu_deploy.verification.judging.verdict import rms

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["LONG", "SumOrder"]

#: terms from which a sum is long: float32's limit allows for shorter ones in any order
LONG = 1024
#: error of a Sigmoid that is computed by tanh: one unit in the last place of 1 in float32 (ONNX Runtime's largest is 1.05 times that)
SIGMOID_ERROR = 2.0**-23
#: error of an exponential less 1 near 1: half a unit in the last place
EXPONENTIAL_ERROR = 2.0**-24
#: RMS of a result below which the errors above may exceed float32's limit
FAINT = 0.1


@dataclass
class SumOrder:
    """Replaces the long sums of an evaluation by float32 sums that start with the largest terms, and shifts what `SHIFTED` lists.

    Attributes:
        nodes: The nodes that sum or are shifted, by the name of their result in the evaluation.
        tensor_names: The graph's tensor by the name in the evaluation, where they differ.
        longest: The most terms of a sum so far.
        is_faint: Whether a result that is shifted was so small that the way it is computed shows, as it always does in a Fourier
            transform.
    """

    nodes: Mapping[str, ir.Node]
    tensor_names: Mapping[str, str]
    opset: int
    replace: bool = True
    longest: int = 0
    is_faint: bool = False
    _inputs: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, tensor_names: Mapping[str, str], feeds: Feeds, *, replace: bool) -> SumOrder:
        """Return the sums of a graph. replace: False only counts their terms."""
        nodes = {str(node.outputs[0].name): node for node, _ in iterate_nodes(model) if node.op_type in OF_ORDER}
        if tensor_names:
            nodes = {name: nodes[ours] for name, ours in tensor_names.items() if ours in nodes}
        sums = cls(nodes, tensor_names, opset_of(model), replace)
        read = [value for node in nodes.values() if node.op_type != "Sigmoid" for value in _summed_operands(node)]
        sums._inputs = {str(value.name): np.zeros(0) for value in read}
        sums._inputs |= {name: array for name, array in feeds.items() if name in sums._inputs}
        return sums

    def seen(self, name: str, value: Any) -> Any:
        """Return the tensor as the least favorable order of its sum gives it; see `Seen`."""
        node = self.nodes.get(name)
        if node is None or node.inputs[0] is None or not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            pass
        elif node.op_type in SHIFTED:
            x = self._inputs.get(str(node.inputs[0].name), np.zeros(0))
            self.is_faint |= 0 < rms(value) < FAINT or node.op_type in TRANSFORMS
            value = value + SHIFTED[node.op_type](node, x, value) if self.replace else value
        elif node.op_type in NORMALIZATIONS:
            x = self._operand(node)
            terms = normalized_terms(node, x)
            self.longest = max(self.longest, terms)
            value = value + shift_of_order(node, x, self.opset) if self.replace and terms >= LONG else value
        else:
            x = self._operand(node)
            axes = _axes(node, x.ndim, self.opset)
            terms = math.prod(x.shape[axis] for axis in axes) if x.size else 0
            self.longest = max(self.longest, terms)
            if self.replace and terms >= LONG:
                replaced = POWERS[node.op_type](node) if node.op_type in POWERS else SUMS[node.op_type]
                value = replaced(np.asarray(x, np.float64), axes, value)
        tensor = self.tensor_names.get(name, name)
        if tensor in self._inputs:
            self._inputs[tensor] = value
        return value

    def _operand(self, node: ir.Node) -> Array:
        """Return what a node sums, in this evaluation; nothing where it is not known."""
        total: Any = 0.0
        for value in _summed_operands(node):
            constant = constant_of(value)
            known = self._inputs.get(str(value.name), np.zeros(0))
            total = total + (known if constant is None or known.size else np.asarray(constant, np.float64))
        return np.asarray(total)


def _summed_operands(node: ir.Node) -> list[ir.Value]:
    """Return the operands of a node whose elements it sums, after adding them to each other where it has several."""
    places = ADDED.get(node.op_type, (0,))
    return [value for place, value in enumerate(node.inputs) if place in places and value is not None]


def _axes(node: ir.Node, rank: int, opset: int) -> tuple[int, ...]:
    """Return the axes that a node sums over, () when they are not constants."""
    spatial = tuple(range(2, rank))
    if node.op_type in ("GlobalAveragePool", "GlobalLpPool"):
        return spatial
    if node.op_type == "LpNormalization":
        return ((node.attributes["axis"].as_int() if "axis" in node.attributes else -1) % rank,) if rank else ()
    if node.op_type in ("RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"):
        start = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
        return tuple(range(start % rank, rank)) if rank else ()
    if node.op_type in ("Softmax", "LogSoftmax"):
        old = opset < 13
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1 if old else -1
        if not rank:
            return ()
        return tuple(range(axis % rank, rank)) if old else (axis % rank,)
    if "axes" in node.attributes:
        axes = [int(axis) for axis in node.attributes["axes"].as_ints()]
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = node.inputs[1].const_value
        if constant is None:
            return ()
        axes = [int(axis) for axis in constant.numpy().reshape(-1)]
    else:
        axes = list(range(rank))
    return tuple(axis % rank for axis in axes) if rank else ()


def _sums(terms: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the sum of `terms` in float64, and one after the other in float32 from the largest on; the axes are kept as 1."""
    kept = tuple(axis for axis in range(terms.ndim) if axis not in axes)
    rows = np.transpose(terms, (*kept, *axes)).reshape(*(terms.shape[axis] for axis in kept), -1)
    order = np.argsort(-np.abs(rows), axis=-1, kind="stable")
    largest_first = np.take_along_axis(rows, order, -1).astype(np.float32)
    shape = [1 if axis in axes else size for axis, size in enumerate(terms.shape)]
    in_order = np.add.accumulate(largest_first, axis=-1, dtype=np.float32)[..., -1]
    return rows.sum(axis=-1).reshape(shape), in_order.astype(np.float64).reshape(shape)


def _ratio(terms: Array, axes: tuple[int, ...]) -> Array:
    exact, in_order = _sums(terms, axes)
    return np.divide(in_order, exact, out=np.ones_like(exact), where=(exact != 0) & np.isfinite(exact) & np.isfinite(in_order))


def _exponentials(x: Array, axes: tuple[int, ...]) -> Array:
    largest = x.max(axis=axes, keepdims=True)
    return np.exp(x - np.where(np.isfinite(largest), largest, 0))


def _softmax(x: Array, axes: tuple[int, ...], value: Array) -> Array:
    return value / _ratio(_exponentials(x, axes), axes)


def _log_softmax(x: Array, axes: tuple[int, ...], value: Array) -> Array:
    return value - np.log(_ratio(_exponentials(x, axes), axes))


def _log_sum_exp(x: Array, axes: tuple[int, ...], value: Array) -> Array:
    return value + np.log(_ratio(_exponentials(x, axes), axes)).reshape(value.shape)


def _scaled_by(terms: Callable[[Array], Array], power: float = 1.0) -> Callable[[Array, tuple[int, ...], Array], Array]:
    def replaced(x: Array, axes: tuple[int, ...], value: Array) -> Array:
        return value * (_ratio(terms(x), axes) ** power).reshape(value.shape)

    return replaced


def _log_sum(x: Array, axes: tuple[int, ...], value: Array) -> Array:
    return value + np.log(_ratio(x, axes)).reshape(value.shape)


def _power(sign: int) -> Callable[[ir.Node], Callable[[Array, tuple[int, ...], Array], Array]]:
    """Return what the order does to a norm (`sign` 1), or to what is divided by one (-1), of the exponent that the node has."""

    def of_node(node: ir.Node) -> Callable[[Array, tuple[int, ...], Array], Array]:
        p = node.attributes["p"].as_int() if "p" in node.attributes else 2

        def replaced(x: Array, axes: tuple[int, ...], value: Array) -> Array:
            return value * _ratio(np.abs(x) ** p, axes) ** (sign / p)

        return replaced

    return of_node


def _sum(x: Array, axes: tuple[int, ...], value: Array) -> Array:
    exact, in_order = _sums(x, axes)
    return value + (in_order - exact).reshape(value.shape)


def _mean(x: Array, axes: tuple[int, ...], value: Array) -> Array:
    exact, in_order = _sums(x, axes)
    return value + (in_order - exact).reshape(value.shape) / math.prod(x.shape[axis] for axis in axes)


def _standardized(x: Array, axes: tuple[int, ...], value: Array) -> Array:
    """The result is divided by the root of a sum of squares."""
    return value / np.sqrt(_ratio(np.square(x), axes))


def _exponential_shift(scale: float, factor: str = "") -> Callable[[ir.Node, Array, Array], Array]:
    """Return the shift of the negative results of `scale` times (exponential less 1), times the attribute `factor`, 1 by default."""

    def shift(node: ir.Node, _: Array, value: Array) -> Array:
        given = float(node.attributes[factor].as_float()) if factor in node.attributes else 1.0
        return np.where(value < 0, abs(scale * given) * EXPONENTIAL_ERROR, 0.0)

    return shift


def _angle_shift(node: ir.Node, x: Array, value: Array) -> Array:
    """Return the error of a transform whose angles 2 pi k n / N are rounded to float32: those up to 2 pi N, by a share of 2^-24.

    A fast transform, whose number of points is a power of two, has angles up to 2 pi.
    """
    points, total, squares = _points(node, x, value), value.shape[-2], np.square(np.asarray(x, np.float64))
    if not x.size or points < 1 or points & (points - 1) == 0:
        return np.zeros(value.shape)
    if node.op_type == "DFT":
        axis = _transformed_axis(node, x.ndim)
        squares = squares.sum(axis=(axis, x.ndim - 1), keepdims=True)
        inverse = "inverse" in node.attributes and node.attributes["inverse"].as_int()
    else:
        # Frames of a signal: the mean square of all of it stands for each.
        squares, inverse, total = np.asarray(squares.mean() * points), False, points
    norm = np.sqrt(squares) / (points if inverse else 1)
    return np.broadcast_to(norm * (2 * math.pi * points * 2.0**-24 / 3), value.shape) if total else np.zeros(value.shape)


def _transformed_axis(node: ir.Node, rank: int) -> int:
    given = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    old = node.attributes["axis"].as_int() if "axis" in node.attributes else 1 if len(node.inputs) < 3 else -2
    return (old if given is None else int(given.reshape(-1)[0])) % rank


def _points(node: ir.Node, x: Array, value: Array) -> int:
    """Return how many points a transform has, 0 where it is not known."""
    if node.op_type == "STFT":
        lengths = [constant_of(node.inputs[place]) for place in (3, 2) if len(node.inputs) > place]
        known = [length for length in lengths if length is not None]
        return 0 if not known else int(known[0]) if known[0].size == 1 else known[0].size
    length = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return (
        int(length.reshape(-1)[0])
        if length is not None
        else x.shape[_transformed_axis(node, x.ndim)]
        if x.ndim == value.ndim
        else 0
    )


#: operators whose error does not depend on the size of their result
TRANSFORMS = ("DFT", "STFT")
#: by operator that runtimes compute in another way than exactly: how far that moves its result, from its operand and result
SHIFTED: dict[str, Callable[[ir.Node, Array, Array], Array]] = {
    "Celu": _exponential_shift(1.0, "alpha"),
    "DFT": _angle_shift,
    "Elu": _exponential_shift(1.0, "alpha"),
    "STFT": _angle_shift,
    # The product of its two default attributes.
    "Selu": _exponential_shift(1.7581),
    "Sigmoid": lambda _, __, value: np.full(value.shape, SIGMOID_ERROR),
    # x times a Sigmoid.
    "QuickGelu": lambda _, x, value: SIGMOID_ERROR * x if x.shape == value.shape else np.zeros(value.shape),
}
#: what the order of a long sum does to the result of each operator that has one
SUMS: dict[str, Callable[[Array, tuple[int, ...], Array], Array]] = {
    "GlobalAveragePool": _mean,
    "LogSoftmax": _log_softmax,
    "ReduceL1": _scaled_by(np.abs),
    "ReduceL2": _scaled_by(np.square, 0.5),
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMean": _mean,
    "ReduceSum": _sum,
    "ReduceSumSquare": _scaled_by(np.square),
    "RMSNormalization": _standardized,
    "SimplifiedLayerNormalization": _standardized,
    "SkipSimplifiedLayerNormalization": _standardized,
    "Softmax": _softmax,
}
#: the same for operators whose terms have an exponent that is an attribute
POWERS = {"GlobalLpPool": _power(1), "LpNormalization": _power(-1)}
#: places of the operands that an operator adds before it sums their elements
ADDED = {"SkipLayerNormalization": (0, 1, 4), "SkipSimplifiedLayerNormalization": (0, 1, 3)}
OF_ORDER = frozenset([*SUMS, *POWERS, *SHIFTED, *NORMALIZATIONS])
