"""What a graph is compared with, and which of its Relus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from relu_deploy.backends.wheels import is_installed
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, UsageError
from relu_deploy.graph import Relu, clamped_tensors, find_relus
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.model import read_model

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["choose_against", "relus_to_compare", "why_not_compared"]

CONVERSIONS = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})


def choose_against(bundle: Bundle, against: str | None) -> str:
    """Return what to compare `bundle` with.

    That is `against` if it is given, and for a variant the float32 graph that it was made of. A model is compared with its own
    graph in float64. Only where that graph has not passed the comparison of `export` with its PyTorch program is the program
    itself the truth, if there is one and torch is installed. A program that cannot be loaded safely is left out where the
    comparison is unknown; one that the graph differs from is not.
    """
    if against is not None:
        return against
    if bundle.variant:
        return str(bundle.file(bundle.manifest["variants"][bundle.variant]["checked_against"]))
    verdict = bundle.program_verdict
    if bundle.source is None or (verdict is not None and verdict["passed"]) or not is_installed("torch"):
        return "reference"
    return "reference" if verdict is None and _danger_of_program(bundle) else "torch"


def why_not_compared(bundle: Bundle, against: str) -> str:
    """Return why it is unknown whether the graph agrees with its PyTorch program; "" if it is known, or there is no program.

    Args:
        bundle: The graph under test.
        against: What it was compared with.
    """
    if bundle.source is None or against == "torch" or bundle.program_verdict is not None:
        return ""
    if not is_installed("torch"):
        return "torch is not installed"
    return _danger_of_program(bundle) or "verify --against torch compares them"


def _danger_of_program(bundle: Bundle) -> str:
    """Return why the program of `bundle` must not be loaded, "" if it may be."""
    from relu_deploy.backends.torch.program_file import check_program_file

    if bundle.source is None or bundle.trusted:
        return ""
    try:
        check_program_file(bundle.source)
    except InputError as error:
        return error.message
    return ""


def relus_to_compare(model: ir.Model, against: str) -> list[Relu]:
    """Return the Relus of `model` in its order, with the tensors that a Relu makes in the other graph.

    The second kind is what a rewrite merged (FusedConv, a quantization whose zero point is the Relu), what converts the type of
    a Relu back, which then counts once, or a fault replaced (LeakyRelu).
    """
    ours = [relu for relu in find_relus(model) if relu.observable]
    if against in ("torch", "reference"):
        return ours
    made = {str(value.name): (place, node) for place, (node, _) in enumerate(iterate_nodes(model)) for value in node.outputs}
    known = {relu.output for relu in ours}
    theirs = [relu for relu in find_relus(read_model(_graph_file(against))) if relu.observable]
    replaced = [relu for relu in theirs if relu.output in made and relu.output not in known]
    shipped_as = {source for relu in replaced if (source := _converted_from(made[relu.output][1]))}
    ours = [relu for relu in ours if relu.output not in shipped_as]
    clamped = clamped_tensors(model)
    stand_ins = [
        replace(
            relu,
            node=str(_computing(made[relu.output][1]).name),
            output=clamped.get(relu.output, relu.output),
            torch_node="",
            fused_with=(),
        )
        for relu in replaced
    ]
    # A Relu that nothing but a quantization reads ships merged into it: it is read where the numbers are dequantized.
    ours = [replace(relu, output=clamped.get(relu.output, relu.output)) for relu in ours]
    ordered = sorted([*ours, *stand_ins], key=lambda relu: made[relu.output][0])
    return [replace(relu, index=index) for index, relu in enumerate(ordered)]


def _computing(node: ir.Node) -> ir.Node:
    """Return the node whose quantized numbers `node` makes floats of, `node` itself where it does not."""
    source = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] is not None else None
    return node if source is None or source.op_type == "QuantizeLinear" else source


def _converted_from(node: ir.Node) -> str:
    """Return the tensor whose numbers `node` makes in another type, through any number of conversions; "" if it computes."""
    source = ""
    current: ir.Node | None = node
    while current is not None and current.op_type in CONVERSIONS and current.inputs[0] is not None:
        source, current = str(current.inputs[0].name), current.inputs[0].producer()
    return source


def _graph_file(against: str) -> Path:
    path = Path(against)
    if path.suffix != ".onnx" and not path.is_dir():
        raise UsageError(f"cannot verify against {against!r}", "one of: torch, reference, or the path of an .onnx file or bundle")
    return Bundle.open(path).onnx
