"""Find the batch axis of each input and output of a graph.

Sizes are probed: shapes are inferred twice, with two different batch sizes, and the axes whose size follows the batch are the
batch axes. So an output whose first axis counts something else (time steps, detections, layers) has none, and an axis of
batch times steps has none either. Where inference does not reach, the names of the declared dimensions decide.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from relu_deploy.graph.shapes.dimensions import infer_sizes
from relu_deploy.graph.shapes.input_ranges import indexed_sizes

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["batch_axes", "input_batch_axes"]

#: names that converters and people give to a batch dimension
_BATCH_NAME = re.compile(r"^(n|b|bs|bsz|batch|batch_?size|batch_?dim|dynamic_batch|num_?batch(es)?)$", re.IGNORECASE)
#: names that are those of a batch in front only: a signal of one channel has samples as well
_LEADING_BATCH_NAME = re.compile(r"^(samples?|rows?)$", re.IGNORECASE)
#: names that converters make up; they say nothing about what the dimension is
_GENERATED_NAME = re.compile(r"^(unk__\d+|DynamicDimension\.\d+|dyn_?\d*|d\d+|s\d+|dim_?\d+|p2o\.DynamicDimension\.\d+|.*_0)$")
#: sizes that hardly any graph has by itself
_PROBES = (7, 11)
_OTHER_SIZE = 5
#: most inputs for which shape inference is tried with a batch: each takes as long as the graph is large
MOST_TRIALS = 32

#: operators whose result has a number of rows that depends on values
SELECTING = frozenset(["Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Range", "Scan", "Unique", "Where"])

Shape = Sequence[int | str]


def batch_axes(model: ir.Model) -> dict[str, int | None]:
    """Return the batch axis of each input and output of `model`.

    Args:
        model: Weights listed as inputs are not inputs. The model is not modified.

    Returns:
        By tensor name, the axis along which rows are independent samples, None where there is no such axis. An input with
        a fixed first dimension counts as a batch of that size when an output has the same first dimension. There is none at all where
        an integer input indexes along it, as edges do among the nodes of a graph: what is indexed is no independent sample.
    """
    inputs = {str(value.name): _dims(value) for value in model.graph.inputs if not value.is_initializer()}
    outputs = {str(value.name): _dims(value) for value in model.graph.outputs}
    axes = _input_axes(model, inputs)
    if not any(axis is not None and isinstance(inputs[name][axis], str) for name, axis in axes.items()):
        return axes | _fixed_output_axes(inputs, outputs, axes)
    if _indexes_the_batch(model, inputs, axes):
        return dict.fromkeys((*axes, *outputs))
    names = {inputs[name][axis] for name, axis in axes.items() if axis is not None}
    rows_stay = _has_rows_throughout(model)
    probed = [infer_sizes(model, _sizes(inputs, axes, size)) for size in _PROBES]
    for name, declared in outputs.items():
        sizes = [None if result is None else result.get(name) for result in probed]
        axes[name] = _following_axis(sizes) if all(sizes) else _named_axis(declared, names)
        unknown = any(size is None for size in sizes[0] or (None,))
        if axes[name] is None and unknown:
            axes[name] = _named_axis(declared, names)
        if axes[name] is None and unknown and declared and isinstance(declared[0], str) and rows_stay:
            axes[name] = 0
    return axes


def _indexes_the_batch(model: ir.Model, inputs: Mapping[str, Shape], axes: Mapping[str, int | None]) -> bool:
    """Return whether the size of what an integer input of `model` indexes follows the size of the batch."""
    first, second = (indexed_sizes(model, _sizes(inputs, axes, size)) for size in _PROBES)
    return _PROBES in zip(first, second, strict=False)


def input_batch_axes(model: ir.Model) -> dict[str, int | None]:
    """Return the batch axis of each input of `model`, as `batch_axes` does."""
    return _input_axes(model, {str(value.name): _dims(value) for value in model.graph.inputs if not value.is_initializer()})


def _input_axes(model: ir.Model, inputs: Mapping[str, Shape]) -> dict[str, int | None]:
    """Return the batch axis of each input."""
    symbols = Counter(dim for shape in inputs.values() for dim in dict.fromkeys(shape) if isinstance(dim, str))
    leading = [shape[0] for shape in inputs.values() if shape and isinstance(shape[0], str)]
    named = [dim for dim in symbols if _BATCH_NAME.match(dim)] + [dim for dim in leading if _LEADING_BATCH_NAME.match(dim)]
    batch = next(iter(named), None)
    if batch is None:
        shared = [dim for dim in leading if symbols[dim] > 1]
        batch = shared[0] if shared else leading[0] if leading else None
    if batch is None:
        firsts = {shape[0] for shape in inputs.values() if len(shape) > 1}
        return {name: 0 if len(shape) > 1 and len(firsts) == 1 else None for name, shape in inputs.items()}
    axes: dict[str, int | None] = {}
    for name, shape in inputs.items():
        axes[name] = shape.index(batch) if batch in shape else None
    # Converters name one batch differently in each input: it is the batch where another size does not fit.
    leading_names = {
        name: shape[0] for name, shape in inputs.items() if axes[name] is None and shape and isinstance(shape[0], str)
    }
    generated = [name for name, dim in leading_names.items() if _GENERATED_NAME.match(dim)]
    axes |= dict.fromkeys(generated, 0)
    for name in [name for name in leading_names if axes[name] is None][:MOST_TRIALS]:
        if _must_be_equal(model, inputs, axes, name):
            axes[name] = 0
    return axes


def _must_be_equal(model: ir.Model, inputs: Mapping[str, Shape], axes: Mapping[str, int | None], name: str) -> bool:
    """Return whether shape inference accepts axis 0 of `name` only with the size of the batch."""
    same = infer_sizes(model, _sizes(inputs, {**axes, name: 0}, _PROBES[0]))
    return same is not None and infer_sizes(model, _sizes(inputs, axes, _PROBES[0])) is None


def _sizes(inputs: Mapping[str, Shape], axes: Mapping[str, int | None], batch: int) -> dict[str, list[int]]:
    return {
        name: [
            batch if axis == axes.get(name) and isinstance(dim, str) else _OTHER_SIZE if isinstance(dim, str) else dim
            for axis, dim in enumerate(shape)
        ]
        for name, shape in inputs.items()
    }


def _has_rows_throughout(model: ir.Model) -> bool:
    """Return whether inference knows no sizes because of operators of `ai.onnx.ml`, which have a result for each row, and these alone."""
    operators = {(node.domain, node.op_type) for node in model.graph}
    learned = any(domain == "ai.onnx.ml" for domain, _ in operators)
    others = {name for domain, name in operators if domain != "ai.onnx.ml"}
    return learned and not others & SELECTING and all(domain in ("", "ai.onnx", "ai.onnx.ml") for domain, _ in operators)


def _following_axis(sizes: Sequence[Sequence[int | None] | None]) -> int | None:
    first, second = sizes
    if first is None or second is None or len(first) != len(second):
        return None
    following = [axis for axis, pair in enumerate(zip(first, second, strict=True)) if pair == _PROBES]
    return following[0] if following else None


def _named_axis(shape: Shape, names: set[int | str]) -> int | None:
    return next((axis for axis, dim in enumerate(shape) if isinstance(dim, str) and dim in names), None)


def _fixed_output_axes(
    inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], axes: Mapping[str, int | None]
) -> dict[str, int | None]:
    sizes = {inputs[name][axis] for name, axis in axes.items() if axis is not None}
    return {name: 0 if shape and shape[0] in sizes else None for name, shape in outputs.items()}


def _dims(value: ir.Value) -> list[int | str]:
    """Return the dimensions of a tensor: ints, and a name for each that varies."""
    return [
        dim if isinstance(dim, int) else str(dim.value or f"{value.name}_{axis}") for axis, dim in enumerate(value.shape or ())
    ]
