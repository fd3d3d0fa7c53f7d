"""The class of every pixel, in NumPy: from a segmenter's output to masks, and how far two masks agree."""

from __future__ import annotations

import numpy as np

from relu_deploy.tensors import Array

__all__ = ["VOID", "classes_of_pixels", "confusion", "mean_iou"]

#: class of pixels that nobody names, in a true mask and where a model did not look: Pascal VOC's convention
VOID = 255


def classes_of_pixels(output: Array) -> Array:
    """Return the class of every pixel, int64 (N, H, W): the largest logit's, of equal ones the lower.

    output: logits (N, K, H, W), or integers (N, H, W) or (N, 1, H, W) of a graph that has chosen already.
    Raises ValueError for any other array.
    """
    if output.dtype.kind in "iu" and (output.ndim == 3 or (output.ndim == 4 and output.shape[1] == 1)):
        return output.reshape(len(output), *output.shape[-2:]).astype(np.int64)
    if output.ndim != 4 or output.dtype.kind in "iub" or output.shape[1] < 2:
        raise ValueError(f"{output.dtype.name} {output.shape} are neither logits (N, K, H, W) nor classes (N, H, W) of pixels")
    return output.argmax(1).astype(np.int64)


def confusion(found: Array, true: Array, classes: int) -> Array:
    """Return how many pixels of each true class (rows) were found to be of each class (columns): int64 (classes, classes).

    found, true: integers of one shape; where `true` is VOID nothing is counted. Raises ValueError for a class out of range.
    """
    known = true != VOID
    pairs = np.stack([true[known], found[known]]).astype(np.int64)
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < classes:
        raise ValueError(f"class {pairs.max() if pairs.max() >= classes else pairs.min()} is not one of 0 to {classes - 1}")
    return np.bincount(pairs[0] * classes + pairs[1], minlength=classes**2).reshape(classes, classes)


def mean_iou(counts: Array) -> float:
    """Return the mean over the classes of intersection over union; classes that are neither true nor found are left out.

    counts: of `confusion`, added up over all pictures first, as in Pascal VOC's evaluation (Everingham et al., 2015).
    """
    both = np.diag(counts)
    either = counts.sum(0) + counts.sum(1) - both
    return float((both[either > 0] / either[either > 0]).mean()) if either.any() else 0.0
