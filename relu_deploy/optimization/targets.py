"""The targets: their precisions, the form of 8-bit graph that their kernels take, and the backend that runs them.

    target          precisions                       8-bit graphs                       runs on
    cpu             fp32, int8                       uint8 activations, int8 weights    onnxruntime-cpu
    cuda            fp32, fp16                       none: its kernels are float        onnxruntime-cuda
    tensorrt        fp32, fp16, bf16, int8, fp8      symmetric, float biases            tensorrt
    tensorrt-rtx    fp32, fp16, bf16, int8, fp8      the same                           tensorrt-rtx

Without the target's hardware a variant is simulated: its graph, with its Q/DQ pairs and casts, is evaluated by ONNX Runtime
on the CPU in float32 with nothing merged. That shows its accuracy, and says nothing about its speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.backends import Session, load, probe
from relu_deploy.bundle import Bundle
from relu_deploy.errors import Unsupported, UsageError, nearest
from relu_deploy.graph import save_model
from relu_deploy.graph.quantization.cast_precision import simulated
from relu_deploy.storage.folders import temporary_folder

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["PRECISIONS", "TARGETS", "Target", "find_target"]

#: precision as an option → the dtype's name
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "float8"}


@dataclass(frozen=True)
class Target:
    """One target. placement: the rules of `graph.quantization.qdq_placement` that it follows. backend: what runs it.

    refused: precision → why this target has none. measurable: its backend runs on any machine, so speed can be measured.
    adds_pairs: without VNNI its kernels add pairs of 8-bit products in 16 bits, so weights may need 7 bits.
    """

    name: str
    precisions: tuple[str, ...]
    placement: str
    backend: str
    measurable: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    adds_pairs: bool = False

    def require(self, precision: str) -> None:
        """Raise UsageError when this target cannot run `precision`."""
        if precision not in self.precisions:
            why = self.refused.get(precision, "it has no such kernels")
            raise UsageError(
                f"the target {self.name} does not support {precision}: {why}",
                f"--for {self.name} takes {', '.join(self.precisions)}",
            )

    def require_measurable(self, precisions: Sequence[str]) -> None:
        """Check that the speed of variants can be measured here, on the target's own backend.

        Args:
            precisions: The precisions that are to be measured, at least two.

        Raises:
            Unsupported: If it cannot; the message says what would be measured, and why it cannot be.
        """
        if self.measurable:
            return
        found = probe(self.backend)
        if found.usable:
            return
        *others, last = precisions
        raise Unsupported(
            f"the fastest precision for {self.name} is chosen by measuring {', '.join(others)} and {last} on {self.backend}, and keeping the "
            f"fastest that passes the accuracy gate and whose Relus agree; here {self.backend} is not usable: {found.reason}",
            f"{found.fix}; or name a precision, whose accuracy is simulated here: --precision {', '.join(self.precisions)}",
        )

    @contextmanager
    def session(self, model: ir.Model, **options: Any) -> Iterator[Session]:
        """Yield a session that answers as `model` does on this target: on its backend, or simulated on the CPU."""
        with self.as_bundle(model) as (bundle, runtime_options):
            session = load(bundle, "onnxruntime-cpu", **runtime_options, **options)
            try:
                yield session
            finally:
                session.close()

    @contextmanager
    def as_bundle(self, model: ir.Model) -> Iterator[tuple[Bundle, dict[str, Any]]]:
        """Yield `model`, simulated where need be, as a bundle, and the options that ONNX Runtime on the CPU runs it with."""
        with temporary_folder("trial") as folder:
            path = Path(folder) / "variant.onnx"
            written = model if self.measurable else simulated(model)
            save_model(written, path)
            # Merging Q/DQ pairs into 8-bit kernels starts above "basic": these are another target's kernels.
            yield Bundle.of_model(written, path), {} if self.measurable else {"optimization": "basic"}


_FLOAT_ONLY = "ONNX Runtime's CUDA kernels compute 8-bit graphs in float, slower than float32; use --for tensorrt"
_CPU_HALF = "ONNX Runtime's CPU kernels have none: it would run in float32 with a cast around every node"
TARGETS = {
    target.name: target
    for target in (
        Target(
            "cpu",
            ("fp32", "int8"),
            "cpu",
            "onnxruntime-cpu",
            True,
            {"fp16": _CPU_HALF, "bf16": _CPU_HALF, "fp8": "no CPU has float8 arithmetic"},
            adds_pairs=True,
        ),
        Target(
            "cuda",
            ("fp32", "fp16"),
            "tensorrt",
            "onnxruntime-cuda",
            refused={"int8": _FLOAT_ONLY, "fp8": _FLOAT_ONLY, "bf16": "ONNX Runtime's CUDA convolutions have no bfloat16"},
        ),
        Target("tensorrt", tuple(PRECISIONS), "tensorrt", "tensorrt"),
        Target("tensorrt-rtx", tuple(PRECISIONS), "tensorrt", "tensorrt-rtx"),
    )
}


def find_target(name: str) -> Target:
    """Return the target called `name`. Raises UsageError when there is none."""
    if name not in TARGETS:
        raise UsageError(f"there is no target called {name!r}", nearest(name, TARGETS))
    return TARGETS[name]
