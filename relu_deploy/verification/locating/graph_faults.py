"""Which node is at fault: of the graph, or of the backend that runs it.

In the graph. The graph under test is evaluated in float64 node by node, and every node is fed the truth's own tensors
wherever the truth has them: a node's error is then its own and owes nothing to the nodes before it, on whatever branch
they stand. Its noise is measured the same way, with the same inputs and its weights, operands and result rounded at
random. A node (or a channel of it) whose error is more than the limit times its noise is at fault. Nothing here depends
on a backend, and float32's rounding does not blur it.

On the backend. Where the graph is right and a backend's numbers are not, the piece between two Relus is cut out and run
alone on the truth's inputs; in the first piece that fails, each node is run alone, then each beginning of the piece.

What has no counterpart in the truth (a node that a rewrite put in) is passed through: its error shows at the next tensor
that has one, and the node is chosen among those between by what the truth has no equal of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from relu_deploy.backends import load
from relu_deploy.backends.base import TruthSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import ReluDeployError
from relu_deploy.graph import SCOPE_KEY, cut, find_relus, load_model, nodes_between, quantized_relu, save_model
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.classify import describe
from relu_deploy.verification.node_error import STORAGE, evaluated_on, first_loss, stored_again
from relu_deploy.verification.truth import find_truth, open_source
from relu_deploy.verification.verdict import LIMITS, compare

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Fault", "faults_of_graph", "locate_on_backend"]


@dataclass(frozen=True)
class Fault:
    """A node at fault. where: "graph" or the backend's name. kind, detail: how its output differs, in a word and in words.

    error_ratio: of the node's own error, as far as it was measured. region: the nodes among which it was chosen, when the
    truth has no tensor between them.
    """

    node: str
    operator: str
    scope: str
    where: str
    kind: str
    detail: str
    error_ratio: float | None
    region: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        ratio = self.error_ratio if self.error_ratio is not None and np.isfinite(self.error_ratio) else None
        return {
            "node": self.node,
            "operator": self.operator,
            "scope": self.scope,
            "where": self.where,
            "kind": self.kind,
            "detail": self.detail,
            "error_ratio": ratio,
            "region": list(self.region),
        }


# ---------------------------------------------------------------- in the graph


def faults_of_graph(bundle: Bundle, against: str, feeds: Feeds, precision: str) -> list[Fault]:
    """Return the nodes of `bundle`'s graph whose own output is not the truth's, in the graph's order.

    against: as for `open_source`; held against itself a graph has none. precision: of the graph.
    """
    if against == "reference":
        return []
    model = load_model(bundle.onnx)
    source = open_source(bundle, against, find_relus(model))
    # The inputs too: what stores one of them again is judged by itself, not by the first node that reads it.
    known = {**feeds, **source.everything(feeds)}
    source.session.close()
    known |= stored_again(model, known)
    own, given = evaluated_on(known, cast(TruthSession, load(bundle, "reference")), feeds, precision)
    relus = {relu.node: np.inf if relu.upper is None else relu.upper for relu in find_relus(model)}
    theirs = _model_of(against)
    called = {ours: their_name for their_name, ours in source.inner.items()}
    faults = []
    for node in model.graph:
        for value in node.outputs:
            name = str(value.name)
            if name not in own:
                continue
            tensor = own[name]
            upper = _read_up_to(value, relus) if precision in ("int8", "float8") else None
            # A quantizer may clip what the Relu behind it cuts off anyway.
            judged = tensor if upper is None else tensor.clipped(upper)
            # One range for a whole tensor is never each channel's best: a pair that stores is judged by all of it.
            ratio = judged.of_tensor if node.op_type in STORAGE else judged.error_ratio
            if ratio > LIMITS[precision]:
                region = nodes_between(model, known, [name])
                unmatched = _strangers(region, theirs, [called.get(one, one) for one in known], called.get(name, name))
                culprit = _culprit(unmatched, given, precision) or node
                between = tuple(str(one.name) for one in region) if len(region) > 1 else ()
                kind, detail = describe(tensor.got, tensor.true)
                faults.append(_fault(culprit, "graph", kind, detail, ratio, between))
                break
    return faults


def _read_up_to(value: ir.Value, relus: Mapping[str, float]) -> float | None:
    """Return the largest number that any reader of `value` lets through, where all of them, past storage, are Relus; else None.

    relus: upper bounds by node.
    """
    readers = list(value.consumers())
    if not readers or value.is_graph_output():
        return None
    bounds: list[float | None] = []
    for node in readers:
        clamp = quantized_relu(node)
        stores = node.op_type in STORAGE and clamp is None
        bounds += [_read_up_to(output, relus) for output in node.outputs] if stores else [relus.get(str(node.name), clamp)]
    known = [bound for bound in bounds if bound is not None]
    return max(known) if len(known) == len(bounds) else None


def _strangers(region: Sequence[ir.Node], theirs: ir.Model | None, known: Collection[str], tensor: str) -> list[ir.Node]:
    """Return the nodes of `region` that have no equal among the truth's own nodes before `tensor`, none when that is not told.

    known, tensor: under the truth's names.
    """
    if theirs is None or len(region) < 2:
        return []
    try:
        equals = nodes_between(theirs, known, [tensor])
    except ReluDeployError:
        return []
    unmatched = []
    for node in region:
        equal = next((other for other in equals if _is_equal(node, other)), None)
        if equal is None:
            unmatched.append(node)
        else:
            equals.remove(equal)
    return unmatched


def _culprit(unmatched: Sequence[ir.Node], given: Mapping[str, Array], precision: str) -> ir.Node | None:
    """Return the node at fault among `unmatched`, None when there are none.

    One that computes comes before one that stores: a quantized graph has the latter everywhere. Of those that store it is
    the first that does not give back what it was given.
    """
    computing = [node for node in unmatched if node.op_type not in STORAGE]
    return next(iter(computing), None) or first_loss(unmatched, given, precision) or next(iter(unmatched), None)


def _is_equal(node: ir.Node, other: ir.Node) -> bool:
    """Return whether `node` computes what `other`, of the truth, does, with the same constants as its own precision keeps them."""
    if (node.domain, node.op_type, len(node.inputs)) != (other.domain, other.op_type, len(other.inputs)):
        return False
    attributes, others = ({name: str(one.value) for name, one in each.attributes.items()} for each in (node, other))
    return attributes == others and all(map(_is_same_constant, node.inputs, other.inputs))


def _is_same_constant(value: ir.Value | None, other: ir.Value | None) -> bool:
    mine, theirs = (None if one is None or one.const_value is None else one.const_value.numpy() for one in (value, other))
    if mine is None or theirs is None:
        return mine is theirs
    with np.errstate(over="ignore"):
        return mine.shape == theirs.shape and np.array_equal(mine, theirs.astype(mine.dtype), equal_nan=mine.dtype.kind == "f")


def _model_of(against: str) -> ir.Model | None:
    return None if against == "torch" else load_model(Bundle.open(against).onnx)


# ---------------------------------------------------------------- on the backend


def locate_on_backend(
    bundle: Bundle,
    backend: str,
    failing: Sequence[str],
    anchors: Mapping[str, Array],
    feeds: Feeds,
    precision: str,
    options: Mapping[str, Any],
) -> Fault | None:
    """Return the node that `backend`, loaded with `options`, computes wrongly, None when nothing fails.

    failing: tensors of the graph whose verdict was no, in its order. anchors: the truth's tensors at which the graph is cut.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    # Quantizers leave their graphs without types, which a piece needs at its ends.
    model = ShapeInferencePass()(load_model(bundle.onnx)).model
    made = {str(value.name): node for node in model.graph for value in node.outputs}
    known = {**feeds, **anchors}
    for tensor in failing:
        if tensor not in made:
            continue
        inputs = [name for name in known if name != tensor]
        piece = nodes_between(model, inputs, [tensor])
        try:
            if _alone(model, backend, known, inputs, tensor, precision, options) is None:
                continue
            fault = _bisect(model, backend, piece, known, inputs, tensor, precision, options)
        except ReluDeployError as why:
            # A backend that cannot run pieces (PyTorch runs its own program) still knows the first Relu that differs.
            return _fault(made[tensor], backend, "values", f"the piece could not be run alone: {why.message}", None)
        return fault
    first = next((tensor for tensor in failing if tensor in made), None)
    if first is None:
        return None
    return _fault(
        made[first], backend, "accumulated", "each piece alone is within its noise: the error grows along the way", None
    )


def _bisect(
    model: ir.Model,
    backend: str,
    piece: Sequence[ir.Node],
    known: Mapping[str, Array],
    inputs: Sequence[str],
    tensor: str,
    precision: str,
    options: Mapping[str, Any],
) -> Fault:
    inner = [str(value.name) for node in piece for value in node.outputs if value.name]
    with _written(cut(model, inputs, [tensor, *(name for name in inner if name != tensor)])) as whole:
        session = cast(TruthSession, load(whole, "reference"))
        true = {**known, **session.evaluate(_feeds_for(whole, known))}
    for node in piece:
        outputs = [str(value.name) for value in node.outputs if value.name]
        others = [name for name in true if name not in outputs]
        if (wrong := _alone(model, backend, true, others, outputs[0], precision, options)) is not None:
            return _fault(node, backend, *wrong)
    for node in piece:
        # No node alone: then it is what the runtime makes of several together.
        if (wrong := _alone(model, backend, known, inputs, str(node.outputs[0].name), precision, options)) is not None:
            together = nodes_between(model, inputs, [str(node.outputs[0].name)])
            culprit = next((one for one in reversed(together) if one.op_type not in STORAGE), node)
            region = tuple(str(one.name) for one in together)
            kind, detail, ratio = wrong
            return _fault(culprit, backend, kind, f"{detail}; only together with the nodes around it", ratio, region)
    return _fault(piece[-1], backend, "values", "differs only while the whole piece is run", None)


def _alone(
    model: ir.Model,
    backend: str,
    known: Mapping[str, Array],
    inputs: Sequence[str],
    tensor: str,
    precision: str,
    options: Mapping[str, Any],
) -> tuple[str, str, float] | None:
    """Return how `tensor` differs when its piece is run alone on the truth's inputs: kind, detail, error ratio; None when not."""
    with _written(cut(model, inputs, [tensor])) as piece:
        feeds = _feeds_for(piece, known)
        source = open_source(piece, "reference", ())
        truth = find_truth(source, "reference", feeds, precision)
        session = load(piece, backend, **options)
        got = session.run(feeds)[tensor]
        session.close()
    verdict = compare(got, truth.values[tensor], truth.noise_floor[tensor], LIMITS[precision])
    if verdict.passed:
        return None
    return (*describe(got, truth.values[tensor]), verdict.error_ratio)


class _written:  # a context manager that reads as a word  # noqa: N801  # a context manager that reads as a word
    """A piece of a graph as a file, for as long as the block lasts."""

    def __init__(self, model: ir.Model) -> None:
        self._model, self._folder = model, tempfile.TemporaryDirectory(prefix="relu-deploy-piece-")

    def __enter__(self) -> Bundle:
        path = Path(self._folder.name) / "piece.onnx"
        save_model(self._model, path)
        return Bundle.open(path)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _feeds_for(piece: Bundle, known: Mapping[str, Array]) -> Feeds:
    with np.errstate(over="ignore"):
        return {spec.name: np.ascontiguousarray(known[spec.name]).astype(spec.dtype) for spec in piece.inputs}


def _fault(node: ir.Node, where: str, kind: str, detail: str, ratio: float | None, region: Iterable[str] = ()) -> Fault:
    scope = node.metadata_props.get(SCOPE_KEY, "")
    return Fault(str(node.name), node.op_type, scope, where, kind, detail, ratio, tuple(region))
