"""What goes into and comes out of a model: names, dtypes and shapes, and the check that feeds respect them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from relu_deploy.errors import InputError, UsageError

__all__ = [
    "Array",
    "Feeds",
    "TensorSpec",
    "check_feeds",
    "count_rows",
    "fixed_batch",
    "pad_rows",
    "parse_shape",
    "random_feeds",
    "row_axes",
    "separated",
    "shapes_of",
    "sized_by_name",
    "take_rows",
]

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = dict[str, Array]
Dim = int | str


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: Its name in the graph.
        dtype: Its element type, such as "float32".
        shape: An int for each fixed dimension, and a name for each that may vary.
        batch_axis: Axis along which rows are independent, None if there is none.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    batch_axis: int | None = field(default=0, compare=False)

    def __post_init__(self) -> None:
        """Leave a scalar without a batch axis."""
        if not self.shape:
            object.__setattr__(self, "batch_axis", None)

    @property
    def batch(self) -> Dim | None:
        """Return the batch dimension: its size if fixed, its name if it may vary, None if there is none."""
        return self.shape[self.batch_axis] if self.shape and self.batch_axis is not None else None

    def with_sizes(self, shape: Sequence[int] | None) -> TensorSpec:
        """Return this spec with the sizes of `shape` for its varying dimensions other than the batch; unchanged for None.

        Raises:
            UsageError: If the rank differs, or a size differs from a fixed one.
        """
        if shape is None:
            return self
        fits = len(shape) == len(self.shape) and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(self.shape, shape, strict=True)
        )
        if not fits:
            raise UsageError(
                f"--shape {self.name}={'x'.join(map(str, shape))} does not fit the input {self}",
                "give a size for each dimension, and keep those that the model fixes",
            )
        sizes = (dim if axis == self.batch_axis else size for axis, (dim, size) in enumerate(zip(self.shape, shape, strict=True)))
        return replace(self, shape=tuple(sizes))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as in a manifest; the batch axis only where it is not the first."""
        fields = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        return fields if self.batch_axis == 0 or not self.shape else {**fields, "batch_axis": self.batch_axis}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TensorSpec:
        """Return the spec in `fields` of a manifest."""
        return cls(fields["name"], fields["dtype"], tuple(fields["shape"]), fields.get("batch_axis", 0))

    def __str__(self) -> str:
        """Return the spec in one word, such as "x: float32[batchx3]"."""
        return f"{self.name}: {self.dtype}[{'x'.join(map(str, self.shape))}]"


def sized_by_name(specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]]) -> tuple[TensorSpec, ...]:
    """Return `specs` with the sizes of `shapes`, also where another input has a dimension of the same name; the batch varies on.

    Args:
        specs: The model's inputs.
        shapes: Whole shapes by input name. An input that is named here has these sizes and no others.

    Raises:
        UsageError: If a shape does not fit its input.
    """
    found: dict[Dim, set[int]] = {}
    for spec in specs:
        for axis, size in enumerate(shapes.get(spec.name, ())):
            if axis != spec.batch_axis and axis < len(spec.shape):
                found.setdefault(spec.shape[axis], set()).add(size)
    sizes = {dim: size for dim, (size, *others) in found.items() if isinstance(dim, str) and not others}
    return tuple(
        spec.with_sizes(shapes[spec.name])
        if spec.name in shapes
        else replace(
            spec,
            shape=tuple(
                sizes.get(dim, dim) if isinstance(dim, str) and axis != spec.batch_axis else dim
                for axis, dim in enumerate(spec.shape)
            ),
        )
        for spec in specs
    )


def separated(specs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> tuple[tuple[TensorSpec, ...], tuple[str, ...]]:
    """Return `specs` with a name of its own for each dimension that has another size in `feeds` than the first of its name.

    Converters call several dimensions "N" or "batch" that are not equal. An input whose batch axis is not of the size of the first
    one has no batch: it is the same for all rows.

    Args:
        specs: The inputs.
        feeds: Arrays by input name.

    Returns:
        The inputs, and a sentence for each such dimension.
    """
    first: dict[str, tuple[int, str]] = {}
    taken = {dim for spec in specs for dim in spec.shape}
    found, notes = [], []
    for spec in specs:
        sizes = np.shape(feeds[spec.name]) if spec.name in feeds else ()
        dims, batch_axis = list(spec.shape), spec.batch_axis
        for axis, (dim, size) in enumerate(zip(spec.shape, sizes, strict=False)):
            if isinstance(dim, int) or (known := first.setdefault(dim, (size, spec.name)))[0] == size:
                continue
            dims[axis] = f"{spec.name}_{axis}"
            while dims[axis] in taken:
                dims[axis] = f"{dims[axis]}_"
            taken.add(dims[axis])
            batch_axis = None if axis == batch_axis else batch_axis
            notes.append(
                f"the dimension {dim!r} is {known[0]} in {known[1]!r} and {size} in {spec.name!r}: they are taken as different dimensions"
            )
        found.append(replace(spec, shape=tuple(dims), batch_axis=batch_axis))
    return tuple(found), tuple(notes)


def row_axes(specs: Sequence[TensorSpec]) -> dict[str, int | None]:
    """Return the batch axis by tensor, None for a tensor that is the same for all rows; without those on axis 0."""
    return {spec.name: spec.batch_axis for spec in specs if spec.batch_axis != 0}


def fixed_batch(specs: Sequence[TensorSpec]) -> int | None:
    """Return the only number of rows that a model with the inputs `specs` takes, None if the batch varies or there is none."""
    return next((spec.batch for spec in specs if isinstance(spec.batch, int)), None)


def count_rows(feeds: Mapping[str, Array], axes: Mapping[str, int | None]) -> int:
    """Return the number of rows of `feeds`, 1 if no array has rows. axes: Those of `row_axes`."""
    for name, array in feeds.items():
        axis = axes.get(name, 0)
        if axis is not None:
            return int(array.shape[axis])
    return 1


def take_rows(feeds: Mapping[str, Array], axes: Mapping[str, int | None], places: slice | Array) -> Feeds:
    """Return the rows of `feeds` at `places`. axes: Those of `row_axes`."""
    taken = {}
    for name, array in feeds.items():
        axis = axes.get(name, 0)
        taken[name] = array if axis is None else array[(slice(None),) * axis + (places,)]
    return taken


def pad_rows(feeds: Mapping[str, Array], axes: Mapping[str, int | None], size: int) -> Feeds:
    """Return `feeds` with the last row repeated until there are `size` rows. axes: Those of `row_axes`."""
    rows = count_rows(feeds, axes)
    return take_rows(feeds, axes, np.minimum(np.arange(size), rows - 1)) if rows < size else dict(feeds)


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the shape written as `1x3x224x224`.

    Raises:
        UsageError: If `text` is anything else.
    """
    try:
        shape = tuple(int(part) for part in text.lower().replace(",", "x").split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"not a shape: {text!r}", "write positive sizes joined by x, for instance 1x3x224x224")
    return shape


def check_feeds(feeds: Mapping[str, Any], specs: Sequence[TensorSpec], model: str, *, by_name: bool = True) -> Feeds:
    """Return `feeds` as arrays of this machine's byte order if they are exactly what `specs` ask for.

    Args:
        feeds: Arrays by input name.
        specs: The model's inputs.
        model: Its name, for errors.
        by_name: Refuse a dimension with two sizes. Files name dimensions alike that are not equal, and ONNX Runtime runs them.

    Raises:
        InputError: Names the input, what was expected and what was given.
    """
    expected = {spec.name: spec for spec in specs}
    if feeds.keys() != expected.keys():
        described = ", ".join(str(spec) for spec in specs)
        missing = [name for name in expected if name not in feeds]
        wrong = (
            f"no array for input {missing[0]!r}"
            if missing
            else f"there is no input {next(iter(feeds.keys() - expected.keys()))!r}"
        )
        raise InputError(f"{model}: {wrong}", f"the model's inputs are {described}")
    bound: dict[str, tuple[int, str]] = {}
    arrays = {}
    for name, spec in expected.items():
        array = np.asarray(feeds[name])
        if not array.dtype.isnative:
            # Another byte order is the same numbers.
            array = array.astype(array.dtype.newbyteorder("="))
        if spec.dtype == "object" and array.dtype.kind == "U":
            # Runtimes take texts as objects, NumPy keeps them in rows of one width.
            array = array.astype(object)
        if array.dtype.name != spec.dtype:
            texts = spec.dtype == "object"
            raise InputError(
                f"{model}: input {name!r} must be {'texts' if texts else spec.dtype}, got {array.dtype.name}",
                f"convert it, for instance array.astype({'str' if texts else repr(spec.dtype)})",
            )
        if len(array.shape) != len(spec.shape) or any(
            size != dim for size, dim in zip(array.shape, spec.shape, strict=True) if isinstance(dim, int)
        ):
            raise InputError(
                f"{model}: input {name!r} must have shape {'x'.join(map(str, spec.shape))}, "
                f"got {'x'.join(map(str, array.shape)) or 'a scalar'}",
                "resize or reshape the data; named dimensions may vary but must agree between inputs",
            )
        if by_name:
            _bind(bound, name, array.shape, spec, model)
        arrays[name] = array
    return arrays


def _bind(bound: dict[str, tuple[int, str]], name: str, sizes: Sequence[int], spec: TensorSpec, model: str) -> None:
    """Note the sizes of named dimensions. bound: size by dimension, with the input that gave it.

    Raises:
        InputError: If a dimension has another size already.
    """
    for size, dim in zip(sizes, spec.shape, strict=True):
        if not isinstance(dim, str):
            continue
        known, other = bound.setdefault(dim, (size, name))
        if known != size:
            where = f"input {other!r}" if other != name else "another axis"
            raise InputError(
                f"{model}: dimension {dim!r} is {size} in input {name!r} and {known} in {where}",
                "resize or reshape the data; named dimensions may vary but must agree between inputs",
            )


def shapes_of(specs: Sequence[TensorSpec], batch: int, fill: Mapping[str, int] | None = None) -> dict[str, list[Dim]]:
    """Return the shapes of `batch` rows by input name; a dimension without a size keeps its name.

    Args:
        specs: The model's inputs.
        batch: Size of a varying batch, and of any other varying dimension in front.
        fill: Sizes of other varying dimensions by name.
    """
    sizes = {str(spec.batch): batch for spec in specs if isinstance(spec.batch, str)} | dict(fill or {})
    shapes: dict[str, list[Dim]] = {}
    for spec in specs:
        if spec.shape and isinstance(spec.shape[0], str):
            sizes.setdefault(spec.shape[0], batch)
        shapes[spec.name] = [dim if isinstance(dim, int) else sizes.get(dim, dim) for dim in spec.shape]
    return shapes


def _sized(spec: TensorSpec, axis: int, dim: Dim) -> int:
    """Return the size `dim` of an axis. Raises InputError if there is none."""
    if isinstance(dim, int):
        return dim
    usual = 320 if len(spec.shape) == 4 else 64
    sizes = [each if isinstance(each, int) else 1 if at == spec.batch_axis else usual for at, each in enumerate(spec.shape)]
    raise InputError(
        f"input {spec.name!r} has no fixed size in dimension {axis} ({dim})",
        f"give sizes, such as --shape {spec.name}={'x'.join(map(str, sizes))}, or arrays with --inputs FILE.npz",
    )


def random_feeds(
    specs: Sequence[TensorSpec],
    batch: int = 1,
    seed: int = 0,
    fill: Mapping[str, int] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
) -> Feeds:
    """Return reproducible arrays: standard normal floats, uint8 from 0 to 255, other integers and the digits of texts from 0 to 7.

    Args:
        specs: The model's inputs.
        batch: Size of a varying batch.
        seed: Of the random numbers.
        fill: Sizes of other varying dimensions by name.
        ranges: Smallest and largest value of integer inputs by name.

    Raises:
        InputError: If a varying dimension has no size.
    """
    generator = np.random.default_rng(seed)
    shapes = shapes_of(specs, batch, fill)
    feeds = {}
    for spec in specs:
        shape = [_sized(spec, axis, dim) for axis, dim in enumerate(shapes[spec.name])]
        low, high = (ranges or {}).get(spec.name, (0, 255 if spec.dtype == "uint8" else 7))
        if spec.dtype == "bool":
            feeds[spec.name] = generator.integers(0, 2, shape).astype(bool)
        elif spec.dtype == "object":
            feeds[spec.name] = np.asarray(generator.integers(0, 8, shape).astype(str), object)
        elif spec.dtype == "uint8":
            feeds[spec.name] = generator.integers(low, high + 1, shape, np.uint8)
        elif np.issubdtype(np.dtype(spec.dtype), np.integer):
            feeds[spec.name] = generator.integers(low, high + 1, shape).astype(spec.dtype)
        else:
            feeds[spec.name] = np.asarray(generator.standard_normal(shape)).astype(spec.dtype)
    return feeds
