"""Package a model for another engine. One file a target, which writes into an empty folder.

triton       a model repository for Triton Inference Server
kserve       manifests for KServe on Kubernetes, and the model for their storage URI
docker       the context of an image that serves the model
onnxruntime  a model package: the model and its variants, from which ONNX Runtime chooses
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from relu_deploy.bundle import Bundle, whole_folder
from relu_deploy.errors import InputError, UsageError, nearest
from relu_deploy.packaging import docker, kserve, model_package, triton
from relu_deploy.packaging.options import PackageOptions, PackageReport
from relu_deploy.packaging.output import record_files, refuse_target

__all__ = ["TARGETS", "PackageOptions", "PackageReport", "package"]

TARGETS = {"triton": triton, "kserve": kserve, "docker": docker, "onnxruntime": model_package}


def package(
    model: Bundle | str | os.PathLike[str],
    target: str,
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    **options: Any,
) -> PackageReport:
    """Package a model for another engine.

    The folder is written whole or not at all.

    Args:
        model: A bundle, a variant in one, or an ONNX file.
        target: A key of `TARGETS`.
        out: The folder to write.
        force: Replace a package that exists; any other folder or file is never replaced.
        **options: Fields of `PackageOptions`; `flavour` is accepted for `flavor`.

    Raises:
        UsageError: If an option makes no sense for the model or the target.
        InputError: If something else is at `out`, or it cannot be written.
        Unsupported: If the target cannot run the model.
    """
    if target not in TARGETS:
        raise UsageError(f"there is no target {target!r}", nearest(target, TARGETS))
    if "flavour" in options:
        options["flavor"] = options.pop("flavour")
    module, settings = TARGETS[target], PackageOptions(**options)
    settings.check(target, module.OPTIONS, module.FLAVORS)
    folder = Path(out)
    refuse_target(folder, force)
    bundle = Bundle.open(model)
    try:
        with whole_folder(folder) as staging:
            deployed = module.write(bundle, settings, staging)
            files = record_files(staging, target=target, model=deployed.name)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}", "choose another place with -o") from error
    return PackageReport(target, folder, tuple(folder / file for file in files), deployed)
