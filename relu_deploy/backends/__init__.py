"""The runtimes that models run on. Each has a subpackage; `registry.py` lists them."""

from relu_deploy.backends.base import OPTIMIZATIONS, Capabilities, Executed, Options, Probe, Session
from relu_deploy.backends.registry import (
    BACKENDS,
    DEFAULT,
    backend_for,
    capabilities,
    load,
    names,
    probe,
    probe_all,
    register,
    require,
    stored_settings,
    usable,
)

__all__ = [
    "BACKENDS",
    "DEFAULT",
    "OPTIMIZATIONS",
    "Capabilities",
    "Executed",
    "Options",
    "Probe",
    "Session",
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
