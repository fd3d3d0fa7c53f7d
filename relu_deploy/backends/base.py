"""What every backend looks like from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from relu_deploy.backends.threads import default_threads
from relu_deploy.graph.relus import Relu
from relu_deploy.tensors import Array, Feeds, TensorSpec

__all__ = [
    "OPTIMIZATIONS",
    "TORCH_MODES",
    "Capabilities",
    "Captured",
    "DeviceSession",
    "Executed",
    "IoBinding",
    "Options",
    "Probe",
    "Rounding",
    "Seen",
    "Session",
    "TruthSession",
]


@dataclass(frozen=True)
class Probe:
    """Whether a backend is usable here. reason and fix are set when it is not; device says what it would run on."""

    name: str
    usable: bool
    version: str = ""
    device: str = ""
    reason: str = ""
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "usable": self.usable,
            "version": self.version,
            "device": self.device,
            "reason": self.reason,
            "fix": self.fix,
        }


@dataclass(frozen=True)
class Capabilities:
    """What a backend does, known without loading its runtime or a model.

    Code outside `relu_deploy.backends` asks for a capability, never for a backend's name.

    Attributes:
        on_gpu: It computes on a GPU; `Options.device` chooses which.
        evaluates_float64: Its sessions are `TruthSession`s.
        shows_tensors: Its sessions return the tensors that `Options.taps` names.
        shows_engine_layers: It runs an engine whose layers can be read, and is audited instead of tapped.
        runs_program: It runs the PyTorch program in the bundle (`Bundle.source`), not the ONNX graph.
        compiles_ahead: `relu_deploy.compile` builds engines for it.
        compiles_in_place: It compiles kernels for each input shape in the process that runs them.
        autocasts: It accepts `Options.autocast`.
        compared_by_default: `relu_deploy.bench` measures it where no backends are named.
        targets: The targets of `relu_deploy.optimize` whose variants it runs as they are meant to be run.
        platform: The name of its model format in the Open Inference Protocol, "" for the backend's own name.
    """

    on_gpu: bool = False
    evaluates_float64: bool = False
    shows_tensors: bool = True
    shows_engine_layers: bool = False
    runs_program: bool = False
    compiles_ahead: bool = False
    compiles_in_place: bool = False
    autocasts: bool = False
    compared_by_default: bool = True
    targets: tuple[str, ...] = ()
    platform: str = ""


#: modes of torch.compile; max-autotune tries kernels out and replays CUDA graphs, which takes minutes to compile
TORCH_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
#: ONNX Runtime's levels of graph rewriting, from none to layout changes
OPTIMIZATIONS = ("none", "basic", "extended", "all")


@dataclass(frozen=True)
class Options:
    """How to load a model.

    threads: CPU threads inside one operator; 0 takes `threads.default_threads()`. device: index of the GPU.
    taps: Relus whose outputs `run` returns beside the model's own, under their tensors' names.
    optimization: how far the runtime may rewrite the graph, one of `OPTIMIZATIONS`, where it has such a switch.
    profile: let `Session.executed` say which kernels ran. spin: let CPU threads that wait for work spin, where the runtime
    has such a switch: fastest alone, and a waste of processors that others need too, as in a server.
    tf32: let a GPU multiply float32 with 10 bits of mantissa; off by default.
    autocast: "float16" or "bfloat16" lets PyTorch on a GPU choose where to compute in that precision.
    torch_mode: how far torch.compile goes, one of `TORCH_MODES`.
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

    @property
    def thread_count(self) -> int:
        return self.threads or default_threads()


#: unit roundoff of rounding to nearest, by precision; float8 is E4M3's
ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "float8": 2.0**-4}
#: operators whose operands are what int8 graphs quantize, and the one that does it
QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "QuantizeLinear")


class Rounding:
    """What storing numbers in a precision does to a float64 evaluation, at random (Monte Carlo arithmetic, Parker 1997).

    Floating-point precisions: every weight, operand and result is multiplied by 1 + d, d uniform in ±roundoff.
    int8: float32's rounding everywhere, and on the operands of `QUANTIZED` operators noise uniform in ±step / 2, with
    the step of a symmetric quantization to 127 levels a side: of each output channel for weights, else of the tensor.
    """

    def __init__(self, precision: str = "float32", seed: int = 0) -> None:
        self.precision = precision
        self._generator = np.random.default_rng(seed)
        self._roundoff = ROUNDOFF.get(precision, ROUNDOFF["float32"])

    def result(self, value: Any) -> Any:
        """Return `value` rounded as a weight or result; anything but a float64 array is passed on."""
        if not isinstance(value, np.ndarray) or value.dtype != np.float64:
            return value
        factors = np.asarray(self._generator.random(value.shape))
        factors *= 2 * self._roundoff
        factors += 1 - self._roundoff
        factors *= value
        return factors

    def operands(self, operator: str, values: Sequence[Any], weights: Sequence[bool]) -> list[Any]:
        """Return the operands of one node as the precision stores them. weights: which of them are constants of the graph."""
        if self.precision != "int8" or operator not in QUANTIZED:
            return list(values)
        # A mask of -1e9 or -inf is added in float: half its step would exceed every number of the other operand.
        if operator == "Add" and _is_mask(*values):
            return list(values)
        # A bias stays in float: it is added to the accumulator. So does a scale.
        count = 1 if operator == "QuantizeLinear" else 2
        pairs = zip(values[:count], weights, strict=False)
        return [self._quantized(value, weight) for value, weight in pairs] + list(values[count:])

    def _quantized(self, value: Any, weight: bool) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype != np.float64 or not value.size:
            return value
        axes = tuple(range(1, value.ndim)) if weight and value.ndim > 2 else None
        step = np.max(np.abs(value), axis=axes, keepdims=True, where=np.isfinite(value), initial=0) / 127
        return value + step * self._generator.uniform(-0.5, 0.5, value.shape)


def _is_mask(a: Any, b: Any) -> bool:
    """Return whether one operand of a sum reaches so far that 8 bits over its range keep nothing of the other one."""
    if not all(isinstance(value, np.ndarray) and value.dtype == np.float64 and value.size for value in (a, b)):
        return False
    less, more = sorted(float(np.max(np.abs(value))) for value in (a, b))
    return 0 < 2 * 127 * less < more


@dataclass(frozen=True)
class Executed:
    """One kernel that a runtime ran, as it says itself. precision: of its result, "" for integers."""

    node: str
    operator: str
    provider: str
    precision: str


class Session(Protocol):
    """A model that is loaded and ready.

    facts: what the runtime really does, read back from it: device, execution providers, precision, threads.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        """Return every output (and tap) for `feeds`. Raises InputError when the feeds do not fit `inputs`."""
        ...

    def executed(self) -> Sequence[Executed]:
        """Return the kernels of the runs so far, once, where the runtime reports them and `Options.profile` is set; else nothing."""
        ...

    def close(self) -> None: ...


#: called with the name and value of every tensor as it is computed; what it returns is what the next nodes get
Seen = Callable[[str, Any], Any]


class TruthSession(Session, Protocol):
    """A session that can evaluate its model in float64 and show every tensor: `reference` and `torch` have it."""

    def evaluate(
        self, feeds: Mapping[str, Any], *, wide: bool = True, rounding: Rounding | None = None, seen: Seen | None = None
    ) -> Feeds:
        """Return every output (and tap) for `feeds`.

        wide: in float64, every weight, constant and cast widened; else as `run`. rounding: with `wide`, what a precision
        does to each number. seen: see `Seen`; names are the graph's tensors (`reference`) or the program's nodes (`torch`).
        """
        ...


@dataclass(frozen=True)
class Captured:
    """A tensor that an engine showed while it ran.

    data: the buffer as it was, as bytes or an array of any shape. dtype: float32, float16, bfloat16, float8, int8, uint8,
    int32, int64 or bool. format: how `shape` lies in `data`, in the inspector's words ("Row major linear FP16"); ""
    where it is what the inspector says of this tensor. The same name twice: in the order in which they were written.
    """

    name: str
    data: Array | bytes = field(repr=False)
    dtype: str
    shape: tuple[int, ...]
    format: str = ""


class IoBinding(Protocol):
    """Inputs and outputs of one session at one set of shapes, resident on its GPU.

    Everything is enqueued on `stream` (a cudaStream_t as int) in the order of the calls; only `download` waits.
    """

    @property
    def stream(self) -> int: ...

    def upload(self, feeds: Mapping[str, Any]) -> None:
        """Copy `feeds` to the GPU: NumPy arrays through pinned buffers, arrays already there (`__dlpack__`) within it."""
        ...

    def run(self) -> None:
        """Enqueue one run on what was uploaded last."""
        ...

    def download(self) -> Feeds:
        """Return every output of the last run as NumPy arrays."""
        ...

    def close(self) -> None: ...


class DeviceSession(Session, Protocol):
    """A session that can keep its data on the GPU: device time and copies can be measured separately."""

    def bind(self, feeds: Mapping[str, Any]) -> IoBinding:
        """Return buffers on the GPU for inputs of the shapes in `feeds`. Raises InputError when they do not fit `inputs`."""
        ...
