"""A web page of another origin can neither change nor read anything, by its origin or by a name that resolves to the server."""

import socket

import pytest

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")

from cross_origin import Attempt, attempts, violation
from running import Running


def answer_to(port, attempt):
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.sendall(attempt.to_bytes())
        while piece := one.recv(2**16):
            received += piece
    return received


def test_no_page_of_another_origin_changes_or_reads_anything(digits_bundle):
    with Running(digits_bundle.path, "--threads", "1", "--allow-admin", "--metrics-port", "0") as server:
        tried, gained = 0, []
        for port in (server.port, server.reported["metrics"]):
            for attempt in attempts(f"127.0.0.1:{port}"):
                tried += 1
                if found := violation(attempt, answer_to(port, attempt)):
                    gained.append((attempt, found))
        assert gained == []
        assert tried > 500
        assert server.ask("GET", "/v2/models/digits/ready")[0] == 200


def test_what_a_page_may_not_gain_is_recognized():
    post = Attempt(
        "POST", "/v2/models/digits/infer", (("Host", "localhost"), ("Origin", "https://evil.example")), rebinding=False
    )
    own = b"cross-origin-resource-policy: same-origin\r\n"
    assert "executed" in violation(post, b"HTTP/1.1 200 OK\r\n" + own + b"\r\n{}")
    assert violation(post, b"HTTP/1.1 403 Forbidden\r\n\r\n{}") == ""
    get = Attempt("GET", "/v2", (("Host", "evil.example"),), rebinding=True)
    assert "reads" in violation(get, b"HTTP/1.1 200 OK\r\n" + own + b"\r\n{}")
    embedded = Attempt("GET", "/v2", (("Host", "localhost"),), rebinding=False)
    assert "embedded" in violation(embedded, b"HTTP/1.1 200 OK\r\n\r\n{}")
    assert violation(embedded, b"HTTP/1.1 200 OK\r\n" + own + b"\r\n{}") == ""
    assert "may read" in violation(embedded, b"HTTP/1.1 200 OK\r\naccess-control-allow-origin: *\r\n\r\n{}")
