"""Move the Q/DQ pairs of a trained quantized graph to where a target's kernels read them, without changing a scale.

Every step gives the same numbers as before:

1. Quantized constants are stored in 8 bits: exporters write float weights and a QuantizeLinear, some with a Clip behind it.
2. A Clip of stored activations becomes a Clip of the float tensor: rounding keeps the order of numbers.
3. int8 activations with zero point z are uint8 ones with zero point z + 128 (cpu), and the reverse (tensorrt).
4. cpu: a Conv's kernel gives 8 bits only if a QuantizeLinear reads its result. Where a Relu, Clip, pool or reshape is in between,
   which keep the order of numbers, a second pair with the same scale is put before it.

What has no such form is named. For TensorRT, whose kernels are symmetric, asymmetric pairs are removed and their readers compute
in float; int32 biases become float ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.domains import is_standard
from relu_deploy.graph.quantization.qdq_pairs import (
    constant_input,
    dequantize_constant,
    fold_constant_quantizers,
    insert_pair,
    new_constant,
    readers_of,
    scale_of,
    set_zero_point,
    zero_point_of,
)
from relu_deploy.graph.quantization.qdq_placement import MOVING, WEIGHTED
from relu_deploy.graph.rewriting.pass_result import PassResult
from relu_deploy.graph.rewriting.simplify import lift_constants
from relu_deploy.records import JsonRecord
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["RetargetReport", "has_qdq", "retarget_qdq"]

#: operators that keep the order of numbers, so that quantizing before and behind them is the same
MONOTONIC = (*MOVING, "Clip", "Relu")
#: the one change after which numbers differ
REMOVED = "pairs removed"


@dataclass(frozen=True)
class RetargetReport(JsonRecord):
    """What became of the Q/DQ pairs.

    Attributes:
        pairs: Activations that are quantized.
        changes: What was rewritten, with the number of places.
        float_nodes: Nodes with weights that compute in float32, with the reason.
    """

    pairs: int
    changes: Mapping[str, int]
    float_nodes: Mapping[str, str]

    @property
    def keeps_numbers(self) -> bool:
        """Whether the graph gives the same numbers as before: nothing was removed."""
        return REMOVED not in self.changes


def has_qdq(model: ir.Model) -> bool:
    """Return whether activations of `model` are quantized by Q/DQ pairs."""
    return {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph}


def retarget_qdq(model: ir.Model, target: str, excluded: Mapping[str, str] | None = None) -> PassResult[RetargetReport]:
    """Return `model` with its Q/DQ pairs as `target` ("cpu" or "tensorrt") reads them.

    Args:
        model: A graph with Q/DQ pairs.
        target: As for `place_qdq`.
        excluded: Nodes that are to compute in float32, with the reason. Their weights keep their quantized values.
    """
    work = _Retargeting(lift_constants(model))
    work.run(target, excluded or {})
    report = RetargetReport(len(work.quantizers()), dict(work.changes), dict(work.reasons))
    return PassResult(work.model, bool(work.changes), report)


@dataclass
class _Retargeting:
    """model: changed in place. reasons: nodes that compute in float32."""

    model: ir.Model
    changes: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def run(self, target: str, excluded: Mapping[str, str]) -> None:
        self._count("constants stored in 8 bits", len(fold_constant_quantizers(self.model)))
        for quantizer in self.quantizers():
            self._move_clip(quantizer)
        for node in self._weighted():
            if str(node.name) in excluded:
                self.reasons[str(node.name)] = excluded[str(node.name)]
                self._load_weights_as_float(node)
        if target == "cpu":
            self._for_cpu()
        else:
            self._for_tensorrt()
        for name, value in list(self.model.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self.model.graph.initializers[name]

    def quantizers(self) -> list[ir.Node]:
        """Return the QuantizeLinear nodes of activations."""
        return [node for node in self.model.graph if node.op_type == "QuantizeLinear" and constant_input(node, 0) is None]

    def _weighted(self) -> list[ir.Node]:
        return [node for node in self.model.graph if node.op_type in WEIGHTED and is_standard(node)]

    def _count(self, change: str, places: int = 1) -> None:
        if places:
            self.changes[change] = self.changes.get(change, 0) + places

    def _move_clip(self, quantizer: ir.Node) -> None:
        """Clip the float tensor instead of the stored numbers, where only Clips read them."""
        import onnx_ir as ir

        scale, zero = scale_of(quantizer), zero_point_of(quantizer)
        clips = readers_of(quantizer.outputs[0])
        if scale is None or scale.size != 1 or zero is None or not clips or any(each.op_type != "Clip" for each in clips):
            return
        bounds = {tuple(_bounds(clip, zero.dtype)) for clip in clips}
        if len(bounds) != 1 or any(clip.outputs[0].is_graph_output() for clip in clips):
            return
        limits, source = np.iinfo(zero.dtype), quantizer.inputs[0]
        ends = bounds.pop()
        if None in ends or source is None:
            return
        for clip in clips:
            clip.outputs[0].replace_all_uses_with(quantizer.outputs[0])
            self.model.graph.remove(clip, safe=True)
        self._count("a Clip of stored numbers moved before the QuantizeLinear")
        if ends == (limits.min, limits.max):
            return
        floats = [(np.float64(end) - np.float64(zero.reshape(()))) * np.float64(scale.reshape(())) for end in ends]  # type: ignore[arg-type]
        names = (f"{quantizer.name}/low", f"{quantizer.name}/high")
        edges = [new_constant(self.model, name, np.asarray(end, np.float32)) for name, end in zip(names, floats, strict=True)]
        clip = ir.node("Clip", [source, *edges], name=f"{quantizer.name}/Clip")
        clip.outputs[0].name, clip.outputs[0].type, clip.outputs[0].shape = f"{quantizer.name}/clipped", source.type, source.shape
        self.model.graph.insert_before(quantizer, [clip])
        quantizer.replace_input_with(0, clip.outputs[0])

    def _load_weights_as_float(self, node: ir.Node) -> None:
        for value in list(node.inputs[1:]):
            maker = value.producer() if value is not None else None
            if maker is not None and maker.op_type == "DequantizeLinear" and constant_input(maker, 0) is not None:
                dequantize_constant(self.model, maker)

    # ------------------------------------------------------------ stored numbers

    def _shift(self, quantizer: ir.Node, stored: type) -> bool:
        """Store the numbers of a pair as int8 instead of uint8 or the reverse. Return whether they are of that type now."""
        zero, loads = zero_point_of(quantizer), readers_of(quantizer.outputs[0])
        if zero is None or zero.dtype not in (np.int8, np.uint8):
            return False
        if zero.dtype == stored:
            return True
        if any(load.op_type != "DequantizeLinear" for load in loads) or quantizer.outputs[0].is_graph_output():
            return False
        moved: Array = (zero.astype(np.int64) + (128 if stored is np.uint8 else -128)).astype(stored)
        for node in (quantizer, *loads):
            set_zero_point(self.model, node, moved)
        self._count(f"activations stored as {np.dtype(stored).name}")
        return True

    def _reason_of(self, node: ir.Node, reason: str) -> None:
        self.reasons.setdefault(str(node.name), reason)

    def _missing_pairs(self, node: ir.Node) -> str:
        """Return why `node` has no quantized operands, "" where it has."""
        for position, what in ((0, "its input"), (1, "its weights")):
            maker = node.inputs[position].producer() if node.inputs[position] is not None else None  # type: ignore[union-attr]
            while maker is not None and maker.op_type in MOVING:
                maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
            if maker is None or maker.op_type != "DequantizeLinear":
                return f"the graph has no Q/DQ pair on {what}"
            zero = zero_point_of(maker)
            if zero is None or zero.dtype not in (np.int8, np.uint8):
                return f"{what} {'is' if position == 0 else 'are'} stored as {zero.dtype.name if zero is not None else 'unknown'}"
        return ""

    # ------------------------------------------------------------ CPU

    def _for_cpu(self) -> None:
        for quantizer in self.quantizers():
            self._shift(quantizer, np.uint8)
        for node in self._weighted():
            if str(node.name) in self.reasons:
                continue
            self._check_bias(node)
            if reason := self._missing_pairs(node) or self._unquantized_result(node):
                self._reason_of(node, reason)

    def _check_bias(self, node: ir.Node) -> None:
        """Store an int32 bias as float32 unless its scale is the product of the input's and the weights'; kernels add no other."""
        makers = [value.producer() if value is not None else None for value in node.inputs]
        if len(makers) < 3 or any(maker is None or maker.op_type != "DequantizeLinear" for maker in makers):
            return
        source, weights, bias = (scale_of(maker) for maker in makers)  # type: ignore[arg-type]
        if source is None or weights is None or bias is None or source.size != 1:
            return
        product = np.float64(source.reshape(())) * weights.reshape(-1).astype(np.float64)
        if bias.size not in (1, product.size) or not np.allclose(bias.reshape(-1), product, rtol=1e-5, atol=0):
            self._count("biases stored in float32", int(dequantize_constant(self.model, makers[2])))  # type: ignore[arg-type]

    def _unquantized_result(self, node: ir.Node) -> str:
        """Return why the kernel of `node` cannot give 8 bits, "" where it can, after putting a pair behind it where need be."""
        value = node.outputs[0]
        if node.op_type == "ConvTranspose":
            return "ONNX Runtime has no 8-bit ConvTranspose"
        if node.op_type in ("Gemm", "MatMul") and value.is_graph_output() and not readers_of(value):
            bias = node.inputs[2].producer() if len(node.inputs) > 2 and node.inputs[2] is not None else None
            stored = len(node.inputs) < 3 or (bias is not None and bias.op_type == "DequantizeLinear")
            return "" if stored else "a Gemm that gives float32 has 8-bit kernels for an int32 bias only, and its bias is float32"
        quantizers, reason = _quantizers_behind(value)
        if reason:
            return reason
        keys = {_key(quantizer) for quantizer in quantizers}
        if len(keys) != 1:
            return "its result is quantized with several scales"
        if any(reader in quantizers for reader in readers_of(value)):
            return ""
        quantizer, zero = quantizers[0], zero_point_of(quantizers[0])
        last = value
        readers = readers_of(value)
        if zero is not None and np.all(zero == np.iinfo(zero.dtype).min) and len(readers) == 1 and readers[0].op_type == "Relu":
            # A QuantizeLinear with the smallest zero point is a Relu as well: the kernel takes both along.
            last = readers[0].outputs[0]
        if any(reader in quantizers for reader in readers_of(last)):
            return ""
        insert_pair(self.model, last, quantizer)
        self._count("pairs put before an operator that keeps the order of numbers")
        return ""

    # ------------------------------------------------------------ TensorRT

    def _for_tensorrt(self) -> None:
        removed: dict[str, str] = {}
        for quantizer in self.quantizers():
            reason = self._asymmetric(quantizer)
            if reason:
                source = quantizer.inputs[0]
                for load in readers_of(quantizer.outputs[0]):
                    if load.op_type == "DequantizeLinear" and not load.outputs[0].is_graph_output():
                        removed |= dict.fromkeys(_readers_behind(load.outputs[0]), reason)
                        load.outputs[0].replace_all_uses_with(source)  # type: ignore[arg-type]
                        self.model.graph.remove(load, safe=True)
                if not readers_of(quantizer.outputs[0]) and not quantizer.outputs[0].is_graph_output():
                    self.model.graph.remove(quantizer, safe=True)
                self._count(REMOVED)
        for node in self._weighted():
            self._for_tensorrt_node(node, removed)

    def _for_tensorrt_node(self, node: ir.Node, removed: Mapping[str, str]) -> None:
        makers = [value.producer() if value is not None else None for value in node.inputs]
        if len(makers) > 2 and makers[2] is not None and makers[2].op_type == "DequantizeLinear":
            self._count("biases stored in float32", int(dequantize_constant(self.model, makers[2])))
        if str(node.name) in self.reasons:
            return
        weights = makers[1] if len(makers) > 1 else None
        reason = removed.get(str(node.name)) or self._missing_pairs(node)
        if not reason and weights is not None and weights.op_type == "DequantizeLinear":
            reason = self._asymmetric_weights(weights)
        if reason:
            self._reason_of(node, reason)
            self._load_weights_as_float(node)

    def _asymmetric(self, quantizer: ir.Node) -> str:
        """Return why TensorRT cannot read a pair, "" where it can, after storing it as int8."""
        scale, zero = scale_of(quantizer), zero_point_of(quantizer)
        if zero is None or scale is None:
            return "its input's scale is computed"
        if zero.dtype.kind not in "iu":
            return ""
        symmetric = (zero.dtype == np.int8 and not zero.any()) or (zero.dtype == np.uint8 and bool(np.all(zero == 128)))
        if not symmetric:
            numbers = ", ".join(map(str, np.unique(zero)[:3]))
            return f"its input is stored as {zero.dtype.name} with zero point {numbers}, and TensorRT's int8 is symmetric"
        if scale.size != 1:
            return "its input has a scale for each channel"
        return "" if self._shift(quantizer, np.int8) else "its stored input is read by another operator"

    def _asymmetric_weights(self, load: ir.Node) -> str:
        zero, stored = zero_point_of(load), constant_input(load, 0)
        if zero is None or stored is None or zero.dtype.kind not in "iu":
            return ""
        if zero.dtype == np.int8 and not zero.any():
            return ""
        if zero.dtype == np.uint8 and np.all(zero == 128):
            shifted = (stored.astype(np.int64) - 128).astype(np.int8)
            load.replace_input_with(0, new_constant(self.model, f"{load.name}/int8", shifted))
            set_zero_point(self.model, load, np.zeros(zero.shape, np.int8))
            self._count("weights stored as int8")
            return ""
        numbers = ", ".join(map(str, np.unique(zero)[:3]))
        return f"its weights are stored as {zero.dtype.name} with zero point {numbers}, and TensorRT's int8 is symmetric"


def _bounds(clip: ir.Node, dtype: Any) -> list[int | None]:
    """Return the constant bounds of an integer Clip, None for one that is computed."""
    found: list[int | None] = []
    for position, limit in ((1, np.iinfo(dtype).min), (2, np.iinfo(dtype).max)):
        missing = position >= len(clip.inputs) or clip.inputs[position] is None
        constant = constant_input(clip, position)
        found.append(int(limit) if missing else None if constant is None else int(constant.reshape(())))
    return found


def _quantizers_behind(value: ir.Value) -> tuple[list[ir.Node], str]:
    """Return the QuantizeLinear nodes that read `value`, directly or behind operators that keep the order of numbers.

    The second result says why there are none, or what else reads it.
    """
    found: list[ir.Node] = []
    waiting, seen = [value], {id(value)}
    while waiting:
        one = waiting.pop()
        if one.is_graph_output():
            return [], "its result leaves the graph in float32"
        for reader in readers_of(one):
            if reader.op_type == "QuantizeLinear":
                found.append(reader)
            elif reader.op_type in MONOTONIC and _keeps_order(reader):
                if id(reader.outputs[0]) not in seen:
                    seen.add(id(reader.outputs[0]))
                    waiting.append(reader.outputs[0])
            else:
                return [], f"its result is read in float32 by {reader.name} ({reader.op_type}): the graph has no scale for it"
    return found, "" if found else "nothing reads its result in 8 bits"


def _readers_behind(value: ir.Value) -> set[str]:
    """Return the names of the nodes that read `value`, directly or behind operators that only move numbers."""
    found: set[str] = set()
    for reader in readers_of(value):
        found |= _readers_behind(reader.outputs[0]) if reader.op_type in MOVING else {str(reader.name)}
    return found


def _keeps_order(node: ir.Node) -> bool:
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    if node.op_type == "Clip":
        positions: Collection[int] = range(1, len(node.inputs))
        return all(node.inputs[position] is None or constant_input(node, position) is not None for position in positions)
    return len([value for value in node.outputs if value.name]) == 1


def _key(quantizer: ir.Node) -> tuple[Any, ...]:
    scale, zero = scale_of(quantizer), zero_point_of(quantizer)
    if scale is None or zero is None or scale.size != 1:
        return (str(quantizer.name),)
    return float(scale.reshape(())), int(zero.reshape(())), zero.dtype.name
