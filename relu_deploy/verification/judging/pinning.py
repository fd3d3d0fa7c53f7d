"""Nodes that draw random numbers, replaced by one draw.

A graph that draws random numbers gives another answer in every run, so nothing can be compared. Each random node is replaced
by one draw, the same in the truth and on every backend; a Dropout in training mode by a multiplication with one draw of its
mask. In the body of a Loop or Scan all iterations get the draw of the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from relu_deploy.backends import load
from relu_deploy.backends.base import Seen, TruthSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.graph import load_model, save_model
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.domains import is_standard
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.tensors import Array, Feeds

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["PinnedNodes", "random_nodes_of", "random_values", "replaced"]

RANDOM = ("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


@dataclass(frozen=True)
class PinnedNodes:
    """Replacements for nodes.

    Attributes:
        values: The results of nodes, by tensor.
        masks: The factors of Dropout nodes, by the tensor of their result.
    """

    values: Mapping[str, Array]
    masks: Mapping[str, Array]


def random_nodes_of(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that draw random numbers, those inside bodies included."""
    nodes = (node for node, _ in iterate_nodes(model))
    return [node for node in nodes if is_standard(node) and node.op_type in RANDOM and _draws(node)]


def _draws(node: ir.Node) -> bool:
    if node.op_type != "Dropout":
        return True
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is None:
        return False
    constant = training.const_value
    return constant is None or bool(constant.numpy())


def random_values(bundle: Bundle, nodes: Sequence[ir.Node], feeds: Feeds, reference: Mapping[str, Any]) -> PinnedNodes:
    """Return one draw of each of `nodes`. A node in a branch that does not run on `feeds` has none.

    reference: Options of the reference evaluator, as for `load`.
    """
    operators = {str(node.outputs[0].name): node for node in nodes}
    reads = {str(node.inputs[0].name) for node in nodes if node.op_type == "Dropout" and node.inputs[0] is not None}
    reads |= {str(node.outputs[1].name) for node in nodes if node.op_type == "Dropout" and _has_mask(node)}
    found: dict[str, Array] = {name: array for name, array in feeds.items() if name in reads}

    def keep(name: str, value: Any) -> Any:
        if name in operators or name in reads:
            found[name] = value
        return value

    with closing(cast(TruthSession, load(bundle, "reference", **reference))) as session:
        session.evaluate(feeds, wide=False, seen=cast(Seen, keep))
    values = {name: found[name] for name, node in operators.items() if node.op_type != "Dropout" and name in found}
    masks = {}
    for name, node in operators.items():
        if node.op_type == "Dropout" and name in found and node.inputs[0] is not None:
            x, y = found[str(node.inputs[0].name)], found[name]
            factor = np.divide(y, x, out=np.full(x.shape, np.nan, x.dtype), where=x != 0)
            # Where x is 0 the draw does not show; any other graph must not be 0 there for free.
            masks[name] = np.where(np.isnan(factor), np.nanmax(factor) if np.isfinite(factor).any() else 1, factor).astype(
                x.dtype
            )
            if _has_mask(node):
                values[str(node.outputs[1].name)] = found[str(node.outputs[1].name)]
    return PinnedNodes(values, masks)


def _has_mask(node: ir.Node) -> bool:
    return len(node.outputs) > 1 and bool(node.outputs[1].name)


@contextmanager
def replaced(bundle: Bundle, pinned: PinnedNodes) -> Iterator[Bundle]:
    """Yield a graph with replacements, for as long as the block lasts."""
    model = load_model(bundle.onnx)
    _replace(model, pinned)
    with temporary_folder("pinned") as folder:
        path = folder / f"{bundle.name}.onnx"
        save_model(model, path)
        yield Bundle.open(path)


def _replace(model: ir.Model, pinned: PinnedNodes) -> None:
    import onnx_ir as ir

    graph = model.graph
    given = pinned.values.keys()
    outputs = [value for value in graph.outputs if value.name not in given]
    last = _last_evaluated(model, given, given | {str(value.name) for value in outputs})
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    for node, path in list(iterate_nodes(model)):
        if str(node.outputs[0].name) in pinned.masks:
            _multiply(graph, node, pinned.masks[str(node.outputs[0].name)])
        for value in node.outputs:
            name = str(value.name)
            if name in pinned.values and path:
                _read_constant(graph, value, pinned.values[name])
            elif name in pinned.values:
                constant = _constant(graph, name, pinned.values[name])
                value.name = f"{name}/replaced"
                value.replace_all_uses_with(constant)
    graph.outputs.extend([value for value in last if isinstance(value.type, ir.TensorType)])
    if not graph.outputs:
        raise InputError(
            "nothing can be verified: every output is drawn at random", "give a graph with an output that is computed"
        )
    kept = {id(value) for value in graph.outputs}
    while unread := [n for n in graph if not any(value.uses() or id(value) in kept for value in n.outputs)]:
        graph.remove(unread, safe=False)
    _remove_replaced(model)
    for name in [name for name, value in graph.initializers.items() if not value.uses() and id(value) not in kept]:
        # ONNX Runtime warns about each weight that nothing reads any more.
        del graph.initializers[name]


def _remove_replaced(model: ir.Model) -> None:
    """Remove from the bodies the nodes whose results were replaced."""
    for node, path in reversed(list(iterate_nodes(model))):
        replaced_by_others = all(str(value.name or "/replaced").endswith("/replaced") for value in node.outputs)
        if path and replaced_by_others and not any(value.uses() or value.is_graph_output() for value in node.outputs):
            assert node.graph is not None
            node.graph.remove(node, safe=True)


def _read_constant(graph: ir.Graph, value: ir.Value, array: Array) -> None:
    """Let an Identity inside the body, which reads a constant of `graph`, make the tensor `value`."""
    import onnx_ir as ir

    maker = value.producer()
    assert maker is not None
    assert maker.graph is not None
    name = str(value.name)
    copy = ir.node("Identity", [_constant(graph, f"{name}/drawn", array)], name=f"{maker.name}/drawn")
    copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
    maker.graph.insert_before(maker, copy)
    value.name = f"{name}/replaced"
    value.replace_all_uses_with(copy.outputs[0], replace_graph_outputs=True)
    copy.outputs[0].name = name


def _last_evaluated(model: ir.Model, drawn: AbstractSet[str], known: AbstractSet[str]) -> list[ir.Value]:
    """Return the tensors that only replaced nodes read: as outputs they, and the Relus before them, stay."""
    last: dict[str, ir.Value] = {}
    for node in model.graph:
        if not any(value.name in drawn for value in node.outputs):
            continue
        for value in node.inputs:
            if value is None or value.producer() is None or value.name in known or value.name in drawn:
                continue
            if all(_is_lost(use.node, drawn) for use in value.uses()):
                last[str(value.name)] = value
    return list(last.values())


def _is_lost(node: ir.Node, drawn: AbstractSet[str]) -> bool:
    """Return whether `node` is replaced, or nothing reads its results."""
    unread = not any(output.uses() or output.is_graph_output() for output in node.outputs)
    return unread or any(output.name in drawn for output in node.outputs)


def _multiply(graph: ir.Graph, dropout: ir.Node, factors: Array) -> None:
    """Replace a Dropout by a multiplication with the factors that it drew."""
    import onnx_ir as ir

    result = dropout.outputs[0]
    name = str(result.name)
    product = ir.node("Mul", [dropout.inputs[0], _constant(graph, f"{name}/factors", factors)], name=dropout.name)
    product.outputs[0].name, product.outputs[0].type, product.outputs[0].shape = name, result.type, result.shape
    assert dropout.graph is not None
    dropout.graph.insert_before(dropout, product)
    dropout.name = f"{dropout.name}/replaced"
    result.name = f"{name}/replaced"
    result.replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    import onnx_ir as ir

    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.initializers[name] = value
    return value
