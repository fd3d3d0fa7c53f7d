"""How ONNX Runtime's GPU providers are set up: each option that is not its default, and why.

Compiled engines are kept beside the bundle's other engines, in a folder that is named after the content of the graph:
the TensorRT provider itself tells graphs apart by their nodes alone, so that two sets of weights would share an engine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from relu_deploy.backends.tensorrt.engine_cache import DEFAULT_BATCH, folder_for, graph_hash
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, Unsupported
from relu_deploy.tensors import TensorSpec

__all__ = ["Profile", "cache_folder", "default_profile", "forbid_tf32", "options_for", "require_in_profile"]

#: per input its smallest, usual and largest shape
Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def options_for(
    name: str,
    device: int,
    *,
    stream: int | None = None,
    tf32: bool = False,
    precisions: frozenset[str] = frozenset({"float32"}),
    profile: Profile | None = None,
    cache: Path | None = None,
) -> dict[str, str]:
    """Return the options of the provider behind backend `name` on GPU `device`.

    stream: the CUDA stream to run on, None for one of the provider's own. tf32: multiply float32 with 10 bits of mantissa,
    where the provider has a switch for it. precisions: those that the graph is written in. profile: the shapes to compile
    for, None lets the provider follow the shapes that come. cache: where compiled engines are kept.
    Raises Unsupported for a precision that the provider has no option for.
    """
    options = {"device_id": str(device)}
    if stream is not None:
        options |= {"has_user_compute_stream": "1", "user_compute_stream": str(stream)}
    if name == "onnxruntime-cuda":
        return options | _cuda(tf32)
    if name == "onnxruntime-tensorrt":
        return options | _tensorrt(precisions, profile, cache)
    # The plug-in is bound to its device when it is added to the session.
    del options["device_id"]
    return options | _shapes("nv", profile) | ({"nv_runtime_cache_path": str(cache)} if cache else {})


def _cuda(tf32: bool) -> dict[str, str]:
    return {
        # ONNX Runtime's default is on, which computes a float32 model in less than float32.
        "use_tf32": str(int(tf32)),
        # ONNX Runtime's default, EXHAUSTIVE, times cuDNN's algorithms on the first run of each shape and may take another
        # one the next time, so that two sessions of one model differ in their last bits. HEURISTIC takes the same one
        # always, which lets tapped and untapped sessions be compared bit by bit, and starts without minutes of trials.
        # What it costs in speed is not measured.
        "cudnn_conv_algo_search": "HEURISTIC",
    }


def _tensorrt(precisions: frozenset[str], profile: Profile | None, cache: Path | None) -> dict[str, str]:
    """Return the options of the provider that is linked to TensorRT 10 and builds weakly typed networks.

    There a precision has to be allowed as well as written in the graph: int8 for QuantizeLinear and DequantizeLinear,
    float16 and bfloat16 for casts and weights. TensorRT may then use float16 for float32 nodes too where that is faster.
    """
    if "float8" in precisions:
        raise Unsupported(
            "onnxruntime-tensorrt has no switch for float8, which its TensorRT 10 would need",
            "use --backend tensorrt, which takes precisions from the graph",
        )
    switches = {"float16": "trt_fp16_enable", "bfloat16": "trt_bf16_enable", "int8": "trt_int8_enable"}
    options = {switch: "1" for precision, switch in switches.items() if precision in precisions}
    if cache is not None:
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(cache),
        }
    return options | _shapes("trt", profile)


def _shapes(prefix: str, profile: Profile | None) -> dict[str, str]:
    if not profile:
        return {}
    return {
        f"{prefix}_profile_{which}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, shapes[place]))}" for name, shapes in profile.items()
        )
        for place, which in enumerate(("min", "opt", "max"))
    }


def default_profile(inputs: tuple[TensorSpec, ...]) -> Profile | None:
    """Return the shapes to compile for where inputs vary in their batch alone: batches of `DEFAULT_BATCH`.

    None where nothing varies, and where something else does or a row is a single number: no sizes are usual then.
    """
    varying = [spec for spec in inputs if any(isinstance(size, str) for size in spec.shape)]
    beyond = any(len(spec.shape) == 1 or any(isinstance(size, str) for size in spec.shape[1:]) for spec in varying)
    if not varying or beyond:
        return None
    low, usual, high = (
        {spec.name: (batch, *(int(size) for size in spec.shape[1:])) for spec in varying} for batch in DEFAULT_BATCH
    )
    return {spec.name: (low[spec.name], usual[spec.name], high[spec.name]) for spec in varying}


def require_in_profile(profile: Profile | None, shapes: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Raise InputError for shapes that the engine was not compiled for."""
    for name, (low, _, high) in (profile or {}).items():
        if not all(least <= size <= most for least, size, most in zip(low, shapes[name], high, strict=True)):
            raise InputError(
                f"{model}: input {name!r} of shape {shapes[name]} is beyond what the engine is compiled for, {low} to {high}",
                f"split the batch into parts of at most {high[0]}",
            )


def cache_folder(name: str, bundle: Bundle, content: bytes | None, version: str) -> Path:
    """Return the folder for what provider `name` compiles of a graph, made if need be.

    content: the serialized graph, None for the bundle's own file. version: of ONNX Runtime, whose next version may
    compile otherwise. Raises InputError when the folder cannot be made.
    """
    digest = hashlib.sha256(version.encode())
    digest.update(content if content is not None else graph_hash(bundle.onnx).encode())
    folder = folder_for(bundle) / f"{name}-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder.parent}: {error.strerror}", "set RELU_DEPLOY_CACHE to a folder that can be written to"
        ) from error
    return folder


def forbid_tf32() -> None:
    """Keep TensorRT from multiplying float32 in TF32, which its provider has no option for.

    NVIDIA's libraries read this variable when they start, all of this process; a value that the user has set stays.
    """
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
