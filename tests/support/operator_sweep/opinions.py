"""Third opinions, in float64 by PyTorch. Each function returns a function that computes it, or None where PyTorch has none."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np

Opinion = Callable[[], Any] | None


def _torch() -> Any:
    import torch

    return torch


def _tensor(value: Any) -> Any:
    return None if value is None else _torch().from_numpy(np.ascontiguousarray(value)).double()


def _window(x: Any, attributes: dict[str, Any]) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Return kernel, strides, dilations and the padding before and behind."""
    kernel = attributes["kernel_shape"]
    count = len(kernel)
    strides, dilations = attributes.get("strides", [1] * count), attributes.get("dilations", [1] * count)
    pads, auto = attributes.get("pads", [0] * 2 * count), attributes.get("auto_pad", "NOTSET")
    before, behind = list(pads[:count]), list(pads[count:])
    if auto.startswith("SAME"):
        for axis, (n, k, s) in enumerate(zip(x.shape[2:], kernel, strides, strict=True)):
            total = max((ceil(n / s) - 1) * s + k - n, 0)
            before[axis], behind[axis] = total // 2, total - total // 2
            if auto == "SAME_LOWER":
                before[axis], behind[axis] = behind[axis], before[axis]
    return list(kernel), list(strides), list(dilations), before, behind


def _padded(x: Any, before: list[int], behind: list[int], value: float = 0.0) -> Any:
    sides = [side for pair in zip(reversed(before), reversed(behind), strict=True) for side in pair]
    return _torch().nn.functional.pad(x, sides, value=value)


def conv(x: Any, w: Any, b: Any, attributes: dict[str, Any]) -> Opinion:
    def opinion() -> Any:
        functions = _torch().nn.functional
        kernel, strides, dilations, before, behind = _window(x, attributes)
        function = {1: functions.conv1d, 2: functions.conv2d, 3: functions.conv3d}[len(kernel)]
        padded = _padded(_tensor(x), before, behind)
        return function(padded, _tensor(w), _tensor(b), strides, 0, dilations, attributes["group"]).numpy()

    return opinion


def conv_transpose(x: Any, w: Any, b: Any, attributes: dict[str, Any]) -> Opinion:
    if "output_shape" in attributes:
        return None

    def opinion() -> Any:
        functions = _torch().nn.functional
        kernel, strides, dilations, before, behind = _window(x, attributes)
        function = {1: functions.conv_transpose1d, 2: functions.conv_transpose2d, 3: functions.conv_transpose3d}[len(kernel)]
        full = function(_tensor(x), _tensor(w), None, strides, 0, 0, attributes["group"], dilations)
        extra = attributes.get("output_padding", [0] * len(kernel))
        full = _padded(full, [0] * len(kernel), extra)
        cut = [slice(b, n - e) for b, e, n in zip(before, behind, full.shape[2:], strict=True)]
        y = full[(slice(None), slice(None), *cut)].numpy()
        return y if b is None else y + b.reshape(1, -1, *(1,) * len(kernel))

    return opinion


def max_pool(x: Any, attributes: dict[str, Any]) -> Opinion:
    kernel, strides, dilations, before, behind = _window(x, attributes)
    if before != behind or any(2 * b > k for b, k in zip(before, kernel, strict=True)):
        return None

    def opinion() -> Any:
        functions = _torch().nn.functional
        function = {1: functions.max_pool1d, 2: functions.max_pool2d, 3: functions.max_pool3d}[len(kernel)]
        return function(_tensor(x), kernel, strides, before, dilations, bool(attributes.get("ceil_mode", 0))).numpy()

    return opinion


def average_pool(x: Any, attributes: dict[str, Any]) -> Opinion:
    kernel, strides, dilations, before, behind = _window(x, attributes)
    if before != behind or any(2 * b > k for b, k in zip(before, kernel, strict=True)) or set(dilations) != {1}:
        return None

    def opinion() -> Any:
        functions = _torch().nn.functional
        function = {1: functions.avg_pool1d, 2: functions.avg_pool2d, 3: functions.avg_pool3d}[len(kernel)]
        include = bool(attributes.get("count_include_pad", 0))
        return function(_tensor(x), kernel, strides, before, bool(attributes.get("ceil_mode", 0)), include).numpy()

    return opinion


def grid_sample(x: Any, grid: Any, attributes: dict[str, Any]) -> Opinion:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(attributes["mode"], attributes["mode"])
    padding = attributes.get("padding_mode", "zeros")

    def opinion() -> Any:
        corners = bool(attributes.get("align_corners", 0))
        return _torch().nn.functional.grid_sample(_tensor(x), _tensor(grid), mode, padding, corners).numpy()

    return opinion


def interpolate(x: Any, lengths: list[int], factors: list[float] | None, attributes: dict[str, Any]) -> Opinion:
    """PyTorch's two sets of coordinates: those of the corners, and of half pixels."""
    mode, transformation = attributes["mode"], attributes["coordinate_transformation_mode"]
    if mode == "nearest" or transformation not in ("align_corners", "pytorch_half_pixel", "half_pixel"):
        return None
    if transformation != "align_corners" and 1 in lengths:
        return None
    if attributes.get("exclude_outside") or attributes.get("cubic_coeff_a") or (attributes.get("antialias") and mode == "cubic"):
        return None
    if attributes.get("antialias"):
        return None

    def opinion() -> Any:
        name = {"linear": "bilinear", "cubic": "bicubic"}[mode]
        corners = transformation == "align_corners"
        return _torch().nn.functional.interpolate(_tensor(x), lengths, mode=name, align_corners=corners).numpy()

    return opinion


def recurrent(kind: str, operands: list[Any], attributes: dict[str, Any]) -> Opinion:
    """LSTM, and GRU with the reset gate behind the product, as PyTorch has them, without lengths and clipping."""
    x, w, r, b, lengths, h, c, peephole = (*operands, *[None] * (8 - len(operands)))
    plain = lengths is None and peephole is None and not set(attributes) & {"clip", "activations", "input_forget", "layout"}
    if not plain or attributes.get("direction") == "reverse" or (kind == "GRU" and not attributes.get("linear_before_reset")):
        return None

    def opinion() -> Any:
        torch = _torch()
        hidden, both = attributes["hidden_size"], attributes.get("direction") == "bidirectional"
        order = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}[kind]
        layer = getattr(torch.nn, kind)(x.shape[2], hidden, bidirectional=both).double()

        def sorted_gates(value: Any) -> Any:
            return _tensor(np.concatenate([np.split(value, len(order))[gate] for gate in order]))

        with torch.no_grad():
            for index, suffix in enumerate(["", "_reverse"][: 2 if both else 1]):
                getattr(layer, f"weight_ih_l0{suffix}").copy_(sorted_gates(w[index]))
                getattr(layer, f"weight_hh_l0{suffix}").copy_(sorted_gates(r[index]))
                biases = np.zeros(2 * len(order) * hidden) if b is None else b[index]
                for name, half in zip(("bias_ih_l0", "bias_hh_l0"), np.split(biases, 2), strict=True):
                    getattr(layer, name + suffix).copy_(sorted_gates(half))
            zero = np.zeros((2 if both else 1, x.shape[1], hidden))
            state = tuple(_tensor(zero if value is None else value) for value in (h, c))
            y = layer(_tensor(x), state if kind == "LSTM" else state[0])[0]
        return y.reshape(*y.shape[:2], -1, hidden).permute(0, 2, 1, 3).numpy()

    return opinion
