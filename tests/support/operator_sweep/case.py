"""One generated node, and what the implementations make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper, numpy_helper

from relu_deploy.backends.reference.evaluator import Evaluator

onnxruntime.set_default_logger_severity(4)


@dataclass
class Case:
    """One node with its operands.

    operands: arrays, None for one left out; the first `fed` are inputs, the others constants. outputs: how many it has. third:
    a third opinion, by PyTorch or NumPy in float64, on the first output; None where there is none. steps: outputs in integers
    may differ by one in this share of their elements, where two roundings meet.
    """

    operator: str
    operands: list[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 20
    outputs: int = 1
    domain: str = ""
    third: Callable[[], Any] | None = None
    fed: int = 1
    steps: float = 0.0
    tolerance: float = 1e-4

    def __str__(self) -> str:
        shapes = [None if value is None else (value.dtype.name, value.shape) for value in map(_array, self.operands)]
        return f"{self.domain}.{self.operator}-{self.opset} {shapes} {self.attributes}"

    def model(self) -> onnx.ModelProto:
        names = ["" if value is None else f"x{place}" for place, value in enumerate(self.operands)]
        outputs = [f"y{place}" for place in range(self.outputs)]
        node = helper.make_node(self.operator, names, outputs, "node", domain=self.domain, **self.attributes)
        arrays = {name: _array(value) for name, value in zip(names, self.operands, strict=True) if name}
        fed = set(names[: self.fed])
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in arrays.items()
            if name in fed
        ]
        stored = [numpy_helper.from_array(array, name) for name, array in arrays.items() if name not in fed]
        opsets = [helper.make_opsetid("", self.opset)] + ([helper.make_opsetid(self.domain, 1)] if self.domain else [])
        graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info(name) for name in outputs], stored)
        return helper.make_model(graph, opset_imports=opsets, ir_version=10 if self.opset > 12 else 7)

    def feeds(self) -> dict[str, Any]:
        return {f"x{place}": _array(value) for place, value in enumerate(self.operands[: self.fed]) if value is not None}


def _array(value: Any) -> Any:
    return None if value is None else np.asarray(value)


@dataclass
class Verdict:
    """What became of a case.

    agrees: "all", or who the evaluator disagrees with. runtime, third: who else computed it. known: why ONNX Runtime differs.
    """

    case: Case
    agrees: str
    runtime: bool
    third: bool
    detail: str = ""
    known: str = ""


def judge(case: Case) -> Verdict:
    """Return how the evaluator's float64 results compare with ONNX Runtime's and with the third opinion."""
    model = case.model()
    mine = list(Evaluator(ir.from_proto(model), wide=True).run(case.feeds()).values())
    narrow = list(Evaluator(ir.from_proto(model), wide=False).run(case.feeds()).values())
    detail = difference(narrow[0], mine[0], case)
    if detail:
        return Verdict(case, "differs between float32 and float64", False, False, detail)
    theirs = of_runtime(model, case)
    opinion = None if case.third is None else case.third()
    third = None if opinion is None else np.asarray(opinion)
    wrong = ""
    if theirs is not None:
        found = [difference(a, b, case) for a, b in zip(mine, theirs, strict=True) if b is not None]
        if any(found):
            wrong, detail = "differs from ONNX Runtime", next(filter(None, found))
    if third is not None:
        found_third = difference(mine[0], third, case)
        if found_third:
            wrong, detail = (wrong + " and " if wrong else "") + "differs from the third opinion", f"{detail} {found_third}"
        elif wrong:
            wrong += ", which differs from the third opinion too"
    return Verdict(case, wrong or "all", theirs is not None, third is not None, detail)


def of_runtime(model: onnx.ModelProto, case: Case) -> list[Any] | None:
    """Return ONNX Runtime's outputs, None where it does not have the operator for these types or attributes."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, case.feeds()))
    except Exception:  # its errors have a dozen types
        return None


def difference(mine: Any, theirs: Any, case: Case) -> str:
    """Return how two results differ, "" when they do not."""
    if mine.shape != theirs.shape:
        return f"shape {mine.shape} and {theirs.shape}"
    if mine.dtype.kind in "OUS" or theirs.dtype.kind in "OUS":
        return "" if (mine == theirs).all() else "text differs"
    a, b = mine.astype(np.float64), np.asarray(theirs).astype(np.float64)
    if mine.dtype.kind in "iub" and theirs.dtype.kind in "iub":
        apart = np.abs(a - b)
        allowed = case.steps and (apart > 1).sum() == 0 and (apart > 0).mean() <= case.steps
        return (
            "" if not apart.any() or allowed else f"{(apart > 0).sum()} of {apart.size} integers differ, by up to {apart.max()}"
        )
    finite = np.isfinite(b)
    if not np.array_equal(np.isnan(a), np.isnan(b)) or not np.array_equal(a[np.isinf(b)], b[np.isinf(b)]):
        return "NaN or infinity on one side only"
    limit = case.tolerance * max(1.0, float(np.abs(b[finite]).max(initial=0)))
    worst = float(np.abs(a - b)[finite].max(initial=0))
    return "" if worst <= limit else f"largest difference {worst:g}, allowed {limit:g}"
