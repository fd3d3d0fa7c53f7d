"""Finds out whether the rows of a batch are independent, so that requests may share a run: by the declared shapes and by a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from relu_deploy.backends import Session
from relu_deploy.errors import TooLong
from relu_deploy.tensors import Array, Feeds, TensorSpec, random_feeds

__all__ = ["RowTrial", "declared_reason"]

#: sizes of a varying dimension beside the batch that are tried, in this order, until the model accepts one
TRIAL_SIZES = (16, 64, 224)
#: largest difference between a row alone and in a batch, in units of the largest number, that counts as rounding
TOLERANCE = 0.05


def declared_reason(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Return why the declared shapes do not allow to join requests along axis 0, "" where they do."""
    for kind, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            if spec.batch is None:
                return f"{kind} {spec.name!r} has no batch axis"
            if spec.batch_axis != 0:
                return f"the batch axis of {kind} {spec.name!r} is {spec.batch_axis}, not 0"
            if kind == "input" and isinstance(spec.batch, int):
                return f"the batch of input {spec.name!r} is fixed at {spec.batch}"
    return ""


class RowTrial:
    """Runs a session on rows together and one by one.

    Attributes:
        has_run: The model has run at least once.
        must_run: Random inputs are certainly valid, so that a failure is the backend's.
    """

    def __init__(self, session: Session, ranges: Mapping[str, tuple[int, int]]) -> None:
        self._session, self._ranges = session, ranges
        self._size = 0
        self.has_run = False
        varies = any(isinstance(dim, str) for spec in session.inputs for dim in spec.shape[1:])
        self.must_run = not varies and all(spec.dtype == "uint8" or _is_float(spec.dtype) for spec in session.inputs)

    def run(self, rows: int) -> Feeds | None:
        """Return the outputs for random rows, None where the model does not accept them."""
        return self._outputs(self._feeds(rows)) if self.has_run and rows else None

    def reason(self) -> str:
        """Return why rows cannot share a run, "" where they can, or where no trial is possible. Raises TooLong."""
        for size in TRIAL_SIZES:
            self._size = size
            two = self._feeds(2)
            alone = [self._outputs({name: array[row : row + 1] for name, array in two.items()}) for row in range(2)]
            if alone[0] is None or alone[1] is None:
                continue
            self.has_run = True
            together = self._outputs(two)
            if together is None:
                return "the model does not run with two rows"
            return next((reason for name in together if (reason := _difference(name, together, alone))), "")
        return ""

    def _outputs(self, feeds: Feeds) -> Feeds | None:
        try:
            return self._session.run(feeds)
        except TooLong:
            raise
        except Exception:  # a backend may raise anything
            return None

    def _feeds(self, rows: int) -> Feeds:
        fill = {dim: self._size for spec in self._session.inputs for dim in spec.shape[1:] if isinstance(dim, str)}
        fill |= {spec.batch: rows for spec in self._session.inputs if isinstance(spec.batch, str)}
        numeric = [spec for spec in self._session.inputs if spec.dtype != "object"]
        feeds = random_feeds(numeric, rows, fill=fill, ranges=self._ranges)
        for spec in self._session.inputs:
            if spec.dtype == "object":
                shape = [dim if isinstance(dim, int) else fill[dim] for dim in spec.shape]
                feeds[spec.name] = np.array([str(number) for number in range(int(np.prod(shape)))], object).reshape(shape)
        return feeds


def _difference(name: str, together: Feeds, alone: Sequence[Feeds | None]) -> str:
    """Return how output `name` of two rows differs from those of each row alone, "" where it does not."""
    both = together[name]
    singles = [each[name] for each in alone if each is not None]
    if not both.ndim or len(both) != 2 or any(each.shape[:1] != (1,) or each.shape[1:] != both.shape[1:] for each in singles):
        return f"output {name!r} does not have one row for each row of the inputs"
    if both.dtype.kind in "OSU":
        return "" if all(np.all(both[row] == singles[row][0]) for row in range(2)) else f"rows share output {name!r}"
    pairs = [(_as_float(both[row]), _as_float(singles[row][0])) for row in range(2)]
    if both.dtype.kind in "biu":
        # The largest of two numbers that differ by rounding may be another one in a batch.
        different = max((float((one != other).mean()) for one, other in pairs if one.size), default=0.0)
        return "" if different <= 0.1 else f"a row of output {name!r} depends on the other rows"
    scale = max((float(np.abs(other[np.isfinite(other)]).max(initial=0)) for _, other in pairs), default=0.0)
    for one, other in pairs:
        same = (np.abs(one - other) <= TOLERANCE * scale + 1e-6) | (one == other) | (np.isnan(one) & np.isnan(other))
        if not same.all():
            return f"a row of output {name!r} depends on the other rows"
    return ""


def _as_float(array: Array) -> Array:
    return array.astype(np.float64)


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))
