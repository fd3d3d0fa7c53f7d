"""Reads arrays from `.npz` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from relu_deploy.errors import InputError
from relu_deploy.tensors import Feeds

__all__ = ["load_npz"]


def load_npz(path: Path) -> Feeds:
    """Return the arrays in an `.npz` file, by name.

    Raises:
        InputError: If there is no such file, or it is not an `.npz` file of plain arrays.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}", "save the arrays with numpy.savez(FILE, x=array)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, pickle and NumPy raise many types of exceptions
        raise InputError(
            f"{path} is not an .npz file of plain arrays: {error}", "save it with numpy.savez(FILE, x=array)"
        ) from error
