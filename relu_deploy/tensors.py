"""What goes into and comes out of a model: names, dtypes and shapes, and the check that feeds respect them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relu_deploy.errors import InputError, UsageError

__all__ = ["Array", "Feeds", "TensorSpec", "check_feeds", "parse_shape", "random_feeds"]

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = dict[str, Array]
Dim = int | str


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. `shape` holds an int for a fixed dimension and a name for one that may vary."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def batch(self) -> Dim | None:
        """Return the leading dimension: its size when fixed, its name when it may vary, None for a scalar."""
        return self.shape[0] if self.shape else None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TensorSpec:
        return cls(fields["name"], fields["dtype"], tuple(fields["shape"]))

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{'x'.join(map(str, self.shape))}]"


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the shape written as `1x3x224x224`. Raises UsageError when `text` is anything else."""
    try:
        shape = tuple(int(part) for part in text.lower().replace(",", "x").split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"not a shape: {text!r}", "write positive sizes joined by x, for instance 1x3x224x224")
    return shape


def check_feeds(feeds: Mapping[str, Any], specs: Sequence[TensorSpec], model: str) -> Feeds:
    """Return `feeds` as arrays when they are exactly what `specs` ask for; one name with two sizes is refused too.

    Raises InputError that names the input, what was expected and what came.
    """
    expected = {spec.name: spec for spec in specs}
    wanted = ", ".join(str(spec) for spec in specs)
    if missing := [name for name in expected if name not in feeds]:
        raise InputError(f"{model}: no array for input {missing[0]!r}", f"the model's inputs are {wanted}")
    if unknown := [name for name in feeds if name not in expected]:
        raise InputError(f"{model}: there is no input {unknown[0]!r}", f"the model's inputs are {wanted}")
    bound: dict[str, int] = {}
    arrays = {}
    for name, spec in expected.items():
        array = np.asarray(feeds[name])
        if array.dtype.name != spec.dtype:
            raise InputError(
                f"{model}: input {name!r} must be {spec.dtype}, got {array.dtype.name}",
                f"convert it, for instance array.astype({spec.dtype!r})",
            )
        sizes_agree = len(array.shape) == len(spec.shape) and all(
            size == dim if isinstance(dim, int) else bound.setdefault(dim, size) == size
            for size, dim in zip(array.shape, spec.shape, strict=True)
        )
        if not sizes_agree:
            raise InputError(
                f"{model}: input {name!r} must have shape {'x'.join(map(str, spec.shape))}, "
                f"got {'x'.join(map(str, array.shape)) or 'a scalar'}",
                "resize or reshape the data; named dimensions may vary but must agree between inputs",
            )
        arrays[name] = array
    return arrays


def random_feeds(specs: Sequence[TensorSpec], batch: int = 1, seed: int = 0, fill: Mapping[str, int] | None = None) -> Feeds:
    """Return reproducible arrays for `specs`: standard normal floats, uniform uint8 0..255, small non-negative integers.

    batch: the size given to a leading dimension that may vary; `fill` gives sizes to other named dimensions.
    Raises InputError when a varying dimension has no size.
    """
    generator = np.random.default_rng(seed)
    sizes = dict(fill or {})
    feeds = {}
    for spec in specs:
        shape = []
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and dim not in sizes and axis != 0:
                raise InputError(
                    f"input {spec.name!r} has no fixed size in dimension {axis} ({dim})",
                    "give the arrays themselves with --inputs FILE.npz",
                )
            shape.append(dim if isinstance(dim, int) else sizes.setdefault(dim, batch))
        if spec.dtype == "uint8":
            feeds[spec.name] = generator.integers(0, 256, shape, np.uint8)
        elif np.issubdtype(np.dtype(spec.dtype), np.integer):
            feeds[spec.name] = generator.integers(0, 8, shape).astype(spec.dtype)
        elif spec.dtype == "bool":
            feeds[spec.name] = generator.integers(0, 2, shape).astype(bool)
        else:
            feeds[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return feeds
