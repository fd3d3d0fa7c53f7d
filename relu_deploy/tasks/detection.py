"""Selects detections from decoded boxes and scores, in NumPy; the post-processing of a served detector."""

from __future__ import annotations

import numpy as np

from relu_deploy.tensors import Array

__all__ = ["nms", "postprocess"]


def nms(boxes: Array, scores: Array, iou_threshold: float, score_threshold: float, max_per_class: int) -> Array:
    """Return the rows [image, class, box] that non-maximum suppression keeps, int64 (D, 3).

    Rows are ordered by image, class and descending score; equal scores by ascending index of the box. Source: the ONNX operator
    NonMaxSuppression-11 with center_point_box=0.

    Args:
        boxes: (N, A, 4), two opposite corners each.
        scores: (N, K, A).
        iou_threshold: A box is removed if its intersection over union with a kept box of its class is above this.
        score_threshold: A box is removed if its score is not above this.
        max_per_class: Largest number of boxes of each image and class.
    """
    kept = []
    for image in range(len(boxes)):
        for label in np.flatnonzero((scores[image] > score_threshold).any(1)):
            of_class = scores[image, label]
            candidates = np.flatnonzero(of_class > score_threshold)
            candidates = candidates[np.argsort(-of_class[candidates], kind="stable")]
            kept += [(image, label, box) for box in _suppressed(boxes[image], candidates, iou_threshold, max_per_class)]
    return np.array(kept, np.int64).reshape(-1, 3)


def _suppressed(boxes: Array, candidates: Array, iou_threshold: float, limit: int) -> list[int]:
    kept: list[int] = []
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    areas = (high - low).prod(1)
    while len(candidates) and len(kept) < limit:
        best, candidates = candidates[0], candidates[1:]
        kept.append(int(best))
        sides = np.minimum(high[best], high[candidates]) - np.maximum(low[best], low[candidates])
        overlap = sides.clip(0).prod(1)
        union = areas[best] + areas[candidates] - overlap
        # The division agrees with ONNX Runtime at the threshold itself. For boxes without area, 0/0 is not above it.
        with np.errstate(invalid="ignore"):
            candidates = candidates[~(overlap / union > iou_threshold)]
    return kept


def postprocess(
    boxes: Array,
    scores: Array,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    max_per_class: int | None = None,
) -> list[dict[str, Array]]:
    """Return the detections of each image, best first: `boxes` (D, 4), `scores` (D,) and `labels` int64 (D,).

    Args:
        boxes: (N, A, 4) xyxy.
        scores: (N, A, K), in 0..1.
        score_threshold: See `nms`.
        iou_threshold: See `nms`.
        max_detections: Largest number of detections of each image.
        max_per_class: Largest number of each image and class, by default `max_detections`.
    """
    rows = nms(
        boxes, np.ascontiguousarray(scores.transpose(0, 2, 1)), iou_threshold, score_threshold, max_per_class or max_detections
    )
    found = []
    for image in range(len(boxes)):
        _, labels, picked = rows[rows[:, 0] == image].T
        certainty = scores[image, picked, labels]
        best = np.argsort(-certainty, kind="stable")[:max_detections]
        found.append({"boxes": boxes[image, picked[best]], "scores": certainty[best], "labels": labels[best]})
    return found
