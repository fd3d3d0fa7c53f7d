"""Two listeners share a port, and either gets the new connections."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from relu_deploy.serving.transport.shared_port import SharedPort

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux chooses by a program: run it there")

HOSTS = [("127.0.0.1", socket.AF_INET), ("::", socket.AF_INET6)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


def listener(stack: ExitStack, host: str, family: socket.AddressFamily, port: int = 0) -> socket.socket:
    one = stack.enter_context(socket.socket(family))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        one.bind((host, port))
    except OSError as error:
        pytest.skip(f"{error}: run it where the machine has IPv6")
    one.listen(200)
    return one


def shared(stack: ExitStack, port: int, each: int = 1) -> SharedPort:
    one = SharedPort(port, each)
    stack.callback(one.close)
    for ours in one.sockets:
        ours.listen(200)
        ours.setblocking(False)
    return one


def connect(stack: ExitStack, port: int, count: int) -> None:
    for _ in range(count):
        stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))


def accepted(stack: ExitStack, listeners: list[socket.socket]) -> list[int]:
    found = []
    for one in listeners:
        found.append(0)
        one.setblocking(False)
        while True:
            try:
                stack.enter_context(one.accept()[0])
            except BlockingIOError:
                break
            found[-1] += 1
    return found


@pytest.mark.parametrize(("host", "family"), HOSTS)
def test_those_that_are_chosen_get_all_new_connections_and_no_other_is_lost(
    stack: ExitStack, host: str, family: socket.AddressFamily
) -> None:
    theirs = listener(stack, host, family)
    port = theirs.getsockname()[1]
    one = shared(stack, port)
    connect(stack, port, 20)
    assert one.waiting() == 20
    one.choose(ours=True)
    connect(stack, port, 20)
    assert one.waiting() == 20
    assert accepted(stack, one.sockets) == [20]
    one.choose(ours=False)
    connect(stack, port, 20)
    assert accepted(stack, [*one.sockets, theirs]) == [0, 40]


def test_several_sockets_get_a_share_each(stack: ExitStack) -> None:
    port = listener(stack, *HOSTS[0]).getsockname()[1]
    one = shared(stack, port, 3)
    one.choose(ours=True)
    connect(stack, port, 90)
    shares = accepted(stack, one.sockets)
    assert sum(shares) == 90
    # One without a connection has a chance of (2/3)^90 each.
    assert all(shares)


def test_each_address_of_a_name_has_its_own(stack: ExitStack) -> None:
    first = listener(stack, *HOSTS[0])
    port = first.getsockname()[1]
    listener(stack, "127.0.0.2", socket.AF_INET, port)
    one = shared(stack, port)
    one.choose(ours=True)
    assert {each.getsockname()[0] for each in one.sockets} == {"127.0.0.1", "127.0.0.2"}
    for host in ("127.0.0.1", "127.0.0.2"):
        stack.enter_context(socket.create_connection((host, port), timeout=5))
    assert accepted(stack, one.sockets) == [1, 1]


def test_a_port_on_which_nobody_listens_and_one_that_is_not_shared_are_errors_that_leave_nothing_open(stack: ExitStack) -> None:
    bound = stack.enter_context(socket.socket())
    bound.bind(("127.0.0.1", 0))
    alone = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for one, reason in ((bound, "no socket of this process listens on port"), (alone, "Invalid argument")):
        with pytest.raises(OSError, match=reason):
            SharedPort(one.getsockname()[1])
    assert len(list(Path("/proc/self/fd").iterdir())) == before
