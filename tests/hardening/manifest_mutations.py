"""Bundles with a corrupt or hostile manifest, with links and devices in place of files, and with files that nothing lists."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

from model_mutations import TEXTS, hostile_model

__all__ = ["hostile_bundle", "mutate", "reseal"]

NAMES = (
    "../outside.onnx",
    "/etc/passwd",
    "reports/../../outside.onnx",
    "a\0b",
    "x" * 5000,
    "x" * 300,
    ".",
    "",
    "manifest.json",
    "model.onnx/x",
    "C:\\x",
    "\ud800",
    "variants/v.onnx",
    "reports/norm.npz",
    "reports/baseline.npz",
    "engines/e.engine",
    ".relu-deploy-0123456789ab-abcdefgh.tmp",
    "nul\n",
)
SCALARS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    10**30,
    1e308,
    1.5,
    "",
    "x",
    "zzz",
    [],
    {},
    [0],
    [[1]],
    {"x": {}},
    "float32",
    "sequence",
    "../../outside",
    "\x1b[2J\x1b]0;t\x07",
    *TEXTS,
)


def reseal(bundle: Path) -> None:
    """Write the hashes of the files that are there into the manifest: it is the bundle's author who is hostile."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in manifest["files"]:
        if (bundle / name).is_file():
            manifest["files"][name] = facts_of(bundle / name)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def facts_of(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def hostile_bundle(bundle: Path, draw: random.Random, outside: Path, seed: int) -> str:
    """Change the valid `bundle` and return what was done. outside: a folder that it may refer to."""
    change = draw.choice((_mutated_tree, _mutated_tree, _mutated_tree, _mutated_text, _names, _variants, _links, _model, _nested))
    return change(bundle, draw, outside, seed)


def _write(bundle: Path, manifest: Any) -> None:
    (bundle / "manifest.json").write_bytes(json.dumps(manifest).encode("utf-8", "surrogatepass"))


def _mutated_tree(bundle: Path, draw: random.Random, _: Path, __: int) -> str:
    manifest = json.loads((bundle / "manifest.json").read_text())
    for _turn in range(draw.choice((1, 1, 2, 4))):
        mutate(manifest, draw)
    _write(bundle, manifest)
    return "fields changed"


def mutate(tree: Any, draw: random.Random) -> None:
    """Change, add or remove one value in nested lists and objects, in place."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    if not keys or draw.random() < 0.1:
        if isinstance(tree, dict):
            tree[draw.choice(("preprocess", "labels", "postprocess", "batch_axis", "x", *NAMES))] = deepcopy(draw.choice(SCALARS))
        else:
            tree.append(deepcopy(draw.choice(SCALARS)))
        return
    key = draw.choice(keys)
    if isinstance(tree[key], dict | list) and draw.random() < 0.7:
        mutate(tree[key], draw)
    elif isinstance(tree, dict) and draw.random() < 0.3:
        del tree[key]
    else:
        tree[key] = deepcopy(draw.choice(SCALARS))


def _mutated_text(bundle: Path, draw: random.Random, _: Path, __: int) -> str:
    content = bytearray((bundle / "manifest.json").read_bytes())
    for _turn in range(draw.choice((1, 2, 10))):
        content[draw.randrange(len(content))] = draw.randrange(256)
    if draw.random() < 0.2:
        del content[draw.randrange(len(content)) :]
    (bundle / "manifest.json").write_bytes(bytes(content))
    return "bytes changed"


def _names(bundle: Path, draw: random.Random, outside: Path, _: int) -> str:
    """List files under names that are not names of files in the bundle."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    shutil.copyfile(bundle / "model.onnx", outside / "outside.onnx")
    for _turn in range(draw.randrange(1, 4)):
        manifest["files"][draw.choice(NAMES)] = facts_of(bundle / "model.onnx")
    if draw.random() < 0.2:
        manifest["files"] = {}
    _write(bundle, manifest)
    return "names of files"


def _variants(bundle: Path, draw: random.Random, outside: Path, _: int) -> str:
    manifest = json.loads((bundle / "manifest.json").read_text())
    shutil.copyfile(bundle / "model.onnx", outside / "outside.onnx")
    (bundle / "variants").mkdir(exist_ok=True)
    shutil.copyfile(bundle / "model.onnx", bundle / "variants" / "v.onnx")
    against = draw.choice(("model.onnx", "../outside.onnx", "/etc/passwd", "nosuch", "", None, 3))
    fields = {"precision": draw.choice(("int8", "fp32", "", 3, "zzz")), "target": draw.choice(("cpu", "zzz", None))}
    manifest["variants"][draw.choice(("v", "../../outside", "", "a\0b", "x" * 300))] = {**fields, "checked_against": against}
    if draw.random() < 0.5:
        manifest["files"]["variants/v.onnx"] = facts_of(bundle / "variants" / "v.onnx")
    _write(bundle, manifest)
    return "variants"


def _links(bundle: Path, draw: random.Random, outside: Path, _: int) -> str:
    """Put links, devices, FIFOs and folders where files and folders are."""
    victim = outside / "victim"
    victim.mkdir(exist_ok=True)
    shutil.copyfile(bundle / "model.onnx", victim / "model.onnx")
    name = draw.choice(("model.onnx", "manifest.json", "reports", "variants", "engines", "extra"))
    place = bundle / name
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    kind = draw.choice(("link", "link", "device", "fifo", "folder", "dangling", "itself"))
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        within = victim if name in ("reports", "variants", "engines") else victim / "model.onnx"
        targets = {"link": within, "device": Path("/dev/zero"), "dangling": victim / "nosuch", "itself": place}
        place.symlink_to(targets[kind])
    if name == "extra":
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["files"]["extra"] = facts_of(victim / "model.onnx")
        _write(bundle, manifest)
    return f"{name} is a {kind}"


def _model(bundle: Path, draw: random.Random, _: Path, seed: int) -> str:
    """Replace the model by a hostile one, with its right hash."""
    label, content = hostile_model(seed)
    (bundle / "model.onnx").write_bytes(content)
    reseal(bundle)
    return f"model: {label}"


def _nested(bundle: Path, draw: random.Random, _: Path, __: int) -> str:
    text = (bundle / "manifest.json").read_text()
    content = draw.choice(
        (
            "[" * 100_000,
            '{"a":' * 50_000,
            text.replace('"opset": 20', '"opset": ' + "9" * 5000),
            text + text,
            "",
            "null",
            "\ufeff" + text,
            text.encode("utf-16").decode("latin-1"),
            text[:-2] + ',"x":' + '"' + "y" * 2**20 + '"}',
            text.replace('"name"', '"name": "x", "name"', 1),
            '{"schema": "relu-deploy/bundle/1"}',
        )
    )
    (bundle / "manifest.json").write_text(content, encoding="utf-8")
    return "text of the manifest"
