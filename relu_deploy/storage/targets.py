"""Where results go: what may be written at a path is checked before any work is done, and again when it is written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from relu_deploy.errors import InputError
from relu_deploy.storage.files import CHOOSE, descriptor_of, reason, write_atomically

__all__ = ["check_folder_above", "check_target", "refuse_bundle_file", "refuse_existing_file", "write_result"]

#: folders above a file that may be its bundle, and bytes of the largest manifest that is looked into
MOST_PARENTS, MOST_MANIFEST = 4, 2**26
#: what may be no more than this long is quoted whole in an error
MAX_QUOTED = 200


def write_result(target: Path, content: bytes | str) -> None:
    """Write a result to `target`, unless that is a file of a bundle. See `write_atomically`.

    Raises:
        InputError: If it is one, or the place cannot be written.
    """
    # Again: the command may have made the bundle.
    refuse_bundle_file(target)
    write_atomically(target, content)


def check_target(target: Path) -> None:
    """Check that `write_result` could write a file at `target`; nothing is written.

    Raises:
        InputError: If it could not: a folder is there, a file is where a folder is needed, or a permission is missing.
    """
    try:
        if descriptor_of(target) is not None:
            return
        place = Path(os.path.realpath(target))
        try:
            mode = place.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            if target.is_symlink():
                raise InputError(
                    f"cannot write {target}: it is a link to a file that does not exist", "remove the link"
                ) from None
            check_folder_above(target)
            return
        if stat.S_ISDIR(mode):
            raise InputError(f"cannot write {target}: it is a folder", "give the name of a file")
        if stat.S_ISREG(mode):
            check_folder_above(place)
        elif not _may(place, os.W_OK):
            raise InputError(f"cannot write {target}: there is no permission to", CHOOSE)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {str(target)[:MAX_QUOTED]}: {reason(error)}", CHOOSE) from error
    refuse_bundle_file(target)


def check_folder_above(target: Path) -> None:
    """Check that a file or folder could be made at `target`, with the folders above it that are missing.

    Raises:
        InputError: If it could not.
    """
    folder = Path(os.path.realpath(target)).parent
    while True:
        try:
            mode = folder.stat().st_mode
            break
        except (FileNotFoundError, NotADirectoryError):
            folder = folder.parent
        except (OSError, ValueError) as error:
            raise InputError(f"cannot write {str(target)[:MAX_QUOTED]}: {reason(error)}", CHOOSE) from error
    if not stat.S_ISDIR(mode):
        raise InputError(f"cannot write {target}: {folder} is not a folder", CHOOSE)
    if not _may(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {target}: there is no permission to write in {folder}", CHOOSE)


def _may(place: Path, mode: int) -> bool:
    # The rights of the effective user, with which files are written.
    return os.access(place, mode, effective_ids=os.access in os.supports_effective_ids)


def refuse_bundle_file(target: Path) -> None:
    """Raise InputError if `target` is a file of a bundle: whatever else is written into it breaks the bundle."""
    try:
        place = Path(os.path.realpath(target))
        listed = place.is_file() and any(_lists(folder, place) for folder in list(place.parents)[:MOST_PARENTS])
    except (OSError, ValueError):
        return
    if listed:
        raise InputError(f"{target} is a file of a bundle, and would break it", "choose another name")


def _lists(folder: Path, file: Path) -> bool:
    """Return whether `folder` is a bundle whose manifest lists `file`, or is it."""
    manifest = folder / "manifest.json"
    if not manifest.is_file() or manifest.stat().st_size > MOST_MANIFEST:
        return False
    content = manifest.read_bytes()
    # The schema's name and the file's, as the manifest is written: enough to keep somebody from a mistake.
    name = json.dumps(file.relative_to(folder).as_posix(), ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b'"relu-deploy/bundle/' in content and (file == manifest or name in content)


def refuse_existing_file(target: Path, force: bool) -> None:
    """Raise InputError if the file `target` exists and `force` is false, or if it is a file of a bundle.

    Devices and FIFOs, and open files of this process such as /dev/stdout, are written into, so they may exist.
    """
    refuse_bundle_file(target)
    if (target.is_file() or target.is_dir()) and not force and descriptor_of(target) is None:
        raise InputError(f"{target} already exists", "choose another name, or replace it with --force")
