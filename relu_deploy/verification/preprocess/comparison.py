"""Compares the arrays that training code fed with what a bundle's preprocessing makes of the same pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.data.image_folder import FORMATS, LIMITS
from relu_deploy.errors import InputError
from relu_deploy.preprocessing.apply import normalize, place
from relu_deploy.preprocessing.decoding import decode_picture
from relu_deploy.preprocessing.description import Preprocess
from relu_deploy.preprocessing.reading import read_preprocess
from relu_deploy.storage.files import read_regular
from relu_deploy.tensors import Array, TensorSpec
from relu_deploy.verification.preprocess.pairs import pair_arrays
from relu_deploy.verification.preprocess.report import MAX_LEVELS, PictureDifference, PreprocessReport, Step
from relu_deploy.verification.preprocess.settings import Setting, geometries, normalizations

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["compare_preprocess"]

#: largest picture file, in bytes
MAX_FILE_BYTES = 2**30
#: pictures on which other settings are tried, and the rows and columns of them that are compared
TRIED, GRID = 2, 64


def compare_preprocess(
    bundle: Bundle, file: str | os.PathLike[str], folder: str | os.PathLike[str], progress: Callable[[str], None] = lambda _: None
) -> PreprocessReport:
    """Compare arrays with the preprocessing of a bundle.

    Args:
        bundle: The model.
        file: The arrays, see `pair_arrays`: normalized as the model takes them, or uint8 pixels for a model that takes these.
        folder: The pictures.
        progress: Called with the name of each step before it starts.

    Raises:
        InputError: If the model takes no pictures, or a file is not valid.
        UsageError: If the folder does not exist.
    """
    spec, fields = (bundle.inputs[0] if bundle.inputs else None), bundle.manifest.get("preprocess")
    if spec is None or len(spec.shape) != 4 or not fields:
        raise InputError(
            f"the manifest of {bundle.name} does not say how pictures become its input", "export it with --preprocess"
        )
    pairs = pair_arrays(Path(file), Path(folder), spec.name)
    progress(f"the preprocessing of {len(pairs)} pictures")
    own = read_preprocess(fields).fitted(spec)
    files = [_File(picture, array, spec, own) for picture, array in pairs]
    differences = [one.difference(Setting(own)) for one in files]
    pictures = [
        PictureDifference(one.path.relative_to(folder).as_posix(), *found[:2], one.array.shape, found[2])
        for one, found in zip(files, differences, strict=True)
    ]
    report = PreprocessReport(pictures)
    if report.passed:
        return report
    progress("other settings of the preprocessing")
    worst = sorted(range(len(files)), key=lambda place: -_or_infinite(pictures[place].largest))[:TRIED]
    given = own if own.embedded else replace(own, layout=files[worst[0]].layout(own))
    layout = () if given.layout == own.layout else (Step("layout", own.layout, given.layout),)
    found = _explained([files[place] for place in worst], given, pictures[worst[0]].mean)
    if found is None and not layout:
        return report
    setting = found or Setting(given)
    remaining = [one.difference(setting)[0] for one in files]
    return replace(
        report,
        steps=(*setting.differences, *layout),
        remaining=None if any(one is None for one in remaining) else max(one for one in remaining if one is not None),
        suggestion=_suggestion(setting.steps, spec),
    )


def _or_infinite(levels: float | None) -> float:
    return np.inf if levels is None else levels


class _File:
    """A picture file, its decoded pictures and the array that training code made of it."""

    def __init__(self, path: Path, array: Array, spec: TensorSpec, own: Preprocess) -> None:
        self.path = path
        # A model that normalizes pixels itself takes NHWC; training code may have fed either layout.
        self._free_layout = own.embedded
        self._channels = len(own.mean)
        self.array = array
        self._spec = spec

    @property
    def is_pixels(self) -> bool:
        """Whether the array holds pixels for a model that takes them as they are."""
        return self.array.dtype == np.uint8 and self._spec.dtype == "uint8"

    def layout(self, own: Preprocess) -> str:
        """Return the layout of the given array: the declared one unless only the other one fits."""
        first, last = self.array.shape[0] == self._channels, self.array.shape[2] == self._channels
        return own.layout if first == last else "NCHW" if first else "NHWC"

    def size(self, own: Preprocess) -> tuple[int, int]:
        """Return height and width of the given array."""
        shape = self.array.shape
        return (shape[0], shape[1]) if self.layout(own) == "NHWC" else (shape[1], shape[2])

    def is_altered(self) -> bool:
        """Return whether decoding rotates the picture or blends it with white."""
        from PIL import Image

        with Image.open(io.BytesIO(read_regular(self.path, MAX_FILE_BYTES)), formats=FORMATS) as opened:
            return opened.getexif().get(0x0112, 1) != 1 or opened.has_transparency_data

    def picture(self, *, as_stored: bool) -> Image.Image:
        """Return the decoded picture."""
        from PIL import Image

        content, channels = read_regular(self.path, MAX_FILE_BYTES), 1 if self._channels == 1 else 3
        try:
            upright, _ = decode_picture(content, channels, LIMITS, FORMATS)
        except InputError as error:
            raise InputError(f"{self.path}: {error.message}", error.hint) from None
        if not as_stored:
            return upright
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return opened.convert(upright.mode)

    def pixels(self, setting: Setting, picture: Image.Image | None = None) -> Array:
        """Return the resized pixels (1, H, W, C) with a setting. picture: The decoded picture, if it is at hand."""
        return place(picture or self.picture(as_stored=setting.as_stored), self._spec, setting.steps)[0]

    def values(self, pixels: Array, steps: Preprocess, stride: int = 1) -> tuple[Array, Array]:
        """Return our values and the given ones in gray levels, both (H, W, C) of every `stride`-th row and column, float32."""
        given = self.array if self.layout(steps) == "NHWC" else self.array.transpose(1, 2, 0)
        pixels, given = pixels[:, ::stride, ::stride], given[::stride, ::stride]
        steps = replace(steps, layout="NHWC", dtype="float32")
        if self.is_pixels:
            steps = replace(steps, scale=1.0, mean=(0.0,) * self._channels, std=(1.0,) * self._channels)
        level = np.asarray(steps.std, np.float32) / np.float32(steps.scale)
        return normalize(pixels, steps)[0] * level, given.astype(np.float32) * level

    def difference(self, setting: Setting) -> tuple[float | None, float | None, tuple[int, ...]]:
        """Return the largest and mean difference in gray levels with a setting, and the shape that it gives."""
        ours, given = self.values(self.pixels(setting), setting.steps)
        layout = self.layout(setting.steps)
        wanted = layout if self._free_layout else setting.steps.layout
        shape = ours.shape if wanted == "NHWC" else (ours.shape[2], ours.shape[0], ours.shape[1])
        if ours.shape != given.shape or (wanted != layout):
            return None, None, shape
        return (*_levels(ours, given), shape)


def _levels(ours: Array, given: Array) -> tuple[float, float]:
    apart = np.abs(ours - given)
    # NaN in the given array is as far away as anything can be.
    apart = np.where(np.isfinite(apart), apart, np.float32(1e9))
    return float(apart.max()), float(apart.mean(dtype=np.float64))


def _explained(files: Sequence[_File], own: Preprocess, before: float | None) -> Setting | None:
    """Return the setting with the fewest differences that explains the arrays, else the nearest one that is much nearer; or None."""
    as_stored = any(one.is_altered() for one in files)
    values, size = list(normalizations(own)), files[0].size(own)
    stride = max(1, min(size) // GRID)
    pictures: dict[bool, list[Image.Image]] = {}
    best: tuple[tuple[bool, float, float], Setting] | None = None
    for geometry in sorted(geometries(own, size, as_stored=as_stored), key=lambda one: len(one.differences)):
        if best is not None and not best[0][0] and len(geometry.differences) >= len(best[1].differences):
            break
        if geometry.as_stored not in pictures:
            pictures[geometry.as_stored] = [one.picture(as_stored=geometry.as_stored) for one in files]
        pixels = [one.pixels(geometry, made) for one, made in zip(files, pictures[geometry.as_stored], strict=True)]
        for value in values:
            steps = replace(
                geometry.steps, color=value.steps.color, scale=value.steps.scale, mean=value.steps.mean, std=value.steps.std
            )
            pairs = [one.values(made, steps, stride) for one, made in zip(files, pixels, strict=True)]
            if any(ours.shape != given.shape for ours, given in pairs):
                continue
            apart = [_levels(*pair) for pair in pairs]
            largest, mean = (max(one[place] for one in apart) for place in range(2))
            differences = geometry.differences + value.differences
            agrees = largest <= MAX_LEVELS
            # Among settings that agree the fewest changes count, among others how near they come.
            rank = (not agrees, float(len(differences)) if agrees else mean, mean)
            if best is None or rank < best[0]:
                best = rank, Setting(steps, differences, geometry.as_stored)
    if best is None or not best[1].differences:
        return None
    is_nearer = before is None or best[0][2] < before / 2
    return best[1] if not best[0][0] or is_nearer else None


def _suggestion(steps: Preprocess, spec: TensorSpec) -> dict[str, object]:
    """Return the preprocessing as a JSON object for `export --preprocess`."""
    fields = replace(steps, preset="", embedded=False).fitted(spec).to_json()
    return {name: value for name, value in fields.items() if name not in ("embedded", "dtype")}
