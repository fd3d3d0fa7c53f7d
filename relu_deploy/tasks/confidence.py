"""The confidence of predictions: its mean, how well it matches their accuracy, and the scores of detections.

    classification    the probability of the most probable class
    segmentation      the same of each pixel
    detection         the score of each box

The expected calibration error is the mean difference between confidence and accuracy over bins of equal width, weighted by the
predictions in them (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from relu_deploy.tensors import Array

__all__ = ["CalibrationBins", "best_classes", "box_overlaps", "correct_boxes", "matched_scores"]

#: bins of the calibration error, as in Guo et al.
BINS = 15
#: intersection over union from which two boxes are of the same object
SAME_OBJECT = 0.5
#: how far the sum of probabilities may be from 1
SUM_TOLERANCE = 1e-3


@dataclass
class CalibrationBins:
    """Predictions so far, by confidence. Each array is float64 (BINS,), of the predictions whose correctness is known."""

    counts: Array = field(default_factory=lambda: np.zeros(BINS))
    confidences: Array = field(default_factory=lambda: np.zeros(BINS))
    hits: Array = field(default_factory=lambda: np.zeros(BINS))
    total: float = 0.0
    predictions: int = 0

    def add(self, confidences: Array, correct: Array | None = None) -> None:
        """Count predictions.

        Args:
            confidences: In 0..1, any shape. NaN counts as 0.
            correct: Of the same shape: 1 for a correct prediction, 0 for a wrong one, -1 where it is not known; None if none is.
        """
        confidences = np.nan_to_num(np.asarray(confidences, np.float64).reshape(-1))
        self.total += float(confidences.sum())
        self.predictions += confidences.size
        if correct is None:
            return
        known = np.asarray(correct).reshape(-1) >= 0
        confidences, hits = confidences[known], np.asarray(correct).reshape(-1)[known]
        bins = np.clip((confidences * BINS).astype(np.int64), 0, BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)
        self.confidences += np.bincount(bins, confidences, BINS)
        self.hits += np.bincount(bins, hits, BINS)

    @property
    def mean(self) -> float | None:
        """The mean confidence, None without predictions."""
        return self.total / self.predictions if self.predictions else None

    @property
    def error(self) -> float | None:
        """The expected calibration error, None where no prediction is known to be correct or wrong."""
        known = float(self.counts.sum())
        return float(np.abs(self.hits - self.confidences).sum()) / known if known else None


def best_classes(output: Array) -> tuple[Array, Array]:
    """Return the most probable class along axis 1 and its probability, each of the shape without that axis.

    Args:
        output: Logits or probabilities, (N, K, …). Numbers of at least 0 whose sum along axis 1 is 1 are probabilities.
    """
    classes = output.argmax(1)
    if output.min(initial=0.0) >= 0 and np.all(np.abs(output.sum(1, dtype=np.float64) - 1) <= SUM_TOLERANCE):
        return classes, output.max(1)
    with np.errstate(invalid="ignore", over="ignore"):
        return classes, 1 / np.exp(output - output.max(1, keepdims=True)).sum(1, dtype=np.float64)


def box_overlaps(boxes: Array, others: Array) -> Array:
    """Return the intersection over union of each of `boxes`, (D, 4) xyxy, with each of `others`, (E, 4): (D, E)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = (high - low).clip(0).prod(2)
    areas = [(each[:, 2:] - each[:, :2]).clip(0).prod(1) for each in (boxes, others)]
    either = areas[0][:, None] + areas[1][None] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def correct_boxes(found: Mapping[str, Array], true: Mapping[str, Array]) -> Array:
    """Return 1 for each detection of one image that matches a true box of its class, else 0. A true box is matched once.

    Args:
        found: `boxes` (D, 4), `scores` (D,) in descending order and `labels` (D,).
        true: `boxes` (E, 4) and `labels` (E,).
    """
    correct = np.zeros(len(found["scores"]), np.int64)
    if not len(true["boxes"]) or not len(correct):
        return correct
    overlaps = box_overlaps(found["boxes"].astype(np.float64), true["boxes"].astype(np.float64))
    overlaps[found["labels"][:, None] != true["labels"][None]] = 0
    for row in range(len(correct)):
        best = int(overlaps[row].argmax())
        if overlaps[row, best] >= SAME_OBJECT:
            correct[row] = 1
            overlaps[:, best] = 0
    return correct


def matched_scores(
    reference: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]], threshold: float
) -> tuple[Array, Array]:
    """Return the scores of the reference's detections from `threshold` on, and what another model gives the same objects.

    An object that the other model does not find has the score 0.

    Args:
        reference: Detections of each image: `boxes`, `scores`, `labels`.
        found: Those of the other model.
        threshold: Least score of a detection of the reference.

    Returns:
        Two arrays, float64 (D,), over all images.
    """
    before, after = [], []
    for one, other in zip(reference, found, strict=True):
        certain = one["scores"] >= threshold
        scores = np.zeros(int(certain.sum()))
        if len(scores) and len(other["scores"]):
            overlaps = box_overlaps(one["boxes"][certain].astype(np.float64), other["boxes"].astype(np.float64))
            same = (overlaps >= SAME_OBJECT) & (one["labels"][certain][:, None] == other["labels"][None])
            scores = np.where(same, other["scores"][None].astype(np.float64), 0.0).max(1)
        before.append(one["scores"][certain].astype(np.float64))
        after.append(scores)
    return np.concatenate([np.zeros(0), *before]), np.concatenate([np.zeros(0), *after])
