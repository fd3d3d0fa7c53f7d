"""A fault inside the body of a Loop or Scan is located at its node, by the values of each iteration."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.verification import truth
from relu_deploy.verification.run import verify

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def info(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def saved(path, nodes, ends, weights):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def weights_of(seed, factor):
    return np.float32(factor) * np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32) / 3


def cell(state, factors):
    """state → MatMul → Relu → MatMul → Add of the state."""
    nodes = [
        helper.make_node("MatMul", [state, "w1"], ["m1"], "first"),
        helper.make_node("Relu", ["m1"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w2"], ["m2"], "second"),
        helper.make_node("Add", ["m2", state], ["next"], "add"),
    ]
    tensors = {"w1": weights_of(1, factors.get("first", 1)), "w2": weights_of(2, factors.get("second", 1))}
    return nodes, [numpy_helper.from_array(array, name) for name, array in tensors.items()]


def looped(path, trips=5, **factors):
    nodes, tensors = cell("state", factors)
    nodes.append(helper.make_node("Identity", ["on"], ["still"], "go"))
    carried = [info("i", [], INT64), info("on", [], BOOL), info("state", ["n", 8])]
    body = helper.make_graph(nodes, "body", carried, [info("still", [], BOOL), info("next", ["n", 8])], tensors)
    loop = helper.make_node("Loop", ["trips", "", "x"], ["looped"], "loop", body=body)
    last = helper.make_node("Mul", ["looped", "two"], ["y"], "double")
    ends = [info("x", ["n", 8])], [info("y", ["n", 8])]
    return saved(path, [loop, last], ends, {"trips": np.int64(trips), "two": np.float32(factors.get("double", 2))})


def scanned(path, **factors):
    nodes, tensors = cell("state", factors)
    nodes.append(helper.make_node("Add", ["next", "step"], ["after"], "feed"))
    nodes.append(helper.make_node("Identity", ["after"], ["seen"], "show"))
    body = helper.make_graph(
        nodes, "body", [info("state", [8]), info("step", [8])], [info("after", [8]), info("seen", [8])], tensors
    )
    scan = helper.make_node("Scan", ["start", "x"], ["last", "y"], "scan", body=body, num_scan_inputs=1)
    ends = [info("x", ["steps", 8])], [info("y", ["steps", 8])]
    return saved(path, [scan], ends, {"start": np.zeros(8, np.float32)})


@pytest.mark.parametrize("node", ["first", "second"])
@pytest.mark.parametrize(("network", "holder"), [(looped, "loop"), (scanned, "scan")])
def test_a_wrong_weight_in_a_body_is_located_at_the_node_that_reads_it(tmp_path, network, holder, node):
    right = network(tmp_path / "right.onnx")
    assert verify(right, against=str(right), samples=4).passed
    report = verify(network(tmp_path / "wrong.onnx", **{node: 1.2}), against=str(right), samples=4)
    assert not report.passed
    assert [fault.node for fault in report.backends[0].faults] == [f"{holder}/{node}"]


def test_two_faults_in_one_body_and_one_behind_it_are_all_named(tmp_path):
    right, wrong = looped(tmp_path / "right.onnx"), looped(tmp_path / "wrong.onnx", first=1.2, second=0.5, double=2.1)
    report = verify(wrong, against=str(right), samples=4)
    assert [fault.node for fault in report.backends[0].faults] == ["loop/first", "loop/second", "double"]


def test_one_iteration_too_few_is_the_fault_of_the_loop(tmp_path):
    right, wrong = looped(tmp_path / "right.onnx"), looped(tmp_path / "wrong.onnx", trips=4)
    report = verify(wrong, against=str(right), samples=4)
    assert not report.passed
    assert [fault.node for fault in report.backends[0].faults] == ["loop"]


def test_a_body_of_more_iterations_than_are_kept_is_located_too(tmp_path, monkeypatch):
    monkeypatch.setattr(truth, "MOST_ITERATIONS", 2)
    right, wrong = looped(tmp_path / "right.onnx"), looped(tmp_path / "wrong.onnx", second=1.2)
    assert verify(wrong, against=str(right), samples=4).first_divergence == "loop/second"


def branch_in_loop(path, factor=1.0):
    """A Loop whose state is doubled where its mean is positive and multiplied by a matrix where not."""
    double = helper.make_graph(
        [helper.make_node("Mul", ["state", "two"], ["doubled"], "double")],
        "then",
        [],
        [info("doubled", ["n", 8])],
        [numpy_helper.from_array(np.float32(-2), "two")],
    )
    product = helper.make_graph(
        [helper.make_node("MatMul", ["state", "w"], ["product"], "product")],
        "else",
        [],
        [info("product", ["n", 8])],
        [numpy_helper.from_array(weights_of(3, factor), "w")],
    )
    nodes = [
        helper.make_node("ReduceMean", ["state"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["chosen"], "if", then_branch=double, else_branch=product),
        helper.make_node("Relu", ["chosen"], ["cut"], "relu"),
        helper.make_node("Sub", ["chosen", "cut"], ["negative"], "sub"),
        helper.make_node("Sub", ["cut", "negative"], ["next"], "turn"),
        helper.make_node("Identity", ["on"], ["still"]),
    ]
    carried = [info("i", [], INT64), info("on", [], BOOL), info("state", ["n", 8])]
    body = helper.make_graph(nodes, "body", carried, [info("still", [], BOOL), info("next", ["n", 8])])
    loop = helper.make_node("Loop", ["trips", "", "x"], ["y"], "loop", body=body)
    ends = [info("x", ["n", 8])], [info("y", ["n", 8])]
    return saved(path, [loop], ends, {"trips": np.int64(4), "zero": np.float32(0)})


def test_a_fault_in_a_branch_inside_a_loop_is_located_there(tmp_path):
    right, wrong = branch_in_loop(tmp_path / "right.onnx"), branch_in_loop(tmp_path / "wrong.onnx", 1.3)
    x = -np.abs(np.random.default_rng(0).standard_normal((2, 8))).astype(np.float32)
    assert verify(right, against=str(right), feeds={"x": x}).passed
    report = verify(wrong, against=str(right), feeds={"x": x})
    assert [fault.node for fault in report.backends[0].faults] == ["loop/if/product"]


def nested(path, factor=1.0):
    """A Loop of 1, 2 and 3 iterations in a Loop of three."""
    tensors = [numpy_helper.from_array(weights_of(4, factor), "w")]
    product = [
        helper.make_node("MatMul", ["inner_state", "w"], ["m"], "product"),
        helper.make_node("Tanh", ["m"], ["inner_next"], "tanh"),
        helper.make_node("Identity", ["inner_on"], ["inner_still"], "go"),
    ]
    carried = [info("j", [], INT64), info("inner_on", [], BOOL), info("inner_state", ["n", 8])]
    inner = helper.make_graph(product, "inner", carried, [info("inner_still", [], BOOL), info("inner_next", ["n", 8])], tensors)
    nodes = [
        helper.make_node("Add", ["i", "one"], ["times"], "count"),
        helper.make_node("Loop", ["times", "", "state"], ["looped"], "inside", body=inner),
        helper.make_node("Add", ["looped", "state"], ["next"], "add"),
        helper.make_node("Identity", ["on"], ["still"], "continue"),
    ]
    carried = [info("i", [], INT64), info("on", [], BOOL), info("state", ["n", 8])]
    outer = helper.make_graph(nodes, "outer", carried, [info("still", [], BOOL), info("next", ["n", 8])])
    loop = helper.make_node("Loop", ["three", "", "x"], ["y"], "loop", body=outer)
    return saved(path, [loop], ([info("x", ["n", 8])], [info("y", ["n", 8])]), {"three": np.int64(3), "one": np.int64(1)})


def mapped(path, factor=1.0):
    """Each row of x alone, multiplied by a matrix, with a Mul behind them that reads the rows together."""
    tensors = [numpy_helper.from_array(weights_of(5, factor), "w")]
    nodes = [helper.make_node("MatMul", ["row", "w"], ["m"], "product"), helper.make_node("Relu", ["m"], ["r"], "relu")]
    body = helper.make_graph(nodes, "body", [info("row", ["k", 8])], [info("r", ["k", 8])], tensors)
    around = [
        helper.make_node("SplitToSequence", ["x", "one"], ["rows"], "split", axis=0),
        helper.make_node("SequenceMap", ["rows"], ["products"], "map", body=body),
        helper.make_node("ConcatFromSequence", ["products"], ["c"], "join", axis=0),
        helper.make_node("Mul", ["c", "two"], ["y"], "double"),
    ]
    weights = {"one": np.int64(1), "two": np.float32(2)}
    return saved(path, around, ([info("x", ["n", 8])], [info("y", ["n", 8])]), weights)


@pytest.mark.parametrize(("network", "node"), [(nested, "loop/inside/product"), (mapped, "map/product")])
def test_a_fault_in_a_loop_inside_a_loop_or_in_a_map_of_a_sequence_is_located_there(tmp_path, network, node):
    right, wrong = network(tmp_path / "right.onnx"), network(tmp_path / "wrong.onnx", 1.2)
    assert verify(right, against=str(right), samples=3).passed
    report = verify(wrong, against=str(right), samples=3)
    assert not report.passed
    assert [fault.node for fault in report.backends[0].faults] == [node]
