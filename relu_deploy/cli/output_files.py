"""Checks the files that a command is to write before it does any work: none may be a file that the command reads."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from relu_deploy.errors import UsageError

__all__ = ["check_output_files"]

#: options that name a file or folder to write. --sensitivity is not one of them: its file is read if it exists.
OUTPUTS = ("out", "json", "html", "junit", "summary", "draw")
#: what is no input: the names of the verb and of its argument, and a report that is read before the new one may replace it
NO_INPUTS = ("verb", "models", "compare")


def check_output_files(options: argparse.Namespace) -> None:
    """Check that no output of the command is one of its inputs, or another output.

    Args:
        options: The parsed command line.

    Raises:
        UsageError: Names both options.
    """
    inputs = {
        key: name
        for name, value in vars(options).items()
        if name not in (*OUTPUTS, *NO_INPUTS)
        for path in _paths(value)
        if (key := _existing_file(path)) is not None
    }
    outputs: dict[object, str] = {}
    for name in OUTPUTS:
        for path in _paths(getattr(options, name, None)):
            if path == "-" or (written := _output(path)) is None:
                continue
            if written in inputs:
                raise UsageError(f"--{name} {path} is a file that the command reads", "choose another name")
            if written in outputs:
                raise UsageError(f"--{outputs[written]} and --{name} are the same file {path}", "give each its own file")
            outputs[written] = name


def _paths(value: object) -> Iterator[str]:
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, list):
        yield from (str(each) for each in value if isinstance(each, str | Path))


def _existing_file(path: str) -> tuple[int, int] | None:
    """Return what identifies the ordinary file at `path`, by whatever name; None if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116  # the value of any option: most are no paths
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _output(path: str) -> object:
    """Return what identifies an output, None for folders, devices and FIFOs: several results may go into one."""
    try:
        return (_existing_file(path) or os.path.realpath(path)) if Path(path).is_file() or not Path(path).exists() else None
    except (OSError, ValueError):
        return None
