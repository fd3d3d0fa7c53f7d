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


def test_a_page_draws_a_thousand_of_many_relus_and_the_first_that_differ(tmp_path):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "last")], "g", [x], [y])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    result = verify(tmp_path / "m.onnx", ["onnxruntime-cpu"]).to_json()
    backend = result["backends"][0]
    (relu,), (output,) = backend["relus"], backend["outputs"]
    few = verify_page(result)
    assert "Every Relu" in few
    assert "The JSON has all of them" not in few
    backend["relus"] = [{**relu, "index": at, "node": f"relu{at}", "passed": at not in (77_777, 88_888)} for at in range(100_000)]
    backend["outputs"] = [{**output, "name": f"y{at}"} for at in range(5_000)]
    many = verify_page(result)
    assert len(many) < 2_000_000
    assert "of 100,000 Relus: the first that differ, and others at equal distances" in many
    assert "relu77777" in many
    assert "relu88888" in many
    assert "relu0<" in many
    assert "99998 of 100000" in many
    assert "and 4,000 more" in many
