"""The noise of a tensor is gathered from evaluations that run beside each other and keep nothing."""

import weakref

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from bundles import exported
from onnx import TensorProto, helper
from threadpoolctl import threadpool_info, threadpool_limits

from relu_deploy.backends import load
from relu_deploy.backends.base import Rounding
from relu_deploy.backends.threads import limited_blas
from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import sample_feeds
from relu_deploy.graph import find_relus, load_model
from relu_deploy.verification.judging.noise import FEW, rounded_numbers
from relu_deploy.verification.judging.tensor_noise import TensorNoise, single_noise
from relu_deploy.verification.judging.verdict import LIMITS
from relu_deploy.verification.truth import find_truth, open_source


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.fixture
def true():
    return np.random.default_rng(0).standard_normal((2, 3, 4, 5))


def off(true, scale, seed=1):
    return true + scale * np.random.default_rng(seed).standard_normal(true.shape)


def test_the_floor_is_the_largest_error_of_any_evaluation_in_any_order(true):
    evaluations = [("float32", 0, 1e-6), ("draw", 0, 3e-6), ("ordered", 0, 4e-5), ("large", 0, 5e-5), ("large", 1, 6e-5)]
    expected = [rms(off(true, scale) - true) for _, _, scale in evaluations]
    limit = LIMITS["float32"]
    floor = max(expected[0], expected[1], 2 * expected[2] / limit, expected[3] / limit, expected[4] / limit)
    for ordering in (evaluations, evaluations[::-1]):
        noise = TensorNoise(true, "float32", decided=True)
        for name, draw, scale in ordering:
            noise.add(off(true, scale), name, draw)
        assert noise.floor == pytest.approx(floor, rel=1e-12)
        assert np.array_equal(noise.single, single_noise(true, off(true, 1e-6), off(true, 3e-6)))


def test_a_tensor_that_no_decision_reaches_is_not_judged_by_the_noise_at_its_limit(true):
    noise = TensorNoise(true, "float32", decided=False)
    noise.add(off(true, 1e-6), "float32")
    noise.add(off(true, 1.0), "large")
    assert noise.floor == pytest.approx(rms(off(true, 1e-6) - true))


def test_few_numbers_are_judged_by_all_draws_and_many_by_the_first(true):
    few = true.reshape(-1)[: FEW - 1]
    noise, many = TensorNoise(few, "float32", decided=False), TensorNoise(true, "float32", decided=False)
    for draw in range(4):
        noise.add(off(few, 10.0**-draw, draw), "draw", draw)
        many.add(off(true, 10.0**-draw, draw), "draw", draw)
    errors = [rms(off(few, 10.0**-draw, draw) - few) for draw in range(4)]
    assert noise.floor == pytest.approx(max(rms(np.array(errors)), errors[0]))
    assert many.floor == pytest.approx(rms(off(true, 1.0, 0) - true))


def test_integers_that_change_with_the_rounding_are_undecided():
    noise = TensorNoise(np.array([1, 2, 3]), "float32", decided=True)
    noise.add(np.array([1, 2, 4]), "draw")
    noise.add(np.array([7, 2, 3]), "large")
    noise.add(np.array([1, 2]), "large", 1)  # another number of rows says nothing about an element
    assert noise.undecided.tolist() == [True, False, True]
    assert noise.single.tolist() == [np.inf, 0, np.inf]
    assert noise.floor == 0


def test_rounded_numbers_have_the_error_of_the_draws_where_the_precision_is_coarse():
    true = np.array([1, 2, 3, 4])
    for precision, floor in (("int8", np.sqrt(2.5)), ("float32", 0.0)):
        noise = TensorNoise(true, precision, decided=True, rounded=True)
        noise.add(np.array([1, 2, 3, 5]), "draw")
        noise.add(np.array([2, 2, 3, 1]), "draw", 1)  # off by 1 and 3: the root of 10 / 4
        noise.add(true + 100, "large")
        assert noise.floor == pytest.approx(floor)
    assert TensorNoise(true, "int8", decided=True).floor == 0


def test_indices_and_what_is_gathered_at_them_are_no_rounded_numbers():
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.INT64),
        helper.make_node("Relu", ["cast"], ["relu"]),
        helper.make_node("ArgMax", ["x"], ["index"], keepdims=0),
        helper.make_node("Cast", ["index"], ["float_index"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["float_index"], ["cast_index"], to=TensorProto.INT64),
        helper.make_node("Add", ["relu", "cast_index"], ["mixed"]),
        helper.make_node("Greater", ["x", "x"], ["compared"]),
        helper.make_node("Cast", ["compared"], ["count"], to=TensorProto.INT64),
        helper.make_node("Gather", ["x", "relu"], ["rows"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 3]) for name in ("x", "rows")]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=[helper.make_opsetid("", 18)])
    model = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    assert rounded_numbers(model) == {"cast", "relu"}


def test_the_truth_is_that_of_whole_evaluations_one_after_the_other(monkeypatch):
    monkeypatch.setattr("relu_deploy.verification.truth.default_threads", lambda: 2)
    bundle = exported("digits")
    feeds, _ = sample_feeds(bundle, 2, 0)
    relus = find_relus(load_model(bundle.onnx))
    truth = find_truth(open_source(bundle, "reference", relus), feeds)
    session = load(bundle, "reference", taps=tuple(relus))
    # The number of threads may decide on the last bit of a sum.
    with limited_blas(1):
        values = session.evaluate(feeds)
        others = [session.evaluate(feeds, wide=False), session.evaluate(feeds, rounding=Rounding("float32", 0))]
    assert truth.values.keys() == values.keys()
    for name, value in values.items():
        assert np.array_equal(truth.values[name], value)
        least = rms(value.astype(np.float32) - value)
        assert truth.noise_floor[name] == pytest.approx(max(least, *(rms(one[name] - value) for one in others)), rel=1e-12)


@pytest.mark.parametrize(("processors", "allowed"), [(1, 1), (2, 1), (4, 2)])
def test_the_evaluations_that_run_at_once_share_the_processors(monkeypatch, processors, allowed):
    """Each would take all of them, and idle threads of OpenBLAS spin."""
    monkeypatch.setattr("relu_deploy.verification.truth.default_threads", lambda: processors)
    bundle, found = exported("digits"), set()
    source = open_source(bundle, "reference", ())
    evaluate = source.session.evaluate

    def watched(*arguments, **options):
        found.update(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
        return evaluate(*arguments, **options)

    monkeypatch.setattr(source.session, "evaluate", watched)
    with threadpool_limits(4, user_api="blas"):
        find_truth(source, sample_feeds(bundle, 1, 0)[0])
    assert found == {allowed}


def test_an_output_that_was_handed_over_is_freed_while_the_evaluation_goes_on(tmp_path):
    """Taps are outputs: a network of many Relus would otherwise keep all of its tensors at once."""
    nodes = [helper.make_node("Relu", [f"t{index}"], [f"t{index + 1}"], f"relu{index}") for index in range(6)]
    ends = [helper.make_tensor_value_info(f"t{index}", TensorProto.FLOAT, [1, 8]) for index in range(7)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    kept, alive, results = [], [], {}

    def consume(name, value):
        kept.append(weakref.ref(value))
        alive.append(sum(one() is not None for one in kept))
        results[name] = value.copy()

    feeds = {"t0": np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 8)}
    session = load(Bundle.open(tmp_path / "m.onnx"), "reference")
    assert session.evaluate(feeds, consume=consume) == {}
    assert list(results) == [f"t{index}" for index in range(1, 7)]
    assert np.array_equal(results["t6"], np.maximum(feeds["t0"].astype(np.float64), 0))
    # The result of a node and what it was computed from.
    assert max(alive) <= 2
