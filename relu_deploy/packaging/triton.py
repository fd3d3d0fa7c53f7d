"""A model repository for Triton Inference Server: the folder of one model M, with its configuration and version 1.

    M/config.pbtxt      names, types and shapes; batching; instances; warm-up
    M/labels.txt        the labels of a classifier, for Triton's classification extension
    M/1/model.onnx      flavor onnxruntime: Triton's ONNX Runtime backend, with TensorRT as its accelerator on request
    M/1/model.plan      flavor tensorrt: an engine that was compiled for the backend of that name
    M/1/model.py        flavor python: ONNX Runtime in Triton's Python backend, for a Triton without its ONNX Runtime backend
    M/1/shape_nodes.json  with it: the nodes that ONNX Runtime may run on the CPU of a GPU's instance

Terms and defaults: Triton's model_config.proto and the README of its ONNX Runtime backend.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from relu_deploy.backends import capabilities
from relu_deploy.backends.onnxruntime.placement import shape_nodes
from relu_deploy.backends.tensorrt.building.engine_cache import Engine, kept_engines
from relu_deploy.bundle import Bundle
from relu_deploy.errors import Unsupported, UsageError
from relu_deploy.packaging.batching import choose_batching
from relu_deploy.packaging.options import DeployedModel, PackageOptions, model_name
from relu_deploy.packaging.output import copy_graph, write_text
from relu_deploy.packaging.protocol_types import require_protocol_types
from relu_deploy.packaging.triton_config import PRECISION_MODES, TritonPlan, labels_of, precision_of, target_of, triton_config

__all__ = ["FLAVORS", "OPTIONS", "write"]

#: the file that model.py reads
SHAPE_NODES = "shape_nodes.json"
FLAVORS = ("onnxruntime", "tensorrt", "python")
OPTIONS = ("flavor", "device", "max_batch", "max_delay", "instances", "threads", "accelerator")
#: platform of backends that run ONNX Runtime
ONNX_RUNTIME = "onnxruntime_onnx"
#: backends by device whose measurements decide the batching; the first one that was measured counts
MEASURED_ON = {
    "cpu": ("onnxruntime-cpu",),
    "gpu": ("onnxruntime-cuda", "onnxruntime-tensorrt"),
    "auto": ("onnxruntime-cuda", "onnxruntime-cpu"),
}


def write(bundle: Bundle, options: PackageOptions, folder: Path) -> DeployedModel:
    """Write the repository.

    Args:
        bundle: The model.
        options: How it is served.
        folder: An empty folder.

    Raises:
        UsageError: If the options do not fit the model or each other.
        InputError: If a file of the model is missing.
        Unsupported: If the flavor cannot run the model.
    """
    plan = _plan(bundle, options)
    name = model_name(bundle)
    root = folder / name
    write_text(root / "config.pbtxt", triton_config(plan, name))
    if labels := labels_of(bundle):
        write_text(root / "labels.txt", "".join(f"{' '.join(label.split())}\n" for label in labels))
    if plan.engine is not None:
        (root / "1").mkdir()
        (root / "1" / "model.plan").write_bytes(plan.engine.read())
    else:
        copy_graph(bundle.onnx, root / "1" / "model.onnx")
    if plan.flavor == "python":
        shutil.copyfile(Path(__file__).with_name("triton_model.py"), root / "1" / "model.py")
        write_text(root / "1" / SHAPE_NODES, json.dumps(sorted(shape_nodes(bundle))) + "\n")
    return DeployedModel(name, plan.flavor, tuple(_notes(plan)))


def _plan(bundle: Bundle, options: PackageOptions) -> TritonPlan:
    flavor = options.flavor or FLAVORS[0]
    if cast := bundle.runtime[1].get("autocast"):
        raise Unsupported(
            f"{bundle.title} computes in {cast} on {bundle.runtime[0]}, and Triton's ONNX Runtime would compute it in float32",
            "package the model itself or its int8 variant, or take --for docker",
        )
    if options.accelerator and flavor != "onnxruntime":
        raise UsageError(f"--accelerator is for flavor onnxruntime, not {flavor}", "leave one of the two out")
    _check_types(bundle, flavor)
    device = _device(bundle, options, flavor)
    if options.threads and device == "gpu":
        raise UsageError("--threads applies to a CPU, and this runs on a GPU", "leave it out")
    engine = _engine(bundle) if flavor == "tensorrt" else None
    measured_on = ("tensorrt",) if engine else MEASURED_ON[device]
    if options.accelerator:
        _check_accelerated(bundle)
        measured_on = ("onnxruntime-tensorrt",)
    limit = None if engine is None else _most_rows(engine)
    return TritonPlan(
        bundle,
        options,
        flavor,
        device,
        choose_batching(bundle, measured_on, options.max_batch, options.max_delay, limit),
        engine,
    )


def _check_types(bundle: Bundle, flavor: str) -> None:
    require_protocol_types(bundle)
    for spec in (*bundle.inputs, *bundle.outputs):
        if flavor == "python" and spec.dtype == "bfloat16":
            raise Unsupported(
                f"{bundle.title}: {spec} cannot pass through Triton's Python backend, as NumPy has no bfloat16",
                "use --flavor onnxruntime",
            )


def _device(bundle: Bundle, options: PackageOptions, flavor: str) -> str:
    """Return the device: the requested one, else that of the variant. Raises UsageError if the two do not agree."""
    on_gpu = flavor == "tensorrt" or bool(options.accelerator)
    if on_gpu and options.device == "cpu":
        option = "flavor tensorrt" if flavor == "tensorrt" else "accelerator tensorrt"
        raise UsageError(f"{option} runs on a GPU, not with --device cpu", "leave out --device")
    made_for = target_of(bundle)
    if made_for == "cpu" and (on_gpu or options.device == "gpu"):
        raise UsageError(
            f"{bundle.title} was optimized for CPUs, and its 8-bit format does not run on a GPU",
            "take a variant made with optimize --for tensorrt",
        )
    if options.device or on_gpu:
        return options.device or "gpu"
    if made_for:
        return "cpu" if made_for == "cpu" else "gpu"
    return "cpu" if flavor == "python" else "auto"


def _check_accelerated(bundle: Bundle) -> None:
    if precision_of(bundle) not in PRECISION_MODES:
        raise Unsupported(
            f"Triton's ONNX Runtime backend runs TensorRT in {', '.join(PRECISION_MODES)}, and {bundle.title} is {precision_of(bundle)}",
            "compile it with --backend tensorrt and package it with --flavor tensorrt",
        )


def _engine(bundle: Bundle) -> Engine:
    """Return the newest engine for backend tensorrt. Raises Unsupported if there is none."""
    if engines := kept_engines(bundle, "tensorrt"):
        return engines[0]
    if kept_engines(bundle, "tensorrt-rtx"):
        raise Unsupported(
            f"{bundle.title} has engines for tensorrt-rtx only, which Triton's TensorRT backend cannot load",
            "compile it with --backend tensorrt on a machine with the GPU of the server, or use --flavor onnxruntime",
        )
    raise Unsupported(
        f"{bundle.title} has no engine for backend tensorrt",
        "relu-deploy compile PATH --backend tensorrt, on a machine with the GPU of the server",
    )


def _most_rows(engine: Engine) -> int | None:
    """Return the largest batch of the engine's profiles. Raises Unsupported if no profile accepts a single row."""
    batches = [shapes[0][0] for profile in engine.facts["profiles"] for shapes in profile.values()]
    if batches and min(batches) > 1:
        raise Unsupported(
            f"{engine.file} accepts no batch below {min(batches)}, and Triton sends batches of any size",
            "compile it with --batch 1,8,32",
        )
    return max((shapes[2][0] for profile in engine.facts["profiles"] for shapes in profile.values()), default=None)


def _notes(plan: TritonPlan) -> list[str]:
    notes = []
    if plan.engine is not None:
        facts = plan.engine.facts
        notes.append(f"the engine needs TensorRT {facts['library']} and the GPU {facts['device']} in Triton")
        if facts.get("options", {}).get("version_compatible"):
            notes.append(
                "it is version-compatible, which Triton loads, with this or a later TensorRT, only if it is started with "
                "--backend-config=tensorrt,version-compatible=true"
            )
    optimized_for = plan.bundle.runtime[0]
    if optimized_for and capabilities(optimized_for).platform != ONNX_RUNTIME:
        notes.append(f"the variant was fastest on {optimized_for}; Triton runs it on ONNX Runtime, whose speed may be another")
    if plan.flavor == "python":
        notes.append("Triton's Python backend needs onnxruntime" + ("-gpu" if plan.device == "gpu" else "") + " and NumPy")
    if plan.flavor == "onnxruntime" and not plan.options.accelerator and target_of(plan.bundle).startswith("tensorrt"):
        notes.append(
            "the variant was made for TensorRT: package it with --accelerator tensorrt, else it runs on ONNX Runtime's own kernels"
        )
    return notes
