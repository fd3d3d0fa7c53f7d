"""Comparison of every Relu and every output of a model on backends with the truth in float64.

`verify` runs a model on each backend twice: as it ships, for the outputs and the checks that need no reference, and with
every Relu tapped. The rule of the verdict is in `verdict.py`, the truth in `truth.py`, the node at fault in `locating/`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from relu_deploy.backends import OPTIMIZATIONS, backend_for, capabilities, load, require, stored_settings
from relu_deploy.backends.base import TruthSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, ReluDeployError, UsageError
from relu_deploy.graph import find_relus, precision_of
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.model import read_model
from relu_deploy.graph.precision import EIGHT_BITS, PRECISIONS, Quantized, has_packed_weights, quantized_parts
from relu_deploy.tensors import Feeds, check_feeds
from relu_deploy.verification.against import relus_to_compare, why_not_compared
from relu_deploy.verification.judging.clipped_elements import accept_clipped_elements
from relu_deploy.verification.judging.comparable import comparable
from relu_deploy.verification.judging.contract import NAN_NOT_PROPAGATED
from relu_deploy.verification.judging.invariants import (
    check_invariance,
    confirm_by_truth,
    run_invariance_checks,
)
from relu_deploy.verification.judging.judge import judge
from relu_deploy.verification.locating.backend_faults import BackendUnderTest, locate_on_backend
from relu_deploy.verification.locating.fault import Fault
from relu_deploy.verification.locating.graph_faults import faults_of_graph
from relu_deploy.verification.measurement import Measurement, measure
from relu_deploy.verification.memory import check_memory
from relu_deploy.verification.plan import VerifyPlan
from relu_deploy.verification.preprocess.comparison import compare_preprocess
from relu_deploy.verification.report import BackendReport, VerifyReport
from relu_deploy.verification.tapping import arrays_of
from relu_deploy.verification.truth import ITERATING, Source, Truth, find_truth, open_source

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["VerifyReport", "verify"]

Progress = Callable[[str], None]


def verify(
    bundle: Bundle | str | os.PathLike[str],
    backends: Sequence[str] = (),
    *,
    feeds: Feeds | None = None,
    data: str | os.PathLike[str] | None = None,
    preprocess_against: str | os.PathLike[str] | None = None,
    against: str | None = None,
    samples: int = 1,
    seed: int = 0,
    threads: int = 0,
    device: int = 0,
    optimization: str = "all",
    settings: Mapping[str, Any] | None = None,
    accept: Collection[str] = (),
    progress: Progress = lambda _: None,
) -> VerifyReport:
    """Return the comparison of every Relu and every output on `backends` with the truth.

    Args:
        bundle: A bundle, or the path of one or of an ONNX file.
        backends: Names of backends; by default that of `backend_for(bundle)`.
        feeds: Arrays for the model's inputs; by default `samples` rows of `data` (see `load_dataset`), without that of the
            model's own data set, or random ones from `seed`.
        data: A data set.
        preprocess_against: An `.npz` file with the arrays that training code fed for the pictures in the folder `data`: they are
            compared with what the bundle's preprocessing makes of these.
        against: "torch" (the PyTorch program in the bundle), "reference" (the graph itself), another ONNX file or bundle; see
            `choose_against` for the default.
        samples: Rows to run.
        seed: Of random inputs.
        threads: CPU threads; 0 takes every CPU this process may use.
        device: Index of the GPU, for backends on one.
        optimization: How far the runtime may rewrite the graph ("none", "basic", "extended", "all"), where it has such a switch.
        settings: Further fields of `backends.Options` for every session, such as spin or autocast.
        accept: Findings that are reported and do not fail a backend: "nan-not-propagated" for Relus that return a number for NaN.
        progress: Called with the name of each step before it starts.

    Raises:
        InputError: If a file or array is not valid.
        UsageError: If an argument makes no sense.
        BackendUnavailable: If a backend is not usable here.
        Unsupported: If a backend cannot run the model.
    """
    started = time.perf_counter()
    if optimization not in OPTIMIZATIONS:
        raise UsageError(f"there is no optimization level {optimization!r}", f"one of: {', '.join(OPTIMIZATIONS)}")
    for finding in accept:
        if finding != NAN_NOT_PROPAGATED:
            raise UsageError(f"there is no finding {finding!r} to accept", f"one of: {NAN_NOT_PROPAGATED}")
    for name in backends:
        require(name)
    bundle = Bundle.open(bundle, {name: np.shape(array) for name, array in (feeds or {}).items()})
    backends = backends or [backend_for(bundle)]
    preprocess = None
    if preprocess_against is not None:
        if data is None:
            raise UsageError("--preprocess-against needs the pictures", "give their folder with --data")
        preprocess = compare_preprocess(bundle, preprocess_against, data, progress)
    bundle = bundle.with_sizes_of(feeds or {})
    arrays, described = _inputs(bundle, feeds, data, samples, seed)
    # Idle threads that spin would take processor time from the truth, which is evaluated meanwhile.
    options = {"threads": threads, "device": device, "optimization": optimization, "spin": False, **(settings or {})}
    autocast = _autocast(bundle, backends, options)
    with ExitStack() as stack:
        compared = stack.enter_context(comparable(bundle, against, backends, arrays, options))
        model = read_model(compared.bundle.onnx)
        precision, quantized = _compared_precision(model, compared.against)
        plan = VerifyPlan(
            bundle=compared.bundle,
            reference=compared.reference,
            model=model,
            precision=autocast or precision,
            quantized=quantized,
            autocast=autocast,
            relus=relus_to_compare(model, compared.against),
            feeds=arrays,
            options=options,
            seed=seed,
            accepted=accept,
            random=compared.random,
            unknown=compared.unknown,
            evaluated=compared.evaluated,
            origins=compared.origins,
            hidden=[relu.node for relu in find_relus(model) if not relu.observable],
        )
        check_memory(model, plan.relus, arrays, bundle.name)
        source, truth, measurements = _evaluate_and_measure(plan, compared.against, backends, progress)
        stack.enter_context(closing(source))
        reports = [_confirmed(plan, source, truth, judge(plan, truth, measured)) for measured in measurements]
        # A graph whose Relus and outputs all agree has no fault, unless the noise is so large that it could hide one, or an
        # operator that only a runtime has makes a map of the numbers, which is not compared.
        if truth.is_blurred or plan.unknown or any(report.failing() for report in reports):
            progress("locating the node at fault")
            reports = _with_faults(plan, source, truth, reports)
    return VerifyReport(
        model=bundle.name,
        against=compared.shown,
        precision=plan.precision,
        inputs=described,
        backends=reports,
        seconds=time.perf_counter() - started,
        random=plan.random,
        unknown=plan.unknown,
        preprocess=preprocess,
        program_verdict=bundle.program_verdict,
        program_unknown=why_not_compared(bundle, compared.shown),
    )


def _autocast(bundle: Bundle, backends: Sequence[str], options: Mapping[str, Any]) -> str:
    """Return the precision in which the backends may compute float32 nodes, "" for none."""
    stored = (stored_settings(bundle, name).get("autocast", "") for name in backends)
    return str(options.get("autocast") or next(filter(None, stored), ""))


def _compared_precision(model: ir.Model, against: str) -> tuple[str, Quantized]:
    """Return the precision of `model` in the comparison, and how it quantizes.

    Weights of a few bits are as coarse as 8-bit operands where they are compared with those of a graph that has all bits.
    """
    precision, quantized = precision_of(model), quantized_parts(model)
    packs = has_packed_weights(model)
    if packs and (against == "reference" or (against != "torch" and has_packed_weights(read_model(Bundle.open(against).onnx)))):
        return precision, quantized._replace(weight_levels=EIGHT_BITS.weight_levels)
    return max(precision, "int8", key=PRECISIONS.index) if packs else precision, quantized


def _inputs(
    bundle: Bundle, feeds: Feeds | None, data: str | os.PathLike[str] | None, samples: int, seed: int
) -> tuple[Feeds, dict[str, Any]]:
    """Return the arrays to run, and where they came from."""
    if feeds is not None and data is not None:
        raise UsageError("arrays and --data cannot be given together", "give --inputs or --data")
    described: dict[str, Any] = {"source": "given", "seed": None}
    if feeds is None:
        from relu_deploy.data.datasets import sample_feeds

        feeds, described = sample_feeds(bundle, samples, seed, None if data is None else str(data))
    given = feeds
    feeds = check_feeds(given, bundle.inputs, bundle.name)
    if empty := [spec.name for spec in bundle.inputs if 0 not in spec.shape and not feeds[spec.name].size]:
        raise InputError(f"{bundle.name}: input {empty[0]!r} has no rows: there is nothing to compare", "give at least one row")
    return feeds, {**described, "shapes": {name: list(array.shape) for name, array in feeds.items()}}


def _evaluate_and_measure(
    plan: VerifyPlan, against: str, backends: Sequence[str], progress: Progress
) -> tuple[Source, Truth, list[Measurement]]:
    """Return the open source of the truth, the truth, and what each backend returned, evaluating and measuring concurrently.

    Loading PyTorch and its program keeps one core busy with Python: other runtimes use the other cores meanwhile. Backends
    that run the PyTorch program come after the truth, because two threads must not load it at once. So do all where a graph has
    Loops: the evaluation ends one that runs too long, and no runtime does.
    """
    iterates = any(node.op_type in ITERATING for node, _ in iterate_nodes(plan.model))
    with ThreadPoolExecutor(1) as pool:
        concurrent = [name for name in backends if not capabilities(name).runs_program and not iterates]
        started = {name: pool.submit(measure, plan, name) for name in concurrent}
        progress(f"truth in float64, against {against}")
        source = open_source(plan.bundle, against, plan.relus, plan.reference)
        truth = find_truth(source, plan.feeds, plan.precision, plan.quantized)
        measurements = []
        for name in backends:
            progress(name)
            measurements.append(started[name].result() if name in started else measure(plan, name))
    return source, truth, measurements


def _confirmed(plan: VerifyPlan, source: Source, truth: Truth, report: BackendReport) -> BackendReport:
    """Return the report without failed checks of the batch that the truth fails as well: then the rows depend on each other."""
    if all(check.passed is not False for check in report.checks):
        return report
    checks = list(report.checks)
    # The program may be exported for one batch size.
    with suppress(ReluDeployError), _evaluated_for_batches(plan, source) as evaluate:
        of_source = run_invariance_checks(plan.bundle, evaluate, plan.feeds, evaluate(plan.feeds), plan.seed)
        checks = confirm_by_truth(checks, check_invariance(of_source, truth.noise_floor, truth.values, truth.precision))
    return replace(report, checks=checks)


@contextmanager
def _evaluated_for_batches(plan: VerifyPlan, source: Source) -> Iterator[Callable[[Feeds], Feeds]]:
    """Yield the float64 evaluation that says whether rows depend on each other: the source of the truth.

    It is the graph under test where that chooses one scale for all rows when it runs, which the graph that it was made of does not.
    """
    if not any("Dynamic" in node.op_type for node, _ in iterate_nodes(plan.model)):
        yield source.evaluate
        return
    with closing(cast(TruthSession, load(plan.bundle, "reference", **plan.reference))) as session:
        yield lambda feeds: arrays_of(session.evaluate(feeds))


def _with_faults(plan: VerifyPlan, source: Source, truth: Truth, reports: Sequence[BackendReport]) -> list[BackendReport]:
    """Return the reports with the nodes at fault: those of the graph, which every backend runs, else each backend's own."""
    of_graph = faults_of_graph(plan, source)
    located = []
    for report in reports:
        faults: Sequence[Fault] = of_graph or report.faults
        if not faults and not report.differing():
            faults = _lost_nan(plan, report)
        elif not faults:
            backend = BackendUnderTest(report.name, plan.options, plan.precision, plan.reference)
            fault = locate_on_backend(plan.bundle, backend, report.differing(), truth.values, plan.feeds)
            faults = [fault] if fault else []
        # A backend that runs the PyTorch program does not have the faults of the graph.
        applies = not capabilities(report.name).runs_program or bool(report.failing())
        report = replace(report, faults=tuple(faults) if applies else ())  # noqa: PLW2901
        located.append(accept_clipped_elements(report, plan.precision))
    return located


def _lost_nan(plan: VerifyPlan, report: BackendReport) -> list[Fault]:
    """Return the first Relu that returns a number for NaN, of a backend whose numbers all agree; empty if there is none."""
    nodes = {str(node.name): node for node in plan.model.graph}
    lost = [one.relu.node for one in report.relus if one.contract is not None and one.contract.broken and one.relu.node in nodes]
    return [
        Fault.at(nodes[name], report.name, ("NaN", "it returns a number for NaN; all numbers agree"), None) for name in lost[:1]
    ]
