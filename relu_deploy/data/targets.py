"""Checks the targets of a data set: labels, boxes and masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from relu_deploy.errors import InputError
from relu_deploy.tensors import Array

__all__ = ["TARGETS", "check_targets"]

#: Names of the arrays of a data set that are not inputs.
TARGETS = ("labels", "boxes", "image", "mask")


def check_targets(path: Path, targets: Mapping[str, Array], rows: int) -> None:
    """Check that there is a target for each row.

    Args:
        path: Where the arrays come from, for the error.
        targets: Arrays by name: "labels", or "boxes" with "labels" and "image", or "mask".
        rows: Number of rows of the data set.

    Raises:
        InputError: Names the array that has another length, shape or type.
    """
    has_mask = "mask" in targets
    if has_mask:
        _check(path, "mask", targets["mask"], "iu", (rows, None, None), f"the class of each pixel as integers ({rows}, H, W)")
    if "image" in targets or "boxes" in targets:
        _check_boxes(path, targets, rows)
    elif "labels" in targets and not has_mask:
        labels = targets["labels"]
        shape = (rows, None) if labels.ndim == 2 else (rows,)
        _check(path, "labels", labels, "iu", shape, f"the class of each of the {rows} rows as integers")


def _check_boxes(path: Path, targets: Mapping[str, Array], rows: int) -> None:
    if missing := [name for name in ("boxes", "labels", "image") if name not in targets]:
        raise InputError(f"{path} has no array {missing[0]!r}", "boxes need their labels, and the row that each belongs to")
    count = len(targets["boxes"]) if targets["boxes"].ndim else 0
    _check(path, "boxes", targets["boxes"], "fiu", (count, 4), "corners as (M, 4): left, top, right, bottom")
    _check(path, "labels", targets["labels"], "iu", (count,), f"the class of each of the {count} boxes as integers")
    _check(path, "image", targets["image"], "iu", (count,), f"the row of each of the {count} boxes as integers")
    image = targets["image"]
    if count and not (image.min() >= 0 and image.max() < rows):
        raise InputError(f"{path}: 'image' names rows outside 0 to {rows - 1}", f"the data set has {rows} rows")


def _check(path: Path, name: str, array: Array, kinds: str, shape: tuple[int | None, ...], right: str) -> None:
    fits = array.ndim == len(shape) and all(expected in (None, size) for expected, size in zip(shape, array.shape, strict=True))
    if array.dtype.kind not in kinds or not fits:
        raise InputError(f"{path}: {name!r} is {array.dtype.name} {array.shape}", f"give {right}")
