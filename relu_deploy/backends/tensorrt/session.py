"""Engines of TensorRT and TensorRT-RTX, run. The library's module is the only difference, and what RTX alone offers.

A session has one stream, not the default one, which TensorRT would synchronize around. For each set of input shapes it
keeps an execution context with its buffers (`tensorrt_bound.py`).
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import log
from typing import Any

from relu_deploy.backends.base import Executed
from relu_deploy.backends.nvidia.cuda import Device
from relu_deploy.backends.nvidia.driver import find_gpu
from relu_deploy.backends.tensorrt.buffers import TensorRtIoBinding
from relu_deploy.backends.tensorrt.build import logger_of
from relu_deploy.backends.tensorrt.engine_cache import Engine
from relu_deploy.backends.tensorrt.errors import refusal_reason
from relu_deploy.backends.tensorrt.probe import MODULES, compiles_ahead
from relu_deploy.bundle import Bundle, write_atomically
from relu_deploy.errors import InputError, Unsupported
from relu_deploy.graph import load_model, precision_of
from relu_deploy.tensors import Feeds, TensorSpec, check_feeds

__all__ = ["Profile", "TensorRtSession", "choose_profile"]

#: contexts kept by `run`; each holds the memory of one set of input shapes
CONTEXTS = 4
LIBRARY = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
#: TensorRT's DataType → NumPy's name; it has no nptype for bfloat16 and float8
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Profile:
    """One optimization profile: per input the smallest, usual and largest shape that the engine was tuned for."""

    index: int
    ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]

    def takes(self, shapes: Shapes) -> bool:
        return all(
            len(shape) == len(low) and all(least <= size <= most for least, size, most in zip(low, shape, high, strict=True))
            for shape, (low, _, high) in ((shapes[name], self.ranges[name]) for name in self.ranges)
        )

    def distance(self, shapes: Shapes) -> float:
        """Return how far `shapes` are from the usual ones: half a size is as far as twice it."""
        sizes = [pair for name, (_, usual, _) in self.ranges.items() for pair in zip(shapes[name], usual, strict=True)]
        return sum(abs(log(max(1, size) / max(1, usual))) for size, usual in sizes)

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {_shape(low)} to {_shape(high)}" if low != high else f"{name} {_shape(low)}"
            for name, (low, _, high) in self.ranges.items()
        )

    def to_json(self) -> dict[str, Any]:
        return {name: [list(shape) for shape in shapes] for name, shapes in self.ranges.items()}


def choose_profile(profiles: Sequence[Profile], shapes: Shapes, model: str) -> Profile:
    """Return the profile whose usual shapes are nearest to `shapes`, of those that take them.

    Raises InputError that lists what the engine takes when none does.
    """
    fitting = [profile for profile in profiles if profile.takes(shapes)]
    if not fitting:
        shown = ", ".join(f"{name} {_shape(shape)}" for name, shape in shapes.items())
        raise InputError(
            f"{model}: the engine was not built for {shown}; it takes {' or '.join(map(str, profiles))}",
            "compile it with sizes that include these (relu-deploy compile --batch MIN,OPT,MAX), or split the batch",
        )
    return min(fitting, key=lambda profile: profile.distance(shapes))


class TensorRtSession:
    """An engine, deserialized on one GPU."""

    def __init__(self, name: str, bundle: Bundle, engine: Engine, gpu: Device, trt: Any = None) -> None:
        """trt: the library's module, by default the one that `name` stands for."""
        self.trt: Any = trt or import_module(MODULES[name])
        self.name, self.title, self.gpu = name, bundle.title, gpu
        self.inputs: tuple[TensorSpec, ...] = bundle.inputs
        self.outputs: tuple[TensorSpec, ...] = bundle.outputs
        self.kept, self._logger = engine, logger_of(self.trt)
        #: an engine that is looked into runs kernel by kernel: nobody is called back from inside a CUDA graph
        self.observable = bool(engine.facts.get("options", {}).get("observable"))
        self._runtime, self.engine = self._deserialized(bundle)
        #: how many bytes of the weights stay on the GPU, None where all of them do
        self.weight_budget = self._stream_weights()
        self.dtypes: Mapping[str, str] = self._dtypes()
        self.profiles = self._profiles()
        self.stream = gpu.stream()
        self._config, self._cache, self._cached = self._runtime_config()
        self._bounds: OrderedDict[tuple[Any, ...], TensorRtIoBinding] = OrderedDict()
        self._lent: weakref.WeakSet[TensorRtIoBinding] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._device = str(find_gpu(gpu.index))
        self._precision = precision_of(load_model(bundle.onnx))
        self._cuda_graph = "by the library" if self._config is not None else "captured after the first run of a shape"

    @property
    def facts(self) -> Mapping[str, Any]:
        options = self.kept.facts.get("options", {})
        return {
            "device": self._device,
            "library": f"{LIBRARY[self.name]} {self.trt.__version__}",
            "precision": self._precision,
            "tf32": bool(options.get("tf32", False)),
            "profiles": [profile.to_json() for profile in self.profiles],
            "engine": self.kept.key,
            "engine_was_kept": self.kept.cache_hit,
            "cuda_graph": self._cuda_graph,
            **({"runtime_cache": self._cached} if self._cache is not None else {}),
            **({} if self.weight_budget is None else {"weight_budget_bytes": self.weight_budget}),
        }

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        with self._lock:
            bound = self._bound_for(check_feeds(feeds, self.inputs, self.title))
            bound.upload(feeds)
            bound.run()
            return bound.download()

    def bind(self, feeds: Mapping[str, Any]) -> TensorRtIoBinding:
        """Return buffers of their own for inputs of the shapes in `feeds`; see `DeviceSession`."""
        bound = TensorRtIoBinding(self, feeds)
        self._lent.add(bound)
        return bound

    def inspect(self) -> str:
        """Return what the engine's inspector says of its layers, as JSON, at the shapes of the last `run`."""
        inspector = self.engine.create_engine_inspector()
        if self._bounds:
            inspector.execution_context = next(reversed(self._bounds.values())).context
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    def executed(self) -> Sequence[Executed]:
        # Engines are strongly typed: what runs has the types that the graph says, and no kernel keeps its node's name.
        return ()

    def close(self) -> None:
        """Free everything; what TensorRT-RTX compiled for this GPU is kept beside the engine for the next time."""
        with self._lock:
            if self.engine is None:
                return
            self.keep_runtime_cache()
            for bound in (*self._bounds.values(), *self._lent):
                bound.close()
            self._bounds.clear()
            self.stream.synchronize()
            # In this order: each needs the one after it.
            self._cache = self._config = self.engine = self._runtime = None
            self.stream.close()

    # ------------------------------------------------------------ for the buffers

    def new_context(self) -> Any:
        """Return an execution context. Raises Unsupported when there is none to be had, for want of memory as a rule."""
        with self.collect_messages() as messages:
            arguments = () if self._config is None else (self._config,)
            context = self.engine.create_execution_context(*arguments)
        if context is None:
            raise Unsupported(
                f"{self.name} cannot prepare to run {self.title}: {joined_messages(messages)}",
                "use smaller sizes, or free the GPU's memory: nvidia-smi shows who holds it",
            )
        # Engines are built with detailed names, and each uncaptured enqueue would announce every one of them to a profiler.
        context.nvtx_verbosity = self.trt.ProfilingVerbosity.NONE
        return context

    def choose_profile(self, shapes: Shapes) -> Profile:
        return choose_profile(self.profiles, shapes, self.title)

    @contextlib.contextmanager
    def collect_messages(self) -> Iterator[deque[tuple[str, str]]]:
        """Yield the lines that the library logs from now on, oldest first; later ones go on to the same, latest hundred."""
        messages: deque[tuple[str, str]] = deque(maxlen=100)
        self._logger.messages = messages
        yield messages

    def last_messages(self) -> str:
        """Return what the library logged last."""
        return joined_messages(self._logger.messages)

    def note(self, line: str) -> None:
        """Keep `line`, of an exception of the bindings, beside what the library logged."""
        self._logger.messages.append(("ERROR", " ".join(line.split())))

    @property
    def captures_itself(self) -> bool:
        """Return whether the library makes CUDA graphs on its own."""
        return self._config is not None

    def no_cuda_graph(self, reason: str) -> None:
        """Note that runs are enqueued kernel by kernel, and why."""
        self._cuda_graph = f"none: {reason}"

    def keep_runtime_cache(self) -> None:
        """Write what TensorRT-RTX has compiled beside the engine, if there is more of it than was there."""
        if self._cache is None:
            return
        content = bytes(self._cache.serialize())
        place = self.kept.runtime_cache
        if place.exists() and place.stat().st_size == len(content):
            return
        # A folder that cannot be written costs the next load some seconds, and this one nothing.
        with contextlib.suppress(InputError):
            write_atomically(place, content)

    # ------------------------------------------------------------ loading

    def _deserialized(self, bundle: Bundle) -> tuple[Any, Any]:
        plan = self.kept.read()
        diagnoses = 0
        with self._logger.one_at_a_time, self.collect_messages() as messages:
            runtime = self.trt.Runtime(self._logger)
            if self.kept.facts.get("options", {}).get("version_compatible"):
                runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None and hasattr(runtime, "get_engine_validity"):
                diagnoses = int(runtime.get_engine_validity(plan)[1])
        if engine is None:
            members = getattr(self.trt, "EngineInvalidityDiagnostics", None)
            log_lines = [text for _, text in messages]
            reason = refusal_reason(LIBRARY[self.name], self.trt.__version__, plan, log_lines, diagnoses, members)
            raise Unsupported(f"{self.kept.file}, the engine of {bundle.title}, cannot be used: {reason.text}", reason.fix)
        return runtime, engine

    def _stream_weights(self) -> int | None:
        """Let weights stay in host memory, where the engine was built for it; before any context is made."""
        if not self.kept.facts.get("options", {}).get("weight_streaming"):
            return None
        # The default budget is all of the weights, with which nothing is streamed.
        budget = int(self.engine.get_weight_streaming_automatic_budget())
        self.engine.weight_streaming_budget_v2 = budget
        return budget

    def _tensors(self, mode: str) -> list[str]:
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        return [name for name in names if self.engine.get_tensor_mode(name).name == mode]

    def _dtypes(self) -> dict[str, str]:
        """Return the NumPy dtype of each input and output. Raises InputError where engine and bundle do not belong together."""
        dtypes = {}
        for specs, mode in ((self.inputs, "INPUT"), (self.outputs, "OUTPUT")):
            there = self._tensors(mode)
            if set(there) != {spec.name for spec in specs}:
                raise InputError(
                    f"{self.kept.file} has {mode.lower()}s {', '.join(there)}; {self.title} has {', '.join(map(str, specs))}",
                    "compile it again with --rebuild",
                )
            for spec in specs:
                kind = self.engine.get_tensor_dtype(spec.name).name
                if DTYPES.get(kind) != spec.dtype:
                    raise InputError(
                        f"{self.kept.file}: {spec.name} is {DTYPES.get(kind, kind)}, and in {self.title} {spec.dtype}",
                        "compile it again with --rebuild",
                    )
                dtypes[spec.name] = spec.dtype
                if mode == "INPUT" and self.is_on_host(spec.name):
                    raise Unsupported(
                        f"{self.name} cannot run {self.title}: the values of input {spec.name!r} decide shapes inside it",
                        "export it with sizes instead, or use --backend onnxruntime-cuda",
                    )
        return dtypes

    def is_on_host(self, name: str) -> bool:
        """Return whether the engine reads or writes that tensor in the CPU's memory, as it does with shapes."""
        return bool(self.engine.get_tensor_location(name).name == "HOST")

    def _profiles(self) -> tuple[Profile, ...]:
        profiles = []
        for index in range(self.engine.num_optimization_profiles):
            ranges = {}
            for spec in self.inputs:
                shape = tuple(self.engine.get_tensor_shape(spec.name))
                varies = min(shape, default=0) < 0
                shapes = self.engine.get_tensor_profile_shape(spec.name, index) if varies else (shape, shape, shape)
                low, usual, high = (tuple(one) for one in shapes)
                ranges[spec.name] = (low, usual, high)
            profiles.append(Profile(index, ranges))
        return tuple(profiles)

    def _runtime_config(self) -> tuple[Any, Any, str]:
        """Return TensorRT-RTX's settings for its contexts, its cache of compiled kernels, and what became of the kept one."""
        if not compiles_ahead(self.trt):
            return None, None, ""
        config = self.engine.create_runtime_config()
        if not self.observable:
            config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Lazily compiled kernels take the place of slower ones at some later run: neither bits nor times would repeat.
        config.dynamic_shapes_kernel_specialization_strategy = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        cache = config.create_runtime_cache()
        state = "empty"
        if self.kept.runtime_cache.exists():
            taken = cache.deserialize(self.kept.runtime_cache.read_bytes())
            state = "loaded" if taken else "refused: it is of another GPU, driver or version"
        if not config.set_runtime_cache(cache):
            return config, None, "refused"
        return config, cache, state

    def _bound_for(self, feeds: Feeds) -> TensorRtIoBinding:
        key = tuple(feeds[spec.name].shape for spec in self.inputs)
        if key not in self._bounds:
            while len(self._bounds) >= CONTEXTS:
                self._bounds.popitem(last=False)[1].close()
            self._bounds[key] = TensorRtIoBinding(self, feeds)
        self._bounds.move_to_end(key)
        return self._bounds[key]


def joined_messages(messages: Sequence[tuple[str, str]] | deque[tuple[str, str]]) -> str:
    """Return the last messages of `messages` on one line."""
    lines = [text for severity, text in messages if severity != "WARNING"] or [text for _, text in messages]
    return "; ".join(dict.fromkeys(lines[-3:])) or "the library does not say why"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
