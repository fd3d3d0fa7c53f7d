"""Listening sockets: bound early, so that a port that is taken is known before minutes are spent, and closed without a reset."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Iterator

from relu_deploy.errors import InputError

__all__ = ["listening", "take_no_more"]

#: Linux: SO_ATTACH_FILTER, and the one classic BPF instruction that drops every packet (asm/socket.h, linux/filter.h)
SO_ATTACH_FILTER, DROP_ALL = 26, struct.pack("HBBI", 0x06, 0, 0, 0)


@contextlib.contextmanager
def listening(host: str, port: int, option: str) -> Iterator[socket.socket]:
    """Yield a bound socket. Raises InputError that names `option` when the port cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(*found[:3])
    except OSError as error:
        raise InputError(f"cannot listen on {host}: {error.strerror}", "give an address of this machine with --host") from error
    with bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(found[4])
        except OSError as error:
            hint = f"choose another port with {option}, 0 for any, or another address with --host"
            raise InputError(f"cannot listen on {host}:{port}: {error.strerror}", hint) from error
        yield bound


def take_no_more(bound: socket.socket) -> None:
    """Let no further connection begin on `bound`. Those that have begun can still be accepted.

    Closing a listening socket resets the connections that wait to be accepted, with the requests that they hold. So
    before it is closed the system drops who knocks; they knock again a second later, and are then refused in one piece.
    Elsewhere than on Linux this does nothing.
    """
    if sys.platform != "linux":
        return
    instruction = ctypes.create_string_buffer(DROP_ALL, len(DROP_ALL))
    with contextlib.suppress(OSError):
        bound.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxP", 1, ctypes.addressof(instruction)))
