"""The worker process of a benchmark row: loads a model, warms up and times runs on command.

Each row has its own process, because thread pools of two runtimes would compete, because peak memory is a property of a process,
and so that a crash affects one row only. Commands and replies are lines of JSON on stdin and stdout; output of the runtime goes to
stderr.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from relu_deploy.backends import capabilities, load, probe
from relu_deploy.bundle import Bundle
from relu_deploy.data.arrays import load_npz, save_npz
from relu_deploy.data.datasets import load_dataset, several_feeds
from relu_deploy.tasks.metrics import score
from relu_deploy.tensors import Feeds
from relu_deploy.verification.tapping import arrays_of
from relu_deploy.worker_process import serve

if TYPE_CHECKING:
    from relu_deploy.backends.base import DeviceSession, ProfilingSession

#: number of different inputs that runs rotate through, so that caches do not hold the input of a run
ROTATION = 4
#: warm-up ends when the medians of two windows differ by less than this share
STABLE = 0.05
#: rows of one run while a model is scored
SCORED_ROWS = 16


class Worker:
    """Executes commands on one session. Each public method is a command and returns the reply."""

    def prepare(self, backend: str) -> dict[str, Any]:
        """Import the backend's runtime and what loading a model imports. Several workers do this concurrently."""
        started = time.perf_counter()
        probe(backend)
        for module in ("onnx_ir", *capabilities(backend).modules):
            with suppress(ImportError):  # private modules of a runtime, which another release may not have
                import_module(module)
        return {"import_seconds": time.perf_counter() - started}

    def prepare_model(self, name: str, path: str, threads: int) -> dict[str, Any]:
        """Write the bundle of a zoo model; the reply has `notes` on what it lacks."""
        from relu_deploy.benchmark.prepare_models import prepare_model

        lines: list[str] = []
        prepare_model(name, Path(path), lines.append, threads)
        return {"notes": [line for line in lines if "no int8 variant" in line]}

    def load(
        self,
        bundle: str,
        backend: str,
        threads: int,
        batch: int,
        seed: int,
        settings: Mapping[str, Any],
        data: str | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, Any]:
        """Load the model and run it once, with separate times for loading and the first run."""
        self.bundle = Bundle.open(bundle, shapes).with_shapes(shapes or {})
        self.batch, self.gpu = batch, int(settings.get("device", 0))
        self.data = data or self.bundle.manifest.get("dataset")
        self.feeds = [feeds for feeds, _ in several_feeds(self.bundle, batch, range(seed, seed + ROTATION), data)]
        self.backend, self.options = backend, {"threads": threads, **settings}
        ready = time.perf_counter()
        self.session = load(self.bundle, backend, **self.options)
        loaded = time.perf_counter()
        self.session.run(self.feeds[0])
        first = time.perf_counter()
        return {
            "load_seconds": loaded - ready,
            "first_run_seconds": first - loaded,
            "facts": dict(self.session.facts),
            "can_bind": hasattr(self.session, "bind"),
        }

    def bind(self) -> dict[str, Any]:
        """Bind the inputs to buffers on the GPU, and run each of them once."""
        from relu_deploy.benchmark.device import DeviceMeter

        self.meter = DeviceMeter(cast("DeviceSession", self.session), self.feeds, self.gpu)
        return {"bound": len(self.meter.bounds)}

    def device(self, seconds: float) -> dict[str, Any]:
        """Return times in milliseconds by kind; see `device.DeviceMeter.measure`."""
        return {"milliseconds": self.meter.measure(seconds)}

    def device_facts(self, batch: int, seconds: float) -> dict[str, Any]:
        """Return a description of the GPU and free its buffers; see `device.DeviceMeter.facts`."""
        facts = self.meter.facts(batch, seconds)
        self.meter.close()
        return facts

    def warm(self, seconds: float) -> dict[str, Any]:
        """Run until two windows of a quarter of `seconds` have medians within 5%, for at most `seconds` after the first."""
        deadline = time.perf_counter() + seconds
        before = None
        while True:
            window = self._timed(seconds / 4)
            median = float(np.median(window))
            if before is not None and abs(median - before) <= STABLE * before:
                return {"stable": True}
            if time.perf_counter() >= deadline:
                return {"stable": False}
            before = median

    def measure(self, seconds: float) -> dict[str, Any]:
        """Return the times of runs for `seconds` in milliseconds."""
        return {"milliseconds": self._timed(seconds)}

    def _rows_scored(self) -> int:
        """Return how many rows are scored in one run: `SCORED_ROWS` where the batch may vary, because many small runs are slower."""
        able = capabilities(self.backend)
        # Other sizes would be compiled anew.
        compiled = able.compiles_in_place or able.compiles_ahead or able.on_gpu
        varies = all(isinstance(spec.batch, str) for spec in self.bundle.inputs)
        return max(self.batch, SCORED_ROWS) if varies and not compiled else self.batch

    def layers(self, seconds: float) -> dict[str, Any]:
        """Return the times of the layers in runs for `seconds`, of another session that is profiled. The session ends."""
        self.session.close()
        self.session = load(self.bundle, self.backend, profile=True, **self.options)
        times = cast("ProfilingSession", self.session).time_layers(self.feeds, seconds)
        return {
            "layers": [layer.to_json() for layer in times.layers],
            "runs": times.runs,
            "call_milliseconds": times.call_milliseconds,
        }

    def _timed(self, seconds: float) -> list[float]:
        timings: list[float] = []
        clock, run = time.perf_counter_ns, self.session.run
        end = clock() + int(seconds * 1e9)
        for feeds in self._rotating():
            start = clock()
            run(feeds)
            stop = clock()
            timings.append((stop - start) / 1e6)
            if stop >= end:
                break
        return timings

    def _rotating(self) -> Iterator[Feeds]:
        while True:
            yield from self.feeds

    def outputs(self, feeds: str, results: str) -> dict[str, Any]:
        """Run on the arrays in the .npz file `feeds` and write the arrays among the outputs to the .npz file `results`."""
        save_npz(Path(results), arrays_of(self.session.run(load_npz(Path(feeds)))))
        return {}

    def memory(self) -> dict[str, Any]:
        """Return the largest resident memory of this process so far in bytes, None if the system does not report it."""
        # On Linux ru_maxrss is inherited from the parent process; VmHWM is not.
        status = Path("/proc/self/status")
        if status.exists():
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            return {"peak_bytes": int(fields["VmHWM"].split()[0]) * 1024}
        try:
            import resource
        except ImportError:  # Windows
            return {"peak_bytes": None}
        unit = 1 if sys.platform == "darwin" else 1024
        return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}

    def accuracy(self) -> dict[str, Any]:
        """Return the score of the session on the data set, None if there is none."""
        if not self.data:
            return {"accuracy": None}
        dataset = load_dataset(self.bundle, self.data)
        metric = score(self.bundle.manifest, self.session.run, dataset, self._rows_scored())
        return {"accuracy": metric.to_json() if metric else None}


if __name__ == "__main__":
    serve(Worker())
