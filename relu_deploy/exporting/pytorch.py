"""Exports a loaded PyTorch source: decoding and normalization added, traced, and written as ONNX with its program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError, UsageError
from relu_deploy.exporting.example_inputs import ExampleInputs, accepted_batch_axes, example_inputs, input_specs
from relu_deploy.exporting.options import NORMALIZATION, ExportOptions, InputShape
from relu_deploy.exporting.programs import keeps_shapes, picture_examples, program_batch_axes, program_examples, program_inputs
from relu_deploy.exporting.sources import Loaded, import_torch
from relu_deploy.exporting.torch_to_onnx import Names, program_to_onnx, refuse_inputs, save_program, trace
from relu_deploy.preprocessing.reading import read_preprocess
from relu_deploy.storage.manifest import SOURCE
from relu_deploy.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

    from relu_deploy.zoo.model_recipe import ModelRecipe

__all__ = ["ExportedProgram", "export_pytorch"]


@dataclass(frozen=True)
class ExportedProgram:
    """A program that was exported.

    Attributes:
        program: The program, as it was written to the folder.
        model: Its checked graph.
        batch_axes: The batch axis of each input that was traced with a fixed batch: the graph does not tell.
        notes: What was chosen, one sentence each.
    """

    program: torch.export.ExportedProgram
    model: ir.Model
    batch_axes: dict[str, int | None]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Traced:
    """A program to write, the names of its inputs, and the batch axes of those with a batch axis that is known.

    call: The module that was traced, and with what; None for a program as it is in a file.
    """

    program: torch.export.ExportedProgram
    inputs: tuple[str, ...]
    batch_axes: dict[str, int | None]
    call: tuple[nn.Module, ExampleInputs] | None = None


def export_pytorch(loaded: Loaded, options: ExportOptions, folder: Path) -> ExportedProgram:
    """Write the program of a loaded source into `folder`, and return it with its graph.

    Raises:
        InputError: If torch cannot trace or write the model.
        UsageError: If an option does not fit the model.
    """
    traced = _program(loaded, options)
    program = traced.program
    names = Names(traced.inputs, _output_names(loaded.recipe, options.decode), only_batch_varies=loaded.program is None)
    try:
        model = program_to_onnx(program, names, options.opset)
    except InputError as refused:
        if traced.call is not None:
            refuse_inputs(*traced.call)
        if program is not loaded.program or loaded.module is None:
            raise
        try:
            # Of sizes such as multiples of 4, torch writes those that it derived itself.
            program = trace(loaded.module, program_examples(program, options.batch, None))
            model = program_to_onnx(program, names, options.opset)
        except InputError:
            # The program cannot be traced again: the first reason is the one that counts.
            raise refused from None
    save_program(program, folder / SOURCE)
    notes = () if traced.call is None else traced.call[1].notes
    return ExportedProgram(program, model, {} if options.batch == "dynamic" else traced.batch_axes, notes)


def _program(loaded: Loaded, options: ExportOptions) -> _Traced:
    """Return the program to write."""
    program = loaded.program
    if program is not None and not options.embed_preprocess:
        if options.batch_axes:
            raise UsageError(f"--batch-axis: {loaded.spec} says itself what varies in its inputs", "leave --batch-axis out")
        if options.inputs is None and keeps_shapes(program, options.batch):
            return _Traced(program, tuple(each.name for each in program_inputs(program)), {})
        shapes = None
        if options.inputs is not None:
            shapes = {spec.name: tuple(map(int, spec.shape)) for spec in input_specs(options.inputs, {}, "")}
        assert loaded.module is not None
        examples = program_examples(program, options.batch, shapes)
        return _Traced(trace(loaded.module, examples), examples.names, program_batch_axes(program))
    module = _with_steps(loaded, options)
    if program is not None and options.inputs is None:
        examples = picture_examples(program, options.batch)
        return _Traced(trace(module, examples), examples.names, {})
    specs, weights = _specs(loaded, module, options), _weights_dtype(module)
    examples = example_inputs(module, specs, options.batch, weights)
    try:
        traced = trace(module, examples)
    except InputError:
        if len(specs) < 2 or (found := _traced_otherwise(module, specs, options, weights)) is None:
            raise
        traced, examples, specs = found
    return _Traced(traced, examples.names, {spec.name: spec.batch_axis for spec in specs}, (module, examples))


def _traced_otherwise(
    module: nn.Module, specs: Sequence[TensorSpec], options: ExportOptions, weights: str
) -> tuple[torch.export.ExportedProgram, ExampleInputs, list[TensorSpec]] | None:
    """Return the program of `module` with other batch axes than those of `specs`, which it does not accept; None if there is none."""
    for others in accepted_batch_axes(module, specs, options.batch, options.batch_axes, weights):
        examples = example_inputs(module, others, options.batch, weights)
        try:
            return trace(module, examples), examples, others
        except InputError:
            continue
    return None


def _with_steps(loaded: Loaded, options: ExportOptions) -> nn.Module:
    """Return the loaded module, in eval mode, with decoding after it and normalization before it as the options say."""
    from relu_deploy.zoo.nn.preprocess import PixelsIn

    module, decode = loaded.module, options.decode
    assert module is not None
    if loaded.kind != "pt2":
        module.eval()
    is_detector = loaded.recipe is not None and loaded.recipe.task == "detection"
    if decode not in (None, "none") and not is_detector:
        raise UsageError(f"--decode {decode}: {loaded.name} is not a detector of the zoo", "leave --decode out")
    if is_detector and decode != "none":
        from relu_deploy.zoo.nn.detection import Detector, NonMaxSuppression

        assert loaded.recipe is not None
        _, height, width = loaded.recipe.shape
        limits = dict(loaded.recipe.postprocess or {})
        nms = NonMaxSuppression(**limits) if decode == "nms" else None
        module = Detector(module, module.decoder(height, width), nms)  # type: ignore[operator]
    if options.embed_preprocess:
        pixels = options.pixels
        if pixels is not None and "text" in pixels:
            raise UsageError(f"--embed-preprocess: {loaded.name} takes bytes and decodes them itself", "leave it out")
        if pixels is None:
            raise UsageError("--embed-preprocess needs to know the normalization", NORMALIZATION)
        steps, dtype = read_preprocess(pixels), getattr(import_torch(), _weights_dtype(module) or "float32")
        means, deviations = steps.mean or (0.0,), steps.std or (1.0,)
        module = PixelsIn(module, steps.scale, means, deviations, bgr=steps.color == "BGR", dtype=dtype)
    return module


def _specs(loaded: Loaded, module: nn.Module, options: ExportOptions) -> list[TensorSpec]:
    """Return the inputs to trace with. Raises UsageError if their shapes are not known."""
    known: Mapping[str, InputShape] | None = None
    if loaded.recipe is not None:
        known = {loaded.recipe.input_name: (1, *loaded.recipe.shape)}
    if not options.inputs and known is None:
        raise UsageError(f"the input shape of {loaded.spec} is not known", "give it, for instance --input x=1x3x224x224")
    specs = input_specs(dict(options.inputs or known or {}), options.batch_axes, _weights_dtype(module) or "float32")
    other = next((spec for spec in specs if options.batch != "dynamic" and spec.batch not in (None, 1, options.batch)), None)
    if other is not None and other.name not in options.batch_axes:
        raise UsageError(
            f"--batch {options.batch}: the first size of --input {other.name} is {other.batch}",
            f"give that size as 1 or {options.batch}, or say with --batch-axis {other.name}=1 or {other.name}=none where the batch is",
        )
    if "text" in (options.pixels or {}):
        specs = [TensorSpec(spec.name, "uint8", spec.shape, spec.batch_axis) for spec in specs]
    if options.embed_preprocess:
        if len(specs) != 1 or len(specs[0].shape) != 4:
            raise UsageError("--embed-preprocess needs a model with one NCHW picture input", "leave it out for this model")
        n, c, h, w = specs[0].shape
        specs = [TensorSpec(specs[0].name, "uint8", (n, h, w, c), specs[0].batch_axis)]
    return specs


def _weights_dtype(module: nn.Module) -> str:
    """Return the element type of the floating-point weights of `module` if all have the same, else ""."""
    types = {each.dtype for each in module.parameters() if each.is_floating_point()}
    return str(types.pop()).removeprefix("torch.") if len(types) == 1 else ""


def _output_names(recipe: ModelRecipe | None, decode: str | None) -> list[str] | None:
    if recipe is None or recipe.task != "detection":
        return None
    if decode == "none":
        return ["cls_logits", "bbox_regression", "bbox_ctrness"]
    return ["boxes", "scores", "labels", "image"] if decode == "nms" else ["boxes", "scores"]
