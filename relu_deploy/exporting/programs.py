"""Programs that are already exported (`.pt2`): their inputs, and the sizes to trace them with again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import UsageError
from relu_deploy.exporting.example_inputs import ExampleInputs

if TYPE_CHECKING:
    import torch

__all__ = ["ProgramInput", "keeps_shapes", "picture_examples", "program_examples", "program_inputs"]

#: Size of a varying axis whose example is not stored: 0 and 1 are special to torch.
EXAMPLE_SIZE = 2


@dataclass(frozen=True)
class ProgramInput:
    """An input of a program.

    Attributes:
        name: Its name.
        dtype: Its element type.
        sizes: Sizes to trace with.
        varying: Axes whose size varies.
    """

    name: str
    dtype: str
    sizes: tuple[int, ...]
    varying: tuple[int, ...]


def program_inputs(program: torch.export.ExportedProgram) -> list[ProgramInput]:
    """Return the inputs of `program`, in the order of its flattened arguments.

    Raises:
        UsageError: If one is no tensor.
    """
    placeholders = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = []
    for name in program.graph_signature.user_inputs:
        value: Any = placeholders.get(str(name))
        if not hasattr(value, "shape"):
            raise UsageError(f"the program's input {name!r} is no tensor", "export a program that takes tensors only")
        varying = tuple(axis for axis, dim in enumerate(value.shape) if not isinstance(dim, int))
        sizes = tuple(EXAMPLE_SIZE if axis in varying else int(dim) for axis, dim in enumerate(value.shape))
        inputs.append(ProgramInput(str(name), str(value.dtype).removeprefix("torch."), sizes, varying))
    return inputs


def keeps_shapes(program: torch.export.ExportedProgram, batch: int | str) -> bool:
    """Return whether the program's own shapes are those that `batch` asks for: all with "dynamic", else a fixed size."""
    if batch == "dynamic":
        return True
    inputs = program_inputs(program)
    return bool(inputs) and 0 not in inputs[0].varying and inputs[0].sizes[:1] == (batch,)


def program_examples(
    program: torch.export.ExportedProgram, batch: int | str, shapes: Mapping[str, tuple[int, ...]] | None
) -> ExampleInputs:
    """Return what to trace the program's module with.

    Args:
        program: The program.
        batch: "dynamic" keeps what varies in the program; a number fixes the batch, axis 0 of the inputs that vary there.
        shapes: Sizes to fix by input name; only the batch varies then.

    Raises:
        UsageError: If `shapes` does not name the program's inputs.
    """
    import torch
    from torch.utils import _pytree

    inputs = program_inputs(program)
    if batch != "dynamic" and not any(0 in each.varying for each in inputs):
        raise UsageError(
            f"--batch {batch}: the program fixes its batch to {inputs[0].sizes[0] if inputs and inputs[0].sizes else 'none'}",
            "export the program with a dynamic batch, or leave --batch out",
        )
    if shapes is not None and sorted(shapes) != sorted(each.name for each in inputs):
        raise UsageError(f"--input: the program's inputs are {', '.join(each.name for each in inputs)}", "give the shape of each")
    tensors, dynamic = [], []
    for each in inputs:
        sizes, varying = list(each.sizes), list(each.varying)
        if shapes is not None:
            sizes = [*sizes[:1], *shapes[each.name][1:]] if 0 in varying else list(shapes[each.name])
            varying = [axis for axis in varying if axis == 0]
        if batch != "dynamic" and 0 in varying:
            sizes[0] = int(batch)
            varying.remove(0)
        tensors.append(torch.zeros(sizes, dtype=getattr(torch, each.dtype)))
        dynamic.append(dict.fromkeys(varying, torch.export.Dim.AUTO))
    names = tuple(each.name for each in inputs)
    arguments, keywords = _pytree.tree_unflatten(tensors, program.call_spec.in_spec)
    positional, named = _pytree.tree_unflatten(dynamic, program.call_spec.in_spec)
    return ExampleInputs(names, tuple(arguments), keywords, (*positional, *named.values()))


def picture_examples(program: torch.export.ExportedProgram, batch: int | str) -> ExampleInputs:
    """Return uint8 NHWC pictures to trace a program of one NCHW input with, behind its normalization.

    Raises:
        UsageError: If the program takes anything else.
    """
    import torch

    examples = program_examples(program, batch, None)
    tensors = examples.tensors
    if len(tensors) != 1 or tensors[0].dim() != 4:
        raise UsageError("--embed-preprocess needs a model with one NCHW picture input", "leave it out for this model")
    to_nhwc = {0: 0, 2: 1, 3: 2, 1: 3}
    pixels = torch.zeros(tuple(tensors[0].permute(0, 2, 3, 1).shape), dtype=torch.uint8)
    varying = {to_nhwc[axis]: dim for axis, dim in examples.dynamic_shapes[0].items()}
    return ExampleInputs(examples.names, (pixels,), {}, (varying,))
