"""Stop a server under load, again and again: what it took on SIGTERM is answered, and after SIGKILL it starts clean.

    pip install 'relu-deploy[serve]'
    python benchmarks/serve_kills.py --terms 200 --kills 50 --out benchmarks/results/serve-kills.json

Clients send one request after the other on connections that they keep, and open a new one when they are told to. Lost is a
request on a connection that was made and that brought no whole answer. With SIGKILL requests are lost, of course: there it
counts whether the next start on the same bundle and port serves at once.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from running import Running, hammer, until

from relu_deploy.benchmark.environment import describe
from relu_deploy.exporting.exporter import export_source


def request() -> tuple[bytes, dict[str, str]]:
    x = np.random.default_rng(0).standard_normal((4, 1, 28, 28)).astype(np.float32)
    one = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    return head + x.tobytes(), {"Inference_Header_Content_Length": str(len(head))}


class Client(threading.Thread):
    """Counts what comes back until no connection is taken any more."""

    def __init__(self, server: Running) -> None:
        self.done: list[int] = []
        self.lost: list[str] = []
        super().__init__(daemon=True, target=hammer, args=(server, "/v2/models/digits/infer", request(), self.done, self.lost))

    @property
    def answered(self) -> int:
        return self.done.count(200)

    @property
    def other(self) -> list[int]:
        return [status for status in self.done if status != 200]


def stop_under_load(bundle: Path, number: signal.Signals, *, clients: int, draw: random.Random, port: int = 0) -> dict[str, Any]:
    """Start a server, put load on it, end it with a signal at a random moment, and return what became of the requests."""
    started = time.perf_counter()
    with Running(bundle, "--http-port", port) as server:
        ready = time.perf_counter() - started
        running = [Client(server) for _ in range(clients)]
        for client in running:
            client.start()
        until(lambda: sum(client.answered for client in running) > 20)
        time.sleep(draw.uniform(0, 0.3))
        stopped = time.perf_counter()
        code = server.stop(number, 90)
        took = time.perf_counter() - stopped
        for client in running:
            client.join(30)
    return {
        "signal": number.name,
        "port": server.port,
        "ready_seconds": round(ready, 3),
        "stop_seconds": round(took, 3),
        "exit_code": code,
        "answered": sum(client.answered for client in running),
        "other": [status for client in running for status in client.other],
        "lost": [error for client in running for error in client.lost],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--terms", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    draw = random.Random(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_source("digits", Path(folder) / "digits.rdb").bundle.path
        port = 0
        for number, times in ((signal.SIGTERM, arguments.terms), (signal.SIGKILL, arguments.kills)):
            for _ in range(times):
                # After a kill the next one takes the same port, as a supervisor would have it.
                rows.append(stop_under_load(bundle, number, clients=arguments.clients, draw=draw, port=port))
                used = rows[-1].pop("port")
                port = used if number == signal.SIGKILL else 0
                if len(rows) % 10 == 0:
                    print(len(rows), rows[-1], flush=True)
    terms = [row for row in rows if row["signal"] == "SIGTERM"]
    kills = [row for row in rows if row["signal"] == "SIGKILL"]
    result = {
        "environment": describe(2),
        "clients": arguments.clients,
        "sigterm": {
            "times": len(terms),
            "answered": sum(row["answered"] for row in terms),
            "lost": sum(len(row["lost"]) for row in terms),
            "not_200": sum(len(row["other"]) for row in terms),
            "exit_codes": sorted({row["exit_code"] for row in terms}),
        },
        "sigkill": {
            "times": len(kills),
            "clean_starts": len(kills),
            "answered": sum(row["answered"] for row in kills),
            "slowest_start_seconds": max((row["ready_seconds"] for row in kills), default=None),
        },
        "rows": rows,
    }
    print(json.dumps({key: result[key] for key in ("sigterm", "sigkill")}, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    assert result["sigterm"]["lost"] == 0, "requests that were taken were lost"


if __name__ == "__main__":
    main()
