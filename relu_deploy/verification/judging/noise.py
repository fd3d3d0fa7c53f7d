"""Evaluations that say how large the error of correct arithmetic is where one random draw does not.

few numbers     the RMS of one, two or three errors is itself random: it is taken over several draws
decisions       a rounded number, an index of TopK or a comparison changes by a whole step where two candidates are closer
                than the noise: evaluations with the noise at its limit find the elements that may change

Long sums are in `sum_order.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends.base import Rounding
from relu_deploy.graph.bodies import dependents
from relu_deploy.graph.precision import EIGHT_BITS, Quantized
from relu_deploy.graph.selection import INDEXING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["COARSE", "COARSE_DRAWS", "FEW", "LargeRounding", "behind_decisions", "draws_for", "rounded_numbers", "slack_of"]

#: elements below which one draw is no measure of a tensor's noise, and the draws taken for such tensors
FEW, DRAWS = 16, {"float64": 4, "float32": 4}
COARSE_DRAWS = 8
#: precisions whose rounding shows in ordinary numbers
COARSE = ("float16", "bfloat16", "float8", "int8")
#: operators that decide: their results change by whole steps
DECIDING = {"ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "Less", "LessOrEqual", "Mod"}
DECIDING |= {"NonMaxSuppression", "NonZero", "Round", "Sign", "TopK", "Unique", "BitwiseAnd", "IsInf", "IsNaN", "Shrink"}
DECIDING |= {"Binarizer", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"}
#: operators that round numbers to integers, and those that compute or move such integers
ROUNDING = {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QuantizeLinear"}
COMPUTING = {"Abs", "Add", "Cast", "Clip", "Concat", "DepthToSpace", "Div", "Expand", "Flatten", "Identity", "Max", "MaxPool"}
COMPUTING |= {"Min", "Mul", "Neg", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Slice"}
COMPUTING |= {"SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Where"}
#: integer types of ONNX, by the value of the attribute `to`
INTEGERS = {2, 3, 4, 5, 6, 7, 9, 12, 13, 21, 22}


def draws_for(tensors: Mapping[str, Any], precision: str) -> int:
    """Return how many random draws measure the noise of these tensors."""
    few = any(isinstance(value, np.ndarray) and value.dtype.kind == "f" and 0 < value.size < FEW for value in tensors.values())
    return DRAWS.get(precision, COARSE_DRAWS) if few else 1


def slack_of(size: int, draws: int) -> float:
    """Return the factor on the noise floor of a tensor of one number that makes a false alarm as rare as for larger tensors.

    The ratio of one normal error to the RMS of n others follows Student's t with n degrees of freedom: of 8 it exceeds 7.1
    once in 10,000 times, where the limit of the coarse precisions is 4.
    """
    return 7.1 / 4 if size == 1 and draws >= COARSE_DRAWS else 1.0


class LargeRounding(Rounding):
    """Rounding that is `factor` times as large as that of the precision."""

    def __init__(self, precision: str, seed: int, factor: float, quantized: Quantized = EIGHT_BITS) -> None:
        super().__init__(precision, seed, quantized)
        self._roundoff *= factor
        self._factor = factor

    def operands(self, operator: str, values: Sequence[Any], weights: Sequence[bool]) -> list[Any]:
        noisy = super().operands(operator, values, weights)
        return [
            old + self._factor * (new - old) if new is not old and _is_number(old) else old
            for new, old in zip(noisy, values, strict=True)
        ]


def _is_number(value: Any) -> bool:
    """Return whether `value` has a rounding error: sizes and places have none, and stay integers."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def behind_decisions(model: ir.Model) -> set[str]:
    """Return the tensors that depend on a decision: of `DECIDING` operators and of casts from numbers to integers.

    A node with bodies decides where a node inside it does.
    """
    return {str(value.name) for node in dependents(model, _decides) for value in node.outputs}


def _decides(node: ir.Node) -> bool:
    return _casts_to_integers(node) if node.op_type == "Cast" else node.op_type in DECIDING


def _casts_to_integers(node: ir.Node) -> bool:
    """Return whether `node` is a Cast of floating-point numbers, or of numbers of an unknown type, to integers."""
    if node.op_type != "Cast":
        return False
    source = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
    to = node.attributes["to"].as_int() if "to" in node.attributes else 0
    return to in INTEGERS and (source is None or source.is_floating_point())


def rounded_numbers(model: ir.Model) -> set[str]:
    """Return the tensors that hold numbers which were rounded to integers, and what is computed from these alone.

    Such an integer has the error of the number before it. An index, a class or a count that a comparison makes has none: it is
    right or wrong.
    """
    places: set[str] = set()
    numbers: set[str] = set()
    for node in model.graph:
        reads = {str(value.name) for value in node.inputs if value is not None}
        made = {str(value.name) for value in node.outputs if value.name}
        if node.op_type in INDEXING or reads & places:
            places |= made
        elif _rounds(node) or (node.op_type in COMPUTING and reads & numbers):
            numbers |= made
    return numbers


def _rounds(node: ir.Node) -> bool:
    return node.op_type in ROUNDING or node.op_type.startswith("QLinear") or _casts_to_integers(node)
