"""The candidates of the search: a backend, a precision, and settings of that backend.

Backends are found by their capabilities: those that variants of the target are made for (`Capabilities.targets`) and that are
usable here. A backend that can compute a float32 graph in bfloat16 (`Capabilities.autocasts`) adds that precision; whether the
processor has it is known when the candidate is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relu_deploy.backends import capabilities, names, probe
from relu_deploy.optimization.targets import PRECISIONS

__all__ = ["AUTOCAST", "PLACED", "Candidate", "base_candidates", "find_backends", "graph_name", "placements", "tuned"]

#: precisions that a runtime computes float32 graphs in
AUTOCAST = ("bf16",)
#: precision of which backends may have graphs of their own
PLACED = "int8"
#: fields of `backends.Options` that a variant can store
STORABLE = frozenset(("threads", "spin", "optimization", "autocast"))


@dataclass(frozen=True)
class Candidate:
    """One candidate.

    Attributes:
        backend: Name of the backend.
        precision: Precision, as an option.
        tuning: Fields of `backends.Options` that differ from the defaults, with their values.
    """

    backend: str
    precision: str
    tuning: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of `backends.Options` that its sessions are loaded with."""
        cast = {"autocast": PRECISIONS[self.precision]} if self.precision in AUTOCAST else {}
        return {**dict(self.tuning), **cast}

    @property
    def graph(self) -> str:
        """The name of its graph: the precision that it is written in, float32 where the runtime casts, and other rules of placement."""
        placement = capabilities(self.backend).placement if self.precision == PLACED else ""
        return "fp32" if self.precision in AUTOCAST else graph_name(self.precision, placement)

    @property
    def base(self) -> Candidate:
        """The candidate with the backend's default settings."""
        return Candidate(self.backend, self.precision)

    def __str__(self) -> str:
        tuned = ", ".join(f"{name} {_shown(value)}" for name, value in self.tuning)
        return f"{self.backend} {self.precision}" + (f", {tuned}" if tuned else "")


def graph_name(precision: str, placement: str) -> str:
    """Return the name of the graph in a precision. placement: as in `Capabilities`."""
    return f"{precision}-{placement}" if placement else precision


def placements(backends: Sequence[str]) -> dict[str, str]:
    """Return the rules of placement that differ from those of the target, each with the first backend that follows them."""
    found: dict[str, str] = {}
    for backend in backends:
        if placement := capabilities(backend).placement:
            found.setdefault(placement, backend)
    return found


def find_backends(target: str) -> tuple[list[str], dict[str, str]]:
    """Return the usable backends that variants for `target` are made for, and the reason for each that is not usable."""
    able = [name for name in names() if target in capabilities(name).targets]
    probes = {name: probe(name) for name in able}
    return [name for name in able if probes[name].usable], {
        name: found.reason for name, found in probes.items() if not found.usable
    }


def base_candidates(backends: Sequence[str], precisions: Sequence[str]) -> Iterator[Candidate]:
    """Yield each backend with each precision that it may run, in their order, with the backend's default settings."""
    for backend in backends:
        for precision in precisions:
            if precision not in AUTOCAST or capabilities(backend).autocasts:
                yield Candidate(backend, precision)


def tuned(candidate: Candidate, fixed: Mapping[str, Any]) -> list[Candidate]:
    """Return `candidate` with each set of settings that its backend declares.

    Args:
        candidate: A candidate with default settings.
        fixed: Settings that the user chose; sets that contain one of them are left out.
    """
    return [
        Candidate(candidate.backend, candidate.precision, tuple(sorted(settings.items())))
        for settings in capabilities(candidate.backend).tunables
        if settings.keys() <= STORABLE and not settings.keys() & fixed.keys()
    ]


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
