"""The rows of one model at one batch size: every backend in a process of its own, all loaded, then taking turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from relu_deploy.backends import capabilities
from relu_deploy.benchmark.gpu_limits import GpuLimits, share_of_gpu_limit
from relu_deploy.benchmark.process import Process
from relu_deploy.benchmark.result import Run
from relu_deploy.benchmark.roofline import Machine, share_of_limit
from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import sample_feeds
from relu_deploy.errors import Unsupported
from relu_deploy.folders import temporary_folder
from relu_deploy.graph import Cost, count_cost, load_model, precision_of
from relu_deploy.latency_stats import summarize
from relu_deploy.tensors import Feeds, count_rows, row_axes, take_rows
from relu_deploy.verification.judge import compare_outputs
from relu_deploy.verification.truth import Truth, choose_against, find_truth, open_source

__all__ = ["BenchmarkPlan", "Key", "Timings", "measure_rows"]

ROUNDS = 10
WARM_UP_SECONDS = 2.0
#: rows of a batch whose answers are held against the truth, which takes long in float64; every row is computed alike
CHECKED_ROWS = 8


@dataclass(frozen=True)
class BenchmarkPlan:
    """How everything is measured. settings: options of `backends.load` beside threads, for backends that have them.

    variants: which of a bundle's variants are rows, None for all; where some are named, they stand in the model's place on
    their backend. may_skip: a backend that cannot run a model leaves a row with its error instead of ending all.
    data: instead of each model's own data set. scores: of each model's rows, from their first batch size.
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
    scores: dict[tuple[str, Key], dict[str, Any]] = field(default_factory=dict)


class Key(NamedTuple):
    """What a row is of: a backend, and a variant of the model or "" for the model itself."""

    backend: str
    variant: str

    def __str__(self) -> str:
        return " ".join(self).strip()


class Timings(NamedTuple):
    """Milliseconds, a list for each round: of whole calls, and of the GPU alone where that could be measured."""

    calls: dict[Key, list[list[float]]]
    device: dict[Key, list[list[float]]]


def measure_rows(bundle: Bundle, batch: int, plan: BenchmarkPlan) -> tuple[list[Run], Timings]:
    """Return the rows of `bundle` at `batch`, and the timings that they are made of."""
    what = f"{bundle.title}, batch {batch}"
    plan.progress(f"{what}: the right answers in float64")
    keys = _keys(bundle, plan)
    graphs = {key: bundle.with_variant(key.variant) if key.variant else bundle for key in keys}
    # The workers import their runtimes while the truth is worked out; nothing is timed yet.
    processes = {key: Process(plan.threads) for key in keys}
    rows: dict[Key, Run] = {}
    try:
        for key, process in processes.items():
            process.send("prepare", backend=key.backend)
        feeds, _ = sample_feeds(bundle, batch, plan.seed, plan.data)
        checked = _checked_rows(bundle, batch)
        few = take_rows(feeds, row_axes(bundle.inputs), slice(checked))
        truths = {(key.variant, _cast(key, plan)): _truth(graphs[key], few, plan.threads, _cast(key, plan)) for key in keys}
        costs = {key.variant: _cost(graphs[key], bundle, batch) for key in keys}
        for process in processes.values():
            process.receive("prepare")
        loaded = _load(bundle, batch, plan, graphs, processes, rows)
        timings, kinds = _take_turns(what, plan, loaded, processes)
        for key, known in loaded.items():
            plan.progress(f"{what}: checking the answers of {key}")
            facts = known | processes[key].ask("memory") | _device(processes[key], batch, plan, kinds.get(key, {}), known)
            facts |= _checked(processes[key], bundle, feeds, truths[key.variant, _cast(key, plan)], checked)
            # The score does not depend on the batch size: a thousand rows go through each session once.
            score = plan.scores.get((bundle.title, key)) or processes[key].ask("accuracy")
            if "error" not in score:
                plan.scores[bundle.title, key] = score
            facts |= score
            rows[key] = _row(graphs[key], key.backend, batch, timings.calls[key], facts, costs[key.variant], plan)
    finally:
        for process in processes.values():
            process.close()
    return [rows[key] for key in keys if key in rows], timings


def _keys(bundle: Bundle, plan: BenchmarkPlan) -> list[Key]:
    """Return the rows of `bundle`: the model on each backend, its variants where they belong."""
    if bundle.variant:
        return [Key(name, bundle.variant) for name in plan.backends]
    keys = []
    for name in plan.backends:
        able = capabilities(name)
        mine = [one for one, facts in bundle.manifest.get("variants", {}).items() if facts["target"] in able.targets]
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
    processes: Mapping[Key, Process],
    rows: dict[Key, Run],
) -> dict[Key, dict[str, Any]]:
    """Return what each worker says of its loaded and warmed-up session; one that cannot load gets its row at once."""
    loaded: dict[Key, dict[str, Any]] = {}
    what = f"{bundle.title}, batch {batch}"
    for key, process in processes.items():
        plan.progress(f"{what}: loading {key}")
        path = graphs[key].onnx if key.variant else bundle.path
        common = {"threads": plan.threads, "batch": batch, "seed": plan.seed, "settings": dict(plan.settings), "data": plan.data}
        common["shapes"] = dict(bundle.shapes)
        reply = process.ask("load", bundle=str(path), backend=key.backend, **common)
        if "error" in reply:
            if not plan.may_skip:
                raise Unsupported(f"{key} cannot run {bundle.name}: {reply['error']}", reply["hint"] or "leave it out")
            rows[key] = Run(bundle.name, key.backend, batch, key.variant, error=reply["error"])
            process.close()
            continue
        loaded[key] = reply
    for key in loaded:
        plan.progress(f"{what}: warming up {key}")
        loaded[key] |= processes[key].get("warm", seconds=WARM_UP_SECONDS)
        if loaded[key]["can_bind"]:
            loaded[key] |= processes[key].ask("bind")
    return loaded


def _take_turns(
    what: str, plan: BenchmarkPlan, loaded: Mapping[Key, Mapping[str, Any]], processes: Mapping[Key, Process]
) -> tuple[Timings, dict[Key, dict[str, list[list[float]]]]]:
    """Return the timings of all rounds, and for rows on a GPU those of each kind that `bench.device` tells apart."""
    timings = Timings({key: [] for key in loaded}, {})
    kinds: dict[Key, dict[str, list[list[float]]]] = {}
    order = list(loaded)
    for turn in range(ROUNDS):
        plan.progress(f"{what}: round {turn + 1} of {ROUNDS}")
        for key in (*order[turn % len(order) :], *order[: turn % len(order)]) if order else ():
            timings.calls[key].append(processes[key].get("measure", seconds=plan.seconds / ROUNDS)["milliseconds"])
            if loaded[key].get("bound"):
                for kind, values in processes[key].get("device", seconds=plan.seconds / ROUNDS)["milliseconds"].items():
                    kinds.setdefault(key, {}).setdefault(kind, []).append(values)
    timings.device.update({key: one["run"] for key, one in kinds.items()})
    return timings, kinds


def _device(
    process: Process, batch: int, plan: BenchmarkPlan, kinds: Mapping[str, list[list[float]]], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the row's `device`: None on the CPU, why not where a GPU's time could not be measured, else what was measured."""
    if not known["can_bind"]:
        return {"device": None}
    if not kinds:
        return {"device": {"not_measured": known.get("error", "no buffers on the GPU")}, "error": ""}
    facts = process.ask("device_facts", batch=batch, seconds=min(max(plan.seconds / 2, 1.0), 3.0))
    if "error" in facts:
        facts = {"clocks": None, "clocks_not_seen": facts["error"]}
    latencies = {kind: summarize(rounds) for kind, rounds in kinds.items()}
    run, enqueue = latencies["run"], latencies["enqueue"]
    return {
        "device": {
            "throughput": round(batch / run.mean * 1e3, 3),
            # The host then needs as long to ask for a run as the GPU to do it: the queue has run dry.
            "launch_bound": enqueue.p50 >= 0.95 * run.mean,
            **{f"{kind}_ms": latency.to_json() for kind, latency in latencies.items()},
            **facts,
        }
    }


def _cast(key: Key, plan: BenchmarkPlan) -> str:
    """Return the precision that PyTorch chooses by itself in a row, "" where it does not."""
    return str(plan.settings.get("autocast", "")) if capabilities(key.backend).autocasts else ""


def _cost(graph: Bundle, bundle: Bundle, batch: int) -> Cost:
    """Return the model's operations, and the bytes of the variant: its weights are smaller, its Q/DQ nodes are no work of the model."""
    whole = count_cost(load_model(bundle.onnx), batch)
    if not graph.variant or graph.variant == bundle.variant:
        return whole
    mine = count_cost(load_model(graph.onnx), batch)
    return replace(whole, bytes=mine.bytes, compulsory=mine.compulsory)


def _checked_rows(bundle: Bundle, batch: int) -> int:
    """Return how many rows of a batch are checked: a few where the leading dimension of all inputs and outputs is one batch."""
    leading = {spec.batch for spec in (*bundle.inputs, *bundle.outputs)}
    return min(batch, CHECKED_ROWS) if len(leading) == 1 and isinstance(next(iter(leading)), str) else batch


def _truth(bundle: Bundle, feeds: Feeds, threads: int, cast: str) -> Truth:
    """Return the outputs in float64; for a variant of the float32 graph that it was made of, in its own precision's noise."""
    against = choose_against(bundle, None)
    precision = cast or precision_of(load_model(bundle.onnx))
    return find_truth(open_source(bundle, against, (), threads), feeds, precision)


def _row(
    bundle: Bundle, name: str, batch: int, calls: list[list[float]], facts: Mapping[str, Any], cost: Cost, plan: BenchmarkPlan
) -> Run:
    reported, device, latency = facts["facts"], facts["device"], summarize(calls)
    precision = precision_of(load_model(bundle.onnx)) if bundle.variant else reported.get("precision", "float32")
    if precision == "float32" and reported.get("tf32"):
        precision = "tf32"
    roofline = None
    if device and "run_ms" in device:
        roofline = share_of_gpu_limit(cost, device["run_ms"]["mean"] / 1e3, precision, plan.gpu)
    elif device is None and precision == "float32" and not capabilities(name).on_gpu:
        # The CPU's limit was measured in float32: another precision has another one.
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
        checked_rows=facts["checked_rows"],
        error=facts.get("error", ""),
    )


def _checked(process: Process, bundle: Bundle, feeds: Mapping[str, Any], truth: Truth, rows: int) -> dict[str, Any]:
    """Return the verdict on the answers that the measured session itself gives for the first `rows` of `feeds`."""
    with temporary_folder("bench") as folder:
        given, results = Path(folder) / "feeds.npz", Path(folder) / "outputs.npz"
        np.savez(given, **feeds)  # type: ignore[arg-type]
        reply = process.ask("outputs", feeds=str(given), results=str(results))
        if "error" in reply:
            return {"verified": False, "error_ratio": None, "error": reply["error"], "checked_rows": 0}
        with np.load(results) as archive:
            outputs = {name: archive[name] for name in archive.files}
        if rows < count_rows(feeds, row_axes(bundle.inputs)):
            outputs = take_rows(outputs, row_axes(bundle.outputs), slice(rows))
        comparisons = compare_outputs(outputs, truth).values()
    ratios = [comparison.error_ratio for comparison in comparisons]
    passed = all(comparison.passed for comparison in comparisons)
    return {"verified": passed, "error_ratio": max(ratios, default=None), "checked_rows": rows}
