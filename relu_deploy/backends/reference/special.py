"""Mathematical functions that NumPy does not have, vectorized."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from relu_deploy.backends.threads import default_threads
from relu_deploy.tensors import Array

__all__ = ["erf", "in_parallel", "log1p_exp", "sigmoid"]

#: spacing of the table of erf, and where erf is 1 in float64
STEP, END = 1 / 2048, 6.0
#: elements evaluated at once, so that the intermediate arrays stay in the cache
BLOCK = 2**13


@cache
def _table() -> tuple[Array, Array]:
    points = np.arange(0, END + 2 * STEP, STEP)
    values = np.array([math.erf(point) for point in points.tolist()])
    return values, 2 / math.sqrt(math.pi) * np.exp(-points * points)


def erf(x: Array) -> Array:
    """Return the error function of `x`, in its type.

    Between the points g of a table, erf(g + h) = erf(g) + 2/√π exp(-g²) ∫₀ʰ exp(-2gu - u²) du, with the integrand's Taylor
    series up to u³; |h| ≤ 1/4096, so the rest is below 1e-18.
    """
    flat = np.ascontiguousarray(x, np.float64).ravel()
    result = np.empty_like(flat)
    _table()
    in_parallel(lambda part: _erf_of(flat[part], result[part]), flat.size, BLOCK)
    return result.reshape(x.shape).astype(x.dtype, copy=False)


def _erf_of(x: Array, total: Array) -> None:
    """Write the error function of a block to `total`. A NaN stays one: its place in the table is clipped, its distance is NaN."""
    values, slopes = _table()
    h = np.abs(x)
    np.minimum(h, END, out=h)
    g = h * (1 / STEP)
    np.rint(g, out=g)
    place = g.astype(np.intp)
    g *= STEP
    h -= g
    # coefficients of exp(-2gu - u²), each divided by its power plus one: 1, -g, (2g² - 1) / 3, g (1/2 - g²/3)
    square = g * g
    np.multiply(square, -1 / 3, out=total)
    total += 0.5
    total *= g
    total *= h
    square *= 2 / 3
    square -= 1 / 3
    total += square
    total *= h
    total -= g
    total *= h
    total += 1
    total *= h
    total *= slopes.take(place, mode="clip")
    total += values.take(place, mode="clip")
    np.copysign(total, x, out=total)


def in_parallel(run: Callable[[slice], None], length: int, block: int) -> None:
    """Call `run` with the slices of `block` that cover `length`, on as many threads as BLAS may use where that is worth it."""
    starts = range(0, length, block)
    threads = min(int(os.environ.get("OMP_NUM_THREADS") or default_threads()), len(starts) // 4)
    if threads < 2:
        for start in starts:
            run(slice(start, start + block))
        return

    def share(first: int) -> None:
        # What overflows here is as silent as in the thread that evaluates the graph.
        with np.errstate(all="ignore"):
            for start in starts[first::threads]:
                run(slice(start, start + block))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, range(threads)))


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x))."""
    result = np.negative(x, out=np.empty_like(x))
    np.exp(result, out=result)
    result += 1
    return np.reciprocal(result, out=result)


def log1p_exp(x: Any) -> Array:
    """Return log(1 + exp(x)), without overflow."""
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))
