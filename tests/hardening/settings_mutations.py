"""JSON files that a user hands to a command, corrupt or hostile: settings of a preprocessing, sensitivity lists, earlier benchmarks."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from manifest_mutations import mutate

__all__ = ["SETTINGS", "hostile_settings"]

PREPROCESS = {
    "preset": "opencv",
    "color": "rgb",
    "scale": 0.00392,
    "mean": [0.1],
    "std": [0.3],
    "resize": {"mode": "stretch", "size": [8, 8], "interpolation": "nearest"},
    "crop": {"size": [8, 8], "offset": "floor"},
}
ROW = {
    "model": "tiny",
    "backend": "onnxruntime-cpu",
    "variant": "",
    "batch": 1,
    "latency_ms": {"mean": 0.01, "p50": 0.01, "ci95": [0.009, 0.011]},
}
BENCH = {
    "schema": "relu-deploy/bench/1",
    "environment": {"cpu": {"model": "a CPU", "usable_cpus": 2}, "threads": 1, "gpus": [{"name": "a GPU"}]},
    "runs": [ROW, {**ROW, "batch": 8, "latency_ms": None}],
}
#: kinds of files, by the name of the option that takes them
SETTINGS = ("preprocess", "compare", "sensitivity")
#: documents that are no object at all, or more than a reader can take
DOCUMENTS = (
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"{}",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\0}\0",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"1" * 5000,
    b"NaN",
    b'{"preset": NaN, "schema": Infinity}',
    b'{"preset": ["opencv"]}',
    b'{"preset": "opencv", "resize": 8}',
    b'{"preset": "caffe", "resize": {"interpolation": "nearest"}, "crop": null}',
    b'{"schema": "relu-deploy/bench/1", "runs": [[]], "environment": []}',
    b'{"a": 1, "a": 2}',
    b'{"\\ud800": "\\udfff"}',
    b"{" + b" " * 2**21 + b"}",
)
NUMBERS = (0, -1, 10**400, -(10**400), 1e308, True, "1", None, [], {})


def hostile_settings(folder: Path, draw: random.Random, graph: Path) -> tuple[str, str, Path]:
    """Write a file and return what was done, which of `SETTINGS` it is, and the file. graph: The model's file."""
    kind, file = draw.choice(SETTINGS), folder / "settings.json"
    if draw.random() < 0.2:
        file.write_bytes(draw.choice(DOCUMENTS))
        return "another document", kind, file
    tree: Any = json.loads(json.dumps({"preprocess": PREPROCESS, "compare": BENCH}.get(kind) or _sensitivity(graph)))
    for _ in range(draw.choice((1, 1, 2, 4))):
        mutate(tree, draw) if draw.random() < 0.6 else _renumber(tree, draw)
    content = json.dumps(tree).encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        content = content[: draw.randrange(len(content))]
    file.write_bytes(content)
    return "fields changed", kind, file


def _sensitivity(graph: Path) -> dict[str, Any]:
    segments = [{"segment": name, "relative_error": error} for name, error in (("relu", 0.1), ("last", None))]
    digest = hashlib.sha256(graph.read_bytes()).hexdigest()
    return {
        "schema": "relu-deploy/sensitivity/1",
        "model_sha256": digest,
        "target": "cpu",
        "precision": "int8",
        "segments": segments,
    }


def _renumber(tree: Any, draw: random.Random) -> None:
    """Replace one number in `tree`, at any depth."""
    places = []
    waiting = [tree]
    while waiting:
        current = waiting.pop()
        keys = current if isinstance(current, dict) else range(len(current))
        for key in keys:
            if isinstance(current[key], dict | list):
                waiting.append(current[key])
            elif not isinstance(current[key], str):
                places.append((current, key))
    if places:
        holder, key = draw.choice(places)
        holder[key] = draw.choice(NUMBERS)
