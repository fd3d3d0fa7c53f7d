"""Roofline of a CPU: relates the latency of a model to its operations and a measured rate of matrix products.

    limit = flops / matrix rate      share = limit / mean latency

Memory traffic is not part of the limit, because it is not known how much of it the caches serve; `unfused_memory_ms` is its time
without fusion and caches. For GPUs see `gpu_limits.py`. The rates are those of NumPy's matrix product and copy with the same
number of threads, measured in a separate process before the benchmark.
Williams, Waterman and Patterson, "Roofline", 2009.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from relu_deploy.graph import Cost
from relu_deploy.parent_process import end_with_parent

__all__ = ["Machine", "calibrate", "share_of_limit"]

SIDE, COPY_BYTES = 1024, 2**27


@dataclass(frozen=True)
class Machine:
    """Measured rates of the CPU.

    Attributes:
        flops_per_second: Rate of a float32 matrix product.
        bytes_per_second: Rate of a copy, read plus written.
    """

    flops_per_second: float
    bytes_per_second: float

    def to_json(self) -> dict[str, float]:
        """Return the field `limits` of a report's environment."""
        return {"float32_gflops": round(self.flops_per_second / 1e9, 1), "copy_gb_per_s": round(self.bytes_per_second / 1e9, 2)}


def calibrate(threads: int) -> Machine | None:
    """Return the rates of this machine with `threads` CPU threads, None if they could not be measured."""
    limited = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-m", "relu_deploy.benchmark.roofline"]
    try:
        answer = subprocess.run(command, env={**os.environ, **limited}, capture_output=True, text=True, timeout=60, check=True)
        return Machine(**json.loads(answer.stdout))
    except (OSError, subprocess.SubprocessError, json.JSONDecodeError, TypeError):
        return None


def share_of_limit(cost: Cost, seconds: float, machine: Machine | None) -> dict[str, Any] | None:
    """Return a row's `roofline` for a run on the CPU.

    Args:
        cost: Operations and bytes of the run.
        seconds: Latency of the run.
        machine: Rates of the CPU.

    Returns:
        Achieved rate, limit and share, None if the rates or the cost are not known.
    """
    if machine is None or cost.flops == 0 or cost.unknown:
        return None
    compute, memory = cost.flops / machine.flops_per_second, cost.bytes / machine.bytes_per_second
    return {
        "gflops": round(cost.flops / seconds / 1e9, 2),
        "limit_ms": round(compute * 1e3, 4),
        "share": round(compute / seconds, 4),
        "unfused_memory_ms": round(memory * 1e3, 4),
    }


def _best(work: Any, seconds: float = 0.6) -> float:
    """Return the shortest time of `work` within `seconds`; the minimum is least affected by other load."""
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the rates of the CPU as JSON."""
    end_with_parent(os.getppid())
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    product = np.empty_like(a)
    source = np.ones(COPY_BYTES // 4, np.float32)
    target = np.empty_like(source)
    rate = 2 * SIDE**3 / _best(lambda: np.matmul(a, b, out=product))
    bandwidth = 2 * COPY_BYTES / _best(lambda: np.copyto(target, source))
    print(json.dumps({"flops_per_second": rate, "bytes_per_second": bandwidth}))


if __name__ == "__main__":
    main()
