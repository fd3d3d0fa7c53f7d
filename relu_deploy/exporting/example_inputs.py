"""Example inputs for a trace: names, sizes and element types as given, and which axis of each is the batch."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice, product
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import UsageError
from relu_deploy.exporting.calls import Call, calls_of, parameters_after
from relu_deploy.exporting.containers import STYLES, Convert, converter, filled_tree, hints_of, leaves_of, nested_names
from relu_deploy.exporting.options import DTYPES, InputShape
from relu_deploy.exporting.plain_interface import accepted_outputs
from relu_deploy.tensors import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ExampleInputs", "accepted_batch_axes", "example_inputs", "input_specs"]

#: choices of batch axes that are considered, and those that the model is run with
MOST_CHOICES, MOST_TRIALS = 4096, 24


@dataclass(frozen=True)
class ExampleInputs:
    """What a module is traced with.

    Attributes:
        names: Names of the ONNX inputs, in the order of the flattened arguments.
        arguments: Positional arguments.
        keywords: Keyword arguments.
        dynamic_shapes: Which axes vary, as `torch.export.export` takes it; None if all sizes are fixed.
        signature: How `forward` is called; None for as it is.
        converters: What makes the arguments that the module takes from these, by place or name.
        notes: What was chosen, one sentence each.
    """

    names: tuple[str, ...]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    dynamic_shapes: Any
    signature: inspect.Signature | None = None
    converters: Mapping[int | str, Convert] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def outputs_of(self, module: nn.Module) -> list[torch.Tensor] | None:
        """Return the tensors that `module` returns for these inputs, None if it does not accept them."""
        return accepted_outputs(module, self.arguments, self.keywords, self.converters)

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


def example_inputs(module: nn.Module, specs: Sequence[TensorSpec], batch: int | str, weights_dtype: str = "") -> ExampleInputs:
    """Return what to trace `module` with.

    Inputs are passed to the parameters of `forward` as `calls_of` says, in the containers that these take. Where several ways are
    possible, it is the first that the module accepts.

    Args:
        module: The model.
        specs: Inputs with fixed sizes.
        batch: "dynamic", or the size of the batch axes.
        weights_dtype: Element type of all its weights: inputs of other floating types are converted to it where the module does
            not accept them. "" for none.
    """
    candidates = _candidates(module, specs, batch, weights_dtype)
    first = next(candidates)
    second = next(candidates, None)
    if second is None:
        return first
    for each in islice(chain((first, second), candidates), MOST_TRIALS):
        if each.outputs_of(module) is not None:
            return each
    return first


def _candidates(module: nn.Module, specs: Sequence[TensorSpec], batch: int | str, weights_dtype: str) -> Iterator[ExampleInputs]:
    """Yield the ways in which inputs can be passed, the likeliest first; at least one."""
    import torch

    # torch specializes a dimension whose example is 1, so a varying batch is traced with 2.
    rows = 2 if batch == "dynamic" else int(batch)
    varying = torch.export.Dim("batch", min=1) if batch == "dynamic" else None
    tensors, shapes = {}, {}
    for spec in specs:
        sizes = [rows if axis == spec.batch_axis else int(dim) for axis, dim in enumerate(spec.shape)]
        tensors[spec.name] = torch.zeros(sizes, dtype=getattr(torch, spec.dtype))
        shapes[spec.name] = {} if varying is None or spec.batch_axis is None else {spec.batch_axis: varying}
    others = [name for name, tensor in tensors.items() if tensor.is_floating_point() and _name_of(tensor) != weights_dtype]
    casts = [{}] if not weights_dtype or not others else [{}, dict.fromkeys(others, getattr(torch, weights_dtype))]
    parameters = inspect.signature(module.forward).parameters
    grouped: dict[str, list[str]] = {}
    for spec in specs:
        grouped.setdefault(spec.name if spec.name in parameters else spec.name.partition(".")[0], []).append(spec.name)
    trees = {name: nested_names(names) for name, names in grouped.items()}
    hints = hints_of(module.forward)
    forms = [trees] if all(isinstance(tree, str) for tree in trees.values()) else [trees, {name: name for name in tensors}]
    # Each input by itself comes last: dots may be no more than a part of its name.
    fitting = [(form, call) for form in forms for call in calls_of(list(form), parameters)]
    for (form, call), cast in product(fitting or [(trees, Call(tuple(trees)))], casts):
        for styled in _styled(form, call, parameters, hints):
            made = _ExampleParts(form, call, parameters)
            yield made.examples(tensors, shapes if varying else None, styled, cast)


def _styled(
    trees: Mapping[str, Any], call: Call, parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]
) -> Iterator[dict[str, Convert]]:
    """Yield what makes the containers that the parameters take from plain ones, by argument."""
    known: dict[str, Convert] = {}
    free = []
    for name, tree in trees.items():
        if isinstance(tree, str):
            continue
        made = converter(hints.get(call.parameter_of(name, parameters)), tree)
        if made is None:
            free.append(name)
        else:
            known[name] = made
    for style in STYLES if free else STYLES[:1]:
        yield {**known, **dict.fromkeys(free, style)}


@dataclass(frozen=True)
class _ExampleParts:
    """A call of a module whose arguments are the containers `trees`, with names of inputs in place of tensors."""

    trees: Mapping[str, Any]
    call: Call
    parameters: Mapping[str, inspect.Parameter]

    def examples(
        self,
        tensors: Mapping[str, torch.Tensor],
        shapes: Mapping[str, Any] | None,
        styles: Mapping[str, Convert],
        casts: Mapping[str, torch.dtype],
    ) -> ExampleInputs:
        """Return the arguments for `tensors`, and which of their axes vary."""
        call, trees = self.call, self.trees
        places = (*call.positional, *call.variable)
        leaves = [leaf for name in (*places, *call.keywords) for leaf in leaves_of(trees[name])]
        parameters = parameters_after(call, self.parameters)
        converters: dict[int | str, Convert] = {}
        passed: list[tuple[int | str, str]] = [*enumerate(places), *((name, name) for name in call.keywords)]
        for at, name in passed:
            converters[at] = partial(_converted, self._casts(name, casts), styles.get(name))
        return ExampleInputs(
            tuple(leaves),
            tuple(filled_tree(trees[name], tensors) for name in places),
            {name: filled_tree(trees[name], tensors) for name in call.keywords},
            None if shapes is None else self._dynamic_shapes(shapes, parameters),
            inspect.Signature(list(parameters.values())),
            converters,
            tuple(_conversion(name, tensors[name], to) for name, to in casts.items()),
        )

    def _casts(self, argument: str, casts: Mapping[str, torch.dtype]) -> Any:
        """Return the type that each tensor of an argument is converted to, None for one that stays."""
        tree = self.trees[argument]
        return filled_tree(tree, {leaf: casts.get(leaf) for leaf in leaves_of(tree)})

    def _dynamic_shapes(self, shapes: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
        """Return the axes that vary by parameter, in the order in which torch binds them."""
        by_parameter: dict[str, Any] = {}
        for name, tree in self.trees.items():
            parameter = self.call.parameter_of(name, self.parameters)
            filled = filled_tree(tree, shapes)
            by_parameter[parameter] = (*by_parameter.get(parameter, ()), filled) if name in self.call.variable else filled
        return {name: by_parameter[name] for name in parameters if name in by_parameter}


def _converted(casts: Any, style: Convert | None, value: Any) -> Any:
    """Return an argument with its tensors in the types of `casts`, in the container that `style` makes of it."""
    value = _cast(casts, value)
    return value if style is None else style(value)


def _cast(casts: Any, value: Any) -> Any:
    if isinstance(casts, dict):
        return {key: _cast(casts[key], part) for key, part in value.items()}
    if isinstance(casts, tuple):
        return tuple(_cast(to, part) for to, part in zip(casts, value, strict=True))
    return value if casts is None else value.to(casts)


def _conversion(name: str, tensor: torch.Tensor, to: torch.dtype) -> str:
    kinds = _name_of(tensor), str(to).removeprefix("torch.")
    return f"the input {name!r} is {kinds[0]}, as declared: it is converted to {kinds[1]}, the type of the weights"


def _name_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def accepted_batch_axes(
    module: nn.Module, specs: Sequence[TensorSpec], batch: int | str, fixed: Collection[str], weights_dtype: str = ""
) -> Iterator[list[TensorSpec]]:
    """Yield `specs` with other batch axes with which `module` accepts its inputs, such as that of a state of [layers, batch, size].

    The outputs follow the batch with each of these choices, and those with the most batch axes come first. There is none if the model
    accepts `specs` themselves.

    Args:
        module: The model.
        specs: Inputs that cannot be traced.
        batch: "dynamic", or the size of the batch axes.
        fixed: Names of the inputs whose batch axis is known.
        weights_dtype: As for `example_inputs`.
    """
    rows = 2 if batch == "dynamic" else int(batch)

    def shapes_of(chosen: Sequence[TensorSpec], count: int) -> list[tuple[int, ...]] | None:
        outputs = example_inputs(module, chosen, count, weights_dtype).outputs_of(module)
        return None if outputs is None else [tuple(each.shape) for each in outputs]

    if all(shapes_of(specs, count) is not None for count in (rows, rows + 1)):
        return
    options = [(spec.batch_axis,) if spec.name in fixed else (*range(len(spec.shape)), None) for spec in specs]
    choices = [
        choice
        for choice in islice(product(*options), MOST_CHOICES)
        if len({spec.shape[axis] for spec, axis in zip(specs, choice, strict=True) if axis is not None}) == 1
    ]
    choices.sort(key=lambda axes: axes.count(None))
    for axes in choices[:MOST_TRIALS]:
        chosen = [replace(spec, batch_axis=axis) for spec, axis in zip(specs, axes, strict=True)]
        shapes, others = (shapes_of(chosen, count) for count in (rows, rows + 1))
        if shapes is not None and others is not None and shapes != others:
            yield chosen
