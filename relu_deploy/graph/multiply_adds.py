"""The multiply-adds of matrix products and convolutions, from the shapes of their operands."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

__all__ = ["multiply_adds"]


def multiply_adds(operator: str, elements: int, sizes: Sequence[tuple[int, ...]], transposed: bool = False) -> int | None:
    """Return the multiply-adds of one node.

        Conv                  outputs * (inputs per output)
        ConvTranspose         inputs * (outputs per input)
        Gemm, MatMul          rows * columns * depth

    Args:
        operator: Type of the node.
        elements: Number of elements of its output.
        sizes: Shapes of its inputs.
        transposed: Whether a Gemm transposes its first input.

    Returns:
        None for other operators.
    """
    if operator == "Conv":
        return elements * prod(sizes[1][1:])
    if operator == "ConvTranspose":
        return prod(sizes[0]) * prod(sizes[1][1:])
    if operator in ("Gemm", "MatMul"):
        left = sizes[0] or (1,)
        return elements * (left[0] if transposed else left[-1])
    return None
