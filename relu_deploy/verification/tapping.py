"""Reading the outputs of Relus without changing the program that is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from relu_deploy.backends import Session, load
from relu_deploy.errors import ReluDeployError
from relu_deploy.graph import Relu
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.plan import VerifyPlan

__all__ = ["TappedRelus", "arrays_of", "same_bits", "tap_relus"]

#: taps are divided no further after so many sessions in a row whose outputs all changed
PATIENCE = 12


@dataclass(frozen=True)
class TappedRelus:
    """The outputs of Relus.

    Attributes:
        values: By tensor.
        for_nan: The same for inputs of NaN.
        as_deployed: The tensors that were read while the outputs stayed bit-identical to those of the untapped session. One
            that is not among them can only be read in another program than the one that ships.
        sessions: How many sessions it took.
        together: Tensors that were read with others although the outputs changed, because `PATIENCE` was exhausted.
    """

    values: Feeds
    for_nan: Feeds
    as_deployed: frozenset[str]
    sessions: int
    together: frozenset[str] = frozenset()


def tap_relus(plan: VerifyPlan, backend: str, relus: Sequence[Relu], untapped: Feeds, nan_feeds: Feeds) -> TappedRelus:
    """Return the output of each Relu on a backend.

    A tapped tensor has to be written to memory, which may keep the runtime from fusing the kernels around it. So the outputs
    are compared bit by bit with those of the untapped session; where they differ, the taps are divided between two sessions,
    neighbors apart, until the outputs agree or one tap is left. Where a runtime fuses nearly every Relu, which is the rule for
    int8, nothing would be found with a session for each: the division ends after `PATIENCE` sessions in a row without success.

    Args:
        plan: The model and its inputs.
        backend: The backend's name.
        relus: The Relus to read.
        untapped: The outputs of the session without taps.
        nan_feeds: Other inputs, run through the same sessions; {} for none.
    """
    values: Feeds = {}
    for_nan: Feeds = {}
    as_deployed: set[str] = set()
    groups = deque([list(relus)] if relus else [])
    sessions = changed = 0
    while groups and changed < PATIENCE:
        group = groups.popleft()
        with closing(load(plan.bundle, backend, taps=tuple(group), **plan.options)) as session:
            results = arrays_of(session.run(plan.feeds))
            results_of_nan = _results_or_none(session, nan_feeds)
        sessions += 1
        values |= {relu.output: results[relu.output] for relu in group}
        for_nan |= {relu.output: results_of_nan[relu.output] for relu in group} if results_of_nan else {}
        if all(name in results and same_bits(results[name], array) for name, array in untapped.items()):
            changed = 0
            as_deployed |= {relu.output for relu in group}
        else:
            changed += 1
            groups += [group[0::2], group[1::2]] if len(group) > 1 else []
    together = frozenset(relu.output for group in groups for relu in group)
    return TappedRelus(values, for_nan, frozenset(as_deployed), sessions, together)


def _results_or_none(session: Session, feeds: Feeds) -> Feeds:
    """Return the outputs of a session for NaN, {} where an operator rejects it, as RoiAlign does among its coordinates."""
    try:
        return session.run(feeds) if feeds else {}
    except ReluDeployError:
        return {}


def arrays_of(results: Mapping[str, Any]) -> Feeds:
    """Return the arrays in the results of a session: of a sequence each element, as "name[0]"; maps and absent values are left out."""
    arrays: Feeds = {}
    for name, value in results.items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif isinstance(value, list | tuple):
            arrays |= arrays_of({f"{name}[{index}]": element for index, element in enumerate(value)})
    return arrays


def same_bits(a: Array, b: Array) -> bool:
    """Return whether two arrays have one shape, one dtype and the same bits, NaN and the signs of zeros included."""
    if a.dtype.kind in "OSU":
        return a.shape == b.shape and bool(np.array_equal(a, b))
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(_bits(a), _bits(b))


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
