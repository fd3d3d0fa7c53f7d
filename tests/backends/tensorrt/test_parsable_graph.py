"""The graphs that TensorRT's parser is given instead of the file's own."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends.tensorrt.building.build import Refusal, listed_refusals
from relu_deploy.backends.tensorrt.building.parsable_graph import parsable

FLOAT = TensorProto.FLOAT
node, value = helper.make_node, helper.make_tensor_value_info


def saved(path, rows):
    """Write a graph that squeezes its input where it has one row, and has a Relu otherwise."""
    branches = {
        "then_branch": helper.make_graph([node("Squeeze", ["x", "zero"], ["s"])], "then", [], [value("s", FLOAT, None)]),
        "else_branch": helper.make_graph([node("Relu", ["x"], ["r"])], "else", [], [value("r", FLOAT, None)]),
    }
    nodes = [
        node("Shape", ["x"], ["rows"], end=1),
        node("Equal", ["rows", "one"], ["is_one"]),
        node("If", ["is_one"], ["y"], "if", **branches),
    ]
    tensors = [numpy_helper.from_array(np.array([number], np.int64), name) for name, number in (("zero", 0), ("one", 1))]
    graph = helper.make_graph(nodes, "g", [value("x", FLOAT, [rows, 4])], [value("y", FLOAT, None)], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_the_parser_is_given_the_branch_that_runs_for_the_fixed_sizes_of_the_inputs(tmp_path):
    with parsable(saved(tmp_path / "m.onnx", 3)) as path:
        operators = [one.op_type for one in onnx.load(path).graph.node]
    assert "Relu" in operators
    assert not {"If", "Squeeze"} & set(operators)


def test_the_parser_is_given_an_if_that_depends_on_a_varying_size(tmp_path):
    with parsable(saved(tmp_path / "m.onnx", "n")) as path:
        assert "If" in [one.op_type for one in onnx.load(path).graph.node]


def test_an_operator_that_the_parser_refuses_at_many_nodes_is_named_once():
    refusals = [Refusal(f"conv{index}", "ConvInteger", "not supported") for index in range(3)]
    refusals.insert(1, Refusal("lstm", "DynamicQuantizeLSTM", "not found"))
    assert listed_refusals(refusals) == (
        "ConvInteger 'conv0': not supported (2 more nodes); DynamicQuantizeLSTM 'lstm': not found"
    )
    assert listed_refusals([]) == ""
