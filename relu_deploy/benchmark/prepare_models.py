"""Exports, verifies and quantizes the zoo models that `bench` is given by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue

import relu_deploy.errors
from relu_deploy.backends import usable
from relu_deploy.backends.threads import find_threads
from relu_deploy.benchmark.prepared_cache import keep_bundle, take_bundle
from relu_deploy.benchmark.process import Process
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, ReluDeployError
from relu_deploy.exporting.exporter import export_source
from relu_deploy.optimization.run import optimize
from relu_deploy.paths import cache_folder
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.verification.run import verify
from relu_deploy.zoo.recipes import recipe, recipes

__all__ = ["QUICK", "bundles_for", "prepare_model"]

#: the model of `bench --quick`
QUICK = "digits"
#: backend that zoo models are verified and calibrated on
BACKEND = "onnxruntime-cpu"
#: processes that prepare models at once: each imports PyTorch, which takes about a gigabyte
MOST_PROCESSES = 2

Progress = Callable[[str], None]


@contextmanager
def bundles_for(paths: Sequence[str], progress: Progress) -> Iterator[list[Path]]:
    """Yield a bundle for each of `paths`; with no path, for every zoo model that has weights.

    Zoo names are exported into a temporary folder and every Relu is verified on ONNX Runtime before anything is timed. Models
    with a data set of their own get an int8 variant for CPUs. What was prepared on this machine before, from the same code, weights
    and libraries, is taken from the cache. Several models are prepared in processes of their own, as many at once as there are
    processors, up to `MOST_PROCESSES`.

    Raises:
        InputError: If a shipped model does not verify.
    """
    trained = sorted((known for known in recipes().values() if known.weights), key=lambda known: known.parameters)
    names = list(paths) or [known.name for known in trained]
    with temporary_folder("bench") as folder:
        targets = {name: Path(folder) / f"{name}.rdb" for name in names if not Path(name).exists() and name in recipes()}
        missing = {name: path for name, path in targets.items() if not _taken(name, path, progress)}
        if len(missing) == 1:
            for name, path in missing.items():
                prepare_model(name, path, progress)
        elif missing:
            _prepare_concurrently(missing, progress)
        for name, path in missing.items():
            _keep(name, path, progress)
        yield [targets.get(name, Path(name)) for name in names]


def _taken(name: str, path: Path, progress: Progress) -> bool:
    """Copy the bundle of a model from the cache to `path` if there is one. Return whether there was."""
    made = take_bundle(name, path)
    if made:
        progress(f"{name}: exported, verified and quantized at {made}, taken from {cache_folder('bench')}")
    return bool(made)


def _keep(name: str, path: Path, progress: Progress) -> None:
    """Put the bundle of a model into the cache, unless it lacks a variant that another environment may be able to make."""
    if recipe(name).dataset and not Bundle.open(path).manifest.get("variants"):
        return
    try:
        keep_bundle(name, path)
    except InputError as error:
        progress(f"{name}: not kept for later benchmarks: {error.message}")


def prepare_model(name: str, path: Path, progress: Progress, threads: int = 0) -> None:
    """Write the bundle of a zoo model, verified and with an int8 variant where it has calibration data.

    Args:
        name: Name of the model.
        path: The bundle to make.
        progress: Called with a line about the next step.
        threads: CPU threads of the runtime; 0 takes its default.

    Raises:
        InputError: If the model does not verify.
    """
    known = recipe(name)
    progress(f"{name}: exporting")
    bundle = export_source(name, path).bundle
    if not usable([BACKEND]):
        return
    progress(f"{name}: verifying every Relu on {BACKEND}")
    report = verify(bundle, [BACKEND], threads=threads)
    if not report.passed:
        raise InputError(
            f"{name} differs from PyTorch on {BACKEND}, first at {report.first_divergence}",
            f"see it with: relu-deploy export {name} -o {name}.rdb && relu-deploy verify {name}.rdb",
        )
    if known.dataset and known.weights:
        _quantize(bundle, known.dataset, progress, threads)


def _quantize(bundle: Bundle, dataset: str, progress: Progress, threads: int) -> None:
    """Add an int8 variant for CPUs to `bundle`; if it loses too much accuracy, report that and add none."""
    progress(f"{bundle.name}: quantizing to int8")
    try:
        # The benchmark measures its speed.
        optimize(bundle, "cpu", "int8", calibration=dataset, threads=threads, measure_speed=False)
    except ReluDeployError as error:
        progress(f"{bundle.name}: no int8 variant: {error.message}")


def _prepare_concurrently(targets: dict[str, Path], progress: Progress) -> None:
    """Prepare the models in `targets`, paths by name, each process one after the other, the largest model first."""
    available = find_threads().count
    count = min(len(targets), MOST_PROCESSES, available)
    waiting: SimpleQueue[str] = SimpleQueue()
    for name in sorted(targets, key=lambda name: -recipe(name).parameters):
        waiting.put(name)

    def work() -> None:
        threads = max(1, available // count)
        with closing(Process(threads)) as process:
            while not waiting.empty():
                name = waiting.get()
                started = time.monotonic()
                progress(f"{name}: exporting, verifying, quantizing")
                reply = process.request("prepare_model", name=name, path=str(targets[name]), threads=threads)
                if "error" in reply:
                    kind = getattr(relu_deploy.errors, reply.get("kind", ""), InputError)
                    raise kind(reply["error"], reply["hint"])
                for note in reply["notes"]:
                    progress(note)
                progress(f"{name}: prepared in {time.monotonic() - started:.1f} s")

    progress(f"preparing {len(targets)} models, {count} at a time")
    with ThreadPoolExecutor(count) as pool:
        for running in [pool.submit(work) for _ in range(count)]:
            running.result()
