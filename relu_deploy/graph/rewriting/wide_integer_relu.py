"""Write Relu of 64-bit integers as Max with 0, which ONNX Runtime has a kernel for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.graph.domains import is_standard

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["replace_wide_integer_relus"]


def replace_wide_integer_relus(model: ir.Model) -> None:
    """Replace each Relu of 64-bit integers in the top graph by Max with a constant 0, in place.

    The node keeps its name, metadata and tensors. `find_relus` recognizes both forms.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        x = node.inputs[0] if node.op_type == "Relu" and is_standard(node) else None
        if x is None or x.dtype != ir.DataType.INT64:
            continue
        name = f"{node.name}/zero"
        zero = ir.Value(name=name, type=ir.TensorType(x.dtype), shape=ir.Shape([]))
        zero.const_value = ir.tensor(np.array(0, np.int64), name=name)
        model.graph.register_initializer(zero)
        largest = ir.node("Max", [x, zero], name=str(node.name))
        largest.metadata_props.update(node.metadata_props)
        result, made = node.outputs[0], largest.outputs[0]
        made.type, made.shape = result.type, result.shape
        made.metadata_props.update(result.metadata_props)
        model.graph.insert_before(node, largest)
        result.replace_all_uses_with(made, replace_graph_outputs=True)
        final, result.name = result.name, None
        made.name = final
        model.graph.remove(node, safe=True)
