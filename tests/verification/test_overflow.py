"""Sums whose terms exceed float32: an infinity that the order of the terms explains is no fault, a wrong node is."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.verification.judging.tensor_noise import ANYTHING, NOT_FINITE
from relu_deploy.verification.run import verify
from relu_deploy.verification.truth import Truth

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
RANDOM = np.random.default_rng(1)


def normal(*shape, size=1.0):
    return (size * RANDOM.standard_normal(shape)).astype(np.float32)


def saved(path, nodes, x, weights):
    nodes = [*nodes, helper.make_node("Relu", ["m"], ["y"], "relu")]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)], [helper.make_empty_tensor_value_info("y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends, stored), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


#: terms of 2e38 with both signs: two of them exceed float32, all together do not
CANCELLING = np.float32(np.concatenate([np.full((4, 8), 2e38), np.full((4, 8), -2e38), normal(4, 8, size=3e37)], axis=1))
CANCELLING = CANCELLING[:, np.random.default_rng(0).permutation(24)]
MATRIX = np.ones((24, 5), np.float32) + normal(24, 5, size=0.01)
NODE = helper.make_node
CASES = {
    "ReduceSum": ([NODE("ReduceSum", ["x", "axes"], ["m"], "sum")], CANCELLING, {"axes": np.array([1])}),
    "ReduceMean": ([NODE("ReduceMean", ["x"], ["m"], "sum", axes=[1])], np.abs(normal(4, 64, size=1e38)), {}),
    "MatMul": ([NODE("MatMul", ["x", "w"], ["m"], "sum")], CANCELLING, {"w": MATRIX}),
    "MatMul beyond": ([NODE("MatMul", ["x", "w"], ["m"], "sum")], normal(4, 64, size=1e30), {"w": normal(64, 16, size=1e8)}),
    "Conv": ([NODE("Conv", ["x", "w"], ["m"], "sum")], normal(1, 3, 8, 8, size=1e30), {"w": normal(4, 3, 3, 3, size=3e7)}),
    "pool": ([NODE("GlobalAveragePool", ["x"], ["m"], "sum")], np.abs(normal(1, 3, 32, 32, size=2e37)), {}),
    "Sigmoid": (
        [
            NODE("MatMul", ["x", "w"], ["s"], "sum"),
            NODE("Mul", ["s", "small"], ["t"], "shrink"),
            NODE("Sigmoid", ["t"], ["m"], "sigmoid"),
        ],
        CANCELLING,
        {"w": MATRIX, "small": np.float32(1e-38)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_an_infinity_that_the_order_of_a_sum_explains_is_no_fault(tmp_path, name, backend):
    nodes, x, weights = CASES[name]
    report = verify(saved(tmp_path / "m.onnx", nodes, x, weights), [backend], feeds={"x": x})
    assert report.passed, report.to_json()


def test_numbers_that_are_not_compared_are_counted_in_the_report(tmp_path):
    nodes, x, weights = CASES["pool"]
    report = verify(saved(tmp_path / "m.onnx", nodes, x, weights), ["reference"], feeds={"x": x}).backends[0]
    assert "output y: 3 of 3 numbers are not compared: the terms of a sum exceed float32" in report.note
    assert report.to_json()["outputs"][0]["left_out"] == 3


@pytest.mark.parametrize("name", ["MatMul", "MatMul beyond", "Conv", "Sigmoid"])
def test_a_wrong_weight_among_such_sums_is_located_at_its_node(tmp_path, name):
    nodes, x, weights = CASES[name]
    right = saved(tmp_path / "right.onnx", nodes, x, weights)
    wrong = dict(weights, w=weights["w"].copy())
    wrong["w"].reshape(-1)[np.argmax(np.abs(wrong["w"]))] *= -1.5
    report = verify(saved(tmp_path / "wrong.onnx", nodes, x, wrong), feeds={"x": x}, against=str(right))
    assert not report.passed
    assert [fault.node for fault in report.backends[0].faults] == ["sum"]


@pytest.mark.parametrize(
    "node",
    [
        NODE("ReduceL2", ["x"], ["m"], "squares", axes=[1]),
        NODE("LayerNormalization", ["x", "scale"], ["m"], "squares"),
        NODE("LpNormalization", ["x"], ["m"], "squares", axis=1, p=2),
    ],
    ids=lambda node: node.op_type,
)
def test_squares_beyond_float32_are_no_noise_that_a_wrong_answer_may_hide_in(tmp_path, node):
    """No order of the terms helps: the answer is infinite or 0 where it is a finite number, and that is the fault of the runtime."""
    x = normal(4, 64, size=1e30)
    report = verify(saved(tmp_path / "m.onnx", [node], x, {"scale": np.ones(64, np.float32)}), feeds={"x": x})
    assert not report.passed
    assert report.first_divergence == "squares"


def test_what_did_not_overflow_is_compared_where_it_could_have():
    truth = Truth(
        "reference",
        {"y": np.array([1.0, 2.0, 3.0, 4.0])},
        {"y": 1e-7},
        overflows={"y": np.array([NOT_FINITE, NOT_FINITE, ANYTHING, 0], np.uint8)},
    )
    assert truth.compare("y", np.float32([1, 2, 3, 4])).left_out == 0
    assert truth.compare("y", np.float32([np.nan, np.inf, 0, 4])).passed
    assert truth.compare("y", np.float32([np.nan, np.inf, 0, 4])).left_out == 3
    assert not truth.compare("y", np.float32([1.1, 2, 3, 4])).passed
    assert not truth.compare("y", np.float32([np.inf, 2, 3, np.inf])).passed
