"""An If whose condition is constant: the branch that runs takes its place, with the same answers under the same names."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.graph import load_model, save_model
from relu_deploy.graph.rewriting.constant_branches import inline_constant_branches

FLOAT = TensorProto.FLOAT
node, value = helper.make_node, helper.make_tensor_value_info
W = np.arange(16, dtype=np.float32).reshape(4, 4) - 7


def branch(name, sign, body=()):
    nodes = [node("MatMul", ["x", f"{name}_w"], [f"{name}_m"], "fc"), node("Relu", [f"{name}_m"], [f"{name}_y"], "relu"), *body]
    weights = [numpy_helper.from_array(W * np.float32(sign), f"{name}_w")]
    last = nodes[-1].output[0]
    return helper.make_graph(nodes, name, [], [value(last, FLOAT, ["n", 4])], weights)


def saved(folder, condition, *, fed=False, output="y"):
    """Return a file whose If holds `then` for a true condition and `else`, whose weights are negated, for a false one."""
    inner = node("If", ["condition"], ["nested_y"], "inner", then_branch=branch("a", 2), else_branch=branch("b", 3))
    passed = helper.make_graph([node("Identity", ["x"], ["same"])], "else", [], [value("same", FLOAT, ["n", 4])])
    then = helper.make_graph([inner], "then", [], [value("nested_y", FLOAT, ["n", 4])])
    nodes = [node("If", ["condition"], ["chosen"], "outer", then_branch=then, else_branch=passed)]
    nodes.append(node("Relu", ["chosen"], [output], "last"))
    inputs, weights = [value("x", FLOAT, ["n", 4])], []
    if fed:
        inputs.append(value("condition", TensorProto.BOOL, []))
    else:
        weights.append(numpy_helper.from_array(np.array(condition), "condition"))
    graph = helper.make_graph(nodes, "g", inputs, [value(output, FLOAT, ["n", 4])], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("condition", [True, False])
def test_the_branch_that_always_runs_takes_the_place_of_the_if(tmp_path, condition):
    x = np.linspace(-2, 3, 8, dtype=np.float32).reshape(2, 4)
    inlined = inline_constant_branches(load_model(saved(tmp_path, condition)))
    assert not [one for one in inlined.graph.all_nodes() if one.op_type == "If"]
    save_model(inlined, tmp_path / "inlined.onnx")
    expected = np.maximum(x @ (2 * W), 0) if condition else np.maximum(x, 0)
    for backend in ("onnxruntime-cpu", "reference"):
        np.testing.assert_array_equal(load(tmp_path / "inlined.onnx", backend).run({"x": x})["y"], expected)


def test_an_if_that_depends_on_an_input_stays(tmp_path):
    inlined = inline_constant_branches(load_model(saved(tmp_path, True, fed=True)))
    assert [one.op_type for one in inlined.graph] == ["If", "Relu"]
