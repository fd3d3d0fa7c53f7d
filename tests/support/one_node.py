"""Graphs of one node, evaluated by the reference backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import helper

from relu_deploy.backends.reference.evaluator import Evaluator


def node_model(
    operator: str, operands: list[Any], opset: int = 20, outputs: int = 1, domain: str = "", **attributes: Any
) -> ir.Model:
    """Return a graph of one node. operands: arrays, None for one left out; all are inputs of the graph."""
    names = ["" if value is None else f"x{place}" for place, value in enumerate(operands)]
    results = [f"y{place}" for place in range(outputs)]
    node = helper.make_node(operator, names, results, "node", domain=domain, **attributes)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.asarray(value).dtype), np.asarray(value).shape)
        for name, value in zip(names, operands, strict=True)
        if name
    ]
    graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info(name) for name in results])
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def evaluate(operator: str, operands: list[Any], *, wide: bool = True, **rest: Any) -> list[Any]:
    """Return the outputs of one node, in float64 unless `wide` is false. rest: as for `node_model`."""
    feeds = {f"x{place}": np.asarray(value) for place, value in enumerate(operands) if value is not None}
    return list(Evaluator(node_model(operator, operands, **rest), wide=wide).run(feeds).values())
