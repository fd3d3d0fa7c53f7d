"""Types that all backends share: probes, capabilities, options and the protocols of sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from relu_deploy.backends.layer_times import LayerTimes
from relu_deploy.backends.threads import default_threads
from relu_deploy.graph.precision import EIGHT_BITS, Quantized
from relu_deploy.graph.relus import Relu
from relu_deploy.records import JsonRecord
from relu_deploy.tensors import Array, Feeds, TensorSpec

__all__ = [
    "OPTIMIZATIONS",
    "TORCH_MODES",
    "Capabilities",
    "Captured",
    "Consume",
    "DeviceSession",
    "Executed",
    "IoBinding",
    "Options",
    "Probe",
    "ProfilingSession",
    "Rounding",
    "Seen",
    "Session",
    "TruthSession",
]


@dataclass(frozen=True)
class Probe(JsonRecord):
    """Whether a backend is usable on this machine.

    Attributes:
        name: Name of the backend.
        usable: Whether sessions can run.
        version: Version of the runtime, "" if it is not installed.
        device: Device that sessions run on, "" if there is none.
        reason: Why the backend is not usable, "" if it is.
        fix: What to do about it, "" if it is usable.
    """

    name: str
    usable: bool
    version: str = ""
    device: str = ""
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Capabilities:
    """What a backend supports, known without loading its runtime or a model.

    Code outside `relu_deploy.backends` checks capabilities, never the name of a backend.

    Attributes:
        on_gpu: It computes on a GPU; `Options.device` chooses which.
        evaluates_float64: Its sessions are `TruthSession`s.
        shows_tensors: Its sessions return the tensors that `Options.taps` names.
        shows_engine_layers: It runs an engine whose layers can be listed; `verify` audits the engine instead of tapping Relus.
        runs_program: It runs the PyTorch program in the bundle (`Bundle.source`), not the ONNX graph.
        compiles_ahead: `relu_deploy.compile` builds engines for it.
        compiles_in_place: It compiles kernels for each input shape while it runs.
        autocasts: It accepts `Options.autocast`.
        times_layers: Its sessions are `ProfilingSession`s if `Options.profile` is set.
        compared_by_default: `relu_deploy.bench` measures it where no backends are named.
        targets: The targets of `relu_deploy.optimize` whose variants are made for it.
        tunables: Sets of fields of `Options` that may make it faster than its defaults do, for `relu_deploy.optimize` to measure.
        extra: The extra of this distribution that installs its runtime, "" if there is none.
        platform: The name of its model format in the Open Inference Protocol, "" for the backend's own name.
        placement: The rules of `graph.quantization.qdq_placement` that its 8-bit kernels follow, "" for those of the target.
        modules: Modules that it imports when it loads a model, beside those that `probe` imports.
    """

    on_gpu: bool = False
    evaluates_float64: bool = False
    shows_tensors: bool = True
    shows_engine_layers: bool = False
    runs_program: bool = False
    compiles_ahead: bool = False
    compiles_in_place: bool = False
    autocasts: bool = False
    times_layers: bool = False
    compared_by_default: bool = True
    targets: tuple[str, ...] = ()
    tunables: tuple[Mapping[str, Any], ...] = ()
    extra: str = ""
    platform: str = ""
    placement: str = ""
    modules: tuple[str, ...] = ()


#: modes of torch.compile; max-autotune times kernels and replays CUDA graphs, and takes minutes to compile
TORCH_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
#: ONNX Runtime's levels of graph optimization, from none to layout changes
OPTIMIZATIONS = ("none", "basic", "extended", "all")


@dataclass(frozen=True)
class Options:
    """How to load a model.

    Attributes:
        threads: CPU threads inside one operator; 0 uses `threads.default_threads()`.
        device: Index of the GPU.
        taps: Relus whose outputs `run` returns beside the model's own, under the names of their tensors.
        optimization: Level of graph optimization, one of `OPTIMIZATIONS`, for runtimes that have such an option.
        profile: Record the kernels that run, for `Session.executed` and `ProfilingSession.time_layers`.
        spin: Let idle CPU threads spin, for runtimes that have such an option. Lowest latency for a single session, but it
            takes processor time from other sessions and processes.
        tf32: Let a GPU multiply float32 matrices in TF32, with 10 bits of mantissa.
        autocast: "float16" or "bfloat16" lets the runtime choose which nodes are computed in that precision.
        torch_mode: Mode of torch.compile, one of `TORCH_MODES`.
        delegate: Backend that runs the nodes whose operators the reference evaluator does not have; "" refuses such graphs.
    """

    threads: int = 0
    device: int = 0
    taps: tuple[Relu, ...] = ()
    optimization: str = "all"
    profile: bool = False
    spin: bool = True
    tf32: bool = False
    autocast: str = ""
    torch_mode: str = "default"
    delegate: str = ""

    @property
    def thread_count(self) -> int:
        """The number of CPU threads: `threads`, or the default if that is 0."""
        return self.threads or default_threads()


#: unit roundoff of rounding to nearest, by precision; float8 is E4M3's
ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "float8": 2.0**-4}
#: operators whose operands int8 graphs quantize, and QuantizeLinear itself
QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "QuantizeLinear")


class Rounding:
    """Random rounding errors of a precision, applied to a float64 evaluation (Monte Carlo arithmetic, Parker 1997).

    Floating-point precisions: every weight, operand and result is multiplied by 1 + d, d uniform in ±roundoff.
    int8: float32's rounding everywhere, and on the operands of `QUANTIZED` operators noise uniform in ±step / 2, with
    the step of a symmetric quantization to 127 levels a side: of each output channel for weights, else of the tensor.
    """

    def __init__(self, precision: str = "float32", seed: int = 0, quantized: Quantized = EIGHT_BITS) -> None:
        """Create a generator of rounding errors.

        Args:
            precision: A key of `ROUNDOFF`, or "int8".
            seed: Seed of the random numbers.
            quantized: How an int8 graph quantizes, beside the operands of `QUANTIZED`.
        """
        self.precision, self.quantized = precision, frozenset((*QUANTIZED, *quantized.operators))
        self._weight_levels = quantized.weight_levels
        self._generator = np.random.default_rng(seed)
        self._roundoff = ROUNDOFF.get(precision, ROUNDOFF["float32"])

    def result(self, value: Any) -> Any:
        """Return `value` rounded as a weight or result; anything but a float64 array is returned unchanged."""
        if not isinstance(value, np.ndarray) or value.dtype != np.float64:
            return value
        factors = np.asarray(self._generator.random(value.shape))
        factors *= 2 * self._roundoff
        factors += 1 - self._roundoff
        factors *= value
        return factors

    def operands(self, operator: str, values: Sequence[Any], weights: Sequence[bool]) -> list[Any]:
        """Return the operands of one node as the precision stores them.

        Args:
            operator: ONNX operator type of the node.
            values: The operands.
            weights: For each operand, whether it is a constant of the graph.
        """
        if self.precision != "int8" or operator not in self.quantized:
            return list(values)
        # A mask of -1e9 or -inf is added in float: half its step would exceed every number of the other operand.
        if operator == "Add" and _is_mask(*values):
            return list(values)
        # Biases and scales are not quantized.
        count = {"QuantizeLinear": 1, "LSTM": 3}.get(operator, 2)
        pairs = zip(values[:count], weights, strict=False)
        rounded = [self._quantized(value, weight) for value, weight in pairs]
        if operator == "Add" and all(isinstance(value, np.ndarray) and value.min(initial=0) >= 0 for value in values):
            # Eight bits keep the sign, and a sum of squares that fell below 0 would have no root.
            rounded = [np.maximum(value, 0) for value in rounded]
        return rounded + list(values[count:])

    def _quantized(self, value: Any, weight: bool) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype != np.float64 or not value.size:
            return value
        axes = tuple(range(1, value.ndim)) if weight and value.ndim > 2 else None
        levels = self._weight_levels if weight else 127
        step = np.max(np.abs(value), axis=axes, keepdims=True, where=np.isfinite(value), initial=0) / levels
        return value + step * self._generator.uniform(-0.5, 0.5, value.shape)


def _is_mask(a: Any, b: Any) -> bool:
    """Return whether one operand of a sum reaches so far that 8 bits over its range keep nothing of the other one."""
    if not all(isinstance(value, np.ndarray) and value.dtype == np.float64 and value.size for value in (a, b)):
        return False
    less, more = sorted(float(np.max(np.abs(value))) for value in (a, b))
    return 0 < 2 * 127 * less < more


@dataclass(frozen=True)
class Executed:
    """One kernel that a runtime reports to have run.

    Attributes:
        node: Name of the node.
        operator: Type of the kernel.
        provider: Execution provider or device that ran it.
        precision: Precision of its result, "" for integers.
        converts: It computes nothing: it changes the precision or the memory layout of a tensor.
    """

    node: str
    operator: str
    provider: str
    precision: str
    converts: bool = False


class Session(Protocol):
    """A loaded model.

    Attributes:
        inputs: Specifications of the model's inputs.
        outputs: Specifications of the model's outputs.
        facts: Settings read back from the runtime: device, execution providers, precision, threads.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        """Return every output and tap for `feeds`, by name.

        Args:
            feeds: Arrays by input name.

        Raises:
            InputError: If the feeds do not fit `inputs`.
            Unsupported: If the runtime fails on them.
        """
        ...

    def executed(self) -> Sequence[Executed]:
        """Return the kernels that have run so far; empty if the runtime reports none or `Options.profile` is not set.

        The list is returned once: later calls return an empty sequence.
        """
        ...

    def close(self) -> None:
        """Free the model. The session must not be used afterwards."""
        ...


class ProfilingSession(Session, Protocol):
    """A session whose runtime reports how long each layer takes."""

    def time_layers(self, feeds: Sequence[Feeds], seconds: float) -> LayerTimes:
        """Return the times of the layers in runs for about `seconds`. It can be called once, instead of `executed`.

        Args:
            feeds: Inputs of the runs, in turn.
            seconds: Time of the runs.
        """
        ...


#: called with the name and value of every tensor as it is computed; the value that it returns is passed to the next nodes
Seen = Callable[[str, Any], Any]


#: called with the name and value of every output and tap as soon as it is computed
Consume = Callable[[str, Any], None]


class TruthSession(Session, Protocol):
    """A session that can evaluate its model in float64 and expose every tensor: those of `reference` and `torch`."""

    def evaluate(
        self,
        feeds: Mapping[str, Any],
        *,
        wide: bool = True,
        rounding: Rounding | None = None,
        seen: Seen | None = None,
        consume: Consume | None = None,
    ) -> Feeds:
        """Return every output and tap for `feeds`, by name.

        Args:
            feeds: Arrays by input name.
            wide: Compute in float64, with every weight, constant and cast widened; otherwise as `run` does.
            rounding: With `wide`, rounding errors that are added to each number.
            seen: Callback for each tensor, see `Seen`. Names are the graph's tensors (`reference`) or the program's nodes
                (`torch`).
            consume: Receives the outputs and taps, which are then not returned.
        """
        ...


@dataclass(frozen=True)
class Captured:
    """A tensor captured while an engine ran. A name that was written several times has one record for each, in order.

    Attributes:
        name: Name of the tensor.
        data: The raw buffer, as bytes or an array of any shape.
        dtype: float32, float16, bfloat16, float8, int8, uint8, int32, int64 or bool.
        shape: Logical shape of the tensor.
        format: Memory layout of `data` in the inspector's terms ("Row major linear FP16"); "" if it is the one that the
            inspector reports for this tensor.
    """

    name: str
    data: Array | bytes = field(repr=False)
    dtype: str
    shape: tuple[int, ...]
    format: str = ""


class IoBinding(Protocol):
    """Buffers on the GPU for the inputs and outputs of one session at one set of shapes.

    Copies and runs are enqueued on `stream` (a cudaStream_t as int) in the order of the calls; only `download` waits.
    """

    @property
    def stream(self) -> int: ...

    def upload(self, feeds: Mapping[str, Any]) -> None:
        """Copy `feeds` into the input buffers: NumPy arrays through pinned memory, arrays on the GPU (`__dlpack__`) directly."""
        ...

    def run(self) -> None:
        """Enqueue one run on the inputs that were uploaded last."""
        ...

    def download(self) -> Feeds:
        """Return every output of the last run as NumPy arrays, by name."""
        ...

    def close(self) -> None:
        """Free the buffers."""
        ...


class DeviceSession(Session, Protocol):
    """A session that can keep inputs and outputs on the GPU, so that device time and copies can be measured separately."""

    def bind(self, feeds: Mapping[str, Any]) -> IoBinding:
        """Return buffers on the GPU for inputs of the shapes in `feeds`.

        Args:
            feeds: Arrays by input name; only their shapes and dtypes are used.

        Raises:
            InputError: If they do not fit `inputs`.
        """
        ...
