"""Pairs the arrays in an `.npz` file with the pictures in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from relu_deploy.data.arrays import load_npz
from relu_deploy.data.image_folder import PICTURES
from relu_deploy.errors import InputError, UsageError
from relu_deploy.tensors import Array

__all__ = ["pair_arrays"]

#: names of the array that holds the pictures' names
NAMES = ("files", "names", "pictures", "paths")


def pair_arrays(file: Path, folder: Path, input_name: str) -> list[tuple[Path, Array]]:
    """Return pictures with their arrays, each of three dimensions.

    Args:
        file: An `.npz` file with one array a picture, under the picture's path or name; or one array of all rows, called
            `input_name` if there are several, in the order of an array `files` of names, or of the sorted pictures.
        folder: The pictures, with sub-folders.
        input_name: Name of the model's input.

    Raises:
        UsageError: If the folder does not exist.
        InputError: If an array does not belong to a picture, or is not that of one.
    """
    if not folder.is_dir():
        raise UsageError(f"--preprocess-against compares the pictures of a folder, and --data {folder} is none", "give one")
    pictures = sorted(one for one in folder.rglob("*") if one.suffix.lower() in PICTURES)
    if not pictures:
        raise InputError(f"there is no picture in {folder}", f"supported files: {', '.join(PICTURES)}")
    arrays = load_npz(file)
    rows = _rows(arrays, input_name)
    if rows is None:
        return [(_picture(name, pictures, folder, file), _single(array, name, file)) for name, array in arrays.items()]
    names = next((arrays[name] for name in NAMES if name in arrays and arrays[name].dtype.kind in "US"), None)
    if names is not None:
        listed = [name.decode() if isinstance(name, bytes) else str(name) for name in names.ravel().tolist()]
        pictures = [_picture(name, pictures, folder, file) for name in listed]
    if len(pictures) != len(rows):
        raise InputError(
            f"{file} has {len(rows)} rows, and there are {len(pictures)} pictures",
            "add an array `files` with the name of the picture of each row",
        )
    return list(zip(pictures, rows, strict=True))


def _rows(arrays: Mapping[str, Array], input_name: str) -> Array | None:
    """Return the array of all pictures, None where each picture has its own."""
    if input_name in arrays and arrays[input_name].ndim == 4:
        return arrays[input_name]
    batches = [name for name, array in arrays.items() if array.ndim == 4 and Path(name).suffix.lower() not in PICTURES]
    others = [name for name, array in arrays.items() if array.ndim == 3]
    return arrays[batches[0]] if len(batches) == 1 and not others else None


def _picture(name: str, pictures: Sequence[Path], folder: Path, file: Path) -> Path:
    """Return the picture with a path relative to the folder, a name, or a name without its suffix."""
    path = Path(name)
    for matches in (
        [one for one in pictures if one.relative_to(folder) == path or one == path],
        [one for one in pictures if one.name == path.name],
        [one for one in pictures if one.stem == path.name],
    ):
        if len(matches) == 1:
            return matches[0]
    raise InputError(f"{file}: {name!r} is not one picture in {folder}", "name each array after its picture, such as cat.png")


def _single(array: Array, name: str, file: Path) -> Array:
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3 or array.dtype.kind not in "fiu":
        raise InputError(f"{file}: {name!r} is {array.dtype.name} {array.shape}, not the array of a picture", "save (C, H, W)")
    return np.asarray(array)
