"""The noise of many small tensors of one shape, computed for all of them at once.

A graph may have a hundred thousand Relus of a few numbers each. What NumPy takes for a call is then most of what measuring each of
them alone takes. The figures are those of `TensorNoise`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from relu_deploy.tensors import Array
from relu_deploy.verification.judging.noise import FEW, slack_of
from relu_deploy.verification.judging.tensor_noise import finite_error, overflow_codes
from relu_deploy.verification.judging.verdict import LIMITS, SINGLE, estimate_noise_floor, rms, rms_error

__all__ = ["StackedNoise", "rms_of_rows", "stacks_of"]

#: elements of the largest tensor that is stacked, and the fewest tensors of a shape that are
LARGEST, FEWEST = 64, 16
#: precisions whose least noise is computed row by row in one go
ROWWISE = ("float32", "float64")


def stacks_of(tensors: Mapping[str, Array], precision: str) -> Iterator[StackedNoise]:
    """Yield the stacks of the tensors that are small and of which there are many.

    Args:
        tensors: By name, tensors of which none depends on a decision. Those of other types than float64 are left out.
        precision: Of the graph under test.
    """
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, value in tensors.items():
        # A tensor of three or more dimensions has a noise for each channel as well.
        if value.dtype == np.float64 and value.ndim < 3 and 0 < value.size <= LARGEST:
            by_shape.setdefault(value.shape, []).append(name)
    for names in by_shape.values():
        if len(names) >= FEWEST:
            yield StackedNoise({name: tensors[name] for name in names}, precision)


class StackedNoise:
    """How far off correct arithmetic leaves each of several tensors of one shape.

    Evaluations are added tensor by tensor, by several threads at once, and count when they are complete.

    Attributes:
        names: Of the tensors.
        overflows: As `TensorNoise.overflows`, by name; without the tensors that have no such elements.
    """

    def __init__(self, tensors: Mapping[str, Array], precision: str) -> None:
        """tensors: The truth by name, float64 of one shape. precision: Of the graph under test."""
        self.names = tuple(tensors)
        self._places = {name: place for place, name in enumerate(self.names)}
        self._shape = next(iter(tensors.values())).shape
        self._true = np.stack([tensors[name].reshape(-1) for name in self.names])
        self._precision = precision
        self._values: dict[tuple[str, int], Array] = {}
        self._computed, self._drawn, self._other = (np.zeros(len(self.names)) for _ in range(3))
        self._draws: dict[int, Array] = {}
        self._lock = threading.Lock()
        self.overflows: dict[str, Array] = {}
        with np.errstate(over="ignore", invalid="ignore"):
            self._regular = np.isfinite(self._true.astype(np.float32)).all(axis=1)

    def add(self, name: str, value: Array, evaluation: str, draw: int = 0) -> None:
        """Add an evaluation of one of the tensors; see `TensorNoise.add`. One of another shape does not count."""
        values = self._values.get((evaluation, draw))
        if values is None:
            with self._lock:
                # What is not added has no error.
                values = self._values.setdefault((evaluation, draw), self._true.copy())
        if value.shape == self._shape:
            values[self._places[name]] = value.reshape(-1)

    def end(self, evaluation: str, draw: int = 0) -> None:
        """Count an evaluation that is complete."""
        with self._lock:
            values = self._values.pop((evaluation, draw), None)
        if values is None or evaluation == "large":
            return
        if evaluation == "overflow":
            self._add_overflow(values)
            return
        few = self._true.shape[1] < FEW
        computes = evaluation == "float32" or (evaluation == "draw" and draw == 0)
        computed = self._errors(values, rms_error) if computes else np.zeros(len(values))
        error: Array | float = (
            self._errors(values, finite_error) if evaluation == "ordered" or (evaluation == "draw" and few) else 0.0
        )
        with self._lock:
            if evaluation == "float32":
                self._computed = computed
            elif evaluation == "draw":
                self._drawn = np.maximum(self._drawn, computed)
                self._draws[draw] = np.broadcast_to(error, len(values))
            elif evaluation == "ordered":
                self._other = np.maximum(self._other, 2 * error / LIMITS[self._precision])

    def forget_overflow(self, name: str) -> None:
        """Leave the evaluation in the graph's own types out; see `TensorNoise.forget_overflow`."""
        place = self._places[name]
        least = estimate_noise_floor(self._true[place], precision=self._precision)
        if self._computed[place] > LIMITS[self._precision] * max(self._drawn[place], least):
            self._computed[place] = 0.0

    def singles(self) -> dict[str, Array]:
        """Return how far off single elements may be of each tensor in `overflows`, by name; there is no such limit for others."""
        floors = self.floors() if self.overflows else {}
        return {name: np.where(codes > 0, np.inf, SINGLE * floors[name]) for name, codes in self.overflows.items()}

    def _add_overflow(self, values: Array) -> None:
        limits = LIMITS[self._precision] * np.array(list(self.floors().values()))
        codes = overflow_codes(values, self._true, limits[:, np.newaxis])
        for place in np.flatnonzero(codes.any(axis=1)):
            name, found = self.names[place], codes[place].reshape(self._shape)
            self.overflows[name] = np.maximum(self.overflows[name], found) if name in self.overflows else found

    def floors(self) -> dict[str, float]:
        """Return the RMS error of correct arithmetic by name."""
        floors = np.maximum.reduce([self._least(), self._computed, self._drawn])
        size = self._true.shape[1]
        if size < FEW:
            errors = np.stack([self._draws[draw] for draw in sorted(self._draws)], axis=1) if self._draws else np.zeros((1, 1))
            floors = np.maximum(floors, rms_of_rows(errors)) * slack_of(size, len(self._draws))
        return dict(zip(self.names, np.maximum(floors, self._other).tolist(), strict=True))

    def _least(self) -> Array:
        """Return the error of rounding to the precision, at least that of the smallest normal number."""
        if self._precision not in ROWWISE:
            return np.array([estimate_noise_floor(row, precision=self._precision) for row in self._true])
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = self._true.astype(np.float32).astype(np.float64)
        least = estimate_noise_floor(np.zeros(1), precision=self._precision)
        return np.maximum(self._errors(rounded, rms_error), least)

    def _errors(self, values: Array, alone: Callable[[Array, Array], float]) -> Array:
        """Return the RMS error of each row. alone: Computes that of a row with numbers that do not count."""
        with np.errstate(over="ignore", invalid="ignore"):
            errors = rms_of_rows(values - self._true)
            regular = self._regular & np.isfinite(values.astype(np.float32)).all(axis=1) & np.isfinite(errors)
        for place in np.flatnonzero(~regular):
            errors[place] = alone(values[place], self._true[place])
        return errors


def rms_of_rows(rows: Array) -> Array:
    """Return the root mean square of each row, float64; one whose squares are beyond float64 is computed as `rms` does."""
    with np.errstate(over="ignore", invalid="ignore"):
        result: Array = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1))
    for place in np.flatnonzero(np.isinf(result)):
        result[place] = rms(rows[place])
    return result
