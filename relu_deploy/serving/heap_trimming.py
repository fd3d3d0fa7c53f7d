"""Freed memory that goes back to the system.

glibc keeps what was freed below memory that is in use. After 5,000 connections with TLS, of which each held 256 KiB, that is
a gigabyte, and other allocations write to all of it in time. `malloc_trim` returns the pages between what is in use.
"""

from __future__ import annotations

import asyncio
import ctypes

__all__ = ["trim_heap"]

#: seconds between two checks, and bytes that have been free at both before they are returned
INTERVAL, MOST_FREE = 10.0, 2**27


class _HeapUse(ctypes.Structure):
    """struct mallinfo2 (malloc.h), of all arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


async def trim_heap() -> None:
    """Return memory that stays free to the system until this is cancelled. Without glibc 2.33 or later nothing is done."""
    library = ctypes.CDLL(None)
    try:
        heap_use, trim = library.mallinfo2, library.malloc_trim
    except AttributeError:
        return
    heap_use.restype = _HeapUse
    trim.argtypes = [ctypes.c_size_t]
    before = 0
    while True:
        await asyncio.sleep(INTERVAL)
        # Both hold the allocator's locks for some milliseconds, in which others can allocate nothing, but do run.
        free = (await asyncio.to_thread(heap_use)).fordblks
        if min(before, free) > MOST_FREE:
            await asyncio.to_thread(trim, 0)
            free = 0
        before = free
