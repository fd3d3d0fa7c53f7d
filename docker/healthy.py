"""Exit 0 when `relu-deploy doctor --json -`, on stdin, finds a backend that runs on the GPU; else say why none does, exit 1."""

from __future__ import annotations

import json
import sys


def on_gpu(name: str) -> bool:
    return "cuda" in name or "tensorrt" in name


if __name__ == "__main__":
    try:
        found = [backend for backend in json.load(sys.stdin)["backends"] if on_gpu(backend["name"])]
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"doctor did not answer: {error}")
    usable = [backend["name"] for backend in found if backend["usable"]]
    if not usable:
        sys.exit("\n".join(f"{backend['name']}: {backend['reason']}" for backend in found) or "doctor knows no GPU backend")
    print(f"usable: {', '.join(usable)}")
