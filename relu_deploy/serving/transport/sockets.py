"""Listening sockets: bound before the models are loaded, so that a port in use is an early error, and closed without a reset."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator

from relu_deploy.errors import InputError

__all__ = ["descriptor_limit", "is_loopback", "listening", "raise_descriptor_limit", "reserved", "stop_accepting"]

#: more file descriptors than a server needs
MOST_DESCRIPTORS = 2**16
#: Linux: the socket option, and a classic BPF program that drops segments that begin a connection: SYN without ACK, byte 13 of
#: TCP's header (asm/socket.h, linux/filter.h). Segments that end a handshake pass, or its client would send a request in vain.
SO_ATTACH_FILTER = 26
DROP_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the flags
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # only SYN?
        (0x06, 0, 0, 0),  # then drop it
        (0x06, 0, 0, 0xFFFFFFFF),  # else take all of it
    )
)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def listening(host: str, port: int, option: str) -> Iterator[socket.socket]:
    """Yield a bound socket. Raises InputError that names `option` when the port cannot be bound."""
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


@contextlib.contextmanager
def reserved(host: str, port: int, option: str) -> Iterator[int]:
    """Yield the number of a port that no other process has, and that sockets of this process can be bound to with SO_REUSEPORT.

    A process that asks for the port in this way does not get it while such a socket is bound. Other systems than Linux let
    sockets share a port in other ways: there the port is free when this yields.

    Raises:
        InputError: If the port cannot be bound; it names `option`.
    """
    with listening(host, port, option) as bound:
        number = bound.getsockname()[1]
        if sys.platform == "linux":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # not before: it was bound alone
            yield number
            return
    yield number


def stop_accepting(bound: socket.socket) -> None:
    """Let no further connection begin on `bound`. Those that have begun can still be accepted.

    Closing a listening socket resets the connections that wait to be accepted, with the requests that they hold. So the
    system drops new ones first; their clients retry a second later, when the port is closed. Only Linux supports this.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(DROP_SYN, len(DROP_SYN))
    with contextlib.suppress(OSError):
        described = struct.pack("HxxxxxxP", len(DROP_SYN) // 8, ctypes.addressof(program))
        bound.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)


def raise_descriptor_limit() -> None:
    """Let this process open as many files and connections as it may: many systems allow 1024 until a process requests more."""
    try:
        import resource
    except ImportError:
        return
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = MOST_DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < enough:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (enough, most))


def descriptor_limit() -> int:
    """Return how many files and connections this process may open, at most MOST_DESCRIPTORS."""
    try:
        import resource
    except ImportError:
        return MOST_DESCRIPTORS
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, MOST_DESCRIPTORS)
