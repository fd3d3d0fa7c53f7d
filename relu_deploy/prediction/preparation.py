"""From the content of a picture file, a text or arrays to the feeds of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.data.image_folder import free_batch, to_input
from relu_deploy.data.texts import takes_texts, to_bytes
from relu_deploy.preprocessing.apply import place
from relu_deploy.preprocessing.decoding import DEFAULT_LIMITS, DecodeLimits, decode_picture
from relu_deploy.preprocessing.description import plane_of
from relu_deploy.preprocessing.errors import PictureTooLarge
from relu_deploy.preprocessing.placement import ImagePlacement
from relu_deploy.preprocessing.reading import read_preprocess
from relu_deploy.tensors import Array, Feeds, check_feeds

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["TASKS", "PreparedInput", "prepare_arrays", "prepare_picture", "prepare_text", "unsupported_reason"]

TASKS = ("classification", "detection", "segmentation")
#: most pixels of a picture for a model that takes any size: its activations are many times larger
MAX_FREE_PIXELS = 4_000_000


@dataclass(frozen=True)
class PreparedInput:
    """One input as the model takes it.

    Attributes:
        feeds: Arrays of one row.
        placement: How a picture was placed in the input; None for a text.
        picture: The decoded picture; None for a text or an array.
        format: Of the picture file, "" for other inputs.
    """

    feeds: Feeds
    placement: ImagePlacement | None = None
    picture: Image.Image | None = None
    format: str = ""


def unsupported_reason(bundle: Bundle) -> tuple[str, str] | None:
    """Return why no predictions can be made with a model, and a hint; None when they can."""
    name, manifest = bundle.name, bundle.manifest
    if takes_texts(manifest):
        specs = bundle.inputs
        if len(specs) != 1 or specs[0].dtype != "uint8" or len(specs[0].shape) != 2 or not isinstance(specs[0].shape[1], int):
            return f"the inputs of {name!r} are not rows of bytes of one length", "export it with one input, uint8 (N, L)"
        if manifest.get("task") != "classification":
            return f"the manifest of {name!r} has no 'task' that takes texts", "set it to classification in manifest.json"
        return None
    steps = manifest.get("preprocess")
    if len(bundle.inputs) != 1:
        return (
            f"model {name!r} has {len(bundle.inputs)} inputs, and a picture feeds one",
            "run it on arrays: with a session, or at /infer of a server",
        )
    if not steps:
        return (
            f"the manifest of {name!r} has no 'preprocess': how pictures become its input",
            "export it with --preprocess, or --mean and --std",
        )
    channels, _, _ = plane_of(bundle.inputs[0], steps)
    if channels not in (1, 3):
        return (
            f"the input of {name!r}, {bundle.inputs[0]}, is not a picture of 1 or 3 channels",
            "run it on arrays: with a session, or at /infer of a server",
        )
    if manifest.get("task") not in TASKS:
        return (
            f"the manifest of {name!r} has no 'task': what its outputs mean",
            f"export it with --labels, or set it to one of {', '.join(TASKS)} in manifest.json",
        )
    if manifest["task"] == "detection" and (manifest.get("postprocess") or {}).get("decode") not in ("boxes", "nms"):
        return f"the outputs of {name!r} are raw head maps", "export it with --decode boxes"
    return None


def prepare_picture(bundle: Bundle, file: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> PreparedInput:
    """Decode a picture, and resize, crop and normalize it as the manifest's `preprocess` says.

    Args:
        bundle: The model.
        file: Content of a JPEG, PNG, WebP or BMP file.
        limits: The largest picture.

    Raises:
        PictureTooLarge: If it exceeds a limit.
        InputError: If it is not a picture, is damaged, or too elongated.
    """
    spec, fields = bundle.inputs[0], bundle.manifest["preprocess"]
    channels, *sides = plane_of(spec, fields)
    picture, name = decode_picture(file, int(channels), limits)
    steps = read_preprocess(fields)
    takes_any_size = steps.crop is None and steps.resize.size is None and not all(isinstance(side, int) for side in sides)
    if takes_any_size and picture.width * picture.height > MAX_FREE_PIXELS:
        raise PictureTooLarge(
            f"a picture of {picture.width}x{picture.height} pixels exceeds the limit of {MAX_FREE_PIXELS} for {bundle.name!r}, "
            "which takes any size",
            "make it smaller",
        )
    pixels, placement = place(picture, spec, steps, limits.max_pixels)
    return PreparedInput({spec.name: to_input(bundle, pixels)}, placement, picture, name)


def prepare_text(bundle: Bundle, text: str | bytes) -> PreparedInput:
    """Encode a text as the model's row of UTF-8 bytes. Raises InputError if it is empty, too long, not UTF-8 or holds NUL."""
    spec = bundle.inputs[0]
    return PreparedInput({spec.name: to_bytes([text], spec)})


def prepare_arrays(bundle: Bundle, arrays: Mapping[str, Array]) -> PreparedInput:
    """Check arrays of one row for the model.

    Args:
        bundle: The model.
        arrays: By input; uint8 pixels (1, H, W, C) of a picture model are normalized first.

    Raises:
        InputError: If the arrays do not fit the model's inputs.
    """
    feeds = {}
    for spec in bundle.inputs:
        array = np.asarray(arrays[spec.name]) if spec.name in arrays else None
        if array is not None:
            is_pixels = array.dtype == np.uint8 and spec.dtype != "uint8" and array.ndim == 4
            feeds[spec.name] = to_input(bundle, array) if is_pixels else array
    feeds = check_feeds(feeds, free_batch(bundle), bundle.name)
    return PreparedInput(feeds, _whole(bundle, feeds))


def _whole(bundle: Bundle, feeds: Feeds) -> ImagePlacement | None:
    """Return the placement of a picture that is the whole input."""
    steps = bundle.manifest.get("preprocess") or {}
    spec = bundle.inputs[0]
    if takes_texts(bundle.manifest) or len(spec.shape) != 4:
        return None
    sizes = plane_of(replace(spec, shape=feeds[spec.name].shape), steps)
    size = (int(sizes[2]), int(sizes[1]))
    return ImagePlacement(size, size, (1.0, 1.0), (0, 0))
