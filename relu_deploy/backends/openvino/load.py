"""Loads a graph into OpenVINO and compiles it for the CPU in exactly the requested precision.

OpenVINO's default precision depends on the processor: with AVX512-BF16 or AMX it computes float32 graphs in bfloat16. The
precision is therefore always set, and read back from the compiled model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relu_deploy.backends.base import Options
from relu_deploy.backends.openvino.errors import load_error
from relu_deploy.backends.openvino.probe import DEVICE
from relu_deploy.backends.openvino.session import OpenVinoSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import Unsupported, UsageError
from relu_deploy.graph.model import read_model
from relu_deploy.graph.precision import node_precisions, precision_of
from relu_deploy.graph.taps import tapped_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["load"]

#: precision of floating-point nodes → OpenVINO's precision hint, and the name of the processor capability
HINTS = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}


def load(name: str, bundle: Bundle, options: Options) -> OpenVinoSession:
    """Return a session that runs all of the graph of `bundle` on the CPU.

    Raises:
        InputError: If the file is not a valid graph.
        Unsupported: If OpenVINO has no kernel for a node, or the processor does not support the precision.
        UsageError: If `options.autocast` is not a supported precision.
    """
    import openvino

    core = openvino.Core()
    graph = read_model(bundle.onnx)
    precision = _precision(name, core, options.autocast, graph)
    source: Any = str(bundle.onnx)
    if options.taps:
        source = tapped_bytes(graph, [relu.output for relu in options.taps])
    try:
        model = core.read_model(source)
        compiled = core.compile_model(model, DEVICE, _settings(options, HINTS[precision][0]))
    except Exception as error:  # the bindings raise RuntimeError, TypeError and exceptions of their own
        raise load_error(error, name, bundle) from error
    return OpenVinoSession(name, bundle, graph, model, compiled, precision, options)


def _precision(name: str, core: Any, requested: str, graph: ir.Model) -> str:
    """Return the precision of floating-point nodes: the requested one, otherwise that of the graph."""
    wide = [node for node, each in node_precisions(graph).items() if each == "float64"]
    if wide:
        raise Unsupported(
            f"{name} would compute the float64 node {wide[0]!r} in float32", "use --backend onnxruntime-cpu or reference"
        )
    written = precision_of(graph)
    if requested not in ("", "float16", "bfloat16"):
        raise UsageError(f"{name} cannot compute in {requested!r} on its own", "it is float16 or bfloat16")
    if written == "float8":
        raise Unsupported(f"{name} has no float8 arithmetic", "use --backend tensorrt")
    # The floating-point nodes of an int8 graph are float32.
    precision = requested or (written if written in HINTS else "float32")
    available = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    if HINTS[precision][1] not in available:
        raise Unsupported(
            f"{name}: this processor has no {precision} arithmetic, as OpenVINO reports",
            "run the float32 model, or leave out --autocast",
        )
    return precision


def _settings(options: Options, hint: str) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": hint,
        # In the mode PERFORMANCE OpenVINO may quantize activations at run time.
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": options.thread_count,
        "NUM_STREAMS": 1,
        # Pinned threads are fastest for a single session; several sessions would all be pinned to the same cores.
        "ENABLE_CPU_PINNING": options.spin,
        "PERF_COUNT": options.profile,
    }
