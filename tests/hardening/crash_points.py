"""Commands that are killed, or refused by the system, at every call that touches a file, and what they leave behind.

After each interruption the bundle must open as its old or its new self; the same command is then run again undisturbed, must
succeed, and must leave nothing but its result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from processes import python
from seed_models import convolutions, mlp

from relu_deploy.bundle import Bundle
from relu_deploy.errors import ReluDeployError

__all__ = ["COMMANDS", "ERRORS", "CrashPoint", "CrashTrials"]

HERE = Path(__file__).parent
ERRORS = ("ENOSPC", "EIO", "EACCES")
SILENT = ("--quiet", "--json", "result.json")
TRITON = ("--for", "triton", "--device", "cpu", "--max-batch", "4", "--max-delay", "0")
INT8 = ("--precision", "int8", "--calibration", "../x.npz", "--samples", "16", "--max-drop", "1")
#: what is interrupted: the words of each command in a folder beside m.onnx, other.onnx and x.npz
COMMANDS: dict[str, tuple[str, ...]] = {
    "export": ("export", "../m.onnx", "-o", "m.rdb"),
    "export over": ("export", "../other.onnx", "-o", "m.rdb", "--force"),
    "verify": ("verify", "m.rdb", "--threads", "1"),
    "optimize": ("optimize", "m.rdb", *INT8, "--threads", "1"),
    "compile": ("compile", "m.rdb", "--backend", "tensorrt-rtx", "--compute-capability", "8.9"),
    "package": ("package", "m.rdb", *TRITON, "-o", "repository"),
    "package over": ("package", "m.rdb", *TRITON, "-o", "repository", "--force"),
}


@dataclass(frozen=True)
class CrashPoint:
    """One interruption and what followed.

    Attributes:
        command: A key of `COMMANDS`.
        how: "kill at call", "kill -9" or the name of the system's error.
        place: Number of the call, or seconds after the start.
        code: Exit code of the interrupted command, negative for a signal.
        faults: What is wrong: "refused", "another state", "exit code", "traceback", "next run", "leftovers".
        details: Of the faults.
    """

    command: str
    how: str
    place: float
    code: int
    faults: tuple[str, ...]
    details: str = ""


class CrashTrials:
    """Interrupts one command again and again in a folder of its own."""

    def __init__(self, command: str, folder: Path) -> None:
        self._name, self._words, self._root = command, COMMANDS[command], folder
        self._place = folder / "place"
        self._report = folder / "report.json"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "m.onnx").write_bytes(mlp().SerializeToString())
        (folder / "other.onnx").write_bytes(convolutions().SerializeToString())
        np.savez(folder / "x.npz", x=np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32))
        self._prepare_original()
        self._fresh()
        self._before = self._state()
        began = time.monotonic()
        ended = self._interrupted("kill", 0)
        self.seconds = time.monotonic() - began
        report = json.loads(self._report.read_text())
        assert ended.returncode == 0, ended.stderr
        self.calls = int(report["calls"])
        self._after = self._state()
        assert not self._leftovers(), self._leftovers()

    def at_call(self, number: int, how: str = "kill") -> CrashPoint:
        """Kill the command at its call `number`, or let that call fail. how: "kill" or one of `ERRORS`."""
        self._fresh()
        ended = self._interrupted(how, number)
        return self._judged("kill at call" if how == "kill" else how, number, ended)

    def at_moment(self, seconds: float, *, real: bool = False) -> CrashPoint:
        """Kill the command from outside, with SIGKILL. real: start the console script as users do."""
        self._fresh()
        self._report.unlink(missing_ok=True)
        process = self._started("kill", -1, real)
        pid = process.pid if real else self._wait_for_pid(process)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, stderr = process.communicate(timeout=120)
        ended = subprocess.CompletedProcess(process.args, process.returncode, "", stderr)
        return self._judged("kill -9", seconds, ended)

    def points(self, draw: random.Random, count: int) -> Iterator[CrashPoint]:
        """Yield `count` points: half at calls (all of them, if there are as many), a quarter errors, a quarter at moments."""
        calls = [*range(1, self.calls + 1)]
        draw.shuffle(calls)
        kills = calls[: count - count // 2]
        for number in kills:
            yield self.at_call(number)
        for _ in range(count // 4):
            yield self.at_call(draw.randrange(1, self.calls + 1), draw.choice(ERRORS))
        for turn in range(count - len(kills) - count // 4):
            yield self.at_moment(draw.uniform(0, self.seconds), real=turn % 10 == 9)

    # ---------------------------------------------------------------- the folder

    def _prepare_original(self) -> None:
        """Make the bundle and the repository that each trial starts from."""
        original = self._root / "original"
        if original.exists():
            return
        self._place = original
        original.mkdir()
        (original / "tmp").mkdir()
        needed = [] if self._name == "export" else [COMMANDS["export"]]
        if self._name in ("optimize", "compile"):
            needed.append(COMMANDS["verify"])
        if self._name == "package over":
            needed.append(COMMANDS["package"])
        for words in needed:
            ended = self._run([python(), "-m", "relu_deploy", *words, *SILENT])
            assert ended.returncode == 0, ended.stderr
        self._place = self._root / "place"

    def _fresh(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._root / "original", self._place, symlinks=True)
        (self._place / "result.json").unlink(missing_ok=True)

    def _state(self) -> dict[str, Any]:
        """Return what a reader sees. Raises ReluDeployError if it is refused."""
        state: dict[str, Any] = {}
        bundle, repository = self._place / "m.rdb", self._place / "repository"
        if bundle.exists():
            opened = Bundle.open(bundle)
            state["files"] = sorted(opened.manifest["files"])
            state["model"] = opened.manifest["files"]["model.onnx"]["sha256"]
            state["variants"] = sorted(opened.manifest["variants"])
        if repository.exists():
            files = sorted(file for file in repository.rglob("*") if file.is_file())
            state["repository"] = [
                (file.relative_to(repository).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files
            ]
        return state

    def _leftovers(self) -> list[str]:
        """Return the files and folders that belong to no result."""
        known = {self._place / name for name in ("tmp", "result.json", "m.rdb", "repository")}
        bundle = self._place / "m.rdb"
        if bundle.exists():
            listed = [bundle / name for name in Bundle.open(bundle).manifest["files"]] + [bundle / "manifest.json"]
            known |= {place for file in listed for place in (file, *file.parents)}
            # The engines are a cache: an engine, its description and the lock that builders of it share.
            known |= {bundle / "engines", *(bundle / "engines").glob("[!.]*"), *(bundle / "engines").glob(".*.lock")}
        known |= set((self._place / "repository").rglob("*"))
        return sorted(place.relative_to(self._place).as_posix() for place in self._place.rglob("*") if place not in known)

    # ---------------------------------------------------------------- the command

    def _interrupted(self, how: str, number: int) -> subprocess.CompletedProcess[str]:
        process = self._started(how, number)
        _, stderr = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, "", stderr)

    def _started(self, how: str, number: int, real: bool = False) -> subprocess.Popen[str]:
        command = [*self._words, *SILENT]
        script = [str(HERE / "interrupted_command.py"), str(self._place), how, str(number), str(self._report)]
        words = [sys.executable, "-m", "relu_deploy", *command] if real else [python(), *script, *command]
        return subprocess.Popen(
            words, cwd=self._place, env=self._environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def _run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self._place, env=self._environment(), capture_output=True, text=True, timeout=300, check=False
        )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self._place / "tmp"), "OMP_NUM_THREADS": "1"}

    def _wait_for_pid(self, process: subprocess.Popen[str]) -> int:
        while process.poll() is None:
            try:
                return int(json.loads(self._report.read_text())["pid"])
            except (OSError, ValueError):
                time.sleep(0.001)
        return process.pid

    def _judged(self, how: str, place: float, ended: subprocess.CompletedProcess[str]) -> CrashPoint:
        faults, details = [], []
        if how in ERRORS:
            if ended.returncode not in (0, 1, 2, 3):
                faults.append("exit code")
            if "Traceback (most recent call last)" in ended.stderr:
                faults.append("traceback")
            if faults:
                details.append(ended.stderr[-600:])
        try:
            if (state := self._state()) not in (self._before, self._after):
                faults.append("another state")
                details.append(str(state))
        except ReluDeployError as error:
            faults.append("refused")
            details.append(str(error))
        forced = ["--force"] if self._words[0] in ("export", "optimize", "package") and "--force" not in self._words else []
        again = self._run([python(), "-m", "relu_deploy", *self._words, *forced, *SILENT])
        if again.returncode != 0:
            faults.append("next run")
            details.append(again.stderr[-600:])
        elif self._state() != self._after:
            faults.append("next run")
            details.append(f"another state after the next run: {self._state()}")
        elif leftovers := self._leftovers():
            faults.append("leftovers")
            details.append(", ".join(leftovers))
        return CrashPoint(self._name, how, place, ended.returncode, tuple(faults), "\n".join(details)[:2000])
