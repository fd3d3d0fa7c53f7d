"""Every bit pattern of a dtype through a backend's Relu kernels, compared bit by bit with `relu_deploy.relu`.

    kernel                  inputs
    Relu, Clip 0..6         all 2^32 float32, 2^16 float16 or bfloat16, 2^8 int8
    the same, odd lengths   1 to 67 elements from 17 offsets in a buffer: the heads and tails of vector code
    Conv+Relu, Conv+Clip    identity weights, one channel and depthwise, which runtimes merge into one kernel; all patterns of
                            16-bit dtypes, and for float32 every sign, exponent and upper mantissa with 64 endings each

Differences are counted by kind:

    nan           a NaN whose result is not NaN, or a result that is NaN for another input
    signed_zero   a zero of the other sign: equal as a number, different in its bits and after 1/x
    subnormal     a subnormal number that was changed (flushed to zero)
    value         any other number

The ONNX specification does not define NaN and the sign of zero, so a backend whose only differences are signed zeros conforms
to it: `passed` is true, the count is in `mismatches`, and `strict` turns it into a failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from relu_deploy.backends import Session, capabilities, load, probe, require
from relu_deploy.backends.threads import default_threads
from relu_deploy.bundle import MODEL, SCHEMA, SOURCE, Bundle, seal
from relu_deploy.definition import relu, relu6
from relu_deploy.errors import Unsupported, UsageError
from relu_deploy.storage.folders import temporary_folder
from relu_deploy.tensors import Array

__all__ = ["DTYPES", "Kernel", "ProveReport", "prove"]

DTYPES = ("float32", "float16", "bfloat16", "int8")
KINDS = ("nan", "signed_zero", "subnormal", "value")
#: each kernel's output in the model, and what it is compared with
OUTPUTS = {"Relu": "relu", "Clip 0..6": "clip"}
REFERENCE: dict[str, Callable[[Any], Array]] = {"Relu": relu, "Clip 0..6": relu6}
#: elements of one call: input, outputs and their references fit into the cache of a core
CHUNK = 1 << 18
LENGTHS, OFFSETS, EXAMPLES = range(1, 68), range(17), 4
#: shapes of the Conv before the Relu
CONVOLUTIONS = {"Conv": (1, 1, 256, 256), "depthwise Conv": (1, 16, 64, 64)}


@dataclass(frozen=True)
class Kernel:
    """The counts of one kernel.

    Attributes:
        mismatches: By kind.
        examples: Bit patterns of input, result and expected result, in hexadecimal.
        nans: Inputs that are NaN.
        payloads_changed: NaNs whose result is another NaN.
        left_out: Why it was not run, "" when it was.
    """

    name: str
    where: str
    inputs_tested: int
    mismatches: Mapping[str, int]
    examples: Sequence[tuple[str, str, str]] = ()
    nans: int = 0
    payloads_changed: int = 0
    left_out: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel": self.name,
            "where": self.where,
            "inputs_tested": self.inputs_tested,
            "mismatches": dict(self.mismatches),
            "nan_payloads_changed": self.payloads_changed,
            "examples": [dict(zip(("input", "got", "expected"), example, strict=True)) for example in self.examples],
            "left_out": self.left_out,
        }


@dataclass(frozen=True)
class ProveReport:
    """The result of `prove`. The counts and policies at the top are those of the plain Relu; `kernels` has those of each kernel."""

    backend: str
    version: str
    dtype: str
    kernels: Sequence[Kernel]
    seconds: float
    strict: bool = False

    @property
    def failures(self) -> list[tuple[Kernel, str]]:
        """Return each kernel with each kind of mismatch that is a failure."""
        excused = () if self.strict else ("signed_zero",)
        return [
            (kernel, kind)
            for kernel in self.kernels
            for kind, count in kernel.mismatches.items()
            if count and kind not in excused
        ]

    @property
    def passed(self) -> bool:
        return not self.failures

    def _numpys_zero(self) -> str:
        # It depends on whether NumPy has vector code for the dtype.
        zeros = np.array([-0.0] * 16).astype(_numpy(self.dtype))
        return "-0.0" if np.signbit(np.maximum(zeros, np.zeros_like(zeros))).any() else "+0.0"

    @property
    def findings(self) -> list[str]:
        """Return sentences on how the plain kernels differ from `relu_deploy.relu`; empty when they do not."""
        words = {
            "nan": "of NaN is not NaN",
            "signed_zero": f"of -0.0 is -0.0; relu_deploy.relu gives +0.0, NumPy's maximum(x, 0) {self._numpys_zero()}",
            "subnormal": "changes subnormal numbers",
            "value": "gives other numbers",
        }
        alone = self.kernels[: len(OUTPUTS)]
        return [
            f"{kernel.name} {words[kind]} ({count:,})" for kernel in alone for kind, count in kernel.mismatches.items() if count
        ]

    def to_json(self) -> dict[str, Any]:
        relu_alone = self.kernels[0]
        wrong = relu_alone.mismatches
        whole = self.dtype == "int8"
        swallowed = "kept" if not wrong["nan"] else f"{wrong['nan']} of {relu_alone.nans} not kept"
        return {
            "schema": "relu-deploy/prove/1",
            "backend": self.backend,
            "version": self.version,
            "dtype": self.dtype,
            "passed": self.passed,
            "strict": self.strict,
            "inputs_tested": relu_alone.inputs_tested,
            "mismatches": sum(wrong.values()),
            "mismatch_classes": dict(wrong),
            "nan_policy": None if whole else swallowed,
            "negative_zero_policy": None if whole else "-0.0 becomes -0.0" if wrong["signed_zero"] else "-0.0 becomes +0.0",
            "subnormals": None if whole else "kept" if not wrong["subnormal"] else f"{wrong['subnormal']} changed",
            "findings": self.findings,
            "failures": [{"kernel": kernel.name, "where": kernel.where, "kind": kind} for kernel, kind in self.failures],
            "kernels": [kernel.to_json() for kernel in self.kernels],
            "seconds": round(self.seconds, 3),
        }


def prove(
    backend: str = "onnxruntime-cpu",
    dtype: str = "float32",
    *,
    threads: int = 0,
    device: int = 0,
    strict: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> ProveReport:
    """Return the comparison of a backend's Relu kernels with `relu_deploy.relu` on every bit pattern of a dtype.

    Args:
        backend: Its name.
        dtype: One of `DTYPES`.
        threads: Calls that run at a time, each on one CPU thread.
        device: Index of the GPU.
        strict: A zero of the other sign is a failure too.
        progress: Called with the elements done and their total.

    Raises:
        BackendUnavailable: If the backend is not usable here.
        Unsupported: If the backend has no Relu for this dtype.
        UsageError: If there is no such dtype.
    """
    if dtype not in DTYPES:
        raise UsageError(f"prove has no dtype {dtype!r}", f"one of: {', '.join(DTYPES)}")
    require(backend)
    started = time.perf_counter()
    with temporary_folder("prove") as folder:
        try:
            session = _session(Path(folder) / "alone", backend, dtype, "", device)
        except Unsupported as error:
            other = (
                "choose another --dtype"
                if capabilities(backend).runs_program
                else "choose another --dtype, or a --backend that has it: torch has"
            )
            raise Unsupported(f"{backend} has no Relu and Clip for {dtype}: {error.message}", other) from error
        kernels = _exhaustive(session, dtype, threads or default_threads(), progress)
        kernels += _odd_lengths(session, backend, dtype)
        for convolution in CONVOLUTIONS:
            kernels += _behind(convolution, Path(folder) / convolution, backend, dtype, device)
    return ProveReport(backend, probe(backend).version, dtype, kernels, time.perf_counter() - started, strict)


# ---------------------------------------------------------------- kernels and their inputs


def _exhaustive(session: Session, dtype: str, workers: int, progress: Callable[[int, int], None]) -> list[Kernel]:
    total = 1 << _bits(dtype)
    size = min(CHUNK, total)
    where = "alone, every bit pattern"

    def run(start: int) -> list[Kernel]:
        x = np.arange(start, start + size, dtype=np.uint64).astype(f"uint{_bits(dtype)}").view(_numpy(dtype))
        return _compared(session, x, where)

    counted: list[list[Kernel]] = []
    starts = iter(range(0, total, size))
    with ThreadPoolExecutor(workers) as pool:
        # A few calls are submitted at a time: thousands of finished ones would keep their arrays.
        waiting = {pool.submit(run, start) for start in islice(starts, 2 * workers)}
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            counted += [future.result() for future in finished]
            waiting |= {pool.submit(run, start) for start in islice(starts, len(finished))}
            progress(len(counted) * size, total)
    return [_sum(parts) for parts in zip(*counted, strict=True)]


def _odd_lengths(session: Session, backend: str, dtype: str) -> list[Kernel]:
    where = "alone, odd lengths and alignments"
    if capabilities(backend).compiles_in_place:
        # Dynamo gives up after a few shapes and would run the rest in another kernel than the one to be proved.
        return [
            Kernel(name, where, 0, dict.fromkeys(KINDS, 0), left_out="torch.compile makes a new kernel for every length")
            for name in REFERENCE
        ]
    values = np.tile(_special(dtype), 8)
    counted = [_compared(session, values[offset : offset + length], where) for length in LENGTHS for offset in OFFSETS]
    return [_sum(parts) for parts in zip(*counted, strict=True)]


def _behind(convolution: str, folder: Path, backend: str, dtype: str, device: int) -> list[Kernel]:
    where = f"behind a {convolution} with identity weights"
    if dtype == "int8":
        reason = "Conv has no int8: quantized convolutions are QLinearConv, whose Relu is part of its rounding"
        return [Kernel(name, where, 0, dict.fromkeys(KINDS, 0), left_out=reason) for name in REFERENCE]
    try:
        session = _session(folder, backend, dtype, convolution, device)
    except Unsupported as error:
        return [Kernel(name, where, 0, dict.fromkeys(KINDS, 0), left_out=error.message) for name in REFERENCE]
    shape = CONVOLUTIONS[convolution]
    counted = [_compared(session, x.reshape(shape), where) for x in _strata(dtype)]
    return [_sum(parts) for parts in zip(*counted, strict=True)]


def _strata(dtype: str) -> Iterator[Array]:
    """Yield arrays of 2^16 elements: all patterns of a 16-bit dtype; of float32 every upper half with 64 lower halves each."""
    upper = np.arange(1 << 16, dtype=np.uint32)
    if _bits(dtype) == 16:
        yield upper.astype(np.uint16).view(_numpy(dtype))
        return
    lower = [0, 1, 2, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF, *np.random.default_rng(0).integers(0, 1 << 16, 56).tolist()]
    for ending in lower:
        yield (upper << 16 | np.uint32(ending)).view(np.float32)


def _special(dtype: str) -> Array:
    """Return values of every kind that a kernel could treat differently, of both signs."""
    if dtype == "int8":
        return np.array([-128, -127, -2, -1, 0, 1, 2, 5, 6, 7, 126, 127], np.int8)
    info = ml_dtypes.finfo(_numpy(dtype))
    kinds = [0.0, np.nan, np.inf, info.smallest_subnormal, info.smallest_normal, info.max, 1.0, 5.5, 6.0, 6.5, info.eps]
    return np.array([sign * float(value) for value in kinds for sign in (1, -1)]).astype(_numpy(dtype))


# ---------------------------------------------------------------- counting


def _compared(session: Session, x: Array, where: str) -> list[Kernel]:
    got = session.run({"x": x})
    return [_counted(name, where, x, got[output], REFERENCE[name](x)) for name, output in OUTPUTS.items()]


def _counted(name: str, where: str, x: Array, got: Array, expected: Array) -> Kernel:
    unsigned = f"uint{8 * x.dtype.itemsize}"
    with np.errstate(invalid="ignore"):  # bfloat16 warns when NaN is compared
        nans = int(np.count_nonzero(x != x))
    counts = dict.fromkeys(KINDS, 0)
    if got.shape != x.shape or got.dtype != x.dtype:
        return Kernel(name, where, x.size, counts | {"value": x.size}, nans=nans)
    bits_in, bits_out, bits_true = (np.ascontiguousarray(array).view(unsigned).reshape(-1) for array in (x, got, expected))
    places = np.flatnonzero(bits_out != bits_true)
    if not len(places):
        return Kernel(name, where, x.size, counts, nans=nans)
    with np.errstate(invalid="ignore"):  # a signalling NaN is widened like any other
        wide_got, wide_true = (array.reshape(-1)[places].astype(np.float64) for array in (got, expected))
    lost = np.isnan(wide_got) != np.isnan(wide_true)
    payload = np.isnan(wide_got) & np.isnan(wide_true)
    zero = (wide_got == 0) & (wide_true == 0)
    tiny = float(ml_dtypes.finfo(x.dtype).smallest_normal) if x.dtype != np.int8 else 0.0
    subnormal = ~lost & ~payload & ~zero & (np.abs(wide_true) < tiny) & (wide_true != 0)
    counts = {
        "nan": int(lost.sum()),
        "signed_zero": int(zero.sum()),
        "subnormal": int(subnormal.sum()),
        "value": int((~(lost | payload | zero | subnormal)).sum()),
    }
    digits = 2 * x.dtype.itemsize

    def shown(bits: Array, at: int) -> str:
        return f"0x{bits[at]:0{digits}x}"

    triples = ((shown(bits_in, at), shown(bits_out, at), shown(bits_true, at)) for at in places[~payload])
    return Kernel(name, where, x.size, counts, tuple(islice(dict.fromkeys(triples), EXAMPLES)), nans, int(payload.sum()))


def _sum(parts: Sequence[Kernel]) -> Kernel:
    first = parts[0]
    return Kernel(
        first.name,
        first.where,
        sum(part.inputs_tested for part in parts),
        {kind: sum(part.mismatches[kind] for part in parts) for kind in KINDS},
        tuple(dict.fromkeys(example for part in parts for example in part.examples))[:EXAMPLES],
        sum(part.nans for part in parts),
        sum(part.payloads_changed for part in parts),
    )


# ---------------------------------------------------------------- the models that hold the kernels


def _session(folder: Path, backend: str, dtype: str, convolution: str, device: int) -> Session:
    """Return a session whose outputs are the kernels in `OUTPUTS`, each behind a `convolution` if one is named."""
    import onnx_ir as ir

    from relu_deploy.graph import save_model

    folder.mkdir()
    shape: tuple[int | str, ...] = CONVOLUTIONS[convolution] if convolution else ("n",)
    save_model(ir.from_proto(_onnx(dtype, shape)), folder / MODEL)
    if capabilities(backend).runs_program:
        _save_program(folder / SOURCE, dtype, shape)
    spec = {"dtype": dtype, "shape": list(shape)}
    manifest = {
        "schema": SCHEMA,
        "name": f"{dtype} Relu",
        "source": {"kind": "onnx", "spec": "prove"},
        "opset": 20,
        "inputs": [{"name": "x", **spec}],
        "outputs": [{"name": name, **spec} for name in OUTPUTS.values()],
        "task": None,
        "variants": {},
    }
    return load(Bundle(folder, seal(folder, manifest)), backend, threads=1, device=device)


def _onnx(dtype: str, shape: Sequence[int | str]) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    kind = getattr(TensorProto, {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "int8": "INT8"}[dtype])
    constants = {"zero": np.zeros((), _numpy(dtype)), "six": np.array(6).astype(_numpy(dtype))}
    nodes, source = [], {"relu": "x", "clip": "x"}
    if len(shape) == 4:
        # One for each kernel: a Conv with two readers is fused with neither.
        constants |= {f"{name}_weight": np.ones((int(shape[1]), 1, 1, 1)).astype(_numpy(dtype)) for name in source}
        for name in source:
            nodes.append(helper.make_node("Conv", ["x", f"{name}_weight"], [f"{name}_in"], group=int(shape[1])))
        source = {name: f"{name}_in" for name in source}
    nodes.append(helper.make_node("Relu", [source["relu"]], ["relu"]))
    nodes.append(helper.make_node("Clip", [source["clip"], "zero", "six"], ["clip"]))
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "relu", "clip")]
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "kernels", values[:1], values[1:], weights)
    # The version of the file format of opset 20, which older runtimes read too.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _save_program(path: Path, dtype: str, shape: Sequence[int | str]) -> None:
    import torch

    class Kernels(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if x.ndim != 4:
                return torch.relu(x), torch.clamp(x, 0, 6)
            weight = torch.ones(x.shape[1], 1, 1, 1, dtype=x.dtype, device=x.device)
            first, second = (torch.nn.functional.conv2d(x, weight, groups=x.shape[1]) for _ in range(2))
            return torch.relu(first), torch.clamp(second, 0, 6)

    example = torch.zeros([size if isinstance(size, int) else 8 for size in shape], dtype=getattr(torch, dtype))
    varying = {0: torch.export.Dim("n", min=1)} if len(shape) == 1 else None
    torch.export.save(torch.export.export(Kernels().eval(), (example,), dynamic_shapes=(varying,)), str(path))


def _bits(dtype: str) -> int:
    return 8 * np.dtype(_numpy(dtype)).itemsize


def _numpy(dtype: str) -> Any:
    return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
