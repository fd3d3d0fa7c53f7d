"""Notes of commands that ended with exit code 70, a bug in relu-deploy, so that the test which ran one fails whatever it asserts.

Commands run in this process and in forked ones, so the notes are files: one for each worker of a run of the tests.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["EXIT_INTERNAL", "note", "taken"]

EXIT_INTERNAL = 70
WORKER = "PYTEST_XDIST_WORKER"
FIRST = "main"


def note(folder: Path, worker: str, text: str) -> None:
    """Add a note for a worker; "" is the process that runs the tests without workers."""
    with _file(folder, worker).open("a", encoding="utf-8") as file:
        file.write(" ".join(text.split()) + "\n")


def taken() -> list[str]:
    """Return the notes of this process's worker and forget them."""
    file = _file(Path(os.environ["RELU_DEPLOY_TEST_FOLDER"]), os.environ.get(WORKER, ""))
    if not file.exists():
        return []
    notes = file.read_text(encoding="utf-8").splitlines()
    file.unlink()
    return notes


def _file(folder: Path, worker: str) -> Path:
    return folder / f"exit-{EXIT_INTERNAL}-{worker or FIRST}"
