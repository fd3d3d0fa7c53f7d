"""Pictures in files as rows of a data set, read and preprocessed on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.data.images import FORMATS, MAX_PIXELS, MAX_SIDE, place, plane_of
from relu_deploy.errors import InputError
from relu_deploy.tensors import Array, TensorSpec, check_feeds

__all__ = ["PICTURES", "ImageFolder", "free_batch", "read_picture", "to_input"]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class ImageFolder:
    """An array-like sequence of N rows that reads each picture file when the row is accessed, to save memory."""

    def __init__(self, bundle: Bundle, files: Sequence[Path]) -> None:
        self._bundle, self._files = bundle, list(files)

    def __len__(self) -> int:
        return len(self._files)

    def picked(self, rows: Array) -> ImageFolder:
        """Return a sequence of the rows with the indices `rows`."""
        return ImageFolder(self._bundle, [self._files[row] for row in rows])

    def __getitem__(self, rows: slice | Array) -> Array:
        """Return rows as one array.

        Raises:
            InputError: If a picture does not fit the model; the message names the file.
        """
        picked = self._files[rows] if isinstance(rows, slice) else [self._files[row] for row in rows]
        name = self._bundle.inputs[0].name
        made = [to_input(self._bundle, read_picture(self._bundle, file)) for file in picked]
        for file, array in zip(picked, made, strict=True):
            check_feeds({name: array}, free_batch(self._bundle)[:1], str(file))
        return np.concatenate(made)


def to_input(bundle: Bundle, pixels: Array) -> Array:
    """Convert pixels to the layout and dtype of the model's first input.

    Args:
        bundle: The model.
        pixels: uint8 (N, H, W, C).

    Raises:
        InputError: If the dtype, shape or number of channels does not fit, or the preprocessing is not known.
    """
    spec, steps = bundle.inputs[0], bundle.manifest.get("preprocess")
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise InputError(f"pictures must be uint8 (N, H, W, C), got {pixels.dtype.name} {pixels.shape}", "convert them first")
    if spec.dtype == "uint8":
        return pixels
    if steps is None:
        raise InputError(
            f"{bundle.name} does not say how pictures become its input",
            "give float32 arrays in an .npz, or export with --mean and --std",
        )
    mean, std = (np.asarray(steps[key], np.float32) for key in ("mean", "std"))
    if pixels.shape[-1] != len(mean):
        raise InputError(
            f"{bundle.name} takes pictures of {len(mean)} channels, these have {pixels.shape[-1]}", "convert the pictures"
        )
    planes = (pixels * np.float32(steps["scale"]) - mean) / std
    last = steps.get("layout") == "NHWC" and not steps.get("embedded")
    return np.ascontiguousarray(planes if last else planes.transpose(0, 3, 1, 2), spec.dtype)


def read_picture(bundle: Bundle, file: Path) -> Array:
    """Read a picture, resized and cropped for the model, as uint8 (1, H, W, C).

    Raises:
        InputError: If the file is not a picture that can be read, or is too large.
    """
    from PIL import Image

    spec, steps = bundle.inputs[0], bundle.manifest.get("preprocess") or {}
    channels, _, _ = plane_of(spec, steps)
    if not file.is_file():
        raise InputError(f"{file} is not an ordinary file", "remove it from the folder")
    try:
        with Image.open(file, formats=FORMATS) as opened:
            if max(opened.size) > MAX_SIDE:
                raise InputError(f"{file} is {opened.width}x{opened.height} pixels, and {MAX_SIDE} is the limit", "crop it")
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError(f"{file} has {opened.width * opened.height} pixels, more than {MAX_PIXELS}", "make it smaller")
            picture = opened.convert("L" if channels == 1 else "RGB")
    except InputError:
        raise
    except Exception as error:  # Pillow raises many types of exceptions for a file that is not a picture
        raise InputError(f"{file} is not a picture that can be read: {error}", "remove it from the folder") from error
    try:
        return place(picture, spec, steps)[0]
    except InputError as error:
        raise InputError(f"{file}: {error.message}", error.hint) from None


def free_batch(bundle: Bundle) -> list[TensorSpec]:
    """Return the specifications of the inputs with a batch of any size, for checks of a whole data set."""
    return [_of_any_length(spec) for spec in bundle.inputs]


def _of_any_length(spec: TensorSpec) -> TensorSpec:
    axis = spec.batch_axis
    if axis is None or not spec.shape:
        return spec
    return replace(spec, shape=(*spec.shape[:axis], "rows", *spec.shape[axis + 1 :]))
