"""The nodes of a graph that are at fault, whatever runs it.

The graph under test is evaluated in float64 node by node, and every node is fed the truth's own tensors wherever the truth
has them: a node's error then does not depend on the nodes before it, on whatever branch they are. Its noise is measured in
the same way, with the same inputs and with its weights, operands and result rounded at random. A node (or a channel of it)
whose error is more than the limit times its noise is at fault. No backend is involved, and the rounding of float32 does not
blur the result.

A node without a counterpart in the truth (one that a rewrite inserted) is passed through: its error shows at the next tensor
that has one. Among the nodes between, the one at fault is one that the truth has no equal of.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from relu_deploy.backends import load
from relu_deploy.backends.base import TruthSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import ReluDeployError
from relu_deploy.graph import find_relus, quantized_relu, read_model
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.subgraph import Producers
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.judging.noise import FEW
from relu_deploy.verification.judging.verdict import LIMITS
from relu_deploy.verification.locating.classify import describe
from relu_deploy.verification.locating.fault import Fault
from relu_deploy.verification.locating.node_error import STORAGE, TrueTensors, evaluated_on, first_loss, stored_again
from relu_deploy.verification.plan import VerifyPlan
from relu_deploy.verification.truth import Source

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["faults_of_graph"]

#: operators that have weights
WEIGHTED = ("Conv", "ConvInteger", "Gemm", "MatMul", "MatMulInteger")


def faults_of_graph(plan: VerifyPlan, source: Source) -> list[Fault]:
    """Return the nodes of a graph whose own output differs from the truth, in the order of the graph.

    Args:
        plan: The graph under test, its inputs and its precision.
        source: The source of the truth. A graph that is its own truth has no fault.
    """
    if source.against == "reference":
        return []
    feeds, precision = plan.feeds, plan.precision
    bundle = plan.evaluated or plan.bundle
    model = read_model(bundle.onnx)
    # The inputs too: a node that stores one of them again is judged itself, not the first node that reads it.
    known = {**_widened(feeds), **source.everything(feeds)}
    known |= stored_again(model, known)
    iterated = source.iterations(feeds)
    with closing(cast(TruthSession, load(bundle, "reference", **plan.reference))) as session:
        errors, given = evaluated_on(TrueTensors(known, iterated), session, feeds, precision, plan.quantized)
    bounds = {relu.node: np.inf if relu.upper is None else relu.upper for relu in find_relus(model)}
    truth_model = None if source.against == "torch" else read_model(Bundle.open(source.against).onnx)
    truth_names = {ours: name for name, ours in source.inner.items()}
    known_there = {truth_names.get(name, name) for name in known}
    producers = Producers(model)
    truth_producers = None if truth_model is None else Producers(truth_model)
    faults: list[Fault] = []
    around: set[str] = set()
    for node, path in iterate_nodes(model):
        for value in node.outputs:
            name = str(value.name)
            if name not in errors:
                continue
            tensor = errors[name]
            upper = _upper_bound(value, bounds) if precision in ("int8", "float8") else None
            # A quantizer may clip numbers that the Relu behind it clips as well.
            judged = tensor if upper is None else tensor.clipped(upper)
            if tensor.got.size < FEW and (step := _step_of(node)):
                # A few numbers may all be in the middle of a step, where no draw changes their codes.
                judged = replace(judged, noise=np.maximum(judged.noise, step / math.sqrt(12)))
            # One range for a whole tensor is never the best of each channel: a pair that stores is judged by all of it.
            ratio = judged.of_tensor if node.op_type in STORAGE else judged.error_ratio
            if ratio > LIMITS[precision]:
                region = [node] if path else producers.nodes_between(known, [name])
                unmatched = _unmatched_nodes(region, truth_producers, known_there, truth_names.get(name, name))
                culprit = _culprit(unmatched, given, precision) or _storing(region, given, precision) or node
                between = [str(one.name) for one in region] if len(region) > 1 else ()
                faults.append(Fault.at(culprit, "graph", describe(tensor.got, tensor.true), ratio, between))
                around |= {str(step.node.name) for step in path}
                break
    # The node around a body in which a fault was found returns what that makes of its results.
    return _of_nodes_before([fault for fault in faults if fault.node not in around], plan)


def _of_nodes_before(faults: Sequence[Fault], plan: VerifyPlan) -> list[Fault]:
    """Return `faults`, at the nodes of the graph under test that those at fault were made of, each node once."""
    nodes = {str(node.name): node for node, _ in iterate_nodes(plan.model)}
    found: dict[str, Fault] = {}
    for fault in faults:
        name = plan.origins.get(fault.node, fault.node)
        region = tuple(dict.fromkeys(plan.origins.get(each, each) for each in fault.region))
        operator = nodes[name].op_type if name in nodes else fault.operator
        found.setdefault(name, replace(fault, node=name, operator=operator, region=region if len(region) > 1 else ()))
    return list(found.values())


def _widened(feeds: Feeds) -> Feeds:
    """Return `feeds` as float64 evaluations have them: in one type with the truth's tensors, so that operators take both."""
    narrow = ("float32", "float16", "bfloat16")
    return {name: array.astype(np.float64) if array.dtype.name in narrow else array for name, array in feeds.items()}


def _step_of(node: ir.Node) -> float:
    """Return the largest step of the codes that `node` reads, 0 where it reads none or the step is not a constant."""
    scale = node.inputs[1].const_value if node.op_type == "DequantizeLinear" and node.inputs[1] is not None else None
    return 0.0 if scale is None else float(np.max(np.abs(scale.numpy().astype(np.float64)), initial=0))


def _upper_bound(value: ir.Value, bounds: Mapping[str, float]) -> float | None:
    """Return the largest number that any reader of `value` lets through, where all of them, past storage, are Relus; else None.

    bounds: Upper bounds of the Relus by node.
    """
    readers = list(value.consumers())
    if not readers or value.is_graph_output():
        return None
    found: list[float | None] = []
    for node in readers:
        clamp = quantized_relu(node)
        stores = node.op_type in STORAGE and clamp is None
        found += [_upper_bound(output, bounds) for output in node.outputs] if stores else [bounds.get(str(node.name), clamp)]
    known = [bound for bound in found if bound is not None]
    return max(known) if len(known) == len(found) else None


def _unmatched_nodes(region: Sequence[ir.Node], truth: Producers | None, known: Collection[str], tensor: str) -> list[ir.Node]:
    """Return the nodes of `region` that have no equal among the truth's own nodes before `tensor`, none without such a graph.

    known, tensor: Names in the truth's graph.
    """
    if truth is None or len(region) < 2:
        return []
    try:
        equals = truth.nodes_between(known, [tensor])
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

    A node that computes comes before one that stores: a quantized graph has the latter everywhere. Of those that store it is
    the first that does not return its input. Beside a node whose scale is chosen when it runs, it is the first with weights: the
    products of scales around it have no equal either.
    """
    computing = [node for node in unmatched if node.op_type not in STORAGE]
    if any(node.op_type == "DynamicQuantizeLinear" for node in computing):
        computing = [node for node in computing if node.op_type in WEIGHTED] or computing
    return next(iter(computing), None) or first_loss(unmatched, given, precision) or next(iter(unmatched), None)


def _storing(region: Sequence[ir.Node], given: Mapping[str, Array], precision: str) -> ir.Node | None:
    """Return the node at fault among nodes that only store a tensor, with one scale and zero point; None among others."""
    if any(node.op_type not in STORAGE for node in region) or len({tuple(map(id, node.inputs[1:])) for node in region}) > 1:
        return None
    return first_loss(region, given, precision)


def _is_equal(node: ir.Node, other: ir.Node) -> bool:
    """Return whether `node` computes the same as `other`, of the truth, with the same constants as its precision keeps them."""
    if (node.domain, node.op_type, len(node.inputs)) != (other.domain, other.op_type, len(other.inputs)):
        return False
    attributes, others = ({name: str(one.value) for name, one in each.attributes.items()} for each in (node, other))
    return attributes == others and all(map(_is_same_constant, node.inputs, other.inputs))


def _is_same_constant(value: ir.Value | None, other: ir.Value | None) -> bool:
    ours, theirs = (None if one is None or one.const_value is None else one.const_value.numpy() for one in (value, other))
    if ours is None or theirs is None:
        return ours is theirs
    with np.errstate(over="ignore"):
        return ours.shape == theirs.shape and np.array_equal(ours, theirs.astype(ours.dtype), equal_nan=ours.dtype.kind == "f")
