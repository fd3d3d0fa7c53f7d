"""Builds the fake libcuda.so.1 and libnvidia-ml.so.1, and controls them in the process that has loaded them."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SOURCES = {"libcuda.so.1": "libcuda.c", "libnvidia-ml.so.1": "libnvidia_ml.c"}
#: kinds of objects and of misuse, in the order of the enumerations in libcuda.c
KINDS = ("device memory", "pinned memory", "streams", "events", "graphs", "executable graphs", "contexts")
FAULTS = ("freed twice", "wrong handle", "no current context", "freed on another GPU", "copy outside of allocations")
POISON = 0xA5


def missing():
    """Return why the libraries cannot be built or loaded here, "" if they can."""
    if not sys.platform.startswith("linux"):
        return "the fake driver is a shared library of Linux"
    if shutil.which("cc") is None:
        return "there is no C compiler: install one that is called cc"
    try:
        import cuda.bindings.driver  # noqa: F401
    except ImportError:
        return "cuda-bindings is not installed (pip install 'relu-deploy[dev]')"
    return ""


def build(folder):
    """Build both libraries in `folder`."""
    for library, source in SOURCES.items():
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(folder / library), str(HERE / source), "-ldl", "-lpthread"]
        subprocess.run(command, check=True, timeout=60)


def environment(folder, **more):
    """Return the environment of a process that loads the libraries in `folder`."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


class FakeCuda:
    """The loaded fake. It stands in for `doubles.CudaDriver` where an engine's double enqueues work and looks at memory."""

    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        self.library.fake_calls.restype = ctypes.c_char_p
        self.library.fake_memory_left.restype = ctypes.c_size_t
        self.library.fake_memory.argtypes = [ctypes.c_size_t]
        self.library.fake_device_of.argtypes = [ctypes.c_uint64]
        for name in ("fake_capturing", "fake_break_capture", "fake_waiting", "fake_finish"):
            getattr(self.library, name).argtypes = [ctypes.c_void_p]
        self._work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self.library.fake_launch.argtypes = [ctypes.c_void_p, self._work, ctypes.c_void_p, ctypes.c_double]
        self._kept = []

    def enqueue(self, stream, work, milliseconds=0.0):
        self._kept.append(self._work(lambda _: work()))
        self.library.fake_launch(stream, self._kept[-1], None, milliseconds)

    def finish(self, stream):
        self.library.fake_finish(stream)

    def captures(self, stream):
        return bool(self.library.fake_capturing(stream))

    def waiting(self, stream):
        return self.library.fake_waiting(int(stream))

    def array_at(self, address, shape, dtype):
        assert self.device_of(address) >= 0, f"{address:#x} was freed or never allocated"
        kind = np.dtype(dtype)
        raw = (ctypes.c_uint8 * (int(np.prod(shape)) * kind.itemsize)).from_address(address)
        return np.frombuffer(raw, np.uint8).view(kind).reshape(shape)

    def device_of(self, address):
        """Return the GPU of the allocation at `address`, -1 if there is none."""
        return self.library.fake_device_of(address)

    @property
    def current(self):
        """The GPU that is current in this thread, -1 if there is none."""
        return self.library.fake_current()

    def fail(self, function, call, code):
        """Let the `call`-th call of `function` from now on, counted from 0, return `code`."""
        self.library.fake_fail(function.encode(), call, code)

    def failed(self):
        """Return how many calls have failed on request."""
        return self.library.fake_failed()

    def memory(self, size):
        """Set the free memory of the GPUs, and return what it was, in bytes."""
        before = self.library.fake_memory_left()
        self.library.fake_memory(size)
        return before

    def calls(self):
        """Return the number of calls by function since `forget_calls`."""
        lines = self.library.fake_calls().decode().splitlines()
        return {name: int(count) for name, count in (line.split() for line in lines)}

    def forget_calls(self):
        self.library.fake_forget_calls()

    def alive(self):
        """Return the number of objects that were not freed, by kind, without contexts, which belong to the process."""
        counts = {kind: self.library.fake_alive(number) for number, kind in enumerate(KINDS)}
        del counts["contexts"]
        return {kind: count for kind, count in counts.items() if count}

    def faults(self):
        """Return how often the driver was used wrongly, by kind."""
        counts = {kind: self.library.fake_faults(number) for number, kind in enumerate(FAULTS)}
        return {kind: count for kind, count in counts.items() if count}
