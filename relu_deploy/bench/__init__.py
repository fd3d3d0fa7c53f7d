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
from typing import Any, NamedTuple

import numpy as np

from relu_deploy.backends import BACKENDS, probe, require, usable
from relu_deploy.backends.base import default_threads
from relu_deploy.bench.environment import describe
from relu_deploy.bench.roofline import Machine, calibrate, share_of_limit
from relu_deploy.bundle import Bundle
from relu_deploy.data import sample_feeds
from relu_deploy.errors import InputError, Unsupported, UsageError
from relu_deploy.graph import count_cost, load_model, precision_of
from relu_deploy.measure import Latency, Ratio, ratio_of, summarise
from relu_deploy.optimize.targets import find_target
from relu_deploy.tensors import Feeds
from relu_deploy.verify import compare_outputs
from relu_deploy.verify.truth import Truth, choose_against, find_truth, open_source

__all__ = ["BenchReport", "Ratios", "Run", "bench"]

ROUNDS = 10
#: a fallback of the reference kind is far too slow to stand in a table beside runtimes unless it is asked for
NOT_BY_DEFAULT = ("reference",)
WARM_UP_SECONDS = 2.0


@dataclass(frozen=True)
class Run:
    """One row: a model, or a variant of it, on a backend at a batch size. error: why there is nothing else in it, "" when it ran."""

    model: str
    backend: str
    batch: int
    variant: str = ""
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
            "variant": self.variant,
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
    """How many times faster `backend` ran (a variant of) one model at one batch size than `against` ran the model itself."""

    model: str
    batch: int
    backend: str
    against: str
    ratio: Ratio
    variant: str = ""

    def to_json(self) -> dict[str, Any]:
        ci95 = None if self.ratio.ci95 is None else [round(bound, 4) for bound in self.ratio.ci95]
        return {
            "model": self.model,
            "batch": self.batch,
            "backend": self.backend,
            "variant": self.variant,
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

    Each variant in a bundle is a row of its own on the backend that it was made for, beside the model itself; a path to a
    variant measures that one alone. backends: by default every usable one but `reference`. seconds: of timed runs for each row. against: the backend that
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
            base = next((key for key in timings if key.backend == (against or key.backend)), None)
            ratios += [
                Ratios(bundle.name, size, key.backend, base.backend, ratio_of(timings[key], timings[base]), key.variant)
                for key in timings
                if base is not None and key != base
            ]
    return BenchReport(environment, runs, ratios, left_out)


class _Key(NamedTuple):
    """What a row is of: a backend, and a variant of the model or "" for the model itself."""

    backend: str
    variant: str

    def __str__(self) -> str:
        return " ".join(self).strip()


def _keys(bundle: Bundle, names: Sequence[str]) -> list[_Key]:
    """Return the rows of `bundle` on the backends `names`: the model on each, its variants where they belong."""
    if bundle.variant:
        return [_Key(name, bundle.variant) for name in names]
    keys = []
    for name in names:
        mine = [one for one, facts in bundle.manifest["variants"].items() if find_target(facts["target"]).backend == name]
        keys += [_Key(name, variant) for variant in ("", *mine)]
    return keys


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
) -> tuple[list[Run], dict[_Key, list[list[float]]]]:
    what = f"{bundle.title}, batch {batch}"
    progress(f"{what}: the right answers in float64")
    keys = _keys(bundle, names)
    graphs = {key: bundle.with_variant(key.variant) if key.variant else bundle for key in keys}
    # The workers import their runtimes while the truth is worked out; nothing is timed yet.
    processes = {key: Process(threads) for key in keys}
    loaded: dict[_Key, dict[str, Any]] = {}
    rows: dict[_Key, Run] = {}
    timings: dict[_Key, list[list[float]]] = {}
    try:
        for key, process in processes.items():
            process.tell("prepare", backend=key.backend)
        feeds, _ = sample_feeds(bundle, batch, seed)
        truths = {key.variant: _truth(graphs[key], feeds, threads) for key in {key.variant: key for key in keys}.values()}
        cost = count_cost(load_model(bundle.onnx), batch)
        for process in processes.values():
            process.hear("prepare")
        for key in keys:
            progress(f"{what}: loading {key}")
            process, path = processes[key], graphs[key].onnx if key.variant else bundle.path
            reply = process.ask("load", bundle=str(path), backend=key.backend, threads=threads, batch=batch, seed=seed)
            if "error" in reply:
                if not may_skip:
                    raise Unsupported(f"{key} cannot run {bundle.name}: {reply['error']}", reply["hint"] or "leave it out")
                rows[key] = Run(bundle.name, key.backend, batch, key.variant, error=reply["error"])
                process.close()
                continue
            loaded[key] = reply
        for key in loaded:
            progress(f"{what}: warming up {key}")
            loaded[key] |= processes[key].get("warm", seconds=WARM_UP_SECONDS)
        timings = {key: [] for key in loaded}
        order = list(loaded)
        for turn in range(ROUNDS):
            progress(f"{what}: round {turn + 1} of {ROUNDS}")
            for key in (*order[turn % len(order) :], *order[: turn % len(order)]) if order else ():
                timings[key].append(processes[key].get("measure", seconds=seconds / ROUNDS)["milliseconds"])
        for key, known in loaded.items():
            progress(f"{what}: checking the answers of {key}")
            facts = known | processes[key].ask("memory")
            facts |= _checked(processes[key], feeds, truths[key.variant]) | processes[key].ask("accuracy")
            rows[key] = _row(graphs[key], key.backend, batch, summarise(timings[key]), facts, cost, machine)
    finally:
        for process in processes.values():
            process.close()
    return [rows[key] for key in keys if key in rows], timings


def _truth(bundle: Bundle, feeds: Feeds, threads: int) -> Truth:
    """Return the outputs in float64; for a variant of the float32 graph that it was made of, in its own precision's noise."""
    against = choose_against(bundle, None)
    return find_truth(open_source(bundle, against, (), threads), against, feeds, precision_of(load_model(bundle.onnx)))


def _row(
    bundle: Bundle, name: str, batch: int, latency: Latency, facts: Mapping[str, Any], cost: Any, machine: Machine | None
) -> Run:
    precision = precision_of(load_model(bundle.onnx)) if bundle.variant else facts["facts"].get("precision", "float32")
    # The machine's limit was measured in float32: another precision has another one.
    comparable = precision == "float32" and not name.endswith("cuda")
    return Run(
        model=bundle.name,
        backend=name,
        batch=batch,
        variant=bundle.variant,
        precision=precision,
        latency=latency,
        throughput=batch / latency.mean * 1e3,
        peak_bytes=facts["peak_bytes"],
        load_seconds=facts["load_seconds"],
        first_run_seconds=facts["first_run_seconds"],
        warmed_up=facts["stable"],
        accuracy=facts.get("accuracy"),
        roofline=share_of_limit(cost, latency.mean / 1e3, machine) if comparable else None,
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
