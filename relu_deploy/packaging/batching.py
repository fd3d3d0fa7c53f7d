"""How many rows a server runs together and how long a request may wait for others: read off measurements where there are some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, UsageError

__all__ = ["Batching", "batching_for", "rows_are_independent"]

DEFAULT_MAX_BATCH = 8
#: microseconds that a request waits for others where nothing was measured: far below what any network takes
DEFAULT_DELAY = 100


@dataclass(frozen=True)
class Batching:
    """max_batch: 0 for a model whose first dimension is no batch. preferred: rows that are run at once when there are so many.

    delay: microseconds. why: lines that say where the numbers come from. measured: they come from a benchmark.
    """

    max_batch: int
    preferred: int | None = None
    delay: int = 0
    why: tuple[str, ...] = ()
    measured: bool = False


def rows_are_independent(bundle: Bundle) -> bool:
    """Return whether the first dimension of every input and output is one and the same batch that may vary."""
    specs = (*bundle.inputs, *bundle.outputs)
    first = bundle.inputs[0].batch if bundle.inputs else None
    return isinstance(first, str) and all(spec.batch == first for spec in specs)


def batching_for(
    bundle: Bundle, backends: Sequence[str], max_batch: int | None, max_delay: float | None, limit: int | None = None
) -> Batching:
    """Return how `bundle` is best batched on the first of `backends` that `bench` measured it on.

    max_batch, max_delay (milliseconds): what was asked for, None to choose. limit: most rows that an engine takes.
    Raises UsageError for a batch that the model has not.
    """
    if not rows_are_independent(bundle):
        if max_batch is not None or max_delay:
            raise UsageError(
                f"{bundle.title} has no batch that varies: requests cannot be run together",
                "leave out --max-batch and --max-delay",
            )
        return Batching(0, why=("Its inputs and outputs share no first dimension that varies: each request runs alone.",))
    if limit is not None and max_batch is not None and max_batch > limit:
        raise UsageError(
            f"--max-batch {max_batch} is more than the {limit} rows that the engine was compiled for", "compile it for more"
        )
    most = max_batch or limit
    delay = None if max_delay is None else round(max_delay * 1e3)
    name, rows = _measured(bundle, backends, most)
    if len(rows) < 2:
        return _unmeasured(most, delay, rows)
    best = max(rows, key=lambda row: row["throughput"])
    told = ", ".join(f"{row['throughput']:.0f} at batch {row['batch']}" for row in rows)
    why = [f"Measured with {name}: rows a second {told}."]
    if delay is None:
        # A request that waits longer than its own run takes loses more than any batch gives back.
        delay = 0 if best["batch"] == 1 else round(rows[0]["latency_ms"]["p50"] * 1e3 / 2)
        why.append(
            "One row at a time was fastest, so nothing is waited for."
            if best["batch"] == 1
            else f"A request waits for others at most half as long as the median run of batch {rows[0]['batch']} took."
        )
    largest = most or max(rows[-1]["batch"], DEFAULT_MAX_BATCH)
    return Batching(largest, best["batch"] if best["batch"] > 1 else None, delay, tuple(why), measured=True)


def _unmeasured(most: int | None, delay: int | None, rows: Sequence[Any]) -> Batching:
    why = "Only one batch size was measured" if rows else "Not measured"
    return Batching(
        most or DEFAULT_MAX_BATCH,
        None,
        DEFAULT_DELAY if delay is None else delay,
        (f"{why}: run relu-deploy bench with several --batch sizes on the machine that serves, and package the model again.",),
    )


def _measured(bundle: Bundle, backends: Sequence[str], most: int | None) -> tuple[str, list[dict[str, Any]]]:
    """Return the machine and the rows of reports/bench.json, smallest batch first, of the first backend that has some."""
    if not bundle.has_file("reports/bench.json"):
        return "", []
    file = bundle.file("reports/bench.json")
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        fitting = [run for run in report["runs"] if _counts(run, bundle, most)]
        where = report["environment"]
        chosen: list[dict[str, Any]] = next(
            (rows for name in backends if (rows := [run for run in fitting if run["backend"] == name])), []
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


def _counts(run: dict[str, Any], bundle: Bundle, most: int | None) -> bool:
    """Return whether a row of the report is of this very model, ran, and was right."""
    return bool(
        run["model"] == bundle.name
        and run["variant"] == bundle.variant
        and not run["error"]
        and run["throughput"]
        and run["verified"] is not False
        and (most is None or run["batch"] <= most)
    )
