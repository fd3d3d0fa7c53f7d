"""Checked bindings of the CUDA runtime: streams, events, device and pinned memory, copies and graphs.

    gpu = Device(0)
    with gpu.stream() as stream, gpu.buffer(4 * n) as there, gpu.pinned((n,), np.float32) as here:
        here.array[:] = 1
        gpu.copy(there.pointer, here.pointer, here.array.nbytes, stream)
        stream.synchronize()

Each object is freed once: by `close`, at the end of its `with` block, or by the garbage collector. The package is
cuda-bindings, for CUDA 12 or 13.
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

_RESTART = "the CUDA context of this process is lost: restart it; compute-sanitizer finds the kernel at fault"
#: hints by CUDA's name of the error, for errors that a user can fix
HINTS: Mapping[str, str] = MappingProxyType(
    {
        "cudaErrorMemoryAllocation": "use a smaller batch, or free the GPU's memory: nvidia-smi shows who holds it",
        "cudaErrorInsufficientDriver": "install NVIDIA's driver, or a newer one; a container needs --gpus all",
        "cudaErrorNoDevice": "run it on a machine with an NVIDIA GPU; a container needs --gpus all",
        "cudaErrorInvalidDevice": "nvidia-smi -L lists the GPUs; --device counts from 0 among those in CUDA_VISIBLE_DEVICES",
        "cudaErrorDevicesUnavailable": "another process uses the GPU exclusively: nvidia-smi shows its compute mode",
        "cudaErrorNoKernelImageForDevice": "this library has no kernels for this GPU: install a build that supports it",
        "cudaErrorECCUncorrectable": "the GPU's memory is faulty: nvidia-smi -q -d ECC",
        "cudaErrorIllegalAddress": _RESTART,
        "cudaErrorLaunchFailure": _RESTART,
        "cudaErrorMisalignedAddress": _RESTART,
        "cudaErrorIllegalInstruction": _RESTART,
    }
)


class CudaError(Unsupported):
    """A call of the CUDA runtime failed.

    Attributes:
        name: CUDA's name of the error, such as cudaErrorMemoryAllocation.
    """

    def __init__(self, function: str, name: str, description: str) -> None:
        super().__init__(f"{function} failed: {name} ({description})", HINTS.get(name, "relu-deploy doctor says what is usable"))
        self.name = name


def load_runtime() -> Any:
    """Return the module cuda.bindings.runtime.

    Raises:
        BackendUnavailable: If it is not installed.
    """
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError:
        raise missing_package("cuda-bindings") from None


class Device:
    """One GPU, with the functions of the CUDA runtime for it."""

    def __init__(self, index: int = 0, runtime: Any = None) -> None:
        """Make the GPU current in this thread.

        Args:
            index: Index of the GPU.
            runtime: The module to call, by default cuda.bindings.runtime.

        Raises:
            BackendUnavailable: If cuda-bindings is not installed.
            CudaError: If the GPU cannot be used.
        """
        self.index = index
        self.runtime = runtime or load_runtime()
        self.make_current()

    def call(self, function: str, *arguments: Any) -> Any:
        """Call `function` of the runtime and return its results without the error code.

        Raises:
            CudaError: If the error code is not success.
        """
        code, *values = getattr(self.runtime, function)(*arguments)
        if int(code) != 0:
            raise self._error(function, code)
        return values[0] if len(values) == 1 else tuple(values)

    def _error(self, function: str, code: Any) -> CudaError:
        # Clears the error, which another library could otherwise report as its own.
        self.runtime.cudaGetLastError()
        _, description = self.runtime.cudaGetErrorString(code)
        text = description.decode() if isinstance(description, bytes) else str(description)
        return CudaError(function, str(getattr(code, "name", code)), text)

    def release(self, function: str, handle: Any) -> None:
        """Free `handle`, from any thread.

        Errors are not raised: they come from earlier work and were already reported where it was waited for.
        """
        # In a thread that has not used this GPU, such as that of the garbage collector, another one may be current.
        self.runtime.cudaSetDevice(self.index)
        getattr(self.runtime, function)(handle)

    def make_current(self) -> None:
        """Make this GPU current in this thread. GPU 0 is current in a new thread."""
        self.call("cudaSetDevice", self.index)

    def attribute(self, name: str) -> int:
        """Return an attribute of the GPU by its name in cudaDeviceAttr without the prefix, such as L2CacheSize."""
        return int(self.call("cudaDeviceGetAttribute", getattr(self.runtime.cudaDeviceAttr, f"cudaDevAttr{name}"), self.index))

    def bus_id(self) -> str:
        """Return the GPU's address on the PCI bus, which identifies it in all of NVIDIA's libraries."""
        found = self.call("cudaDeviceGetPCIBusId", 32, self.index)
        return bytes(found).split(b"\0")[0].decode()

    def free_bytes(self) -> int:
        """Return the free memory of the GPU in bytes."""
        return int(self.call("cudaMemGetInfo")[0])

    def stream(self) -> Stream:
        """Return a new stream."""
        return Stream(self)

    def event(self) -> Event:
        """Return a new event."""
        return Event(self)

    def buffer(self, nbytes: int) -> Buffer:
        """Return `nbytes` bytes of the GPU's memory, uninitialized, aligned to at least 256 bytes."""
        return Buffer(self, nbytes)

    def pinned(self, shape: Sequence[int], dtype: Any) -> Pinned:
        """Return an uninitialized array in page-locked memory, which the GPU can read and write asynchronously."""
        return Pinned(self, shape, dtype)

    def copy(self, target: int, source: int, nbytes: int, stream: Stream | int) -> None:
        """Enqueue a copy of `nbytes` bytes between two addresses, each on the GPU or in page-locked memory."""
        if nbytes:
            kind = self.runtime.cudaMemcpyKind.cudaMemcpyDefault
            self.call("cudaMemcpyAsync", target, source, nbytes, kind, int(stream))

    def synchronize(self, stream: Stream | int) -> None:
        """Wait for all work that was enqueued on `stream`."""
        self.call("cudaStreamSynchronize", int(stream))

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Return a graph of the operations that `work` enqueues on `stream`, without running them.

        Raises:
            CudaError: If the operations cannot be captured. Exceptions of `work` are passed on.
        """
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", int(stream), mode)
        try:
            work()
        except BaseException:
            # Ends the capture mode of the stream; the incomplete graph is discarded.
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
    """A resource of a GPU that is freed exactly once."""

    def __init__(self, device: Device, destroy: str, handle: Any) -> None:
        self.device, self.handle = device, handle
        self._finalizer = weakref.finalize(self, device.release, destroy, handle)

    @property
    def is_open(self) -> bool:
        """Whether the resource has not been freed."""
        return self._finalizer.alive

    def close(self) -> None:
        """Free the resource. Calling it again has no effect."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __int__(self) -> int:
        """Return the handle or address as an integer, the form that other libraries accept."""
        return int(self.handle)


class Stream(_Owned):
    """A CUDA stream that does not synchronize with the default stream."""

    def __init__(self, device: Device) -> None:
        flags = device.runtime.cudaStreamNonBlocking
        super().__init__(device, "cudaStreamDestroy", device.call("cudaStreamCreateWithFlags", flags))

    def synchronize(self) -> None:
        """Wait for all work that was enqueued."""
        self.device.synchronize(self)


class Event(_Owned):
    """A CUDA event: a marker in a stream that records the time at which the GPU reached it."""

    def __init__(self, device: Device) -> None:
        flags = device.runtime.cudaEventDefault
        super().__init__(device, "cudaEventDestroy", device.call("cudaEventCreateWithFlags", flags))

    def record(self, stream: Stream | int) -> None:
        """Enqueue the event on `stream`."""
        self.device.call("cudaEventRecord", int(self), int(stream))

    def synchronize(self) -> None:
        """Wait until the GPU has reached the event; returns immediately if it was never recorded."""
        self.device.call("cudaEventSynchronize", int(self))

    def is_past(self) -> bool:
        """Return whether the GPU has reached the event."""
        (code,) = self.device.runtime.cudaEventQuery(int(self))
        if getattr(code, "name", "") == "cudaErrorNotReady":
            return False
        if int(code) != 0:
            raise self.device._error("cudaEventQuery", code)
        return True

    def milliseconds_since(self, start: Event) -> float:
        """Return the time on the GPU between `start` and this event in milliseconds; the resolution is about 0.5 µs."""
        return float(self.device.call("cudaEventElapsedTime", int(start), int(self)))


class Buffer(_Owned):
    """Memory of the GPU."""

    def __init__(self, device: Device, nbytes: int) -> None:
        # Empty tensors need an address too.
        super().__init__(device, "cudaFree", device.call("cudaMalloc", max(1, nbytes)))
        self.nbytes = nbytes

    @property
    def pointer(self) -> int:
        """The address."""
        return int(self)


class Pinned(_Owned):
    """Page-locked memory.

    Attributes:
        array: A NumPy array of the memory. It must not be used after `close`.
    """

    def __init__(self, device: Device, shape: Sequence[int], dtype: Any) -> None:
        kind = np.dtype(dtype)
        nbytes = prod(shape) * kind.itemsize
        super().__init__(device, "cudaFreeHost", device.call("cudaMallocHost", max(1, nbytes)))
        raw = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(int(self)), np.uint8)
        self.array: Array = raw.view(kind).reshape(tuple(shape))

    @property
    def pointer(self) -> int:
        """The address."""
        return int(self)


class Graph(_Owned):
    """A CUDA graph: recorded operations that one call enqueues together."""

    def __init__(self, device: Device, handle: Any) -> None:
        super().__init__(device, "cudaGraphExecDestroy", handle)

    def launch(self, stream: Stream | int) -> None:
        """Enqueue the graph on `stream`."""
        self.device.call("cudaGraphLaunch", self.handle, int(stream))
