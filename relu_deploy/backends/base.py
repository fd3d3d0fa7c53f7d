"""What every backend looks like from outside."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from relu_deploy.graph.relus import Relu
from relu_deploy.tensors import Feeds, TensorSpec

__all__ = ["Options", "Probe", "Session", "default_threads", "rounding_noise"]


def default_threads() -> int:
    """Return how many CPUs this process may use: what a backend takes when no thread count is given."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Probe:
    """Whether a backend is usable here. reason and fix are set when it is not; device says what it would run on."""

    name: str
    usable: bool
    version: str = ""
    device: str = ""
    reason: str = ""
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "usable": self.usable,
            "version": self.version,
            "device": self.device,
            "reason": self.reason,
            "fix": self.fix,
        }


@dataclass(frozen=True)
class Options:
    """How to load a model.

    threads: CPU threads inside one operator; 0 takes every CPU this process may use. device: index of the GPU.
    taps: Relus whose outputs `run` returns beside the model's own, under their tensors' names.
    precision: of the arithmetic, "float32" or "float64"; only `reference` and `torch` know the latter.
    rounding_seed: with float64, multiply every weight and every result by 1 + d, d uniform in ±2^-24: what rounding to
        float32 does to this graph, whatever the order of summation (Monte Carlo arithmetic: D. Stott Parker, 1997).
    optimized: False turns off the runtime's own graph rewriting where it has a switch.
    """

    threads: int = 0
    device: int = 0
    taps: tuple[Relu, ...] = ()
    precision: str = "float32"
    rounding_seed: int | None = None
    optimized: bool = True

    @property
    def thread_count(self) -> int:
        return self.threads or default_threads()


#: unit roundoff of float32, rounding to nearest
FLOAT32_ROUNDOFF = 2.0**-24


def rounding_noise(seed: int) -> Callable[[Any], Any]:
    """Return a function that multiplies a float64 array by 1 + d, d uniform in ±2^-24, and passes on anything else."""
    generator = np.random.default_rng(seed)

    def noisy(value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype != np.float64:
            return value
        return value * (1 + generator.uniform(-FLOAT32_ROUNDOFF, FLOAT32_ROUNDOFF, value.shape))

    return noisy


class Session(Protocol):
    """A model that is loaded and ready.

    facts: what the runtime really does, read back from it: device, execution providers, precision, threads.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        """Return every output (and tap) for `feeds`. Raises InputError when the feeds do not fit `inputs`."""
        ...

    def close(self) -> None: ...
