"""The files of a bundle: checked against the manifest, and replaced so that a crash leaves the old bundle or the new one."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import InputError, ReluDeployError
from relu_deploy.storage.files import CHOOSE, fsync_folder, is_temporary_name, reason, try_lock, write_atomically, write_synced
from relu_deploy.storage.manifest import MANIFEST, dump_manifest, inside, matches, read_manifest, staged_path, validate

if TYPE_CHECKING:
    import onnx

__all__ = ["check_file", "complete_interrupted", "complete_unlocked", "external_locations", "replace_files"]


def check_file(folder: Path, manifest: Mapping[str, Any], name: str) -> list[str]:
    """Check one file of a bundle against the manifest.

    Returns:
        Names of the other files of the bundle that it refers to: the external weights of a graph.

    Raises:
        InputError: If the file is missing, is a link out of the bundle, has another sha256, or refers out of the bundle.
    """
    file = inside(folder, name)
    if not file.is_file():
        raise InputError(f"{file} is named in {MANIFEST} but missing", "export the model again")
    real = Path(os.path.realpath(file))
    if not matches(real, manifest["files"][name]):
        raise InputError(
            f"{file} is not the file that {MANIFEST} was written for (its sha256 differs)",
            "restore the file, or export the model again with --force",
        )
    if not name.endswith(".onnx"):
        return []
    try:
        return [os.path.normpath(Path(name).parent / each) for each in external_locations(real)]
    except OSError as error:
        raise InputError(f"cannot read {file}: {reason(error)}", "check the path and its permissions") from error


def replace_files(folder: Path, manifest: Mapping[str, Any], contents: Mapping[str, bytes]) -> dict[str, Any]:
    """Write files and then the manifest into a bundle. The caller holds the folder's lock.

    Args:
        folder: The bundle.
        manifest: The new manifest, without the hashes of the new files.
        contents: Content by the file's path inside the bundle.

    Returns:
        The manifest as it was written.

    Raises:
        InputError: If a name is not one of a file inside the bundle, or the bundle cannot be written; it is unchanged then.
    """
    facts: dict[str, dict[str, Any]] = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in contents.items()
    }
    complete = {**manifest, "files": {**manifest["files"], **facts}}
    validate(complete, folder / MANIFEST)
    text = dump_manifest(complete)
    staged: list[Path] = []
    try:
        for name, data in contents.items():
            target = inside(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.append(staged_path(target, facts[name]["sha256"]))
            write_synced(staged[-1], data)
            fsync_folder(target.parent)
        write_atomically(folder / MANIFEST, text, follow=False)
        complete_interrupted(folder, complete)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {reason(error)}", CHOOSE) from error
    finally:
        # Once the manifest is in place, a staged file that is still there is the content it lists.
        with contextlib.suppress(OSError):
            if (folder / MANIFEST).read_text(encoding="utf-8") != text:
                for file in staged:
                    file.unlink(missing_ok=True)
    return complete


def complete_interrupted(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Move staged files that `manifest` lists to their places and remove other leftovers. The caller holds the folder's lock.

    Raises:
        InputError: If the bundle cannot be written.
    """
    listed = {staged_path(folder / name, facts["sha256"]): (folder / name, facts) for name, facts in manifest["files"].items()}
    try:
        for place, _, names in os.walk(folder):
            for name in names:
                file = Path(place) / name
                if file in listed and matches(file, listed[file][1]):
                    os.replace(file, listed[file][0])
                    fsync_folder(file.parent)
                elif is_temporary_name(name) or _is_staged(name):
                    file.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"writing {folder} was interrupted, and it cannot be completed: {reason(error)}",
            "open it once as a user who may write to it, with enough free space",
        ) from error


def complete_unlocked(folder: Path) -> None:
    """Do what `complete_interrupted` does, unless `folder` is no bundle, is whole or is being written by another process."""
    if not any(is_temporary_name(name) or _is_staged(name) for _, _, names in os.walk(folder) for name in names):
        return
    with contextlib.suppress(OSError, ReluDeployError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            if try_lock(handle, without_locks=False):
                complete_interrupted(folder, read_manifest(folder / MANIFEST))
        finally:
            os.close(handle)


def _is_staged(name: str) -> bool:
    return name.startswith(".") and name.endswith(".staged")


def external_locations(file: Path) -> list[str]:
    """Return the paths, relative to the graph's folder, of the files that hold weights of the graph in `file`."""
    with file.open("rb") as stream:
        if not file.stat().st_size:
            return []
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # Every reference to such a file has this key; a graph without it need not be parsed.
            if content.find(b"location") < 0:
                return []
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(file, load_external_data=False)
    except DecodeError:
        return []  # refused when it is loaded
    graphs = [model.graph, *model.functions]
    return sorted({entry.value for tensor in _tensors(graphs) for entry in tensor.external_data if entry.key == "location"})


def _tensors(graphs: list[onnx.GraphProto | onnx.FunctionProto]) -> Iterator[onnx.TensorProto]:
    """Yield every tensor stored in the graphs, in their nodes' attributes and in nested graphs."""
    while graphs:
        graph = graphs.pop()
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                graphs += [each for each in (attribute.g, *attribute.graphs) if each.node or each.initializer]
