"""Tensors that hold sizes and counts: they are neither rounded nor computed in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Protocol

__all__ = ["computing_sizes", "never_rounded"]

#: operators whose further operands are sizes, bounds and counts, which are never rounded: 1.9999999 times 32 pixels are 63
COUNTING = ("Clip", "NonMaxSuppression", "OneHot", "Pad", "Range", "Resize", "TopK", "Upsample")
#: operators whose result does not depend on the numbers that they read
SIZING = ("Shape", "Size")
#: the places of operands that are sizes alone
SIZES = {
    "ConstantOfShape": (0,), "Expand": (1,), "OneHot": (1,), "Pad": (1,), "Reshape": (1,), "Resize": (2, 3), "Slice": (1, 2, 3, 4),
    "Split": (1,), "Tile": (1,), "TopK": (1,), "Upsample": (1,),
}  # fmt: skip


class Reader(Protocol):
    """What is looked at of a node. reads: every tensor that it or its bodies read. constant: whether each of them is one."""

    @property
    def op_type(self) -> str: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def reads(self) -> tuple[str, ...]: ...
    @property
    def constant(self) -> tuple[bool, ...]: ...


def never_rounded(nodes: Sequence[Reader]) -> frozenset[str]:
    """Return the tensors that hold sizes, bounds and counts, and those that they alone are made of.

    Constant exponents are among them: 2 is exact in every precision, and -3 to the power of 1.9999999 is not a number.
    """
    exact: set[str] = set()
    for node in reversed(nodes):
        if node.op_type in COUNTING:
            exact.update(node.inputs[1:])
        elif node.op_type == "Pow":
            constants = {name for name, constant in zip(node.reads, node.constant, strict=True) if constant}
            exact.update(constants.intersection(node.inputs[1:2]))
        elif node.op_type not in SIZING and node.outputs and all(name in exact for name in node.outputs):
            exact.update(node.inputs)
    return frozenset(exact)


def computing_sizes(nodes: Sequence[Reader], outputs: Collection[str]) -> frozenset[int]:
    """Return the positions of the nodes whose results nothing reads but as sizes.

    Runtimes compute them in float32, where 10 times 0.7 are 7 and not a little less: in float64 another size would come out.

    Args:
        nodes: In the order of their evaluation.
        outputs: Tensors that the graph returns.
    """
    found = set()
    sizes: set[str] = set()
    otherwise: Counter[str] = Counter(outputs)
    for position in reversed(range(len(nodes))):
        node = nodes[position]
        if node.op_type in SIZING:
            continue
        if sizes.intersection(node.outputs) and not any(otherwise[name] for name in node.outputs if name):
            found.add(position)
            sizes.update(node.inputs)
            continue
        places = SIZES.get(node.op_type, ())
        sizes.update(name for place, name in enumerate(node.inputs) if place in places)
        otherwise.update(name for place, name in enumerate(node.inputs) if place not in places)
        otherwise.update(name for name in node.reads if name not in node.inputs)
    return frozenset(found)
