"""The table of operators: which function evaluates a node, by domain, operator and version of the operator set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from relu_deploy.backends.reference.types import dtype_of, widened_dtype
from relu_deploy.errors import Unsupported

__all__ = ["CONTRIB", "Call", "Frame", "Operator", "filled", "find", "not_evaluated", "operator", "registered"]

#: the domain of the operators that ONNX Runtime's optimizer and quantizer write
CONTRIB = "com.microsoft"
#: the last version of any operator set: "no upper limit"
LATEST = 2**31


class Frame(Protocol):
    """What an operator with a body needs of the graph around it. evaluation: limits and random generators."""

    @property
    def evaluation(self) -> Any: ...

    def run(self, body: Any, arguments: Sequence[Any]) -> list[Any]:
        """Evaluate `body`, an attribute of the node, on `arguments`; it reads the tensors around it."""
        ...


@dataclass(frozen=True)
class Operator:
    """One function of the table.

    run: called with the `Call` and one argument per input (None for one left out); returns one value or a tuple.
    since, until: versions of the operator set that it implements, both included. keeps_types: it decides the types of its
    results itself; for any other operator float16 and bfloat16 operands are computed in float32 and rounded once.
    random: its results depend on a random generator.
    """

    name: str
    domain: str
    run: Callable[..., Any]
    since: int
    until: int
    keeps_types: bool
    random: bool


class Call:
    """One execution of one node, as its operator sees it.

    attributes: the node's own, without defaults. version: of the operator set of the node's domain. outputs: the names of the
    node's outputs, "" for one left out. wide: the graph is evaluated in float64. frame: the tensors around the node.
    """

    __slots__ = ("attributes", "frame", "name", "outputs", "version", "wide")

    def __init__(
        self,
        attributes: Mapping[str, Any],
        version: int,
        *,
        outputs: tuple[str, ...] = ("",),
        wide: bool = False,
        name: str = "",
        frame: Frame | None = None,
    ) -> None:
        self.attributes, self.version, self.outputs = attributes, version, outputs
        self.wide, self.name, self.frame = wide, name, frame

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or `default` when the node does not have it."""
        return self.attributes.get(name, default)

    def float(self, name: str, default: float) -> float:
        """Return a float attribute; a default is rounded to float32, which is how attributes are stored."""
        return float(self.attributes[name]) if name in self.attributes else float(np.float32(default))

    def dtype(self, name: str, default: int = 0) -> np.dtype[Any] | None:
        """Return the type that an attribute such as `to` names, widened in a float64 evaluation; None when there is none."""
        element = int(self.attributes.get(name, 0) or default)
        if not element:
            return None
        return widened_dtype(dtype_of(element)) if self.wide else dtype_of(element)

    def has_output(self, index: int) -> bool:
        """Return whether the node has the output at `index`."""
        return index < len(self.outputs) and self.outputs[index] != ""


def not_evaluated(call: Call, what: str) -> Unsupported:
    """Return the error for a form of an operator that the evaluator does not have."""
    return Unsupported(
        f"the reference evaluator does not have {what} (node {call.name!r})",
        "compare with the PyTorch program or with a graph of standard operators (--against), or cut this node off",
    )


def filled(operands: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """Return `operands` with None for those at the end that the node leaves out."""
    return (*operands, *[None] * (count - len(operands)))


_TABLE: dict[tuple[str, str], list[Operator]] = {}


def operator(
    *names: str, domain: str = "", since: int = 1, until: int = LATEST, keeps_types: bool = False, random: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the evaluator of the operators called `names`; see `Operator` for the arguments."""

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            entries = _TABLE.setdefault((domain, name), [])
            if any(entry.since <= until and since <= entry.until for entry in entries):
                raise ValueError(f"{name} is registered twice for one version")
            entries.append(Operator(name, domain, run, since, until, keeps_types, random))
        find.cache_clear()
        return run

    return register


@lru_cache(maxsize=4096)
def find(domain: str, name: str, version: int) -> Operator | None:
    """Return the operator of `domain` ("" is ai.onnx) called `name` at a version of its operator set, or None."""
    _load_operators()
    for entry in _TABLE.get((domain, name), ()):
        if entry.since <= version <= entry.until:
            return entry
    return None


def registered() -> Iterator[Operator]:
    """Yield every entry of the table, by domain, name and version."""
    _load_operators()
    for key in sorted(_TABLE):
        yield from sorted(_TABLE[key], key=lambda entry: entry.since)


def _load_operators() -> None:
    from relu_deploy.backends.reference import ops

    ops.load()
