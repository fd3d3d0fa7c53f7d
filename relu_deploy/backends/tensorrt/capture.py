"""What an engine shows of itself: its layers, as the inspector lists them, and the tensors that it writes between them.

Only an engine that was built to be observed (`BuildOptions.observable`) shows its tensors. The library calls a listener as
each is written; what stands at the address is valid no longer than the call, so it is copied at once.
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

#: TensorRT's DataType → what `Captured` calls it, and its bytes; types of less than a byte are not among them
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
    """Return a session of the engine that is built as `shipping`'s was, but shows what it writes.

    Raises Unsupported when this version of the library cannot build one.
    """
    options = replace(BuildOptions.from_json(shipping.kept.facts["options"]), observable=True)
    engine = engine_for(name, bundle, options, device=shipping.gpu.index)
    return ObservedSession(TensorRtSession(name, bundle, engine, shipping.gpu, shipping.trt))


class ObservedSession:
    """A session whose runs can be looked into; see `verify.engine.ObservedEngine`."""

    def __init__(self, session: TensorRtSession) -> None:
        self._session = session

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        return self._session.run(feeds)

    def inspect(self) -> str:
        return self._session.inspect()

    def capture(self, feeds: Mapping[str, Any]) -> list[Captured]:
        """Return every tensor that one run on `feeds` showed, in the order in which it did. Raises Unsupported when it shows none."""
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
            f"{session.name} takes no listener for what {session.title} writes: {session.last_messages()}", "use another version"
        )
    context.unfused_tensors_debug_state = True
    bound.upload(feeds)
    bound.run()
    bound.download()
    if listener.error is not None:
        raise listener.error
    return list(listener.seen)


def _listener(trt: Any, gpu: Device) -> Any:
    """Return what the library tells of each tensor. `seen`: the copies. error: why one could not be made."""

    class Listener(trt.IDebugListener):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IDebugListener.__init__(self)
            self.seen: list[Captured] = []
            self.error: BaseException | None = None

        def process_debug_tensor(self, addr: Any, location: Any, type: Any, shape: Any, name: str, stream: Any) -> bool:  # noqa: A002  # called by these names
            # An exception must not travel through the library.
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
    """Return the address in a capsule, whatever it is called, or the number itself."""
    if isinstance(address, int):
        return address
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype, api.PyCapsule_GetPointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(api.PyCapsule_GetPointer(address, api.PyCapsule_GetName(address)) or 0)
