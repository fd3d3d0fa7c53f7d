"""Reads and writes `.npz` files of arrays."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from relu_deploy.errors import InputError
from relu_deploy.graph.loading.resources import memory_size
from relu_deploy.tensors import Array, Feeds

__all__ = ["load_npz", "save_npz"]

#: share of the memory that arrays may take: a model's inputs are copied at least once
MOST_MEMORY = 0.5


def load_npz(path: Path) -> Feeds:
    """Return the arrays in an `.npz` file, by name.

    Raises:
        InputError: If there is no such file, or it is not an `.npz` file of plain arrays.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}", "save the arrays with numpy.savez(FILE, x=array)")
    try:
        with zipfile.ZipFile(path) as members:
            unpacked = sum(member.file_size for member in members.infolist())
            names = [name.removesuffix(".npy") for name in members.namelist()]
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise InputError(f"{path} holds the array {twice[:80]!r} twice", "save it with numpy.savez(FILE, x=array)")
        if unpacked > MOST_MEMORY * memory_size():
            raise InputError(f"{path} unpacks to {unpacked / 1e9:.4g} GB, too much for this machine", "give fewer rows")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        # NumPy returns the bytes of a member that is no array.
        if no_arrays := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise InputError(f"{path}: {no_arrays[0][:80]!r} is no array", "save it with numpy.savez(FILE, x=array)")
        return arrays
    except InputError:
        raise
    except Exception as error:  # zipfile, pickle and NumPy raise many types of exceptions
        raise InputError(
            f"{path} is not an .npz file of plain arrays: {error}", "save it with numpy.savez(FILE, x=array)"
        ) from error


def save_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays to an `.npz` file that `load_npz` reads. Texts are stored as such: as Python's objects they would be pickles."""
    stored: dict[str, Any] = {name: array.astype(str) if array.dtype == object else array for name, array in arrays.items()}
    np.savez(path, **stored)
