"""A session of OpenVINO. Its precision and executed layers are read back from the compiled model."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends.base import Executed, Options
from relu_deploy.backends.layer_times import WARM_UP_RUNS, LayerTime, LayerTimes, run_in_turn
from relu_deploy.backends.openvino.errors import message_of
from relu_deploy.backends.openvino.probe import DEVICE
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, Unsupported
from relu_deploy.graph.bodies import has_loops
from relu_deploy.run_limit import ending_process
from relu_deploy.tensors import Array, Feeds, TensorSpec, check_feeds

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["OpenVinoSession"]

#: OpenVINO's element types → precisions; types of index and shape integers have none
PRECISIONS = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f8e4m3": "float8",
    "i8": "int8",
    "u8": "int8",
}
#: float32 represents all integers up to this one exactly
EXACT_INTEGERS = 2**24
#: sets of input shapes that are known to be valid
REMEMBERED_SHAPES = 1024
#: types of layers that compute nothing
PASSIVE = ("Input", "Const", "Output")
#: type of layers that are another view of the same numbers, such as each bias has one
VIEW = "Reshape"
#: types of layers that only change a precision or a memory layout
CONVERTING = ("Convert", "FakeQuantize", "Reorder")


class OpenVinoSession:
    """A compiled model with one inference request, which runs are serialized on. See `base.Session`."""

    def __init__(
        self, name: str, bundle: Bundle, graph: ir.Model, model: Any, compiled: Any, precision: str, options: Options
    ) -> None:
        self.name, self.title, self._profiled = name, bundle.title, options.profile
        self.inputs: tuple[TensorSpec, ...] = bundle.inputs
        self.outputs: tuple[TensorSpec, ...] = bundle.outputs
        self._compiled, self._request = compiled, compiled.create_infer_request()
        #: index of each input in the compiled model
        self._positions = {spec.name: _position(compiled.inputs, spec.name) for spec in self.inputs}
        self._lock = threading.Lock()
        self._runs, self._repeats = 0, has_loops(graph)
        # With a single thread OpenVINO 2026.4 does not raise on a shape mismatch inside a dynamic graph: it returns the outputs
        # of the previous run, or terminates the process. Inferring the shapes of the uncompiled model raises.
        self._dynamic = model if model.is_dynamic() else None
        self._valid_shapes: set[tuple[tuple[int, ...], ...]] = set()
        #: name of a tensor → name of the node that writes it: OpenVINO names the producer of an output after the output
        self._makers = {str(value.name): str(node.name) for node in graph.graph for value in node.outputs}
        self._names = [self._name_of(port) for port in compiled.outputs]
        self._bfloat16 = [_element(port.get_element_type()) == "bf16" for port in compiled.outputs]
        self.facts: Mapping[str, Any] = {
            "device": DEVICE,
            "precision": PRECISIONS.get(_element(compiled.get_property("INFERENCE_PRECISION_HINT")), "unknown"),
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "execution_mode": str(compiled.get_property("EXECUTION_MODE_HINT")).rpartition(".")[2].lower(),
        }
        if self.facts["precision"] != precision:
            raise Unsupported(
                f"{name} would compute {bundle.title} in {self.facts['precision']}, and {precision} was requested",
                "use --backend onnxruntime-cpu",
            )

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        arrays = check_feeds(feeds, self.inputs, self.title, by_name=False)
        self._check_integers(arrays)
        with self._lock:
            try:
                self._check_shapes(arrays)
                # Given one by one, inputs skip the dispatch of `infer`, which takes a tenth of a millisecond.
                for name, array in arrays.items():
                    self._request.set_input_tensor(self._positions[name], _tensor(array))
                results = self._infer()
            except Exception as error:  # the bindings raise RuntimeError and others
                shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape)) or 'scalar'}" for name, array in arrays.items())
                raise Unsupported(
                    f"{self.name} stopped while running {self.title} on {shapes}: {self._with_nodes(message_of(error))}",
                    "relu-deploy verify --backend reference says whether the graph takes these sizes and values",
                ) from error
            self._runs += 1
            values = map(_array, results.values(), self._bfloat16)
            return dict(zip(self._names, values, strict=True))

    def _infer(self) -> Any:
        # What one run takes the next ones take too, unless they have Loops.
        if self._runs and not self._repeats:
            return self._request.infer()
        # A request is cancelled between two nodes only, and a Loop is one node.
        with ending_process(self.title, self.name, self._repeats):
            return self._request.infer()

    def executed(self) -> Sequence[Executed]:
        """Return the layers of the compiled model with the precision of each; empty on later calls."""
        if not self._profiled:
            return ()
        self._profiled = False
        return [
            Executed(
                layer.nodes[0] if layer.nodes else layer.name, layer.kernel, DEVICE, layer.precision, layer.kernel in CONVERTING
            )
            for layer in self._layers()
            if layer.kernel != VIEW
        ]

    def time_layers(self, feeds: Sequence[Feeds], seconds: float) -> LayerTimes:
        """Return the times of the layers; see `base.ProfilingSession`."""
        runs_before, before = 0, dict[str, float]()
        calls = 0

        def run(feed: Mapping[str, Any]) -> None:
            nonlocal calls, runs_before, before
            self.run(feed)
            calls += 1
            if calls == WARM_UP_RUNS:
                runs_before, before = self._runs, self._mean_milliseconds()

        runs, milliseconds = run_in_turn(run, feeds, seconds)
        # OpenVINO reports the mean of all runs since the model was compiled, the slow first ones included.
        means = {
            name: max(0.0, mean * self._runs - before.get(name, 0.0) * runs_before) / (self._runs - runs_before)
            for name, mean in self._mean_milliseconds().items()
        }
        layers = [replace(layer, milliseconds=means[layer.name]) for layer in self._layers() if layer.name in means]
        return LayerTimes(layers, runs, milliseconds)

    def _mean_milliseconds(self) -> dict[str, float]:
        """Return the mean time of each layer in all runs so far."""
        found: dict[str, float] = {}
        for each in self._request.get_profiling_info():
            if each.status == each.Status.EXECUTED:
                found[each.node_name] = found.get(each.node_name, 0.0) + each.real_time.total_seconds() * 1e3
        return found

    def _layers(self) -> list[LayerTime]:
        """Return the layers of the compiled model that compute something, without times."""
        layers = []
        for layer in self._compiled.get_runtime_model().get_ordered_ops():
            info = {key: _text(value) for key, value in layer.get_rt_info().items()}
            if info.get("layerType") in PASSIVE:
                continue
            nodes = tuple(self._makers.get(part, part) for part in info.get("originalLayersNames", "").split(",") if part)
            precision = PRECISIONS.get(info.get("runtimePrecision", ""), "")
            layers.append(LayerTime(layer.get_friendly_name(), info.get("layerType", ""), nodes, 0.0, precision))
        return layers

    def close(self) -> None:
        self._request = self._compiled = self._dynamic = None

    def _check_shapes(self, arrays: Feeds) -> None:
        """Raise OpenVINO's error if the shapes of a dynamic graph cannot follow from those of `arrays`."""
        shapes = tuple(array.shape for array in arrays.values())
        if self._dynamic is None or shapes in self._valid_shapes:
            return
        self._dynamic.reshape(dict(zip(arrays, map(list, shapes), strict=True)))
        if len(self._valid_shapes) >= REMEMBERED_SHAPES:
            self._valid_shapes.clear()
        self._valid_shapes.add(shapes)

    def _check_integers(self, arrays: Feeds) -> None:
        """Raise InputError for integers that OpenVINO may round: some of its integer kernels compute in float32."""
        for name, array in arrays.items():
            if array.dtype.kind in "iu" and array.size and max(int(array.max()), -int(array.min())) > EXACT_INTEGERS:
                raise InputError(
                    f"{self.title}: input {name!r} has integers beyond {EXACT_INTEGERS:,}, which {self.name} may round",
                    "use --backend onnxruntime-cpu",
                )

    def _with_nodes(self, words: str) -> str:
        """Return `words` with OpenVINO's names of nodes replaced by the graph's."""
        return re.sub(r"(?<=node with name )'([^']*)'", lambda found: repr(self._makers.get(found[1], found[1])), words)

    def _name_of(self, port: Any) -> str:
        known = [spec.name for spec in self.outputs if spec.name in port.get_names()]
        return known[0] if known else next(name for name in sorted(port.get_names()) if name in self._makers)


def _position(ports: Sequence[Any], name: str) -> int:
    return next(index for index, port in enumerate(ports) if name in port.get_names())


def _tensor(array: Array) -> Any:
    """Return `array` as an OpenVINO tensor that shares its memory; bfloat16 is reinterpreted bit by bit."""
    import openvino

    array = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return openvino.Tensor(array.view(np.uint16), list(array.shape), openvino.Type.bf16)
    if array.dtype == object:
        return openvino.Tensor(array.astype(str))
    return openvino.Tensor(array, shared_memory=True)


def _array(value: Array, bfloat16: bool) -> Array:
    if bfloat16:
        import ml_dtypes

        return value.view(ml_dtypes.bfloat16) if value.dtype.itemsize == 2 else value.astype(ml_dtypes.bfloat16)
    return value


def _element(kind: Any) -> str:
    return str(kind.get_type_name()) if hasattr(kind, "get_type_name") else str(kind)


def _text(value: Any) -> str:
    return str(value.value if hasattr(value, "value") else value)
