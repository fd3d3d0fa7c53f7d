"""Example inputs for a trace: names, sizes and element types as given, and which axis of each is the batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import UsageError
from relu_deploy.exporting.options import DTYPES, InputShape
from relu_deploy.tensors import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ExampleInputs", "example_inputs", "input_specs"]

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class ExampleInputs:
    """What a module is traced with.

    Attributes:
        names: Names of the ONNX inputs, in the order of the flattened arguments.
        arguments: Positional arguments.
        keywords: Keyword arguments.
        dynamic_shapes: Which axes vary, as `torch.export.export` takes it; None if all sizes are fixed.
    """

    names: tuple[str, ...]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    dynamic_shapes: Any

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors, in the order of `names`."""
        from torch.utils import _pytree

        return list(_pytree.tree_leaves((self.arguments, dict(self.keywords))))

    def __str__(self) -> str:
        """Return the sizes, for an error."""
        return ", ".join("x".join(map(str, each.shape)) or "scalar" for each in self.tensors)


def input_specs(inputs: Mapping[str, InputShape], axes: Mapping[str, int | None], float_dtype: str) -> list[TensorSpec]:
    """Return a spec for each input, with the axis of its batch.

    Args:
        inputs: Shapes, with or without dtypes, by name.
        axes: Batch axis by name where it is given.
        float_dtype: Element type of inputs without a dtype.

    Raises:
        UsageError: If a dtype or a batch axis cannot be.
    """
    specs: list[TensorSpec] = []
    for name, given in inputs.items():
        shape, dtype = _shape_and_dtype(given)
        if dtype and dtype not in DTYPES:
            raise UsageError(f"--input {name}: there is no type {dtype!r}", f"one of: {', '.join(DTYPES)}")
        first = specs[0] if specs else None
        # The first input has the batch in front; another one has it too if it is of the same size there.
        batch = first.shape[0] if first and first.shape else None
        axis = 0 if shape and (first is None or shape[0] == batch) else None
        if name in axes:
            axis = axes[name]
            if axis is not None and not 0 <= axis < len(shape):
                raise UsageError(
                    f"--batch-axis {name}={axis}: the input has {len(shape)} axes", "count from 0, or write none for no batch"
                )
        specs.append(TensorSpec(name, dtype or float_dtype, tuple(shape), axis))
    return specs


def _shape_and_dtype(given: InputShape) -> tuple[tuple[int, ...], str]:
    if isinstance(given, TensorSpec):
        return tuple(int(dim) for dim in given.shape), given.dtype
    if len(given) == 2 and isinstance(given[1], str):
        shape, dtype = given
        assert isinstance(shape, Sequence)
        return tuple(int(dim) for dim in shape), str(dtype)
    return tuple(int(dim) for dim in given), ""  # type: ignore[arg-type]


def example_inputs(module: nn.Module, specs: Sequence[TensorSpec], batch: int | str) -> ExampleInputs:
    """Return what to trace `module` with.

    Inputs are passed to the parameters of `forward` that have their names, where there is `**keywords` by their names as well,
    else by position.

    Args:
        module: The model.
        specs: Inputs with fixed sizes.
        batch: "dynamic", or the size of the batch axes.
    """
    import torch

    # torch specializes a dimension whose example is 1, so a varying batch is traced with 2.
    rows = 2 if batch == "dynamic" else int(batch)
    varying = torch.export.Dim("batch", min=1) if batch == "dynamic" else None
    tensors, shapes = {}, {}
    for spec in specs:
        sizes = [rows if axis == spec.batch_axis else int(dim) for axis, dim in enumerate(spec.shape)]
        tensors[spec.name] = torch.zeros(sizes, dtype=getattr(torch, spec.dtype))
        shapes[spec.name] = {} if varying is None or spec.batch_axis is None else {spec.batch_axis: varying}
    parameters = inspect.signature(module.forward).parameters
    grouped = _by_parameter([spec.name for spec in specs], parameters)
    if grouped is None:
        return _by_position(tensors, shapes if varying else None, list(parameters.values()))
    # Torch flattens keywords in the order in which they are passed.
    trees = {name: _nested(grouped[name]) for name in dict.fromkeys((*parameters, *grouped)) if name in grouped}
    ordered = {name: list(_leaves(tree)) for name, tree in trees.items()}
    arguments = {name: _filled(tree, tensors) for name, tree in trees.items()}
    nested_shapes = {name: _filled(tree, shapes) for name, tree in trees.items()}
    leading = []
    for (name, parameter), given in zip(parameters.items(), ordered, strict=False):
        if name != given or parameter.kind not in POSITIONAL:
            break
        leading.append(name)
    return ExampleInputs(
        tuple(name for names in ordered.values() for name in names),
        tuple(arguments[name] for name in leading),
        {name: value for name, value in arguments.items() if name not in leading},
        nested_shapes if varying else None,
    )


def _by_position(
    tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Any] | None, parameters: Sequence[inspect.Parameter]
) -> ExampleInputs:
    """Return inputs that are passed by position, and by their names where only `**keywords` is left to take them."""
    names, dynamic = tuple(tensors), None if shapes is None else tuple(shapes.values())
    kinds = [parameter.kind for parameter in parameters]
    places = [parameter.name for parameter in parameters if parameter.kind in POSITIONAL]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        dynamic = None if dynamic is None else (*dynamic[:first], dynamic[first:])
    elif inspect.Parameter.VAR_KEYWORD in kinds and len(names) > len(places):
        passed = (*places, *names[len(places) :])
        keywords = {name: tensors[name] for name in names[len(places) :]}
        given = None if dynamic is None else dict(zip(passed, dynamic, strict=True))
        return ExampleInputs(names, tuple(tensors[name] for name in names[: len(places)]), keywords, given)
    return ExampleInputs(names, tuple(tensors.values()), {}, dynamic)


def _by_parameter(names: Sequence[str], parameters: Mapping[str, inspect.Parameter]) -> dict[str, list[str]] | None:
    """Return the names of the inputs for each parameter of `forward` or keyword; None if they do not name its parameters."""
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(name if name in parameters else name.partition(".")[0], []).append(name)
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    unnamed = [name for name in grouped if kinds.get(name) not in NAMED]
    if not unnamed:
        return grouped
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (*POSITIONAL, parameter.VAR_POSITIONAL)
        and parameter.default is parameter.empty
        and name not in grouped
    ]
    takes_others = inspect.Parameter.VAR_KEYWORD in kinds.values() and not any(name in kinds for name in unnamed)
    return grouped if takes_others and not needed else None


def _nested(names: Sequence[str], depth: int = 1) -> Any:
    """Return the argument made of the inputs `names`, with names in place of tensors.

    One input is itself; "batch.ids" is an entry of a dictionary and "state.0" an element of a tuple, to any depth.

    Args:
        names: Inputs that agree in their first `depth` parts.
        depth: How many parts of the names lead here.

    Raises:
        UsageError: If an input is named like a container of others.
    """
    parts = {name: name.split(".") for name in names}
    if whole := [name for name in names if len(parts[name]) == depth]:
        if len(names) > 1:
            other = next(name for name in names if name != whole[0])
            raise UsageError(f"--input {whole[0]}: {other} is a part of it", "give the parts of an argument, or the whole")
        return whole[0]
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(parts[name][depth], []).append(name)
    if all(key.isascii() and key.isdigit() for key in grouped):
        return tuple(_nested(grouped[key], depth + 1) for key in sorted(grouped, key=int))
    return {key: _nested(group, depth + 1) for key, group in grouped.items()}


def _leaves(tree: Any) -> Iterator[str]:
    """Yield the names in `tree`, in the order in which torch flattens it."""
    if isinstance(tree, str):
        yield tree
        return
    for part in tree.values() if isinstance(tree, dict) else tree:
        yield from _leaves(part)


def _filled(tree: Any, values: Mapping[str, Any]) -> Any:
    """Return `tree` with the values of its names."""
    if isinstance(tree, str):
        return values[tree]
    if isinstance(tree, dict):
        return {key: _filled(part, values) for key, part in tree.items()}
    return tuple(_filled(part, values) for part in tree)
