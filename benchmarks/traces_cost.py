"""What traces cost: requests a second of `relu-deploy serve` without them, and with different shares of the requests traced.

    python benchmarks/traces_cost.py --out benchmarks/results/traces_cost.json [--rounds 40] [--seconds 0.7]

As `monitor_cost` does it: one server for each share, all started before anything is timed; rounds of about a second that go
from one to the next in random order; each server's requests a second divided by those of the one without traces in the same
round. The spans go to a collector in a process of its own on the same processors, which reads them and keeps nothing: what a
real one does with them is not in these numbers. A round begins when it has nothing left to read, for which the servers send every
half second and not, as they do otherwise, every five.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from monitor_cost import CONNECTIONS, end, in_turns, ratio_of, request_for, started

from relu_deploy.benchmark.environment import describe
from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import load_dataset
from relu_deploy.exporting.exporter import export_source

SHARES = ("off", "0.01", "0.1", "1")
COLLECTOR = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

spans = 0

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body=b""):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(str(spans).encode())

    def do_POST(self):
        global spans
        got = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        spans += sum(len(scope.spans) for group in got.resource_spans for scope in group.scope_spans)
        self.answer()

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def traced(
    bundle: Bundle, share: str, collector: str, folder: Path, threads: int
) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """Return a server that traces `share` of its requests, and where it listens."""
    words = ["--log-json", "--log-level", "warning", "--monitor-share", 0]
    if share != "off":
        words += ["--traces", collector, "--trace-share", share]
    environment = {**os.environ, "OTEL_BSP_SCHEDULE_DELAY": "500"}
    with (folder / f"{share}.log").open("wb") as log:
        return started(bundle, folder / f"{share}.json", threads, *words, stderr=log, env=environment)


def spans_at(collector: str) -> int:
    with urllib.request.urlopen(collector) as answer:
        return int(answer.read())


def settle(collector: str) -> None:
    """Return when no spans come any more: else they would come while another server is timed."""
    before = None
    while (now := spans_at(collector)) != before:
        before = now
        time.sleep(0.6)


def lost_by(log: Path) -> int:
    """Return how many spans a server says it lost."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return sum(line["spans"] for line in lines if line["event"] == "traces were lost")


def measured(arguments: argparse.Namespace, collector: str, folder: Path) -> dict[str, Any]:
    bundle = export_source("digits", folder / "digits.rdb").bundle
    pixels = load_dataset(bundle, "digits").feeds["x"]
    requests = [request_for(bundle, row[None]) for row in pixels[:128]]
    servers = {share: traced(bundle, share, collector, folder, arguments.threads) for share in SHARES}
    try:
        rows = in_turns(servers, requests, arguments, before=lambda _: settle(collector))
    finally:
        end(servers)
    shares = {
        share: {"ratio": ratio_of(each, rows["off"]), "lost_spans": lost_by(folder / f"{share}.log"), "rounds": each}
        for share, each in rows.items()
    }
    return {
        "environment": describe(arguments.threads),
        "connections": CONNECTIONS,
        "spans_received": spans_at(collector),
        "shares": shares,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    taker = subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True)
    assert taker.stdout is not None
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = measured(arguments, f"http://127.0.0.1:{taker.stdout.readline().strip()}", Path(folder))
    finally:
        taker.terminate()
        taker.wait(10)
    print(json.dumps({share: {**row["ratio"], "lost": row["lost_spans"]} for share, row in result["shares"].items()}, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
