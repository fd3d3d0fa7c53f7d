"""Listening sockets beside one that a library has, and whether they or the library's get new connections.

Linux gives each connection to one of the sockets that share a port with SO_REUSEPORT, and a classic BPF program says to which
(socket(7)). The choice can change at any time, and loses nothing: connections that wait to be accepted stay where they are.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

from relu_deploy.serving.transport.descriptors import borrowed_socket, descriptors

__all__ = ["SharedPort"]

#: Linux: the socket option (asm/socket.h)
SO_ATTACH_REUSEPORT_CBPF = 51
#: instructions of BPF (linux/filter.h): load a random number, take its remainder, add a constant to it, return it
RANDOM, REMAINDER, ADD, RETURN = (0x20, 0xFFFFF000 + 56), 0x94, 0x04, 0x16
#: of struct tcp_info (linux/tcp.h): its size until the connections that wait to be accepted, and their place, where a socket listens
INFO_SIZE, WAITING_AT = 28, 24


class SharedPort:
    """Sockets that share a port of this process with those that already listen there.

    Attributes:
        sockets: Bound. They get connections from when all of them listen, and `choose` has been called.
    """

    def __init__(self, port: int, each: int = 1) -> None:
        """Bind the sockets.

        Args:
            port: Where sockets of this process listen that were bound with SO_REUSEPORT.
            each: How many are bound for each of those. The system keeps a queue for each.

        Raises:
            OSError: If the system cannot do that.
        """
        self._each = each
        with ExitStack() as stack:
            self._theirs = [stack.enter_context(listener) for listener in _listeners(port)]
            # Until the others listen nothing changes.
            self.choose(ours=False)
            self.sockets = [stack.enter_context(_twin(listener)) for listener in self._theirs for _ in range(each)]
            self._close = stack.pop_all().close

    def choose(self, ours: bool) -> None:
        """Give new connections to `sockets`, or else to those that listened before."""
        # The program returns a place among the sockets of an address, in the order in which they began to listen.
        code, place = RANDOM
        program = [(code, place), (REMAINDER, self._each if ours else 1), (ADD, int(ours)), (RETURN, 0)]
        written = b"".join(struct.pack("HBBI", code, 0, 0, value) for code, value in program)
        held = ctypes.create_string_buffer(written, len(written))
        described = struct.pack("HxxxxxxP", len(program), ctypes.addressof(held))
        for listener in self._theirs:
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, described)

    def waiting(self) -> int:
        """Return how many connections wait to be accepted by those that listened before."""
        infos = [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_SIZE) for each in self._theirs]
        return sum(struct.unpack_from("<I", info, WAITING_AT)[0] for info in infos)

    def close(self) -> None:
        """Close `sockets`, and give up the file descriptors of the others."""
        self._close()


def _listeners(port: int) -> Iterator[socket.socket]:
    """Yield the sockets that listen on a port. Raises OSError if there is none."""
    found: set[int] = set()
    for number in descriptors():
        try:
            one = borrowed_socket(number)
        except OSError:  # another file, or closed meanwhile
            continue
        # The number of a descriptor that was closed may be that of an earlier duplicate.
        inode = os.fstat(one.fileno()).st_ino
        if _listens(one, port) and inode not in found:
            found.add(inode)
            yield one
        else:
            one.close()
    if not found:
        raise OSError(f"no socket of this process listens on port {port}")


def _listens(one: socket.socket, port: int) -> bool:
    if one.family not in (socket.AF_INET, socket.AF_INET6) or one.getsockname()[1] != port:
        return False
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _twin(listener: socket.socket) -> socket.socket:
    """Return another socket that is bound to the address of a listener."""
    twin = socket.socket(listener.family, socket.SOCK_STREAM)
    try:
        if listener.family == socket.AF_INET6:
            only = listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            twin.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        twin.bind(listener.getsockname())
    except OSError:
        twin.close()
        raise
    return twin
