"""The class of each pixel of a request's picture, with the errors of the server. The rest is in `prediction.masks`."""

from __future__ import annotations

import numpy as np

from relu_deploy.data.images import ImagePlacement
from relu_deploy.serving.errors import InternalError
from relu_deploy.tasks.segmentation import VOID, classes_of_pixels
from relu_deploy.tensors import Array

__all__ = ["mask_of"]


def mask_of(output: Array, placement: ImagePlacement) -> Array:
    """Return the class of each of the picture's pixels, uint8 (height, width), VOID outside the model's input.

    Args:
        output: Logits or classes of pixels; only the first row is used.
        placement: How the picture was placed in the input.

    Raises:
        InternalError: If the output is not finite, or not a mask.
    """
    first = output[:1]
    if first.dtype.kind not in "iu" and not np.isfinite(first).all():
        raise InternalError("the model's output for this picture holds NaN or an infinity", "run relu-deploy verify on the model")
    try:
        found = classes_of_pixels(first)[0]
    except ValueError as error:
        raise InternalError(f"the model's output is not a mask: {error}", "set another 'task' in manifest.json") from None
    if found.size and not 0 <= found.min() <= found.max() < VOID:
        raise InternalError(f"the model found class {found.max()}, and a mask holds classes 0 to {VOID - 1}", "use /infer")
    return placement.plane_to_picture(found.astype(np.uint8), VOID)
