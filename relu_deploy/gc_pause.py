"""Garbage collection, put off while a library builds a large structure that is kept."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_collecting"]


@contextmanager
def without_collecting() -> Iterator[None]:
    """Put off garbage collection inside the block, or in a function that this decorates.

    torch makes hundreds of thousands of objects when it is imported, traces or loads a program, and so does a graph of many nodes;
    nearly all of them stay, and looking through them again and again costs up to a quarter of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
