"""An execution context of an engine with the buffers of its inputs and outputs at one set of shapes.

Outputs whose shapes depend on the data, such as the boxes that non-maximum suppression keeps, are allocated while the engine
runs; their buffers only grow. Such runs cannot be captured in a CUDA graph; others are captured after their first run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, Protocol

import numpy as np

from relu_deploy.backends.nvidia.cuda import Buffer, Device, Event, Graph, Pinned, Stream
from relu_deploy.backends.nvidia.dlpack import DeviceArray, check_feeds_anywhere
from relu_deploy.errors import ReluDeployError, Unsupported
from relu_deploy.tensors import Array, Feeds, TensorSpec

__all__ = ["GrowingOutput", "TensorRtIoBinding", "allocator"]

#: index of the size among the arguments of an allocator: name, current address, bytes, alignment, stream
SIZE = 2


class EngineSession(Protocol):
    """The part of a session that its bindings use. See `session.TensorRtSession`."""

    trt: Any
    name: str
    title: str
    gpu: Device
    stream: Stream
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dtypes: Mapping[str, str]
    observable: bool
    weight_budget: int | None

    @property
    def captures_itself(self) -> bool: ...

    def new_context(self) -> Any: ...

    def choose_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> Any: ...

    def is_on_host(self, name: str) -> bool: ...

    def last_messages(self) -> str: ...

    def note(self, line: str) -> None: ...

    def no_cuda_graph(self, reason: str) -> None: ...

    def keep_runtime_cache(self) -> None: ...


class GrowingOutput:
    """Memory of an output whose size is known only after a run.

    TensorRT requests it during a run (IOutputAllocator), where exceptions must not be raised.

    Attributes:
        buffer: The memory, None before the first run.
        shape: Shape of the output of the last run, None before the first run.
        error: Error of the last failed allocation.
    """

    def __init__(self, gpu: Device, dtype: str) -> None:
        self._gpu, self.dtype = gpu, np.dtype(dtype)
        self.buffer: Buffer | None = None
        self._pinned: Pinned | None = None
        self.shape: tuple[int, ...] | None = None
        self.error: ReluDeployError | None = None

    def reserve(self, size: int) -> int:
        """Return the address of at least `size` bytes, 0 if they cannot be allocated."""
        try:
            if self.buffer is None or self.buffer.nbytes < size:
                # Freeing waits for pending reads of the old buffer.
                self.close()
                self.buffer = self._gpu.buffer(max(size, 1))
        except ReluDeployError as error:
            self.error = error
            return 0
        return self.buffer.pointer

    @property
    def nbytes(self) -> int:
        """Size of the output of the last run in bytes."""
        return prod(self.shape or ()) * self.dtype.itemsize if self.shape is not None else 0

    def staging(self) -> Pinned:
        """Return page-locked memory that is large enough for the output of the last run."""
        assert self.buffer is not None
        if self._pinned is None or self._pinned.array.nbytes < self.nbytes:
            if self._pinned is not None:
                self._pinned.close()
            self._pinned = self._gpu.pinned((self.buffer.nbytes,), np.uint8)
        return self._pinned

    def close(self) -> None:
        """Free the memory."""
        for owned in (self.buffer, self._pinned):
            if owned is not None:
                owned.close()
        self.buffer = self._pinned = None


def allocator(trt: Any, output: GrowingOutput) -> Any:
    """Return a TensorRT IOutputAllocator for `output`."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        # The version of TensorRT determines which of the two is called.
        def reallocate_output(self, *arguments: Any) -> int:
            return output.reserve(int(arguments[SIZE]))

        def reallocate_output_async(self, *arguments: Any) -> int:
            return output.reserve(int(arguments[SIZE]))

        def notify_shape(self, tensor_name: str, shape: Any) -> None:  # noqa: ARG002  # called by position
            output.shape = tuple(int(size) for size in shape)

    return Allocator()


class _Fixed:
    """An input or output of known shape: page-locked memory, and a buffer on the GPU unless the engine uses host memory."""

    def __init__(self, gpu: Device, shape: tuple[int, ...], dtype: str, on_host: bool = False) -> None:
        self.pinned = gpu.pinned(shape, dtype)
        try:
            self.buffer = None if on_host else gpu.buffer(self.pinned.array.nbytes)
        except BaseException:
            self.pinned.close()
            raise

    @property
    def pointer(self) -> int:
        return self.pinned.pointer if self.buffer is None else self.buffer.pointer

    def close(self) -> None:
        self.pinned.close()
        if self.buffer is not None:
            self.buffer.close()


class TensorRtIoBinding:
    """One execution context with its inputs and outputs, at one set of shapes; see `base.IoBinding`."""

    def __init__(self, session: EngineSession, feeds: Mapping[str, Any]) -> None:
        """Create an execution context and allocate its buffers.

        Args:
            session: The session of the engine.
            feeds: Arrays by input name with the shapes to bind.

        Raises:
            InputError: If the feeds do not fit the engine.
            Unsupported: If the context cannot be created.
        """
        self._session, self._gpu = session, session.gpu
        self._gpu.make_current()
        arrays, _ = self._checked(feeds)
        self.shapes = {name: array.shape for name, array in arrays.items()}
        self._context = session.new_context()
        self._inputs: dict[str, _Fixed] = {}
        self._outputs: dict[str, _Fixed | GrowingOutput] = {}
        self._allocators: list[Any] = []
        self._graph: Graph | None = None
        self._ran = self._kept = False
        self._uploaded: Event = self._gpu.event()
        self._held: list[tuple[Event, list[DeviceArray]]] = []
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    @property
    def stream(self) -> int:
        return int(self._session.stream)

    @property
    def context(self) -> Any:
        """TensorRT's execution context."""
        return self._context

    def upload(self, feeds: Mapping[str, Any]) -> None:
        self._gpu.make_current()
        arrays, resident = self._checked(feeds)
        # An earlier copy may still read the page-locked memory.
        self._uploaded.synchronize()
        self._held = [(event, owners) for event, owners in self._held if not event.is_past()]
        for name, fixed in self._inputs.items():
            source = resident[name].pointer if name in resident else fixed.pinned.pointer
            if name not in resident:
                np.copyto(fixed.pinned.array, arrays[name])
            self._gpu.copy(fixed.pointer, source, fixed.pinned.array.nbytes, self.stream)
        self._uploaded.record(self.stream)
        if resident:
            event = self._gpu.event()
            event.record(self.stream)
            self._held.append((event, list(resident.values())))

    def run(self) -> None:
        self._gpu.make_current()
        if self._graph is not None:
            self._graph.launch(self.stream)
            return
        self._enqueue()
        if not self._ran:
            self._ran = True
            self._capture()

    def download(self) -> Feeds:
        self._gpu.make_current()
        waiting: list[tuple[str, Callable[[], Array]]] = []
        for name, output in self._outputs.items():
            waiting.append((name, self._fetch(output)))
        self._session.stream.synchronize()
        self._held.clear()
        if not self._kept:
            self._kept = True
            self._session.keep_runtime_cache()
        return {name: arrived() for name, arrived in waiting}

    def close(self) -> None:
        if self._context is None:
            return
        self._session.stream.drain()
        if self._graph is not None:
            self._graph.close()
        # The context holds addresses of the buffers, so it is released before them.
        self._graph = self._context = None
        for owned in (*self._inputs.values(), *self._outputs.values(), self._uploaded):
            owned.close()
        self._allocators.clear()
        self._held.clear()

    # ------------------------------------------------------------ steps

    def _checked(self, feeds: Mapping[str, Any]) -> tuple[Feeds, dict[str, DeviceArray]]:
        return check_feeds_anywhere(feeds, self._session, self.stream, getattr(self, "shapes", None), self._gpu)

    def _prepare(self) -> None:
        session, context = self._session, self._context
        profile = session.choose_profile(self.shapes)
        if context.active_optimization_profile != profile.index:
            self._require(
                self._called(context.set_optimization_profile_async, profile.index, self.stream), f"profile {profile.index}"
            )
            session.stream.synchronize()
        for name, shape in self.shapes.items():
            self._inputs[name] = _Fixed(self._gpu, shape, session.dtypes[name])
            self._require(context.set_input_shape(name, shape), f"shape {shape} of {name}")
            self._require(context.set_tensor_address(name, self._inputs[name].pointer), f"the address of {name}")
        unmet = self._called(context.infer_shapes)
        if unmet is False or unmet:
            which = ", ".join(unmet) if unmet else "its tensors"
            raise Unsupported(f"{session.name} does not know the shapes of {which} in {session.title}", "compile it again")
        for spec in session.outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            if min(shape, default=0) < 0:
                growing = GrowingOutput(self._gpu, spec.dtype)
                self._outputs[spec.name] = growing
                self._allocators.append(allocator(session.trt, growing))
                self._require(context.set_output_allocator(spec.name, self._allocators[-1]), f"an allocator for {spec.name}")
            else:
                fixed = _Fixed(self._gpu, shape, spec.dtype, session.is_on_host(spec.name))
                self._outputs[spec.name] = fixed
                self._require(context.set_tensor_address(spec.name, fixed.pointer), f"the address of {spec.name}")

    def _called(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a call of the bindings, False if it raises: some functions raise instead of returning False."""
        try:
            return function(*arguments)
        except (RuntimeError, ValueError, TypeError) as error:
            self._session.note(str(error))
            return False

    def _require(self, accepted: bool, value: str) -> None:
        if not accepted:
            session = self._session
            raise Unsupported(
                f"{session.name} does not accept {value} for {session.title}: {session.last_messages()}", "compile it again"
            )

    def _enqueue(self) -> None:
        if self._context.execute_async_v3(self.stream):
            return
        for output in self._outputs.values():
            if isinstance(output, GrowingOutput) and output.error is not None:
                raise output.error
        session = self._session
        raise Unsupported(
            f"{session.name} stopped while running {session.title}: {session.last_messages()}", "relu-deploy doctor"
        )

    def _capture(self) -> None:
        session = self._session
        if session.captures_itself or session.observable:
            return
        if self._allocators:
            session.no_cuda_graph("the shapes of outputs depend on the data")
            return
        if session.weight_budget is not None:
            session.no_cuda_graph("weights are streamed from host memory")
            return
        try:
            self._graph = self._gpu.capture(session.stream, self._enqueue)
        except ReluDeployError as error:
            session.no_cuda_graph(error.message)

    def _fetch(self, output: _Fixed | GrowingOutput) -> Callable[[], Array]:
        """Enqueue the copy of one output, and return a function that returns it after the stream has been synchronized."""
        if isinstance(output, _Fixed):
            if output.buffer is not None:
                self._gpu.copy(output.pinned.pointer, output.buffer.pointer, output.buffer.nbytes, self.stream)
            return output.pinned.array.copy
        shape, dtype, nbytes = output.shape, output.dtype, output.nbytes
        if shape is None or output.buffer is None:
            raise Unsupported(f"{self._session.title} has no outputs yet", "call run before download")
        staging = output.staging()
        self._gpu.copy(staging.pointer, output.buffer.pointer, nbytes, self.stream)
        return lambda: staging.array[:nbytes].copy().view(dtype).reshape(shape)
