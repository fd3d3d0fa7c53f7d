"""The graphs that a verification compares, made comparable: the same random numbers, and nothing that cannot be evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, UsageError
from relu_deploy.graph.model import read_model
from relu_deploy.tensors import Feeds
from relu_deploy.verification.judging.defined_order import with_defined_order
from relu_deploy.verification.judging.pinning import (
    PinnedNodes,
    random_nodes_of,
    random_values,
    replaced,
    unknown_nodes_of,
    unknown_values,
)
from relu_deploy.verification.truth import Truth, choose_against, find_truth, open_source

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Comparable", "comparable", "truth_of_outputs"]


@dataclass(frozen=True)
class Comparable:
    """The two sides of a verification.

    Attributes:
        bundle: What backends run.
        evaluable: What the reference evaluator runs.
        against: As for `open_source`.
        shown: `against` as the report shows it.
        random: Names of the nodes that were replaced by one draw.
        unknown: Names and operators of the nodes whose results were taken from a runtime.
    """

    bundle: Bundle
    evaluable: Bundle
    against: str
    shown: str
    random: tuple[str, ...] = ()
    unknown: tuple[tuple[str, str], ...] = ()


@contextmanager
def comparable(
    bundle: Bundle, against: str | None, backends: Sequence[str], feeds: Feeds, options: Mapping[str, Any]
) -> Iterator[Comparable]:
    """Yield what to run and what to compare it with.

    Raises:
        UsageError: If a graph with random nodes is to be compared with a PyTorch program, whose numbers cannot be shared.
        InputError: If the other graph draws other random numbers.
    """
    shown = choose_against(bundle, against)
    with ExitStack() as stack:
        bundle = stack.enter_context(with_defined_order(bundle))
        nodes = random_nodes_of(read_model(bundle.onnx))
        if nodes and shown == "torch":
            if against is not None:
                listed = ", ".join(f"{node.name} ({node.op_type})" for node in nodes[:3])
                raise UsageError(
                    f"{bundle.name} draws random numbers at {listed}: PyTorch's are others", "verify --against reference"
                )
            shown = "reference"
        chosen = shown
        if chosen not in ("torch", "reference"):
            theirs = _open(Path(chosen))
            ordered = stack.enter_context(with_defined_order(theirs))
            chosen = chosen if ordered is theirs else str(ordered.onnx)
        if nodes:
            draws = random_values(bundle, nodes, feeds)
            if chosen != "reference":
                chosen = str(stack.enter_context(_with_same_draws(Path(chosen), nodes, draws)).onnx)
            bundle = stack.enter_context(replaced(bundle, draws))
        unknown = unknown_nodes_of(read_model(bundle.onnx)) if chosen != "torch" else []
        evaluable = bundle
        known_by_runtime = PinnedNodes({}, {})
        if unknown:
            known_by_runtime = unknown_values(bundle, [name for name, _ in unknown], backends, feeds, options)
            evaluable = stack.enter_context(replaced(bundle, known_by_runtime))
        if chosen not in ("torch", "reference"):
            other = _open(Path(chosen))
            if unknown_theirs := unknown_nodes_of(read_model(other.onnx)):
                values = _preferring(
                    known_by_runtime, unknown_values(other, [name for name, _ in unknown_theirs], backends, feeds, options)
                )
                chosen = str(stack.enter_context(replaced(other, values)).onnx)
        random = tuple(str(node.name) for node in nodes)
        yield Comparable(bundle, evaluable, chosen, shown, random, tuple(unknown))


def _preferring(ours: PinnedNodes, theirs: PinnedNodes) -> PinnedNodes:
    """Return the values of the other graph, those of ours where both have a tensor.

    What an operator that cannot be evaluated makes of the errors before it is not known: the nodes behind it are compared on
    the same operands.
    """
    values = {
        name: ours.values[name] if name in ours.values and ours.values[name].shape == value.shape else value
        for name, value in theirs.values.items()
    }
    return PinnedNodes(values, theirs.masks, theirs.removed)


def truth_of_outputs(bundle: Bundle, feeds: Feeds, precision: str, threads: int = 0) -> Truth:
    """Return the truth of the outputs of `bundle` alone, in the noise of `precision`.

    Nodes that the reference evaluator does not have return what ONNX Runtime returns, as in `verify`. Outputs that only such
    nodes make may be missing.
    """
    with comparable(bundle, None, (), feeds, {"threads": threads}) as compared:
        return find_truth(open_source(compared.evaluable, compared.against, (), threads), feeds, precision)


@contextmanager
def _with_same_draws(path: Path, ours: Sequence[ir.Node], draws: PinnedNodes) -> Iterator[Bundle]:
    """Yield the other graph with the draws of ours, node by node in the order of the graphs."""
    other_bundle = _open(path)
    nodes = random_nodes_of(read_model(other_bundle.onnx))
    if len(nodes) != len(ours):
        raise InputError(
            f"{path} draws random numbers at {len(nodes)} nodes, the graph under test at {len(ours)}", "compare like with like"
        )
    pairs = (pair for node, other in zip(ours, nodes, strict=True) for pair in zip(node.outputs, other.outputs, strict=False))
    names = {str(one.name): str(other.name) for one, other in pairs}
    values = {names[name]: value for name, value in draws.values.items()}
    masks = {names[name]: value for name, value in draws.masks.items()}
    with replaced(other_bundle, PinnedNodes(values, masks)) as bundle:
        yield bundle


def _open(path: Path) -> Bundle:
    if path.suffix != ".onnx" and not path.is_dir():
        raise UsageError(
            f"cannot verify against {str(path)!r}", "one of: torch, reference, or the path of an .onnx file or bundle"
        )
    return Bundle.open(path)
