"""Full garbage collections of a server: not over what was loaded at the start, and not too often.

Python looks through all objects again whenever their number has grown by a quarter. That takes a microsecond an object, in which the
event loop serves nobody: a tenth of a second for the modules of the runtimes alone, and half a second once a client has opened
thousands of connections.
"""

from __future__ import annotations

import asyncio
import gc
import time

__all__ = ["collect_garbage"]

#: collections of younger objects before a full one, as Python has it, and a number that is never reached
YOUNGER, NEVER = gc.get_threshold()[2], 2**30
#: seconds between two checks whether a full collection is due, and how many times as long as the last one took passes before it
INTERVAL, REST = 1.0, 200


async def collect_garbage() -> None:
    """Do the full collections of this process until this is cancelled. To be called when everything is loaded."""
    thresholds = gc.get_threshold()
    gc.collect()
    # What exists now is never looked through again; without references to it, it is still removed.
    gc.freeze()
    gc.set_threshold(*thresholds[:2], NEVER)
    seconds, ended = 0.0, time.perf_counter()
    try:
        while True:
            await asyncio.sleep(INTERVAL)
            if gc.get_count()[2] < YOUNGER or time.perf_counter() - ended < REST * seconds:
                continue
            began = time.perf_counter()
            gc.collect()
            ended = time.perf_counter()
            seconds = ended - began
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
