"""The page of verify, from real reports."""

from onnx import TensorProto, helper, save_model

from relu_deploy.reporting.pages.verify import verify_page
from relu_deploy.verification.run import verify


def test_a_relu_that_is_not_compared_moves_no_other_relus_row(tmp_path):
    """A function of another opset is not inlined: its Relu has number 0, and the only Relu of the lists has number 1."""
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    nodes = [helper.make_node("F", ["x"], ["m"], "call", domain="local"), helper.make_node("Relu", ["m"], ["y"], "last")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
    graph = helper.make_graph(nodes, "g", [x], [y])
    save_model(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10), tmp_path / "m.onnx")
    result = verify(tmp_path / "m.onnx", ["onnxruntime-cpu"]).to_json()
    assert [relu["index"] for relu in result["backends"][0]["relus"]] == [1]
    page = verify_page(result)
    assert "<td>1</td><td><code>last</code></td>" in page
