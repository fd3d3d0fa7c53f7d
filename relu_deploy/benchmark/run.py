"""The verb `bench`: measures models on several backends, and verifies and scores each measured session.

For each model and batch every backend has a process of its own (`worker.py`). All are loaded and warmed up, then measured in
rounds in rotating order, so that drift of the machine affects all equally. The measured time is that of one call of
`session.run` from NumPy arrays to NumPy arrays. On a GPU, kernel time, launches and copies are also measured separately
(`device.py`), and clocks are sampled meanwhile (`gpu_telemetry.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from relu_deploy.backends import capabilities, names, probe, require
from relu_deploy.backends.threads import ThreadCount, find_threads
from relu_deploy.benchmark.environment import describe
from relu_deploy.benchmark.gpu_limits import GpuLimits, calibrate_gpu
from relu_deploy.benchmark.process import RowProcesses
from relu_deploy.benchmark.result import BenchReport, Ratios, Run
from relu_deploy.benchmark.roofline import calibrate
from relu_deploy.benchmark.runner import BenchmarkPlan, Key, Timings, measure_rows
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, Unsupported, UsageError
from relu_deploy.latency_stats import ratio_of
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.tensors import fixed_batch

__all__ = ["BenchReport", "Ratios", "Run", "bench", "ratios_of"]


def bench(
    bundles: Bundle | str | os.PathLike[str] | Sequence[Bundle | str | os.PathLike[str]],
    backends: Sequence[str] | None = None,
    *,
    batch: int | Sequence[int] = (1,),
    seconds: float = 2.0,
    against: str | None = None,
    threads: int = 0,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    variants: Sequence[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    layers: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    row_done: Callable[[Run], None] = lambda _: None,
) -> BenchReport:
    """Measure each model on each backend at each batch size.

    Each variant in a bundle has its own row on the backends that it was made for, in addition to the model itself.

    Args:
        bundles: Models: bundles, or paths of bundles, of variants (only the variant is measured) or of ONNX files.
        backends: Names of backends, by default every usable one that is `compared_by_default`.
        batch: Batch sizes.
        seconds: Time of the timed runs of each row; on a GPU, device time is measured for as long again.
        against: Backend that ratios are relative to, by default the first one.
        threads: CPU threads, by default those of `threads.default_threads`.
        seed: Seed of the choice of inputs.
        settings: Fields of `backends.Options` for every session, such as tf32 or torch_mode.
        variants: Names of the variants to measure, instead of the model on their backends; None for the model and all variants.
        data: Data set for inputs and scores, by default that of each model.
        shapes: Shapes by input name, for inputs whose dimensions vary, as for `Bundle.with_shapes`.
        layers: Measure the time of each layer of the runtime too, by Relu segment.
        progress: Called with a line about the next step.
        row_done: Called with each row as soon as it is measured.

    Raises:
        BackendUnavailable: If a named backend is not usable here.
        InputError: If a model or the data cannot be used.
        Unsupported: If a named backend cannot run a model, or cannot report the times of its layers.
        UsageError: If an argument is invalid.
    """
    models = [
        Bundle.open(one, shapes).with_shapes(shapes or {})
        for one in ([bundles] if isinstance(bundles, Bundle | str | os.PathLike) else bundles)
    ]
    batches = [batch] if isinstance(batch, int) else list(batch)
    if not models or not batches or min(batches) < 1 or seconds <= 0:
        raise UsageError(
            "bench needs a model, batch sizes of at least 1 and a positive number of seconds", "see relu-deploy bench --help"
        )
    thread_count = ThreadCount(threads, "given") if threads else find_threads()
    threads = thread_count.count
    chosen, left_out = _choose(backends, models)
    if against is not None and against not in chosen:
        raise UsageError(f"--against {against} is not among the backends that run: {', '.join(chosen)}", "add it with --backend")
    if layers and backends is not None:
        _require_layer_times(chosen)
    progress("measuring the machine's limits")
    machine = calibrate(threads)
    settings = dict(settings or {})
    gpu = calibrate_gpu(int(settings.get("device", 0))) if any(capabilities(name).on_gpu for name in chosen) else None
    limits = gpu if isinstance(gpu, GpuLimits) else None
    environment = {
        **describe(thread_count),
        "limits": machine.to_json() if machine else None,
        "gpu_limits": limits.to_json() if limits else None if gpu is None else {"not_measured": gpu},
        "settings": settings,
        "seconds_per_row": seconds,
        "data": None if data is None else str(data),
        "seed": seed,
    }
    plan = BenchmarkPlan(
        chosen,
        seconds,
        threads,
        seed,
        backends is None,
        machine,
        limits,
        settings,
        variants,
        progress,
        None if data is None else str(data),
        thread_count.source == "given",
        layers,
        row_done,
    )
    runs: list[Run] = []
    ratios: list[Ratios] = []
    with temporary_folder("bench") as folder, closing(RowProcesses(threads, folder)) as started:
        for bundle in models:
            for size in _batches_of(bundle, batches):
                rows, timings = measure_rows(bundle, size, plan, started)
                runs += rows
                ratios += ratios_of(bundle, size, timings, against)
    return BenchReport(environment, runs, ratios, left_out)


def ratios_of(bundle: Bundle, batch: int, timings: Timings, against: str | None) -> list[Ratios]:
    """Return the relative speed of every row.

    Args:
        bundle: The model.
        batch: Rows in one run.
        timings: Timings of all rows.
        against: Backend whose first row the ratios are relative to, None for the first row.
    """
    base: Key | None = next((key for key in timings.calls if key.backend == (against or key.backend)), None)
    if base is None:
        return []
    found = []
    for key in timings.calls:
        if key != base:
            both = key in timings.device and base in timings.device
            device = ratio_of(timings.device[key], timings.device[base]) if both else None
            calls = ratio_of(timings.calls[key], timings.calls[base])
            found.append(Ratios(bundle.name, batch, key.backend, base.backend, calls, key.variant, device))
    return found


def _choose(backends: Sequence[str] | None, models: Sequence[Bundle]) -> tuple[list[str], dict[str, str]]:
    """Return the backends to run, and for the default choice the reason why each of the others is left out."""
    if backends is None:
        probes = [probe(name) for name in names() if capabilities(name).compared_by_default]
        left_out = {each.name: each.reason for each in probes if not each.usable}
        if all(bundle.source is None for bundle in models):
            without = f"{', '.join(bundle.title for bundle in models)}: no PyTorch program to run"
            left_out |= {each.name: without for each in probes if each.usable and capabilities(each.name).runs_program}
        return [each.name for each in probes if each.name not in left_out], left_out
    for name in backends:
        require(name)
    return list(dict.fromkeys(backends)), {}


def _require_layer_times(backends: Sequence[str]) -> None:
    """Raise Unsupported if a backend cannot report the times of its layers."""
    for name in backends:
        if not capabilities(name).times_layers:
            able = ", ".join(other for other in names() if capabilities(other).times_layers)
            raise Unsupported(f"{name} does not report the times of its layers", f"use --layers with --backend: {able}")


def _batches_of(bundle: Bundle, sizes: Sequence[int]) -> list[int]:
    fixed = fixed_batch(bundle.inputs) if bundle.inputs else 1
    if fixed is None:
        return list(sizes)
    if fixed not in sizes and list(sizes) != [1]:
        raise InputError(f"{bundle.name} was exported for batch {fixed} only", "export it with --batch dynamic")
    return [fixed]
