"""The result of a benchmark: its rows, their ratios and the environment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relu_deploy.latency_stats import Latency, Ratio

__all__ = ["BenchReport", "Ratios", "Run"]


@dataclass(frozen=True)
class Run:
    """One row: a model or variant on a backend at a batch size.

    Attributes:
        model: Name of the model.
        backend: Name of the backend.
        batch: Rows in one run.
        variant: Name of the variant, "" for the model itself.
        precision: Precision that it computes in.
        latency: Time of a run from NumPy arrays to NumPy arrays.
        throughput: Rows per second.
        peak_bytes: Largest resident memory of the process.
        load_seconds: Time to load the model.
        first_run_seconds: Time of the first run.
        warmed_up: Whether times were stable before the measurement.
        accuracy: Score on the data set.
        roofline: Comparison with the limit of the machine.
        verified: Whether the outputs are within tolerance of the truth.
        error_ratio: Largest error of an output, relative to the error that the precision explains.
        facts: Settings read back from the runtime.
        device: Measurements on the GPU (`device.DeviceMeter`), None on a CPU.
        layers: Times of the runtime's layers (`layers.LayerReport`) or why there are none, None if they were not requested.
        checked_rows: Rows of the batch that were compared with the truth.
        error: Why the row was not measured, "" if it was.
    """

    model: str
    backend: str
    batch: int
    variant: str = ""
    precision: str = "float32"
    latency: Latency | None = None
    throughput: float | None = None
    peak_bytes: int | None = None
    load_seconds: float | None = None
    first_run_seconds: float | None = None
    warmed_up: bool | None = None
    accuracy: Mapping[str, Any] | None = None
    roofline: Mapping[str, Any] | None = None
    verified: bool | None = None
    error_ratio: float | None = None
    facts: Mapping[str, Any] | None = None
    device: Mapping[str, Any] | None = None
    layers: Mapping[str, Any] | None = None
    checked_rows: int = 0
    error: str = ""

    def summary(self) -> str:
        """Return the row in one line."""
        label = f"{self.model} {self.backend} {self.variant}".strip() + f", batch {self.batch}"
        if self.latency is None:
            return f"{label}: {self.error}"
        verdict = {True: "verified", False: "NOT VERIFIED", None: "not checked"}[self.verified]
        return f"{label}: {self.latency.p50:.4g} ms, {self.throughput or 0:,.4g} a second, {self.precision}, {verdict}"

    def to_json(self) -> dict[str, Any]:
        """Return an entry of `runs` of what `bench --json` writes."""
        return {
            "model": self.model,
            "backend": self.backend,
            "variant": self.variant,
            "precision": self.precision,
            "batch": self.batch,
            "latency_ms": self.latency.to_json() if self.latency else None,
            "throughput": None if self.throughput is None else round(self.throughput, 3),
            "peak_bytes": self.peak_bytes,
            "load_seconds": _rounded(self.load_seconds),
            "first_run_seconds": _rounded(self.first_run_seconds),
            "warmed_up": self.warmed_up,
            "accuracy": self.accuracy,
            "roofline": self.roofline,
            "verified": self.verified,
            "error_ratio": _rounded(self.error_ratio),
            "checked_rows": self.checked_rows,
            "facts": dict(self.facts or {}),
            "device": None if self.device is None else dict(self.device),
            "layers": None if self.layers is None else dict(self.layers),
            "error": self.error,
        }


@dataclass(frozen=True)
class Ratios:
    """The speed of a model or variant on one backend, relative to the model on another backend.

    Attributes:
        model: Name of the model.
        batch: Rows in one run.
        backend: Name of the backend.
        against: Name of the backend that it is compared with.
        ratio: How many times faster `backend` is, by the time of whole calls.
        variant: Name of the variant on `backend`, "" for the model itself.
        device: The same by GPU time, None if one of the two has none.
    """

    model: str
    batch: int
    backend: str
    against: str
    ratio: Ratio
    variant: str = ""
    device: Ratio | None = None

    def to_json(self) -> dict[str, Any]:
        """Return an entry of `ratios` of what `bench --json` writes."""
        return {
            "model": self.model,
            "batch": self.batch,
            "backend": self.backend,
            "variant": self.variant,
            "against": self.against,
            **_ratio_fields(self.ratio, "speedup", "ci95"),
            **_ratio_fields(self.device, "device_speedup", "device_ci95"),
        }


@dataclass(frozen=True)
class BenchReport:
    """The result of `bench`.

    Attributes:
        environment: The machine and the settings.
        runs: The rows.
        ratios: Relative speeds.
        left_out: Reason for each default backend that was not measured, by name.
    """

    environment: Mapping[str, Any]
    runs: Sequence[Run]
    ratios: Sequence[Ratios]
    left_out: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every row ran and none failed verification."""
        return all(run.verified is not False and not run.error for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """Return what `bench --json` writes."""
        return {
            "schema": "relu-deploy/bench/1",
            "passed": self.passed,
            "environment": dict(self.environment),
            "runs": [run.to_json() for run in self.runs],
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "left_out": dict(self.left_out),
        }


def _ratio_fields(ratio: Ratio | None, name: str, interval: str) -> dict[str, Any]:
    if ratio is None:
        return {name: None, interval: None}
    return {name: round(ratio.value, 4), interval: None if ratio.ci95 is None else [round(bound, 4) for bound in ratio.ci95]}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)
