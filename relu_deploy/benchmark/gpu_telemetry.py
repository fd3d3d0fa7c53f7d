"""What a GPU did while it was measured: clocks, reasons for lower ones, power, temperature. Read, never set.

NVIDIA's management library (nvidia-ml-py, optional) is asked from a thread of its own while runs are timed. A GPU that runs
hot or at its power limit lowers its clocks: figures from it are true, but another minute gives others, so the row says so.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["GpuWatch", "Sample", "energy_per_image", "summary"]

INTERVAL_SECONDS = 0.02
#: clocks are steady when the lowest is within this share of the highest and nothing slowed them down
STEADY = 0.02
IDLE = 0x1
#: bits of nvmlClocksEventReasons that mean "slower than it could be, because of …"
SLOWED = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "temperature, by the driver",
    0x40: "temperature, by the hardware",
    0x80: "power brake of the machine",
}
#: bits that mean "as somebody set it"
SET = {0x2: "clocks set by an administrator", 0x10: "synchronized with other GPUs", 0x100: "display"}


@dataclass(frozen=True)
class Sample:
    """One look. reasons: bits of nvmlClocksEventReasons."""

    sm_mhz: int
    memory_mhz: int
    watts: float
    celsius: int
    reasons: int


@dataclass
class GpuWatch:
    """Looks at one GPU while `looking`. reason: why it sees nothing, "" when it does."""

    bus_id: str
    library: Any = None
    reason: str = ""
    samples: list[Sample] = field(default_factory=list)
    _handle: Any = None

    def __post_init__(self) -> None:
        try:
            if self.library is None:
                import pynvml

                self.library = pynvml
            self.library.nvmlInit()
            self._handle = self.library.nvmlDeviceGetHandleByPciBusId(self.bus_id)
        except ImportError:
            self.reason = "nvidia-ml-py is not installed"
        except Exception as error:  # NVMLError has a class for every code
            self.reason = f"NVIDIA's management library says: {error}"

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Take samples until the block is left."""
        if self.reason:
            yield
            return
        stop = threading.Event()
        thread = threading.Thread(target=self._look, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _look(self, stop: threading.Event) -> None:
        while not stop.wait(INTERVAL_SECONDS):
            try:
                self.samples.append(self.look())
            except Exception as error:  # as above
                self.reason = f"NVIDIA's management library says: {error}"
                return

    def look(self) -> Sample:
        library, handle = self.library, self._handle
        reasons = (
            getattr(library, "nvmlDeviceGetCurrentClocksEventReasons", None) or library.nvmlDeviceGetCurrentClocksThrottleReasons
        )
        return Sample(
            library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM),
            library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_MEM),
            library.nvmlDeviceGetPowerUsage(handle) / 1e3,
            library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU),
            int(reasons(handle)),
        )

    def millijoules(self) -> int | None:
        """Return the whole board's energy since the driver was loaded, None where it does not count."""
        if self.reason:
            return None
        try:
            return int(self.library.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except Exception:  # not supported on some GPUs
            return None


def summary(watch: GpuWatch) -> dict[str, Any]:
    """Return `clocks`, `power_w` and `temperature_c` of everything that was seen, each null with the reason when nothing was."""
    busy = [sample for sample in watch.samples if not sample.reasons & IDLE]
    if not busy:
        why = watch.reason or "the runs were over before the GPU could be looked at"
        return {"clocks": None, "power_w": None, "temperature_c": None, "clocks_not_seen": why}
    return {
        "clocks": _verdict(busy),
        "power_w": {
            "mean": round(sum(one.watts for one in busy) / len(busy), 1),
            "max": round(max(one.watts for one in busy), 1),
        },
        "temperature_c": {"min": min(one.celsius for one in busy), "max": max(one.celsius for one in busy)},
        "clocks_not_seen": "",
    }


def _verdict(busy: Sequence[Sample]) -> dict[str, Any]:
    low, high = min(one.sm_mhz for one in busy), max(one.sm_mhz for one in busy)
    seen = 0
    for one in busy:
        seen |= one.reasons
    throttled = [name for bit, name in SLOWED.items() if seen & bit]
    return {
        "min": low,
        "max": high,
        "memory": [min(one.memory_mhz for one in busy), max(one.memory_mhz for one in busy)],
        "steady": not throttled and high - low <= STEADY * high,
        "throttled": throttled,
        "set": [name for bit, name in SET.items() if seen & bit],
        "samples": len(busy),
    }


def energy_per_image(before: int | None, after: int | None, images: int) -> float | None:
    """Return millijoules an image, of the whole board; None where the GPU does not count or the count did not move."""
    if before is None or after is None or after <= before or images < 1:
        return None
    return (after - before) / images
