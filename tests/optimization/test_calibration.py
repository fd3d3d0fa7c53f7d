"""Statistics in one pass, whatever the order and the batches; ranges that are better than the whole one, or as good."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relu_deploy.errors import InputError, UsageError
from relu_deploy.optimization.accuracy.calibration import BINS, METHODS, Statistics, range_of


def counted(*arrays):
    statistics = Statistics()
    for array in arrays:
        statistics.add(np.asarray(array, np.float32))
    return statistics


def quantized(values, low, high, stored):
    if stored == "uint8":
        step = (high - low) / 255
        zero = np.round(-low / step)
        return (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step
    step = max(-low, high) / 127
    return np.clip(np.round(values / step), -127, 127) * step


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(-6, 6))
def test_the_order_and_the_sizes_of_batches_make_no_difference(seed, parts, power):
    generator = np.random.default_rng(seed)
    values = (generator.standard_normal((12, 3, 5)) * 10.0**power * generator.uniform(0.01, 100, (12, 1, 1))).astype(np.float32)
    whole = counted(values)
    split = counted(*np.array_split(values[generator.permutation(12)], parts))
    assert (whole.low, whole.high, whole.count, whole.zeros) == (split.low, split.high, split.count, split.zeros)
    assert whole.limit == split.limit
    assert whole.counts.sum() == split.counts.sum() == values.size
    # A number on the edge of a bin may fall to either side of it while bins are merged; no more than that.
    assert np.abs(np.cumsum(whole.counts) - np.cumsum(split.counts)).max() <= 2
    np.testing.assert_allclose(whole.means, split.means, rtol=1e-6, atol=1e-6 * whole.largest)
    np.testing.assert_array_equal(whole.peaks, split.peaks)


def test_the_histogram_covers_every_number_and_its_bins_double():
    statistics = counted(np.linspace(-1, 1, 1001), [100.0])
    assert statistics.limit == 128
    assert statistics.counts.sum() == 1002
    width = 2 * statistics.limit / BINS
    assert statistics.counts[BINS // 2 + int(100 / width)] == 1


def test_zeros_before_anything_else_are_counted():
    statistics = counted(np.zeros((2, 3)), np.ones((2, 3)))
    assert (statistics.zeros, statistics.count, statistics.counts.sum()) == (6, 12, 12)
    assert statistics.means.tolist() == [0.5] * 3


def test_a_tensor_that_is_always_zero_has_no_range():
    for method in METHODS:
        assert range_of(counted(np.zeros((2, 3))), method, "uint8") == (0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stored", ["uint8", "int8"])
def test_every_method_stays_inside_what_was_seen_and_contains_zero(method, stored):
    generator = np.random.default_rng(0)
    low, high = range_of(counted(np.maximum(generator.standard_normal((64, 8, 10)), 0), [[[5.0]]]), method, stored)
    assert low <= 0 < high <= 5.0
    assert low == (0 if stored == "uint8" or method in ("minmax", "percentile") else -high)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(["uint8", "int8"]), st.sampled_from(["normal", "laplace", "uniform"]))
def test_mse_is_never_much_worse_than_minmax(seed, stored, kind):
    generator = np.random.default_rng(seed)
    draw = {"normal": generator.standard_normal, "laplace": lambda n: generator.laplace(size=n), "uniform": generator.random}
    values = np.maximum(draw[kind](20_000), 0).astype(np.float32)
    errors = {}
    for method in ("mse", "minmax"):
        low, high = range_of(counted(values), method, stored)
        errors[method] = np.mean((quantized(values, low, high, stored) - values) ** 2)
    assert errors["mse"] <= errors["minmax"] * 1.1


def test_mse_clips_where_that_loses_less_than_it_gains():
    generator = np.random.default_rng(0)
    values = generator.standard_normal(2_000_000).astype(np.float32)
    values[0] = 10.0
    low, high = range_of(counted(values), "mse", "int8")
    assert high < 8
    assert np.mean((quantized(values, low, high, "int8") - values) ** 2) < np.mean(
        (quantized(values, -10, 10, "int8") - values) ** 2
    )


def test_entropy_clips_a_lone_outlier():
    values = np.concatenate([np.abs(np.random.default_rng(0).standard_normal(50_000)), [80.0]])
    assert range_of(counted(values), "entropy", "int8")[1] < 40


def test_nan_inside_the_model_is_refused():
    with pytest.raises(InputError, match="NaN"):
        counted([1.0, np.nan])


def test_an_unknown_method_is_refused_with_the_nearest_one():
    with pytest.raises(UsageError, match="no calibration method 'entropie'") as caught:
        range_of(counted([1.0]), "entropie", "int8")
    assert "entropy" in caught.value.hint


def test_infinities_of_a_mask_are_left_out_of_the_range():
    statistics = counted([1.0, -np.inf, -2.0], [np.inf, 0.5], [-np.inf])
    assert (statistics.low, statistics.high) == (-2.0, 1.0)
    assert statistics.counts.sum() == statistics.count


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lowest", [np.finfo(np.float32).min, -1e9, 1e-42])
def test_the_lowest_number_of_float32_is_counted_without_overflow(lowest):
    statistics = counted([1.0, lowest], [0.0])
    assert statistics.low == min(np.float32(lowest), 0)
    assert statistics.counts.sum() == 3
    assert range_of(statistics, "minmax", "int8") == (statistics.low, 1.0)
