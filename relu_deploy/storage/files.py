"""Writing files so that a crash, a full disk or a second writer never leaves half of one.

A file or folder is written under a temporary name beside its target, flushed to the disk and renamed. The writer holds a lock on the
temporary name, which the kernel releases when the process ends, so the next writer of the same target can tell leftovers of killed
processes from work in progress and removes them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path

from relu_deploy.errors import InputError

__all__ = [
    "atomic_file",
    "descriptor_of",
    "fsync_folder",
    "is_temporary_name",
    "locked_folder",
    "read_regular",
    "reason",
    "sha256",
    "sweep",
    "temporary_prefix",
    "try_lock",
    "write_atomically",
    "write_synced",
]

#: Seconds to wait for another process that writes the same bundle, and for one that reads a FIFO.
LOCK_TIMEOUT, READER_TIMEOUT = 120.0, 10.0
TEMPORARY = re.compile(r"\.relu-deploy-[0-9a-f]{12}-\w{6,10}\.tmp")
#: An open file on Linux, once links to its folder are followed, and links that are followed to it at most.
OPEN_FILE, MOST_LINKS = re.compile(r"/proc/(?P<process>[0-9]+)(?:/task/[0-9]+)?/fd/(?P<number>[0-9]{1,9})"), 40
#: Hint for a place that cannot be written.
CHOOSE = "choose a place that you may write to, with enough free space"


def sha256(file: Path) -> str:
    """Return the sha256 of `file` in hexadecimal.

    Raises:
        InputError: If the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {reason(error)}", "check the path and its permissions") from error


def read_regular(file: Path, limit: int) -> bytes:
    """Return the content of a file.

    Args:
        file: An ordinary file. A FIFO or a device, which may never end, is refused.
        limit: Largest size in bytes.

    Raises:
        InputError: If the file is missing, is not an ordinary file, is too large or cannot be read.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{file} is not an ordinary file", "give the path of a file")
        if status.st_size > limit:
            raise InputError(f"{file} has {status.st_size} bytes, more than {limit}", "give a smaller file")
        with file.open("rb") as stream:
            # A file can grow between the two calls.
            content = stream.read(limit + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {reason(error)}", "check the path and its permissions") from error
    if len(content) > limit:
        raise InputError(f"{file} has more than {limit} bytes", "give a smaller file")
    return content


def write_atomically(target: Path, content: bytes | str, *, follow: bool = True) -> None:
    """Write `content` to `target` so that a reader sees the old file or the new one, never half of either.

    A device, a FIFO or an open file of this process, such as /dev/stdout, is written into.

    Args:
        target: The file.
        content: Its new content.
        follow: Replace the file that a symbolic link points to, else the link: in a folder that somebody else may have made.

    Raises:
        InputError: If the place cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if target.is_symlink() and not follow:
            with atomic_file(target, follow=False) as file:
                file.write(data)
            return
        if (number := descriptor_of(target)) is not None:
            with os.fdopen(os.dup(number), "wb") as stream:
                stream.write(data)
            return
        if (target.exists() or target.is_symlink()) and not target.is_file():
            if target.is_dir():
                raise InputError(f"cannot write {target}: it is a folder", "give the name of a file")
            if not target.exists():
                raise InputError(f"cannot write {target}: it is a link to a file that does not exist", "remove the link")
            _write_into(target, data)
            return
        with atomic_file(target) as file:
            file.write(data)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {target}: {reason(error)}", CHOOSE) from error


@contextlib.contextmanager
def atomic_file(target: Path, *, follow: bool = True) -> Iterator[BufferedRandom]:
    """Yield a file that takes the place of `target` when the block ends without an error; otherwise nothing is left.

    A symbolic link is followed, unless `follow` is false. An ordinary file that is replaced passes its permissions on; those of a
    new one follow the umask.

    Raises:
        OSError: If the place cannot be written.
    """
    place = Path(os.path.realpath(target)) if follow and target.is_symlink() else target
    place.parent.mkdir(parents=True, exist_ok=True)
    sweep(place.parent, temporary_prefix(place.name))
    temporary, handle = _locked_temporary(place)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(handle)
            if place.is_file() and not place.is_symlink() and hasattr(os, "fchmod"):
                os.fchmod(handle, stat.S_IMODE(place.stat().st_mode))
            os.replace(temporary, place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(place.parent)


def _locked_temporary(place: Path) -> tuple[Path, int]:
    """Return a new file beside `place` and a handle that holds its lock."""
    while True:
        temporary = place.with_name(f"{temporary_prefix(place.name)}{secrets.token_hex(4)}.tmp")
        # Not through `tempfile`, whose files only their owner may read, whatever the umask says.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Another process may have swept the file before it was locked.
        if try_lock(handle) and temporary.exists():
            return temporary, handle
        os.close(handle)


def descriptor_of(target: Path) -> int | None:
    """Return the number of the open file of this process that `target` names, such as 1 for /dev/stdout on Linux.

    Where a shell has redirected it to an ordinary file, that file must not be replaced: what was written before would be lost,
    and what is written later would go into the file without a name.

    Returns:
        None for any other file.
    """
    try:
        for _ in range(MOST_LINKS):
            target = Path(os.path.realpath(target.parent)) / target.name
            if named := OPEN_FILE.fullmatch(os.fspath(target)):
                return int(named["number"]) if int(named["process"]) == os.getpid() else None
            if not target.is_symlink():
                return None
            target = target.parent / target.readlink()
    except (OSError, ValueError):
        pass
    return None


def _write_into(target: Path, data: bytes) -> None:
    """Write `data` into a device or a FIFO, which needs a reader."""
    deadline = time.monotonic() + READER_TIMEOUT
    while True:
        try:
            # Without O_NONBLOCK, opening a FIFO that nobody reads never returns.
            handle = os.open(target, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
            break
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)


def write_synced(file: Path, data: bytes) -> None:
    """Write `data` to the new file `file` and flush it to the disk; nothing is left on failure. Raises OSError."""
    try:
        with file.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        file.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the exclusive lock on a folder, waiting for another process that holds it.

    The lock is on the folder itself, so it leaves no file behind and ends with the process.

    Raises:
        InputError: If the folder is missing or the lock is not free after `LOCK_TIMEOUT` seconds.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"cannot open {folder}: {reason(error)}", "check the path and its permissions") from error
        try:
            if try_lock(handle):
                # `export --force` may have put another folder in its place while this process waited.
                if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
                    yield
                    return
            elif time.monotonic() > deadline:
                raise InputError(f"another process is writing {folder}", "try again when it has finished")
            else:
                time.sleep(0.02)
        finally:
            os.close(handle)


def is_temporary_name(name: str) -> bool:
    """Return whether `name` is one that this module gives to unfinished files and folders."""
    return TEMPORARY.fullmatch(name) is not None


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        # Some network file systems cannot flush a folder.
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: Exception) -> str:
    """Return what the system says about `error`, in one line."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def temporary_prefix(name: str) -> str:
    """Return what the temporary names of the target `name` start with."""
    # A digest, so that the temporary name of a long name is not too long.
    return f".relu-deploy-{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}-"


def sweep(parent: Path, prefix: str) -> None:
    """Remove what killed processes left in `parent`: temporary names with `prefix` whose lock is free."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith(prefix) and is_temporary_name(entry.name) and not entry.is_symlink():
                _remove_if_unlocked(entry)


def _remove_if_unlocked(entry: os.DirEntry[str]) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(entry.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            # Without locks nobody can tell whether the writer still runs.
            if not try_lock(handle, without_locks=False):
                return
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink()
        finally:
            os.close(handle)


def try_lock(handle: int, without_locks: bool = True) -> bool:
    """Return whether the exclusive lock on the open file was free; it is held until the file is closed.

    Args:
        handle: The open file or folder.
        without_locks: What to return where the system or its file system has no locks.
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, ImportError):
        return without_locks
    return True
