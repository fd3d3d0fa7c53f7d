"""The graphs that a verification compares, made comparable: the same random numbers, and nothing that cannot be evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, UsageError
from relu_deploy.graph import load_model
from relu_deploy.tensors import Feeds
from relu_deploy.verification.judging.pinning import (
    PinnedNodes,
    random_nodes_of,
    random_values,
    replaced,
    unknown_nodes_of,
    unknown_values,
)
from relu_deploy.verification.truth import Truth, choose_against, find_truth, open_source

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
    nodes = random_nodes_of(load_model(bundle.onnx))
    with ExitStack() as stack:
        if nodes and shown == "torch":
            if against is not None:
                listed = ", ".join(f"{node.name} ({node.op_type})" for node in nodes[:3])
                raise UsageError(
                    f"{bundle.name} draws random numbers at {listed}: PyTorch's are others", "verify --against reference"
                )
            shown = "reference"
        chosen = shown
        if nodes:
            draws = random_values(bundle, nodes, feeds)
            if chosen != "reference":
                chosen = str(
                    stack.enter_context(_with_same_draws(Path(chosen), [str(n.outputs[0].name) for n in nodes], draws)).onnx
                )
            bundle = stack.enter_context(replaced(bundle, draws))
        unknown = unknown_nodes_of(load_model(bundle.onnx)) if chosen != "torch" else []
        evaluable = bundle
        if unknown:
            known_by_runtime = unknown_values(bundle, [name for name, _ in unknown], backends, feeds, options)
            evaluable = stack.enter_context(replaced(bundle, known_by_runtime))
        if chosen not in ("torch", "reference"):
            other = _open(Path(chosen))
            if theirs := unknown_nodes_of(load_model(other.onnx)):
                values = unknown_values(other, [name for name, _ in theirs], backends, feeds, options)
                chosen = str(stack.enter_context(replaced(other, values)).onnx)
        random = tuple(str(node.name) for node in nodes)
        yield Comparable(bundle, evaluable, chosen, shown, random, tuple(unknown))


def truth_of_outputs(bundle: Bundle, feeds: Feeds, precision: str, threads: int = 0) -> Truth:
    """Return the truth of the outputs of `bundle` alone, in the noise of `precision`.

    Nodes that the reference evaluator does not have return what ONNX Runtime returns, as in `verify`. Outputs that only such
    nodes make may be missing.
    """
    with comparable(bundle, None, (), feeds, {"threads": threads}) as compared:
        return find_truth(open_source(compared.evaluable, compared.against, (), threads), feeds, precision)


@contextmanager
def _with_same_draws(path: Path, outputs: Sequence[str], draws: PinnedNodes) -> Iterator[Bundle]:
    """Yield the other graph with the draws of ours, node by node in the order of the graphs."""
    other = _open(path)
    nodes = random_nodes_of(load_model(other.onnx))
    if len(nodes) != len(outputs):
        raise InputError(
            f"{path} draws random numbers at {len(nodes)} nodes, the graph under test at {len(outputs)}", "compare like with like"
        )
    names = dict(zip(outputs, (str(node.outputs[0].name) for node in nodes), strict=True))
    values = {names[name]: value for name, value in draws.values.items()}
    masks = {names[name]: value for name, value in draws.masks.items()}
    with replaced(other, PinnedNodes(values, masks)) as bundle:
        yield bundle


def _open(path: Path) -> Bundle:
    if path.suffix != ".onnx" and not path.is_dir():
        raise UsageError(
            f"cannot verify against {str(path)!r}", "one of: torch, reference, or the path of an .onnx file or bundle"
        )
    return Bundle.open(path)
