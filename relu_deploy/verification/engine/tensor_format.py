"""Decoding of an engine's buffers: from their format (`backends.tensorrt.formats`) to C order, and from codes to numbers.

A buffer whose size is not that of its format, and one in an unknown format, is not decoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from relu_deploy.backends.tensorrt.formats import channel_order, stored_shape
from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.tensors import Array
from relu_deploy.verification.engine.layers import Captured, EngineTensor
from relu_deploy.verification.judging.verdict import rms

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Quantized", "decode", "quantized_by", "same_but_ones"]

STORED = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8": np.dtype(ml_dtypes.float8_e4m3fn),
    **{name: np.dtype(name) for name in ("float32", "float16", "int8", "uint8", "int32", "int64", "bool")},
}
#: operators that only move or select numbers, so that quantizing before or behind them is the same
MOVING = ("Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


@dataclass(frozen=True)
class Quantized:
    """The scale of a tensor's codes: a number is (code - zero) * scale. codes: "int8", "uint8" or "float8"."""

    scale: float
    zero: float
    codes: str

    def real(self, codes: Array) -> Array:
        return (codes.astype(np.float64) - self.zero) * self.scale

    def nearest(self, values: Array) -> Array:
        """Return `values` quantized and dequantized: rounded, and clipped to the range."""
        steps = values / self.scale + self.zero
        if self.codes == "float8":
            limit = float(ml_dtypes.finfo(STORED["float8"]).max)
            return self.real(np.clip(steps, -limit, limit).astype(STORED["float8"]))
        limits = np.iinfo(STORED[self.codes])
        return self.real(np.clip(np.rint(steps), limits.min, limits.max))

    def noise(self, values: Array) -> float:
        """Return the RMS error of rounding `values` to the nearest code."""
        if self.codes == "float8":
            # At most half a unit in the last of three mantissa bits, evenly distributed.
            return rms(values[np.isfinite(values)]) * 2.0**-4 / math.sqrt(3)
        return self.scale / math.sqrt(12)


def decode(captured: Captured, described: EngineTensor | None) -> Array | str:
    """Return the captured tensor in its own type and shape, or why it cannot be decoded.

    described: The same tensor in the inspector's list.
    """
    layout = captured.format or (described.format if described else "")
    dtype = STORED.get(captured.dtype)
    if dtype is None:
        return f"its type {captured.dtype!r} is not decoded"
    order = channel_order(layout)
    if order is None:
        return f"its format {layout!r} is not decoded" if layout else "its format is not known"
    stored = stored_shape(captured.shape, layout)
    if stored is None:
        return f"its format {layout!r} is decoded for four dimensions, and it has {len(captured.shape)}"
    buffer = captured.data if isinstance(captured.data, bytes) else np.ascontiguousarray(captured.data).tobytes()
    if len(buffer) != math.prod(stored) * dtype.itemsize:
        return f"{len(buffer):,} bytes are not {captured.dtype} of shape {captured.shape} in format {layout!r}"
    array = np.frombuffer(buffer, dtype).reshape(stored)
    if order == (False, 1):
        return array
    batch, channels, height, width = captured.shape
    channels_last, _ = order
    if channels_last:
        return np.moveaxis(array, -1, 1)[:, :channels]
    return np.moveaxis(array, -1, 2).reshape(batch, -1, height, width)[:, :channels]


def same_but_ones(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether two shapes differ at most in dimensions of size 1; -1 in the first is any size."""
    mine, theirs = ([size for size in sizes if size != 1] for sizes in (shape, other))
    if len(mine) != len(theirs) and -1 in mine:
        # A size that varies may be 1 in this run.
        return len(shape) == len(other) and all(size in (-1, given) for size, given in zip(shape, other, strict=True))
    return len(mine) == len(theirs) and all(size in (-1, given) for size, given in zip(mine, theirs, strict=True))


def quantized_by(value: ir.Value) -> Quantized | None:
    """Return the scale of the codes of `value`, where the graph gives exactly one, else None.

    That is the scale of its own QuantizeLinear, or of the DequantizeLinear it comes from; for a tensor of floats that an engine
    keeps as codes, the one scale that all its readers, behind operators that only move numbers, quantize to.
    """
    node = value.producer()
    if node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _scale_of(node)
    found = _read_as(value)
    return found.pop() if found is not None and len(found) == 1 else None


def _read_as(value: ir.Value) -> set[Quantized] | None:
    """Return the quantizations that read `value`, None when another operator reads it."""
    readers = list(value.uses())
    if not readers or value.is_graph_output():
        return None
    found: set[Quantized] = set()
    for node, position in readers:
        if node.op_type == "QuantizeLinear" and position == 0:
            scale = _scale_of(node)
            behind = None if scale is None else {scale}
        else:
            behind = _read_as(node.outputs[0]) if node.op_type in MOVING and position == 0 else None
        if behind is None:
            return None
        found |= behind
    return found


def _scale_of(node: ir.Node) -> Quantized | None:
    scale = constant_of(node.inputs[1]) if node.inputs[1] is not None else None
    zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    codes = node.outputs[0].dtype if node.op_type == "QuantizeLinear" else node.inputs[0].dtype if node.inputs[0] else None
    named = next((name for name in ("uint8", "int8", "float8") if codes is not None and codes.name.lower().startswith(name)), "")
    return Quantized(float(scale.reshape(-1)[0]), float(zero.reshape(-1)[0]), named) if named else None
