"""The summary of `sign` and of `check`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.phrases import count_of
from relu_deploy.reporting.terminal import markup, show

__all__ = ["print_signature"]


def print_signature(result: Mapping[str, Any]) -> None:
    """Print what `sign --json` or `check --json` writes."""
    if result["signed"]:
        show(
            f"[green]signed[/]: {markup(result['signature'])} covers {count_of(len(result['files']), 'file')}, key sha256 {result['key'][:16]}…"
        )
    else:
        show(f"[bold red]not signed[/] by this key: {markup(result['reason'])}")
