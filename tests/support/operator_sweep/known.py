"""Where ONNX Runtime differs from the specification, with the reason. The right values are in tests/backends/reference."""

from __future__ import annotations

import numpy as np

from operator_sweep.case import Case

__all__ = ["known_difference"]


def known_difference(case: Case) -> str:
    """Return why ONNX Runtime (1.32) differs in `case` from the specification, "" when it should not."""
    attributes = case.attributes
    if case.operator in ("MaxPool", "LpPool") and attributes.get("auto_pad", "").startswith("SAME"):
        strides = attributes.get("strides", [1] * len(attributes["kernel_shape"]))
        if any(k < s for k, s in zip(attributes["kernel_shape"], strides, strict=True)):
            return "SAME padding of a kernel smaller than the stride becomes negative instead of 0, which cuts the data"
    if case.operator == "Slice" and len(case.operands) > 4 and case.operands[4] is not None:
        ends, steps = np.asarray(case.operands[2]), np.asarray(case.operands[4])
        if ((ends == 2**31 - 1) & (steps < 0)).any():
            return "an end of INT_MAX with a negative step means the beginning instead of the last element"
    if case.operator == "QLinearAveragePool" and attributes.get("ceil_mode") and attributes.get("count_include_pad"):
        return "what hangs over the padding in ceil mode is counted, as in none of its other pools"
    return ""
