"""Prepared zoo models of earlier benchmarks, in the user's cache.

Exporting, verifying and quantizing a model takes longer than measuring it. A bundle is taken from the cache only if all that it was
made from is the same: the code and the version of this package, the recipe, weights and data of the model, the libraries, and the
CPU, which decides on the int8 recipe. One bundle is kept for each model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path

from relu_deploy.benchmark.environment import describe_cpu, library_versions
from relu_deploy.bundle import Bundle
from relu_deploy.errors import ReluDeployError
from relu_deploy.paths import PACKAGE, cache_folder
from relu_deploy.storage.files import sha256
from relu_deploy.storage.folders import whole_folder
from relu_deploy.version import __version__
from relu_deploy.zoo.recipes import recipe

__all__ = ["keep_bundle", "take_bundle"]


def take_bundle(name: str, target: Path) -> str:
    """Copy the bundle of a zoo model from the cache to `target` if there is one; nothing is left there otherwise.

    Args:
        name: Name of the model.
        target: The bundle to make.

    Returns:
        When it was made, in local time; "" if there is none.
    """
    kept = _folder(name)
    try:
        shutil.copytree(kept, target)
        Bundle.open(target)
        return time.strftime("%Y-%m-%d %H:%M", time.localtime((kept / "manifest.json").stat().st_mtime))
    except (OSError, shutil.Error, ReluDeployError):  # there is none, it is damaged, or another process is replacing it
        shutil.rmtree(target, ignore_errors=True)
        return ""


def keep_bundle(name: str, bundle: Path) -> None:
    """Keep a copy of the bundle of a zoo model in place of earlier ones.

    Args:
        name: Name of the model.
        bundle: The bundle.

    Raises:
        InputError: If the cache cannot be written.
    """
    target = _folder(name)
    with whole_folder(target) as folder:
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
    for other in target.parent.glob(f"{name}-*.rdb"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def _folder(name: str) -> Path:
    return cache_folder("bench") / f"{name}-{_key(name)}.rdb"


def _key(name: str) -> str:
    """Return a hash of all that the bundle of a model depends on."""
    files = sorted(PACKAGE.rglob("*.py"))
    folder = recipe(name).folder
    if folder is not None:
        files += sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc", ".md"))
    cpu = describe_cpu()
    facts = {
        "version": __version__,
        "libraries": library_versions(),
        "cpu": {field: cpu[field] for field in ("model", "features")},
        "files": [(file.name, sha256(file)) for file in files],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
