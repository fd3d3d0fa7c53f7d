"""Arrays from `.npz` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from relu_deploy.errors import InputError
from relu_deploy.tensors import Feeds

__all__ = ["load_npz"]


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
