"""The rows of a batch, on whatever axis each input and output has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.tensors import Feeds, TensorSpec

__all__ = ["BatchRows"]


@dataclass(frozen=True)
class BatchRows:
    """The batch of a model whose size may vary.

    Attributes:
        dims: The names of the dimension: one, or several where a converter named the batch of each input differently.
        count: The rows of the inputs.
        input_axes, output_axes: The axis by tensor. A tensor without the dimension (a scalar, a matrix of parameters) has none:
            an input is the same for every row, an output is not compared row by row.
    """

    dims: tuple[str, ...]
    count: int
    input_axes: Mapping[str, int]
    output_axes: Mapping[str, int]

    @classmethod
    def find(cls, bundle: Bundle, feeds: Feeds, results: Feeds) -> BatchRows | None:
        """Return the batch of a model, None where that of no input may vary. results: Its outputs for `feeds`."""
        sizes = {str(spec.batch): feeds[spec.name].shape[spec.batch_axis or 0] for spec in bundle.inputs if _varies(spec)}
        if not sizes:
            return None
        count = next(iter(sizes.values()))
        dims = tuple(sizes) if len(set(sizes.values())) == 1 else (next(iter(sizes)),)
        inputs = {spec.name: spec.batch_axis or 0 for spec in bundle.inputs if _varies(spec) and spec.batch in dims}
        outputs = {spec.name: spec.batch_axis or 0 for spec in bundle.outputs if _varies(spec)}
        outputs = {
            name: axis
            for name, axis in outputs.items()
            if name in results and np.shape(results[name])[axis : axis + 1] == (count,)
        }
        return cls(dims, count, inputs, outputs)

    def take_inputs(self, feeds: Feeds, rows: Iterable[int]) -> Feeds:
        """Return the inputs with only these rows."""
        return _take(feeds, self.input_axes, list(rows))

    def take_outputs(self, results: Feeds, rows: Iterable[int]) -> Feeds:
        """Return these rows of the outputs that have rows."""
        return _take({name: results[name] for name in self.output_axes}, self.output_axes, list(rows))

    def concatenate(self, feeds: Feeds, more: Feeds) -> Feeds:
        """Return the rows of `feeds`, then those of `more`."""
        axes = self.input_axes
        return {name: np.concatenate([array, more[name]], axes[name]) if name in axes else array for name, array in feeds.items()}

    def other_sizes(self, bundle: Bundle, feeds: Feeds) -> dict[str, int]:
        """Return the sizes in `feeds` of the dimensions that may vary besides the batch."""
        return {
            dim: size
            for spec in bundle.inputs
            for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
            if isinstance(dim, str) and dim not in self.dims
        }


def _varies(spec: TensorSpec) -> bool:
    return isinstance(spec.batch, str)


def _take(arrays: Feeds, axes: Mapping[str, int], rows: list[int]) -> Feeds:
    return {name: np.take(array, rows, axes[name]) if name in axes else array for name, array in arrays.items()}
