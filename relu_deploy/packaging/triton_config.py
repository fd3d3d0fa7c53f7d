"""The config.pbtxt of a model for Triton, with the reasons for its numbers as comments.

Fields: Triton's model_config.proto; parameters of the accelerator: the README of Triton's ONNX Runtime backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from relu_deploy.backends.tensorrt.building.engine_cache import Engine
from relu_deploy.bundle import Bundle
from relu_deploy.packaging.batching import Batching
from relu_deploy.packaging.options import PackageOptions
from relu_deploy.packaging.text_format import Enum, Message, comment, protobuf_text
from relu_deploy.serving.protocol.tensors import DATATYPES
from relu_deploy.tensors import TensorSpec

__all__ = ["PRECISION_MODES", "TritonPlan", "labels_of", "precision_of", "target_of", "triton_config"]

#: precision_mode of Triton's ONNX Runtime backend with TensorRT, by precision of the graph
PRECISION_MODES = {"float32": "FP32", "float16": "FP16", "int8": "INT8"}
#: where TensorRT stores the engines that it builds in the container
ENGINE_CACHE = "/tmp/relu-deploy"


@dataclass(frozen=True)
class TritonPlan:
    """Everything that is decided before a file is written.

    Args:
        bundle: The model.
        options: The options of the package.
        flavor: What runs the model in Triton.
        device: "cpu", "gpu", or "auto" for whatever the server has.
        batching: How requests are batched.
        engine: The engine of flavor tensorrt.
    """

    bundle: Bundle
    options: PackageOptions
    flavor: str
    device: str
    batching: Batching
    engine: Engine | None

    @property
    def batched(self) -> bool:
        """Whether the first dimension is the batch."""
        return self.batching.max_batch > 0


def triton_config(plan: TritonPlan, name: str) -> str:
    """Return the text of config.pbtxt.

    Args:
        plan: What was decided.
        name: The model's name in the repository.
    """
    parts: list[tuple[Sequence[str], Message]] = [
        ([f"{plan.bundle.title}, packaged by relu-deploy."], {"name": name, **_platform(plan)}),
        (plan.batching.reasons, _batching(plan)),
        ([] if not plan.batched else ["Shapes without the batch."], _tensors(plan)),
        (_instance_reasons(plan), {"instance_group": [_instances(plan)]}),
    ]
    if threads := plan.options.threads or (plan.device == "cpu" and plan.bundle.runtime[1].get("threads")):
        key = "threads" if plan.flavor == "python" else "intra_op_thread_count"
        parts.append(([], {"parameters": [{"key": key, "value": {"string_value": str(threads)}}]}))
    if plan.options.accelerator:
        parts.append(
            (
                [
                    "TensorRT builds its engines when the model is loaded, and stores them here: mount a volume, else every start builds them again."
                ],
                {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [_accelerator(plan, name)]}}},
            )
        )
    if warm_up := _warm_up(plan):
        parts.append(
            (
                ["The model is ready after these requests: first runs allocate memory and choose kernels."],
                {"model_warmup": warm_up},
            )
        )
    return "\n".join(comment(reasons) + protobuf_text(message) for reasons, message in parts)


def _platform(plan: TritonPlan) -> Message:
    if plan.flavor == "tensorrt":
        return {"platform": "tensorrt_plan", "default_model_filename": "model.plan"}
    if plan.flavor == "python":
        return {"backend": "python", "default_model_filename": "model.py"}
    return {"backend": "onnxruntime", "default_model_filename": "model.onnx"}


def _batching(plan: TritonPlan) -> Message:
    batching = plan.batching
    fields: dict[str, Any] = {"max_batch_size": batching.max_batch}
    if batching.max_batch > 1:
        preferred = {"preferred_batch_size": [batching.preferred]} if batching.preferred else {}
        fields["dynamic_batching"] = {**preferred, "max_queue_delay_microseconds": batching.delay}
    return fields


def _tensors(plan: TritonPlan) -> Message:
    outputs = [_tensor(spec, plan.batched) for spec in plan.bundle.outputs]
    if labels_of(plan.bundle):
        outputs[0]["label_filename"] = "labels.txt"
    return {"input": [_tensor(spec, plan.batched) for spec in plan.bundle.inputs], "output": outputs}


def _tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    sizes = [size if isinstance(size, int) else -1 for size in spec.shape][1 if batched else 0 :]
    # Triton has no empty shapes: a scalar is passed as a vector of one.
    scalar: Message = {} if sizes else {"reshape": {"shape": []}}
    return {"name": spec.name, "data_type": _type(spec), "dims": sizes or [1], **scalar}


def _type(spec: TensorSpec) -> Enum:
    return Enum(f"TYPE_{DATATYPES[spec.dtype].replace('BYTES', 'STRING')}")


def _instances(plan: TritonPlan) -> Message:
    group: dict[str, Any] = {"count": plan.options.instances or 1, "kind": Enum(f"KIND_{plan.device.upper()}")}
    if plan.engine is not None and len(plan.engine.facts["profiles"]) > 1:
        group["profile"] = [str(index) for index in range(len(plan.engine.facts["profiles"]))]
    return group


def _instance_reasons(plan: TritonPlan) -> Sequence[str]:
    if plan.options.instances:
        return []
    if plan.device == "cpu":
        return ["One copy, whose kernels use every core; more copies share the cores and the memory's bandwidth."]
    if plan.device == "gpu":
        return ["One copy on each GPU. A second one could overlap copies with computation, for its memory: not measured."]
    return ["One copy on each GPU of the server, or on the CPU of a server without GPUs."]


def _accelerator(plan: TritonPlan, name: str) -> Message:
    parameters = {
        "precision_mode": PRECISION_MODES[precision_of(plan.bundle)],
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": f"{ENGINE_CACHE}/{name}",
    }
    varies = any(isinstance(size, str) for spec in plan.bundle.inputs for size in spec.shape[1:])
    if plan.batched and not varies:
        # Without these TensorRT builds an engine for every new batch size.
        usual = plan.batching.preferred or plan.batching.max_batch
        for bound, rows in (("min", 1), ("opt", usual), ("max", plan.batching.max_batch)):
            shapes = (f"{spec.name}:{'x'.join(map(str, (rows, *spec.shape[1:])))}" for spec in plan.bundle.inputs)
            parameters[f"trt_profile_{bound}_shapes"] = ",".join(shapes)
    return {"name": "tensorrt", "parameters": [{"key": key, "value": value} for key, value in parameters.items()]}


def _warm_up(plan: TritonPlan) -> list[Message]:
    """Return warm-up requests of one, the preferred and the most rows; none for a model with variable sizes."""
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
    # Triton's random data are random bits: NaN, or an index out of range.
    sizes = [size if isinstance(size, int) else 1 for size in spec.shape][1 if batched else 0 :]
    return {"data_type": _type(spec), "dims": sizes or [1], "zero_data": True}


def labels_of(bundle: Bundle) -> Sequence[str]:
    """Return the labels of a classifier; none unless its first output has one score a label."""
    labels = bundle.manifest.get("labels") or ()
    ranked = bundle.manifest.get("task") == "classification" and bundle.outputs[0].shape[-1:] == (len(labels),)
    return labels if ranked else ()


def target_of(bundle: Bundle) -> str:
    """Return the target of a variant, "" for the model itself."""
    return str(bundle.manifest["variants"][bundle.variant]["target"]) if bundle.variant else ""


def precision_of(bundle: Bundle) -> str:
    """Return the precision of a variant, "float32" for the model itself."""
    return str(bundle.manifest["variants"][bundle.variant]["precision"]) if bundle.variant else "float32"
