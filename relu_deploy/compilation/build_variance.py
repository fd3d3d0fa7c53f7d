"""How much engines of one and the same build differ: N builds, each run, timed and verified, and the best of them kept.

TensorRT chooses kernels by timing them while it builds, so identical commands give engines of different speed and of
different rounding. What one build gave says little; the spread of several says what to expect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relu_deploy.backends import Session, require
from relu_deploy.backends.tensorrt.engine_cache import Engine, Warn, engine_for, folder_for, keep
from relu_deploy.backends.tensorrt.options import BuildOptions
from relu_deploy.bundle import Bundle, write_atomically
from relu_deploy.data.datasets import sample_feeds
from relu_deploy.errors import AccuracyTooLow, UsageError
from relu_deploy.folders import temporary_folder
from relu_deploy.graph import load_model, precision_of
from relu_deploy.latency_stats import Latency, summarize
from relu_deploy.tensors import Feeds
from relu_deploy.verification.judge import compare_outputs
from relu_deploy.verification.truth import Truth, choose_against, find_truth, open_source

__all__ = ["BuildTrial", "BuildVariance", "best_of"]

#: timed turns of each engine; the engines take turns, so that a clock that drifts hits all alike
ROUNDS, RUNS = 10, 20
WARM_UP = 10

#: an engine → a session that runs it
Open = Callable[[Engine], Session]


@dataclass(frozen=True)
class BuildTrial:
    """One build: how fast it answered end to end, and how its error compares with what its precision explains."""

    build_seconds: float
    bytes: int
    sha256: str
    latency: Latency
    error_ratio: float
    verified: bool

    def to_json(self) -> dict[str, Any]:
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
    """All builds, and which of them is kept: of those that verify the one with the lowest median."""

    trials: Sequence[BuildTrial]
    best: int

    def to_json(self) -> dict[str, Any]:
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
    """Return the best of `times` builds, which is then the one that is kept, and how they differ.

    batch: rows of the input that they are timed and verified on. opened: how an engine is run, by default on the GPU.
    Raises BackendUnavailable where engines cannot be run, AccuracyTooLow when none verifies: what was kept before stays.
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
        # With its timings a later build, such as the audit's twin, chooses the same kernels.
        for timing in engines[best].file.parent.glob("*.timing"):
            write_atomically(kept.file.parent / timing.name, timing.read_bytes())
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
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter_ns()
        session.run(feeds)
        taken.append((time.perf_counter_ns() - start) / 1e6)
    return taken


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
    against = choose_against(bundle, None)
    return find_truth(open_source(bundle, against, ()), feeds, precision_of(load_model(bundle.onnx)))


def _part(progress: Callable[[int, int], None], number: int, times: int) -> Callable[[int, int], None]:
    return lambda done, total: progress(number * total + done, times * total)


def _on_the_gpu(name: str, bundle: Bundle, device: int) -> Open:
    from relu_deploy.backends.nvidia.cuda import Device
    from relu_deploy.backends.tensorrt.session import TensorRtSession

    gpu = Device(device)
    return lambda engine: TensorRtSession(name, bundle, engine, gpu)
