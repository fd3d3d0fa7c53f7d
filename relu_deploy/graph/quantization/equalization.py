"""Cross-layer equalization: move scales from one layer to the next, so that one int8 scale fits a whole weight tensor.

Where a tensor goes from one layer to exactly one other through operators with f(x / s) = f(x) / s in every channel, the
layers may share a number s > 0 per channel and compute the same (Nagel et al. 2019, arXiv 1906.04721, section 4.1):

    row of the producer / s        its bias / s        column of the reader * s        s = sqrt(r1 * r2) / r2

r1, r2: the largest |weight| of the row and of the column, which are equal afterwards. All pairs take turns until no scale
changes any more. Rules:

1. Scales are powers of two: a float32 product or sum that is scaled by one keeps every bit of its mantissa, so the outputs
   stay equal bit for bit as long as no number underflows or overflows. But for a factor common to all channels of a tensor,
   which a scale per tensor does not feel, each is within sqrt(2) of the paper's.
2. No scale leaves 2^-limit to 2^limit. Beyond 2^12 the two ranges are 2^24 apart, as far as the first and the last bit of a
   float32: such a channel is dead, and equalizing it would only enlarge its bias.
3. A Clip from 0 to b becomes Min with b / s per channel, then a Relu with the Clip's name, metadata and result. So every
   Relu is still found, and its result is the one of before, divided by `EqualizationReport.scales`.
4. A channel without weights on one side, a tensor with several readers, and an output of the graph keep their scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.errors import InputError, UsageError
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.graph.model import name_nodes
from relu_deploy.graph.quantization.layer_pairs import Layer, LayerPair, SkippedLayer, find_layer_pairs, grouped, weights_of
from relu_deploy.graph.relus import Relu, find_relus
from relu_deploy.graph.rewriting.pass_result import PassResult
from relu_deploy.records import JsonRecord
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["EqualizationReport", "EqualizedPair", "ReplacedClip", "SkippedLayer", "equalize"]

#: log2 of a scale's change below which the sweeps have converged
CONVERGED = 1e-3
#: a layer between two pairs is scaled twice, and 2^120 is still a float32
LARGEST_LIMIT = 60


@dataclass(frozen=True)
class EqualizedPair(JsonRecord):
    """Two layers that share scales.

    producer, reader: node names. channels: of the tensor between them; scaled: how many of these have a scale other than 1.
    producer_spread, reader_spread: (before, after): the largest range among the producer's rows, or the reader's columns,
    over their median range; 1 is a tensor whose channels all use the full range of int8. After: with all pairs' scales.
    """

    producer: str
    reader: str
    channels: int
    scaled: int
    producer_spread: tuple[float, float]
    reader_spread: tuple[float, float]


@dataclass(frozen=True)
class ReplacedClip(JsonRecord):
    """A Clip that became something else. became: "min and relu", which is exact, or "relu", which is not proven to be.

    because: "exact"; "observed": the data stayed below the bound in every channel; "asked": `replace_clips` was set.
    """

    node: str
    tensor: str
    upper: float
    became: str
    because: str


@dataclass(frozen=True)
class EqualizationReport:
    """What equalization scaled, skipped and replaced.

    scales: for each tensor inside a pair, by name, what it was divided by: float32, broadcasts to it.
    is_exact: whether outputs are those of the model before, bit for bit, as long as no number underflows or overflows.
    """

    pairs: tuple[EqualizedPair, ...]
    skipped: tuple[SkippedLayer, ...]
    clips: tuple[ReplacedClip, ...]
    scales: Mapping[str, Array]
    is_exact: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "pairs": [pair.to_json() for pair in self.pairs],
            "skipped": [skipped.to_json() for skipped in self.skipped],
            "clips": [clip.to_json() for clip in self.clips],
            "is_exact": self.is_exact,
        }


def equalize(
    model: ir.Model,
    *,
    iterations: int = 20,
    power_of_two: bool = True,
    limit: int = 12,
    replace_clips: bool = False,
    observed_maximum: Mapping[str, Array] | None = None,
    margin: float = 0.1,
) -> PassResult[EqualizationReport]:
    """Return a copy of the float32 `model` whose neighboring layers have equal ranges per channel, and what was done.

    Batch norms must have been folded: a layer followed by one is skipped. iterations: sweeps over all pairs at most.
    limit: log2 of the largest scale. replace_clips: turn every Clip from 0 into a Relu, as the paper does with ReLU6.
    observed_maximum: by a Clip's result, the greatest value seen in each channel, (C,): where all stay below the bound by
    its share `margin`, a Relu takes the Clip's place. Neither is proven to change nothing, and both are listed.
    Raises UsageError for a count that makes no sense, InputError for observations of another number of channels.
    """
    if iterations < 1 or not 1 <= limit <= LARGEST_LIMIT:
        raise UsageError(
            f"equalization takes iterations from 1 and a limit from 1 to {LARGEST_LIMIT}, not {iterations} and {limit}",
            "the defaults are 20 and 12",
        )
    new = model.clone()
    name_nodes(new)
    clips = [_as_relu(node, relu, "asked") for node, relu in _clips(new).items()] if replace_clips else []
    layer_pairs, skipped = find_layer_pairs(new)
    layers = {node: Layer.of(node) for pair in layer_pairs for node in (pair.producer, pair.reader)}
    before = [_spreads(pair, layers) for pair in layer_pairs]
    exponents = _converged(layer_pairs, layers, iterations, limit)
    if power_of_two:
        exponents = _rounded(layer_pairs, layers, exponents)
    after = [_spreads(pair, layers) for pair in layer_pairs]
    is_reversible = [_scale_weights(new, layer) for layer in layers.values()]
    scales: dict[str, Array] = {}
    for pair, exponent in zip(layer_pairs, exponents, strict=True):
        if exponent.any():
            scales |= _scale_between(new, pair, _power(exponent))
            clips += _scale_clips(new, pair, _power(exponent), observed_maximum or {}, margin)
    _drop_unread(new, model)
    pairs = [
        EqualizedPair(
            str(pair.producer.name),
            str(pair.reader.name),
            pair.channels,
            int(np.count_nonzero(exponent)),
            (old[0], now[0]),
            (old[1], now[1]),
        )
        for pair, exponent, old, now in zip(layer_pairs, exponents, before, after, strict=True)
    ]
    is_exact = power_of_two and all(is_reversible) and not any(clip.became == "relu" for clip in clips)
    report = EqualizationReport(tuple(pairs), tuple(skipped), tuple(clips), scales, is_exact)
    return PassResult(new, bool(scales or clips), report)


# ---------------------------------------------------------------- computing the scales


def _converged(layer_pairs: list[LayerPair], layers: Mapping[ir.Node, Layer], iterations: int, limit: int) -> list[Array]:
    """Return log2 of the scales of each pair, when further sweeps would not change them."""
    exponents = [np.zeros(pair.channels) for pair in layer_pairs]
    for _ in range(iterations):
        change = 0.0
        for index, pair in enumerate(layer_pairs):
            rows, columns = pair.ranges(layers)
            old = exponents[index]
            step = np.subtract(rows, columns, out=np.zeros(pair.channels), where=np.isfinite(rows) & np.isfinite(columns)) / 2
            exponents[index] = np.clip(old + step, -limit, limit)
            pair.scale_by(exponents[index], layers)
            change = max(change, float(np.abs(exponents[index] - old).max()))
        if change < CONVERGED:
            break
    return exponents


def _rounded(layer_pairs: list[LayerPair], layers: Mapping[ir.Node, Layer], exponents: list[Array]) -> list[Array]:
    """Return whole exponents beside `exponents`, and scale `layers` by them.

    A factor common to all channels changes nothing for a scale per tensor. So of all such factors each pair takes the one
    with which rounding widens its two tensors least: on MobileNetV2 a third less than rounding to the nearest.
    """
    offsets = sorted(np.arange(-31, 32) / 64, key=abs)
    rounded = []
    for pair, exponent in zip(layer_pairs, exponents, strict=True):
        rows, columns = pair.ranges(layers)
        choices = [np.rint(exponent + offset) for offset in offsets]
        widths = [(rows + exponent - choice).max() + (columns - exponent + choice).max() for choice in choices]
        rounded.append(choices[int(np.argmin(widths))])
        pair.scale_by(rounded[-1], layers)
    return rounded


def _spreads(pair: LayerPair, layers: Mapping[ir.Node, Layer]) -> tuple[float, float]:
    """Return the largest range over the median one, of the producer's rows and of the reader's columns."""
    alive = [ranges[np.isfinite(ranges)] for ranges in pair.ranges(layers)]
    rows, columns = (float(np.exp2(one.max() - np.median(one))) if one.size else 1.0 for one in alive)
    return rows, columns


def _power(exponent: Array) -> Array:
    """Return 2 to the power of `exponent` in float32, exactly where that is whole."""
    whole = np.rint(exponent)
    return np.ldexp(np.exp2(exponent - whole), whole.astype(int)).astype(np.float32)


# ---------------------------------------------------------------- applying them


def _scale_weights(model: ir.Model, layer: Layer) -> bool:
    """Scale the weights of `layer`; return whether nothing of them was lost."""
    if not layer.rows.any() and not layer.columns.any():
        return True
    weights = weights_of(layer.node, "")
    factor = (_power(layer.columns)[:, None] / _power(layer.rows)[:, :, None])[..., None]
    scaled = np.array(weights, order="C")
    view = grouped(layer.node, scaled)
    view *= factor
    _store(model, layer.node, 1, scaled)
    return bool(np.array_equal(view / factor, grouped(layer.node, weights)))


def _scale_between(model: ir.Model, pair: LayerPair, scale: Array) -> dict[str, Array]:
    """Scale every bias between the weights of `pair`; return what each tensor there is divided by."""
    scales = {}
    for step in pair.steps:
        shaped = step.shaped(scale)
        scales[str(step.node.outputs[0].name)] = shaped
        places = range(2, len(step.node.inputs)) if step.node is pair.producer else range(2 * (step.node.op_type == "Add"))
        for position in places:
            bias = constant_of(step.node.inputs[position])
            if bias is not None:
                _store(model, step.node, position, bias / (scale if step.node is pair.producer else shaped))
    return scales


def _clips(model: ir.Model) -> dict[ir.Node, Relu]:
    """Return the Relus that have an upper bound."""
    nodes = {str(node.name): node for node in model.graph}
    return {nodes[relu.node]: relu for relu in find_relus(model) if relu.node in nodes and (relu.upper or 0) > 0}


def _scale_clips(
    model: ir.Model, pair: LayerPair, scale: Array, observed: Mapping[str, Array], margin: float
) -> list[ReplacedClip]:
    """Give each Clip of `pair` a bound per channel, or none where the numbers observed never came near it."""
    clips, changed = _clips(model), []
    for step in pair.steps:
        if step.node not in clips:
            continue
        relu, shaped = clips[step.node], step.shaped(scale)
        upper, seen = float(relu.upper or 0), observed.get(relu.output)
        if seen is not None and np.size(seen) != shaped.size:
            raise InputError(
                f"{relu.output} has {shaped.size} channels, {np.size(seen)} were observed", "give one maximum per channel"
            )
        if seen is not None and bool((np.asarray(seen) <= upper * (1 - margin)).all()):
            changed.append(_as_relu(step.node, relu, "observed"))
        else:
            _bound(model, step.node, upper / shaped)
            changed.append(_as_relu(step.node, relu, "exact"))
    return changed


def _bound(model: ir.Model, node: ir.Node, bound: Array) -> None:
    """Let `node` read its first input through a Min with `bound`."""
    import onnx_ir as ir

    source, name = node.inputs[0], node.outputs[0].name
    below = ir.Value(name=f"{name}/below", type=node.outputs[0].type, shape=node.outputs[0].shape)
    least = ir.Node("", "Min", [source, None], name=f"{node.name}/bound", outputs=[below])
    model.graph.insert_before(node, least)
    _store(model, least, 1, bound)
    node.replace_input_with(0, below)


def _as_relu(node: ir.Node, relu: Relu, because: str) -> ReplacedClip:
    """Turn the Clip `node` into a Relu."""
    node.op_type = "Relu"
    node.resize_inputs(1)
    node.attributes.clear()
    became = "min and relu" if because == "exact" else "relu"
    return ReplacedClip(relu.node, relu.output, float(relu.upper or 0), became, because)


def _store(model: ir.Model, node: ir.Node, position: int, array: Array) -> None:
    """Make `array` the float32 constant that `node` reads there: under its old name, unless others read that as well."""
    import onnx_ir as ir

    value = node.inputs[position]
    if value is None or not value.is_initializer() or len(value.uses()) != 1 or value.is_graph_output():
        value = ir.Value(name=f"{node.name}/{'constant' if value is None else value.name}")
    value.const_value = ir.tensor(np.asarray(array, np.float32), name=value.name)
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.FLOAT
    model.graph.register_initializer(value)
    node.replace_input_with(position, value)


def _drop_unread(new: ir.Model, old: ir.Model) -> None:
    """Remove from `new` the weights that something in `old` reads but nothing any more, and Constants that nothing reads."""
    for name, value in old.graph.initializers.items():
        still = new.graph.initializers[name]
        if value.uses() and not still.uses() and not still.is_graph_output():
            del new.graph.initializers[name]
    for node in [node for node in new.graph if node.op_type == "Constant"]:
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            new.graph.remove(node, safe=True)
