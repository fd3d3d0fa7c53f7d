"""Memory that was freed between memory in use goes back to the system when it has stayed free."""

import ctypes
import subprocess
import sys

import pytest

FRAGMENTED = """
import asyncio, contextlib, ctypes
from relu_deploy.serving import heap_trimming

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes, library.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
library.free(library.malloc(2**19))  # from now on blocks of this size are on the heap
blocks = []
for _ in range(800):
    blocks.append(library.malloc(2**18))
    library.memset(blocks[-1], 1, 2**18)
    library.malloc(200)  # stays in use
for block in blocks:
    library.free(block)

async def trim(seconds):
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(heap_trimming.trim_heap(), seconds)

before = resident()
heap_trimming.INTERVAL = 60.0
asyncio.run(trim(0.2))
kept = resident()
heap_trimming.INTERVAL = 0.05
asyncio.run(trim(1.0))
print(before - kept, before - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later")
def test_memory_that_stays_free_is_returned_and_not_before():
    ran = subprocess.run([sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True)
    early, late = map(int, ran.stdout.split())
    assert early < 2**24
    assert late > 150 * 2**20
