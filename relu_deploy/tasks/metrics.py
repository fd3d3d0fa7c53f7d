"""Scores a model on a data set: top-1 for classification, COCO AP for detection, mIoU for segmentation."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relu_deploy.data.datasets import Dataset
from relu_deploy.errors import InputError, UsageError, missing_package
from relu_deploy.tasks.segmentation import VOID, classes_of_pixels, confusion, mean_iou
from relu_deploy.tensors import Array, Feeds, TensorSpec

__all__ = ["Metric", "coco_ap", "labeled", "score", "top1"]


@dataclass(frozen=True)
class Metric:
    """A score.

    Attributes:
        name: "top1", "AP" or "mIoU".
        value: The score, in 0..1.
        samples: Number of rows that it was measured on.
    """

    name: str
    value: float
    samples: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields with a rounded value."""
        return {"name": self.name, "value": round(self.value, 6), "samples": self.samples}


def labeled(labels: Sequence[str], outputs: Sequence[TensorSpec], task: str | None) -> dict[str, Any]:
    """Return the manifest's `task` and `labels` for a model with named classes.

    Args:
        labels: Names of the classes.
        outputs: Specifications of the model's outputs.
        task: The task if it is known.

    Raises:
        UsageError: If the names do not fit the outputs or the task.
    """
    shape = outputs[0].shape if len(outputs) == 1 else ()
    # A row of logits for each picture classifies it; a plane of logits for each class classifies its pixels.
    fits = {2: "classification", 4: "segmentation"}.get(len(shape))
    if task not in (None, "classification", "segmentation"):
        raise UsageError(f"--labels names classes, and the model's task is {task}", "omit --labels")
    if fits is None or task not in (None, fits) or shape[1] != len(labels):
        given = ", ".join(f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in outputs)
        raise UsageError(
            f"--labels names {len(labels)} classes, and the model gives {given}",
            "one name for each column, or plane of pixels, of the only output",
        )
    return {"task": fits, "labels": list(labels)}


def score(manifest: Mapping[str, Any], run: Callable[[Feeds], Feeds], dataset: Dataset, batch: int) -> Metric | None:
    """Score a model on a data set.

    The last batch is padded with copies of the last row, which are not scored, so that a model with a fixed batch is scored on
    all rows.

    Args:
        manifest: Manifest of the model's bundle.
        run: Function that returns the outputs for feeds.
        dataset: The data set.
        batch: Rows in one run.

    Returns:
        The score, None if the data set has no targets for the model's task.

    Raises:
        BackendUnavailable: If detections are scored and pycocotools is not installed.
        InputError: If the masks of the data set do not fit the outputs.
    """
    task = manifest.get("task")
    postprocess = manifest.get("postprocess") or {}
    if task == "classification" and "labels" in dataset.targets:
        rows = [next(iter(results.values())) for results in _runs(run, dataset, batch)]
        return top1(np.concatenate(rows), dataset.targets["labels"])
    if task == "detection" and "boxes" in dataset.targets and postprocess.get("decode") == "boxes":
        from relu_deploy.tasks.detection import postprocess as select

        limits = {key: value for key, value in postprocess.items() if key not in ("decode", "label_offset")}
        found = []
        for results in _runs(run, dataset, batch):
            found += select(results["boxes"], results["scores"], **limits)
        return Metric("AP", coco_ap(found, dataset.targets, len(dataset))["AP"], len(dataset))
    if task == "segmentation" and "mask" in dataset.targets:
        return _score_masks(manifest, run, dataset, batch)
    return None


def _score_masks(manifest: Mapping[str, Any], run: Callable[[Feeds], Feeds], dataset: Dataset, batch: int) -> Metric:
    """Return the mean IoU over all pixels of `dataset`, accumulated batch by batch to save memory."""
    true, counts, row = dataset.targets["mask"], None, 0
    for results in _runs(run, dataset, batch):
        output = next(iter(results.values()))
        mine = true[row : row + len(output)]
        row += len(output)
        try:
            found = classes_of_pixels(output)
            if found.shape != mine.shape:
                raise ValueError(f"the model names {found.shape[1:]} pixels and the true masks have {mine.shape[1:]}")
            # A graph that outputs classes instead of logits does not define their number.
            known = output.shape[1] if output.ndim == 4 and output.shape[1] > 1 else len(manifest.get("labels") or range(VOID))
            more = confusion(found, mine, known)
        except ValueError as error:
            raise InputError(f"the masks of {dataset.name} cannot be compared: {error}", "see the manifest's outputs") from error
        counts = more if counts is None else counts + more
    return Metric("mIoU", 0.0 if counts is None else mean_iou(counts), len(dataset))


def _runs(run: Callable[[Feeds], Feeds], dataset: Dataset, batch: int) -> Any:
    for padded, rows in dataset.full_batches(batch):
        yield {name: value[:rows] for name, value in run(padded).items()}


def top1(logits: Array, labels: Array) -> Metric:
    """Return the share of rows whose largest logit is at a correct label.

    Args:
        logits: (N, classes); further dimensions of size 1 are ignored.
        labels: (N,) or (N, L), -1 for none. Rows without a label are not counted.
    """
    right = labels.reshape(len(labels), -1)
    known = (right >= 0).any(1)
    hits = (logits.reshape(len(labels), -1).argmax(1)[:, None] == right).any(1)[known]
    return Metric("top1", float(hits.mean()) if known.any() else 0.0, int(known.sum()))


def coco_ap(found: list[dict[str, Array]], targets: Mapping[str, Array], images: int) -> dict[str, float]:
    """Return {"AP": …, "AP50": …} of COCO's own evaluator (pycocotools): AP averaged over IoU 0.50 to 0.95.

    Args:
        found: Detections of each image: `boxes` (D, 4) xyxy, `scores` (D,), `labels` (D,).
        targets: Boxes, labels and images, as in `Dataset.targets`.
        images: Number of images.

    Raises:
        BackendUnavailable: If pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise missing_package("pycocotools", "coco") from error
    classes = np.unique(targets["labels"]).tolist()
    annotations = [
        {"id": index + 1, "image_id": int(image), "category_id": int(label), "iscrowd": 0, **_coco_box(box)}
        for index, (box, label, image) in enumerate(zip(targets["boxes"], targets["labels"], targets["image"], strict=True))
    ]
    detections = [
        {"image_id": image, "category_id": int(label), "score": float(certainty), "bbox": _coco_box(box)["bbox"]}
        for image, one in enumerate(found)
        for box, label, certainty in zip(one["boxes"], one["labels"], one["scores"], strict=True)
    ]
    # The evaluator prints its progress to stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(images)],
            "categories": [{"id": label} for label in classes],
            "annotations": annotations,
        }
        truth.createIndex()
        if not detections:
            return {"AP": 0.0, "AP50": 0.0}
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP": float(evaluation.stats[0]), "AP50": float(evaluation.stats[1])}


def _coco_box(box: Array) -> dict[str, Any]:
    left, top, right, bottom = map(float, box)
    width, height = right - left, bottom - top
    return {"bbox": [left, top, width, height], "area": width * height}
