"""A session that runs an exported PyTorch program (source.pt2), eager or compiled.

Relus are tapped by interpreting the program node by node, which runs the same eager kernels. For float64 the program is
interpreted with every float32 weight, constant and cast widened; `verify --against torch` uses this as the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends.base import Consume, Executed, Options, Rounding, Seen
from relu_deploy.backends.torch.interpreter import Evaluation, interpreter
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.tensors import Feeds, TensorSpec, check_feeds

if TYPE_CHECKING:
    import torch

__all__ = ["TorchSession", "as_called", "to_numpy", "to_torch"]


class TorchSession:
    """A loaded PyTorch program. See `base.TruthSession`."""

    def __init__(
        self, bundle: Bundle, module: torch.fx.GraphModule, device: torch.device, compiled: bool, options: Options
    ) -> None:
        import torch

        self._bundle, self._device = bundle, device
        self._taps = {relu.torch_node: relu.output for relu in options.taps}
        self.inputs: tuple[TensorSpec, ...] = bundle.inputs
        self.outputs: tuple[TensorSpec, ...] = bundle.outputs
        self.facts: Mapping[str, Any] = {
            "device": str(device),
            "precision": (device.type == "cuda" and options.autocast) or "float32",
            "threads": torch.get_num_threads(),
            "tf32": device.type == "cuda" and options.tf32,
            **({"torch_mode": options.torch_mode} if compiled else {}),
        }
        mode = None if options.torch_mode == "default" else options.torch_mode
        pytree = getattr(module.graph._codegen, "pytree_info", None)
        self._in_spec = None if pytree is None else pytree.in_spec
        self._module: Any = torch.compile(module, dynamic=False, mode=mode) if compiled else module
        known = {node.name for node in module.graph.nodes}
        if missing := [node for node in self._taps if node not in known]:
            raise InputError(f"{bundle.source} has no node {missing[0]!r}", "export the model again")

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        return self._run(feeds, None)

    def evaluate(
        self,
        feeds: Mapping[str, Any],
        *,
        wide: bool = True,
        rounding: Rounding | None = None,
        seen: Seen | None = None,
        consume: Consume | None = None,
    ) -> Feeds:
        """Return every output and tap for `feeds`; see `base.TruthSession`."""
        results = self._run(feeds, Evaluation(wide, rounding, seen))
        if consume is None:
            return results
        for name in list(results):
            consume(name, results.pop(name))
        return {}

    def _run(self, feeds: Mapping[str, Any], way: Evaluation | None) -> Feeds:
        import torch
        from torch.utils._pytree import tree_leaves

        arrays = check_feeds(feeds, self.inputs, self._bundle.name)
        tensors = [to_torch(arrays[spec.name]).to(self._device) for spec in self.inputs]
        tapped: dict[str, Any] = {}
        with torch.inference_mode(), self._arithmetic():
            whole = way is None and not self._taps
            run = self._module if whole else interpreter(self._module, self._taps, way or Evaluation(), tapped).run
            # The interpreter takes flattened arguments; the module takes those of the exported program.
            arguments, keywords = as_called(self._in_spec, tensors) if whole else (tensors, {})
            results = run(*arguments, **keywords)
        results = [value for value in tree_leaves(results) if value is not None]
        named = zip((spec.name for spec in self.outputs), results, strict=True)
        return {name: to_numpy(value) for name, value in (*named, *tapped.items())}

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Return a context manager for runs of the program; subclasses set the arithmetic of their device."""
        return nullcontext()

    def executed(self) -> Sequence[Executed]:
        return ()

    def close(self) -> None:
        self._module = None


def as_called(in_spec: Any, tensors: list[torch.Tensor]) -> tuple[Any, Any]:
    """Return the positional and keyword arguments of a program whose flattened arguments are `tensors`."""
    from torch.utils._pytree import tree_unflatten

    return (tensors, {}) if in_spec is None else tree_unflatten(tensors, in_spec)


def to_torch(array: Any) -> torch.Tensor:
    """Return `array` as a tensor on the CPU with the same dtype, including bfloat16."""
    import torch

    # torch warns about read-only arrays, because the tensor shares their memory.
    array = array if array.flags.writeable and array.flags.c_contiguous else np.array(array)
    # torch does not accept NumPy's bfloat16, which has the same bits.
    return (
        torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if array.dtype.name == "bfloat16" else torch.from_numpy(array)
    )


def to_numpy(tensor: torch.Tensor) -> Any:
    """Return `tensor` as a NumPy array with the same dtype, including bfloat16; complex numbers as ONNX has them, in pairs."""
    import ml_dtypes
    import torch

    # A parameter may be an output itself.
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype == torch.bfloat16:
        return tensor.cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.cpu().numpy()
