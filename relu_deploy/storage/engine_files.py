"""Compiled engines and caches in a bundle: loaded only if the manifest lists them with their hashes.

Loading an engine gives its content to a library that trusts it, so one that somebody else put into the folder `engines` of a
bundle is ignored and built again. The manifest lists engines beside the other files of a bundle, because they may be replaced
or removed at any time without harm: opening a bundle does not check them. Engines in the user's cache are the user's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from relu_deploy.errors import InputError
from relu_deploy.storage.bundle_files import complete_interrupted, replace_files
from relu_deploy.storage.files import locked_folder
from relu_deploy.storage.manifest import ENGINES, MANIFEST, file_facts, inside, matches, read_manifest

__all__ = ["is_trusted", "remove_untrusted", "trust"]


def is_trusted(file: Path) -> bool:
    """Return whether `file` may be loaded: it is in no bundle, or the manifest of its bundle lists it with its hash."""
    folder = _bundle_of(file)
    if folder is None:
        return True
    name = file.relative_to(folder).as_posix()
    try:
        facts = read_manifest(folder / MANIFEST).get("engines", {}).get(name)
        return facts is not None and matches(inside(folder, name), facts)
    except (InputError, OSError):
        return False


def trust(files: Sequence[Path]) -> None:
    """List files that this process has written into the folder `engines` of a bundle; files elsewhere need no list.

    Files that are listed and no longer exist are removed from the list.

    Raises:
        InputError: If the manifest cannot be written.
    """
    for folder in {found for file in files if (found := _bundle_of(file)) is not None}:
        with locked_folder(folder):
            manifest = read_manifest(folder / MANIFEST)
            complete_interrupted(folder, manifest)
            ours = [file for file in files if _bundle_of(file) == folder and file.is_file()]
            listed = {name: facts for name, facts in manifest.get("engines", {}).items() if (folder / name).is_file()}
            listed |= {file.relative_to(folder).as_posix(): file_facts(file) for file in ours}
            replace_files(folder, {**manifest, "engines": listed}, {})


def remove_untrusted(folder: Path) -> None:
    """Remove the files of a folder of caches that are not trusted, so that a library that loads all of them finds none."""
    for file in folder.iterdir() if folder.is_dir() else ():
        if not file.name.startswith(".") and not is_trusted(file):
            with contextlib.suppress(OSError):
                file.unlink()


def _bundle_of(file: Path) -> Path | None:
    """Return the bundle in whose folder `engines` the file is, None if it is in none."""
    for folder in file.parents:
        if folder.name == ENGINES and (folder.parent / MANIFEST).is_file():
            return folder.parent
    return None
