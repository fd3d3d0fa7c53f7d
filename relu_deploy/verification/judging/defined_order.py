"""Graphs in which every result has one right value: a TopK that may return its elements in any order is made to sort them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from relu_deploy.bundle import Bundle
from relu_deploy.graph import load_model, save_model
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.model import read_model
from relu_deploy.storage.folders import temporary_folder

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["has_undefined_order", "with_defined_order"]


def has_undefined_order(model: ir.Model) -> bool:
    """Return whether a TopK of `model` does not say in which order it returns its elements."""
    return any(_is_unsorted(node) for node, _ in iterate_nodes(model))


@contextmanager
def with_defined_order(bundle: Bundle) -> Iterator[Bundle]:
    """Yield `bundle`, or for as long as the block lasts a copy of its graph in which every TopK sorts."""
    if not has_undefined_order(read_model(bundle.onnx)):
        yield bundle
        return
    import onnx_ir as ir

    model = load_model(bundle.onnx)
    for node, _ in iterate_nodes(model):
        if _is_unsorted(node):
            node.attributes["sorted"] = ir.AttrInt64("sorted", 1)
    with temporary_folder("sorted") as folder:
        path = folder / f"{bundle.name}.onnx"
        save_model(model, path)
        yield Bundle.open(path)


def _is_unsorted(node: ir.Node) -> bool:
    is_top_k = node.op_type == "TopK" and is_standard(node)
    return is_top_k and "sorted" in node.attributes and not node.attributes["sorted"].as_int()
