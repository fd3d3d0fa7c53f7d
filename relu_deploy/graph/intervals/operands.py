"""One node as interval arithmetic sees it: the intervals, constants, shapes and attributes of its operands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.graph.intervals.interval import UNKNOWN, Interval, exactly
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Operands", "Shape", "constant_of", "shape_of"]

#: ints, names of varying dimensions, and None for a dimension of which nothing is known
Shape = tuple[int | str | None, ...]

#: unit roundoff of what a node computes, by its result's dtype; integers and Booleans are exact
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


@dataclass(frozen=True)
class Operands:
    """A node and what is known of its inputs. known: intervals by tensor name. opset: of the default domain."""

    node: ir.Node
    known: Mapping[str, Interval]
    opset: int

    def __len__(self) -> int:
        return len(self.node.inputs)

    def has(self, position: int) -> bool:
        return position < len(self.node.inputs) and self.node.inputs[position] is not None

    def interval(self, position: int = 0, default: float | None = None) -> Interval:
        """Return the interval of the input there; of `default` where an optional one is missing."""
        value = self.node.inputs[position] if self.has(position) else None
        if value is None:
            return UNKNOWN if default is None else exactly(np.asarray(default))
        constant = constant_of(value)
        if constant is None:
            return self.known.get(str(value.name), UNKNOWN)
        return exactly(constant) if constant.dtype.kind in "fiub" or constant.dtype.name == "bfloat16" else UNKNOWN

    def constant(self, position: int) -> Array | None:
        return constant_of(self.node.inputs[position]) if self.has(position) else None

    def integers(self, position: int, attribute: str = "") -> list[int] | None:
        """Return the whole numbers in the constant input there, or in `attribute` where older operator sets keep them."""
        constant = self.constant(position)
        if constant is not None:
            return [int(number) for number in constant.reshape(-1)]
        found = self.attribute(attribute, None) if attribute else None
        return None if found is None else [int(number) for number in found]

    def attribute(self, name: str, default: Any) -> Any:
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def shape(self, position: int = 0) -> Shape | None:
        value = self.node.inputs[position] if self.has(position) else None
        return None if value is None else shape_of(value)

    def result_shape(self, position: int = 0) -> Shape | None:
        return shape_of(self.node.outputs[position])

    @property
    def is_float(self) -> bool:
        return self.node.outputs[0].dtype is None or self.dtype in ROUNDOFF

    @property
    def dtype(self) -> str:
        """Return the name of the result's dtype; where the graph does not say, that of most: float32."""
        dtype = self.node.outputs[0].dtype
        return "float32" if dtype is None else str(dtype.numpy().name)

    @property
    def unit(self) -> float:
        return ROUNDOFF.get(self.dtype, 0.0)


def constant_of(value: ir.Value | None) -> Array | None:
    """Return the array that `value` always is, None when it is computed or fed."""
    if value is None:
        return None
    producer = value.producer()
    if value.const_value is not None and (producer is None or producer.op_type == "Constant"):
        return np.asarray(value.const_value.numpy())
    if producer is None or producer.op_type != "Constant":
        return None
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        attribute = producer.attributes.get(name)
        if attribute is not None:
            return np.asarray(attribute.as_tensor().numpy() if name == "value" else attribute.value)
    return None


def shape_of(value: ir.Value) -> Shape | None:
    """Return the shape of `value` as far as the graph says."""
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None if dim.value is None else str(dim.value) for dim in value.shape)
