"""Relu of 64-bit integers."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from relu_deploy.backends import load
from relu_deploy.graph import find_relus, load_model, save_model
from relu_deploy.graph.rewriting.wide_integer_relu import replace_wide_integer_relus


def test_a_relu_of_64_bit_integers_runs_on_onnx_runtime_and_is_still_a_relu(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "relu")], "g", values[:1], values[1:])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    model = load_model(path)
    replace_wide_integer_relus(model)
    save_model(model, path)
    assert [(relu.node, relu.output) for relu in find_relus(load_model(path))] == [("relu", "y")]
    x = np.array([-(2**40), -1, 0, 2**40])
    np.testing.assert_array_equal(load(path, "onnxruntime-cpu").run({"x": x})["y"], np.maximum(x, 0))
