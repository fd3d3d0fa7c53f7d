"""The graphs that a verification compares, made comparable: the same random numbers, and a runtime for what cannot be evaluated.

A node of an operator that the reference evaluator does not have is run alone by a runtime, on the operands of the evaluation
(see `backends.reference.delegate`): a wrong weight in it is found, and what is done before it shows behind it. Whether the
runtime computes it rightly is not verified, and the report names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.backends import DEFAULT, capabilities
from relu_deploy.backends.reference.program import unsupported_nodes
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, NothingToVerify, UsageError
from relu_deploy.graph.model import read_model
from relu_deploy.tensors import Feeds
from relu_deploy.verification.against import choose_against
from relu_deploy.verification.judging.defined_order import with_defined_order
from relu_deploy.verification.judging.float_form import float_form
from relu_deploy.verification.judging.pinning import PinnedNodes, random_nodes_of, random_values, replaced
from relu_deploy.verification.truth import Truth, find_truth, open_source

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Comparable", "comparable", "truth_of_outputs"]


@dataclass(frozen=True)
class Comparable:
    """The two sides of a verification.

    Attributes:
        bundle: The graph under test.
        against: As for `open_source`.
        shown: `against` as the report shows it.
        reference: Options of the reference evaluator, as for `load`.
        random: Names of the nodes that were replaced by one draw.
        unknown: Names and operators of the nodes that a runtime runs for the truth, those of the other graph included.
        evaluated, origins: As for `VerifyPlan`.
    """

    bundle: Bundle
    against: str
    shown: str
    reference: Mapping[str, Any] = field(default_factory=dict)
    random: tuple[str, ...] = ()
    unknown: tuple[tuple[str, str], ...] = ()
    evaluated: Bundle | None = None
    origins: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def comparable(
    bundle: Bundle, against: str | None, backends: Sequence[str], feeds: Feeds, options: Mapping[str, Any]
) -> Iterator[Comparable]:
    """Yield what to run and what to compare it with.

    Raises:
        UsageError: If a graph with random nodes is to be compared with a PyTorch program, whose numbers cannot be shared.
        InputError: If the other graph draws other random numbers, or nothing in the graph can be evaluated.
    """
    shown = choose_against(bundle, against)
    reference = _reference_options(backends, options)
    with ExitStack() as stack:
        bundle = stack.enter_context(with_defined_order(bundle, lengths=shown != "torch"))
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
            draws = random_values(bundle, nodes, feeds, reference)
            if chosen != "reference":
                chosen = str(stack.enter_context(_with_same_draws(Path(chosen), nodes, draws)).onnx)
            bundle = stack.enter_context(replaced(bundle, draws))
        random = tuple(str(node.name) for node in nodes)
        unknown = _unknown_nodes(bundle, chosen)
        if chosen in ("torch", "reference"):
            yield Comparable(bundle, chosen, shown, reference, random, unknown)
            return
        form = stack.enter_context(float_form(bundle, _open(Path(chosen))))
        yield Comparable(form.run, chosen, shown, reference, random, unknown, form.evaluated, form.origins)


def _reference_options(backends: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the reference evaluator. What it does not have is run by the first of `backends` that can, else `DEFAULT`."""
    runtimes = [
        name
        for name in backends
        if (able := capabilities(name)).shows_tensors and not able.runs_program and not able.evaluates_float64
    ]
    same = {name: options[name] for name in ("threads", "device", "optimization") if name in options}
    return {**same, "delegate": (*runtimes, DEFAULT)[0]}


def _unknown_nodes(bundle: Bundle, against: str) -> tuple[tuple[str, str], ...]:
    """Return the names and operators of the nodes that the reference evaluator does not have. Raises NothingToVerify when all are."""
    if against == "torch":
        return ()
    model = read_model(bundle.onnx)
    unknown = _unknown_of(model)
    if against != "reference":
        return tuple(dict.fromkeys((*unknown, *_unknown_of(read_model(_open(Path(against)).onnx)))))
    names = {name for name, _ in unknown}
    if names and all(str(node.name) in names or node.op_type == "Constant" for node in model.graph):
        node, operator = unknown[0]
        raise NothingToVerify(
            f"nothing can be verified: the reference evaluator has no operator of the graph, such as {operator} (node {node!r})",
            "verify against another ONNX file",
        )
    return tuple(unknown)


def _unknown_of(model: ir.Model) -> list[tuple[str, str]]:
    return [(node, f"{domain}.{operator}" if domain else operator) for node, domain, operator in unsupported_nodes(model)]


def truth_of_outputs(bundle: Bundle, feeds: Feeds, precision: str, threads: int = 0) -> Truth:
    """Return the truth of the outputs of `bundle` alone, in the noise of `precision`.

    Nodes that the reference evaluator does not have are run by ONNX Runtime, as in `verify`.
    """
    with comparable(bundle, None, (), feeds, {"threads": threads}) as compared:
        return find_truth(open_source(compared.bundle, compared.against, (), compared.reference), feeds, precision)


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
