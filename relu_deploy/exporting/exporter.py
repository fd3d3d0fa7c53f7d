"""From a PyTorch module (or a finished ONNX file) to a bundle.

    source                         what happens
    zoo name                       built, with the zoo's weights, --weights FILE, or random ones
    package.module:callable        imported and called; gives an nn.Module
    FILE.pt2                       loaded with torch.export.load
    FILE.onnx                      adopted: checked, shapes inferred, every node named; no PyTorch program travels along

The graph is asserted after the fact: torch may silently keep a lower opset than it was asked for, and Relus must be
found again in it, each with the PyTorch module it came from.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.bundle import MODEL, SCHEMA, SOURCE, Bundle, create_bundle, refuse_existing, seal
from relu_deploy.data.texts import takes_texts
from relu_deploy.errors import InputError, UsageError
from relu_deploy.exporting.sources import Loaded, import_torch, load_source, reason_of
from relu_deploy.gc_pause import without_collecting
from relu_deploy.graph import find_relus, io_specs, load_normalized_model, name_nodes, normalize_model, opset_of, save_model
from relu_deploy.graph.relus import SCOPE_KEY, TORCH_NODE_KEY
from relu_deploy.tasks.metrics import labeled
from relu_deploy.tensors import TensorSpec
from relu_deploy.version import __version__
from relu_deploy.zoo.recipes import ModelRecipe

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

__all__ = ["DEFAULT_OPSET", "Exported", "export", "export_source"]

DEFAULT_OPSET = 20
DECODES = ("none", "boxes", "nms")


@dataclass(frozen=True)
class Exported:
    """What `export_source` made. nodes, relus: how many are in the graph; untrained: the weights are random."""

    bundle: Bundle
    opset: int
    nodes: int
    relus: int
    seconds: float
    untrained: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.bundle.path),
            "onnx": str(self.bundle.onnx),
            "opset": self.opset,
            "nodes": self.nodes,
            "relus": self.relus,
            "inputs": [spec.to_json() for spec in self.bundle.inputs],
            "outputs": [spec.to_json() for spec in self.bundle.outputs],
            "untrained": self.untrained,
            "seconds": round(self.seconds, 3),
        }


def export(
    source: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    inputs: Mapping[str, Sequence[int]] | None = None,
    batch: int | str = "dynamic",
    **options: Any,
) -> Bundle:
    """Return the bundle made from `source` at `out`.

    source: an nn.Module, or anything the module's table lists. inputs: shape of each input, batch included; known for
    zoo models. batch: "dynamic" or a fixed size. options: as for `export_source`.
    Raises InputError or UsageError; nothing is written then.
    """
    return export_source(source, out, inputs=inputs, batch=batch, **options).bundle


def export_source(
    source: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    inputs: Mapping[str, Sequence[int]] | None = None,
    batch: int | str = "dynamic",
    opset: int = DEFAULT_OPSET,
    weights: str | os.PathLike[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    embed_preprocess: bool = False,
    pixels: Mapping[str, Any] | None = None,
    decode: str | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    force: bool = False,
    name: str | None = None,
) -> Exported:
    """Return the bundle made from `source`, with what is worth reporting about it.

    weights: file to load into a zoo model or callable. arguments: for the zoo architecture or the callable.
    embed_preprocess: take uint8 NHWC and normalize in the graph; `pixels` (scale, mean, std) says how, known for zoo models.
    decode: for detectors, "none" gives raw head maps, "boxes" decoded boxes and scores, "nms" final detections.
    labels: names of the classes, which make a model that nobody knows a classifier: its accuracy can then be measured.
    seed: of random weights. Raises InputError or UsageError; nothing is written then.
    """
    out = Path(out)
    refuse_existing(out, force)
    if batch != "dynamic" and not (isinstance(batch, int) and batch >= 1):
        raise UsageError(f"batch must be a positive number or 'dynamic', not {batch!r}", "for instance --batch 1")
    if decode not in (None, *DECODES):
        raise UsageError(f"there is no decoding called {decode!r}", f"one of: {', '.join(DECODES)}")
    started = time.perf_counter()
    if not isinstance(source, str | os.PathLike):
        loaded = Loaded(source, "module", type(source).__name__)
    else:
        loaded = load_source(str(source), weights, arguments or {}, seed)
    pixels = pixels or (loaded.recipe.preprocess if loaded.recipe else None)
    with create_bundle(out, force=force) as folder:
        if loaded.module is None:
            for given, what in (
                (embed_preprocess, "--embed-preprocess"),
                (weights, "--weights"),
                (inputs, "--input"),
                (decode, "--decode"),
            ):
                if given:
                    raise UsageError(f"{what} needs a PyTorch source; {source} is a finished ONNX graph", f"leave {what} out")
            model = load_normalized_model(Path(str(source)))
        else:
            module = _with_steps(loaded, embed_preprocess, pixels, decode)
            shapes = _input_shapes(loaded, inputs, embed_preprocess)
            names = _output_names(loaded.recipe, decode)
            bytes_in = embed_preprocess or "text" in (pixels or {})
            model = _to_onnx(module, shapes, batch, opset, bytes_in, names, folder)
        save_model(model, folder / MODEL)
        specs_in, specs_out = io_specs(model)
        manifest = {
            "schema": SCHEMA,
            "name": name or loaded.name,
            "made_by": _versions(),
            "source": {"kind": loaded.kind, "spec": loaded.spec, "weights": loaded.weights},
            "opset": opset_of(model),
            "inputs": [spec.to_json() for spec in specs_in],
            "outputs": [spec.to_json() for spec in specs_out],
            **_knowledge(loaded.recipe, embed_preprocess, pixels, decode),
            "variants": {},
        }
        if labels is not None:
            manifest |= labeled(labels, specs_out, manifest["task"])
        if (
            manifest["preprocess"]
            and not takes_texts(manifest)
            and _channels_last(specs_in[0], len(manifest["preprocess"]["mean"]))
        ):
            manifest["preprocess"]["layout"] = "NHWC"
        manifest = seal(folder, manifest)
    return Exported(
        Bundle(out, manifest),
        opset_of(model),
        len(model.graph),
        len(find_relus(model)),
        time.perf_counter() - started,
        loaded.recipe is not None and loaded.weights is None,
    )


def _with_steps(loaded: Loaded, embed: bool, pixels: Mapping[str, Any] | None, decode: str | None) -> nn.Module:
    """Return the loaded module, in eval mode, with decoding behind it and normalization before it where asked for."""
    from relu_deploy.zoo.nn.preprocess import PixelsIn

    module = loaded.module
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
    if embed:
        if pixels is not None and "text" in pixels:
            raise UsageError(f"--embed-preprocess: {loaded.name} takes bytes and decodes them itself", "leave it out")
        if pixels is None:
            raise UsageError(
                "--embed-preprocess needs to know the normalization",
                "give it with --mean and --std, for instance --mean 0.5 --std 0.25",
            )
        module = PixelsIn(module, pixels["scale"], pixels["mean"], pixels["std"])
    return module


def _input_shapes(loaded: Loaded, inputs: Mapping[str, Sequence[int]] | None, embed: bool) -> dict[str, tuple[int, ...]]:
    given = {name: tuple(shape) for name, shape in (inputs or {}).items()}
    known = loaded.shapes or ({loaded.recipe.input_name: (1, *loaded.recipe.shape)} if loaded.recipe else None)
    if not given and known is None:
        raise UsageError(f"the input shape of {loaded.spec} is not known", "give it, for instance --input x=1x3x224x224")
    shapes = given or {name: tuple(shape) for name, shape in (known or {}).items()}
    if embed:
        if len(shapes) != 1 or len(next(iter(shapes.values()))) != 4:
            raise UsageError("--embed-preprocess needs a model with one NCHW picture input", "leave it out for this model")
        shapes = {name: (n, h, w, c) for name, (n, c, h, w) in shapes.items()}
    return shapes


def _output_names(known: ModelRecipe | None, decode: str | None) -> list[str] | None:
    if known is None or known.task != "detection":
        return None
    if decode == "none":
        return ["cls_logits", "bbox_regression", "bbox_ctrness"]
    return ["boxes", "scores", "labels", "image"] if decode == "nms" else ["boxes", "scores"]


def _to_onnx(
    module: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    batch: int | str,
    opset: int,
    bytes_in: bool,
    names: list[str] | None,
    folder: Path,
) -> ir.Model:
    """Return the checked graph of `module`, and leave the exported program in `folder`."""
    torch = import_torch()
    dynamic = batch == "dynamic"
    # torch specializes a dimension whose example is 1, so a varying batch is traced with 2.
    rows = 2 if dynamic else int(batch)
    dtype = torch.uint8 if bytes_in else torch.float32
    examples = tuple(torch.zeros((rows, *shape[1:]), dtype=dtype) for shape in shapes.values())
    with _quiet_torch(), _brisk_torch(), torch.no_grad():
        program = _traced(module, examples, dynamic)
        torch.export.save(program, str(folder / SOURCE))
        count = len([value for value in program.graph_signature.user_outputs if value is not None])
        outputs = names[:count] if names else ["y"] if count == 1 else [f"y{index}" for index in range(count)]
        from relu_deploy.zoo.nn.detection import ONNX_TRANSLATIONS

        try:
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=list(shapes),
                output_names=outputs,
                custom_translation_table=ONNX_TRANSLATIONS(),
                verbose=False,
            )
        except Exception as error:  # the exporter's errors are many and wrap each other
            raise InputError(
                f"torch cannot write this model as ONNX: {reason_of(error)}",
                "see the operator it names; --debug shows everything",
            ) from error
    model = converted.model
    _annotate(model, program)
    model = normalize_model(model, "the exported graph")
    if opset_of(model) != opset:
        raise InputError(
            f"torch could only write this model at opset {opset_of(model)}, not {opset}",
            f"export it with --opset {opset_of(model)}",
        )
    return model


def _traced(module: nn.Module, examples: tuple[Any, ...], dynamic: bool) -> torch.export.ExportedProgram:
    torch = import_torch()
    shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in examples) if dynamic else None
    try:
        return torch.export.export(module, examples, dynamic_shapes=shapes)
    except Exception as error:  # TorchExportError, UserError, ConstraintViolationError and more
        _refuse_shapes(module, examples)
        hint = "if the model fixes its batch, export it with --batch 1; if it branches on data, use torch.where or torch.cond"
        raise InputError(f"torch cannot trace this model: {reason_of(error)}", hint) from error


def _refuse_shapes(module: nn.Module, examples: tuple[Any, ...]) -> None:
    """Raise InputError when it is plainly the shape that `module` does not accept."""
    try:
        module(*examples)
    except Exception as error:  # the user's forward may raise anything
        sizes = ", ".join("x".join(map(str, example.shape)) for example in examples)
        raise InputError(
            f"the model does not accept an input of shape {sizes}: {reason_of(error)}",
            "give the right one with --input name=1x3x224x224",
        ) from error


def _annotate(model: ir.Model, program: torch.export.ExportedProgram) -> None:
    """Keep on each node its PyTorch scope and, where known, its node in the program; drop the exporter's notes (local paths).

    A varying batch is called "batch", whatever symbol torch gave it.
    """
    shape = model.graph.inputs[0].shape
    if shape is not None and len(shape):
        _rename_dim(model, shape[0], "batch")
    scope_of = {}
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "").strip("[]").replace("'", "").split(", ")
        scope = scopes[-2] if len(scopes) > 1 else ""
        scope_of[node] = (scope, _family(scopes[-1]))
        # The exporter's own names ("n4_3") tell nobody where a node is.
        node.name = f"{scope}/{node.op_type}" if scope else None
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    name_nodes(model)
    for node, name in _origins(scope_of, program).items():
        node.metadata_props[TORCH_NODE_KEY] = name
    for node, (scope, _) in scope_of.items():
        if scope:
            node.metadata_props[SCOPE_KEY] = scope


def _origins(scope_of: Mapping[ir.Node, tuple[str, str]], program: torch.export.ExportedProgram) -> dict[ir.Node, str]:
    """Return for nodes of the graph the node of the program whose value they give.

    The exporter decomposes and folds, so names differ. Within one scope both sides stand in the program's order: of
    the k-th operator of a family (relu, add) the last ONNX node gives its value. A family that has another number of
    operators on the two sides is left alone, but for a scope whose one program node ends in one ONNX node.
    """
    theirs: dict[tuple[str, str], list[str]] = {}
    alone: dict[str, list[str]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "_schema", None):
            theirs.setdefault((_scope(node), _family(node.target._schema.name.split("::")[-1])), []).append(node.name)
            alone.setdefault(_scope(node), []).append(node.name)
    ours: dict[tuple[str, str], list[ir.Node]] = {}
    last: dict[str, ir.Node] = {}
    for node, (scope, family) in scope_of.items():
        ours.setdefault((scope, family), []).append(node)
        last[scope] = node
    origins: dict[ir.Node, str] = {}
    for key, nodes in ours.items():
        if len(nodes) == len(theirs.get(key, ())):
            origins |= dict(zip(nodes, theirs[key], strict=True))
    for scope, names in alone.items():
        if len(names) == 1 and scope in last:
            origins[last[scope]] = names[0]
    return origins


def _family(name: str) -> str:
    """Return what kind of operator a name such as `add_828`, `hardtanh_` or `_native_batch_norm_legit_3` stands for."""
    name = name.strip("_").rstrip("0123456789").strip("_")
    return "batch_norm" if "batch_norm" in name else name


def _rename_dim(model: ir.Model, old: Any, new: str) -> None:
    if isinstance(old, int):
        return
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        shape = value.shape
        for axis, dim in enumerate(shape or ()):
            if shape is not None and not isinstance(dim, int) and dim.value == old.value:
                shape[axis] = new


def _scope(node: Any) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _knowledge(known: ModelRecipe | None, embed: bool, pixels: Mapping[str, Any] | None, decode: str | None) -> dict[str, Any]:
    preprocess = None
    if pixels is not None and "text" in pixels:
        preprocess = dict(pixels)
    elif pixels is not None:
        preprocess = {**pixels, "embedded": embed, "layout": "NHWC" if embed else "NCHW"}
    if known is None:
        return {"task": None, "labels": None, "preprocess": preprocess, "postprocess": None, "dataset": None}
    postprocess = dict(known.postprocess or {}) or None
    if known.task == "detection":
        postprocess = {**(postprocess or {}), "decode": decode or "boxes"}
    return {
        "task": known.task,
        "labels": list(known.labels) if known.labels else None,
        "preprocess": preprocess,
        "postprocess": postprocess,
        "dataset": known.dataset,
    }


def _channels_last(spec: TensorSpec, channels: int) -> bool:
    """Return whether `spec`, of somebody's finished graph, takes pictures of `channels` channels as NHWC."""
    return len(spec.shape) == 4 and spec.shape[3] == channels and spec.shape[1] != channels


def _versions() -> dict[str, str]:
    import onnx

    made_by = {"relu_deploy": __version__, "onnx": onnx.__version__}
    if "torch" in sys.modules:
        made_by["torch"] = str(sys.modules["torch"].__version__)
    return made_by


@contextlib.contextmanager
def _brisk_torch() -> Iterator[None]:
    """Spare the tracer collecting garbage and a stack trace for each node, which would also carry this machine's paths into the bundle."""
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
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
