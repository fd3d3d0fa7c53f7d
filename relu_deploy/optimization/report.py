"""What `optimize` reports about a variant: accuracy, speed, size, and what stayed float32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from relu_deploy.bundle import Bundle
from relu_deploy.latency_stats import Ratio
from relu_deploy.optimization.accuracy.calibration import WHOLE_RANGE
from relu_deploy.optimization.accuracy.evaluation_data import EvaluationData
from relu_deploy.optimization.auto.report import AutoReport
from relu_deploy.optimization.prepare import Prepared
from relu_deploy.optimization.search import SearchResult
from relu_deploy.optimization.targets import Target
from relu_deploy.tasks.metrics import Metric
from relu_deploy.verification.run import VerifyReport

__all__ = ["OptimizeReport"]


def _finite(number: float | None) -> float | None:
    """Return `number`, or None for what JSON cannot represent."""
    return None if number is None or not math.isfinite(number) else number


@dataclass(frozen=True)
class OptimizeReport:
    """One variant: its accuracy, speed and size, and what stayed float32.

    Attributes:
        bundle: Where the variant was stored; None when it failed the gate and nothing was stored.
        speed: How many times faster than the float32 model it is; None where the target's hardware is not available.
        tried: One summary for each precision that `auto` tried.
        method: The calibration method, "" for a precision without calibration.
        instead_of: The calibration method with which a Relu differs, "" where the first one was kept.
        method_is_given: Whether the options name the calibration method.
        backend: The backend that `auto` found to be the fastest, "" where it was not searched for.
        settings: Its fields of `backends.Options` that differ from the defaults.
        auto: All candidates of `auto`, None without such a search.
        confidence: As `confidence_to_json` returns it.
        compared: The tensors that accuracy was measured on where the graph selects the outputs; () for the outputs.
        selected_by: Operators that select the outputs which accuracy would be measured on.
    """

    model: str
    target: Target
    precision: str
    search: SearchResult
    before: Metric
    max_drop: float
    data: EvaluationData
    prepared: Prepared
    fallbacks: Sequence[dict[str, str]]
    verified: VerifyReport | None
    speed: Ratio | None
    bytes_before: int
    bytes_after: int
    seconds: float
    bundle: Bundle | None = None
    tried: Sequence[dict[str, Any]] = ()
    method: str = ""
    instead_of: str = ""
    method_is_given: bool = False
    backend: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    auto: AutoReport | None = None
    confidence: dict[str, Any] | None = None
    compared: Sequence[str] = ()
    selected_by: Sequence[str] = ()

    @property
    def variant(self) -> str:
        return f"{self.precision}-{self.target.name}"

    @property
    def passed(self) -> bool:
        return self.search.passed and (self.verified is None or self.verified.passed)

    @property
    def is_slower(self) -> bool:
        """Return whether the variant was measured to be slower than the float32 model."""
        return self.speed is not None and self.precision != "fp32" and self.speed.value < 1

    @property
    def remedy(self) -> str:
        """Return what to do about a variant that does not pass, "" for one that does."""
        if self.passed:
            return ""
        if self.selected_by and not self.compared and self.drop > self.max_drop:
            return (
                f"the graph selects its outputs ({', '.join(self.selected_by)}), so that the order and number of rows depend on "
                "rounding: give labels with --data, or export the model without the selection"
            )
        if self.auto is not None:
            return "each candidate has its reason: allow more with --max-drop, or accept a finding with --accept"
        wider = "--precision fp16" if "fp16" in self.target.precisions and self.precision != "fp16" else "--precision fp32"
        if not self.search.passed and self.drop <= self.max_drop:
            return f"allow more with --max-confidence-shift, keep nodes in float32 with --exclude, or use {wider}"
        if not self.search.passed:
            return f"allow more with --max-drop, try --method auto, calibrate on more rows with --samples, or use {wider}"
        checked = self.verified.backends[0] if self.verified else None
        node = checked.first_divergence if checked else None
        method = ""
        if self.method:
            clips = self.method_is_given and self.method != WHOLE_RANGE
            method = f"try --method {WHOLE_RANGE}, which clips nothing, " if clips else "try another --method, "
        return f"look at {node or 'the outputs'} with relu-deploy verify, {method}or use {wider}"

    @property
    def drop(self) -> float:
        return self.before.value - self.search.metric.value

    def to_json(self) -> dict[str, Any]:
        checked = self.verified.backends[0] if self.verified else None
        return {
            "schema": "relu-deploy/optimize/1",
            "model": self.model,
            "target": self.target.name,
            "precision": self.precision,
            "passed": self.passed,
            "variant": self.variant,
            "file": None if self.bundle is None else str(self.bundle.with_variant(self.variant).onnx),
            "accuracy": {
                "metric": self.before.name,
                "tensors": list(self.compared),
                "selected_by": list(self.selected_by),
                "before": round(self.before.value, 6),
                "after": round(self.search.metric.value, 6),
                "drop": round(self.drop, 6),
                "max_drop": self.max_drop,
                "samples": self.before.samples,
                "simulated": not self.target.measurable,
            },
            "confidence": self.confidence,
            "speedup": None if self.speed is None else round(self.speed.value, 4),
            "speedup_ci95": None if self.speed is None or self.speed.ci95 is None else [round(x, 4) for x in self.speed.ci95],
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "fallbacks": list(self.fallbacks),
            "curve": [step.to_json() for step in self.search.curve],
            "costs": [{"segment": name, "relative_error": _finite(cost)} for name, cost in self.search.costs],
            "verified": None
            if checked is None
            else {
                "passed": checked.passed,
                "relus": len(checked.relus),
                "relus_passed": sum(bool(relu.passed) for relu in checked.relus),
                "largest_ratio": _finite(
                    max((one.comparison.error_ratio for one in checked.relus if one.comparison), default=None)
                ),
                "first_divergence": checked.first_divergence,
                "reason": next((fields["reason"] for one in checked.relus if (fields := one.to_json())["passed"] is False), ""),
            },
            "evidence": self.data.to_json(),
            "prepared": self.prepared.to_json(),
            "tried": list(self.tried),
            "method": self.method,
            "method_instead_of": self.instead_of,
            "backend": self.backend,
            "settings": dict(self.settings),
            "auto": None if self.auto is None else self.auto.to_json(),
            "slower": self.is_slower,
            "remedy": self.remedy,
            "seconds": round(self.seconds, 3),
        }

    def summary(self) -> dict[str, Any]:
        """Return what `tried` lists about this report."""
        return {
            "precision": self.precision,
            "passed": self.passed,
            "value": round(self.search.metric.value, 6),
            "speedup": None if self.speed is None else round(self.speed.value, 4),
        }
