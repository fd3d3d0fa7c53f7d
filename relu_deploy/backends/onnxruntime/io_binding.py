"""Binds the inputs and outputs of an ONNX Runtime session to buffers on the GPU (ONNX Runtime's IO binding).

Outputs whose shapes follow from those of the inputs are bound to preallocated buffers. Others, such as the boxes that
non-maximum suppression keeps, are allocated by ONNX Runtime in each run, which then waits for the GPU to know their sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, Protocol

import numpy as np

from relu_deploy.backends.nvidia.cuda import Buffer, Event, Pinned, Stream
from relu_deploy.backends.nvidia.dlpack import DeviceArray, check_feeds_anywhere
from relu_deploy.backends.onnxruntime.providers import Profile, require_in_profile
from relu_deploy.errors import Unsupported
from relu_deploy.tensors import Array, Feeds, TensorSpec

__all__ = ["OnnxRuntimeIoBinding"]

#: TensorProto.DataType by NumPy's name; io_binding needs the number, because NumPy itself has no bfloat16 and float8
ELEMENTS = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
    "bfloat16": 16,
    "float8_e4m3fn": 17,
}


class RuntimeSession(Protocol):
    """The part of a session that a binding needs."""

    title: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def runtime(self) -> Any:
        """The onnxruntime.InferenceSession."""
        ...


class _Resident:
    """A tensor of known shape: a buffer on the GPU and page-locked memory for copies."""

    def __init__(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, dtype
        self.pinned: Pinned = stream.device.pinned(shape, dtype)
        try:
            self.buffer: Buffer = stream.device.buffer(self.pinned.array.nbytes)
        except BaseException:
            self.pinned.close()
            raise

    def close(self) -> None:
        self.buffer.close()
        self.pinned.close()


class OnnxRuntimeIoBinding:
    """Inputs and outputs of one session at one set of shapes; see `base.IoBinding`."""

    def __init__(
        self,
        session: RuntimeSession,
        stream: Stream,
        feeds: Mapping[str, Any],
        place: str = "cuda",
        profile: Profile | None = None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Allocate and bind the buffers.

        Args:
            session: The session to bind.
            stream: The stream that the session runs on.
            feeds: Arrays by input name with the shapes to bind.
            place: ONNX Runtime's name of the memory that holds the buffers.
            profile: The shapes that the engine was compiled for, None if it accepts any.
            lock: Held while a run is enqueued.

        Raises:
            InputError: If the feeds do not fit the session's inputs or the profile.
        """
        import onnxruntime

        self._session, self._stream, self._place = session, stream, place
        self._runtime, self._gpu = session.runtime, stream.device
        self._lock = lock or nullcontext()
        self._gpu.make_current()
        arrays, _ = self._checked(feeds)
        self.shapes = {name: array.shape for name, array in arrays.items()}
        require_in_profile(profile, self.shapes, session.title)
        self._inputs: dict[str, _Resident] = {}
        self._outputs: dict[str, _Resident | None] = {}
        self._staging: dict[str, Pinned] = {}
        self._held: list[tuple[Event, list[DeviceArray]]] = []
        self._uploaded = self._gpu.event()
        # The caller synchronizes the stream; without this ONNX Runtime would wait at the end of each run.
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._binding: Any = self._runtime.io_binding()
        #: outputs in the order in which they were bound, which is that of `get_outputs`, not that of the session
        self._bound_order: list[str] = []
        self._ran = False
        try:
            self._bind()
        except BaseException:
            self.close()
            raise

    @property
    def stream(self) -> int:
        return int(self._stream)

    def upload(self, feeds: Mapping[str, Any]) -> None:
        self._gpu.make_current()
        arrays, resident = self._checked(feeds)
        # An earlier copy may still read the page-locked memory.
        self._uploaded.synchronize()
        self._held = [(event, owners) for event, owners in self._held if not event.is_past()]
        for name, tensor in self._inputs.items():
            if name in resident:
                self._gpu.copy(tensor.buffer.pointer, resident[name].pointer, tensor.buffer.nbytes, self._stream)
                continue
            np.copyto(tensor.pinned.array, arrays[name])
            self._gpu.copy(tensor.buffer.pointer, tensor.pinned.pointer, tensor.buffer.nbytes, self._stream)
        self._uploaded.record(self._stream)
        if resident:
            event = self._gpu.event()
            event.record(self._stream)
            self._held.append((event, list(resident.values())))

    def run(self) -> None:
        self._gpu.make_current()
        for name, output in self._outputs.items():
            if output is None:
                # The allocation of the last run has the size of the last run.
                self._bind_output(name, self._place, self._gpu.index)
        try:
            with self._lock:
                self._runtime.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # the runtime's exception types share no base class
            line = str(error).strip().splitlines()[0]
            raise Unsupported(
                f"ONNX Runtime stopped while running {self._session.title}: {line}", "relu-deploy doctor"
            ) from error
        self._ran = True

    def download(self) -> Feeds:
        if not self._ran:
            raise Unsupported(f"{self._session.title} has no outputs yet", "call run before download")
        self._gpu.make_current()
        allocated = self._allocated()
        for name, output in self._outputs.items():
            if output is not None:
                self._gpu.copy(output.pinned.pointer, output.buffer.pointer, output.buffer.nbytes, self._stream)
            else:
                pointer, shape, dtype = allocated[name]
                staging = self._staged(name, prod(shape) * np.dtype(dtype).itemsize)
                self._gpu.copy(staging.pointer, pointer, prod(shape) * np.dtype(dtype).itemsize, self._stream)
        self._stream.synchronize()
        self._held.clear()
        return {name: self._arrived(name, output, allocated) for name, output in self._outputs.items()}

    def close(self) -> None:
        if self._binding is None:
            return
        self._stream.drain()
        # The binding holds addresses of the buffers, so it is released before them.
        self._binding = self._runtime = None
        for owned in (*self._inputs.values(), *self._outputs.values(), *self._staging.values(), self._uploaded):
            if owned is not None:
                owned.close()
        self._held.clear()

    # ------------------------------------------------------------ steps

    def _checked(self, feeds: Mapping[str, Any]) -> tuple[Feeds, dict[str, DeviceArray]]:
        return check_feeds_anywhere(feeds, self._session, self.stream, getattr(self, "shapes", None), self._gpu)

    def _bind(self) -> None:
        sizes: dict[str, int] = {}
        for spec in self._session.inputs:
            shape = self.shapes[spec.name]
            sizes.update((size, found) for size, found in zip(spec.shape, shape, strict=True) if isinstance(size, str))
            tensor = self._inputs[spec.name] = _Resident(self._stream, shape, spec.dtype)
            self._binding.bind_input(spec.name, *self._where(tensor))
        known = {spec.name: spec for spec in self._session.outputs}
        for value in self._runtime.get_outputs():
            # Tapped tensors are outputs of the session, but not of the model.
            found = _shape_of(known[value.name], sizes) if value.name in known else None
            if found is None:
                self._outputs[value.name] = None
                continue
            tensor = _Resident(self._stream, found, known[value.name].dtype)
            self._outputs[value.name] = tensor
            self._bind_output(value.name, *self._where(tensor))

    def _bind_output(self, name: str, *where: Any) -> None:
        # An output that is bound again keeps its position.
        if name not in self._bound_order:
            self._bound_order.append(name)
        self._binding.bind_output(name, *where)

    def _where(self, tensor: _Resident) -> tuple[str, int, int, tuple[int, ...], int]:
        return self._place, self._gpu.index, ELEMENTS[tensor.dtype], tensor.shape, tensor.buffer.pointer

    def _allocated(self) -> dict[str, tuple[int, tuple[int, ...], str]]:
        """Return the address, shape and dtype of each output that ONNX Runtime allocated."""
        dtypes = {number: name for name, number in ELEMENTS.items()}
        pairs = zip(self._bound_order, self._binding.get_outputs(), strict=True)
        return {
            name: (int(found.data_ptr()), tuple(found.shape()), dtypes[found.element_type()])
            for name, found in pairs
            if self._outputs[name] is None
        }

    def _staged(self, name: str, nbytes: int) -> Pinned:
        """Return page-locked memory for at least `nbytes` of output `name`."""
        staging = self._staging.get(name)
        if staging is None or staging.array.nbytes < nbytes:
            if staging is not None:
                staging.close()
            staging = self._staging[name] = self._gpu.pinned((max(1, nbytes),), np.uint8)
        return staging

    def _arrived(self, name: str, output: _Resident | None, allocated: Mapping[str, tuple[int, tuple[int, ...], str]]) -> Array:
        if output is not None:
            return output.pinned.array.copy()
        _, shape, dtype = allocated[name]
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        return self._staging[name].array[:nbytes].copy().view(dtype).reshape(shape)


def _shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """Return the shape of an output whose varying dimensions are all dimensions of inputs, else None."""
    if any(isinstance(size, str) and size not in sizes for size in spec.shape):
        return None
    return tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)
