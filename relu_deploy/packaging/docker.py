"""The context of an image that serves one model on the CPU: nothing else is needed to build it than a container engine and a package index.

Dockerfile           not root, with a health check; runs on a read-only root file system
models/              the bundle (without its PyTorch program), or the graph
relu_deploy/         this package, as it is installed here
requirements.txt     what it needs to serve, in the versions that are installed here
constraints.txt      what those need, likewise
"""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, UsageError
from relu_deploy.packaging.output import copy_bundle, write_text
from relu_deploy.packaging.serve_options import served
from relu_deploy.packaging.settings import PackageOptions, Written, model_name
from relu_deploy.packaging.text_format import comment
from relu_deploy.packaging.triton_config import target_of

__all__ = ["FLAVOURS", "OPTIONS", "write"]

FLAVOURS = ("relu-deploy",)
OPTIONS = ("flavour", "max_batch", "max_delay", "threads", "image")
BASE = "python:3.12.13-slim-trixie"
BACKEND = "onnxruntime-cpu"
EXTRAS = ("cpu", "serve")
#: the name of a requirement, its own extras, and the rest up to the markers
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(\[[^\]]*\])?([^;]*)(;.*)?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")

DOCKERFILE = """\
# {title}, served over the Open Inference Protocol v2. Built and run with:
#
#   docker build -t {tag} .
#   docker run --rm -p 8000:8000 {tag}
{why}
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
# Compiled here, because who runs the image may not write there; but not what ONNX Runtime asks for and serving never imports.
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


def write(bundle: Bundle, settings: PackageOptions, folder: Path) -> Written:
    """Write the context into the empty `folder`. Raises UsageError for a variant that is not for CPUs, InputError for an installation without metadata."""
    made_for = target_of(bundle)
    if made_for not in ("", "cpu"):
        raise UsageError(
            f"{bundle.title} was optimized for {made_for}, and this image serves on the CPU",
            "package the model or a variant for cpu",
        )
    name = model_name(bundle)
    at = copy_bundle(bundle, folder / "models").relative_to(folder)
    options, why = served(bundle, BACKEND, settings)
    threads = ["--threads", str(settings.threads)] if settings.threads else []
    command = ["serve", f"/{at.as_posix()}", "--host", "0.0.0.0", "--no-watch", *threads, *options]
    tag = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-") or "model"
    write_text(
        folder / "Dockerfile",
        DOCKERFILE.format(
            title=" ".join(bundle.title.split()),
            tag=tag,
            why=comment(["", *why]) if why else "",
            base=settings.image or BASE,
            label=json.dumps(bundle.title),
            command=json.dumps(command),
        ),
    )
    wanted, pinned = _requirements()
    write_text(folder / "requirements.txt", "".join(f"{line}\n" for line in wanted))
    write_text(folder / "constraints.txt", "".join(f"{line}\n" for line in pinned))
    # Only its own files: what the shipped models need to be exported is not needed to serve.
    shutil.copytree(
        Path(__file__).parent.parent, folder / "relu_deploy", ignore=shutil.ignore_patterns("__pycache__", "_models", ".*")
    )
    return Written(name, FLAVOURS[0])


def _requirements() -> tuple[list[str], list[str]]:
    """Return what serving needs and what that needs in turn, each in the version that is installed here; a range where it is not."""
    try:
        ours = _needed("relu-deploy", EXTRAS)
    except PackageNotFoundError as error:
        raise InputError(
            "relu_deploy was not installed by pip, so nothing tells what it needs", "pip install 'relu-deploy[cpu,serve]'"
        ) from error
    wanted = [
        f"{name}{extras}=={_installed(name)}" if _installed(name) else f"{name}{extras}{limits}" for name, extras, limits in ours
    ]
    pinned: dict[str, str] = {}
    waiting = [name for name, _, _ in ours]
    while waiting:
        name = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key not in pinned and (found := _installed(name)):
            pinned[key] = found
            waiting += [each for each, _, _ in _needed(name, ())]
    return sorted(wanted), [f"{name}=={pinned[name]}" for name in sorted(pinned)]


def _needed(name: str, extras: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Return (name, its extras, its limits) of what a distribution and its `extras` need, whatever the platform."""
    found = []
    for line in requires(name) or ():
        match = _REQUIREMENT.fullmatch(line)
        extra = _EXTRA.search(line)
        if match and (extra is None or extra[1] in extras):
            found.append((match[1], match[2] or "", match[3].strip()))
    return found


def _installed(name: str) -> str:
    """Return the version that is installed, without the local part that no index has; "" where none is."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return ""
