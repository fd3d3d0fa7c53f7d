"""Measures the peak rates of a GPU: matrix products in each precision, run by PyTorch, and copies within its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relu_deploy.backends.nvidia.cuda import Device

__all__ = ["measure_rates"]

#: sides of the matrices: large enough to use all of any GPU; 8192 takes some milliseconds on a large one
SIDE, SMALL_SIDE = 8192, 4096
COPY_BYTES = 2**29
NO_TORCH = "not measured: PyTorch with CUDA is not installed"


def measure_rates(index: int = 0, seconds: float = 2.0) -> dict[str, Any]:
    """Measure the rates of a GPU.

    Args:
        index: Index of the GPU.
        seconds: Time for all measurements.

    Returns:
        `operations_per_second` by precision, `bytes_per_second` of a copy (read plus written), `l2_bytes`, and `missing`: the
        reason for each precision without a rate.

    Raises:
        BackendUnavailable: If cuda-bindings is not installed.
        CudaError: If there is no such GPU.
    """
    gpu = Device(index)
    rates: dict[str, float] = {}
    missing: dict[str, str] = {}
    torch = _torch()
    products = _products(torch, index) if torch is not None else dict.fromkeys(PRECISIONS, NO_TORCH)
    share = seconds / (len(products) + 1)
    for precision, product in products.items():
        if isinstance(product, str):
            missing[precision] = product
            continue
        try:
            # PyTorch's events and streams are those of its current GPU.
            with torch.cuda.device(index):
                rates[precision] = product(share)
        except Exception as error:  # PyTorch raises RuntimeError and NotImplementedError for what a GPU does not have
            missing[precision] = str(error).strip().splitlines()[0]
    gpu.make_current()
    return {
        "operations_per_second": rates,
        "bytes_per_second": _copy(gpu, share),
        "l2_bytes": gpu.attribute("L2_CACHE_SIZE"),
        "missing": missing,
    }


PRECISIONS = ("float32", "tf32", "float16", "bfloat16", "int8", "float8")


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def _products(torch: Any, index: int) -> dict[str, Callable[[float], float] | str]:
    device = torch.device("cuda", index)
    generator = torch.Generator(device).manual_seed(0)

    def pair(side: int, dtype: Any) -> tuple[Any, Any]:
        # Random numbers, because a GPU needs less power for zeros and then clocks higher.
        left, right = (torch.randn(side, side, generator=generator, device=device) for _ in range(2))
        if dtype == torch.int8:
            left, right = ((one * 40).clamp(-127, 127) for one in (left, right))
        # 8-bit kernels need the second matrix in column-major order; the others support it.
        return left.to(dtype), right.to(dtype).t()

    def product(work: Callable[[Any, Any], Any], dtype: Any, side: int = SIDE, tf32: bool = False) -> Callable[[float], float]:
        def rate(seconds: float) -> float:
            kept = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = tf32
            try:
                left, right = pair(side, dtype)
                return 2 * side**3 / _best(torch, lambda: work(left, right), seconds)
            finally:
                torch.backends.cuda.matmul.allow_tf32 = kept

        return rate

    eight = getattr(torch, "float8_e4m3fn", None)
    scaled, whole = getattr(torch, "_scaled_mm", None), getattr(torch, "_int_mm", None)

    def fp8(left: Any, right: Any) -> Any:
        return scaled(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)  # type: ignore[misc]

    one = torch.ones((), device=device)
    return {
        "float32": product(torch.matmul, torch.float32, SMALL_SIDE),
        "tf32": product(torch.matmul, torch.float32, tf32=True),
        "float16": product(torch.matmul, torch.float16),
        "bfloat16": product(torch.matmul, torch.bfloat16),
        "int8": product(whole, torch.int8) if whole else "this PyTorch has no product of int8 matrices",
        "float8": product(fp8, eight) if scaled and eight is not None else "this PyTorch has no product of float8 matrices",
    }


def _best(torch: Any, work: Callable[[], Any], seconds: float) -> float:
    """Return the shortest time of `work` in seconds; the minimum is least affected by other load."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    spent, best = 0.0, float("inf")
    while spent < seconds * 1e3:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        took = start.elapsed_time(end)
        spent, best = spent + max(took, 1e-3), min(best, took)
    return best / 1e3


def _copy(gpu: Device, seconds: float) -> float:
    """Return bytes per second, read plus written, of a copy within the GPU's memory that is larger than its caches."""
    size = min(COPY_BYTES, gpu.free_bytes() // 4)
    spent, best = 0.0, float("inf")
    with gpu.stream() as stream, gpu.buffer(size) as source, gpu.buffer(size) as target, gpu.event() as start, gpu.event() as end:
        while spent < seconds * 1e3:
            start.record(stream)
            gpu.copy(target.pointer, source.pointer, size, stream)
            end.record(stream)
            end.synchronize()
            took = end.milliseconds_since(start)
            spent, best = spent + max(took, 1e-3), min(best, took)
    return 2 * size / (best / 1e3)
