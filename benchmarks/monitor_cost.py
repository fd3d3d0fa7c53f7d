"""What the Relu monitor costs: requests a second of `relu-deploy serve` with different shares of the rows looked at.

    python benchmarks/monitor_cost.py --model digits --out benchmarks/results/monitor_cost.json [--rounds 40] [--seconds 0.7]

One server for each share, all started before anything is timed. Rounds of about a second go from one to the next in random
order, each after the monitor of the one before has nothing left to do. Each share's requests a second are divided by those of
share 0 in the same round: what else the machine does hits them alike. A closed loop of eight connections, binary bodies of
one row, in a process of its own on the same processors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from relu_deploy.activations.census import census
from relu_deploy.benchmark.environment import describe
from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import load_dataset
from relu_deploy.exporting.exporter import export_source

SHARES = (0.0, 0.01, 0.1, 1.0)
CONNECTIONS = 8


def request_for(bundle: Bundle, rows: np.ndarray) -> bytes:
    """Return an inference request with the tensor in binary and the answer asked for in binary."""
    spec = bundle.inputs[0]
    tensor = {"name": spec.name, "shape": list(rows.shape), "datatype": "FP32", "parameters": {"binary_data_size": rows.nbytes}}
    reported = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head = (
        f"POST /v2/models/{bundle.name}/infer HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n"
        f"inference-header-content-length: {len(reported)}\r\ncontent-length: {len(reported) + rows.nbytes}\r\n\r\n"
    )
    return head.encode() + reported + rows.tobytes()


async def client(port: int, requests: list[bytes], until: float) -> list[float]:
    """Return the seconds of every answer until the moment `until`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    took, at = [], 0
    while (started := time.perf_counter()) < until:
        writer.write(requests[at % len(requests)])
        at += 1
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"not answered: {head[:200]!r}")
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1]))
        took.append(time.perf_counter() - started)
    writer.close()
    return took


async def load_of(port: int, requests: list[bytes], seconds: float) -> dict:
    until = time.perf_counter() + seconds
    parts = [requests[index::CONNECTIONS] for index in range(CONNECTIONS)]
    took = np.concatenate(await asyncio.gather(*(client(port, part, until) for part in parts)))
    return {
        "per_second": len(took) / seconds,
        "p50_ms": float(np.median(took) * 1e3),
        "p99_ms": float(np.quantile(took, 0.99) * 1e3),
    }


def state_of(port: int, name: str) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{name}/monitor") as answer:
        return json.load(answer)


def settle(port: int, name: str, share: float) -> None:
    """Return when the monitor has looked at all that it took: else it would do so while another server is timed."""
    before = None
    while share and (now := state_of(port, name)["samples"]) != before:
        before = now
        time.sleep(0.3)


def interval(ratios: list[float]) -> list[float]:
    """Return the bootstrap's 95% interval of the median, over rounds."""
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    return np.quantile(np.median(drawn, axis=1), (0.025, 0.975)).tolist()


def started(bundle: Bundle, file: Path, threads: int, *words: Any, **given: Any) -> tuple[subprocess.Popen, dict]:
    """Return a server and where it listens. file: that it says so in. words: further options. given: of `subprocess.Popen`."""
    silent = ("--grpc-port", -1, "--metrics-port", -1, "--quiet")
    options = ("--http-port", 0, *silent, "--threads", threads, "--json", file, *words)
    command = [sys.executable, "-m", "relu_deploy", "serve", *map(str, (bundle.path, *options))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **given)
    while not file.exists():
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        time.sleep(0.05)
    return process, json.loads(file.read_text())


def in_turns(
    servers: dict[Any, tuple[subprocess.Popen, dict]],
    requests: list[bytes],
    arguments: argparse.Namespace,
    before: Callable[[Any], None] = lambda _: None,
    after: Callable[[Any], None] = lambda _: None,
) -> dict[Any, list[dict]]:
    """Return the rounds of each share, in random order round by round. before, after: called around each, with its share."""
    shares = list(servers)
    rows: dict[Any, list[dict]] = {share: [] for share in shares}
    for share in shares:
        asyncio.run(load_of(servers[share][1]["http"], requests, 1.0))
    for turn in range(arguments.rounds):
        for place in np.random.default_rng(turn).permutation(len(shares)):
            share = shares[place]
            before(share)
            rows[share].append(asyncio.run(load_of(servers[share][1]["http"], requests, arguments.seconds)))
            after(share)
            print(f"round {turn + 1}: share {share}: {rows[share][-1]['per_second']:.0f} a second", flush=True)
    return rows


def end(servers: dict[Any, tuple[subprocess.Popen, dict]]) -> None:
    for process, _ in servers.values():
        process.terminate()
        process.wait(30)


def ratio_of(rows: list[dict], plain: list[dict]) -> dict[str, Any]:
    """Return how the requests a second of `rows` compare with those of `plain`, round by round."""
    ratios = [mine["per_second"] / other["per_second"] for mine, other in zip(rows, plain, strict=True)]
    return {"median": float(np.median(ratios)), "ci95": interval(ratios), "least": min(ratios), "greatest": max(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", choices=("digits", "mobilenet_v2"))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(arguments, Path(folder))
    print(json.dumps({share: row["ratio"] for share, row in result["shares"].items()}))
    if arguments.out:
        every = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        arguments.out.write_text(json.dumps(every | {arguments.model: result}, indent=1) + "\n")


def measured(arguments, folder: Path) -> dict:
    bundle = export_source(arguments.model, folder / f"{arguments.model}.rdb").bundle
    data = folder / "data.npz"
    if arguments.model == "digits":
        pixels = load_dataset(bundle, "digits").feeds["x"]
    else:
        from accuracy import CALIBRATION, MEASURING, photographs

        from relu_deploy.data.datasets import to_input

        pixels = to_input(bundle, photographs(CALIBRATION + MEASURING, 128, 0))
    np.savez(data, x=pixels)
    bundle = bundle.add("reports/baseline.npz", census(bundle, data, threads=arguments.threads).baseline.to_bytes())
    requests = [request_for(bundle, row[None]) for row in pixels[:128]]
    servers = {
        share: started(bundle, folder / f"{share:g}.json", arguments.threads, "--log-level", "error", "--monitor-share", share)
        for share in SHARES
    }
    try:
        rows = in_turns(servers, requests, arguments, after=lambda share: settle(servers[share][1]["http"], bundle.name, share))
        watched = {share: state_of(servers[share][1]["http"], bundle.name) for share in SHARES[1:]}
    finally:
        end(servers)
    shares = {
        f"{share:g}": {
            "ratio": ratio_of(each, rows[0.0]),
            "rounds": each,
            **{key: watched[share][key] for key in ("samples", "dropped", "failed") if share in watched},
        }
        for share, each in rows.items()
    }
    return {"environment": describe(arguments.threads), "connections": CONNECTIONS, "shares": shares}


if __name__ == "__main__":
    main()
