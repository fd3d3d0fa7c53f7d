"""The progress of a TensorRT build, and its cancellation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["PARTS", "Progress", "progress_monitor"]

#: total that `Progress` counts to
PARTS = 1000

#: called with (done, total) in the thread that builds; must not print to stdout
Progress = Callable[[int, int], None]


def progress_monitor(trt: Any, progress: Progress | None) -> Any:
    """Return a progress monitor for the builder. It stops the build if `cancelled` is set or `progress` raises."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = threading.Event()
            self.raised: BaseException | None = None
            self._lock = threading.Lock()
            self._running: dict[str, tuple[str | None, int, int]] = {}
            self._reported = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._running[phase_name] = (parent_phase, num_steps, 0)

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._running.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            # An exception must not propagate into the builder.
            try:
                with self._lock:
                    if phase_name in self._running:
                        self._running[phase_name] = (*self._running[phase_name][:2], step + 1)
                    done = int(PARTS * self._share(None))
                    further, self._reported = done > self._reported, max(done, self._reported)
                if progress and further:
                    progress(done, PARTS)
            except BaseException as error:
                self.raised = error
            return self.raised is None and not self.cancelled.is_set()

        def _share(self, phase: str | None) -> float:
            """Return the completed share of `phase`, including the phases nested in its current step."""
            inside = [(name, done, steps) for name, (parent, steps, done) in self._running.items() if parent == phase]
            return min(1.0, sum(min(1.0, (done + self._share(name)) / max(steps, 1)) for name, done, steps in inside))

    return Monitor()
