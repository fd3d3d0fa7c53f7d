"""From a PyTorch module, or a program that is already exported, to a checked ONNX graph."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import InputError
from relu_deploy.exporting.example_inputs import ExampleInputs
from relu_deploy.exporting.lower_opset import LOWEST_OF_TORCH, lower_opset
from relu_deploy.exporting.node_scopes import annotate
from relu_deploy.exporting.plain_interface import plain_interface
from relu_deploy.exporting.sources import import_torch, reason_of
from relu_deploy.gc_pause import without_collecting
from relu_deploy.graph import normalize_model, opset_of
from relu_deploy.graph.rewriting.wide_integer_relu import replace_wide_integer_relus

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

__all__ = ["Names", "program_to_onnx", "refuse_inputs", "save_program", "trace"]


@dataclass(frozen=True)
class Names:
    """Names of the ONNX graph's inputs and outputs.

    Attributes:
        inputs: Of the inputs, in the program's order.
        outputs: Of the outputs; None for "y", or "y0", "y1", … or the keys of a dictionary, followed by "_out" where an input
            has that name.
        only_batch_varies: Whether any varying dimension of an input is the batch; else only a leading one is.
    """

    inputs: Sequence[str]
    outputs: Sequence[str] | None = None
    only_batch_varies: bool = True


def trace(module: nn.Module, examples: ExampleInputs) -> torch.export.ExportedProgram:
    """Return the program of `module`.

    Raises:
        InputError: If the module does not accept the inputs, or torch cannot trace it.
    """
    torch = import_torch()
    interface = plain_interface(module, examples.signature, examples.converters)
    try:
        with _quiet_torch(), _fast_tracing(), torch.no_grad(), interface:
            return torch.export.export(  # type: ignore[no-any-return]
                module, examples.arguments, dict(examples.keywords), dynamic_shapes=examples.dynamic_shapes
            )
    except Exception as error:  # TorchExportError, UserError, ConstraintViolationError and more
        refuse_inputs(module, examples)
        hint = (
            "if the model fixes its batch, export it with --batch 1; if an input has its batch elsewhere or none, say so "
            "with --batch-axis; if the model branches on data, use torch.where or torch.cond"
        )
        raise InputError(f"torch cannot trace this model: {_trace_reason(error)}", hint) from error


def _trace_reason(error: BaseException) -> str:
    """Return why torch cannot trace a model, with the sizes that it does not accept."""
    found = re.search(r"^ *- (.*specialized it to be a constant \((\d+)\)|Not all values of .*)", str(error), re.MULTILINE)
    if found is None:
        return reason_of(error)
    if found[2]:
        return f"an operation takes no other size than the one that it is traced with, {found[2]}, where the batch varies"
    # L['x'].size()[0] is the first size of x.
    return " ".join(re.sub(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]", r"\1.shape[\2]", found[1]).split())


def refuse_inputs(module: nn.Module, examples: ExampleInputs) -> None:
    """Raise InputError if it is plainly the inputs that `module` does not accept: tracing accepts some that a run does not."""
    torch = import_torch()
    try:
        with _quiet_torch(), torch.no_grad(), plain_interface(module, examples.signature, examples.converters):
            module(*examples.arguments, **examples.keywords)
    except Exception as error:  # the user's forward may raise anything
        types = [str(each.dtype).removeprefix("torch.") for each in examples.tensors]
        weights = sorted({str(each.dtype).removeprefix("torch.") for each in module.parameters()})
        known = f"; its weights are {' and '.join(weights)}" if weights and not set(types) <= set(weights) else ""
        raise InputError(
            f"the model does not accept an input of shape {examples} ({', '.join(types)}): {reason_of(error)}",
            f"give the right one with --input name=1x3x224x224, or with its type as --input ids=1x64:int64{known}",
        ) from error


def program_to_onnx(program: torch.export.ExportedProgram, names: Names, opset: int) -> ir.Model:
    """Return the checked graph of `program`.

    Raises:
        InputError: If torch cannot write it, or cannot write it at this opset.
    """
    torch = import_torch()
    from relu_deploy.zoo.nn.detection import ONNX_TRANSLATIONS

    with _quiet_torch(), _fast_tracing(), torch.no_grad():
        try:
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=max(opset, LOWEST_OF_TORCH),
                input_names=list(names.inputs),
                output_names=list(names.outputs or _output_names(program, names.inputs)),
                custom_translation_table=ONNX_TRANSLATIONS(),
                verbose=False,
            )
        except Exception as error:  # the exporter's errors are many and wrap each other
            raise InputError(
                f"torch cannot write this model as ONNX: {reason_of(error)}",
                "see the operator it names; --debug shows everything",
            ) from error
    model = converted.model
    _rename_weights(model)
    annotate(model, program, names.only_batch_varies)
    if opset < LOWEST_OF_TORCH:
        model = lower_opset(model, opset)
    model = normalize_model(model, "the exported graph")
    replace_wide_integer_relus(model)
    if opset_of(model) != opset:
        raise InputError(
            f"torch could only write this model at opset {opset_of(model)}, not {opset}",
            f"export it with --opset {opset_of(model)}",
        )
    return model


def _rename_weights(model: ir.Model) -> None:
    """Rename the initializers that are called like an input or output, in place: torch names them after the parameters."""
    interface = {str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)}
    weights = model.graph.initializers
    for value in [value for name, value in weights.items() if name in interface]:
        if value in model.graph.outputs:
            continue
        del weights[str(value.name)]
        value.name = _free_name(f"{value.name}_weight", interface | weights.keys())
        weights[value.name] = value


def save_program(program: torch.export.ExportedProgram, file: Path) -> None:
    """Write `program` to `file`.

    Raises:
        InputError: If it cannot be written, or the program is one that PyTorch reads and cannot write.
    """
    torch = import_torch()
    try:
        with _quiet_torch():
            torch.export.save(program, str(file))
    except (OSError, RuntimeError) as error:  # RuntimeError for a full disk
        raise InputError(f"cannot write {file}: {reason_of(error)}", "choose a place with enough free space") from error
    except Exception as error:  # a damaged program makes PyTorch raise anything
        raise InputError(f"the program cannot be saved: {reason_of(error)}", "export the model from PyTorch again") from error


def _output_names(program: torch.export.ExportedProgram, inputs: Sequence[str]) -> list[str]:
    outputs = program.graph_signature.user_outputs
    count = len([value for value in outputs if value is not None])
    paths = _paths_of(program.call_spec.out_spec)
    if paths and len(paths) == len(outputs) and len(set(paths)) == len(paths):
        names = [path for path, value in zip(paths, outputs, strict=True) if value is not None]
    else:
        names = ["y"] if count == 1 else [f"y{index}" for index in range(count)]
    for index, name in enumerate(names):
        if name in inputs:
            names[index] = _free_name(name, {*inputs, *names})
    return names


def _paths_of(spec: Any) -> list[str]:
    """Return the keys that lead to each leaf of a dictionary, such as "hidden.0"; [] where the outermost container is another."""
    if spec is None or spec.type is not dict:
        return []

    def paths(part: Any, path: str) -> Iterator[str]:
        if part.is_leaf():
            yield path
            return
        keys = part.context if part.type is dict else range(part.num_children)
        for key, child in zip(keys, part.children(), strict=True):
            yield from paths(child, f"{path}.{key}" if path else str(key))

    return list(paths(spec, ""))


def _free_name(name: str, taken: AbstractSet[str]) -> str:
    while name in taken:
        name += "_out"
    return name


@contextlib.contextmanager
def _fast_tracing() -> Iterator[None]:
    """Trace without garbage collection and without stack traces, which would also put this machine's paths into the bundle."""
    config = import_torch().fx.config
    before = config.do_not_emit_stack_traces
    config.do_not_emit_stack_traces = True
    try:
        with without_collecting():
            yield
    finally:
        config.do_not_emit_stack_traces = before


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Silence what torch's exporter prints about itself; its errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
