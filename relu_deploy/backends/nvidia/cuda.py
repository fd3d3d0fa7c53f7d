"""Checked bindings of the CUDA driver API: streams, events, device and pinned memory, copies and graphs.

    gpu = Device(0)
    with gpu.stream() as stream, gpu.buffer(4 * n) as there, gpu.pinned((n,), np.float32) as here:
        here.array[:] = 1
        gpu.copy(there.pointer, here.pointer, here.array.nbytes, stream)
        stream.synchronize()

Each object is freed once: by `close`, at the end of its `with` block, or by the garbage collector. The package is
cuda-bindings, for CUDA 12 or 13. Work is done in the primary context of the GPU, which the CUDA runtime, and so PyTorch, ONNX
Runtime and TensorRT, use too.
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

from relu_deploy.backends.nvidia.driver import Missing, find_driver
from relu_deploy.errors import BackendUnavailable, Unsupported, missing_package
from relu_deploy.tensors import Array

__all__ = ["Buffer", "CudaError", "Device", "Event", "Graph", "Pinned", "Stream", "load_bindings"]

_RESTART = "the CUDA context of this process is lost: restart it; compute-sanitizer finds the kernel at fault"
#: hints by CUDA's name of the error (cuda.h, CUresult), for errors that a user can fix
HINTS: Mapping[str, str] = MappingProxyType(
    {
        "CUDA_ERROR_OUT_OF_MEMORY": "use a smaller batch, or free the GPU's memory: nvidia-smi shows who holds it",
        "CUDA_ERROR_NO_DEVICE": "run it on a machine with an NVIDIA GPU; a container needs --gpus all",
        "CUDA_ERROR_INVALID_DEVICE": "nvidia-smi -L lists the GPUs; --device counts from 0 among those in CUDA_VISIBLE_DEVICES",
        "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process uses the GPU exclusively: nvidia-smi shows its compute mode",
        "CUDA_ERROR_NO_BINARY_FOR_GPU": "this library has no kernels for this GPU: install a build that supports it",
        "CUDA_ERROR_ECC_UNCORRECTABLE": "the GPU's memory is faulty: nvidia-smi -q -d ECC",
        "CUDA_ERROR_ILLEGAL_ADDRESS": _RESTART,
        "CUDA_ERROR_LAUNCH_FAILED": _RESTART,
        "CUDA_ERROR_MISALIGNED_ADDRESS": _RESTART,
        "CUDA_ERROR_ILLEGAL_INSTRUCTION": _RESTART,
    }
)
#: values of cuda.h
_NOT_READY, _NON_BLOCKING, _PORTABLE = 600, 1, 1


class CudaError(Unsupported):
    """A call of the CUDA driver failed.

    Attributes:
        name: CUDA's name of the error, such as CUDA_ERROR_OUT_OF_MEMORY.
    """

    def __init__(self, function: str, name: str, description: str) -> None:
        super().__init__(f"{function} failed: {name} ({description})", HINTS.get(name, "relu-deploy doctor says what is usable"))
        self.name = name


def load_bindings() -> Any:
    """Return the module cuda.bindings.driver.

    Raises:
        BackendUnavailable: If it is not installed.
    """
    try:
        return import_module("cuda.bindings.driver")
    except ImportError:
        raise missing_package("cuda-bindings") from None


class Device:
    """One GPU, with the functions of the CUDA driver for it."""

    def __init__(self, index: int = 0, driver: Any = None) -> None:
        """Make the GPU current in this thread.

        Args:
            index: Index of the GPU.
            driver: The module to call, by default cuda.bindings.driver.

        Raises:
            BackendUnavailable: If cuda-bindings is not installed.
            CudaError: If the GPU cannot be used.
        """
        self.index = index
        self.driver = driver or load_bindings()
        self._start()
        self._handle = self.call("cuDeviceGet", index)
        # Not released, as by the CUDA runtime: other libraries in the process may work in this context without retaining it.
        self._context = self.call("cuDevicePrimaryCtxRetain", self._handle)
        self.make_current()

    def _start(self) -> None:
        """Initialize the driver, or say what is missing."""
        try:
            self.call("cuInit", 0)
        except RuntimeError as error:  # the bindings raise it where libcuda.so.1 is not found
            missing = find_driver()
            if isinstance(missing, Missing):
                raise BackendUnavailable(missing.reason, missing.fix) from error
            raise BackendUnavailable(f"cuda-bindings cannot load NVIDIA's driver: {error}", "relu-deploy doctor") from error

    def call(self, function: str, *arguments: Any) -> Any:
        """Call `function` of the driver and return its results without the error code.

        Raises:
            CudaError: If the error code is not success.
        """
        code, *values = getattr(self.driver, function)(*arguments)
        if int(code) != 0:
            raise self.error(function, code)
        return values[0] if len(values) == 1 else tuple(values)

    def error(self, function: str, code: Any) -> CudaError:
        """Return the error for `code`, which `function` returned."""
        _, description = self.driver.cuGetErrorString(code)
        text = description.decode() if isinstance(description, bytes) else str(description or "no description")
        return CudaError(function, str(getattr(code, "name", code)), text)

    def release(self, function: str, handle: Any) -> None:
        """Call `function`, which frees or drains `handle`, from any thread.

        Errors are not raised: they come from earlier work and were already reported where it was waited for.
        """
        # In a thread that has not used this GPU, such as that of the garbage collector, another context may be current, or none.
        self.driver.cuCtxSetCurrent(self._context)
        getattr(self.driver, function)(handle)

    def make_current(self) -> None:
        """Make this GPU current in this thread. No GPU is current in a new thread."""
        self.call("cuCtxSetCurrent", self._context)

    def attribute(self, name: str) -> int:
        """Return an attribute of the GPU by its name in CUdevice_attribute without the prefix, such as L2_CACHE_SIZE."""
        attribute = getattr(self.driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self.call("cuDeviceGetAttribute", attribute, self._handle))

    def bus_id(self) -> str:
        """Return the GPU's address on the PCI bus, which identifies it in all of NVIDIA's libraries."""
        found = self.call("cuDeviceGetPCIBusId", 32, self._handle)
        return bytes(found).split(b"\0")[0].decode()

    def free_bytes(self) -> int:
        """Return the free memory of the GPU in bytes."""
        return int(self.call("cuMemGetInfo")[0])

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
            self.call("cuMemcpyAsync", target, source, nbytes, int(stream))

    def synchronize(self, stream: Stream | int) -> None:
        """Wait for all work that was enqueued on `stream`."""
        self.call("cuStreamSynchronize", int(stream))

    def finish(self) -> None:
        """Wait for all work on this GPU, on any stream of this process. The GPU has to be current."""
        self.call("cuCtxSynchronize")

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Return a graph of the operations that `work` enqueues on `stream`, without running them.

        Raises:
            CudaError: If the operations cannot be captured. Exceptions of `work` are passed on.
        """
        mode = self.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", int(stream), mode)
        try:
            work()
        except BaseException:
            # Ends the capture mode of the stream; the incomplete graph is discarded.
            code, graph = self.driver.cuStreamEndCapture(int(stream))
            if int(code) == 0 and graph is not None:
                self.release("cuGraphDestroy", graph)
            raise
        graph = self.call("cuStreamEndCapture", int(stream))
        try:
            return Graph(self, self.call("cuGraphInstantiate", graph, 0))
        finally:
            self.release("cuGraphDestroy", graph)


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
        super().__init__(device, "cuStreamDestroy", device.call("cuStreamCreate", _NON_BLOCKING))

    def synchronize(self) -> None:
        """Wait for all work that was enqueued."""
        self.device.synchronize(self)

    def drain(self) -> None:
        """Wait for all work that was enqueued, from any thread, before the memory that it uses is freed.

        Errors are not raised, for the reason in `Device.release`; the memory has to be freed after them too.
        """
        if self.is_open:
            self.device.release("cuStreamSynchronize", int(self))


class Event(_Owned):
    """A CUDA event: a marker in a stream that records the time at which the GPU reached it."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, "cuEventDestroy", device.call("cuEventCreate", 0))

    def record(self, stream: Stream | int) -> None:
        """Enqueue the event on `stream`."""
        self.device.call("cuEventRecord", int(self), int(stream))

    def synchronize(self) -> None:
        """Wait until the GPU has reached the event; returns immediately if it was never recorded."""
        self.device.call("cuEventSynchronize", int(self))

    def is_past(self) -> bool:
        """Return whether the GPU has reached the event."""
        (code,) = self.device.driver.cuEventQuery(int(self))
        if int(code) not in (0, _NOT_READY):
            raise self.device.error("cuEventQuery", code)
        return int(code) == 0

    def milliseconds_since(self, start: Event) -> float:
        """Return the time on the GPU between `start` and this event in milliseconds; the resolution is about 0.5 µs."""
        return float(self.device.call("cuEventElapsedTime", int(start), int(self)))


class Buffer(_Owned):
    """Memory of the GPU."""

    def __init__(self, device: Device, nbytes: int) -> None:
        # Empty tensors need an address too.
        super().__init__(device, "cuMemFree", device.call("cuMemAlloc", max(1, nbytes)))
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
        super().__init__(device, "cuMemFreeHost", device.call("cuMemHostAlloc", max(1, nbytes), _PORTABLE))
        raw = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(int(self)), np.uint8)
        self.array: Array = raw.view(kind).reshape(tuple(shape))

    @property
    def pointer(self) -> int:
        """The address."""
        return int(self)


class Graph(_Owned):
    """A CUDA graph: recorded operations that one call enqueues together."""

    def __init__(self, device: Device, handle: Any) -> None:
        super().__init__(device, "cuGraphExecDestroy", handle)

    def launch(self, stream: Stream | int) -> None:
        """Enqueue the graph on `stream`."""
        self.device.call("cuGraphLaunch", self.handle, int(stream))
