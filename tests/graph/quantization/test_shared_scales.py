"""Which tensors share a range: what is only moved always, what a Concat joins where the ranges are alike."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper
from small import graph_of

from relu_deploy.graph.quantization.qdq import SCHEMES, quantize
from relu_deploy.graph.quantization.qdq_placement import place_qdq
from relu_deploy.graph.quantization.shared_scales import SPREAD, shared_ranges


def sets(*groups):
    return [frozenset(group.split()) for group in groups]


@pytest.mark.parametrize(
    ("moved", "joined", "ranges", "expected"),
    [
        (["a b"], [], {"a": (-1, 9), "b": (0, 1)}, {"a": (-1, 9), "b": (-1, 9)}),
        ([], ["a b y"], {"a": (0, 1), "b": (-2, 0), "y": (-2, 1)}, {"a": (-2, 1), "b": (-2, 1), "y": (-2, 1)}),
        ([], ["a b y"], {"a": (0, 1), "b": (0, 5), "y": (0, 5)}, {"a": (0, 1), "b": (0, 5), "y": (0, 5)}),
        # What reads a small input through a Reshape keeps its range as well.
        (["a r"], ["a b y"], {"a": (0, 1), "r": (0, 1), "b": (0, 90)}, {"a": (0, 1), "r": (0, 1), "b": (0, 90)}),
        # Always 0: any scale will do.
        ([], ["a b y"], {"a": (0, 0), "b": (0, 5), "y": (0, 5)}, {"a": (0, 5), "b": (0, 5), "y": (0, 5)}),
        # A chain of Concats: each doubles the range, and the first would lose more than each step shows.
        ([], ["a b y", "y c z"], {"a": (0, 1), "y": (0, 3), "c": (0, 9)}, {"a": (0, 3), "y": (0, 3), "c": (0, 9)}),
    ],
)
def test_ranges_are_shared_unless_a_concat_joins_very_different_ones(moved, joined, ranges, expected):
    assert SPREAD == 4
    found = shared_ranges(ranges, sets(*moved), sets(*joined))
    assert found == expected


def test_a_concat_with_a_tensor_of_far_larger_numbers_costs_the_other_readers_of_its_inputs_nothing():
    draw = np.random.default_rng(0)
    weights = draw.standard_normal((32, 32, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["x"], ["small"], "relu"),
        helper.make_node("Conv", ["small", "w"], ["c"], "conv"),
        helper.make_node("Mul", ["small", "factor"], ["large"], "mul"),
        helper.make_node("Concat", ["small", "large"], ["joined"], "concat", axis=1),
        helper.make_node("Identity", ["joined"], ["j"], "identity"),
    ]
    initializers = [("w", weights), ("factor", np.float32(200))]
    model = graph_of(nodes, [("x", [1, 32, 8, 8])], [("c", None), ("j", None)], initializers)
    rows = draw.standard_normal((1, 32, 8, 8)).astype(np.float32)
    peak = float(rows.max())
    ranges = {"small": (0.0, peak), "large": (0.0, 200 * peak), "joined": (0.0, 200 * peak)}
    quantized = quantize(model, place_qdq(model, "tensorrt"), ranges, SCHEMES["tensorrt", "int8"])
    session = onnxruntime.InferenceSession(ir.to_proto(quantized).SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(["c"], {"x": rows})
    true = np.einsum("oi,ihw->ohw", weights[:, :, 0, 0].astype(np.float64), np.maximum(rows[0], 0))
    assert np.sqrt(np.mean((answer[0] - true) ** 2)) < 0.02 * np.sqrt(np.mean(true**2))
