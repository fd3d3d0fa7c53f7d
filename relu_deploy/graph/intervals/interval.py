"""Intervals that a tensor's numbers cannot leave, rounding included.

An interval's bounds are float64 arrays that broadcast to the tensor: each dimension has size 1 (the same everywhere along
it) or the tensor's own. Bounds of shape () hold for the whole tensor, whatever its rank.

Rounding is outward, by the textbook bound (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1):
a sum of n products in floating point, in any order, fused or not, is within n u / (1 - n u) * sum |w||x| of the true one.
Runtimes also fold one node into another (batch norm, a product or a sum into the convolution before it), which rounds the
weights once more and lets a later summand be carried through the whole accumulation. So every operation is charged for
the longest accumulation that it may be merged with, `SPARE` more roundings, and twice that. Not covered are algorithms
that do not add up the products as they are: Winograd and FFT convolutions, TF32 and other inputs of fewer bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from relu_deploy.tensors import Array

__all__ = ["UNKNOWN", "Interval", "exactly", "rounded_sum", "weighted"]

#: roundings that folding constants may add to an operation
SPARE = 8
#: what a product may lose when it is too small to be a normal float32 (flushed to zero, at worst)
TINY = 2.0**-126
#: matrices are worked on in pieces of so many elements: VGG's first linear layer alone has 10^8
PIECE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """What a tensor's numbers lie between. terms: the longest accumulation that a following operation may be merged with."""

    low: Array
    high: Array
    terms: int = 0

    @property
    def magnitude(self) -> Array:
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def changed(self, change: Callable[[Array], Array]) -> Interval:
        """Return the interval with `change`, which moves numbers or maps them in increasing order, applied to both bounds."""
        return replace(self, low=change(self.low), high=change(self.high))

    def merged(self, axes: Sequence[int] | None = None) -> Interval:
        """Return the interval with one bound for all places along `axes`; with None, for the whole tensor, of shape ()."""
        if not self.low.size:
            return NOTHING
        if axes is None:
            return replace(self, low=np.asarray(self.low.min()), high=np.asarray(self.high.max()))
        if self.low.ndim == 0 or not axes:
            return self
        axes = tuple(axes)
        return replace(self, low=self.low.min(axis=axes, keepdims=True), high=self.high.max(axis=axes, keepdims=True))

    def joined(self, other: Interval | float) -> Interval:
        """Return the smallest interval around this one and `other` (or one number)."""
        if isinstance(other, Interval):
            low, high, terms = other.low, other.high, max(self.terms, other.terms)
        else:
            low, high, terms = np.asarray(other), np.asarray(other), self.terms
        return Interval(np.minimum(self.low, low), np.maximum(self.high, high), terms)

    def widened(self, error: Array | float) -> Interval:
        return replace(self, low=self.low - error, high=self.high + error)

    def times(self, other: Interval) -> Interval:
        """Return the products' interval, unrounded; 0 times an unbounded but finite number is 0."""
        with np.errstate(invalid="ignore"):
            corners = [np.nan_to_num(a * b, nan=0.0, posinf=np.inf, neginf=-np.inf) for a in self.ends for b in other.ends]
        terms = max(self.terms, other.terms)
        return Interval(np.minimum.reduce(corners), np.maximum.reduce(corners), terms)

    @property
    def ends(self) -> tuple[Array, Array]:
        return self.low, self.high

    def rounded(self, unit: float) -> Interval:
        """Return the interval after one operation whose result is relatively right: a product, a quotient, a conversion."""
        if unit == 0:
            return self
        return Interval(
            self.low - _loss(SPARE, np.abs(self.low), unit), self.high + _loss(SPARE, np.abs(self.high), unit), self.terms
        )


UNKNOWN = Interval(np.asarray(-np.inf), np.asarray(np.inf))
#: of a tensor without elements: none of them is outside any interval
NOTHING = Interval(np.asarray(0.0), np.asarray(0.0))


def exactly(array: Array) -> Interval:
    """Return the interval of the constant `array`."""
    wide = np.asarray(array, np.float64)
    return Interval(wide, wide) if wide.size else NOTHING


def rounded_sum(true: Interval, magnitude: Array, terms: int, unit: float) -> Interval:
    """Return `true`, the interval of a sum over `terms` addends whose absolute values add up to `magnitude`, as rounded."""
    loss = _loss(terms + SPARE, magnitude, unit)
    # Where the addends are unbounded so is the rounding error: no bound survives.
    return Interval(true.low - loss, true.high + loss, terms)


def weighted(x: Interval, weights: Array, bias: Interval, unit: float) -> Interval:
    """Return the interval of `sum_k weights[m, k] * x[..., k] + bias[m]`, rounded: bounds of shape (..., M).

    x: bounds of shape (..., J). weights: (M, J) or (M, J, R), where all R places of a kernel meet the same bounds.
    bias: bounds of shape () or (M,), or that broadcast to (..., M).
    """
    lows, highs, magnitudes = [], [], []
    unbounded = np.isinf(x.low) | np.isinf(x.high)
    low, high, size = (np.where(unbounded, 0.0, bound) for bound in (x.low, x.high, x.magnitude))
    rows = max(1, PIECE // max(1, weights[0].size))
    for start in range(0, len(weights), rows):
        wide = (
            weights[start : start + rows].astype(np.float64).reshape(-1, *weights.shape[1:2], weights[0].size // weights.shape[1])
        )
        positive, negative = np.maximum(wide, 0).sum(axis=2).T, np.minimum(wide, 0).sum(axis=2).T
        lows.append(low @ positive + high @ negative)
        highs.append(high @ positive + low @ negative)
        # A weight of exactly 0 contributes exactly 0, whatever finite number it meets.
        lost = unbounded.astype(np.float64) @ (positive != negative) > 0
        magnitudes.append(np.where(lost, np.inf, size @ (positive - negative)))
    true = Interval(np.concatenate(lows, -1) + bias.low, np.concatenate(highs, -1) + bias.high)
    # float64's own rounding here is 2^-29 of float32's, which is charged twice.
    magnitude = np.concatenate(magnitudes, -1)
    total = rounded_sum(true, magnitude + bias.magnitude, weights[0].size + 1, unit)
    # A channel without weights is its bias, to the bit.
    return Interval(np.where(magnitude == 0, true.low, total.low), np.where(magnitude == 0, true.high, total.high), total.terms)


def _loss(terms: int, magnitude: Array, unit: float) -> Array:
    share = 2 * terms * unit / max(1 - terms * unit, 2.0**-10)
    return np.where(magnitude > 0, share * magnitude + terms * TINY, 0.0)
