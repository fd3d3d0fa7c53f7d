"""Many small tensors measured and judged at once have the figures of each of them alone."""

from dataclasses import replace

import numpy as np
import pytest

from relu_deploy.graph import Relu
from relu_deploy.verification.judging.contract import check_contract
from relu_deploy.verification.judging.stacked_noise import FEWEST, LARGEST, rms_of_rows, stacks_of
from relu_deploy.verification.judging.stacked_verdicts import stacked_verdicts
from relu_deploy.verification.judging.tensor_noise import TensorNoise
from relu_deploy.verification.judging.verdict import LIMITS, SINGLE, compare, rms
from relu_deploy.verification.truth import Truth

COUNT = 40
SHAPES = [(1, 4), (3,), (1,), (), (2, 20)]


def truth_of(shape, seed=0):
    """Return tensors of a shape: ordinary ones, and some with numbers that a float32 or a square cannot hold."""
    generator = np.random.default_rng(seed)
    tensors = {f"t{at}": np.maximum(generator.standard_normal(shape) * 10.0 ** (at % 7 - 3), 0) for at in range(COUNT)}
    for at, number in enumerate((0.0, np.inf, np.nan, 1e39, 1e200, 1e-40)):
        flat = tensors[f"t{at}"] = np.array(tensors[f"t{at}"])
        flat.reshape(-1)[:1] = number
    return tensors


def rounded(value, generator, size):
    return value * (1 + generator.uniform(-size, size, value.shape))


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_noise_of_a_stack_is_that_of_each_tensor_alone(shape, precision):
    true, generator = truth_of(shape), np.random.default_rng(1)
    (stack,) = stacks_of(true, precision)
    alone = {name: TensorNoise(value, precision, decided=False) for name, value in true.items()}
    evaluations = [("float32", 0), *(("draw", draw) for draw in range(4)), ("ordered", 0), ("large", 0)]
    with np.errstate(all="ignore"):
        for evaluation, draw in evaluations:
            for place, (name, value) in enumerate(true.items()):
                other = rounded(value, generator, 2.0**-20)
                if place in (7, 8):
                    other.reshape(-1)[:1] = (np.inf, np.nan)[place - 7]
                other = other.astype(np.float32) if evaluation == "float32" else other
                other = np.zeros((5, 5)) if place == 9 else other
                stack.add(name, other, evaluation, draw)
                alone[name].add(other, evaluation, draw)
            stack.end(evaluation, draw)
        for name in ("t1", "t10"):
            stack.forget_overflow(name)
            alone[name].forget_overflow()
        floors = stack.floors()
        assert floors.keys() == true.keys()
        for name, noise in alone.items():
            assert floors[name] == pytest.approx(noise.floor, rel=1e-12), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_an_overflow_leaves_open_in_a_stack_is_what_it_leaves_open_in_each_tensor_alone(shape):
    true, generator = truth_of(shape), np.random.default_rng(3)
    (stack,) = stacks_of(true, "float32")
    alone = {name: TensorNoise(value, "float32", decided=False) for name, value in true.items()}
    with np.errstate(all="ignore"):
        for evaluation, size in (("draw", 2.0**-20), ("overflow", 2.0**-20), ("overflow", 0.5)):
            for place, (name, value) in enumerate(true.items()):
                other = np.array(rounded(value, generator, size))
                if evaluation == "overflow" and place in (10, 11, 12):
                    other.reshape(-1)[:1] = (np.inf, -np.inf, np.nan)[place - 10]
                stack.add(name, other, evaluation)
                alone[name].add(other, evaluation)
            stack.end(evaluation)
    expected = {name: noise for name, noise in alone.items() if noise.overflows is not None}
    assert {"t10", "t11", "t12"} < expected.keys() == stack.overflows.keys() == stack.singles().keys()
    for name, noise in expected.items():
        np.testing.assert_array_equal(stack.overflows[name], noise.overflows)
        np.testing.assert_allclose(stack.singles()[name], noise.single)


def test_only_small_tensors_of_which_there_are_many_are_stacked():
    def many(value, count=FEWEST):
        return {f"t{at}": value for at in range(count)}

    assert [len(stack.names) for stack in stacks_of(many(np.zeros((1, 4))), "float32")] == [FEWEST]
    for tensors in (
        many(np.zeros((1, 4)), FEWEST - 1),
        many(np.zeros(LARGEST + 1)),
        many(np.zeros(0)),
        many(np.zeros((1, 2, 2))),
        many(np.zeros(4, np.int64)),
        many(np.zeros(4, np.float32)),
    ):
        assert list(stacks_of(tensors, "float32")) == []


def assert_same(fields, expected):
    assert fields.keys() == expected.keys()
    for name, value in fields.items():
        assert value == (pytest.approx(expected[name], rel=1e-12) if isinstance(value, float) else expected[name]), name


def relu_of(name, upper=None):
    return Relu(name, 0, "relu", f"{name}/in", name, None, "", "", (), upper)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_verdicts_on_a_stack_are_those_on_each_relu_alone(shape, dtype):
    values, generator = truth_of(shape), np.random.default_rng(2)
    relus = [relu_of(name, 6.0 if at % 3 == 0 else None) for at, name in enumerate(values)]
    with np.errstate(all="ignore"):
        outputs = {name: rounded(value, generator, 1e-7).astype(dtype) for name, value in values.items()}
    for name, number in (("t10", -1.0), ("t11", np.nan), ("t12", 1e3), ("t13", 0.0)):
        outputs[name].reshape(-1)[:1] = number
    floors = {name: 1e-8 * (at % 5) for at, name in enumerate(values)}
    kept = {name: (True, False, None)[at % 3] for at, name in enumerate(values)}
    truth = Truth("reference", values, floors)
    found = stacked_verdicts(relus, outputs, truth, kept, True)
    with np.errstate(over="ignore"):
        finite = {name for name in values if all(np.isfinite(one[name].astype(np.float32)).all() for one in (values, outputs))}
    assert found.keys() == finite
    assert {"t10", "t12", "t13"} <= finite
    failed = 0
    for relu in relus:
        if relu.output not in finite:
            continue
        got, true, floor = outputs[relu.output], values[relu.output], floors[relu.output]
        comparison, contract = found[relu.output]
        expected = compare(got, true, floor, LIMITS["float32"])
        failed += not expected.passed
        assert_same(comparison.to_json(), expected.to_json())
        alone = replace(check_contract(relu, got, true, SINGLE * floor, "float32", kept[relu.output]), accepts_lost_nan=True)
        assert_same(contract.to_json(), alone.to_json())
    assert 0 < failed < len(finite)


def test_relus_that_are_not_compared_number_by_number_are_not_stacked():
    values = {f"t{at}": np.ones((1, 4)) for at in range(COUNT)}
    outputs = {name: value.astype(np.float32) for name, value in values.items()}
    truth = Truth("reference", values, dict.fromkeys(values, 1e-8), list_noise={"t1": 1.0}, single={"t2": np.zeros(4)})
    truth = replace(truth, overflows={"t3": np.ones((1, 4), np.uint8)})
    found = stacked_verdicts([relu_of(name) for name in values], outputs, truth, {}, False)
    assert values.keys() - found.keys() == {"t1", "t2", "t3"}


def test_the_rms_of_a_row_is_that_of_an_array():
    rows = np.array([[1.0, 2.0], [0.0, 0.0], [1e200, -1e200], [np.inf, 1.0], [1e-200, 1e-200]])
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(rms_of_rows(rows), [rms(row) for row in rows])
