"""The process of a benchmark row."""

from __future__ import annotations

from relu_deploy.worker_process import WorkerProcess

__all__ = ["Process"]


class Process(WorkerProcess):
    """A process that runs `relu_deploy.benchmark.worker`."""

    def __init__(self, threads: int) -> None:
        """Start a worker whose numerical libraries use `threads` CPU threads."""
        super().__init__("relu_deploy.benchmark.worker", threads)
