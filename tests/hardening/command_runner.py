"""Run commands on hostile files, in one warm process with limits on time and memory, and judge how each ended.

A command must end by itself, with exit code 0, 1, 2 or 3, without a traceback, within `Limits`, and must run no code from a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ALLOWED_CODES", "CommandRunner", "Limits", "Outcome"]

HERE = Path(__file__).parent
#: success, a check failed, bad input, a backend is not usable here
ALLOWED_CODES = (0, 1, 2, 3)
#: how many times its processor time a command may take, and the share of its time below which it sleeps
BUSY, IDLE = 5, 0.02
#: a worker that holds more than this after a command is replaced
MOST_HELD_MIB = 2000.0


@dataclass(frozen=True)
class Limits:
    """What one command may take.

    Attributes:
        seconds: Of processor time of it and its processes, and, `BUSY` times that, of time: it hangs beyond either. On a busy machine
            a command waits for its turn.
        peak_mib: Of resident memory, beyond what the worker held before.
        data_bytes: Of writable memory (RLIMIT_DATA), a safeguard for the machine. 0 sets none.
    """

    seconds: float = 60.0
    peak_mib: float = 4096.0
    data_bytes: int = 10 * 2**30


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        words: The command.
        code: Its exit code; None if it did not end by itself.
        faults: What it must not do and did: "crash", "hang", "traceback", "exit code", "memory", "code run".
        reply: What the worker measured.
    """

    words: tuple[str, ...]
    code: int | None
    faults: tuple[str, ...]
    reply: dict[str, Any] = field(default_factory=dict)


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process and its descendants have taken; 0 where the system does not say."""
    times: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name of the command, which comes before these, may contain spaces.
            fields = file.read_text().rpartition(")")[2].split()
            number = int(file.parent.name)
            times[number] = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
            children.setdefault(int(fields[1]), []).append(number)
    total, waiting = 0.0, [pid]
    while waiting:
        current = waiting.pop()
        total += times.get(current, 0.0)
        waiting += children.get(current, ())
    return total


class CommandRunner:
    """Runs commands in a process that is replaced when a command ends it or exceeds its time."""

    def __init__(self, canary: Path, limits: Limits = Limits()) -> None:
        """canary: a path that no command makes; a file that runs code makes it."""
        self._canary, self._limits = canary, limits
        self._worker: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._held = 0.0

    def __enter__(self) -> CommandRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._folder.cleanup()

    def run(self, words: Sequence[object]) -> Outcome:
        """Run a command and return how it ended."""
        command = tuple(str(word) for word in words)
        worker = self._started()
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(command).encode() + b"\n")
        worker.stdin.flush()
        held = self._held
        line = self._reply()
        if line is None:
            faults, code, reply = self._unanswered(worker)
        else:
            reply = json.loads(line)
            code, self._held = reply["code"], reply["held_mib"]
            faults = self._faults_of(reply, held)
            if self._held > MOST_HELD_MIB:
                self._end()
        if self._canary.exists():
            self._canary.rmdir()
            faults.append("code run")
        return Outcome(command, code, tuple(faults), reply)

    def trace(self, outcome: Outcome) -> str:
        """Return the traceback of a command that exited with 70, by running it again."""
        again = self.run([*outcome.words, "--debug"])
        return str(again.reply.get("escaped", ""))

    def _faults_of(self, reply: dict[str, Any], held: float) -> list[str]:
        faults = []
        if reply["escaped"] or "Traceback (most recent call last)" in reply["output"]:
            faults.append("traceback")
        if reply["code"] not in ALLOWED_CODES:
            faults.append("exit code")
        if reply["peak_mib"] - held > self._limits.peak_mib:
            faults.append("memory")
        return faults

    def _unanswered(self, worker: subprocess.Popen[bytes]) -> tuple[list[str], int | None, dict[str, Any]]:
        """Return the faults of a command that ended the worker or exceeded its time."""
        try:
            code: int | None = worker.wait(1)
        except subprocess.TimeoutExpired:
            code = None
        output = self._output.read_bytes()[-4000:].decode(errors="replace") if self._output.exists() else ""
        self._end()
        return ["hang" if code is None else "crash"], code, {"output": output}

    def _started(self) -> subprocess.Popen[bytes]:
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        self._end()
        self._output = Path(self._folder.name) / "output"
        self._replies, written = os.pipe()
        words = [sys.executable, str(HERE / "command_worker.py"), str(self._output), str(written), str(self._limits.data_bytes)]
        environment = {**os.environ, "COLUMNS": "120", "TMPDIR": self._folder.name}
        self._worker = subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=[written], env=environment)
        os.close(written)
        self._held = 0.0
        self._buffer = b""
        return self._worker

    def _reply(self) -> bytes | None:
        """Return the worker's next line, None when it ends or none comes in time."""
        assert self._worker is not None
        began, used = time.monotonic(), processor_seconds(self._worker.pid)
        ready: list[int] = []
        while not ready and time.monotonic() - began < BUSY * self._limits.seconds:
            wait = min(1.0, self._limits.seconds)
            ready, _, _ = select.select([self._replies], [], [], wait)
            now = processor_seconds(self._worker.pid)
            # A command that sleeps hangs as well.
            idle = time.monotonic() - began > self._limits.seconds and now - used < IDLE * self._limits.seconds
            if now - used > self._limits.seconds or idle:
                break
        while ready and not self._buffer.endswith(b"\n"):
            piece = os.read(self._replies, 2**16)
            if not piece:
                break
            self._buffer += piece
        line, self._buffer = self._buffer, b""
        return line if line.endswith(b"\n") else None

    def _end(self) -> None:
        if self._worker is None:
            return
        if self._worker.poll() is None:
            self._worker.send_signal(signal.SIGKILL)
        assert self._worker.stdin is not None
        self._worker.stdin.close()
        self._worker.wait()
        os.close(self._replies)
        self._worker = None
