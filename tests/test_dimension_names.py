"""Dimensions of one name that are of several sizes in the data are taken as different ones, and that is said."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from relu_deploy.backends import load
from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import load_dataset
from relu_deploy.errors import InputError
from relu_deploy.tensors import TensorSpec, separated

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")

QUERIES, DOCUMENTS = (np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32) for rows in (3, 5))
SCORES = np.maximum(QUERIES @ DOCUMENTS.T, 0)


@pytest.fixture(params=["N", "batch", "batch_size"])
def retrieval(tmp_path, request):
    """Scores of queries and documents; the converter called the numbers of both by one name."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [request.param, 4]) for name in ("q", "d")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [request.param, request.param])]
    nodes = [
        helper.make_node("Transpose", ["d"], ["t"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["q", "t"], ["s"], "scores"),
        helper.make_node("Relu", ["s"], ["y"], "relu"),
    ]
    graph = helper.make_graph(nodes, "retrieval", inputs, outputs)
    path = tmp_path / "retrieval.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "reference"])
def test_a_session_runs_what_the_graph_takes(retrieval, backend):
    answer = load(retrieval, backend).run({"q": QUERIES, "d": DOCUMENTS})["y"]
    np.testing.assert_allclose(answer, SCORES, rtol=1e-5, atol=1e-6)


def test_verify_runs_it_and_says_which_dimensions_differ(retrieval, command):
    np.savez("rows.npz", q=QUERIES, d=DOCUMENTS)
    made = command("verify", retrieval, "--inputs", "rows.npz", "--json", "-")
    assert made.code == 0, made.stderr
    assert "is 3 in 'q' and 5 in 'd': they are taken as different dimensions" in made.stderr
    assert made.json["backends"][0]["passed"]
    # The rows of q are independent of each other, given all of d.
    assert {check["passed"] for check in made.json["backends"][0]["checks"]} == {True}


def test_a_graph_that_needs_equal_sizes_stops_with_the_node_and_the_sizes(tmp_path, command):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "aby"]
    nodes = [helper.make_node("Add", ["a", "b"], ["s"], "sum"), helper.make_node("Relu", ["s"], ["y"], "relu")]
    graph = helper.make_graph(nodes, "sum", values[:2], values[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "sum.onnx")
    np.savez("rows.npz", a=QUERIES, b=DOCUMENTS)
    refused = command("verify", "sum.onnx", "--inputs", "rows.npz", "--quiet")
    assert refused.code in (2, 3)
    assert "'sum'" in refused.stderr
    assert "hint: " in refused.stderr


def test_data_of_several_numbers_of_rows_need_the_batch_axis_that_the_hint_names(retrieval, command):
    np.savez("rows.npz", q=QUERIES, d=DOCUMENTS)
    with pytest.raises(InputError, match="'q' has 3 rows, and 'd' has 5") as refused:
        load_dataset(Bundle.open(retrieval), "rows.npz")
    assert "--batch-axis d=none" in refused.value.hint
    made = command("export", retrieval, "-o", "r.rdb", "--batch-axis", "d=none", "--quiet")
    assert made.code == 0, made.stderr
    counted = command("census", "r.rdb", "--data", "rows.npz", "--json", "-", "--quiet")
    assert counted.code == 0, counted.stderr
    assert counted.json["totals"]["samples"] == 3


def test_only_later_dimensions_of_another_size_are_renamed():
    specs = [
        TensorSpec("a", "float32", ("n", "t")),
        TensorSpec("b", "float32", ("n", "t")),
        TensorSpec("b_1", "float32", ("b_1",)),
    ]
    same, notes = separated(specs, {"a": np.zeros((2, 7)), "b": np.zeros((2, 7)), "b_1": np.zeros(4)})
    assert (list(same), notes) == (specs, ())
    found, notes = separated(specs, {"a": np.zeros((2, 7)), "b": np.zeros((2, 9)), "b_1": np.zeros(4)})
    assert [spec.shape for spec in found] == [("n", "t"), ("n", "b_1_"), ("b_1",)]
    assert [spec.batch_axis for spec in found] == [0, 0, 0]
    assert notes == ("the dimension 't' is 7 in 'a' and 9 in 'b': they are taken as different dimensions",)
    found, _ = separated(specs, {"a": np.zeros((2, 7)), "b": np.zeros((3, 7)), "b_1": np.zeros(4)})
    assert [spec.batch_axis for spec in found] == [0, None, 0]
