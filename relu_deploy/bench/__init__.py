"""Benchmarks that say what they measured: interleaved, with intervals, beside the accuracy and the verdict of the very session.

For each model and batch every backend gets a process of its own (`worker.py`). All are loaded and warmed up, then take
turns in rounds whose order rotates, so that drift of the machine hits all alike. What is timed is one call of
`session.run` from NumPy arrays to NumPy arrays, which is what a caller waits for.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relu_deploy.backends import BACKENDS, probe, require, usable
from relu_deploy.backends.base import default_threads
from relu_deploy.bench.environment import describe
from relu_deploy.bench.measure import Latency, Ratio, ratio_of, summarise
from relu_deploy.bench.roofline import Machine, calibrate, share_of_limit
from relu_deploy.bundle import Bundle
from relu_deploy.data import sample_feeds
from relu_deploy.errors import InputError, Unsupported, UsageError
from relu_deploy.graph import count_cost, load_model, precision_of
from relu_deploy.verify import compare_outputs
from relu_deploy.verify.truth import Truth, choose_against, find_truth, open_source

__all__ = ["BenchReport", "Ratios", "Run", "bench"]

ROUNDS = 10
#: a fallback of the reference kind is far too slow to stand in a table beside runtimes unless it is asked for
NOT_BY_DEFAULT = ("reference",)
WARM_UP_SECONDS = 2.0


@dataclass(frozen=True)
class Run:
    """One row: a model on a backend at a batch size. error: why there is nothing else in it, "" when it ran."""

    model: str
    backend: str
    batch: int
    precision: str = "float32"
    latency: Latency | None = None
    throughput: float | None = None
    peak_bytes: int | None = None
    load_seconds: float | None = None
    first_run_seconds: float | None = None
    warmed_up: bool | None = None
    accuracy: Mapping[str, Any] | None = None
    roofline: Mapping[str, Any] | None = None
    verified: bool | None = None
    error_ratio: float | None = None
    facts: Mapping[str, Any] | None = None
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "backend": self.backend,
            "precision": self.precision,
            "batch": self.batch,
            "latency_ms": self.latency.to_json() if self.latency else None,
            "throughput": None if self.throughput is None else round(self.throughput, 3),
            "peak_bytes": self.peak_bytes,
            "load_seconds": _rounded(self.load_seconds),
            "first_run_seconds": _rounded(self.first_run_seconds),
            "warmed_up": self.warmed_up,
            "accuracy": self.accuracy,
            "roofline": self.roofline,
            "verified": self.verified,
            "error_ratio": _rounded(self.error_ratio),
            "facts": dict(self.facts or {}),
            "error": self.error,
        }


@dataclass(frozen=True)
class Ratios:
    """How many times faster `backend` ran than `against`, on one model at one batch size."""

    model: str
    batch: int
    backend: str
    against: str
    ratio: Ratio

    def to_json(self) -> dict[str, Any]:
        ci95 = None if self.ratio.ci95 is None else [round(bound, 4) for bound in self.ratio.ci95]
        return {
            "model": self.model,
            "batch": self.batch,
            "backend": self.backend,
            "against": self.against,
            "speedup": round(self.ratio.value, 4),
            "ci95": ci95,
        }


@dataclass(frozen=True)
class BenchReport:
    """Everything that was measured. passed: every row ran and gave the answers that the truth gives."""

    environment: Mapping[str, Any]
    runs: Sequence[Run]
    ratios: Sequence[Ratios]
    left_out: Mapping[str, str]

    @property
    def passed(self) -> bool:
        return all(run.verified is not False and not run.error for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "relu-deploy/bench/1",
            "passed": self.passed,
            "environment": dict(self.environment),
            "runs": [run.to_json() for run in self.runs],
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "left_out": dict(self.left_out),
        }


def bench(
    bundles: Bundle | str | os.PathLike[str] | Sequence[Bundle | str | os.PathLike[str]],
    backends: Sequence[str] | None = None,
    *,
    batch: int | Sequence[int] = (1,),
    seconds: float = 2.0,
    against: str | None = None,
    threads: int = 0,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Return the benchmark of each model on each backend at each batch size.

    backends: by default every usable one but `reference`. seconds: of timed runs for each row. against: the backend that
    ratios are taken against, by default the first one. threads: CPU threads, by default every CPU this process may use.
    progress: called with a line about what happens next.
    Raises BackendUnavailable for a backend that was asked for by name, UsageError and InputError for bad arguments.
    """
    models = [Bundle.open(one) for one in ([bundles] if isinstance(bundles, Bundle | str | os.PathLike) else bundles)]
    batches = [batch] if isinstance(batch, int) else list(batch)
    if not models or not batches or min(batches) < 1 or seconds <= 0:
        raise UsageError(
            "bench needs a model, batch sizes of at least 1 and a positive number of seconds", "see relu-deploy bench --help"
        )
    threads = threads or default_threads()
    names, left_out = _choose(backends)
    if against is not None and against not in names:
        raise UsageError(f"--against {against} is not among the backends that run: {', '.join(names)}", "add it with --backend")
    progress("measuring the machine's limits")
    machine = calibrate(threads)
    environment = {
        **describe(threads),
        "limits": machine.to_json() if machine else None,
        "seconds_per_row": seconds,
        "seed": seed,
    }
    runs: list[Run] = []
    ratios: list[Ratios] = []
    for bundle in models:
        for size in _batches_of(bundle, batches):
            rows, timings = _measure(bundle, names, size, seconds, threads, seed, backends is None, machine, progress)
            runs += rows
            base = against or next((name for name in names if name in timings), "")
            ratios += [
                Ratios(bundle.name, size, name, base, ratio_of(timings[name], timings[base]))
                for name in timings
                if base in timings and name != base
            ]
    return BenchReport(environment, runs, ratios, left_out)


def _choose(backends: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return the backends to run and, where the choice is ours, why each of the others is left out."""
    if backends is None:
        candidates = [name for name in BACKENDS if name not in NOT_BY_DEFAULT]
        names = usable(candidates)
        return names, {name: probe(name).reason for name in candidates if name not in names}
    for name in backends:
        require(name)
    return list(dict.fromkeys(backends)), {}


def _batches_of(bundle: Bundle, wanted: Sequence[int]) -> list[int]:
    fixed = bundle.inputs[0].batch
    if not isinstance(fixed, int):
        return list(wanted)
    if fixed not in wanted and list(wanted) != [1]:
        raise InputError(f"{bundle.name} was exported for batch {fixed} only", "export it with --batch dynamic")
    return [fixed]


def _measure(
    bundle: Bundle,
    names: Sequence[str],
    batch: int,
    seconds: float,
    threads: int,
    seed: int,
    may_skip: bool,
    machine: Machine | None,
    progress: Callable[[str], None],
) -> tuple[list[Run], dict[str, list[list[float]]]]:
    what = f"{bundle.name}, batch {batch}"
    progress(f"{what}: the right answers in float64")
    # The workers import their runtimes while the truth is worked out; nothing is timed yet.
    processes = {name: Process(threads) for name in names}
    loaded: dict[str, dict[str, Any]] = {}
    rows: dict[str, Run] = {}
    timings: dict[str, list[list[float]]] = {}
    try:
        for name, process in processes.items():
            process.tell("prepare", backend=name)
        feeds, _ = sample_feeds(bundle, batch, seed)
        against = choose_against(bundle, None)
        truth = find_truth(open_source(bundle, against, (), threads), against, feeds, precision_of(load_model(bundle.onnx)))
        cost = count_cost(load_model(bundle.onnx), batch)
        for process in processes.values():
            process.hear("prepare")
        for name in names:
            progress(f"{what}: loading {name}")
            process = processes[name]
            reply = process.ask("load", bundle=str(bundle.path), backend=name, threads=threads, batch=batch, seed=seed)
            if "error" in reply:
                if not may_skip:
                    raise Unsupported(f"{name} cannot run {bundle.name}: {reply['error']}", reply["hint"] or "leave it out")
                rows[name] = Run(bundle.name, name, batch, error=reply["error"])
                process.close()
                continue
            loaded[name] = reply
        for name in loaded:
            progress(f"{what}: warming up {name}")
            loaded[name] |= processes[name].get("warm", seconds=WARM_UP_SECONDS)
        timings = {name: [] for name in loaded}
        order = list(loaded)
        for turn in range(ROUNDS):
            progress(f"{what}: round {turn + 1} of {ROUNDS}")
            for name in (*order[turn % len(order) :], *order[: turn % len(order)]) if order else ():
                timings[name].append(processes[name].get("measure", seconds=seconds / ROUNDS)["milliseconds"])
        for name, known in loaded.items():
            progress(f"{what}: checking the answers of {name}")
            facts = known | processes[name].ask("memory")
            facts |= _checked(processes[name], feeds, truth) | processes[name].ask("accuracy")
            rows[name] = _row(bundle.name, name, batch, summarise(timings[name]), facts, cost, machine)
    finally:
        for process in processes.values():
            process.close()
    return [rows[name] for name in names if name in rows], timings


def _row(
    model: str, name: str, batch: int, latency: Latency, facts: Mapping[str, Any], cost: Any, machine: Machine | None
) -> Run:
    return Run(
        model=model,
        backend=name,
        batch=batch,
        precision=facts["facts"].get("precision", "float32"),
        latency=latency,
        throughput=batch / latency.mean * 1e3,
        peak_bytes=facts["peak_bytes"],
        load_seconds=facts["load_seconds"],
        first_run_seconds=facts["first_run_seconds"],
        warmed_up=facts["stable"],
        accuracy=facts.get("accuracy"),
        roofline=share_of_limit(cost, latency.mean / 1e3, machine) if not name.endswith("cuda") else None,
        verified=facts["verified"],
        error_ratio=facts["error_ratio"],
        facts=facts["facts"],
        error=facts.get("error", ""),
    )


def _checked(process: Process, feeds: Mapping[str, Any], truth: Truth) -> dict[str, Any]:
    """Return the verdict on the answers that the measured session itself gives."""
    with tempfile.TemporaryDirectory() as folder:
        given, results = Path(folder) / "feeds.npz", Path(folder) / "outputs.npz"
        np.savez(given, **feeds)  # type: ignore[arg-type]
        reply = process.ask("outputs", feeds=str(given), results=str(results))
        if "error" in reply:
            return {"verified": False, "error_ratio": None, "error": reply["error"]}
        with np.load(results) as archive:
            comparisons = compare_outputs({name: archive[name] for name in archive.files}, truth).values()
    ratios = [comparison.error_ratio for comparison in comparisons]
    return {"verified": all(comparison.passed for comparison in comparisons), "error_ratio": max(ratios, default=None)}


class Process:
    """A worker process, spoken to in lines of JSON."""

    def __init__(self, threads: int) -> None:
        limited = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "relu_deploy.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **limited},
        )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Return the worker's answer; a worker that died answers with an error."""
        self.tell(command, **arguments)
        return self.hear(command)

    def get(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Return the worker's answer. Raises Unsupported when it is an error: nothing can be measured then."""
        answer = self.ask(command, **arguments)
        if "error" in answer:
            raise Unsupported(f"a benchmark process failed: {answer['error']}", answer["hint"] or "leave that backend out")
        return answer

    def tell(self, command: str, **arguments: Any) -> None:
        """Send a command whose answer `hear` will return."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer will tell
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._process.stdin.flush()

    def hear(self, command: str) -> dict[str, Any]:
        """Return the answer to the oldest command that has none yet; `command` is what to call it in an error."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"error": f"its process ended with exit code {self._process.wait(10)} during {command!r}", "hint": ""}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the worker, by force when it does not end by itself."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 4)
