"""Hostile clients against a served model, for `hardening.py`: requests, attacks, pages of other origins, and stops under load."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from certificates import certificate as certificate_of
from cross_origin import attempts, violation
from hostile_calls import CALL_ATTACKS, attack_beside_calls
from hostile_clients import ATTACKS, TLS_ATTACKS, attack_beside_a_client
from pictures import encoded, gradient
from request_cases import GRPC_ALLOWED, grpc_request, http_request
from running import Running
from serve_kills import stop_under_load

from relu_deploy.serving.protocol.proto import messages

#: attacks that are tried on a server with TLS
OVER_TLS = (
    *TLS_ATTACKS,
    *("slow headers", "slow body", "5,000 slow bodies", "large bodies", "idle connections", "resets", "valid requests"),
    *("connections that are closed at once", "connections that are reset at once", "connections with one call"),
)

__all__ = ["origins", "requests", "stops", "waits"]

#: requests of one result, and those at the start whose memory is not counted as growth
BLOCK, WARM_UP = 1000, 2000
#: status codes of HTTP that mean an error of the server
SERVER_ERRORS = (500, 501, 502)


def _memory_mib(server: Running) -> float:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def _log(server: Running) -> str:
    server.errors.flush()
    server.errors.seek(0)
    return server.errors.read()


def exchange(port: int, sent: bytes, seconds: float = 30.0) -> bytes:
    """Return all bytes that come back for a request after which the client sends no more."""
    received = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=seconds) as one:
        one.sendall(sent)
        one.shutdown(socket.SHUT_WR)
        while piece := one.recv(2**16):
            received += piece
    return received


def requests(bundle: Path, count: int, seed: str) -> Iterator[dict[str, Any]]:
    """Send `count` requests, every fifth over gRPC, and yield the counts of each block of them."""
    draw = random.Random(f"requests {seed}")
    pictures = [encoded(gradient(40, 30), "PNG"), encoded(gradient(40, 30), "JPEG")]
    whole = messages().ModelInferRequest(model_name="digits", raw_input_contents=[bytes(784 * 4)])
    whole.inputs.add(name="x", datatype="FP32", shape=[1, 1, 28, 28])
    message = whole.SerializeToString()
    with Running(bundle, "--threads", "1", "--allow-admin", "--grpc-port", "0", forked=False) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.reported['grpc']}") as channel:
            base = 0.0
            for at in range(0, count, BLOCK):
                result: dict[str, Any] = {"first": at, "requests": min(BLOCK, count - at), "statuses": {}, "faults": []}
                for number in range(at, at + result["requests"]):
                    if number % 5 == 4:
                        codes: list[str] = [_over_grpc(channel, draw, message, result)]
                    else:
                        codes = _over_http(server.port, http_request(draw, pictures), result)
                    for code in codes:
                        result["statuses"][code] = result["statuses"].get(code, 0) + 1
                if server.process.poll() is not None:
                    result["faults"].append(f"death: {server.process.returncode}")
                    yield result
                    return
                result["memory_mib"] = round(_memory_mib(server), 1)
                base = result["memory_mib"] if at <= WARM_UP else base
                result["growth_mib"] = round(result["memory_mib"] - base, 1)
                yield result
        ready = server.ask("GET", "/v2/health/ready")[0]
        code, log = server.stop(seconds=90), _log(server)
        end: dict[str, Any] = {"requests": 0, "log_bytes": len(log), "tracebacks": log.count("Traceback"), "faults": []}
        if (ready, code) != (200, 0):
            end["faults"].append(f"ready {ready}, exit code {code}")
        if end["tracebacks"]:
            end["faults"].append("traceback in the log: " + log[log.find("Traceback") :][:1500])
        yield end


def _over_http(port: int, sent: bytes, result: dict[str, Any]) -> list[str]:
    found = re.findall(rb"^HTTP/1\.1 ([2-5]\d\d) ", exchange(port, sent), re.MULTILINE)
    for status in map(int, found):
        if status in SERVER_ERRORS:
            result["faults"].append(f"{status}: {sent[:300].decode('latin-1')!r}")
    return [status.decode() for status in found] or ["closed"]


def _over_grpc(channel: grpc.Channel, draw: random.Random, message: bytes, result: dict[str, Any]) -> str:
    call, garbled = grpc_request(draw, message)
    code = channel.unary_unary(f"/inference.GRPCInferenceService/{call}").future(garbled, timeout=30).code().name
    if code not in GRPC_ALLOWED:
        result["faults"].append(f"gRPC {code}: {call} {garbled[:80]!r}")
    return f"gRPC {code}"


def waits(bundle: Path, seconds: float, seed: int, only: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield, for no attack and for each attack, how long a good client's requests took beside it, and the server's memory.

    The attacks on TLS, and those that it may make worse, are on a server with TLS.
    """
    plain = [name for name in only or (*ATTACKS, *CALL_ATTACKS) if name in {*ATTACKS, *CALL_ATTACKS}]
    if plain:
        with Running(bundle, "--threads", "1", "--grpc-port", "0", forked=False) as server:
            yield from _waits(server, seconds, seed, ["nothing", *plain])
    over_tls = [name for name in OVER_TLS if only is None or name in only or f"{name} (TLS)" in only]
    if over_tls:
        with TemporaryDirectory() as folder:
            certificate, key = certificate_of(Path(folder))
            options = ("--threads", "1", "--grpc-port", "0", "--tls-cert", certificate, "--tls-key", key)
            with Running(bundle, *options, forked=False) as server:
                yield from _waits(server, seconds, seed, ["nothing", *over_tls], certificate.read_bytes())


def _waits(
    server: Running, seconds: float, seed: int, attacks: list[str], authority: bytes | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the results of some attacks. authority: that of a server with TLS, in PEM."""
    whole = messages().ModelInferRequest(model_name="digits", raw_input_contents=[bytes(784 * 4)])
    whole.inputs.add(name="x", datatype="FP32", shape=[1, 1, 28, 28])
    for name in attacks:
        result: dict[str, Any] = {"attack": name if authority is None else f"{name} (TLS)", "faults": []}
        if name in CALL_ATTACKS:
            port = server.reported["grpc"]
            calls = attack_beside_calls(port, name, seconds, whole.SerializeToString(), authority=authority)
            result |= {**calls, "failed": sum(calls["failed"].values()), "codes": calls["failed"]}
        else:
            result |= attack_beside_a_client(server.port, name, seconds, seed=seed, encrypted=authority is not None)
        if server.process.poll() is not None:
            result["faults"].append(f"death: {server.process.returncode}")
            yield result
            return
        time.sleep(1)
        result["memory_mib"] = round(_memory_mib(server), 1)
        if result["failed"]:
            result["faults"].append(f"{result['failed']} of {result['requests']} requests failed")
        yield result


def origins(bundle: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Make every attempt of a page of another origin against servers of several configurations; yield what it gained."""
    keys = folder / "keys"
    keys.write_text("infer,admin a-key-for-the-benchmark\n")
    for options in ((), ("--allow-admin",), ("--allow-admin", "--api-key-file", keys), ("--cors-origin", "https://app.example")):
        with Running(bundle, "--threads", "1", "--metrics-port", "0", *options) as server:
            for port in (server.port, server.reported["metrics"]):
                # Behind --cors-origin, answers to other pages may be embedded by the pages of that origin.
                gained, tried = [], 0
                for attempt in attempts(f"127.0.0.1:{port}"):
                    tried += 1
                    found = violation(attempt, exchange(port, attempt.to_bytes()))
                    if found and not ("--cors-origin" in options and "embedded" in found):
                        gained.append(f"{attempt.method} {attempt.path} {attempt.headers}: {found}")
                if server.ask("GET", "/v2/models/digits/ready")[0] != 200:
                    gained.append("the model is not ready any more")
                yield {"options": [str(each) for each in options[:1]], "port": port, "attempts": tried, "faults": gained}


def stops(bundle: Path, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Stop a server under load with SIGTERM, again and again; yield the requests that were answered and lost."""
    draw = random.Random(seed)
    for _ in range(count):
        result = stop_under_load(bundle, signal.SIGTERM, clients=8, draw=draw)
        faults = [f"lost: {error}" for error in result["lost"]] + [f"status {status}" for status in result["other"]]
        yield {**result, "faults": faults + ([f"exit code {result['exit_code']}"] if result["exit_code"] else [])}
