"""Graphs with bodies, functions, sequences, randomness and external weights; what cannot be evaluated; what is freed."""

import gc
import weakref

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from one_node import node_model
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.backends.base import Rounding
from relu_deploy.backends.reference import loop_turns
from relu_deploy.backends.reference.evaluator import Evaluator, Limits
from relu_deploy.backends.reference.loop_turns import FREE_TURNS, LoopTurns
from relu_deploy.backends.reference.program import unsupported_nodes
from relu_deploy.errors import InputError, Unsupported
from relu_deploy.run_limit import limited_runs

FLOAT = TensorProto.FLOAT


def value(name, shape=None, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, initializers=(), opset=20, functions=(), domains=()):
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(initializers).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))


def run(proto, feeds, wide=True, **options):
    return Evaluator(ir.from_proto(proto), wide=wide).run(feeds, **options)


def loop_model(trips, condition, ends_at=None):
    """Each iteration doubles x and collects it; the body asks to stop at iteration `ends_at`."""
    nodes = [helper.make_node("Add", ["v", "v"], ["w"], "double"), helper.make_node("Identity", ["w"], ["kept"], "keep")]
    if ends_at is None:
        nodes.append(helper.make_node("Identity", ["go"], ["still"], "go_on"))
    else:
        nodes.append(helper.make_node("Less", ["i", "last"], ["still"], "go_on"))
    body = helper.make_graph(
        nodes, "body", [value("i", [], 7), value("go", [], 9), value("v", [2])],
        [value("still", [], 9), value("w", [2]), value("kept", [2])],
        [numpy_helper.from_array(np.array(ends_at or 0), "last")],
    )  # fmt: skip
    names = ["trips" if trips is not None else "", "start" if condition is not None else "", "x"]
    stored = {name: given for name, given in (("trips", trips), ("start", condition)) if given is not None}
    node = helper.make_node("Loop", names, ["y", "all"], "loop", body=body)
    return model([node], [value("x", [2])], [value("y", [2]), value("all", None)], stored)


X = np.array([1, 3], np.float32)


def test_a_loop_without_a_condition_runs_as_often_as_it_says():
    results = run(loop_model(np.array(3), None), {"x": X})
    assert results["y"].tolist() == [8, 24]
    assert results["all"].tolist() == [[2, 6], [4, 12], [8, 24]]


def test_a_loop_with_a_condition_ends_when_its_body_says_so():
    assert run(loop_model(None, np.array(True), ends_at=2), {"x": X})["y"].tolist() == [8, 24]
    assert run(loop_model(np.array(9), np.array(False)), {"x": X})["y"].tolist() == [1, 3]


def test_a_loop_without_iterations_collects_nothing_of_the_declared_shape():
    collected = run(loop_model(np.array(0), None), {"x": X})["all"]
    assert (collected.shape, collected.dtype) == ((0, 2), np.float64)


def test_a_loop_that_does_not_end_is_stopped_with_its_name():
    with pytest.raises(InputError, match="Loop 'loop' has not ended after 50"):
        run(loop_model(None, np.array(True)), {"x": X}, limits=Limits(iterations=50))
    with pytest.raises(InputError, match=r"took longer than 0\.05 s, at node"):
        run(loop_model(None, np.array(True)), {"x": X}, limits=Limits(seconds=0.05))


@pytest.fixture
def patience(monkeypatch):
    """Let Loops run for a tenth of a second."""
    monkeypatch.setattr(loop_turns, "MOST_SECONDS", 0.1)
    with limited_runs(True):
        yield


def test_a_loop_that_takes_minutes_is_stopped_where_runs_are_limited(patience):
    with pytest.raises(InputError, match=r"run the bodies of Loops [0-9,]+ times .* the last that of 'loop'") as caught:
        run(loop_model(np.array(2**62), np.array(True)), {"x": X})
    assert "--timeout" in caught.value.hint
    with limited_runs(False), pytest.raises(InputError, match=r"took longer than 0\.4 s"):
        run(loop_model(None, np.array(True)), {"x": X}, limits=Limits(seconds=0.4))


def test_turns_that_take_long_by_themselves_are_the_models_own_work(patience):
    turns = LoopTurns(seconds=0.0)
    for turn in range(FREE_TURNS - 1):
        turns.begin("Loop", "loop", turn)
    with pytest.raises(InputError, match="have not ended"):
        for turn in range(FREE_TURNS, FREE_TURNS + 2):
            turns.begin("Loop", "loop", turn)


def test_tensors_inside_a_body_are_shown_once_an_iteration():
    seen = []
    run(loop_model(np.array(3), None), {"x": X}, seen=lambda name, tensor: seen.append((name, tensor)) or tensor)
    assert [tensor.tolist() for name, tensor in seen if name == "w"] == [[2, 6], [4, 12], [8, 24]]


def branches(condition):
    """x is 2 x in one branch and W x in the other; both read tensors of the graph around."""
    then = helper.make_graph([helper.make_node("Add", ["h", "h"], ["t"], "double")], "then", [], [value("t")])
    weight = numpy_helper.from_array(np.float32([5, 7]), "W")
    other = helper.make_graph([helper.make_node("Mul", ["h", "W"], ["e"], "scale")], "else", [], [value("e")], [weight])
    nodes = [
        helper.make_node("Neg", ["x"], ["h"], "neg"),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=then, else_branch=other),
    ]
    return model(nodes, [value("x", [2])], [value("y")], {"c": np.array(condition)})


def test_branches_read_the_tensors_around_them():
    assert run(branches(True), {"x": X})["y"].tolist() == [-2, -6]
    assert run(branches(False), {"x": X})["y"].tolist() == [-5, -21]


def test_weights_inside_a_branch_are_rounded_as_weights_are():
    results = [run(branches(False), {"x": X}, rounding=Rounding("float16", seed))["y"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    np.testing.assert_allclose(results[0], [-5, -21], rtol=2**-9)


def test_a_scan_runs_over_any_axis_in_either_direction():
    nodes = [helper.make_node("Add", ["s", "v"], ["t"], "add"), helper.make_node("Identity", ["t"], ["o"], "keep")]
    body = helper.make_graph(nodes, "body", [value("s", [1]), value("v", [1])], [value("t", [1]), value("o", [1])])
    node = helper.make_node("Scan", ["start", "x"], ["last", "y"], "scan", body=body, num_scan_inputs=1, scan_input_axes=[1],
                            scan_input_directions=[1], scan_output_axes=[1])  # fmt: skip
    proto = model([node], [value("x", [1, 3])], [value("last"), value("y")], {"start": np.zeros(1, np.float32)})
    results = run(proto, {"x": np.float32([[1, 2, 3]])})
    assert (results["last"].tolist(), results["y"].tolist()) == ([6], [[3, 5, 6]])


def function_model():
    nodes = [helper.make_node("Mul", ["a", "k"], ["m"], "mul"), helper.make_node("Relu", ["m"], ["b"], "relu")]
    constant = helper.make_node("Constant", [], ["k"], "constant")
    constant.attribute.append(onnx.AttributeProto(name="value_float", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT))
    function = helper.make_function(
        "local", "Scaled", ["a"], ["b"], [constant, *nodes], [helper.make_opsetid("", 20)], ["factor"]
    )
    calls = [helper.make_node("Scaled", ["x"], ["h"], "first", domain="local", factor=-2.0),
             helper.make_node("Scaled", ["h"], ["y"], "second", domain="local", factor=3.0)]  # fmt: skip
    return model(calls, [value("x", [2])], [value("y")], functions=[function], domains=["local"])


def test_local_functions_have_the_attributes_of_each_call():
    assert run(function_model(), {"x": np.float32([-1, 4])})["y"].tolist() == [6, 0]


def test_sequences_pass_between_nodes():
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], "split", axis=0),
        helper.make_node("SequenceErase", ["s", "second"], ["t"], "erase"),
        helper.make_node("ConcatFromSequence", ["t"], ["y"], "join", axis=0),
    ]
    proto = model(nodes, [value("x", [3])], [value("y")], {"second": np.array(1)})
    assert run(proto, {"x": np.float32([1, 2, 3])})["y"].tolist() == [1, 3]


@pytest.mark.parametrize("operator", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
@pytest.mark.parametrize("attributes", [{}, {"seed": 7.0}])
def test_random_nodes_draw_the_same_in_every_evaluation_and_are_listed(operator, attributes):
    graph = node_model(operator, [np.full(100, 0.5, np.float32)], opset=22, **attributes)
    evaluators = [Evaluator(graph, wide=wide) for wide in (True, True, False)]
    results = [one.run({"x0": np.full(100, 0.5, np.float32)})["y0"] for one in evaluators]
    assert evaluators[0].random_nodes == ("node",)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[0], results[2], rtol=1e-6)
    assert len(set(results[0].tolist())) > 1


def test_seeds_tell_draws_apart():
    draws = [
        Evaluator(node_model("RandomNormal", [], opset=22, shape=[50], seed=seed), wide=True).run({})["y0"] for seed in (1.0, 2.0)
    ]
    assert not np.array_equal(*draws)


@pytest.mark.parametrize("training", [None, False, True])
def test_a_dropout_is_random_only_where_it_trains(training):
    x = np.ones(64, np.float32)
    names = ["x"] if training is None else ["x", "ratio", "training"]
    node = helper.make_node("Dropout", names, ["y"], "drop")
    stored = {"ratio": np.float32(0.5), "training": np.array(training)} if training is not None else {}
    evaluator = Evaluator(ir.from_proto(model([node], [value("x", [64])], [value("y")], stored)), wide=True)
    y = evaluator.run({"x": x})["y"]
    assert evaluator.random_nodes == (("drop",) if training else ())
    assert set(y.tolist()) == ({0, 2} if training else {1})


def test_weights_in_an_external_file_are_read(tmp_path):
    weight = np.arange(300, dtype=np.float32).reshape(100, 3)
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")], [value("x", [1, 100])], [value("y", [1, 3])], {"w": weight}
    )
    file = tmp_path / "m.onnx"
    onnx.save(proto, file, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    x = np.ones((1, 100), np.float32)
    np.testing.assert_array_equal(load(file, "reference").evaluate({"x": x})["y"], weight.sum(0, dtype=np.float64)[None])


def test_nodes_that_cannot_be_evaluated_are_listed_before_anything_runs(tmp_path):
    inner = helper.make_graph([helper.make_node("Mystery", ["h"], ["t"], "deep", domain="com.example")], "then", [], [value("t")])
    other = helper.make_graph([helper.make_node("Identity", ["h"], ["e"], "plain")], "else", [], [value("e")])
    nodes = [
        helper.make_node("Scaler", ["x"], ["h"], "scaler", domain="ai.onnx.ml", offset=[0.0], scale=[1.0]),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=inner, else_branch=other),
    ]
    proto = model(nodes, [value("x", [2])], [value("y", [2])], {"c": np.array(True)}, domains=["com.example", "ai.onnx.ml"])
    expected = [("scaler", "ai.onnx.ml", "Scaler"), ("deep", "com.example", "Mystery")]
    assert unsupported_nodes(ir.from_proto(proto)) == expected
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(Unsupported, match=r"Scaler \(node 'scaler'\), com.example.Mystery \(node '.*deep'\)") as raised:
        load(tmp_path / "m.onnx", "reference")
    assert "--backend" not in raised.value.hint


def test_an_operator_that_fails_names_its_node_and_what_it_was_given(tmp_path):
    proto = model(
        [helper.make_node("Add", ["x", "w"], ["y"], "plus")],
        [value("x", ["n"])],
        [value("y", ["n"])],
        {"w": np.ones(3, np.float32)},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"node 'plus' \(Add\) cannot be evaluated on float64\[2\], float64\[3\]"):
        load(tmp_path / "m.onnx", "reference").evaluate({"x": np.ones(2, np.float32)})


def test_tensors_are_freed_after_their_last_reader_also_where_branches_read_them():
    then = helper.make_graph([helper.make_node("Neg", ["b"], ["t"], "neg")], "then", [], [value("t")])
    other = helper.make_graph([helper.make_node("Identity", ["b"], ["e"], "same")], "else", [], [value("e")])
    nodes = [
        helper.make_node("Exp", ["x"], ["a"], "first"),
        helper.make_node("Add", ["a", "a"], ["b"], "second"),
        helper.make_node("If", ["c"], ["d"], "if", then_branch=then, else_branch=other),
        helper.make_node("Abs", ["d"], ["f"], "third"),
        helper.make_node("Sqrt", ["f"], ["y"], "fourth"),
    ]
    proto = model(nodes, [value("x", [2])], [value("y")], {"c": np.array(True)})
    alive, found = {}, {}

    def keep(name, tensor):
        alive[name] = weakref.ref(tensor)
        gc.collect()
        found[name] = {other for other, reference in alive.items() if reference() is not None}
        return tensor

    run(proto, {"x": X}, seen=keep)
    assert "a" not in found["t"]
    assert "b" in found["t"]
    assert not found["y"] & {"a", "b", "t"}


def test_sizes_are_computed_in_float32_as_runtimes_do():
    # An interpolation by 0.7 as PyTorch writes it: ten pixels become 7, though 10 * float32(0.7) is less than 7 in float64.
    nodes = [
        helper.make_node("Shape", ["x"], ["size"], "shape"),
        helper.make_node("Cast", ["size"], ["float_size"], "cast", to=FLOAT),
        helper.make_node("Mul", ["float_size", "factor"], ["scaled"], "scale"),
        helper.make_node("Floor", ["scaled"], ["whole"], "floor"),
        helper.make_node("Cast", ["whole"], ["sizes"], "back", to=TensorProto.INT64),
        helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], "resize", mode="linear"),
        helper.make_node("Mul", ["x", "factor"], ["z"], "data"),
    ]
    factor = np.float32([0.7])
    results = run(model(nodes, [value("x", [10])], [value("y"), value("z")], {"factor": factor}), {"x": np.ones(10, np.float32)})
    assert results["y"].shape == (7,)
    # The same weight is not rounded where data is multiplied by it.
    assert results["z"].dtype == np.float64
    np.testing.assert_array_equal(results["z"], np.full(10, factor.astype(np.float64)))


def test_functions_of_the_specification_are_one_operation():
    seen = []
    graph = node_model("SoftmaxCrossEntropyLoss", [np.zeros((2, 3), np.float32), np.array([0, 2])], opset=13)
    feeds = {"x0": np.zeros((2, 3), np.float32), "x1": np.array([0, 2])}
    results = Evaluator(graph, wide=True).run(feeds, seen=lambda name, tensor: seen.append(name) or tensor)
    np.testing.assert_allclose(results["y0"], np.log(3))
    assert seen == ["y0"]
