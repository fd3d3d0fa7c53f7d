"""A server in a process of its own, as a user starts it, and the plainest of clients."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time

from processes import python


class Running:
    """A started server. .told: what it said when it was ready. forked: see `processes`."""

    def __init__(self, *arguments, forked=True):
        words = [python() if forked else sys.executable, "-m", "relu_deploy", "serve", *map(str, arguments), "--json", "-"]
        for name, port in (("http", "0"), ("grpc", "-1"), ("metrics", "-1")):
            if f"--{name}-port" not in words:
                words += [f"--{name}-port", port]
        # A pipe that nobody reads would fill with log lines, and the server would wait for it.
        self.errors = tempfile.TemporaryFile("w+")  # it is closed with the server  # noqa: SIM115  # it is closed with the server
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        if not lines:
            self.errors.seek(0)
            raise AssertionError(f"the server did not start: {self.errors.read()}")
        self.reported = json.loads("".join(lines))
        self.port = self.reported["http"]

    def connect(self, timeout=30):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method, path, body=None, **headers):
        """Return (status, JSON or bytes, headers) on a connection of its own."""
        connection = self.connect()
        with contextlib.closing(connection):
            return answer_on(connection, method, path, body, **headers)

    def raw(self, sent, timeout=10, half_close=False):
        """Return all bytes that come back for `sent`, until the server closes or nothing comes for `timeout`."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as one:
            one.sendall(sent)
            if half_close:
                one.shutdown(socket.SHUT_WR)
            received = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while piece := one.recv(2**16):
                    received += piece
            return received

    def stop(self, number=signal.SIGTERM, seconds=30):
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.errors.close()


def answer_on(connection, method, path, body=None, **headers):
    if isinstance(body, dict):
        body = json.dumps(body)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    kind = response.getheader("content-type", "")
    return response.status, json.loads(content) if kind == "application/json" else content, dict(response.getheaders())


def hammer(server, path, sent, done, lost):
    """Send one request after the other, on connections that are kept, until no connection is taken any more.

    sent: body and headers. done: gets the status of each answer. lost: what became of a connection instead of one.
    """
    while True:
        connection = server.connect()
        try:
            connection.connect()
        except OSError:
            return
        with contextlib.closing(connection):
            while True:
                try:
                    status, _, reported = answer_on(connection, "POST", path, sent[0], **sent[1])
                except (OSError, http.client.HTTPException) as error:
                    lost.append(repr(error))
                    return
                done.append(status)
                if reported.get("connection") == "close":
                    break


def until(condition, seconds=20):
    """Wait until `condition()` is true. Fails when it does not become so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)
