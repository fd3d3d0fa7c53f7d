"""The declared range of a model's input, from which properties of its Relus are proven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.data.image_folder import to_input
from relu_deploy.errors import UsageError
from relu_deploy.preprocessing.reading import read_preprocess
from relu_deploy.tensors import Feeds

__all__ = ["InputRange", "Ranges", "declared_range", "rows_outside"]

Ranges = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class InputRange:
    """The declared range of a model's inputs.

    Attributes:
        source: Origin of the range: "preprocess", "uint8" or "given".
        bounds: (low, high) by input name, numbers or arrays with one value per channel.
        rows_outside: Number of rows of the data outside the range, for which the proofs do not hold.
    """

    source: str
    bounds: Ranges
    rows_outside: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the field `input_range` of what `census --json` writes."""
        inputs = {
            name: {"low": np.asarray(low, np.float64).tolist(), "high": np.asarray(high, np.float64).tolist()}
            for name, (low, high) in self.bounds.items()
        }
        return {"source": self.source, "inputs": inputs, "rows_outside": self.rows_outside}


def declared_range(bundle: Bundle, given: tuple[float, float] | Ranges | None = None) -> InputRange | None:
    """Return the declared range of the inputs, None if there is none.

    Args:
        bundle: The model.
        given: (low, high) of every input, or by input name; by default the range follows from the preprocessing or dtype.

    Raises:
        UsageError: If `given` names an unknown input or is not a finite range.
    """
    if given is not None:
        bounds = given if isinstance(given, Mapping) else {spec.name: given for spec in bundle.inputs}
        if unknown := [name for name in bounds if name not in {spec.name for spec in bundle.inputs}]:
            raise UsageError(f"{bundle.name} has no input {unknown[0]!r}", "name the inputs that relu-deploy inspect lists")
        for low, high in bounds.values():
            if not (np.isfinite(low) & np.isfinite(high) & (np.asarray(low) <= np.asarray(high))).all():
                raise UsageError(
                    f"a range must go from a finite low to a finite high, not from {low} to {high}",
                    "for instance --range 0,1; omit it if the range is not known",
                )
        return InputRange("given", bounds)
    spec = bundle.inputs[0] if bundle.inputs else None
    if spec is None:
        return None
    if spec.dtype == "uint8":
        return InputRange("uint8", {spec.name: (0.0, 255.0)})
    fields = bundle.manifest.get("preprocess")
    if not fields or len(spec.shape) != 4:
        return None
    steps = read_preprocess(fields).fitted(spec)
    if steps.resize.interpolation == "bicubic" and steps.resize.rounding == "none":
        # Bicubic weights overshoot, and nothing clips the result.
        return None
    # Preprocesses every value that a pixel can have.
    every = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 1, 1, len(steps.mean)))
    values = to_input(bundle, every).reshape(256, -1).astype(np.float64)
    if steps.layout == "NHWC":
        return InputRange("preprocess", {spec.name: (float(values.min()), float(values.max()))})
    return InputRange("preprocess", {spec.name: (values.min(axis=0), values.max(axis=0))})


def rows_outside(feeds: Feeds, declared: InputRange | None) -> int:
    """Return how many rows of `feeds` are outside the declared range."""
    if declared is None:
        return 0
    outside = np.zeros(len(feeds[next(iter(declared.bounds))]), bool)
    for name, (low, high) in declared.bounds.items():
        array = feeds[name]
        shape = (1, -1, *(1,) * (array.ndim - 2)) if np.ndim(low) == 1 and array.ndim > 1 else np.shape(low)
        least, most = (np.asarray(bound, np.float64).reshape(shape) for bound in (low, high))
        # Not `<` and `>`: a NaN is outside too.
        outside |= ~((array >= least) & (array <= most)).reshape(len(array), -1).all(axis=1)
    return int(outside.sum())
