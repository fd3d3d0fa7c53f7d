"""Per-Relu and end-to-end comparison of backends with the truth.

`verify` runs a model on each backend twice: as it ships, for the outputs and the checks that need no reference, and with
every Relu tapped. The rule is in `verdict.py`, the truth in `truth.py`, the node at fault in `locate.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from relu_deploy.backends import OPTIMIZATIONS, capabilities, load, require
from relu_deploy.bundle import Bundle
from relu_deploy.errors import UsageError
from relu_deploy.graph import Relu, load_model, precision_of
from relu_deploy.tensors import Feeds, check_feeds
from relu_deploy.verification.execution import ExecutionReport, compare_with_request
from relu_deploy.verification.invariants import (
    Check,
    Contract,
    InvarianceCheck,
    check_contract,
    judge,
    nan_is_kept,
    poisoned,
    try_model,
)
from relu_deploy.verification.locate import Fault, faults_of_graph, locate_on_backend
from relu_deploy.verification.tapping import Observed, observe
from relu_deploy.verification.truth import Truth, choose_against, find_truth, open_source, relus_to_compare
from relu_deploy.verification.verdict import LIMITS, SINGLE, Comparison, compare

if TYPE_CHECKING:
    import onnx_ir as ir

    from relu_deploy.verification.engine.audit import AuditReport

__all__ = ["BackendReport", "VerifyReport", "compare_outputs", "verify"]


@dataclass(frozen=True)
class ReluReport:
    """One Relu on one backend. comparison is None when the truth has no such tensor to compare with.

    as_deployed: it was seen while the outputs stayed those of the untapped session. seen: how, in an engine: "observed",
    "inside" a fusion that was checked at its output, or "unobserved", with the reason; "" elsewhere.
    """

    relu: Relu
    comparison: Comparison | None
    contract: Contract | None = None
    as_deployed: bool = False
    seen: str = ""
    unseen_because: str = ""

    @property
    def passed(self) -> bool | None:
        if self.contract is not None and self.contract.broken:
            return False
        return None if self.comparison is None else self.comparison.passed

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "node": self.relu.node,
            "index": self.relu.index,
            "scope": self.relu.scope,
            "kind": self.relu.kind,
        }
        nothing = {"max_abs": None, "max_ulp": None, "error_ratio": None, "relative_error": None, "reason": "not compared"}
        fields |= {
            "passed": self.passed,
            **(self.comparison.to_json() if self.comparison else nothing),
            "as_deployed": self.as_deployed,
        }
        if self.seen:
            fields |= {"seen": self.seen, "unseen_because": self.unseen_because}
        if self.contract is not None:
            fields["contract"] = self.contract.to_json()
            fields["reason"] = fields["reason"] or self.contract.broken
        return fields | {"passed": self.passed}


@dataclass(frozen=True)
class BackendReport:
    """One backend's verdict.

    as_deployed: every Relu was seen while the outputs stayed bit-identical to those that ship; None when none was looked
    at. faults: the nodes at fault, first one first. checks: those that need no reference. delivered: what the runtime ran.
    """

    name: str
    outputs: Mapping[str, Comparison]
    relus: Sequence[ReluReport]
    as_deployed: bool | None
    facts: Mapping[str, Any]
    faults: Sequence[Fault] = ()
    checks: Sequence[Check] = ()
    delivered: ExecutionReport = field(default_factory=ExecutionReport)
    note: str = ""
    audit: AuditReport | None = None

    @property
    def passed(self) -> bool:
        if self.audit is not None and not self.audit.passed:
            return False
        verdicts = [*(comparison.passed for comparison in self.outputs.values()), *(report.passed for report in self.relus)]
        return not self.faults and all(verdict is not False for verdict in (*verdicts, *(check.passed for check in self.checks)))

    @property
    def first_divergence(self) -> str | None:
        return self.faults[0].node if self.faults else None

    def failing(self) -> list[str]:
        """Return the tensors whose verdict was no: Relus in the graph's order, then outputs."""
        relus = [report.relu.output for report in self.relus if report.passed is False]
        return relus + [name for name, comparison in self.outputs.items() if not comparison.passed and name not in relus]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "passed": self.passed,
            "first_divergence": self.first_divergence,
            "faults": [fault.to_json() for fault in self.faults],
            "as_deployed": self.as_deployed,
            "delivered": self.delivered.to_json(),
            "checks": [check.to_json() for check in self.checks],
            "facts": dict(self.facts),
            "note": self.note,
            "outputs": [{"name": name, **comparison.to_json()} for name, comparison in self.outputs.items()],
            "relus": [report.to_json() for report in self.relus],
            **({"audit": self.audit.to_json()} if self.audit else {}),
        }


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. first_divergence: name of the first node at fault, None when all passed."""

    model: str
    against: str
    precision: str
    inputs: Mapping[str, Any]
    backends: Sequence[BackendReport]
    seconds: float

    @property
    def passed(self) -> bool:
        return all(report.passed for report in self.backends)

    @property
    def as_requested(self) -> bool:
        """Return whether every backend ran everything in the precision and on the execution provider that were asked for."""
        return not any(report.delivered.differences for report in self.backends)

    @property
    def first_divergence(self) -> str | None:
        return next((report.first_divergence for report in self.backends if report.first_divergence), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "relu-deploy/verify/1",
            "model": self.model,
            "against": self.against,
            "precision": self.precision,
            "limit": LIMITS[self.precision],
            "passed": self.passed,
            "as_requested": self.as_requested,
            "first_divergence": self.first_divergence,
            "inputs": dict(self.inputs),
            "backends": [report.to_json() for report in self.backends],
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class _Task:
    """What is run on every backend alike."""

    bundle: Bundle
    model: ir.Model
    precision: str
    relus: Sequence[Relu]
    feeds: Feeds
    options: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class _Answers:
    """What one backend gave, before it is judged. observed: None where the backend does not show its Relus."""

    name: str
    shipped: Feeds
    facts: Mapping[str, Any]
    delivered: ExecutionReport
    trials: Sequence[InvarianceCheck]
    observed: Observed | None = None
    nan_kept: Mapping[str, bool | None] = field(default_factory=dict)
    audit: AuditReport | None = None
    blind: str = "a compiled graph does not show its Relus: outputs only"


def verify(
    bundle: Bundle | str | os.PathLike[str],
    backends: Sequence[str] = ("onnxruntime-cpu",),
    *,
    feeds: Feeds | None = None,
    data: str | os.PathLike[str] | None = None,
    against: str | None = None,
    samples: int = 1,
    seed: int = 0,
    threads: int = 0,
    device: int = 0,
    optimization: str = "all",
    progress: Callable[[str], None] = lambda _: None,
) -> VerifyReport:
    """Return the comparison of every Relu and every output on `backends` with the truth.

    feeds: arrays for the model's inputs; by default `samples` rows of `data` (see `load_dataset`), without that of the model's
    own data set, or random ones from `seed`.
    against: "torch", "reference", another ONNX file or bundle; by default PyTorch's program where it travels along.
    optimization: how far the runtime may rewrite the graph ("none", "basic", "extended", "all"), where it has such a switch.
    device: index of the GPU, for backends on one. progress: called with a line about what happens next.
    Raises InputError, UsageError, BackendUnavailable or Unsupported; a difference is a result, not an error.
    """
    started = time.perf_counter()
    if optimization not in OPTIMIZATIONS:
        raise UsageError(f"there is no optimization level {optimization!r}", f"one of: {', '.join(OPTIMIZATIONS)}")
    if feeds is not None and data is not None:
        raise UsageError("arrays and --data both say what is fed", "give --inputs or --data")
    options = {"threads": threads, "device": device, "optimization": optimization}
    for name in backends:
        require(name)
    bundle = Bundle.open(bundle)
    model = load_model(bundle.onnx)
    against = choose_against(bundle, against)
    relus, precision = relus_to_compare(model, against), precision_of(model)
    if feeds is None:
        from relu_deploy.data.datasets import sample_feeds

        feeds, described = sample_feeds(bundle, samples, seed, None if data is None else str(data))
    else:
        described = {"source": "given", "seed": None}
    feeds = check_feeds(feeds, bundle.inputs, bundle.name)
    described = {**described, "shapes": {name: list(array.shape) for name, array in feeds.items()}}
    task = _Task(bundle, model, precision, relus, feeds, options, seed)
    with ThreadPoolExecutor(1) as pool:
        # Loading PyTorch and its program keeps one core busy with Python: other runtimes work on the other one meanwhile.
        ahead = {name: pool.submit(_ask, task, name) for name in backends if not capabilities(name).runs_program}
        progress(f"truth in float64, against {against}")
        source = open_source(bundle, against, relus, threads)
        truth = find_truth(source, against, feeds, precision)
        source.session.close()
        reports = []
        for name in backends:
            progress(name)
            reports.append(_judge(task, truth, ahead[name].result() if name in ahead else _ask(task, name)))
    # In float32 a graph whose Relus and outputs all agree has no fault. A coarser precision's noise could hide one.
    if precision not in ("float32", "float64") or any(report.failing() for report in reports):
        progress("looking for the node at fault")
        reports = _located(task, truth, reports)
    return VerifyReport(bundle.name, against, precision, described, reports, time.perf_counter() - started)


def _ask(task: _Task, name: str) -> _Answers:
    """Return what the backend called `name` gives: as it ships, in the trials, and with its Relus tapped."""
    session = load(task.bundle, name, **task.options, profile=True)
    shipped, facts = session.run(task.feeds), session.facts
    delivered = compare_with_request(task.model, session.executed(), facts.get("providers", [None])[0])
    able = capabilities(name)
    trials = try_model(task.bundle, session, task.feeds, task.seed, not able.compiles_in_place)
    if able.shows_engine_layers:
        from relu_deploy.verification.engine.audit import audit_session

        audited, blind = audit_session(task.bundle, name, task.feeds, session)
        session.close()
        return _Answers(name, shipped, facts, delivered, trials, audit=audited, blind=blind)
    session.close()
    if not able.shows_tensors:
        return _Answers(name, shipped, facts, delivered, trials)
    taps = [relu for relu in task.relus if not able.runs_program or relu.torch_node]
    # Integers cannot hold a NaN, so a quantized graph has no policy for it.
    nans = poisoned(task.feeds) if task.precision != "int8" else {}
    observed = observe(task.bundle, name, taps, task.feeds, shipped, nans, task.options)
    kept = nan_is_kept(task.model, taps, nans, observed.for_nan)
    return _Answers(name, shipped, facts, delivered, trials, observed, kept)


def _judge(task: _Task, truth: Truth, answers: _Answers) -> BackendReport:
    noise_floor, values = truth.noise_floor, truth.values
    outputs = compare_outputs(answers.shipped, truth)
    ends = {spec.name for spec in task.bundle.outputs} & set(values)
    checks = judge(answers.trials, noise_floor, {name: values[name] for name in ends}, truth.precision)
    told = (answers.facts, (), checks, answers.delivered)
    seen = answers.observed
    if answers.audit is not None:
        return _audited(answers.audit, outputs, told)
    if seen is None:
        return BackendReport(answers.name, outputs, (), None, *told, answers.blind)
    reports = []
    for relu in task.relus:
        got, true = seen.values.get(relu.output), values.get(relu.output)
        if got is None:
            reports.append(ReluReport(relu, None))
            continue
        noise = noise_floor.get(relu.output, 0.0)
        single = truth.single.get(relu.output, SINGLE * noise)
        contract = check_contract(relu, got, true, single, truth.precision, answers.nan_kept.get(relu.output))
        comparison = None if true is None else compare(got, true, noise, LIMITS[truth.precision])
        reports.append(ReluReport(relu, comparison, contract, relu.output in seen.as_deployed))
    blind = sum(report.comparison is None for report in reports)
    notes = [f"{blind} of {len(reports)} Relus have no counterpart to compare with"] if blind else []
    if seen.sessions > 1:
        notes.append(f"tapping all Relus at once changed the outputs: they were spread over {seen.sessions} sessions")
    return BackendReport(answers.name, outputs, reports, len(seen.as_deployed) == len(seen.values), *told, "; ".join(notes))


def _audited(audit: AuditReport, outputs: Mapping[str, Comparison], told: tuple[Any, ...]) -> BackendReport:
    """Return the report on an engine: its Relus at the tensors where it showed them, its faults those of its own fusions."""
    at = {report.region.tensor: report.accumulated for report in audit.regions if not report.region.is_copy}
    relus = [
        ReluReport(
            one.relu, at.get(one.at), audit.contracts.get(one.at), audit.as_deployed and bool(one.at), one.state, one.reason
        )
        for one in audit.relus
    ]
    facts, _, checks, delivered = told
    counts = ", ".join(f"{count} {state}" for state, count in audit.coverage.items() if count)
    note = f"Relus of the engine: {counts}" + ("" if audit.as_deployed else "; what was observed is not what ships: see audit")
    return BackendReport(
        audit.backend, outputs, relus, audit.as_deployed, facts, tuple(audit.faults), checks, delivered, note, audit
    )


def _located(task: _Task, truth: Truth, reports: Sequence[BackendReport]) -> list[BackendReport]:
    """Return the reports with the nodes at fault: the graph's, which every backend runs, else each backend's own."""
    from dataclasses import replace

    of_graph = faults_of_graph(task.bundle, truth.against, task.feeds, truth.precision)
    located = []
    for report in reports:
        faults: Sequence[Fault] = of_graph or report.faults
        if not faults and (failing := report.failing()):
            args = (failing, truth.values, task.feeds, truth.precision, task.options)
            fault = locate_on_backend(task.bundle, report.name, *args)
            faults = [fault] if fault else []
        # PyTorch runs the program that came with the graph, not the graph: its faults are not PyTorch's.
        mine = faults if not capabilities(report.name).runs_program or report.failing() else ()
        located.append(replace(report, faults=tuple(mine)))
    return located


def compare_outputs(results: Mapping[str, Any], truth: Truth) -> dict[str, Comparison]:
    """Return the verdict on each output in `results` (by name) that the truth knows."""
    return {
        name: compare(value, truth.values[name], truth.noise_floor[name], LIMITS[truth.precision])
        for name, value in results.items()
        if name in truth.values
    }
