"""The numbers in a buffer of an engine: its format taken apart, its codes turned back into what they stand for.

    format, in the inspector's words                          what lies where, for a tensor (N, C, H, W)
    Row major linear FP32 · Row major Int8 format · Half      [N][C][H][W]
    Thirty-two wide channel vectorized row major Int8 format  [N][ceil(C/32)][H][W][32]
    Channel major FP16 format where channel % 8 == 0          [N][H][W][ceil(C/8)*8]

The formats are those that NVIDIA documents for `TensorFormat`. A buffer that has not exactly the size of its format, and a
format that says more than this (a stride in H) or nothing ("N/A due to dynamic shapes"), is not decoded.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from relu_deploy.graph.intervals.operands import constant_of
from relu_deploy.tensors import Array
from relu_deploy.verification.engine.layers import DTYPES, Captured, EngineTensor
from relu_deploy.verification.verdict import rms

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Quantized", "decode", "quantized_by", "same_but_ones"]

STORED = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8": np.dtype(ml_dtypes.float8_e4m3fn),
    **{name: np.dtype(name) for name in ("float32", "float16", "int8", "uint8", "int32", "int64", "bool")},
}
WIDTHS = {"two": 2, "four": 4, "eight": 8, "sixteen": 16, "thirty-two": 32}
#: a type and no format, as Myelin has it
BARE = re.compile(rf"k?(?:{'|'.join(DTYPES.values())})", re.IGNORECASE)
#: operators that hand on some of their numbers as they are, so that it is the same to quantize before or behind them
HANDS_ON = ("Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


@dataclass(frozen=True)
class Quantized:
    """What the codes of a tensor stand for: (code - zero) * scale, one scale for the whole tensor. codes: int8, uint8 or float8."""

    scale: float
    zero: float
    codes: str

    def real(self, codes: Array) -> Array:
        return (codes.astype(np.float64) - self.zero) * self.scale

    def nearest(self, values: Array) -> Array:
        """Return `values` as they come back from their codes: rounded, and cut off at the ends of the range."""
        steps = values / self.scale + self.zero
        if self.codes == "float8":
            limit = float(ml_dtypes.finfo(STORED["float8"]).max)
            return self.real(np.clip(steps, -limit, limit).astype(STORED["float8"]))
        limits = np.iinfo(STORED[self.codes])
        return self.real(np.clip(np.rint(steps), limits.min, limits.max))

    def noise(self, values: Array) -> float:
        """Return the RMS error that rounding to the nearest code makes of numbers like `values`."""
        if self.codes == "float8":
            # Half a unit in the last of three places after the point, at most, and evenly spread.
            return rms(values[np.isfinite(values)]) * 2.0**-4 / math.sqrt(3)
        return self.scale / math.sqrt(12)


def decode(captured: Captured, described: EngineTensor | None) -> Array | str:
    """Return the tensor in `captured`, in its own type and shape, or why it cannot be told what it is.

    described: the same tensor in the inspector's list.
    """
    layout = captured.format or (described.format if described else "")
    dtype = STORED.get(captured.dtype)
    if dtype is None:
        return f"its type {captured.dtype!r} is not decoded"
    order = _order(layout)
    if order is None:
        return f"its format {layout!r} is not decoded" if layout else "its format is not known"
    if order == (False, 1):
        stored: tuple[int, ...] = captured.shape
    elif len(captured.shape) != 4:
        # Which axis a vector runs along is documented for images; for other ranks it would be a guess.
        return f"its format {layout!r} is decoded for four dimensions, and it has {len(captured.shape)}"
    else:
        batch, channels, height, width = captured.shape
        channels_last, vector = order
        blocks = -(-channels // vector)
        stored = (batch, height, width, blocks * vector) if channels_last else (batch, blocks, height, width, vector)
    buffer = captured.data if isinstance(captured.data, bytes) else np.ascontiguousarray(captured.data).tobytes()
    if len(buffer) != math.prod(stored) * dtype.itemsize:
        return f"{len(buffer):,} bytes are not {captured.dtype} of shape {captured.shape} in format {layout!r}"
    array = np.frombuffer(buffer, dtype).reshape(stored)
    if order == (False, 1):
        return array
    if channels_last:
        return np.moveaxis(array, -1, 1)[:, :channels]
    return np.moveaxis(array, -1, 2).reshape(batch, blocks * vector, height, width)[:, :channels]


def _order(layout: str) -> tuple[bool, int] | None:
    """Return whether channels come last and in how wide vectors, (False, 1) for C order; None for anything not known."""
    text = layout.strip().rstrip(".").lower()
    if BARE.fullmatch(text) or text in ("linear", "klinear"):
        return False, 1
    if "stride" in text:
        return None
    if found := re.fullmatch(r"k?(chw|hwc)(\d*)", text):
        return found[1] == "hwc", int(found[2] or 1)
    if found := re.search(r"([\w-]+) wide channel vectorized row major", text):
        return (False, WIDTHS[found[1]]) if found[1] in WIDTHS else None
    if "channel major" in text:
        found = re.search(r"(?:channel|\bc) % (\d+) == 0", text)
        return (True, int(found[1]) if found else 1) if found or "where" not in text else None
    return (False, 1) if "row major" in text and "vectorized" not in text else None


def same_but_ones(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether two shapes differ at most in dimensions of size 1; -1 in the first stands for any size."""
    mine, theirs = ([size for size in sizes if size != 1] for sizes in (shape, other))
    if len(mine) != len(theirs) and -1 in mine:
        # A size that varies may be 1 in this run.
        return len(shape) == len(other) and all(size in (-1, given) for size, given in zip(shape, other, strict=True))
    return len(mine) == len(theirs) and all(size in (-1, given) for size, given in zip(mine, theirs, strict=True))


def quantized_by(value: ir.Value) -> Quantized | None:
    """Return what codes of `value` stand for, where the graph says so in one way only, else None.

    That is its own QuantizeLinear, or the DequantizeLinear it comes from; for a tensor of floats that an engine keeps as codes,
    the one scale that every reader of it, past what only hands numbers on, quantizes to.
    """
    node = value.producer()
    if node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _scale_of(node)
    found = _read_as(value)
    return found.pop() if found is not None and len(found) == 1 else None


def _read_as(value: ir.Value) -> set[Quantized] | None:
    """Return every quantization that `value` meets, None when a reader is something else."""
    readers = list(value.uses())
    if not readers or value.is_graph_output():
        return None
    found: set[Quantized] = set()
    for node, position in readers:
        if node.op_type == "QuantizeLinear" and position == 0:
            scale = _scale_of(node)
            behind = None if scale is None else {scale}
        else:
            behind = _read_as(node.outputs[0]) if node.op_type in HANDS_ON and position == 0 else None
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
