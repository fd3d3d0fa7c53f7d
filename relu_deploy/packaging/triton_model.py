"""The model for Triton's Python backend: ONNX Runtime runs the model.onnx beside this file on the device of the instance.

It needs onnxruntime and NumPy in the Python of Triton's stub. Requests that Triton passes together run as one batch.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # part of Triton's stub

#: nodes that ONNX Runtime inserts to copy tensors between providers, and those that read sizes
COPIES = ("MemcpyToHost", "MemcpyFromHost", "Shape", "Size")


class TritonPythonModel:
    """The class that Triton's Python backend loads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session for the instance that `args` describes."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        self.batches = config["max_batch_size"] > 0
        self.inputs = [one["name"] for one in config["input"]]
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("threads", 0)) or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads would take the cores from the server between requests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider: Any = "CPUExecutionProvider"
        if args["model_instance_kind"] == "GPU":
            # From NVIDIA's Python packages, where they are installed: the system's loader does not search those.
            onnxruntime.preload_dlls()
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            # No rounding of float32 to TF32.
            provider = ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"], "use_tf32": "0"})
        self.session: Any = onnxruntime.InferenceSession(str(file), options, providers=[provider], enable_fallback=0)
        if args["model_instance_kind"] == "GPU":
            check_placement(self.session, provider[0], file.with_name("shape_nodes.json"))
        self.outputs = [one.name for one in self.session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response to each request."""
        groups = [requests] if self.batches else [[request] for request in requests]
        return [response for group in groups for response in self.run(group)]

    def run(self, requests: list[Any]) -> list[Any]:
        """Return one response to each request of one batch."""
        try:
            feeds = [{name: tensor_of(request, name) for name in self.inputs} for request in requests]
            batch = feeds[0] if len(feeds) == 1 else {name: np.concatenate([one[name] for one in feeds]) for name in self.inputs}
            results = dict(zip(self.outputs, self.session.run(self.outputs, batch), strict=True))
        except Exception as error:
            failed = pb_utils.TritonError(f"{type(error).__name__}: {error}")
            return [pb_utils.InferenceResponse(error=failed) for _ in requests]
        if len(requests) == 1:
            return [response_to(requests[0], results)]
        ends = np.cumsum([len(one[self.inputs[0]]) for one in feeds])
        return [
            response_to(request, {name: value[end - len(one[self.inputs[0]]) : end] for name, value in results.items()})
            for request, one, end in zip(requests, feeds, ends, strict=True)
        ]

    def finalize(self) -> None:
        """Close the session."""
        self.session = None


def check_placement(session: Any, provider: str, shapes: Path) -> None:
    """Raise an error if ONNX Runtime runs nodes elsewhere than on `provider`, except arithmetic of shapes, named in `shapes`."""
    if provider not in session.get_providers():
        raise RuntimeError(f"ONNX Runtime could not start {provider}: its log has the reason")
    allowed = set(json.loads(shapes.read_text(encoding="utf-8")))
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != provider]
    nodes = [node for part in parts for node in part.get_nodes()]
    left = [f"{node.op_type} {node.name!r}" for node in nodes if node.name not in allowed and node.op_type not in COPIES]
    if left:
        raise RuntimeError(f"{provider} has no kernel for {len(left)} nodes: {', '.join(left[:3])}")


def tensor_of(request: Any, name: str) -> Any:
    """Return an input of `request` as an array, with texts decoded."""
    array = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    if array.dtype != np.object_:
        return array
    return np.array([text.decode() for text in array.ravel()], np.object_).reshape(array.shape)


def response_to(request: Any, results: dict[str, Any]) -> Any:
    """Return the response with the requested outputs."""
    tensors = [pb_utils.Tensor(name, encoded(results[name])) for name in request.requested_output_names()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def encoded(array: Any) -> Any:
    """Return an output as Triton takes it: contiguous, with texts encoded."""
    if array.dtype != np.object_:
        return np.ascontiguousarray(array)
    return np.array([text.encode() for text in array.ravel()], np.object_).reshape(array.shape)
