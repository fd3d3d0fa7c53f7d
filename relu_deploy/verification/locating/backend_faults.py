"""The node that a backend computes wrongly, where the graph is right.

The piece of the graph before the first tensor that differs is cut out, between two tensors of the truth, and run alone on the
truth's inputs. In the first piece that fails, the first beginning of it that fails is found by halving; the last node of that
beginning is then run alone. Where it does not fail alone, each other node of the beginning is run alone; where none fails,
the fault is in what the runtime makes of several nodes together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from relu_deploy.backends import load
from relu_deploy.backends.base import TruthSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import ReluDeployError
from relu_deploy.graph import extract_subgraph, load_model, nodes_between, save_model
from relu_deploy.graph.precision import Quantized, quantized_parts
from relu_deploy.graph.shapes.shape_inference import infer_shapes
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.locating.classify import describe
from relu_deploy.verification.locating.fault import Fault
from relu_deploy.verification.locating.node_error import STORAGE
from relu_deploy.verification.truth import find_truth, open_source

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["BackendUnderTest", "locate_on_backend"]


@dataclass(frozen=True)
class BackendUnderTest:
    """A backend that pieces of a graph are run on. options, reference: its own and the reference evaluator's. precision: of the graph."""

    name: str
    options: Mapping[str, Any]
    precision: str
    reference: Mapping[str, Any]


@dataclass(frozen=True)
class _Difference:
    """How the output of a piece differs from the truth. description: kind and detail, as from `describe`."""

    description: tuple[str, str]
    ratio: float


def locate_on_backend(
    bundle: Bundle, backend: BackendUnderTest, failing: Sequence[str], anchors: Mapping[str, Array], feeds: Feeds
) -> Fault | None:
    """Return the node that a backend computes wrongly, None when nothing fails.

    Args:
        bundle: The graph.
        backend: What runs it.
        failing: The tensors of the graph that differ, in its order.
        anchors: The truth's tensors, at which the graph is cut.
        feeds: The inputs.
    """
    # Quantizers write graphs without types, and a piece needs those of its inputs and outputs.
    model = load_model(bundle.onnx)
    infer_shapes(model)
    producers = {str(value.name): node for node in model.graph for value in node.outputs}
    pieces = _Pieces(model, backend, {**feeds, **anchors})
    for tensor in failing:
        if tensor not in producers:
            continue
        try:
            if pieces.run_alone(tensor) is not None:
                return pieces.bisect(tensor)
        except ReluDeployError as error:
            # A backend that cannot run pieces (PyTorch runs its own program) still knows the first Relu that differs.
            detail = f"the piece could not be run alone: {error.message}"
            return Fault.at(producers[tensor], backend.name, ("values", detail), None)
    first = next((tensor for tensor in failing if tensor in producers), None)
    if first is None:
        return None
    detail = "each piece alone is within its noise: the error grows along the way"
    return Fault.at(producers[first], backend.name, ("accumulated", detail), None)


@dataclass(frozen=True)
class _Pieces:
    """Pieces of `model` on `backend`, fed with `known` tensors: the inputs and those of the truth."""

    model: ir.Model
    backend: BackendUnderTest
    known: Mapping[str, Array]

    def run_alone(self, tensor: str, known: Mapping[str, Array] | None = None) -> _Difference | None:
        """Return how `tensor` differs when its piece is run alone on the truth's inputs, None when it does not.

        known: The tensors to cut the graph at, by default `self.known`.
        """
        values = self.known if known is None else known
        inputs = [name for name in values if name != tensor]
        precision = self.backend.precision
        with _saved(extract_subgraph(self.model, inputs, [tensor])) as piece:
            feeds = _feeds_for(piece, values)
            with closing(open_source(piece, "reference", (), self.backend.reference)) as source:
                truth = find_truth(source, feeds, precision, Quantized(quantized_parts(self.model).operators))
            with closing(load(piece, self.backend.name, **self.backend.options)) as session:
                got = session.run(feeds)[tensor]
        verdict = truth.compare(tensor, np.asarray(got))
        return None if verdict.passed else _Difference(describe(got, truth.values[tensor]), verdict.error_ratio)

    def bisect(self, tensor: str) -> Fault:
        """Return the node at fault in the piece before `tensor`, which fails."""
        inputs = [name for name in self.known if name != tensor]
        piece = nodes_between(self.model, inputs, [tensor])
        ends = [str(node.outputs[0].name) for node in piece]
        low, high = 0, len(piece) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.run_alone(ends[middle]) is None else (low, middle)
        together = nodes_between(self.model, inputs, [ends[high]])
        known = self._evaluated(piece, inputs, tensor)
        # On parallel branches a beginning may pass although it has the faulty node: then the others of it are tried as well.
        for node in (together[-1], *together[:-1]):
            outputs = {str(value.name) for value in node.outputs}
            around = {name: value for name, value in known.items() if name not in outputs}
            if (difference := self.run_alone(str(node.outputs[0].name), around)) is not None:
                return Fault.at(node, self.backend.name, difference.description, difference.ratio)
        difference = self.run_alone(ends[high])
        if difference is None:
            return Fault.at(piece[-1], self.backend.name, ("values", "differs only while the whole piece is run"), None)
        culprit = next((one for one in reversed(together) if one.op_type not in STORAGE), together[-1])
        kind, detail = difference.description
        description = (kind, f"{detail}; only together with the nodes around it")
        region = [str(one.name) for one in together]
        return Fault.at(culprit, self.backend.name, description, difference.ratio, region)

    def _evaluated(self, piece: Sequence[ir.Node], inputs: Sequence[str], tensor: str) -> dict[str, Array]:
        """Return the known tensors, and in float64 those that the nodes of `piece` make."""
        inner = [str(value.name) for node in piece for value in node.outputs if value.name and value.name != tensor]
        with _saved(extract_subgraph(self.model, inputs, [tensor, *inner])) as whole:
            session = cast(TruthSession, load(whole, "reference", **self.backend.reference))
            return {**self.known, **session.evaluate(_feeds_for(whole, self.known))}


@contextmanager
def _saved(model: ir.Model) -> Iterator[Bundle]:
    """Yield `model` as a file, for as long as the block lasts."""
    with temporary_folder("piece") as folder:
        path = Path(folder) / "piece.onnx"
        save_model(model, path)
        yield Bundle.open(path)


def _feeds_for(piece: Bundle, known: Mapping[str, Array]) -> Feeds:
    with np.errstate(over="ignore"):
        return {spec.name: np.ascontiguousarray(known[spec.name]).astype(spec.dtype) for spec in piece.inputs}
