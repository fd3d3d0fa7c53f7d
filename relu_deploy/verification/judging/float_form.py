"""A graph of operators on quantized numbers, compared with the graph of floats that it was made of.

QLinearConv and the like return 8-bit numbers, which the graph of floats has no tensor to compare with. Two forms of such a graph
have the tensors of floats, under the names that they have in the other graph:

    run         the graph itself, with a DequantizeLinear beside each tensor of quantized numbers; nothing reads it, so that a
                runtime leaves it out unless the tensor is tapped
    evaluated   floats computed between DequantizeLinear and QuantizeLinear, for the evaluation of nodes one by one
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relu_deploy.bundle import Bundle
from relu_deploy.graph import load_model, save_model
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.model import read_model
from relu_deploy.graph.precision import quantized_relu
from relu_deploy.graph.rewriting.qlinear import expand_qlinear, has_qlinear, parameters_of
from relu_deploy.storage.folders import temporary_folder

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["FloatForm", "float_form", "float_names"]

#: what quantizers append to the name of a tensor for its quantized numbers
SUFFIXES = ("_quantized", "_QuantizeLinear_Output", "/quantized")
NODE_SUFFIXES = ("_quant", "_MatMul_quant")
#: operators that a quantizer leaves out, because the smallest and the largest stored number are their bounds
REMOVABLE = ("Clip", "Relu")
#: operators with weights, in both forms
WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class FloatForm:
    """The two forms of a graph. origins: The node of the graph itself by a node that only `evaluated` has."""

    run: Bundle
    evaluated: Bundle
    origins: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def float_form(bundle: Bundle, other: Bundle) -> Iterator[FloatForm]:
    """Yield the forms of `bundle` for as long as the block lasts: itself where it needs none.

    Args:
        bundle: The graph under test.
        other: What it is compared with. Where it computes on quantized numbers as well, these are compared.
    """
    model, other_model = read_model(bundle.onnx), read_model(other.onnx)
    if not has_qlinear(model) or has_qlinear(other_model):
        yield FloatForm(bundle, bundle)
        return
    names = float_names(model, other_model)
    expansion = expand_qlinear(model, names)
    with temporary_folder("floats") as folder:
        files = {name: folder / name / f"{bundle.name}.onnx" for name in ("run", "evaluated")}
        for file in files.values():
            file.parent.mkdir()
        save_model(_with_floats_beside(load_model(bundle.onnx), names), files["run"])
        save_model(expansion.model, files["evaluated"])
        yield FloatForm(Bundle.open(files["run"]), Bundle.open(files["evaluated"]), expansion.origins)


def float_names(model: ir.Model, other: ir.Model) -> dict[str, str]:
    """Return for each tensor of quantized numbers in `model` the tensor of `other` whose numbers it holds.

    It is the one whose name it has, but for what quantizers append to it, else the result of the node with the name of its node. Where
    `other` has a Relu behind that tensor that `model` does not have, it is the result of the Relu. Where no tensor has such a name,
    the tensors behind the nodes with weights are taken in order.
    """
    theirs = {str(value.name): value for node, _ in iterate_nodes(other) for value in node.outputs if value.name}
    stored = list(parameters_of(model))
    bases = {name: base for name in stored if (base := _base(name, SUFFIXES)) in theirs}
    bases = {**_behind_nodes_of_one_name(model, other), **bases} or _in_order(model, other)
    computed = {
        str(value.name) for node, _ in iterate_nodes(model) if node.op_type != "DequantizeLinear" for value in node.outputs
    }
    ours = {str(value.name): value for node, _ in iterate_nodes(model) for value in node.outputs}
    names: dict[str, str] = {}
    for name in stored:
        tensor = theirs.get(bases.get(name, ""))
        while (
            tensor is not None
            and not _has_bounds_behind(ours[name])
            and (behind := _removable_behind(tensor, computed)) is not None
        ):
            tensor = behind
        if tensor is not None and tensor.name not in computed and tensor.name not in names.values():
            names[name] = str(tensor.name)
    return names


def _base(name: str, suffixes: tuple[str, ...]) -> str:
    return next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)


def _operator(node: ir.Node) -> str:
    """Return the operator on floats that `node` is, or that it is on quantized numbers."""
    return "Gemm" if node.op_type == "QGemm" else node.op_type.removeprefix("QLinear")


def _behind_nodes_of_one_name(model: ir.Model, other: ir.Model) -> dict[str, str]:
    """Return the results of the nodes of `other` by those of the nodes of `model` with their name, but for what quantizers append."""
    theirs = {(str(node.name), node.op_type): str(node.outputs[0].name) for node, _ in iterate_nodes(other)}
    ours = ((node, (_base(str(node.name), NODE_SUFFIXES), _operator(node))) for node, _ in iterate_nodes(model))
    return {str(node.outputs[0].name): theirs[key] for node, key in ours if key in theirs}


def _has_bounds_behind(stored: ir.Value) -> bool:
    """Return whether a Relu or Clip reads the floats of `stored`."""
    loads = [reader for reader in stored.consumers() if reader.op_type == "DequantizeLinear"]
    return any(reader.op_type in REMOVABLE for load in loads for reader in load.outputs[0].consumers())


def _removable_behind(tensor: ir.Value, computed: set[str]) -> ir.Value | None:
    """Return the result of the one Relu or Clip that reads `tensor`, None where there is no such node or the other graph has it."""
    readers = list(tensor.consumers())
    if len(readers) != 1 or readers[0].op_type not in REMOVABLE or tensor.is_graph_output():
        return None
    result = readers[0].outputs[0]
    return None if result.name in computed else result


def _in_order(model: ir.Model, other: ir.Model) -> dict[str, str]:
    """Return the results of the nodes with weights of `other` by those of `model`, where they are of the same operators in order."""

    def weighted(graph: ir.Model) -> list[tuple[str, str]]:
        found = ((_operator(node), str(node.outputs[0].name)) for node, _ in iterate_nodes(graph))
        return [(operator, name) for operator, name in found if operator in WEIGHTED]

    ours, theirs = weighted(model), weighted(other)
    if [operator for operator, _ in ours] != [operator for operator, _ in theirs]:
        return {}
    return {mine: their for (_, mine), (_, their) in zip(ours, theirs, strict=True)}


def _with_floats_beside(model: ir.Model, names: Mapping[str, str]) -> ir.Model:
    """Return `model`, changed in place, in which each tensor of `names` is dequantized to one of the name that it has there."""
    import onnx_ir as ir

    made = {str(value.name): value for node, _ in iterate_nodes(model) for value in node.outputs}
    for stored, (scale, zero) in parameters_of(model).items():
        value = made[stored]
        maker = value.producer()
        name = names.get(stored) or _clamped_beside(maker)
        if name is None or name in made or maker is None or maker.graph is None:
            continue
        operands = [value, scale, *([zero] if zero is not None else [])]
        beside = ir.node("DequantizeLinear", operands, name=f"{maker.name}/dequantized")
        beside.outputs[0].name, beside.outputs[0].type = name, ir.TensorType(scale.dtype or ir.DataType.FLOAT)
        beside.outputs[0].shape = value.shape
        maker.graph.insert_after(maker, [beside])
    return model


def _clamped_beside(maker: ir.Node | None) -> str | None:
    """Return a name for the floats that a QuantizeLinear stores which is a Relu as well, where nothing dequantizes them; else None."""
    if maker is None or quantized_relu(maker) is None or maker.inputs[0] is None:
        return None
    if any(reader.op_type == "DequantizeLinear" for reader in maker.outputs[0].consumers()):
        return None
    return f"{maker.inputs[0].name}/dequantized"
