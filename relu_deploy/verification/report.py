"""The results of `verify`: one report a Relu, a backend and a verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from relu_deploy.graph import Relu
from relu_deploy.records import JsonRecord
from relu_deploy.verification.execution import ExecutionReport
from relu_deploy.verification.judging.contract import NAN_NOT_PROPAGATED, Contract
from relu_deploy.verification.judging.invariants import Check
from relu_deploy.verification.judging.verdict import LIMITS, Comparison
from relu_deploy.verification.locating.fault import Fault
from relu_deploy.verification.preprocess.report import PreprocessReport

if TYPE_CHECKING:
    from relu_deploy.verification.engine.audit import AuditReport

__all__ = ["BackendReport", "Finding", "ReluReport", "VerifyReport"]

#: fields of a `Comparison` where there was nothing to compare with
NOT_COMPARED = {"max_abs": None, "max_ulp": None, "error_ratio": None, "relative_error": None, "reason": "not compared"}


@dataclass(frozen=True)
class ReluReport:
    """One Relu on one backend.

    Attributes:
        comparison: None when the truth has no such tensor.
        contract: None when the backend did not show the Relu's output.
        as_deployed: Its output was read while the outputs of the model stayed those of the untapped session.
        coverage: How an engine showed it: "observed", "inside" a fusion that was checked at its output, or "unobserved";
            "" for other backends.
        coverage_reason: Why it was not observed.
    """

    relu: Relu
    comparison: Comparison | None
    contract: Contract | None = None
    as_deployed: bool = False
    coverage: str = ""
    coverage_reason: str = ""

    @property
    def passed(self) -> bool | None:
        """Return the verdict, None when there is none."""
        if self.contract is not None and self.contract.broken:
            return False
        return None if self.comparison is None else self.comparison.passed

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "node": self.relu.node,
            "index": self.relu.index,
            "scope": self.relu.scope,
            "kind": self.relu.kind,
            "passed": self.passed,
            **(self.comparison.to_json() if self.comparison else NOT_COMPARED),
            "as_deployed": self.as_deployed,
        }
        if self.coverage:
            fields |= {"seen": self.coverage, "unseen_because": self.coverage_reason}
        if self.contract is not None:
            fields["contract"] = self.contract.to_json()
            fields["reason"] = fields["reason"] or self.contract.broken
        return fields | {"passed": self.passed}


@dataclass(frozen=True)
class Finding(JsonRecord):
    """A difference in the treatment of special values, which `verify` can accept.

    Attributes:
        kind: "nan-not-propagated".
        accepted: It does not fail the backend.
        detail: What was found, in one sentence.
    """

    kind: str
    accepted: bool
    detail: str


@dataclass(frozen=True)
class BackendReport:
    """The verdict on one backend.

    Attributes:
        as_deployed: Every Relu was read while the outputs stayed bit-identical to those of the untapped session; None when
            no Relu was read.
        facts: What the runtime does, read back from its session.
        faults: The nodes at fault, in the order of the graph.
        checks: The checks that need no reference.
        execution: The kernels that ran.
        audit: The audit of a TensorRT engine, None for other backends.
    """

    name: str
    outputs: Mapping[str, Comparison]
    relus: Sequence[ReluReport]
    as_deployed: bool | None
    facts: Mapping[str, Any]
    faults: Sequence[Fault] = ()
    checks: Sequence[Check] = ()
    execution: ExecutionReport = field(default_factory=ExecutionReport)
    note: str = ""
    audit: AuditReport | None = None

    @property
    def passed(self) -> bool:
        """Return whether nothing differs and no check failed."""
        if self.audit is not None and not self.audit.passed:
            return False
        verdicts = [*(comparison.passed for comparison in self.outputs.values()), *(report.passed for report in self.relus)]
        return not self.faults and all(verdict is not False for verdict in (*verdicts, *(check.passed for check in self.checks)))

    @property
    def findings(self) -> list[Finding]:
        """Return how the backend treats special values where it differs from IEEE 754."""
        contracts = [report.contract for report in self.relus if report.contract is not None]
        lost = [contract for contract in contracts if contract.nan_kept is False]
        if not lost:
            return []
        checked = sum(contract.nan_kept is not None for contract in contracts)
        detail = f"NaN is not propagated: {len(lost)} of {checked} Relus that it reached return a number for NaN"
        return [Finding(NAN_NOT_PROPAGATED, lost[0].accepts_lost_nan, detail)]

    @property
    def first_divergence(self) -> str | None:
        """Return the name of the first node at fault."""
        return self.faults[0].node if self.faults else None

    def differing(self) -> list[str]:
        """Return the tensors whose numbers differ: `failing` without Relus that fail only because they lose NaN."""
        agreeing = {
            report.relu.output
            for report in self.relus
            if report.comparison is not None
            and report.comparison.passed
            and report.contract is not None
            and not replace(report.contract, accepts_lost_nan=True).broken
        }
        return [name for name in self.failing() if name not in agreeing]

    def failing(self) -> list[str]:
        """Return the tensors that differ: Relus in the order of the graph, then outputs."""
        relus = [report.relu.output for report in self.relus if report.passed is False]
        return relus + [name for name, comparison in self.outputs.items() if not comparison.passed and name not in relus]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "passed": self.passed,
            "first_divergence": self.first_divergence,
            "faults": [fault.to_json() for fault in self.faults],
            "as_deployed": self.as_deployed,
            "delivered": self.execution.to_json(),
            "findings": [finding.to_json() for finding in self.findings],
            "checks": [check.to_json() for check in self.checks],
            "facts": dict(self.facts),
            "note": self.note,
            "outputs": [{"name": name, **comparison.to_json()} for name, comparison in self.outputs.items()],
            "relus": [report.to_json() for report in self.relus],
            **({"audit": self.audit.to_json()} if self.audit else {}),
        }


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`.

    Attributes:
        against: The source of the truth: "torch", "reference" or a path.
        precision: The coarsest precision of the graph; it chooses the limit.
        inputs: Where the inputs came from, and their shapes.
        random: The nodes that draw random numbers: each was replaced by one draw, everywhere the same.
        unknown: The nodes that the truth does not know, with their operators: a runtime computed them, on the truth's operands.
        preprocess: The comparison of the preprocessing with arrays, None without arrays.
        program_verdict: What `export` found when it compared the model's graph with its PyTorch program, if the bundle has
            that verdict on its files; see `ProgramVerdict`.
        program_unknown: Why there is no such verdict although the bundle has a program, "" otherwise.
    """

    model: str
    against: str
    precision: str
    inputs: Mapping[str, Any]
    backends: Sequence[BackendReport]
    seconds: float
    random: Sequence[str] = ()
    unknown: Sequence[tuple[str, str]] = ()
    preprocess: PreprocessReport | None = None
    program_verdict: Mapping[str, Any] | None = None
    program_unknown: str = ""

    @property
    def passed(self) -> bool:
        """Return whether every backend passed, and the preprocessing agrees with the arrays that it was compared with."""
        return all(report.passed for report in self.backends) and (self.preprocess is None or self.preprocess.passed)

    @property
    def as_requested(self) -> bool:
        """Return whether every kernel ran in the precision of the graph and on the execution provider of its backend."""
        return not any(report.execution.differences for report in self.backends)

    @property
    def first_divergence(self) -> str | None:
        """Return the name of the first node at fault, None when all passed."""
        return next((report.first_divergence for report in self.backends if report.first_divergence), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "relu-deploy/verify/1",
            "model": self.model,
            "against": self.against,
            "program_verdict": None if self.program_verdict is None else dict(self.program_verdict),
            **({"program_unknown": self.program_unknown} if self.program_unknown else {}),
            "precision": self.precision,
            "limit": LIMITS[self.precision],
            "passed": self.passed,
            "as_requested": self.as_requested,
            "first_divergence": self.first_divergence,
            "inputs": dict(self.inputs),
            "random_nodes": list(self.random),
            "unknown_nodes": [{"node": node, "operator": operator} for node, operator in self.unknown],
            "backends": [report.to_json() for report in self.backends],
            **({} if self.preprocess is None else {"preprocess": self.preprocess.to_json()}),
            "seconds": round(self.seconds, 3),
        }
