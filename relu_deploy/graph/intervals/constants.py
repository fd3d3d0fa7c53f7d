"""Which channels are one and the same number everywhere, whatever the input: proven, or assumed because data showed nothing else.

It starts with what bounds prove (`ranges.py`: a dead Relu, a row of zero weights, a BatchNormalization of scale 0) and goes
on through every node whose inputs are constant, in float64: a depthwise Conv on a constant channel, a pool of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.errors import InputError
from relu_deploy.graph.intervals.interval import PIECE
from relu_deploy.graph.intervals.operands import Operands, shape_of
from relu_deploy.graph.pruning.channels import ChannelMap, channels_of, pads_with_zeros
from relu_deploy.graph.relus import find_relus
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Constants", "constant_channels"]

Bounds = Mapping[str, tuple[Array, Array]]


@dataclass(frozen=True)
class Constants:
    """What is known of a tensor's channels. values: float64 (C,), NaN where a channel is not constant.

    assumed: bool (C,), constants that rest on an assumption. bordered: bool (C,), channels that would be constant if zeros
    around the border did not come in.
    """

    values: Array
    assumed: Array
    bordered: Array

    @classmethod
    def none(cls, channels: int) -> Constants:
        return cls(np.full(channels, np.nan), np.zeros(channels, bool), np.zeros(channels, bool))

    def each(self, change: Callable[[Array], Array]) -> Constants:
        return Constants(change(self.values), change(self.assumed), change(self.bordered))


def constant_channels(
    model: ir.Model, channel_maps: Mapping[ir.Node, ChannelMap | str], bounds: Bounds, observed: Mapping[str, Array]
) -> dict[str, Constants]:
    """Return what is constant in every tensor that has channels.

    channel_maps: of every node of the top graph. bounds: as from `bounds_of`. observed: by Relu output, bool (C,), the channels
    to take for 0. Raises InputError when `observed` names something else than a Relu's output, or not its channels.
    """
    relus = {relu.output for relu in find_relus(model) if not relu.body}
    if unknown := sorted(set(observed) - relus):
        raise InputError(f"no Relu of the graph makes a tensor called {unknown[0]!r}", "relu-deploy inspect lists the Relus")
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    known: dict[str, Constants] = {}
    for value in [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]:
        name, channels, node = str(value.name), channels_of(value), value.producer()
        if channels is None:
            if name in observed:
                raise InputError(f"the number of channels of {name!r} is not known", "infer the graph's shapes first")
            continue
        found, channel_map = Constants.none(channels), None if node is None else channel_maps.get(node)
        if node is not None and isinstance(channel_map, ChannelMap):
            found = _through(Operands(node, {}, opset), channel_map, known, channels)
        known[name] = _with_observed(_with_proven(found, bounds.get(name)), name, observed.get(name))
    return known


def _with_proven(found: Constants, bounds: tuple[Array, Array] | None) -> Constants:
    if bounds is None or bounds[0].shape != found.values.shape:
        return found
    proven = (bounds[0] == bounds[1]) & np.isfinite(bounds[0])
    # What follows from an assumption is overruled by what follows from the weights alone.
    return Constants(np.where(proven, bounds[0], found.values), found.assumed & ~proven, found.bordered & ~proven)


def _with_observed(found: Constants, name: str, observed: Array | None) -> Constants:
    if observed is None:
        return found
    if np.shape(observed) != found.values.shape:
        raise InputError(
            f"{name!r} has {len(found.values)} channels, the observation has shape {np.shape(observed)}",
            "observe the very model that is compacted",
        )
    new = np.asarray(observed, bool) & np.isnan(found.values)
    return Constants(np.where(new, 0.0, found.values), found.assumed | new, found.bordered & ~new)


def _through(operands: Operands, channel_map: ChannelMap, known: Mapping[str, Constants], channels: int) -> Constants:
    inputs = {link.position: known.get(str(operands.node.inputs[link.position].name)) for link in channel_map.links}  # type: ignore[union-attr]
    sources = [source for source in inputs.values() if source is not None]
    if len(sources) < len(inputs):
        return Constants.none(channels)
    op = operands.node.op_type
    if channel_map.columns is not None:
        source = known.get(str(operands.node.inputs[0].name))  # type: ignore[union-attr]
        return Constants.none(channels) if source is None else _products(operands, source, channels)
    if op == "Conv":
        return _depthwise(operands, sources[0].each(lambda part: np.repeat(part, channel_map.links[0].block)))
    if op == "Concat":
        parts = [(source.values, source.assumed, source.bordered) for source in sources]
        return Constants(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    if op in CALCULATED:
        return _calculated(operands, inputs, channels)
    if op == "AveragePool" and (pads_with_zeros(operands) or operands.attribute("ceil_mode", 0)):
        return _without_border(sources[0], sources[0], np.ones(channels, bool))
    if op in KEPT and sources:
        return sources[0].each(lambda part: np.repeat(part, channel_map.links[0].block))
    return Constants.none(channels)


# ---------------------------------------------------------------- sums of products


def _products(operands: Operands, x: Constants, channels: int) -> Constants:
    """Return the constants of a Conv, Gemm or MatMul: rows that have weights on constant channels only."""
    weights, bias = operands.constant(1), _bias(operands, channels)
    usable = ~np.isnan(x.values)
    if operands.node.op_type == "Conv" and pads_with_zeros(operands):
        usable &= x.values == 0
    if weights is None or bias is None or not usable.any():
        return Constants.none(channels)
    if operands.node.op_type == "MatMul" or (operands.node.op_type == "Gemm" and not operands.attribute("transB", 0)):
        weights = weights.T
    factor = float(operands.attribute("alpha", 1.0)) if operands.node.op_type == "Gemm" else 1.0
    values, assumed = np.full(channels, np.nan), np.zeros(channels, bool)
    rows = max(1, PIECE // max(1, weights[0].size))
    for start in range(0, channels, rows):
        piece = weights[start : start + rows].reshape(-1, weights.shape[1], weights[0].size // weights.shape[1])
        meets = (piece != 0).any(axis=2)
        free = np.flatnonzero(~meets[:, ~usable].any(axis=1))
        sums = piece[free].sum(axis=2, dtype=np.float64) @ np.where(usable, x.values, 0.0)
        values[start + free] = factor * sums + bias[start + free]
        assumed[start + free] = (meets[free] & x.assumed).any(axis=1)
    return Constants(values, assumed, np.zeros(channels, bool))


def _bias(operands: Operands, channels: int) -> Array | None:
    """Return float64 (channels,), None where the addend is not the same for every row of the batch."""
    constant = operands.constant(2)
    if constant is None:
        return np.zeros(channels)
    if constant.size != 1 and constant.shape[-1] != constant.size:
        return None
    beta = float(operands.attribute("beta", 1.0)) if operands.node.op_type == "Gemm" else 1.0
    return np.broadcast_to(beta * constant.astype(np.float64).reshape(-1), (channels,))


def _depthwise(operands: Operands, x: Constants) -> Constants:
    """Return the constants of a depthwise Conv; x: its input's, one for each channel of the result."""
    weights = operands.constant(1)
    bias = _bias(operands, len(x.values))
    if weights is None or bias is None:
        return Constants.none(len(x.values))
    sums = weights.reshape(len(weights), -1).sum(axis=1, dtype=np.float64)
    meets = (weights != 0).reshape(len(weights), -1).any(axis=1)
    values = np.where(meets, sums * x.values, 0.0) + bias
    result = Constants(values, x.assumed & meets, x.bordered & meets)
    return _without_border(result, x, meets) if pads_with_zeros(operands) else result


def _without_border(result: Constants, x: Constants, meets: Array) -> Constants:
    """Return `result` without the constants that windows with zeros in them change; meets: bool (C,), which read `x` at all."""
    differs = meets & ~np.isnan(x.values) & (x.values != 0)
    values = np.where(differs, np.nan, result.values)
    return Constants(values, result.assumed & ~differs, result.bordered | differs)


# ---------------------------------------------------------------- one number at a time


def _calculated(operands: Operands, inputs: Mapping[int, Constants | None], channels: int) -> Constants:
    arguments, assumed, bordered = [], np.zeros(channels, bool), np.zeros(channels, bool)
    for position in range(len(operands)):
        source = inputs.get(position)
        if source is not None:
            arguments.append(source.values)
            assumed, bordered = assumed | source.assumed, bordered | source.bordered
        elif operands.has(position):
            arguments.append(_per_channel(operands, position, channels))
        else:
            arguments.append(np.full(channels, np.nan))
    with np.errstate(all="ignore"):
        values = CALCULATED[operands.node.op_type](operands, arguments)
    values = np.where(np.isfinite(values), values, np.nan)
    return Constants(values, assumed & ~np.isnan(values), bordered & np.isnan(values))


def _per_channel(operands: Operands, position: int, channels: int) -> Array:
    """Return a constant operand as float64 (channels,), NaN where it is not one number for each channel."""
    constant, rank = operands.constant(position), len(shape_of(operands.node.outputs[0]) or ())
    if constant is None or constant.size not in (1, channels):
        return np.full(channels, np.nan)
    axis = constant.ndim - rank + 1
    if constant.size > 1 and (axis < 0 or constant.shape[axis] != channels):
        return np.full(channels, np.nan)
    return np.broadcast_to(constant.astype(np.float64).reshape(-1), (channels,))


def _clip(operands: Operands, arguments: list[Array]) -> Array:
    low, high = (float(operands.attribute(name, default)) for name, default in (("min", -np.inf), ("max", np.inf)))
    bounds = [low, high]
    for position in (1, 2):
        if operands.has(position):
            bounds[position - 1] = arguments[position]  # type: ignore[call-overload]
    return np.minimum(np.maximum(arguments[0], bounds[0]), bounds[1])


def _batch_norm(operands: Operands, arguments: list[Array]) -> Array:
    scale, shift, mean, variance = (np.asarray(operands.constant(position), np.float64) for position in range(1, 5))
    spread = variance + float(operands.attribute("epsilon", 1e-5))
    return (arguments[0] - mean) * (scale / np.sqrt(spread)) + shift


def _leaky(operands: Operands, arguments: list[Array]) -> Array:
    slope = arguments[1] if operands.node.op_type == "PRelu" else float(operands.attribute("alpha", 0.01))
    return np.where(arguments[0] < 0, arguments[0] * slope, arguments[0])


def _folded(function: Callable[[Array, Array], Array]) -> Callable[[Operands, list[Array]], Array]:
    def calculate(_: Operands, arguments: list[Array]) -> Array:
        result = arguments[0]
        for argument in arguments[1:]:
            result = function(result, argument)
        return result

    return calculate


#: what becomes of constants, NaN where an operand is none; arguments: float64 (C,) for each input
CALCULATED: dict[str, Callable[[Operands, list[Array]], Array]] = {
    "Abs": lambda _, arguments: np.abs(arguments[0]),
    "Add": _folded(np.add),
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Div": _folded(np.divide),
    "LeakyRelu": _leaky,
    "Max": _folded(np.maximum),
    "Min": _folded(np.minimum),
    "Mul": _folded(np.multiply),
    "Neg": lambda _, arguments: -arguments[0],
    "PRelu": _leaky,
    "Relu": lambda _, arguments: np.maximum(arguments[0], 0.0),
    "Sub": _folded(np.subtract),
    "Sum": _folded(np.add),
}
#: what has the same constants as its input
KEPT = frozenset(["AveragePool", "Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool"])
KEPT = KEPT | {"ReduceMax", "ReduceMean", "ReduceMin", "Reshape", "Squeeze", "Unsqueeze"}
