"""Pure ONNX, through onnx_ir: loading and checking, finding the Relus, counting the cost, tapping tensors.

Nothing here imports torch or a runtime, so a graph can be read on a machine that has neither.
"""

from relu_deploy.graph.cost import Cost, count_cost
from relu_deploy.graph.model import (
    io_specs,
    load_model,
    load_normalized_model,
    name_nodes,
    normalize_model,
    opset_of,
    read_model,
    save_model,
    to_bytes,
)
from relu_deploy.graph.precision import clamped_tensors, node_precisions, precision_of, quantized_relu
from relu_deploy.graph.relus import SCOPE_KEY, TORCH_NODE_KEY, Relu, find_relus
from relu_deploy.graph.shapes.batching import batch_axes
from relu_deploy.graph.shapes.dimensions import set_input_shapes
from relu_deploy.graph.shapes.input_ranges import integer_ranges
from relu_deploy.graph.subgraph import extract_subgraph, nodes_between
from relu_deploy.graph.taps import with_taps

__all__ = [
    "SCOPE_KEY",
    "TORCH_NODE_KEY",
    "Cost",
    "Relu",
    "batch_axes",
    "clamped_tensors",
    "count_cost",
    "extract_subgraph",
    "find_relus",
    "integer_ranges",
    "io_specs",
    "load_model",
    "load_normalized_model",
    "name_nodes",
    "node_precisions",
    "nodes_between",
    "normalize_model",
    "opset_of",
    "precision_of",
    "quantized_relu",
    "read_model",
    "save_model",
    "set_input_shapes",
    "to_bytes",
    "with_taps",
]
