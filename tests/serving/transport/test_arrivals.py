"""Who gets a protocol first when many clients connect at once."""

import asyncio
import contextlib
import gc
import socket
import time

import pytest

from relu_deploy.serving.garbage_collection import collect_garbage
from relu_deploy.serving.transport.arrivals import LOOK, PORTION, Arrivals, has_whole_request, network_of

HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("received", "whole"),
    [
        (b"", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (HEAD + b"Content-Length: 3\r\n\r\n[]", False),
        (HEAD + b"content-length:3\r\n\r\n[]]", True),
        (HEAD + b"X: content-length: 9\r\nContent-Length: 2\r\n\r\n[]GET", True),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n", False),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n", True),
    ],
)
def test_a_whole_request_is_one_with_its_body(received, whole):
    assert has_whole_request(memoryview(received)) is whole


@pytest.fixture
def pair():
    """Make connections: the server's end of each, by what its client has sent."""
    with contextlib.ExitStack() as stack:

        def make(sent=b"", close=False):
            ours, client = socket.socketpair()
            for end in (ours, client):
                stack.enter_context(end)
            ours.setblocking(False)
            client.sendall(sent)
            if close:
                client.close()
            return ours

        yield make


def taken(arrivals):
    arrivals.sort(100)
    found = []
    while (one := arrivals.take()) is not None:
        found.append(one)
    assert not len(arrivals)
    return found


def test_whole_requests_are_first_and_the_others_are_not_forgotten(pair):
    arrivals = Arrivals(has_whole_request)
    slow = [pair(HEAD) for _ in range(8)]
    whole = [pair(b"GET / HTTP/1.1\r\n\r\n") for _ in range(2 * PORTION)]
    large = pair(HEAD + b"Content-Length: 99999999\r\n\r\n" + bytes(LOOK))
    for one in (*slow, *whole, large):
        arrivals.add(one, "10.0.0.1")
    order = taken(arrivals)
    assert order.index(whole[0]) < order.index(slow[0])
    assert order.index(large) < order.index(slow[-1])
    # One in so many, and never more than that before the last whole request.
    early = [one for one in order[: order.index(large)] if one in slow]
    assert len(early) == order.index(large) // PORTION
    assert [one for one in order if one in slow] == slow


def test_each_client_address_has_its_turn(pair):
    arrivals = Arrivals(bool)
    many = [pair(b"\x16\x03") for _ in range(50)]
    for one in many:
        arrivals.add(one, "10.0.0.1")
    single = pair(b"\x16\x03")
    arrivals.add(single, "10.0.0.2")
    assert taken(arrivals).index(single) == 1


def test_the_addresses_of_one_ipv6_network_are_one_client():
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1") != network_of("10.0.0.2")
    assert network_of("") == ""


def test_connections_that_have_ended_are_dropped(pair):
    arrivals = Arrivals(has_whole_request)
    ended, silent = pair(close=True), pair()
    for one in (ended, silent):
        arrivals.add(one, "")
    assert taken(arrivals) == [silent]
    assert ended.fileno() == -1


@pytest.mark.parametrize("half_closed", [True, False])
def test_a_client_that_sends_no_more_may_wait_for_a_response_or_not(pair, half_closed):
    arrivals = Arrivals(has_whole_request, half_closed=half_closed)
    ended, silent = pair(b"GET / HTTP/1.1\r\n\r\n", close=True), pair()
    for one in (ended, silent):
        arrivals.add(one, "")
    assert taken(arrivals) == ([ended, silent] if half_closed else [silent])


def test_a_client_that_ends_its_connection_while_it_waits_is_dropped():
    arrivals = Arrivals(bool)
    connections = [socket.socketpair() for _ in range(3)]
    for ours, _ in connections:
        ours.setblocking(False)
        arrivals.add(ours, "")
    arrivals.sort(100)
    for _, client in connections[:2]:
        client.close()
    assert arrivals.take() is connections[2][0]
    assert not len(arrivals)
    assert [ours.fileno() for ours, _ in connections[:2]] == [-1, -1]
    for ends in connections:
        for end in ends:
            end.close()


def test_connections_are_looked_at_when_they_have_settled(pair):
    arrivals = Arrivals(bool, settle_seconds=60)
    assert arrivals.settling() == 0
    arrivals.add(one := pair(b"x"), "")
    arrivals.sort(100)
    assert arrivals.take() is None
    assert 50 < arrivals.settling() <= 60
    arrivals.settle()
    assert arrivals.settling() == 0
    assert taken(arrivals) == [one]


def test_full_collections_wait_until_they_are_due_and_python_s_own_rules_come_back():
    async def run():
        task = asyncio.create_task(collect_garbage())
        await asyncio.sleep(0.01)
        assert gc.get_freeze_count() > 0
        full = gc.get_stats()[2]["collections"]
        kept = [[] for _ in range(300_000)]  # Python would look through all objects several times
        assert gc.get_stats()[2]["collections"] == full
        assert gc.get_count()[2] > before[2]
        end = time.monotonic() + 20
        while gc.get_stats()[2]["collections"] == full and time.monotonic() < end:
            await asyncio.sleep(0.05)
        assert gc.get_stats()[2]["collections"] == full + 1
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return kept

    before = gc.get_threshold()
    frozen = gc.get_freeze_count()
    try:
        asyncio.run(run())
        assert gc.get_threshold() == before
        assert gc.get_freeze_count() == 0
    finally:
        if frozen:
            gc.freeze()
