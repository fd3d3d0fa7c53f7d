"""Captures the tensors that an engine writes while it runs, for the audit of engines.

The engine must be built with `BuildOptions.observable`. The library calls a listener when a tensor has been written; the memory
is valid only during the call, so it is copied immediately.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from relu_deploy.backends.base import Captured
from relu_deploy.backends.nvidia.cuda import Device
from relu_deploy.backends.tensorrt.buffers import TensorRtIoBinding
from relu_deploy.backends.tensorrt.building.engine_cache import engine_for
from relu_deploy.backends.tensorrt.formats import formats_by_tensor, stored_shape
from relu_deploy.backends.tensorrt.options import BuildOptions
from relu_deploy.backends.tensorrt.session import TensorRtSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import Unsupported
from relu_deploy.tensors import Feeds

__all__ = ["ObservedSession", "observed_twin"]

#: TensorRT's DataType → dtype of `Captured` and size in bytes; types of less than a byte are not supported
TYPES = {
    "FLOAT": ("float32", 4),
    "HALF": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "FP8": ("float8", 1),
    "INT8": ("int8", 1),
    "UINT8": ("uint8", 1),
    "INT32": ("int32", 4),
    "INT64": ("int64", 8),
    "BOOL": ("bool", 1),
}


def observed_twin(name: str, bundle: Bundle, shipping: TensorRtSession) -> ObservedSession:
    """Return a session of an observable engine with the same build options as that of `shipping`.

    Args:
        name: Name of the backend.
        bundle: The model.
        shipping: A session of the engine to audit.

    Raises:
        Unsupported: If this version of the library cannot build one.
    """
    options = replace(BuildOptions.from_json(shipping.kept.facts["options"]), observable=True)
    engine = engine_for(name, bundle, options, device=shipping.gpu.index)
    return ObservedSession(TensorRtSession(name, bundle, engine, shipping.gpu, shipping.trt))


class ObservedSession:
    """A session of an observable engine. See `verification.engine`."""

    def __init__(self, session: TensorRtSession) -> None:
        self._session = session

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        """Return the outputs for `feeds`; see `base.Session`."""
        return self._session.run(feeds)

    def inspect(self) -> str:
        """Return the inspector's JSON; see `TensorRtSession.inspect`."""
        return self._session.inspect()

    def capture(self, feeds: Mapping[str, Any]) -> list[Captured]:
        """Return the tensors that one run on `feeds` writes, in that order.

        Raises:
            InputError: If the feeds do not fit the engine.
            Unsupported: If the engine is not observable or a tensor cannot be copied.
        """
        session = self._session
        bound = session.bind(feeds)
        try:
            return _captured(session, bound, feeds)
        finally:
            bound.close()

    def close(self) -> None:
        self._session.close()


def _captured(session: TensorRtSession, bound: TensorRtIoBinding, feeds: Mapping[str, Any]) -> list[Captured]:
    context = bound.context
    listener = _listener(session.trt, session.gpu, formats_by_tensor(session.inspect(context)))
    if not context.set_debug_listener(listener):
        raise Unsupported(
            f"{session.name} does not accept a debug listener for {session.title}: {session.last_messages()}",
            "use another version",
        )
    context.unfused_tensors_debug_state = True
    bound.upload(feeds)
    bound.run()
    bound.download()
    if listener.error is not None:
        raise listener.error
    return list(listener.seen)


def _listener(trt: Any, gpu: Device, formats: Mapping[str, Iterable[str]] = MappingProxyType({})) -> Any:
    """Return a debug listener. Its `seen` has copies of the tensors, its `error` the first exception.

    Args:
        trt: The library's module.
        gpu: The GPU of the engine.
        formats: The formats in which the engine stores each tensor, by name.
    """

    class Listener(trt.IDebugListener):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IDebugListener.__init__(self)
            self.seen: list[Captured] = []
            self.error: BaseException | None = None

        def process_debug_tensor(self, addr: Any, location: Any, type: Any, shape: Any, name: str, stream: Any) -> bool:  # noqa: A002  # called by these names
            # An exception must not propagate into the library.
            try:
                if type.name in TYPES:
                    tensor = _Tensor(name, tuple(shape), *TYPES[type.name], formats.get(name, ()))
                    self.seen.append(_copied(gpu, addr, location.name == "HOST", tensor, int(stream)))
            except BaseException as error:
                self.error = self.error or error
            return self.error is None

    return Listener()


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    formats: Iterable[str] = ()

    @property
    def nbytes(self) -> int:
        """Size of its buffer: vectorized formats are padded to whole vectors of channels.

        Where the name stands for tensors in several formats, the smallest, so that nothing behind a buffer is read.
        """
        stored = [found for layout in self.formats if (found := stored_shape(self.shape, layout)) is not None]
        return min(map(prod, stored), default=prod(self.shape)) * self.itemsize


def _copied(gpu: Device, address: Any, on_host: bool, tensor: _Tensor, stream: int) -> Captured:
    pointer, nbytes = _pointer(address), tensor.nbytes
    if on_host or not nbytes:
        return Captured(tensor.name, ctypes.string_at(pointer, nbytes) if nbytes else b"", tensor.dtype, tensor.shape)
    with gpu.pinned((nbytes,), np.uint8) as staging:
        gpu.copy(staging.pointer, pointer, nbytes, stream)
        gpu.synchronize(stream)
        return Captured(tensor.name, staging.array.tobytes(), tensor.dtype, tensor.shape)


def _pointer(address: Any) -> int:
    """Return the address as an integer, from a capsule of any name or an integer."""
    if isinstance(address, int):
        return address
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype, api.PyCapsule_GetPointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(api.PyCapsule_GetPointer(address, api.PyCapsule_GetName(address)) or 0)
