"""Measure what weights lose when they are stored in 16 bits, by unit roundoff u (2^-11 for float16, 2^-8 for bfloat16).

    rounding    at most u of each weight, so at most u of their root mean square, whatever they are (0.4 u as a rule)
    vanishing   weights below the dtype's smallest numbers come out as 0, or with few bits left
    overflow    above the largest finite number (65504 for float16) they are infinite

Weights that lose more than u of their root mean square lose it to the second: no rounding explains it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from relu_deploy.graph.intervals.operands import ROUNDOFF
from relu_deploy.records import JsonRecord
from relu_deploy.tensors import Array

__all__ = ["STORED", "WeightLoss", "largest_of", "loss_of"]

#: dtype → its NumPy type
STORED: dict[str, np.dtype[Any]] = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
#: weights looked at in one go
PIECE = 1 << 22


@dataclass(frozen=True)
class WeightLoss(JsonRecord):
    """The loss of one initializer that a node reads in 16 bits.

    size: how many numbers it has; of these overflowing (infinite), vanishing (0), and subnormal (fewer bits than usual).
    lost: the share of its squared norm that goes in all, overflow aside.
    """

    initializer: str
    node: str
    size: int
    overflowing: int
    vanishing: int
    subnormal: int
    lost: float

    def reason(self, dtype: str) -> str:
        """Return why the node must stay float32, "" when it need not."""
        if self.overflowing:
            return f"{self.overflowing} of {self.size} numbers of {self.initializer} overflow in {dtype}"
        if self.lost > ROUNDOFF[dtype] ** 2:
            few = f"{self.vanishing} of {self.size} numbers of {self.initializer} vanish in {dtype}, {self.subnormal} lose bits"
            return f"{few}: {self.lost**0.5:.2g} of its root mean square, rounding takes {ROUNDOFF[dtype]:.2g} at most"
        return ""


def loss_of(initializer: str, node: str, weights: Array, dtype: str) -> WeightLoss:
    """Return what the float array `weights`, the initializer of that name, loses in `dtype` ("float16" or "bfloat16")."""
    smallest, flat = float(ml_dtypes.finfo(STORED[dtype]).smallest_normal), weights.reshape(-1)
    counts, error, norm = np.zeros(3, np.int64), 0.0, 0.0
    for start in range(0, flat.size, PIECE):
        wide = flat[start : start + PIECE].astype(np.float64)
        with np.errstate(over="ignore"):
            stored = flat[start : start + PIECE].astype(STORED[dtype]).astype(np.float64)
        over = np.isfinite(wide) & ~np.isfinite(stored)
        few = (stored != 0) & (np.abs(stored) < smallest)
        counts += [np.count_nonzero(mask) for mask in (over, (wide != 0) & (stored == 0), few)]
        kept = np.isfinite(stored)
        error += float(np.sum(np.square(stored[kept] - wide[kept])))
        norm += float(np.sum(np.square(wide[kept])))
    overflowing, vanishing, subnormal = (int(count) for count in counts)
    return WeightLoss(initializer, node, flat.size, overflowing, vanishing, subnormal, error / norm if norm else 0.0)


def largest_of(dtype: str) -> float:
    """Return the largest finite number of `dtype`."""
    return float(ml_dtypes.finfo(STORED[dtype]).max)
