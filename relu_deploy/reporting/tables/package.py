"""The files of a package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.terminal import markup, show

__all__ = ["print_package"]

#: files that are listed; the context of an image holds this whole package
LISTED = 12


def print_package(result: Mapping[str, Any]) -> None:
    """Print what `package --json` writes."""
    show(f"[bold]{markup(result['folder'])}[/]  {markup(result['model'])} for {result['target']}, flavor {result['flavour']}")
    files = [file for file in result["files"] if not file.rsplit("/", 1)[-1].startswith(".")]
    for file in files[:LISTED]:
        show(f"  {markup(file)}")
    if len(files) > LISTED:
        show(f"  and {len(files) - LISTED} more")
    for note in result["notes"]:
        show(f"  [yellow]note: {markup(note)}[/]")
