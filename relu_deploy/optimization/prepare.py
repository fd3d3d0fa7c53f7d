"""The float32 graph that every precision starts from, and what its tensors look like on the calibration data.

Branches whose condition is constant are inlined, transposed weights and batch norms are folded, means over space are pools, the operator set is as
new as the precision needs. On request channels that never act are removed
(`graph.pruning.prune`) and neighboring layers are equalized (`graph.quantization.equalization`). The answers must stay those of the model: where
more than folding was done, every Relu and output is held against the original's float64 truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends import load
from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import declared_range
from relu_deploy.errors import ReluDeployError, UsageError
from relu_deploy.graph import count_cost, find_relus, load_model, normalize_model, precision_of, read_model, save_model
from relu_deploy.graph.pruning.prune import PruningReport, prune_model
from relu_deploy.graph.quantization.cast_precision import range_reasons
from relu_deploy.graph.quantization.equalization import EqualizationReport, equalize
from relu_deploy.graph.quantization.qdq_placement import segments_of
from relu_deploy.graph.quantization.retarget import RetargetReport, has_qdq, retarget_qdq
from relu_deploy.graph.rewriting.computed_weights import fold_computed_weights
from relu_deploy.graph.rewriting.constant_branches import inline_constant_branches
from relu_deploy.graph.rewriting.opset import raise_opset
from relu_deploy.graph.rewriting.simplify import fold_batch_norms, pool_spatial_means
from relu_deploy.optimization.accuracy.calibration import Statistics, calibrate
from relu_deploy.optimization.accuracy.evaluation_data import EvaluationData
from relu_deploy.optimization.exclusion import check_patterns, excluded_nodes
from relu_deploy.optimization.options import OptimizeOptions
from relu_deploy.optimization.recipes import calibrated_tensors
from relu_deploy.optimization.targets import TARGETS, Target
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.tensors import count_rows
from relu_deploy.verification.judging.verdict import compare
from relu_deploy.verification.truth import find_truth, open_source

if TYPE_CHECKING:
    import onnx_ir as ir


__all__ = ["Prepared", "prepare", "trained_precision"]

#: the operator set that each precision is written in: the first that has float8, and that every evaluator knows
OPSETS = {"int8": 19, "fp8": 19}


@dataclass(frozen=True)
class Prepared:
    """original: the model as it is in the bundle. model: as it was prepared. statistics: of its tensors on the calibration data.

    path: where the prepared graph lies as a file. ratio: the largest error of its Relus and outputs, in units of float32's
    own; None where nothing but folding was done. excluded: nodes that stay float32, with the reason. retargeting: what became
    of the Q/DQ pairs of a model that was quantized where it was trained; its `model` is that graph.
    """

    original: ir.Model
    model: ir.Model
    statistics: Mapping[str, Statistics]
    pruning: PruningReport | None = None
    equalization: EqualizationReport | None = None
    ratio: float | None = None
    cost: Mapping[str, int] = field(default_factory=dict)
    path: Path = Path()
    excluded: Mapping[str, str] = field(default_factory=dict)
    retargeting: RetargetReport | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether the model had Q/DQ pairs of its own."""
        return self.retargeting is not None

    @property
    def is_another(self) -> bool:
        """Return whether tensors inside are not the original's: then a variant is held against this graph."""
        return self.pruning is not None or self.equalization is not None or self.is_quantized

    @property
    def segments(self) -> dict[str, str]:
        return segments_of(self.model)

    def keep(self, dtype: str) -> dict[str, str]:
        """Return the nodes that `dtype` has no room for, on these data, with the reasons."""
        return range_reasons(self.model, dtype, {name: one.largest for name, one in self.statistics.items()})

    def to_json(self) -> dict[str, Any]:
        return {
            "compact": None if self.pruning is None else self.pruning.to_json(),
            "equalize": None if self.equalization is None else self.equalization.to_json(),
            "error_ratio": self.ratio,
            "retargeting": None if self.retargeting is None else self.retargeting.to_json(),
            **self.cost,
        }


def prepare(
    bundle: Bundle,
    target: Target,
    precisions: Sequence[str],
    options: OptimizeOptions,
    data: EvaluationData,
    progress: Callable[[str], None],
) -> Prepared:
    """Return `bundle`'s model prepared for `precisions` on `target`. Raises InputError for a graph that cannot be."""
    original = normalize_model(load_model(bundle.onnx), str(bundle.onnx))
    precision = precision_of(original)
    if trained := trained_precision(original):
        if list(precisions) != [trained]:
            raise UsageError(
                f"{bundle.onnx} is in {precision} already",
                f"--precision {trained} takes the quantized graph as it is; for others optimize the float32 model it was made from",
            )
        return _retargeted(original, target, options, data)
    if precision != "float32":
        raise UsageError(f"{bundle.onnx} is in {precision} already", "optimize the float32 model that it was made from")
    raised = raise_opset(original, max(OPSETS.get(name, 0) for name in precisions))
    model = pool_spatial_means(fold_batch_norms(fold_computed_weights(inline_constant_branches(raised))))
    check_patterns((original, model), options.exclude)
    pruning = equalization = None
    if options.compact:
        progress("removing channels that never act")
        never_fired = _never_fired(model, data, options) if options.allow_observed else None
        pruned = prune_model(model, _ranges(bundle), never_fired)
        model, pruning = pruned.model, pruned.report
    if options.equalize if options.equalize is not None else not options.per_channel:
        equalized = equalize(model)
        model, equalization = equalized.model, equalized.report
    changed = pruning is not None or equalization is not None
    ratio = _ratio(bundle, model, pruning, equalization, data) if changed and not options.allow_observed else None
    calibrated = list(dict.fromkeys(name for one in precisions for name in calibrated_tensors(model, one, target.placement)))
    if precisions == ["fp32"]:
        calibrated = []
    statistics = _calibrated(model, calibrated, data, options, progress) if calibrated else {}
    before, after = count_cost(original), count_cost(model)
    cost = {"flops_before": before.flops, "flops_after": after.flops}
    return Prepared(
        original, model, statistics, pruning, equalization, ratio, cost, excluded=excluded_nodes(original, model, options.exclude)
    )


def trained_precision(model: ir.Model) -> str:
    """Return "int8" or "fp8" for a model with Q/DQ pairs of its own, from quantization-aware training; "" for any other."""
    return {"int8": "int8", "float8": "fp8"}.get(precision_of(model), "") if has_qdq(model) else ""


def _retargeted(original: ir.Model, target: Target, options: OptimizeOptions, data: EvaluationData) -> Prepared:
    """Return a quantized graph with its Q/DQ pairs as `target` reads them."""
    check_patterns([original], options.exclude)
    excluded = excluded_nodes(original, original, options.exclude)
    moved = retarget_qdq(original, target.placement, excluded)
    if moved.changed and moved.report.keeps_numbers:
        _check_same_outputs(original, moved.model, data)
    before, after = count_cost(original), count_cost(moved.model)
    cost = {"flops_before": before.flops, "flops_after": after.flops}
    return Prepared(original, moved.model, {}, cost=cost, retargeting=moved.report)


def _check_same_outputs(original: ir.Model, moved: ir.Model, data: EvaluationData) -> None:
    """Raise ReluDeployError if two graphs that are to give the same numbers do not, node by node, on one row of the data."""
    results = []
    for model in (original, moved):
        with temporary_folder("retarget") as folder:
            path = Path(folder) / "graph.onnx"
            save_model(model, path)
            session = load(Bundle.open(path), "onnxruntime-cpu", threads=1, optimization="none")
            results.append(session.run(data.one_row))
            session.close()
    for name, array in results[0].items():
        if isinstance(array, np.ndarray) and not np.array_equal(array, results[1][name], equal_nan=array.dtype.kind == "f"):
            raise ReluDeployError(
                f"moving the Q/DQ pairs changed {name}", "this is a bug in relu_deploy; please report it with the graph"
            )


def _calibrated(
    model: ir.Model, tensors: Sequence[str], data: EvaluationData, options: OptimizeOptions, progress: Callable[[str], None]
) -> dict[str, Statistics]:
    rows = len(data.calibrated_on)

    def say(done: int) -> None:
        progress(f"calibrating on {data.calibrated_on.name}: {done} of {rows} rows")

    batches = data.calibrated_on.batches(data.batch)
    if data.is_fixed:
        batches = (feeds for feeds in batches if count_rows(feeds, data.calibrated_on.axes) == data.batch)
    return calibrate(model, batches, tensors, options.threads, say)


def _ranges(bundle: Bundle) -> dict[str, tuple[Any, Any]]:
    declared = declared_range(bundle)
    return {} if declared is None else dict(declared.bounds)


def _never_fired(model: ir.Model, data: EvaluationData, options: OptimizeOptions) -> dict[str, np.ndarray[Any, Any]]:
    relus = [relu.output for relu in find_relus(model) if not relu.body]
    statistics = _calibrated(model, relus, data, options, lambda _: None)
    return {name: one.peaks <= 0 for name, one in statistics.items() if one.places}


def _ratio(
    bundle: Bundle, model: ir.Model, pruning: PruningReport | None, equalization: EqualizationReport | None, data: EvaluationData
) -> float:
    """Return the largest error of the prepared graph's Relus and outputs in units of float32's own. Raises when it is above the noise.

    A Relu that lost channels is held against those of the model's that are left, one that was scaled is scaled back.
    """
    feeds = data.one_row
    original_relus = [relu for relu in find_relus(read_model(bundle.onnx)) if relu.observable]
    truth = find_truth(open_source(bundle, "reference", original_relus), feeds)
    left = {} if pruning is None else pruning.surviving
    scales = {} if equalization is None else equalization.scales
    relus = [relu for relu in find_relus(model) if relu.output in truth.values]
    with TARGETS["cpu"].session(model, taps=tuple(relus)) as session:
        results = session.run(feeds)
    ratio = 0.0
    for name in {*(relu.output for relu in relus), *(spec.name for spec in bundle.outputs)} & set(truth.values):
        true = truth.values[name]
        true = true[:, left[name]] if name in left else true
        got = results[name] * scales[name] if name in scales else results[name]
        verdict = compare(got, true, truth.noise_floor[name])
        if not verdict.passed:
            raise ReluDeployError(
                f"preparing {bundle.name} changed {name}: {verdict.reason}",
                "this is a bug in relu_deploy; run without --compact and --equalize, and please report it",
            )
        ratio = max(ratio, verdict.error_ratio)
    return ratio
