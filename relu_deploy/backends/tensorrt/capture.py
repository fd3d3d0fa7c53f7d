"""Captures the tensors that an engine writes while it runs, for the audit of engines.

The engine must be built with `BuildOptions.observable`. The library calls a listener when a tensor has been written; the memory
is valid only during the call, so it is copied immediately.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from relu_deploy.backends.base import Captured
from relu_deploy.backends.nvidia.cuda import Device
from relu_deploy.backends.tensorrt.buffers import TensorRtIoBinding
from relu_deploy.backends.tensorrt.engine_cache import engine_for
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
    listener = _listener(session.trt, session.gpu)
    context = bound.context
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


def _listener(trt: Any, gpu: Device) -> Any:
    """Return a debug listener. Its `seen` has copies of the tensors, its `error` the first exception."""

    class Listener(trt.IDebugListener):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IDebugListener.__init__(self)
            self.seen: list[Captured] = []
            self.error: BaseException | None = None

        def process_debug_tensor(self, addr: Any, location: Any, type: Any, shape: Any, name: str, stream: Any) -> bool:  # noqa: A002  # called by these names
            # An exception must not propagate into the library.
            try:
                if type.name in TYPES:
                    self.seen.append(_copied(gpu, addr, location.name == "HOST", type.name, tuple(shape), name, int(stream)))
            except BaseException as error:
                self.error = self.error or error
            return self.error is None

    return Listener()


def _copied(gpu: Device, address: Any, on_host: bool, kind: str, shape: tuple[int, ...], name: str, stream: int) -> Captured:
    dtype, itemsize = TYPES[kind]
    nbytes = prod(shape) * itemsize
    pointer = _pointer(address)
    if on_host or not nbytes:
        return Captured(name, ctypes.string_at(pointer, nbytes) if nbytes else b"", dtype, shape)
    with gpu.pinned((nbytes,), np.uint8) as staging:
        gpu.copy(staging.pointer, pointer, nbytes, stream)
        gpu.synchronize(stream)
        return Captured(name, staging.array.tobytes(), dtype, shape)


def _pointer(address: Any) -> int:
    """Return the address as an integer, from a capsule of any name or an integer."""
    if isinstance(address, int):
        return address
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype, api.PyCapsule_GetPointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(api.PyCapsule_GetPointer(address, api.PyCapsule_GetName(address)) or 0)
