"""The verb `census`: counts dead channels, channels that are always on, and sparsity of a model's Relus on data.

    observed   counted over all values of every Relu while a backend runs the data
    proven     holds for every input in the declared range, by interval arithmetic (`graph/intervals/ranges.py`)

A channel is an index on axis 1 of the Relu's output: a feature map, or one feature of a 2-D tensor. "Observed dead" is
evidence, not proof: N independent samples on which a channel never fired bound, with 95% confidence, the chance that it
fires on the next one by 1 - 0.05^(1/N), about 3/N ("If nothing goes wrong, is everything all right?", Hanley and
Lippman-Hand, JAMA 249(13), 1983).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.activations.drift import Baseline, BaselineBuilder
from relu_deploy.backends import load, require
from relu_deploy.bundle import Bundle, sha256
from relu_deploy.data.datasets import InputRange, Ranges, declared_range, load_dataset, rows_outside, spread_evenly
from relu_deploy.data.rows_of_runs import rows_that_run
from relu_deploy.errors import InputError, UsageError
from relu_deploy.graph import Relu, batch_axes, find_relus, load_model, load_normalized_model, with_taps
from relu_deploy.graph.intervals.ranges import bounds_of
from relu_deploy.tensors import Array, count_rows, fixed_batch

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CensusReport", "InputRange", "ReluCensus", "census"]

#: limits of the default batch: bytes of the tapped tensors, and rows
TAPPED_BYTES, MOST_ROWS = 1 << 28, 64
#: 1 - confidence of `observed_bound`
DOUBT = 0.05


@dataclass(frozen=True)
class ReluCensus:
    """The counts of one Relu.

    Attributes:
        relu: The Relu.
        samples: Rows that were run.
        places: Values of each channel, over all rows.
        positive, full: Int64 (C,), how often each channel was above 0, and at the upper bound of a ReLU6 or clipped Relu.
        maximum: Float64 (C,), NaN where one occurred.
        proven_dead, proven_always_on: Bool (C,).
    """

    relu: Relu
    samples: int
    places: int
    positive: Array
    full: Array
    maximum: Array
    proven_dead: Array
    proven_always_on: Array

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.positive)

    @property
    def dead(self) -> Array:
        """Channels that were never above 0, bool (C,). A channel with a NaN is not dead."""
        return (self.positive == 0) & ~np.isnan(self.maximum) & (self.places > 0)

    @property
    def always_on(self) -> Array:
        """Channels whose values were all above 0, bool (C,)."""
        return (self.positive == self.places) & (self.places > 0)

    @property
    def sparsity(self) -> float | None:
        """Share of values that were not above 0, None without values."""
        values = self.places * self.channels
        return 1 - int(self.positive.sum()) / values if values else None

    @property
    def saturated(self) -> float | None:
        """Share of values at the upper bound, None without values or an upper bound."""
        values = self.places * self.channels
        return int(self.full.sum()) / values if values and self.relu.upper is not None else None

    @property
    def observed_bound(self) -> float | None:
        """Upper bound, with 95% confidence, of the probability that a dead channel fires on a new sample."""
        return -math.expm1(math.log(DOUBT) / self.samples) if self.samples else None

    def to_json(self) -> dict[str, Any]:
        """Return an entry of `relus` of what `census --json` writes."""
        return {
            "node": self.relu.node,
            "index": self.relu.index,
            "scope": self.relu.scope,
            "kind": self.relu.kind,
            "shape": None if self.relu.shape is None else list(self.relu.shape),
            "channels": self.channels,
            "dead": int(self.dead.sum()),
            "always_on": int(self.always_on.sum()),
            "sparsity": self.sparsity,
            "saturated": self.saturated,
            "proven_dead": int(self.proven_dead.sum()),
            "proven_always_on": int(self.proven_always_on.sum()),
            "observed_bound": self.observed_bound,
            "maximum": None if np.isnan(self.maximum).any() or not self.channels else float(self.maximum.max()),
            "nan_channels": np.flatnonzero(np.isnan(self.maximum)).tolist(),
            "dead_channels": np.flatnonzero(self.dead).tolist(),
            "proven_dead_channels": np.flatnonzero(self.proven_dead).tolist(),
        }


@dataclass(frozen=True)
class CensusReport:
    """The result of `census`.

    Attributes:
        model: Name of the model.
        data: The data set.
        backend: Name of the backend.
        input_range: The declared range of the input, None if there is none.
        relus: The counts of each Relu.
        samples: Rows that were run.
        left_over: Rows that did not fill a batch of the model's fixed size.
        batch: Rows in one run.
        seconds: Duration of the census.
        baseline: Statistics that `serve` compares requests with, None if there were too few rows.
        hidden: Names of the Relus that are not counted, because they are inside a body that cannot show its tensors.
    """

    model: str
    data: str
    backend: str
    input_range: InputRange | None
    relus: Sequence[ReluCensus]
    samples: int
    left_over: int
    batch: int
    seconds: float
    baseline: Baseline | None = None
    hidden: Sequence[str] = ()

    @property
    def totals(self) -> dict[str, Any]:
        """The field `totals` of what `census --json` writes."""
        values = sum(relu.places * relu.channels for relu in self.relus)
        positive = sum(int(relu.positive.sum()) for relu in self.relus)
        return {
            "relus": len(self.relus),
            "channels": sum(relu.channels for relu in self.relus),
            "dead": sum(int(relu.dead.sum()) for relu in self.relus),
            "always_on": sum(int(relu.always_on.sum()) for relu in self.relus),
            "proven_dead": sum(int(relu.proven_dead.sum()) for relu in self.relus),
            "proven_always_on": sum(int(relu.proven_always_on.sum()) for relu in self.relus),
            "sparsity": 1 - positive / values if values else None,
            "samples": self.samples,
            "left_over": self.left_over,
        }

    def to_json(self) -> dict[str, Any]:
        """Return what `census --json` writes."""
        return {
            "schema": "relu-deploy/census/1",
            "model": self.model,
            "data": self.data,
            "backend": self.backend,
            "batch": self.batch,
            "input_range": None if self.input_range is None else self.input_range.to_json(),
            "totals": self.totals,
            "relus": [relu.to_json() for relu in self.relus],
            **({"hidden": list(self.hidden)} if self.hidden else {}),
            "baseline": None if self.baseline is None else self.baseline.to_json(),
            "seconds": round(self.seconds, 3),
        }


def census(
    bundle: Bundle | str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    backend: str = "onnxruntime-cpu",
    samples: int | None = None,
    batch: int | None = None,
    threads: int = 0,
    device: int = 0,
    input_range: tuple[float, float] | Ranges | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> CensusReport:
    """Count how every channel of every Relu of `bundle` behaves on `data`, and prove which are dead or always on.

    Args:
        bundle: A bundle, or the path of one, of a variant in one, or of an ONNX file.
        data: A data set, as for `load_dataset`.
        backend: Name of the backend.
        samples: Number of rows to run, spread evenly; by default all.
        batch: Rows in one run, by default limited by memory. With a fixed batch, rows that do not fill one are left over.
        threads: CPU threads, 0 for the default.
        device: Index of the GPU.
        input_range: (low, high) of every input, or by input name, inclusive. By default the range that the bundle's preprocessing
            maps pixels from 0 to 255 to; if that is not known, proofs are for all inputs.
        progress: Called with (rows done, rows in total).

    Raises:
        BackendUnavailable: If the backend is not usable here.
        InputError: If the data do not fit the model.
        Unsupported: If the backend cannot run the model.
        UsageError: If an option is invalid.
    """
    started = time.perf_counter()
    require(backend)
    bundle = Bundle.open(bundle)
    model = load_model(bundle.onnx) if bundle.is_folder else load_normalized_model(bundle.onnx)
    found_relus = find_relus(model)
    relus = [relu for relu in found_relus if relu.observable]
    hidden = [relu.node for relu in found_relus if not relu.observable]
    declared = declared_range(bundle, input_range)
    dataset = load_dataset(bundle, data)
    dataset = dataset if samples is None else dataset.picked(spread_evenly(len(dataset), samples))
    rows = _batch_size(bundle, relus, batch, len(dataset))
    left_over = 0 if fixed_batch(bundle.inputs) is None else len(dataset) % rows
    counts = {relu.output: _Count(relu) for relu in relus}
    baselines = BaselineBuilder(relus, len(dataset) - left_over)
    axes = _batch_axes_of_relus(bundle, model, relus)
    done, outside = 0, 0
    with closing(load(bundle, backend, taps=tuple(relus), threads=threads, device=device)) as session:
        rows = rows if batch else rows_that_run(bundle, dataset, session.run, rows)
        for feeds in dataset.batches(rows):
            size = count_rows(feeds, dataset.axes)
            if left_over and size < rows:
                break
            outside += rows_outside(feeds, declared)
            results = _by_row(session.run(feeds), relus) if relus else {}
            for name, count in counts.items():
                # The branch of an If that did not run has no values.
                if results[name].size:
                    axis = axes.get(name, 0)
                    count.add(np.moveaxis(results[name], axis, 0) if axis < results[name].ndim else results[name])
            baselines.add(results, size)
            done += size
            progress(done, len(dataset) - left_over)
    proven = _proven(model, relus, declared.bounds if declared else {}, counts, axes)
    found = [counts[relu.output].result(done, *proven[relu.output]) for relu in relus]
    if declared is not None:
        declared = replace(declared, rows_outside=outside)
    baseline = baselines.result(
        {relu.relu.output: float(relu.maximum.max(initial=0)) for relu in found},
        {relu.relu.output: relu.places // max(1, done) for relu in found},
        backend,
        sha256(bundle.onnx),
    )
    seconds = time.perf_counter() - started
    return CensusReport(bundle.name, os.fspath(data), backend, declared, found, done, left_over, rows, seconds, baseline, hidden)


class _Count:
    """The running counts of one Relu."""

    def __init__(self, relu: Relu) -> None:
        self.relu, self.places = relu, 0
        shape = relu.shape or ()
        known = shape[1] if len(shape) > 1 and isinstance(shape[1], int) else 0
        self.positive, self.full = np.zeros(known, np.int64), np.zeros(known, np.int64)
        self.maximum = np.zeros(known)

    def add(self, values: Array) -> None:
        """Add one batch of the Relu's output."""
        channels = values.shape[1] if values.ndim > 1 else 1
        if self.places == 0 and channels != len(self.positive):
            self.positive, self.full = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
            self.maximum = np.zeros(channels)
        if channels != len(self.positive):
            raise InputError(
                f"{self.relu.node} gives {channels} channels for some rows and {len(self.positive)} for others",
                "a census needs the same channels everywhere: fix dimension 1 of the model's input",
            )
        # One row for each sample and channel, one column for each position.
        planes = np.ascontiguousarray(values).reshape(max(1, values.shape[0] * channels) if values.ndim else 1, -1)
        self.positive += _per_channel(planes > 0, channels)
        if self.relu.upper is not None:
            self.full += _per_channel(planes >= values.dtype.type(self.relu.upper), channels)
        self.maximum = np.maximum(self.maximum, planes.max(axis=1).reshape(-1, channels).max(axis=0).astype(np.float64))
        self.places += values.size // channels

    def result(self, samples: int, dead: Array, always_on: Array) -> ReluCensus:
        return ReluCensus(self.relu, samples, self.places, self.positive, self.full, self.maximum, dead, always_on)


def _per_channel(happened: Array, channels: int) -> Array:
    # Summing bytes as uint32 is several times faster than NumPy's count_nonzero along an axis.
    rows = happened.view(np.uint8).sum(axis=1, dtype=np.uint32)
    return rows.reshape(-1, channels).sum(axis=0, dtype=np.int64)


def _batch_axes_of_relus(bundle: Bundle, model: ir.Model, relus: Sequence[Relu]) -> dict[str, int]:
    """Return the batch axis of each Relu's output where it is not 0, as in a recurrent model that takes (steps, rows, features)."""
    if all(not spec.batch_axis for spec in bundle.inputs):
        return {}
    found = batch_axes(with_taps(model, [relu.output for relu in relus if not relu.body]))
    axes = ((relu.output, found.get(relu.output)) for relu in relus)
    return {name: axis for name, axis in axes if axis}


def _proven(
    model: ir.Model, relus: Sequence[Relu], ranges: Ranges, counts: Mapping[str, _Count], axes: Mapping[str, int]
) -> dict[str, tuple[Array, Array]]:
    """Return by the Relu's output which channels are dead, and which always on, for every input in `ranges`.

    axes: Of the Relus whose batch is not on axis 0, so that their channels are not those that bounds are known of.
    """
    bounds = bounds_of(model, ranges) if relus else {}
    proven = {}
    for relu in relus:
        low, high = bounds.get(relu.input, (np.asarray(-np.inf), np.asarray(np.inf)))
        channels = len(counts[relu.output].positive)
        if relu.output in axes:
            low, high = np.asarray(np.min(low)), np.asarray(np.max(high))
        if low.shape not in ((), (channels,)):  # the graph declares wrong shapes, so its bounds are not valid
            low, high = np.asarray(-np.inf), np.asarray(np.inf)
        proven[relu.output] = (np.broadcast_to(high <= 0, (channels,)), np.broadcast_to(low > 0, (channels,)))
    return proven


def _by_row(results: Mapping[str, Array], relus: Sequence[Relu]) -> dict[str, Array]:
    """Return `results` with the iterations of Relus in a Loop or Scan merged into the rows."""
    iterated = {relu.output for relu in relus if relu.is_iterated}
    return {
        name: array.reshape(-1, *array.shape[2:]) if name in iterated and array.ndim > 2 else array
        for name, array in results.items()
    }


def _batch_size(bundle: Bundle, relus: Sequence[Relu], requested: int | None, rows: int) -> int:
    fixed = fixed_batch(bundle.inputs)
    if fixed is not None:
        if requested not in (None, fixed):
            raise UsageError(f"{bundle.name} takes batches of {fixed} only, not {requested}", "omit --batch")
        if rows < fixed:
            raise InputError(f"{bundle.name} takes {fixed} rows at a time, the data have {rows}", "give more data")
        return fixed
    if requested is not None and requested < 1:
        raise UsageError(f"--batch must be at least 1, not {requested}", "for instance --batch 8")
    sizes = [[size if isinstance(size, int) else 1 for size in (relu.shape or ())[1:]] for relu in relus]
    tapped = 4 * sum(math.prod(size) for size in sizes)
    return requested or max(1, min(MOST_ROWS, TAPPED_BYTES // max(1, tapped)))
