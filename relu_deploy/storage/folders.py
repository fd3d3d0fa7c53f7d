"""Folders that are made whole or not at all, and temporary folders that a killed process leaves to the next one to remove."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from relu_deploy.errors import InputError
from relu_deploy.storage.files import CHOOSE, fsync_folder, locked_folder, reason, sweep, temporary_prefix, try_lock

__all__ = ["sweep_temporary_folders", "temporary_folder", "whole_folder"]


@contextlib.contextmanager
def whole_folder(target: Path, *, force: bool = True) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` when the block ends without an error; otherwise nothing is left.

    Args:
        target: The folder to write. An existing one stays whole until it is exchanged for the new one in one step, which gets its
            permissions; those of a new one follow the umask. A symbolic link is followed.
        force: Replace an existing `target`.

    Raises:
        InputError: If the folder cannot be written, or `target` exists and `force` is false.
    """
    try:
        target = Path(os.path.realpath(target)) if target.is_symlink() else target
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent, temporary_prefix(target.name))
        folder, lock = _locked_temporary(target.parent, temporary_prefix(target.name), _new_folder)
        if target.is_dir():
            folder.chmod(stat.S_IMODE(target.stat().st_mode) | stat.S_IRWXU)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {target}: {reason(error)}", "choose a folder that you may write to with -o") from error
    try:
        try:
            yield folder
            _fsync_tree(folder)
            _move_folder(folder, target, force)
        except OSError as error:
            raise InputError(f"cannot write {target}: {reason(error)}", CHOOSE) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _move_folder(folder: Path, target: Path, force: bool) -> None:
    """Rename `folder` to `target`. What was there is left at `folder`, which the caller removes."""
    if not target.exists():
        folder.rename(target)
    elif not force:
        raise InputError(f"{target} already exists", "choose another name, or replace it with --force")
    else:
        with locked_folder(target) if target.is_dir() else contextlib.nullcontext():
            _exchange(folder, target)
    fsync_folder(target.parent)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders in one step where the system can; else with two renames, the first taken back if the second fails."""
    if _renameat2_exchange(one, other):
        return
    aside = Path(tempfile.mkdtemp(prefix=temporary_prefix(other.name), suffix=".tmp", dir=other.parent)) / "old"
    os.replace(other, aside)
    try:
        os.replace(one, other)
    except BaseException:
        os.replace(aside, other)
        raise
    shutil.rmtree(aside.parent, ignore_errors=True)


def _renameat2_exchange(one: Path, other: Path) -> bool:
    import ctypes

    at_current_folder, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return renameat2(at_current_folder, os.fsencode(one), at_current_folder, os.fsencode(other), exchange) == 0


@contextlib.contextmanager
def temporary_folder(purpose: str = "work") -> Iterator[Path]:
    """Yield a folder in the system's temporary folder, removed afterwards; those of killed processes are removed first.

    Raises:
        InputError: If there is no usable temporary folder.
    """
    try:
        sweep_temporary_folders()
        folder, lock = _locked_temporary(Path(tempfile.gettempdir()), _temporary_prefix(), _private_folder)
    except OSError as error:
        raise InputError(
            f"cannot make a temporary folder: {reason(error)}", "set TMPDIR to a folder that you may write to"
        ) from error
    try:
        inner = folder / purpose
        inner.mkdir()
        yield inner
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep_temporary_folders() -> None:
    """Remove the folders that killed processes of this user left in the system's temporary folder."""
    sweep(Path(tempfile.gettempdir()), _temporary_prefix())


def _temporary_prefix() -> str:
    return temporary_prefix(f"temporary {os.getuid() if hasattr(os, 'getuid') else ''}")


def _fsync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(place) / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_folder(Path(place))


def _locked_temporary(parent: Path, prefix: str, create: Callable[[Path, str], Path]) -> tuple[Path, int]:
    """Return a new folder in `parent` and a handle that holds its lock."""
    while True:
        folder = create(parent, prefix)
        # Another process may sweep the folder at any moment before it is locked.
        try:
            # The umask may leave a folder that not even its owner can open.
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IRWXU)
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if try_lock(handle) and folder.exists():
            return folder, handle
        os.close(handle)


def _private_folder(parent: Path, prefix: str) -> Path:
    """Return a new folder that only this user may read."""
    return Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=parent))


def _new_folder(parent: Path, prefix: str) -> Path:
    """Return a new folder with the permissions that the umask leaves."""
    folder = parent / f"{prefix}{secrets.token_hex(4)}.tmp"
    folder.mkdir()
    return folder
