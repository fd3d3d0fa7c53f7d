"""Recipes that write a precision into a graph, with one interface for the search that returns segments to float32.

A recipe knows its segments (what ends in one Relu) and builds the graph in which those in `off` stay float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.quantization.cast_precision import cast_model
from relu_deploy.graph.quantization.qdq import SCHEMES, quantize
from relu_deploy.graph.quantization.qdq_placement import WEIGHTED, QdqPlacement, place_qdq, segments_of
from relu_deploy.optimization.accuracy.calibration import Statistics, range_of
from relu_deploy.optimization.targets import PRECISIONS

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Casts", "PrecisionRecipe", "Quantized", "Unchanged", "calibrated_tensors"]

#: of the CPU's 8-bit products, 7 bits of weights keep sums of two from overflowing 16 bits on processors without VNNI
SAFE_LEVELS = 63


class PrecisionRecipe(Protocol):
    """The interface that the search uses."""

    @property
    def segments(self) -> list[str]:
        """Return the segments that can return to float32, in the graph's order."""
        ...

    def build(self, off: Collection[str] = ()) -> ir.Model:
        """Return the graph in this precision, the segments `off` in float32."""
        ...

    def float_nodes(self, off: Collection[str] = ()) -> dict[str, str]:
        """Return the nodes with arithmetic that stay float32 although their segment is not in `off`, each with the reason."""
        ...


@dataclass(frozen=True)
class Unchanged:
    """The prepared graph itself: float32, or one that was quantized where it was trained."""

    model: ir.Model

    @property
    def segments(self) -> list[str]:
        return []

    def build(self, off: Collection[str] = ()) -> ir.Model:  # noqa: ARG002
        return self.model

    def float_nodes(self, off: Collection[str] = ()) -> dict[str, str]:  # noqa: ARG002
        return {}


@dataclass(frozen=True)
class Quantized:
    """int8 or fp8, as `placement` (of "cpu", "openvino" or "tensorrt") wants it.

    weight_bits: 8, or 7 for CPUs without VNNI. excluded: nodes that stay float32 whatever the search finds, with the reason.
    """

    model: ir.Model
    precision: str
    placement: str
    statistics: Mapping[str, Statistics]
    method: str = "mse"
    per_channel: bool = True
    correct_biases: bool = True
    weight_bits: int = 8
    excluded: Mapping[str, str] = field(default_factory=dict)

    def _placed(self, off: Collection[str] = ()) -> QdqPlacement:
        return place_qdq(self.model, self.placement, PRECISIONS[self.precision], off, self.excluded)

    @property
    def segments(self) -> list[str]:
        return self._placed().segments

    def build(self, off: Collection[str] = ()) -> ir.Model:
        placed = self._placed(off)
        scheme = SCHEMES[self.placement, PRECISIONS[self.precision]]
        levels = SAFE_LEVELS if self.weight_bits == 7 else scheme.levels
        scheme = replace(scheme, per_channel=self.per_channel, levels=levels)
        means = {name: one.means for name, one in self.statistics.items()} if self.correct_biases else None
        return quantize(self.model, placed, self._ranges, scheme, means)

    @cached_property
    def _ranges(self) -> Mapping[str, tuple[float, float]]:
        scheme = SCHEMES[self.placement, PRECISIONS[self.precision]]
        return {name: range_of(one, self.method, scheme.kind(one.low)) for name, one in self.statistics.items()}

    def float_nodes(self, off: Collection[str] = ()) -> dict[str, str]:
        inside = {
            str(node.name): "it is inside the body of an If, Loop or Scan"
            for node, path in iterate_nodes(self.model)
            if path and node.op_type in WEIGHTED
        }
        return inside | dict(self._placed(off).refused) | dict(self.excluded)


@dataclass(frozen=True)
class Casts:
    """fp16 or bf16. keep: nodes that must stay float32 whatever the search finds, with the reason."""

    model: ir.Model
    precision: str
    keep: Mapping[str, str]

    @property
    def segments(self) -> list[str]:
        return list(dict.fromkeys(segments_of(self.model).values()))

    @property
    def converts(self) -> bool:
        """Whether any node is in 16 bits while no segment is in float32."""
        return cast_model(self.model, PRECISIONS[self.precision], self._kept(())).report.converted > 0

    def _kept(self, off: Collection[str]) -> dict[str, str]:
        back = {name: "accuracy" for name, segment in segments_of(self.model).items() if segment in off}
        return back | dict(self.keep)

    def build(self, off: Collection[str] = ()) -> ir.Model:
        return cast_model(self.model, PRECISIONS[self.precision], self._kept(off)).model

    def float_nodes(self, off: Collection[str] = ()) -> dict[str, str]:
        report = cast_model(self.model, PRECISIONS[self.precision], self._kept(off)).report
        return {name: why for name, why in report.float32_nodes.items() if why != "accuracy"}


def calibrated_tensors(model: ir.Model, precision: str, placement: str) -> Sequence[str]:
    """Return the tensors whose statistics the recipe of `precision` needs."""
    import onnx_ir as ir

    if precision in ("int8", "fp8"):
        placed = place_qdq(model, placement, PRECISIONS[precision])
        nodes = {str(node.name): node for node in model.graph}
        read = [str(nodes[name].inputs[position].name) for name, position in sorted(placed.reads)]  # type: ignore[union-attr]
        return list(dict.fromkeys([*read, *sorted(placed.results), *sorted(frozenset().union(*placed.moved, *placed.joined))]))
    made = [value for node in model.graph for value in node.outputs if isinstance(value.type, ir.TensorType)]
    return [str(value.name) for value in made if value.dtype == ir.DataType.FLOAT]
