"""The end of a listening socket: nobody new gets in, and who has begun is not turned out."""

import socket
import sys
import time

import pytest

from relu_deploy.errors import InputError
from relu_deploy.serving.transport.sockets import listening, reserved, stop_accepting


@pytest.mark.skipif(sys.platform != "linux", reason="a listening socket drops connections only on Linux: run it there")
def test_who_had_begun_is_taken_and_who_comes_later_is_not():
    with listening("127.0.0.1", 0, "--http-port") as bound:
        bound.listen(8)
        bound.settimeout(2)
        with socket.create_connection(bound.getsockname()) as early:
            stop_accepting(bound)
            early.sendall(b"a request")
            with pytest.raises(TimeoutError):
                socket.create_connection(bound.getsockname(), timeout=0.3)
            taken, _ = bound.accept()
            with taken:
                taken.settimeout(2)
                assert taken.recv(100) == b"a request"
                taken.sendall(b"its answer")
                early.sendall(b"another")
                assert taken.recv(100) == b"another"
                early.settimeout(2)
                assert early.recv(100) == b"its answer"
            started = time.monotonic()
            bound.settimeout(0.1)
            with pytest.raises(TimeoutError):
                bound.accept()
            assert time.monotonic() - started < 2


def test_a_port_that_is_taken_is_named_with_its_option():
    with listening("127.0.0.1", 0, "--http-port") as bound:
        bound.listen()
        with (
            pytest.raises(InputError, match=str(bound.getsockname()[1])) as refused,
            listening("127.0.0.1", bound.getsockname()[1], "--grpc-port"),
        ):
            pass
        assert "--grpc-port" in refused.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the port is only tried: run it on Linux")
def test_sockets_of_this_process_can_share_a_reserved_port_and_no_other_process_gets_it():
    with reserved("127.0.0.1", 0, "--grpc-port") as port, socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", port))
        ours.listen()
        with pytest.raises(InputError, match=str(port)), reserved("127.0.0.1", port, "--grpc-port"):
            pass
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", port))
        ours.listen()
        with pytest.raises(InputError, match=str(port)), reserved("127.0.0.1", port, "--grpc-port"):
            pass
