"""Graphs that draw random numbers, have operators that the truth does not know, or hold their Relus in bodies."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.verification.judging.comparable import truth_of_outputs
from relu_deploy.verification.run import verify

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
FLOAT = TensorProto.FLOAT


def info(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def saved(path, nodes, inputs, outputs, weights):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


MIDDLES = {
    "Dropout": [helper.make_node("Dropout", ["r", "ratio", "training"], ["d"], name="random")],
    "RandomNormalLike": [
        helper.make_node("RandomNormalLike", ["r"], ["noise"], name="random", scale=0.1),
        helper.make_node("Add", ["r", "noise"], ["d"]),
    ],
    "Bernoulli": [
        helper.make_node("Sigmoid", ["r"], ["p"]),
        helper.make_node("Bernoulli", ["p"], ["mask"], name="random"),
        helper.make_node("Mul", ["r", "mask"], ["d"]),
    ],
}


def random_network(path, kind, factor=1.0):
    generator = np.random.default_rng(1)
    first, second = generator.standard_normal((8, 64)), generator.standard_normal((64, 4))
    second[:, 2] *= factor
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m"], name="fc1"),
        helper.make_node("Relu", ["m"], ["r"], name="relu"),
        *MIDDLES[kind],
        helper.make_node("MatMul", ["d", "w2"], ["y"], name="fc2"),
    ]
    weights = {"w1": first.astype(np.float32), "w2": second.astype(np.float32)}
    weights |= {"ratio": np.float32(0.5), "training": np.bool_(True)}
    return saved(path, nodes, [info("x", ["batch", 8])], [info("y", ["batch", 4])], weights)


@pytest.mark.parametrize("kind", MIDDLES)
def test_a_random_graph_is_verified_on_one_shared_draw_and_named(tmp_path, kind):
    report = verify(random_network(tmp_path / "m.onnx", kind), samples=4)
    assert report.passed
    assert report.random == ("random",)
    assert report.to_json()["random_nodes"] == ["random"]


@pytest.mark.parametrize("kind", MIDDLES)
def test_a_wrong_column_behind_random_numbers_is_found_at_its_node(tmp_path, kind):
    right, wrong = random_network(tmp_path / "right.onnx", kind), random_network(tmp_path / "wrong.onnx", kind, -1.5)
    report = verify(wrong, against=str(right), samples=4)
    assert not report.passed
    assert report.first_divergence == "fc2"


def test_graphs_with_another_number_of_random_nodes_are_not_compared(tmp_path):
    right, other = random_network(tmp_path / "a.onnx", "Dropout"), tmp_path / "b.onnx"
    model = onnx.load(right)
    model.graph.node[2].op_type = "Identity"
    del model.graph.node[2].input[1:]
    onnx.save(model, other)
    with pytest.raises(InputError, match="draws random numbers at 0 nodes, the graph under test at 1"):
        verify(right, against=str(other))


def with_normalizer(path, factor=1.0):
    """ai.onnx.ml's Normalizer, which ONNX Runtime has and the reference evaluator has not, between two layers."""
    weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    weights[:, 1] *= factor
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("Relu", ["m"], ["r"], name="relu"),
        helper.make_node("Normalizer", ["r"], ["p"], name="normalizer", domain="ai.onnx.ml", norm="L1"),
        helper.make_node("Mul", ["p", "two"], ["y"], name="double"),
    ]
    return saved(path, nodes, [info("x", ["n", 8])], [info("y", ["n", 4])], {"w": weights, "two": np.float32(2)})


def test_an_unknown_operator_is_cut_out_of_the_truth_and_named(tmp_path):
    report = verify(with_normalizer(tmp_path / "m.onnx"), samples=4)
    assert report.passed
    assert report.to_json()["unknown_nodes"] == [{"node": "normalizer", "operator": "ai.onnx.ml.Normalizer"}]
    assert set(report.backends[0].outputs) == {"y"}


def test_the_outputs_behind_an_unknown_operator_have_a_truth_for_bench(tmp_path):
    x = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
    bundle = Bundle.open(with_normalizer(tmp_path / "m.onnx"))
    truth = truth_of_outputs(bundle, {"x": x}, "float32", 1)
    hidden = np.maximum(x.astype(np.float64) @ np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32), 0)
    sums = hidden.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(truth.values["y"], 2 * hidden / np.where(sums, sums, 1), rtol=1e-5)


def test_a_fault_before_an_unknown_operator_is_found(tmp_path):
    right, wrong = with_normalizer(tmp_path / "right.onnx"), with_normalizer(tmp_path / "wrong.onnx", 1.5)
    assert verify(wrong, against=str(right), samples=4).first_divergence == "fc"


def classifier(path, factor=1.0, more_outputs=()):
    """A ReLU network whose scores leave it as a map, as scikit-learn's converter writes them."""
    weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    weights[:, 1] *= factor
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("Relu", ["m"], ["r"], name="relu"),
        helper.make_node("ZipMap", ["r"], ["y"], name="map", domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3]),
    ]
    scores = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    outputs = [helper.make_value_info("y", helper.make_sequence_type_proto(scores)), *more_outputs]
    return saved(path, nodes, [info("x", ["n", 8])], outputs, {"w": weights})


@pytest.mark.parametrize("more_outputs", [(), (info("m", ["n", 4]),)], ids=["alone", "beside a tensor"])
def test_a_map_is_not_compared_and_the_relu_before_it_is(tmp_path, more_outputs):
    right = classifier(tmp_path / "right.onnx", more_outputs=more_outputs)
    report = verify(right, samples=4)
    assert report.passed
    assert [(relu.relu.node, relu.passed) for relu in report.backends[0].relus] == [("relu", True)]
    assert report.to_json()["unknown_nodes"] == [{"node": "map", "operator": "ai.onnx.ml.ZipMap"}]
    wrong = classifier(tmp_path / "wrong.onnx", 1.5, more_outputs)
    assert verify(wrong, against=str(right), samples=4).first_divergence == "fc"


def body(name, weights, operator):
    nodes = [
        helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_m"], name=f"{name}_product"),
        helper.make_node(operator, [f"{name}_m"], [f"{name}_y"], name=f"{name}_relu"),
    ]
    return helper.make_graph(nodes, name, [], [info(f"{name}_y", ["n", 8])], [numpy_helper.from_array(weights, f"{name}_w")])


def branches(path, factor=1.0, operator="Relu"):
    generator = np.random.default_rng(0)
    first, second = (generator.standard_normal((8, 8)).astype(np.float32) for _ in range(2))
    first[:, 3] *= factor
    node = helper.make_node(
        "If", ["condition"], ["y"], name="if", then_branch=body("a", first, operator), else_branch=body("b", second, operator)
    )
    return saved(path, [node], [info("x", ["n", 8])], [info("y", ["n", 8])], {"condition": np.array(True)})


def test_the_relu_of_the_branch_that_runs_is_verified_and_the_other_is_counted(tmp_path):
    (report,) = verify(branches(tmp_path / "m.onnx"), samples=4).backends
    assert [(relu.relu.node, relu.passed) for relu in report.relus] == [("if/a_relu", True), ("if/b_relu", None)]
    assert "1 of 2 Relus has not run on this input" in report.note


@pytest.mark.parametrize(
    ("change", "node"), [({"factor": 1.1}, "if/a_product"), ({"operator": "LeakyRelu"}, "if/a_relu")], ids=["weight", "leaky"]
)
def test_a_fault_inside_a_branch_is_located_there(tmp_path, change, node):
    report = verify(branches(tmp_path / "wrong.onnx", **change), against=str(branches(tmp_path / "right.onnx")), samples=4)
    assert [fault.node for fault in report.backends[0].faults] == [node]


def test_a_graph_without_relus_is_compared_at_its_outputs_and_says_so(tmp_path, capsys):
    from relu_deploy.reporting.tables.verify import print_verify

    path = saved(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [info("x", ["n", 4])],
        [info("y", ["n", 4])],
        {"w": np.eye(4, dtype=np.float32)},
    )
    print_verify(verify(path).to_json())
    assert "passed: no Relu in the graph; outputs compared" in capsys.readouterr().out
