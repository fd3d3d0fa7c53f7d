"""From the outputs of a model to classes and boxes, as the manifest's `task`, `labels` and `postprocess` say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relu_deploy.prediction.errors import InvalidOutput
from relu_deploy.preprocessing.placement import ImagePlacement
from relu_deploy.tasks.detection import postprocess
from relu_deploy.tensors import Array

__all__ = ["SCORE", "boxes_of", "classes_of", "min_score", "probabilities_of"]

#: score of a box where neither the caller nor the manifest gives one
SCORE = 0.05


def probabilities_of(logits: Array) -> Array:
    """Return the softmax of the first row.

    Args:
        logits: (N, K), or with further dimensions of size 1.

    Returns:
        float64 (K,).

    Raises:
        InvalidOutput: If the logits are not finite.
    """
    row = logits[0].astype(np.float64).ravel()
    if not np.isfinite(row).all():
        raise InvalidOutput("the model's output for this input holds NaN or an infinity", "run relu-deploy verify on the model")
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def classes_of(logits: Array, labels: Sequence[str] | None, top: int) -> list[dict[str, Any]]:
    """Return the `top` most probable classes of the first row, in descending order; of equal ones the lower index first."""
    probabilities = probabilities_of(logits)
    best = np.argsort(-probabilities, kind="stable")[:top].tolist()
    return [{"label": _label(labels, index), "index": index, "probability": float(probabilities[index])} for index in best]


def min_score(manifest: Mapping[str, Any]) -> float:
    """Return the score threshold in a detector's manifest; 0 for other models."""
    if manifest.get("task") != "detection":
        return 0.0
    return float(manifest["postprocess"].get("score_threshold", SCORE))


def boxes_of(
    outputs: Mapping[str, Array], manifest: Mapping[str, Any], placement: ImagePlacement, threshold: float | None
) -> list[dict[str, Any]]:
    """Return the detections in the first picture of a batch, best first.

    Args:
        outputs: Of the detector: `boxes` and `scores`, or those of a graph that ends in non-maximum suppression.
        manifest: With `postprocess`.
        placement: How the picture was placed in the input.
        threshold: Score above which boxes count, None for the manifest's.

    Returns:
        For each detection its `label`, `index`, `score`, and `box` as left, top, right, bottom in pixels of the picture.

    Raises:
        InvalidOutput: If a score is not finite.
    """
    scores = outputs["scores"] if manifest["postprocess"]["decode"] == "nms" else outputs["scores"][:1]
    if not np.isfinite(scores).all():
        raise InvalidOutput("the model's output for this input holds NaN or an infinity", "run relu-deploy verify on the model")
    limits = {key: value for key, value in manifest["postprocess"].items() if key not in ("decode", "label_offset")}
    if manifest["postprocess"]["decode"] == "nms":
        first = outputs["image"] == 0
        found = {name: outputs[name][first] for name in ("boxes", "scores", "labels")}
        kept = found["scores"] > (threshold if threshold is not None else -1)
        found = {name: array[kept] for name, array in found.items()}
    else:
        limits["score_threshold"] = min_score(manifest) if threshold is None else threshold
        found = postprocess(outputs["boxes"][:1], outputs["scores"][:1], **limits)[0]
    boxes = placement.to_picture(found["boxes"])
    return [
        {
            "label": _label(manifest.get("labels"), int(index)),
            "index": int(index),
            "score": float(score),
            "box": [round(edge, 2) for edge in box],
        }
        for box, index, score in zip(boxes.tolist(), found["labels"], found["scores"], strict=True)
    ]


def _label(labels: Sequence[str] | None, index: int) -> str:
    return labels[index] if labels and index < len(labels) else str(index)
