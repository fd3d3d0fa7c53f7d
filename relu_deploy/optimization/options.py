"""The options of `optimize`, with their defaults and limits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from relu_deploy.errors import UsageError, nearest
from relu_deploy.optimization.accuracy.calibration import METHODS
from relu_deploy.optimization.accuracy.confidence import SCORE_THRESHOLD

#: with `auto`, the method with the best accuracy is kept
CHOICES = (*METHODS, "auto")
#: what `auto` compares candidates by
OBJECTIVES = ("latency", "throughput")

__all__ = ["OBJECTIVES", "OptimizeOptions"]


@dataclass(frozen=True)
class OptimizeOptions:
    """The options of `optimize`.

    Attributes:
        calibration: Data to calibrate on, as for `load_dataset`; None takes the bundle's own data set.
        data: Data to measure accuracy on; None takes the bundle's own data set, or the calibration data.
        samples: Rows to calibrate on.
        eval_samples: Most rows to measure accuracy on; None takes all.
        max_drop: Largest accepted loss of the accuracy metric; None takes the metric's default in `gate.MAX_DROP`.
        max_confidence_shift: Largest accepted shift of the mean confidence, up or down; None accepts any.
        score_threshold: Score at which users of a detector cut; its confidence and an AP are measured there.
        exclude: Names or patterns of nodes that stay float32.
        sensitivity: File of the segments' errors: read where it exists (and `force` is not set), else measured and written.
        method: Calibration method, one of `calibration.METHODS`, or "auto" for the most accurate of those that are cheap. None
            is "mse", and "minmax" where a Relu differs because "mse" clips an outlier.
        per_channel: Whether weights have one scale for each output channel, not one for the tensor.
        equalize: Whether to equalize neighboring layers; None does so where weights have a single scale.
        correct_biases: Whether to correct biases for the mean error of quantized weights.
        weight_bits: 7 or 8 bits of weights on the CPU; None takes what this CPU adds up without overflow.
        compact: Whether to remove channels that provably never act.
        allow_observed: Whether to remove channels that never acted on the data, too.
        measure_speed: Whether to measure how much faster the variant is, where the target can be measured here.
        threads: Threads of the runtime; 0 takes its default.
        minimize: What `auto` compares candidates by: "latency", with 1 row in a run, or "throughput", with 8, unless `batch` is
            given. Of two candidates the one that takes less time for a run is better in both.
        batch: Rows in a run that `auto` times; 0 for the default.
        accept: Findings of the verification that do not fail a variant, as for `verify`.
        seed: Seed of the random inputs that are used where there is no data.
    """

    calibration: str | os.PathLike[str] | None = None
    data: str | os.PathLike[str] | None = None
    samples: int = 128
    eval_samples: int | None = None
    max_drop: float | None = None
    max_confidence_shift: float | None = None
    score_threshold: float = SCORE_THRESHOLD
    exclude: Sequence[str] = ()
    sensitivity: str | os.PathLike[str] | None = None
    method: str | None = None
    per_channel: bool = True
    equalize: bool | None = None
    correct_biases: bool = True
    weight_bits: int | None = None
    compact: bool = False
    allow_observed: bool = False
    measure_speed: bool = True
    threads: int = 0
    minimize: str = "latency"
    batch: int = 0
    accept: Sequence[str] = ()
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError for values that make no sense, before anything is read."""
        if self.samples < 1 or (self.eval_samples is not None and self.eval_samples < 1):
            raise UsageError("--samples and --eval-samples must be at least 1", "for instance --samples 128")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise UsageError(f"--max-drop must be between 0 and 1, not {self.max_drop:g}", "0.005 is half a point of accuracy")
        for name in ("max_confidence_shift", "score_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"--{name.replace('_', '-')} must be between 0 and 1, not {value:g}", "for instance 0.05")
        if self.method is not None and self.method not in CHOICES:
            raise UsageError(f"there is no calibration method {self.method!r}", nearest(self.method, CHOICES))
        if self.weight_bits not in (None, 7, 8):
            raise UsageError(f"--weight-bits must be 7 or 8, not {self.weight_bits}", "7 is for x86 processors without VNNI")
        if self.minimize not in OBJECTIVES:
            raise UsageError(
                f"--minimize {self.minimize!r} is neither latency nor throughput", nearest(self.minimize, OBJECTIVES)
            )
        if self.batch < 0:
            raise UsageError(f"--batch must be at least 1, not {self.batch}", "for instance --batch 8")
        if self.allow_observed and not self.compact:
            raise UsageError("--allow-observed goes with --compact", "add --compact")
