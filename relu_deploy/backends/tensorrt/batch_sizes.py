"""The batch sizes that a session of an engine keeps execution contexts for, and the padding of batches to them.

Each batch size is a shape, for which a context, its buffers and a CUDA graph are made. A server's batches have any size up to the
largest, so that contexts would be made and freed all the time; with padding a few sizes serve all of them. Rows of a batch are
independent of each other, so that rows of zeros change no other row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relu_deploy.tensors import Feeds, TensorSpec

__all__ = ["BatchSizes"]


@dataclass(frozen=True)
class BatchSizes:
    """The sizes that batches are padded to.

    Attributes:
        sizes: In ascending order; empty if batches are not padded.
        input_axes: The batch axis by input.
        output_axes: The batch axis by output.
    """

    sizes: tuple[int, ...]
    input_axes: dict[str, int]
    output_axes: dict[str, int]

    @classmethod
    def choose(
        cls, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], ranges: Sequence[tuple[int, int, int]]
    ) -> BatchSizes:
        """Return the powers of two within the profiles, and the smallest, usual and largest batch of each.

        Args:
            inputs: Inputs of the model.
            outputs: Its outputs.
            ranges: Smallest, usual and largest batch of each optimization profile.
        """
        axes = [{spec.name: spec.batch_axis for spec in specs if spec.batch_axis is not None} for specs in (inputs, outputs)]
        only_batches = all(_varying(spec) == [spec.batch_axis] for spec in inputs)
        # An output whose first dimension has another name may count something else than rows.
        if not only_batches or len({spec.batch for spec in (*inputs, *outputs)}) > 1:
            return cls((), *axes)
        highest = max(high for _, _, high in ranges)
        powers = [1 << bit for bit in range(highest.bit_length())]
        sizes = {size for low, _, high in ranges for size in powers if low <= size <= high}
        return cls(tuple(sorted(sizes | {size for each in ranges for size in each})), *axes)

    def pad(self, feeds: Feeds) -> tuple[Feeds, int]:
        """Return `feeds` with rows of zeros up to the next size, and the number of rows before, 0 if nothing was padded."""
        counts = {feeds[name].shape[axis] for name, axis in self.input_axes.items()}
        count = counts.pop() if len(counts) == 1 else 0
        place = bisect_left(self.sizes, count)
        if not count or place == len(self.sizes) or self.sizes[place] == count:
            return feeds, 0
        return {name: _padded(array, self.input_axes[name], self.sizes[place]) for name, array in feeds.items()}, count

    def trim(self, results: Feeds, count: int) -> Feeds:
        """Return `results` without the rows that `pad` added to `count` rows."""
        if not count:
            return results
        return {
            name: np.take(array, range(count), self.output_axes[name]) if self.output_axes[name] else array[:count].copy()
            for name, array in results.items()
        }


def _varying(spec: TensorSpec) -> list[int | None]:
    return [axis for axis, size in enumerate(spec.shape) if isinstance(size, str)]


def _padded(array: np.ndarray, axis: int, size: int) -> np.ndarray:  # type: ignore[type-arg]
    padded = np.zeros((*array.shape[:axis], size, *array.shape[axis + 1 :]), array.dtype)
    padded[(slice(None),) * axis + (slice(array.shape[axis]),)] = array
    return padded
