"""A model repository for Triton Inference Server: one folder for the model, with its configuration and its version 1.

    M/config.pbtxt      names, types and sizes; batching; instances; warm-up
    M/labels.txt        classification: what Triton's classification extension answers with
    M/1/model.onnx      flavour onnxruntime: Triton's ONNX Runtime backend, where asked for with TensorRT under it
    M/1/model.plan      flavour tensorrt: an engine that was compiled for the backend of that name
    M/1/model.py        flavour python: ONNX Runtime in Triton's Python backend; runs where no other backend is built in

Terms and defaults: Triton's model_config.proto and the README of its ONNX Runtime backend.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from relu_deploy.backends.tensorrt.engine_cache import Engine, kept_engines
from relu_deploy.bundle import Bundle
from relu_deploy.errors import Unsupported, UsageError
from relu_deploy.packaging.batching import batching_for
from relu_deploy.packaging.output import copy_graph, write_text
from relu_deploy.packaging.settings import PackageOptions, Written, model_name
from relu_deploy.packaging.triton_config import PRECISION_MODES, TritonPlan, config_of, labels_of, precision_of, target_of
from relu_deploy.serving.protocol.tensors import DATATYPES

__all__ = ["FLAVOURS", "OPTIONS", "write"]

FLAVOURS = ("onnxruntime", "tensorrt", "python")
OPTIONS = ("flavour", "device", "max_batch", "max_delay", "instances", "threads", "accelerator")
#: whose measurements tell how the model is batched, best guess first
MEASURED_ON = {
    "cpu": ("onnxruntime-cpu",),
    "gpu": ("onnxruntime-cuda", "onnxruntime-tensorrt"),
    "auto": ("onnxruntime-cuda", "onnxruntime-cpu"),
}


def write(bundle: Bundle, settings: PackageOptions, folder: Path) -> Written:
    """Write the repository into the empty `folder`. Raises UsageError, InputError and Unsupported for what cannot be served so."""
    plan = _planned(bundle, settings)
    name = model_name(bundle)
    home = folder / name
    write_text(home / "config.pbtxt", config_of(plan, name))
    if labels := labels_of(bundle):
        write_text(home / "labels.txt", "".join(f"{' '.join(label.split())}\n" for label in labels))
    if plan.engine is not None:
        (home / "1").mkdir()
        (home / "1" / "model.plan").write_bytes(plan.engine.read())
    else:
        copy_graph(bundle.onnx, home / "1" / "model.onnx")
    if plan.flavour == "python":
        shutil.copyfile(Path(__file__).with_name("triton_model.py"), home / "1" / "model.py")
    return Written(name, plan.flavour, tuple(_notes(plan)))


def _planned(bundle: Bundle, settings: PackageOptions) -> TritonPlan:
    flavour = settings.flavour or FLAVOURS[0]
    if settings.accelerator and flavour != "onnxruntime":
        raise UsageError(f"--accelerator is for flavour onnxruntime, not {flavour}", "leave one of the two out")
    _check_types(bundle, flavour)
    device = _device(bundle, settings, flavour)
    if settings.threads and device == "gpu":
        raise UsageError("--threads is of a CPU's kernels, and this runs on a GPU", "leave it out")
    engine = _engine(bundle) if flavour == "tensorrt" else None
    measured_on = ("tensorrt",) if engine else MEASURED_ON[device]
    if settings.accelerator:
        _check_accelerated(bundle)
        measured_on = ("onnxruntime-tensorrt",)
    limit = None if engine is None else _most_rows(engine)
    return TritonPlan(
        bundle,
        settings,
        flavour,
        device,
        batching_for(bundle, measured_on, settings.max_batch, settings.max_delay, limit),
        engine,
    )


def _check_types(bundle: Bundle, flavour: str) -> None:
    for spec in (*bundle.inputs, *bundle.outputs):
        if spec.dtype not in DATATYPES:
            raise Unsupported(f"{bundle.title}: {spec} has a type that Triton has no name for", "cast it in the graph")
        if flavour == "python" and spec.dtype == "bfloat16":
            raise Unsupported(
                f"{bundle.title}: {spec} cannot pass Triton's Python backend, as NumPy has no bfloat16",
                "take --flavour onnxruntime",
            )


def _device(bundle: Bundle, settings: PackageOptions, flavour: str) -> str:
    """Return where the model runs: where it was asked to, else where its variant was made for. Raises UsageError where the two do not fit."""
    on_gpu = flavour == "tensorrt" or bool(settings.accelerator)
    if on_gpu and settings.device == "cpu":
        what = "flavour tensorrt" if flavour == "tensorrt" else "accelerator tensorrt"
        raise UsageError(f"{what} runs on a GPU, not with --device cpu", "leave out --device")
    made_for = target_of(bundle)
    if made_for == "cpu" and (on_gpu or settings.device == "gpu"):
        raise UsageError(
            f"{bundle.title} was optimized for CPUs, whose 8-bit form a GPU's kernels refuse",
            "take a variant made with optimize --for tensorrt",
        )
    if settings.device or on_gpu:
        return settings.device or "gpu"
    if made_for:
        return "cpu" if made_for == "cpu" else "gpu"
    return "cpu" if flavour == "python" else "auto"


def _check_accelerated(bundle: Bundle) -> None:
    if precision_of(bundle) not in PRECISION_MODES:
        raise Unsupported(
            f"Triton's ONNX Runtime backend runs TensorRT in {', '.join(PRECISION_MODES)}, and {bundle.title} is {precision_of(bundle)}",
            "compile it with --backend tensorrt and package it with --flavour tensorrt",
        )


def _engine(bundle: Bundle) -> Engine:
    """Return the engine that was compiled last for backend tensorrt. Raises Unsupported when there is none."""
    if engines := kept_engines(bundle, "tensorrt"):
        return engines[0]
    if kept_engines(bundle, "tensorrt-rtx"):
        raise Unsupported(
            f"{bundle.title} has engines for tensorrt-rtx only, and those are no tensorrt_plan: Triton's TensorRT backend cannot load them",
            "compile it with --backend tensorrt on a machine with the GPU that serves, or take --flavour onnxruntime",
        )
    raise Unsupported(
        f"{bundle.title} has no engine for backend tensorrt",
        "relu-deploy compile PATH --backend tensorrt, on a machine with the GPU that serves",
    )


def _most_rows(engine: Engine) -> int | None:
    """Return the largest batch of the engine's profiles. Raises Unsupported when a single row is too few for every one of them."""
    batches = [shapes[0][0] for profile in engine.facts["profiles"] for shapes in profile.values()]
    if batches and min(batches) > 1:
        raise Unsupported(
            f"{engine.file} takes no batch below {min(batches)}, and Triton hands over whatever rows come",
            "compile it with --batch 1,8,32",
        )
    return max((shapes[2][0] for profile in engine.facts["profiles"] for shapes in profile.values()), default=None)


def _notes(plan: TritonPlan) -> list[str]:
    notes = []
    if plan.engine is not None:
        facts = plan.engine.facts
        notes.append(
            f"the engine is of TensorRT {facts['library']} for {facts['device']}: Triton must have that TensorRT and that GPU"
        )
    if plan.flavour == "python":
        notes.append("the Python of Triton's stub needs onnxruntime" + ("-gpu" if plan.device == "gpu" else "") + " and NumPy")
    if plan.flavour == "onnxruntime" and not plan.settings.accelerator and target_of(plan.bundle).startswith("tensorrt"):
        notes.append(
            "the variant was made for TensorRT: package it with --accelerator tensorrt, or without an engine it runs on ONNX Runtime's own kernels"
        )
    return notes
