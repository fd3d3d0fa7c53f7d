"""Worker processes that execute commands: one line of JSON for each command and each reply.

The parent starts a module as a process with `WorkerProcess`; the module calls `serve` with an object whose public methods are the
commands. Output of runtimes in the worker goes to stderr, which is discarded. A worker that has imported a runtime can be copied
with `WorkerProcess.fork`, which takes milliseconds where another import takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from relu_deploy.errors import ReluDeployError, TooLong, Unsupported
from relu_deploy.parent_process import end_with_parent
from relu_deploy.run_limit import end_overdue_runs, limited_runs, runs_are_limited

__all__ = ["WorkerProcess", "answer", "serve"]

#: seconds in which a worker ends after its commands have ended, or connects after it was forked
PATIENCE = 5.0


class WorkerProcess:
    """A worker process, seen from its parent."""

    #: commands without a reply yet
    _unanswered = 0

    def __init__(self, module: str, threads: int) -> None:
        """Start a worker.

        Args:
            module: Name of the module to run.
            threads: CPU threads of the numerical libraries in it.
        """
        limited = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *([LIMITED] if runs_are_limited() else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **limited},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands: IO[str] = self._process.stdin
        self._replies: IO[str] = self._process.stdout

    def fork(self, folder: Path) -> ForkedWorker | None:
        """Return a copy of this worker with everything that it has imported, None if the system cannot fork it.

        Processes with threads, which some runtimes start on import, are not forked: the copy would lack the threads.

        Args:
            folder: A folder that only this user can write to, for the socket through which the two meet.
        """
        if not hasattr(socket, "AF_UNIX"):
            return None
        address = folder / "socket"
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(str(address))
                listener.listen(1)
                listener.settimeout(PATIENCE)
                reply = self.request(FORK, address=str(address))
                if "error" in reply:
                    return None
                connection, _ = listener.accept()
            except OSError:  # the path is too long for a socket, or its file system has none, or the copy does not connect
                return None
            finally:
                address.unlink(missing_ok=True)
        return ForkedWorker(connection, reply["pid"])

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
        self._unanswered += 1
        with contextlib.suppress(BrokenPipeError):  # `receive` reports that the process has ended
            self._commands.write(json.dumps({"do": command, **arguments}) + "\n")
            self._commands.flush()

    def receive(self, command: str) -> dict[str, Any]:
        """Return the reply to the oldest command without one. `command` names it in errors.

        Raises:
            TooLong: If a graph has taken longer than it may. The reply to any other error has an `error`.
        """
        try:
            line = self._replies.readline()
        except ConnectionError:
            line = ""
        self._unanswered -= 1
        if not line:
            return {"error": f"its process ended{self._exit_code()} during {command!r}", "hint": ""}
        reply: dict[str, Any] = json.loads(line)
        if reply.get("kind") == TooLong.__name__:
            raise TooLong(reply["error"], reply["hint"])
        return reply

    def _exit_code(self) -> str:
        return f" with exit code {self._process.wait(10)}"

    def close(self) -> None:
        """End the worker. It is killed if it does not end within `PATIENCE`, or executes a command, which may take minutes."""
        for stream in (self._commands, self._replies):
            if not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(0 if self._unanswered else PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ForkedWorker(WorkerProcess):
    """A copy of a worker process, which commands reach through a socket."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        """Use the worker `pid` at the other end of `connection`."""
        self._connection, self._pid = connection, pid
        self._commands, self._replies = connection.makefile("w"), connection.makefile("r")

    def _exit_code(self) -> str:
        return ""

    def close(self) -> None:
        """End the worker, and kill it where `WorkerProcess.close` does."""
        if self._connection.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            if self._unanswered:
                os.kill(self._pid, signal.SIGKILL)
            self._connection.settimeout(PATIENCE)
            try:
                while self._connection.recv(4096):  # the other end is closed when the process has ended
                    pass
            except TimeoutError:
                os.kill(self._pid, signal.SIGKILL)
        for stream in (self._commands, self._replies, self._connection):
            with contextlib.suppress(OSError):
                stream.close()


#: the command that `serve` executes itself
FORK = "fork"
#: argument of a worker that limits its runs as its parent does
LIMITED = "limited"


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
        return _error(error)
    except Exception as error:  # a runtime may raise anything, and the other workers should continue
        lines = str(error).strip().splitlines()
        return {"error": f"{type(error).__name__}: {lines[0] if lines else ''}", "hint": "", "kind": "Unsupported"}
    return reply


def _error(error: ReluDeployError) -> dict[str, Any]:
    return {"error": error.message, "hint": error.hint, "kind": type(error).__name__}


def _reply(replies: IO[str], reply: Mapping[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _end_overdue_runs(replies: IO[str]) -> None:
    """Let a run that takes too long be answered by its error, and end this process: the runtime cannot end the run."""

    def end(error: TooLong) -> None:
        _reply(replies, _error(error))
        os._exit(1)

    end_overdue_runs(end)


def serve(worker: object) -> None:
    """Read commands for `worker` from stdin and write the replies to stdout until stdin is closed or the parent has ended."""
    # A killed parent closes stdin too, but a command that a worker executes may take minutes.
    end_with_parent(os.getppid())
    # Replies use a copy of the descriptor, so that output of the runtime, redirected to stderr, does not mix with them.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threads = _count_threads()
    _end_overdue_runs(replies)
    with limited_runs(LIMITED in sys.argv):
        for line in sys.stdin:
            command = json.loads(line)
            forks = command["do"] == FORK
            _reply(replies, _fork(worker, command["address"], threads, replies.fileno()) if forks else answer(worker, command))


def _fork(worker: object, address: str, threads: int, replies: int) -> dict[str, Any]:
    """Fork a process that executes the commands of a socket.

    Args:
        worker: The object whose methods are the commands.
        address: Path of the socket.
        threads: Number of threads of this process before any command.
        replies: Descriptor of the replies of this process.
    """
    # The linear algebra library of NumPy has threads too, and starts them anew in a copy.
    if not hasattr(os, "fork") or _count_threads() != threads:
        return {"error": "this process cannot be forked", "hint": ""}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system removes copies that have ended
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return {"pid": pid}
    try:
        end_with_parent(parent)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.close(replies)
        _serve_socket(worker, address)
    finally:
        os._exit(0)


def _serve_socket(worker: object, address: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("r") as commands, connection.makefile("w") as replies:
            _end_overdue_runs(replies)
            for line in commands:
                _reply(replies, answer(worker, json.loads(line)))


def _count_threads() -> int:
    """Return the number of threads of this process, 0 if the system does not report it."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0
