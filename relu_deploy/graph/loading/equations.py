"""The equations of Einsum nodes, which onnx's shape inference reads without end where they are malformed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["fault_of_equation"]

#: one operand: letters, among which `...` may stand once
TERM = re.compile(r"[A-Za-z]*(?:\.\.\.[A-Za-z]*)?")


def fault_of_equation(node: onnx.NodeProto) -> str:
    """Return what is wrong with the equation of an Einsum node, "" if nothing is."""
    attribute = next((each for each in node.attribute if each.name == "equation"), None)
    if attribute is None or attribute.ref_attr_name:
        return ""
    text = attribute.s.decode("utf-8", "replace").replace(" ", "")
    operands, arrow, result = text.partition("->")
    terms = operands.split(",")
    if not all(TERM.fullmatch(term) for term in (*terms, result)):
        return "its equation is malformed"
    if len(terms) != len(node.input):
        return f"its equation has {len(terms)} operands, the node {len(node.input)}"
    letters = result.replace("...", "")
    if arrow and (len(set(letters)) < len(letters) or not set(letters) <= set(operands)):
        return "the result of its equation repeats an index, or has one that no operand has"
    return ""
