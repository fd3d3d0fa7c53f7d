"""Roofline of a GPU: relates the time of a run to a lower bound from its operations, compulsory bytes and measured rates.

    limit = max(operations / matrix rate of the precision, compulsory bytes / copy rate)      share = limit / GPU time of a run

Compulsory bytes are those of weights, inputs and outputs, each counted once. They count only if they exceed the size of the
second-level cache, because cached data are not read from memory again. Activations between layers are not counted, so the limit
is a lower bound; `unfused_memory_ms` is the time of the memory traffic without any fusion.
Williams, Waterman and Patterson, "Roofline", 2009.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relu_deploy.graph import Cost

__all__ = ["GpuLimits", "calibrate_gpu", "share_of_gpu_limit"]


@dataclass(frozen=True)
class GpuLimits:
    """Measured rates of a GPU.

    Attributes:
        operations_per_second: Rate of a matrix product by precision.
        bytes_per_second: Rate of a copy, read plus written.
        l2_bytes: Size of the second-level cache.
        missing: Reason for each precision without a rate.
    """

    operations_per_second: Mapping[str, float]
    bytes_per_second: float
    l2_bytes: int
    missing: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the field `gpu_limits` of a report's environment."""
        return {
            "tera_operations_per_s": {name: round(rate / 1e12, 2) for name, rate in self.operations_per_second.items()},
            "copy_gb_per_s": round(self.bytes_per_second / 1e9, 1),
            "l2_mb": round(self.l2_bytes / 1e6, 1),
            "missing": dict(self.missing),
        }


def calibrate_gpu(index: int = 0, timeout: float = 120.0) -> GpuLimits | str:
    """Measure the rates of a GPU in a process of its own. This takes two seconds, plus the import of PyTorch.

    Args:
        index: Index of the GPU.
        timeout: Time limit in seconds.

    Returns:
        The rates, or the reason why they could not be measured.
    """
    command = [sys.executable, "-m", "relu_deploy.benchmark.gpu_limits", str(index)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        if answer.returncode:
            lines = [line for line in answer.stderr.strip().splitlines() if not line.startswith("hint:")]
            return lines[-1] if lines else f"exit code {answer.returncode}"
        return GpuLimits(**json.loads(answer.stdout.splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, IndexError) as error:
        return f"{type(error).__name__}: {error}"


def share_of_gpu_limit(cost: Cost, seconds: float, precision: str, limits: GpuLimits | None) -> dict[str, Any] | None:
    """Return a row's `roofline` for a run on the GPU.

    Args:
        cost: Operations and bytes of the run.
        seconds: GPU time of the run.
        precision: Precision of its matrix products.
        limits: Rates of the GPU.

    Returns:
        Achieved rate, limit and share, None if a rate or the cost is not known.
    """
    rate = limits.operations_per_second.get(precision) if limits else None
    if limits is None or rate is None or cost.flops == 0 or cost.unknown:
        return None
    compute = cost.flops / rate
    memory = cost.compulsory / limits.bytes_per_second if cost.compulsory > limits.l2_bytes else 0.0
    limit = max(compute, memory)
    return {
        "gflops": round(cost.flops / seconds / 1e9, 2),
        "limit_ms": round(limit * 1e3, 5),
        "share": round(limit / seconds, 4),
        "bound": "compute" if compute >= memory else "memory",
        "compute_ms": round(compute * 1e3, 5),
        "memory_ms": round(memory * 1e3, 5),
        "unfused_memory_ms": round(cost.bytes / limits.bytes_per_second * 1e3, 5),
    }


def main() -> None:
    """Print the rates of the GPU whose index is the first argument as JSON."""
    from relu_deploy.backends.nvidia.rates import measure_rates
    from relu_deploy.errors import ReluDeployError

    try:
        print(json.dumps(measure_rates(int(sys.argv[1]) if len(sys.argv) > 1 else 0)))
    except ReluDeployError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
