"""Starts a worker process and exchanges commands and replies with it, one line of JSON each."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

from relu_deploy.errors import Unsupported

__all__ = ["Process"]


class Process:
    """A worker process (`worker.py`)."""

    def __init__(self, threads: int) -> None:
        """Start a worker whose numerical libraries use `threads` CPU threads."""
        limited = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "relu_deploy.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **limited},
        )

    def request(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and return the reply. If the worker has ended, the reply has an `error`."""
        self.send(command, **arguments)
        return self.receive(command)

    def get(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and return the reply.

        Raises:
            Unsupported: If the reply has an `error`.
        """
        reply = self.request(command, **arguments)
        if "error" in reply:
            raise Unsupported(f"a benchmark process failed: {reply['error']}", reply["hint"] or "leave that backend out")
        return reply

    def send(self, command: str, **arguments: Any) -> None:
        """Send a command without waiting for its reply, which `receive` returns."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` reports that the process has ended
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._process.stdin.flush()

    def receive(self, command: str) -> dict[str, Any]:
        """Return the reply to the oldest command without one. `command` names it in errors."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"error": f"its process ended with exit code {self._process.wait(10)} during {command!r}", "hint": ""}
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the worker, and kill it if it does not end within five seconds."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
