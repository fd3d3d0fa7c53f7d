"""Programs that are already exported (`.pt2`): their inputs, and the sizes to trace them with again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import UsageError
from relu_deploy.exporting.example_inputs import ExampleInputs

if TYPE_CHECKING:
    import torch

__all__ = [
    "ProgramInput",
    "batch_symbol",
    "keeps_shapes",
    "picture_examples",
    "program_batch_axes",
    "program_examples",
    "program_inputs",
]

#: Size of a varying axis whose example is not stored: 0 and 1 are special to torch.
EXAMPLE_SIZE = 2


@dataclass(frozen=True)
class ProgramInput:
    """An input of a program.

    Attributes:
        name: Its name.
        dtype: Its element type.
        shape: An int for each fixed axis, and torch's symbol or expression for each that varies.
        sizes: Sizes to trace with.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    sizes: tuple[int, ...]

    @property
    def varying(self) -> tuple[int, ...]:
        """Return the axes whose size varies."""
        return self.axes_of(None)

    def axes_of(self, symbol: str | None) -> tuple[int, ...]:
        """Return the axes whose size is `symbol`, those of any symbol for None."""
        return tuple(axis for axis, dim in enumerate(self.shape) if isinstance(dim, str) and (symbol is None or dim == symbol))


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
        shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
        sizes = tuple(dim if isinstance(dim, int) else _example_size(dim) for dim in value.shape)
        inputs.append(ProgramInput(str(name), str(value.dtype).removeprefix("torch."), shape, sizes))
    return inputs


def _example_size(dim: torch.SymInt) -> int:
    """Return the size of a varying axis that the program was traced with: another one may be too small, or no multiple."""
    hint = dim.node.hint
    return hint if isinstance(hint, int) else EXAMPLE_SIZE


def batch_symbol(inputs: Sequence[ProgramInput]) -> str | None:
    """Return the symbol of the batch, None if no axis can be told to be the batch.

    It is the first leading axis that varies. Where none does, as in a program of sequences with the time in front, it is the only
    symbol that all of several inputs have.
    """
    leading = (each.shape[0] for each in inputs if each.shape and isinstance(each.shape[0], str))
    if (first := next(leading, None)) is not None:
        return first
    shared = set.intersection(*({dim for dim in each.shape if isinstance(dim, str)} for each in inputs)) if inputs else set()
    return shared.pop() if len(inputs) > 1 and len(shared) == 1 else None


def program_batch_axes(program: torch.export.ExportedProgram) -> dict[str, int | None]:
    """Return the batch axis of each input of `program`, None for one without a batch."""
    inputs = program_inputs(program)
    symbol = batch_symbol(inputs)
    return {each.name: next(iter(each.axes_of(symbol)), None) if symbol else None for each in inputs}


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
        batch: "dynamic" keeps what varies in the program; a number fixes the batch, wherever it is in an input.
        shapes: Sizes to fix by input name; only the batch varies then.

    Raises:
        UsageError: If `shapes` does not name the program's inputs.
    """
    import torch
    from torch.utils import _pytree

    inputs = program_inputs(program)
    symbol = batch_symbol(inputs)
    if batch != "dynamic" and symbol is None:
        raise UsageError(
            f"--batch {batch}: the program fixes its batch to {inputs[0].sizes[0] if inputs and inputs[0].sizes else 'none'}",
            "export the program with a dynamic batch, or leave --batch out",
        )
    if shapes is not None and sorted(shapes) != sorted(each.name for each in inputs):
        raise UsageError(f"--input: the program's inputs are {', '.join(each.name for each in inputs)}", "give the shape of each")
    rows = max(EXAMPLE_SIZE, _least(program, symbol)) if batch == "dynamic" else int(batch)
    tensors, dynamic = [], []
    for each in inputs:
        of_batch = each.axes_of(symbol) if symbol else ()
        given = each.sizes if shapes is None else shapes[each.name]
        sizes = [rows if axis in of_batch else size for axis, size in enumerate(given)]
        varying = each.varying if shapes is None else of_batch
        if batch != "dynamic":
            varying = tuple(axis for axis in varying if axis not in of_batch)
        tensors.append(torch.zeros(sizes, dtype=getattr(torch, each.dtype)))
        dynamic.append(dict.fromkeys(varying, torch.export.Dim.AUTO))
    names = tuple(each.name for each in inputs)
    arguments, keywords = _pytree.tree_unflatten(tensors, program.call_spec.in_spec)
    positional, named = _pytree.tree_unflatten(dynamic, program.call_spec.in_spec)
    return ExampleInputs(names, tuple(arguments), keywords, (*positional, *named.values()))


def _least(program: torch.export.ExportedProgram, symbol: str | None) -> int:
    """Return the smallest size that the program accepts for `symbol`, 0 where it has no limit."""
    ranges = {str(key): limits for key, limits in program.range_constraints.items()}
    return int(ranges[symbol].lower) if symbol in ranges else 0


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
