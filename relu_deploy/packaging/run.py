"""Packages: what another engine deploys, from one model. One file a target, which writes into an empty folder.

triton     a model repository for Triton Inference Server
kserve     manifests for KServe on Kubernetes, and what belongs where they say the model is
docker     the context of an image that serves the model
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from relu_deploy.bundle import Bundle, whole_folder
from relu_deploy.errors import InputError, UsageError, nearest
from relu_deploy.packaging import docker, kserve, triton
from relu_deploy.packaging.output import note_files, refuse_target
from relu_deploy.packaging.settings import PackageOptions, PackageReport

__all__ = ["TARGETS", "PackageOptions", "PackageReport", "package"]

TARGETS = {"triton": triton, "kserve": kserve, "docker": docker}


def package(
    model: Bundle | str | os.PathLike[str],
    target: str,
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    **options: Any,
) -> PackageReport:
    """Return the package of `model` (a bundle, a variant in one, an ONNX file) for `target`, written to the folder `out`.

    The folder is written whole or not at all. force: replace a package that is there; anything else is never replaced.
    options: see `PackageOptions`.
    Raises UsageError for what makes no sense, InputError for what is in the way, Unsupported for what the target cannot run.
    """
    if target not in TARGETS:
        raise UsageError(f"there is no target {target!r}", nearest(target, TARGETS))
    room, settings = TARGETS[target], PackageOptions(**options)
    settings.check(target, room.OPTIONS, room.FLAVOURS)
    folder = Path(out)
    refuse_target(folder, force)
    bundle = Bundle.open(model)
    try:
        with whole_folder(folder) as workshop:
            written = room.write(bundle, settings, workshop)
            files = note_files(workshop, target=target, model=written.model)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}", "choose another place with -o") from error
    return PackageReport(target, folder, tuple(folder / file for file in files), written)
