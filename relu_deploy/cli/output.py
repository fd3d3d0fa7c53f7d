"""Where the result of a verb goes: a table on stdout, JSON to a file or stdout, a report into the bundle."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import EXIT_FINE, ReluDeployError

if TYPE_CHECKING:
    from relu_deploy.bundle import Bundle

__all__ = ["finish", "keep_reports"]


def finish(options: argparse.Namespace, result: dict[str, Any], render: Callable[[], None]) -> int:
    """Write `result` to the file of --json, and print the table unless stdout is that file.

    Args:
        options: The parsed command line.
        result: The JSON object of the verb.
        render: Prints the table.

    Returns:
        The exit code for success.
    """
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return EXIT_FINE
    if options.json:
        from relu_deploy.files import write_atomically

        write_atomically(Path(options.json), text)
    render()
    return EXIT_FINE


def keep_reports(bundle: Bundle, reports: Mapping[str, dict[str, Any] | str | bytes]) -> None:
    """Store reports in the bundle. If the bundle cannot be written, print a note on stderr instead.

    Args:
        bundle: The bundle, or a plain `.onnx` file, which stores nothing.
        reports: Content by path inside the bundle; an object is written as JSON.
    """
    if not bundle.is_folder:
        return
    contents = {
        name: content if isinstance(content, str | bytes) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        for name, content in reports.items()
    }
    try:
        bundle.update(contents)
    except ReluDeployError as error:
        from relu_deploy.reporting.terminal import printable

        print(f"note: the report was not stored: {printable(error.message)}", file=sys.stderr)
