"""The error of a single node, and its noise.

The graph under test is evaluated in float64 node by node, and every node is fed the truth's own tensors wherever the truth
has them, so that its result does not depend on the nodes before it. Its noise is measured in the same way, at random:

    float precisions   its weights and its result rounded
    int8               its weights rounded to half a step, and the operand of a quantizer to half of its own step where that is
                       coarser than the data need; a Conv that is fed the truth does not see the quantizer before it, which is
                       a node with an error of its own
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends.base import Rounding, Seen, TruthSession
from relu_deploy.graph.precision import EIGHT_BITS, Quantized
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.judging.noise import COARSE, COARSE_DRAWS, draws_for, slack_of
from relu_deploy.verification.judging.verdict import LIMITS, estimate_noise_floor, rms

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["STORAGE", "NodeError", "TrueTensors", "evaluated_on", "first_loss", "stored_again"]

#: operators that store a number in another way and compute nothing
STORAGE = ("Cast", "QuantizeLinear", "DequantizeLinear")
#: floating-point types of ONNX, by the value of the attribute `to`: a cast to any other type rounds to integers
FLOATS = {1, 10, 11, 16, 17, 18, 19, 20}
#: elements that a channel must have before it is judged alone: fewer give no steady root mean square
CHANNEL = 16
#: how much more a single channel may differ than a whole tensor: it is the largest of many
CHANNEL_SLACK = 1.5


@dataclass(frozen=True)
class NodeError:
    """The output of a node that is fed the truth (`got`), the truth's own tensor (`true`), and the RMS noise of each element.

    The noise of an integer is above 0 where a draw of the rounding changes it.
    """

    got: Array
    true: Array
    noise: Array
    precision: str

    def clipped(self, upper: float) -> NodeError:
        """Return the same behind a Relu with this upper bound."""
        return NodeError(np.clip(self.got, 0, upper), np.clip(self.true, 0, upper), self.noise, self.precision)

    @property
    def error_ratio(self) -> float:
        """Return the error in units of the noise: of the whole tensor, or of its worst channel where that is more."""
        return max(self.of_tensor, self._of_worst_channel())

    @property
    def of_tensor(self) -> float:
        """Return the error of the whole tensor in units of its noise; infinite where NaN or infinities differ."""
        got, true, noise = self.got, self.true, self.noise
        if got.shape != true.shape:
            return np.inf
        if not np.issubdtype(true.dtype, np.floating):
            return np.inf if np.any((got != true) & (noise == 0)) else 0.0
        finite = np.isfinite(true)
        if not np.isfinite(got[finite]).all() or not np.array_equal(got[~finite], true[~finite], equal_nan=True):
            return np.inf
        got, true, noise = got[finite], true[finite], noise[finite]
        floor = estimate_noise_floor(true, true + noise, precision=self.precision)
        return rms(got - true) / (floor * slack_of(true.size, COARSE_DRAWS if self.precision in COARSE else 1))

    def _of_worst_channel(self) -> float:
        """Return the largest error of a channel in units of that channel's noise: one wrong weight is lost in a tensor's mean."""
        got, true = self.got, self.true
        if (
            not np.issubdtype(true.dtype, np.floating)
            or true.ndim < 3
            or got.shape != true.shape
            or true.size < CHANNEL * true.shape[1]
        ):
            return 0.0
        axes = tuple(axis for axis in range(true.ndim) if axis != 1)
        finite = np.isfinite(got) & np.isfinite(true)
        difference = np.subtract(got, true, out=np.zeros(true.shape), where=finite)
        error, noise = (np.sqrt(np.mean(np.square(array), axis=axes)) for array in (difference, self.noise))
        # A channel that happens to be almost silent must not make noise look like a fault. In int8 all channels share one step,
        # and the few numbers of a silent one may be rounded by half of it (the square root of 3 times its mean) without a chance
        # of the draw showing it.
        share = 3 if self.precision == "int8" else 16
        floor = np.maximum(noise, estimate_noise_floor(true, true + self.noise, precision=self.precision) / share)
        return float(np.max(error / floor, initial=0)) / CHANNEL_SLACK


class _NodeRounding(Rounding):
    """The rounding of a node that is fed the truth: in int8 of its weights, while its other operands are results of other nodes."""

    def operands(self, operator: str, values: Sequence[Any], weights: Sequence[bool]) -> list[Any]:
        noisy = super().operands(operator, values, weights)
        if operator == "DynamicQuantizeLinear" and self.precision == "int8":
            x = np.asarray(values[0], np.float64)
            step = (max(0.0, float(np.max(x, initial=0))) - min(0.0, float(np.min(x, initial=0)))) / 255
            return [x + step * self._generator.uniform(-0.5, 0.5, x.shape)]
        if operator == "QuantizeLinear":
            # Data that fill a small part of the range are rounded by the steps of the whole range.
            step = np.asarray(values[1], np.float64).reshape(-1)[0] if np.size(values[1]) == 1 else 0.0
            drawn = self._generator.uniform(-0.5, 0.5, np.shape(values[0]))
            coarser = self.precision == "int8" and float(np.max(np.abs(values[0]), initial=0)) / 127 < step
            return [values[0] + step * drawn, *noisy[1:]] if coarser else noisy
        return [new if weight else old for new, old, weight in zip(noisy, values, weights, strict=True)]


@dataclass(frozen=True)
class TrueTensors:
    """The tensors of the truth, in float64.

    Attributes:
        once: Those that have one value, by name.
        iterated: Those inside the bodies of loops, with a value for each of the first iterations.
    """

    once: Mapping[str, Array]
    iterated: Mapping[str, Sequence[Array]]

    def feed(self, keep: Callable[[str, int, Any], None]) -> Seen:
        """Return a callback that feeds every node the truth. keep: Called with name, iteration and value of each tensor."""
        places: Counter[str] = Counter()

        def seen(name: str, value: Any) -> Any:
            place = 0
            true = self.once.get(name)
            if name in self.iterated:
                place, values = places[name], self.iterated[name]
                places[name] += 1
                if place >= len(values):
                    return value
                true = values[place]
            keep(name, place, value)
            return true if true is not None and true.shape == np.shape(value) else value

        return seen

    def __contains__(self, name: str) -> bool:
        return name in self.once or name in self.iterated


def evaluated_on(
    known: TrueTensors, session: TruthSession, feeds: Feeds, precision: str, quantized: Quantized = EIGHT_BITS
) -> tuple[dict[str, NodeError], dict[str, Array]]:
    """Evaluate every node on the truth.

    Args:
        known: The tensors of the truth; each node is fed these where they exist.
        session: Evaluates the graph under test.
        feeds: Its inputs.
        precision: Its precision.
        quantized: As for `Rounding`.

    Returns:
        The error of each tensor that is known, of all iterations together; and all tensors that have one value.
    """
    given: dict[str, dict[int, Any]] = {}
    square: dict[tuple[str, int], Array] = {}
    # The nine weights of a depthwise filter, rounded coarsely once, may happen to be nearly exact: one draw is no measure.
    few = draws_for({**known.once, **{name: values[0] for name, values in known.iterated.items()}}, precision)
    draws = max(few, 4) if precision in COARSE else few

    def keep(name: str, place: int, value: Any) -> None:
        given.setdefault(name, {})[place] = value

    def add_square(name: str, place: int, value: Any) -> None:
        exact: Any = given.get(name, {}).get(place)
        if name not in known or not isinstance(value, np.ndarray) or value.shape != np.shape(exact):
            return
        key = name, place
        if value.dtype.kind in "iub":
            square[key] = square.get(key, 0.0) + (value != exact)
        elif value.dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                error = np.square(value - exact)
            # The difference of two infinities is no noise: it would hide every error beside it.
            square[key] = square.get(key, 0.0) + np.where(np.isfinite(error), error, 0) / draws

    session.evaluate(feeds, seen=known.feed(keep))
    for seed in range(draws):
        session.evaluate(feeds, rounding=_NodeRounding(precision, seed, quantized), seen=known.feed(add_square))
    errors = {}
    for name, values in given.items():
        if name in known and all(isinstance(value, np.ndarray) for value in values.values()):
            true = [known.iterated[name][place] for place in values] if name in known.iterated else [known.once[name]]
            noise = [np.sqrt(square.get((name, place), np.zeros(value.shape))) for place, value in values.items()]
            errors[name] = NodeError(_joined(list(values.values())), _joined(true), _joined(noise), precision)
    return errors, {name: values[0] for name, values in given.items() if name not in known.iterated}


def _joined(arrays: Sequence[Array]) -> Array:
    """Return the values of a tensor in all iterations as one array, along its first axis where they fit together."""
    if len(arrays) == 1:
        return arrays[0]
    if arrays[0].ndim and len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    return np.concatenate([array.reshape(-1) for array in arrays])


def stored_again(model: ir.Model, known: Mapping[str, Array]) -> dict[str, Array]:
    """Return the tensors that only store a known one in another way (Cast, QuantizeLinear and back), with its value."""
    stored: dict[str, Array] = {}
    for node in model.graph:
        source = _stored_by(node)
        name = str(node.outputs[0].name)
        true = None if source is None else known.get(str(source.name), stored.get(str(source.name)))
        if name not in known and true is not None and np.issubdtype(true.dtype, np.floating):
            stored[name] = true
    return stored


def first_loss(nodes: Sequence[ir.Node], given: Mapping[str, Array], precision: str) -> ir.Node | None:
    """Return the first of `nodes` that stores a tensor and does not return it (of a pair the first half), None where all do.

    It needs no truth: a tensor that is stored has to come out again.

    Args:
        nodes: Some nodes of the graph.
        given: All tensors, as from `evaluated_on`.
        precision: Of the graph.
    """
    for node in nodes:
        source = _stored_by(node)
        if source is None or str(source.name) not in given:
            continue
        before, after = given[str(source.name)], given[str(node.outputs[0].name)]
        if NodeError(after, before, np.zeros(before.shape), precision).error_ratio > LIMITS[precision]:
            first_half = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] else node
            return first_half if first_half in nodes else node
    return None


def _stored_by(node: ir.Node) -> ir.Value | None:
    """Return the tensor that `node` returns up to rounding; None where it computes or returns integers."""
    if node.op_type == "Cast":
        return node.inputs[0] if node.attributes["to"].as_int() in FLOATS else None
    if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    quantizer = node.inputs[0].producer()
    return quantizer.inputs[0] if quantizer is not None and quantizer.op_type == "QuantizeLinear" else None
