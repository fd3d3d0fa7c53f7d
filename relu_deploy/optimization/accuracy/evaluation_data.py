"""Choose the data to calibrate on and the data to measure accuracy on: different rows wherever that is possible."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import Dataset, declared_range, integer_ranges_of, load_dataset, spread_evenly
from relu_deploy.errors import InputError, UsageError
from relu_deploy.graph import read_model
from relu_deploy.optimization.options import OptimizeOptions
from relu_deploy.tensors import Feeds, fixed_batch, random_feeds, row_axes

__all__ = ["EvaluationData", "load_evaluation_data"]

#: a batch's tensors stay under so many bytes, and a batch under so many rows
BATCH_BYTES, MOST_ROWS = 1 << 28, 16
#: rows of a set that must be left over when some of it is calibrated on, for the rest to be what accuracy is measured on
ENOUGH = 100
#: rows of random inputs where there is no data and no 8-bit calibration that needs it
RANDOM_ROWS = 16
#: rows of a run whose throughput is measured, unless another number is given
THROUGHPUT_ROWS = 8
#: how far beyond the declared range data may lie, as a share of its width: rounding, and preprocessing by other libraries
SLACK = 0.01


@dataclass(frozen=True)
class EvaluationData:
    """calibrated_on, measured_on: the data. held_out: no row is in both. batch: rows at a time.

    weight_bits: what a CPU like this one can add up without overflow. is_fixed: the model takes `batch` rows and no other number.
    is_own: 8 bits are calibrated on the bundle's own data set, because no other was given.
    """

    calibrated_on: Dataset
    measured_on: Dataset
    held_out: bool
    random: bool
    batch: int
    weight_bits: int
    is_fixed: bool = False
    is_own: bool = False

    @property
    def one_row(self) -> Feeds:
        """Return the smallest batch that the model takes, of what was calibrated on.

        Graphs are compared on it; accuracy on `measured_on` shows whether the ranges fit unseen rows.
        """
        return self._few(self.calibrated_on, 1)[0]

    @property
    def some_rows(self) -> list[Feeds]:
        """Return up to four of the smallest batches that the model takes, of what accuracy is measured on."""
        return self._few(self.measured_on, 4)

    def rows_of(self, options: OptimizeOptions) -> int:
        """Return how many rows the timed runs of `optimize --precision auto` have.

        Raises:
            UsageError: If the model takes another number only.
        """
        rows = options.batch or (THROUGHPUT_ROWS if options.minimize == "throughput" else 1)
        if self.is_fixed and options.batch and rows != self.batch:
            raise UsageError(f"--batch {rows}: the model takes {self.batch} rows and no other number", "leave out --batch")
        return self.batch if self.is_fixed else rows

    def batches_of(self, rows: int, count: int) -> list[Feeds]:
        """Return up to `count` batches of `rows` rows of what accuracy is measured on."""
        picked = self.measured_on.picked(spread_evenly(len(self.measured_on), min(count * rows, len(self.measured_on))))
        return [feeds for feeds, _ in picked.full_batches(rows)]

    def _few(self, dataset: Dataset, count: int) -> list[Feeds]:
        size = self.batch if self.is_fixed else 1
        rows = spread_evenly(len(dataset), min(count * size, len(dataset)))
        batches = list(dataset.picked(rows).full_batches(size))
        return [feeds for feeds, given in batches if given == size] or [batches[0][0]]

    def to_json(self) -> dict[str, Any]:
        return {
            "calibrated_on": {"data": self.calibrated_on.name, "rows": len(self.calibrated_on)},
            "measured_on": {"data": self.measured_on.name, "rows": len(self.measured_on)},
            "held_out": self.held_out,
            "random": self.random,
        }


def load_evaluation_data(bundle: Bundle, options: OptimizeOptions, data_needed: bool) -> EvaluationData:
    """Return the data to calibrate and to measure accuracy on.

    data_needed: 8 bits are calibrated on real data, or not at all. Raises InputError where data are missing or do not fit,
    UsageError for numbers of rows that make no sense.
    """
    declared = bundle.manifest.get("dataset")
    fixed = fixed_batch(bundle.inputs)
    batch = _batch(bundle) if fixed is None else fixed
    known, missing = _declared_data(bundle, declared)
    if options.calibration is None and known is None and data_needed:
        raise InputError(
            f"8-bit precisions need calibration data, and {missing or 'none was given'}",
            "give it with --calibration: a folder of pictures, an .npz file, or the name of a shipped data set",
        )
    given = None if options.calibration is None else _checked(bundle, options.calibration)
    measured = _checked(bundle, options.data) if options.data is not None else (known if known is not None else given)
    # Other precisions have no scales: the data to measure accuracy on show the ranges as well.
    own = known if data_needed else measured
    calibrated = given if given is not None else own
    random = calibrated is None or measured is None
    if calibrated is None or measured is None:
        noise = Dataset("random", _random_rows(bundle, max(RANDOM_ROWS, batch), options.seed), {}, row_axes(bundle.inputs))
        calibrated = measured = noise
    source = options.data if options.data is not None else (declared if known is not None else options.calibration)
    used = options.calibration if options.calibration is not None else declared if data_needed else source
    same = _is_same(source, used)
    rows = spread_evenly(len(calibrated), options.samples)
    held_out = not same
    if same:
        rest = np.setdiff1d(np.arange(len(measured)), rows)
        held_out = len(rest) >= ENOUGH
        measured = measured.picked(rest) if held_out else measured
    if options.eval_samples is not None:
        measured = measured.picked(spread_evenly(len(measured), options.eval_samples))
    calibrated = calibrated.picked(rows)
    if fixed is not None and len(calibrated) < fixed:
        raise InputError(f"{bundle.name} takes {fixed} rows at a time, {calibrated.name} has {len(calibrated)}", "give more data")
    is_own = options.calibration is None and data_needed
    return EvaluationData(calibrated, measured, held_out, random, batch, _weight_bits(), fixed is not None, is_own)


def _random_rows(bundle: Bundle, rows: int, seed: int) -> Feeds:
    """Return random inputs, with integers that the graph accepts."""
    ranges = integer_ranges_of(bundle, rows)
    return dict(random_feeds(bundle.inputs, rows, seed, ranges=ranges))


def _declared_data(bundle: Bundle, name: str | None) -> tuple[Dataset | None, str]:
    """Return the data set that the bundle declares, None and the reason where it is not available; without one the reason is ""."""
    if not name:
        return None, ""
    try:
        return load_dataset(bundle, name), ""
    except (InputError, UsageError) as error:
        return None, f"the model's own data set {name!r} is not available: {error.message}"


def _is_same(one: Any, other: Any) -> bool:
    return str(one) == str(other) or (Path(str(one)).exists() and Path(str(one)).resolve() == Path(str(other)).resolve())


def _checked(bundle: Bundle, source: str | os.PathLike[str]) -> Dataset:
    """Return the data at `source`. Raises InputError where they leave the range that the model's preprocessing gives."""
    dataset = load_dataset(bundle, source)
    declared = declared_range(bundle)
    for name, array in dataset.feeds.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not array.size:
            continue
        low, high = float(np.min(array)), float(np.max(array))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(f"{source}: {name!r} holds NaN or infinities", "remove these rows")
        if declared is None or name not in declared.bounds:
            continue
        lower, upper = (float(edge(bound)) for edge, bound in zip((np.min, np.max), declared.bounds[name], strict=True))
        slack = SLACK * (upper - lower)
        if low < lower - slack or high > upper + slack:
            raise InputError(
                f"{source}: {name!r} ranges from {low:.4g} to {high:.4g}; the model's preprocessing gives "
                f"{lower:.4g} to {upper:.4g}",
                "give preprocessed arrays, or uint8 pixels (N, H, W, C), which are preprocessed as the bundle says",
            )
    return dataset


def _batch(bundle: Bundle) -> int:
    """Return how many rows at a time keep all tensors of the graph in little memory."""
    sizes = [
        prod(dim for dim in value.shape if isinstance(dim, int))
        for node in read_model(bundle.onnx).graph
        for value in node.outputs
        if value.shape is not None
    ]
    return max(1, min(MOST_ROWS, BATCH_BYTES // max(1, 4 * sum(sizes))))


def _weight_bits() -> int:
    """Return 8 where products of 8-bit numbers are added up in 32 bits, 7 for x86 without VNNI, which adds pairs in 16 bits."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return 8
    try:
        return 8 if "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8") else 7
    except OSError:
        return 7
