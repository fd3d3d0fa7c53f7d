"""Builds engines with TensorRT or TensorRT-RTX, whose Python modules have the same interface.

TensorRT times kernels during the build and needs the GPU that it builds for. TensorRT-RTX compiles ahead of time on any machine
for named compute capabilities, and completes the compilation on the GPU that loads the engine. Networks are strongly typed: the
precision of each node is that of the graph. TF32 is off unless it is requested.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from relu_deploy.backends.nvidia.cuda import Device
from relu_deploy.backends.nvidia.driver import Missing
from relu_deploy.backends.nvidia.tf32 import require_tf32
from relu_deploy.backends.tensorrt.building.parsable_graph import parsable
from relu_deploy.backends.tensorrt.building.progress import PARTS, Progress, progress_monitor
from relu_deploy.backends.tensorrt.logger import captured_stdout, logger_of
from relu_deploy.backends.tensorrt.options import HARDWARE, Batch, BuildOptions, Shapes, capability_name, shapes_of
from relu_deploy.backends.tensorrt.probe import MODULES, can_build, compiles_ahead, gpu_for
from relu_deploy.errors import BackendUnavailable, InputError, Unsupported, UsageError
from relu_deploy.graph.model import read_model
from relu_deploy.graph.precision import is_quantizer, precision_of

__all__ = ["Built", "Refusal", "Refused", "build_engine", "check_capabilities"]

#: marks lines about the missing driver, which accompany every error message on a machine without one
NO_DRIVER = "catchCudaError"
#: of the reasons for an operator that the parser does not know, and takes for a plugin
_NO_PLUGIN = ("was not found in plugin registry", "Plugin not found")


@dataclass(frozen=True)
class Built:
    """A built engine.

    Attributes:
        backend: Name of the backend.
        version: Version of the library.
        plan: The serialized engine.
        seconds: Duration of the build.
        layers: Number of layers of the network before the builder fuses them.
        compute_capabilities: Target GPUs, empty for the default.
        profiles: Optimization profiles.
        warnings: Distinct warnings of the library.
        timing_cache: Kernel timings for later builds; TensorRT only.
    """

    backend: str
    version: str
    plan: bytes = field(repr=False)
    seconds: float
    layers: int
    compute_capabilities: tuple[str, ...]
    profiles: tuple[Shapes, ...]
    warnings: tuple[str, ...]
    timing_cache: bytes = field(default=b"", repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that describe the build in the metadata of an engine."""
        return {
            "backend": self.backend,
            "version": self.version,
            "bytes": len(self.plan),
            "seconds": round(self.seconds, 3),
            "layers": self.layers,
            "compute_capabilities": list(self.compute_capabilities),
            "profiles": [
                {name: [list(shape) for shape in shapes] for name, shapes in profile.items()} for profile in self.profiles
            ],
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Refusal:
    """An error of the parser.

    Attributes:
        node: Name of the node, "" if the error names none.
        operator: Its operator, "" if the error names none.
        reason: The parser's message.
    """

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        if not self.operator:
            return self.reason
        return f"{self.operator} {self.node!r}: {self.reason}" if self.node else f"{self.operator}: {self.reason}"


def listed_refusals(refusals: Sequence[Refusal]) -> str:
    """Return the refusals in one line: each operator with its reason once, with the number of further nodes."""
    groups: dict[tuple[str, str], list[Refusal]] = {}
    for refusal in refusals:
        groups.setdefault((refusal.operator, refusal.reason), []).append(refusal)
    return "; ".join(f"{first}" + (f" ({len(more)} more nodes)" if more else "") for first, *more in groups.values())


class Refused(Unsupported):
    """The parser does not support the graph.

    Attributes:
        refusals: The errors of the parser.
    """

    def __init__(self, message: str, hint: str, refusals: Sequence[Refusal]) -> None:
        super().__init__(message, hint)
        self.refusals = tuple(refusals)


def build_engine(
    name: str,
    onnx_path: Path,
    options: BuildOptions = BuildOptions(),  # noqa: B008  # it is frozen
    *,
    timing_cache: bytes = b"",
    progress: Progress | None = None,
    device: int = 0,
) -> Built:
    """Build an engine.

    A KeyboardInterrupt or an exception of `progress` cancels the build at its next step and is then raised.

    Args:
        name: Name of the backend.
        onnx_path: The graph; external weights are read from its folder.
        options: Build options.
        timing_cache: `Built.timing_cache` of an earlier build; not used by TensorRT-RTX, which does not time kernels.
        progress: Called as the build proceeds.
        device: Index of the GPU that TensorRT times kernels on; not used by TensorRT-RTX.

    Raises:
        BackendUnavailable: If engines cannot be built here.
        InputError: If the file is not a valid graph.
        Refused: If the parser does not support nodes of the graph.
        Unsupported: If the build fails.
        UsageError: If options do not fit the graph or the library.
    """
    found = can_build(name, device)
    if not found.usable:
        raise BackendUnavailable(f"{name} cannot build engines here: {found.reason}", found.fix)
    trt = import_module(MODULES[name])
    if not onnx_path.is_file():
        raise InputError(f"{onnx_path} does not exist", "give the path of an ONNX file")
    options.check()
    capabilities = check_capabilities(trt, name, options.compute_capabilities)
    if options.tf32 and not compiles_ahead(trt):
        require_tf32(name)
    if options.hardware_compatible and compiles_ahead(trt):
        raise UsageError(f"{name} has no hardware compatibility levels", "name compute capabilities instead")
    monitor = progress_monitor(trt, progress)

    def work() -> Built:
        logger = logger_of(trt)
        if device and not compiles_ahead(trt):
            # The builder uses the current GPU of its thread, which is GPU 0 by default.
            Device(device)
        # One build at a time: concurrent ones would mix their log messages and disturb each other's timings.
        with logger.one_at_a_time, captured_stdout() as printed:
            started = time.perf_counter()
            messages: list[tuple[str, str]] = []
            logger.messages = messages
            builder = _builder(trt, name, logger)
            # The parser owns the weights of the network, so it must not be freed before the build ends.
            network, parser = _parsed(trt, name, builder, onnx_path)
            if options.observable:
                _make_observable(trt, name, network)
            config = _configured(trt, builder, options, capabilities)
            profiles = _with_profiles(builder, network, config, options.profiles)
            times = None
            if not compiles_ahead(trt):
                times = _timing_cache(config, timing_cache)
            config.progress_monitor = monitor
            plan = builder.build_serialized_network(network, config)
            layers = network.num_layers
            del parser
        if monitor.raised is not None:
            raise monitor.raised
        if plan is None:
            lines = [text for severity, text in messages if severity != "WARNING" and NO_DRIVER not in text]
            reason = "; ".join(lines[-3:]) or "the builder gives no reason"
            raise Unsupported(f"{name} {found.version} cannot build {onnx_path}: {reason}", _way_out(trt, options))
        if progress is not None:
            progress(PARTS, PARTS)
        warned = tuple(dict.fromkeys([*(text for severity, text in messages if severity == "WARNING"), *printed]))
        return Built(
            name,
            found.version,
            bytes(plan),
            time.perf_counter() - started,
            layers,
            capabilities,
            profiles,
            warned,
            b"" if times is None else bytes(times.serialize()),
        )

    # KeyboardInterrupt is raised only in Python code of the main thread, so the builder runs in another thread.
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            return pool.submit(work).result()
        except BaseException:
            monitor.cancelled.set()
            raise


def _timing_cache(config: Any, earlier: bytes) -> Any:
    """Return the cache that the build uses: with the timings of `earlier`, or an empty one if those are of another GPU or version."""
    times = config.create_timing_cache(earlier)
    if not config.set_timing_cache(times, ignore_mismatch=False):
        times = config.create_timing_cache(b"")
        if not config.set_timing_cache(times, ignore_mismatch=False):
            return None
    return times


def _builder(trt: Any, name: str, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as error:  # the bindings raise it if the library returns a null pointer
        reason = "; ".join(text for _, text in logger.messages) or str(error)
        raise BackendUnavailable(
            f"{name} {trt.__version__} cannot start: {reason}", "check the driver's version: nvidia-smi"
        ) from None


def _parsed(trt: Any, name: str, builder: Any, path: Path) -> tuple[Any, Any]:
    """Return the network of the graph in `path` and the parser that owns its weights."""
    # The default of TensorRT 10 is a weakly typed network, in which the builder chooses precisions.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger_of(trt))
    with parsable(path) as file:
        # External weights are found only if the parser is given the path.
        parsed = parser.parse_from_file(str(file))
    if parsed and network.num_outputs:
        return network, parser
    model = read_model(path)  # raises InputError for an invalid file, which the parser takes for an empty graph
    refusals = [_refusal(parser.get_error(index)) for index in range(parser.num_errors)]
    listed = listed_refusals(refusals) or "the parser gives no reason"
    raise Refused(f"{name} does not take {path}: {listed}", _other_graph(name, refusals, precision_of(model)), refusals)


def _other_graph(name: str, refusals: Sequence[Refusal], precision: str) -> str:
    """Return the hint for a graph that the parser does not support."""
    # The parser requires zero points of 0 and float biases, which int8 graphs for CPUs do not have, and knows no integer kernels.
    if any(is_quantizer(refusal.operator) for refusal in refusals):
        return (
            f"this int8 graph was made for another runtime: make {name}'s own form from the float32 model with "
            f"relu-deploy optimize FLOAT32_MODEL --for {name} --precision int8 --calibration D"
        )
    if precision == "float32":
        return "end the graph before these nodes, or use another backend, such as onnxruntime-cpu"
    return "exclude these nodes from quantization or casting, or use another backend"


def _make_observable(trt: Any, name: str, network: Any) -> None:
    """Let a debug listener receive the tensors that the engine writes. Unlike marked outputs, this prevents no fusion."""
    mark = getattr(network, "mark_unfused_tensors_as_debug_tensors", None)
    if mark is None:
        raise Unsupported(
            f"{name} {trt.__version__} cannot build an engine that shows its tensors",
            "update it, or verify its outputs only",
        )
    if not mark():
        raise Unsupported(
            f"{name} {trt.__version__} refuses to build an engine that shows its tensors", "verify its outputs only"
        )


def _refusal(error: Any) -> Refusal:
    lines = error.desc().splitlines()
    reason = " ".join(line for line in lines if NO_DRIVER not in line and not line.startswith("Invalid Node"))
    reason = error.code().name if reason in ("", "false") else reason
    if reason == "UNSUPPORTED_NODE" or any(words in reason for words in _NO_PLUGIN):
        reason = "this operator is not supported"
    # An importer that gives up throws without its node; its own name says the operator.
    importer = error.func()
    operator = error.node_operator() or (importer.removeprefix("import") if importer.startswith("import") else "")
    return Refusal(error.node_name(), operator, reason)


def check_capabilities(trt: Any, name: str, requested: Sequence[str]) -> tuple[str, ...]:
    """Return compute capabilities in the library's spelling, without duplicates.

    Args:
        trt: The library's module.
        name: Name of the backend.
        requested: Compute capabilities, such as 8.6 or SM86.

    Raises:
        UsageError: If the library cannot build for one of them.
    """
    if requested and not compiles_ahead(trt):
        raise UsageError(
            f"{name} builds for the GPU of this machine, not for named compute capabilities", "name them for tensorrt-rtx"
        )
    known = [each for each in trt.ComputeCapability.__members__ if each.startswith("SM")] if requested else []
    named = {capability_name(each): each for each in requested}
    if strange := [given for each, given in named.items() if each not in known]:
        raise UsageError(f"{name} cannot build for compute capability {strange[0]}", f"it builds for {', '.join(known)}")
    return tuple(named)


def _configured(trt: Any, builder: Any, options: BuildOptions, capabilities: Sequence[str]) -> Any:
    """Return the configuration of the build without its profiles."""
    config = builder.create_builder_config()
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
    for index, each in enumerate(capabilities):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, each), index):
            raise Unsupported(f"the builder does not take {each}", "leave it out")
    # Lets the inspector list the layers of the engine.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.hardware_compatible:
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[options.hardware_compatible])
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    for requested, flag in (
        (options.version_compatible, "VERSION_COMPATIBLE"),
        (options.weight_streaming, "WEIGHT_STREAMING"),
        (options.refit, "REFIT"),
    ):
        if requested:
            config.set_flag(getattr(trt.BuilderFlag, flag))
    return config


def _with_profiles(builder: Any, network: Any, config: Any, requested: Sequence[Batch]) -> tuple[Shapes, ...]:
    """Add optimization profiles to `config` and return them; empty if all shapes of the network are fixed."""
    inputs = {network.get_input(index).name: tuple(network.get_input(index).shape) for index in range(network.num_inputs)}
    varying = {name: shape for name, shape in inputs.items() if -1 in shape}
    for batch in requested:
        if isinstance(batch, Mapping) and (unknown := [name for name in batch if name not in varying]):
            raise UsageError(f"the graph has no input {unknown[0]!r} that varies", f"these vary: {', '.join(varying) or 'none'}")
    if not varying:
        if requested:
            raise UsageError("no input of the graph varies, so it has no optimization profile", "omit the sizes")
        return ()
    profiles = tuple({name: shapes_of(name, shape, batch) for name, shape in varying.items()} for batch in requested or (None,))
    for profile in profiles:
        ranges = builder.create_optimization_profile()
        for name, shapes in profile.items():
            ranges.set_shape(name, *shapes)
        if config.add_optimization_profile(ranges) < 0:
            raise Unsupported(f"the builder does not take the profile {profile}", "give other sizes")
    return profiles


def _way_out(trt: Any, options: BuildOptions) -> str:
    """Return the hint for a failed build: it names the first option that may be the cause."""
    if options.refit and isinstance(gpu_for(trt), Missing):
        return "a refittable engine can only be built on a machine with a GPU: build it there, or without --refit"
    given = [name for name in ("version_compatible", "refit", "weight_streaming") if getattr(options, name)]
    return f"build it without --{given[0].replace('_', '-')}" if given else "try another precision or target"
