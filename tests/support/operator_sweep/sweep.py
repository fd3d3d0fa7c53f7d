"""All generators of cases, and running them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from operator_sweep.case import Case, Verdict, judge
from operator_sweep.elementwise import ELEMENTWISE
from operator_sweep.known import known_difference
from operator_sweep.layers import LAYERS
from operator_sweep.quantized import QUANTIZED
from operator_sweep.tensor_opinions import opinion_of
from operator_sweep.tensors import TENSORS

GENERATORS: dict[str, Callable[[np.random.Generator], Case]] = {**LAYERS, **ELEMENTWISE, **TENSORS, **QUANTIZED}


def run(name: str, count: int, seed: int = 0) -> Iterator[Verdict]:
    """Yield the verdicts on `count` cases of one generator."""
    random = np.random.default_rng([zlib.crc32(name.encode()), seed])
    for _ in range(count):
        case = GENERATORS[name](random)
        if case.third is None:
            case.third = partial(opinion_of, case)
        verdict = judge(case)
        reason = known_difference(verdict.case)
        if verdict.agrees.startswith("differs from ONNX Runtime") and "and differs" not in verdict.agrees and reason:
            verdict.agrees, verdict.known = "all", reason
        yield verdict
