"""Comparison of an engine with its graph, region by region, from the tensors that the engine itself shows.

Marking a tensor as an output makes an engine write it, and breaks the fusions that ship. So a second engine is built that
shows the tensors it writes anyway (`BuildOptions.observable`), and is compared with the one that ships: the same layers, the
same kernels, the same bits in the outputs. The results then hold for both.

    local         the region evaluated in float64 from the tensors that the engine showed before it
    accumulated   the whole graph evaluated in float64 from the inputs

The verdict is that of `verdict.py`. The rounding inside a region follows from the types of its nodes; codes that it reads are
exact, and codes that it writes are right to one rounding. So the local error of an int8 region is judged in units of float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from relu_deploy.backends import load
from relu_deploy.backends.base import TruthSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, Unsupported
from relu_deploy.graph import Relu, find_relus, load_model, precision_of
from relu_deploy.graph.shapes.shape_inference import infer_shapes
from relu_deploy.tensors import Feeds, check_feeds
from relu_deploy.verification.engine.fusion_regions import Coverage, EngineTrace, Region, build_trace, coverage_of, regions_of
from relu_deploy.verification.engine.layers import EngineDifference, InspectedEngine, ObservedEngine, compare_layers, read_layers
from relu_deploy.verification.engine.replay import Evaluations, compare_shown, contract_of, evaluate, rounds_to, shapes_at
from relu_deploy.verification.judging.contract import Contract
from relu_deploy.verification.judging.verdict import Comparison, compare
from relu_deploy.verification.locating.classify import describe
from relu_deploy.verification.locating.fault import Fault
from relu_deploy.verification.locating.node_error import STORAGE
from relu_deploy.verification.tapping import same_bits

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["AuditReport", "RegionReport", "audit", "audit_session"]


@dataclass(frozen=True)
class RegionReport:
    """The verdicts on one region.

    Attributes:
        precision: The coarsest that it rounds to.
        local: None where there is no verdict, with the reason in `note`.
        accumulated: None for a copy.
    """

    region: Region
    precision: str
    local: Comparison | None
    accumulated: Comparison | None
    note: str = ""

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in (self.local, self.accumulated) if verdict is not None)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.region.to_json(),
            "precision": self.precision,
            "passed": self.passed,
            "local": self.local.to_json() if self.local else None,
            "accumulated": self.accumulated.to_json() if self.accumulated else None,
            "note": self.note,
        }


@dataclass(frozen=True)
class AuditReport:
    """The result of the audit of an engine.

    Attributes:
        outputs: Of the engine that ships, compared with the truth.
        contracts: Of the Relus that were observed, by tensor.
        difference: Between the layers of the two engines.
        spread: Largest difference of an output between the two engines; None where all their bits are the same.
        captured: Number of tensors that the engine showed.
        unmatched: Captured tensors that no layer writes.
        faults: The regions whose local error is not noise and the Relus that break the contract, in the engine's order.
    """

    backend: str
    model: str
    precision: str
    outputs: Mapping[str, Comparison]
    regions: Sequence[RegionReport]
    relus: Sequence[Coverage]
    contracts: Mapping[str, Contract]
    difference: EngineDifference
    spread: float | None
    captured: int
    unmatched: Sequence[str]
    faults: Sequence[Fault]
    seconds: float

    @property
    def passed(self) -> bool:
        """Return whether every tensor that was compared is right; how many were compared is in `coverage`."""
        verdicts = [*(report.passed for report in self.regions), *(one.passed for one in self.outputs.values())]
        return all(verdicts) and not any(contract.broken for contract in self.contracts.values())

    @property
    def as_deployed(self) -> bool:
        """Return whether the observed engine has the layers, kernels and output bits of the one that ships."""
        return self.difference.is_same and self.spread is None

    @property
    def first_divergence(self) -> str | None:
        return self.faults[0].node if self.faults else None

    @property
    def worst(self) -> RegionReport | None:
        """Return the region with the largest local error, in units of its noise."""
        judged = [report for report in self.regions if report.local is not None]
        return max(judged, key=lambda report: report.local.error_ratio if report.local else 0.0, default=None)

    @property
    def coverage(self) -> dict[str, int]:
        return {state: sum(one.state == state for one in self.relus) for state in ("observed", "inside", "unobserved")}

    def to_json(self) -> dict[str, Any]:
        spread = self.spread if self.spread is not None and np.isfinite(self.spread) else None
        return {
            "backend": self.backend,
            "model": self.model,
            "precision": self.precision,
            "passed": self.passed,
            "as_deployed": self.as_deployed,
            "first_divergence": self.first_divergence,
            "faults": [fault.to_json() for fault in self.faults],
            "coverage": self.coverage,
            "engine": {**self.difference.to_json(), "same_outputs": self.spread is None, "output_spread": spread},
            "captured": self.captured,
            "unmatched": list(self.unmatched),
            "outputs": [{"name": name, **one.to_json()} for name, one in self.outputs.items()],
            "worst_region": self.worst.region.tensor if self.worst else None,
            "regions": [report.to_json() for report in self.regions],
            "relus": [
                {**one.to_json(), "contract": self.contracts[one.at].to_json() if one.state == "observed" else None}
                for one in self.relus
            ],
            "seconds": round(self.seconds, 3),
        }


def audit_session(bundle: Bundle, backend: str, feeds: Feeds, shipping: Any) -> tuple[AuditReport | None, str]:
    """Return the audit of the engine that `shipping`, a TensorRT session, runs; None and the reason when it cannot be inspected."""
    from relu_deploy.backends.tensorrt.capture import observed_twin

    try:
        observed = observed_twin(backend, bundle, shipping)
    except Unsupported as error:
        return None, f"the engine cannot be inspected ({error.message}): outputs only"
    try:
        return audit(bundle, backend, feeds, shipping, observed), ""
    except Unsupported as error:
        return None, f"the engine does not describe its layers ({error.message}): outputs only"
    finally:
        observed.close()


def audit(
    bundle: Bundle,
    backend: str,
    feeds: Feeds,
    shipping: InspectedEngine,
    observed: ObservedEngine,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> AuditReport:
    """Return the audit of an engine. A difference is a result, not an error.

    Args:
        bundle: The graph.
        backend: The name of the backend in the report.
        feeds: The inputs.
        shipping: The engine that ships.
        observed: The engine that shows its tensors.
        progress: Called with the name of each step before it starts.

    Raises:
        InputError: If the feeds do not fit, or the engine has other outputs than the graph.
        Unsupported: If the engine does not list its layers.
    """
    started = time.perf_counter()
    feeds = check_feeds(feeds, bundle.inputs, bundle.name)
    progress(f"{backend}: layers and tensors of the engine")
    shipped, outputs, captured = shipping.run(feeds), observed.run(feeds), observed.capture(feeds)
    layers = read_layers(observed.inspect(), f"the observed engine of {bundle.name}")
    difference = compare_layers(read_layers(shipping.inspect(), f"the engine of {bundle.name}"), layers)
    names = {spec.name for spec in bundle.outputs}
    if (given := {*shipped, *outputs}) != names or not names <= shipped.keys() & outputs.keys():
        raise InputError(
            f"the engines of {bundle.name} have the outputs {sorted(given)}, the graph has {sorted(names)}", "build them again"
        )
    model = load_model(bundle.onnx)
    infer_shapes(model)
    session = cast(TruthSession, load(bundle, "reference"))
    progress(f"{backend}: truth in float64")
    trace = build_trace(model, shapes_at(session, feeds), layers, captured, outputs)
    regions = regions_of(model, trace)
    precision = precision_of(model)
    whole = evaluate(session, feeds, trace.shown, {precision})
    progress(f"{backend}: {len(regions)} regions from the engine's own tensors")
    rounds = {region: rounds_to(model, region, trace) for region in regions}
    replayed = evaluate(session, feeds, trace.shown, {*rounds.values()}, replay=True)
    session.close()
    reports = [_judge(region, trace, feeds, rounds[region], precision, replayed, whole) for region in regions]
    relus = coverage_of(find_relus(model), trace, regions)
    precisions = {region.tensor: rounds[region] for region in regions if not region.is_copy}
    contracts = {
        one.at: contract_of(one.relu, trace.shown[one.at], replayed, precisions[one.at])
        for one in relus
        if one.state == "observed"
    }
    return AuditReport(
        backend,
        bundle.name,
        precision,
        {name: compare_shown(trace.shown[name], shipped[name], whole, precision) for name in sorted(names & trace.shown.keys())},
        [report for report, _ in reports],
        relus,
        contracts,
        difference,
        _spread(shipped, outputs),
        len(captured),
        trace.unmatched,
        _faults(model, backend, trace, reports, relus, contracts),
        time.perf_counter() - started,
    )


def _judge(
    region: Region, trace: EngineTrace, feeds: Feeds, rounds: str, precision: str, replayed: Evaluations, whole: Evaluations
) -> tuple[RegionReport, tuple[str, str] | None]:
    """Return the verdicts on one region, and the kind of its fault where its local error is not noise."""
    if region.is_copy:
        return _judge_copy(region, trace, feeds)
    shown = trace.shown[region.tensor]
    accumulated = compare_shown(shown, shown.value, whole, precision)
    wrong = next((name for name in region.inputs if not _is_finite(name, trace, feeds)), None)
    if wrong is not None:
        note = f"no local verdict: the engine's {wrong} holds NaN or infinity"
        return RegionReport(region, rounds, None, accumulated, note), None
    note = f"extends over other layers, because not all of its inputs were shown: {'; '.join(region.missing)}"
    local = compare_shown(shown, shown.value, replayed, rounds)
    report = RegionReport(region, rounds, local, accumulated, note if region.missing else "")
    true = shown.real(replayed["float64"][region.tensor])
    return report, None if local.passed else describe(shown.real(shown.value), true)


def _judge_copy(region: Region, trace: EngineTrace, feeds: Feeds) -> tuple[RegionReport, tuple[str, str] | None]:
    copy = next(one for one in trace.copies if one.places[-1] == region.place and one.engine_tensor == region.engine_tensor)
    source = trace.shown.get(region.tensor)
    true = (source.real(source.value) if source else feeds[region.tensor]).astype(np.float64)
    got = copy.real(copy.value)
    # A copy must be right to the last bit.
    verdict = compare(got, true, 0.0)
    return RegionReport(region, "float32", verdict, None), None if verdict.passed else describe(got, true)


def _is_finite(name: str, trace: EngineTrace, feeds: Feeds) -> bool:
    value = trace.shown[name].real(trace.shown[name].value) if name in trace.shown else feeds[name]
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())


def _spread(shipped: Feeds, outputs: Feeds) -> float | None:
    if all(same_bits(shipped[name], outputs[name]) for name in shipped):
        return None
    if any(array.shape != outputs[name].shape for name, array in shipped.items()):
        return np.inf
    with np.errstate(invalid="ignore"):
        apart = [np.abs(array.astype(np.float64) - outputs[name].astype(np.float64)) for name, array in shipped.items()]
    return max(float(np.max(np.nan_to_num(each, nan=np.inf), initial=0)) for each in apart)


def _faults(
    model: ir.Model,
    backend: str,
    trace: EngineTrace,
    reports: Sequence[tuple[RegionReport, tuple[str, str] | None]],
    relus: Sequence[Coverage],
    contracts: Mapping[str, Contract],
) -> list[Fault]:
    """Return the faults in the order in which the engine runs. A Relu whose region is wrong is not named again."""
    found = [(report.region.place, _fault(model, backend, report, *kind)) for report, kind in reports if kind is not None]
    wrong = {report.region.tensor for report, kind in reports if kind is not None}
    for one in relus:
        if one.state == "observed" and one.at not in wrong and contracts[one.at].broken:
            found.append((trace.shown[one.at].places[-1], _broken(model, backend, one.relu, contracts[one.at].broken)))
    return [fault for _, fault in sorted(found, key=lambda each: each[0])]


def _fault(model: ir.Model, backend: str, report: RegionReport, kind: str, detail: str) -> Fault:
    region = report.region
    nodes = {str(node.name): node for node in model.graph}
    made = {str(value.name): node for node in model.graph for value in node.outputs}
    if region.is_copy:
        node = made.get(region.tensor) or next(
            node for node in model.graph if region.tensor in [v.name for v in node.inputs if v]
        )
        detail = f"{detail}; in the copy that layer {region.layer!r} makes of {region.tensor}"
    else:
        # The last node that computes is named, not one that only stores the result; the region lists all of them.
        inside = [nodes[name] for name in region.nodes]
        node = next((one for one in reversed(inside) if one.op_type not in STORAGE), inside[-1])
        detail = f"{detail}; layer {region.layer!r} on the tensors that the engine showed before it"
    ratio = report.local.error_ratio if report.local else None
    return Fault.at(node, backend, (kind, detail), ratio, region.nodes)


def _broken(model: ir.Model, backend: str, relu: Relu, broken: str) -> Fault:
    operator = next(node.op_type for node in model.graph if node.name == relu.node)
    return Fault(relu.node, operator, relu.scope, backend, "contract", broken, None, (relu.node,))
