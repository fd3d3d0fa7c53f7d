"""Registry of backends: lists, probes and loads them.

A backend of this package is a folder with two modules, and one line in `BACKENDS`:

    probe.py    probe(name, device=0) -> Probe              whether it is usable here; if not, the reason and a fix
                                                            (`device`, the index of the GPU, is optional)
                capabilities(name) -> Capabilities          what it supports (optional: the defaults of `Capabilities`)
    load.py     load(name, bundle, options) -> Session      a session that runs the whole model, or an error

A backend of another package is one module with these functions, registered as an entry point: in the group
`relu_deploy.backends`, under the name of the backend.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import MISSING, fields
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from typing import Any

from relu_deploy.backends.base import Capabilities, Options, Probe, Session
from relu_deploy.bundle import Bundle
from relu_deploy.errors import BackendUnavailable, Unsupported, UsageError, nearest

__all__ = [
    "BACKENDS",
    "DEFAULT",
    "GROUP",
    "backend_for",
    "capabilities",
    "load",
    "names",
    "probe",
    "probe_all",
    "register",
    "require",
    "stored_settings",
    "usable",
]

#: name of a backend → its folder in `relu_deploy.backends`
BACKENDS: dict[str, str] = {
    "reference": "reference",
    "torch": "torch",
    "torch-compile": "torch",
    "torch-cuda": "torch",
    "torch-compile-cuda": "torch",
    "onnxruntime-cpu": "onnxruntime",
    "onnxruntime-cuda": "onnxruntime",
    "onnxruntime-tensorrt": "onnxruntime",
    "onnxruntime-tensorrt-rtx": "onnxruntime",
    "onnxruntime-openvino": "onnxruntime",
    "onnxruntime-webgpu": "onnxruntime",
    "onnxruntime-mlx": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt",
}

#: the backend of models that name none
DEFAULT = "onnxruntime-cpu"

#: the group of entry points by which other packages add backends
GROUP = "relu_deploy.backends"

_registered: dict[str, Any] = {}


def register(name: str, module: Any) -> None:
    """Register a backend in this process. An entry point registers one in every process.

    Args:
        name: Name of the backend. Names in `BACKENDS` cannot be replaced.
        module: A module or object with the functions `probe` and `load`, and optionally `capabilities`.
    """
    _registered[name] = module


def names() -> tuple[str, ...]:
    """Return the names of all backends, usable or not, in a fixed order: built-in ones first."""
    return tuple(dict.fromkeys((*BACKENDS, *_registered, *sorted(_entry_points()))))


def capabilities(name: str) -> Capabilities:
    """Return what the backend called `name` supports; the defaults if its package cannot be imported.

    Raises:
        UsageError: If there is no such backend.
    """
    try:
        module = _module(name, "probe")
    except BackendUnavailable:  # the probe says why
        return Capabilities()
    found: Capabilities = module.capabilities(name) if hasattr(module, "capabilities") else Capabilities()
    return found


def probe(name: str, device: int = 0) -> Probe:
    """Return whether the backend called `name` is usable here, and if not, the reason and a fix.

    Args:
        name: The backend.
        device: Index of the GPU, for backends on one.

    Raises:
        UsageError: If there is no such backend.
    """
    try:
        function = _module(name, "probe").probe
        found: Probe = function(name, device=device) if "device" in signature(function).parameters else function(name)
    except BackendUnavailable as error:
        return Probe(name, usable=False, reason=error.message, fix=error.hint)
    return found


def probe_all() -> list[Probe]:
    """Return a probe of every backend, usable or not, in a fixed order."""
    return [probe(name) for name in names()]


def require(name: str, device: int = 0) -> None:
    """Check that the backend called `name` is usable here.

    Args:
        name: The backend.
        device: Index of the GPU, for backends on one.

    Raises:
        BackendUnavailable: If it is not; the message has the probe's reason, the hint its fix.
        UsageError: If there is no such backend.
    """
    found = probe(name, device)
    if not found.usable:
        raise BackendUnavailable(f"backend {name!r} is not usable here: {found.reason}", found.fix)


def usable(candidates: Iterable[str] | None = None) -> list[str]:
    """Return the names among `candidates`, by default all backends, that are usable here, in the same order."""
    return [name for name in (names() if candidates is None else candidates) if probe(name).usable]


def backend_for(bundle: Bundle) -> str:
    """Return the backend of `bundle` where none is named: the one that its variant was optimized for, otherwise `DEFAULT`."""
    return bundle.runtime[0] or DEFAULT


def stored_settings(bundle: Bundle, name: str) -> dict[str, Any]:
    """Return the fields of `Options` that the variant of `bundle` was optimized with, as far as they apply to a backend.

    On another backend than the variant's own only the precision applies.

    Raises:
        Unsupported: If that backend cannot compute in the variant's precision.
        UsageError: If there is no such backend.
    """
    backend, settings = bundle.runtime
    if name == backend:
        return dict(settings)
    if not (cast := settings.get("autocast")):
        return {}
    if not capabilities(name).autocasts:
        raise Unsupported(f"{name} would compute {bundle.title} in float32, not in {cast}", f"use --backend {backend}")
    return {"autocast": cast}


def load(bundle: Bundle | str | os.PathLike[str], name: str = "", **options: Any) -> Session:
    """Return a session that runs the whole of `bundle` on the backend called `name`.

    Args:
        bundle: A bundle, or the path of one, of a variant in one, or of an ONNX file.
        name: The backend, "" for `backend_for(bundle)`. There is no fallback to another one.
        options: The fields of `Options`. Where one has its default, the setting that is stored in the variant applies.

    Raises:
        BackendUnavailable: If it is not usable here; the message has the probe's reason, the hint its fix.
        Unsupported: If the backend cannot run this model.
        UsageError: If there is no such backend.
    """
    bundle = Bundle.open(bundle)
    if name:
        require(name, int(options.get("device", 0)))
    else:
        name = _require_own(bundle)
    given = {field: value for field, value in options.items() if field not in _DEFAULTS or value != _DEFAULTS[field]}
    settings = Options(**{**stored_settings(bundle, name), **given})
    session: Session = _module(name, "load").load(name, bundle, settings)
    return session


#: field of `Options` → its default
_DEFAULTS = {field.name: field.default for field in fields(Options) if field.default is not MISSING}


def _require_own(bundle: Bundle) -> str:
    """Return `backend_for(bundle)`. Raises BackendUnavailable if it is not usable here."""
    name = backend_for(bundle)
    found = probe(name)
    if not found.usable and bundle.runtime[0]:
        raise BackendUnavailable(
            f"{bundle.title} was optimized for the backend {name}, which is not usable here: {found.reason}",
            f"{found.fix}, or name another backend",
        )
    require(name)
    return name


def _module(name: str, part: str) -> Any:
    """Return the module of backend `name` that has the functions of `part`, "probe" or "load"."""
    if name in BACKENDS:
        return import_module(f"relu_deploy.backends.{BACKENDS[name]}.{part}")
    if name in _registered:
        return _registered[name]
    if name not in _entry_points():
        raise UsageError(f"there is no backend called {name!r}", nearest(name, names()))
    point = _entry_points()[name]
    package = point.dist.name if point.dist else point.value
    try:
        module = point.load()
    except Exception as error:  # importing a third-party package may raise anything
        reason = f"{package}, which provides it, cannot be imported: {type(error).__name__}: {error}"
        raise BackendUnavailable(reason, f"pip install --force-reinstall {package}") from error
    if missing := [each for each in ("probe", "load") if not callable(getattr(module, each, None))]:
        raise BackendUnavailable(
            f"{package}, which provides it, has no function {missing[0]!r} in {point.value}", "update that package"
        )
    return module


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BACKENDS}
