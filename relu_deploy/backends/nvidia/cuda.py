"""What a backend needs of the CUDA runtime: streams, events, memory on both sides, copies and graphs; every call checked.

    gpu = Device(0)
    with gpu.stream() as stream, gpu.buffer(4 * n) as there, gpu.pinned((n,), np.float32) as here:
        here.array[:] = 1
        gpu.copy(there.pointer, here.pointer, here.array.nbytes, stream)
        stream.synchronize()

Whatever is made is freed once: by `close`, at the end of its `with`, or when nothing refers to it any more. The package
is cuda-bindings, of CUDA 12 or 13 alike.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from math import prod
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from relu_deploy.errors import Unsupported, missing_package
from relu_deploy.tensors import Array

__all__ = ["Buffer", "CudaError", "Device", "Event", "Graph", "Pinned", "Stream", "load_runtime"]

_RESTART = "the GPU gave up on this process: start it again; compute-sanitizer finds the kernel at fault"
#: what to do about the errors that a person can do something about, by CUDA's name of the error
HINTS: Mapping[str, str] = MappingProxyType(
    {
        "cudaErrorMemoryAllocation": "use a smaller batch, or free the GPU's memory: nvidia-smi shows who holds it",
        "cudaErrorInsufficientDriver": "install NVIDIA's driver, or a newer one; a container needs --gpus all",
        "cudaErrorNoDevice": "run it on a machine with an NVIDIA GPU; a container needs --gpus all",
        "cudaErrorInvalidDevice": "nvidia-smi -L lists the GPUs; --device counts from 0 among those in CUDA_VISIBLE_DEVICES",
        "cudaErrorDevicesUnavailable": "another process has the GPU for itself: nvidia-smi shows its compute mode",
        "cudaErrorNoKernelImageForDevice": "this library has no kernels for this GPU: install a build that supports it",
        "cudaErrorECCUncorrectable": "the GPU's memory is faulty: nvidia-smi -q -d ECC",
        "cudaErrorIllegalAddress": _RESTART,
        "cudaErrorLaunchFailure": _RESTART,
        "cudaErrorMisalignedAddress": _RESTART,
        "cudaErrorIllegalInstruction": _RESTART,
    }
)


class CudaError(Unsupported):
    """A call of the CUDA runtime that failed. name: CUDA's own name of the error, such as cudaErrorMemoryAllocation."""

    def __init__(self, function: str, name: str, description: str) -> None:
        super().__init__(f"{function} failed: {name} ({description})", HINTS.get(name, "relu-deploy doctor says what is usable"))
        self.name = name


def load_runtime() -> Any:
    """Return the module cuda.bindings.runtime. Raises BackendUnavailable when it is not installed."""
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError:
        raise missing_package("cuda-bindings") from None


class Device:
    """One GPU, and the calls of the CUDA runtime to it."""

    def __init__(self, index: int = 0, runtime: Any = None) -> None:
        """runtime: the module to call, by default cuda.bindings.runtime. Raises CudaError when the GPU cannot be used."""
        self.index = index
        self.runtime = runtime or load_runtime()
        self.make_current()

    def call(self, function: str, *arguments: Any) -> Any:
        """Return what the runtime's `function` returns beside its error code. Raises CudaError when that is not success."""
        code, *values = getattr(self.runtime, function)(*arguments)
        if int(code) != 0:
            raise self._error(function, code)
        return values[0] if len(values) == 1 else tuple(values)

    def _error(self, function: str, code: Any) -> CudaError:
        # What is not taken back here would be found by the next library that looks for errors of its own.
        self.runtime.cudaGetLastError()
        _, description = self.runtime.cudaGetErrorString(code)
        text = description.decode() if isinstance(description, bytes) else str(description)
        return CudaError(function, str(getattr(code, "name", code)), text)

    def release(self, function: str, handle: Any) -> None:
        """Give `handle` back, from any thread. An error is not raised: it is that of earlier work, already reported where it was waited for."""
        # A thread that has not used this GPU, such as that of the garbage collector, has another one current.
        self.runtime.cudaSetDevice(self.index)
        getattr(self.runtime, function)(handle)

    def make_current(self) -> None:
        """Direct the calls of this thread to this GPU. Every thread starts with the first one."""
        self.call("cudaSetDevice", self.index)

    def attribute(self, name: str) -> int:
        """Return an attribute of the GPU by the end of its name in cudaDeviceAttr, such as L2CacheSize."""
        return int(self.call("cudaDeviceGetAttribute", getattr(self.runtime.cudaDeviceAttr, f"cudaDevAttr{name}"), self.index))

    def bus_id(self) -> str:
        """Return the GPU's address on the PCI bus, by which every one of NVIDIA's libraries finds the same GPU."""
        found = self.call("cudaDeviceGetPCIBusId", 32, self.index)
        return bytes(found).split(b"\0")[0].decode()

    def free_bytes(self) -> int:
        """Return how much of the GPU's memory is free."""
        return int(self.call("cudaMemGetInfo")[0])

    def stream(self) -> Stream:
        return Stream(self)

    def event(self) -> Event:
        return Event(self)

    def buffer(self, nbytes: int) -> Buffer:
        """Return `nbytes` of the GPU's memory, not cleared, aligned to at least 256 bytes."""
        return Buffer(self, nbytes)

    def pinned(self, shape: Sequence[int], dtype: Any) -> Pinned:
        """Return an array in page-locked memory, which the GPU reads and writes while the CPU does something else."""
        return Pinned(self, shape, dtype)

    def copy(self, target: int, source: int, nbytes: int, stream: Stream | int) -> None:
        """Enqueue a copy between any two addresses, each on the GPU or in page-locked memory."""
        if nbytes:
            kind = self.runtime.cudaMemcpyKind.cudaMemcpyDefault
            self.call("cudaMemcpyAsync", target, source, nbytes, kind, int(stream))

    def synchronize(self, stream: Stream | int) -> None:
        """Wait for everything that was enqueued on `stream`."""
        self.call("cudaStreamSynchronize", int(stream))

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Return what `work` enqueues on `stream` as a graph; it does not run yet. Raises what `work` raises, and CudaError."""
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", int(stream), mode)
        try:
            work()
        except BaseException:
            # The stream has to leave the capture, whose remains are of no use.
            code, graph = self.runtime.cudaStreamEndCapture(int(stream))
            if int(code) == 0 and graph is not None:
                self.release("cudaGraphDestroy", graph)
            self.runtime.cudaGetLastError()
            raise
        graph = self.call("cudaStreamEndCapture", int(stream))
        try:
            return Graph(self, self.call("cudaGraphInstantiate", graph, 0))
        finally:
            self.release("cudaGraphDestroy", graph)


class _Owned:
    """Something of a GPU that is given back exactly once."""

    def __init__(self, device: Device, destroy: str, handle: Any) -> None:
        self.device, self.handle = device, handle
        self._finalizer = weakref.finalize(self, device.release, destroy, handle)

    @property
    def is_open(self) -> bool:
        return self._finalizer.alive

    def close(self) -> None:
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __int__(self) -> int:
        """Return the handle or the address as a number, as other libraries take it."""
        return int(self.handle)


class Stream(_Owned):
    """A queue of work. It does not wait for the default stream, nor that one for it."""

    def __init__(self, device: Device) -> None:
        flags = device.runtime.cudaStreamNonBlocking
        super().__init__(device, "cudaStreamDestroy", device.call("cudaStreamCreateWithFlags", flags))

    def synchronize(self) -> None:
        self.device.synchronize(self)


class Event(_Owned):
    """A mark in a stream, with the time at which the GPU came past it."""

    def __init__(self, device: Device) -> None:
        flags = device.runtime.cudaEventDefault
        super().__init__(device, "cudaEventDestroy", device.call("cudaEventCreateWithFlags", flags))

    def record(self, stream: Stream | int) -> None:
        self.device.call("cudaEventRecord", int(self), int(stream))

    def synchronize(self) -> None:
        """Wait until the GPU has come past it; returns at once when it was never recorded."""
        self.device.call("cudaEventSynchronize", int(self))

    def is_past(self) -> bool:
        """Return whether the GPU has come past it."""
        (code,) = self.device.runtime.cudaEventQuery(int(self))
        if getattr(code, "name", "") == "cudaErrorNotReady":
            return False
        if int(code) != 0:
            raise self.device._error("cudaEventQuery", code)
        return True

    def milliseconds_since(self, start: Event) -> float:
        """Return the GPU's time between `start` and this event, in milliseconds to about half a microsecond."""
        return float(self.device.call("cudaEventElapsedTime", int(start), int(self)))


class Buffer(_Owned):
    """Memory of the GPU. pointer: its address."""

    def __init__(self, device: Device, nbytes: int) -> None:
        # A tensor without elements has an address too.
        super().__init__(device, "cudaFree", device.call("cudaMalloc", max(1, nbytes)))
        self.nbytes = nbytes

    @property
    def pointer(self) -> int:
        return int(self)


class Pinned(_Owned):
    """Page-locked memory. array: it as a NumPy array, which must not be used once this is closed."""

    def __init__(self, device: Device, shape: Sequence[int], dtype: Any) -> None:
        kind = np.dtype(dtype)
        nbytes = prod(shape) * kind.itemsize
        super().__init__(device, "cudaFreeHost", device.call("cudaMallocHost", max(1, nbytes)))
        raw = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(int(self)), np.uint8)
        self.array: Array = raw.view(kind).reshape(tuple(shape))

    @property
    def pointer(self) -> int:
        return int(self)


class Graph(_Owned):
    """Recorded work that one call enqueues as a whole."""

    def __init__(self, device: Device, handle: Any) -> None:
        super().__init__(device, "cudaGraphExecDestroy", handle)

    def launch(self, stream: Stream | int) -> None:
        self.device.call("cudaGraphLaunch", self.handle, int(stream))
