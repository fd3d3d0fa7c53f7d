"""Measures the rows of one model at one batch size, with a process for each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from relu_deploy.backends import capabilities, stored_settings
from relu_deploy.backends.layer_times import LayerTime, LayerTimes
from relu_deploy.benchmark.gpu_limits import GpuLimits, share_of_gpu_limit
from relu_deploy.benchmark.layers import profile_by_segment
from relu_deploy.benchmark.process import RowProcesses
from relu_deploy.benchmark.result import Run
from relu_deploy.benchmark.roofline import Machine, share_of_limit
from relu_deploy.bundle import Bundle
from relu_deploy.data.arrays import load_npz, save_npz
from relu_deploy.data.datasets import sample_feeds
from relu_deploy.errors import NothingToVerify, Unsupported
from relu_deploy.graph import Cost, count_cost, precision_of, read_model
from relu_deploy.latency_stats import summarize
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.tensors import Feeds, count_rows, row_axes, take_rows
from relu_deploy.verification.judging.comparable import truth_of_outputs
from relu_deploy.verification.judging.judge import compare_outputs
from relu_deploy.verification.truth import Truth
from relu_deploy.worker_process import WorkerProcess

__all__ = ["BenchmarkPlan", "Key", "Timings", "measure_rows"]

ROUNDS = 10
WARM_UP_SECONDS = 2.0
#: rows of a batch that are compared with the truth, which is slow to compute in float64
CHECKED_ROWS = 8


@dataclass(frozen=True)
class BenchmarkPlan:
    """Options of a benchmark.

    Attributes:
        backends: Names of the backends.
        seconds: Time of the timed runs of each row.
        threads: CPU threads.
        seed: Seed of the choice of inputs.
        may_skip: No backends were named: if one cannot run a model, add a row with its error instead of raising, and run a
            variant only on the backend that it was optimized for, if there is one.
        machine: Rates of the CPU.
        gpu: Rates of the GPU.
        settings: Fields of `backends.Options` other than `threads`.
        variants: Names of the variants to measure, instead of the model on their backends; None for the model and all variants.
        progress: Called with a line about the next step.
        data: Data set, None for that of each model.
        threads_named: Whether `threads` was given and not found by default.
        layers: Measure the time of each layer too.
        row_done: Called with each row as soon as it is measured.
        scores: Cached accuracy of each row, which does not depend on the batch size.
    """

    backends: Sequence[str]
    seconds: float
    threads: int
    seed: int
    may_skip: bool = False
    machine: Machine | None = None
    gpu: GpuLimits | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    variants: Sequence[str] | None = None
    progress: Callable[[str], None] = lambda _: None
    data: str | None = None
    threads_named: bool = False
    layers: bool = False
    row_done: Callable[[Run], None] = lambda _: None
    scores: dict[tuple[str, Key], dict[str, Any]] = field(default_factory=dict)


class Key(NamedTuple):
    """Identifies a row of a model: a backend and a variant, "" for the model itself."""

    backend: str
    variant: str

    def __str__(self) -> str:
        return " ".join(self).strip()


class Timings(NamedTuple):
    """Times in milliseconds, one list for each round: of whole calls, and GPU times of the rows that have them."""

    calls: dict[Key, list[list[float]]]
    device: dict[Key, list[list[float]]]


def measure_rows(bundle: Bundle, batch: int, plan: BenchmarkPlan, started: RowProcesses) -> tuple[list[Run], Timings]:
    """Measure one model at one batch size.

    Args:
        bundle: The model.
        batch: Rows in one run.
        plan: Options of the benchmark.
        started: Starts the process of each row.

    Returns:
        The rows and their timings.

    Raises:
        Unsupported: If a backend cannot run the model and `plan.may_skip` is not set.
    """
    label = f"{bundle.title}, batch {batch}"
    plan.progress(f"{label}: computing the float64 truth")
    keys = _keys(bundle, plan)
    graphs = {key: bundle.with_variant(key.variant) if key.variant else bundle for key in keys}
    # Runtimes are imported while the truth is computed.
    started.import_runtimes([key.backend for key in keys])
    processes: dict[Key, WorkerProcess] = {}
    rows: dict[Key, Run] = {}
    try:
        feeds, _ = sample_feeds(bundle, batch, plan.seed, plan.data)
        checked = _checked_rows(bundle, batch)
        few = take_rows(feeds, row_axes(bundle.inputs), slice(checked))
        casts = {key: _cast(graphs[key], key, plan) for key in keys}
        truths = {(key.variant, casts[key]): _truth(graphs[key], few, plan.threads, casts[key]) for key in keys}
        costs = {key.variant: _cost(graphs[key], bundle, batch) for key in keys}
        for key in keys:
            processes[key] = started.start(key.backend)
        loaded = _load(bundle, batch, plan, graphs, processes, rows)
        timings, kinds = _take_turns(label, plan, loaded, processes)
        for key, known in loaded.items():
            plan.progress(f"{label}: checking the answers of {key}")
            facts = known | processes[key].request("memory") | _device(processes[key], batch, plan, kinds.get(key, {}), known)
            facts |= _checked(processes[key], bundle, feeds, truths[key.variant, casts[key]], checked)
            # The score does not depend on the batch size, so each session is scored once.
            score = plan.scores.get((bundle.title, key)) or processes[key].request("accuracy")
            if "error" not in score:
                plan.scores[bundle.title, key] = score
            facts |= score
            if plan.layers:
                plan.progress(f"{label}: timing the layers of {key}")
                facts["layers"] = _layers(processes[key], bundle, graphs[key], key.backend, batch, plan)
            rows[key] = _row(graphs[key], key.backend, batch, timings.calls[key], facts, costs[key.variant], plan)
            plan.row_done(rows[key])
    finally:
        for process in processes.values():
            process.close()
    return [rows[key] for key in keys if key in rows], timings


def _keys(bundle: Bundle, plan: BenchmarkPlan) -> list[Key]:
    """Return the rows of `bundle`: the model on each backend, and variants on the backends that they were made for."""
    own = {one: facts.get("backend", "") for one, facts in bundle.manifest.get("variants", {}).items()} if plan.may_skip else {}
    if bundle.variant:
        return [Key(name, bundle.variant) for name in ([own[bundle.variant]] if own.get(bundle.variant) else plan.backends)]
    keys = []
    for name in plan.backends:
        able = capabilities(name)
        mine = [one for one, facts in bundle.manifest.get("variants", {}).items() if facts["target"] in able.targets]
        mine = [one for one in mine if own.get(one, "") in ("", name)]
        if plan.variants is not None:
            mine = [one for one in mine if one in plan.variants]
        alone = plan.variants is not None and mine
        keys += [Key(name, variant) for variant in ((() if alone else ("",)) + tuple(mine))]
    return keys


def _load(
    bundle: Bundle,
    batch: int,
    plan: BenchmarkPlan,
    graphs: Mapping[Key, Bundle],
    processes: Mapping[Key, WorkerProcess],
    rows: dict[Key, Run],
) -> dict[Key, dict[str, Any]]:
    """Load and warm up the sessions. Return the replies; sessions that cannot be loaded are added to `rows`."""
    loaded: dict[Key, dict[str, Any]] = {}
    label = f"{bundle.title}, batch {batch}"
    for key, process in processes.items():
        plan.progress(f"{label}: loading {key}")
        path = graphs[key].onnx if key.variant else bundle.path
        stored = 0 if plan.threads_named else stored_settings(graphs[key], key.backend).get("threads", 0)
        common = {
            "threads": stored or plan.threads,
            "batch": batch,
            "seed": plan.seed,
            "settings": dict(plan.settings),
            "data": plan.data,
        }
        common["shapes"] = dict(bundle.shapes)
        reply = process.request("load", bundle=str(path), backend=key.backend, **common)
        if "error" in reply:
            if not plan.may_skip:
                raise Unsupported(f"{key} cannot run {bundle.name}: {reply['error']}", reply["hint"] or "leave it out")
            rows[key] = Run(bundle.name, key.backend, batch, key.variant, error=reply["error"])
            plan.row_done(rows[key])
            process.close()
            continue
        loaded[key] = reply
    for key in loaded:
        plan.progress(f"{label}: warming up {key}")
        loaded[key] |= processes[key].get("warm", seconds=min(WARM_UP_SECONDS, max(1.0, plan.seconds)))
        if loaded[key]["can_bind"]:
            loaded[key] |= processes[key].request("bind")
    return loaded


def _take_turns(
    label: str, plan: BenchmarkPlan, loaded: Mapping[Key, Mapping[str, Any]], processes: Mapping[Key, WorkerProcess]
) -> tuple[Timings, dict[Key, dict[str, list[list[float]]]]]:
    """Measure all rounds. Return the timings, and for rows on a GPU those of each kind of `device.DeviceMeter`."""
    timings = Timings({key: [] for key in loaded}, {})
    kinds: dict[Key, dict[str, list[list[float]]]] = {}
    order = list(loaded)
    for turn in range(ROUNDS):
        plan.progress(f"{label}: round {turn + 1} of {ROUNDS}")
        for key in (*order[turn % len(order) :], *order[: turn % len(order)]) if order else ():
            timings.calls[key].append(processes[key].get("measure", seconds=plan.seconds / ROUNDS)["milliseconds"])
            if loaded[key].get("bound"):
                for kind, values in processes[key].get("device", seconds=plan.seconds / ROUNDS)["milliseconds"].items():
                    kinds.setdefault(key, {}).setdefault(kind, []).append(values)
    timings.device.update({key: one["run"] for key, one in kinds.items()})
    return timings, kinds


def _device(
    process: WorkerProcess, batch: int, plan: BenchmarkPlan, kinds: Mapping[str, list[list[float]]], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the row's `device`: None on the CPU, otherwise the measurements or the reason why there are none."""
    if not known["can_bind"]:
        return {"device": None}
    if not kinds:
        return {"device": {"not_measured": known.get("error", "no buffers on the GPU")}, "error": ""}
    facts = process.request("device_facts", batch=batch, seconds=min(max(plan.seconds / 2, 1.0), 3.0))
    if "error" in facts:
        facts = {"clocks": None, "clocks_not_seen": facts["error"]}
    latencies = {kind: summarize(rounds) for kind, rounds in kinds.items()}
    run, enqueue = latencies["run"], latencies["enqueue"]
    return {
        "device": {
            "throughput": round(batch / run.mean * 1e3, 3),
            # Enqueuing takes as long as running, so the GPU waits for the host.
            "launch_bound": enqueue.p50 >= 0.95 * run.mean,
            **{f"{kind}_ms": latency.to_json() for kind, latency in latencies.items()},
            **facts,
        }
    }


def _layers(
    process: WorkerProcess, bundle: Bundle, graph: Bundle, backend: str, batch: int, plan: BenchmarkPlan
) -> dict[str, Any]:
    """Return the row's `layers`: the times by segment, or the reason why there are none."""
    if not capabilities(backend).times_layers:
        return {"not_measured": f"{backend} does not report the times of its layers"}
    reply = process.request("layers", seconds=plan.seconds)
    if "error" in reply:
        return {"not_measured": reply["error"]}
    layers = [LayerTime(**{**layer, "nodes": tuple(layer["nodes"])}) for layer in reply["layers"]]
    # The CPU's rate is that of float32.
    floating = precision_of(read_model(graph.onnx)) == "float32" and not plan.settings.get("autocast")
    times = LayerTimes(layers, reply["runs"], reply["call_milliseconds"])
    return profile_by_segment(bundle, graph, times, batch, plan.machine if floating else None).to_json()


def _cast(bundle: Bundle, key: Key, plan: BenchmarkPlan) -> str:
    """Return the autocast precision of a row, "" if there is none. bundle: the graph of the row."""
    if not capabilities(key.backend).autocasts:
        return ""
    return str(plan.settings.get("autocast") or stored_settings(bundle, key.backend).get("autocast", ""))


def _cost(graph: Bundle, bundle: Bundle, batch: int) -> Cost:
    """Return the operations of the model with the bytes of the variant, whose Q/DQ nodes do not count as operations."""
    whole = count_cost(read_model(bundle.onnx), batch)
    if not graph.variant or graph.variant == bundle.variant:
        return whole
    mine = count_cost(read_model(graph.onnx), batch)
    return replace(whole, bytes=mine.bytes, compulsory=mine.compulsory)


def _checked_rows(bundle: Bundle, batch: int) -> int:
    """Return how many rows of a batch are verified: some if all inputs and outputs have the same batch, otherwise all."""
    leading = {spec.batch for spec in (*bundle.inputs, *bundle.outputs)}
    return min(batch, CHECKED_ROWS) if len(leading) == 1 and isinstance(next(iter(leading)), str) else batch


def _truth(bundle: Bundle, feeds: Feeds, threads: int, cast: str) -> Truth | None:
    """Return the float64 outputs of the float32 graph, with the tolerance of the precision of `bundle`; None where there are none."""
    try:
        return truth_of_outputs(bundle, feeds, cast or precision_of(read_model(bundle.onnx)), threads)
    except NothingToVerify:
        return None


def _row(
    bundle: Bundle, name: str, batch: int, calls: list[list[float]], facts: Mapping[str, Any], cost: Cost, plan: BenchmarkPlan
) -> Run:
    reported, device, latency = facts["facts"], facts["device"], summarize(calls)
    precision = reported.get("precision", "float32")
    if bundle.variant and not bundle.runtime[1].get("autocast"):
        precision = precision_of(read_model(bundle.onnx))
    if precision == "float32" and reported.get("tf32"):
        precision = "tf32"
    roofline = None
    if device and "run_ms" in device:
        roofline = share_of_gpu_limit(cost, device["run_ms"]["mean"] / 1e3, precision, plan.gpu)
    elif device is None and precision == "float32" and not capabilities(name).on_gpu:
        # The CPU's rate is that of float32.
        roofline = share_of_limit(cost, latency.mean / 1e3, plan.machine)
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
        roofline=roofline,
        verified=facts["verified"],
        error_ratio=facts["error_ratio"],
        facts=reported,
        device=device,
        layers=facts.get("layers"),
        checked_rows=facts["checked_rows"],
        error=facts.get("error", ""),
    )


def _checked(process: WorkerProcess, bundle: Bundle, feeds: Mapping[str, Any], truth: Truth | None, rows: int) -> dict[str, Any]:
    """Verify the outputs of the measured session for the first `rows` rows of `feeds`, where there is a truth."""
    if truth is None:
        return {"verified": None, "error_ratio": None, "checked_rows": 0}
    with temporary_folder("bench") as folder:
        given, results = Path(folder) / "feeds.npz", Path(folder) / "outputs.npz"
        save_npz(given, feeds)
        reply = process.request("outputs", feeds=str(given), results=str(results))
        if "error" in reply:
            return {"verified": False, "error_ratio": None, "error": reply["error"], "checked_rows": 0}
        outputs = load_npz(results)
        if rows < count_rows(feeds, row_axes(bundle.inputs)):
            outputs = take_rows(outputs, row_axes(bundle.outputs), slice(rows))
        comparisons = compare_outputs(outputs, truth).values()
    if not comparisons:
        return {"verified": None, "error_ratio": None, "checked_rows": 0}
    ratios = [comparison.error_ratio for comparison in comparisons]
    passed = all(comparison.passed for comparison in comparisons)
    return {"verified": passed, "error_ratio": max(ratios, default=None), "checked_rows": rows}
