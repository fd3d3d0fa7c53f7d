"""What a benchmark says: its rows, their ratios, and what it was measured on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relu_deploy.latency_stats import Latency, Ratio

__all__ = ["BenchReport", "Ratios", "Run"]


@dataclass(frozen=True)
class Run:
    """One row: a model, or a variant of it, on a backend at a batch size. error: why there is nothing else in it, "" when it ran.

    device: what the GPU did (`bench.rows._device`), None on a CPU. checked_rows: of the batch, held against the truth.
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
    checked_rows: int = 0
    error: str = ""

    def summary(self) -> str:
        """Return the row in one line."""
        what = f"{self.model} {self.backend} {self.variant}".strip() + f", batch {self.batch}"
        if self.latency is None:
            return f"{what}: {self.error}"
        verdict = {True: "verified", False: "NOT VERIFIED", None: "not checked"}[self.verified]
        return f"{what}: {self.latency.p50:.4g} ms, {self.throughput or 0:,.4g} a second, {self.precision}, {verdict}"

    def to_json(self) -> dict[str, Any]:
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
            "error": self.error,
        }


@dataclass(frozen=True)
class Ratios:
    """How many times faster `backend` ran (a variant of) one model at one batch size than `against` ran the model itself.

    ratio: of whole calls. device: of the GPU's own time, None where either side has none.
    """

    model: str
    batch: int
    backend: str
    against: str
    ratio: Ratio
    variant: str = ""
    device: Ratio | None = None

    def to_json(self) -> dict[str, Any]:
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
    """Everything that was measured. passed: every row ran and gave the answers that the truth gives."""

    environment: Mapping[str, Any]
    runs: Sequence[Run]
    ratios: Sequence[Ratios]
    left_out: Mapping[str, str]

    @property
    def passed(self) -> bool:
        return all(run.verified is not False and not run.error for run in self.runs)

    def to_json(self) -> dict[str, Any]:
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
