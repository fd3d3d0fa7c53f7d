"""Comparison of a benchmark with an earlier one: which rows are slower, by their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_deploy.errors import InputError
from relu_deploy.records import JsonRecord
from relu_deploy.storage.files import read_regular
from relu_deploy.storage.json_files import first_fault, parse_json

__all__ = ["BenchComparison", "RowComparison", "compare_with", "load_report"]

#: largest report that is read
MAX_BYTES = 2**28
_TEXT: dict[str, Any] = {"type": "string"}
_TIME: dict[str, Any] = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e12}
#: what is read of an earlier report, which anybody may have written
EARLIER: dict[str, Any] = {
    "type": "object",
    "required": ["schema", "runs"],
    "properties": {
        "schema": {"const": "relu-deploy/bench/1"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["model", "backend", "variant", "batch", "latency_ms"],
                "properties": {
                    **dict.fromkeys(("model", "backend", "variant"), _TEXT),
                    "batch": {"type": "integer", "minimum": 1, "maximum": 2**31},
                    "latency_ms": {
                        "type": ["object", "null"],
                        "required": ["mean", "ci95"],
                        "properties": {
                            "mean": _TIME,
                            "ci95": {
                                "type": ["array", "null"],
                                "items": {"type": "number", "minimum": -1e12, "maximum": 1e12},
                                "minItems": 2,
                                "maxItems": 2,
                            },
                        },
                    },
                },
            },
        },
        "environment": {
            "type": ["object", "null"],
            "properties": {
                "cpu": {"type": ["object", "null"]},
                "gpus": {"type": ["array", "null"], "items": {"type": "object"}},
            },
        },
    },
}


@dataclass(frozen=True)
class RowComparison(JsonRecord):
    """The time of one row beside that of the same row in the earlier benchmark.

    Attributes:
        ratio: New mean latency over old mean latency.
        ci95: Its 95% confidence interval; None if one of the two means has none.
        slower: The whole interval is above the limit.
        reason: Why the row counts as slower without a ratio, or was not decided, "" otherwise.
    """

    model: str
    backend: str
    variant: str
    batch: int
    ratio: float | None
    ci95: tuple[float, float] | None
    slower: bool
    reason: str = ""


@dataclass(frozen=True)
class BenchComparison:
    """All rows that both benchmarks have.

    Attributes:
        file: The earlier report.
        max_slower: The slowdown that is allowed; 0.05 is 5%.
        missing: Rows of the earlier report that the new one does not have.
        other_machine: What differs between the machines, "" for the same.
    """

    file: str
    max_slower: float
    rows: tuple[RowComparison, ...]
    missing: tuple[str, ...]
    other_machine: str

    @property
    def passed(self) -> bool:
        """Whether no row is slower."""
        return not any(row.slower for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the field `comparison` of what `bench --json` writes."""
        return {
            "file": self.file,
            "max_slower": self.max_slower,
            "passed": self.passed,
            "rows": [row.to_json() for row in self.rows],
            "missing": list(self.missing),
            "other_machine": self.other_machine,
        }


def load_report(file: Path) -> Mapping[str, Any]:
    """Return an earlier report.

    Raises:
        InputError: If `file` is not a report of `bench --json`.
    """
    content = read_regular(file, MAX_BYTES)
    try:
        report = parse_json(content)
        fault = first_fault(report, EARLIER)
    except ValueError as error:
        fault = str(error)
    if fault:
        raise InputError(f"--compare {file} is not a report of bench: {fault}", "write one with relu-deploy bench --json FILE")
    return dict(report)


def compare_with(file: Path, new: Mapping[str, Any], max_slower: float) -> BenchComparison:
    """Compare a benchmark with an earlier report, row by row.

    Args:
        file: The earlier report.
        new: What `bench --json` writes.
        max_slower: A row is slower if the 95% interval of new over old time lies above 1 + max_slower.

    Raises:
        InputError: If `file` is not a report of `bench`, or has none of the new rows.
    """
    old = load_report(file)
    runs = {_key(run): run for run in old["runs"]}
    rows = tuple(_compared(run, runs.pop(_key(run)), 1 + max_slower) for run in new["runs"] if _key(run) in runs)
    if not rows:
        raise InputError(
            f"--compare {file} has none of the rows of this benchmark",
            "compare benchmarks of the same models, backends and batches",
        )
    missing = tuple(" ".join(str(part) for part in key if part != "") for key in runs)
    return BenchComparison(str(file), max_slower, rows, missing, _machine_change(old, new))


def _key(run: Mapping[str, Any]) -> tuple[str, str, str, int]:
    return run["model"], run["backend"], run["variant"], run["batch"]


def _compared(new: Mapping[str, Any], old: Mapping[str, Any], limit: float) -> RowComparison:
    after, before = new["latency_ms"], old["latency_ms"]
    if before is None:
        return RowComparison(*_key(new), None, None, False, "the earlier benchmark could not run it")
    if after is None:
        return RowComparison(*_key(new), None, None, True, f"it does not run any more: {new['error']}")
    ratio = after["mean"] / before["mean"]
    interval = _interval(ratio, after, before)
    if interval is None:
        return RowComparison(*_key(new), round(ratio, 4), None, False, "too few rounds for an interval: raise --seconds")
    return RowComparison(*_key(new), round(ratio, 4), interval, interval[0] > limit)


def _interval(ratio: float, after: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the 95% interval of the ratio of two independent means, by the delta method on its logarithm.

    The half-widths of the means, relative to the means, add in squares: Var(log(x/y)) is about Var(x)/x² + Var(y)/y².
    """
    if not after["ci95"] or not before["ci95"]:
        return None
    halves = [(one["ci95"][1] - one["ci95"][0]) / 2 / one["mean"] for one in (after, before)]
    width = math.hypot(*halves)
    return round(ratio * math.exp(-width), 4), round(ratio * math.exp(width), 4)


def _machine_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    def machine(report: Mapping[str, Any]) -> dict[str, Any]:
        environment = report.get("environment") or {}
        cpu = environment.get("cpu") or {}
        return {
            "CPU": cpu.get("model"),
            "CPUs": cpu.get("usable_cpus"),
            "threads": environment.get("threads"),
            "GPUs": [gpu.get("name") for gpu in environment.get("gpus") or ()],
        }

    before, after = machine(old), machine(new)
    return "; ".join(f"{name}: {before[name]} → {after[name]}" for name in before if before[name] != after[name])
