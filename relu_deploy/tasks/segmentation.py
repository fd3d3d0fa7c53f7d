"""Converts the output of a segmentation model to masks, and compares masks, in NumPy."""

from __future__ import annotations

import numpy as np

from relu_deploy.tensors import Array

__all__ = ["VOID", "classes_of_pixels", "confusion", "mean_iou"]

#: class of pixels without a label in a true mask, and of pixels that a model did not see (convention of Pascal VOC)
VOID = 255


def classes_of_pixels(output: Array) -> Array:
    """Return the class of every pixel, int64 (N, H, W): that of the largest logit, the lower index of equal ones.

    Args:
        output: Logits (N, K, H, W), or classes as integers (N, H, W) or (N, 1, H, W).

    Raises:
        ValueError: If `output` is any other array.
    """
    if output.dtype.kind in "iu" and (output.ndim == 3 or (output.ndim == 4 and output.shape[1] == 1)):
        return output.reshape(len(output), *output.shape[-2:]).astype(np.int64)
    if output.ndim != 4 or output.dtype.kind in "iub" or output.shape[1] < 2:
        raise ValueError(f"{output.dtype.name} {output.shape} are neither logits (N, K, H, W) nor classes (N, H, W) of pixels")
    return output.argmax(1).astype(np.int64)


def confusion(found: Array, true: Array, classes: int) -> Array:
    """Return the confusion matrix, int64 (classes, classes): pixels of each true class (rows) by predicted class (columns).

    Args:
        found: Predicted classes, integers of any shape.
        true: True classes of the same shape; pixels of class `VOID` are not counted.
        classes: Number of classes.

    Raises:
        ValueError: If a class is out of range.
    """
    known = true != VOID
    pairs = np.stack([true[known], found[known]]).astype(np.int64)
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < classes:
        raise ValueError(f"class {pairs.max() if pairs.max() >= classes else pairs.min()} is not one of 0 to {classes - 1}")
    return np.bincount(pairs[0] * classes + pairs[1], minlength=classes**2).reshape(classes, classes)


def mean_iou(counts: Array) -> float:
    """Return the mean intersection over union of the classes that occur, as in Pascal VOC's evaluation (Everingham et al., 2015).

    Args:
        counts: Confusion matrix, summed over all pictures.
    """
    both = np.diag(counts)
    either = counts.sum(0) + counts.sum(1) - both
    return float((both[either > 0] / either[either > 0]).mean()) if either.any() else 0.0
