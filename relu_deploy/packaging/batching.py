"""Batch size and queue delay of a server, chosen from the bundle's benchmark where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from relu_deploy.backends import load, usable
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, ReluDeployError, TooLong, UsageError
from relu_deploy.graph import integer_ranges, read_model
from relu_deploy.serving.row_trial import RowTrial, declared_reason
from relu_deploy.storage.json_files import read_report

__all__ = ["Batching", "choose_batching", "rows_are_independent"]

DEFAULT_MAX_BATCH = 8
#: runs the graph to find out whether its rows are independent
TRIAL_BACKEND = "onnxruntime-cpu"
#: microseconds that a request waits for others without a measurement: far less than a network's latency
DEFAULT_DELAY = 100


@dataclass(frozen=True)
class Batching:
    """How a server batches requests.

    Args:
        max_batch: Most rows that run together; 0 for a model without a batch dimension.
        preferred: Batch size that runs as soon as the queue holds that many rows.
        delay: Microseconds that a request may wait for others.
        reasons: Lines that explain the numbers.
        measured: Whether they come from a benchmark.
    """

    max_batch: int
    preferred: int | None = None
    delay: int = 0
    reasons: tuple[str, ...] = ()
    measured: bool = False


def rows_are_independent(bundle: Bundle) -> bool:
    """Return whether the first dimension of every input and output is a batch of any size whose rows do not depend on each other.

    Where ONNX Runtime can run the graph, a trial decides; else all of these dimensions must have the same name.
    """
    specs = (*bundle.inputs, *bundle.outputs)
    if not bundle.inputs or declared_reason(bundle.inputs, bundle.outputs) or any(isinstance(spec.batch, int) for spec in specs):
        return False
    reason = _trial_reason(bundle)
    return len({spec.batch for spec in specs}) == 1 if reason is None else not reason


def _trial_reason(bundle: Bundle) -> str | None:
    """Return why a trial shows that rows depend on each other, "" where they do not, None where the graph cannot be tried."""
    if not usable([TRIAL_BACKEND]):
        return None
    try:
        with closing(load(bundle, TRIAL_BACKEND)) as session:
            trial = RowTrial(session, integer_ranges(read_model(bundle.onnx)))
            reason = trial.reason()
            return reason if trial.has_run else None
    except TooLong:
        raise
    except ReluDeployError:
        return None


def choose_batching(
    bundle: Bundle, backends: Sequence[str], max_batch: int | None, max_delay: float | None, limit: int | None = None
) -> Batching:
    """Return the batching with the highest measured throughput.

    Args:
        bundle: The model.
        backends: The first one with measurements of the model counts.
        max_batch: Requested batch size, None to choose.
        max_delay: Requested delay in milliseconds, None to choose.
        limit: Most rows that an engine accepts.

    Raises:
        UsageError: If a batch is requested that the model or the engine does not support.
    """
    if not rows_are_independent(bundle):
        if max_batch is not None or max_delay:
            raise UsageError(
                f"{bundle.title} has no variable batch size of independent rows, so requests cannot run together",
                "leave out --max-batch and --max-delay",
            )
        return Batching(
            0, reasons=("Its inputs and outputs do not have one independent row each for a request: each request runs alone.",)
        )
    if limit is not None and max_batch is not None and max_batch > limit:
        raise UsageError(
            f"--max-batch {max_batch} is more than the {limit} rows that the engine was compiled for",
            "compile it with a larger --batch",
        )
    most = max_batch or limit
    delay = None if max_delay is None else round(max_delay * 1e3)
    name, rows = _measurements(bundle, backends, most)
    if len(rows) < 2:
        return _unmeasured(most, delay, rows)
    best = max(rows, key=lambda row: row["throughput"])
    figures = ", ".join(f"{row['throughput']:.0f} at batch {row['batch']}" for row in rows)
    reasons = [f"Measured with {name}: rows a second {figures}."]
    if delay is None:
        # Waiting longer than one run takes costs more latency than batching can save.
        delay = 0 if best["batch"] == 1 else round(rows[0]["latency_ms"]["p50"] * 1e3 / 2)
        reasons.append(
            "One row at a time was fastest, so requests do not wait for others."
            if best["batch"] == 1
            else f"A request waits for others at most half as long as the median run of batch {rows[0]['batch']} took."
        )
    largest = most or max(rows[-1]["batch"], DEFAULT_MAX_BATCH)
    return Batching(largest, best["batch"] if best["batch"] > 1 else None, delay, tuple(reasons), measured=True)


def _unmeasured(most: int | None, delay: int | None, rows: Sequence[Any]) -> Batching:
    why = "Only one batch size was measured" if rows else "Not measured"
    return Batching(
        most or DEFAULT_MAX_BATCH,
        None,
        DEFAULT_DELAY if delay is None else delay,
        (f"{why}: run relu-deploy bench with several --batch sizes on the machine that serves, and package the model again.",),
    )


def _measurements(bundle: Bundle, backends: Sequence[str], most: int | None) -> tuple[str, list[dict[str, Any]]]:
    """Return a description and the runs in reports/bench.json, smallest batch first, of the first backend that has some."""
    if not bundle.has_file("reports/bench.json"):
        return "", []
    file = bundle.file("reports/bench.json")
    try:
        report = read_report(file, "bench")
        usable = [run for run in report["runs"] if _is_usable(run, bundle, most)]
        where = report["environment"]
        chosen: list[dict[str, Any]] = next(
            (rows for name in backends if (rows := [run for run in usable if run["backend"] == name])), []
        )
        chosen = list({run["batch"]: run for run in sorted(chosen, key=lambda run: run["batch"])}.values())
        if not chosen:
            return "", []
        machine = ", ".join(gpu["name"] for gpu in where["gpus"]) if "cpu" not in chosen[0]["backend"] else where["cpu"]["model"]
        return f"{chosen[0]['backend']} on {machine or 'an unknown machine'}, {where['time'][:10]}", chosen
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is not a report of bench: {type(error).__name__}: {error}", "run relu-deploy bench again"
        ) from error


def _is_usable(run: dict[str, Any], bundle: Bundle, most: int | None) -> bool:
    """Return whether a run is of this model, within the batch limit, and gave right outputs."""
    return bool(
        run["model"] == bundle.name
        and run["variant"] == bundle.variant
        and not run["error"]
        and run["throughput"]
        and run["verified"] is not False
        and (most is None or run["batch"] <= most)
    )
