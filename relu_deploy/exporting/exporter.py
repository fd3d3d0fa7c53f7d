"""From a PyTorch module (or a finished ONNX file) to a bundle.

    source                         how it is loaded
    zoo name                       built, with the zoo's weights, --weights FILE, or random ones
    package.module:callable        imported and called; returns an nn.Module
    FILE.pt2                       an exported program, with its own dynamic shapes and element types
    FILE.onnx                      adopted: checked, shapes inferred, every node named; there is no PyTorch program

The graph is checked afterwards: torch may silently keep a lower opset than the requested one, and each Relu must be found
in it with the PyTorch module it came from. Graph and program are evaluated once in float64, and the verdict is stored in the
manifest with the hashes of both: it makes the graph the truth that the graph and its variants are verified against.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.bundle import Bundle, create_bundle, refuse_existing
from relu_deploy.errors import ReluDeployError, UsageError, nearest
from relu_deploy.exporting.embedding import embed_normalization
from relu_deploy.exporting.options import DEFAULT_OPSET, NORMALIZATION, ExportOptions, InputShape
from relu_deploy.exporting.picture_input import chosen_pixels, manifest_preprocess
from relu_deploy.exporting.pytorch import export_pytorch
from relu_deploy.exporting.sources import Loaded, import_torch, load_source, unwrapped
from relu_deploy.graph import find_relus, io_specs, load_normalized_model, opset_of, save_model, set_input_shapes
from relu_deploy.graph.model import normalize_model
from relu_deploy.graph.shapes.batching import batch_axes
from relu_deploy.preprocessing.reading import read_preprocess
from relu_deploy.storage.bundle_files import replace_files
from relu_deploy.storage.manifest import MODEL, SCHEMA, seal
from relu_deploy.tasks.metrics import labeled
from relu_deploy.verification.program_verdict import ProgramVerdict, compare_with_program, relus_of_program
from relu_deploy.version import __version__
from relu_deploy.zoo.model_recipe import ModelRecipe

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

__all__ = ["DEFAULT_OPSET", "Exported", "export", "export_source"]


@dataclass(frozen=True)
class Exported:
    """The result of `export_source`.

    Attributes:
        bundle: The bundle that was made.
        opset: Operator set of its graph.
        nodes: Number of nodes in the graph.
        relus: Number of Relus among them.
        seconds: Time it took.
        untrained: Whether the weights are random.
        notes: What was repaired in an `.onnx` source, or chosen among several possibilities, one sentence each.
        verdict: On the graph against the PyTorch program; None if they were not compared.
        not_compared: Why they were not compared, "" if they were.
    """

    bundle: Bundle
    opset: int
    nodes: int
    relus: int
    seconds: float
    untrained: bool
    notes: tuple[str, ...] = ()
    verdict: ProgramVerdict | None = None
    not_compared: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields of `relu-deploy export --json`."""
        return {
            "bundle": str(self.bundle.path),
            "onnx": str(self.bundle.onnx),
            "opset": self.opset,
            "nodes": self.nodes,
            "relus": self.relus,
            "inputs": [spec.to_json() for spec in self.bundle.inputs],
            "outputs": [spec.to_json() for spec in self.bundle.outputs],
            "untrained": self.untrained,
            "weights": self.bundle.manifest["source"]["weights"],
            "notes": list(self.notes),
            "program_verdict": None if self.verdict is None else self.verdict.to_json(),
            "not_compared": self.not_compared,
            "seconds": round(self.seconds, 3),
        }


def export(
    source: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    inputs: Mapping[str, InputShape] | None = None,
    batch: int | str = "dynamic",
    **options: Any,
) -> Bundle:
    """Return the bundle made from `source` at `out`.

    Args:
        source: An nn.Module, a zoo name, "package.module:callable", a `.pt2` or an `.onnx` file.
        out: The bundle to make.
        inputs: Shape of each input, batch included, or `(shape, dtype)`; known for zoo models and `.pt2` files.
        batch: "dynamic" or a fixed size.
        **options: The other fields of `ExportOptions`.

    Raises:
        InputError: If the source cannot be exported; nothing is written then.
        UsageError: If an option makes no sense.
    """
    return export_source(source, out, inputs=inputs, batch=batch, **options).bundle


def export_source(source: nn.Module | str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> Exported:
    """Return the bundle made from `source`, with what is worth reporting about it.

    Args:
        source: As for `export`.
        out: The bundle to make.
        **options: The fields of `ExportOptions`.

    Raises:
        InputError: If the source cannot be exported; nothing is written then.
        UsageError: If an option makes no sense.
    """
    out, chosen = Path(out), ExportOptions(**options)
    refuse_existing(out, chosen.force)
    started = time.perf_counter()
    loaded = _loaded(source, chosen)
    chosen = replace(chosen, pixels=chosen_pixels(chosen, loaded.recipe))
    verdict, not_compared, made = None, "", None
    with create_bundle(out, force=chosen.force) as folder:
        if loaded.module is None:
            model, axes = _adopted(Path(str(source)), chosen)
            chosen, not_compared = replace(chosen, batch_axes={**axes, **chosen.batch_axes}), "there is no PyTorch program"
        elif chosen.shapes:
            raise UsageError("--shape is for ONNX files", "write it as --input, which gives a PyTorch model its shapes")
        else:
            made = export_pytorch(loaded, chosen, folder)
            model, chosen = made.model, replace(chosen, batch_axes={**made.batch_axes, **chosen.batch_axes})
        save_model(model, folder / MODEL)
        manifest = seal(folder, _manifest(model, loaded, chosen))
        if made is not None:
            verdict, not_compared = _compared(Bundle(folder, manifest), made.program, chosen)
        if verdict is not None:
            manifest = replace_files(folder, {**manifest, "program_verdict": verdict.to_json()}, {})
    return Exported(
        Bundle(out, manifest),
        opset_of(model),
        len(model.graph),
        len(find_relus(model)),
        time.perf_counter() - started,
        loaded.recipe is not None and loaded.weights is None,
        (*loaded.notes, *(model.meta.get("notes", ()) if made is None else made.notes)),
        verdict,
        not_compared,
    )


def _compared(bundle: Bundle, program: torch.export.ExportedProgram, options: ExportOptions) -> tuple[ProgramVerdict | None, str]:
    """Return the verdict on the graph of `bundle` against `program`, or None and the reason."""
    if not options.compare:
        return None, "the comparison was switched off"
    from relu_deploy.backends.torch.load import program_session

    relus = relus_of_program(bundle)
    try:
        with closing(program_session(program, bundle, relus)) as session:
            return compare_with_program(bundle, session, relus), ""
    except ReluDeployError as error:
        return None, error.message


def _loaded(source: nn.Module | str | os.PathLike[str], options: ExportOptions) -> Loaded:
    if isinstance(source, str | os.PathLike):
        return load_source(str(source), options)
    if not isinstance(source, import_torch().nn.Module):
        raise UsageError(f"a {type(source).__name__} cannot be exported", "give an nn.Module, a name of the zoo, or a file")
    module = unwrapped(source)
    return Loaded(module, "module", type(module).__name__)


def _adopted(file: Path, options: ExportOptions) -> tuple[ir.Model, dict[str, int | None]]:
    """Return the graph in `file`, and the batch axis of each tensor where the graph does not tell because its batch was fixed."""
    for option, value in options.for_pytorch_only.items():
        if value:
            raise UsageError(f"{option} needs a PyTorch source; {file} is a finished ONNX graph", f"leave {option} out")
    model = load_normalized_model(file)
    model, axes = _with_fixed_sizes(model, options)
    if not options.embed_preprocess:
        return model, axes
    if options.pixels is None:
        raise UsageError("--embed-preprocess needs to know the normalization", NORMALIZATION)
    described = manifest_preprocess(options, io_specs(model)[0], embedded=False)
    return normalize_model(embed_normalization(model, read_preprocess(described or {})), str(file)), {}


def _with_fixed_sizes(model: ir.Model, options: ExportOptions) -> tuple[ir.Model, dict[str, int | None]]:
    """Return `model` with the sizes of `options.shapes` and `options.batch`, and its batch axes, {} where no size was given.

    Raises:
        UsageError: If a shape does not fit the graph, or the batch is fixed at another size or does not exist.
    """
    if not options.shapes and options.batch == "dynamic":
        return model, {}
    axes = batch_axes(model)
    if options.batch == "dynamic":
        return set_input_shapes(model, options.shapes), axes
    shapes: dict[str, Sequence[int | str]] = dict(options.shapes)
    batches = []
    for spec in io_specs(model)[0]:
        axis = options.batch_axes.get(spec.name, axes[spec.name])
        if axis is None or axis >= len(spec.shape):
            continue
        batches.append(spec.shape[axis])
        given = shapes.get(spec.name, spec.shape)
        if len(given) == len(spec.shape) and isinstance(spec.shape[axis], str):
            shapes[spec.name] = [options.batch if place == axis else size for place, size in enumerate(given)]
    other = next((size for size in batches if isinstance(size, int) and size != options.batch), None)
    if other is not None or not batches:
        reason = "no input has a batch axis" if other is None else f"the graph fixes its batch at {other}"
        raise UsageError(
            f"--batch {options.batch}: {reason}", "leave --batch out, or say with --batch-axis which axis is the batch"
        )
    return set_input_shapes(model, shapes), axes


def _manifest(model: ir.Model, loaded: Loaded, options: ExportOptions) -> dict[str, Any]:
    """Return the manifest without the hashes of the files."""
    inputs, outputs = io_specs(model)
    names = [spec.name for spec in (*inputs, *outputs)]
    if unknown := [name for name in options.batch_axes if name not in names]:
        raise UsageError(f"--batch-axis: there is no input or output {unknown[0]!r}", nearest(unknown[0], names))
    axes = {**batch_axes(model), **options.batch_axes}
    inputs, outputs = (tuple(replace(spec, batch_axis=axes[spec.name]) for spec in specs) for specs in (inputs, outputs))
    manifest = {
        "schema": SCHEMA,
        "name": options.name or loaded.name,
        "made_by": _versions(),
        "source": {"kind": loaded.kind, "spec": loaded.spec, "weights": loaded.weights},
        "opset": opset_of(model),
        "inputs": [spec.to_json() for spec in inputs],
        "outputs": [spec.to_json() for spec in outputs],
        **_recipe_fields(loaded.recipe, options),
        "preprocess": manifest_preprocess(options, inputs, embedded=options.embed_preprocess),
        "variants": {},
    }
    if options.labels is not None:
        manifest |= labeled(options.labels, outputs, manifest["task"])
    return manifest


def _recipe_fields(recipe: ModelRecipe | None, options: ExportOptions) -> dict[str, Any]:
    if recipe is None:
        return {"task": None, "labels": None, "postprocess": None, "dataset": None}
    postprocess = dict(recipe.postprocess or {}) or None
    if recipe.task == "detection":
        postprocess = {**(postprocess or {}), "decode": options.decode or "boxes"}
    return {
        "task": recipe.task,
        "labels": list(recipe.labels) if recipe.labels else None,
        "postprocess": postprocess,
        "dataset": recipe.dataset,
    }


def _versions() -> dict[str, str]:
    import onnx

    made_by = {"relu_deploy": __version__, "onnx": onnx.__version__}
    if "torch" in sys.modules:
        made_by["torch"] = str(sys.modules["torch"].__version__)
    return made_by
