"""Triton's config.pbtxt of one model, with the reasons for its numbers as comments.

Terms: model_config.proto of Triton, and the README of its ONNX Runtime backend for what stands under its accelerators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from relu_deploy.backends.tensorrt.engine_cache import Engine
from relu_deploy.bundle import Bundle
from relu_deploy.packaging.batching import Batching
from relu_deploy.packaging.settings import PackageOptions
from relu_deploy.packaging.text_format import Enum, Message, comment, protobuf_text
from relu_deploy.serving.protocol.tensors import DATATYPES
from relu_deploy.tensors import TensorSpec

__all__ = ["PRECISION_MODES", "TritonPlan", "config_of", "labels_of", "precision_of", "target_of"]

#: the precisions that Triton's ONNX Runtime backend has for TensorRT
PRECISION_MODES = {"float32": "FP32", "float16": "FP16", "int8": "INT8"}
#: where TensorRT keeps in the container what it built
ENGINE_CACHE = "/tmp/relu-deploy"


@dataclass(frozen=True)
class TritonPlan:
    """What was decided before anything is written. device: "cpu", "gpu", or "auto" for what the server finds."""

    bundle: Bundle
    settings: PackageOptions
    flavour: str
    device: str
    batching: Batching
    engine: Engine | None

    @property
    def batched(self) -> bool:
        return self.batching.max_batch > 0


def config_of(plan: TritonPlan, name: str) -> str:
    """Return the text of config.pbtxt for the model called `name`."""
    parts: list[tuple[Sequence[str], Message]] = [
        ([f"{plan.bundle.title}, packaged by relu-deploy."], {"name": name, **_runs_on(plan)}),
        (plan.batching.why, _batched(plan)),
        ([] if not plan.batched else ["Sizes are without the batch."], _tensors(plan)),
        (_why_instances(plan), {"instance_group": [_instances(plan)]}),
    ]
    if plan.settings.threads:
        key = "threads" if plan.flavour == "python" else "intra_op_thread_count"
        parts.append(([], {"parameters": [{"key": key, "value": {"string_value": str(plan.settings.threads)}}]}))
    if plan.settings.accelerator:
        parts.append(
            (
                [
                    "TensorRT builds its engines when the model is loaded, and keeps them here: mount a volume, or each start builds them anew."
                ],
                {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [_accelerator(plan, name)]}}},
            )
        )
    if warm_up := _warm_up(plan):
        parts.append(
            (
                ["The model is ready when these have run: first runs allocate memory and choose kernels."],
                {"model_warmup": warm_up},
            )
        )
    return "\n".join(comment(why) + protobuf_text(message) for why, message in parts)


def _runs_on(plan: TritonPlan) -> Message:
    if plan.flavour == "tensorrt":
        return {"platform": "tensorrt_plan", "default_model_filename": "model.plan"}
    if plan.flavour == "python":
        return {"backend": "python", "default_model_filename": "model.py"}
    return {"backend": "onnxruntime", "default_model_filename": "model.onnx"}


def _batched(plan: TritonPlan) -> Message:
    batching = plan.batching
    told: dict[str, Any] = {"max_batch_size": batching.max_batch}
    if batching.max_batch > 1:
        preferred = {"preferred_batch_size": [batching.preferred]} if batching.preferred else {}
        told["dynamic_batching"] = {**preferred, "max_queue_delay_microseconds": batching.delay}
    return told


def _tensors(plan: TritonPlan) -> Message:
    outputs = [_tensor(spec, plan.batched) for spec in plan.bundle.outputs]
    if labels_of(plan.bundle):
        outputs[0]["label_filename"] = "labels.txt"
    return {"input": [_tensor(spec, plan.batched) for spec in plan.bundle.inputs], "output": outputs}


def _tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    sizes = [size if isinstance(size, int) else -1 for size in spec.shape][1 if batched else 0 :]
    # Triton has no empty sizes: one number goes by as a vector of one.
    scalar: Message = {} if sizes else {"reshape": {"shape": []}}
    return {"name": spec.name, "data_type": _type(spec), "dims": sizes or [1], **scalar}


def _type(spec: TensorSpec) -> Enum:
    return Enum(f"TYPE_{DATATYPES[spec.dtype].replace('BYTES', 'STRING')}")


def _instances(plan: TritonPlan) -> Message:
    group: dict[str, Any] = {"count": plan.settings.instances or 1, "kind": Enum(f"KIND_{plan.device.upper()}")}
    if plan.engine is not None and len(plan.engine.facts["profiles"]) > 1:
        group["profile"] = [str(index) for index in range(len(plan.engine.facts["profiles"]))]
    return group


def _why_instances(plan: TritonPlan) -> Sequence[str]:
    if plan.settings.instances:
        return []
    if plan.device == "cpu":
        return ["One copy, whose kernels use every core; more copies share the cores and the memory's bandwidth."]
    if plan.device == "gpu":
        return ["One copy on each GPU. A second one can overlap copying with computing, for its memory: not measured."]
    return ["One copy on each GPU that the server finds, on the CPU where it finds none."]


def _accelerator(plan: TritonPlan, name: str) -> Message:
    told = {
        "precision_mode": PRECISION_MODES[precision_of(plan.bundle)],
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": f"{ENGINE_CACHE}/{name}",
    }
    varies = any(isinstance(size, str) for spec in plan.bundle.inputs for size in spec.shape[1:])
    if plan.batched and not varies:
        # Without these an engine is built anew for each batch size that comes along.
        usual = plan.batching.preferred or plan.batching.max_batch
        for which, rows in (("min", 1), ("opt", usual), ("max", plan.batching.max_batch)):
            shapes = (f"{spec.name}:{'x'.join(map(str, (rows, *spec.shape[1:])))}" for spec in plan.bundle.inputs)
            told[f"trt_profile_{which}_shapes"] = ",".join(shapes)
    return {"name": "tensorrt", "parameters": [{"key": key, "value": value} for key, value in told.items()]}


def _warm_up(plan: TritonPlan) -> list[Message]:
    """Return a request of one row and one of the most rows; none for a model whose sizes nothing tells."""
    if any(isinstance(size, str) for spec in plan.bundle.inputs for size in spec.shape[1:]):
        return []
    sizes = sorted({1, plan.batching.preferred or 1, plan.batching.max_batch}) if plan.batched else [1]
    return [
        {
            "name": f"batch {rows}",
            "batch_size": rows,
            "inputs": [{"key": spec.name, "value": _zeros(spec, plan.batched)} for spec in plan.bundle.inputs],
        }
        for rows in sizes
    ]


def _zeros(spec: TensorSpec, batched: bool) -> Message:
    # Zeros, because Triton's random data is random bits, which hold NaN, and could be any index.
    sizes = [size if isinstance(size, int) else 1 for size in spec.shape][1 if batched else 0 :]
    return {"data_type": _type(spec), "dims": sizes or [1], "zero_data": True}


def labels_of(bundle: Bundle) -> Sequence[str]:
    """Return the labels of a classifier, none where they are not what its first output ranks."""
    labels = bundle.manifest.get("labels") or ()
    ranked = bundle.manifest.get("task") == "classification" and bundle.outputs[0].shape[-1:] == (len(labels),)
    return labels if ranked else ()


def target_of(bundle: Bundle) -> str:
    """Return what the variant was optimized for, "" for the model itself."""
    return str(bundle.manifest["variants"][bundle.variant]["target"]) if bundle.variant else ""


def precision_of(bundle: Bundle) -> str:
    return str(bundle.manifest["variants"][bundle.variant]["precision"]) if bundle.variant else "float32"
