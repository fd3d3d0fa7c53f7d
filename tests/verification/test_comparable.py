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
BOOL, FLOAT, INT64 = TensorProto.BOOL, TensorProto.FLOAT, TensorProto.INT64


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


def branch_in_a_loop(path):
    """A Relu of each branch of an If in the body of a Loop, which cannot be observed, and one behind the Loop, which can."""
    halves = [
        helper.make_graph(
            [helper.make_node("Relu", ["going"], [f"{name}_y"], name=f"{name}_relu")], name, [], [info(f"{name}_y", None)]
        )
        for name in ("a", "b")
    ]
    bodies = [
        helper.make_node("ReduceMax", ["going"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "half"], ["greater"]),
        helper.make_node("If", ["greater"], ["next"], name="if", then_branch=halves[0], else_branch=halves[1]),
        helper.make_node("Identity", ["on"], ["still_on"]),
    ]
    values = [(name, helper.make_tensor_value_info(name, kind, [])) for name, kind in (("i", INT64), ("on", BOOL))]
    still_on = helper.make_tensor_value_info("still_on", BOOL, [])
    loop_body = helper.make_graph(
        bodies, "body", [*(value for _, value in values), info("going", ["n", 8])], [still_on, info("next", ["n", 8])]
    )
    nodes = [
        helper.make_node("Loop", ["count", "", "x"], ["looped"], name="loop", body=loop_body),
        helper.make_node("Relu", ["looped"], ["y"], name="last"),
    ]
    constants = {"count": np.int64(2), "half": np.float32(0.5)}
    return saved(path, nodes, [info("x", ["n", 8])], [info("y", ["n", 8])], constants)


def test_relus_that_cannot_be_observed_are_counted_and_named_in_every_answer(tmp_path, capsys):
    from relu_deploy.reporting.pages.verify import verify_page
    from relu_deploy.reporting.tables.verify import print_verify

    result = verify(branch_in_a_loop(tmp_path / "m.onnx"), samples=2).to_json()
    assert [relu["node"] for relu in result["backends"][0]["relus"]] == ["last"]
    said = "2 further Relus have not been observed: inside a body that cannot show its tensors (loop/if/a_relu, loop/if/b_relu)"
    assert result["backends"][0]["note"] == said
    print_verify(result)
    assert said in " ".join(capsys.readouterr().out.split())
    # The Relu has index 2 and is the first of the list.
    assert "2: last" in verify_page(result)


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


def random_body(path, holder, factor=1.0):
    """A RandomNormalLike in a branch, or in a loop of three steps, between two layers."""
    generator = np.random.default_rng(1)
    first, second = (generator.standard_normal((8, 8)).astype(np.float32) for _ in range(2))
    second[:, 2] *= factor
    noisy = [helper.make_node("RandomNormalLike", ["{}"], ["noise"], name="noise", scale=0.1)]
    if holder == "If":
        noisy[0].input[0] = "r"
        then = helper.make_graph([*noisy, helper.make_node("Add", ["r", "noise"], ["a"])], "then", [], [info("a", ["n", 8])])
        alone = helper.make_graph([helper.make_node("Identity", ["r"], ["b"])], "else", [], [info("b", ["n", 8])])
        node = helper.make_node("If", ["yes"], ["d"], name="holder", then_branch=then, else_branch=alone)
    else:
        noisy[0].input[0] = "state"
        step = [*noisy, helper.make_node("Add", ["state", "noise"], ["next"]), helper.make_node("Identity", ["on"], ["still"])]
        carried = [info("i", [], TensorProto.INT64), info("on", [], TensorProto.BOOL), info("state", ["n", 8])]
        loop = helper.make_graph(step, "body", carried, [info("still", [], TensorProto.BOOL), info("next", ["n", 8])])
        node = helper.make_node("Loop", ["three", "", "r"], ["d"], name="holder", body=loop)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m"], name="fc1"),
        helper.make_node("Relu", ["m"], ["r"], name="relu"),
        node,
        helper.make_node("MatMul", ["d", "w2"], ["y"], name="fc2"),
    ]
    weights = {"w1": first, "w2": second}
    weights |= {"yes": np.bool_(True)} if holder == "If" else {"three": np.array(3)}
    return saved(path, nodes, [info("x", ["n", 8])], [info("y", ["n", 8])], weights)


@pytest.mark.parametrize("holder", ["If", "Loop"])
def test_random_numbers_inside_a_body_are_shared_and_hide_no_fault_behind_it(tmp_path, holder):
    right, wrong = random_body(tmp_path / "right.onnx", holder), random_body(tmp_path / "wrong.onnx", holder, -1.5)
    report = verify(right, samples=4)
    assert report.passed
    assert report.random == ("holder/noise",)
    report = verify(wrong, against=str(right), samples=4)
    assert not report.passed
    assert report.first_divergence == "fc2"


def test_a_live_dropout_whose_mask_is_an_output_is_verified_on_one_mask(tmp_path):
    generator = np.random.default_rng(1)

    def network(name, factor=1.0):
        weights = first.copy()
        weights[:, 1] *= factor
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
            helper.make_node("Dropout", ["m", "ratio", "training"], ["d", "mask"], name="drop"),
            helper.make_node("Relu", ["d"], ["y"], name="relu"),
        ]
        constants = {"w": weights, "ratio": np.float32(0.3), "training": np.bool_(True)}
        outputs = [info("y", ["n", 6]), info("mask", ["n", 6], TensorProto.BOOL)]
        return saved(tmp_path / name, nodes, [info("x", ["n", 8])], outputs, constants)

    first = generator.standard_normal((8, 6)).astype(np.float32)
    right = network("right.onnx")
    report = verify(right, samples=4)
    assert report.passed
    assert report.random == ("drop",)
    assert verify(network("wrong.onnx", 1.5), against=str(right), samples=4).first_divergence == "fc"


def test_a_number_that_random_numbers_alone_decide_swallows_no_nan(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m"], name="fc1"),
        helper.make_node("Sigmoid", ["m"], ["p"]),
        helper.make_node("Bernoulli", ["p"], ["draw"], name="draw"),
        helper.make_node("MatMul", ["draw", "w2"], ["s"], name="fc2"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal((8, 8)).astype(np.float32) for name in ("w1", "w2")}
    report = verify(saved(tmp_path / "m.onnx", nodes, [info("x", ["n", 8])], [info("y", ["n", 8])], weights), samples=2)
    assert report.passed
    (relu,) = report.backends[0].relus
    assert relu.contract.nan_kept is None


def test_the_largest_elements_in_any_order_are_right_and_a_wrong_weight_before_them_is_not(tmp_path):
    def network(name, factor=1.0):
        weights = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
        weights[:, 3] *= factor
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
            helper.make_node("TopK", ["m", "k"], ["values", "places"], name="largest", sorted=0),
            helper.make_node("Relu", ["values"], ["y"], name="relu"),
        ]
        outputs = [info("y", ["n", 5]), info("places", ["n", 5], TensorProto.INT64)]
        return saved(tmp_path / name, nodes, [info("x", ["n", 8])], outputs, {"w": weights, "k": np.array([5])})

    right = network("right.onnx")
    assert verify(right, samples=4).passed
    assert verify(network("wrong.onnx", 1.5), against=str(right), samples=4).first_divergence == "fc"


def test_where_every_output_is_of_an_unknown_operator_the_relus_before_it_are_compared(tmp_path):
    def network(name, factor=1.0):
        weights = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
        weights[:, 1] *= factor
        linear = {"coefficients": [1.0, 2.0, 3.0, 4.0, 5.0, -6.0], "intercepts": [0.1, 0.2], "classlabels_ints": [0, 1]}
        nodes = [
            helper.make_node("Scaler", ["x"], ["s"], "scaler", domain="ai.onnx.ml", offset=[0.0, 1.0, 2.0, 3.0], scale=[2.0] * 4),
            helper.make_node("MatMul", ["s", "w"], ["m"], name="fc"),
            helper.make_node("Relu", ["m"], ["r"], name="relu"),
            helper.make_node("LinearClassifier", ["r"], ["label", "scores"], "classifier", domain="ai.onnx.ml", **linear),
        ]
        outputs = [info("label", ["n"], TensorProto.INT64), info("scores", ["n", 2])]
        return saved(tmp_path / name, nodes, [info("x", ["n", 4])], outputs, {"w": weights})

    right = network("right.onnx")
    report = verify(right, samples=4)
    assert report.passed
    assert [(relu.relu.node, relu.passed) for relu in report.backends[0].relus] == [("relu", True)]
    assert [name for name, _ in report.unknown] == ["scaler", "classifier"]
    assert verify(network("wrong.onnx", 1.5), against=str(right), samples=4).first_divergence == "fc"


def test_what_is_behind_an_unknown_operator_is_compared_on_the_same_operands(tmp_path):
    from relu_deploy.graph import load_model, save_model
    from relu_deploy.graph.quantization.cast_precision import cast_model, simulated

    right = with_normalizer(tmp_path / "right.onnx")
    save_model(simulated(cast_model(load_model(right), "float16", {"normalizer": "float32"}).model), tmp_path / "half.onnx")
    report = verify(tmp_path / "half.onnx", against=str(right), samples=4)
    assert report.passed, report.to_json()


def test_texts_of_a_table_of_labels_are_compared(tmp_path):
    def network(name, labels):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
            helper.make_node("Relu", ["m"], ["r"], name="relu"),
            helper.make_node("ArgMax", ["r"], ["i"], axis=1, keepdims=0),
            helper.make_node("Gather", ["labels", "i"], ["y"], name="names"),
        ]
        weights = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
        constants = {"w": weights, "labels": np.array(labels, object)}
        return saved(tmp_path / name, nodes, [info("x", ["n", 8])], [info("y", ["n"], TensorProto.STRING)], constants)

    right = network("right.onnx", ["cat", "dog", "müsli"])
    assert verify(right, samples=8).passed
    report = verify(network("wrong.onnx", ["cat", "dog", "muesli"]), against=str(right), samples=8)
    assert "strings differ" in report.backends[0].outputs["y"].reason


def test_a_fault_between_the_last_relu_and_an_unknown_operator_is_found(tmp_path):
    def network(name, factor=1.0):
        weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
        weights[:, 1] *= factor
        nodes = [
            helper.make_node("Relu", ["x"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "w"], ["m"], name="fc"),
            helper.make_node("Normalizer", ["m"], ["p"], name="normalizer", domain="ai.onnx.ml", norm="L1"),
            helper.make_node("Relu", ["p"], ["y"], name="last"),
        ]
        return saved(tmp_path / name, nodes, [info("x", ["n", 8])], [info("y", ["n", 4])], {"w": weights})

    right = network("right.onnx")
    assert verify(right, against=str(right), samples=4).passed
    report = verify(network("wrong.onnx", 1.5), against=str(right), samples=4)
    assert not report.passed
    assert report.first_divergence == "fc"


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("height", [11, "height"])
@pytest.mark.parametrize("factors", [(1.7, 0.6), (0.37, 2.3)])
def test_corners_that_a_fractional_factor_aligns_are_those_of_the_result(tmp_path, factors, height, mode):
    """The last element of the result is the last of the operand, as the specification's text and runtimes have it."""
    attributes = {"mode": mode, "coordinate_transformation_mode": "align_corners"}
    resize = helper.make_node("Resize", ["x", "", "factors"], ["s"], "resize", **attributes)
    nodes = [
        resize,
        helper.make_node("Conv", ["s", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    ends = [info("x", [1, 3, height, 13])], [info("y", [1, 2, None, None])]
    random = np.random.default_rng(0)
    weights = {"factors": np.float32([1, 1, *factors]), "w": random.standard_normal((2, 3, 1, 1)).astype(np.float32)}
    feeds = {"x": random.standard_normal((1, 3, 11, 13)).astype(np.float32)}
    right = saved(tmp_path / "right.onnx", nodes, *ends, weights)
    report = verify(right, feeds=feeds)
    assert report.passed, report.to_json()
    weights["w"][0, 1] *= -1.5
    report = verify(saved(tmp_path / "wrong.onnx", nodes, *ends, weights), feeds=feeds, against=str(right))
    assert report.first_divergence == "conv"
