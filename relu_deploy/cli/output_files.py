"""Checks what a command is to write before it does any work: that it can be, and that it is nothing that the command reads."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from relu_deploy.errors import UsageError

__all__ = ["check_output_files", "written_paths"]

#: options that name a file or folder to write
OUTPUTS = ("out", "json", "html", "junit", "summary", "draw", "sensitivity")
#: options of verbs that name a folder: one that is written whole, and one that files are added to
WHOLE_FOLDERS = (("export", "out"), ("optimize", "out"), ("package", "out"))
ENGINES = ("compile", "a folder for engines")
FOLDERS = (("predict", "draw"), ENGINES)
#: what is no input: the names of the verb and of its argument, and a report that is read before the new one may replace it
NO_INPUTS = ("verb", "models", "compare")
#: the value of --json, and of --summary, that is no path
STDOUT, JOB_SUMMARY = "-", "GITHUB_STEP_SUMMARY"
CHOOSE = "choose another name"


def check_output_files(options: argparse.Namespace) -> None:
    """Check that every output of the command can be written, and that it is none of its inputs and no other output.

    Args:
        options: The parsed command line.

    Raises:
        UsageError: Names both options.
        InputError: If an output cannot be written.
    """
    written = written_paths(options)
    if not written:
        return
    inputs = {
        key: name
        for name, value in vars(options).items()
        if name not in written and name not in NO_INPUTS
        for path in _paths(value)
        if (key := _existing_file(path)) is not None
    }
    outputs: dict[object, str] = {}
    for name, path in written.items():
        if (place := _output(path)) is None:
            continue
        if place in inputs:
            raise UsageError(f"--{name} {path} is a file that the command reads", CHOOSE)
        if place in outputs:
            raise UsageError(f"--{outputs[place]} and --{name} are the same file {path}", "give each its own file")
        outputs[place] = name
    for name, path in written.items():
        if _is_in_place(options, name):
            continue
        if (options.verb, name) in WHOLE_FOLDERS:
            _check_folder(options, name, written)
        _check_place(options, name, path)


def written_paths(options: argparse.Namespace) -> dict[str, str]:
    """Return the paths that the options of the command name for writing, by the name of the option.

    Raises:
        UsageError: If one is empty.
    """
    return {name: path for name in OUTPUTS if (path := _written(options, name)) is not None}


def _written(options: argparse.Namespace, name: str) -> str | None:
    """Return the path that an option names for writing, None if it names none."""
    value = getattr(options, name, None)
    if value is None or not isinstance(value, str | Path) or (name == "json" and value == STDOUT):
        return None
    path = str(value)
    if not path:
        raise UsageError(f"--{name} has an empty name", "give the name of a file")
    if name == "summary" and path == JOB_SUMMARY:
        return os.environ.get(JOB_SUMMARY) or path
    # An existing list is read unless it is to be replaced.
    return path if name != "sensitivity" or options.force or not os.path.lexists(path) else None


def _check_folder(options: argparse.Namespace, name: str, written: dict[str, str]) -> None:
    """Check that a folder that is written whole takes no other output, and no input, with it."""
    folder = _real(written[name])
    for other, path in written.items():
        if other != name and _real(path).startswith(folder + os.sep):
            raise UsageError(f"--{other} {path} is inside --{name} {written[name]}, which is written whole", CHOOSE)
    for other, value in vars(options).items():
        for path in _paths(value) if other not in written and other not in NO_INPUTS else ():
            if _real(path).startswith(folder + os.sep) and os.path.lexists(path):
                raise UsageError(f"--{name} {written[name]} would replace {path}, which the command reads", CHOOSE)


def _is_in_place(options: argparse.Namespace, name: str) -> bool:
    """Return whether an output is the bundle that the command reads, which is added to then."""
    return name == "out" and _real(str(getattr(options, name))) == _real(str(getattr(options, "path", "")))


def _check_place(options: argparse.Namespace, name: str, path: str) -> None:
    from relu_deploy.storage.targets import check_folder_above, check_target

    target, place = Path(path), (options.verb, name)
    if place == ("compile", "out") and target.suffix != ".rdb" and (path.endswith(("/", os.sep)) or _is_folder(path)):
        place = ENGINES
    if place in WHOLE_FOLDERS or (place == ("compile", "out") and target.suffix == ".rdb"):
        check_folder_above(target)
    elif place in FOLDERS:
        check_folder_above(target / "file")
    else:
        check_target(target)


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # a name that no file can have
        return path


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
