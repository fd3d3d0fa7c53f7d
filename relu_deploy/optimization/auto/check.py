"""Checks a candidate on its own backend: accuracy, every Relu, and the precisions of the kernels that ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from relu_deploy.backends import Session, load
from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import spread_evenly
from relu_deploy.optimization.auto.candidates import Candidate
from relu_deploy.optimization.auto.report import Check, Kernels
from relu_deploy.optimization.build import VariantBuilder
from relu_deploy.tensors import Array
from relu_deploy.verification.judging.contract import NAN_NOT_PROPAGATED
from relu_deploy.verification.report import BackendReport
from relu_deploy.verification.run import verify

__all__ = ["Checker"]

#: rows on which the error of the outputs is measured
ROWS_FOR_ERROR = 16


class Checker:
    """Checks candidates of one model."""

    def __init__(
        self, builder: VariantBuilder, graphs: Mapping[str, Path], measured: Mapping[str, Path], fixed: Mapping[str, Any]
    ) -> None:
        """Compute the float32 model's answers.

        Args:
            builder: The model, its data and its gate.
            graphs: The graph of each precision.
            measured: The same graphs with the tensors that accuracy is measured on among their outputs.
            fixed: Fields of `backends.Options` for every candidate.
        """
        self._builder, self._graphs, self._measured, self._fixed = builder, graphs, measured, fixed
        dataset = builder.evaluator.dataset
        self._rows = dataset.picked(spread_evenly(len(dataset), ROWS_FOR_ERROR))
        self._true = self._answers(Candidate(builder.target.backend, "fp32"))

    def check(self, candidate: Candidate) -> Check:
        """Return the verdict on a candidate.

        Raises:
            ReluDeployError: If it cannot be run.
        """
        builder, evaluator = self._builder, self._builder.evaluator
        bundle, settings = Bundle.open(self._graphs[candidate.graph]), {**self._fixed, **candidate.settings}
        with closing(self._session(candidate, self._measured)) as session:
            metric, confidence = evaluator.measure(session.run)
        error = evaluator.distance(self._answers(candidate), self._true)
        kernels = self._kernels(candidate)
        drop = evaluator.before.value - metric.value
        # Not `drop > max_drop`: a NaN misses the gate.
        if not drop <= builder.max_drop:
            reason = f"it loses {drop:.4g} {metric.name} on {metric.samples} rows, {builder.max_drop:g} is allowed"
            return Check(metric, error, None, kernels, reason, confidence)
        shift, most = evaluator.shift(confidence), builder.options.max_confidence_shift
        if most is not None and not (shift is not None and abs(shift) <= most):
            moved = "has no confidence" if shift is None else f"shifts its mean confidence by {shift:+.4g}"
            return Check(metric, error, None, kernels, f"it {moved}, {most:g} is allowed", confidence)
        verified = verify(
            bundle,
            [candidate.backend],
            feeds=builder.data.one_row,
            against=str(builder.prepared.path),
            settings=settings,
            accept=builder.options.accept,
        )
        report = verified.backends[0]
        return Check(metric, error, verified, kernels, "" if verified.passed else _fault(report), confidence)

    def _answers(self, candidate: Candidate) -> Mapping[str, Array]:
        with closing(self._session(candidate, self._measured)) as session:
            return self._builder.evaluator.answers_on(session.run, self._rows)

    def _kernels(self, candidate: Candidate) -> Kernels:
        with closing(self._session(candidate, self._graphs, profile=True)) as session:
            session.run(self._builder.data.one_row)
            executed = session.executed()
        computing = Counter(kernel.precision for kernel in executed if kernel.precision and not kernel.converts)
        return Kernels(dict(sorted(computing.items())), sum(kernel.converts for kernel in executed))

    def _session(self, candidate: Candidate, graphs: Mapping[str, Path], **options: Any) -> Session:
        settings = {**self._fixed, **candidate.settings, **options}
        return load(Bundle.open(graphs[candidate.graph]), candidate.backend, **settings)


def _fault(report: BackendReport) -> str:
    """Return the first fault that the comparison of every Relu found."""
    node = report.first_divergence or "its outputs"
    failing = next((fields for each in report.relus if (fields := each.to_json())["passed"] is False), None)
    if failing is None:
        return f"it differs from the float32 graph at {node}"
    contract = failing.get("contract") or {}
    hint = f"; --accept {NAN_NOT_PROPAGATED} accepts that" if contract.get("nan_kept") is False else ""
    return f"{failing['node']}: {failing['reason']}{hint}"
