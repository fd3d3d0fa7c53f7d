"""The preprocessing of a picture: resize and crop or pad it, then reorder, normalize and lay out its channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.preprocessing.description import Preprocess, Resize, plane_of
from relu_deploy.preprocessing.errors import PictureTooLarge
from relu_deploy.preprocessing.placement import ImagePlacement
from relu_deploy.preprocessing.reading import read_preprocess
from relu_deploy.preprocessing.resample import resample
from relu_deploy.tensors import Array, TensorSpec

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_PIXELS", "normalize", "place", "reorder"]

#: Most pixels of a picture after resizing: one with more is not meant for a network.
MAX_PIXELS = 100_000_000


def place(
    picture: Image.Image, spec: TensorSpec, steps: Mapping[str, Any] | Preprocess, most: int = MAX_PIXELS
) -> tuple[Array, ImagePlacement]:
    """Resize a picture for an input, and crop or pad it.

    Args:
        picture: The picture, of mode L or RGB.
        spec: Specification of the input.
        steps: The preprocessing, or the manifest's `preprocess`.
        most: Largest number of pixels after resizing.

    Returns:
        Pixels (1, H, W, C), uint8 or, where the resizing does not round, float32; and the position of the picture in the input.

    Raises:
        PictureTooLarge: If the picture is so elongated that it would be resized to more than `most` pixels.
    """
    steps = (steps if isinstance(steps, Preprocess) else read_preprocess(steps)).fitted(spec)
    target = _target(spec, steps)
    resized = _resized_size(picture.size, target, steps.resize)
    if resized[0] * resized[1] > most:
        raise PictureTooLarge(
            f"a picture of {picture.width}x{picture.height} pixels is too elongated for the model", "crop it first"
        )
    pixels = _resize(picture, resized, steps.resize)
    window, offset = _window(resized, target, steps)
    if window != resized or offset != (0, 0):
        pixels = _shown(pixels, window, offset, steps.resize.pad_value if steps.resize.mode == "letterbox" else 0)
    scale = (resized[0] / picture.width, resized[1] / picture.height)
    return pixels[None], ImagePlacement(picture.size, window, scale, offset)


def reorder(pixels: Array, steps: Preprocess) -> Array:
    """Return RGB pixels (N, H, W, 3) in the order of the description's channels; gray ones as they are."""
    return pixels[..., ::-1] if steps.color == "BGR" and pixels.shape[-1] == 3 else pixels


def normalize(pixels: Array, steps: Preprocess) -> Array:
    """Return (x * scale - mean) / std of pixels in the order, layout and dtype of the description.

    Args:
        pixels: RGB or gray, uint8 or float32 (N, H, W, C), where C is the number of means.
        steps: The preprocessing.
    """
    mean, std = (np.asarray(one, np.float32) for one in (steps.mean, steps.std))
    planes = (reorder(pixels, steps) * np.float32(steps.scale) - mean) / std
    return np.ascontiguousarray(planes if steps.layout == "NHWC" else planes.transpose(0, 3, 1, 2), steps.dtype)


def _target(spec: TensorSpec, steps: Preprocess) -> tuple[int, int] | None:
    """Return the width and height that a picture is stretched to or fitted into, None for its own."""
    if isinstance(steps.resize.size, tuple):
        return steps.resize.size[1], steps.resize.size[0]
    _, height, width = plane_of(spec, {"layout": steps.layout, "embedded": steps.embedded})
    return (width, height) if isinstance(height, int) and isinstance(width, int) and height * width > 0 else None


def _resized_size(own: tuple[int, int], target: tuple[int, int] | None, resize: Resize) -> tuple[int, int]:
    """Return the width and height that a picture has after resizing."""
    if resize.mode == "shortest_side":
        assert isinstance(resize.size, int)
        return _scaled(own, resize.size / min(own), resize)
    if target is None:
        return own
    if resize.mode == "letterbox":
        return _scaled(own, min(target[0] / own[0], target[1] / own[1]), resize)
    return target


def _scaled(own: tuple[int, int], ratio: float, resize: Resize) -> tuple[int, int]:
    if resize.length_rounding == "round":
        width, height = round(own[0] * ratio), round(own[1] * ratio)
    elif resize.mode == "shortest_side":
        assert isinstance(resize.size, int)
        # In whole numbers: a product of floats may fall below the whole number that it should be.
        width, height = (side * resize.size // min(own) for side in own)
    else:
        width, height = int(own[0] * ratio + 1e-9), int(own[1] * ratio + 1e-9)
    return max(1, width), max(1, height)


def _resize(picture: Image.Image, size: tuple[int, int], resize: Resize) -> Array:
    """Return the resized pixels (H, W, C)."""
    from PIL import Image

    if kernel := _pillow_filter(resize):
        pixels = np.asarray(picture if picture.size == size else picture.resize(size, Image.Resampling[kernel]))
        return pixels.reshape(*pixels.shape[:2], -1)
    pixels = np.asarray(picture)
    return resample(pixels.reshape(*pixels.shape[:2], -1), size[::-1], resize)


def _pillow_filter(resize: Resize) -> str:
    """Return the name of the filter with which Pillow itself resizes so, "" where it cannot."""
    if resize.rounding != "per_axis" or resize.coordinates != "half_pixel":
        return ""
    if resize.interpolation == "nearest":
        return "NEAREST"
    if not resize.antialias or (resize.interpolation == "bicubic" and resize.cubic_coefficient != -0.5):
        return ""
    return {"bilinear": "BILINEAR", "bicubic": "BICUBIC"}.get(resize.interpolation, "")


def _window(
    resized: tuple[int, int], target: tuple[int, int] | None, steps: Preprocess
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the width and height that the model gets, and its left and upper border in the resized picture."""
    window, offset = resized, (0, 0)
    if steps.resize.mode == "letterbox" and target is not None:
        left, top = ((outer - inner) // 2 for outer, inner in zip(target, resized, strict=True))
        window, offset = target, ((-left, -top) if steps.resize.alignment == "center" else (0, 0))
    if steps.crop is not None and steps.crop.size is not None:
        shown = (steps.crop.size[1], steps.crop.size[0])
        left, top = (_crop_offset(outer - inner, steps.crop.offset) for outer, inner in zip(window, shown, strict=True))
        window, offset = shown, (offset[0] + left, offset[1] + top)
    return window, offset


def _crop_offset(excess: int, rounding: str) -> int:
    if excess < 0 or rounding == "floor":
        return excess // 2
    return round(excess / 2)


def _shown(pixels: Array, window: tuple[int, int], offset: tuple[int, int], fill: int) -> Array:
    """Return the window of (H, W, C) pixels at an offset; what lies outside of them is `fill`."""
    (width, height), (left, top) = window, offset
    whole = np.full((height, width, pixels.shape[2]), fill, pixels.dtype)
    rows, columns = slice(max(0, top), max(0, top + height)), slice(max(0, left), max(0, left + width))
    inside = pixels[rows, columns]
    whole[max(0, -top) : max(0, -top) + inside.shape[0], max(0, -left) : max(0, -left) + inside.shape[1]] = inside
    return whole
