"""The verdict rule: noise passes, faults do not, and nothing depends on a user's tolerance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relu_deploy.verification.judging.verdict import LIMIT, compare, error_ratio, estimate_noise_floor, ulp_distance


def relu_layer(seed, depth, width=64):
    """Return the truth, and float32 evaluations by summing in different orders, of one layer behind a ReLU."""
    generator = np.random.default_rng(seed)
    x, w = (
        generator.standard_normal((128, depth)).astype(np.float32),
        generator.standard_normal((depth, width)).astype(np.float32),
    )
    truth = np.maximum(x.astype(np.float64) @ w.astype(np.float64), 0)
    blas = np.maximum(x @ w, 0)
    order = generator.permutation(depth)
    permuted = np.maximum(x[:, order] @ w[order], 0)
    one_by_one = np.zeros((128, width), np.float32)
    for k in range(depth):
        one_by_one += x[:, k : k + 1] * w[k]
    return truth, blas, permuted, np.maximum(one_by_one, 0), (x, w)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 9, 64, 576, 2304]))
def test_any_order_of_summation_is_noise(seed, depth):
    truth, blas, permuted, one_by_one, _ = relu_layer(seed, depth)
    noise_floor = estimate_noise_floor(truth, blas)
    for evaluation in (blas, permuted, one_by_one):
        assert compare(evaluation, truth, noise_floor).passed


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([9, 64, 576, 2304]))
def test_weights_rounded_to_float16_are_a_fault(seed, depth):
    truth, blas, _, _, (x, w) = relu_layer(seed, depth)
    half = np.maximum(x @ w.astype(np.float16).astype(np.float32), 0)
    comparison = compare(half, truth, estimate_noise_floor(truth, blas))
    assert not comparison.passed
    assert comparison.error_ratio > 10 * LIMIT
    assert "times that of correct arithmetic" in comparison.reason


@pytest.mark.parametrize("slope", [0.01, 0.1, 1.0])
def test_a_leaky_relu_is_a_fault(slope):
    truth, blas, _, _, (x, w) = relu_layer(0, 64)
    y = x @ w
    assert not compare(np.where(y > 0, y, np.float32(slope) * y), truth, estimate_noise_floor(truth, blas)).passed


def test_one_wrong_element_in_a_million_is_found():
    truth = np.abs(np.random.default_rng(0).standard_normal((1000, 1000)))
    measured = truth.astype(np.float32)
    assert compare(measured, truth, estimate_noise_floor(truth)).passed
    measured[500, 500] += 0.01
    assert not compare(measured, truth, estimate_noise_floor(truth)).passed


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_a_value_that_is_not_finite_where_the_truth_is_fails_with_its_name(value, word):
    truth = np.ones((2, 3))
    measured = truth.astype(np.float32)
    measured[1, 2] = value
    comparison = compare(measured, truth, estimate_noise_floor(truth))
    assert not comparison.passed
    assert word in comparison.reason
    assert comparison.to_json()["error_ratio"] is None


def test_nan_and_overflow_of_the_truth_must_be_kept():
    truth = np.array([np.nan, 1e300, 1.0])
    assert compare(np.array([np.nan, np.inf, 1], np.float32), truth, estimate_noise_floor(truth)).passed
    assert not compare(np.array([0, np.inf, 1], np.float32), truth, estimate_noise_floor(truth)).passed
    assert not compare(np.array([np.nan, 3e38, 1], np.float32), truth, estimate_noise_floor(truth)).passed


def test_shapes_and_integers_are_compared_exactly():
    assert "shape" in compare(np.zeros((2, 3), np.float32), np.zeros((3, 2)), 1.0).reason
    assert compare(np.array([1, 2]), np.array([1, 2]), 0.0).passed
    assert "1 of 2 integers differ" in compare(np.array([1, 3]), np.array([1, 2]), 0.0).reason


def test_a_tensor_that_is_exact_has_a_noise_floor_all_the_same():
    truth = np.zeros(10)
    assert compare(np.zeros(10, np.float32), truth, estimate_noise_floor(truth)).passed
    assert not compare(np.full(10, 1e-30, np.float32), truth, estimate_noise_floor(truth)).passed


def test_error_ratio_is_one_for_the_noise_floor_itself_and_grows_with_the_error():
    truth = np.linspace(0.1, 1, 1000)
    float32 = (truth * (1 + 1e-6)).astype(np.float32)
    noise_floor = estimate_noise_floor(truth, float32)
    assert error_ratio(float32, truth, noise_floor) == pytest.approx(1)
    assert error_ratio((truth * (1 + 1e-5)).astype(np.float32), truth, noise_floor) == pytest.approx(10, rel=0.05)
    with pytest.raises(ValueError, match="shapes differ"):
        error_ratio(float32, truth[1:], noise_floor)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 1000))
def test_ulp_distance_counts_representable_numbers(value, steps):
    value = np.float32(value)
    other = value
    for _ in range(min(steps, 50)):
        other = np.nextafter(other, np.float32(np.inf))
    assert ulp_distance(np.array([value]), np.array([other]))[0] == min(steps, 50) or not np.isfinite(other)


def test_the_two_zeros_are_one_number_and_the_signs_meet_there():
    tiny = np.float32(1e-45)
    assert ulp_distance(np.array([-0.0], np.float32), np.array([0.0], np.float32))[0] == 0
    assert ulp_distance(np.array([-tiny]), np.array([tiny]))[0] == 2


@pytest.mark.filterwarnings("error")
def test_the_root_mean_square_of_numbers_whose_squares_are_beyond_float64():
    from relu_deploy.verification.judging.verdict import rms

    assert rms(np.array([3e200, 4e200])) == pytest.approx(np.sqrt(12.5) * 1e200)
    assert rms(np.array([1e300, np.inf])) == np.inf
    assert np.isnan(rms(np.array([1e300, np.nan])))
    assert rms(np.zeros(0)) == 0
