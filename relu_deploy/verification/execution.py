"""The kernels that ran, compared with the precisions of the graph and with the execution provider of the backend."""

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

#: operators whose arithmetic a precision is chosen for; the others move numbers
COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "Add")
#: names of the fused kernels that runtimes replace them by
MERGED = ("FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv", "QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd")


@dataclass(frozen=True)
class ExecutionReport:
    """The kernels that ran.

    Attributes:
        kernels: (execution provider, precision of the result, count). Empty where the runtime does not report them.
        differences: A sentence for each way in which they differ from what was requested.
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


def compare_with_request(
    model: ir.Model, executed: Sequence[Executed], provider: str | None, autocast: str = ""
) -> ExecutionReport:
    """Return the kernels that ran, and how they differ from the precisions of the graph and from `provider`.

    Args:
        model: The graph.
        executed: The kernels.
        provider: The execution provider that was requested, None for any.
        autocast: The precision in which the runtime may compute float32 nodes, "" for none.
    """
    counted = Counter((kernel.provider, kernel.precision) for kernel in executed if kernel.precision)
    kernels = [(*key, count) for key, count in sorted(counted.items())]
    differences = []
    elsewhere = sorted({kernel.node for kernel in executed if provider and kernel.provider != provider})
    if elsewhere:
        kernel_word = "kernel" if len(elsewhere) == 1 else "kernels"
        differences.append(
            f"{len(elsewhere)} {kernel_word} ran on another execution provider than {provider}: {_first_names(elsewhere)}"
        )
    operators = {str(node.name): node.op_type for node in model.graph}
    computing = {name: precision for name, precision in node_precisions(model).items() if operators[name] in COMPUTING}
    for precision in ("float16", "bfloat16", "float8", "int8"):
        nodes = {name for name, requested in computing.items() if requested == precision}
        # A kernel that stands for several nodes keeps the name of one of them.
        wider = [kernel for kernel in executed if kernel.node in nodes and kernel.precision in ("float32", "float64")]
        lost = sorted({kernel.node for kernel in wider if not (precision == "int8" and kernel.operator in MERGED)})
        if lost:
            differences.append(f"{len(lost)} of {len(nodes)} {precision} nodes ran in {wider[0].precision}: {_first_names(lost)}")
    # A float32 node that ran in half precision. Not int8: a kernel may include the quantization that follows it.
    full = {name for name, requested in computing.items() if requested == "float32"}
    for precision in {"float16", "bfloat16", "float8"} - {autocast}:
        narrowed = sorted({kernel.node for kernel in executed if kernel.node in full and kernel.precision == precision})
        if narrowed:
            differences.append(f"{len(narrowed)} of {len(full)} float32 nodes ran in {precision}: {_first_names(narrowed)}")
    return ExecutionReport(kernels, differences)


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
