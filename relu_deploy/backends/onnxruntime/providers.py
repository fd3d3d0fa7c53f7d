"""Options of ONNX Runtime's GPU providers that differ from the defaults, with the reasons.

Compiled engines are cached beside the bundle's other engines, in a folder that is named by a hash of the graph: the TensorRT
provider's own key depends on the nodes but not on the weights, so that models with different weights would share an engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from relu_deploy.backends.tensorrt.building.engine_cache import DEFAULT_BATCH, folder_for, graph_hash
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, Unsupported
from relu_deploy.tensors import TensorSpec

__all__ = ["Profile", "cache_folder", "default_profile", "options_for", "require_in_profile"]

#: (smallest, usual, largest) shape by input name
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

    Args:
        name: Name of the backend.
        device: Index of the GPU.
        stream: The CUDA stream to run on, None for the provider's own.
        tf32: Multiply float32 in TF32, if the provider has an option for it.
        precisions: Precisions of the graph's nodes.
        profile: Shapes to compile for; with None the provider compiles for the shapes of the inputs that it receives.
        cache: Folder for compiled engines.

    Raises:
        Unsupported: If the provider has no option for one of the precisions.
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
        # The default is 1, which computes float32 models in TF32.
        "use_tf32": str(int(tf32)),
        # The default, EXHAUSTIVE, times cuDNN's algorithms on the first run of each shape and may choose another one in the
        # next session, so that results of two sessions differ in their last bits. HEURISTIC always chooses the same one, so
        # that tapped and untapped sessions agree bit by bit, and starts faster. Its effect on latency is not measured.
        "cudnn_conv_algo_search": "HEURISTIC",
    }


def _tensorrt(precisions: frozenset[str], profile: Profile | None, cache: Path | None) -> dict[str, str]:
    """Return the options of the TensorRT provider, which is linked to TensorRT 10 and builds weakly typed networks.

    In such networks each precision of the graph also has to be enabled: int8 for QuantizeLinear and DequantizeLinear, float16
    and bfloat16 for casts and weights. TensorRT may then use float16 for float32 nodes as well if that is faster.
    """
    if "float8" in precisions:
        raise Unsupported(
            "onnxruntime-tensorrt has no option to enable float8, which TensorRT 10 requires",
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
    """Return the shapes to compile for if inputs vary only in their batch: batches of `DEFAULT_BATCH`.

    None if no dimension varies, if other dimensions vary, or if a varying input is one-dimensional: there are no usual sizes.
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
    """Check that the engine was compiled for the given input shapes.

    Args:
        profile: The shapes that it was compiled for, None if it accepts any.
        shapes: Shapes by input name.
        model: Title of the model, for errors.

    Raises:
        InputError: If a shape is outside the profile.
    """
    for name, (low, _, high) in (profile or {}).items():
        if not all(least <= size <= most for least, size, most in zip(low, shapes[name], high, strict=True)):
            raise InputError(
                f"{model}: input {name!r} of shape {shapes[name]} is outside the range that the engine was compiled for, {low} to {high}",
                f"split the batch into parts of at most {high[0]}",
            )


def cache_folder(name: str, bundle: Bundle, content: bytes | None, version: str) -> Path:
    """Return the folder for the engines that a provider compiles from a graph. It is created if it does not exist.

    Args:
        name: Name of the backend.
        bundle: The model.
        content: The serialized graph, None for the bundle's own file.
        version: Version of ONNX Runtime, which is part of the key.

    Raises:
        InputError: If the folder cannot be created.
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
