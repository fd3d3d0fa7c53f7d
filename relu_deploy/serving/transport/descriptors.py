"""The file descriptors of this process: sockets that a library holds and does not show."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["borrowed_socket", "count_descriptors", "descriptors"]

FOLDER = Path("/proc/self/fd")


def descriptors() -> list[int]:
    """Return the file descriptors of this process, on Linux. Raises OSError if none is left to read them with."""
    return [int(entry.name) for entry in FOLDER.iterdir()]


def count_descriptors() -> int:
    """Return how many file descriptors are open; Linux 6.2 and later know without a search. Raises OSError as `descriptors` does."""
    return FOLDER.stat().st_size or len(descriptors())


def borrowed_socket(number: int) -> socket.socket:
    """Return a socket for a duplicate of a file descriptor. Raises OSError if it is not that of a socket."""
    copy = os.dup(number)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
