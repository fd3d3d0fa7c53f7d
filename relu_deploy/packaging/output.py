"""The folder that a package is: written whole or not at all, and replaced only where everything in it was written by us."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relu_deploy.bundle import MANIFEST, SOURCE, Bundle, seal, sha256
from relu_deploy.errors import InputError
from relu_deploy.graph import load_model

__all__ = ["NOTE", "copy_bundle", "copy_graph", "note_files", "refuse_target", "write_text"]

SCHEMA = "relu-deploy/package-note/1"
#: what is in the folder and what for. Its name ends in nothing that kubectl would apply, and Triton takes folders for models only.
NOTE = ".relu-deploy-package"
#: what Python leaves where a server imported our model.py
LEFT_BY_OTHERS = "__pycache__"


def refuse_target(target: Path, force: bool) -> None:
    """Raise InputError unless `target` is not there, or is a package that may be replaced with nothing of anybody else's in it."""
    if not target.exists() and not target.is_symlink():
        return
    other = "choose another name with -o"
    if not target.is_dir():
        raise InputError(f"{target} is there and not a folder", other)
    present = {
        file.relative_to(target).as_posix()
        for file in target.rglob("*")
        if LEFT_BY_OTHERS not in file.parts and not file.is_dir()
    }
    ours = _noted(target)
    if ours is None and (present or any(target.iterdir())):
        raise InputError(f"{target} is a folder that relu-deploy package did not write, and will not be replaced", other)
    if foreign := sorted(present - set(ours or ()) - {NOTE}):
        raise InputError(
            f"{target} also holds {foreign[0]}, which relu-deploy package did not write: it will not be replaced", other
        )
    if not force:
        raise InputError(f"{target} already exists", "choose another name, or replace it with --force")


def _noted(target: Path) -> Mapping[str, str] | None:
    """Return the files that the note in `target` names, None when there is no note."""
    try:
        note = json.loads((target / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note["files"] if isinstance(note, dict) and note.get("schema") == SCHEMA else None


def note_files(folder: Path, **facts: Any) -> tuple[Path, ...]:
    """Return all files in `folder`, relative to it, which are noted there with their sha256 beside `facts`."""
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    note = {"schema": SCHEMA, **facts, "files": {file.as_posix(): sha256(folder / file) for file in files}}
    write_text(folder / NOTE, json.dumps(note, indent=2, ensure_ascii=False) + "\n")
    return (*files, Path(NOTE))


def write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def copy_graph(graph: Path, target: Path) -> None:
    """Copy the graph to the file `target`, and what holds its weights to where the copy looks for it.

    Raises InputError when that would be outside the folder of `target`, or lies there no more.
    """
    import onnx_ir as ir

    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(graph, target)
    values = [value.const_value for value in load_model(graph).graph.initializers.values()]
    for location in sorted({str(value.location) for value in values if isinstance(value, ir.ExternalTensor)}):
        beside = (target.parent / location).resolve()
        if not beside.is_relative_to(target.parent.resolve()) or beside == target.resolve():
            raise InputError(f"{graph} keeps weights in {location}, outside its folder", "save it with its weights beside it")
        if not (graph.parent / location).is_file():
            raise InputError(f"{graph.parent / location}, which holds weights of {graph.name}, is missing", "restore it")
        beside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(graph.parent / location, beside)


def copy_bundle(bundle: Bundle, folder: Path) -> Path:
    """Return where in `folder` lies what `serve` opens: the bundle without its PyTorch program, which serving needs not, or the graph.

    A variant comes in its bundle.
    """
    if not bundle.is_folder:
        copy_graph(bundle.onnx, folder / bundle.path.name)
        return folder / bundle.path.name
    target = folder / f"{bundle.path.name.removesuffix('.rdb')}.rdb"
    bundle.copy_files(target, without=(SOURCE, MANIFEST))
    seal(target, bundle.manifest)
    return target / bundle.onnx.relative_to(bundle.path) if bundle.variant else target
