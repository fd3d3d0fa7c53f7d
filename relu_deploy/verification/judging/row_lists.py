"""Compare lists of rows whose order and length depend on rounding, such as the boxes that a detector keeps.

The distance of two lists is how far the rows of each are from their nearest row in the other: it does not depend on the order,
and one row more counts as its distance from the nearest other one. The limit is the largest distance that evaluations with the
noise at its limit have from the truth.
"""

from __future__ import annotations

from math import prod

import numpy as np

from relu_deploy.tensors import Array
from relu_deploy.verification.judging.verdict import Comparison, rms

__all__ = ["compare_lists", "is_other_list", "list_distance"]

#: most products of a distance
MOST_PRODUCTS = 1 << 27


def is_other_list(value: Array, true: Array) -> bool:
    """Return whether the shapes differ in one axis, which counts the rows."""
    return value.ndim == true.ndim and sum(one != other for one, other in zip(value.shape, true.shape, strict=True)) == 1


def list_distance(value: Array, true: Array) -> float | None:
    """Return the distance of two lists of numbers, None for tensors that are no such lists.

    Args:
        value: Numbers of the same shape as `true`, but for the number of rows.
        true: Numbers. Its rows lie along the axis that differs, or along the first whose size is not 1.

    Returns:
        The larger of two root mean squares: of the distances of the rows of each from their nearest row in the other.
    """
    if not is_other_list(value, true) and value.shape != true.shape:
        return None
    differing = [axis for axis in range(true.ndim) if value.shape[axis] != true.shape[axis]]
    axis = next(iter((*differing, *(axis for axis, size in enumerate(true.shape) if size != 1))), None)
    width = prod(size for place, size in enumerate(true.shape) if place != axis)
    if axis is None or value.shape[axis] * true.shape[axis] * width > MOST_PRODUCTS:
        return None
    ours, theirs = (np.moveaxis(each, axis, 0).reshape(each.shape[axis], width).astype(np.float64) for each in (value, true))
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return None
    if not len(ours) or not len(theirs):
        return rms(ours) + rms(theirs)
    square = np.square(ours).sum(1)[:, None] + np.square(theirs).sum(1) - 2 * ours @ theirs.T
    square = np.maximum(square, 0) / max(1, ours.shape[1])
    return float(np.sqrt(max(square.min(0).mean(), square.min(1).mean())))


def compare_lists(measured: Array, truth: Array, largest: float, limit: float) -> Comparison | None:
    """Return the verdict on a list of another length than the truth's, None for tensors that are no such lists.

    Args:
        measured: Backend output.
        truth: Float64 or integer evaluation.
        largest: The largest distance of evaluations with the noise at its limit.
        limit: The error ratio to which the noise was drawn.
    """
    if not is_other_list(measured, truth) or (distance := list_distance(measured, truth)) is None:
        return None
    ratio = limit * distance / largest if largest > 0 else 0.0 if distance == 0 else float(np.inf)
    sizes = f"shape {measured.shape} instead of {truth.shape}"
    reason = (
        ""
        if ratio <= limit
        else f"{sizes}, and its rows are {ratio:.3g} times as far off as correct arithmetic (limit {limit:g})"
    )
    return Comparison(ratio <= limit, distance, 0, ratio, reason, distance / max(rms(truth), 1e-300))
