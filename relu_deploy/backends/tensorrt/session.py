"""A session that runs an engine of TensorRT or TensorRT-RTX.

A session has its own stream, because TensorRT adds synchronization on the default stream. For each set of input shapes it keeps
an execution context with its buffers (`buffers.py`); `run` pads batches to a few sizes (`batch_sizes.py`). The contexts share one
block of memory for activations: they run on one stream, one after the other.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from math import log
from typing import Any

from relu_deploy.backends.base import Executed
from relu_deploy.backends.nvidia.cuda import Buffer, Device
from relu_deploy.backends.nvidia.driver import find_gpu
from relu_deploy.backends.tensorrt.batch_sizes import BatchSizes
from relu_deploy.backends.tensorrt.buffers import TensorRtIoBinding
from relu_deploy.backends.tensorrt.building.engine_cache import Engine
from relu_deploy.backends.tensorrt.errors import refusal_reason
from relu_deploy.backends.tensorrt.logger import logger_of
from relu_deploy.backends.tensorrt.probe import MODULES, compiles_ahead
from relu_deploy.bundle import Bundle, write_atomically
from relu_deploy.errors import InputError, Unsupported
from relu_deploy.graph import precision_of, read_model
from relu_deploy.graph.bodies import has_loops
from relu_deploy.run_limit import ending_process
from relu_deploy.storage.engine_files import is_trusted, trust
from relu_deploy.tensors import Feeds, TensorSpec, check_feeds

__all__ = ["Profile", "TensorRtSession", "choose_profile"]

#: execution contexts that `run` keeps at least; each has the buffers of one set of input shapes
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
    """One optimization profile.

    Attributes:
        index: Its index in the engine.
        ranges: Smallest, usual and largest shape by input name.
    """

    index: int
    ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]

    def takes(self, shapes: Shapes) -> bool:
        """Return whether all `shapes` are in the profile's ranges."""
        return all(
            len(shape) == len(low) and all(least <= size <= most for least, size, most in zip(low, shape, high, strict=True))
            for shape, (low, _, high) in ((shapes[name], self.ranges[name]) for name in self.ranges)
        )

    def distance(self, shapes: Shapes) -> float:
        """Return the distance of `shapes` from the usual ones: the sum of the absolute logarithms of the ratios of sizes."""
        sizes = [pair for name, (_, usual, _) in self.ranges.items() for pair in zip(shapes[name], usual, strict=True)]
        return sum(abs(log(max(1, size) / max(1, usual))) for size, usual in sizes)

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {_shape(low)} to {_shape(high)}" if low != high else f"{name} {_shape(low)}"
            for name, (low, _, high) in self.ranges.items()
        )

    def to_json(self) -> dict[str, Any]:
        """Return (smallest, usual, largest) shape by input name."""
        return {name: [list(shape) for shape in shapes] for name, shapes in self.ranges.items()}


def choose_profile(profiles: Sequence[Profile], shapes: Shapes, model: str) -> Profile:
    """Return the profile that accepts `shapes` and whose usual shapes are nearest to them.

    Args:
        profiles: The profiles of the engine.
        shapes: Shapes by input name.
        model: Title of the model, for errors.

    Raises:
        InputError: If no profile accepts them; the message lists the accepted shapes.
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
    """An engine, deserialized on one GPU. See `base.DeviceSession`."""

    def __init__(self, name: str, bundle: Bundle, engine: Engine, gpu: Device, trt: Any = None) -> None:
        """Deserialize an engine.

        Args:
            name: Name of the backend.
            bundle: The model.
            engine: The engine from the cache.
            gpu: The GPU to run on.
            trt: The library's module, by default that of the backend.

        Raises:
            InputError: If the engine's inputs and outputs are not those of the bundle.
            Unsupported: If the library rejects the engine.
        """
        self.trt: Any = trt or import_module(MODULES[name])
        self.name, self.title, self.gpu = name, bundle.title, gpu
        self.inputs: tuple[TensorSpec, ...] = bundle.inputs
        self.outputs: tuple[TensorSpec, ...] = bundle.outputs
        self.kept, self._logger = engine, logger_of(self.trt)
        #: observable engines run without CUDA graphs, in which a debug listener is not called
        self.observable = bool(engine.facts.get("options", {}).get("observable"))
        self._runtime, self.engine = self._deserialized(bundle)
        #: bytes of the weights that stay on the GPU if weights are streamed, else None
        self.weight_budget = self._stream_weights()
        self.dtypes: Mapping[str, str] = self._dtypes()
        self.profiles = self._profiles()
        self._batches = BatchSizes.choose(self.inputs, self.outputs, self._batch_ranges())
        self.stream = gpu.stream()
        #: memory of the activations of all contexts, made with the first one
        self._activations: Buffer | None = None
        self._config, self._cache, self._cached = self._runtime_config()
        self._bounds: OrderedDict[tuple[Any, ...], TensorRtIoBinding] = OrderedDict()
        self._lent: weakref.WeakSet[TensorRtIoBinding] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._device = str(find_gpu(gpu.index))
        graph = read_model(bundle.onnx)
        self._precision, self._repeats = precision_of(graph), has_loops(graph)
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
            **({"batch_sizes": list(self._batches.sizes)} if self._batches.sizes else {}),
            **({} if self.weight_budget is None else {"weight_budget_bytes": self.weight_budget}),
        }

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        with self._lock, ending_process(self.title, self.name) if self._repeats else nullcontext():
            arrays, rows = self._batches.pad(check_feeds(feeds, self.inputs, self.title))
            bound = self._bound_for(arrays)
            bound.upload(arrays)
            bound.run()
            return self._batches.trim(bound.download(), rows)

    def bind(self, feeds: Mapping[str, Any]) -> TensorRtIoBinding:
        """Return buffers on the GPU for inputs of the shapes in `feeds`; see `base.DeviceSession`."""
        bound = TensorRtIoBinding(self, feeds)
        self._lent.add(bound)
        return bound

    def inspect(self, context: Any = None) -> str:
        """Return the engine inspector's JSON description of the layers, at the shapes of `context` or else of the last `run`."""
        inspector = self.engine.create_engine_inspector()
        if context is None and self._bounds:
            context = next(reversed(self._bounds.values())).context
        if context is not None:
            inspector.execution_context = context
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    def executed(self) -> Sequence[Executed]:
        # Fused kernels do not have names of nodes, and their precisions are those of the strongly typed graph.
        return ()

    def close(self) -> None:
        """Free the engine. The kernels that TensorRT-RTX compiled for this GPU are saved beside the engine."""
        with self._lock:
            if self.engine is None:
                return
            self.keep_runtime_cache()
            for bound in (*self._bounds.values(), *self._lent):
                bound.close()
            self._bounds.clear()
            # Makes the GPU current too, on which the library frees the engine: this may be a thread that has not used it.
            self.stream.drain()
            # In this order, because each depends on the next one.
            if self._activations is not None:
                self._activations.close()
            self._cache = self._config = self.engine = self._runtime = None
            self.stream.close()

    # ------------------------------------------------------------ for the buffers

    def new_context(self) -> Any:
        """Return an execution context. Raises Unsupported if it cannot be created, usually for lack of memory."""
        with self.collect_messages() as messages:
            strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self.engine.create_execution_context(strategy if self._config is None else self._config)
        if context is None:
            raise Unsupported(
                f"{self.name} cannot prepare to run {self.title}: {joined_messages(messages)}",
                "use smaller sizes, or free the GPU's memory: nvidia-smi shows who holds it",
            )
        # Engines have detailed names, which each enqueue without a CUDA graph would pass to NVTX.
        context.nvtx_verbosity = self.trt.ProfilingVerbosity.NONE
        size = int(self.engine.device_memory_size_v2)
        if size:
            # By itself each context would allocate as much as the largest profile needs.
            self._activations = self._activations or self.gpu.buffer(size)
            context.set_device_memory(self._activations.pointer, size)
        return context

    def choose_profile(self, shapes: Shapes) -> Profile:
        """Return the profile for `shapes`; see the function `choose_profile`."""
        return choose_profile(self.profiles, shapes, self.title)

    @contextlib.contextmanager
    def collect_messages(self) -> Iterator[deque[tuple[str, str]]]:
        """Yield a deque with the library's log messages from now on, also after the block; it keeps the last hundred."""
        messages: deque[tuple[str, str]] = deque(maxlen=100)
        self._logger.messages = messages
        yield messages

    def last_messages(self) -> str:
        """Return the last messages that the library logged, on one line."""
        return joined_messages(self._logger.messages)

    def note(self, line: str) -> None:
        """Add `line`, the text of an exception of the bindings, to the log messages."""
        self._logger.messages.append(("ERROR", " ".join(line.split())))

    @property
    def captures_itself(self) -> bool:
        """Whether the library captures CUDA graphs itself."""
        return self._config is not None

    def no_cuda_graph(self, reason: str) -> None:
        """Record in `facts` that runs are not captured in a CUDA graph, and why."""
        self._cuda_graph = f"none: {reason}"

    def keep_runtime_cache(self) -> None:
        """Save the kernels that TensorRT-RTX has compiled beside the engine, if the size of the cache has changed."""
        if self._cache is None:
            return
        content = bytes(self._cache.serialize())
        place = self.kept.runtime_cache
        if place.exists() and place.stat().st_size == len(content):
            return
        # Without the cache the next load only takes some seconds longer.
        with contextlib.suppress(InputError):
            write_atomically(place, content, follow=False)
            trust([place])

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
        """Set the weight streaming budget if the engine was built for it; must be called before a context is created."""
        if not self.kept.facts.get("options", {}).get("weight_streaming"):
            return None
        # The default budget keeps all weights on the GPU.
        budget = int(self.engine.get_weight_streaming_automatic_budget())
        self.engine.weight_streaming_budget_v2 = budget
        return budget

    def _tensors(self, mode: str) -> list[str]:
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        return [name for name in names if self.engine.get_tensor_mode(name).name == mode]

    def _dtypes(self) -> dict[str, str]:
        """Return the NumPy dtype of each input and output. Raises InputError if the engine does not match the bundle."""
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
                        f"{self.name} cannot run {self.title}: the values of input {spec.name!r} determine shapes inside it",
                        "export it with sizes instead, or use --backend onnxruntime-cuda",
                    )
        return dtypes

    def is_on_host(self, name: str) -> bool:
        """Return whether the engine reads or writes that tensor in host memory, as it does for shape tensors."""
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

    def _batch_ranges(self) -> list[tuple[int, int, int]]:
        """Return the smallest, usual and largest batch of each profile, of the first input with a batch."""
        spec = next((spec for spec in self.inputs if spec.batch_axis is not None), None)
        if spec is None or spec.batch_axis is None:
            return []
        axis = spec.batch_axis
        ranges = (profile.ranges[spec.name] for profile in self.profiles)
        return [(low[axis], usual[axis], high[axis]) for low, usual, high in ranges]

    def _runtime_config(self) -> tuple[Any, Any, str]:
        """Return TensorRT-RTX's runtime configuration, its cache of compiled kernels, and the state of the saved cache."""
        if not compiles_ahead(self.trt):
            return None, None, ""
        config = self.engine.create_runtime_config()
        if not self.observable:
            config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.set_execution_context_allocation_strategy(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # With lazy specialization kernels are replaced during later runs, so that results and times would not repeat.
        config.dynamic_shapes_kernel_specialization_strategy = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        cache = config.create_runtime_cache()
        state = "empty"
        if self.kept.runtime_cache.exists() and is_trusted(self.kept.runtime_cache):
            loaded = cache.deserialize(self.kept.runtime_cache.read_bytes())
            state = "loaded" if loaded else "refused: it is of another GPU, driver or version"
        if not config.set_runtime_cache(cache):
            return config, None, "refused"
        return config, cache, state

    def _bound_for(self, feeds: Feeds) -> TensorRtIoBinding:
        key = tuple(feeds[spec.name].shape for spec in self.inputs)
        if key not in self._bounds:
            while len(self._bounds) >= max(CONTEXTS, len(self._batches.sizes)):
                self._bounds.popitem(last=False)[1].close()
            self._bounds[key] = TensorRtIoBinding(self, feeds)
        self._bounds.move_to_end(key)
        return self._bounds[key]


def joined_messages(messages: Sequence[tuple[str, str]] | deque[tuple[str, str]]) -> str:
    """Return the last three distinct messages on one line, errors if there are any, else warnings."""
    lines = [text for severity, text in messages if severity != "WARNING"] or [text for _, text in messages]
    return "; ".join(dict.fromkeys(lines[-3:])) or "the library does not say why"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
