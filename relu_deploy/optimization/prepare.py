"""The float32 graph that every precision starts from, and what its tensors look like on the calibration data.

Batch norms are folded, means over space are pools, the operator set is as new as the precision needs. On request channels that never act are removed
(`graph.compact`) and neighboring layers are equalized (`graph.equalize`). The answers must stay those of the model: where
more than folding was done, every Relu and output is held against the original's float64 truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import declared_range
from relu_deploy.errors import ReluDeployError, UsageError
from relu_deploy.graph import count_cost, find_relus, load_model, precision_of, settle
from relu_deploy.graph.opset import raise_opset
from relu_deploy.graph.pruning.prune import Compaction, compact
from relu_deploy.graph.quantization.cast_precision import range_reasons
from relu_deploy.graph.quantization.equalization import Equalization, equalize
from relu_deploy.graph.quantization.qdq_placement import segments_of
from relu_deploy.graph.simplify import fold_batch_norms, pool_spatial_means
from relu_deploy.optimization.calibration import Statistics, calibrate
from relu_deploy.optimization.evaluation_data import Evidence
from relu_deploy.optimization.recipes import tensors_to_watch
from relu_deploy.optimization.targets import TARGETS, Target
from relu_deploy.verification.truth import find_truth, open_source
from relu_deploy.verification.verdict import compare

if TYPE_CHECKING:
    import onnx_ir as ir

    from relu_deploy.optimization.run import OptimizeOptions

__all__ = ["Prepared", "prepare"]

#: the operator set that each precision is written in: the first that has float8, and that every evaluator knows
OPSETS = {"int8": 19, "fp8": 19}


@dataclass(frozen=True)
class Prepared:
    """original: the model as it is in the bundle. model: as it was prepared. statistics: of its tensors on the calibration data.

    path: where the prepared graph lies as a file. ratio: the largest error of its Relus and outputs, in units of float32's
    own; None where nothing but folding was done.
    """

    original: ir.Model
    model: ir.Model
    statistics: Mapping[str, Statistics]
    compaction: Compaction | None = None
    equalization: Equalization | None = None
    ratio: float | None = None
    cost: Mapping[str, int] = field(default_factory=dict)
    path: Path = Path()

    @property
    def is_another(self) -> bool:
        """Return whether tensors inside are not the original's: then a variant is held against this graph."""
        return self.compaction is not None or self.equalization is not None

    @property
    def segments(self) -> dict[str, str]:
        return segments_of(self.model)

    def keep(self, dtype: str) -> dict[str, str]:
        """Return the nodes that `dtype` has no room for, on these data, with the reasons."""
        return range_reasons(self.model, dtype, {name: one.largest for name, one in self.statistics.items()})

    def to_json(self) -> dict[str, Any]:
        return {
            "compact": None if self.compaction is None else self.compaction.to_json(),
            "equalize": None if self.equalization is None else self.equalization.to_json(),
            "error_ratio": self.ratio,
            **self.cost,
        }


def prepare(
    bundle: Bundle,
    target: Target,
    precisions: Sequence[str],
    settings: OptimizeOptions,
    evidence: Evidence,
    progress: Callable[[str], None],
) -> Prepared:
    """Return `bundle`'s model prepared for `precisions` on `target`. Raises InputError for a graph that cannot be."""
    original = settle(load_model(bundle.onnx), str(bundle.onnx))
    if precision_of(original) != "float32":
        raise UsageError(
            f"{bundle.onnx} is in {precision_of(original)} already", "optimize the float32 model that it was made from"
        )
    model = pool_spatial_means(fold_batch_norms(raise_opset(original, max(OPSETS.get(name, 0) for name in precisions))))
    compaction = equalization = None
    if settings.compact:
        progress("removing channels that never act")
        compaction = compact(model, _ranges(bundle), _never_fired(model, evidence, settings) if settings.allow_observed else None)
        model = compaction.model
    if settings.equalize if settings.equalize is not None else not settings.per_channel:
        equalization = equalize(model)
        model = equalization.model
    changed = compaction is not None or equalization is not None
    ratio = _ratio(bundle, model, compaction, equalization, evidence) if changed and not settings.allow_observed else None
    watched = list(dict.fromkeys(name for one in precisions for name in tensors_to_watch(model, one, target.placement)))
    if precisions == ["fp32"]:
        watched = []
    statistics = _calibrated(model, watched, evidence, settings, progress) if watched else {}
    before, after = count_cost(original), count_cost(model)
    cost = {"flops_before": before.flops, "flops_after": after.flops}
    return Prepared(original, model, statistics, compaction, equalization, ratio, cost)


def _calibrated(
    model: ir.Model, tensors: Sequence[str], evidence: Evidence, settings: OptimizeOptions, progress: Callable[[str], None]
) -> dict[str, Statistics]:
    rows = len(evidence.calibrated_on)

    def say(done: int) -> None:
        progress(f"calibrating on {evidence.calibrated_on.name}: {done} of {rows} rows")

    batches = evidence.calibrated_on.batches(evidence.batch)
    if evidence.is_fixed:
        batches = (feeds for feeds in batches if len(next(iter(feeds.values()))) == evidence.batch)
    return calibrate(model, batches, tensors, settings.threads, say)


def _ranges(bundle: Bundle) -> dict[str, tuple[Any, Any]]:
    declared = declared_range(bundle)
    return {} if declared is None else dict(declared.bounds)


def _never_fired(model: ir.Model, evidence: Evidence, settings: OptimizeOptions) -> dict[str, np.ndarray[Any, Any]]:
    relus = [relu.output for relu in find_relus(model)]
    statistics = _calibrated(model, relus, evidence, settings, lambda _: None)
    return {name: one.peaks <= 0 for name, one in statistics.items() if one.places}


def _ratio(
    bundle: Bundle, model: ir.Model, compaction: Compaction | None, equalization: Equalization | None, evidence: Evidence
) -> float:
    """Return the largest error of the prepared graph's Relus and outputs in units of float32's own. Raises when it is no noise.

    A Relu that lost channels is held against those of the model's that are left, one that was scaled is scaled back.
    """
    feeds = evidence.one_row
    theirs = find_relus(load_model(bundle.onnx))
    truth = find_truth(open_source(bundle, "reference", theirs), feeds)
    left = {} if compaction is None else compaction.surviving
    scales = {} if equalization is None else equalization.scales
    mine = [relu for relu in find_relus(model) if relu.output in truth.values]
    with TARGETS["cpu"].session(model, taps=tuple(mine)) as session:
        results = session.run(feeds)
    ratio = 0.0
    for name in {*(relu.output for relu in mine), *(spec.name for spec in bundle.outputs)} & set(truth.values):
        true = truth.values[name]
        true = true[:, left[name]] if name in left else true
        got = results[name] * scales[name] if name in scales else results[name]
        verdict = compare(got, true, truth.noise_floor[name])
        if not verdict.passed:
            raise ReluDeployError(
                f"preparing {bundle.name} changed {name}: {verdict.reason}",
                "this is a fault of relu_deploy; leave --compact and --equalize away, and please report it",
            )
        ratio = max(ratio, verdict.error_ratio)
    return ratio
