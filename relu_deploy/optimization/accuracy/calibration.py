"""Collect statistics of a model's tensors on data, in one pass and constant memory, and choose the range that 8 bits cover.

Each tensor keeps its least and greatest value, the mean of each channel, and a histogram whose bins double in width
whenever a number falls outside: nothing depends on how much data there is, or in which order it comes.

    minmax       everything
    percentile   all but the outer 0.01% of the numbers on each side
    mse          the range with the least expected squared error: rounding inside, scale^2 / 12 for each number that is
                 not exactly 0 (a ReLU's zeros are stored without error), and clipping outside
    entropy      the range whose quantized histogram has the least Kullback-Leibler divergence from the whole one (Migacz,
                 "8-bit Inference with TensorRT", GTC 2017)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.backends import load
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, UsageError, nearest
from relu_deploy.graph import save_model, with_taps
from relu_deploy.graph.shapes.batching import input_batch_axes
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.tensors import Array, Feeds, count_rows

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["AUTO_METHODS", "DEFAULT_METHOD", "METHODS", "WHOLE_RANGE", "Statistics", "calibrate", "range_of"]

METHODS = ("mse", "minmax", "percentile", "entropy")
#: the methods that `auto` compares
AUTO_METHODS = ("mse", "minmax", "percentile")
#: the method that is used first, and the one that clips nothing
DEFAULT_METHOD, WHOLE_RANGE = "mse", "minmax"
#: bins of a histogram, half of them on each side of 0
BINS = 4096
#: exponent of the smallest limit of a histogram: the width of its bins stays a normal float32
SMALLEST_EXPONENT = -100
#: share of the numbers that `percentile` gives up on each side
OUTER = 1e-4
#: how much of the whole range is tried by `mse`, from nothing lost to a fifth kept
SHARES = np.linspace(1.0, 0.2, 81)


@dataclass
class Statistics:
    """Statistics of one tensor so far. limit: the histogram covers [-limit, limit]. zeros: how many numbers are exactly 0.

    sums: float64 (C,), of each channel (axis 1), over `places` numbers each. peaks: float64 (C,), its greatest value.
    """

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    zeros: int = 0
    limit: float = 0.0
    counts: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
    sums: Array = field(default_factory=lambda: np.zeros(0))
    peaks: Array = field(default_factory=lambda: np.zeros(0))
    places: int = 0

    @property
    def means(self) -> Array:
        """Return the mean of each channel, float64 (C,)."""
        return self.sums / max(1, self.places)

    @property
    def largest(self) -> float:
        return max(-self.low, self.high, 0.0)

    def add(self, values: Array) -> None:
        """Count the numbers `values`, of any shape. Infinities, which attention masks have, are left out.

        Raises:
            InputError: If there is a NaN.
        """
        if not values.size:
            return
        finite = np.isfinite(values)
        if not finite.all():
            if np.isnan(values).any():
                raise InputError("there are NaN inside the model on the calibration data", "relu-deploy verify finds the node")
            values = np.where(finite, values, np.float32(0))
            if not finite.any():
                return
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        if self.limit:
            # Divided first: the sum of a mask of float32's lowest number and the limit would overflow.
            places = values.reshape(-1) * np.float32(BINS / (2 * self.limit)) + np.float32(BINS / 2)
            self.counts += np.bincount(np.clip(places, 0, BINS - 1).astype(np.int32), minlength=BINS)
        self.count += values.size
        self.zeros += values.size - int(np.count_nonzero(values))
        self._add_channels(values)

    def _widen(self, largest: float) -> None:
        if largest and not self.limit:
            self.limit = 2.0 ** max(math.ceil(math.log2(largest)), SMALLEST_EXPONENT)
            # Whatever was counted before was 0.
            self.counts[BINS // 2] = self.count
        while largest > self.limit:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : 3 * BINS // 4] = merged
            self.limit *= 2

    def _add_channels(self, values: Array) -> None:
        if values.ndim < 2:
            return
        channels = values.shape[1]
        if len(self.sums) != channels:
            if self.places:
                return
            self.sums, self.peaks = np.zeros(channels), np.full(channels, -np.inf)
        planes = values.reshape(values.shape[0], channels, -1)
        self.sums += planes.sum(axis=(0, 2), dtype=np.float64)
        self.peaks = np.maximum(self.peaks, planes.max(axis=(0, 2)))
        self.places += values.size // channels


def calibrate(
    model: ir.Model,
    batches: Iterable[Feeds],
    tensors: Sequence[str],
    threads: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Statistics]:
    """Return the statistics of the float32 `tensors` of `model` (inputs of the graph, or made in it) on `batches`.

    progress: called with the rows that were run so far.
    """
    found = {name: Statistics() for name in tensors}
    inputs = {str(value.name) for value in model.graph.inputs}
    with temporary_folder("calibrate") as folder:
        path = Path(folder) / "tapped.onnx"
        save_model(with_taps(model, [name for name in tensors if name not in inputs]), path)
        session = load(Bundle.open(path), "onnxruntime-cpu", threads=threads)
        rows, axes = 0, input_batch_axes(model)
        for feeds in batches:
            results: Mapping[str, Array] = {**feeds, **session.run(feeds)}
            for name, statistics in found.items():
                if results[name].dtype.kind == "f":
                    statistics.add(results[name])
            rows += count_rows(feeds, axes)
            progress(rows)
        session.close()
    return found


def range_of(statistics: Statistics, method: str, stored: str) -> tuple[float, float]:
    """Return (low, high), the numbers that quantization should cover. stored: "uint8", "int8" or "float8".

    float8 has a step for every magnitude: its range is always the whole one. Raises UsageError for an unknown method.
    """
    if method not in METHODS:
        raise UsageError(f"there is no calibration method {method!r}", nearest(method, METHODS))
    if statistics.count == 0 or not statistics.limit:
        return 0.0, 0.0
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    if method == WHOLE_RANGE or stored == "float8":
        return low, high
    if stored == "int8":
        low, high = -statistics.largest, statistics.largest
    if method == "percentile":
        below = np.cumsum(statistics.counts) / statistics.count
        edges = _edges(statistics)
        return max(low, float(edges[np.searchsorted(below, OUTER)])), min(
            high, float(edges[np.searchsorted(below, 1 - OUTER) + 1])
        )
    share = _least_error(statistics, low, high, stored) if method == "mse" else _least_divergence(statistics, low, high)
    return low * share, high * share


def _edges(statistics: Statistics) -> Array:
    return np.linspace(-statistics.limit, statistics.limit, BINS + 1)


def _least_error(statistics: Statistics, low: float, high: float, stored: str) -> float:
    """Return the share of (low, high) with the least expected squared error."""
    edges = _edges(statistics)
    centers = (edges[:-1] + edges[1:]) / 2
    counts = statistics.counts.astype(np.float64)
    counts[BINS // 2] -= statistics.zeros
    steps = 255 if stored == "uint8" else 254
    errors = []
    for share in SHARES:
        step = (high - low) * share / steps
        outside = np.maximum(centers - high * share, 0) + np.maximum(low * share - centers, 0)
        errors.append(float(counts @ np.where(outside > 0, outside**2, step**2 / 12)))
    return float(SHARES[int(np.argmin(errors))])


def _least_divergence(statistics: Statistics, low: float, high: float) -> float:
    """Return the share of (low, high) whose 128 levels of magnitude tell the histogram of magnitudes best."""
    half = BINS // 2
    magnitudes = statistics.counts[half:] + statistics.counts[:half][::-1]
    magnitudes = magnitudes.astype(np.float64)
    # The zeros are stored exactly; left in, one bin would outweigh all others.
    magnitudes[0] -= statistics.zeros
    used = max(1, math.ceil(max(-low, high) / statistics.limit * half))
    best, least = 1.0, math.inf
    for kept in np.unique(np.round(np.linspace(min(128, used), used, 96)).astype(int)):
        whole = magnitudes[:kept].copy()
        whole[-1] += magnitudes[kept:].sum()
        level = np.minimum(np.arange(kept) * 128 // kept, 127)
        filled = magnitudes[:kept] > 0
        totals = np.bincount(level, magnitudes[:kept], 128)
        places = np.maximum(np.bincount(level, filled, 128), 1)
        smoothed = np.where(filled, (totals / places)[level], 0)
        if not smoothed.sum() or not whole.sum():
            continue
        p, q = whole / whole.sum(), smoothed / smoothed.sum()
        seen = p > 0
        # A level that nothing falls into but clipped numbers gets the smallest share there is.
        divergence = float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))
        if divergence < least:
            best, least = kept / used, divergence
    return float(min(1.0, best))
