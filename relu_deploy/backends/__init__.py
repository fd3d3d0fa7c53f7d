"""The runtimes that models run on. Each has a subpackage; `registry.py` lists them."""

from relu_deploy.backends.base import OPTIMIZATIONS, Capabilities, Executed, Options, Probe, Session
from relu_deploy.backends.registry import BACKENDS, capabilities, load, names, probe, probe_all, register, require, usable

__all__ = [
    "BACKENDS",
    "OPTIMIZATIONS",
    "Capabilities",
    "Executed",
    "Options",
    "Probe",
    "Session",
    "capabilities",
    "load",
    "names",
    "probe",
    "probe_all",
    "register",
    "require",
    "usable",
]
