"""Interprets a PyTorch program node by node, to tap tensors, compute in float64 or add rounding errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends.base import Rounding, Seen

if TYPE_CHECKING:
    import torch

__all__ = ["Evaluation", "interpreter"]


@dataclass(frozen=True)
class Evaluation:
    """Options of the interpreter. See `TruthSession.evaluate`."""

    wide: bool = False
    rounding: Rounding | None = None
    seen: Seen | None = None


#: aten operators whose operands int8 graphs quantize → the corresponding ONNX operator
_ONNX_NAME = {"conv": "Conv", "linear": "Gemm", "addmm": "Gemm", "matmul": "MatMul", "mm": "MatMul", "add": "Add"}


def interpreter(module: torch.fx.GraphModule, taps: Mapping[str, str], way: Evaluation, tapped: dict[str, Any]) -> Any:
    """Return a torch.fx.Interpreter of `module`.

    Args:
        module: The program.
        taps: Names of nodes to tap → names of their tensors.
        way: Options of the interpreter.
        tapped: Receives a copy of each tapped value, by the name of its tensor.
    """
    import torch
    from torch.utils._pytree import tree_map

    rounding = way.rounding
    floats = frozenset([torch.float32, torch.float16, torch.bfloat16])

    def widened(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.double() if value.dtype in floats else value
        return torch.float64 if isinstance(value, torch.dtype) and value in floats else value

    def rounded(value: Any) -> Any:
        return (
            torch.from_numpy(np.asarray(rounding.result(value.detach().numpy())))
            if rounding and isinstance(value, torch.Tensor) and not value.is_complex()
            else value
        )

    def with_limits(n: torch.fx.Node, args: Any) -> Any:
        """Return the operands of `n` with the limits of its own type where they are the default."""
        kind = getattr(n.meta.get("val"), "dtype", None)
        if getattr(n.target, "__name__", "").split(".")[0].rstrip("_") != "nan_to_num" or kind not in floats:
            return args
        limits = torch.finfo(kind)
        given = (*args, None, None, None)[:4]
        return tuple(
            own if own is not None else limit for own, limit in zip(given, (None, 0.0, limits.max, limits.min), strict=True)
        )

    class Stepping(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, n: torch.fx.Node) -> Any:
            if way.wide and n.target is torch.ops.aten._assert_tensor_metadata.default:
                # The types that the program was traced with are not those of a wider evaluation.
                return None
            if n.op == "call_function" and way.wide:
                args, kwargs = tree_map(widened, self.fetch_args_kwargs_from_env(n))
                value = n.target(*with_limits(n, self.stored(n, args)), **kwargs)
            else:
                value = super().run_node(n)
            if way.wide:
                value = tree_map(rounded, tree_map(widened, value))
            if way.seen and n.op == "call_function" and isinstance(value, torch.Tensor):
                # A copy: in-place operators may overwrite the value later in the program.
                shown = value.clone().numpy()
                returned = way.seen(n.name, shown)
                value = value if returned is shown else torch.from_numpy(np.array(returned))
            if n.name in taps:
                tapped[taps[n.name]] = value.clone()
            return value

        def stored(self, n: torch.fx.Node, args: Any) -> Any:
            """Return the operands of `n` as the precision stores them."""
            family = re.sub(r"(\d+d)?_?$", "", getattr(n.target, "__name__", "").split(".")[0]) if rounding else ""
            operator = _ONNX_NAME.get(family, "")
            if rounding is None or not operator or not all(isinstance(value, torch.Tensor) for value in args[:2]):
                return args
            # addmm takes its bias first.
            first = 1 if family == "addmm" else 0
            pair = [value.numpy() for value in args[first : first + 2]]
            weights = [getattr(node, "op", "") == "get_attr" for node in n.args[first : first + 2]]
            noisy = [torch.from_numpy(value) for value in rounding.operands(operator, pair, weights)]
            return (*args[:first], *noisy, *args[first + 2 :])

    return Stepping(module)
