"""Run commands of relu-deploy in this process, one after the other, with limits: the other end of `command_runner`.

Started as a script: `python command_worker.py OUTPUT REPLIES MEMORY`. Each line of standard input is a JSON list of the command's
words; for each a line of JSON goes to the file descriptor REPLIES. What the command prints, from native code too, goes to OUTPUT.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from itertools import pairwise
from pathlib import Path

#: most of what a command printed that is returned, in characters
MOST_OUTPUT = 4000


def main() -> None:
    output, replies, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    _limit_memory(memory, memory)
    handle = os.open(output, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for number in (1, 2):
        os.dup2(handle, number)
    from relu_deploy.cli.isolation import memory_of_command
    from relu_deploy.cli.main import main as run

    for line in sys.stdin:
        words = json.loads(line)
        os.ftruncate(handle, 0)
        # As the process that a command runs in sets it, beyond what this one holds of earlier commands.
        _limit_memory(int(_memory("VmData") * 2**20) + memory_of_command(_largest_tensor(words)), memory)
        _reset_peak_memory()
        began, used = time.perf_counter(), time.process_time()
        escaped = ""
        try:
            code = run(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as error:
            code, escaped = 1, f"{type(error).__name__}: {error}\n{traceback.format_exc()[-2500:]}"
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        if sys.stdout is None:  # `main` closes it when it cannot be written
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        reply = {
            "code": code,
            "escaped": escaped[:4000],
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - used,
            "peak_mib": _memory("VmHWM"),
            "held_mib": _memory("VmRSS"),
            "output": Path(output).read_bytes()[-MOST_OUTPUT:].decode(errors="replace"),
        }
        os.write(replies, (json.dumps(reply) + "\n").encode())


def _limit_memory(size: int, most: int) -> None:
    """Limit the writable memory of this process to `size` bytes, and to `most` for good; 0 sets no limit."""
    if most and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (min(size, most), most))


def _largest_tensor(words: list[str]) -> float | None:
    """Return what a command gives for --max-memory, in GB."""
    return next((float(value) for word, value in pairwise(words) if word == "--max-memory"), None)


def _reset_peak_memory() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory(field: str) -> float:
    """Return `VmHWM` (the peak since the last reset), `VmRSS` or `VmData` in MiB, 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


if __name__ == "__main__":
    main()
