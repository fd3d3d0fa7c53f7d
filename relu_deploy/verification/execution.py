"""What was asked for against what the runtime says it ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relu_deploy.backends import Executed
from relu_deploy.graph import node_precisions

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["ExecutionReport", "compare_with_request"]

#: nodes whose arithmetic a precision is chosen for; the rest moves and labels numbers
COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "Add")
#: how runtimes call the merged kernels that stand for them
MERGED = ("FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv", "QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd")


@dataclass(frozen=True)
class ExecutionReport:
    """The kernels that ran, by execution provider and precision, and where they are not what was asked for.

    kernels: (provider, precision of the result, how many). Empty where the runtime does not tell.
    """

    kernels: Sequence[tuple[str, str, int]] = ()
    differences: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "as_requested": not self.differences if self.kernels else None,
            "kernels": [
                {"provider": provider, "precision": precision, "count": count} for provider, precision, count in self.kernels
            ],
            "differences": list(self.differences),
        }


def compare_with_request(model: ir.Model, executed: Sequence[Executed], provider: str | None) -> ExecutionReport:
    """Return what ran, with a sentence for each way in which it differs from the graph's precisions and from `provider`."""
    counted = Counter((kernel.provider, kernel.precision) for kernel in executed if kernel.precision)
    kernels = [(*key, count) for key, count in sorted(counted.items())]
    differences = []
    elsewhere = sorted({kernel.node for kernel in executed if provider and kernel.provider != provider})
    if elsewhere:
        differences.append(f"{len(elsewhere)} kernels ran on another execution provider than {provider}: {_few(elsewhere)}")
    asked = node_precisions(model)
    operators = {str(node.name): node.op_type for node in model.graph}
    wanted = Counter(precision for name, precision in asked.items() if operators[name] in COMPUTING)
    for precision in ("float16", "bfloat16", "float8", "int8"):
        mine = {name for name, wish in asked.items() if wish == precision and operators[name] in COMPUTING}
        # A kernel that stands for several nodes keeps the name of one of them.
        wider = [kernel for kernel in executed if kernel.node in mine and kernel.precision in ("float32", "float64")]
        lost = sorted({kernel.node for kernel in wider if not (precision == "int8" and kernel.operator in MERGED)})
        if lost:
            differences.append(f"{len(lost)} of {wanted[precision]} {precision} nodes ran in {wider[0].precision}: {_few(lost)}")
    # A float32 node that ran in half precision: int8 is left out, for a kernel may take the quantization behind it along.
    for precision in ("float16", "bfloat16", "float8"):
        whole = {name for name, wish in asked.items() if wish == "float32" and operators[name] in COMPUTING}
        narrowed = sorted({kernel.node for kernel in executed if kernel.node in whole and kernel.precision == precision})
        if narrowed:
            differences.append(f"{len(narrowed)} of {wanted['float32']} float32 nodes ran in {precision}: {_few(narrowed)}")
    return ExecutionReport(kernels, differences)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
