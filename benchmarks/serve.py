"""Load on a server: closed loop, open loop and beyond what it can take, beside the bare session and a real Triton.

    pip install 'relu-deploy[serve]'
    python benchmarks/serve.py --out benchmarks/results/serve.json [--triton VENV] [--models digits,resnet50]

Closed loop: C clients that each wait for their answer. Open loop: requests are due at random moments (Poisson) whatever the
server does, and latency counts from when a request was due, so that a server that stalls cannot hide it (Tene's coordinated
omission). All answers are binary tensors over HTTP; the client is one process for every server. What is compared takes
turns in one run. Triton (--triton, what benchmarks/triton_venv.sh prepares) runs the same ONNX file on ONNX
Runtime in its Python backend, as `relu-deploy package --for triton --flavor python` writes it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from running import Running
from triton_server import Triton

from relu_deploy.benchmark.environment import describe
from relu_deploy.bundle import Bundle
from relu_deploy.exporting.exporter import export_source
from relu_deploy.tensors import random_feeds

ROUNDS = 5
#: of the open-loop client: more than a server's queue holds
CONNECTIONS = 400


# ---------------------------------------------------------------- the client, a process of its own


class Connection:
    """One kept HTTP/1.1 connection; as little client as can be."""

    def __init__(self, port: int, sent: bytes) -> None:
        self._port, self._sent, self._reader, self._writer = port, sent, None, None

    async def ask(self) -> int:
        """Return the status of one more request, 0 when the connection broke."""
        try:
            if self._writer is None:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**22)
            self._writer.write(self._sent)
            head = await self._reader.readuntil(b"\r\n\r\n")
            lower = head.lower()
            at = lower.index(b"\r\ncontent-length:") + 17
            await self._reader.readexactly(int(lower[at : lower.index(b"\r", at)]))
            if b"connection: close" in lower:
                self.close()
            return int(head[9:12])
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.close()
            return 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def closed(port: int, sent: bytes, clients: int, seconds: float) -> dict:
    latencies, statuses, end = [], Counter(), time.perf_counter() + seconds

    async def one() -> None:
        connection = Connection(port, sent)
        while (start := time.perf_counter()) < end:
            status = await connection.ask()
            statuses[status] += 1
            if status == 200:
                latencies.append(time.perf_counter() - start)
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return reported(latencies, statuses, time.perf_counter() - started)


async def opened(port: int, sent: bytes, rate: float, seconds: float, seed: int) -> dict:
    """Send at random moments, each on whichever of the connections is free; a request that finds none waits, and counts from when it was due."""
    draw = random.Random(seed)
    latencies, behind, statuses = [], [], Counter()
    due = started = time.perf_counter() + 0.05

    async def one() -> None:
        nonlocal due
        connection = Connection(port, sent)
        while (mine := due) < started + seconds:
            due += draw.expovariate(rate)
            if (wait := mine - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            behind.append(time.perf_counter() - mine)
            status = await connection.ask()
            statuses[status] += 1
            if status == 200:
                latencies.append(time.perf_counter() - mine)
        connection.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    took = time.perf_counter() - started
    late = {"client_behind_p99_ms": round(float(np.percentile(behind, 99)) * 1e3, 2)}
    return {**reported(latencies, statuses, took), "offered_per_second": round(sum(statuses.values()) / took, 1), **late}


def reported(latencies: list[float], statuses: Counter, seconds: float) -> dict:
    ms = np.array(latencies or [np.nan]) * 1e3
    return {
        "answered_per_second": round(len(latencies) / seconds, 2),
        "p50_ms": round(float(np.percentile(ms, 50)), 3),
        "p99_ms": round(float(np.percentile(ms, 99)), 3),
        "mean_ms": round(float(ms.mean()), 3),
        "answered": len(latencies),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "seconds": round(seconds, 2),
    }


def client(arguments: list[str]) -> None:
    import uvloop

    kind, port, file, amount, seconds, seed = arguments
    sent = Path(file).read_bytes()
    run = {"closed": lambda: closed(int(port), sent, int(amount), float(seconds))}
    run["open"] = lambda: opened(int(port), sent, float(amount), float(seconds), int(seed))
    print(json.dumps(uvloop.run(run[kind]())))


# ---------------------------------------------------------------- the servers


def request(model: str, port: int, feeds: dict[str, np.ndarray]) -> bytes:
    inputs = [
        {"name": name, "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
        for name, x in feeds.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(x.tobytes() for x in feeds.values())
    lines = [
        f"POST /v2/models/{model}/infer HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Inference-Header-Content-Length: {len(head)}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def load(kind: str, port: int, file: Path, amount: float, seconds: float, seed: int = 0) -> dict:
    words = [sys.executable, __file__, "--client", kind, str(port), str(file), str(amount), str(seconds), str(seed)]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def in_process(session, feeds, seconds: float) -> dict:
    latencies, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        session.run(feeds)
        latencies.append(time.perf_counter() - start)
    return reported(latencies, Counter({200: len(latencies)}), seconds)


def middle(rows: list[dict]) -> dict:
    """Return the medians of the rounds, with their spread."""
    keys = ("answered_per_second", "p50_ms", "p99_ms")
    merged = {key: round(float(np.median([row[key] for row in rows])), 3) for key in keys}
    return {**merged, "rounds": rows}


def measure(
    name: str, bundle: Bundle, levels: list[int], seconds: float, threads: int, triton: Path | None, folder: Path
) -> dict:
    feeds = random_feeds(bundle.inputs, 1)
    found: dict = {"model": name, "closed": {}, "overload": []}
    servers = {"relu_deploy": Running(bundle.path, "--threads", threads)}
    if triton is not None:
        repository = folder / f"{name}-triton"
        words = [sys.executable, "-m", "relu_deploy", "package", str(bundle.path), "--for", "triton", "--flavor", "python"]
        subprocess.run([*words, "-o", str(repository)], check=True, capture_output=True)
        servers["triton"] = Triton(triton, repository, folder / f"{name}-triton.log")
    files = {}
    for server, one in servers.items():
        files[server] = folder / f"{name}-{server}.request"
        files[server].write_bytes(request(name, one.port, feeds))
    session = bundle.session("onnxruntime-cpu", threads=threads)
    try:
        for server, one in servers.items():
            load("closed", one.port, files[server], 8, 1.0)
        in_process(session, feeds, 1.0)
        for level in levels:
            rows: dict[str, list[dict]] = {server: [] for server in (*servers, "in_process")}
            for _ in range(ROUNDS):
                if level == 1:
                    rows["in_process"].append(in_process(session, feeds, seconds / ROUNDS))
                for server, one in servers.items():
                    rows[server].append(load("closed", one.port, files[server], level, seconds / ROUNDS))
            found["closed"][str(level)] = {server: middle(each) for server, each in rows.items() if each}
            print(
                name,
                "closed",
                level,
                {s: {k: v for k, v in r.items() if k != "rounds"} for s, r in found["closed"][str(level)].items()},
                flush=True,
            )
        ours = servers["relu_deploy"]
        peak = max(level["relu_deploy"]["answered_per_second"] for level in found["closed"].values())
        for share in (0.5, 0.8, 1.0, 1.5, 2.0, 3.0):
            row = load("open", ours.port, files["relu_deploy"], share * peak, seconds, seed=int(share * 10))
            found["overload"].append(
                {
                    "share_of_peak": share,
                    "asked_per_second": round(share * peak, 1),
                    **row,
                    "goodput": round(row["answered_per_second"] / peak, 3),
                }
            )
            print(name, "open", found["overload"][-1], flush=True)
        found["peak_per_second"] = peak
    finally:
        for one in servers.values():
            one.__exit__()
    return found


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="digits,resnet50")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--triton", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models.split(","):
            bundle = export_source(name, Path(folder) / f"{name}.rdb").bundle
            levels = [1, 8, 32] if name.startswith("digit") else [1, 8]
            found.append(measure(name, bundle, levels, arguments.seconds, arguments.threads, arguments.triton, Path(folder)))
    result = {"environment": describe(arguments.threads), "seconds": arguments.seconds, "models": found}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
