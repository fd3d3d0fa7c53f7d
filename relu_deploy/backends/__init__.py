"""The runtimes, one file each. A new backend is one new file and one line in `BACKENDS`.

A backend is a module with two functions, taking the name it was asked for under and, for `load`, what it needs:

    probe(name) -> Probe                     usable here, or why not and what to do
    load(name, bundle, options) -> Session   a session that runs all of the model, or an error; never a fall-back
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

from relu_deploy.backends.base import OPTIMIZATIONS, Executed, Options, Probe, Session
from relu_deploy.bundle import Bundle
from relu_deploy.errors import BackendUnavailable, UsageError, nearest

__all__ = [
    "BACKENDS",
    "OPTIMIZATIONS",
    "Executed",
    "Options",
    "Probe",
    "Session",
    "load",
    "probe",
    "probe_all",
    "require",
    "usable",
]

BACKENDS: dict[str, str] = {
    "reference": "reference.session",
    "torch": "torch.session",
    "torch-compile": "torch.session",
    "torch-cuda": "torch.session",
    "torch-compile-cuda": "torch.session",
    "onnxruntime-cpu": "onnxruntime.session",
    "onnxruntime-cuda": "onnxruntime.session",
    "onnxruntime-tensorrt": "onnxruntime.session",
    "onnxruntime-tensorrt-rtx": "onnxruntime.session",
    "tensorrt": "tensorrt.probe",
    "tensorrt-rtx": "tensorrt.probe",
}

#: names that users of this field will ask for, and that this version cannot run yet
NOT_YET = ("openvino",)


def probe(name: str) -> Probe:
    """Return whether the backend called `name` is usable here, and if not, why and what to do.

    Raises UsageError for a name that is no backend.
    """
    if name in NOT_YET:
        return Probe(name, usable=False, reason="this version of relu_deploy has no such backend yet", fix="use another backend")
    return _module(name).probe(name)  # type: ignore[no-any-return]


def probe_all() -> list[Probe]:
    """Return a probe of every backend, usable or not, in a fixed order."""
    return [probe(name) for name in (*BACKENDS, *NOT_YET)]


def require(name: str) -> None:
    """Raise BackendUnavailable, with the reason and the fix, when the backend called `name` is not usable here."""
    found = probe(name)
    if not found.usable:
        raise BackendUnavailable(f"backend {name!r} is not usable here: {found.reason}", found.fix)


def usable(names: Iterable[str] = BACKENDS) -> list[str]:
    """Return those of `names` that are usable here."""
    return [name for name in names if probe(name).usable]


def load(bundle: Bundle | str | os.PathLike[str], name: str, **options: Any) -> Session:
    """Return a session that runs the whole of `bundle` on the backend called `name`.

    options: the fields of `Options`. Raises BackendUnavailable with the probe's reason and fix, Unsupported when the
    backend cannot run this model, UsageError for an unknown name.
    """
    require(name)
    session: Session = _module(name).load(name, Bundle.open(bundle), Options(**options))
    return session


def _module(name: str) -> ModuleType:
    if name not in BACKENDS:
        raise UsageError(f"there is no backend called {name!r}", nearest(name, (*BACKENDS, *NOT_YET)))
    return import_module(f"relu_deploy.backends.{BACKENDS[name]}")
