"""The confidence of the float32 model and of a variant, measured in the same runs as their accuracy.

A variant can keep its accuracy and lose the scores at which its users cut. A detector's mean is that of the objects that the
float32 model finds with at least the score threshold: each counts with the score that the variant gives it, 0 if it finds none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from relu_deploy.data.datasets import Dataset
from relu_deploy.tasks.confidence import CalibrationBins, best_classes, correct_boxes, matched_scores
from relu_deploy.tensors import Array, Feeds

__all__ = ["SCORE_THRESHOLD", "Confidence", "ConfidenceMeter", "Recording", "confidence_to_json"]

#: score at which detections are cut where no threshold is given
SCORE_THRESHOLD = 0.5

Run = Callable[[Feeds], Feeds]
Detections = Mapping[str, Array]


@dataclass(frozen=True)
class Confidence:
    """The confidence of one model on a data set.

    Attributes:
        mean: The mean confidence.
        calibration_error: The expected calibration error; None without labels.
        ap: AP of the detections with at least the score threshold; None for other tasks.
        detections: Of each image.
    """

    mean: float
    calibration_error: float | None = None
    ap: float | None = None
    detections: Sequence[Detections] = field(default=(), repr=False)


@dataclass(frozen=True)
class ConfidenceMeter:
    """Measures the confidence of models on `dataset`, which they run `batch` rows at a time.

    Attributes:
        manifest: Of the float32 model.
        dataset: The data, with labels where there are any.
        batch: Rows in one run.
        threshold: Score at which detections are cut.
        before: Confidence of the float32 model; None for outputs without one.
    """

    manifest: Mapping[str, Any]
    dataset: Dataset
    batch: int
    threshold: float = SCORE_THRESHOLD
    before: Confidence | None = None

    def recording(self, run: Run) -> Recording:
        """Return `run`, to be called once with all rows in order, which records the confidence of its outputs."""
        return Recording(self, run)

    def with_reference(self, recording: Recording) -> ConfidenceMeter:
        """Return the meter that compares with the float32 model that was recorded."""
        return replace(self, before=recording.confidence())

    @property
    def task(self) -> str:
        """The task whose confidence is measured: "classification" is what is assumed where the manifest names none."""
        task = self.manifest.get("task") or "classification"
        decoded = (self.manifest.get("postprocess") or {}).get("decode") == "boxes"
        return str(task) if task != "detection" or decoded else ""


class Recording:
    """A model's `run` that records the confidence of its outputs."""

    def __init__(self, meter: ConfidenceMeter, run: Run) -> None:
        self._meter, self._run = meter, run
        self._seen, self._bins = 0, CalibrationBins()
        self._detections: list[Detections] = []

    def __call__(self, feeds: Feeds) -> Feeds:
        outputs = self._run(feeds)
        # The last batch is filled up with copies of its last row.
        rows = min(self._meter.batch, len(self._meter.dataset) - self._seen)
        arrays = {name: value[:rows] for name, value in outputs.items() if isinstance(value, np.ndarray) and value.ndim}
        add = {"classification": self._add_rows, "segmentation": self._add_pixels, "detection": self._add_boxes}
        if arrays and self._meter.task in add:
            add[self._meter.task](arrays)
        self._seen += rows
        return outputs

    def confidence(self) -> Confidence | None:
        """Return the confidence of what was run; None where there is none, or not all rows were run."""
        if self._seen != len(self._meter.dataset):
            return None
        if self._meter.task == "detection" and len(self._detections) == self._seen:
            return self._confidence_of_boxes()
        mean = self._bins.mean
        return None if mean is None else Confidence(mean, self._bins.error)

    def _labels(self, name: str) -> Array | None:
        return self._meter.dataset.targets.get(name)

    def _add_rows(self, outputs: Feeds) -> None:
        output = next(iter(outputs.values()))
        looks = len(outputs) == 1 or self._meter.manifest.get("task") == "classification"
        if not looks or output.dtype.kind != "f" or output.ndim < 2 or output.shape[1] < 2 or output[0].size != output.shape[1]:
            return
        classes, confidences = best_classes(output.reshape(len(output), -1).astype(np.float64))
        labels, correct = self._labels("labels"), None
        if labels is not None:
            mine = labels[self._seen : self._seen + len(output)].reshape(len(output), -1)
            correct = np.where((mine >= 0).any(1), (mine == classes[:, None]).any(1), -1)
        self._bins.add(confidences, correct)

    def _add_pixels(self, outputs: Feeds) -> None:
        from relu_deploy.tasks.segmentation import VOID

        output = next(iter(outputs.values()))
        if output.dtype.kind != "f" or output.ndim != 4 or output.shape[1] < 2:
            return
        classes, confidences = best_classes(output)
        masks, correct = self._labels("mask"), None
        if masks is not None and masks.shape[1:] == classes.shape[1:]:
            mine = masks[self._seen : self._seen + len(output)]
            correct = np.where(mine == VOID, -1, mine == classes)
        self._bins.add(confidences, correct)

    def _add_boxes(self, outputs: Feeds) -> None:
        from relu_deploy.tasks.detection import postprocess

        if not {"boxes", "scores"} <= set(outputs):
            return
        fields = self._meter.manifest.get("postprocess") or {}
        limits = {key: value for key, value in fields.items() if key not in ("decode", "label_offset")}
        self._detections += postprocess(outputs["boxes"], outputs["scores"], **limits)

    def _confidence_of_boxes(self) -> Confidence | None:
        meter, found = self._meter, self._detections
        reference = found if meter.before is None else meter.before.detections
        before, after = matched_scores(reference, found, meter.threshold)
        if not len(before):
            return None
        targets, error = meter.dataset.targets, None
        if "boxes" in targets:
            for image, one in enumerate(found):
                mine = targets["image"] == image
                true = {"boxes": targets["boxes"][mine], "labels": targets["labels"][mine]}
                self._bins.add(one["scores"], correct_boxes(one, true))
            error, self._bins = self._bins.error, CalibrationBins()
        return Confidence(float(after.mean()), error, self._ap(reference), found)

    def _ap(self, reference: Sequence[Detections]) -> float:
        from relu_deploy.tasks.metrics import coco_ap

        targets = self._meter.dataset.targets
        if "boxes" not in targets:
            targets = _true_boxes(reference)
        cut = [{name: array[one["scores"] >= self._meter.threshold] for name, array in one.items()} for one in self._detections]
        return coco_ap(cut, targets, len(cut))["AP"]


def _true_boxes(reference: Sequence[Detections]) -> dict[str, Array]:
    """Return the detections of the float32 model that count as true where there are no labels."""
    certain = [one["scores"] >= SCORE_THRESHOLD for one in reference]
    return {
        "boxes": np.concatenate([one["boxes"][kept] for one, kept in zip(reference, certain, strict=True)]),
        "labels": np.concatenate([one["labels"][kept] for one, kept in zip(reference, certain, strict=True)]),
        "image": np.concatenate([np.full(int(kept.sum()), row) for row, kept in enumerate(certain)]),
    }


def confidence_to_json(
    before: Confidence | None, after: Confidence | None, threshold: float, max_shift: float | None
) -> dict[str, Any] | None:
    """Return the confidence before and after, None where it was not measured."""
    if before is None or after is None:
        return None

    def pair(name: str) -> dict[str, float | None]:
        values = {"before": getattr(before, name), "after": getattr(after, name)}
        return {key: None if value is None else round(value, 6) for key, value in values.items()}

    return {
        "mean": pair("mean"),
        "shift": round(after.mean - before.mean, 6),
        "max_shift": max_shift,
        "calibration_error": pair("calibration_error"),
        "score_threshold": threshold if before.ap is not None else None,
        "ap_at_threshold": pair("ap") if before.ap is not None else None,
    }
