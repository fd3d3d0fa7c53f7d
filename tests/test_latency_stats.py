"""The statistics: intervals that cover, ratios that do not drift, and nothing left out."""

import numpy as np
import pytest

from relu_deploy.benchmark.process import Process
from relu_deploy.benchmark.roofline import Machine, share_of_limit
from relu_deploy.graph import Cost
from relu_deploy.latency_stats import mean_interval, median_ratio_of, ratio_of, summarize, t_quantile


def test_percentiles_are_of_every_run_and_the_slowest_is_kept():
    latency = summarize([[1.0, 2.0, 3.0], [4.0, 5.0, 100.0]])
    assert (latency.p50, latency.minimum, latency.maximum, latency.runs, latency.rounds) == (3.5, 1, 100, 6, 2)
    assert latency.mean == pytest.approx((2 + 109 / 3) / 2)


def test_one_round_gives_no_interval():
    assert summarize([[1.0, 2.0]]).ci95 is None
    assert mean_interval([3.0]) == (3.0, None)


def test_the_interval_covers_the_mean_about_95_times_in_100_even_when_runs_within_a_round_are_alike():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        drift = generator.normal(0, 1, (10, 1))  # a busy neighbor lasts for a whole round
        low, high = summarize(10 + drift + generator.normal(0, 0.1, (10, 20))).ci95
        hits += low <= 10 <= high
    assert 920 <= hits <= 980


def test_ratios_cancel_what_slows_both_sides_of_a_round():
    generator = np.random.default_rng(0)
    slowdown = generator.uniform(1, 5, 10)
    fast = [[1.0 * factor] * 3 for factor in slowdown]
    slow = [[2.5 * factor] * 3 for factor in slowdown]
    ratio = ratio_of(fast, slow)
    assert ratio.value == pytest.approx(2.5)
    assert ratio.ci95 == pytest.approx((2.5, 2.5))
    assert ratio_of(slow, fast).value == pytest.approx(1 / ratio.value)


def test_the_typical_ratio_is_not_moved_by_pauses_in_less_than_half_of_the_rounds():
    fast, slow = [[1.0, 1.0, 40.0]] * 9, [[2.0, 2.0, 2.0]] * 9
    fast[2] = fast[5] = [30.0, 30.0, 30.0]
    ratio = median_ratio_of(fast, slow)
    # The second least and the second greatest of nine: P(fewer than 2 heads in 9 throws) = 10 / 512, less than 2.5%.
    assert (ratio.value, ratio.ci95) == (pytest.approx(2.0), pytest.approx((1 / 15, 2.0)))
    assert median_ratio_of(slow, fast).value == pytest.approx(0.5)
    assert median_ratio_of(fast[:5], slow[:5]).ci95 is None


def test_the_interval_of_the_typical_ratio_covers_it_at_least_95_times_in_100_although_the_machine_pauses():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        times = np.exp(0.1 * generator.standard_cauchy((2, 20)).clip(-50, 50))
        low, high = median_ratio_of(times[0][:, None], 1.5 * times[1][:, None]).ci95
        hits += low <= 1.5 <= high
    assert 940 <= hits <= 985


def test_quantiles_of_students_t():
    assert t_quantile(1) == 12.706
    assert t_quantile(9) == 2.262
    assert t_quantile(1000) == 2.042


def test_share_of_the_limit_is_the_time_the_machine_would_need_over_the_time_it_took():
    machine = Machine(flops_per_second=1e9, bytes_per_second=1e9)
    found = share_of_limit(Cost(flops=10**9, bytes=10, parameters=1, batch=1, unknown=()), 2.0, machine)
    assert found["share"] == 0.5
    assert found["gflops"] == 0.5
    assert share_of_limit(Cost(10**9, 10, 1, 1, unknown=("node",)), 2.0, machine) is None
    assert share_of_limit(Cost(10**9, 10, 1, 1, ()), 2.0, None) is None


def test_a_worker_answers_errors_as_text_and_its_death_as_an_error(tmp_path):
    process = Process(1)
    try:
        answer = process.request(
            "load", bundle=str(tmp_path / "no.rdb"), backend="reference", threads=1, batch=1, seed=0, settings={}
        )
        assert "does not exist" in answer["error"]
        process._process.kill()
        assert "its process ended" in process.request("measure", seconds=0.1)["error"]
    finally:
        process.close()
