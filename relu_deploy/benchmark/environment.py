"""Describes the environment of a measurement: processor, memory, clocks, load, versions and thread counts."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from relu_deploy.backends.threads import VARIABLES, ThreadCount, allowed_cpus, cpu_quota
from relu_deploy.version import __version__

__all__ = ["describe", "describe_cpu", "library_versions"]

LIBRARIES = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "onnxruntime-ep-openvino",
    "onnxruntime-ep-webgpu",
    "onnxruntime-gpu",
    "onnxscript",
    "openvino",
    "pycocotools",
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "tensorrt-rtx-cu13",
    "torch",
)
THREAD_VARIABLES = (*VARIABLES, "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")


def describe(threads: ThreadCount | int) -> dict[str, Any]:
    """Return the environment for a benchmark report.

    Args:
        threads: CPU threads of each backend, as found by default or as given by the user.
    """
    threads = ThreadCount(threads, "given") if isinstance(threads, int) else threads
    return {
        "relu_deploy": __version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": describe_cpu(),
        "gpus": _gpus(),
        "memory_bytes": _memory(),
        "threads": threads.count,
        "threads_source": threads.source,
        "cpu_quota": cpu_quota(),
        "thread_variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that results depend on, by distribution."""
    return {name: found for name in LIBRARIES if (found := _version(name))}


def describe_cpu() -> dict[str, Any]:
    """Return the model, the number of usable CPUs, clock and governor, and the instruction sets that runtimes choose kernels by."""
    text = _read(Path("/proc/cpuinfo"))
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines()) if value}
    # Linux calls the list "flags" on x86 and "Features" on Arm.
    flags = fields.get("flags", fields.get("Features", "")).split()
    interesting = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "bf16", "sve")
    governor = _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")).strip()
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "usable_cpus": len(allowed_cpus()),
        "mhz": float(fields["cpu MHz"]) if "cpu MHz" in fields else None,
        "governor": governor or None,
        "features": [name for name in interesting if name in flags],
    }


def _gpus() -> list[dict[str, str]]:
    query = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(query.split(","), line.split(", "), strict=False)) for line in answer.stdout.strip().splitlines()]


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
