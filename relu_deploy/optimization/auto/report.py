"""The report of the search: every candidate with its speed, its verdict, and why it was not chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from relu_deploy.latency_stats import Latency, Ratio
from relu_deploy.optimization.accuracy.confidence import Confidence
from relu_deploy.records import JsonRecord
from relu_deploy.tasks.metrics import Metric
from relu_deploy.verification.run import VerifyReport

__all__ = ["OUTCOMES", "AutoReport", "CandidateReport", "Check", "Kernels"]

#: the outcomes of a candidate, best first
OUTCOMES = ("chosen", "passed", "slower", "eliminated", "failed", "unusable")


@dataclass(frozen=True)
class Kernels(JsonRecord):
    """The kernels that ran, as the runtime reports them.

    Attributes:
        computing: Kernels that compute, by the precision of their result.
        converting: Kernels that only change a precision or a memory layout.
    """

    computing: Mapping[str, int] = field(default_factory=dict)
    converting: int = 0

    @property
    def total(self) -> int:
        """Kernels that compute, in any precision."""
        return sum(self.computing.values())


@dataclass(frozen=True)
class Check:
    """The verdict on a candidate.

    Attributes:
        metric: Its accuracy.
        error: RMS difference of its outputs from the float32 model's, as a share of their RMS.
        verified: The comparison of every Relu, None if it missed the accuracy gate.
        kernels: The kernels that ran.
        reason: Why it does not pass, "" if it does.
        confidence: Its confidence, None where it has none.
    """

    metric: Metric
    error: float
    verified: VerifyReport | None
    kernels: Kernels
    reason: str
    confidence: Confidence | None = None

    @property
    def passed(self) -> bool:
        """Whether it passes the gate and every Relu agrees."""
        return not self.reason


@dataclass(frozen=True)
class CandidateReport:
    """One candidate.

    Attributes:
        backend: Name of the backend.
        precision: Precision, as an option.
        settings: Fields of `backends.Options` that differ from the defaults.
        outcome: "chosen"; "passed", it passes, and another one is faster; "slower", it passes, and float32 is faster;
            "eliminated", others were faster before it was checked; "failed", it misses the gate or a Relu differs; "unusable".
        reason: Why it was not chosen, "" for the chosen one.
        level: The level of the race in which it was timed last; 0 if it was not timed.
        latency: Of its last level, None if it was not timed.
        speedup: Relative to the float32 model on the target's default backend, in the same rounds.
        check: The verdict, None if it was not checked.
    """

    backend: str
    precision: str
    settings: Mapping[str, Any]
    outcome: str
    reason: str = ""
    level: int = 0
    latency: Latency | None = None
    speedup: Ratio | None = None
    check: Check | None = None

    def to_json(self, batch: int) -> dict[str, Any]:
        """Return an entry of `candidates` of what `optimize --json` writes. batch: Rows in one run."""
        check, ratio = self.check, self.speedup
        return {
            "backend": self.backend,
            "precision": self.precision,
            "settings": dict(self.settings),
            "outcome": self.outcome,
            "reason": self.reason,
            "level": self.level,
            "latency_ms": None if self.latency is None else self.latency.to_json(),
            "throughput": None if self.latency is None else round(batch / self.latency.mean * 1e3, 3),
            "speedup": None if ratio is None else round(ratio.value, 4),
            "speedup_ci95": None if ratio is None or ratio.ci95 is None else [round(bound, 4) for bound in ratio.ci95],
            "accuracy": None if check is None else round(check.metric.value, 6),
            "relative_error": None if check is None or not math.isfinite(check.error) else float(f"{check.error:.6g}"),
            "verified": None if check is None or check.verified is None else check.verified.passed,
            "kernels": None if check is None else check.kernels.to_json(),
        }


@dataclass(frozen=True)
class AutoReport:
    """The candidates of a search.

    Attributes:
        minimize: "latency" or "throughput".
        batch: Rows in one run.
        threads: CPU threads of candidates that set no other number.
        candidates: The chosen one first, then by outcome and speed.
        unusable: Reason for each backend that is not usable here, by name.
    """

    minimize: str
    batch: int
    threads: int
    candidates: Sequence[CandidateReport]
    unusable: Mapping[str, str]

    @property
    def chosen(self) -> CandidateReport | None:
        """The chosen candidate, None if none passes."""
        return next((one for one in self.candidates if one.outcome == "chosen"), None)

    def to_json(self) -> dict[str, Any]:
        """Return the field `auto` of what `optimize --json` writes."""
        return {
            "minimize": self.minimize,
            "batch": self.batch,
            "threads": self.threads,
            "candidates": [one.to_json(self.batch) for one in self.candidates],
            "unusable": dict(self.unusable),
        }
