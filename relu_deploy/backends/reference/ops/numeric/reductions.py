"""Reductions over axes, and running sums and products along one."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from relu_deploy.backends.reference.ops.tensor.shape import integers
from relu_deploy.backends.reference.registry import LATEST, Call, operator
from relu_deploy.backends.reference.types import is_float
from relu_deploy.tensors import Array

Axes = tuple[int, ...] | None


def _extreme(x: Array, axes: Axes, keepdims: bool, *, largest: bool) -> Array:
    """The largest or smallest element; of nothing, the type's lowest or highest value (infinity where it has one)."""
    if x.dtype == np.bool_:
        start: Any = not largest
    elif is_float(x):
        start = -np.inf if largest else np.inf
    else:
        start = np.iinfo(x.dtype).min if largest else np.iinfo(x.dtype).max
    function = np.max if largest else np.min
    return np.asarray(function(x, axis=axes, keepdims=keepdims, initial=start)).astype(x.dtype)  # type: ignore[operator]


def _log_sum_exp(x: Array, axes: Axes, keepdims: bool) -> Array:
    top = np.asarray(np.max(x, axis=axes, keepdims=True, initial=-np.inf))
    shift = np.where(np.isfinite(top), top, 0).astype(x.dtype)
    total = np.log(np.sum(np.exp(x - shift), axis=axes, keepdims=True)) + shift
    return np.asarray(total if keepdims else np.squeeze(total, axes if axes is not None else tuple(range(x.ndim))))


def _mean(x: Array, axes: Axes, keepdims: bool) -> Array:
    count = x.size if axes is None else prod(x.shape[axis] for axis in axes)
    total = np.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype)
    return np.asarray(total / count if is_float(x) else total // max(count, 1)).astype(x.dtype)


REDUCTIONS: dict[str, Callable[[Array, Axes, bool], Any]] = {
    "ReduceSum": lambda x, axes, keep: np.sum(x, axis=axes, keepdims=keep, dtype=x.dtype),
    "ReduceMean": _mean,
    "ReduceMax": lambda x, axes, keep: _extreme(x, axes, keep, largest=True),
    "ReduceMin": lambda x, axes, keep: _extreme(x, axes, keep, largest=False),
    "ReduceProd": lambda x, axes, keep: np.prod(x, axis=axes, keepdims=keep, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: np.sum(np.square(x), axis=axes, keepdims=keep, dtype=x.dtype),
    "ReduceL1": lambda x, axes, keep: np.sum(np.abs(x), axis=axes, keepdims=keep, dtype=x.dtype),
    "ReduceL2": lambda x, axes, keep: np.sqrt(np.sum(np.square(x), axis=axes, keepdims=keep, dtype=x.dtype)).astype(x.dtype),
    "ReduceLogSum": lambda x, axes, keep: np.log(np.sum(x, axis=axes, keepdims=keep, dtype=x.dtype)),
    "ReduceLogSumExp": _log_sum_exp,
}


def _register_reduction(name: str, function: Callable[[Array, Axes, bool], Any]) -> None:
    inputs_since = 13 if name == "ReduceSum" else 18

    @operator(name, until=inputs_since - 1)
    def by_attribute(call: Call, x: Array) -> Any:
        axes = call.get("axes")
        return function(x, None if not axes else _axes(axes, x.ndim), bool(call.get("keepdims", 1)))

    @operator(name, since=inputs_since)
    def by_input(call: Call, x: Array, axes: Array | None = None) -> Any:
        chosen = [] if axes is None else integers(axes)
        if not chosen and call.get("noop_with_empty_axes", 0):
            # Nothing is summed, but what is done to each element before and after the sum still is.
            return function(x[np.newaxis], (0,), False)
        return function(x, _axes(chosen, x.ndim) if chosen else None, bool(call.get("keepdims", 1)))


def _axes(axes: Any, rank: int) -> tuple[int, ...]:
    return tuple(axis % rank for axis in axes)


for _name, _function in REDUCTIONS.items():
    _register_reduction(_name, _function)


def _register_argument(name: str, function: Callable[..., Any]) -> None:
    @operator(name, until=LATEST)
    def run(call: Call, x: Array) -> Array:
        axis = call.get("axis", 0)
        last = bool(call.get("select_last_index", 0))
        place = function(np.flip(x, axis) if last else x, axis=axis)
        found = np.asarray(x.shape[axis] - 1 - place if last else place, np.int64)
        return np.expand_dims(found, axis) if call.get("keepdims", 1) else found


_register_argument("ArgMax", np.argmax)
_register_argument("ArgMin", np.argmin)


def _register_running(name: str, function: Callable[..., Any], neutral: int) -> None:
    @operator(name)
    def run(call: Call, x: Array, axis: Array) -> Array:
        along = integers(axis)[0]
        if call.get("reverse", 0):
            x = np.flip(x, along)
        if call.get("exclusive", 0):
            first = np.full_like(np.take(x, [0], along), neutral)
            x = np.concatenate([first, np.delete(x, -1, along)], along)
        result = function(x, axis=along, dtype=x.dtype)
        return np.asarray(np.flip(result, along) if call.get("reverse", 0) else result)


_register_running("CumSum", np.cumsum, 0)
_register_running("CumProd", np.cumprod, 1)
