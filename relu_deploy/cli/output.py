"""Where the result of a verb goes: a table on stdout, JSON to a file or stdout, a report into the bundle."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import EXIT_FINE, InputError, ReluDeployError

if TYPE_CHECKING:
    from relu_deploy.bundle import Bundle

__all__ = ["finish", "json_text", "keep_reports", "note_stale_signature", "open_bundle", "print_notes", "until_reader_exits"]

#: characters of the largest JSON document that is indented
LARGEST_INDENTED = 4_000_000


def open_bundle(path: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]] | None = None) -> Bundle:
    """Open the bundle or `.onnx` file at `path`, and print on stderr what was repaired in the file.

    shapes: See `Bundle.open`.
    """
    from relu_deploy.bundle import Bundle

    bundle = Bundle.open(path, shapes)
    print_notes(bundle.path, bundle.notes)
    return bundle


def print_notes(file: Path, notes: Iterable[str]) -> None:
    """Print notes about `file` on stderr, a line each."""
    from relu_deploy.reporting.terminal import printable

    for note in notes:
        print(f"note: {printable(file)}: {printable(note)}", file=sys.stderr)


def finish(options: argparse.Namespace, result: dict[str, Any], render: Callable[[], None]) -> int:
    """Write `result` to the file of --json, and print the table unless stdout is that file.

    Args:
        options: The parsed command line.
        result: The JSON object of the verb.
        render: Prints the table.

    Returns:
        The exit code for success.
    """
    if options.json == "-":
        if sys.stdout is None:
            raise InputError("cannot write to standard output: it is closed", "write to a file with --json FILE")
        text = json_text(result)
        if not _can_encode(sys.stdout.encoding or "ascii", text):
            text = json_text(result, ascii_only=True)
        with until_reader_exits():
            sys.stdout.write(text)
        return EXIT_FINE
    if options.json:
        from relu_deploy.storage.targets import write_result

        write_result(Path(options.json), json_text(result))
    with until_reader_exits():
        render()
    return EXIT_FINE


@contextlib.contextmanager
def until_reader_exits() -> Iterator[None]:
    """End the block when whoever reads standard output has exited: the work is done, and its exit code says how it ended."""
    try:
        yield
    except BrokenPipeError:
        # Python would try, and print an error, when it exits.
        sys.stdout = None  # type: ignore[assignment]


def keep_reports(bundle: Bundle, reports: Mapping[str, dict[str, Any] | str | bytes]) -> None:
    """Store reports in the bundle. If the bundle cannot be written, print a note on stderr instead.

    Args:
        bundle: The bundle, or a plain `.onnx` file, which stores nothing.
        reports: Content by path inside the bundle; an object is written as JSON.
    """
    if not bundle.is_folder:
        return
    contents = {name: content if isinstance(content, str | bytes) else json_text(content) for name, content in reports.items()}
    try:
        bundle.update(contents)
    except ReluDeployError as error:
        from relu_deploy.reporting.terminal import printable

        print(f"note: the report was not stored: {printable(error.message)}", file=sys.stderr)
    else:
        note_stale_signature(bundle.path)


def note_stale_signature(folder: Path) -> None:
    """Print a note on stderr if the bundle is signed: its signature does not cover what a verb has added."""
    from relu_deploy.reporting.terminal import printable
    from relu_deploy.signing.run import is_signed

    if is_signed(folder):
        shown = printable(folder)
        print(f"note: the signature of {shown} does not cover what was added: sign it again with --force", file=sys.stderr)


def json_text(content: Mapping[str, Any], ascii_only: bool = False) -> str:
    """Return `content` as JSON; numbers that JSON does not have (NaN, infinities) become null.

    Args:
        content: Plain JSON values.
        ascii_only: Write other characters as escapes.
    """
    try:
        text = _dumped(content, ascii_only)
    except ValueError:
        text = _dumped(_finite(content), ascii_only)
    # Half of a surrogate pair, as in the name of a file that is not UTF-8, can only be written as an escape.
    return f"{text}\n" if ascii_only or _can_encode("utf-8", text) else json_text(content, ascii_only=True)


def _dumped(content: Any, ascii_only: bool) -> str:
    text = json.dumps(content, ensure_ascii=ascii_only, allow_nan=False)
    # Indenting takes ten times as long, and nobody reads as much.
    return text if len(text) > LARGEST_INDENTED else json.dumps(content, indent=2, ensure_ascii=ascii_only, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _can_encode(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
