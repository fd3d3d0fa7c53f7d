"""A baseline knows what it was fitted on, gives its false alarms at the stated rate, and survives being written down."""

import math

import numpy as np
import pytest

from relu_deploy.activations.drift import Baseline, BaselineBuilder, p_value, rank_sum, rates_of, threshold_of
from relu_deploy.errors import InputError
from relu_deploy.graph import Relu

RELUS = [
    Relu("a", 0, "relu", "a_in", "a_out", ("n", 12, 4, 4), "", "", ()),
    Relu("b", 1, "relu6", "b_in", "b_out", ("n", 5), "", "", (), 6.0),
]


def outputs(generator, rows, shift=0.0, twist=False):
    """Return two Relus' outputs. The channels of the first rise and fall together; `twist` lets half of them do the opposite."""
    level = generator.standard_normal((rows, 1, 1, 1)) * 0.5
    signs = np.ones((1, 12, 1, 1))
    signs[:, 6:] = -1.0 if twist else 1.0
    first = level * signs + generator.standard_normal((rows, 12, 4, 4)) + shift
    second = generator.standard_normal((rows, 5)) + shift
    return {"a_out": np.maximum(first, 0).astype(np.float32), "b_out": np.clip(second, 0, 6).astype(np.float32)}


def norm_of(rows=2000, seed=0, batch=50):
    generator = np.random.default_rng(seed)
    builder, maxima = BaselineBuilder(RELUS, rows), {"a_out": 0.0, "b_out": 0.0}
    for start in range(0, rows, batch):
        size = min(batch, rows - start)
        results = outputs(generator, size)
        builder.add(results, size)
        maxima = {name: max(each, float(results[name].max())) for name, each in maxima.items()}
    return builder.result(maxima, {"a_out": 16, "b_out": 1}, "reference", "0" * 64)


def scores_of(baseline, results):
    return baseline.log_distances([rates_of(results[relu.output]) for relu in baseline.relus]).mean(axis=1)


def test_rates_are_numpys_own_mean_of_what_fires():
    values = np.random.default_rng(0).standard_normal((7, 3, 5, 4)).astype(np.float32)
    assert np.allclose(rates_of(values), (values > 0).mean(axis=(2, 3)), atol=1e-7)
    assert rates_of(values[:, :, 0, 0]).tolist() == (values[:, :, 0, 0] > 0).astype(float).tolist()
    values[0, 0] = np.nan
    assert rates_of(values)[0, 0] == 0


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 5, 4)])
def test_a_batch_without_a_picked_row_has_no_rates(shape):
    assert rates_of(np.zeros(shape, np.float32)).shape == (0, 3)


def test_a_census_of_many_more_rows_than_the_norm_keeps_counts_them_all():
    total, size = 400_000, 8
    builder = BaselineBuilder([Relu("a", 0, "relu", "a_in", "a_out", ("n", 2), "", "", ())], total)
    values = np.ones((size, 2), np.float32)
    for _ in range(total // size):
        builder.add({"a_out": values}, size)
    assert builder.result({"a_out": 1.0}, {"a_out": 1}, "reference", "0").samples == total


def test_windows_of_the_same_kind_raise_the_alarm_at_the_stated_rate():
    # Over baselines as well as windows: one baseline's held-out rows may be a little unlike what comes.
    generator, alarms, windows = np.random.default_rng(1), 0, 0
    for seed in range(10):
        baseline = norm_of(600, seed)
        scores = scores_of(baseline, outputs(generator, 64 * 40)).reshape(40, 64)
        alarms += sum(rank_sum(window, baseline.scores) > threshold_of(0.05) for window in scores)
        windows += len(scores)
    # 400 windows at 5%: 20 are expected; the bounds are four standard deviations of the binomial, doubled for shared baselines.
    assert 2 <= alarms <= 55


def test_a_pattern_of_the_same_rates_but_another_combination_is_found():
    baseline, generator = norm_of(), np.random.default_rng(2)
    same, other = outputs(generator, 64), outputs(generator, 64, twist=True)
    assert abs(rates_of(same["a_out"]).mean() - rates_of(other["a_out"]).mean()) < 0.03
    assert rank_sum(scores_of(baseline, same), baseline.scores) < threshold_of(0.001)
    assert rank_sum(scores_of(baseline, other), baseline.scores) > threshold_of(0.001)


def test_the_rank_sum_is_that_of_all_pairs():
    generator = np.random.default_rng(3)
    window, reference = generator.integers(0, 9, 20).astype(float), np.sort(generator.integers(0, 9, 50)).astype(float)
    pairs = (window[:, None] > reference).sum() + 0.5 * (window[:, None] == reference).sum()
    assert rank_sum(window, reference) == pytest.approx((pairs - 500) / math.sqrt(20 * 50 * 71 / 12))
    assert threshold_of(0.001) == pytest.approx(3.0902, abs=1e-4)


def test_a_conformal_p_value_counts_what_is_at_least_as_far():
    reference = np.arange(99.0)
    assert p_value(np.array([98.5, 98.0, -1.0]), reference).tolist() == [0.01, 0.02, 1.0]


def test_only_what_is_above_the_whole_census_is_an_excursion_and_a_bounded_relu_has_none():
    plain, bounded = norm_of(200).relus
    maxima = np.array([plain.maximum, plain.maximum + 0.1, np.nan, 0.0])
    assert plain.exceeded(maxima).tolist() == [False, True, True, False]
    assert not bounded.exceeded(maxima).any()


def test_the_norm_does_not_depend_on_how_the_batches_fall_and_survives_a_file(tmp_path):
    results = outputs(np.random.default_rng(0), 300)
    baselines = []
    for batch in (300, 7):
        builder = BaselineBuilder(RELUS, 300)
        for start in range(0, 300, batch):
            part = {name: array[start : start + batch] for name, array in results.items()}
            builder.add(part, len(part["a_out"]))
        baselines.append(builder.result({"a_out": 5.0, "b_out": 6.0}, {"a_out": 16, "b_out": 1}, "reference", "ab"))
    assert np.allclose(baselines[0].held_out, baselines[1].held_out, atol=1e-9)
    (tmp_path / "baseline.npz").write_bytes(baselines[0].to_bytes())
    read = Baseline.read(tmp_path / "baseline.npz")
    assert (read.samples, read.fitted, read.backend, read.graph) == (300, 150, "reference", "ab")
    assert [relu.maximum for relu in read.relus] == [5.0, 6.0]
    assert np.allclose(scores_of(read, results), scores_of(baselines[0], results), atol=1e-4)


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
def test_a_file_that_is_no_norm_is_named(tmp_path, content):
    (tmp_path / "baseline.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"baseline\.npz"):
        Baseline.read(tmp_path / "baseline.npz")
    np.savez(tmp_path / "baseline.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="not the baseline of a census"):
        Baseline.read(tmp_path / "baseline.npz")


def test_too_few_rows_make_no_norm():
    assert norm_of(63) is None
    assert norm_of(64) is not None


def test_a_relu_whose_rows_are_not_the_samples_is_left_out():
    builder = BaselineBuilder(RELUS, 100)
    results = outputs(np.random.default_rng(0), 100)
    builder.add({"a_out": results["a_out"].reshape(50, 24, 4, 4), "b_out": results["b_out"]}, 100)
    baseline = builder.result({"a_out": 1.0, "b_out": 1.0}, {"a_out": 16, "b_out": 1}, "reference", "ab")
    assert [relu.node for relu in baseline.relus] == ["b"]


def test_channels_that_never_varied_make_a_change_visible_and_no_infinity():
    builder = BaselineBuilder(RELUS[:1], 100)
    builder.add({"a_out": np.ones((100, 12, 4, 4), np.float32)}, 100)
    baseline = builder.result({"a_out": 1.0}, {"a_out": 16}, "reference", "ab")
    changed = np.ones((1, 12, 4, 4), np.float32)
    changed[0, 0, 0, 0] = 0
    assert np.isfinite(baseline.held_out).all()
    assert scores_of(baseline, {"a_out": changed})[0] > baseline.scores.max()
