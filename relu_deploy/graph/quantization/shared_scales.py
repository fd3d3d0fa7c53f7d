"""Give tensors that belong together one range, and so one scale.

Tensors that nodes only move (a pool, a Reshape) hold the same numbers. Those that a Concat joins do not: with one scale the Concat
needs no requantization, but a tensor whose range is a small part of another's would lose as many steps, for all of its readers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["SPREAD", "shared_ranges"]

#: times that the range of one tensor may exceed another's where a Concat gives them one scale: two of eight bits
SPREAD = 4.0

Ranges = Mapping[str, tuple[float, float]]


def shared_ranges(
    ranges: Ranges, moved: Sequence[frozenset[str]], joined: Sequence[frozenset[str]]
) -> dict[str, tuple[float, float]]:
    """Return `ranges` with the union of all for tensors that have one scale.

    Args:
        ranges: (low, high) by tensor.
        moved: Sets of tensors that hold the same numbers.
        joined: For each Concat the tensors that it reads and gives; they have one scale where no range exceeds another `SPREAD` times.
    """
    groups: dict[str, _Group] = {}
    for names in moved:
        groups |= dict.fromkeys(names, _Group.of(names, ranges))
    for names in joined:
        together = _Group.union({groups.get(name) or _Group.of({name}, ranges) for name in names})
        if together.most <= SPREAD * together.least:
            groups |= dict.fromkeys(together.names, together)
    shared = dict(ranges)
    for names in {group.names for group in groups.values()}:
        known = [ranges[name] for name in names if name in ranges]
        if known:
            both = min(low for low, _ in known), max(high for _, high in known)
            shared |= {name: both for name in names if name in ranges}
    return shared


@dataclass(frozen=True)
class _Group:
    """Tensors with one scale. least, most: the smallest and the largest reach of what was put together, 0 where none is known."""

    names: frozenset[str]
    least: float
    most: float

    @classmethod
    def of(cls, names: Collection[str], ranges: Ranges) -> _Group:
        reach = max((max(-ranges[name][0], ranges[name][1]) for name in names if name in ranges), default=0.0)
        return cls(frozenset(names), reach, reach)

    @classmethod
    def union(cls, groups: Collection[_Group]) -> _Group:
        # Any scale represents a tensor that is always 0.
        nonzero = [group for group in groups if group.most > 0]
        least = min((group.least for group in nonzero), default=0.0)
        most = max((group.most for group in nonzero), default=0.0)
        return cls(frozenset[str]().union(*(group.names for group in groups)), least, most)
