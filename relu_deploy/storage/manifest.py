"""A bundle's manifest.json: reading, checking and writing it, and the rules for the names in it."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from relu_deploy.errors import InputError
from relu_deploy.storage.files import is_temporary_name, read_regular, reason, sha256, write_atomically
from relu_deploy.storage.json_files import first_fault, parse_json

__all__ = [
    "ENGINES",
    "MANIFEST",
    "MODEL",
    "SCHEMA",
    "SOURCE",
    "VARIANTS",
    "check_file_name",
    "check_variant_name",
    "dump_manifest",
    "file_facts",
    "inside",
    "matches",
    "read_manifest",
    "seal",
    "staged_path",
    "validate",
]

SCHEMA = "relu-deploy/bundle/1"
MANIFEST, MODEL, SOURCE, VARIANTS, ENGINES = "manifest.json", "model.onnx", "source.pt2", "variants", "engines"

#: Largest manifest that is read, in bytes.
MAX_MANIFEST = 64 * 2**20
#: Longest name of a file or folder in a bundle, in bytes of UTF-8: a staged file adds 26 to it, and systems allow 255.
MAX_NAME = 220
VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def read_manifest(file: Path) -> dict[str, Any]:
    """Return the manifest in `file`.

    Raises:
        InputError: If the file is missing or unreadable, is not JSON, breaks the schema, or names files outside the bundle.
    """
    if not os.path.lexists(file):
        raise InputError(f"{file.parent} is not a bundle: it has no {MANIFEST}", "make one with relu-deploy export")
    content = read_regular(file, MAX_MANIFEST)
    try:
        manifest = parse_json(content)
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}", "export the model again") from None
    validate(manifest, file)
    return dict(manifest)


def validate(manifest: Any, file: Path) -> None:
    """Check a manifest against the schema and the rules for names.

    Args:
        manifest: The parsed manifest.
        file: Its path, for the error.

    Raises:
        InputError: Names the field that is wrong.
    """
    if fault := first_fault(manifest, schema()):
        raise InputError(f"{file}: {fault}", "export the model again with this version of relu_deploy")
    steps = manifest.get("preprocess") or {}
    first = manifest["inputs"][0] if manifest["inputs"] else {"dtype": "", "shape": []}
    if "text" in steps and not (first["dtype"] == "uint8" and len(first["shape"]) == 2 and isinstance(first["shape"][1], int)):
        raise InputError(f"{file}: preprocess: a model of texts takes uint8 in rows of one length", "export the model again")
    if "text" not in steps and steps and len(steps["mean"]) != len(steps["std"]):
        raise InputError(f"{file}: preprocess: mean and std have different lengths", "export the model again")
    for name in (*manifest["files"], *manifest.get("engines", ())):
        check_file_name(name, file)
    for name in manifest["variants"]:
        check_variant_name(name, file)


def check_file_name(name: str, file: Path) -> None:
    """Raise InputError, which names the manifest `file`, unless `name` is a plain relative path with forward slashes."""
    parts = name.split("/")
    if (
        any(part in ("", ".", "..") or len(os.fsencode(part)) > MAX_NAME for part in parts)
        or any(ord(character) < 32 or character in "\\:" for character in name)
        or len(name) > 1000
        or name == MANIFEST
    ):
        raise InputError(f"{file}: files: {name[:100]!r} is not the name of a file in the bundle", "export the model again")


def check_variant_name(name: str, file: Path) -> None:
    """Raise InputError, which names the manifest `file`, unless `name` can be the name of a variant."""
    if not VARIANT_NAME.fullmatch(name):
        raise InputError(
            f"{file}: variants: {name[:100]!r} is not a variant's name", "use letters, digits, '.', '_', '+' and '-'"
        )


def dump_manifest(manifest: Mapping[str, Any]) -> str:
    """Return the text of manifest.json."""
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def seal(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write `manifest` into `folder` with the hash of every file there, and return it.

    Raises:
        InputError: If the manifest breaks the schema, or the folder holds a symbolic link or a device.
    """
    files = {}
    for file in sorted(folder.rglob("*")):
        mode = file.lstat().st_mode
        if stat.S_ISDIR(mode) or file == folder / MANIFEST or is_temporary_name(file.name):
            continue
        if not stat.S_ISREG(mode):
            raise InputError(f"{file} is not an ordinary file, so it cannot be part of a bundle", "replace it with a copy")
        files[file.relative_to(folder).as_posix()] = file_facts(file)
    complete = {**manifest, "files": files}
    validate(complete, folder / MANIFEST)
    write_atomically(folder / MANIFEST, dump_manifest(complete), follow=False)
    return complete


def file_facts(file: Path) -> dict[str, Any]:
    """Return what the manifest records of a file: its sha256 and its size in bytes."""
    return {"sha256": sha256(file), "bytes": file.stat().st_size}


def matches(file: Path, facts: Mapping[str, Any]) -> bool:
    """Return whether `file` is an ordinary file with the recorded size and sha256."""
    try:
        status = file.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == facts["bytes"] and sha256(file) == facts["sha256"]


def staged_path(file: Path, digest: str) -> Path:
    """Return where the content of `file` with the sha256 `digest` waits until the manifest that lists it is written."""
    return file.with_name(f".{file.name}.{digest[:16]}.staged")


def inside(folder: Path, name: str) -> Path:
    """Return the path of the file `name` in a bundle's `folder`.

    Raises:
        InputError: If the file, or a folder on the way to it, is a symbolic link that leads out of the bundle.
    """
    file = folder / name
    try:
        resolved = Path(os.path.realpath(file))
        if resolved.is_relative_to(os.path.realpath(folder)):
            return file
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {reason(error)}", "export the model again") from None
    raise InputError(f"{file} leads out of the bundle, to {resolved}", "replace the link with a copy of the file")


@cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema of manifest.json."""
    text = (Path(__file__).parent.parent / "manifest.schema.json").read_text(encoding="utf-8")
    parsed: dict[str, Any] = json.loads(text)
    return parsed
