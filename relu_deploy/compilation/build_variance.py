"""Builds an engine several times, times and verifies each build, and keeps the fastest one that verifies.

TensorRT chooses kernels by timing them during the build, so identical commands give engines of different speed and different
rounding. The variation over several builds shows what to expect of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relu_deploy.backends import Session, require
from relu_deploy.backends.tensorrt.building.engine_cache import Engine, Warn, engine_for, folder_for, keep
from relu_deploy.backends.tensorrt.options import BuildOptions
from relu_deploy.bundle import Bundle, write_atomically
from relu_deploy.data.datasets import sample_feeds
from relu_deploy.errors import AccuracyTooLow, UsageError
from relu_deploy.graph import precision_of, read_model
from relu_deploy.latency_stats import Latency, summarize
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.tensors import Feeds
from relu_deploy.verification.judging.comparable import truth_of_outputs
from relu_deploy.verification.judging.judge import compare_outputs
from relu_deploy.verification.truth import Truth

__all__ = ["BuildTrial", "BuildVariance", "best_of"]

#: timed rounds of each engine and runs in each; the engines alternate, so that clock drift affects all of them equally
ROUNDS, RUNS = 10, 20
WARM_UP = 10

#: an engine → a session that runs it
Open = Callable[[Engine], Session]


@dataclass(frozen=True)
class BuildTrial:
    """One build.

    Attributes:
        build_seconds: Duration of the build.
        bytes: Size of the engine.
        sha256: Hash of the engine.
        latency: Time of a run from NumPy arrays to NumPy arrays.
        error_ratio: Largest error of an output, relative to the error that the precision explains.
        verified: Whether all outputs are within tolerance.
    """

    build_seconds: float
    bytes: int
    sha256: str
    latency: Latency
    error_ratio: float
    verified: bool

    def to_json(self) -> dict[str, Any]:
        """Return an entry of `builds`."""
        return {
            "build_seconds": self.build_seconds,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "latency_ms": self.latency.to_json(),
            "error_ratio": round(self.error_ratio, 4) if np.isfinite(self.error_ratio) else None,
            "verified": self.verified,
        }


@dataclass(frozen=True)
class BuildVariance:
    """The results of several builds.

    Attributes:
        trials: All builds.
        best: Index of the one that is kept: the lowest median latency of those that verify.
    """

    trials: Sequence[BuildTrial]
    best: int

    def to_json(self) -> dict[str, Any]:
        """Return the field `spread` of what `compile --json` writes."""
        medians = [trial.latency.p50 for trial in self.trials]
        return {
            "builds": [trial.to_json() for trial in self.trials],
            "best": self.best,
            "slowest_over_fastest": round(max(medians) / min(medians), 4),
            "distinct_plans": len({trial.sha256 for trial in self.trials}),
            "verified": sum(trial.verified for trial in self.trials),
        }


def best_of(
    name: str,
    bundle: Bundle,
    options: BuildOptions,
    times: int,
    *,
    device: int = 0,
    folder: Path | None = None,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
    warn: Warn = lambda _: None,
    opened: Open | None = None,
) -> tuple[Engine, BuildVariance]:
    """Build an engine several times and keep the best build.

    Args:
        name: Name of the backend.
        bundle: The model.
        options: Build options.
        times: Number of builds, at least 2.
        device: Index of the GPU.
        folder: Folder of the cache, by default that of the bundle.
        batch: Rows of the input that the builds are timed and verified on.
        progress: Called with (done, total) over all builds.
        warn: See `engine_for`.
        opened: Function that returns a session of an engine, by default on the GPU.

    Returns:
        The best engine, and the results of all builds.

    Raises:
        AccuracyTooLow: If no build verifies; the cache is not changed.
        BackendUnavailable: If engines cannot run here.
        UsageError: If `times` is below 2.
    """
    if times < 2:
        raise UsageError(f"a spread takes at least two builds, not {times}", "for instance --repeat 5")
    if opened is None:
        require(name)
        opened = _on_the_gpu(name, bundle, device)
    feeds, _ = sample_feeds(bundle, batch, 0)
    truth = _truth(bundle, feeds)
    with temporary_folder("builds") as places:
        engines: list[Engine] = []
        for number in range(times):
            part = None if progress is None else _part(progress, number, times)
            engines.append(
                engine_for(
                    name,
                    bundle,
                    options,
                    device=device,
                    folder=Path(places) / str(number),
                    rebuild=True,
                    progress=part,
                    warn=warn,
                )
            )
        trials = _tried(engines, opened, feeds, truth)
        sound = [number for number, trial in enumerate(trials) if trial.verified]
        if not sound:
            worst = min(trial.error_ratio for trial in trials)
            raise AccuracyTooLow(
                f"none of {times} engines of {bundle.title} verifies: the best error is {worst:.3g} times what its precision explains",
                "relu-deploy verify says where it differs",
            )
        best = min(sound, key=lambda number: trials[number].latency.p50)
        kept = keep(engines[best], folder or folder_for(bundle), warn)
        # With the same timings a later build, such as that of an observable engine, chooses the same kernels.
        for timing in engines[best].file.parent.glob("*.timing"):
            write_atomically(kept.file.parent / timing.name, timing.read_bytes(), follow=False)
    return kept, BuildVariance(trials, best)


def _tried(engines: Sequence[Engine], opened: Open, feeds: Feeds, truth: Truth) -> list[BuildTrial]:
    sessions = [opened(engine) for engine in engines]
    try:
        timings: list[list[list[float]]] = [[] for _ in sessions]
        for session in sessions:
            for _ in range(WARM_UP):
                session.run(feeds)
        for turn in range(ROUNDS):
            for number in (*range(turn % len(sessions), len(sessions)), *range(turn % len(sessions))):
                timings[number].append(_timed(sessions[number], feeds))
        return [
            _trial(engine.facts, summarize(times), session.run(feeds), truth)
            for engine, session, times in zip(engines, sessions, timings, strict=True)
        ]
    finally:
        for session in sessions:
            session.close()


def _timed(session: Session, feeds: Feeds) -> list[float]:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter_ns()
        session.run(feeds)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def _trial(facts: Mapping[str, Any], latency: Latency, outputs: Feeds, truth: Truth) -> BuildTrial:
    comparisons = list(compare_outputs(outputs, truth).values())
    return BuildTrial(
        build_seconds=facts["seconds"],
        bytes=facts["bytes"],
        sha256=facts["sha256"],
        latency=latency,
        error_ratio=max((comparison.error_ratio for comparison in comparisons), default=0.0),
        verified=all(comparison.passed for comparison in comparisons),
    )


def _truth(bundle: Bundle, feeds: Feeds) -> Truth:
    return truth_of_outputs(bundle, feeds, precision_of(read_model(bundle.onnx)))


def _part(progress: Callable[[int, int], None], number: int, times: int) -> Callable[[int, int], None]:
    return lambda done, total: progress(number * total + done, times * total)


def _on_the_gpu(name: str, bundle: Bundle, device: int) -> Open:
    from relu_deploy.backends.nvidia.cuda import Device
    from relu_deploy.backends.tensorrt.session import TensorRtSession

    gpu = Device(device)
    return lambda engine: TensorRtSession(name, bundle, engine, gpu)
