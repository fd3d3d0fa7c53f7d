"""The statistics of a benchmark: what is said about a set of latencies, and how sure it is.

Latencies that follow each other are not independent: a busy neighbor or a lower clock lasts for many of them. So the
backends take turns in short rounds, and every interval is computed from the means of the rounds, which are far enough
apart to count as independent (batch means: Law and Kelton, "Simulation Modeling and Analysis", section 9.5). Ratios are
taken round by round, so that drift, which hits both sides of a round alike, cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

import numpy as np

__all__ = ["Latency", "Ratio", "mean_interval", "median_ratio_of", "ratio_of", "summarize", "t_quantile"]

#: two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom (Fisher and Yates, table III)
T_TABLE = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Latency:
    """Milliseconds. ci95: interval of the mean, None with fewer than two rounds. runs, rounds: how many were timed."""

    p50: float
    p90: float
    p99: float
    mean: float
    ci95: tuple[float, float] | None
    minimum: float
    maximum: float
    runs: int
    rounds: int

    def to_json(self) -> dict[str, Any]:
        numbers = {name: round(getattr(self, name), 5) for name in ("p50", "p90", "p99", "mean", "minimum", "maximum")}
        ci95 = None if self.ci95 is None else [round(bound, 5) for bound in self.ci95]
        return {**numbers, "ci95": ci95, "runs": self.runs, "rounds": self.rounds}


@dataclass(frozen=True)
class Ratio:
    """How many times faster one backend is than another, with the 95% interval of that; None with one round."""

    value: float
    ci95: tuple[float, float] | None


def t_quantile(degrees: int) -> float:
    """Return the two-sided 95% quantile of Student's t; beyond the table the value for the nearest smaller count."""
    return T_TABLE[min(degrees, len(T_TABLE)) - 1]


def mean_interval(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Return the mean of `values` and its 95% confidence interval, None when there is only one value."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, None
    half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def summarize(rounds: Sequence[Sequence[float]]) -> Latency:
    """Return the summary of `rounds`: for each round the latencies in milliseconds, none left out.

    Percentiles are of all latencies together; the mean is of the rounds' means, each round counting alike.
    """
    everything = np.concatenate([np.asarray(one, np.float64) for one in rounds])
    p50, p90, p99 = np.percentile(everything, [50, 90, 99])
    mean, ci95 = mean_interval([fmean(one) for one in rounds])
    return Latency(
        float(p50),
        float(p90),
        float(p99),
        mean,
        ci95,
        float(everything.min()),
        float(everything.max()),
        len(everything),
        len(rounds),
    )


def ratio_of(faster: Sequence[Sequence[float]], slower: Sequence[Sequence[float]]) -> Ratio:
    """Return how many times faster `faster` is than `slower`, both rounds of latencies measured in turn.

    The mean of log(slower / faster) over rounds, back from the logarithm: a ratio and its inverse then agree.
    """
    logs = [math.log(fmean(b) / fmean(a)) for a, b in zip(faster, slower, strict=True)]
    mean, interval = mean_interval(logs)
    return Ratio(math.exp(mean), None if interval is None else (math.exp(interval[0]), math.exp(interval[1])))


def median_ratio_of(faster: Sequence[Sequence[float]], slower: Sequence[Sequence[float]]) -> Ratio:
    """Return how many times faster `faster` typically is than `slower`, both rounds of latencies measured in turn.

    The median over the rounds of the ratio of their medians, which pauses of the machine in less than half of the runs do not move.
    Its interval is between two order statistics and assumes no distribution (David and Nagaraja, "Order Statistics", section 7.1);
    it takes six rounds.
    """
    logs = sorted(math.log(median(b) / median(a)) for a, b in zip(faster, slower, strict=True))
    rank = _order_statistic(len(logs))
    return Ratio(math.exp(median(logs)), (math.exp(logs[rank - 1]), math.exp(logs[-rank])) if rank else None)


def _order_statistic(count: int) -> int:
    """Return the greatest r so that the median lies between the r-th least and the r-th greatest of `count` values in 95%; or 0."""
    tail, rank = 0.0, 0
    while rank < count:
        tail += 2 * math.comb(count, rank) / 2**count
        if tail > 0.05:
            break
        rank += 1
    return rank
