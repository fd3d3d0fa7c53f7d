"""Per-Relu and end-to-end comparison of backends with the truth.

`verify` runs a model on each backend twice: as it ships, for the outputs, and with every Relu tapped. The verdict rule is
in `verdict.py`, the truth in `truth.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relu_deploy.backends import load
from relu_deploy.bundle import Bundle
from relu_deploy.graph import Relu, find_relus, load_model
from relu_deploy.tensors import Feeds, check_feeds
from relu_deploy.verify.truth import Truth, choose_against, find_truth
from relu_deploy.verify.verdict import Comparison, compare

__all__ = ["BackendReport", "VerifyReport", "compare_outputs", "verify"]


@dataclass(frozen=True)
class ReluReport:
    """One Relu on one backend. comparison is None when the truth has no such tensor to compare with."""

    relu: Relu
    comparison: Comparison | None

    def to_json(self) -> dict[str, Any]:
        fields = {"node": self.relu.node, "index": self.relu.index, "scope": self.relu.scope, "kind": self.relu.kind}
        if self.comparison is None:
            return {**fields, "passed": None, "max_abs": None, "max_ulp": None, "error_ratio": None, "reason": "not compared"}
        return {**fields, **self.comparison.to_json()}


@dataclass(frozen=True)
class BackendReport:
    """One backend's verdict. as_deployed: tapping the Relus left the outputs bit-identical, so they are those that ship."""

    name: str
    outputs: Mapping[str, Comparison]
    relus: Sequence[ReluReport]
    as_deployed: bool | None
    facts: Mapping[str, Any]
    first_divergence: str | None
    note: str = ""

    @property
    def passed(self) -> bool:
        relus = [report.comparison for report in self.relus if report.comparison is not None]
        return all(comparison.passed for comparison in (*self.outputs.values(), *relus))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "passed": self.passed,
            "first_divergence": self.first_divergence,
            "as_deployed": self.as_deployed,
            "facts": dict(self.facts),
            "note": self.note,
            "outputs": [{"name": name, **comparison.to_json()} for name, comparison in self.outputs.items()],
            "relus": [report.to_json() for report in self.relus],
        }


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. first_divergence: name of the first node whose tensor is at fault, None when all passed."""

    model: str
    against: str
    inputs: Mapping[str, Any]
    backends: Sequence[BackendReport]
    seconds: float

    @property
    def passed(self) -> bool:
        return all(report.passed for report in self.backends)

    @property
    def first_divergence(self) -> str | None:
        return next((report.first_divergence for report in self.backends if report.first_divergence), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "relu-deploy/verify/1",
            "model": self.model,
            "against": self.against,
            "passed": self.passed,
            "first_divergence": self.first_divergence,
            "inputs": dict(self.inputs),
            "backends": [report.to_json() for report in self.backends],
            "seconds": round(self.seconds, 3),
        }


def verify(
    bundle: Bundle | str | os.PathLike[str],
    backends: Sequence[str] = ("onnxruntime-cpu",),
    *,
    feeds: Feeds | None = None,
    against: str | None = None,
    samples: int = 1,
    seed: int = 0,
    threads: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> VerifyReport:
    """Return the comparison of every Relu and every output on `backends` with the truth.

    feeds: arrays for the model's inputs; by default `samples` real ones of the model's own data set, or random ones from `seed`.
    against: "torch", "reference", another ONNX file or bundle; by default PyTorch's program where it travels along.
    progress: called with a line about what happens next.
    Raises InputError, UsageError, BackendUnavailable or Unsupported; a difference is a result, not an error.
    """
    started = time.perf_counter()
    bundle = Bundle.open(bundle)
    relus = find_relus(load_model(bundle.onnx))
    against = choose_against(bundle, against)
    if feeds is None:
        from relu_deploy.data import sample_feeds

        feeds, described = sample_feeds(bundle, samples, seed)
    else:
        described = {"source": "given", "seed": None}
    feeds = check_feeds(feeds, bundle.inputs, bundle.name)
    described = {**described, "shapes": {name: list(array.shape) for name, array in feeds.items()}}
    progress(f"truth in float64, against {against}")
    truth = find_truth(bundle, against, relus, feeds, threads)
    reports = []
    for name in backends:
        progress(name)
        reports.append(_verify_backend(bundle, name, relus, feeds, truth, threads))
    return VerifyReport(bundle.name, against, described, reports, time.perf_counter() - started)


def _verify_backend(bundle: Bundle, name: str, relus: Sequence[Relu], feeds: Feeds, truth: Truth, threads: int) -> BackendReport:
    session = load(bundle, name, threads=threads)
    shipped, facts = session.run(feeds), session.facts
    session.close()
    outputs = compare_outputs(shipped, truth)
    if name.startswith("torch-compile"):
        note = "a compiled graph does not show its Relus: outputs only"
        return BackendReport(name, outputs, (), None, facts, _first(bundle, (), outputs), note)
    taps = tuple(relu for relu in relus if name != "torch" or relu.torch_node)
    session = load(bundle, name, threads=threads, taps=taps)
    tapped = session.run(feeds)
    session.close()
    as_deployed = all(np.array_equal(shipped[key], tapped[key], equal_nan=shipped[key].dtype.kind == "f") for key in shipped)
    reports = [ReluReport(relu, _compare(relu.output, tapped, truth)) for relu in relus]
    blind = sum(report.comparison is None for report in reports)
    note = f"{blind} of {len(relus)} Relus have no counterpart to compare with" if blind else ""
    return BackendReport(name, outputs, reports, as_deployed, facts, _first(bundle, reports, outputs), note)


def compare_outputs(results: Mapping[str, Any], truth: Truth) -> dict[str, Comparison]:
    """Return the verdict on each output in `results` (by name) that the truth knows."""
    return {
        name: compare(value, truth.values[name], truth.yardstick[name]) for name, value in results.items() if name in truth.values
    }


def _compare(tensor: str, results: Mapping[str, Any], truth: Truth) -> Comparison | None:
    if tensor not in results or tensor not in truth.values:
        return None
    return compare(results[tensor], truth.values[tensor], truth.yardstick[tensor])


def _first(bundle: Bundle, relus: Iterable[ReluReport], outputs: Mapping[str, Comparison]) -> str | None:
    for report in relus:
        if report.comparison is not None and not report.comparison.passed:
            return report.relu.node
    wrong = [name for name, comparison in outputs.items() if not comparison.passed]
    if not wrong:
        return None
    made_by = {value.name: node.name for node in load_model(bundle.onnx).graph for value in node.outputs}
    return str(made_by.get(wrong[0], wrong[0]))
