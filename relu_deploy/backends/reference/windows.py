"""How a window of a convolution or pooling moves over its input: padding, strides, dilations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.tensors import Array

if TYPE_CHECKING:
    from relu_deploy.backends.reference.registry import Call

__all__ = ["Geometry", "patches", "zero_padded"]


@dataclass(frozen=True)
class Geometry:
    """The attributes that Conv and the pools share, one number per spatial axis.

    pads: those of the node, all beginnings and then all ends. ceil_mode: round the number of steps up, but start no window
    behind the data (the rule of opset 22, and PyTorch's).
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    auto_pad: str
    pads: tuple[int, ...]
    ceil_mode: bool = False

    @classmethod
    def of(cls, call: Call, kernel: Sequence[int]) -> Geometry:
        """Return the geometry of a node whose kernel has the sizes `kernel`."""
        spatial = len(kernel)
        return cls(
            tuple(int(n) for n in kernel),
            tuple(call.get("strides") or (1,) * spatial),
            tuple(call.get("dilations") or (1,) * spatial),
            call.get("auto_pad", "NOTSET") or "NOTSET",
            tuple(call.get("pads") or (0,) * 2 * spatial),
            bool(call.get("ceil_mode", 0)),
        )

    @property
    def reach(self) -> tuple[int, ...]:
        """Return how many elements a window spans, dilation included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def same(self) -> bool:
        """Return whether the padding follows from the sizes: the output has ceil(size / stride) steps."""
        return self.auto_pad in ("SAME_UPPER", "SAME_LOWER")

    def padding(self, size: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the padding before and behind each axis, without what ceil mode adds."""
        spatial = len(size)
        if self.same:
            total = [
                max((ceil(n / s) - 1) * s + r - n, 0) for n, s, r in zip(size, self.strides, self.reach, strict=True)
            ]  # fmt: skip
            small, large = [t // 2 for t in total], [t - t // 2 for t in total]
            return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)
        if self.auto_pad == "VALID":
            return [0] * spatial, [0] * spatial
        return list(self.pads[:spatial]), list(self.pads[spatial:])

    def overhang(self, size: Sequence[int]) -> list[int]:
        """Return how far the last window of each axis hangs over the padded data in ceil mode."""
        if not self.ceil_mode or self.same:
            return [0] * len(size)
        begin, end = self.padding(size)
        beyond = []
        for n, b, e, s, r in zip(size, begin, end, self.strides, self.reach, strict=True):
            room = n + b + e - r
            steps = ceil(room / s)
            steps -= steps * s >= n + b
            beyond.append(max(steps * s - room, 0))
        return beyond

    def steps(self, padded: Sequence[int]) -> list[int]:
        """Return the number of windows along each axis of data that is already padded."""
        return [(n - r) // s + 1 for n, r, s in zip(padded, self.reach, self.strides, strict=True)]

    def unpadded(self) -> Geometry:
        """Return the same windows over data that is already padded."""
        return replace(self, auto_pad="VALID", pads=(0,) * 2 * len(self.kernel), ceil_mode=False)


def patches(x: Array, geometry: Geometry) -> Iterator[Array]:
    """Yield, for each position in the kernel, the view of the padded `x` that it meets at every step."""
    sizes = geometry.steps(x.shape[2:])
    for offset in product(*map(range, geometry.kernel)):
        cut = [
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offset, geometry.dilations, sizes, geometry.strides, strict=True)
        ]
        yield x[(slice(None), slice(None), *cut)]


def zero_padded(x: Array, begin: Sequence[int], end: Sequence[int], fill: float = 0) -> Array:
    """Return `x` with `fill` around its spatial axes; negative padding cuts."""
    if not any((*begin, *end)):
        return x
    cut = [slice(max(-b, 0), n - max(-e, 0)) for b, e, n in zip(begin, end, x.shape[2:], strict=True)]
    sides = [(max(b, 0), max(e, 0)) for b, e in zip(begin, end, strict=True)]
    return np.pad(x[(slice(None), slice(None), *cut)], ((0, 0), (0, 0), *sides), constant_values=fill)
