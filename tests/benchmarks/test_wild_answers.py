"""The answer of a served model against ONNX Runtime's: tensors that JSON cannot hold travel as raw bytes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from running import Running
from wild.answers import difference, wrong_answer

from relu_deploy.bundle import Bundle


def half_model(path, factor):
    """Write a model with a float16 input and output, and a float32 output that is NaN for negative numbers."""
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["half"]),
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Log", ["wide"], ["log"]),
        helper.make_node("Identity", ["ids"], ["same"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 32]),
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 2]),
    ]
    outputs = [
        helper.make_tensor_value_info("half", TensorProto.FLOAT16, ["batch", 32]),
        helper.make_tensor_value_info("log", TensorProto.FLOAT, ["batch", 32]),
        helper.make_tensor_value_info("same", TensorProto.INT64, ["batch", 2]),
    ]
    weights = [helper.make_tensor("factor", TensorProto.FLOAT16, [], [factor])]
    graph = helper.make_graph(nodes, "half", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_float16_and_nan_of_a_served_model_are_compared_as_raw_bytes(tmp_path):
    served = half_model(tmp_path / "half.onnx", 2.0)
    other = half_model(tmp_path / "other.onnx", 2.5)
    with Running(served) as server:
        address = f"http://127.0.0.1:{server.port}/v2"
        assert wrong_answer(address, Bundle.open(served)) == ""
        assert wrong_answer(address, Bundle.open(other)).startswith("output 'half' differs by ")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "no output 'y'"),
        (np.float32([[1, np.nan, 3]]), "has shape [1, 3] instead of [3]"),
        (np.float32([1, 2, 3]), "differs in NaN or infinities"),
        (np.float32([1, np.nan, 3.1]), "differs by 0.1"),
        (np.float32([np.nan, np.nan, 3]), "differs by nan"),
        (np.float32([1, np.nan, 3]), ""),
    ],
)
def test_a_difference_is_named(given, says):
    found = difference("y", np.float32([1, np.nan, 3]), given)
    assert (says in found) if says else not found
