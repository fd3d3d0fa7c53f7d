"""Every way to run a model on this CPU, in one interleaved run: speed, agreement with float32 and RMS error.

    python benchmarks/cpu_race.py --models digit_detector --out benchmarks/results/DATE-cpu-race.json

Contestants: torch, torch-compile, onnxruntime-cpu in float32 and int8, openvino in float32, bfloat16 and int8, NNCF's post-training
int8 of the same model on the same pictures (pip install nncf), and what `optimize --precision auto` chooses for that batch size.
Each has a process of its own; they take turns in rounds, and every ratio is to onnxruntime-cpu in float32 in the same rounds. A
contestant that cannot run here has a row with the reason. Agreement and error are measured on rows that were not calibrated on.

Further runs with the same --out add their models to the file, each with the machine that it was measured on. Photographs come from
scikit-image where it is installed (pip install --no-deps scikit-image), otherwise pictures are sums of random waves, and the file says
so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import CALIBRATION, MEASURING, photographs
from cpu_race_table import table
from cpu_race_worker import ENDING, NNCF

from relu_deploy.backends import capabilities, probe
from relu_deploy.backends.threads import default_threads
from relu_deploy.benchmark.environment import describe
from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import spread_evenly
from relu_deploy.errors import ReluDeployError
from relu_deploy.exporting.exporter import export_source
from relu_deploy.graph import load_model, save_model
from relu_deploy.latency_stats import median_ratio_of, ratio_of, summarize
from relu_deploy.optimization.accuracy.compared_tensors import ComparedTensors
from relu_deploy.optimization.accuracy.evaluation_data import load_evaluation_data
from relu_deploy.optimization.accuracy.gate import AccuracyEvaluator
from relu_deploy.optimization.auto.candidates import AUTOCAST
from relu_deploy.optimization.auto.run import find_fastest
from relu_deploy.optimization.auto.sessions import LEAD
from relu_deploy.optimization.build import FoundVariant, VariantBuilder
from relu_deploy.optimization.options import OptimizeOptions
from relu_deploy.optimization.prepare import prepare
from relu_deploy.optimization.targets import TARGETS
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.worker_process import WorkerProcess
from relu_deploy.zoo.recipes import build

REFERENCE = "onnxruntime-cpu float32"
ROUNDS = 8
#: the final between auto and its fastest rivals: how many rivals, the fewest rounds, after how many rounds its interval is computed,
#: the half-width of that interval (relative) at which it ends, and the seconds after which it ends in any case
RIVALS, FINAL_ROUNDS, FINAL_STEP, FINAL_WIDTH, FINAL_SECONDS = 3, 40, 20, 0.02, 300
#: runs in one slot of a round, and the shortest and longest slot in seconds
SLOT_RUNS, SHORTEST, LONGEST = 6, 0.1, 0.8
#: rows that are calibrated on, and rows on which agreement and error are measured
CALIBRATED, MEASURED = 64, 32
#: keys of the sessions in a process: the one that is timed, and one of a graph that shows the tensors that accuracy is measured on
TIMED, SHOWING = "timed", "showing"


@dataclass
class Contestant:
    """One row.

    Attributes:
        name: Its name in the table.
        backend: Name of the backend.
        path: The bundle or graph that it loads.
        settings: Fields of `backends.Options`.
        reason: Why it cannot run, "" if it can.
        facts: What else is reported about it.
        process: Runs it, None before the race and where it cannot run.
        rounds: Milliseconds of its runs in each round of the race.
        final: Likewise of the final.
    """

    name: str
    backend: str
    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    process: WorkerProcess | None = None
    rounds: list[list[float]] = field(default_factory=list)
    final: list[list[float]] = field(default_factory=list)

    def request(self, command: str, key: str = TIMED, **arguments: Any) -> dict[str, Any] | None:
        """Return the reply to a command, or None: then `reason` says why the contestant cannot go on. key: Of the session."""
        if self.process is None:
            return None
        reply = self.process.request(command, key=key, **arguments)
        if "error" not in reply:
            return reply
        self.reason = reply["error"]
        self.process.close()
        self.process = None
        return None


@dataclass(frozen=True)
class CachingBuilder(VariantBuilder):
    """Finds the variant of each precision once, for all batch sizes."""

    found: dict[str, FoundVariant | None] = field(default_factory=dict)

    def find(self, precision: str, progress: Any) -> FoundVariant:
        """Return the variant of one precision."""
        if precision not in self.found:
            self.found[precision] = super().find(precision, progress)
        variant = self.found[precision]
        assert variant is not None
        return variant

    def find_placed(self, found: FoundVariant, placement: str, progress: Any) -> FoundVariant | None:
        """Return a variant like `found` for other kernels."""
        name = f"{found.precision} {placement}"
        if name not in self.found:
            self.found[name] = super().find_placed(found, placement, progress)
        return self.found[name]


def waves(count: int, seed: int) -> np.ndarray:
    """Return pictures that are sums of random waves, with most power in the low frequencies, as in photographs."""
    generator, side = np.random.default_rng(seed), 224
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij"))
    spectrum = generator.standard_normal((count, 3, *frequency.shape, 2)) @ (1, 1j)
    pictures = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / side), s=(side, side))
    pictures = (pictures / pictures.std(axis=(2, 3), keepdims=True) * 55 + 115).clip(0, 255)
    return pictures.astype(np.uint8).transpose(0, 2, 3, 1)


def data_for(bundle: Bundle, folder: Path, accept: Sequence[str]) -> tuple[OptimizeOptions, str]:
    """Return the options of `optimize` with the data of a model, without labels, and where the data come from."""
    name = bundle.inputs[0].name
    if bundle.name == "digit_detector":
        with np.load(Path(__file__).parent.parent / "models" / "digit_detector" / "test.npz") as archive:
            pictures, source = archive["x"], "the shipped scenes: half are calibrated on, half are measured on"
        calibrated, measured = pictures[0::2], pictures[1::2]
    elif find_spec("skimage"):
        calibrated, measured = photographs(CALIBRATION, CALIBRATED, 0), photographs(MEASURING, MEASURED, 1)
        source = "crops of scikit-image's photographs"
    else:
        calibrated, measured, source = waves(CALIBRATED, 0), waves(MEASURED, 1), "sums of random waves"
    np.savez(folder / "calibration.npz", **{name: calibrated[:CALIBRATED]})
    np.savez(folder / "data.npz", **{name: measured[:MEASURED]})
    return OptimizeOptions(calibration=folder / "calibration.npz", data=folder / "data.npz", accept=tuple(accept)), source


def shifted_weights(name: str, folder: Path) -> Path:
    """Write random weights with shifts in the batch norms, as training gives them, and return the file.

    Those of a new module are zero, and then so are the biases of all convolutions: runtimes leave them out, except where correcting
    the error of quantization has put some.
    """
    import torch
    from safetensors.torch import save_file

    module, generator = build(name, seed=0), torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            with torch.no_grad():
                part.bias.copy_(0.2 * torch.randn(part.bias.shape, generator=generator))
    save_file(module.state_dict(), str(folder / "shifted.safetensors"))
    return folder / "shifted.safetensors"


def builder_for(bundle: Bundle, options: OptimizeOptions, folder: Path) -> VariantBuilder:
    """Return what builds the variants of a model for the CPU, calibrated once."""
    target = TARGETS["cpu"]
    data = load_evaluation_data(bundle, options, data_needed=True)
    prepared = replace(prepare(bundle, target, target.precisions, options, data, say), path=folder / "prepared.onnx")
    save_model(prepared.model, prepared.path)
    compared = ComparedTensors.find(prepared.original, prepared.model)
    with target.session(compared.expose(prepared.original)) as session:
        evaluator = AccuracyEvaluator.prepare(bundle, data.measured_on, session.run, data.batch, compared=compared)
    return CachingBuilder(bundle, target, options, data, prepared, evaluator)


def contestants_for(builder: VariantBuilder, batch: int, folder: Path, skipped: Sequence[str]) -> list[Contestant]:
    """Return the contestants at one batch size."""
    float32, int8 = builder.bundle.path, folder / "int8.onnx"
    for_openvino = folder / "int8-openvino.onnx"
    if not int8.exists():
        variant = builder.find("int8", say)
        save_model(variant.search.model, int8)
        placed = builder.find_placed(variant, "openvino", say)
        save_model((placed or variant).search.model, for_openvino)
    found = [
        Contestant(REFERENCE, "onnxruntime-cpu", float32),
        Contestant("onnxruntime-cpu int8", "onnxruntime-cpu", int8),
        Contestant("openvino float32", "openvino", float32),
        Contestant("openvino bfloat16", "openvino", float32, {"autocast": "bfloat16"}),
        Contestant("openvino int8", "openvino", for_openvino),
        nncf_contestant(builder, folder),
        Contestant("torch", "torch", float32),
        Contestant("torch-compile", "torch-compile", float32),
    ]
    chosen = [] if "auto" in skipped else [auto_contestant(builder, batch, folder)]
    return [one for one in (*found, *chosen) if one.name not in skipped]


def auto_contestant(builder: VariantBuilder, batch: int, folder: Path) -> Contestant:
    """Return what `optimize --precision auto` chooses for a batch size."""
    name, options = "auto", replace(builder.options, batch=batch)
    started = time.perf_counter()
    report = find_fastest(replace(builder, options=options), [*reversed(builder.target.precisions), *AUTOCAST], say)
    seconds = time.perf_counter() - started
    if not report.passed:
        return Contestant(name, "", folder, reason=report.remedy)
    path = folder / "prepared.onnx"
    if report.precision == "int8":
        path = folder / f"auto-{batch}.onnx"
        save_model(report.search.model, path)
    fields = report.to_json()
    facts = {"chose": f"{report.backend} {report.precision}", "settings": dict(report.settings), "seconds": round(seconds, 1)}
    return Contestant(
        name, report.backend, path, dict(report.settings), facts={**facts, "candidates": fields["auto"]["candidates"]}
    )


def nncf_contestant(builder: VariantBuilder, folder: Path) -> Contestant:
    """Return NNCF's post-training int8 of the float32 graph, calibrated on the same rows."""
    target = folder / f"nncf{ENDING}"
    contestant = Contestant("NNCF int8 in openvino", NNCF, folder / "nncf.onnx")
    try:
        contestant.facts["version"] = version("nncf")
    except PackageNotFoundError:
        contestant.reason = "nncf is not installed (pip install nncf)"
        return contestant
    if not target.exists():
        import nncf
        import openvino

        rows = [feeds for feeds, _ in builder.data.calibrated_on.full_batches(1)]
        model = openvino.Core().read_model(str(builder.bundle.onnx))
        quantized = nncf.quantize(model, nncf.Dataset(rows), subset_size=len(rows))
        openvino.save_model(quantized, target, compress_to_fp16=False)
        # Its session takes the names of inputs and outputs from the ONNX file.
        (folder / "nncf.onnx").write_bytes(builder.bundle.onnx.read_bytes())
    return contestant


def race(contestants: Sequence[Contestant], builder: VariantBuilder, batch: int, folder: Path) -> None:
    """Load all contestants, measure their agreement and error, and time them in turn."""
    threads, feeds = default_threads(), []
    for index, rows in enumerate(builder.data.batches_of(batch, 4)):
        feeds.append(str(folder / f"feeds-{batch}-{index}.npz"))
        np.savez(feeds[-1], **rows)
    usable = [one for one in contestants if not one.reason]
    for one in usable:
        if one.backend != NNCF and not (found := probe(one.backend)).usable:
            one.reason = found.reason
            continue
        one.process = WorkerProcess("cpu_race_worker", threads)
        say(f"batch {batch}: loading {one.name}")
        started = time.perf_counter()
        settings = {"threads": threads, **one.settings}
        reply = one.request("load", model=str(one.path), backend=one.backend, settings=settings, feeds=feeds)
        if reply is not None:
            one.facts |= {"load_seconds": round(time.perf_counter() - started, 2), "expected_ms": reply["milliseconds"]}
    compare(usable, builder, batch, folder)
    for turn in range(ROUNDS):
        say(f"batch {batch}: round {turn + 1} of {ROUNDS}")
        run_round(usable, turn, lambda one: one.rounds)
    run_final(finalists_of(contestants, builder.max_drop), batch)


def run_final(finalists: Sequence[Contestant], batch: int) -> None:
    """Time auto and its rivals in turn until the interval of auto against the best of them is narrow."""
    started, turn = time.perf_counter(), 0
    while finalists and time.perf_counter() - started < FINAL_SECONDS:
        run_round(finalists, turn, lambda one: one.final)
        turn += 1
        if turn < FINAL_ROUNDS or turn % FINAL_STEP:
            continue
        result = against_best(finalists)
        if result is None or result["ci95"] is None:
            return
        low, high = result["ci95"]
        say(f"batch {batch}: final round {turn}: auto over {result['best_other']} {result['auto_over_best']} [{low}, {high}]")
        if math.log(high / low) / 2 <= FINAL_WIDTH:
            return


def run_round(contestants: Sequence[Contestant], turn: int, results: Callable[[Contestant], list[list[float]]]) -> None:
    """Time each contestant once, beginning with another one in each turn."""
    running = [one for one in contestants if one.process is not None]
    start = turn % max(1, len(running))
    for one in (*running[start:], *running[:start]):
        slot = min(LONGEST, max(SHORTEST, SLOT_RUNS * one.facts["expected_ms"] / 1e3))
        if (reply := one.request("measure", seconds=slot, lead=LEAD)) is not None:
            results(one).append(reply["milliseconds"])


def compare(contestants: Sequence[Contestant], builder: VariantBuilder, batch: int, folder: Path) -> None:
    """Measure how contestants agree with the float32 model, on rows that were not calibrated on."""
    evaluator = replace(builder.evaluator, batch=batch)
    rows = evaluator.dataset.picked(spread_evenly(len(evaluator.dataset), 16))
    with builder.target.session(evaluator.exposed(builder.prepared.original)) as session:
        true = evaluator.answers_on(session.run, rows)
    key = SHOWING if evaluator.compared.names else TIMED
    for one in contestants:

        def run(feeds: Mapping[str, Any], one: Contestant = one) -> dict[str, Any]:
            given, results = folder / "given.npz", folder / "results.npz"
            np.savez(given, **feeds)
            if one.request("outputs", key, feeds=str(given), results=str(results)) is None:
                raise ReluDeployError(one.reason)
            with np.load(results) as archive:
                return {name: archive[name] for name in archive.files}

        if one.process is None or not load_showing(one, evaluator, folder):
            continue
        try:
            metric = evaluator.score(run)
            one.facts |= {"metric": metric.name, "agreement": round(metric.value, 6), "rows": metric.samples}
            one.facts["relative_error"] = float(f"{evaluator.distance(evaluator.answers_on(run, rows), true):.4g}")
        except ReluDeployError as error:
            one.reason = error.message
        if key == SHOWING:
            one.request("close", key)


def load_showing(one: Contestant, evaluator: AccuracyEvaluator, folder: Path) -> bool:
    """Load the graph of a contestant with the tensors that accuracy is measured on. Return whether it has such a graph."""
    if not evaluator.compared.names:
        return True
    if one.backend == NNCF or capabilities(one.backend).runs_program:
        return False
    path = folder / "showing.onnx"
    save_model(evaluator.exposed(load_model(Bundle.open(one.path).onnx)), path)
    return one.request("load", SHOWING, model=str(path), backend=one.backend, settings=one.settings, feeds=[]) is not None


def row(one: Contestant, reference: Contestant, batch: int) -> dict[str, Any]:
    """Return the row of a contestant in the JSON."""
    timed = bool(one.rounds) and len(one.rounds) == len(reference.rounds)
    ratio = ratio_of(one.rounds, reference.rounds) if timed else None
    latency = summarize(one.rounds) if timed else None
    return {
        "contestant": one.name,
        "backend": one.backend,
        "settings": dict(one.settings),
        "reason": one.reason,
        "latency_ms": latency and latency.to_json(),
        "throughput": latency and round(batch / latency.mean * 1e3, 2),
        "speedup": ratio and round(ratio.value, 4),
        "speedup_ci95": None if ratio is None or ratio.ci95 is None else [round(bound, 4) for bound in ratio.ci95],
        **{name: value for name, value in one.facts.items() if name != "expected_ms"},
    }


def finalists_of(contestants: Sequence[Contestant], max_drop: float) -> list[Contestant]:
    """Return auto and the fastest others that lose no more than `max_drop`; none where there is no such pair."""
    auto = next((one for one in contestants if one.name == "auto" and one.rounds), None)
    others = [one for one in contestants if one.name != "auto" and one.rounds and one.facts.get("agreement", 0.0) >= 1 - max_drop]
    if auto is None or not others:
        return []
    return [auto, *sorted(others, key=lambda one: -median_ratio_of(one.rounds, auto.rounds).value)[:RIVALS]]


def against_best(contestants: Sequence[Contestant]) -> dict[str, Any] | None:
    """Return how many times faster what auto chose is than the fastest of the others in the final."""
    auto = next((one for one in contestants if one.name == "auto" and one.final), None)
    others = [one for one in contestants if one is not auto and auto is not None and len(one.final) == len(auto.final)]
    if auto is None or not others:
        return None
    best = max(others, key=lambda one: median_ratio_of(one.final, auto.final).value)
    by_means, by_medians = ratio_of(auto.final, best.final), median_ratio_of(auto.final, best.final)
    return {
        "best_other": best.name,
        "auto_over_best": round(by_medians.value, 4),
        "ci95": by_medians.ci95 and [round(bound, 4) for bound in by_medians.ci95],
        "by_means": {
            "auto_over_best": round(by_means.value, 4),
            "ci95": by_means.ci95 and [round(each, 4) for each in by_means.ci95],
        },
        "rounds": len(auto.final),
    }


def run_model(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the results of one model."""
    with temporary_folder("cpu-race") as folder:
        say(f"{name}: exporting")
        bundle = export_source(name, folder / f"{name}.rdb").bundle
        trained = bundle.manifest["source"].get("weights")
        if not trained:
            weights = shifted_weights(name, folder)
            bundle = export_source(name, folder / f"{name}.rdb", weights=weights, force=True).bundle
        options, pictures = data_for(bundle, folder, arguments.accept)
        builder = builder_for(bundle, options, folder)
        result: dict[str, Any] = {
            "data": pictures,
            "environment": describe(default_threads()),
            "accepted": arguments.accept,
            "weights": trained or "random, with random shifts in the batch norms",
            "batches": {},
        }
        for batch in map(int, arguments.batch.split(",")):
            contestants = contestants_for(builder, batch, folder, arguments.without.split(","))
            with ExitStack() as stack:
                race(contestants, builder, batch, folder)
                for one in contestants:
                    if one.process is not None:
                        stack.callback(one.process.close)
            reference = next(one for one in contestants if one.name == REFERENCE)
            result["batches"][str(batch)] = {
                "rows": [row(one, reference, batch) for one in contestants],
                "auto": against_best(contestants),
            }
    return result


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,mobilenet_v2,digit_detector")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--without", default="", help="contestants to leave out, separated by commas, such as torch-compile")
    parser.add_argument(
        "--accept", action="append", default=[], metavar="FINDING", help="of the verification in auto, such as nan-not-propagated"
    )
    parser.add_argument("--out", type=Path, help="JSON file; its table is written beside it as Markdown")
    arguments = parser.parse_args()
    # The processes of contestants import their worker from this folder.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = time.perf_counter()
    report: dict[str, Any] = {"reference": REFERENCE, "models": {}}
    if arguments.out and arguments.out.exists():
        report["models"] = json.loads(arguments.out.read_text(encoding="utf-8"))["models"]
    for name in arguments.models.split(","):
        report["models"][name] = run_model(name, arguments)
        text = table(report)
        if arguments.out:
            arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(table(report))
    say(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
