"""Worker processes that execute commands: one line of JSON for each command and each reply.

The parent starts a module as a process with `WorkerProcess`; the module calls `serve` with an object whose public methods are the
commands. Output of runtimes in the worker goes to stderr, which is discarded.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from relu_deploy.errors import ReluDeployError, Unsupported

__all__ = ["WorkerProcess", "answer", "serve"]


class WorkerProcess:
    """A worker process, seen from its parent."""

    def __init__(self, module: str, threads: int) -> None:
        """Start a worker.

        Args:
            module: Name of the module to run.
            threads: CPU threads of the numerical libraries in it.
        """
        limited = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
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


def answer(worker: object, command: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reply to one command. An exception becomes a reply with `error`, `hint` and `kind`.

    Args:
        worker: The object whose methods are the commands.
        command: `do`, the name of a method, and its arguments.
    """
    arguments = {name: value for name, value in command.items() if name != "do"}
    try:
        reply: dict[str, Any] = getattr(worker, command["do"])(**arguments)
    except ReluDeployError as error:
        return {"error": error.message, "hint": error.hint, "kind": type(error).__name__}
    except Exception as error:  # a runtime may raise anything, and the other workers should continue
        lines = str(error).strip().splitlines()
        return {"error": f"{type(error).__name__}: {lines[0] if lines else ''}", "hint": "", "kind": "Unsupported"}
    return reply


def serve(worker: object) -> None:
    """Read commands for `worker` from stdin and write the replies to stdout until stdin is closed."""
    # Replies use a copy of the descriptor, so that output of the runtime, redirected to stderr, does not mix with them.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        replies.write(json.dumps(answer(worker, json.loads(line))) + "\n")
