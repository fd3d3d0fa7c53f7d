"""Beside clients that begin calls and do not end them, the calls of others are answered."""

import asyncio
import contextlib
import socket
import struct
import time

import pytest

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")
grpc = pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'relu-deploy[serve]')")

from hostile_calls import CALL_ATTACKS, HEAD, PREFACE, attack_beside_calls, frame, literal  # noqa: E402
from running import Running, until  # noqa: E402

from relu_deploy.serving.loading import ModelOptions  # noqa: E402
from relu_deploy.serving.models import Models  # noqa: E402
from relu_deploy.serving.protocol import grpc_health  # noqa: E402
from relu_deploy.serving.protocol.grpc_health import HealthService  # noqa: E402
from relu_deploy.serving.protocol.grpc_receiving import MessageReceiver  # noqa: E402
from relu_deploy.serving.protocol.proto import messages  # noqa: E402

HEALTH = "/grpc.health.v1.Health"
INFER, CHECK = b"/inference.GRPCInferenceService/ModelInfer", HEALTH.encode() + b"/Check"


@pytest.fixture(scope="module")
def server(digits_bundle):
    with Running(digits_bundle.path, "--threads", "1", "--grpc-port", "0") as one:
        yield one
        assert one.stop() == 0
        one.errors.seek(0)
        assert "Traceback" not in one.errors.read()


@pytest.mark.parametrize("name", CALL_ATTACKS)
def test_no_call_of_another_client_fails_beside_an_attack(server, name):
    whole = messages().ModelInferRequest(model_name="digits", raw_input_contents=[bytes(784 * 4)])
    whole.inputs.add(name="x", datatype="FP32", shape=[1, 1, 28, 28])
    result = attack_beside_calls(server.reported["grpc"], name, 1.5, whole.SerializeToString())
    assert result["failed"] == {}
    # Much more than the second that is the goal: the tests share the processors.
    assert result["worst_seconds"] < 10


@contextlib.asynccontextmanager
async def health(receiver):
    server = grpc.aio.server(handlers=[HealthService(Models(ModelOptions()), lambda: True, receiver).handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


def run(work):
    return asyncio.run(work())


def open_call(port, path=CHECK):
    """Begin a call on a connection of its own, without its message."""
    one = socket.create_connection(("127.0.0.1", port), timeout=10)
    own = HEAD.replace(literal(b":path", INFER), literal(b":path", path))
    one.sendall(PREFACE + frame(4, 1, 0) + frame(1, 4, 1, own))
    return one


def frames_until_end(one):
    received = b""
    with contextlib.suppress(OSError):
        while b"grpc-status" not in received and (piece := one.recv(2**16)):
            received += piece
    return received


def test_a_message_that_does_not_arrive_in_time_ends_its_call():
    async def work():
        async with health(MessageReceiver(seconds=0.2)) as port:
            with open_call(port) as one:
                received = await asyncio.to_thread(frames_until_end, one)
                assert b"the message did not arrive within 0.2 s" in received
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                assert await channel.unary_unary(f"{HEALTH}/Check")(b"", timeout=10)

    run(work)


def test_of_too_many_calls_without_a_message_the_oldest_is_given_up_and_others_are_answered():
    async def work():
        async with health(MessageReceiver(seconds=60, most=3)) as port:
            with contextlib.ExitStack() as stack:
                ones = []
                for _ in range(5):
                    ones.append(stack.enter_context(open_call(port)))
                    await asyncio.sleep(0.1)
                for one in ones[:2]:
                    assert b"too many calls wait for their messages" in await asyncio.to_thread(frames_until_end, one)
                for one in ones[2:]:
                    one.settimeout(0.1)
                    assert b"grpc-status" not in await asyncio.to_thread(frames_until_end, one)
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    assert await channel.unary_unary(f"{HEALTH}/Check")(b"", timeout=10)

    run(work)


def test_a_call_that_ends_without_a_message_is_refused_in_words():
    async def work():
        async with health(MessageReceiver(seconds=60)) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.stream_unary(f"{HEALTH}/Check")(iter(()), timeout=10)
            assert (refused.value.code().name, refused.value.details()) == ("INVALID_ARGUMENT", "the call has no message")

    run(work)


def test_of_too_many_watches_the_oldest_ends(monkeypatch):
    monkeypatch.setattr(grpc_health, "MOST_WATCHES", 2)

    async def work():
        async with health(MessageReceiver(seconds=60)) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            watches = []
            for _ in range(3):
                watches.append(channel.unary_stream(f"{HEALTH}/Watch")(b"", timeout=30))
                assert await watches[-1].read() is not grpc.aio.EOF
            assert await watches[0].read() is grpc.aio.EOF
            assert not watches[1].done()

    run(work)


def test_a_client_that_leaves_while_it_sends_its_message_is_no_error(server):
    for _ in range(20):
        with open_call(server.reported["grpc"], INFER) as one:
            one.sendall(frame(0, 0, 1, b"\0\0\1\0\0" + b"x" * 100))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    began = time.monotonic()
    until(lambda: server.ask("GET", "/v2/health/ready")[0] == 200)
    assert time.monotonic() - began < 10
