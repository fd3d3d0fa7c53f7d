"""The mask of a segmentation: the class of each pixel of the picture, as an array, a PNG file and a list of classes.

The PNG has a palette: the value of a pixel is its class, and viewers show a color for it. The background class of the manifest
and pixels outside the model's input (255) are transparent, so that the file can be laid over the picture.
"""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relu_deploy.prediction.errors import InvalidOutput
from relu_deploy.preprocessing.placement import ImagePlacement
from relu_deploy.tasks.segmentation import VOID, classes_of_pixels
from relu_deploy.tensors import Array

__all__ = ["background_of", "classes_found", "color_of", "mask_json", "mask_of", "png_of"]


def mask_of(output: Array, placement: ImagePlacement) -> Array:
    """Return the class of each pixel of a picture.

    Args:
        output: Logits (N, K, H, W) or classes (N, H, W) of the model; only the first row is used.
        placement: How the picture was placed in the input.

    Returns:
        uint8 (height, width) of the picture, `VOID` outside the model's input.

    Raises:
        InvalidOutput: If the output is not finite, or not a mask.
    """
    first = output[:1]
    if first.dtype.kind not in "iu" and not np.isfinite(first).all():
        raise InvalidOutput("the model's output for this picture holds NaN or an infinity", "run relu-deploy verify on the model")
    try:
        found = classes_of_pixels(first)[0]
    except ValueError as error:
        raise InvalidOutput(f"the model's output is not a mask: {error}", "set another 'task' in manifest.json") from None
    if found.size and not 0 <= found.min() <= found.max() < VOID:
        raise InvalidOutput(f"the model found class {found.max()}, and a mask holds classes 0 to {VOID - 1}")
    return placement.plane_to_picture(found.astype(np.uint8), VOID)


def classes_found(mask: Array, labels: Sequence[str] | None, background: int | None) -> list[dict[str, Any]]:
    """Return the classes in a mask, largest first.

    Args:
        mask: uint8 (height, width).
        labels: Names of the classes.
        background: The class that is transparent.

    Returns:
        For each class its `label`, `index`, `pixels`, `share` of the pixels in the model's input, `color` and whether it is
        the `background`.
    """
    counts = np.bincount(mask.ravel(), minlength=VOID + 1)[:VOID]
    seen = max(int(counts.sum()), 1)
    return [
        {
            "label": labels[index] if labels and index < len(labels) else str(index),
            "index": index,
            "share": int(counts[index]) / seen,
            "pixels": int(counts[index]),
            "color": "#{:02x}{:02x}{:02x}".format(*color_of(index, background)),
            "background": index == background,
        }
        for index in np.argsort(-counts, kind="stable").tolist()
        if counts[index]
    ]


def png_of(mask: Array, background: int | None) -> bytes:
    """Return a mask, uint8 (height, width), as a PNG file with a palette."""
    from PIL import Image

    picture = Image.fromarray(mask)
    picture.putpalette([level for index in range(256) for level in color_of(index, background)])
    alpha = bytes(0 if index in (background, VOID) else 255 for index in range(256))
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=alpha)
    return file.getvalue()


def mask_json(png: bytes, mask: Array) -> dict[str, Any]:
    """Return the JSON of a mask: the PNG file in base64, and the class of pixels outside the model's input."""
    height, width = mask.shape
    return {"format": "PNG", "width": width, "height": height, "void": VOID, "data": base64.b64encode(png).decode()}


def color_of(index: int, background: int | None) -> tuple[int, int, int]:
    """Return red, green and blue of a class: hues a golden angle apart, black for the background."""
    if index in (background, VOID):
        return 0, 0, 0
    hue = (index * 137.50776 + 205) % 360 / 360
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.58, 0.85))
    return red, green, blue


def background_of(manifest: Mapping[str, Any]) -> int | None:
    """Return the background class of the manifest's `postprocess`, None without one."""
    background = (manifest.get("postprocess") or {}).get("background")
    return background if isinstance(background, int) else None
