"""The folder of a package: it records its files, and is replaced only when it holds no other file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relu_deploy.bundle import MANIFEST, SOURCE, Bundle, seal, sha256
from relu_deploy.errors import InputError
from relu_deploy.graph import read_model
from relu_deploy.storage.bundle_files import external_locations
from relu_deploy.storage.files import read_regular
from relu_deploy.storage.json_files import parse_json

__all__ = ["RECORD", "copy_bundle", "copy_graph", "record_files", "refuse_target", "write_text"]

SCHEMA = "relu-deploy/package-note/1"
#: the record of the files in the folder. kubectl applies no file with this ending, and Triton takes only folders for models.
RECORD = ".relu-deploy-package"
#: bytes of the largest record
MAX_RECORD = 2**26
#: written by Python where a server imported model.py
PYTHON_CACHE = "__pycache__"


def refuse_target(target: Path, force: bool) -> None:
    """Refuse a target that must not be replaced.

    Args:
        target: The folder to write.
        force: Allow a package that holds only files that `package` wrote.

    Raises:
        InputError: If `target` exists and must not be replaced.
    """
    if not target.exists() and not target.is_symlink():
        return
    other = "choose another name with -o"
    if not target.is_dir():
        raise InputError(f"{target} exists and is not a folder", other)
    present = {
        file.relative_to(target).as_posix()
        for file in target.rglob("*")
        if PYTHON_CACHE not in file.parts and (file.is_symlink() or not file.is_dir())
    }
    recorded = _recorded_files(target)
    if recorded is None and (present or any(target.iterdir())):
        raise InputError(f"{target} is a folder that relu-deploy package did not write, and will not be replaced", other)
    if foreign := sorted(present - set(recorded or ()) - {RECORD}):
        raise InputError(
            f"{target} also holds {foreign[0]}, which relu-deploy package did not write, and will not be replaced", other
        )
    if not force:
        raise InputError(f"{target} already exists", "choose another name, or replace it with --force")


def _recorded_files(target: Path) -> Mapping[str, str] | None:
    """Return the SHA-256 of each file in the record of `target`, None without a valid record."""
    try:
        record = parse_json(read_regular(target / RECORD, MAX_RECORD))
    except (InputError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or not isinstance(record.get("files"), dict):
        return None
    return dict(record["files"])


def record_files(folder: Path, **facts: Any) -> tuple[Path, ...]:
    """Write the record of all files in `folder` with their SHA-256.

    Args:
        folder: The package.
        **facts: Further fields of the record.

    Returns:
        The files and the record, relative to `folder`.
    """
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    record = {"schema": SCHEMA, **facts, "files": {file.as_posix(): sha256(folder / file) for file in files}}
    write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return (*files, Path(RECORD))


def write_text(file: Path, text: str) -> None:
    """Write `text` in UTF-8, into a folder that is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def copy_graph(graph: Path, target: Path) -> None:
    """Copy a graph, and its external weights to the same place beside the copy.

    Args:
        graph: An ONNX file.
        target: The file to write.

    Raises:
        InputError: If a file of external weights is missing, or lies outside the folder of `graph`.
    """
    read_model(graph)  # raises where the weights are not what the graph says
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(graph, target)
    for location in external_locations(graph):
        beside = (target.parent / location).resolve()
        if not beside.is_relative_to(target.parent.resolve()) or beside == target.resolve():
            raise InputError(
                f"{graph} keeps weights in {location}, outside its folder", "save it with its weights in the same folder"
            )
        if not (graph.parent / location).is_file():
            raise InputError(f"{graph.parent / location}, which holds weights of {graph.name}, is missing", "restore it")
        beside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(graph.parent / location, beside)


def copy_bundle(bundle: Bundle, folder: Path) -> Path:
    """Copy a bundle without its PyTorch program, which serving does not need, or a plain graph.

    Args:
        bundle: The model; a variant is copied with its bundle.
        folder: Where the copy goes.

    Returns:
        The path in `folder` that `serve` opens.
    """
    if not bundle.is_folder:
        copy_graph(bundle.onnx, folder / bundle.path.name)
        return folder / bundle.path.name
    target = folder / f"{bundle.path.name.removesuffix('.rdb')}.rdb"
    seal(target, bundle.copy_files(target, without=(SOURCE, MANIFEST)))
    return target / bundle.onnx.relative_to(bundle.path) if bundle.variant else target
