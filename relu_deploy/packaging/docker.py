"""The context of an image that serves one model on the CPU. Building it needs a container engine and a package index.

Dockerfile           non-root user, health check; runs on a read-only root file system
models/              the bundle without its PyTorch program, or the graph
relu_deploy/         this package, as installed here
requirements.txt     its requirements for serving, in the versions installed here
constraints.txt      their requirements, likewise
"""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from relu_deploy.backends import backend_for, capabilities
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, UsageError
from relu_deploy.packaging.options import DeployedModel, PackageOptions, model_name
from relu_deploy.packaging.output import copy_bundle, write_text
from relu_deploy.packaging.serve_options import serve_options
from relu_deploy.packaging.text_format import comment
from relu_deploy.packaging.triton_config import target_of

__all__ = ["FLAVORS", "OPTIONS", "write"]

FLAVORS = ("relu-deploy",)
OPTIONS = ("flavor", "max_batch", "max_delay", "threads", "image")
BASE = "python:3.12.13-slim-trixie"
#: what every image installs, beside the extra of the model's backend
EXTRAS = ("cpu", "serve")
#: the name of a requirement, its own extras, and the rest up to the markers
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(\[[^\]]*\])?([^;]*)(;.*)?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")

DOCKERFILE = """\
# {title}, served over the Open Inference Protocol v2. Built and run with:
#
#   docker build -t {tag} .
#   docker run --rm -p 8000:8000 {tag}
{reasons}
ARG BASE={base}
FROM ${{BASE}}
LABEL org.opencontainers.image.title={label}
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \\
    PYTHONPATH=/opt/relu_deploy PYTHONUNBUFFERED=1 HOME=/tmp
# Dependencies are a layer of their own, so that a new model does not fetch them again.
COPY requirements.txt constraints.txt /opt/
RUN python3 -m venv /opt/venv \\
 && /opt/venv/bin/pip install --no-compile -r /opt/requirements.txt -c /opt/constraints.txt \\
 && /opt/venv/bin/pip uninstall --yes pip
ENV PATH=/opt/venv/bin:$PATH
COPY relu_deploy /opt/relu_deploy/relu_deploy
# Compiled at build time, because the image's user cannot write there; without packages that serving never imports.
RUN python -m compileall -q -x '/(sympy|mpmath|tests?)/' /opt/venv/lib /opt/relu_deploy \\
 && printf '#!/bin/sh\\nexec python -m relu_deploy "$@"\\n' > /usr/local/bin/relu-deploy && chmod 755 /usr/local/bin/relu-deploy
COPY models /models
USER 10001:10001
# HTTP, gRPC, metrics
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \\
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["relu-deploy"]
CMD {command}
"""


def write(bundle: Bundle, options: PackageOptions, folder: Path) -> DeployedModel:
    """Write the context of the image.

    Args:
        bundle: The model.
        options: How it is served.
        folder: An empty folder.

    Raises:
        UsageError: If the variant was not made for CPUs, or was optimized for a backend that no extra installs.
        InputError: If relu_deploy was not installed by pip.
    """
    made_for = target_of(bundle)
    if made_for not in ("", "cpu"):
        raise UsageError(
            f"{bundle.title} was optimized for {made_for}, and this image serves on the CPU",
            "package the model or a variant for cpu",
        )
    backend = backend_for(bundle)
    if not (extra := capabilities(backend).extra):
        raise UsageError(
            f"{bundle.title} was optimized for the backend {backend}, which no extra of relu-deploy installs",
            "package the model itself, or make the variant again where that backend is not installed",
        )
    name = model_name(bundle)
    at = copy_bundle(bundle, folder / "models").relative_to(folder)
    batching, reasons = serve_options(bundle, backend, options)
    threads = ["--threads", str(options.threads)] if options.threads else []
    command = ["serve", f"/{at.as_posix()}", "--host", "0.0.0.0", "--no-watch", *threads, *batching]
    tag = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-") or "model"
    write_text(
        folder / "Dockerfile",
        DOCKERFILE.format(
            title=" ".join(bundle.title.split()),
            tag=tag,
            reasons=comment(["", *reasons]) if reasons else "",
            base=options.image or BASE,
            label=json.dumps(bundle.title),
            command=json.dumps(command),
        ),
    )
    requirements, constraints = _pinned_requirements(tuple(dict.fromkeys((*EXTRAS, extra))))
    write_text(folder / "requirements.txt", "".join(f"{line}\n" for line in requirements))
    write_text(folder / "constraints.txt", "".join(f"{line}\n" for line in constraints))
    # Without the shipped models, which serving does not need.
    shutil.copytree(
        Path(__file__).parent.parent, folder / "relu_deploy", ignore=shutil.ignore_patterns("__pycache__", "_models", ".*")
    )
    return DeployedModel(name, FLAVORS[0])


def _pinned_requirements(extras: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the requirements of `extras`, and all direct and indirect ones, in the versions installed here.

    A requirement that is not installed keeps its range.
    """
    try:
        known = metadata("relu-deploy").get_all("Provides-Extra") or ()
        direct = _requirements_of("relu-deploy", extras)
    except PackageNotFoundError as error:
        raise InputError(
            "relu_deploy was not installed by pip, so its requirements are unknown", "pip install 'relu-deploy[cpu,serve]'"
        ) from error
    if missing := [extra for extra in extras if extra not in known]:
        raise InputError(
            f"the installed metadata of relu_deploy has no extra {missing[0]!r}", "install this version again: pip install -e ."
        )
    requirements = [
        f"{name}{extras}=={_installed(name)}" if _installed(name) else f"{name}{extras}{versions}"
        for name, extras, versions in direct
    ]
    pinned: dict[str, str] = {}
    pending = [name for name, _, _ in direct]
    while pending:
        name = pending.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key not in pinned and (found := _installed(name)):
            pinned[key] = found
            pending += [each for each, _, _ in _requirements_of(name, ())]
    return sorted(requirements), [f"{name}=={pinned[name]}" for name in sorted(pinned)]


def _requirements_of(name: str, extras: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Return (name, extras, versions) of each requirement of a distribution and its `extras`, for all platforms."""
    found = []
    for line in requires(name) or ():
        match = _REQUIREMENT.fullmatch(line)
        extra = _EXTRA.search(line)
        if match and (extra is None or extra[1] in extras):
            found.append((match[1], match[2] or "", match[3].strip()))
    return found


def _installed(name: str) -> str:
    """Return the installed version without its local part, which no index has; "" if it is not installed."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return ""
