"""Run a command of relu-deploy that ends, or gets an error of the system, at its N-th call that touches a file in a folder.

Started as a script: `python interrupted_command.py FOLDER HOW NUMBER REPORT WORDS…`. HOW is "kill" or the name of an error such as
"ENOSPC"; REPORT gets the process's number at the start and, if the command ends by itself, the number of calls and its exit code.
Calls are Python's audit events, and `os.fsync`, which has none. Native code in between writes to memory or to temporary files only.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

EVENTS = (
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "os.link",
    "os.symlink",
    "os.scandir",
)


def main() -> None:
    folder, how, number, report = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    words = sys.argv[5:]
    report.write_text(json.dumps({"pid": os.getpid()}))
    count = 0
    from relu_deploy.cli.main import main as run

    def on_event(event: str, arguments: Any) -> None:
        nonlocal count
        if event not in EVENTS or not _is_inside(arguments[0], folder):
            return
        count += 1
        if count == number:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)), str(arguments[0]))

    fsync = os.fsync

    def counted_fsync(handle: int) -> None:
        on_event("os.rename", (folder,))
        if not number:
            fsync(handle)

    # Nothing here cuts the power, and waiting for the disk takes most of the time.
    os.fsync = counted_fsync
    sys.addaudithook(on_event)
    code = run(words)
    number = -1
    report.write_text(json.dumps({"pid": os.getpid(), "calls": count, "code": code}))
    sys.exit(code)


def _is_inside(path: Any, folder: str) -> bool:
    try:
        return str(Path(os.fsdecode(path)).absolute()).startswith(folder)
    except TypeError:  # a file descriptor
        return False


if __name__ == "__main__":
    main()
