"""Looking at the Relus without changing what is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relu_deploy.backends import load
from relu_deploy.bundle import Bundle
from relu_deploy.graph import Relu
from relu_deploy.tensors import Array, Feeds

__all__ = ["Observed", "observe", "same_bits"]


@dataclass(frozen=True)
class Observed:
    """What the Relus gave. values: by tensor; for_nan: the same for the poisoned feeds.

    as_deployed: tensors seen while the outputs stayed bit-identical to those of the untapped run.

    sessions: how many it took. A Relu that is never in `as_deployed` can only be seen in another program than the one that ships.
    """

    values: Feeds
    for_nan: Feeds
    as_deployed: frozenset[str]
    sessions: int


def observe(
    bundle: Bundle,
    backend: str,
    relus: Sequence[Relu],
    feeds: Feeds,
    shipped: Feeds,
    nan_feeds: Feeds,
    options: Mapping[str, Any],
) -> Observed:
    """Return what each of `relus` gives on `backend`.

    A tapped tensor has to be written to memory, which may keep the runtime from fusing the kernels around it. So the
    outputs are compared with those of the untapped session, `shipped`, bit by bit; where they differ the taps are spread
    over two sessions, neighbors apart, and so on until they no longer do or one tap is left.
    nan_feeds: run through the same sessions; {} for none. options: of the sessions, as for `load`.
    """
    values: Feeds = {}
    for_nan: Feeds = {}
    as_deployed: set[str] = set()
    waiting, sessions = [list(relus)] if relus else [], 0
    while waiting:
        group = waiting.pop()
        session = load(bundle, backend, taps=tuple(group), **options)
        results = session.run(feeds)
        poisoned = session.run(nan_feeds) if nan_feeds else {}
        session.close()
        sessions += 1
        unchanged = all(same_bits(results[name], array) for name, array in shipped.items())
        if unchanged or len(group) == 1:
            values |= {relu.output: results[relu.output] for relu in group}
            for_nan |= {relu.output: poisoned[relu.output] for relu in group} if poisoned else {}
            as_deployed |= {relu.output for relu in group} if unchanged else set()
        else:
            waiting += [group[0::2], group[1::2]]
    return Observed(values, for_nan, frozenset(as_deployed), sessions)


def same_bits(a: Array, b: Array) -> bool:
    """Return whether two arrays have one shape, one dtype and the same bits, NaN and the signs of zeros included."""
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(_bits(a), _bits(b))


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
