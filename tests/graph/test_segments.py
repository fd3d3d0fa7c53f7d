"""A graph is divided at its Relus, and each segment costs what its nodes compute and what crosses its border."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.graph import count_cost
from relu_deploy.graph.segments import Segment, count_segment_costs, divide_at_relus, divide_like


def model_of(nodes, weights, outputs=("y",), size=4):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, size, size]) for name in ("x", *outputs)]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], [numpy_helper.from_array(w, name) for name, w in weights])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def weight():
    return np.ones((2, 2, 1, 1), np.float32)


@pytest.fixture
def residual():
    """conv1 → relu1 → conv2 → Add with the shortcut conv3 → relu2 → conv4, which no Relu follows."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1"),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "conv2"),
        helper.make_node("Conv", ["x", "w3"], ["d"], "conv3"),
        helper.make_node("Add", ["c", "d"], ["e"], "add"),
        helper.make_node("Relu", ["e"], ["f"], "relu2"),
        helper.make_node("Conv", ["f", "w4"], ["y"], "conv4"),
    ]
    return model_of(nodes, [(f"w{index}", weight()) for index in range(1, 5)])


def named(segments):
    return [(segment.relu.node if segment.relu else None, segment.nodes) for segment in segments]


def test_each_node_is_in_the_segment_of_the_first_relu_that_needs_it(residual):
    assert named(divide_at_relus(residual)) == [
        ("relu1", ("conv1", "relu1")),
        ("relu2", ("conv2", "conv3", "add", "relu2")),
        (None, ("conv4",)),
    ]


def test_a_segment_costs_its_operations_and_the_tensors_that_cross_its_border(residual):
    segments = divide_at_relus(residual)
    first, second, last = count_segment_costs(residual, segments, batch=3)
    tensor, elements, weights = 4 * 3 * 2 * 16, 3 * 2 * 16, 4 * 4
    # A 1×1 convolution of two channels takes four operations an element; Add and Relu take one.
    assert (first.flops, second.flops, last.flops) == (5 * elements, (4 + 4 + 1 + 1) * elements, 4 * elements)
    # The first reads x and writes b; the second reads b and x and writes f; the last reads f and writes y.
    assert (first.bytes, second.bytes, last.bytes) == (2 * tensor + weights, 3 * tensor + 2 * weights, 2 * tensor + weights)
    assert sum(cost.flops for cost in (first, second, last)) == count_cost(residual, 3).flops


def test_a_quantized_graph_is_divided_like_the_one_that_it_was_made_of(residual):
    scale = [("s", np.float32(0.1)), ("z", np.uint8(0))]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1"),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], "clamps"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["b"], "widens"),
        helper.make_node("Conv", ["b", "w2"], ["y"], "conv2"),
    ]
    quantized = model_of(nodes, [("w1", weight()), ("w2", weight()), *scale])
    divided = divide_like(quantized, divide_at_relus(residual))
    assert named(divided) == [("relu1", ("conv1", "clamps")), ("relu2", ("widens", "conv2")), (None, ())]
    costs = count_segment_costs(quantized, divided)
    # The first reads x, weights and the scale and zero point in float32 and uint8, and writes 32 numbers of 8 bits. The second
    # reads those, the constants and its weights, and writes y.
    assert [cost.bytes for cost in costs] == [128 + 16 + 4 + 1 + 32, 32 + 4 + 1 + 16 + 128, 0]


def test_a_segment_of_unknown_size_has_no_cost():
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"], "find"),
        helper.make_node("Cast", ["found"], ["wide"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Relu", ["wide"], ["y"], "relu"),
    ]
    model = model_of(nodes, [])
    (cost,) = count_segment_costs(model, [Segment(None, ("find", "cast", "relu"))])
    assert (cost.flops, cost.bytes) == (None, None)
