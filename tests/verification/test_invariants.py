"""Checks without a reference are made on the axis of the batch, and only where rows are independent."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.verification.run import verify

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
GENERATOR = np.random.default_rng(0)
WEIGHTS = {
    "w": GENERATOR.standard_normal((6, 4)).astype(np.float32),
    "start": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "table": GENERATOR.standard_normal((2, 6)).astype(np.float32),
}
X, Y = ("x", FLOAT, ["batch", 6]), ("y", FLOAT, ["batch", 4])


def checks_of(path, nodes, inputs, outputs=(Y,), feeds=None):
    values = [[helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in each] for each in (inputs, outputs)]
    read = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items() if name in read]
    graph = helper.make_graph(nodes, "graph", *values, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    report = verify(path, feeds=feeds)
    assert report.passed
    return {check.name.split(" ")[0]: check for check in report.backends[0].checks}


def test_a_state_with_its_batch_on_axis_1_is_varied_with_the_batch(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("ReduceMean", ["h"], ["mean"], axes=[0], keepdims=0),
        helper.make_node("Add", ["m", "mean"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
        helper.make_node("Relu", ["h"], ["h_next"]),
    ]
    state = [2, "batch", 4]
    checks = checks_of(tmp_path / "m.onnx", nodes, [X, ("h", FLOAT, state)], [Y, ("h_next", FLOAT, state)])
    assert all(checks[name].passed for name in ("same", "identical", "permuted", "batch"))


@pytest.mark.parametrize("shape", [[], [4, 4]], ids=["scalar", "matrix"])
def test_an_input_without_a_batch_is_the_same_for_every_row(tmp_path, shape):
    operator = "MatMul" if shape else "Mul"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node(operator, ["m", "gain"], ["g"]),
        helper.make_node("Relu", ["g"], ["y"]),
    ]
    checks = checks_of(tmp_path / "m.onnx", nodes, [X, ("gain", FLOAT, shape)])
    assert checks["batch"].passed


def test_rows_that_depend_on_each_other_are_not_called_a_fault(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("ReduceMean", ["m"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["m", "mean"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    checks = checks_of(tmp_path / "m.onnx", nodes, [X])
    assert checks["batch"].passed is None
    assert "the rows of this model depend on each other" in checks["batch"].detail


def test_rows_of_ids_stay_in_the_range_of_those_given(tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["g"]),
        helper.make_node("MatMul", ["g", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    # The table has 2 rows: any other id would stop the runtime.
    checks = checks_of(tmp_path / "m.onnx", nodes, [("ids", INT, ["batch"])], feeds={"ids": np.array([0, 1, 1], np.int64)})
    assert checks["batch"].passed


def test_the_elements_of_a_sequence_are_compared(tmp_path):
    values = [helper.make_tensor_value_info("x", FLOAT, ["batch", 6])]
    outputs = [helper.make_tensor_sequence_value_info("parts", FLOAT, None)]
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("SequenceConstruct", ["r", "x"], ["parts"])]
    onnx.save(
        helper.make_model(
            helper.make_graph(nodes, "graph", values, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ),
        tmp_path / "m.onnx",
    )
    (report,) = verify(tmp_path / "m.onnx").backends
    assert {name: one.passed for name, one in report.outputs.items()} == {"parts[0]": True, "parts[1]": True}


def test_a_sequence_of_one_step_is_not_shortened_to_none(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ReduceMax", ["r"], ["y"], axes=[0], keepdims=0),
    ]
    checks = checks_of(tmp_path / "m.onnx", nodes, [("x", FLOAT, ["time", "batch", 6])], [("y", FLOAT, ["batch", 6])])
    assert not [name for name in checks if "time=0" in checks[name].name]
    assert [check.name for check in checks.values() if check.name.startswith("size")] == ["size time=2"]


def test_an_output_that_has_fewer_rows_than_declared_is_not_compared_row_by_row(tmp_path):
    """Of n rows the first (n + 1) / 2 become the output, whose type says that it has them all."""
    nodes = [
        helper.make_node("Shape", ["x"], ["count"], end=1),
        helper.make_node("Add", ["count", "one"], ["more"]),
        helper.make_node("Div", ["more", "two"], ["half"]),
        helper.make_node("Slice", ["x", "start", "half"], ["first"]),
        helper.make_node("MatMul", ["first", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    checks = checks_of(tmp_path / "m.onnx", nodes, [X])
    assert checks["same"].passed
    assert {checks[name].passed for name in ("identical", "permuted", "batch")} == {None}
    assert "y has shape 4x4 for 8 rows of the input" in checks["permuted"].detail
