"""The other end of a worker process: commands and answers, a line of JSON each."""

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
    """A worker process, spoken to in lines of JSON."""

    def __init__(self, threads: int) -> None:
        limited = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "relu_deploy.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **limited},
        )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Return the worker's answer; a worker that died answers with an error."""
        self.send(command, **arguments)
        return self.receive(command)

    def get(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Return the worker's answer. Raises Unsupported when it is an error: nothing can be measured then."""
        answer = self.ask(command, **arguments)
        if "error" in answer:
            raise Unsupported(f"a benchmark process failed: {answer['error']}", answer["hint"] or "leave that backend out")
        return answer

    def send(self, command: str, **arguments: Any) -> None:
        """Send a command whose answer `receive` will return."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer will tell
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._process.stdin.flush()

    def receive(self, command: str) -> dict[str, Any]:
        """Return the answer to the oldest command that has none yet; `command` is what to call it in an error."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"error": f"its process ended with exit code {self._process.wait(10)} during {command!r}", "hint": ""}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the worker, by force when it does not end by itself."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
