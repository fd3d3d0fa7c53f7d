"""The addresses and models of a running server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relu_deploy.reporting.terminal import markup, show

__all__ = ["print_serve"]


def print_serve(result: Mapping[str, Any]) -> None:
    """Print what `serve --json` writes once the server listens."""
    host = result["host"] if ":" not in result["host"] else f"[{result['host']}]"
    for name in ("http", "grpc", "metrics"):
        if result.get(name) is not None:
            address = f"{host}:{result[name]}" if name == "grpc" else f"{result.get('scheme', 'http')}://{host}:{result[name]}"
            show(f"{name:<8} {markup(address)}{'/metrics' if name == 'metrics' else ''}")
    for model in result["models"]:
        batching = f"up to {model['max_batch']} rows together" if model["max_batch"] > 1 else "one request at a time"
        show(f"model    [bold]{markup(model['name'])}[/]  {model['backend']}, {batching}")
