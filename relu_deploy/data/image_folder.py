"""Pictures in files as rows of a data set, read and preprocessed on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.preprocessing.apply import MAX_PIXELS, normalize, place, reorder
from relu_deploy.preprocessing.decoding import DecodeLimits, decode_picture
from relu_deploy.preprocessing.description import plane_of
from relu_deploy.preprocessing.errors import PictureTooLarge
from relu_deploy.preprocessing.reading import read_preprocess
from relu_deploy.storage.files import read_regular
from relu_deploy.tensors import Array, TensorSpec, check_feeds

__all__ = ["FORMATS", "LIMITS", "PICTURES", "ImageFolder", "free_batch", "read_picture", "to_input"]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: Pillow's names of the formats that are read; other decoders, such as that of PostScript, are not tried.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
LIMITS = DecodeLimits(max_pixels=MAX_PIXELS, max_side=65_535)
#: largest picture file, in bytes
MAX_FILE_BYTES = 2**30


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
    """Convert pixels to the channel order, layout and dtype of the model's first input.

    Args:
        bundle: The model.
        pixels: RGB or gray, uint8 (N, H, W, C); float32 where the model's resizing does not round.

    Raises:
        InputError: If the dtype, shape or number of channels does not fit, or the preprocessing is not known.
    """
    spec, fields = bundle.inputs[0], bundle.manifest.get("preprocess")
    if pixels.dtype not in (np.uint8, np.float32) or pixels.ndim != 4:
        raise InputError(f"pictures must be uint8 (N, H, W, C), got {pixels.dtype.name} {pixels.shape}", "convert them first")
    if spec.dtype == "uint8":
        return _as_pixels(pixels, fields)
    if fields is None:
        raise InputError(
            f"{bundle.name} does not say how pictures become its input",
            "give float32 arrays in an .npz, or export with --preprocess or --mean and --std",
        )
    steps = read_preprocess(fields).fitted(spec)
    if pixels.shape[-1] != len(steps.mean):
        raise InputError(
            f"{bundle.name} takes pictures of {len(steps.mean)} channels, these have {pixels.shape[-1]}", "convert the pictures"
        )
    return normalize(pixels, steps)


def _as_pixels(pixels: Array, fields: object) -> Array:
    """Return pixels for a model that takes them as uint8."""
    if not isinstance(fields, dict):
        return pixels
    steps = read_preprocess(fields)
    if pixels.dtype == np.float32:
        pixels = np.rint(pixels).clip(0, 255).astype(np.uint8)
    if steps.embedded:
        return pixels
    ordered = reorder(pixels, steps)
    return np.ascontiguousarray(ordered if steps.layout == "NHWC" else ordered.transpose(0, 3, 1, 2))


def read_picture(bundle: Bundle, file: Path) -> Array:
    """Read a picture, resized and cropped for the model, as RGB or gray pixels (1, H, W, C).

    Raises:
        InputError: If the file is not a picture that can be read, or is too large.
    """
    spec, steps = bundle.inputs[0], bundle.manifest.get("preprocess") or {}
    channels, _, _ = plane_of(spec, steps)
    content = read_regular(file, MAX_FILE_BYTES)
    try:
        picture, _ = decode_picture(content, 1 if channels == 1 else 3, LIMITS, FORMATS)
        return place(picture, spec, steps)[0]
    except PictureTooLarge as error:
        raise InputError(f"{file}: {error.message}", error.hint) from None
    except InputError as error:
        raise InputError(f"{file} is not a picture that can be read: {error.message}", "remove it from the folder") from None


def free_batch(bundle: Bundle) -> list[TensorSpec]:
    """Return the specifications of the inputs with a batch of any size, for checks of a whole data set."""
    return [_of_any_length(spec) for spec in bundle.inputs]


def _of_any_length(spec: TensorSpec) -> TensorSpec:
    axis = spec.batch_axis
    if axis is None or not spec.shape:
        return spec
    return replace(spec, shape=(*spec.shape[:axis], "rows", *spec.shape[axis + 1 :]))
