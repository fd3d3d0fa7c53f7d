"""NonMaxSuppression."""

from __future__ import annotations

import numpy as np

from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.tensors import Array


@operator("NonMaxSuppression", keeps_types=True)
def non_max_suppression(call: Call, boxes: Array, scores: Array, *limits: Array | None) -> Array:
    """Return (batch, class, box) of the boxes that are kept, the best of each class first.

    boxes (N, boxes, 4): two opposite corners (y, x), or center and size (x, y, w, h) with center_point_box. scores (N, classes,
    boxes). A box is dropped when a better one of its class overlaps it by more than the threshold.
    """
    most, threshold, lowest = (*limits, *[None] * (3 - len(limits)))
    count = 0 if most is None else int(most.reshape(-1)[0])
    overlap = 0.0 if threshold is None else threshold.reshape(-1)[0]
    corners = _corners(boxes, bool(call.get("center_point_box", 0)))
    areas = (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])
    kept = []
    for batch in range(scores.shape[0]):
        for number, row in enumerate(scores[batch]):
            candidates = np.argsort(-row, kind="stable")
            if lowest is not None:
                candidates = candidates[row[candidates] > lowest.reshape(-1)[0]]
            found = 0
            while candidates.size and found < count:
                best, candidates = candidates[0], candidates[1:]
                kept.append((batch, number, best))
                found += 1
                shared = _intersection(corners[batch, best], corners[batch, candidates])
                union = areas[batch, best] + areas[batch, candidates] - shared
                ratio = np.where(union > 0, shared / np.where(union > 0, union, 1), 0)
                candidates = candidates[~(ratio > overlap)]
    return np.array(kept, np.int64).reshape(-1, 3)


def _corners(boxes: Array, centered: bool) -> Array:
    """Return boxes as their smaller and larger corner."""
    if centered:
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        return np.concatenate([middle - half, middle + half], -1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], -1)


def _intersection(box: Array, others: Array) -> Array:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    return np.asarray(np.prod(np.maximum(high - low, 0), -1))
