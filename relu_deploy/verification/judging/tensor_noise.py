"""The noise of one tensor, gathered from evaluations that hand over each tensor as soon as it is computed."""

from __future__ import annotations

import math
import threading

import numpy as np

from relu_deploy.tensors import Array
from relu_deploy.verification.judging.noise import COARSE, FEW, slack_of
from relu_deploy.verification.judging.row_lists import list_distance
from relu_deploy.verification.judging.verdict import LIMITS, SINGLE, estimate_noise_floor, rms, rms_error

__all__ = ["ANYTHING", "NOT_FINITE", "TensorNoise", "finite_error", "overflow_codes", "single_noise"]

#: what an element behind a sum that may overflow may be
NOT_FINITE, ANYTHING = 1, 2


class TensorNoise:
    """How far off correct arithmetic leaves one tensor. Evaluations are added in any order, by several threads.

    Only numbers, and an array of the channels, are kept of an evaluation. Where its shape is another, which may depend on the
    rounding (how many rows come out), it counts as a list of rows only.

    Attributes:
        list_noise: The largest distance as lists of rows of evaluations with the noise at its limit; None where there is none.
            Integers may be anything where the number of rows depends on the rounding.
        undecided: Of a tensor of integers or booleans, the elements that change with the rounding; None for others.
        overflows: What a sum before an element that may overflow leaves open, as in `Truth`; None where there are no such elements.
    """

    def __init__(self, true: Array, precision: str, *, decided: bool, rounded: bool = False) -> None:
        """Begin without evaluations.

        Args:
            true: The tensor in float64, or of integers, booleans or strings.
            precision: The precision of the graph under test.
            decided: The tensor depends on a decision.
            rounded: Its integers are rounded numbers. In a coarse precision nearly all of them may differ by some units, and by
                how much is judged as for other numbers.
        """
        self._true, self._precision, self._decided = true, precision, decided
        self._is_float = true.dtype.kind == "f"
        self._is_rounded = rounded and true.dtype.kind in "iu" and precision in COARSE
        self._computed = self._drawn = self._other = 0.0
        self._draws: dict[int, float] = {}
        self._singles: dict[str, Array] = {}
        self._lock = threading.Lock()
        self.list_noise: float | None = None
        self.undecided = np.zeros(true.shape, bool) if true.dtype.kind in "iub" else None
        self.overflows: Array | None = None

    def add(self, value: Array, evaluation: str, draw: int = 0) -> None:
        """Add an evaluation of the tensor.

        Args:
            value: The tensor.
            evaluation: "float32" in the types of the graph; "draw" with random rounding; "ordered" with long sums in the least
                favorable order; "large" with the noise at its limit; "overflow", last, where sums that may overflow do.
            draw: Number of the draw.
        """
        if self._decided and evaluation in ("draw", "large"):
            self._add_list(value)
        if self._is_float and evaluation == "overflow":
            self._add_overflow(value)
        elif self._is_float:
            self._add_error(value, evaluation, draw)
        elif self.undecided is not None and evaluation != "ordered" and np.shape(value) == self._true.shape:
            changed = value != self._true
            error = finite_error(value, self._true.astype(np.float64)) if self._is_rounded and evaluation == "draw" else 0.0
            with self._lock:
                self.undecided |= changed
                self._draws[draw] = max(self._draws.get(draw, 0.0), error)

    def forget_overflow(self) -> None:
        """Leave the evaluation in the graph's own types out where its error is beyond noise: something before it overflowed."""
        least = estimate_noise_floor(self._true, precision=self._precision) if self._is_float else 0.0
        if self._computed > LIMITS[self._precision] * max(self._drawn, least):
            self._computed = 0.0
            self._singles.pop("float32", None)

    def _add_overflow(self, value: Array) -> None:
        if np.shape(value) != self._true.shape:
            return
        codes = overflow_codes(value, self._true, LIMITS[self._precision] * self.floor)
        if codes.any():
            self.overflows = codes if self.overflows is None else np.maximum(self.overflows, codes)

    def _add_list(self, value: Array) -> None:
        numbers = self._true.dtype.kind in "fiu" and np.asarray(value).dtype.kind in "fiu"
        distance = list_distance(np.asarray(value), self._true) if numbers else None
        if distance is None:
            return
        if not self._is_float:
            distance = math.inf if np.shape(value) != self._true.shape else 0.0
        with self._lock:
            self.list_noise = max(self.list_noise or 0.0, distance)

    def _add_error(self, value: Array, evaluation: str, draw: int) -> None:
        if evaluation == "large" and not self._decided:
            return
        same_shape = np.shape(value) == self._true.shape
        computes = same_shape and (evaluation == "float32" or (evaluation == "draw" and draw == 0))
        # The elements that float32 cannot hold do not count where the floor is that of float32 arithmetic.
        computed = rms_error(value, self._true) if computes else 0.0
        counts = evaluation in ("ordered", "large") or (evaluation == "draw" and self._true.size < FEW)
        error = finite_error(value, self._true) if same_shape and counts else 0.0
        single = single_noise(self._true, value) if computes and self._true.ndim > 2 else None
        limit = LIMITS[self._precision]
        with self._lock:
            if evaluation == "float32":
                self._computed = computed
            elif evaluation == "draw":
                self._drawn = max(self._drawn, computed)
                self._draws[draw] = error
            elif evaluation == "ordered":
                # Any other order is more favorable; twice its error leaves room for the terms themselves to be rounded.
                self._other = max(self._other, 2 * error / limit)
            elif evaluation == "large":
                self._other = max(self._other, error / limit)
            if single is not None:
                self._singles[evaluation] = single

    @property
    def floor(self) -> float:
        """Return the RMS error of correct arithmetic; 0 for integers that are no rounded numbers, booleans and strings."""
        if not self._is_float:
            return max(self._draws.values(), default=0.0) if self._is_rounded else 0.0
        floor = max(estimate_noise_floor(self._true, precision=self._precision), self._computed, self._drawn)
        if 0 < self._true.size < FEW:
            errors = [self._draws[draw] for draw in sorted(self._draws)]
            floor = max(floor, rms(np.array(errors))) * slack_of(self._true.size, len(errors))
        return max(floor, self._other)

    @property
    def single(self) -> Array | None:
        """Return how far off single elements may be, of a shape that broadcasts to the tensor; None where there is no limit."""
        if self.undecided is not None:
            # An integer Relu that depends on a decision may be zero or not.
            return np.where(self.undecided, np.inf, SINGLE * self.floor)
        if not self._is_float or (self._true.ndim < 3 and self.overflows is None):
            return None
        single: Array = np.asarray(SINGLE * self.floor)
        if self._true.ndim >= 3:
            single = np.maximum.reduce(list(self._singles.values())) if self._singles else single_noise(self._true)
            single = np.maximum(single, SINGLE * self._other)
        return single if self.overflows is None else np.where(self.overflows > 0, np.inf, single)


def overflow_codes(value: Array, true: Array, limit: Array | float) -> Array:
    """Return what each element is open to that follows from a sum that overflows: 0 for nothing, `NOT_FINITE` or `ANYTHING`.

    Args:
        value: The tensor where the sum overflows.
        true: The truth, float64 of the same shape.
        limit: How far off an element may be as noise.
    """
    known = np.isfinite(true)
    with np.errstate(over="ignore", invalid="ignore"):
        off = known & np.isfinite(value) & (np.abs(value - true) > limit)
    # A sum beyond float32 may also be NaN, where its terms are infinities of both signs.
    return np.where(off, ANYTHING, np.where(known & ~np.isfinite(value), NOT_FINITE, 0)).astype(np.uint8)


def finite_error(value: Array, true: Array) -> float:
    """Return the RMS error of the elements that are finite on both sides, as float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(value.astype(np.float32)) & np.isfinite(true.astype(np.float32))
    return rms(value[finite].astype(np.float64) - true[finite])


def single_noise(truth: Array, *evaluations: Array) -> Array:
    """Return how far off `evaluations` leave single elements of each channel (axis 1): the largest of three.

    `SINGLE` RMS errors of the channel's elements that have an error at all, because most elements of a sparse Relu are 0 in
    every evaluation; the same of all channels; and the channel's largest error, because some noise has long tails: along the
    edges of a picture 8 bits are much further off than in the uniform areas that fill most of it.
    """
    axes = tuple(axis for axis in range(truth.ndim) if axis != 1)
    noise = np.zeros((1, truth.shape[1], *(1,) * (truth.ndim - 2)))
    for one in evaluations:
        with np.errstate(over="ignore", invalid="ignore"):
            square = np.nan_to_num(np.square(one.astype(np.float64) - truth), nan=0.0, posinf=0.0)
        active = np.count_nonzero(square, axis=axes, keepdims=True)
        sums = square.sum(axis=axes, keepdims=True)
        mean = np.maximum(sums / np.maximum(active, 1), sums.sum() / max(1, active.sum()))
        noise = np.maximum(noise, np.sqrt(np.maximum(SINGLE**2 * mean, square.max(axis=axes, keepdims=True, initial=0))))
    return noise
