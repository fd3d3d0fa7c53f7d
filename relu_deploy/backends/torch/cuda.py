"""A session of PyTorch on an NVIDIA GPU, with explicit TF32 settings and buffers on the GPU.

PyTorch computes float32 convolutions in TF32 by default, with 10 bits of mantissa instead of 23; here TF32 is off unless it is
requested. In eager mode each kernel is launched from Python; torch.compile replays CUDA graphs in the modes reduce-overhead and
max-autotune.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from relu_deploy.backends.base import Options
from relu_deploy.backends.nvidia.dlpack import is_on_gpu
from relu_deploy.backends.torch.session import TorchSession, as_called, to_numpy, to_torch
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.tensors import Array, Feeds, check_feeds

if TYPE_CHECKING:
    import torch

__all__ = ["TorchCudaSession", "TorchIoBinding", "float32_arithmetic"]

#: modes of torch.compile that replay CUDA graphs
GRAPHS = ("reduce-overhead", "max-autotune")


#: PyTorch's TF32 settings apply to the whole process, so only one thread at a time may change them
_switches = threading.RLock()


@contextmanager
def float32_arithmetic(tf32: bool) -> Iterator[None]:
    """Enable or disable TF32 in convolutions and matrix products inside the block.

    A lock admits one thread at a time. Kernels are chosen when they are enqueued, so the block need not wait for the GPU.
    """
    import torch

    with _switches:
        kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


class TorchCudaSession(TorchSession):
    """An exported PyTorch program on a GPU. See `base.DeviceSession`."""

    def __init__(
        self, bundle: Bundle, module: torch.fx.GraphModule, device: torch.device, compiled: bool, options: Options
    ) -> None:
        import torch

        super().__init__(bundle, module, device, compiled, options)
        self.device, self._options = device, options
        self.replays_graphs = compiled and options.torch_mode in GRAPHS
        self.facts = {
            **self.facts,
            "device": torch.cuda.get_device_name(device),
            "cuda_graph": "by torch.compile" if self.replays_graphs else "none: each kernel is launched by the host",
        }
        self.stream = torch.cuda.Stream(device)

    def bind(self, feeds: Mapping[str, Any]) -> TorchIoBinding:
        """Return buffers on the GPU for inputs of the shapes in `feeds`; see `base.DeviceSession`."""
        return TorchIoBinding(self, feeds)

    def call(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the outputs for `tensors`, enqueued on the current stream."""
        import torch
        from torch.utils._pytree import tree_leaves

        with torch.inference_mode(), self._arithmetic():
            if self.replays_graphs:
                # The outputs of the previous run are in the graph's memory, which this run reuses.
                torch.compiler.cudagraph_mark_step_begin()
            arguments, keywords = as_called(self._in_spec, tensors)
            results = self._module(*arguments, **keywords)
        return [value for value in tree_leaves(results) if value is not None]

    def title(self) -> str:
        """Return the title of the model, for errors."""
        return self._bundle.title

    def _arithmetic(self) -> AbstractContextManager[Any]:
        import torch

        stack = ExitStack()
        stack.enter_context(torch.cuda.device(self.device))
        stack.enter_context(float32_arithmetic(self._options.tf32))
        if self._options.autocast:
            stack.enter_context(torch.autocast("cuda", getattr(torch, self._options.autocast)))
        return stack


def _tensor_of(array: Any) -> torch.Tensor:
    """Return an array on a GPU as a tensor. Tensors are returned as they are: DLPack refuses those of another GPU."""
    import torch

    return array if isinstance(array, torch.Tensor) else torch.from_dlpack(array)


class TorchIoBinding:
    """Inputs and outputs of one session at one set of shapes; see `base.IoBinding`."""

    def __init__(self, session: TorchCudaSession, feeds: Mapping[str, Any]) -> None:
        import torch

        self._session = session
        arrays = self._checked(feeds)
        with torch.cuda.device(session.device):
            self._pinned = {name: to_torch(array).pin_memory() for name, array in arrays.items()}
            self._there = {name: pinned.to(session.device) for name, pinned in self._pinned.items()}
            torch.cuda.synchronize()
        self._uploaded = torch.cuda.Event()
        self._held: list[tuple[torch.cuda.Event, Any]] = []
        self._results: list[torch.Tensor] = []

    @property
    def stream(self) -> int:
        return int(self._session.stream.cuda_stream)

    def upload(self, feeds: Mapping[str, Any]) -> None:
        import torch

        arrays = self._checked(feeds)
        # An earlier copy may still read the page-locked memory.
        self._uploaded.synchronize()
        self._held = [(event, tensors) for event, tensors in self._held if not event.query()]
        resident = []
        sources = {name: _tensor_of(array) for name, array in feeds.items() if is_on_gpu(array)}
        for source in sources.values():
            # Pending writes to the tensor were enqueued on the caller's current stream of that GPU.
            self._session.stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(self._session.stream):
            for name, there in self._there.items():
                if name in sources:
                    source = sources[name]
                    resident.append(source)
                else:
                    source = self._pinned[name].copy_(to_torch(arrays[name]))
                there.copy_(source, non_blocking=True)
            self._uploaded.record()
            if resident:
                event = torch.cuda.Event()
                event.record()
                self._held.append((event, resident))

    def run(self) -> None:
        import torch

        with torch.cuda.stream(self._session.stream):
            self._results = self._session.call([self._there[spec.name] for spec in self._session.inputs])

    def download(self) -> Feeds:
        import torch

        with torch.cuda.stream(self._session.stream):
            arrived = []
            for result in self._results:
                pinned = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                arrived.append(pinned.copy_(result, non_blocking=True))
        self._session.stream.synchronize()
        self._held.clear()
        return {spec.name: to_numpy(value).copy() for spec, value in zip(self._session.outputs, arrived, strict=True)}

    def close(self) -> None:
        self._session.stream.synchronize()
        self._results = []
        self._held.clear()
        self._there, self._pinned = {}, {}

    def _checked(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Return the feeds as arrays, with arrays of zeros of the same shape and dtype for those on the GPU."""
        import numpy as np

        outlines = {}
        for name, array in feeds.items():
            if is_on_gpu(array):
                tensor = _tensor_of(array)
                kind = str(tensor.dtype).removeprefix("torch.")
                outlines[name] = np.broadcast_to(np.zeros((), np.dtype(kind)), tuple(tensor.shape))
        arrays = check_feeds({**feeds, **outlines}, self._session.inputs, self._session.title())
        for name, there in getattr(self, "_there", {}).items():
            if tuple(there.shape) != arrays[name].shape:
                raise InputError(
                    f"{self._session.title()}: input {name!r} has shape {arrays[name].shape} and was bound for {tuple(there.shape)}",
                    "bind again for the new shape",
                )
        return arrays
