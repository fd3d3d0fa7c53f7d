"""Samples clocks, throttling reasons, power and temperature of a GPU while it is measured.

NVIDIA's management library (nvidia-ml-py, optional) is polled in a thread while runs are timed. Settings are read, never changed.
A GPU that is hot or at its power limit lowers its clocks, which makes results vary over time; the row reports this.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["GpuWatch", "Sample", "energy_per_image", "summary"]

INTERVAL_SECONDS = 0.02
#: clocks are steady if the lowest is within this share of the highest and there is no throttling
STEADY = 0.02
IDLE = 0x1
#: bits of nvmlClocksEventReasons that mean throttling → the reason
SLOWED = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "temperature, by the driver",
    0x40: "temperature, by the hardware",
    0x80: "power brake of the machine",
    0x200: "power, shared with the CPU",
    0x400: "temperature, shared with the CPU",
}
#: bits that mean that clocks were set → the reason
SET = {0x2: "clocks set by an administrator", 0x10: "synchronized with other GPUs", 0x100: "display"}


@dataclass(frozen=True)
class Sample:
    """One sample; a field is None if the GPU does not report it.

    Attributes:
        sm_mhz: Clock of the multiprocessors.
        memory_mhz: Clock of the memory.
        watts: Power of the board.
        celsius: Temperature of the GPU.
        reasons: Bits of nvmlClocksEventReasons.
    """

    sm_mhz: int | None
    memory_mhz: int | None
    watts: float | None
    celsius: int | None
    reasons: int | None


@dataclass
class GpuWatch:
    """Samples one GPU inside `looking`.

    Attributes:
        bus_id: PCI address of the GPU.
        library: The module pynvml.
        reason: Why there are no samples, "" if sampling works.
        samples: The samples so far.
    """

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
        """Take samples in a thread inside the block."""
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
        """Return one sample. Raises the library's error if the GPU reports none of the values."""
        library, handle = self.library, self._handle
        reasons = (
            getattr(library, "nvmlDeviceGetCurrentClocksEventReasons", None) or library.nvmlDeviceGetCurrentClocksThrottleReasons
        )
        errors: list[Exception] = []

        def reading(read: Callable[[], float]) -> Any:
            # In a MIG partition or a virtual machine some values are not available.
            try:
                return read()
            except Exception as error:  # NVMLError has a class for every code
                errors.append(error)
                return None

        sample = Sample(
            reading(lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM)),
            reading(lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_MEM)),
            reading(lambda: library.nvmlDeviceGetPowerUsage(handle) / 1e3),
            reading(lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU)),
            reading(lambda: int(reasons(handle))),
        )
        if len(errors) == len(fields(Sample)):
            raise errors[0]
        return sample

    def millijoules(self) -> int | None:
        """Return the energy of the board since the driver was loaded in millijoules, None if it is not available."""
        if self.reason:
            return None
        try:
            return int(self.library.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except Exception:  # not supported on some GPUs
            return None


def summary(watch: GpuWatch) -> dict[str, Any]:
    """Summarize all samples of `watch`.

    Returns:
        `clocks`, `power_w` and `temperature_c`, each None if the GPU does not report it, and `clocks_not_seen`: why there are no
        clocks, "" if there are.
    """
    busy = [sample for sample in watch.samples if not (sample.reasons or 0) & IDLE]
    why = watch.reason or "the runs ended before the first sample of the GPU"
    watts = [one.watts for one in busy if one.watts is not None]
    celsius = [one.celsius for one in busy if one.celsius is not None]
    clocks = _verdict(busy)
    return {
        "clocks": clocks,
        "power_w": {"mean": round(sum(watts) / len(watts), 1), "max": round(max(watts), 1)} if watts else None,
        "temperature_c": {"min": min(celsius), "max": max(celsius)} if celsius else None,
        "clocks_not_seen": "" if clocks else "this GPU does not report its clocks" if busy else why,
    }


def _verdict(busy: Sequence[Sample]) -> dict[str, Any] | None:
    speeds = [one.sm_mhz for one in busy if one.sm_mhz is not None]
    if not speeds:
        return None
    low, high = min(speeds), max(speeds)
    memory = [one.memory_mhz for one in busy if one.memory_mhz is not None]
    reasons = [one.reasons for one in busy if one.reasons is not None]
    seen = 0
    for bits in reasons:
        seen |= bits
    throttled = [name for bit, name in SLOWED.items() if seen & bit]
    return {
        "min": low,
        "max": high,
        "memory": [min(memory), max(memory)] if memory else None,
        # Without the reasons, a clock that was low all the time would look steady.
        "steady": not throttled and high - low <= STEADY * high if reasons else None,
        "throttled": throttled,
        "set": [name for bit, name in SET.items() if seen & bit],
        "samples": len(busy),
    }


def energy_per_image(before: int | None, after: int | None, images: int) -> float | None:
    """Return the energy of the board per image in millijoules.

    Args:
        before: Energy counter before the runs in millijoules.
        after: Energy counter after the runs.
        images: Number of images of the runs.

    Returns:
        The energy, None if the counter is not available or did not change.
    """
    if before is None or after is None or after <= before or images < 1:
        return None
    return (after - before) / images
