"""NonMaxSuppression."""

from __future__ import annotations

import numpy as np

from relu_deploy.backends.reference.registry import Call, filled, operator
from relu_deploy.tensors import Array


@operator("NonMaxSuppression", keeps_types=True)
def non_max_suppression(call: Call, boxes: Array, scores: Array, *limits: Array | None) -> Array:
    """Return (batch, class, box) of the boxes that are kept, the best of each class first.

    boxes (N, boxes, 4): two opposite corners (y, x), or center and size (x, y, w, h) with center_point_box. scores (N, classes,
    boxes). A box is dropped when a better one of its class overlaps it by more than the threshold.
    """
    most, threshold, lowest = filled(limits, 3)
    count = 0 if most is None else int(most.reshape(-1)[0])
    overlap = 0.0 if threshold is None else threshold.reshape(-1)[0]
    corners = _corners(boxes, bool(call.get("center_point_box", 0)))
    kept = []
    for batch in range(scores.shape[0]):
        for number, row in enumerate(scores[batch]):
            candidates = np.argsort(-row, kind="stable")
            if lowest is not None:
                candidates = candidates[row[candidates] > lowest.reshape(-1)[0]]
            kept += [(batch, number, candidates[best]) for best in _kept(corners[batch][candidates], overlap, count)]
    return np.array(kept, np.int64).reshape(-1, 3)


#: candidates that are compared with each other at once
CHUNK = 128


def _kept(boxes: Array, threshold: float, count: int) -> list[int]:
    """Return the places of the boxes that are kept, of boxes (number, 4) in the order of their scores."""
    kept: list[int] = []
    for start in range(0, len(boxes), CHUNK):
        part = boxes[start : start + CHUNK]
        alive = np.asarray(~(_overlap(boxes[kept], part) > threshold).any(0))
        inside = _overlap(part, part) > threshold
        for place in range(len(part)):
            if len(kept) >= count:
                return kept
            if alive[place]:
                kept.append(start + place)
                alive &= ~inside[place]
    return kept


def _overlap(a: Array, b: Array) -> Array:
    """Return intersection over union of each of `a` with each of `b`."""
    sides = []
    for axis in (0, 1):
        low, high = np.maximum(a[:, axis, None], b[:, axis]), np.minimum(a[:, axis + 2, None], b[:, axis + 2])
        sides.append(np.maximum(high - low, 0))
    shared = sides[0] * sides[1]
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)


def _corners(boxes: Array, centered: bool) -> Array:
    """Return boxes as their smaller and larger corner."""
    if centered:
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        return np.concatenate([middle - half, middle + half], -1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], -1)
