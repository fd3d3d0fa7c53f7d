"""Where the time of a model goes: the runtime's own times of its layers, by Relu segment, beside the roofline of the CPU.

    limit = max(flops / matrix rate, bytes / copy rate)      share = limit / time

`bytes` is what one kernel for the whole segment would move. The rates are those of `roofline.py`: the matrix rate is that of
float32, so other precisions have no limit. The copy rate is that of main memory: a segment whose tensors stay in the caches can
be faster than its limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from relu_deploy.backends.layer_times import LayerTime, LayerTimes
from relu_deploy.benchmark.roofline import Machine
from relu_deploy.bundle import Bundle
from relu_deploy.graph import load_model
from relu_deploy.graph.segments import Segment, SegmentCost, count_segment_costs, divide_at_relus, divide_like

__all__ = ["LayerReport", "SegmentTime", "profile_by_segment"]


@dataclass(frozen=True)
class SegmentTime:
    """The time of one segment of the graph.

    Attributes:
        segment: The segment.
        layers: The runtime's layers that compute it.
        cost: Its operations and bytes.
        machine: Rates for its limit, None if they are not known for its precision.
    """

    segment: Segment
    layers: Sequence[LayerTime]
    cost: SegmentCost
    machine: Machine | None

    @property
    def milliseconds(self) -> float:
        """Time of all layers."""
        return sum(layer.milliseconds for layer in self.layers)

    @property
    def limits(self) -> dict[str, float]:
        """Milliseconds that the operations and the bytes would take at the rates of the machine; empty if not known."""
        if self.machine is None or self.cost.flops is None or self.cost.bytes is None:
            return {}
        return {
            "compute": 1e3 * self.cost.flops / self.machine.flops_per_second,
            "memory": 1e3 * self.cost.bytes / self.machine.bytes_per_second,
        }

    def to_json(self) -> dict[str, Any]:
        """Return an entry of `segments`."""
        relu, time, limits = self.segment.relu, self.milliseconds, self.limits
        bound = max(limits, key=limits.__getitem__) if limits else None
        rate = None if self.cost.flops is None or not time else self.cost.flops / time / 1e6
        return {
            "relu": None if relu is None else relu.node,
            "index": None if relu is None else relu.index,
            "scope": "" if relu is None else relu.scope,
            "nodes": list(self.segment.nodes),
            "milliseconds": round(time, 6),
            "flops": self.cost.flops,
            "bytes": self.cost.bytes,
            "gflops_per_s": None if rate is None else round(rate, 6),
            "limit_ms": None if bound is None else round(limits[bound], 6),
            "limited_by": bound,
            "share": None if bound is None or not time else round(limits[bound] / time, 4),
            "layers": [layer.to_json() for layer in self.layers],
        }


@dataclass(frozen=True)
class LayerReport:
    """The times of a model's layers on a backend.

    Attributes:
        segments: In the order of their Relus.
        added: Layers that the runtime added and that compute no node of the graph.
        times: The times that the runtime reported.
    """

    segments: Sequence[SegmentTime]
    added: Sequence[LayerTime]
    times: LayerTimes

    def to_json(self) -> dict[str, Any]:
        """Return the field `layers` of a run."""
        return {
            "runs": self.times.runs,
            "call_ms": round(self.times.call_milliseconds, 6),
            "layers_ms": round(sum(layer.milliseconds for layer in self.times.layers), 6),
            "segments": [segment.to_json() for segment in self.segments],
            "added": [layer.to_json() for layer in self.added],
        }


def profile_by_segment(bundle: Bundle, variant: Bundle, times: LayerTimes, batch: int, machine: Machine | None) -> LayerReport:
    """Return the times of layers by segment.

    Args:
        bundle: The model, whose Relus divide the graph and whose operations are counted.
        variant: What ran: a variant of it, whose bytes are counted, or `bundle` itself.
        times: The times of its layers.
        batch: Rows in a run.
        machine: Rates of the CPU for the precision of the run, None if they are not known.
    """
    model, graph = load_model(bundle.onnx), load_model(variant.onnx)
    original = divide_at_relus(model)
    segments = divide_like(graph, original)
    operations = count_segment_costs(model, original, batch)
    moved = count_segment_costs(graph, segments, batch)
    members: list[list[LayerTime]] = [[] for _ in segments]
    added: list[LayerTime] = []
    for layer in times.layers:
        # The kernel of several segments ends in the last one.
        places = [index for index, segment in enumerate(segments) if not set(layer.nodes).isdisjoint(segment.nodes)]
        (members[max(places)] if places else added).append(layer)
    found = [
        SegmentTime(segment, layers, SegmentCost(one.flops, other.bytes), machine)
        for segment, layers, one, other in zip(segments, members, operations, moved, strict=True)
    ]
    return LayerReport(found, added, times)
